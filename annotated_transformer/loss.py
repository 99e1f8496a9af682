"""Cross-entropy with label smoothing (§5.4)."""

import torch.nn.functional as F
from torch import Tensor


def label_smoothed_cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float, pad_id: int
) -> Tensor:
    """Cross-entropy against (1 - ε) on the right token and ε spread over the vocabulary (§5.4).

    logits: (B, T, V), target: (B, T) int64, smoothing: the paper's ε_ls.
    Returns the sum over all tokens that are not padding, in nats: () float32. Divide by the
    number of tokens to get the mean: a sum is what adds up over batches of unequal size.

    The mass ε is spread evenly over all V tokens, the right one included (Szegedy et al.
    2016). Differs from the original code, which spreads it over the V - 1 others.
    """
    return F.cross_entropy(
        logits.flatten(0, -2).float(),  # (B · T, V)
        target.flatten(),  # (B · T,)
        ignore_index=pad_id,
        label_smoothing=smoothing,
        reduction="sum",
    )
