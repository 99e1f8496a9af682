"""What it does to a translation that self-attention looks at r positions only (§4).

    python benchmarks/restricted.py
    python benchmarks/restricted.py --steps 3600 --neighbourhoods 3 full --seeds 0

English to German of Multi30k, the size `tiny`, a joint vocabulary of 4,000 pieces. The
self-attention of both stacks is restricted to r of 3, 5 and 9, or not at all; the
attention over the source is whole. Three seeds; the initial weights and the batches of
a seed are the same in every run. --steps steps of 1,500 tokens on either side (1,200,
not quite three and a half epochs), half of Eq. 3 with a warm-up of 200. Scored on
test_2016_flickr, with greedy search, whole and by the length of the source. The second
command goes on for three times as long with the two ends of the row.

About five minutes for 1,200 steps on one core, an hour for the first command; one that
is broken off goes on where it stopped. --toy tries the whole way with next to nothing.
Writes book/records/restricted_multi30k.json, or restricted_multi30k_3600.json where the
steps are 3,600 (--record).
"""

import argparse
from pathlib import Path

import torch
from recording import ROOT, run_all, write_record
from short_training import Data, score, training

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.restricted_attention import restrict_self_attention
from annotated_transformer.training import evaluate_loss

NEIGHBOURHOODS, SEEDS, STEPS = (3, 5, 9, None), (0, 1, 2), 1200
RATE = 0.5  # that multiplies the learning rate of Eq. 3
REAL = {"vocab_size": 4000, "max_tokens": 1500, "warmup": 200}
TOY = {"vocab_size": 600, "max_tokens": 300, "warmup": 2}


def run(data: Data, sizes: dict, r: int | None, seed: int, steps: int) -> dict:
    """Train a model of the seed, restricted from its first step on; score it."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig.tiny(sizes["vocab_size"]))
    if r is not None:
        restrict_self_attention(model, r)
    for _ in training(model, data, sizes, RATE, seed, steps):
        pass
    loss = evaluate_loss(model, data.validation)  # nats a token
    return {"validation_loss": round(loss, 4), **score(model, data, beam_size=1)}


def neighbourhood(text: str) -> int | None:
    """An r, or None for "full"."""
    return None if text == "full" else int(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument(
        "--neighbourhoods", nargs="+", type=neighbourhood, default=NEIGHBOURHOODS
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    toy, several, asked = arguments.toy, arguments.neighbourhoods, arguments.steps
    sizes, steps = (TOY, 3) if toy else (REAL, asked)
    name = "restricted_multi30k" + f"_{asked}" * (asked != STEPS) + ".json"
    record = arguments.record or ROOT / "book/records" / name
    torch.set_num_threads(1)
    data = Data("multi30k", sizes, toy)
    seeds = arguments.seeds[:1] if toy else arguments.seeds
    cases = [{"r": r, "seed": s, "steps": steps} for s in seeds for r in several]
    pieces = sorted(len(data.tokenizer.encode(line)) for line in data.test[0])
    contents = {
        "neighbourhoods": several,
        "seeds": seeds,
        "steps": steps,
        "sizes": sizes,
        "rate": RATE,
        "config": TransformerConfig.tiny(sizes["vocab_size"]).to_dict(),
        "median_length": pieces[len(pieces) // 2],
        "longest": pieces[-1],
        "runs": run_all(cases, lambda **case: run(data, sizes, **case), record),
    }
    command = ["python benchmarks/restricted.py"]
    if asked != STEPS:
        command += ["--steps", str(asked)]
    if several != NEIGHBOURHOODS:
        command += ["--neighbourhoods", *(str(r or "full") for r in several)]
    if arguments.seeds != SEEDS:
        command += ["--seeds", *map(str, arguments.seeds)]
    packages = "sentencepiece", "sacrebleu"
    write_record(record, " ".join(command), contents, packages)


if __name__ == "__main__":
    main()
