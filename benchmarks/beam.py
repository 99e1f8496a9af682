"""Measure what §6.1 states about beam search: scores against beam size and α.

    python benchmarks/beam.py --model runs/en-de

translates val of Multi30k with every beam size and every α, and test_2016_flickr
greedily and as the paper does it (beam 4, α = 0.6), with a model that
`annotated-transformer train --corpus multi30k` has made. It prints a table and writes
book/records/beam_multi30k.json. Translations are the same on every machine, rounding
of the last bit apart; one core takes about ten minutes. What is done is kept in
--work: a run that was broken off goes on from there.
"""

import argparse
import hashlib
import json
from pathlib import Path

import torch
from recording import ROOT, origin, save

from annotated_transformer import Translator
from annotated_transformer.corpora import load_pairs
from annotated_transformer.decoding import length_penalty
from annotated_transformer.evaluation import (
    bleu,
    bleu_interval,
    chrf,
    compare_bleu,
    tokenized_bleu,
)
from annotated_transformer.translator import WEIGHTS

SIZES, ALPHAS = (1, 2, 4, 8, 16, 32), (0.0, 0.6, 1.0)
TESTED = (1, 0.0), (4, 0.6)
SPLITS = "val", "test_2016_flickr"


def translate(translator: Translator, lines: list[str], beam_size: int, alpha: float):
    """Text, tokens with eos, log p, and whether it ended, of each line's best."""
    batch_size = max(1, 256 // beam_size)
    found = translator.n_best(lines, 1, batch_size, beam_size, alpha)
    return [
        [best.text, len(best.tokens) + best.ended, best.log_prob, best.ended]
        for (best,) in found
    ]


def describe(rows: list, references: list[str], reference_tokens: float) -> dict:
    """The scores and sizes of one set of translations."""
    texts, lengths, log_probs, ended = zip(*rows, strict=True)
    return {
        "bleu": round(bleu(texts, references).value, 2),
        "chrf": round(chrf(texts, references).value, 2),
        "tokenized_bleu": round(tokenized_bleu(texts, references).value, 2),
        "length": round(sum(lengths) / reference_tokens, 4),
        "log_prob": round(sum(log_probs) / len(rows), 4),
        "score": round(
            sum(
                log_p / length_penalty(n, 0.6)
                for n, log_p in zip(lengths, log_probs, strict=True)
            )
            / len(rows),
            4,
        ),
        "empty": sum(not text for text in texts),
        "cut": len(rows) - sum(ended),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "beam")
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book/records/beam_multi30k.json"
    )
    arguments = parser.parse_args()
    command = f"python benchmarks/beam.py --model {arguments.model}"
    head = origin(command, ("torch", "sacrebleu"))
    translator = Translator.from_pretrained(arguments.model)
    weights = (arguments.model / WEIGHTS).read_bytes()
    digest = hashlib.sha256(weights).hexdigest()[:12]
    run = json.loads((arguments.model / "record.json").read_text(encoding="utf-8"))
    work = arguments.work / f"{head['commit']}-{digest}"
    work.mkdir(parents=True, exist_ok=True)

    def cell(split: str, beam_size: int, alpha: float) -> list:
        """One set of translations, from the folder where it is there already."""
        path = work / f"{split}-{beam_size}-{alpha}.json"
        if not path.exists():
            rows = translate(translator, text[split][0], beam_size, alpha)
            path.write_text(json.dumps(rows), encoding="utf-8")
        return json.loads(path.read_text(encoding="utf-8"))

    text = {split: load_pairs("multi30k", "en", "de", split) for split in SPLITS}
    table: dict[str, list] = {split: [] for split in SPLITS}
    for split, settings in (
        ("val", [(size, alpha) for size in SIZES for alpha in ALPHAS]),
        ("test_2016_flickr", TESTED),
    ):
        references = text[split][1]
        tokens = sum(len(translator.tokenizer.encode(line)) + 1 for line in references)
        greedy = cell(split, 1, 0.0)
        for size, alpha in settings:
            rows = cell(split, size, alpha)
            row = {"beam": size, "alpha": alpha, **describe(rows, references, tokens)}
            row["as_greedy"] = sum(
                a[0] == b[0] for a, b in zip(rows, greedy, strict=True)
            )
            table[split].append(row)
            print(split, *row.values(), flush=True)

    references = text["test_2016_flickr"][1]
    outputs = [[row[0] for row in cell("test_2016_flickr", *s)] for s in TESTED]
    intervals = [bleu_interval(output, references) for output in outputs]
    comparison = compare_bleu(*outputs, references)
    signatures = [metric(outputs[0], references) for metric in (bleu, chrf)]
    record = {
        **head,
        "threads": torch.get_num_threads(),
        "model": {
            "command": run["command"],
            "seed": run["training"]["seed"],
            "parameters": run["parameters"],
            "sha256": digest,
        },
        "signatures": {
            "bleu": signatures[0].signature,
            "chrf": signatures[1].signature,
            "tokenized_bleu": tokenized_bleu(outputs[0], references).signature,
        },
        "sentences": {split: len(text[split][0]) for split in SPLITS},
        **table,
        "intervals": [
            {"mean": round(one.mean, 2), "margin": round(one.margin, 2)}
            for one in intervals
        ],
        "comparison": {
            "difference": round(comparison.difference, 2),
            "p_value": round(comparison.p_value, 4),
            "signature": comparison.signature,
        },
    }
    save(arguments.record, record)


if __name__ == "__main__":
    main()
