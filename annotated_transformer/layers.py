# Written in notebooks/3_1_encoder_and_decoder_stacks.ipynb; edit it there.
"""Residual connections, encoder and decoder layers, and the two stacks (§3.1)."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .attention import CrossAttention, KeyValueCache, SelfAttention
from .feed_forward import FeedForward

__all__ = [
    "LAYER_NORM_EPS",
    "Dropout",
    "PostNorm",
    "PreNorm",
    "EncoderLayer",
    "LayerCache",
    "DecoderLayer",
    "Encoder",
    "DecoderCache",
    "Decoder",
]


class Dropout(nn.Dropout):
    """`nn.Dropout` that on a CPU draws its random numbers four at a time (§5.4).

    p: the probability that a value is set to zero; there rounded to a multiple of
    2⁻¹⁶. The others are divided by 1 - p, as rounded: the mean stays. Elsewhere, and
    compiled, it is torch's own.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: any shape and float type. Returns the same."""
        below = round(self.p * 2**16)  # of 2¹⁶ numbers, so many drop a value
        plain = x.device.type != "cpu" or torch.compiler.is_compiling()
        if plain or not self.training or not 0 < below < 2**16:
            return super().forward(x)
        draws = torch.empty(x.numel() // 4 + 1, dtype=torch.int64)
        draws.random_(-(2**63), None)  # all 64 bits
        numbers = draws.view(torch.int16)[: x.numel()].view(x.shape)  # from -2¹⁵ on
        keep = (numbers >= below - 2**15).to(x.dtype)
        return x * keep.mul_(2**16 / (2**16 - below))


# Inside the root, as in the original code; torch's default is 1e-5.
LAYER_NORM_EPS = 1e-6


class PostNorm(nn.Module):
    """LayerNorm(x + Dropout(Sublayer(x))), the paper's connection (§3.1, §5.4).

    d_model: width D. dropout: P_drop, on the sub-layer's output.
    """

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """x: (B, T, D). Returns (B, T, D)."""
        return self.norm(x + self.dropout(sublayer(x)))

    @staticmethod
    def final_norm(d_model: int) -> nn.Module:
        """What ends a stack: nothing, the last sum is normalised already."""
        return nn.Identity()


class PreNorm(nn.Module):
    """x + Dropout(Sublayer(LayerNorm(x))).

    Differs from the paper: the norm is inside the branch. d_model: width D.
    dropout: P_drop, on the sub-layer's output.
    """

    def __init__(self, d_model: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)
        self.dropout = Dropout(dropout)

    def forward(self, x: Tensor, sublayer: Callable[[Tensor], Tensor]) -> Tensor:
        """x: (B, T, D). Returns (B, T, D)."""
        return x + self.dropout(sublayer(self.norm(x)))

    @staticmethod
    def final_norm(d_model: int) -> nn.Module:
        """What ends a stack: one norm, nothing has normalised the sum so far."""
        return nn.LayerNorm(d_model, eps=LAYER_NORM_EPS)


class EncoderLayer(nn.Module):
    """Self-attention and the feed-forward network, each in a connection (§3.1).

    residual: makes the connection around one sub-layer, for example
    `lambda: PostNorm(512, 0.1)`; called once for each.
    """

    def __init__(
        self,
        self_attention: SelfAttention,
        feed_forward: FeedForward,
        residual: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.feed_forward = feed_forward
        self.residuals = nn.ModuleList(residual() for _ in range(2))

    def forward(self, x: Tensor, src_mask: Tensor | None = None) -> Tensor:
        """x: (B, S, D), src_mask: (B, 1, 1, S) bool. Returns (B, S, D)."""
        x = self.residuals[0](x, lambda x: self.self_attention(x, src_mask))
        return self.residuals[1](x, self.feed_forward)


class LayerCache(NamedTuple):
    """The keys and values of one decoder layer's two attentions."""

    self_attention: KeyValueCache
    cross_attention: KeyValueCache


class DecoderLayer(nn.Module):
    """Causal self-attention, attention over the memory, feed-forward network (§3.1).

    residual: makes the connection around one sub-layer, for example
    `lambda: PostNorm(512, 0.1)`; called once for each.
    """

    def __init__(
        self,
        self_attention: SelfAttention,
        cross_attention: CrossAttention,
        feed_forward: FeedForward,
        residual: Callable[[], nn.Module],
    ) -> None:
        super().__init__()
        self.self_attention = self_attention
        self.cross_attention = cross_attention
        self.feed_forward = feed_forward
        self.residuals = nn.ModuleList(residual() for _ in range(3))

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """x: (B, T, D), memory: (B, S, D). Returns (B, T, D).

        src_mask: (B, 1, 1, S) bool, which of the memory's positions exist.
        tgt_mask: (B, 1, T, T) bool, which of x's positions each may attend to.
        cache: x then holds the new positions only, and sees the old ones in the cache.
        """
        own, cross = cache or (None, None)
        x = self.residuals[0](x, lambda x: self.self_attention(x, tgt_mask, own))
        x = self.residuals[1](
            x, lambda x: self.cross_attention(x, memory, src_mask, cross)
        )
        return self.residuals[2](x, self.feed_forward)


class Encoder(nn.Module):
    """N encoder layers (§3.1).

    final_norm: what `PostNorm.final_norm(D)` or `PreNorm.final_norm(D)` returns.
    """

    def __init__(self, layers: Iterable[EncoderLayer], final_norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm

    def forward(self, x: Tensor, src_mask: Tensor | None = None) -> Tensor:
        """x: (B, S, D), src_mask: (B, 1, 1, S) bool. Returns the memory, (B, S, D)."""
        for layer in self.layers:
            x = layer(x, src_mask)
        return self.final_norm(x)


class DecoderCache:
    """The keys and values of every layer of a decoder.

    n_layers: N, the number of layers of the decoder.
    """

    def __init__(self, n_layers: int) -> None:
        self.layers = [
            LayerCache(KeyValueCache(), KeyValueCache()) for _ in range(n_layers)
        ]

    @property
    def length(self) -> int:
        """Number of target positions held."""
        return self.layers[0].self_attention.length

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order.

        rows: (B',) int64. Rows may be dropped or repeated.
        """
        for layer in self.layers:
            for cache in layer:
                cache.select(rows)


class Decoder(nn.Module):
    """N decoder layers (§3.1), all of which attend to the same memory.

    final_norm: what `PostNorm.final_norm(D)` or `PreNorm.final_norm(D)` returns.
    """

    def __init__(self, layers: Iterable[DecoderLayer], final_norm: nn.Module) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self.final_norm = final_norm

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        src_mask: Tensor | None = None,
        tgt_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """x: (B, T, D), memory: (B, S, D). Returns (B, T, D).

        src_mask: (B, 1, 1, S) bool, tgt_mask: (B, 1, T, T) bool, as `DecoderLayer`.
        cache: x then holds the new positions only. Raises ValueError where the cache
        was made for another number of layers.
        """
        n_layers = len(self.layers)
        caches = [None] * n_layers if cache is None else cache.layers
        if len(caches) != n_layers:
            raise ValueError(f"a cache of {len(caches)} layers for {n_layers} layers")
        for layer, layer_cache in zip(self.layers, caches, strict=True):
            x = layer(x, memory, src_mask, tgt_mask, layer_cache)
        return self.final_norm(x)
