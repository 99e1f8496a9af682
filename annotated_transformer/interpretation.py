# Written in notebooks/appendix_attention_visualizations.ipynb; edit it there.
"""What attention is worth as an explanation: interventions, alignments, probes."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager

import torch
import torch.nn.functional as F
from torch import Tensor

from .attention import (
    attention_weights,
    fused_attention,
    padding_mask,
)
from .decoding import attention_places, replaced_attention
from .model import Transformer

__all__ = [
    "Attend",
    "Head",
    "Link",
    "at",
    "cut_links",
    "move_links",
    "cut_heads",
    "all_heads",
    "without_heads",
    "strongest_links",
    "diagonal_links",
    "alignment_error_rate",
    "encoder_states",
    "linear_probe",
    "head_importance",
    "pruning_curve",
]


Attend = Callable[..., Tensor]  # a function in the place of Eq. 1


def at(positions: Sequence[Sequence[int]], length: int) -> Tensor:
    """Positions of each sentence as a mask: B lists of numbers → (B, length) bool."""
    mask = torch.zeros(len(positions), length, dtype=torch.bool)
    for row, numbers in zip(mask, positions, strict=True):
        row[list(numbers)] = True
    return mask


def _of_heads(heads: Sequence[int] | None, n_heads: int) -> Tensor:
    """Which heads are meant, all where it is not said; (H, 1, 1) bool."""
    numbers = range(n_heads) if heads is None else heads
    for head in numbers:
        if not 0 <= head < n_heads:
            raise ValueError(f"head is {head}: it must be from 0 to {n_heads - 1}")
    return at([numbers], n_heads)[0, :, None, None]


def _links(
    heads: Sequence[int] | None,
    rows: Tensor,
    columns: Tensor,
    query: Tensor,
    key: Tensor,
) -> Tensor:
    """Where the links are: (B, H, T, S) bool."""
    sides = ("rows", rows, query.size(2)), ("columns", columns, key.size(2))
    for name, mask, n in sides:
        if mask.size(-1) != n:
            raise ValueError(f"{name} are {mask.size(-1)} positions, and there are {n}")
    rows, columns = rows.to(query.device), columns.to(query.device)
    links = rows[:, None, :, None] & columns[:, None, None, :]  # (B, 1, T, S)
    return links & _of_heads(heads, query.size(1)).to(query.device)


def cut_links(
    rows: Tensor,
    columns: Tensor,
    heads: Sequence[int] | None = None,
    attention: Attend = fused_attention,
) -> Attend:
    """Eq. 1 with the score of some links at −∞.

    rows: (B, T) bool, True = the queries; columns: (B, S) bool, True = the keys that
    they may not attend to. heads: from 0; all if not given. attention: the function
    that computes the rest. Calling it raises ValueError where the sizes do not fit.
    """

    def attend(query, key, value, mask=None, dropout=0.0):
        allowed = ~_links(heads, rows, columns, query, key)  # (B, H, T, S)
        allowed = allowed if mask is None else allowed & mask
        return attention(query, key, value, allowed, dropout)

    return attend


def move_links(
    rows: Tensor,
    columns: Tensor,
    to: Tensor,
    heads: Sequence[int] | None = None,
) -> Attend:
    """Eq. 1 with the weight of some links given to others.

    rows, columns, heads: as `cut_links`. to: (B, S) bool, the keys that get the weight
    which the row had on columns, in equal parts. Calling it raises ValueError where the
    sizes do not fit, or where there is no key to give the weight to, or a hidden one.
    """

    def attend(query, key, value, mask=None, dropout=0.0):
        weights = attention_weights(query, key, mask)  # (B, H, T, S)
        taken = _links(heads, rows, columns, query, key)
        given = _links(heads, rows, to, query, key)
        if (taken.any(-1) & ~given.any(-1)).any():
            raise ValueError("a link is to be moved, and there is no key to move it to")
        if mask is not None and (given & ~mask).any():
            raise ValueError("a link is to be moved to a key that the mask hides")
        moved = weights.masked_fill(~taken, 0).sum(dim=-1, keepdim=True)
        share = given / given.sum(dim=-1, keepdim=True).clamp(min=1)
        weights = weights.masked_fill(taken, 0) + moved * share
        return F.dropout(weights, dropout) @ value  # (B, H, T, d_v)

    return attend


Head = tuple[str, int, int]  # kind of attention, layer, head; both from 0


def cut_heads(
    heads: Sequence[int] | None = None, attention: Attend = fused_attention
) -> Attend:
    """Eq. 1 with zeros for the result of some heads; of all if none is named."""

    def attend(query, key, value, mask=None, dropout=0.0):
        result = attention(query, key, value, mask, dropout)  # (B, H, T, d_v)
        cut = _of_heads(heads, result.size(1)).to(result.device)
        return result.masked_fill(cut, 0)

    return attend


def all_heads(model: Transformer) -> list[Head]:
    """Every head of a model, by kind, layer and number."""
    places = attention_places(model).items()
    return [(*place, head) for place, at in places for head in range(at.n_heads)]


def without_heads(
    model: Transformer, heads: Iterable[Head]
) -> AbstractContextManager[None]:
    """A context in which these heads of a model give zeros.

    Raises ValueError where the model has no such head.
    """
    known: set[Head] = set(all_heads(model))
    cut: dict[tuple[str, int], list[int]] = {}
    for head in heads:
        if head not in known:
            raise ValueError(f"no head {head!r}: a head is (kind, layer, number)")
        cut.setdefault(head[:2], []).append(head[2])
    places = attention_places(model)
    functions = {
        place: cut_heads(numbers, places[place].attention)
        for place, numbers in cut.items()
    }
    return replaced_attention(model, functions)


Link = tuple[int, int]  # source word, target word


def strongest_links(weights: Tensor, keys: int | None = None) -> list[Link]:
    """For each row the key with the largest weight.

    weights: (T, S), between words. keys: so many of the S may be chosen, the first;
    all if not given. Returns (key, row) pairs.
    """
    return [(key, row) for row, key in enumerate(weights[:, :keys].argmax(-1).tolist())]


def diagonal_links(n_source: int, n_target: int) -> list[Link]:
    """The same for a head that spreads the source evenly over the target."""
    step = (n_source - 1) / max(n_target - 1, 1)
    return [(int(row * step + 0.5), row) for row in range(n_target)]


def alignment_error_rate(
    found: Sequence[Iterable[Link]], gold: Sequence[Iterable[Link]]
) -> float:
    """1 - 2 |A ∩ G| / (|A| + |G|) over all sentences together.

    found, gold: the links of each sentence. Raises ValueError where there are not as
    many of the one as of the other, or no links at all.
    """
    if len(found) != len(gold):
        raise ValueError(f"links of {len(found)} sentences and {len(gold)} of gold")
    both = total = 0
    for one, other in zip(map(set, found), map(set, gold), strict=True):
        both += len(one & other)
        total += len(one) + len(other)
    if not total:
        raise ValueError("no links, neither found nor gold")
    return 1 - 2 * both / total


@torch.no_grad()
def encoder_states(model: Transformer, src: Tensor) -> Tensor:
    """What the encoder holds at each position, before and after each layer.

    src: (B, S) int64, filled up with pad_id. Returns (N + 1, B, S, D): first the
    embedding with its position, then the outputs of the layers, without the norm that
    ends a pre-norm stack. The model is in evaluation mode meanwhile.
    """
    training = model.training
    model.eval()
    try:
        mask, x = padding_mask(src, model.config.pad_id), model.embed(src)
        states = [x]
        for layer in model.encoder.layers:
            states.append(x := layer(x, mask))
    finally:
        model.train(training)
    return torch.stack(states)


def linear_probe(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], decay: float = 1e-3
) -> float:
    """The accuracy of a linear classifier that sees one vector at a time.

    train, test: vectors (n, D) float and their classes (n,) int64, from 0. The vectors
    are scaled to mean 0 and deviation 1 on the training side. decay: of the squared
    weights. Deterministic: it starts at zero, and its loss has one minimum.
    """
    (x, y), (x_test, y_test) = ((v.detach().double(), c) for v, c in (train, test))
    mean, deviation = x.mean(dim=0), x.std(dim=0).clamp(min=1e-6)
    x, x_test = (x - mean) / deviation, (x_test - mean) / deviation
    weight = x.new_zeros(x.size(1), int(y.max()) + 1)
    bias = x.new_zeros(weight.size(1))
    weight.requires_grad_()
    bias.requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=200, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(x @ weight + bias, y) + decay * weight.square().sum()
        value.backward()
        return value

    optimizer.step(loss)
    with torch.no_grad():
        right = (x_test @ weight + bias).argmax(dim=-1) == y_test
    return right.double().mean().item()


def head_importance(
    model: Transformer, score: Callable[[Transformer], float]
) -> dict[Head, float]:
    """How much of its score a model loses without each of its heads alone.

    score: of a model, the higher the better.
    """
    whole, lost = score(model), {}
    for head in all_heads(model):
        with without_heads(model, [head]):
            lost[head] = whole - score(model)
    return lost


def pruning_curve(
    model: Transformer, score: Callable[[Transformer], float], order: Sequence[Head]
) -> list[float]:
    """The score with no head removed, with the first of order, the first two, …"""
    curve = []
    for n in range(len(order) + 1):
        with without_heads(model, order[:n]):
            curve.append(score(model))
    return curve
