"""Parallel text: a folder of aligned files, one line a sentence, named SPLIT.LANGUAGE (§5.1)."""

import gzip
import hashlib
import os
import shutil
import sys
import urllib.request
from pathlib import Path

from tqdm import tqdm

DATA_VARIABLE = "ANNOTATED_TRANSFORMER_DATA"
CACHE_VARIABLE = "ANNOTATED_TRANSFORMER_CACHE"

MULTI30K_ADDRESS = (
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/"
)
MULTI30K_SHA256 = {
    "test_2016_flickr.de.gz": "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
    "test_2016_flickr.en.gz": "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
    "test_2016_flickr.fr.gz": "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
    "test_2017_flickr.de.gz": "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee",
    "test_2017_flickr.en.gz": "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074",
    "test_2017_flickr.fr.gz": "3ba671ceb2299f3304ffafefea7a833d08632fbaf0ba18546f8a2ec2391af496",
    "train.de.gz": "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
    "train.en.gz": "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
    "train.fr.gz": "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
    "val.de.gz": "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
    "val.en.gz": "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
    "val.fr.gz": "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
}
PUBLIC = {"multi30k": (MULTI30K_ADDRESS, MULTI30K_SHA256)}


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file, plain or gzipped, without their line ends.

    Raises ValueError, naming the file and the line, where a line is not UTF-8.
    """
    path = Path(path)
    with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
        lines = []
        for number, line in enumerate(file, start=1):
            try:
                lines.append(line.decode("utf-8").rstrip("\r\n"))
            except UnicodeDecodeError:
                raise ValueError(f"{path}, line {number}: not valid UTF-8") from None
    return lines


def load_pairs(corpus: str, source: str, target: str, split: str) -> tuple[list[str], list[str]]:
    """The source and the target sentences of one split of a corpus, aligned line by line.

    corpus: a folder with files SPLIT.LANGUAGE or SPLIT.LANGUAGE.gz, or the name of a public
    corpus, which is looked for in $ANNOTATED_TRANSFORMER_DATA, then in the cache, and then
    downloaded to the cache. source, target: languages as in the file names.
    Raises ValueError where the corpus, the split or the language does not exist, and where the
    two files do not have the same number of lines.
    """
    paths = [find_file(corpus, f"{split}.{language}") for language in (source, target)]
    sources, targets = map(read_lines, paths)
    if len(sources) != len(targets):
        raise ValueError(
            f"{paths[0]} has {len(sources)} lines but {paths[1]} has {len(targets)}: "
            "each line must be the translation of the same line in the other file"
        )
    return sources, targets
