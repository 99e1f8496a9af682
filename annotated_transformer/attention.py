# Written in notebooks/3_2_attention.ipynb; edit it there.
"""Masks, scaled dot-product attention, heads and the key/value cache (§3.2)."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = [
    "PLAIN_KEYS",
    "PLAIN_SCORES",
    "padding_mask",
    "causal_mask",
    "target_mask",
    "attention_weights",
    "scaled_dot_product_attention",
    "fused_attention",
    "KeyValueCache",
    "MultiHeadAttention",
    "SelfAttention",
    "CrossAttention",
]


def padding_mask(tokens: Tensor, pad_id: int) -> Tensor:
    """Let every query attend to every token that is not padding (§3.2.3).

    The mask of the encoder's attention and of the encoder-decoder attention.
    tokens: (B, S) int64. Returns (B, 1, 1, S) bool, True = may attend, to be broadcast
    over heads and queries.
    """
    return (tokens != pad_id)[:, None, None, :]  # (B, 1, 1, S)


def causal_mask(length: int, device: torch.device | str | None = None) -> Tensor:
    """Let position t attend to positions 0 … t and to nothing after (§3.2.3).

    length: number of positions T. Returns (1, 1, T, T) bool, True = may attend.
    """
    everything = torch.ones(1, 1, length, length, dtype=torch.bool, device=device)
    return everything.tril()  # (1, 1, T, T)


def target_mask(tokens: Tensor, pad_id: int) -> Tensor:
    """Causal mask and padding mask of the decoder's input together (§3.2.3).

    tokens: (B, T) int64. Returns (B, 1, T, T) bool, True = may attend.
    """
    causal = causal_mask(tokens.size(1), tokens.device)  # (1, 1, T, T)
    return padding_mask(tokens, pad_id) & causal  # (B, 1, T, T)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor | None = None) -> Tensor:
    """softmax(Q Kᵀ / √d_k), the weights of Eq. 1 (§3.2.1).

    query: (…, T, d_k), key: (…, S, d_k), mask: bool, broadcast to (…, T, S),
    True = may attend. Returns (…, T, S). A row sums to 1 over the keys; a row whose
    every key is masked is all zeros.
    """
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.size(-1))  # (…, T, S)
    if mask is None:
        return scores.softmax(dim=-1)
    # The lowest finite number, not -inf: a row without any key would become NaN.
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1).masked_fill(~mask, 0.0)


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """Attention(Q, K, V) = softmax(Q Kᵀ / √d_k) V (Eq. 1), written to be read.

    query: (…, T, d_k), key: (…, S, d_k), value: (…, S, d_v), mask: bool, broadcast to
    (…, T, S), True = may attend. dropout: probability of dropping a weight; the paper
    does not mention it, so it is 0 by default. Returns (…, T, d_v); a query that may
    attend to nothing gets zeros.
    """
    weights = attention_weights(query, key, mask)  # (…, T, S)
    return F.dropout(weights, dropout) @ value  # (…, T, d_v)


# On a CPU two plain products are faster: with a gradient in bfloat16, up to this many
# keys; without one, from so many scores to so many. Measured on two cores.
PLAIN_KEYS = 256
PLAIN_SCORES = 2**11, 2**20


def fused_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """The same as `scaled_dot_product_attention`, computed by torch's fused kernels.

    Where such a kernel exists, the T × S weights of a head are never stored. Where it
    is slower than two plain products, these are taken: on a CPU, to train in bfloat16
    on short sequences, and to translate.
    Raises TypeError for a mask that is not bool: torch would add it to the scores.
    """
    if mask is not None and mask.dtype != torch.bool:
        raise TypeError(f"mask is {mask.dtype}: it must be bool, True = may attend")
    if query.device.type == "cpu" and _plain_is_faster(query, key):
        return _two_products(query, key, value, mask, dropout)
    return F.scaled_dot_product_attention(
        query, key, value, attn_mask=mask, dropout_p=dropout
    )


def _plain_is_faster(query: Tensor, key: Tensor) -> bool:
    if query.requires_grad:
        return query.dtype == torch.bfloat16 and key.size(-2) <= PLAIN_KEYS
    fewest, most = PLAIN_SCORES
    return fewest <= query[..., 0].numel() * key.size(-2) <= most


def _two_products(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout: float
) -> Tensor:
    """The definition, with its softmax in float32."""
    scores = query @ key.transpose(-2, -1)  # (…, T, S)
    lowest = torch.finfo(torch.float32).min
    if mask is None:
        mask = scores.new_ones(1, dtype=torch.bool)
    bias = torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)
    # Float32 for the bias, so float32 for the sum: scores / √d_k where it is 0.
    weights = torch.add(bias, scores, alpha=query.size(-1) ** -0.5).softmax(dim=-1)
    weights = weights * mask.any(dim=-1, keepdim=True)  # rows without a key: zeros
    return F.dropout(weights.to(value.dtype), dropout) @ value  # (…, T, d_v)


class KeyValueCache:
    """The keys and values that one attention has computed so far.

    With it, a decoding step computes only its own. key: (B, H, S, d_k) and
    value: (B, H, S, d_v), or None before the first step.
    """

    def __init__(self) -> None:
        self.key: Tensor | None = None
        self.value: Tensor | None = None

    @property
    def length(self) -> int:
        """Number of positions held."""
        return 0 if self.key is None else self.key.size(2)

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add the keys and values of new positions, (B, H, new, d); return all."""
        if self.key is not None:
            key = torch.cat([self.key, key], dim=2)  # (B, H, S + new, d_k)
            value = torch.cat([self.value, value], dim=2)  # (B, H, S + new, d_v)
        # In one block each: the next steps read them often, as matrices.
        self.key, self.value = key.contiguous(), value.contiguous()
        return self.key, self.value

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order; drop or repeat the others.

        rows: (B',) int64. A search that keeps several hypotheses needs it.
        """
        if self.key is not None:
            self.key, self.value = self.key[rows], self.value[rows]


class MultiHeadAttention(nn.Module):
    """What both kinds of multi-head attention share (§3.2.2).

    MultiHead(Q, K, V) = Concat(head_1, …, head_h) W^O,
    head_i = Attention(Q W_i^Q, K W_i^K, V W_i^V). The heads are computed side by side.

    d_model: width D of the inputs and the output. n_heads: the paper's h. d_k, d_v:
    width of a head's keys and values, d_model / n_heads where not given. dropout: on
    the attention weights (not in the paper: 0). bias: whether the projections have one
    (the paper's equations have none). attention: the function of Eq. 1, called as
    attention(query, key, value, mask, dropout).
    Raises ValueError where d_k or d_v is not given and d_model is not divisible by
    n_heads, or where there is no head.
    """

    def __init__(
        self,
        d_model: int,
        n_heads: int,
        d_k: int | None = None,
        d_v: int | None = None,
        dropout: float = 0.0,
        bias: bool = False,
        attention: Callable[..., Tensor] = fused_attention,
    ) -> None:
        super().__init__()
        if n_heads < 1:
            raise ValueError(f"n_heads is {n_heads}: it must be a positive integer")
        if (d_k is None or d_v is None) and d_model % n_heads:
            raise ValueError(
                f"d_model is {d_model}: it must be divisible by n_heads ({n_heads}), "
                "unless d_k and d_v are given"
            )
        self.n_heads = n_heads
        self.d_k = d_model // n_heads if d_k is None else d_k
        self.d_v = d_model // n_heads if d_v is None else d_v
        self.dropout = dropout
        self.bias = bias
        self.attention = attention
        self.add_input_projections(d_model)
        self.w_o = self.projection(n_heads * self.d_v, [d_model])  # W^O

    def add_input_projections(self, d_model: int) -> None:
        """Make W^Q, W^K and W^V, packed as far as they share an input."""
        raise NotImplementedError

    def projection(self, d_in: int, widths: list[int]) -> nn.Linear:
        """Several projections of one input as one; each Glorot-initialised alone."""
        linear = nn.Linear(d_in, sum(widths), bias=self.bias)
        for block in linear.weight.split(widths):
            nn.init.xavier_uniform_(block)
        if self.bias:
            nn.init.zeros_(linear.bias)
        return linear

    def split_heads(self, x: Tensor) -> Tensor:
        """(B, T, H · d) → (B, H, T, d)."""
        return x.unflatten(-1, (self.n_heads, -1)).transpose(1, 2)

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None
    ) -> Tensor:
        """Eq. 1 in every head at once, then Concat and W^O.

        query: (B, H, T, d_k), key: (B, H, S, d_k), value: (B, H, S, d_v), mask: bool,
        broadcast to (B, H, T, S), True = may attend. Returns (B, T, D).
        """
        dropout = self.dropout if self.training else 0.0
        heads = self.attention(query, key, value, mask, dropout)  # (B, H, T, d_v)
        return self.w_o(heads.transpose(1, 2).flatten(2))  # (B, T, H · d_v) → (B, T, D)


class SelfAttention(MultiHeadAttention):
    """Queries, keys and values come from one sequence (§3.2.3).

    Used in the encoder, and with a causal mask in the decoder. Arguments as
    `MultiHeadAttention`.
    """

    def add_input_projections(self, d_model: int) -> None:
        """One product for W^Q, W^K and W^V of all heads."""
        d_k, d_v = self.n_heads * self.d_k, self.n_heads * self.d_v
        self.widths = [d_k, d_k, d_v]
        self.w_qkv = self.projection(d_model, self.widths)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, cache: KeyValueCache | None = None
    ) -> Tensor:
        """x: (B, T, D), mask: bool, broadcast to (B, H, T, S), True = may attend.

        Returns (B, T, D). With a cache, x holds the new positions only and S counts
        the old ones too.
        """
        parts = self.w_qkv(x).split(self.widths, dim=-1)  # each (B, T, H · d)
        query, key, value = map(self.split_heads, parts)  # each (B, H, T, d)
        if cache is not None:
            key, value = cache.append(key, value)  # (B, H, S, d)
        return self.attend(query, key, value, mask)


class CrossAttention(MultiHeadAttention):
    """Queries from the decoder, keys and values from the encoder's output (§3.2.3).

    Arguments as `MultiHeadAttention`.
    """

    def add_input_projections(self, d_model: int) -> None:
        """One product for W^Q of all heads, one for W^K and W^V."""
        d_k, d_v = self.n_heads * self.d_k, self.n_heads * self.d_v
        self.widths = [d_k, d_v]
        self.w_q = self.projection(d_model, [d_k])
        self.w_kv = self.projection(d_model, self.widths)

    def forward(
        self,
        x: Tensor,
        memory: Tensor,
        mask: Tensor | None = None,
        cache: KeyValueCache | None = None,
    ) -> Tensor:
        """x: (B, T, D), memory: (B, S, D), mask: bool, broadcast to (B, H, T, S).

        Returns (B, T, D). The memory stays the same from one decoding step to the next:
        with a cache, its keys and values are computed once and read afterwards.
        """
        query = self.split_heads(self.w_q(x))  # (B, H, T, d_k)
        if cache is not None and cache.length:
            return self.attend(query, cache.key, cache.value, mask)
        parts = self.w_kv(memory).split(self.widths, dim=-1)  # each (B, S, H · d)
        key, value = map(self.split_heads, parts)  # each (B, H, S, d)
        if cache is not None:
            cache.append(key, value)
        return self.attend(query, key, value, mask)
