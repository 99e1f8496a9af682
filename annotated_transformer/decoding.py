# Written in notebooks/6_1_beam_search.ipynb; edit it there.
"""From a model's answers to sentences: greedy search, beam search, samples (§6.1)."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .attention import MultiHeadAttention, padding_mask
from .batching import pad
from .layers import DecoderCache
from .model import EncoderDecoder, Transformer

__all__ = [
    "Place",
    "Predictor",
    "Hypothesis",
    "length_penalty",
    "search",
    "Constrained",
    "draw",
    "evaluating",
    "greedy_search",
    "TransformerPredictor",
    "RowPredictor",
    "predictor_of",
    "Ensemble",
    "beam_search",
    "sample",
    "log_probability",
    "attention_places",
    "replaced_attention",
    "AttentionMaps",
    "attention_maps",
]


class Predictor(Protocol):
    """What a search asks of a model: how probable is each next token?

    It keeps K prefixes of each of B sentences; K may change from step to step. V is the
    size of the vocabulary; a token that can never be chosen has log-probability -inf.
    """

    def start(self) -> Tensor:
        """Begin with the empty prefix. Returns (B, 1, V), log p of each first token."""

    def extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """Replace the prefixes by longer ones, and say what comes after each.

        parents: (B, K) int64, which of a sentence's old prefixes each new one extends.
        tokens: (B, K) int64, by which token. Returns (B, K, V), log p of the next.
        """

    def keep(self, rows: Tensor) -> None:
        """Forget all sentences but these. rows: (B',) int64, among the B."""


class Hypothesis(NamedTuple):
    """A translation that was found, and what the model thinks of it."""

    tokens: list[int]  # without bos and eos
    log_prob: float  # of these tokens, and of eos where it ended; in nats
    score: float  # log_prob divided by the length penalty: what ranks it
    ended: bool  # by eos; otherwise it was cut at the longest length allowed


@dataclass
class _Beam:
    """The unfinished hypotheses of a batch, K a sentence, in rows of tensors."""

    rows: Tensor  # (B,) int64, the sentence that each row is about
    limit: Tensor  # (B,) int64, tokens that an output may have
    places: Tensor  # (B,) int64, places of the beam that nothing ended holds
    best: Tensor  # (B, n_best), scores of the best that have ended; or -inf
    log_probs: Tensor  # (B, K), of the tokens so far; -inf: nothing at this place
    tokens: Tensor  # (B, K, step) int64, the tokens so far
    parents: Tensor  # (B, K) int64, the place of what each continues


def _new_beam(limit: Tensor, beam_size: int, n_best: int) -> _Beam:
    """A beam that holds, for each sentence, the empty hypothesis."""
    rows = torch.arange(len(limit), device=limit.device)  # (B,)
    certain = torch.zeros(len(limit), 1, device=limit.device)  # (B, 1), log 1
    return _Beam(
        rows=rows,
        limit=limit,
        places=torch.full_like(rows, beam_size),
        best=certain.new_full((len(limit), n_best), -torch.inf),
        log_probs=certain,
        tokens=rows.new_empty(len(limit), 1, 0),
        parents=torch.zeros_like(rows)[:, None],
    )


def _most_probable(beam: _Beam, log_probs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The continuations with which a beam search goes on.

    log_probs: (B, K, V), of each next token. Returns (B, K') each: log-probabilities,
    the largest first, the places of what is continued, and the tokens.
    """
    n = int(beam.places.max())
    added, tokens = log_probs.topk(min(n, log_probs.size(-1)))  # (B, K, n)
    totals = (beam.log_probs[..., None] + added).flatten(1)  # (B, K · n)
    totals, index = totals.topk(min(n, totals.size(1)))  # (B, K')
    places, tokens = index // tokens.size(-1), tokens.flatten(1).gather(1, index)
    taken = torch.arange(totals.size(1), device=totals.device) >= beam.places[:, None]
    totals = totals.masked_fill(taken, -torch.inf)
    return totals, places, tokens


def _pick(x: Tensor, index: Tensor) -> Tensor:
    """x: (B, K, …), index: (B, K') int64. Returns (B, K', …): x[b, index[b, k]]."""
    return x[torch.arange(len(x), device=x.device)[:, None], index]


def _retire(beam: _Beam, eos_id: int, alpha: float) -> list[tuple[int, Hypothesis]]:
    """Take what has ended out of the beam, without giving its place away.

    Returns each of them with the number of its sentence.
    """
    ends = (beam.tokens[..., -1] == eos_id) & (beam.log_probs > -torch.inf)  # (B, K)
    found = _read(beam, ends, alpha, ended=True)
    scores = beam.log_probs / length_penalty(beam.tokens.size(-1), alpha)  # (B, K)
    scores = torch.cat([beam.best, scores.masked_fill(~ends, -torch.inf)], dim=1)
    beam.best = scores.topk(beam.best.size(1)).values  # (B, n_best)
    beam.places = beam.places - ends.sum(dim=1)
    beam.log_probs = beam.log_probs.masked_fill(ends, -torch.inf)
    return found


def _read(
    beam: _Beam, which: Tensor, alpha: float, ended: bool
) -> list[tuple[int, Hypothesis]]:
    """The hypotheses where which, (B, K) bool, is True, each with its sentence."""
    penalty = length_penalty(beam.tokens.size(-1), alpha)
    sentences = beam.rows[:, None].expand_as(which)[which].tolist()
    outputs, totals = beam.tokens[which].tolist(), beam.log_probs[which].tolist()
    return [
        (sentence, Hypothesis(output[: -1 if ended else None], s, s / penalty, ended))
        for sentence, output, s in zip(sentences, outputs, totals, strict=True)
    ]


def length_penalty(length: float | Tensor, alpha: float) -> float | Tensor:
    """((5 + |y|) / 6)^α, by which the log-probability of y is divided (§6.1).

    length: |y| in tokens, eos counted and bos not, as in the original code. alpha: α;
    at 0 there is no penalty.
    """
    return ((5 + length) / 6) ** alpha


def _can_improve(beam: _Beam, alpha: float) -> Tensor:
    """Whether something unfinished may still overtake what has ended; (B,) bool.

    However it goes on, from log-probability s ≤ 0 it scores at most s / penalty(limit).
    """
    bound = beam.log_probs.amax(dim=1) / length_penalty(beam.limit, alpha)  # (B,)
    return bound > beam.best[:, -1]


def _leave(beam: _Beam, kept: Tensor) -> None:
    """Go on with these rows, and with as many places as the fullest of them needs."""
    for field in ("rows", "limit", "places", "best", "log_probs", "tokens", "parents"):
        setattr(beam, field, getattr(beam, field)[kept])
    width = int((beam.log_probs > -torch.inf).sum(dim=1).max())
    beam.log_probs, order = beam.log_probs.topk(width)  # (B, K')
    beam.tokens, beam.parents = _pick(beam.tokens, order), _pick(beam.parents, order)


_Choice = Callable[[_Beam, Tensor], tuple[Tensor, Tensor, Tensor]]


def _refuse_nan(values: Tensor) -> None:
    """Raises ValueError where what a model says is no number."""
    if values.isnan().any():
        raise ValueError("the model's log-probabilities are not numbers (NaN)")


def _run(
    predictor: Predictor, beam: _Beam, choose: _Choice, eos_id: int, alpha: float
) -> list[list[Hypothesis]]:
    """Go on, step by step, until no sentence can get anything better."""
    found: list[list[Hypothesis]] = [[] for _ in beam.rows]
    n_best, log_probs = beam.best.size(1), predictor.start()  # (B, 1, V)
    while True:
        beam.log_probs, beam.parents, last = choose(beam, log_probs)  # (B, K) each
        _refuse_nan(beam.log_probs)
        tokens = _pick(beam.tokens, beam.parents)  # (B, K, step - 1)
        beam.tokens = torch.cat([tokens, last[..., None]], dim=-1)  # (B, K, step)
        new = _retire(beam, eos_id, alpha)
        going = _can_improve(beam, alpha) & (beam.tokens.size(-1) < beam.limit)  # (B,)
        cut = ~going & (beam.best[:, -1] == -torch.inf)  # (B,), for want of better
        cut = cut[:, None] & (beam.log_probs > -torch.inf)  # (B, K)
        for sentence, hypothesis in new + _read(beam, cut, alpha, ended=False):
            found[sentence].append(hypothesis)
        if not going.any():
            break
        kept = going.nonzero().flatten()  # (B',)
        if len(kept) < len(going):
            predictor.keep(kept)
        _leave(beam, kept)
        log_probs = predictor.extend(beam.parents, beam.tokens[..., -1])  # (B', K, V)
    for some in found:
        some.sort(key=lambda hypothesis: (hypothesis.ended, hypothesis.score))
    return [some[::-1][:n_best] for some in found]


def search(
    predictor: Predictor,
    limit: Tensor,
    eos_id: int,
    beam_size: int = 4,
    alpha: float = 0.6,
    n_best: int = 1,
) -> list[list[Hypothesis]]:
    """Beam search (§6.1): go on with the `beam_size` most probable continuations.

    predictor: any model, not yet started. limit: (B,) int64, tokens that each output
    may have, eos counted. eos_id: the token that ends an output. alpha: of the length
    penalty. n_best: hypotheses to return. Returns, for each sentence, at most n_best
    hypotheses: those that have ended before those that were cut at the limit, and of
    each the best score first.
    Raises ValueError where an option makes no sense, or a log-probability is NaN.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}: it must be at least 1")
    if not 1 <= n_best <= beam_size:
        raise ValueError(
            f"n_best is {n_best}: it must be from 1 to {beam_size}, the beam"
        )
    if not 0 <= alpha < math.inf:
        raise ValueError(f"alpha is {alpha}: it must be at least 0")
    if not len(limit):
        return []
    beam = _new_beam(limit, beam_size, n_best)
    return _run(predictor, beam, _most_probable, eos_id, alpha)


class Constrained:
    """A predictor without some of the continuations of another.

    predictor: the other. eos_id: ruled out before an output has min_length tokens.
    prefixes: B lists of tokens with which the outputs have to begin.
    """

    def __init__(
        self,
        predictor: Predictor,
        eos_id: int,
        min_length: int = 0,
        prefixes: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.predictor, self.eos_id, self.min_length = predictor, eos_id, min_length
        self.prefixes = None  # (B, P) int64; -1: any token
        if prefixes is not None:
            self.prefixes = pad([list(prefix) for prefix in prefixes], -1)

    def start(self) -> Tensor:
        """As `Predictor.start`."""
        self.length = 0
        return self.restrict(self.predictor.start())

    def extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """As `Predictor.extend`."""
        self.length += 1
        return self.restrict(self.predictor.extend(parents, tokens))

    def keep(self, rows: Tensor) -> None:
        """As `Predictor.keep`."""
        self.predictor.keep(rows)
        if self.prefixes is not None:
            self.prefixes = self.prefixes.to(rows.device)[rows]

    def restrict(self, log_probs: Tensor) -> Tensor:
        """log_probs: (B, K, V). Returns them with -inf for what is ruled out."""
        vocabulary = torch.arange(log_probs.size(-1), device=log_probs.device)
        if self.length < self.min_length:
            log_probs = log_probs.masked_fill(vocabulary == self.eos_id, -torch.inf)
        if self.prefixes is not None and self.length < self.prefixes.size(1):
            token = self.prefixes[:, self.length, None, None].to(log_probs.device)
            others = (token >= 0) & (vocabulary != token)  # (B, 1, V)
            log_probs = log_probs.masked_fill(others, -torch.inf)
        return log_probs


def _narrow(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Rule out all tokens but the most probable ones. logits: (…, V)."""
    ranked, order = logits.softmax(dim=-1).sort(dim=-1, descending=True)  # (…, V)
    out = torch.zeros_like(ranked, dtype=torch.bool)
    if top_k is not None:
        out[..., top_k:] = True
    if top_p is not None:
        out |= ranked.cumsum(dim=-1) - ranked >= top_p  # those before it are enough
    return logits.masked_fill(out.scatter(-1, order, out), -torch.inf)


def _drawn(
    beam: _Beam,
    log_probs: Tensor,
    n_samples: int,
    temperature: float,
    top_k: int | None,
    top_p: float | None,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Continuations by lot: n_samples of the empty prefix, then one of each.

    log_probs: (B, K, V). Returns as `_most_probable`, but in no order.
    """
    times = 1 if beam.tokens.size(-1) else n_samples
    p = _narrow(log_probs / temperature, top_k, top_p).softmax(dim=-1)  # (B, K, V)
    _refuse_nan(p[..., 0])  # a softmax spreads it
    tokens = torch.multinomial(p.flatten(0, 1), times, True, generator=generator)
    tokens = tokens.view(len(p), -1)  # (B, K · times)
    places = torch.arange(p.size(1), device=p.device).repeat_interleave(times)
    places = places.expand_as(tokens)  # (B, K · times)
    added = _pick(log_probs, places).gather(-1, tokens[..., None])[..., 0]
    return _pick(beam.log_probs, places) + added, places, tokens


def draw(
    predictor: Predictor,
    limit: Tensor,
    eos_id: int,
    n_samples: int = 1,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
) -> list[list[Hypothesis]]:
    """Draw every token from softmax(log p / temperature).

    predictor, limit, eos_id: as `search`. n_samples: outputs for each sentence.
    top_k: draw among this many most probable tokens only. top_p: only among the fewest
    most probable ones that have this probability together. Returns the n_samples
    hypotheses of each sentence, ordered as `search` does; log_prob and score are the
    model's own log p, without temperature.
    Raises ValueError where an option makes no sense, or a log-probability is NaN.
    """
    for name, value, holds, expected in (
        ("n_samples", n_samples, n_samples >= 1, "at least 1"),
        ("temperature", temperature, 0 < temperature < math.inf, "above 0"),
        ("top_k", top_k, top_k is None or top_k >= 1, "at least 1, or None"),
        ("top_p", top_p, top_p is None or 0 < top_p <= 1, "in (0, 1], or None"),
    ):
        if not holds:
            raise ValueError(f"{name} is {value}: it must be {expected}")
    if not len(limit):
        return []
    choose = partial(
        _drawn,
        n_samples=n_samples,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        generator=generator,
    )
    beam = _new_beam(limit, n_samples, n_samples)
    return _run(predictor, beam, choose, eos_id, alpha=0.0)


@contextmanager
def evaluating(models: Sequence[EncoderDecoder]) -> Iterator[None]:
    """Models in evaluation mode, and afterwards as they were."""
    modes = [model.training for model in models]
    for model in models:
        model.eval()
    try:
        yield
    finally:
        for model, mode in zip(models, modes, strict=True):
            model.train(mode)


def _longest(
    models: Sequence[EncoderDecoder], src: Tensor, extra_length: int
) -> Tensor:
    """How long each output may be: its input and extra_length; (B,) int64.

    src: (B, S). Raises ValueError where a model does not cover so many positions.
    """
    if extra_length < 1:
        raise ValueError(f"extra_length is {extra_length}: it must be at least 1")
    most = min(model.config.max_length for model in models)
    limit = (src != models[0].config.pad_id).sum(dim=-1) - 1 + extra_length  # (B,)
    if len(limit) and limit.max() > most:
        raise ValueError(
            f"{limit.max() - extra_length} input tokens and {extra_length} more "
            f"are above the model's max_length of {most}"
        )
    return limit


@torch.inference_mode()
def greedy_search(
    model: EncoderDecoder, src: Tensor, extra_length: int = 50
) -> list[list[int]]:
    """The most probable next token at every step, until eos.

    src: (B, S) int64, each row ending with eos, filled up with pad_id. extra_length: a
    translation that has not ended stops at the length of its input plus this many
    tokens (§6.1), the input's eos not counted. Returns B lists of ids, without bos and
    eos. A sentence that has ended leaves the batch. Padding and bos are never chosen.
    Raises ValueError where extra_length is below 1, where it and a sentence are more
    than the model's max_length, and where a logit is NaN.
    """
    config, limit = model.config, _longest([model], src, extra_length)  # (B,)
    if not len(src):
        return []
    rows = torch.arange(len(src), device=src.device)  # sentences still in the batch
    tokens = torch.full_like(rows, config.bos_id)
    chosen = tokens.new_full((len(src), int(limit.max())), config.eos_id)  # (B, T)
    with evaluating([model]):
        src_mask = padding_mask(src, config.pad_id)  # (B, 1, 1, S)
        memory = model.encode(src, src_mask)  # (B, S, D), once
        cache, step = model.new_cache(), 0
        while len(rows):
            hidden = model.decode(tokens[:, None], memory, src_mask, cache=cache)
            logits = model.logits(hidden[:, -1])  # (rows, V)
            logits[:, [config.pad_id, config.bos_id]] = -torch.inf
            best, tokens = logits.max(dim=-1)  # (rows,) each, faster than argmax
            _refuse_nan(best)
            chosen[rows, step] = tokens
            step += 1
            going = (tokens != config.eos_id) & (step < limit[rows])
            if not going.all():
                rows, tokens = rows[going], tokens[going]
                memory, src_mask = memory[going], src_mask[going]
                cache.select(going.nonzero().flatten())
    eos = [config.eos_id]
    return [ids[: (ids + eos).index(config.eos_id)] for ids in chosen.tolist()]


class TransformerPredictor:
    """A `Transformer` as a search sees it.

    model: in evaluation mode. src: (B, S) int64, as in `greedy_search`. Each prefix
    gives the cache one more position a step, and none is ever moved: which of them
    belong to a prefix, a mask says. The memory is there once for all K prefixes.
    """

    def __init__(self, model: Transformer, src: Tensor) -> None:
        self.model = model
        self.src_mask = padding_mask(src, model.config.pad_id)  # (B, 1, 1, S)
        self.memory = model.encode(src, self.src_mask)  # (B, S, D)

    def start(self) -> Tensor:
        """As `Predictor.start`."""
        config, n_rows = self.model.config, (len(self.memory), 1)
        self.length, self.cache = 0, DecoderCache(config.n_layers)
        self.path = self.src_mask.new_ones(*n_rows, 0)  # (B, K, positions)
        bos = self.path.new_full(n_rows, config.bos_id, dtype=torch.int64)
        return self.extend(torch.zeros_like(bos), bos)

    def extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """As `Predictor.extend`. Never says that padding or bos comes next."""
        config = self.model.config
        itself = torch.eye(tokens.size(1), dtype=torch.bool, device=tokens.device)
        itself = itself.expand(len(tokens), -1, -1)  # (B, K, K)
        self.path = torch.cat([_pick(self.path, parents), itself], dim=-1)
        x = self.model.embed(tokens.flatten()[:, None], start=self.length)
        x = x.view(*tokens.shape, -1)  # (B, K, D), all at the same position
        self.length += 1
        path = self.path[:, None]  # (B, 1, K, positions)
        x = self.model.decoder(x, self.memory, self.src_mask, path, self.cache)
        logits = self.model.logits(x)  # (B, K, V)
        log_probs = logits.log_softmax(dim=-1, dtype=torch.float32)
        log_probs[..., [config.pad_id, config.bos_id]] = -torch.inf
        return log_probs

    def keep(self, rows: Tensor) -> None:
        """As `Predictor.keep`."""
        self.memory, self.src_mask = self.memory[rows], self.src_mask[rows]
        self.path = self.path[rows]
        self.cache.select(rows)


class RowPredictor:
    """Any `EncoderDecoder` as a search sees it: every prefix is a row of its own.

    model: in evaluation mode. src: (B, S) int64, as in `greedy_search`.
    """

    def __init__(self, model: EncoderDecoder, src: Tensor) -> None:
        self.model = model
        self.src_mask = padding_mask(src, model.config.pad_id)  # (B, 1, 1, S)
        self.memory = model.encode(src, self.src_mask)  # (B, …)

    def start(self) -> Tensor:
        """As `Predictor.start`."""
        self.cache, self.width = self.model.new_cache(), 1  # of the beam: K
        bos = self.src_mask.new_full((len(self.memory), 1), 0, dtype=torch.int64)
        return self.extend(bos, bos + self.model.config.bos_id)

    def extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """As `Predictor.extend`. Never says that padding or bos comes next."""
        config, width = self.model.config, tokens.size(1)
        if self.cache.length:
            first = torch.arange(len(parents), device=parents.device) * self.width
            self.cache.select((first[:, None] + parents).flatten())
        self.width = width
        copies = [x.repeat_interleave(width, 0) for x in (self.memory, self.src_mask)]
        hidden = self.model.decode(tokens.view(-1, 1), *copies, cache=self.cache)
        log_probs = self.model.logits(hidden).log_softmax(dim=-1, dtype=torch.float32)
        log_probs = log_probs.view(*tokens.shape, -1)  # (B, K, V)
        log_probs[..., [config.pad_id, config.bos_id]] = -torch.inf
        return log_probs

    def keep(self, rows: Tensor) -> None:
        """As `Predictor.keep`."""
        places = torch.arange(self.width, device=rows.device)  # (K,)
        first = rows[:, None] * self.width
        self.cache.select((first + places).flatten())
        self.memory, self.src_mask = self.memory[rows], self.src_mask[rows]


def predictor_of(model: EncoderDecoder, src: Tensor) -> Predictor:
    """The predictor that fits a model."""
    kind = TransformerPredictor if isinstance(model, Transformer) else RowPredictor
    return kind(model, src)


class Ensemble:
    """The mean of what several predictors of one vocabulary say.

    It is the mean of the probabilities, not of their logarithms.
    """

    def __init__(self, predictors: Sequence[Predictor]) -> None:
        self.predictors = list(predictors)

    def start(self) -> Tensor:
        """As `Predictor.start`."""
        return _log_mean([one.start() for one in self.predictors])

    def extend(self, parents: Tensor, tokens: Tensor) -> Tensor:
        """As `Predictor.extend`."""
        answers = [one.extend(parents, tokens) for one in self.predictors]
        return _log_mean(answers)

    def keep(self, rows: Tensor) -> None:
        """As `Predictor.keep`."""
        for one in self.predictors:
            one.keep(rows)


def _log_mean(log_probs: Sequence[Tensor]) -> Tensor:
    """log ((p_1 + … + p_n) / n), of n tensors of one shape."""
    return torch.stack(list(log_probs)).logsumexp(dim=0) - math.log(len(log_probs))


Models = EncoderDecoder | Sequence[EncoderDecoder]


def _as_list(models: Models) -> list[EncoderDecoder]:
    """One model or several as a list. Raises ValueError unless they fit together."""
    models = [models] if isinstance(models, EncoderDecoder) else list(models)
    if not models:
        raise ValueError("an ensemble of no models")
    for number, model in enumerate(models[1:], start=2):
        for field in ("vocab_size", "pad_id", "bos_id", "eos_id"):
            first, other = (getattr(m.config, field) for m in (models[0], model))
            if first != other:
                raise ValueError(
                    f"{field} is {first} in model 1 and {other} in model {number}: "
                    "an ensemble has one vocabulary"
                )
    return models


def _check_prefixes(
    prefixes: Sequence[Sequence[int]], config: Any, limit: Tensor
) -> None:
    """Raises ValueError where no output can begin like this. limit: (B,)."""
    if len(prefixes) != len(limit):
        raise ValueError(f"{len(prefixes)} prefixes for {len(limit)} sentences")
    special = config.pad_id, config.bos_id, config.eos_id
    for number, (prefix, most) in enumerate(zip(prefixes, limit.tolist(), strict=True)):
        if len(prefix) > most:
            raise ValueError(
                f"prefix {number} has {len(prefix)} tokens, above the limit of {most}"
            )
        for token in prefix:
            if token in special or not 0 <= token < config.vocab_size:
                raise ValueError(f"prefix {number} has a token {token}: no text has it")


def _predictor(
    models: list[EncoderDecoder],
    src: Tensor,
    limit: Tensor,
    min_length: int,
    prefixes: Sequence[Sequence[int]] | None,
) -> Predictor:
    """What the models say about src, (B, S), without what the caller has ruled out."""
    several = [predictor_of(model, src) for model in models]
    predictor: Predictor = several[0] if len(several) == 1 else Ensemble(several)
    if prefixes is not None:
        _check_prefixes(prefixes, models[0].config, limit)
    if min_length or prefixes is not None:
        eos_id = models[0].config.eos_id
        return Constrained(predictor, eos_id, min_length, prefixes)
    return predictor


@torch.inference_mode()
def beam_search(
    models: Models,
    src: Tensor,
    beam_size: int = 4,
    alpha: float = 0.6,
    n_best: int = 1,
    *,
    extra_length: int = 50,
    min_length: int = 0,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """Beam search for the translations of a batch, as §6.1 has it.

    models: one model, or several of one vocabulary, whose probabilities are
    averaged. src, extra_length: as `greedy_search`. beam_size, alpha, n_best and what
    is returned: as `search`. min_length: tokens, eos not counted, that a translation
    has at least. prefixes: B lists of tokens with which the translations begin.
    Raises ValueError where an option makes no sense.
    """
    models = _as_list(models)
    limit = _longest(models, src, extra_length)  # (B,)
    if not len(src):
        return []
    with evaluating(models):
        predictor = _predictor(models, src, limit, min_length, prefixes)
        eos_id = models[0].config.eos_id
        return search(predictor, limit, eos_id, beam_size, alpha, n_best)


@torch.inference_mode()
def sample(
    models: Models,
    src: Tensor,
    n_samples: int = 1,
    temperature: float = 1.0,
    *,
    top_k: int | None = None,
    top_p: float | None = None,
    generator: torch.Generator | None = None,
    extra_length: int = 50,
    min_length: int = 0,
    prefixes: Sequence[Sequence[int]] | None = None,
) -> list[list[Hypothesis]]:
    """Translations by lot; options as `draw` and `beam_search` have them."""
    models = _as_list(models)
    limit = _longest(models, src, extra_length)  # (B,)
    if not len(src):
        return []
    options = n_samples, temperature, top_k, top_p, generator
    with evaluating(models):
        predictor = _predictor(models, src, limit, min_length, prefixes)
        return draw(predictor, limit, models[0].config.eos_id, *options)


@torch.inference_mode()
def log_probability(
    models: Models, src: Tensor, outputs: Sequence[Sequence[int]]
) -> list[float]:
    """log p(y | x) in nats of outputs that are given, eos included.

    models, src: as `beam_search`. outputs: B lists of ids, without bos and eos.
    Raises ValueError where their number is not that of the sentences.
    """
    models = _as_list(models)
    if not len(src) and not len(outputs):
        return []
    tgt, labels = _teacher(models[0].config, src, outputs)  # (B, T) each
    with evaluating(models):
        answers = [model(src, tgt).float().log_softmax(dim=-1) for model in models]
    log_probs = _log_mean(answers).gather(-1, labels[..., None])[..., 0]  # (B, T)
    log_probs = log_probs.masked_fill(labels == models[0].config.pad_id, 0.0)
    return log_probs.sum(dim=-1).tolist()


def _teacher(
    config: Any, src: Tensor, outputs: Sequence[Sequence[int]]
) -> tuple[Tensor, Tensor]:
    """What the decoder reads and what it should say; (B, T) each."""
    if len(outputs) != len(src):
        raise ValueError(f"{len(outputs)} outputs for {len(src)} sentences")
    tgt = pad([[config.bos_id, *ids] for ids in outputs], config.pad_id)
    labels = pad([[*ids, config.eos_id] for ids in outputs], config.pad_id)
    return tgt.to(src.device), labels.to(src.device)


Place = tuple[str, int]  # kind of attention, layer from 0


def attention_places(model: Transformer) -> dict[Place, MultiHeadAttention]:
    """The 3 N attentions of a model, by ("encoder", "decoder" or "cross", layer)."""
    places: dict[Place, MultiHeadAttention] = {}
    for layer, encoder in enumerate(model.encoder.layers):
        places["encoder", layer] = encoder.self_attention
    for layer, decoder in enumerate(model.decoder.layers):
        places["decoder", layer] = decoder.self_attention
        places["cross", layer] = decoder.cross_attention
    return places


@contextmanager
def replaced_attention(
    model: Transformer, functions: Mapping[Place, Callable[..., Tensor]]
) -> Iterator[None]:
    """Other functions in the place of Eq. 1, and afterwards those that were there.

    functions: by kind and layer; each is called as the `attention` of
    `MultiHeadAttention`. Raises ValueError where the model has no such place.
    """
    places = attention_places(model)
    for place in functions:
        if place not in places:
            n = model.config.n_layers
            raise ValueError(
                f'no attention {place!r}: a place is "encoder", "decoder" or '
                f'"cross" and a layer from 0 to {n - 1}'
            )
    before = {place: places[place].attention for place in functions}
    try:
        for place, function in functions.items():
            places[place].attention = function
        yield
    finally:
        for place, function in before.items():
            places[place].attention = function


class AttentionMaps(NamedTuple):
    """Every attention of one sentence and its translation: row, a query; column, a key.

    N layers, H heads, S tokens of the source, T of the output, eos counted in both. A
    row sums to 1 over the keys. Of a kind that a model does not have, N and H are 0.
    """

    encoder: Tensor  # (N, H, S, S), source over source
    decoder: Tensor  # (N, H, T, T), token chosen over tokens read: bos and all but eos
    cross: Tensor  # (N, H, T, S), token chosen over source


def _every_attention(model: Transformer, src: Tensor, tgt: Tensor) -> list[Tensor]:
    """The weights of a pass, (B, N, H, T, S) for each kind of attention."""
    kept: dict[Place, Tensor] = {}

    def keeping(place: Place, function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def attend(query, key, value, mask=None, dropout=0.0):
            identity = torch.eye(key.size(-2), dtype=value.dtype, device=value.device)
            identity = identity.expand(*key.shape[:-1], -1)  # (B, H, S, S)
            kept[place] = function(query, key, identity, mask)  # (B, H, T, S)
            return function(query, key, value, mask, dropout)

        return attend

    places = attention_places(model)
    watching = {place: keeping(place, at.attention) for place, at in places.items()}
    with replaced_attention(model, watching):
        model.hidden(src, tgt)
    layers = range(model.config.n_layers)
    return [
        torch.stack([kept[kind, layer] for layer in layers], dim=1)
        for kind in AttentionMaps._fields
    ]


@torch.inference_mode()
def attention_maps(
    model: EncoderDecoder, src: Tensor, outputs: Sequence[Sequence[int]]
) -> list[AttentionMaps]:
    """Where a model looked when it read each sentence and chose each token.

    src: as `greedy_search`. outputs: B lists of ids, without bos and eos. The weights
    are those of the functions in place, `replaced_attention` included; the model keeps
    nothing of them. Raises ValueError where there is not an output for each sentence,
    or where the model does not attend to the source.
    """
    tgt, _ = _teacher(model.config, src, outputs)  # (B, T)
    with evaluating([model]):
        if isinstance(model, Transformer):
            stacks = _every_attention(model, src, tgt)
        else:
            cross = torch.stack(model.source_weights(src, tgt), dim=1)
            none = [cross.new_empty(len(x), 0, 0, *[x.size(1)] * 2) for x in (src, tgt)]
            stacks = [*none, cross]
    lengths = (src != model.config.pad_id).sum(dim=-1).tolist()
    found = []
    for b, (s, ids) in enumerate(zip(lengths, outputs, strict=True)):
        sizes = (s, s), (len(ids) + 1,) * 2, (len(ids) + 1, s)
        maps = (w[b, :, :, :t, :k] for w, (t, k) in zip(stacks, sizes, strict=True))
        found.append(AttentionMaps(*maps))
    return found
