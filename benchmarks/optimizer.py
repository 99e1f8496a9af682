"""Train small models with other peaks, widths, β2 and ε; write the records of §5.3.

    python benchmarks/optimizer.py adam
    python benchmarks/optimizer.py widths

English to German of the embedded corpus, a word a token, every batch new. `adam`
changes Adam's β2 and ε. `widths` trains three widths at four peaks each, multiples of
the peak that Eq. 3 gives that width with the paper's warm-up. Three seeds; the initial
weights and the batches of a seed are the same in every run of a part and a width. Five
minutes on one core each; a command that is broken off goes on where it stopped. Writes
book/records/adam.json or widths.json (--record).
"""

import argparse
import functools
import itertools
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from recording import ROOT, length_batches, run_all, write_record

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.batching import Batch
from annotated_transformer.grammar import generate
from annotated_transformer.loss import label_smoothed_cross_entropy
from annotated_transformer.schedule import learning_rate

SEEDS = 0, 1, 2
WARMUP, PAPER_WARMUP = 100, 4000
SHAPE = {"n_layers": 2, "n_heads": 4, "dropout": 0.0, "max_length": 64}  # d_ff: 2 D
WIDTHS, MULTIPLES, WIDTH_STEPS = (32, 64, 128), (0.5, 1, 2, 4), 300
WIDTH_TOKENS = 256  # in a batch, on either side
ADAMS = (  # β2, ε
    (0.98, 1e-9),  # the paper's
    (0.9, 1e-9),
    (0.999, 1e-9),
    (0.98, 1e-8),
    (0.999, 1e-8),  # torch's
    (0.98, 1e-6),
    (0.98, 1e-4),
)
ADAM_WIDTH, ADAM_MULTIPLE, ADAM_STEPS, ADAM_TOKENS = 64, 2, 500, 512
TRAIN, HELD_OUT, HELD_OUT_SEED = 26_000, 500, 1000  # sentences
RARE = 0.1  # share of the held-out words that count as rare: those seen least


def sentences(n: int, seed: int) -> list[tuple[tuple, tuple]]:
    """Words of n English sentences and of their translations."""
    return [(t.english.tokens, t.german.tokens) for t in generate(n, seed)]


def vocabulary() -> dict[str, int]:
    """A number for each word that 40,000 sentences have, from 4; 3 is for the rest."""
    pairs = sentences(40_000, HELD_OUT_SEED + 1)
    words = sorted({word for pair in pairs for side in pair for word in side})
    return {word: number for number, word in enumerate(words, start=4)}


def numbered(pairs, ids: dict[str, int]) -> list[tuple[list[int], list[int]]]:
    """The words' numbers."""
    return [tuple([ids.get(w, 3) for w in side] for side in pair) for pair in pairs]


@torch.no_grad()
def held_out_losses(model: Transformer, held_out: list[Batch]) -> tuple:
    """Cross-entropy of each target word, and the words: two flat tensors."""
    losses, words = [], []
    for batch in held_out:
        logits = model(batch.src, batch.tgt).flatten(0, 1)
        labels = batch.labels.flatten()
        real = labels != model.config.pad_id
        losses.append(F.cross_entropy(logits[real], labels[real], reduction="none"))
        words.append(labels[real])
    return torch.cat(losses), torch.cat(words)


def root_mean_squares(model, adam, beta_2: float, steps: int) -> dict[str, list[float]]:
    """Share of weights by the decade of Adam's √v̂, from 1e-12 to 1 (see DECADES)."""
    kinds: dict[str, list] = {"embedding": [], "matrices": [], "vectors": []}
    for name, parameter in model.named_parameters():
        square = adam.state[parameter]["exp_avg_sq"] / (1 - beta_2**steps)
        vector = "matrices" if parameter.dim() > 1 else "vectors"
        kind = "embedding" if name.startswith("embedding") else vector
        kinds[kind].append(square.sqrt().flatten())
    shares = {}
    for kind, roots in kinds.items():
        decades = torch.cat(roots).clamp(1e-12, 0.99).log10().floor()
        counts = Counter(decades.int().tolist())
        total = sum(counts.values())
        shares[kind] = [round(counts[d] / total, 5) for d in DECADES]
    return shares


DECADES = range(-12, 0)  # -9: from 1e-9 to 1e-8; -12 holds all below, zeros too


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=("adam", "widths"))
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    part = arguments.part
    record = arguments.record or ROOT / "book" / "records" / f"{part}.json"
    max_tokens = {"adam": ADAM_TOKENS, "widths": WIDTH_TOKENS}[part]
    torch.set_num_threads(1)
    ids = vocabulary()
    vocab_size = 4 + len(ids)
    held_out = numbered(sentences(HELD_OUT, HELD_OUT_SEED), ids)
    held_out = length_batches(held_out, ADAM_TOKENS, 0)

    @functools.cache
    def trained_on(seed: int) -> list[Batch]:
        return length_batches(numbered(sentences(TRAIN, seed), ids), max_tokens, seed)

    def run(
        d_model: int, multiple: float, beta_2: float, eps: float, steps: int, seed: int
    ) -> dict:
        torch.manual_seed(seed)
        shape = {"d_model": d_model, "d_ff": 2 * d_model, **SHAPE}
        model = Transformer(TransformerConfig(vocab_size, **shape))
        adam = torch.optim.Adam(
            model.parameters(), betas=(0.9, beta_2), eps=eps, fused=True
        )
        # Eq. 3 with the short warm-up, its peak that of the paper's times `multiple`
        scale = multiple * (WARMUP / PAPER_WARMUP) ** 0.5
        losses, seen = [], Counter()
        for step, batch in enumerate(trained_on(seed)[:steps], start=1):
            adam.param_groups[0]["lr"] = scale * learning_rate(step, d_model, WARMUP)
            logits = model(batch.src, batch.tgt)
            total = label_smoothed_cross_entropy(logits, batch.labels, 0.0, 0)
            loss = total / (batch.labels != 0).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            losses.append(loss.item())
            seen.update(batch.labels.flatten().tolist())
        each, words = held_out_losses(model, held_out)
        times = torch.tensor([seen[word] for word in words.tolist()])
        rare = times.argsort(stable=True)[: int(RARE * len(times))]
        blocks = [losses[i : i + 50] for i in range(0, steps, 50)]
        return {
            "vocab_size": vocab_size,
            "peak": scale * learning_rate(WARMUP, d_model, WARMUP),
            "losses": [round(sum(block) / len(block), 4) for block in blocks],
            "held_out": round(each.mean().item(), 4),
            "rare": round(each[rare].mean().item(), 4),
            "rare_seen_at_most": int(times[rare].max()),
            "decades": root_mean_squares(model, adam, beta_2, steps),
        }

    widths = [
        {"d_model": d, "multiple": c, "beta_2": 0.98, "eps": 1e-9, "steps": WIDTH_STEPS}
        for d, c in itertools.product(WIDTHS, MULTIPLES)
    ]
    adams = [
        {"d_model": ADAM_WIDTH, "multiple": ADAM_MULTIPLE, "beta_2": beta_2}
        | {"eps": eps, "steps": ADAM_STEPS}
        for beta_2, eps in ADAMS
    ]
    chosen = {"adam": adams, "widths": widths}[part]
    cases = [case | {"seed": seed} for case in chosen for seed in SEEDS]
    contents = {
        "seeds": SEEDS,
        "warmup": WARMUP,
        "max_tokens": max_tokens,
        "shape": SHAPE,
        "held_out": HELD_OUT,
        "rare_share": RARE,
        "runs": run_all(cases, run, record),
    }
    write_record(record, f"python benchmarks/optimizer.py {part}", contents)


if __name__ == "__main__":
    main()
