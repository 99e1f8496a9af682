"""Score a trained model in every way that §6.1 knows, and write the record of its page.

    annotated-transformer train --corpus multi30k … --keep 8 --out runs/en-de
    python benchmarks/translation.py runs/en-de

The weights of the run's best epoch, and the mean of its last 5, 8 and 10 checkpoints
where it kept so many, by greedy search and with a beam of 4 (α 0.6), on the validation
set and on every test set of its corpus; a model of another corpus also on Multi30k's
test_2016_flickr. Of each the four scores and the interval that `annotated-transformer
evaluate` prints. Then --samples translations of test sentences, drawn by a fixed seed,
whatever they look like, greedily by the weights that are best so on the validation set.

Writes --record (book/records/CORPUS_SOURCE_TARGET_NAME.json if not given, NAME from
--name): the run's own record.json, its curve, and all of this. A run that was broken
off is scored as far as it came.
"""

import argparse
import json
import random
import re
import sys
import time
from itertools import product
from pathlib import Path

from recording import ROOT, git_commit, save

from annotated_transformer import Translator
from annotated_transformer.corpora import load_pairs
from annotated_transformer.evaluation import (
    bleu,
    bleu_interval,
    chrf,
    tokenized_bleu,
)
from annotated_transformer.translator import average_pretrained, last_checkpoints

SPLITS = {
    "multi30k": ("val", "test_2016_flickr", "test_2017_flickr"),
    "tatoeba": ("val", "test"),
}
AVERAGES, BEAMS, ALPHA = (1, 5, 8, 10), (1, 4), 0.6
SAMPLE_SEED = 6


def models(run: Path) -> dict[int, Translator]:
    """The best weights as 1, and the mean of the last n checkpoints as n."""
    found = {1: Translator.from_pretrained(run)}
    for n in AVERAGES[1:]:
        try:
            found[n] = average_pretrained(last_checkpoints(run, n))
        except ValueError as error:
            print(error, file=sys.stderr)
    return found


def score(outputs: list[str], references: list[str]) -> dict:
    """Every score of one list of translations, with what makes it comparable."""
    interval = bleu_interval(outputs, references)
    whole = {"bleu": bleu, "tokenized_bleu": tokenized_bleu, "chrf": chrf}
    found = {name: metric(outputs, references) for name, metric in whole.items()}
    return {
        **{name: round(one.value, 2) for name, one in found.items()},
        "margin": round(interval.margin, 2),
        "signatures": {name: one.signature for name, one in found.items()},
    }


def words(line: str) -> list[str]:
    """The words of a line in small letters."""
    return re.findall(r"\w+", line.lower())


def sample(run: dict, translator: Translator, split: str, n: int) -> list[dict]:
    """Test sentences drawn by SAMPLE_SEED, with reference and translation.

    unseen: the words of the source that the training text does not have.
    """
    languages = run["corpus"], run["source"], run["target"]
    sources, references = load_pairs(*languages, split)
    trained_on, _ = load_pairs(*languages, "train")
    known = {word for line in trained_on for word in words(line)}
    lines = sorted(random.Random(SAMPLE_SEED).sample(range(len(sources)), n))
    outputs = translator.translate([sources[i] for i in lines])
    return [
        {
            "line": i + 1,
            "source": sources[i],
            "reference": references[i],
            "translation": output,
            "unseen": [word for word in words(sources[i]) if word not in known],
        }
        for i, output in zip(lines, outputs, strict=True)
    ]


def curve(run: Path) -> list[dict]:
    """The epochs, without more digits than mean anything."""
    log = (run / "training.jsonl").read_text(encoding="utf-8")
    digits = {"train_loss": 4, "validation_loss": 4, "bleu": 2, "seconds": 1}
    return [
        {name: epoch[name] for name in ("epoch", "step")}
        | {name: round(epoch[name], n) for name, n in digits.items()}
        for epoch in map(json.loads, log.splitlines())
    ]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", default="tiny")
    parser.add_argument("--trained-at", help="commit of the training, if not this one")
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args(argv)
    run = json.loads((arguments.run / "record.json").read_text(encoding="utf-8"))
    corpus, languages = run["corpus"], (run["source"], run["target"])
    splits = [(corpus, split) for split in SPLITS[corpus]]
    if corpus != "multi30k":
        splits.append(("multi30k", "test_2016_flickr"))

    several, rows = models(arguments.run), []
    for (n, translator), beam in product(several.items(), BEAMS):
        for place, split in splits:
            lines, references = load_pairs(place, *languages, split)
            started = time.perf_counter()
            outputs = translator.translate(lines, beam_size=beam, alpha=ALPHA)
            seconds = round(time.perf_counter() - started, 1)
            row = {"averaged": n, "beam": beam, "corpus": place, "split": split}
            row |= {"sentences": len(lines), "seconds": seconds}
            rows.append(row | score(outputs, references))
            print(rows[-1], file=sys.stderr)
    best = max(
        (row for row in rows if (row["split"], row["beam"]) == ("val", 1)),
        key=lambda row: row["bleu"],
    )
    record = {
        **run,
        "scoring": f"python benchmarks/translation.py {arguments.run}",
        "commit": arguments.trained_at or git_commit(),
        "scored_at": git_commit(),
        "curve": curve(arguments.run),
        "alpha": ALPHA,
        "scores": rows,
        "best_average": best["averaged"],
        "sample_seed": SAMPLE_SEED,
        "sample_split": splits[1][1],
        "samples": sample(
            run, several[best["averaged"]], splits[1][1], arguments.samples
        ),
    }
    name = "_".join([corpus, *languages, arguments.name]) + ".json"
    path = arguments.record or ROOT / "book" / "records" / name
    save(path, record)


if __name__ == "__main__":
    main()
