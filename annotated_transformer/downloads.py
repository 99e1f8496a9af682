# Written in notebooks/5_1_training_data_and_batching.ipynb; edit it there.
"""Files from the network, whole or not at all, and the contents of archives (§5.1)."""

import gzip
import hashlib
import http.client
import os
import stat
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, NamedTuple

from tqdm import tqdm

__all__ = [
    "TIMEOUT",
    "BLOCK",
    "UNREADABLE",
    "Remote",
    "Unfit",
    "blocks",
    "Answer",
    "ask",
    "fetch",
    "reason",
    "complete",
    "download",
    "alone",
    "Member",
    "Bounded",
    "members",
    "checked_members",
    "reading",
    "extract",
]


try:
    import fcntl
except ImportError:  # Windows: two processes may download the same file at once
    fcntl = None


class Remote(NamedTuple):
    """A published file, and how to know that it arrived whole."""

    address: str
    size: int  # bytes: exact where there is a checksum, else the most it may have
    sha256: str = ""  # empty where the publisher replaces the file from time to time


class Unfit(OSError):
    """What arrived is not what was published, and no byte of it is to be trusted."""


TIMEOUT = 30  # seconds that a server may be silent
BLOCK = 1 << 16  # bytes


def blocks(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """What is left to read, a block at a time."""
    while block := read(BLOCK):
        yield block


class Answer(NamedTuple):
    """What a server sends when it is asked for a file from some byte on."""

    response: http.client.HTTPResponse
    begin: int  # the byte it begins at
    total: int | None  # bytes of the whole file; None where the server does not say


def ask(remote: Remote, offset: int) -> Answer:
    """Open a published file at an offset, or at 0 where the server sends no parts.

    Raises Unfit where the server announces a file of another size.
    """
    headers = {"User-Agent": "annotated-transformer"}  # some servers turn Python away
    if offset:
        headers["Range"] = f"bytes={offset}-"
    request = urllib.request.Request(remote.address, headers=headers)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # range not satisfiable: the file there is shorter
            raise
        raise Unfit(f"the server has no byte {offset}") from error
    begin = offset if response.status == 206 else 0
    length = response.headers.get("Content-Length", "")
    total = begin + int(length) if length.isdecimal() else None
    part = response.headers.get("Content-Range", "")
    problem = None
    if begin and not part.startswith(f"bytes {begin}-"):
        problem = f"asked for byte {begin} and on, the server sends {part!r}"
    elif remote.sha256 and total not in (None, remote.size):
        problem = f"the server announces {total} bytes, not {remote.size}"
    elif (total or 0) > remote.size:
        problem = f"the server announces {total} bytes, more than {remote.size}"
    if problem:
        response.close()
        raise Unfit(problem)
    return Answer(response, begin, total)


def fetch(remote: Remote, path: Path) -> str:
    """Append to a file what it lacks of the published one; return its SHA-256.

    Raises OSError where the connection breaks off: what came is then in the file, and
    another call goes on behind it. Raises Unfit where the server sends something else.
    """
    digest, offset = hashlib.sha256(), 0
    if path.exists():
        with open(path, "rb") as file:
            for block in blocks(file.read):
                digest.update(block)
                offset += len(block)
    if remote.sha256 and offset >= remote.size:
        return digest.hexdigest()

    response, arrived, total = ask(remote, offset)
    if arrived < offset:  # all of it, from the first byte
        digest = hashlib.sha256()
    form = {"unit": "B", "unit_scale": True, "disable": None, "initial": arrived}
    with (
        response,
        open(path, "ab" if arrived else "wb") as file,
        tqdm(total=total, desc=path.stem, **form) as bar,
    ):
        for block in blocks(response.read1):
            arrived += len(block)
            if arrived > remote.size:
                raise Unfit(f"the server sends more than {remote.size} bytes")
            file.write(block)
            digest.update(block)
            bar.update(len(block))
    expected = remote.size if remote.sha256 else total
    if expected is not None and arrived < expected:
        raise OSError(f"the connection ended after {arrived} of {expected} bytes")
    return digest.hexdigest()


def reason(error: Exception) -> str:
    """What an error says, on one line."""
    inner = getattr(error, "reason", None)  # of what urllib wraps
    shown = inner if isinstance(inner, Exception) else error
    return " ".join(str(shown).split()) or type(shown).__name__


def complete(remote: Remote, part: Path, check: Callable[[Path], None] | None) -> None:
    """Fetch until the part is the whole file. Raises OSError where it will not be."""
    if not remote.sha256:
        part.unlink(missing_ok=True)
    while True:
        resumed = part.exists()
        try:
            found = fetch(remote, part)
            if remote.sha256 and found != remote.sha256:
                raise Unfit(f"its SHA-256 is {found}, not {remote.sha256}")
            if check:
                check(part)
            return
        except (Unfit, ValueError) as error:
            part.unlink(missing_ok=True)
            if not resumed:  # otherwise the old bytes are to blame: once more, anew
                raise Unfit(reason(error)) from error
        except BaseException:
            if part.exists() and not (remote.sha256 and part.stat().st_size):
                part.unlink()
            raise


def download(
    remote: Remote, path: Path, check: Callable[[Path], None] | None = None
) -> None:
    """Bring a published file to a path, whole or not at all.

    Until it is known to be whole it is called NAME.part. With a checksum, a part stays
    where the connection breaks off, and the next call goes on from there. Without one,
    nothing stays, and `check` says, by a ValueError, that the file is not whole.
    Raises OSError with the address and the reason.
    """
    part = path.with_name(f"{path.name}.part")
    try:
        with alone(path.parent):
            if not path.is_file():  # nor has another process brought it meanwhile
                complete(remote, part, check)
                os.replace(part, path)
    except (OSError, http.client.HTTPException) as error:
        kept = part.stat().st_size if part.is_file() else 0
        note = f"; {kept} bytes are kept, and another call goes on from there"
        raise OSError(
            f"cannot download {remote.address}: {reason(error)}{note if kept else ''}"
        ) from error


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keep other processes from downloading to a folder meanwhile; wait for them."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".lock", "a") as file:
        if fcntl:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                print(f"waiting for another process in {folder}", file=sys.stderr)
                fcntl.flock(file, fcntl.LOCK_EX)
        yield  # the lock ends with the open file, and so with the process


class Member(NamedTuple):
    """One entry of an archive."""

    name: str
    size: int  # bytes, as the archive says
    regular: bool  # a file, and not a folder, a link or a device
    open: Callable[[], IO[bytes]]


class Bounded:
    """A file that may be read to so many bytes, and not further."""

    def __init__(self, file: IO[bytes], largest: int) -> None:
        self.file, self.largest, self.left = file, largest, largest

    def read(self, size: int) -> bytes:
        block = self.file.read(size)
        self.left -= len(block)
        if self.left < 0:
            raise ValueError(f"unpacks to more than {self.largest} bytes")
        return block


def members(archive: Path, largest: int) -> Iterator[Member]:
    """The entries of a zip or tar archive, each to be opened before the next.

    largest: bytes that a tar archive may have when unpacked, headers and all.
    """
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                regular = kind in (0, stat.S_IFREG) and not info.is_dir()
                opened = partial(zipped.open, info)
                yield Member(info.filename, info.file_size, regular, opened)
        return
    with open(archive, "rb") as file:
        packed = file.read(2) == b"\x1f\x8b"
    with (gzip.open if packed else open)(archive, "rb") as file:
        bounded = Bounded(file, largest)
        with tarfile.open(fileobj=bounded, mode="r|") as tar:
            for entry in tar:
                opened = partial(tar.extractfile, entry)
                yield Member(entry.name, entry.size, entry.isreg(), opened)
        for _ in blocks(bounded.read):  # to the end, where gzip has its checksum
            pass


def checked_members(archive: Path, largest: int) -> Iterator[Member]:
    """The entries of an archive that does nothing an archive of text would not do.

    Raises ValueError where a name leads out of the folder, and where the contents come
    to more than `largest` bytes.
    """
    total = 0
    for member in members(archive, largest):
        path = PureWindowsPath(member.name)  # knows /, \\ and drives
        if path.anchor or ".." in path.parts:
            raise ValueError(f"{member.name!r} would leave the folder")
        total += member.size
        if total > largest:
            raise ValueError(f"unpacks to more than {largest} bytes")
        yield member


# What the standard library raises for an archive that it cannot read: damage of each
# kind, a password that is needed, a compression it does not know.
UNREADABLE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    RuntimeError,
)


@contextmanager
def reading(archive: Path) -> Iterator[None]:
    """Turn what goes wrong with an archive into a ValueError that names it."""
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"{archive}: not a whole archive ({reason(error)})") from error
    except ValueError as error:
        raise ValueError(f"{archive}: {error}") from error


def extract(archive: Path, wanted: dict[str, Path], largest: int) -> None:
    """Copy entries of an archive, by name, to paths that the caller chooses.

    No name in the archive becomes a path, and the files get theirs when all of them
    are complete. largest: bytes that the archive may unpack to. Raises ValueError,
    naming the archive, where it is not whole or does more than hold text, and where a
    wanted entry is missing or not a file.
    """
    parts = {}
    try:
        with reading(archive):
            for member in checked_members(archive, largest):
                name = member.name.removeprefix("./")
                if name in wanted:
                    if not member.regular:
                        raise ValueError(f"{name} is not a file")
                    parts[name] = wanted[name].with_name(f"{wanted[name].name}.part")
                    with member.open() as packed, open(parts[name], "wb") as file:
                        file.writelines(blocks(packed.read))
            if missing := [name for name in wanted if name not in parts]:
                raise ValueError(f"there is no {', '.join(missing)} in it")
        for name, part in parts.items():
            os.replace(part, wanted[name])
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
