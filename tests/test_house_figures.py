"""Figures on the front pages are those of the records, and the cover is Figure 1."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def result_paragraph():
    """README's sentence about Multi30k, with every figure taken from the record."""
    path = ROOT / "book" / "records" / "multi30k_en_de_tiny.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    config, test = record["config"], record["bleu"]["test_2016_flickr"]
    words = (
        f"On Multi30k, English to German, `--config tiny` "
        f"({record['parameters'] / 1e6:.1f}M parameters, d_model {config['d_model']}, "
        f"{config['n_layers']} + {config['n_layers']} layers) reaches "
        f"{test:.1f} BLEU on `test_2016_flickr` after "
        f"{record['seconds'] / 60:.0f} minutes from raw text on a "
        f"{record['device']}, at {record['tokens_per_second']:,} target tokens a "
        f"second, with seed {record['training']['seed']} and greedy search "
        f"(sacreBLEU, `{record['signature']}`)."
    )
    return words


def on_one_line(path):
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


@pytest.mark.parametrize("page", ["README.md", "book/intro.md"])
def test_the_result_is_the_records(page):
    assert result_paragraph() in on_one_line(page)


def test_the_cover_is_figure_1():
    command = [sys.executable, str(ROOT / "tools" / "cover.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
