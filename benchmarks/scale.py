"""Tokenise two million generated pairs, batch them, and write the record of §5.1.

    python benchmarks/scale.py

English and German lines of the embedded corpus are written to text files, by two
processes, in a folder that is removed at the end (--folder: where; 0.5 GB). Then come
four measurements, each in a fresh process: the lines become token arrays, by two
workers; the arrays are found again, and all batches of an epoch are made; the same up
to the first batch, after the files' pages have been dropped from memory; and 36 million
pairs of random lengths are grouped, without any tokens. Memory is the most that the
main process had resident, and that of the whole family, each shared page counted once,
looked at ten times a second. CPU seconds stand beside those on the clock, for a machine
that has other work. Ten minutes on two cores. Writes book/records/scale_2m.json
(--record).
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from recording import ROOT, origin, save

from annotated_transformer.batching import TokenBatches
from annotated_transformer.corpora import decode_lines
from annotated_transformer.grammar import generate
from annotated_transformer.token_arrays import TokenArrays, corpus_key, tokenize_once
from annotated_transformer.tokenizer import Tokenizer

PAIRS, PARTS, WORKERS = 2_000_000, 2, 2
VOCAB_SIZE, LEARNED_FROM = 3000, 100_000  # pieces; lines of each side
LONGEST, MAX_TOKENS = 256, 25_000  # tokens of a sentence, and of a batch on a side
MANY = 36_000_000  # the pairs of the paper's English–French corpus
TICK = os.sysconf("SC_CLK_TCK")  # of a second, in which the system counts CPU time


# Text


def text_paths(folder: Path) -> list[tuple[Path, Path]]:
    """The two files of each part."""
    names = [(f"{part}.en", f"{part}.de") for part in range(PARTS)]
    return [(folder / source, folder / target) for source, target in names]


def write_part(folder: Path, part: int, n: int) -> None:
    source, target = text_paths(folder)[part]
    with (
        source.open("w", encoding="utf-8") as en,
        target.open("w", encoding="utf-8") as de,
    ):
        for triple in generate(n, seed=part):
            en.write(triple.english.text + "\n")
            de.write(triple.german.text + "\n")


def write_text(folder: Path, pairs: int) -> None:
    with ProcessPoolExecutor(PARTS, get_context("forkserver")) as pool:
        sizes = [pairs * (i + 1) // PARTS - pairs * i // PARTS for i in range(PARTS)]
        list(pool.map(write_part, [folder] * PARTS, range(PARTS), sizes))


def read_text(folder: Path) -> Iterator[tuple[str, str]]:
    for source, target in text_paths(folder):
        with source.open("rb") as en, target.open("rb") as de:
            lines = decode_lines(en, source), decode_lines(de, target)
            yield from zip(*lines, strict=True)


def learn_pieces(folder: Path) -> None:
    lines = []
    for pair, _ in zip(read_text(folder), range(LEARNED_FROM), strict=False):
        lines += pair
    Tokenizer.train(lines, VOCAB_SIZE).save(folder / "tokenizer.model")


# Steps, each in a process of its own; a step prints its results


@contextmanager
def timed(times: dict, name: str) -> Iterator[None]:
    """Seconds of what is done inside: on the clock, and of this process's CPU."""
    wall, cpu = time.perf_counter(), time.process_time()
    yield
    times[name] = {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - cpu,
    }


def arrays_of(folder: Path, times: dict, lines=()) -> TokenArrays:
    """The token arrays; how long the parts of it took goes into times."""
    with timed(times, "digest of the text"):
        key = corpus_key(path for pair in text_paths(folder) for path in pair)
    with timed(times, "token arrays"):
        tokenizer = Tokenizer.load(folder / "tokenizer.model")
        return tokenize_once(lines, tokenizer, LONGEST, folder / "arrays", key, WORKERS)


def tokenize(folder: Path) -> dict:
    """The first run: lines to arrays."""
    times = {}
    arrays = arrays_of(folder, times, read_text(folder))
    files = {path.name: path.stat().st_size for path in arrays.folder.iterdir()}
    header = {name: arrays.header[name] for name in ("pairs", "tokens", "left_out")}
    return {"seconds": times, **header, "bytes": files}


def first_batch(folder: Path) -> tuple[dict, TokenBatches]:
    """Any later run, up to its first batch."""
    times = {}
    arrays = arrays_of(folder, times)
    with timed(times, "lengths, number of batches"):
        batches = TokenBatches(arrays, MAX_TOKENS, 0, 1, 2)
    with timed(times, "groups of the epoch"):
        groups = batches.groups(0)
    with timed(times, "one batch"):
        batches.make(groups[0])
    return times, batches


def start(folder: Path) -> dict:
    return {"seconds": first_batch(folder)[0]}


def epoch(folder: Path) -> dict:
    """Up to the first batch, and then all batches of another epoch."""
    times, batches = first_batch(folder)
    more, places, tokens, labels = {}, 0, 0, 0
    groups = batches.groups(1)
    with timed(more, "all batches"):
        for group in groups:
            batch = batches.make(group)
            places += batch.src.numel() + batch.tgt.numel()
            tokens += int((batch.src != 0).sum()) + int((batch.labels != 0).sum())
            labels += batches.target_tokens(group)
    expected = int(batches.lengths.sum()), int(batches.lengths[:, 1].sum())
    if (tokens, labels) != expected:
        raise RuntimeError(f"{tokens}, {labels} tokens in the batches, not {expected}")
    return {
        "seconds": times,
        **more,
        "batches": len(groups),
        "padding": 1 - tokens / places,
    }


class Lengths:
    """Stands for MANY pairs, of which nothing but the lengths is there."""

    def __len__(self) -> int:
        return MANY

    @property
    def lengths(self) -> np.ndarray:
        rng = np.random.default_rng(0)
        lengths = np.empty((MANY, 2), dtype=np.int32)
        for begin in range(0, MANY, 1 << 20):
            block = lengths[begin : begin + (1 << 20)]
            src = rng.lognormal(3.2, 0.6, len(block)).clip(1, LONGEST - 1)
            tgt = (src * rng.normal(1.1, 0.15, len(block))).clip(1, LONGEST - 1)
            block[:, 0], block[:, 1] = src, tgt
        return lengths


def group(folder: Path) -> dict:
    """Batches of MANY pairs, as far as lengths go."""
    times = {}
    with timed(times, "random lengths, number of batches"):
        batches = TokenBatches(Lengths(), MAX_TOKENS, 0, 1, 2)
    with timed(times, "groups of the epoch"):
        groups = batches.groups(0)
    if not len(groups) == len(batches) or sum(map(len, groups)) != MANY:
        raise RuntimeError("a pair is missing")
    return {
        "pairs": MANY,
        "mean": [float(batches.lengths[:, side].mean()) for side in (0, 1)],
        "batches": len(groups),
        "seconds": times,
    }


STEPS = {step.__name__: step for step in (tokenize, epoch, start, group)}


# Watching a step


def family(process: int) -> list[int]:
    """A process and all that descend from it."""
    try:
        path = Path(f"/proc/{process}/task/{process}/children")
        children = map(int, path.read_text().split())
        return [process, *(other for child in children for other in family(child))]
    except (FileNotFoundError, ProcessLookupError):
        return []


def memory_and_time(process: int) -> tuple[int, float]:
    """Its share of resident memory, in bytes, and the CPU seconds it has used."""
    rollup = Path(f"/proc/{process}/smaps_rollup").read_text()
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    pss = rollup.partition("\nPss:")[2].split()[0]
    return int(pss) * 1024, (int(fields[11]) + int(fields[12])) / TICK


def measure(step: str, folder: Path) -> dict:
    """A step's results, with memory in bytes and CPU time in seconds."""
    command = [sys.executable, __file__, "--step", step, "--folder", str(folder)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    most, times, started = 0, {}, time.perf_counter()
    while run.poll() is None:
        memory = 0
        for process in family(run.pid):
            try:
                share, times[process] = memory_and_time(process)
                memory += share
            except (OSError, IndexError):  # it has just ended
                pass
        most = max(most, memory)
        time.sleep(0.1)
    wall = time.perf_counter() - started
    if run.returncode:
        raise SystemExit(f"step {step} failed")
    result = json.load(run.stdout)
    result["family_seconds"] = {"wall": wall, "cpu": sum(times.values())}
    result["peak_bytes"] = {"main": result.pop("peak"), "family": most}
    print(step, json.dumps(result), file=sys.stderr, flush=True)
    return result


def drop_pages(folder: Path) -> None:
    """Have the system forget what it holds of these files in memory."""
    for path in folder.rglob("*.*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def project(tokens: dict, many: dict) -> dict:
    """What MANY pairs would take, from what was measured."""
    a_pair = sum(many["mean"]) - 2  # without eos
    cost = tokens["family_seconds"]["cpu"] / sum(tokens["tokens"])
    return {
        "pairs": MANY,
        "tokens_a_pair": a_pair,  # of the random lengths: an assumption
        "bytes_a_token": 2,  # so is this: at most 65,536 pieces
        "disk_bytes": MANY * (2 * a_pair + 16),
        "tokenize_cpu_seconds": MANY * a_pair * cost,  # on any number of cores
    }


def rounded(value):
    """The same with four digits in every float."""
    if isinstance(value, dict):
        return {name: rounded(part) for name, part in value.items()}
    if isinstance(value, list):
        return [rounded(part) for part in value]
    return float(f"{value:.4g}") if isinstance(value, float) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book/records/scale_2m.json"
    )
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--pairs", type=int, default=PAIRS)
    parser.add_argument("--step", choices=STEPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.step:
        result = STEPS[arguments.step](arguments.folder)
        status = Path("/proc/self/status").read_text()
        peak = int(status.partition("VmHWM:")[2].split()[0]) * 1024
        print(json.dumps(result | {"peak": peak}))
        return

    packages = "torch", "numpy", "sentencepiece"
    head = origin("python benchmarks/scale.py", packages)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        write_text(folder, arguments.pairs)
        learn_pieces(folder)
        size = sum(path.stat().st_size for path in folder.glob("*.[de][en]"))
        steps = {step: measure(step, folder) for step in ("tokenize", "epoch")}
        drop_pages(folder)
        steps["start"] = measure("start", folder)
    steps["group"] = measure("group", arguments.folder or Path())
    record = {
        **head,
        "seeds": list(range(PARTS)),
        "pairs": arguments.pairs,
        "workers": WORKERS,
        "vocab_size": VOCAB_SIZE,
        "max_tokens": MAX_TOKENS,
        "text_bytes": size,
        **rounded(steps),
        "projection": rounded(project(steps["tokenize"], steps["group"])),
    }
    save(arguments.record, record)


if __name__ == "__main__":
    main()
