# Written in notebooks/3_1_encoder_and_decoder_stacks.ipynb; edit it there.
"""The whole model (§3, Figure 1) and its configuration."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

from torch import Tensor, nn

from .attention import (
    CrossAttention,
    SelfAttention,
    fused_attention,
    padding_mask,
    target_mask,
)
from .embeddings import SharedEmbedding
from .feed_forward import FeedForward
from .layers import (
    Decoder,
    DecoderCache,
    DecoderLayer,
    Dropout,
    Encoder,
    EncoderLayer,
    PostNorm,
    PreNorm,
)
from .positional_encoding import (
    LearnedPositionalEncoding,
    SinusoidalPositionalEncoding,
)

__all__ = [
    "NORMS",
    "POSITIONS",
    "TransformerConfig",
    "encoder_stack",
    "decoder_stack",
    "EncoderDecoder",
    "Transformer",
]


NORMS = {"post": PostNorm, "pre": PreNorm}
POSITIONS = {
    "sinusoidal": SinusoidalPositionalEncoding,
    "learned": LearnedPositionalEncoding,
}


def _rules(c: "TransformerConfig") -> Iterator[tuple[str, bool, str]]:
    """The rules: (field, whether it holds, what would be right)."""
    for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_ff", "max_length"):
        yield name, _is_count(getattr(c, name), 1), "a positive integer"
    for name in ("d_k", "d_v"):
        value = getattr(c, name)
        yield name, value is None or _is_count(value, 1), "a positive integer or None"
    if c.d_k is None or c.d_v is None:
        expected = f"divisible by n_heads ({c.n_heads}) where d_k or d_v is None"
        yield "d_model", c.d_model % c.n_heads == 0, expected
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        yield name, _is_probability(getattr(c, name)), "a probability in [0, 1)"
    yield "norm", c.norm in list(NORMS), " or ".join(map(repr, NORMS))
    known = " or ".join(map(repr, POSITIONS))
    yield "positions", c.positions in list(POSITIONS), known
    if c.positions == "sinusoidal":
        yield "d_model", c.d_model % 2 == 0, "even: sines and cosines come in pairs"
    for name in ("pad_id", "bos_id", "eos_id"):
        value = getattr(c, name)
        inside = _is_count(value, 0) and value < c.vocab_size
        yield name, inside, f"an integer in [0, {c.vocab_size})"
    apart = c.pad_id not in (c.bos_id, c.eos_id)
    yield "pad_id", apart, f"different from bos_id ({c.bos_id}) and eos_id ({c.eos_id})"


def _is_count(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_probability(value: object) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < 1


@dataclass(frozen=True)
class TransformerConfig:
    """What decides the shape of a `Transformer`; by default the base model (Table 3).

    Raises ValueError, naming the field and its value, where a value makes no sense.
    """

    kind: ClassVar[str] = "transformer"

    vocab_size: int  # V, in pieces: one vocabulary for both languages
    d_model: int = 512  # D, width of what every sub-layer is given and returns
    n_layers: int = 6  # the paper's N, in the encoder and again in the decoder
    n_heads: int = 8  # the paper's h
    d_k: int | None = None  # width of one head's queries and keys; None: D / h
    d_v: int | None = None  # width of one head's values; None: D / h
    d_ff: int = 2048  # width of the feed-forward network's hidden layer
    dropout: float = 0.1  # P_drop: on sub-layer outputs, on embedding + position (§5.4)
    attention_dropout: float = 0.0  # on attention weights; the paper has none
    activation_dropout: float = 0.0  # after the ReLU; the paper has none
    norm: str = "post"  # the paper's; or "pre": x + Sublayer(LayerNorm(x))
    positions: str = "sinusoidal"  # or "learned" (Table 3, row E)
    max_length: int = 2048  # tokens in the longest sequence that positions cover
    pad_id: int = 0  # fills short sequences; no attention sees it
    bos_id: int = 1  # starts a target
    eos_id: int = 2  # ends a target

    def __post_init__(self) -> None:
        for name, holds, expected in _rules(self):
            if not holds:
                value = getattr(self, name)
                raise ValueError(f"{name} is {value!r}: it must be {expected}")

    @classmethod
    def base(cls, vocab_size: int, **changes) -> "TransformerConfig":
        """The paper's base model (Table 3): 63M parameters where V is 37,000."""
        return cls(vocab_size, **changes)

    @classmethod
    def big(cls, vocab_size: int, **changes) -> "TransformerConfig":
        """The paper's big model (Table 3): 214M parameters where V is 37,000."""
        big = {"d_model": 1024, "d_ff": 4096, "n_heads": 16, "dropout": 0.3}
        return cls(vocab_size, **{**big, **changes})

    @classmethod
    def tiny(cls, vocab_size: int, **changes) -> "TransformerConfig":
        """A model that two CPU cores train in minutes; not in the paper."""
        tiny = {"d_model": 128, "n_layers": 3, "n_heads": 4, "d_ff": 512}
        return cls(vocab_size, **{**tiny, **changes})

    def to_dict(self) -> dict:
        """Every field by name, as saved in config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TransformerConfig":
        """The inverse of `to_dict`; fields that have a default may be left out.

        Raises ValueError for a field that does not exist, or that is missing.
        """
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration field: {', '.join(unknown)}")
        if "vocab_size" not in values:
            raise ValueError("missing configuration field: vocab_size")
        return cls(**values)


def encoder_stack(c: TransformerConfig, attention: Callable[..., Tensor]) -> Encoder:
    """The N encoder layers that a configuration describes; attention: Eq. 1."""
    layers = [
        EncoderLayer(
            _heads(SelfAttention, c, attention), _feed_forward(c), lambda: _residual(c)
        )
        for _ in range(c.n_layers)
    ]
    return Encoder(layers, NORMS[c.norm].final_norm(c.d_model))


def decoder_stack(c: TransformerConfig, attention: Callable[..., Tensor]) -> Decoder:
    """The N decoder layers that a configuration describes; attention: Eq. 1."""
    layers = [
        DecoderLayer(
            _heads(SelfAttention, c, attention),
            _heads(CrossAttention, c, attention),
            _feed_forward(c),
            lambda: _residual(c),
        )
        for _ in range(c.n_layers)
    ]
    return Decoder(layers, NORMS[c.norm].final_norm(c.d_model))


def _heads(kind, c: TransformerConfig, attention: Callable[..., Tensor]) -> nn.Module:
    widths = (c.d_model, c.n_heads, c.d_k, c.d_v)
    return kind(*widths, c.attention_dropout, attention=attention)


def _feed_forward(c: TransformerConfig) -> FeedForward:
    return FeedForward(c.d_model, c.d_ff, c.activation_dropout)


def _residual(c: TransformerConfig) -> nn.Module:
    return NORMS[c.norm](c.d_model, c.dropout)


class EncoderDecoder(nn.Module):
    """What training and search ask of a model, whatever it is made of.

    A subclass has a config, an embedding, and the three methods that are not written
    here. config_type: the class of its configurations.
    """

    config_type: ClassVar[type]
    config: Any
    embedding: SharedEmbedding

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """src: (B, S) int64. Returns the memory, (B, …): all that `decode` sees of it.

        src_mask: (B, 1, 1, S) bool, or None where nothing is padded.
        """
        raise NotImplementedError

    def decode(
        self, tgt: Tensor, memory: Tensor, src_mask: Tensor | None, *, cache=None
    ) -> Tensor:
        """Hidden states (B, T, D) that predict the token after each token of tgt.

        tgt: (B, T) int64. With a cache, tgt holds the tokens that are new.
        """
        raise NotImplementedError

    def new_cache(self):
        """What `decode` keeps of a target's first tokens; none so far.

        It has a length, the number of them, and a method select(rows), which keeps
        these rows of the batch in this order: (B',) int64, dropped or repeated.
        """
        raise NotImplementedError

    def source_weights(self, src: Tensor, tgt: Tensor) -> list[Tensor]:
        """Where each position of tgt looks: of each layer that looks, (B, H, T, S).

        Raises ValueError where no layer of the decoder attends to the source.
        """
        raise ValueError(f"a {self.config.kind} model has no attention to the source")

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (…, D). Returns (…, V): log-probabilities up to a constant."""
        return self.embedding.logits(hidden)

    def hidden(self, src: Tensor, tgt: Tensor) -> Tensor:
        """Hidden states (B, T, D): `forward` without its last product."""
        src_mask = padding_mask(src, self.config.pad_id)
        memory = self.encode(src, src_mask)
        return self.decode(tgt, memory, src_mask)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """src: (B, S) int64, tgt: (B, T) int64, both filled up with pad_id.

        Returns logits (B, T, V): those at t are for token t + 1 of the target.
        """
        return self.logits(self.hidden(src, tgt))


class Transformer(EncoderDecoder):
    """The encoder-decoder of Figure 1: source and target tokens → next-token logits.

    config: the shape. attention: the function of Eq. 1 that every head calls,
    `fused_attention` or, to read along, `scaled_dot_product_attention`; the results
    are the same.
    """

    config_type = TransformerConfig

    def __init__(
        self,
        config: TransformerConfig,
        attention: Callable[..., Tensor] = fused_attention,
    ) -> None:
        super().__init__()
        c = self.config = config
        self.embedding = SharedEmbedding(c.vocab_size, c.d_model, c.pad_id)
        self.positions = POSITIONS[c.positions](c.d_model, c.max_length)
        self.dropout = Dropout(c.dropout)
        self.encoder = encoder_stack(c, attention)
        self.decoder = decoder_stack(c, attention)

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """What both stacks are given: §3.4 plus §3.5, dropped out (§5.4).

        tokens: (B, T) int64, the first of them at position start. Returns (B, T, D).
        """
        positions = self.positions(tokens.size(1), start)  # (T, D)
        return self.dropout(self.embedding(tokens) + positions)

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """src: (B, S) int64. Returns the memory (B, S, D).

        src_mask: (B, 1, 1, S) bool, or None where nothing is padded.
        """
        return self.encoder(self.embed(src), src_mask)

    def decode(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_mask: Tensor | None,
        tgt_mask: Tensor | None = None,
        cache: DecoderCache | None = None,
    ) -> Tensor:
        """Hidden states that predict the token after each token of tgt.

        tgt: (B, T) int64, memory: (B, S, D), src_mask: (B, 1, 1, S) bool or None.
        tgt_mask: (B, 1, T, T) bool; where it is not given it is built from tgt, so that
        the decoder never sees the future. Returns (B, T, D).

        With a cache, tgt holds the tokens that are new: the first call may bring
        several, each later one brings one, which attends to all before it.
        Raises ValueError where a later call brings more.
        """
        past = 0 if cache is None else cache.length
        if past and tgt.size(1) > 1:
            raise ValueError(
                f"{tgt.size(1)} tokens for a cache that holds {past}: "
                "after the first call, one at a time"
            )
        if past == 0 and tgt_mask is None:
            tgt_mask = target_mask(tgt, self.config.pad_id)
        x = self.embed(tgt, start=past)
        return self.decoder(x, memory, src_mask, tgt_mask, cache)

    def new_cache(self) -> DecoderCache:
        """The keys and values of every layer, none so far."""
        return DecoderCache(self.config.n_layers)
