"""The race of benchmarks/decoding_speed.py, run on a handful of sentences."""

import json
import sys
from pathlib import Path

import pytest
import torch

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.corpora import DATA_VARIABLE
from annotated_transformer.evaluation import bleu
from annotated_transformer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
LINES = ["A dog runs.", "Two men talk.", "A boy eats an apple.", "It is cold."]
SIZE = {"d_model": 16, "n_layers": 1, "d_ff": 32, "n_heads": 2}


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import decoding_speed

    yield decoding_speed
    sys.path.remove(str(ROOT / "benchmarks"))
    sys.modules.pop("decoding_speed")


@pytest.fixture(scope="module")
def translator():
    torch.manual_seed(0)
    config = TransformerConfig(290, **SIZE, max_length=100)
    return Translator(Transformer(config), Tokenizer.train(LINES, 290))


@pytest.fixture
def record(benchmark, translator, tmp_path, monkeypatch):
    """What a race of this package in two kinds of numbers writes."""
    corpus = tmp_path / "multi30k"
    corpus.mkdir()
    for split in ("train", benchmark.SPLIT):
        for language in ("en", "de"):
            (corpus / f"{split}.{language}").write_text("\n".join(LINES) + "\n")
    translator.save_pretrained(tmp_path / "model")
    path = tmp_path / "race.json"
    small = {"SIZE": SIZE, "VOCAB_SIZE": 290, "BATCHES": (1, 3)}
    for name, value in small.items():
        monkeypatch.setattr(benchmark, name, value)
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    command = ["decoding_speed.py", "--model", str(tmp_path / "model")]
    command += ["--sentences", "3", "--rounds", "2", "--threads", "1"]
    command += ["--systems", "here, float32", "here, int8", "--record", str(path)]
    monkeypatch.setattr(sys, "argv", command)
    benchmark.main()
    return json.loads(path.read_text())


def test_a_race_is_recorded(benchmark, translator, record):
    exact, coarse = record["rows"]
    assert (exact["system"], coarse["system"]) == ("here, float32", "here, int8")
    outputs = {
        beam: translator.translate(LINES[:3], beam_size=beam, alpha=0.0)
        for beam in (1, 4)
    }
    for row in record["rows"]:
        assert row["first"] > 0 < row["warm"]
        for job in benchmark.JOBS:
            found = row[job]
            assert found["workers"] == 1 and found["batch"] in (1, 3)
            assert len(found["seconds"]) == 2 and found["rate"] > 0
            # the sources of "fixed" have 15 tokens, and nothing ends before one more
            assert found["tokens"] == 3 * benchmark.LENGTH or job.startswith("real")
    for beam, texts in outputs.items():
        assert exact[f"fixed {beam}"]["same"] == exact[f"real {beam}"]["same"] == 3
        expected = round(bleu(texts, LINES[:3]).value, 2)
        assert exact[f"real {beam}"]["bleu"] == expected
    assert record["threads"] == 1 and record["sentences"] == 3
    assert record["command"] == "python benchmarks/decoding_speed.py"


def test_outputs_do_not_depend_on_how_a_pass_is_shared(benchmark, translator, tmp_path):
    translator.save_pretrained(tmp_path)
    system = benchmark.Here(tmp_path, "float32")
    ids = [translator.tokenizer.encode(line) for line in LINES]
    one_by_one = system.translate(ids, 4, 20, workers=1, batch=1)
    assert len({tuple(output) for output in one_by_one}) > 1
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        shared = system.translate(ids, 4, 20, workers=2, batch=2)
    finally:
        torch.set_num_threads(threads)
    assert shared == one_by_one
