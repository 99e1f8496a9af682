"""BLEU: sacreBLEU's, on plain text, with its signature."""

import math
from collections import Counter

import pytest
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from annotated_transformer.evaluation import bleu

REFERENCES = [
    'Ein Mann fährt mit dem Fahrrad, und ein Hund läuft "hinterher".',
    "Zwei Kinder spielen auf einer grünen Wiese.",
    "Eine Frau in einem rot-weißen Kleid liest ein Buch.",
    "Der 12-jährige Junge springt ins Wasser (es ist kalt).",
]
TRANSLATIONS = [
    "Ein Mann fährt auf dem Fahrrad, und ein Hund läuft hinterher.",
    "Zwei Kinder spielen auf einer Wiese.",
    "Eine Frau in einem rot-weißen Kleid liest.",
    "der 12-jährige Junge springt ins kalte Wasser.",
]
# What sacrebleu 2.6.0 prints for the two files:
#     sacrebleu references.txt -i translations.txt -m bleu -w 6
GOLDEN = 52.441522
SIGNATURE = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"


def test_golden_value_and_signature():
    score = bleu(TRANSLATIONS, REFERENCES)
    assert score.value == pytest.approx(GOLDEN, abs=1e-6)
    assert score.signature.startswith(SIGNATURE)


def by_hand(translations, references):
    """The formula, on words split as signed."""
    found, total, c, r = Counter(), Counter(), 0, 0
    for translation, reference in zip(translations, references, strict=True):
        t, w = (Tokenizer13a()(text).split() for text in (translation, reference))
        c, r = c + len(t), r + len(w)
        for n in range(1, 5):
            ours = Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1))
            theirs = Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1))
            found[n] += (ours & theirs).total()
            total[n] += ours.total()
    precision = math.prod(found[n] / total[n] for n in range(1, 5)) ** 0.25
    return 100 * min(1, math.exp(1 - r / c)) * precision


def test_equals_the_formula():
    expected = by_hand(TRANSLATIONS, REFERENCES)
    assert bleu(TRANSLATIONS, REFERENCES).value == pytest.approx(expected, abs=1e-9)


def test_the_counts_are_summed_over_the_corpus():
    pairs = list(zip(TRANSLATIONS, REFERENCES, strict=True))
    mean = sum(bleu([t], [r]).value for t, r in pairs) / len(pairs)
    assert abs(bleu(TRANSLATIONS, REFERENCES).value - mean) > 1


def test_perfect_empty_and_shifted():
    assert bleu(REFERENCES, REFERENCES).value == pytest.approx(100)
    assert bleu([""] * 4, REFERENCES).value == 0
    assert bleu(REFERENCES[1:] + REFERENCES[:1], REFERENCES).value < 10


def test_case_counts_and_text_is_not_split_twice():
    lower = [text.lower() for text in REFERENCES]
    assert bleu(lower, REFERENCES).value < 70
    # An apostrophe stays within its word when text is split once, as 13a does it.
    assert bleu(["don't do it now"], ["don 't do it now"]).value < 70


@pytest.mark.parametrize(
    ("translations", "references"), [(["a"], ["a", "b"]), (["a"], []), ([], [])]
)
def test_refuses_unequal_and_none(translations, references):
    numbers = f"{len(translations)} translations for {len(references)} references"
    with pytest.raises(ValueError, match=numbers):
        bleu(translations, references)
