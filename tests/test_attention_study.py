"""The study of the grammar's heads asks about the words it says it asks about."""

import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.decoding import AttentionMaps
from annotated_transformer.grammar import alignment, generate
from annotated_transformer.interpretation import (
    alignment_error_rate,
    all_heads,
    without_heads,
)
from annotated_transformer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def study():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import attention_study

    yield attention_study
    sys.path.remove(str(ROOT / "benchmarks"))
    sys.modules.pop("attention_study")


@pytest.fixture(scope="module")
def riddles(study):
    return study.distinct(12, 1003, ["pronoun"], study.is_new)


@pytest.fixture(scope="module")
def plain(study):
    return study.distinct(8, 5)


@pytest.fixture(scope="module")
def translator(riddles, plain):
    triples = [*generate(600, 0, ["pronoun"]), *riddles, *plain]
    lines = [text for t in triples for text in (t.english.text, t.german.text)]
    tokenizer = Tokenizer.train(lines, 700)
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32}
    model = Transformer(TransformerConfig(tokenizer.vocab_size, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return Translator(model, tokenizer)


def test_second_nouns_are_held_out(study, riddles):
    for triple in riddles:
        first, second = study.nouns_of(triple)
        words = triple.english.tokens
        assert words[second].lower() in study.HELD_OUT and first < second
    kinds = {study.NOUN[name].kind for name in study.HELD_OUT}
    assert kinds == study.SECOND == {"way", "food", "container"}
    old = study.distinct(20, 1003, ["pronoun"], lambda t: not study.is_new(t))
    seconds = {t.english.tokens[study.nouns_of(t)[-1]].lower() for t in old}
    assert not seconds & study.HELD_OUT


def spelt(pieces, mask):
    chosen = [piece for piece, one in zip(pieces, mask, strict=False) if one]
    return "".join(chosen).replace("▁", "")


def test_rows_and_columns_are_the_words_they_stand_for(study, translator, riddles):
    found = study.Riddles(translator, study.Group(translator, riddles))
    for b, triple in enumerate(riddles):
        source = [*translator.tokenizer.pieces(triple.english.text), "</s>"]
        target = [*translator.tokenizer.pieces(triple.german.text), "</s>"]
        ((_, meant),) = triple.english.antecedents()
        (other,) = set(study.nouns_of(triple)) - {meant}
        words, german = triple.english.tokens, triple.german.tokens
        ((pronoun, noun),) = triple.german.antecedents()
        for kind, place in found.places.items():
            keys = source if kind != "decoder" else ["<s>", *target[:-1]]
            queries = source if kind == "encoder" else target
            looking = "it" if kind == "encoder" else german[pronoun]
            assert spelt(queries, place.rows[b]) == looking
            if kind == "decoder":
                assert spelt(keys, place.meant[b]) == german[noun]
                links = alignment(triple.english, triple.german)
                assert spelt(keys, place.other[b]) in [
                    german[j] for i, j in links if i == other
                ]
            else:
                assert spelt(keys, place.meant[b]) == words[meant]
                assert spelt(keys, place.other[b]) == words[other]
        answers = [study.ANSWERS[i] for i in (found.right[b], found.wrong[b])]
        assert answers[0] == german[pronoun] != answers[1]
        assert found.batch.labels[b, found.due[b]] == found.answers[found.right[b]]


def test_an_intervention_that_does_nothing_flips_nothing(study, translator, riddles):
    some = [study.Riddles(translator, study.Group(translator, riddles))]
    table = study.flips(translator, some)
    with without_heads(translator.model, all_heads(translator.model)):
        again = study.flips(translator, some)
    for kind in study.KINDS:
        assert len(table[kind]["head"]) == len(table[kind]["moved"]) == 4
        for changed, others, _ in table[kind]["moved"]:
            assert 0 <= others <= changed <= 1
        assert all(row[:2] == [0, 0] for row in again[kind]["head"])
    assert any(row[0] for kind in study.KINDS for row in table[kind]["head"])


def test_pronouns_are_counted(study, translator, riddles, monkeypatch):
    """With a model that is made to prefer pronouns, as good as a die of three sides."""
    some = study.Riddles(translator, study.Group(translator, riddles))
    model = translator.model
    _, is_pronoun = some.answer(nullcontext())
    assert not is_pronoun.all()
    plain, raised = model.logits, torch.zeros(model.config.vocab_size)
    raised[some.answers] = 1000.0
    monkeypatch.setattr(model, "logits", lambda hidden: plain(hidden) + raised)
    answer, is_pronoun = some.answer(nullcontext())
    assert is_pronoun.all()
    right = sum(map(int, answer == torch.tensor(some.right)))
    assert 0 < right < 12
    assert study.pronouns([some, some]) == pytest.approx(right / 12, abs=1e-4)


def test_alignments_have_a_floor(study, translator, plain):
    rates = study.alignments(translator, plain)
    assert len(rates["heads"]) == 2 and len(rates["layers"]) == 2
    assert 0.2 < rates["diagonal"] < min(min(layer) for layer in rates["heads"]) < 1


def test_a_head_that_follows_gold_is_scored_so(study, translator, plain, monkeypatch):
    """Weights made from gold: the words' own rows and columns, without the end."""
    group = study.Group(translator, plain)
    maps, expected, gold = [], [], []
    for triple, source, target in zip(plain, group.source, group.target, strict=True):
        links = alignment(triple.english, triple.german)
        first = {german: english for english, german in reversed(links)}
        of_row = [first.get(word) for word in target]
        weights = torch.tensor(
            [[float(word == one) for word in source] for one in of_row]
        )
        cross = weights.expand(2, 2, *weights.shape)
        maps.append(AttentionMaps(None, None, cross))
        words = range(len(triple.german.tokens))
        expected.append([(first.get(word, 0), word) for word in words])
        gold.append(links)
    monkeypatch.setattr(study, "attention_maps", lambda *_: maps)
    rates = study.alignments(translator, plain)
    rate = round(alignment_error_rate(expected, gold), 4)
    assert rates["heads"] == [[rate] * 2] * 2 and rates["layers"] == [rate] * 2
    assert rates["mean"] == rate < 0.2
