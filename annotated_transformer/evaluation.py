# Written in notebooks/6_1_machine_translation.ipynb; edit it there.
"""BLEU and chrF, with signatures and with what chance may do to them (§6.1)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU, CHRF
from sacrebleu.metrics.base import Metric
from sacrebleu.significance import PairedTest
from sacrebleu.tokenizers.tokenizer_13a import Tokenizer13a

__all__ = [
    "Score",
    "bleu",
    "tokenized_bleu",
    "chrf",
    "Interval",
    "bleu_interval",
    "Comparison",
    "compare_bleu",
]


class Score(NamedTuple):
    """A corpus-level score and the sacreBLEU signature that makes it comparable."""

    value: float  # 0 to 100
    signature: str


def bleu(translations: Sequence[str], references: Sequence[str]) -> Score:
    """sacreBLEU of translations against one reference each, both as plain text.

    Raises ValueError where their numbers differ or there are none.
    """
    return _score(BLEU(), translations, references)


def _score(
    metric: Metric, translations: Sequence[str], references: Sequence[str]
) -> Score:
    if len(translations) != len(references) or not references:
        raise ValueError(
            f"{len(translations)} translations for {len(references)} references"
        )
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Score(score, str(metric.get_signature()))


def tokenized_bleu(translations: Sequence[str], references: Sequence[str]) -> Score:
    """BLEU of the kind that the paper's figures are: hyphens split, not sacreBLEU.

    Report it beside `bleu`, never alone. Arguments as `bleu`. Differs from the script
    released with the paper's code: words are split by the rules of mteval 13a.
    """
    metric = BLEU(tokenize="none", smooth_method="none", force=True)
    sides = translations, references
    split = [[_split_hyphens(line) for line in side] for side in sides]
    value, signature = _score(metric, *split)
    return Score(value, signature.replace("tok:none", "tok:13a+##AT##-##AT##"))


_split_words = Tokenizer13a()


def _split_hyphens(text: str) -> str:
    """Words apart, and compounds too: rot-weiß → rot ##AT##-##AT## weiß."""
    return re.sub(r"(\S)-(\S)", r"\1 ##AT##-##AT## \2", _split_words(text))


def chrf(translations: Sequence[str], references: Sequence[str]) -> Score:
    """chrF2 of translations, by sacreBLEU; arguments as `bleu`."""
    return _score(CHRF(), translations, references)


def _check_resamples(n: int) -> None:
    if n < 2:
        raise ValueError(f"n_resamples is {n}: it must be at least 2")


class Interval(NamedTuple):
    """What scores of resampled test sets look like."""

    mean: float  # of the scores, 0 to 100
    margin: float  # 95 % of them lie within mean ± margin
    signature: str


def bleu_interval(
    translations: Sequence[str], references: Sequence[str], n_resamples: int = 1000
) -> Interval:
    """How far BLEU might be off by the choice of the test set; arguments as `bleu`.

    Raises ValueError also where n_resamples is below 2.
    """
    _check_resamples(n_resamples)
    _score(metric := BLEU(), translations, references)  # refuses what has no score
    score = metric.corpus_score(
        list(translations), [list(references)], n_bootstrap=n_resamples
    )
    return Interval(score._mean, score._ci, str(metric.get_signature()))


class Comparison(NamedTuple):
    """Two systems on one test set."""

    difference: float  # BLEU of the second minus that of the first
    p_value: float  # of resampled differences, the share as far from their mean
    signature: str


def compare_bleu(
    first: Sequence[str],
    second: Sequence[str],
    references: Sequence[str],
    n_resamples: int = 1000,
) -> Comparison:
    """Paired bootstrap of two systems' translations; arguments as `bleu_interval`."""
    _check_resamples(n_resamples)
    before, after = (bleu(one, references).value for one in (first, second))
    systems = [("first", list(first)), ("second", list(second))]
    test = PairedTest(
        systems, {"BLEU": BLEU()}, [list(references)], "bs", n_samples=n_resamples
    )
    signatures, results = test()
    p_value = results["BLEU"][1].p_value
    if after == before:  # sacreBLEU counts what is farther than nothing
        p_value = 1.0
    return Comparison(after - before, p_value, str(signatures["BLEU"]))
