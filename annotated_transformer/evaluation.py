# Written in notebooks/6_1_machine_translation.ipynb; edit it there.
"""BLEU, with the signature that says which BLEU (§6.1)."""

from collections.abc import Sequence
from typing import NamedTuple

from sacrebleu.metrics import BLEU

__all__ = ["Score", "bleu"]


class Score(NamedTuple):
    """A corpus-level score and the sacreBLEU signature that makes it comparable."""

    value: float  # BLEU points, 0 to 100
    signature: str


def bleu(translations: Sequence[str], references: Sequence[str]) -> Score:
    """sacreBLEU of translations against one reference each, both as plain text.

    Raises ValueError where their numbers differ or there are none.
    """
    if len(translations) != len(references) or not references:
        raise ValueError(
            f"{len(translations)} translations for {len(references)} references"
        )
    metric = BLEU()
    score = metric.corpus_score(list(translations), [list(references)]).score
    return Score(score, str(metric.get_signature()))
