"""Measure a GPU at what this project does with one; write the record of chapter 7.

    python benchmarks/gpu.py FOLDER

Four parts. `device`: its rate at one large matrix product, in bfloat16 and float32, and
at copying memory. `training`: the paper's base and big model, several batch sizes, in
bfloat16, compiled and not: this package's `update` as `train` calls it,
`torch.nn.Transformer`, and Hugging Face's Marian of the same size with torch's
attention kernel. `decoding`: beams of 1 and 4, base with random weights, against
Hugging Face's `generate`. `attention`: Eq. 1 as it is written and fused, forward and
backward, 128 to 8,192 positions. Sentences are as long as those of WMT14; the pieces
are random.

Every measurement has a process of its own and is kept in FOLDER as it comes: the same
command goes on where it was broken off, or where --minutes ended (nine: then it says
what is left, and writes the record of what is there). --parts, --models and --systems
choose some; a system that is not installed is named in the table. Writes
FOLDER/gpu_<device>.json. With --small, and on a CPU always, the same measurements at a
size that takes seconds: to try the command, not to learn anything of a GPU.
"""

import argparse
import functools
import gc
import json
import math
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from decoding_speed import Here, HuggingFace
from recording import run_all, write_record
from torch import Tensor
from training_speed import RATE, Size, Step, describe, matrix_product_rates, ours

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.attention import (
    fused_attention,
    scaled_dot_product_attention,
)
from annotated_transformer.batching import Batch, TokenBatches
from annotated_transformer.training import TrainingConfig, make_adam, update, wrap

PARTS = "device", "training", "decoding", "attention"
MODELS = {
    "base": Size(512, 6, 2048, 8, 37_000, 0.1),
    "big": Size(1024, 6, 4096, 16, 37_000, 0.3),
}
SMALL = {name: Size(32, 1, 64, 2, 500, 0.1) for name in MODELS}
SYSTEMS = {  # what they are called, and what has to be installed
    "this package": None,
    "Marian, SDPA": "transformers",
    "nn.Transformer": None,
}
TRANSLATORS = {
    "this package": (Here, None),
    "Hugging Face": (HuggingFace, "transformers"),
}
KERNELS = {
    "the definition": scaled_dot_product_attention,
    "fused_attention": fused_attention,
}
SPECIAL = 0, 1, 2  # pad_id, bos_id, eos_id
PAPER = {"base": 100_000, "big": 300_000}  # steps (§5.2)
STEP_TOKENS = 25_000  # on either side (§5.1)
GIB = 1 << 30


class Broken(Exception):
    """A measurement that brought no result; the next command tries it again."""


# What is measured: a list of cases, each decided by its settings alone


def plan(small: bool, compiled: bool = True) -> list[dict]:
    """Every case, the most telling first. small: at the size of a trial."""
    tokens = [128, 256] if small else [4096, 12_500, STEP_TOKENS]
    lengths = [16, 32] if small else [2**n for n in range(7, 14)]
    side = 256 if small else 8192
    cases: list[dict] = [{"part": "device", "side": side}]
    kinds = (True, False) if compiled else (False,)
    speed = [
        {
            "part": "training",
            "model": model,
            "system": system,
            "compiled": kind,
            "tokens": tokens,
        }
        for system in SYSTEMS
        for kind in kinds
        for model in MODELS
    ]
    translating = [
        {
            "part": "decoding",
            "model": "base",
            "system": system,
            "beam": beam,
            "sentences": [4] if small else [64, 256],
        }
        for beam in (1, 4)
        for system in TRANSLATORS
    ]
    sweep = [
        {"part": "attention", "kernel": kernel, "lengths": lengths}
        for kernel in KERNELS
    ]
    # Ours and Marian, compiled; then what takes seconds; then the other rows.
    first = 2 * len(MODELS) if compiled else len(MODELS)
    order = cases + speed[:first] + translating + sweep + speed[first:]
    return [case | {"small": small} for case in order]


def needs(case: dict) -> str | None:
    """The package that a case needs and that is not installed."""
    table = {"training": SYSTEMS, "decoding": {k: v[1] for k, v in TRANSLATORS.items()}}
    package = table.get(case["part"], {}).get(case.get("system"))
    return package if package and find_spec(package) is None else None


def title(case: dict) -> str:
    """A case in words."""
    names = "part", "model", "system", "kernel"
    words = [case[name] for name in names if name in case]
    if "beam" in case:
        words.append(f"beam {case['beam']}")
    if "compiled" in case:
        words.append("compiled" if case["compiled"] else "eager")
    return ", ".join(words)


# Text: random pieces in sentences as long as those of WMT14


def lengths_like_wmt14(n: int, seed: int) -> np.ndarray:
    """Pieces of n sentence pairs without bos and eos: (n, 2) int, from 1 to 250.

    Log-normal, the two sides tied, as they are in English and German training text;
    their median is 24 pieces.
    """
    rng = np.random.default_rng(seed)
    source = rng.normal(math.log(24), 0.53, n)
    target = source + rng.normal(-0.03, 0.26, n)
    sides = np.exp(np.stack([source, target], axis=1))
    return sides.round().astype(int).clip(1, 250)


def random_pairs(n: int, vocab_size: int, seed: int = 0) -> list[tuple]:
    """Pairs of ids, none of them special."""
    rng = np.random.default_rng(seed)
    return [
        tuple(rng.integers(3, vocab_size, length).tolist() for length in both)
        for both in lengths_like_wmt14(n, seed)
    ]


def batches_of(max_tokens: int, size: Size, n: int) -> list[Batch]:
    """n batches as `train` makes them, lengths mixed as they come."""
    pairs = random_pairs(max(16, n * max_tokens // 12), size.vocab_size)
    made = TokenBatches(pairs, max_tokens, *SPECIAL)
    return [made.make(group) for group in made.groups(0)[:n]]


# The measurements


def run_device(device: str, side: int, **_) -> dict:
    """Rates of one large product and of copying, and what the driver says."""
    rates = {k: v / 1e3 for k, v in matrix_product_rates(device, side).items()}
    size = 64 * side * side  # bytes; 4 GiB where the matrices are 8,192 wide
    source = torch.ones(size // 4, device=device)
    target = torch.empty_like(source)
    best = min(seconds(lambda: target.copy_(source), device, 1) for _ in range(10))
    found = {
        "tflops": {kind: round(rate, 3) for kind, rate in rates.items()},
        "copy_gb_per_second": round(2 * size / best / 1e9, 1),
    }
    if device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        found["memory_gib"] = round(properties.total_memory / GIB, 1)
        found["processors"] = properties.multi_processor_count
        found["power_limit_watts"] = ask_power("power.limit")
    return found


def seconds(call: Callable[[], object], device: str, times: int) -> float:
    """Of one call, the mean of several that nobody waits for in between."""
    wait(device)
    started = time.perf_counter()
    for _ in range(times):
        call()
    wait(device)
    return (time.perf_counter() - started) / times


def wait(device: str) -> None:
    """Until the device has done all it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def ask_power(what: str) -> float | None:
    """Watts, as the driver's own tool says; None without it."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={what}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return float(done.stdout)
    except ValueError:
        return None


class Watts:
    """Inside `with`: the power that the GPU draws is asked for, twice a second."""

    def __enter__(self) -> "Watts":
        self.read: list[float] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()
        return self

    def watch(self) -> None:
        while not self.over.wait(0.5):
            watts = ask_power("power.draw")
            if watts is None:
                return
            self.read.append(watts)

    def __exit__(self, *_) -> None:
        self.over.set()
        self.thread.join()

    @property
    def drawn(self) -> float | None:
        """The most that was drawn: the beginning is not yet at full power."""
        return max(self.read, default=None)


class Update:
    """One training step of this package: what `train` calls, with its bookkeeping."""

    def __init__(self, case: dict, data: dict, device: str) -> None:
        torch.manual_seed(0)
        config = TrainingConfig(bfloat16=True, compile=case["compiled"])
        model = ours(data["special"], data["size"]).model.to(device).train()
        self.objective, self.adam = wrap(model, config), make_adam(model, config)
        self.pad_id = data["special"][0]

    def __call__(self, batch: Batch) -> Tensor:
        tokens = int((batch.labels != self.pad_id).sum())
        mine = [(0, batch)]
        return update(self.objective, self.adam, mine, tokens, RATE, bfloat16=True)[0]


def run_training(
    device: str,
    model: str,
    system: str,
    compiled: bool,
    tokens: list[int],
    small: bool,
    **_,
) -> dict:
    """A row for each batch size, and the power drawn at the last."""
    size = (SMALL if small else MODELS)[model]
    data = {"special": SPECIAL, "size": size}
    case = {"system": system, "bfloat16": True, "compiled": compiled}
    make = Update if system == "this package" else Step
    step, rows = make(case, data, device), []
    found: dict = {"rows": rows}
    for most in tokens:
        batches = batches_of(most, size, 2 if small else 8)
        if device == "cuda":
            batches = [Batch(*(part.pin_memory() for part in b)) for b in batches]
        try:
            with Watts() as watts:
                row = time_steps(step, batches, device, 1 if small else 3)
        except torch.cuda.OutOfMemoryError:
            rows.append({"tokens": most, "out_of_memory": True})
            del batches
            gc.collect()
            torch.cuda.empty_cache()
            continue
        said = [describe(batch, SPECIAL[0], size) for batch in batches]
        mean = {k: statistics.fmean(each[k] for each in said) for k in said[0]}
        a_second = 1e3 / row["step_ms"]
        rows.append(
            {"tokens": most}
            | row
            | {
                "source_per_second": round(mean["src"] * a_second),
                "target_per_second": round(mean["tgt"] * a_second),
                "operations": mean["operations"],  # in a step
                "tflops": round(mean["operations"] * a_second / 1e12, 4),
            }
        )
        found["watts"] = watts.drawn
    return found


def time_steps(step, batches: list[Batch], device: str, rounds: int) -> dict:
    """Milliseconds a step, the median of rounds over all batches, and memory."""
    started = time.perf_counter()
    for batch in batches[:2]:
        step(batch)
    wait(device)
    first = time.perf_counter() - started  # with whatever is compiled
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    for batch in batches:  # each shape once, before it is timed
        step(batch)

    def all_batches() -> None:
        for batch in batches:
            step(batch)

    times = [seconds(all_batches, device, 1) / len(batches) for _ in range(rounds)]
    loss = float(step(batches[0]))
    if not math.isfinite(loss):
        raise Broken(f"the loss is {loss}")
    found = {"first_seconds": round(first, 1)}
    found["step_ms"] = round(1e3 * statistics.median(times), 2)
    found["spread_ms"] = round(1e3 * (max(times) - min(times)), 2)
    if device == "cuda":
        found["memory_gib"] = round(torch.cuda.max_memory_allocated() / GIB, 2)
    return found


def run_decoding(
    device: str,
    model: str,
    system: str,
    beam: int,
    sentences: list[int],
    small: bool,
    **_,
) -> dict:
    """A row for each number of sentences; each output is one longer than its input."""
    torch.manual_seed(0)
    size = (SMALL if small else MODELS)[model]
    made = Transformer(TransformerConfig(**size._asdict())).eval()
    with torch.no_grad():
        made.embedding.weight[SPECIAL[2]].zero_()  # eos is never the best
    translator = TRANSLATORS[system][0](made, "bfloat16").to(device)
    rows = []
    for n in sentences:
        length = 4 if small else 27
        ids = np.random.default_rng(0).integers(3, size.vocab_size, (n, length))
        group = ids.tolist()
        outputs = translator(group, beam, 1)  # whatever is slow the first time
        times = [
            seconds(lambda g=group: translator(g, beam, 1), device, 1)
            for _ in range(1 if small else 3)
        ]
        took = statistics.median(times)
        rows.append(
            {
                "sentences": n,
                "seconds": round(took, 4),
                "sentences_per_second": round(n / took, 1),
                "tokens_per_second": round(sum(map(len, outputs)) / took),
            }
        )
    return {"rows": rows}


def run_attention(
    device: str, kernel: str, lengths: list[int], small: bool, **_
) -> dict:
    """A row for each length; the positions of a batch are as many in all of them.

    kept_mib: what the forward pass keeps for the backward pass, inputs included.
    """
    attend, rows = KERNELS[kernel], []
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    for n in lengths:
        torch.manual_seed(0)
        shape = max(lengths) // n, n, 8, 64  # as split_heads leaves them
        parts = [torch.randn(shape, device=device, dtype=dtype) for _ in range(3)]
        parts = [part.transpose(1, 2).requires_grad_() for part in parts]
        mask = torch.ones(shape[0], 1, 1, n, dtype=torch.bool, device=device)

        def both(attend=attend, parts=parts, mask=mask) -> None:
            attend(*parts, mask).sum().backward()
            for part in parts:
                part.grad = None

        row: dict = {"length": n}
        try:
            row["kept_mib"] = round(kept(lambda a=attend, p=parts, m=mask: a(*p, m)), 2)
            both()
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
                before = torch.cuda.memory_allocated()
            times = [seconds(both, device, 1 if small else 5) for _ in range(3)]
            row["ms"] = round(1e3 * statistics.median(times), 3)
            if device == "cuda":
                peak = torch.cuda.max_memory_allocated() - before
                row["peak_mib"] = round(peak / (1 << 20), 1)
        except torch.cuda.OutOfMemoryError:
            row["out_of_memory"] = True
            torch.cuda.empty_cache()
        rows.append(row)
    return {"rows": rows, "positions": max(lengths), "heads": 8, "d_k": 64}


def kept(forward: Callable[[], Tensor]) -> float:
    """MiB that autograd keeps between a forward and a backward pass."""
    storages: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
        held.append(tensor)  # so that no address is given out twice
        return tensor

    held: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = forward()
    del output
    return sum(storages.values()) / (1 << 20)


MEASURE = {
    "device": run_device,
    "training": run_training,
    "decoding": run_decoding,
    "attention": run_attention,
}


# One process for each case


def measure(case: dict, device: str) -> dict:
    """The result of a case, in this process."""
    settings = {name: value for name, value in case.items() if name != "part"}
    return MEASURE[case["part"]](device, **settings)


def measure_apart(case: dict, device: str, limit: float) -> dict:
    """The result of a case, from a process of its own. Raises Broken without one."""
    command = [sys.executable, __file__, "--case", json.dumps(case)]
    command += ["--device", device]
    try:
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        raise Broken(f"no result after {limit:.0f} s") from None
    lines = done.stdout.splitlines()
    if done.returncode or not lines:
        raise Broken(f"its process ended with {done.returncode}")
    return json.loads(lines[-1])


def run_cases(
    cases: list[dict], run: Callable[..., dict], record: Path, deadline: float
) -> tuple[list[dict], list[tuple[str, str]]]:
    """Results of the cases that have one, and of the others: title and reason.

    run: as `run_all` calls it. deadline: on `time.monotonic`; no case starts after it.
    """
    done, missing = [], []
    for case in cases:
        package = needs(case)
        if package:
            missing.append((title(case), f"{package} is not installed"))
            continue
        guarded = functools.partial(start, run, deadline)
        try:
            done += run_all([case], guarded, record)
        except Broken as error:
            missing.append((title(case), str(error)))
    return done, missing


def start(run: Callable[..., dict], deadline: float, **case) -> dict:
    """Run a case that no earlier command finished."""
    if time.monotonic() > deadline:
        raise Broken("left for the next command")
    return run(**case)


# The table


def summarise(runs: list[dict]) -> dict:
    """What the rows come to: shares of the matrix rate, ratios, the paper's runs."""
    found: dict = {}
    by_part = {part: [run for run in runs if run["part"] == part] for part in PARTS}
    peak = next((run["tflops"]["bfloat16"] for run in by_part["device"]), None)
    rows = {
        (run["model"], run["system"], run["compiled"], row["tokens"]): run | row
        for run in by_part["training"]
        for row in run["rows"]
        if "out_of_memory" not in row
    }
    if peak:
        shares = [[*key, round(row["tflops"] / peak, 4)] for key, row in rows.items()]
        found["share_of_matrix_rate"] = shares
    for model in MODELS:
        mine = [row for key, row in rows.items() if key[:2] == (model, "this package")]
        if not mine:
            continue
        best = max(row["target_per_second"] for row in mine)
        found[model] = {"best_target_per_second": best} | project(model, mine)
        for system in [s for s in SYSTEMS if s != "this package"]:
            theirs = [row for key, row in rows.items() if key[:2] == (model, system)]
            if theirs:
                other = max(row["target_per_second"] for row in theirs)
                found[model][f"times {system}"] = round(best / other, 3)
    speeds = {
        (run["system"], run["beam"]): max(r["tokens_per_second"] for r in run["rows"])
        for run in by_part["decoding"]
    }
    for beam in (1, 4):
        both = [speeds.get((system, beam)) for system in TRANSLATORS]
        if all(both):
            found[f"decoding, beam {beam}"] = round(both[0] / both[1], 3)
    return found


def project(model: str, rows: list[dict]) -> dict:
    """The paper's run on this device, at the widest batches; nothing of a trial."""
    if any(row["small"] for row in rows):
        return {}
    widest = max(row["tokens"] for row in rows)
    best = min(
        (row for row in rows if row["tokens"] == widest), key=lambda row: row["step_ms"]
    )
    steps = PAPER[model] * STEP_TOKENS / widest  # with as many tokens as the paper's
    hours = steps * best["step_ms"] / 3.6e6
    watts = best.get("watts")
    return {
        "paper_hours": round(hours, 3),
        "paper_operations": steps * best["operations"],
        "paper_kilowatt_hours": None
        if watts is None
        else round(watts * hours / 1e3, 2),
    }


def table(runs: list[dict], missing: list[tuple[str, str]]) -> Iterator[str]:
    """The lines of the table."""
    summary = summarise(runs)
    shares = {tuple(key): s for *key, s in summary.get("share_of_matrix_rate", [])}
    for run in runs:
        if run["part"] == "device":
            rates = ", ".join(f"{kind} {rate}" for kind, rate in run["tflops"].items())
            copy = f"copying {run['copy_gb_per_second']} GB/s"
            yield f"matrix products, TFLOP/s: {rates}; {copy}"
    yield ""
    yield f"{'training, bfloat16':42}" + heads(
        "tokens", "target/s", "source/s", "ms", "GiB", "TFLOP/s", "of rate"
    )
    for run in (run for run in runs if run["part"] == "training"):
        for row in run["rows"]:
            name = title(run).removeprefix("training, ")
            key = run["model"], run["system"], run["compiled"], row["tokens"]
            if "out_of_memory" in row:
                yield f"{name:42}" + heads(row["tokens"]) + "  out of memory"
                continue
            values = "tokens", "target_per_second", "source_per_second", "step_ms"
            share = f"{shares[key]:.1%}" if key in shares else "-"
            rest = row.get("memory_gib", "-"), row["tflops"], share
            yield f"{name:42}" + heads(*(row[v] for v in values), *rest)
    yield ""
    yield f"{'decoding, bfloat16':42}" + heads("at a time", "lines/s", "tokens/s")
    for run in (run for run in runs if run["part"] == "decoding"):
        values = "sentences", "sentences_per_second", "tokens_per_second"
        for row in run["rows"]:
            name = title(run).removeprefix("decoding, ")
            yield f"{name:42}" + heads(*(row[v] for v in values))
    yield ""
    yield f"{'attention, forward and backward':42}" + heads(
        "length", "ms", "kept MiB", "peak MiB"
    )
    for run in (run for run in runs if run["part"] == "attention"):
        for row in run["rows"]:
            values = "length", "ms", "kept_mib", "peak_mib"
            yield f"{run['kernel']:42}" + heads(*(row.get(v, "-") for v in values))
    yield ""
    for model in [name for name in MODELS if name in summary]:
        found = summary[model]
        if "paper_hours" in found:
            energy = found["paper_kilowatt_hours"]
            yield (
                f"the paper's {model} run, {PAPER[model]:,} steps: "
                f"{found['paper_hours']} h, "
                f"{found['paper_operations']:.2g} operations, "
                + ("power not measured" if energy is None else f"{energy} kWh")
            )
        for name, ratio in found.items():
            if name.startswith("times "):
                yield f"{model}: {ratio} {name}"
    for name, ratio in summary.items():
        if name.startswith("decoding"):
            yield f"{name}: {ratio} times Hugging Face"
    for name, reason in missing:
        yield f"{name}: {reason}"


def heads(*values: object) -> str:
    """Columns."""
    return "".join(f"{value:>11}" for value in values)


# The command


def record_path(folder: Path, device: str, small: bool) -> Path:
    """FOLDER/gpu_<device>.json, with _small where it is a trial."""
    name = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")
    return folder / f"gpu_{slug}{'_small' if small else ''}.json"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, nargs="?")
    here = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", choices=("cpu", "cuda"), default=here)
    parser.add_argument("--small", action="store_true", help="on a CPU it is always")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    systems = list(dict.fromkeys([*SYSTEMS, *TRANSLATORS]))
    parser.add_argument("--systems", nargs="+", choices=systems, default=systems)
    parser.add_argument("--compiled", action=argparse.BooleanOptionalAction)
    parser.add_argument("--minutes", type=float, default=9.0, help="default: 9")
    parser.add_argument("--limit", type=float, default=240.0, help="seconds a case")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    device = arguments.device
    if arguments.case:
        out = os.fdopen(os.dup(1), "w", buffering=1)
        os.dup2(2, 1)  # whatever libraries print goes to standard error
        out.write(json.dumps(measure(json.loads(arguments.case), device)) + "\n")
        return
    if arguments.folder is None:
        parser.error("FOLDER is missing: where the record goes")
    deadline = time.monotonic() + 60 * arguments.minutes
    small = arguments.small or device == "cpu"
    compiled = not small if arguments.compiled is None else arguments.compiled
    chosen = [
        case
        for case in plan(small, compiled)
        if case["part"] in arguments.parts
        and case.get("model", arguments.models[0]) in arguments.models
        and case.get("system", arguments.systems[0]) in arguments.systems
    ]

    def run(**case) -> dict:
        if small:
            return measure(case, device)
        left = deadline + 30 - time.monotonic()
        return measure_apart(case, device, min(arguments.limit, left))

    path = record_path(arguments.folder, device, small)
    runs, missing = run_cases(chosen, run, path, deadline)
    versions = {"python": platform.python_version()}
    for package in ("torch", "triton", "transformers"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = None
    name = f"{os.cpu_count()}-core {platform.machine()} CPU"
    contents = {
        "device": torch.cuda.get_device_name() if device == "cuda" else name,
        "versions": versions,
        "small": small,
        "seed": 0,
        "missing": [list(each) for each in missing],
        "summary": summarise(runs),
        "runs": runs,
    }
    command = "python benchmarks/gpu.py book/records" + " --small" * arguments.small
    write_record(path, command, contents, whole=False)
    print("\n".join(table(runs, missing)))


if __name__ == "__main__":
    main()
