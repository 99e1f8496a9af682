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

DATA_VARIABLE = "ANNOTATED_TRANSFORMER_DATA"
CACHE_VARIABLE = "ANNOTATED_TRANSFORMER_CACHE"
TIMEOUT = 30  # seconds that a server may be silent


class PublicCorpus(NamedTuple):
    """Where a corpus is published, and how to know that a file of it is whole."""

    address: str  # of the folder, ending with a slash
    files: dict[str, tuple[int, str]]  # name → size in bytes, SHA-256


MULTI30K = PublicCorpus(
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/",
    {
        "train.en.gz": (
            568929,
            "d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f",
        ),
        "train.de.gz": (
            637044,
            "726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6",
        ),
        "train.fr.gz": (
            604242,
            "622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c",
        ),
        "val.en.gz": (
            21650,
            "14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28",
        ),
        "val.de.gz": (
            24681,
            "f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a",
        ),
        "val.fr.gz": (
            23001,
            "ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9",
        ),
        "test_2016_flickr.en.gz": (
            21077,
            "611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9",
        ),
        "test_2016_flickr.de.gz": (
            22890,
            "9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8",
        ),
        "test_2016_flickr.fr.gz": (
            22310,
            "6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90",
        ),
        "test_2017_flickr.en.gz": (
            19138,
            "76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074",
        ),
        "test_2017_flickr.de.gz": (
            21471,
            "a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee",
        ),
        "test_2017_flickr.fr.gz": (
            20434,
            "3ba671ceb2299f3304ffafefea7a833d08632fbaf0ba18546f8a2ec2391af496",
        ),
    },
)
PUBLIC = {"multi30k": MULTI30K}


def decode_lines(file: Iterable[bytes], name: str | Path) -> Iterator[str]:
    r"""The lines of a file opened in binary mode, as text, without their line ends.

    A line ends with "\n" or "\r\n" and with nothing else: a sentence may contain the
    other characters that `str.splitlines` breaks at (U+0085, U+2028, a lone "\r"…).
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


def load_pairs(
    corpus: str, source: str, target: str, split: str
) -> tuple[list[str], list[str]]:
    """Source and target sentences of one split of a corpus, aligned line by line.

    corpus: a folder with files SPLIT.LANGUAGE or SPLIT.LANGUAGE.gz, or a name that
    `find_file` knows. source, target: languages as they stand in the file names.
    Raises ValueError where the corpus, the split or the language does not exist, where
    a file cannot be read as text or is empty, and where the two files do not have the
    same number of lines; OSError where a download fails.
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


def cache_folder() -> Path:
    """$ANNOTATED_TRANSFORMER_CACHE if set, else ~/.cache/annotated_transformer."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/annotated_transformer"
    return Path(folder).expanduser()


def find_file(corpus: str, name: str) -> Path:
    """The path of one file of a corpus; `name` is like "train.en", with .gz or not.

    corpus: a folder, if it is written as a path (./multi30k) or is no public name. A
    bare name is looked for under $ANNOTATED_TRANSFORMER_DATA, then, if it is public,
    in the cache, and is then downloaded to the cache. Raises ValueError where there is
    no such corpus or file; OSError where the download fails.
    """
    folders = []
    if corpus == Path(corpus).name:
        folders += [folder / corpus for folder in data_folder()]
    if corpus in PUBLIC:
        folders.append(cache_folder() / corpus)
    else:
        folders.append(Path(corpus))
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    if corpus in PUBLIC:
        if f"{name}.gz" in PUBLIC[corpus].files:
            return download(corpus, f"{name}.gz", folders[-1])
        there = ", ".join(path.removesuffix(".gz") for path in PUBLIC[corpus].files)
        raise ValueError(f"{corpus} has no {name}; it has {there}")
    for folder in folders:
        if folder.is_dir():
            there = sorted(path.name for path in folder.iterdir() if path.is_file())
            raise ValueError(
                f"no {name} or {name}.gz in {folder}, "
                f"which has {', '.join(there[:20]) or 'no files'}"
                + (f" and {len(there) - 20} more" if len(there) > 20 else "")
            )
    raise ValueError(
        f"unknown corpus {corpus!r}: neither a folder nor one of {', '.join(PUBLIC)}"
    )


def data_folder() -> list[Path]:
    """The folder that $ANNOTATED_TRANSFORMER_DATA names, if it is set.

    Raises ValueError where it is set to something that is not a folder.
    """
    value = os.environ.get(DATA_VARIABLE)
    if not value:
        return []
    if not Path(value).is_dir():
        raise ValueError(f"${DATA_VARIABLE} is {value}, which is not a folder")
    return [Path(value)]


def download(corpus: str, name: str, folder: Path) -> Path:
    """Fetch one file of a public corpus into a folder, whole or not at all.

    The bytes go to a temporary file beside the destination, which gets its name only
    once size and SHA-256 are right. Raises OSError, naming the address and what is
    wrong, otherwise; nothing then stays behind.
    """
    address, files = PUBLIC[corpus]
    address, (size, sha256) = address + name, files[name]
    part = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with (
            urllib.request.urlopen(address, timeout=TIMEOUT) as response,
            tempfile.NamedTemporaryFile(
                dir=folder, prefix=f"{name}.", suffix=".part", delete=False
            ) as file,
            tqdm(total=size, desc=name, unit="B", unit_scale=True, disable=None) as bar,
        ):
            part, digest, received = Path(file.name), hashlib.sha256(), 0
            while received <= size and (block := response.read1(1 << 16)):
                file.write(block)
                digest.update(block)
                received += len(block)
                bar.update(len(block))
        if received != size:
            more = "more than " if received > size else f"{received} of "
            raise OSError(f"received {more}{size} bytes")
        if digest.hexdigest() != sha256:
            raise OSError(f"the SHA-256 is {digest.hexdigest()}, not {sha256}")
        os.replace(part, folder / name)
    except (OSError, http.client.HTTPException) as error:
        raise OSError(
            f"cannot download {address} to {folder}: {error or type(error).__name__}"
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)
    return folder / name
