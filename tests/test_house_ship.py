"""The folder of a model that ships: half as large, with a card, never overwritten."""

import json

import pytest
import ship
import torch

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.checkpoints import Progress, write_checkpoint
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.training import TrainingConfig, run_settings
from annotated_transformer.translator import average_weights

LINES = ["A dog runs.", "Ein Hund rennt.", "Two men talk.", "Zwei Männer reden."]
RECORD = {
    "command": "annotated-transformer train --corpus farm",
    "source": "en",
    "target": "de",
    "pairs": 12345,
    "parameters": 6789,
    "device": "a small machine",
    "seconds": 120.0,
    "date": "2026-01-02",
    "training": {"seed": 7, "epochs": 5},
    "versions": {"torch": "2.5.0"},
    "commit": "0123456789ab",
    "scoring": "python benchmarks/translation.py runs/farm",
    "curve": [{}, {}, {}],
    "best_average": 1,
    "scores": [
        {
            "averaged": averaged,
            "beam": 4,
            "corpus": "farm",
            "split": "test",
            "bleu": 12.3 * averaged,
            "margin": 1.5,
            "chrf": 45.6,
            "tokenized_bleu": 12.4,
            "signatures": {"bleu": "nrefs:1|…"},
        }
        for averaged in (1, 2)
    ],
}
SAID = ["--data", "Farm, CC BY", "--limits", "farms"]


@pytest.fixture
def run(tmp_path):
    tokenizer = Tokenizer.train(LINES, 290)
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(290, 16, 1, 2, d_ff=32, max_length=100))
    Translator(model, tokenizer).save_pretrained(tmp_path / "run")
    record = RECORD | {"config": model.config.to_dict()}
    (tmp_path / "record.json").write_text(json.dumps(record))
    (tmp_path / "lines.en").write_text("\n".join(LINES * 5) + "\n", "utf-8")
    return tmp_path / "run"


def given(run, name):
    return [str(run), name, str(run.parent / "record.json"), *SAID]


def test_a_folder_that_ships(run, tmp_path, capsys):
    check = ["--check", str(tmp_path / "lines.en"), "--to", str(tmp_path / "models")]
    assert ship.main([*given(run, "farm-en-de"), *check]) == 0
    folder = tmp_path / "models" / "farm-en-de"
    there = sorted(path.name for path in folder.iterdir())
    files = ["config.json", "model.safetensors", "record.json", "tokenizer.model"]
    assert there == ["README.md", *files]
    weights = [path / "model.safetensors" for path in (run, folder)]
    sizes = [path.stat().st_size for path in weights]
    assert sizes[1] < 0.6 * sizes[0]
    before, after = (Translator.from_pretrained(path).model for path in (run, folder))
    for name, value in after.state_dict().items():
        assert torch.equal(value, before.state_dict()[name].half().float())
    card = (folder / "README.md").read_text("utf-8")
    for word in (
        "farm-en-de",
        "en → de",
        "Farm, CC BY",
        "| farm test | 4 | 12.30 ± 1.50 | 45.60 | 12.40 |",
        "nrefs:1|…",
        "0123456789ab",
        "12,345; 3 epochs, then ended, of 5",
        "best epoch",
        "farms",
    ):
        assert word in card
    assert "24.60" not in card
    for word in ("6,789", "| 7 |", "a small machine", "2 minutes", "torch 2.5.0"):
        assert word in card
    assert json.loads((folder / "record.json").read_text())["target"] == "de"
    out = capsys.readouterr().out
    assert " MB\n" in out and "of the lines translate as before" in out


def test_the_mean_that_is_best_ships(run, tmp_path):
    """Of as many last checkpoints as the record says."""
    tokenizer = Translator.from_pretrained(run).tokenizer
    (run / "checkpoints").mkdir()
    states = []
    for step in (1, 2, 3):
        torch.manual_seed(step)
        model = Transformer(TransformerConfig(290, 16, 1, 2, d_ff=32, max_length=100))
        states.append(model.state_dict())
        tensors = {f"model.{name}": value for name, value in states[-1].items()}
        settings = run_settings(model.config, TrainingConfig())
        path = run / f"checkpoints/step-{step:08d}.safetensors"
        write_checkpoint(path, tensors, Progress(step=step), settings)
    tokenizer.save(run / "checkpoints/tokenizer.model")
    record = json.loads((tmp_path / "record.json").read_text()) | {"best_average": 2}
    (tmp_path / "record.json").write_text(json.dumps(record))
    to = ["--to", str(tmp_path / "models")]
    assert ship.main([*given(run, "mean"), *to]) == 0
    mean = average_weights(states[1:])
    shipped = Translator.from_pretrained(tmp_path / "models/mean").model.state_dict()
    assert all(torch.equal(shipped[name], mean[name].half().float()) for name in mean)
    card = (tmp_path / "models/mean/README.md").read_text("utf-8")
    assert "mean of the last 2 checkpoints" in card and "24.60 ± 1.50" in card


def test_nothing_is_overwritten_and_nothing_too_large_ships(
    run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "models" / "there").mkdir(parents=True)
    to = ["--to", str(tmp_path / "models")]
    assert ship.main([*given(run, "there"), *to]) == 1
    assert not list((tmp_path / "models" / "there").iterdir())
    monkeypatch.setattr(ship, "LARGEST", 1000)
    assert ship.main([*given(run, "large"), *to]) == 1
    assert "above 0 MB" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["there"]
