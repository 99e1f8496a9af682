# Written in notebooks/4_why_self_attention.ipynb; edit it there.
"""Self-attention that looks no further than its neighbourhood (§4)."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import SelfAttention, fused_attention

__all__ = ["neighbourhood_mask", "RestrictedAttention", "restrict_self_attention"]


def neighbourhood_mask(
    length: int, r: int, device: torch.device | str | None = None
) -> Tensor:
    """Let each position attend to the r positions around it, itself in the middle (§4).

    length: number of positions n. r: odd. Returns (1, 1, n, n) bool, True = may attend.
    Raises ValueError where r is even or below 1.
    """
    reach = _reach(r)
    position = torch.arange(length, device=device)
    return ((position[:, None] - position).abs() <= reach)[None, None]  # (1, 1, n, n)


def _reach(r: int) -> int:
    """The positions of a neighbourhood on either side of its middle."""
    if r < 1 or r % 2 == 0:
        raise ValueError(f"r is {r}: it must be odd and positive, to have a middle")
    return r // 2


def _windows(x: Tensor, left: int, right: int, width: int, step: int) -> Tensor:
    """(…, S, d) → (…, blocks, width, d): windows of a sequence widened by zeros."""
    return F.pad(x, (0, 0, left, right)).unfold(-2, width, step).transpose(-2, -1)


def _mask_windows(
    mask: Tensor, left: int, right: int, width: int, step: int, rows: int
) -> Tensor:
    """The mask of each block, within reach: (…, T or 1, S) → (…, blocks, step, width).

    rows: queries that are added to fill the last block.
    """
    place = torch.arange(width, device=mask.device)  # in a window
    after = place - place[:step, None]  # (step, width): a query's first key is 0
    near = (after >= 0) & (after <= width - step)
    if mask.size(-2) == 1:  # the same for all queries
        cut = F.pad(mask, (left, right)).unfold(-1, width, step)
        return cut.transpose(-3, -2) & near  # (…, blocks, 1, width) and (step, width)
    cut = F.pad(mask, (left, right, 0, rows)).unfold(-1, width, step)
    cut = cut.unflatten(-3, (-1, step))  # (…, blocks, step, blocks, width)
    return cut.diagonal(dim1=-4, dim2=-2).movedim(-1, -3) & near


@dataclass(frozen=True)
class RestrictedAttention:
    """Eq. 1 over the r positions around each query, for self-attention (§4).

    Called as `scaled_dot_product_attention`, and equal to it with
    `neighbourhood_mask(n, r)`; but work and memory grow with n · r, not with
    n², unless a mask is given that has a row for each query.
    Raises ValueError for settings that make no sense.
    """

    r: int  # positions in a neighbourhood, odd: the query's own is the middle
    block: int | None = None  # queries in a block; None: r // 2, and at least 16
    attention: Callable[..., Tensor] = fused_attention  # of each block

    def __post_init__(self) -> None:
        _reach(self.r)
        if self.block is not None and self.block < 1:
            raise ValueError(f"block is {self.block}: it must be 1 or more, or None")

    def block_size(self, length: int) -> int:
        """The queries of one block, where there are so many in all."""
        return min(self.block or max(16, self.r // 2), length)

    def n_scores(self, length: int) -> int:
        """Scores that are computed for so many positions: by blocks, or all of them."""
        size = self.block_size(length)
        by_blocks = math.ceil(length / size) * size * (size + self.r - 1)
        return min(by_blocks, length**2)

    def __call__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        mask: Tensor | None = None,
        dropout: float = 0.0,
    ) -> Tensor:
        """query: (…, T, d_k), key: (…, S, d_k), value: (…, S, d_v).

        T is S, or 1: the last position, the others from a cache. mask: bool, broadcast
        to (…, T, S), True = may attend. Returns (…, T, d_v); a query that may attend to
        nothing gets zeros. Raises ValueError for another T, and TypeError for a mask
        that is not bool.
        """
        t, s, reach = query.size(-2), key.size(-2), self.r // 2
        if t not in (1, s):
            raise ValueError(f"{t} queries, {s} keys: must be as many, or one query")
        if mask is not None and mask.dtype != torch.bool:
            raise TypeError(f"mask is {mask.dtype}: it must be bool, True = may attend")
        if self.n_scores(s) == s * s:  # to cut would save nothing
            near = neighbourhood_mask(s, self.r, query.device)[0, 0, -t:]  # (T, S)
            mask = near if mask is None else near & mask
            return self.attention(query, key, value, mask, dropout)
        size = self.block_size(t)
        rows = -t % size  # to fill the last block
        cut = reach - (s - t), reach + rows, size + 2 * reach, size
        queries = F.pad(query, (0, 0, 0, rows)).unflatten(-2, (-1, size))
        keys, values = _windows(key, *cut), _windows(value, *cut)
        every = torch.ones(1, s, dtype=torch.bool, device=query.device)
        mask = every if mask is None else every & mask  # (…, T or 1, S)
        allowed = _mask_windows(mask, *cut, rows)  # (…, blocks, size, width)
        found = self.attention(queries, keys, values, allowed, dropout)
        return found.flatten(-3, -2)[..., :t, :]  # (…, T, d_v)


def restrict_self_attention(model: nn.Module, r: int) -> None:
    """Let every self-attention of a model look at r positions only (§4).

    Parameters stay as they are; attention over the source is left whole. Such a model
    trains and translates greedily; beam search is refused by `RestrictedAttention`.
    """
    for module in model.modules():
        if isinstance(module, SelfAttention):
            module.attention = RestrictedAttention(r)
