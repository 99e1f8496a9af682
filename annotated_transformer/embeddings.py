# Written in notebooks/3_4_embeddings_and_softmax.ipynb; edit it there.
"""One matrix: source embedding, target embedding, pre-softmax projection (§3.4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["SharedEmbedding"]


class SharedEmbedding(nn.Module):
    """Token embedding times √d_model, and the way back by the same matrix (§3.4).

    vocab_size: V, number of tokens. d_model: D, width of a row. pad_id: the row that
    stands for padding; it starts at zero, and no look-up sends it a gradient. The other
    rows start from N(0, 1/d_model): then scaled embeddings have unit variance, and so
    have the logits of a hidden state of unit variance.
    Raises ValueError where pad_id is not a row.
    """

    def __init__(self, vocab_size: int, d_model: int, pad_id: int) -> None:
        super().__init__()
        if not 0 <= pad_id < vocab_size:
            raise ValueError(f"pad_id is {pad_id}: it must be in [0, {vocab_size})")
        self.pad_id = pad_id
        self.scale = math.sqrt(d_model)
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))  # (V, D)
        nn.init.normal_(self.weight, std=d_model**-0.5)
        with torch.no_grad():
            self.weight[pad_id].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (…) int64 in [0, V). Returns (…, D), multiplied by √d_model."""
        return F.embedding(tokens, self.weight, padding_idx=self.pad_id) * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (…, D). Returns (…, V), not scaled."""
        return F.linear(hidden, self.weight)
