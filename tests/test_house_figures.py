"""Figures on the front pages are those of the records, and the cover is Figure 1."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def read_record(name):
    return json.loads((ROOT / "book" / "records" / name).read_text(encoding="utf-8"))


def scores(record, split, averaged):
    """BLEU and chrF of a split by the beam: {1: (…), 4: (…)}."""
    return {
        row["beam"]: (row["bleu"], row["chrf"])
        for row in record["scores"]
        if (row["split"], row["averaged"]) == (split, averaged)
    }


def result_paragraph():
    """README's sentence about Multi30k, with every figure taken from the record."""
    record = read_record("multi30k_en_de_tiny.json")
    config = record["config"]
    test, _ = scores(record, "test_2016_flickr", 1)[1]
    signature = record["scores"][0]["signatures"]["bleu"]
    words = (
        f"On Multi30k, English to German, `--config tiny` "
        f"({record['parameters'] / 1e6:.1f}M parameters, d_model {config['d_model']}, "
        f"{config['n_layers']} + {config['n_layers']} layers) reaches "
        f"{test:.1f} BLEU on `test_2016_flickr` after "
        f"{record['seconds'] / 60:.0f} minutes from raw text on a "
        f"{record['device']}, at {record['tokens_per_second']:,} target tokens a "
        f"second, with seed {record['training']['seed']} and greedy search "
        f"(sacreBLEU, `{signature}`)."
    )
    return words


def shipped_paragraph():
    """README's sentences about the model that ships."""
    record = read_record("tatoeba_en_de_ships.json")
    folder = ROOT / "annotated_transformer" / "models" / "tatoeba-en-de"
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    test = scores(record, "test", record["best_average"])
    (captions, _) = scores(record, "test_2016_flickr", record["best_average"])[4]
    return (
        f"`tatoeba-en-de` ships with the package: {record['parameters'] / 1e6:.1f}M "
        f"parameters in {size:.0f} MB, trained on {record['pairs']:,} pairs of "
        f"everyday sentences for {record['seconds'] / 60:.0f} minutes on such a CPU. "
        f"On 2,000 unseen ones it reaches {test[4][0]:.1f} BLEU and "
        f"{test[4][1]:.1f} chrF with a beam of 4, {test[1][0]:.1f} and "
        f"{test[1][1]:.1f} greedily; on the captions of `test_2016_flickr`, a kind of "
        f"text it has not seen, {captions:.1f} BLEU"
    )


def on_one_line(path):
    return " ".join((ROOT / path).read_text(encoding="utf-8").split())


@pytest.mark.parametrize("page", ["README.md", "book/intro.md"])
def test_the_result_is_the_records(page):
    assert result_paragraph() in on_one_line(page)


def test_the_model_that_ships_is_the_records():
    assert shipped_paragraph() in on_one_line("README.md")


def test_the_run_on_the_embedded_corpus_is_the_records():
    runs = sorted(read_record("grammar_run.json")["runs"], key=lambda run: run["seed"])
    assert [run["seed"] for run in runs] == [0, 1, 2]
    a, b, c = (run["exact"] for run in runs)
    sentence = f"writes {a}, {b} and {c} of 1,000 unseen sentences without a mistake"
    assert sentence in on_one_line("README.md")
    assert max(run["seconds"] for run in runs) < 180
    assert all(run["pronouns"] == 600 for run in runs)


def test_four_layers_are_the_records():
    record = read_record("multi30k_en_de_four_layers.json")
    bleu, _ = scores(record, "test_2016_flickr", 10)[4]
    sentence = (
        f"With four layers, {record['seconds'] / 60:.0f} minutes on one of its cores, "
        f"the mean of ten checkpoints and a beam of 4 it is {bleu:.1f} "
    )
    assert record["threads"] == 1 and sentence in on_one_line("README.md")


def test_the_riddles_are_the_records():
    runs = read_record("attention_study.json")["runs"]
    asked, right = (runs[0]["translations"][key] for key in ("asked", "right"))
    sentence = f"in {right * asked:,.0f} of {asked:,} riddles"
    assert len(runs) == 3 and sentence in on_one_line("README.md")
    for run in runs:
        encoder, cross = (run["flips"][kind] for kind in ("encoder", "cross"))
        assert encoder["layers 1+2"]["cut"] == [0, 0, 0]
        assert cross["layers 2"]["moved"][1] == 1


def test_the_speed_of_a_step_is_the_records():
    """The best of each, as they come: without what keeps freed memory."""
    best = {}
    for row in read_record("training_speed_cpu.json")["table"]:
        ours = row["system"].startswith("this package")
        if not row["keep"]:
            best[ours] = max(best.get(ours, 0), row["pace"])
    sentence = f"is {best[True] / best[False]:.2f} times as fast as that of the fastest"
    assert sentence in on_one_line("README.md")


def test_the_cover_is_figure_1():
    command = [sys.executable, str(ROOT / "tools" / "cover.py"), "--check"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout
