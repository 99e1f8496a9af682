"""The folder of a model that ships: half as large, with a card, never overwritten."""

import json

import pytest
import ship
import torch

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.tokenizer import Tokenizer

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
    "training": {"seed": 7},
    "versions": {"torch": "2.5.0"},
}
SAID = ["--data", "Farm, CC BY", "--scores", "test: BLEU 12.3", "--limits", "farms"]


@pytest.fixture
def run(tmp_path):
    tokenizer = Tokenizer.train(LINES, 290)
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(290, 16, 1, 2, d_ff=32, max_length=100))
    Translator(model, tokenizer).save_pretrained(tmp_path / "run")
    record = RECORD | {"config": model.config.to_dict()}
    (tmp_path / "run/record.json").write_text(json.dumps(record))
    (tmp_path / "lines.en").write_text("\n".join(LINES * 5) + "\n", "utf-8")
    return tmp_path / "run"


def test_a_folder_that_ships(run, tmp_path, capsys):
    check = ["--check", str(tmp_path / "lines.en"), "--to", str(tmp_path / "models")]
    assert ship.main([str(run), "farm-en-de", *SAID, *check]) == 0
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
        "12,345",
        "Farm, CC BY",
        "BLEU 12.3",
        "farms",
    ):
        assert word in card
    for word in ("6,789", "| 7 |", "a small machine", "2 minutes", "torch 2.5.0"):
        assert word in card
    assert json.loads((folder / "record.json").read_text())["target"] == "de"
    out = capsys.readouterr().out
    assert " MB\n" in out and "of the lines translate as before" in out


def test_nothing_is_overwritten_and_nothing_too_large_ships(
    run, tmp_path, monkeypatch, capsys
):
    (tmp_path / "models" / "there").mkdir(parents=True)
    to = ["--to", str(tmp_path / "models")]
    assert ship.main([str(run), "there", *SAID, *to]) == 1
    assert not list((tmp_path / "models" / "there").iterdir())
    monkeypatch.setattr(ship, "LARGEST", 1000)
    assert ship.main([str(run), "large", *SAID, *to]) == 1
    assert "above 0 MB" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["there"]
