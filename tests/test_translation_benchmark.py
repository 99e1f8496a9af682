"""The record that benchmarks/translation.py writes of a run, on a small corpus."""

import json
import sys
from pathlib import Path

import pytest
import torch

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.checkpoints import Progress, write_checkpoint
from annotated_transformer.corpora import DATA_VARIABLE
from annotated_transformer.evaluation import bleu
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.training import TrainingConfig, run_settings
from annotated_transformer.translator import average_pretrained, last_checkpoints

ROOT = Path(__file__).resolve().parent.parent
TRAIN = ["A dog runs.", "Two men talk.", "A boy eats an apple.", "It is cold."]
TEST = ["A dog talks.", "Two zebras run.", "A man eats.", "It is a dog."]
SPLITS = {"train": TRAIN, "val": TEST[:3], "test_2016_flickr": TEST}
SPLITS["test_2017_flickr"] = TEST[1:]


@pytest.fixture(scope="module")
def benchmark():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import translation

    yield translation
    sys.path.remove(str(ROOT / "benchmarks"))
    sys.modules.pop("translation")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A folder as `train` leaves it, with five checkpoints that differ."""
    corpus = tmp_path / "multi30k"
    corpus.mkdir()
    for split, lines in SPLITS.items():
        for language in ("en", "de"):
            (corpus / f"{split}.{language}").write_text(
                "\n".join(lines) + "\n", "utf-8"
            )
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    folder, tokenizer = tmp_path / "run", Tokenizer.train(TRAIN, 290)
    config = TransformerConfig(290, 16, 1, 2, d_ff=32, max_length=100)
    (folder / "checkpoints").mkdir(parents=True)
    for step in range(1, 6):
        torch.manual_seed(step)
        model = Transformer(config)
        tensors = {f"model.{n}": value for n, value in model.state_dict().items()}
        path = folder / f"checkpoints/step-{step:08d}.safetensors"
        settings = run_settings(config, TrainingConfig())
        write_checkpoint(path, tensors, Progress(step=step), settings)
    Translator(model, tokenizer).save_pretrained(folder)
    tokenizer.save(folder / "checkpoints/tokenizer.model")
    (folder / "record.json").write_text(
        json.dumps({"corpus": "multi30k", "source": "en", "target": "de", "seed": 3})
    )
    epoch = {"epoch": 1, "step": 5, "train_loss": 1.23456, "validation_loss": 2.0}
    epoch |= {"bleu": 0.123, "seconds": 9.87, "perplexity": 7.4}
    (folder / "training.jsonl").write_text(json.dumps(epoch) + "\n")
    return folder


class Repeats:
    """A translator that says the source; greedily without the last words of some."""

    def __init__(self, shortened):
        self.shortened = shortened

    def translate(self, lines, beam_size=1, alpha=0.6):
        cut = self.shortened if beam_size == 1 else 0
        lines = list(lines)
        return [line.rsplit(" ", 2)[0] for line in lines[:cut]] + lines[cut:]


def test_every_score_of_every_set(benchmark, run, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "models", lambda _: {1: Repeats(3), 5: Repeats(1)})
    path = tmp_path / "record.json"
    options = ["--samples", "3", "--trained-at", "0123456789ab"]
    benchmark.main([str(run), "--record", str(path), *options])
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["commit"], record["seed"]) == ("0123456789ab", 3)
    rows = {(r["averaged"], r["beam"], r["split"]): r for r in record["scores"]}
    splits = list(SPLITS)[1:]
    assert set(rows) == {(n, b, s) for n in (1, 5) for b in (1, 4) for s in splits}
    for (n, beam, split), row in rows.items():
        said = Repeats({1: 3, 5: 1}[n]).translate(SPLITS[split], beam)
        expected = bleu(said, SPLITS[split])
        assert row["bleu"] == round(expected.value, 2)
        assert row["sentences"] == len(SPLITS[split])
        assert "tok:13a" in row["signatures"]["bleu"]
    assert rows[1, 1, "val"]["bleu"] < rows[5, 1, "val"]["bleu"] < 100
    assert rows[1, 4, "val"]["bleu"] == pytest.approx(100)
    assert record["best_average"] == 5
    (epoch,) = record["curve"]
    assert epoch["train_loss"] == 1.2346 and "perplexity" not in epoch


def test_as_many_checkpoints_are_averaged_as_there_are(benchmark, run, capsys):
    found = benchmark.models(run)
    assert list(found) == [1, 5]
    assert "has 5 checkpoints, and 8 are asked for" in capsys.readouterr().err
    mean = average_pretrained(last_checkpoints(run, 5)).model.state_dict()
    for name, value in found[5].model.state_dict().items():
        assert torch.equal(value, mean[name])
    weight = found[1].model.embedding.weight
    assert not torch.equal(weight, mean["embedding.weight"])


def test_samples_are_those_of_the_seed(benchmark, run, tmp_path):
    path = tmp_path / "record.json"
    benchmark.main([str(run), "--record", str(path), "--samples", "4"])
    samples = json.loads(path.read_text(encoding="utf-8"))["samples"]
    assert [one["line"] for one in samples] == [1, 2, 3, 4]
    unseen = {one["source"]: one["unseen"] for one in samples}
    assert unseen["Two zebras run."] == ["zebras", "run"]
    assert unseen["It is a dog."] == []
