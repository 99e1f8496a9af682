"""The whole model (§3, Figure 1) and its configuration."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields

from torch import Tensor, nn

from .attention import (
    CrossAttention,
    MultiHeadAttention,
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
    Encoder,
    EncoderLayer,
    PostNorm,
    PreNorm,
)
from .positional_encoding import LearnedPositionalEncoding, SinusoidalPositionalEncoding

NORMS = {"post": PostNorm, "pre": PreNorm}
POSITIONS = {
    "sinusoidal": SinusoidalPositionalEncoding,
    "learned": LearnedPositionalEncoding,
}


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides the shape of a `Transformer`; the defaults are the paper's base model (Table 3).

    Raises ValueError, naming the field and its value, where a value makes no sense.
    """

    vocab_size: int  # V, pieces, one vocabulary for both languages
    d_model: int = 512  # D, width of every layer's input and output
    n_layers: int = 6  # the paper's N, in the encoder and again in the decoder
    n_heads: int = 8  # the paper's h
    d_k: int | None = (
        None  # width of a head's queries and keys; None: d_model / n_heads
    )
    d_v: int | None = None  # width of a head's values; None: d_model / n_heads
    d_ff: int = 2048  # width of the feed-forward network's hidden layer
    dropout: float = (
        0.1  # P_drop, on each sub-layer's output and on embedding + position (§5.4)
    )
    attention_dropout: float = 0.0  # on the attention weights; the paper has none
    activation_dropout: float = 0.0  # after the ReLU; the paper has none
    norm: str = "post"  # "post": LayerNorm(x + Sublayer(x)), the paper's; "pre": x + Sublayer(LayerNorm(x))
    positions: str = "sinusoidal"  # or "learned" (Table 3, row E)
    max_length: int = 2048  # tokens, the longest sequence the positions cover
    pad_id: int = 0  # fills short sequences
    bos_id: int = 1  # starts a target
    eos_id: int = 2  # ends a target

    def __post_init__(self) -> None:
        for name in (
            "vocab_size",
            "d_model",
            "n_layers",
            "n_heads",
            "d_ff",
            "max_length",
        ):
            self._require(name, _is_size(getattr(self, name)), "a positive integer")
        for name in ("d_k", "d_v"):
            self._require(
                name,
                getattr(self, name) is None or _is_size(getattr(self, name)),
                "a positive integer or None",
            )
        if None in (self.d_k, self.d_v):
            self._require(
                "d_model",
                self.d_model % self.n_heads == 0,
                f"divisible by n_heads ({self.n_heads})",
            )
        for name in ("dropout", "attention_dropout", "activation_dropout"):
            self._require(name, 0 <= getattr(self, name) < 1, "a probability in [0, 1)")
        self._require("norm", self.norm in NORMS, " or ".join(map(repr, NORMS)))
        self._require(
            "positions", self.positions in POSITIONS, " or ".join(map(repr, POSITIONS))
        )
        if self.positions == "sinusoidal":
            self._require(
                "d_model",
                self.d_model % 2 == 0,
                "even, for a sine and a cosine of each frequency",
            )
        for name in ("pad_id", "bos_id", "eos_id"):
            value = getattr(self, name)
            self._require(
                name,
                isinstance(value, int) and 0 <= value < self.vocab_size,
                f"in [0, {self.vocab_size})",
            )

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            raise ValueError(
                f"{name} is {getattr(self, name)!r}: it must be {expected}"
            )

    @classmethod
    def base(cls, vocab_size: int, **changes) -> "TransformerConfig":
        """The paper's base model (Table 3): 63M parameters with a vocabulary of 37,000."""
        return cls(vocab_size, **changes)

    @classmethod
    def big(cls, vocab_size: int, **changes) -> "TransformerConfig":
        """The paper's big model (Table 3): 214M parameters with a vocabulary of 37,000."""
        return cls(
            vocab_size,
            **{"d_model": 1024, "d_ff": 4096, "n_heads": 16, "dropout": 0.3, **changes},
        )

    @classmethod
    def tiny(cls, vocab_size: int, **changes) -> "TransformerConfig":
        """A model two CPU cores train in minutes; not in the paper."""
        return cls(
            vocab_size,
            **{"d_model": 128, "n_layers": 3, "n_heads": 4, "d_ff": 512, **changes},
        )

    def to_dict(self) -> dict:
        """Every field by name, as saved in config.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict) -> "TransformerConfig":
        """The inverse of `to_dict`. Raises ValueError for a field that does not exist."""
        unknown = sorted(values.keys() - {field.name for field in fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration field: {', '.join(unknown)}")
        return cls(**values)


def _is_size(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


class Transformer(nn.Module):
    """The encoder-decoder of Figure 1: (source tokens, target tokens) → logits of each next target token.

    config: the shape. attention: the function of Eq. 1 in every head, `fused_attention` or, to read along,
    `scaled_dot_product_attention`; the results are the same.
    """

    def __init__(
        self,
        config: TransformerConfig,
        attention: Callable[..., Tensor] = fused_attention,
    ) -> None:
        super().__init__()
        self.config = config
        self.attention = attention
        kind = NORMS[config.norm]
        self.embedding = SharedEmbedding(
            config.vocab_size, config.d_model, config.pad_id
        )
        self.positions = POSITIONS[config.positions](config.d_model, config.max_length)
        self.dropout = nn.Dropout(config.dropout)
        self.encoder = Encoder(
            [self._encoder_layer() for _ in range(config.n_layers)],
            kind.final_norm(config.d_model),
        )
        self.decoder = Decoder(
            [self._decoder_layer() for _ in range(config.n_layers)],
            kind.final_norm(config.d_model),
        )

    def _encoder_layer(self) -> EncoderLayer:
        return EncoderLayer(
            self._heads(SelfAttention), self._feed_forward(), self._residual
        )

    def _decoder_layer(self) -> DecoderLayer:
        return DecoderLayer(
            self._heads(SelfAttention),
            self._heads(CrossAttention),
            self._feed_forward(),
            self._residual,
        )

    def _heads(self, kind: type[MultiHeadAttention]) -> MultiHeadAttention:
        c = self.config
        return kind(
            c.d_model,
            c.n_heads,
            c.d_k,
            c.d_v,
            c.attention_dropout,
            attention=self.attention,
        )

    def _feed_forward(self) -> FeedForward:
        return FeedForward(
            self.config.d_model, self.config.d_ff, self.config.activation_dropout
        )

    def _residual(self) -> nn.Module:
        return NORMS[self.config.norm](self.config.d_model, self.config.dropout)

    def embed(self, tokens: Tensor, start: int = 0) -> Tensor:
        """tokens: (B, T) int64, the first of them at position start. Returns (B, T, D): §3.4 plus §3.5, dropped out."""
        return self.dropout(
            self.embedding(tokens) + self.positions(tokens.size(1), start)
        )

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """src: (B, S) int64, src_mask: (B, 1, 1, S) bool, or None where nothing is padded. Returns the memory (B, S, D)."""
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

        tgt: (B, T) int64, memory: (B, S, D), src_mask: (B, 1, 1, S) bool or None, tgt_mask: (B, 1, T, T) bool; where
        it is not given it is built from tgt, so that the decoder never sees the future. Returns (B, T, D).

        With a cache, tgt holds the tokens that are new: the first call may bring several, each later one brings one,
        which attends to all before it. Raises ValueError where a later call brings more.
        """
        past = 0 if cache is None else cache.length
        if past and tgt.size(1) > 1:
            raise ValueError(
                f"{tgt.size(1)} tokens for a cache that holds {past}: after the first call, one at a time"
            )
        if past == 0 and tgt_mask is None:
            tgt_mask = target_mask(tgt, self.config.pad_id)
        return self.decoder(
            self.embed(tgt, start=past), memory, src_mask, tgt_mask, cache
        )

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden: (…, D). Returns (…, V), unnormalised log-probabilities of the next token."""
        return self.embedding.logits(hidden)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        """src: (B, S) int64, tgt: (B, T) int64, both filled up with pad_id. Returns logits (B, T, V)."""
        src_mask = padding_mask(src, self.config.pad_id)
        memory = self.encode(src, src_mask)
        return self.logits(self.decode(tgt, memory, src_mask))
