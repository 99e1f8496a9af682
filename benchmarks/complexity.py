"""Time the layers of Table 1 against length and width, and write the record of §4.

    python benchmarks/complexity.py

One core. The forward pass of a layer of each kind, and of attention alone, full and
restricted: lengths 16 to 4,096 at four widths, widths 16 to 2,048 at one length, and
self-attention and recurrence again on a batch of 16. Every case is measured once in
each of --rounds rounds, with so many passes as take ten milliseconds; the record has
the median of the rounds and their quartiles. Then attention up to a length of 16,384,
full and restricted, and the memory of a pass forwards and backwards, each in a process
of its own: what it had resident at most above what it had before. Two and a half
minutes, on Linux. Writes book/records/complexity_cpu.json (--record).
"""

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from recording import ONE_CORE, ROOT, origin, save
from torch import Tensor

from annotated_transformer.attention import (
    fused_attention,
    scaled_dot_product_attention,
)
from annotated_transformer.complexity import KINDS, make_layer
from annotated_transformer.restricted_attention import (
    RestrictedAttention,
    neighbourhood_mask,
)

K, R = 3, 129  # widths of a convolution and of a neighbourhood
LENGTHS, WIDTHS = [2**i for i in range(4, 13)], (64, 128, 256, 512)
ALL_WIDTHS, LENGTH = [2**i for i in range(4, 12)], 512
BATCH, BATCH_LENGTHS = 16, [2**i for i in range(4, 11)]
LONG, LONG_WIDTH = [2**i for i in range(10, 15)], 128
MASKED_UP_TO = {"ms": 4096, "bytes": 8192}  # beyond, n² numbers are too many
HEAD, LEAST = 64, 0.01  # width of a head; seconds that a measurement takes at least


def heads(batch: int, n: int, d_model: int) -> list[Tensor]:
    """Queries, keys and values, (B, H, n, d_k) each."""
    n_heads = max(1, d_model // HEAD)
    return list(torch.randn(3, batch, n_heads, n, d_model // n_heads))


def make(kind: str, n: int, d: int, batch: int) -> Callable[[], Tensor]:
    """One forward pass, ready to be called."""
    if kind.endswith(" alone"):
        restricted = kind.startswith("restricted")
        attention = RestrictedAttention(R) if restricted else fused_attention
        inputs = heads(batch, n, d)
        return lambda: attention(*inputs)
    layer = make_layer(kind, d, R if kind == "restricted" else K)
    x = torch.randn(batch, n, d)
    return lambda: layer(x)


def masked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The definition: all scores, then the mask."""
    mask = neighbourhood_mask(key.size(-2), R)
    return scaled_dot_product_attention(query, key, value, mask)


ATTENTIONS = {
    "masked": masked,
    "full": fused_attention,
    "restricted": RestrictedAttention(R),
}


def seconds(function: Callable[[], Tensor], passes: int) -> float:
    """Of one pass, as a mean of so many."""
    started = time.perf_counter()
    for _ in range(passes):
        function()
    return (time.perf_counter() - started) / passes


@torch.inference_mode()
def race(cases: list[tuple], make: Callable, rounds: int) -> list[dict]:
    """Milliseconds of each case: median and quartiles of the rounds."""
    functions = [make(*case) for case in cases]
    passes, found = [], [[] for _ in cases]
    for function in functions:
        function()
        passes.append(max(1, round(LEAST / seconds(function, 1))))
    for _ in range(rounds):
        for i, function in enumerate(functions):
            if passes[i] > 1:
                function()  # what it needs is in the caches
            found[i].append(1000 * seconds(function, passes[i]))
    quartiles = [statistics.quantiles(times, n=4) for times in found]
    names = "low", "ms", "high"
    return [dict(zip(names, map(digits, q), strict=True)) for q in quartiles]


def digits(value: float) -> float:
    """Four that count."""
    return float(f"{value:.4g}")


def resident(name: str, n: int) -> int:
    """Bytes that a pass forwards and backwards adds to the most that was resident."""
    torch.set_num_threads(1)
    function = ATTENTIONS[name]

    def most() -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        (line,) = (line for line in lines if line.startswith("VmHWM"))
        return 1024 * int(line.split()[1])

    def run(length: int) -> int:
        inputs = [x.requires_grad_() for x in heads(1, length, LONG_WIDTH)]
        before = most()
        function(*inputs).sum().backward()
        return most() - before

    run(64)  # libraries are loaded
    return run(n)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book" / "records" / "complexity_cpu.json"
    )
    arguments = parser.parse_args()
    head = origin("python benchmarks/complexity.py", ["torch"], ONE_CORE)
    started = time.perf_counter()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    kinds = [*KINDS, "self-attention alone", "restricted alone"]
    sweeps = {
        "length": [(kind, n, d, 1) for d in WIDTHS for n in LENGTHS for kind in kinds],
        "width": [(kind, LENGTH, d, 1) for d in ALL_WIDTHS for kind in kinds],
        "batch": [
            (kind, n, d, BATCH)
            for d in WIDTHS
            for n in BATCH_LENGTHS
            for kind in ("self-attention", "recurrent", "self-attention alone")
        ],
    }
    results = {}
    for name, cases in sweeps.items():
        times = race(cases, make, arguments.rounds)
        rows = [dict(zip(("kind", "n", "d", "batch"), c, strict=True)) for c in cases]
        results[name] = [row | its for row, its in zip(rows, times, strict=True)]
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr)

    def attend(name: str, n: int) -> Callable[[], Tensor]:
        inputs = heads(1, n, LONG_WIDTH)
        return lambda: ATTENTIONS[name](*inputs)

    def able(what: str) -> list[tuple]:
        most = MASKED_UP_TO[what]
        return [(a, n) for n in LONG for a in ATTENTIONS if a != "masked" or n <= most]

    times = race(able("ms"), attend, min(3, arguments.rounds))
    results["long"] = [
        {"attention": name, "n": n} | its
        for (name, n), its in zip(able("ms"), times, strict=True)
    ]
    results["memory"] = []
    for name, n in able("bytes"):
        with ProcessPoolExecutor(1, get_context("spawn")) as fresh:
            most = fresh.submit(resident, name, n).result()
        results["memory"].append({"attention": name, "n": n, "bytes": most})
    record = {
        **head,
        "threads": torch.get_num_threads(),
        "seconds": round(time.perf_counter() - started),
        "rounds": arguments.rounds,
        "k": K,
        "r": R,
        "long_width": LONG_WIDTH,
    }
    save(arguments.record, record | results, list(results))


if __name__ == "__main__":
    main()
