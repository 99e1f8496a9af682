"""What it does to a translation that self-attention looks at r positions only (§4).

    python benchmarks/restricted.py

English to German of Multi30k, the size `tiny`, a joint vocabulary of 4,000 pieces. The
self-attention of both stacks is restricted to r of 3, 5, 9 and 17, or not at all; the
attention over the source is whole. Three seeds; the initial weights and the batches of
a seed are the same in every run. --steps steps of 1,500 tokens on either side (1,500,
four epochs), Eq. 3 with a warm-up of a third of them. Scored on test_2016_flickr, with
greedy search, whole and by the length of the source in pieces.

About eleven minutes a run on one core, not quite three hours in all; a command that is
broken off goes on where it stopped. --toy tries the whole way with next to nothing.
Writes book/records/restricted_multi30k.json (--record).
"""

import argparse
from pathlib import Path

import torch
from recording import ROOT, length_batches, run_all, write_record

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.batching import Batch, pad
from annotated_transformer.corpora import load_pairs
from annotated_transformer.decoding import greedy_search
from annotated_transformer.evaluation import bleu
from annotated_transformer.loss import label_smoothed_cross_entropy
from annotated_transformer.restricted_attention import restrict_self_attention
from annotated_transformer.schedule import learning_rate
from annotated_transformer.tokenizer import Tokenizer

NEIGHBOURHOODS, SEEDS = (3, 5, 9, 17, None), (0, 1, 2)
SPLITS = {"train": "train", "val": "val", "test": "test_2016_flickr"}
LONGEST, SMOOTHING = 200, 0.1  # tokens of a training sentence; ε_ls
EDGES = 0, 11, 14, 18, LONGEST  # of the groups by length, in pieces of the source
REAL = {"vocab_size": 4000, "max_tokens": 1500, "lines": None}
TOY = {"vocab_size": 400, "max_tokens": 300, "lines": 200}


class Data:
    """Multi30k in pieces."""

    def __init__(self, sizes: dict) -> None:
        texts = {
            name: [
                side[: sizes["lines"]]
                for side in load_pairs("multi30k", "en", "de", split)
            ]
            for name, split in SPLITS.items()
        }
        train = texts["train"]
        self.tokenizer = Tokenizer.train(train[0] + train[1], sizes["vocab_size"])
        self.sources, self.references = texts["test"]
        self.test = [self.tokenizer.encode(line) for line in self.sources]
        self.train, self.val = map(self.pairs, (train, texts["val"]))

    def pairs(self, sides: list) -> list:
        ids = zip(*(map(self.tokenizer.encode, side) for side in sides), strict=True)
        return [
            pair
            for pair in ids
            if 0 < min(map(len, pair)) <= max(map(len, pair)) < LONGEST
        ]


def loss_of(model: Transformer, batch: Batch, smoothing: float) -> tuple:
    """The loss summed over a batch's tokens, and how many these are."""
    logits = model(batch.src, batch.tgt)
    pad_id = model.config.pad_id
    total = label_smoothed_cross_entropy(logits, batch.labels, smoothing, pad_id)
    return total, int((batch.labels != pad_id).sum())


def train(data: Data, sizes: dict, r: int | None, seed: int, steps: int) -> Transformer:
    """A model of the seed, restricted from its first step on."""
    torch.manual_seed(seed)
    model = Transformer(TransformerConfig.tiny(sizes["vocab_size"]))
    if r is not None:
        restrict_self_attention(model, r)
    adam = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True)
    order, epoch = [], 0
    for step in range(1, steps + 1):
        if not order:
            order = length_batches(data.train, sizes["max_tokens"], 1000 * seed + epoch)
            epoch += 1
        rate = learning_rate(step, model.config.d_model, max(1, steps // 3))
        adam.param_groups[0]["lr"] = rate
        total, tokens = loss_of(model, order.pop(), SMOOTHING)
        adam.zero_grad()
        (total / tokens).backward()
        adam.step()
    return model.eval()


@torch.no_grad()
def score(model: Transformer, data: Data, max_tokens: int) -> dict:
    """Validation loss in nats a token, and BLEU, whole and by length of the source."""
    sums = [loss_of(model, b, 0.0) for b in length_batches(data.val, max_tokens, 0)]
    total, tokens = (
        sum(float(part) for part in parts) for parts in zip(*sums, strict=True)
    )
    outputs = []
    for start in range(0, len(data.test), 250):
        rows = [ids + [model.config.eos_id] for ids in data.test[start : start + 250]]
        outputs += greedy_search(model, pad(rows, model.config.pad_id))
    lines = [data.tokenizer.decode(ids) for ids in outputs]
    whole, by_length = bleu(lines, data.references), []
    for low, high in zip(EDGES, EDGES[1:], strict=False):
        group = [i for i, ids in enumerate(data.test) if low < len(ids) <= high]
        if group:
            value = bleu(
                *([side[i] for i in group] for side in (lines, data.references))
            ).value
            by_length.append([low + 1, high, len(group), round(value, 2)])
    return {
        "validation_loss": round(total / tokens, 4),
        "bleu": round(whole.value, 2),
        "signature": whole.signature,
        "by_length": by_length,  # shortest, longest (pieces), sentences, BLEU
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book/records/restricted_multi30k.json"
    )
    arguments = parser.parse_args()
    sizes, steps = (TOY, 3) if arguments.toy else (REAL, arguments.steps)
    torch.set_num_threads(1)
    data = Data(sizes)

    def run(r: int | None, seed: int, steps: int) -> dict:
        return score(train(data, sizes, r, seed, steps), data, sizes["max_tokens"])

    seeds = SEEDS[:1] if arguments.toy else SEEDS
    cases = [{"r": r, "seed": s, "steps": steps} for s in seeds for r in NEIGHBOURHOODS]
    config = TransformerConfig.tiny(sizes["vocab_size"])
    pieces = sorted(map(len, data.test))
    contents = {
        "neighbourhoods": NEIGHBOURHOODS,
        "seeds": seeds,
        "steps": steps,
        "sizes": sizes,
        "config": config.to_dict(),
        "median_length": pieces[len(pieces) // 2],
        "longest": pieces[-1],
        "runs": run_all(cases, run, arguments.record),
    }
    command = "python benchmarks/restricted.py"
    command += f" --steps {steps}" * (arguments.steps != parser.get_default("steps"))
    write_record(arguments.record, command, contents, ("sentencepiece", "sacrebleu"))


if __name__ == "__main__":
    main()
