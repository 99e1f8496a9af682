"""The paper's runs as configurations, and each of them tried for a few steps."""

import io
import json
import random
import shlex
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from annotated_transformer import cli
from annotated_transformer.batching import TokenBatches
from annotated_transformer.checkpoints import checkpoints
from annotated_transformer.training import steps_from

ROOT = Path(__file__).resolve().parent.parent
RECIPES = {"paper-base": (100_000, 5, 512, 0.1), "paper-big": (300_000, 20, 1024, 0.3)}


def parse(*more):
    command = "train --corpus wmt14 --source en --target de --out new --config"
    return cli.build_parser().parse_args([*command.split(), *more])


@pytest.mark.parametrize("name", RECIPES)
def test_the_numbers_are_the_papers(name):
    model, training = cli.settings(parse(name))
    steps, averaged, width, dropout = RECIPES[name]
    assert (model.vocab_size, model.d_model, model.dropout) == (37_000, width, dropout)
    assert (training.max_steps, training.epochs) == (steps, None)
    assert (training.max_tokens, training.accumulation) == (25_000, 1)
    assert (training.warmup, training.smoothing) == (4000, 0.1)
    assert (training.adam_betas, training.adam_eps) == ((0.9, 0.98), 1e-9)
    assert (training.checkpoint_minutes, training.keep) == (10.0, averaged)
    scored = cli.as_in_the_paper(parse(name, "--out", "a run"), training.keep)
    assert f"average 'a run' --last {averaged} --out 'a run-mean' && " in scored
    assert "--corpus wmt14 --split test" in scored
    assert scored.endswith("--beam 4 --alpha 0.6")


def test_the_batches_of_a_step_share_its_tokens(monkeypatch):
    _, training = cli.settings(parse("paper-base", "--accumulation", "5"))
    assert (training.max_tokens, training.accumulation) == (5000, 5)
    _, training = cli.settings(parse("paper-base", "--max-tokens", "4000"))
    assert (training.max_tokens, training.accumulation) == (4000, 1)
    monkeypatch.setattr(cli, "processes", lambda: (0, 8))
    _, training = cli.settings(parse("paper-big"))
    assert (training.max_tokens, training.accumulation) == (3125, 8)


class Lengths:
    """Pairs of which nothing but the lengths is known."""

    def __init__(self, lengths):
        self.lengths = lengths

    def __len__(self):
        return len(self.lengths)


@pytest.mark.parametrize("accumulation", [1, 5])
def test_a_step_is_25_000_tokens_of_either_side(accumulation, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from gpu import lengths_like_wmt14

    given = "--accumulation", str(accumulation)
    _, training = cli.settings(parse("paper-base", *given))
    pairs = Lengths(lengths_like_wmt14(50_000, seed=0))
    batches = TokenBatches(pairs, training.max_tokens, 0, 1, 2)
    tokens = []
    for _, _, groups in islice(steps_from(1, batches, training), 30):
        padded = [len(group) * batches.lengths[group].max(0) for group in groups]
        assert (np.sum(padded, axis=0) <= 25_000).all()
        tokens.append(sum(batches.lengths[group].sum(0) for group in groups))
    mean = np.mean(tokens, axis=0)
    assert ((21_000 < mean) & (mean < 25_000)).all(), mean


def write_text(folder, n=250):
    """Pairs as long as those of WMT14, of words that come nowhere else."""
    draw = random.Random(0)
    for split, size in {"train": n, "val": 3, "test": 3}.items():
        for language in ("en", "de"):
            lines = [" ".join(words(draw)) + "\n" for _ in range(size)]
            (folder / f"{split}.{language}").write_text("".join(lines))
    return folder


def words(draw):
    """About twenty words of seven syllables: text for 37,000 pieces."""
    for _ in range(max(1, round(draw.lognormvariate(3.0, 0.5)))):
        pairs = (draw.choice("bdfgklmnprstvz") + draw.choice("aeiou") for _ in range(7))
        yield "".join(pairs)


@pytest.mark.slow
@pytest.mark.parametrize("name", RECIPES)
def test_a_dry_run(name, tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("ANNOTATED_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    small = "--d-model 16 --n-layers 1 --n-heads 2 --d-ff 32"
    few = "--max-steps 3 --accumulation 5 --checkpoint-every 1 --device cpu"
    where = ["--corpus", write_text(tmp_path), "--out", tmp_path / "run"]
    command = ["train", "--source", "en", "--target", "de", "--config", name]
    command = [*command, *where, *small.split(), *few.split()]
    assert cli.main([str(argument) for argument in command]) == 0
    said = capfd.readouterr().err
    assert "37000 pieces" in said and "3 steps" in said
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    training = record["training"]
    assert (training["max_tokens"], training["accumulation"]) == (5000, 5)
    assert (training["warmup"], training["keep"]) == (4000, RECIPES[name][1])
    steps = [int(path.stem.partition("-")[2]) for path in checkpoints(tmp_path / "run")]
    assert steps == [0, 1, 2, 3]
    (scored,) = [line for line in said.splitlines() if "scored as in" in line]
    scored = scored.partition(": ")[2].replace(f"--last {training['keep']}", "--last 3")
    for each in scored.split(" && "):
        monkeypatch.setattr(sys, "stdin", io.StringIO())
        _, *arguments = shlex.split(each)
        on_cpu = ["--device", "cpu"] * (arguments[0] != "average")  # computes nothing
        assert cli.main([*arguments, *on_cpu]) == 0
    assert "BLEU" in capfd.readouterr().out
    mean = load_file(tmp_path / "run-mean" / "model.safetensors")
    several = [load_file(path) for path in checkpoints(tmp_path / "run")[1:]]
    key = "encoder.layers.0.feed_forward.w_1.weight"
    expected = sum(each[f"model.{key}"] for each in several) / 3
    assert np.allclose(mean[key], expected, atol=1e-6)
