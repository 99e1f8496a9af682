"""Race the training step of this package against others; write the record of §5.2.

    python benchmarks/training_speed.py

The same model size, the same real batches, on the machine as it is: this package,
`torch.nn.Transformer`, Hugging Face's MarianMTModel (where transformers is installed),
each in float32 and under bfloat16 autocast, eager and compiled, and this package with
every sentence padded to one length. Each system has a process of its own, and they take
the batches in turn, a step each, so that whatever else the machine does hits all
alike; one of them, this package in bfloat16, runs in every heat and is what the others
are divided by. A second part counts where the time of a step goes, a third times the
operations that this package does in a way of its own, a fourth trains with three seeds
in float32 and in bfloat16 and compares the losses. About 20 minutes on two cores; the
same command goes on where it was broken off, --heats 2 stops after two heats, and
--part runs one part alone. --device cuda moves all to a GPU. Writes
book/records/training_speed_<device>.json.
"""

import argparse
import json
import math
import os
import pickle
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from recording import ALL_CORES, ROOT, origin, save
from torch import Tensor, nn

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.attention import (
    fused_attention,
    scaled_dot_product_attention,
)
from annotated_transformer.batching import Batch, TokenBatches, make_batch, pad
from annotated_transformer.corpora import DATA_VARIABLE, load_pairs
from annotated_transformer.grammar import generate
from annotated_transformer.layers import Dropout
from annotated_transformer.loss import (
    label_smoothed_cross_entropy,
    projected_cross_entropy,
)
from annotated_transformer.positional_encoding import sinusoidal_encoding
from annotated_transformer.schedule import learning_rate
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.training import Objective

LONGEST, SMOOTHING, RATE = 512, 0.1, 1e-4
MAX_TOKENS = {"cpu": 128 * 20, "cuda": 25_000}
WARM_UP = 3  # steps that are not timed, after compilation
CURVE = {"max_tokens": 640, "steps": 300, "warmup": 150, "last": 50, "seeds": (0, 1, 2)}
# What glibc must be told to keep the memory that a step frees for the next one.
KEEP = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 26),
}


class Size(NamedTuple):
    """Of the model, in every system; by default that of the race of §5.2."""

    d_model: int = 256
    n_layers: int = 3
    d_ff: int = 1024
    n_heads: int = 8
    vocab_size: int = 8000
    dropout: float = 0.1


# The systems: each maps (src, tgt, labels) to the summed loss


class TorchTransformer(nn.Module):
    """`torch.nn.Transformer` with one embedding for source, target and projection."""

    def __init__(self, special: tuple[int, int, int], size: Size) -> None:
        super().__init__()
        self.pad_id, width = special[0], size.d_model
        self.embedding = nn.Embedding(size.vocab_size, width, padding_idx=self.pad_id)
        nn.init.normal_(self.embedding.weight, std=width**-0.5)
        self.register_buffer("positions", sinusoidal_encoding(LONGEST, width))
        sizes = (width, size.n_heads, size.n_layers, size.n_layers, size.d_ff)
        self.transformer = nn.Transformer(*sizes, size.dropout, batch_first=True)
        self.dropout = nn.Dropout(size.dropout)
        self.scale = math.sqrt(width)

    def embed(self, tokens: Tensor) -> Tensor:
        scaled = self.embedding(tokens) * self.scale
        return self.dropout(scaled + self.positions[: tokens.size(1)])

    def forward(self, src: Tensor, tgt: Tensor, labels: Tensor) -> Tensor:
        size = (tgt.size(1), tgt.size(1))
        future = torch.ones(size, dtype=torch.bool, device=tgt.device).triu(1)
        hidden = self.transformer(
            self.embed(src),
            self.embed(tgt),
            tgt_mask=future,
            tgt_is_causal=True,
            src_key_padding_mask=src == self.pad_id,
            memory_key_padding_mask=src == self.pad_id,
        )
        return summed_loss(F.linear(hidden, self.embedding.weight), labels, self.pad_id)


class Marian(nn.Module):
    """Hugging Face's MarianMTModel; dropout where the paper has it and nowhere else."""

    def __init__(self, special: tuple[int, int, int], size: Size, kind: str) -> None:
        super().__init__()
        from transformers import MarianConfig, MarianMTModel

        self.pad_id, bos_id, eos_id = special
        stacks = {
            f"{stack}_{name}": value
            for stack in ("encoder", "decoder")
            for name, value in (
                ("layers", size.n_layers),
                ("attention_heads", size.n_heads),
                ("ffn_dim", size.d_ff),
            )
        }
        config = MarianConfig(
            vocab_size=size.vocab_size,
            d_model=size.d_model,
            **stacks,
            dropout=size.dropout,
            attention_dropout=0.0,
            activation_dropout=0.0,
            activation_function="relu",
            max_position_embeddings=LONGEST,
            pad_token_id=self.pad_id,
            bos_token_id=bos_id,
            eos_token_id=eos_id,
            decoder_start_token_id=bos_id,
            scale_embedding=True,
            share_encoder_decoder_embeddings=True,
            tie_word_embeddings=True,
            attn_implementation=kind,
        )
        self.model = MarianMTModel(config)

    def forward(self, src: Tensor, tgt: Tensor, labels: Tensor) -> Tensor:
        output = self.model(
            input_ids=src,
            attention_mask=(src != self.pad_id).long(),
            decoder_input_ids=tgt,
            use_cache=False,
        )
        return summed_loss(output.logits, labels, self.pad_id)


def summed_loss(logits: Tensor, labels: Tensor, pad_id: int) -> Tensor:
    """Label-smoothed cross-entropy as torch has it."""
    return F.cross_entropy(
        logits.flatten(0, 1).float(),
        labels.flatten(),
        ignore_index=pad_id,
        label_smoothing=SMOOTHING,
        reduction="sum",
    )


def ours(special: tuple[int, int, int], size: Size) -> nn.Module:
    """This package, as `train` runs it."""
    ids = dict(zip(("pad_id", "bos_id", "eos_id"), special, strict=True))
    config = TransformerConfig(**size._asdict(), **ids)
    return Objective(Transformer(config), SMOOTHING)


SYSTEMS = {
    "this package": ours,
    "this package, fixed length": ours,
    "nn.Transformer": TorchTransformer,
    "Marian, eager attention": lambda *a: Marian(*a, "eager"),
    "Marian, SDPA": lambda *a: Marian(*a, "sdpa"),
}
PACEMAKER = {"system": "this package", "bfloat16": True, "compiled": False}


class Step:
    """One training step of one system: loss of the mean token, gradient, Adam."""

    def __init__(self, case: dict, data: dict, device: str, rate: float = RATE) -> None:
        torch.manual_seed(case.get("seed", 0))
        self.special, self.device = data["special"], device
        self.bfloat16 = case["bfloat16"]
        module = SYSTEMS[case["system"]](self.special, data["size"]).to(device)
        adam = {"lr": rate, "betas": (0.9, 0.98), "eps": 1e-9, "fused": True}
        self.adam = torch.optim.Adam(module.train().parameters(), **adam)
        self.parameters = sum(p.numel() for p in module.parameters() if p.requires_grad)
        compiled = case.get("compiled", False)
        self.module = torch.compile(module, dynamic=True) if compiled else module

    def __call__(self, batch: Batch) -> Tensor:
        """The mean loss of a target token, before the update; nobody waits for it."""
        tokens = int((batch.labels != self.special[0]).sum())
        batch = [part.to(self.device, non_blocking=True) for part in batch]
        with torch.autocast(self.device, torch.bfloat16, enabled=self.bfloat16):
            loss = self.module(*batch) / tokens
        self.adam.zero_grad()
        loss.backward()
        self.adam.step()
        return loss.detach()


# Data


def load_data(size: Size, max_tokens: int) -> dict:
    """Pairs of piece ids, and batches of two kinds."""
    if os.environ.get(DATA_VARIABLE):
        corpus, pairs = "multi30k", load_pairs("multi30k", "en", "de", "train")
    else:
        corpus = "grammar"
        both = [(t.english.text, t.german.text) for t in generate(29_000, 0)]
        pairs = tuple(zip(*both, strict=True))
    # The embedded corpus has too few words for 8,000 pieces; its model has as many.
    wanted = size.vocab_size if corpus == "multi30k" else 1000
    tokenizer = Tokenizer.train([*pairs[0], *pairs[1]], wanted)
    special = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
    ids = list(zip(*map(tokenizer.encode, map(list, pairs)), strict=True))
    batches = TokenBatches(ids, max_tokens, *special)
    order = torch.randperm(len(ids), generator=torch.Generator().manual_seed(0))
    longest = max(len(side) + 1 for pair in ids for side in pair)
    rows = max_tokens // longest
    fixed = []
    for start in range(0, min(len(ids), 100 * rows), rows):
        some = [ids[i] for i in order[start : start + rows]]
        parts = make_batch(some, *special)
        # A row of the full length, and then without it: all are padded to it.
        filler = [0] * longest
        parts = [pad([*part.tolist(), filler], special[0])[:-1] for part in parts]
        fixed.append(Batch(*parts))
    return {
        "corpus": corpus,
        "special": special,
        "size": size,
        "ids": ids,
        "grouped": [batches.make(group) for group in batches.groups(0)[:100]],
        "fixed": fixed,
        "max_tokens": max_tokens,
        "longest": longest,
    }


def describe(batch: Batch, pad_id: int, size: Size) -> dict:
    """Tokens without padding, and the operations that a step on them needs.

    6 a parameter and token (2 forward, 4 backward): source-side parameters by source
    tokens, target-side ones by target tokens; and 12 · D a pair of positions that
    attention compares, twice 2 forward and twice that backward.
    """
    src, tgt = ((part != pad_id).sum(1) for part in (batch.src, batch.labels))
    n_src, n_tgt = int(src.sum()), int(tgt.sum())
    width, layers = size.d_model, size.n_layers
    attention, network = width * width, 2 * width * size.d_ff
    on_src = layers * (4 * attention + network + 2 * attention)  # with cross W^K, W^V
    on_tgt = layers * (6 * attention + network) + size.vocab_size * width
    pairs = layers * int((src * src + tgt * tgt + src * tgt).sum())
    operations = 6 * (on_src * n_src + on_tgt * n_tgt) + 12 * width * pairs
    return {"src": n_src, "tgt": n_tgt, "operations": operations}


KINDS_OF_BATCHES = "grouped", "fixed"


def padding(batches: list[Batch], pad_id: int) -> float:
    """Share of padding on both sides."""
    parts = [part for batch in batches for part in (batch.src, batch.labels)]
    tokens = sum(int((part != pad_id).sum()) for part in parts)
    return round(1 - tokens / sum(part.numel() for part in parts), 4)


# Heats: a process for each system, a step of each in turn


def serve(case: dict, data: dict, device: str) -> None:
    """The process of one system: says when it is ready, then times a step a line."""
    kind = "fixed" if "fixed" in case["system"] else "grouped"
    batches = data[kind]
    started = time.perf_counter()
    step = Step(case, data, device)
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    for batch in batches[:2]:
        step(batch).item()
    ready = time.perf_counter() - started
    # Batches that are wide and narrow: what is compiled anew for some shape is now.
    for batch in batches[-WARM_UP:]:
        step(batch).item()
    out.write(json.dumps({"start": ready, "parameters": step.parameters}) + "\n")
    for line in sys.stdin:
        batch = batches[int(line)]
        before = time.perf_counter()
        step(batch).item()  # waits for the device
        seconds = time.perf_counter() - before
        said = describe(batch, data["special"][0], data["size"])
        said |= {"seconds": seconds}
        out.write(json.dumps(said) + "\n")


def heat(cases: list[dict], folder: Path, steps: int, device: str) -> list[dict]:
    """Each case with its measurements; one process each, all at the same batches."""
    processes = []
    for case in cases:
        command = [sys.executable, __file__, "--serve", json.dumps(case)]
        command += ["--data", str(folder / "data.pickle"), "--device", device]
        environment = os.environ | (KEEP if case.get("keep") else {})
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        process = subprocess.Popen(command, env=environment, **pipes)
        processes.append(process)
        ready = json.loads(process.stdout.readline() or "null")
        if ready is None:
            sys.exit(f"{name(case)} broke off")
        print(f"{name(case)}: ready after {ready['start']:.1f} s", file=sys.stderr)
        case |= ready | {"steps": []}
    for number in range(steps):
        for case, process in zip(cases, processes, strict=True):
            print(number, file=process.stdin, flush=True)
            case["steps"].append(json.loads(process.stdout.readline()))
    for process in processes:
        process.stdin.close()
        process.wait()
    return cases


def name(case: dict) -> str:
    """A case in words."""
    words = [case["system"], kind(case)]
    words += ["compiled"] * case["compiled"] + ["freed memory kept"] * case["keep"]
    return ", ".join(words)


def kind(case: dict) -> str:
    """The type of its products."""
    return "bfloat16" if case["bfloat16"] else "float32"


def plan(device: str) -> dict[str, list[dict]]:
    """The heats by name: every system in each precision, eager and compiled."""
    marian = find_spec("transformers") is not None
    if not marian:
        print("transformers is not installed: no Marian in the race", file=sys.stderr)
    rivals = [s for s in SYSTEMS if marian or "Marian" not in s]

    def case(system, bfloat16, compiled=False, keep=False):
        names = "system", "bfloat16", "compiled", "keep"
        return dict(zip(names, (system, bfloat16, compiled, keep), strict=True))

    pacemaker = case(**PACEMAKER)
    heats = {}
    for compiled in (False, True):
        for bfloat16 in (True, False):
            cases = [
                case(system, bfloat16, compiled)
                for system in rivals
                if not (compiled and "fixed" in system)
            ]
            others = [c for c in cases if c != pacemaker]
            heats[name(cases[0] | {"system": "all"})] = [dict(pacemaker), *others]
    if device == "cpu" and platform.libc_ver()[0] == "glibc":
        heats[KEPT] = [dict(pacemaker)]  # and what was best before
    return heats


KEPT = "the best of each, freed memory kept"


def best_of_each(table: list[dict]) -> list[dict]:
    """Each system at its fastest setting so far, to run with freed memory kept."""
    fastest = {}
    for row in sorted(table, key=lambda row: row["pace"]):
        if "fixed" not in row["system"]:
            fastest[row["system"]] = row
    settings = "system", "bfloat16", "compiled"
    return [{k: row[k] for k in settings} | {"keep": True} for row in fastest.values()]


def summarise(title: str, cases: list[dict]) -> list[dict]:
    """Medians over the steps; `pace`: this system's rate over the pacemaker's."""
    lead = [step["tgt"] / step["seconds"] for step in cases[0]["steps"]]
    rows = []
    for case in cases:
        steps = case.pop("steps")
        rates = [step["tgt"] / step["seconds"] for step in steps]
        speed = [step["operations"] / step["seconds"] / 1e9 for step in steps]
        quartiles = statistics.quantiles(rates, n=4)
        source = [step["src"] / step["seconds"] for step in steps]
        pace = [rate / other for rate, other in zip(rates, lead, strict=True)]
        rows.append(
            {"heat": title}
            | case
            | {
                "start": round(case["start"], 1),
                "target_tokens_per_second": round(statistics.median(rates)),
                "quartiles": [round(quartiles[0]), round(quartiles[2])],
                "source_tokens_per_second": round(statistics.median(source)),
                "step_ms": round(1e3 * statistics.median(s["seconds"] for s in steps)),
                "pace": round(statistics.median(pace), 3),
                "gflops": round(statistics.median(speed), 1),
            }
        )
    return rows


def matrix_product_rates(device: str, n: int | None = None) -> dict[str, float]:
    """GFLOP/s of one large product, n × n by n × n, the best of twenty."""
    rates, n = {}, n or (2048 if device == "cpu" else 8192)
    for dtype in (torch.float32, torch.bfloat16):
        a, b = (torch.randn(n, n, device=device).to(dtype) for _ in range(2))
        best = math.inf
        for _ in range(20):
            started = time.perf_counter()
            (a @ b)[0, 0].item()
            best = min(best, time.perf_counter() - started)
        rates[str(dtype).removeprefix("torch.")] = round(2 * n**3 / best / 1e9)
    return rates


# Where the time of a step goes

KINDS = {  # by what the name of torch's operator begins with
    "matrix products": ("mm", "addmm", "bmm", "linear", "mkldnn"),
    "softmax and its gradient": ("_softmax", "log_softmax", "amax"),
    "copies and changes of type": ("copy_", "cat"),
    "random numbers of dropout": ("random_", "ge"),
    "element by element": ("mul", "add", "div", "masked_fill", "sub", "threshold")
    + ("clamp", "relu", "fill_", "sum"),
    "layer norm": ("native_layer_norm",),
    "Adam": ("_fused_adam",),
}


def profile(data: dict, device: str) -> dict:
    """Shares of the time of a step of the pacemaker, by kind of operator."""
    step, batches = Step(PACEMAKER, data, device), data["grouped"][:8]
    for batch in batches:
        step(batch).item()
    with torch.profiler.profile() as profiler:
        for batch in batches:
            step(batch).item()
    events = profiler.key_averages()
    total = sum(event.self_cpu_time_total for event in events)
    shares = dict.fromkeys([*KINDS, "everything else"], 0.0)
    for event in events:
        operator = event.key.removeprefix("aten::")
        kinds = (k for k, starts in KINDS.items() if operator.startswith(starts))
        kind = next(kinds, "everything else") if operator != event.key else None
        shares[kind or "everything else"] += event.self_cpu_time_total / total
    calls = sum(e.count for e in events if e.key.startswith("aten::"))
    return {
        "shares": {kind: round(share, 4) for kind, share in shares.items()},
        "operators_a_step": round(calls / len(batches)),
    }


# The parts that this package does in a way of its own


def fastest(both, times: int = 10) -> float:
    """Milliseconds of forward and backward pass, the fastest of several."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        both()
        seconds.append(time.perf_counter() - started)
    return round(1e3 * min(seconds), 2)


def compare_parts(data: dict, device: str) -> dict:
    """Attention by sentence length, dropout and loss, each against torch's own."""
    torch.manual_seed(0)
    n, size, dtype = data["max_tokens"], data["size"], torch.bfloat16
    width, heads, dropped = size.d_model, size.n_heads, size.dropout
    kernels = {
        "torch's kernel": F.scaled_dot_product_attention,
        "the definition": scaled_dot_product_attention,
        "fused_attention": fused_attention,
    }
    attention = []
    for length in (16, 64, 256):
        shape = n // length, length, heads, width // heads
        parts = [torch.randn(shape, device=device, dtype=dtype) for _ in range(3)]
        parts = [part.transpose(1, 2).requires_grad_() for part in parts]
        mask = torch.ones(n // length, 1, 1, length, dtype=torch.bool, device=device)
        row = {"length": length}
        for title, kernel in kernels.items():
            call = partial(kernel, *parts, mask)
            row[title] = fastest(lambda f=call: f().sum().backward())
        attention.append(row)
    x = torch.randn(n, width, device=device, dtype=dtype, requires_grad=True)
    dropout = {
        title: fastest(lambda m=module: m(x).sum().backward())
        for title, module in (
            ("nn.Dropout", nn.Dropout(dropped)),
            ("layers.Dropout", Dropout(dropped)),
        )
    }
    weight = torch.randn(size.vocab_size, width, device=device) / width
    labels = torch.randint(1, size.vocab_size, (n,), device=device)
    both = x, weight.requires_grad_(), labels, SMOOTHING, 0

    def whole(x, weight, *rest):
        logits = F.linear(x, weight.to(dtype))
        return label_smoothed_cross_entropy(logits, *rest)

    loss = {
        "all logits": fastest(lambda: whole(*both).backward()),
        "in blocks": fastest(lambda: cross_entropy_in_blocks(*both).backward()),
    }
    return {"attention": attention, "dropout": dropout, "loss": loss}


def cross_entropy_in_blocks(x, *rest):
    with torch.autocast(x.device.type, torch.bfloat16):
        return projected_cross_entropy(x, *rest)


# The loss curves


def curve(seed: int, bfloat16: bool, data: dict, device: str) -> list[float]:
    """Mean loss of a token at each step; the batches of a seed are the same for all."""
    batches = TokenBatches(data["ids"], CURVE["max_tokens"], *data["special"], seed)
    case = {"system": "this package", "bfloat16": bfloat16, "seed": seed}
    step, losses = Step(case, data, device), []
    groups = (group for epoch in range(100) for group in batches.groups(epoch))
    for number, group in zip(range(1, CURVE["steps"] + 1), groups, strict=False):
        rate = learning_rate(number, data["size"].d_model, CURVE["warmup"]) / 2
        step.adam.param_groups[0]["lr"] = rate
        losses.append(step(batches.make(group)).item())
    return losses


def compare_curves(data: dict, device: str) -> dict:
    """Each seed in both precisions: means of blocks of steps, and the last."""
    runs, last = [], CURVE["last"]
    for seed in CURVE["seeds"]:
        for bfloat16 in (False, True):
            losses = curve(seed, bfloat16, data, device)
            blocks = zip(*[iter(losses)] * last, strict=True)
            means = [round(statistics.fmean(block), 4) for block in blocks]
            runs.append({"seed": seed, "bfloat16": bfloat16, "losses": means})
            print(runs[-1], file=sys.stderr, flush=True)
    ends = {
        kind: [r["losses"][-1] for r in runs if r["bfloat16"] == kind]
        for kind in (0, 1)
    }
    spread = max(ends[0]) - min(ends[0])
    gaps = [b - a for a, b in zip(ends[0], ends[1], strict=True)]
    return {
        **CURVE,
        "runs": runs,
        "float32_spread": round(spread, 4),
        "bfloat16_minus_float32": [round(gap, 4) for gap in gaps],
    }


PARTS = "speed", "profile", "parts", "curves"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--part", choices=PARTS)
    parser.add_argument("--heats", type=int, default=99, help="that run now")
    parser.add_argument("--steps", type=int, default=16, help="timed, of each system")
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--record", type=Path)
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--data", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    device = arguments.device
    if arguments.serve:
        serve(
            json.loads(arguments.serve),
            pickle.loads(arguments.data.read_bytes()),
            device,
        )
        return

    record_path = (
        arguments.record or ROOT / f"book/records/training_speed_{device}.json"
    )
    size = Size(n_heads=arguments.heads)
    data = load_data(size, MAX_TOKENS[device])
    machine = torch.cuda.get_device_name() if device == "cuda" else ALL_CORES
    packages = "torch", "transformers"
    record = {
        **origin("python benchmarks/training_speed.py", packages, machine),
        "threads": torch.get_num_threads(),
        "corpus": data["corpus"],
        "shape": size._asdict(),
        "max_tokens": data["max_tokens"],
        "longest": data["longest"],
        "padding": {k: padding(data[k], data["special"][0]) for k in KINDS_OF_BATCHES},
        "steps": arguments.steps,
    }
    if record_path.exists():
        before = json.loads(record_path.read_text(encoding="utf-8"))
        if all(before.get(k) == v for k, v in record.items() if k != "date"):
            record = before  # it goes on
    parts = [arguments.part] if arguments.part else PARTS
    if "speed" in parts and not race(
        record, data, record_path, device, arguments.heats
    ):
        return
    for part, run in zip(
        PARTS[1:], (profile, compare_parts, compare_curves), strict=True
    ):
        if part in parts and part not in record:
            record[part] = run(data, device)
            write(record, record_path)
    show(record)


def race(record: dict, data: dict, path: Path, device: str, at_most: int) -> bool:
    """Run the heats that are not in the record yet; whether all are there now."""
    heats, table = plan(device), record.setdefault("table", [])
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "data.pickle").write_bytes(pickle.dumps(data | {"ids": None}))
        for title, cases in heats.items():
            if any(row["heat"] == title for row in table):
                continue
            if at_most == 0:
                print(f"still to run: {title}", file=sys.stderr)
                return False
            at_most -= 1
            peaks = matrix_product_rates(device)
            known = record.get("matrix_products", peaks)
            peaks = {kind: max(rate, known[kind]) for kind, rate in peaks.items()}
            if title == KEPT:
                cases = cases + best_of_each(table)
            raced = heat(cases, Path(folder), record["steps"], device)
            table += summarise(title, raced)
            record["matrix_products"] = peaks
            write(record, path)
    return True


def write(record: dict, path: Path) -> None:
    """The record, after each heat: what is there is there."""
    save(path, record)


def show(record: dict) -> None:
    """The table and what it comes to."""
    if rows := record.get("table"):
        peaks = record["matrix_products"]
        print("matrix products, GFLOP/s:", peaks)
        head = "target/s", "source/s", "pace", "of peak"
        print(f"{'':58}" + "".join(f"{title:>10}" for title in head))
        for row in sorted(rows, key=lambda row: -row["pace"]):
            values = (
                row["target_tokens_per_second"],
                row["source_tokens_per_second"],
                f"{row['pace']:.2f}",
                f"{row['gflops'] / peaks[kind(row)]:.0%}",
            )
            print(f"{name(row):58}" + "".join(f"{value:>10}" for value in values))
        mine = [row for row in rows if row["system"] == "this package"]
        others = [row for row in rows if "this package" not in row["system"]]
        for words, keep in (("as they come", False), ("freed memory kept", True)):
            best = [
                max((r for r in side if keep or not r["keep"]), key=lambda r: r["pace"])
                for side in (mine, others)
            ]
            ratio = best[0]["pace"] / best[1]["pace"]
            print(f"{words}: {name(best[0])} {ratio:.2f} times {name(best[1])}")
    if curves := record.get("curves"):
        print(
            "float32 over the seeds, spread of the last loss:", curves["float32_spread"]
        )
        print("bfloat16 minus float32, by seed:", curves["bfloat16_minus_float32"])


if __name__ == "__main__":
    main()
