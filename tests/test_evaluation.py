"""BLEU and chrF: sacreBLEU's, on plain text, with their signatures."""

import math
import random
from collections import Counter

import pytest
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

from annotated_transformer.evaluation import (
    bleu,
    bleu_interval,
    chrf,
    compare_bleu,
    tokenized_bleu,
)

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


# What sacrebleu 2.6.0 prints with -m chrf for the same two files
GOLDEN_CHRF = 77.601503


def test_chrf_golden_value_and_signature():
    score = chrf(TRANSLATIONS, REFERENCES)
    assert score.value == pytest.approx(GOLDEN_CHRF, abs=1e-6)
    assert score.signature.startswith("nrefs:1|case:mixed|eff:yes|nc:6|nw:0|space:no|")
    assert chrf(REFERENCES, REFERENCES).value == pytest.approx(100)


def split_by_hand(text):
    words = []
    for word in Tokenizer13a()(text).split():
        while (at := word.find("-", 1)) > 0 and at + 1 < len(word):
            words += [word[:at], "##AT##-##AT##"]
            word = word[at + 1 :]
        words.append(word)
    return words


def test_tokenized_bleu_splits_compounds():
    """The count by hand, on words that are split by hand."""
    sides = [
        [" ".join(split_by_hand(t)) for t in s] for s in (TRANSLATIONS, REFERENCES)
    ]
    assert "ein rot ##AT##-##AT## weißes Haus" == " ".join(
        split_by_hand("ein rot-weißes Haus")
    )
    score = tokenized_bleu(TRANSLATIONS, REFERENCES)
    found, total, c, r = Counter(), Counter(), 0, 0
    for translation, reference in zip(*sides, strict=True):
        t, w = translation.split(), reference.split()
        c, r = c + len(t), r + len(w)
        for n in range(1, 5):
            ours = Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1))
            theirs = Counter(tuple(w[i : i + n]) for i in range(len(w) - n + 1))
            found[n] += (ours & theirs).total()
            total[n] += ours.total()
    precision = math.prod(found[n] / total[n] for n in range(1, 5)) ** 0.25
    expected = 100 * min(1, math.exp(1 - r / c)) * precision
    assert score.value == pytest.approx(expected, abs=1e-9)
    assert score.value > bleu(TRANSLATIONS, REFERENCES).value


def test_tokenized_bleu_is_signed_as_what_it_is():
    signature = tokenized_bleu(TRANSLATIONS, REFERENCES).signature
    assert "tok:13a+##AT##-##AT##|smooth:none" in signature
    assert signature != bleu(TRANSLATIONS, REFERENCES).signature


def test_tokenized_bleu_says_nothing_on_standard_error(caplog, capfd):
    tokenized_bleu(REFERENCES * 50, REFERENCES * 50)
    assert not caplog.records and not capfd.readouterr().err


def worse(lines, share, seed=0):
    """The lines with a share of their words replaced."""
    rng = random.Random(seed)
    return [
        " ".join("falsch" if rng.random() < share else w for w in line.split())
        for line in lines
    ]


def test_the_interval_is_around_the_score_and_shrinks_with_the_test_set():
    few, many = REFERENCES * 5, REFERENCES * 80
    intervals = [bleu_interval(worse(r, 0.2), r, 200) for r in (few, many)]
    assert intervals[0].margin > 2 * intervals[1].margin > 0
    assert abs(intervals[1].mean - bleu(worse(many, 0.2), many).value) < 1
    assert "|bs:200|seed:12345|" in intervals[0].signature
    assert bleu_interval(worse(few, 0.2), few, 200) == intervals[0]


def test_a_comparison_tells_better_from_equal():
    references = REFERENCES * 40
    base, better = worse(references, 0.3), worse(references, 0.1)
    other = worse(references, 0.3, seed=1)  # as bad, in other places
    gain = compare_bleu(base, better, references, 200)
    expected = bleu(better, references).value - bleu(base, references).value
    assert gain.difference == pytest.approx(expected) and gain.p_value < 0.01
    assert compare_bleu(better, base, references, 200).difference == -gain.difference
    same = compare_bleu(base, other, references, 200)
    assert same.p_value > 0.05 and "seed:12345" in same.signature


def test_the_same_translations_are_no_different():
    references = REFERENCES * 40
    same = worse(references, 0.3)
    found = compare_bleu(same, list(same), references, 50)
    assert (found.difference, found.p_value) == (0.0, 1.0)


@pytest.mark.parametrize("n", [1, 0, -5])
def test_one_resample_is_no_interval(n):
    for resample in (
        lambda: bleu_interval(REFERENCES, REFERENCES, n),
        lambda: compare_bleu(REFERENCES, REFERENCES, REFERENCES, n),
    ):
        with pytest.raises(ValueError, match=f"n_resamples is {n}"):
            resample()


@pytest.mark.parametrize(
    ("translations", "references"), [(["a"], ["a", "b"]), (["a"], []), ([], [])]
)
@pytest.mark.parametrize("score", [bleu, chrf, tokenized_bleu, bleu_interval])
def test_refuses_unequal_and_none(translations, references, score):
    numbers = f"{len(translations)} translations for {len(references)} references"
    with pytest.raises(ValueError, match=numbers):
        score(translations, references)


def test_a_comparison_refuses_unequal():
    with pytest.raises(ValueError, match="1 translations for 2 references"):
        compare_bleu(["a", "b"], ["a"], ["a", "b"])
