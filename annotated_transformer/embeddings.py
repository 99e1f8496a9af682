"""One matrix for the source embedding, the target embedding and the pre-softmax projection (§3.4)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedEmbedding(nn.Module):
    """Token embedding, scaled by √d_model, and the projection back to the vocabulary, with the same matrix (§3.4).

    vocab_size: V, d_model: D. pad_id: the row that stands for padding; it starts at zero and no look-up changes it.
    The other rows start from N(0, 1/d_model), so that scaled embeddings and logits both have unit variance.
    """

    def __init__(self, vocab_size: int, d_model: int, pad_id: int) -> None:
        super().__init__()
        self.pad_id = pad_id
        self.scale = math.sqrt(d_model)
        self.weight = nn.Parameter(torch.empty(vocab_size, d_model))  # (V, D)
        nn.init.normal_(self.weight, std=d_model**-0.5)
        with torch.no_grad():
            self.weight[pad_id].zero_()

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens: (…) int64. Returns (…, D), multiplied by √d_model."""
        return F.embedding(tokens, self.weight, padding_idx=self.pad_id) * self.scale

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (…, D). Returns (…, V), not scaled."""
        return F.linear(hidden, self.weight)
