# Written in notebooks/3_3_feed_forward.ipynb; edit it there.
"""The position-wise feed-forward network (§3.3)."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["FeedForward"]


class FeedForward(nn.Module):
    """FFN(x) = max(0, x W_1 + b_1) W_2 + b_2, the same at every position (§3.3, Eq. 2).

    d_model: width D of input and output. d_ff: width of the hidden layer. dropout:
    probability of dropping a hidden unit's value, after the activation; the paper has
    none there, so it is 0 by default. activation: what stands in the place of
    max(0, ·), applied element by element.
    """

    def __init__(
        self,
        d_model: int,
        d_ff: int,
        dropout: float = 0.0,
        activation: Callable[[Tensor], Tensor] = F.relu,
    ) -> None:
        super().__init__()
        self.w_1 = nn.Linear(d_model, d_ff)
        self.w_2 = nn.Linear(d_ff, d_model)
        self.activation = activation
        self.dropout = dropout
        for linear in (self.w_1, self.w_2):
            nn.init.xavier_uniform_(linear.weight)
            nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, D), any number of leading dimensions. Returns (…, D)."""
        hidden = self.activation(self.w_1(x))  # (…, d_ff)
        return self.w_2(F.dropout(hidden, self.dropout, self.training))  # (…, D)
