# Written in notebooks/5_1_batches.ipynb; edit it there.
"""A corpus tokenised once, into arrays that are mapped from disk (§5.1)."""

import hashlib
import json
import os
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, closing
from itertools import chain, islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import NamedTuple

import numpy as np
from tqdm import tqdm

from .batching import Pair
from .tokenizer import Tokenizer

__all__ = [
    "CHUNK",
    "FORMAT",
    "HEADER",
    "SIDES",
    "Chunk",
    "id_type",
    "encode_pairs",
    "encode_in_order",
    "TokenArrays",
    "corpus_key",
    "tokenize_once",
]


class Chunk(NamedTuple):
    """Some lines of a corpus as ids, source and target, and what was left out."""

    tokens: list[np.ndarray]  # of each side, sentence behind sentence
    lengths: list[np.ndarray]  # of each side, tokens in a sentence
    empty: int  # pairs left out, as one side has no token
    too_long: int  # pairs left out, as one side has too many


def id_type(vocab_size: int) -> str:
    """The smaller number type on disk that holds every id, in NumPy's notation."""
    return "<u2" if vocab_size <= 1 << 16 else "<i4"


def encode_pairs(
    lines: Sequence[tuple[str, str]], tokenizer: Tokenizer, longest: int
) -> Chunk:
    """Source and target lines as ids. longest: tokens a side may have, eos counted."""
    kept: tuple[list[list[int]], ...] = ([], [])
    empty = too_long = 0
    sides = [tokenizer.encode(texts) for texts in zip(*lines, strict=True)]
    for texts, *pair in zip(lines, *sides, strict=True):
        if not all(pair) or not all(map(str.strip, texts)):
            empty += 1
        elif max(map(len, pair)) + 1 > longest:
            too_long += 1
        else:
            for side, ids in zip(kept, pair, strict=True):
                side.append(ids)
    dtype = id_type(tokenizer.vocab_size)
    tokens = [np.fromiter(chain.from_iterable(side), dtype) for side in kept]
    lengths = [np.fromiter(map(len, side), np.int64) for side in kept]
    return Chunk(tokens, lengths, empty, too_long)


CHUNK = 4096  # pairs of lines that a process is given at a time


def encode_in_order(
    lines: Iterable[tuple[str, str]], tokenizer: Tokenizer, longest: int, workers: int
) -> Iterator[Chunk]:
    """`encode_pairs` of chunk after chunk, in the order of the lines.

    workers: processes that encode; with 1, this one does. Raises RuntimeError where one
    of them dies.
    """
    lines = iter(lines)
    chunks = iter(lambda: list(islice(lines, CHUNK)), [])
    if workers == 1:
        yield from (encode_pairs(chunk, tokenizer, longest) for chunk in chunks)
        return
    # Workers are forked from a small process of their own, which imports this module
    # once, and not from this one with its threads and its GPU.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__])
    settings = tokenizer, longest
    with ProcessPoolExecutor(workers, context, _start_worker, settings) as pool:
        ahead = deque()
        try:
            for chunk in chunks:
                ahead.append(pool.submit(_work, chunk))
                if len(ahead) > 2 * workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        except BrokenProcessPool:
            raise RuntimeError(
                "a tokenising process has died: killed, out of memory, or started by "
                "a script that does not guard its start by __name__ == '__main__'"
            ) from None


def _start_worker(tokenizer: Tokenizer, longest: int) -> None:
    """What a worker keeps from chunk to chunk."""
    global _settings
    _settings = tokenizer, longest
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    parent_process().join()
    os._exit(1)


def _work(chunk: list[tuple[str, str]]) -> Chunk:
    return encode_pairs(chunk, *_settings)


FORMAT, HEADER, SIDES = 1, "header.json", ("source", "target")


class TokenArrays(Sequence):
    """Pairs of ids, read from disk one at a time (§5.1).

    folder: what `tokenize_once` wrote. header: what it says about itself, with the
    pairs left out by reason. Raises ValueError, naming the file, where it is not whole.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.header = self._read_header()
        n, dtype = self.header["pairs"], self.header["dtype"]
        self.tokens, self.offsets = [], []
        for side, total in zip(SIDES, self.header["tokens"], strict=True):
            offsets = self._map(f"{side}.offsets", "<i8", n + 1)
            if offsets[0] != 0 or offsets[-1] != total:
                self._refuse(f"{side}.offsets", f"does not lead from 0 to {total}")
            self.tokens.append(self._map(f"{side}.tokens", dtype, total))
            self.offsets.append(offsets)

    def __len__(self) -> int:
        return self.header["pairs"]

    def __getitem__(self, i: int) -> Pair:
        i = range(len(self))[i]  # from the end, if negative; IndexError if not there
        src, tgt = (
            tokens[offsets[i] : offsets[i + 1]].tolist()
            for tokens, offsets in zip(self.tokens, self.offsets, strict=True)
        )
        return src, tgt

    @property
    def lengths(self) -> np.ndarray:
        """Source and target tokens of each pair, (N, 2) int32, from the offsets."""
        lengths = np.empty((len(self), 2), dtype=np.int32)
        for side, offsets in enumerate(self.offsets):
            np.subtract(
                offsets[1:], offsets[:-1], out=lengths[:, side], casting="same_kind"
            )
        return lengths

    def _read_header(self) -> dict:
        try:
            header = json.loads((self.folder / HEADER).read_text(encoding="utf-8"))
            counts = [header["pairs"], *header["tokens"]]
            counted = len(counts) == 3 and all(type(n) is int and n > 0 for n in counts)
            known = header["dtype"] in ("<u2", "<i4") and "left_out" in header
            if counted and known and header["identity"]["format"] == FORMAT:
                return header
        except (FileNotFoundError, NotADirectoryError):
            self._refuse(HEADER, "is not there")
        except (ValueError, KeyError, TypeError):
            pass
        self._refuse(HEADER, f"is not a header of token arrays, format {FORMAT}")

    def _map(self, name: str, dtype: str, count: int) -> np.ndarray:
        path, expected = self.folder / name, count * np.dtype(dtype).itemsize
        size = path.stat().st_size if path.is_file() else None
        if size is None:
            self._refuse(name, "is not there")
        if size != expected:
            self._refuse(name, f"has {size} bytes and should have {expected}")
        return np.asarray(np.memmap(path, dtype, mode="r", shape=(count,)))

    def _refuse(self, name: str, reason: str) -> None:
        raise ValueError(
            f"{self.folder / name} {reason}: delete the folder to have it made again"
        )


def corpus_key(paths: Iterable[str | Path]) -> str:
    """A digest of files' contents: to tell a text from one that was changed since."""
    digest = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        digest.update(f" {os.path.getsize(path)} ".encode())
    return digest.hexdigest()


def tokenize_once(
    lines: Iterable[tuple[str, str]],
    tokenizer: Tokenizer,
    longest: int,
    folder: str | Path,
    key: str,
    workers: int = 1,
) -> TokenArrays:
    """Pairs of lines as ids on disk: those made before, or new ones (§5.1).

    lines: source and target, read only if there are no such arrays yet, and never held
    in memory as a whole. longest: tokens that a side may have, eos counted. folder:
    where arrays are kept, each in a folder of its own. key: what tells these lines from
    any others: the `corpus_key` of their files, say, with the languages and the split.
    workers: processes that encode.
    Raises ValueError where no pair is left, or arrays found are not whole; OSError
    where they cannot be written; RuntimeError where a worker dies.
    """
    identity = {
        "format": FORMAT,
        "corpus": key,
        "tokenizer": hashlib.sha256(tokenizer.model).hexdigest(),
        "longest": longest,
    }
    name = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    target = Path(folder, name)
    if not target.exists():
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
            part = Path(scratch, name)
            part.mkdir()
            chunks = encode_in_order(lines, tokenizer, longest, workers)
            try:
                with closing(chunks):
                    _write(part, chunks, identity, id_type(tokenizer.vocab_size))
                os.rename(part, target)
            except OSError as error:
                if target.exists():  # made by somebody else meanwhile
                    pass
                elif error.errno is None or error.filename:  # it says enough
                    raise
                else:
                    raise OSError(f"cannot write {target}: {error.strerror}") from error
    arrays = TokenArrays(target)
    if arrays.header["identity"] != identity:
        raise ValueError(f"{target} holds other token arrays: delete it")
    return arrays


def _write(folder: Path, chunks: Iterable[Chunk], identity: dict, dtype: str) -> None:
    """All five files, the header last, and all of them safe on the disk."""
    pairs, totals = 0, np.zeros(2, dtype=np.int64)
    left_out = {"empty": 0, "too_long": 0}
    names = [f"{side}.{what}" for what in ("tokens", "offsets") for side in SIDES]
    with ExitStack() as stack:
        files = [stack.enter_context(open(folder / name, "wb")) for name in names]
        bar = stack.enter_context(tqdm(desc="tokenising", unit=" pairs", disable=None))
        for file in files[2:]:
            file.write(np.zeros(1, dtype="<i8"))
        for chunk in chunks:
            for side in (0, 1):
                ends = totals[side] + np.cumsum(chunk.lengths[side], dtype="<i8")
                files[side].write(chunk.tokens[side])
                files[2 + side].write(ends.astype("<i8"))
                totals[side] += len(chunk.tokens[side])
            pairs += len(chunk.lengths[0])
            left_out["empty"] += chunk.empty
            left_out["too_long"] += chunk.too_long
            bar.update(len(chunk.lengths[0]) + chunk.empty + chunk.too_long)
        for file in files:
            _sync(file)
    if not pairs:
        raise ValueError(
            f"no pair is left: {left_out['empty']} have an empty side, "
            f"{left_out['too_long']} one of more than {identity['longest']} tokens"
        )
    header = {
        "identity": identity,
        "dtype": dtype,
        "pairs": pairs,
        "tokens": totals.tolist(),
        "left_out": left_out,
    }
    with open(folder / HEADER, "w", encoding="utf-8") as file:
        json.dump(header, file, indent=1)
        _sync(file)


def _sync(file) -> None:
    file.flush()
    os.fsync(file.fileno())
