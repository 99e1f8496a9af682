# Written in notebooks/5_1_training_data_and_batching.ipynb; edit it there.
"""Parallel text: aligned files, one sentence a line, named SPLIT.LANGUAGE (§5.1)."""

import gzip
import hashlib
import http.client
import os
import tempfile
import urllib.request
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

__all__ = [
    "MULTI30K",
    "PUBLIC",
    "DATA_VARIABLE",
    "CACHE_VARIABLE",
    "TIMEOUT",
    "decode_lines",
    "read_lines",
    "PublicCorpus",
    "data_folder",
    "cache_folder",
    "fetch",
    "download",
    "find_file",
    "load_pairs",
]


def decode_lines(file: Iterable[bytes], name: str | Path) -> Iterator[str]:
    r"""The lines of a file opened in binary mode, as text, without their line ends.

    A line ends with "\n" or "\r\n" and with nothing else: a sentence may contain the
    other characters at which `str.splitlines` breaks (U+0085, U+2028, a lone "\r"…).
    name: what to call the file in an error. Raises ValueError, naming the file and the
    line, where a line is not UTF-8.
    """
    for number, line in enumerate(file, start=1):
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number}: byte {error.start + 1} is not valid UTF-8"
            ) from None


def read_lines(path: str | Path) -> list[str]:
    """The lines of a UTF-8 text file, gzipped if its name ends with .gz.

    Raises ValueError, naming the file, where it is not UTF-8 or not whole gzip.
    """
    path = Path(path)
    open_bytes = gzip.open if path.suffix == ".gz" else open
    with open_bytes(path, "rb") as file:
        try:
            return list(decode_lines(file, path))
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error})") from None


class PublicCorpus(NamedTuple):
    """Where a corpus is published, and how to know that a file of it is whole."""

    address: str  # of the folder, ending with a slash
    largest: int  # bytes; no file of the corpus has more
    sha256: dict[str, str]  # of each file, by its name


MULTI30K = """
train.en.gz d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f
train.de.gz 726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6
train.fr.gz 622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c
val.en.gz 14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28
val.de.gz f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a
val.fr.gz ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9
test_2016_flickr.en.gz 611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9
test_2016_flickr.de.gz 9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8
test_2016_flickr.fr.gz 6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90
test_2017_flickr.en.gz 76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074
test_2017_flickr.de.gz a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee
test_2017_flickr.fr.gz 3ba671ceb2299f3304ffafefea7a833d08632fbaf0ba18546f8a2ec2391af496
"""
PUBLIC = {
    "multi30k": PublicCorpus(
        address="https://raw.githubusercontent.com/multi30k/dataset/"
        "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/",
        largest=1 << 20,
        sha256=dict(line.split() for line in MULTI30K.strip().splitlines()),
    )
}


DATA_VARIABLE = "ANNOTATED_TRANSFORMER_DATA"
CACHE_VARIABLE = "ANNOTATED_TRANSFORMER_CACHE"


def data_folder() -> Path | None:
    """The folder that $ANNOTATED_TRANSFORMER_DATA names; None where it is not set.

    Raises ValueError where it names something that is not a folder.
    """
    value = os.environ.get(DATA_VARIABLE)
    if value and not Path(value).is_dir():
        raise ValueError(f"${DATA_VARIABLE} is {value}, which is not a folder")
    return Path(value) if value else None


def cache_folder() -> Path:
    """$ANNOTATED_TRANSFORMER_CACHE, or ~/.cache/annotated_transformer if not set."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/annotated_transformer"
    return Path(folder).expanduser()


TIMEOUT = 30  # seconds that a server may be silent


def fetch(address: str, path: Path, largest: int) -> str:
    """Copy what is at an address to a file; return its SHA-256.

    largest: bytes, above which the copy stops. Raises OSError where it stops there, or
    ends before the length that the server announced.
    """
    digest, received = hashlib.sha256(), 0
    with urllib.request.urlopen(address, timeout=TIMEOUT) as response:
        announced = response.headers.get("Content-Length")
        total = int(announced) if announced else None
        form = {
            "unit": "B",
            "unit_scale": True,
            "disable": None,
        }
        with open(path, "wb") as file, tqdm(total=total, desc=path.name, **form) as bar:
            while block := response.read1(1 << 16):
                received += len(block)
                if received > largest:
                    raise OSError(f"more than {largest} bytes")
                file.write(block)
                digest.update(block)
                bar.update(len(block))
    if total is not None and received != total:
        raise OSError(f"received {received} of {total} bytes")
    return digest.hexdigest()


def download(corpus: str, name: str) -> Path:
    """Fetch one file of a public corpus into the cache, whole or not at all.

    It gets its name only when its SHA-256 is right. Raises OSError, with the address
    and the reason, otherwise; nothing then stays behind.
    """
    address, largest, sha256 = PUBLIC[corpus]
    folder = cache_folder() / corpus
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
            part = Path(scratch, name)
            found = fetch(address + name, part, largest)
            if found != sha256[name]:
                raise OSError(f"its SHA-256 is {found}, not {sha256[name]}")
            os.replace(part, folder / name)
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise OSError(
            f"cannot download {address}{name}: {reason} "
            f"(${DATA_VARIABLE} may name a folder with {corpus}/{name})"
        ) from error
    return folder / name


def find_file(corpus: str, name: str) -> Path:
    """The path of one file of a corpus. name: SPLIT.LANGUAGE, like "train.en".

    corpus: the name of a folder in $ANNOTATED_TRANSFORMER_DATA; or of a public corpus,
    looked for in that folder, then in the cache, and then downloaded to the cache; or
    the path of any folder. The file may be gzipped: NAME.gz.
    Raises ValueError where there is no such corpus or file; OSError where a download
    fails.
    """
    folders = []
    if corpus == Path(corpus).name and (data := data_folder()):
        folders.append(data / corpus)
    folders.append(cache_folder() / corpus if corpus in PUBLIC else Path(corpus))
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path

    if corpus in PUBLIC:
        files = PUBLIC[corpus].sha256
        if f"{name}.gz" in files:
            return download(corpus, f"{name}.gz")
        known = ", ".join(file.removesuffix(".gz") for file in files)
        raise ValueError(f"{corpus} has no {name}; it has {known}")
    for folder in folders:
        if folder.is_dir():
            there = sorted(path.name for path in folder.iterdir())
            shown = ", ".join(there[:20]) + (", …" if len(there) > 20 else "")
            raise ValueError(
                f"no {name} or {name}.gz in {folder}; there is {shown or 'nothing'}"
            )
    raise ValueError(
        f"unknown corpus {corpus!r}: give one of {', '.join(PUBLIC)}, or the path of a "
        f"folder with files like {name}"
    )


def load_pairs(
    corpus: str, source: str, target: str, split: str
) -> tuple[list[str], list[str]]:
    """Source and target sentences of one split of a corpus, aligned line by line.

    corpus: what `find_file` takes. source, target: languages as they stand in the file
    names. Raises ValueError where the corpus, the split or the language does not
    exist, where a file is not text or is empty, and where the two files do not have
    the same number of lines; OSError where a download fails.
    """
    paths = [find_file(corpus, f"{split}.{language}") for language in (source, target)]
    sources, targets = map(read_lines, paths)
    for path, lines in zip(paths, (sources, targets), strict=True):
        if not lines:
            raise ValueError(f"{path} is empty")
    if len(sources) != len(targets):
        raise ValueError(
            f"{paths[0]} has {len(sources)} lines but {paths[1]} has {len(targets)}: "
            "each line must be the translation of the same line in the other file"
        )
    return sources, targets
