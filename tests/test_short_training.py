"""The comparisons of short trainings: what their scripts share, count and score."""

import sys
from itertools import islice
from pathlib import Path

import pytest
import torch
from torch import nn

from annotated_transformer.attention import SelfAttention
from annotated_transformer.baselines import MODELS
from annotated_transformer.grammar import alignment, generate
from annotated_transformer.restricted_attention import RestrictedAttention
from annotated_transformer.schedule import learning_rate

ROOT = Path(__file__).resolve().parent.parent
SIZES = {"vocab_size": 400, "max_tokens": 120, "warmup": 4, "steps": 3}
NAMES = "short_training", "table2_small", "restricted", "alignments"


@pytest.fixture(scope="module")
def scripts():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield {name: __import__(name) for name in NAMES}
    sys.path.remove(str(ROOT / "benchmarks"))
    for name in NAMES:
        sys.modules.pop(name)


@pytest.fixture
def data(scripts, monkeypatch):
    """Two hundred sentences of the grammar in the place of a corpus."""
    short = scripts["short_training"]
    triples = list(islice(generate(200, 0), 200))
    ends = {"train": (0, 140), "val": (140, 160), "test": (160, 200)}

    def load_pairs(folder, source, target, split):
        part = triples[slice(*ends[split])]
        return [t.english.text for t in part], [t.german.text for t in part]

    monkeypatch.setattr(short, "corpus_folder", lambda name: name)
    monkeypatch.setattr(short, "load_pairs", load_pairs)
    return short.Data("embedded", SIZES)


def weights_after(scripts, data, seed, steps=3):
    model = scripts["table2_small"].make("transformer", SIZES["vocab_size"], 0)
    for _ in scripts["short_training"].training(model, data, SIZES, 1.0, seed, steps):
        pass
    return model.embedding.weight.detach()


def test_a_training_is_decided_by_its_seed(scripts, data):
    once, again, other = (weights_after(scripts, data, seed) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)


def test_a_seed_has_its_own_order_of_batches(scripts, data, monkeypatch):
    first, short = [], scripts["short_training"]

    def update(objective, adam, batches, tokens, rate, bfloat16):
        (_, batch), *_ = batches
        first.append(batch.src.tolist())

    monkeypatch.setattr(short, "update", update)
    model = scripts["table2_small"].make("transformer", SIZES["vocab_size"], 0)
    for seed in (1, 1, 2):
        list(short.training(model, data, SIZES, 1.0, seed, 1))
    assert first[0] == first[1] != first[2]


def test_the_rate_of_eq_3_is_multiplied(scripts, data, monkeypatch):
    rates, short = [], scripts["short_training"]

    def update(objective, adam, batches, tokens, rate, bfloat16):
        rates.append(rate)

    monkeypatch.setattr(short, "update", update)
    model = scripts["table2_small"].make("convs2s", SIZES["vocab_size"], 0)
    steps = [step for step, _ in short.training(model, data, SIZES, 0.5, 0, 6)]
    width = model.config.d_model
    assert steps == [1, 2, 3, 4, 5, 6]
    assert rates == [0.5 * learning_rate(step, width, 4) for step in steps]


def test_scores_are_of_all_lines_and_of_groups_by_length(scripts, data, monkeypatch):
    short = scripts["short_training"]
    sources, references = data.test
    long = {source for source in sources if len(source.split()) > 8}

    class Half:
        """Right where a source has up to eight words, and nowhere else."""

        def __init__(self, model, tokenizer):
            pass

        def translate(self, lines, **search):
            assert search == {"beam_size": 3}
            pairs = zip(lines, references, strict=True)
            return ["x" if line in long else right for line, right in pairs]

    monkeypatch.setattr(short, "Translator", Half)
    found = short.score(None, data, beam_size=3)
    groups = found["by_length"]
    assert sum(group["lines"] for group in groups.values()) == len(sources)
    assert groups["1-8"] == {"lines": len(sources) - len(long), "bleu": 100.0}
    assert all(group["bleu"] < 1 for name, group in groups.items() if name != "1-8")
    assert 0 < found["bleu"] < 100


@pytest.mark.parametrize("kind", ["recurrent", "transformer"])
def test_operations_of_a_step_are_six_a_weight_and_token(scripts, kind):
    """A product with a matrix: two a weight forwards, four backwards."""
    model = scripts["table2_small"].make(kind, 4000, 0)
    src, tgt = torch.full((2, 4, 9), 5)
    batch = type("Batch", (), {"src": src, "tgt": tgt, "labels": tgt})
    matrices = sum(p.numel() for p in model.parameters() if p.ndim > 1)
    expected = 6 * 36 * matrices  # the vocabulary's once, as the pre-softmax product
    counted = scripts["table2_small"].operations(model, batch)
    assert counted == pytest.approx(expected, rel=0.06)  # attention; first layers


@pytest.mark.parametrize("r", [3, None])
def test_the_models_compared_are_restricted_from_the_first_step(
    scripts, data, monkeypatch, r
):
    module, seen = scripts["restricted"], []

    def training(model, *_):
        places = [m for m in model.modules() if isinstance(m, SelfAttention)]
        seen.append({place.attention for place in places})
        return iter(())

    monkeypatch.setattr(module, "training", training)
    monkeypatch.setattr(module, "score", lambda *_, **search: search)
    result = module.run(data, SIZES, r, 0, 1)
    assert result["beam_size"] == 1 and result["validation_loss"] > 0
    restricted = {RestrictedAttention(3)}
    assert (seen == [restricted]) == (r == 3)


def test_alignments_are_of_the_test_split(scripts, data):
    triples = scripts["alignments"].test_triples(data, 5)
    assert len(triples) == 5
    held_out = set(zip(*data.test, strict=True))
    assert {(t.english.text, t.german.text) for t in triples} <= held_out


def test_the_sentence_that_is_shown_crosses_itself_most(scripts):
    crossings = scripts["alignments"].crossings
    for triple in islice(generate(100, 3), 100):
        links = alignment(triple.english, triple.german)
        lengths = [len(s.tokens) for s in (triple.english, triple.german)]
        crossed = 0
        for i, (a, b) in enumerate(links):
            crossed += sum(a < c and b > d or a > c and b < d for c, d in links[:i])
        short = min(lengths) >= 8 and max(lengths) <= 11
        assert crossings(triple) == (crossed if short else -1)


def test_where_a_recurrent_model_looks_is_told_by_words(scripts, data):
    torch.manual_seed(0)
    recurrent = MODELS["recurrent-attention"]
    model = recurrent(recurrent.config_type.tiny(SIZES["vocab_size"])).eval()
    for _, p in model.named_parameters():
        nn.init.normal_(p, std=0.3)
    triple = next(generate(1, 5))
    translator = scripts["short_training"].Translator(model, data.tokenizer)
    shown = scripts["alignments"].shown(translator, triple)
    weights = torch.tensor(shown["weights"])
    assert weights.shape == (len(shown["german"]) + 1, len(shown["english"]) + 1)
    assert torch.allclose(weights.sum(1), torch.ones(len(weights)), atol=0.02)
    assert weights.std() > 0.01
