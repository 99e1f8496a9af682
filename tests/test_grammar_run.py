"""The record of the run on the embedded corpus is of this grammar and this page."""

import json
import sys
from itertools import islice
from pathlib import Path

import nbformat
import pytest

from annotated_transformer.grammar import generate

ROOT = Path(__file__).resolve().parent.parent
RUNS = json.loads(
    (ROOT / "book" / "records" / "grammar_run.json").read_text(encoding="utf-8")
)["runs"]


@pytest.fixture
def grammar_run(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import grammar_run

    yield grammar_run
    sys.modules.pop("grammar_run")


def test_three_seeds_reach_what_the_page_promises():
    assert [run["seed"] for run in RUNS] == [0, 1, 2]
    for run in RUNS:
        assert run["exact"] >= 950, "of 1,000 sentences"
        assert min(run["pronouns"], run["riddles"]) >= 540, "of 600"
        assert run["bag_of_words"] < 0.56
        assert run["seconds"] < 180


def test_the_tables_of_a_run_add_up():
    for run in RUNS:
        right, n = map(sum, zip(*run["by_construction"].values(), strict=True))
        assert (right, n) == (run["exact"], 1000)
        assert run["curve"][-1][0] == run["steps"]
        assert run["curve"][-1][2] == run["last_state"] <= run["mean_state"]


def test_no_head_explains_the_pronouns():
    for run in RUNS:
        assert run["pronouns"] == 600
        assert max(run["best_scores"]) < 0.8
        for _, weights in run["famous"]:
            assert all(sum(row) == pytest.approx(1, abs=0.001) for row in weights)


def test_the_mistakes_are_in_sentences_of_this_grammar():
    asked = {}
    for triple in islice(generate(1100, 1001), 1100):
        asked.setdefault(triple.english.text, triple.german.text)
    for run in RUNS:
        assert len(run["mistakes"]) == min(5, 1000 - run["exact"])
        for english, german, written in run["mistakes"]:
            assert asked[english] == german
            assert written != german


def page(tmp_path, *sources):
    notebook = nbformat.v4.new_notebook()
    notebook.cells = [nbformat.v4.new_code_cell(source) for source in sources]
    path = tmp_path / "page.ipynb"
    nbformat.write(notebook, path)
    return path


def test_the_cells_are_run_with_another_seed(grammar_run, monkeypatch, tmp_path):
    cells = "seed = 0  # of it all", 'result = {"seed": seed, "x": 10 * seed}', "1 / 0"
    monkeypatch.setattr(grammar_run, "PAGE", page(tmp_path, *cells))
    assert grammar_run.run(2) == {"x": 20}


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        (["seed = 0"], "page.ipynb has no cell that leaves a result"),
        (["seed = 0", "seed = 1", "result = {}"], "sets its seed 2 times"),
        (["result = {}"], "sets its seed 0 times"),
    ],
)
def test_a_page_that_does_not_fit(cells, message, grammar_run, monkeypatch, tmp_path):
    monkeypatch.setattr(grammar_run, "PAGE", page(tmp_path, *cells))
    with pytest.raises(SystemExit, match=message):
        grammar_run.run(0)
