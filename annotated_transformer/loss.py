# Written in notebooks/5_4_regularization.ipynb; edit it there.
"""Cross-entropy with label smoothing (§5.4)."""

import torch.nn.functional as F
from torch import Tensor

__all__ = ["label_smoothed_cross_entropy"]


def label_smoothed_cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float, pad_id: int
) -> Tensor:
    """Cross-entropy against 1 - ε on the right token and ε over the vocabulary (§5.4).

    logits: (…, V), any float type; the sum is taken in float32. target: (…) int64.
    smoothing: the paper's ε_ls. pad_id: positions with this target count for nothing.
    Returns the sum over all other positions, in nats, () float32. Divide it by their
    number to get a mean: a sum is what adds up over batches of unequal size. Raises
    ValueError where smoothing is outside [0, 1].

    The mass ε is spread evenly over all V tokens, the right one included, as Szegedy
    et al. (2016) define it. Differs from the original code, which spreads it over the
    V - 1 others.
    """
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing!r}: it must be in [0, 1]")
    return F.cross_entropy(
        logits.flatten(0, -2).float(),  # (positions, V)
        target.flatten(),  # (positions,)
        ignore_index=pad_id,
        label_smoothing=smoothing,
        reduction="sum",
    )
