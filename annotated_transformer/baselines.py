# Written in notebooks/1_introduction.ipynb; edit it there.
"""The rivals: recurrent, with additive attention, ConvS2S and ByteNet (§1–2)."""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

from .attention import attention_weights, padding_mask
from .embeddings import SharedEmbedding
from .layers import LAYER_NORM_EPS, Dropout
from .model import EncoderDecoder, Transformer
from .positional_encoding import LearnedPositionalEncoding

__all__ = [
    "HALF",
    "START",
    "MODELS",
    "BaselineConfig",
    "DecoderState",
    "Baseline",
    "lstm_step",
    "open_forget_gates",
    "make_lstm",
    "lengths_of",
    "read",
    "RecurrentConfig",
    "Recurrent",
    "AdditiveAttention",
    "RecurrentAttentionConfig",
    "Attentive",
    "RecurrentAttention",
    "Convolution",
    "ConvolutionalConfig",
    "GatedConvolution",
    "SourceAttention",
    "ConvS2SConfig",
    "ConvS2S",
    "DilatedBlock",
    "ByteNetConfig",
    "ByteNet",
    "model_type",
]


@dataclass(frozen=True)
class BaselineConfig:
    """What the configurations of all rivals share.

    Raises ValueError, naming the field and its value, where a value makes no sense.
    """

    kind: ClassVar[str]
    TINY: ClassVar[dict[str, int]]  # the fields in which `tiny` differs

    vocab_size: int  # V, in pieces: one vocabulary for both languages
    d_model: int = 512  # D, width of an embedding and of what predicts a token
    d_hidden: int = 512  # H, width inside
    dropout: float = 0.1  # on embeddings and between layers
    max_length: int = 2048  # tokens in the longest sequence
    pad_id: int = 0  # fills short sequences
    bos_id: int = 1  # starts a target
    eos_id: int = 2  # ends a target

    def __post_init__(self) -> None:
        for name, holds, expected in self._rules():
            if not holds:
                value = getattr(self, name)
                raise ValueError(f"{name} is {value!r}: it must be {expected}")

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        special = "pad_id", "bos_id", "eos_id"
        for each in fields(self):
            name, value = each.name, getattr(self, each.name)
            whole = isinstance(value, int) and not isinstance(value, bool)
            if name in special:
                inside = whole and 0 <= value < self.vocab_size
                yield name, inside, f"an integer in [0, {self.vocab_size})"
            elif each.type is int:
                yield name, whole and value >= 1, "a positive integer"
        number = isinstance(self.dropout, int | float)
        yield "dropout", number and 0 <= self.dropout < 1, "a probability in [0, 1)"
        apart = self.pad_id not in (self.bos_id, self.eos_id)
        yield "pad_id", apart, f"neither bos_id ({self.bos_id}) nor eos_id"

    @classmethod
    def base(cls, vocab_size: int, **changes) -> "BaselineConfig":
        """The size in which the model was published."""
        return cls(vocab_size, **changes)

    @classmethod
    def tiny(cls, vocab_size: int, **changes) -> "BaselineConfig":
        """As many parameters as `TransformerConfig.tiny`, to 2 % where V is 4,000."""
        return cls(vocab_size, **{**cls.TINY, **changes})

    def to_dict(self) -> dict:
        """Every field by name and the kind, as saved in config.json."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_dict(cls, values: dict) -> "BaselineConfig":
        """The inverse of `to_dict`; fields that have a default may be left out.

        Raises ValueError for another kind, and for a field that does not exist or that
        is missing.
        """
        values = dict(values)
        if (kind := values.pop("kind", cls.kind)) != cls.kind:
            raise ValueError(f"kind is {kind!r}: it must be {cls.kind!r}")
        unknown = sorted(values.keys() - {each.name for each in fields(cls)})
        if unknown:
            raise ValueError(f"unknown configuration field: {', '.join(unknown)}")
        if "vocab_size" not in values:
            raise ValueError("missing configuration field: vocab_size")
        return cls(**values)


class DecoderState:
    """What a decoder remembers of the tokens so far.

    length: how many these are. tensors: with one row for each row of the batch; a
    decoder puts them there when it begins.
    """

    def __init__(self) -> None:
        self.length = 0
        self.tensors: list[Tensor] = []

    def select(self, rows: Tensor) -> None:
        """Keep these rows of the batch, in this order. rows: (B',) int64."""
        self.tensors = [tensor[rows] for tensor in self.tensors]


class Baseline(EncoderDecoder):
    """What all rivals share: one embedding, dropped out, and a state to go on from."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config
        self.embedding = SharedEmbedding(
            config.vocab_size, config.d_model, config.pad_id
        )
        self.dropout = Dropout(config.dropout)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens: (B, T) int64. Returns (B, T, D)."""
        return self.dropout(self.embedding(tokens))

    def new_cache(self) -> DecoderState:
        """A state that remembers nothing yet."""
        return DecoderState()


def lstm_step(gates: Tensor, cell: Tensor) -> tuple[Tensor, Tensor]:
    """One step of an LSTM, its input and its old state in the gates already.

    gates: (B, 4 H), W x_t + U h_{t-1} + b for i, f, g and o, in torch's order. cell:
    (B, H), c_{t-1}. Returns h_t and c_t, (B, H) each.
    """
    i, f, g, o = gates.chunk(4, dim=-1)  # (B, H) each
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    return o.sigmoid() * cell.tanh(), cell


def open_forget_gates(bias: Tensor) -> None:
    """Set the f of a bias (4 H) to 1: at the start a cell keeps three quarters."""
    i, f, g, o = bias.data.chunk(4)
    f.fill_(1.0)


def make_lstm(d_in: int, c: Any, n_layers: int, **options) -> nn.LSTM:
    """torch's LSTM: the steps of `lstm_step`, from the first token to the last."""
    dropout = c.dropout if n_layers > 1 else 0.0
    options |= {"batch_first": True, "dropout": dropout}
    lstm = nn.LSTM(d_in, c.d_hidden, n_layers, **options)
    for name, parameter in lstm.named_parameters():
        if name.startswith("bias_ih"):
            open_forget_gates(parameter)
    return lstm


def lengths_of(src: Tensor, src_mask: Tensor | None) -> Tensor:
    """The tokens in each row, at least 1: (B,) int64. src_mask: (B, 1, 1, S) bool."""
    if src_mask is None:
        return torch.full_like(src[:, 0], src.size(1))
    return src_mask.flatten(1).sum(dim=1).clamp(min=1)


def read(
    lstm: nn.LSTM, x: Tensor, lengths: Tensor
) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Run an LSTM over each row up to its own end. x: (B, S, D), lengths: (B,).

    Returns its outputs, (B, S, ·), zeros where there is padding, and the states h and c
    in which it ends, (layers and directions, B, H) each.
    """
    packed = pack_padded_sequence(x, lengths.cpu(), True, enforce_sorted=False)
    outputs, last = lstm(packed)
    outputs, _ = pad_packed_sequence(outputs, True, total_length=x.size(1))
    return outputs, last


@dataclass(frozen=True)
class RecurrentConfig(BaselineConfig):
    """The shape of a `Recurrent`; by default that of Sutskever et al. (2014)."""

    kind = "recurrent"
    TINY = {"d_model": 128, "d_hidden": 218, "n_layers": 2}

    d_model: int = 1000
    d_hidden: int = 1000
    n_layers: int = 4  # of the encoder, and as many of the decoder


class Recurrent(Baseline):
    """An LSTM reads the source into one vector, another writes the target from it.

    Sutskever et al. (2014): the source is read from its end to its beginning. Differs
    from them in dropout and open forget gates, in one embedding for both languages and
    the softmax, and in the linear layer that leads from width H to width D.
    """

    config_type = RecurrentConfig

    def __init__(self, config: RecurrentConfig) -> None:
        super().__init__(config)
        self.encoder = make_lstm(config.d_model, config, config.n_layers)
        self.decoder = make_lstm(config.d_model, config, config.n_layers)
        self.output = nn.Linear(config.d_hidden, config.d_model)

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """src: (B, S) int64. Returns (B, 1, 2 · layers · H): one vector a sentence.

        It holds the h and c of every layer after the last step.
        """
        lengths = lengths_of(src, src_mask)
        steps = torch.arange(src.size(1), device=src.device)
        backwards = (lengths[:, None] - 1 - steps) % src.size(1)  # padding stays behind
        _, (h, c) = read(self.encoder, self.embed(src.gather(1, backwards)), lengths)
        return torch.cat([h, c]).transpose(0, 1).flatten(1)[:, None]

    def decode(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_mask: Tensor | None = None,
        *,
        cache: DecoderState | None = None,
    ) -> Tensor:
        """As `EncoderDecoder.decode`. The memory is read where a target begins."""
        state = cache or DecoderState()
        if not state.length:
            state.tensors = [memory.view(len(memory), -1, self.config.d_hidden)]
        h, c = state.tensors[0].transpose(0, 1).contiguous().chunk(2)  # (layers, B, H)
        hidden, (h, c) = self.decoder(self.embed(tgt), (h, c))  # (B, T, H)
        state.tensors = [torch.cat([h, c]).transpose(0, 1)]
        state.length += tgt.size(1)
        return self.output(self.dropout(hidden))


class AdditiveAttention(nn.Module):
    """softmax over the source of vᵀ tanh(W s + U h), Bahdanau et al. (2015).

    d_query, d_key: widths of the decoder's state s and of the encoder's states h.
    d_hidden: width of the sum.
    """

    def __init__(self, d_query: int, d_key: int, d_hidden: int) -> None:
        super().__init__()
        self.w = nn.Linear(d_query, d_hidden, bias=False)
        self.u = nn.Linear(d_key, d_hidden)
        self.v = nn.Linear(d_hidden, 1, bias=False)

    def forward(self, query: Tensor, keys: Tensor, mask: Tensor | None) -> Tensor:
        """Where one state looks. query: (B, d_query), mask: (B, S) bool or None.

        keys: (B, S, d_hidden), U h of the encoder's states, the same at every step.
        Returns the weights, (B, S); of a row that is masked whole, zeros.
        """
        scores = self.v((self.w(query)[:, None] + keys).tanh())[..., 0]  # (B, S)
        if mask is None:
            return scores.softmax(dim=-1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        return scores.softmax(dim=-1).masked_fill(~mask, 0.0)


@dataclass(frozen=True)
class RecurrentAttentionConfig(BaselineConfig):
    """The shape of a `RecurrentAttention`; by default of Bahdanau et al. (2015)."""

    kind = "recurrent-attention"
    TINY = {"d_model": 128, "d_hidden": 202}

    d_model: int = 620
    d_hidden: int = 1000


class Attentive(Baseline):
    """A rival whose decoder looks at the source, and can say where."""

    def attend(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_mask: Tensor | None,
        state: DecoderState,
    ) -> tuple[Tensor, list[Tensor]]:
        """Hidden states (B, T, D), and the weights of each layer that looks, (B, T, S).

        state: of the tokens so far; those of tgt are added to it.
        """
        raise NotImplementedError

    def decode(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_mask: Tensor | None = None,
        *,
        cache: DecoderState | None = None,
    ) -> Tensor:
        """As `EncoderDecoder.decode`."""
        return self.attend(tgt, memory, src_mask, cache or DecoderState())[0]

    def source_weights(self, src: Tensor, tgt: Tensor) -> list[Tensor]:
        """As `EncoderDecoder.source_weights`: one head in each layer that looks."""
        src_mask = padding_mask(src, self.config.pad_id)
        memory = self.encode(src, src_mask)
        _, weights = self.attend(tgt, memory, src_mask, DecoderState())
        return [each[:, None] for each in weights]


class RecurrentAttention(Attentive):
    """A recurrent decoder that looks at all states of a bidirectional encoder.

    Bahdanau et al. (2015): query = the decoder's state, key = value = the encoder's
    states. Differs from them in LSTM cells instead of GRUs, in tanh instead of maxout
    before the softmax, and in one embedding for both languages and the softmax.
    """

    config_type = RecurrentAttentionConfig

    def __init__(self, config: RecurrentAttentionConfig) -> None:
        super().__init__(config)
        d_model, d = config.d_model, config.d_hidden
        self.encoder = make_lstm(d_model, config, 1, bidirectional=True)
        self.start = nn.Linear(d, d)
        self.attention = AdditiveAttention(d, 2 * d, d)
        self.w_y = nn.Linear(d_model, 4 * d)  # from the last token to the gates
        self.w_c = nn.Linear(2 * d, 4 * d, bias=False)  # from what was looked at
        self.w_s = nn.Linear(d, 4 * d, bias=False)  # from the last state
        self.output = nn.Linear(d_model + 3 * d, d_model)
        nn.init.orthogonal_(self.w_s.weight)
        open_forget_gates(self.w_y.bias)

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """src: (B, S) int64. Returns (B, S, 2 H), read forwards and read backwards."""
        outputs, _ = read(self.encoder, self.embed(src), lengths_of(src, src_mask))
        return outputs

    def attend(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_mask: Tensor | None,
        state: DecoderState,
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Attentive.attend`: one layer looks."""
        if not state.length:
            first = memory[:, 0].chunk(2, dim=-1)[1]  # (B, H), read back to the start
            s = self.start(first).tanh()
            state.tensors = [s, torch.zeros_like(s), self.attention.u(memory)]
        s, cell, keys = state.tensors
        mask = None if src_mask is None else src_mask[:, 0, 0]  # (B, S)
        y = self.embed(tgt)  # (B, T, D)
        states, contexts, weights = [], [], []
        for gates in self.w_y(y).unbind(1):  # (B, 4 H) of each token, one by one
            weights.append(self.attention(s, keys, mask))  # (B, S)
            contexts.append((weights[-1][:, None] @ memory)[:, 0])  # (B, 2 H)
            s, cell = lstm_step(gates + self.w_c(contexts[-1]) + self.w_s(s), cell)
            states.append(s)
        state.tensors = [s, cell, keys]
        state.length += tgt.size(1)
        s, context = torch.stack(states, 1), torch.stack(contexts, 1)
        hidden = self.output(self.dropout(torch.cat([y, s, context], dim=-1))).tanh()
        return hidden, [torch.stack(weights, 1)]


class Convolution(nn.Module):
    """One linear map of k positions: y_t = b + Σ_j W_j x_{t + j · dilation}.

    d_in, d_out: widths. kernel_size: k. dilation: positions from one of the k to the
    next. span: positions by which y is shorter than x.
    """

    def __init__(
        self, d_in: int, d_out: int, kernel_size: int, dilation: int = 1
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(kernel_size * d_in, d_out)
        self.kernel_size, self.dilation = kernel_size, dilation
        self.span = (kernel_size - 1) * dilation

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, T + span, d_in). Returns (B, T, d_out)."""
        length = x.size(1) - self.span
        starts = range(0, self.span + 1, self.dilation)
        neighbours = [x[:, start : start + length] for start in starts]
        return self.linear(torch.cat(neighbours, dim=-1))  # (B, T, k · d_in) → d_out

    def centred(self, x: Tensor) -> Tensor:
        """Each output in the middle of its k inputs. x: (B, T, d_in), zeros around."""
        before = self.span // 2
        return self(F.pad(x, (0, 0, before, self.span - before)))

    def causal(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """Each output at the last of its k inputs. past: (B, span, d_in), before x.

        Returns (B, T, d_out), and the past of whatever follows.
        """
        x = torch.cat([past, x], dim=1)
        return self(x), x[:, x.size(1) - self.span :]


@dataclass(frozen=True)
class ConvolutionalConfig(BaselineConfig):
    """What the two convolutional rivals share."""

    n_layers: int = 20  # of the encoder, and as many of the decoder
    kernel_size: int = 3  # k, odd: positions that a convolution sees

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        yield from super()._rules()
        odd = self.kernel_size >= 3 and self.kernel_size % 2 == 1
        yield "kernel_size", odd, "odd and at least 3"


HALF = math.sqrt(0.5)  # of a sum of two: its variance is that of one
START = 0.1  # of an embedding as it starts: its standard deviation, as in 2017


def _linear(d_in: int, d_out: int) -> nn.Linear:
    """A linear layer that leaves the variance as it is."""
    linear = nn.Linear(d_in, d_out)
    nn.init.normal_(linear.weight, std=d_in**-0.5)
    nn.init.zeros_(linear.bias)
    return linear


class GatedConvolution(nn.Module):
    """Convolution to twice the width, half of it gating the other half: A ⊗ σ(B)."""

    def __init__(self, d_hidden: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        self.convolution = Convolution(d_hidden, 2 * d_hidden, kernel_size)
        self.dropout = Dropout(dropout)
        linear = self.convolution.linear
        scale = math.sqrt(4 * (1 - dropout) / linear.in_features)
        nn.init.normal_(linear.weight, std=scale)  # the variance passes through
        nn.init.zeros_(linear.bias)

    def centred(self, x: Tensor, real: Tensor | None) -> Tensor:
        """x: (B, S, H), real: (B, S, 1) bool, what is no padding. Returns (B, S, H)."""
        x = self.dropout(x)
        if real is not None:
            x = x.masked_fill(~real, 0.0)
        return F.glu(self.convolution.centred(x))

    def causal(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, T, H), past: (B, k - 1, H). Returns (B, T, H) and the next past."""
        x, past = self.convolution.causal(self.dropout(x), past)
        return F.glu(x), past


class SourceAttention(nn.Module):
    """The attention of one decoder layer of ConvS2S, added to what the layer says."""

    def __init__(self, d_model: int, d_hidden: int) -> None:
        super().__init__()
        self.query = _linear(d_hidden, d_model)
        self.output = _linear(d_model, d_hidden)

    def forward(
        self, x: Tensor, embedded: Tensor, memory: Tensor, mask: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """x: (B, T, H), embedded: (B, T, D), memory: (B, S, 2 D), mask: (B, 1, S) bool.

        Returns (B, T, H) and the weights (B, T, S).
        """
        key, value = memory.chunk(2, dim=-1)  # (B, S, D) each
        query = (self.query(x) + embedded) * HALF  # (B, T, D)
        query = query * math.sqrt(query.size(-1))  # no 1/√d here, as in 2017
        weights = attention_weights(query, key, mask)  # (B, T, S)
        if mask is None:
            length = torch.tensor(float(memory.size(1)))
        else:
            length = mask.sum(dim=-1, keepdim=True)  # (B, 1, 1)
        context = weights @ value * length.sqrt().to(value)  # a mean of n shrinks by √n
        return (x + self.output(context)) * HALF, weights


@dataclass(frozen=True)
class ConvS2SConfig(ConvolutionalConfig):
    """The shape of a `ConvS2S`; by default that of Gehring et al. (2017), En-Ro."""

    kind = "convs2s"
    TINY = {"d_model": 128, "d_hidden": 138, "n_layers": 4}


class ConvS2S(Attentive):
    """Gated convolutions in both stacks, attention in every layer of the decoder.

    Gehring et al. (2017). Differs from them: no weight normalisation; the gradients of
    the encoder are not divided by the number of attentions, a factor that Adam does
    not see in its own weights; one embedding and one table of positions for both
    languages.
    """

    config_type = ConvS2SConfig

    def __init__(self, config: ConvS2SConfig) -> None:
        super().__init__(config)
        d_model, d, n = config.d_model, config.d_hidden, config.n_layers
        self.positions = LearnedPositionalEncoding(d_model, config.max_length)
        gated = d, config.kernel_size, config.dropout
        self.encoder_input = _linear(d_model, d)
        self.encoder_output = _linear(d, d_model)
        self.decoder_input = _linear(d_model, d)
        self.decoder_output = _linear(d, d_model)
        self.encoder = nn.ModuleList(GatedConvolution(*gated) for _ in range(n))
        self.decoder = nn.ModuleList(GatedConvolution(*gated) for _ in range(n))
        self.attentions = nn.ModuleList(SourceAttention(d_model, d) for _ in range(n))

    def place(self, tokens: Tensor, start: int = 0) -> Tensor:
        """Embedding plus position, dropped out: (B, T, D)."""
        positions = self.positions(tokens.size(1), start)  # (T, D)
        return self.dropout((self.embedding(tokens) + positions) * START)

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """src: (B, S) int64. Returns keys and values side by side, (B, S, 2 D).

        Keys are what the stack says; values have the embeddings added.
        """
        real = None if src_mask is None else src_mask[:, 0, 0, :, None]  # (B, S, 1)
        embedded = self.place(src)
        x = self.encoder_input(embedded)
        for layer in self.encoder:
            x = (x + layer.centred(x, real)) * HALF
        key = self.encoder_output(x)
        return torch.cat([key, (key + embedded) * HALF], dim=-1)

    def attend(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_mask: Tensor | None,
        state: DecoderState,
    ) -> tuple[Tensor, list[Tensor]]:
        """As `Attentive.attend`: each layer looks."""
        embedded = self.place(tgt, state.length)
        x = self.decoder_input(embedded)
        if not state.length:
            span = self.config.kernel_size - 1
            state.tensors = [x.new_zeros(len(x), span, x.size(-1))] * len(self.decoder)
        mask = None if src_mask is None else src_mask[:, 0]  # (B, 1, S)
        weights, pasts = [], []
        for layer, attention, past in zip(
            self.decoder, self.attentions, state.tensors, strict=True
        ):
            y, past = layer.causal(x, past)
            y, where = attention(y, embedded, memory, mask)
            x = (x + y) * HALF
            weights.append(where)
            pasts.append(past)
        state.tensors = pasts
        state.length += tgt.size(1)
        return self.decoder_output(self.dropout(x)), weights


class DilatedBlock(nn.Module):
    """x + a narrow dilated convolution of x: D → H, H → H over k positions, H → D."""

    def __init__(self, config: "ByteNetConfig", dilation: int) -> None:
        super().__init__()
        d_model, d = config.d_model, config.d_hidden
        widths = d_model, d, d
        self.norms = nn.ModuleList(nn.LayerNorm(w, LAYER_NORM_EPS) for w in widths)
        self.narrow, self.widen = nn.Linear(d_model, d), nn.Linear(d, d_model)
        self.convolution = Convolution(d, d, config.kernel_size, dilation)
        self.dropout = Dropout(config.dropout)

    def before(self, x: Tensor) -> Tensor:
        """What the convolution reads. x: (B, T, D). Returns (B, T, H)."""
        x = self.narrow(self.norms[0](x).relu())
        return self.norms[1](x).relu()

    def after(self, x: Tensor) -> Tensor:
        """What is made of its output. x: (B, T, H). Returns (B, T, D)."""
        return self.dropout(self.widen(self.norms[2](x).relu()))

    def centred(self, x: Tensor, real: Tensor) -> Tensor:
        """x: (B, S, D), real: (B, S, 1) bool. Returns (B, S, D)."""
        seen = self.before(x).masked_fill(~real, 0.0)
        return x + self.after(self.convolution.centred(seen))

    def causal(self, x: Tensor, past: Tensor) -> tuple[Tensor, Tensor]:
        """x: (B, T, D), past: (B, span, H). Returns (B, T, D) and the next past."""
        y, past = self.convolution.causal(self.before(x), past)
        return x + self.after(y), past


@dataclass(frozen=True)
class ByteNetConfig(ConvolutionalConfig):
    """The shape of a `ByteNet`; by default that of Kalchbrenner et al. (2016)."""

    kind = "bytenet"
    TINY = {"d_model": 160, "d_hidden": 98, "n_layers": 10}

    d_model: int = 1600
    d_hidden: int = 800
    n_layers: int = 30
    stretch: float = 1.2  # columns of the memory for each token of the source
    n_dilations: int = 5  # layers whose dilation doubles, before it is 1 again

    def _rules(self) -> Iterator[tuple[str, bool, str]]:
        yield from super()._rules()
        number = isinstance(self.stretch, int | float)
        yield "stretch", number and self.stretch >= 1, "a number of at least 1"


class ByteNet(Baseline):
    """Dilated convolutions; position t of the target reads column t of the source.

    Kalchbrenner et al. (2016), the translation model: residual blocks with ReLU. There
    is no attention: the decoder stands on top of the encoder. Differs from them in
    tokens of a shared vocabulary in the place of characters, and in the sum by which
    the column joins the embedding.
    """

    config_type = ByteNetConfig

    def __init__(self, config: ByteNetConfig) -> None:
        super().__init__(config)
        dilations = [2 ** (i % config.n_dilations) for i in range(config.n_layers)]
        self.encoder = nn.ModuleList(DilatedBlock(config, d) for d in dilations)
        self.decoder = nn.ModuleList(DilatedBlock(config, d) for d in dilations)
        self.norm = nn.LayerNorm(config.d_model, LAYER_NORM_EPS)
        self.output = nn.Linear(config.d_model, config.d_model)

    def encode(self, src: Tensor, src_mask: Tensor | None) -> Tensor:
        """src: (B, S) int64. Returns (B, 1.2 S, D): a column for each target position.

        Columns beyond 1.2 times the length of a row are zeros.
        """
        stretch = self.config.stretch
        columns = math.ceil(src.size(1) * stretch)
        lengths = (lengths_of(src, src_mask).double() * stretch).ceil()  # (B,)
        real = torch.arange(columns, device=src.device) < lengths[:, None]
        real = real[..., None]  # (B, columns, 1)
        x = self.embed(src)
        if src_mask is not None:
            x = x.masked_fill(~src_mask[:, 0, 0, :, None], 0.0)
        x = F.pad(x, (0, 0, 0, columns - src.size(1)))
        for block in self.encoder:
            x = block.centred(x, real)
        return x.masked_fill(~real, 0.0)

    def decode(
        self,
        tgt: Tensor,
        memory: Tensor,
        src_mask: Tensor | None = None,
        *,
        cache: DecoderState | None = None,
    ) -> Tensor:
        """As `EncoderDecoder.decode`. Past the last column is the target alone."""
        state = cache or DecoderState()
        end = state.length + tgt.size(1)
        missing = max(0, end - memory.size(1))
        columns = F.pad(memory, (0, 0, 0, missing))[:, state.length : end]  # (B, T, D)
        x = self.embed(tgt) + columns
        if not state.length:
            spans = [block.convolution.span for block in self.decoder]
            width = self.config.d_hidden
            state.tensors = [x.new_zeros(len(x), span, width) for span in spans]
        pasts = []
        for block, past in zip(self.decoder, state.tensors, strict=True):
            x, past = block.causal(x, past)
            pasts.append(past)
        state.tensors, state.length = pasts, end
        return self.output(self.norm(x).relu())


MODELS: dict[str, type[EncoderDecoder]] = {
    model.config_type.kind: model
    for model in (Transformer, Recurrent, RecurrentAttention, ConvS2S, ByteNet)
}


def model_type(values: dict) -> type[EncoderDecoder]:
    """The class of model that saved settings are of.

    values: of config.json or of a checkpoint; without a kind they are a Transformer's.
    Raises ValueError where no model has this kind.
    """
    kind = values.get("kind", Transformer.config_type.kind)
    if kind not in MODELS:
        raise ValueError(f"kind is {kind!r}: it must be one of {', '.join(MODELS)}")
    return MODELS[kind]
