"""Train on Multi30k, score the result, and write the record that §6.1 shows.

    python benchmarks/multi30k.py --out runs/en-de [options of `train`]

runs `annotated-transformer train` and `evaluate` as a user would, on the machine as it
is, and writes one JSON file (--record, book/records/multi30k_en_de_tiny.json if not
given): everything in the run's record.json, the commit, the curve of the epochs, BLEU
of val and test_2016_flickr with its signature, and ten translations of test sentences
drawn by a fixed seed, whatever they look like. A run that is complete in --out already
is scored and recorded, not repeated.
"""

import argparse
import json
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

from recording import git_commit

from annotated_transformer import Translator
from annotated_transformer.corpora import load_pairs

ROOT = Path(__file__).resolve().parent.parent
SPLITS = "val", "test_2016_flickr"
SAMPLE_SEED, SAMPLES = 6, 10


def command(*arguments: str) -> str:
    """Run one command of annotated-transformer; return what it prints."""
    print("$", shlex.join(["annotated-transformer", *arguments]), file=sys.stderr)
    python = [sys.executable, "-m", "annotated_transformer", *arguments]
    done = subprocess.run(python, stdout=subprocess.PIPE, text=True)
    if done.returncode:  # it has said why
        sys.exit(done.returncode)
    return done.stdout


def evaluate(out: Path, corpus: str) -> tuple[dict[str, float], str]:
    """BLEU of each split, and their one signature."""
    scores, signatures = {}, set()
    for split in SPLITS:
        options = ["--model", str(out), "--corpus", corpus, "--split", split]
        name, value, signature = command("evaluate", *options).split()
        scores[split] = float(value)
        signatures.add(signature)
    (signature,) = signatures
    return scores, signature


def words(line: str) -> list[str]:
    """The words of a line in small letters."""
    return re.findall(r"\w+", line.lower())


def sample(out: Path, run: dict) -> list[dict]:
    """Test sentences drawn by SAMPLE_SEED, with reference and translation.

    unseen: the words of the source that the training text does not have.
    """
    sources, references = load_pairs(
        run["corpus"], run["source"], run["target"], SPLITS[-1]
    )
    trained_on, _ = load_pairs(run["corpus"], run["source"], run["target"], "train")
    known = {word for line in trained_on for word in words(line)}
    lines = sorted(random.Random(SAMPLE_SEED).sample(range(len(sources)), SAMPLES))
    outputs = Translator.from_pretrained(out).translate(sources[i] for i in lines)
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--corpus", default="multi30k")
    parser.add_argument("--source", default="en")
    parser.add_argument("--target", default="de")
    parser.add_argument("--config", default="tiny")
    parser.add_argument("--record", type=Path)
    arguments, options = parser.parse_known_args()
    pair = f"{arguments.source}_{arguments.target}"
    name = f"{Path(arguments.corpus).name}_{pair}_{arguments.config}.json"
    target = arguments.record or ROOT / "book" / "records" / name

    commit = git_commit()
    if not (arguments.out / "record.json").exists():
        for field in ("corpus", "source", "target", "config", "out"):
            options += [f"--{field}", str(getattr(arguments, field))]
        command("train", *options)
    run = json.loads((arguments.out / "record.json").read_text(encoding="utf-8"))
    log = (arguments.out / "training.jsonl").read_text(encoding="utf-8")
    epochs = [json.loads(line) for line in log.splitlines()]
    if len(epochs) != run["training"]["epochs"]:
        sys.exit(f"{arguments.out}: {len(epochs)} epochs, the run was broken off")
    scores, signature = evaluate(arguments.out, run["corpus"])
    record = {
        **run,
        "commit": commit,
        "curve": [
            {
                "epoch": epoch["epoch"],
                "step": epoch["step"],
                "train_loss": round(epoch["train_loss"], 4),
                "validation_loss": round(epoch["validation_loss"], 4),
                "bleu": round(epoch["bleu"], 2),
                "seconds": round(epoch["seconds"], 1),
            }
            for epoch in epochs
        ],
        "bleu": scores,
        "signature": signature,
        "sample_seed": SAMPLE_SEED,
        "samples": sample(arguments.out, run),
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    target.write_text(text, encoding="utf-8")
    print(f"{target}: {scores}", file=sys.stderr)


if __name__ == "__main__":
    main()
