"""Train with and without a warm-up, and write the record that §5.3 shows.

    python benchmarks/warmup.py

A small encoder-decoder learns to write short sequences of ten symbols backwards. Eq. 3,
scaled to a peak, is compared with the same rates but for the warm-up: there the peak
holds from the first step. Post-norm and pre-norm, three peaks, three seeds; the
initial weights and the batches of a seed are the same in every run. About ten minutes
on one core. Writes book/records/warmup.json (--record).
"""

import argparse
import itertools
import sys
import time
from pathlib import Path

import torch
from recording import ONE_CORE, ROOT, origin, save

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.batching import Batch, make_batch
from annotated_transformer.loss import label_smoothed_cross_entropy
from annotated_transformer.schedule import learning_rate

STEPS, WARMUP, BLOCK = 400, 100, 20  # steps; a block is what one mean is taken over
PEAKS, SEEDS, NORMS = (1e-3, 3e-3, 1e-2), (0, 1, 2), ("post", "pre")
BATCH, LENGTHS, SYMBOLS = 64, (4, 8), 10  # pairs; shortest and longest; kinds
SHAPE = {"d_model": 64, "n_layers": 6, "n_heads": 4, "d_ff": 128, "dropout": 0.0}


def reversal_batch(config: TransformerConfig, generator: torch.Generator) -> Batch:
    """BATCH random sequences of one length, each with its reverse as the target."""
    shortest, longest = LENGTHS
    length = int(torch.randint(shortest, longest + 1, (), generator=generator))
    first = config.vocab_size - SYMBOLS
    size = (BATCH, length)
    rows = torch.randint(first, config.vocab_size, size, generator=generator).tolist()
    special = config.pad_id, config.bos_id, config.eos_id
    return make_batch([(row, row[::-1]) for row in rows], *special)


def run(norm: str, warm: bool, peak: float, seed: int) -> list[float]:
    """Mean loss in nats a token over each block of steps; every batch is a new one."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    config = TransformerConfig(3 + SYMBOLS, norm=norm, max_length=32, **SHAPE)
    model = Transformer(config)
    adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)
    scale = peak / learning_rate(WARMUP, config.d_model, WARMUP)
    losses = []
    for step in range(1, STEPS + 1):
        at = step if warm else max(step, WARMUP)
        rate = scale * learning_rate(at, config.d_model, WARMUP)
        adam.param_groups[0]["lr"] = rate
        batch = reversal_batch(config, generator)
        logits = model(batch.src, batch.tgt)
        total = label_smoothed_cross_entropy(logits, batch.labels, 0.0, config.pad_id)
        loss = total / batch.labels.numel()
        adam.zero_grad()
        loss.backward()
        adam.step()
        losses.append(loss.item())
    blocks = zip(*[iter(losses)] * BLOCK, strict=True)
    return [round(sum(block) / BLOCK, 4) for block in blocks]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book" / "records" / "warmup.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    head = origin("python benchmarks/warmup.py", ["torch"], ONE_CORE)
    started = time.perf_counter()
    runs = []
    for norm, peak, warm, seed in itertools.product(NORMS, PEAKS, (True, False), SEEDS):
        losses = run(norm, warm, peak, seed)
        runs.append(
            {"norm": norm, "peak": peak, "warm": warm, "seed": seed, "losses": losses}
        )
        what = (
            f"{norm}-norm, peak {peak:g}, {'' if warm else 'no '}warm-up, seed {seed}"
        )
        print(
            f"{what}: {losses[0]:.3f} … {losses[-1]:.3f}", file=sys.stderr, flush=True
        )
    record = {
        **head,
        "seconds": round(time.perf_counter() - started),
        "steps": STEPS,
        "warmup": WARMUP,
        "block": BLOCK,
        "shape": SHAPE,
        "batch": {"pairs": BATCH, "lengths": LENGTHS, "symbols": SYMBOLS},
        "runs": runs,
    }
    save(arguments.record, record)


if __name__ == "__main__":
    main()
