"""Make of a trained model the folder that ships with the package.

    python tools/ship.py runs/en-de farm-en-de book/records/farm_en_de_ships.json \
        --data "our farm, CC BY 4.0" --limits "knows nothing but animals" --check FILE

writes annotated_transformer/models/NAME: the weights in half precision, configuration,
tokenizer, and a model card. The third argument is what benchmarks/translation.py has
written about the run: it says which mean of checkpoints is best, and what it scores.
Prints the size, which has to stay below 25 MB, and refuses a model that has changed by
being rounded more than a validation would notice: 200 source lines, where --check names
a file, must translate the same in 99 % of the cases.
"""

import argparse
import json
import shutil
import sys
from pathlib import Path

import torch

from annotated_transformer import Translator
from annotated_transformer.corpora import read_lines
from annotated_transformer.translator import average_pretrained, last_checkpoints

ROOT = Path(__file__).resolve().parent.parent
LARGEST = 25_000_000  # bytes


def scores(record: dict) -> list[str]:
    """The scores of the weights that ship, as rows of a table."""
    rows = [
        "| on | beam | BLEU, 95 % | chrF | tokenised BLEU |",
        "|---|---|---|---|---|",
    ]
    for row in record["scores"]:
        if row["averaged"] == record["best_average"]:
            rows.append(
                f"| {row['corpus']} {row['split']} | {row['beam']} "
                f"| {row['bleu']:.2f} ± {row['margin']:.2f} | {row['chrf']:.2f} "
                f"| {row['tokenized_bleu']:.2f} |"
            )
    signatures = record["scores"][0]["signatures"].items()
    return [*rows, "", *(f"- {name}: `{said}`" for name, said in signatures)]


def card(name: str, record: dict, arguments: argparse.Namespace) -> str:
    """The model card: where the model is from, what it reaches, what it cannot do."""
    config, layers = record["config"], record["config"]["n_layers"]
    n, epochs = record["best_average"], f"{len(record['curve'])} epochs"
    if len(record["curve"]) < record["training"]["epochs"]:
        epochs += f", then ended, of {record['training']['epochs']}"
    shape = (
        f"{layers} + {layers} layers, {config['d_model']} wide, "
        f"{config['n_heads']} heads, feed-forward {config['d_ff']}, "
        f"{config['vocab_size']} pieces, {record['parameters']:,} parameters"
    )
    table = {
        "translates": f"{record['source']} → {record['target']}",
        "data": arguments.data,
        "pairs": f"{record['pairs']:,}; {epochs}",
        "shape": shape,
        "weights": f"mean of the last {n} checkpoints" if n > 1 else "best epoch",
        "command": f"`{record['command']}`",
        "commit": record["commit"],
        "seed": record["training"]["seed"],
        "device": record["device"],
        "time": f"{record['seconds'] / 60:.0f} minutes",
        "date": record["date"],
        "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
    }
    rows = [f"| {key} | {value} |" for key, value in table.items()]
    lines = [f"# {name}", "", "| | |", "|---|---|", *rows, "", "## Scores", ""]
    lines += [f"By `{record['scoring']}`:", "", *scores(record), "", "## Limits", ""]
    lines += [arguments.limits, ""]
    lines += ["The weights are stored in float16 and computed with in float32."]
    return "\n".join(lines) + "\n"


def unchanged(folder: Path, original: Translator, lines: list[str]) -> float:
    """The share of lines that translate the same from the folder as before."""
    outputs = Translator.from_pretrained(folder).translate(lines)
    pairs = zip(outputs, original.translate(lines), strict=True)
    return sum(a == b for a, b in pairs) / len(lines)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, help="the folder of a training")
    parser.add_argument("name")
    parser.add_argument("record", type=Path, help="of benchmarks/translation.py")
    parser.add_argument(
        "--data", required=True, help="with its licence and attribution"
    )
    parser.add_argument("--limits", required=True)
    parser.add_argument("--check", type=Path, help="a file of source lines")
    parser.add_argument(
        "--to", type=Path, default=ROOT / "annotated_transformer/models"
    )
    arguments = parser.parse_args(argv)
    folder = arguments.to / arguments.name
    if folder.exists():
        print(f"ship: {folder} is there already", file=sys.stderr)
        return 1
    record = json.loads(arguments.record.read_text(encoding="utf-8"))
    if (n := record["best_average"]) > 1:
        translator = average_pretrained(last_checkpoints(arguments.run, n))
    else:
        translator = Translator.from_pretrained(arguments.run)
    text = card(arguments.name, record, arguments)
    translator.save_pretrained(folder, torch.float16)
    (folder / "README.md").write_text(text, encoding="utf-8")
    languages = {key: record[key] for key in ("source", "target")}
    (folder / "record.json").write_text(json.dumps(languages) + "\n", encoding="utf-8")
    size = sum(path.stat().st_size for path in folder.iterdir())
    print(f"{folder}: {size / 1e6:.1f} MB")
    if size > LARGEST:
        print(f"ship: that is above {LARGEST / 1e6:.0f} MB", file=sys.stderr)
        shutil.rmtree(folder)
        return 1
    if arguments.check:
        share = unchanged(folder, translator, read_lines(arguments.check)[:200])
        print(f"{share:.1%} of the lines translate as before")
        if share < 0.99:
            shutil.rmtree(folder)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
