# Written in notebooks/appendix_attention_visualizations.ipynb; edit it there.
"""Attention maps as words, drawings and a page to explore (Figures 3–5)."""

import base64
import html
import json
import re
import unicodedata
from collections.abc import Sequence
from importlib.resources import files
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from .decoding import AttentionMaps
from .translator import Attention

__all__ = [
    "SPECIAL",
    "KINDS",
    "Words",
    "words",
    "given_words",
    "join",
    "joined",
    "View",
    "view",
    "heat_map",
    "arcs",
    "head_grid",
    "quantised",
    "Explorer",
    "AttentionPage",
]


if TYPE_CHECKING:  # half a second that only a drawing costs
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
_BYTE = re.compile("<0x([0-9A-F]{2})>")


class Words(NamedTuple):
    """Words, and for each of their pieces the number of the word it is part of."""

    texts: list[str]
    owner: list[int]


def _bytes(piece: str) -> bytes:
    """What a piece is made of; some are one byte of a character that is rare."""
    found = _BYTE.fullmatch(piece)
    return bytes.fromhex(found[1]) if found else piece.encode()


def _text(pieces: Sequence[str]) -> str:
    """The text of some pieces, bytes put together; blanks at the ends are dropped."""
    data = b"".join(map(_bytes, pieces))
    return data.decode("utf-8", "replace").replace("▁", " ").strip()


def _is_mark(piece: str) -> bool:
    text = piece.removeprefix("▁")
    return bool(text) and all(unicodedata.category(c)[0] == "P" for c in text)


def _split(chunk: list[str]) -> list[list[str]]:
    """The marks at the edges of what stands between two blanks, taken off."""
    inner = [i for i, piece in enumerate(chunk) if not _is_mark(piece)]
    if not inner:
        return [[piece] for piece in chunk]
    first, last = inner[0], inner[-1] + 1
    edges = chunk[:first], chunk[last:]
    before, after = ([[mark] for mark in edge] for edge in edges)
    return [*before, chunk[first:last], *after]


def words(pieces: Sequence[str]) -> Words:
    """Pieces joined into words.

    A word begins at ▁. A special token is a word of its own, and so is a punctuation
    mark at the edge of a word, if it is a piece of its own.
    """
    chunks: list[list[str]] = []
    for i, piece in enumerate(pieces):
        alone = piece in SPECIAL or (i and pieces[i - 1] in SPECIAL)
        if not chunks or alone or piece.startswith("▁"):
            chunks.append([])
        chunks[-1].append(piece)
    groups = [group for chunk in chunks for group in _split(chunk)]
    owner = [number for number, group in enumerate(groups) for _ in group]
    return Words([_text(group) for group in groups], owner)


def given_words(pieces: Sequence[str], tokens: Sequence[str]) -> Words:
    """Pieces joined into words that are given, special tokens at the ends apart.

    tokens: words that together spell what the pieces do. A piece belongs to the word in
    which it begins. Raises ValueError where they spell something else, or where no
    piece begins in a word.
    """
    start = next((i for i, p in enumerate(pieces) if p not in SPECIAL), len(pieces))
    end = next((i for i, p in enumerate(pieces[start:], start) if p in SPECIAL), None)
    letters = [_bytes(piece.replace("▁", "")) for piece in pieces[start:end]]
    spelt, asked = b"".join(letters).decode("utf-8", "replace"), "".join(tokens)
    if spelt != asked:
        raise ValueError(f"the pieces spell {spelt!r} and the words {asked!r}")
    word_at = [number for number, token in enumerate(tokens) for _ in token.encode()]
    begins = accumulate(map(len, letters[:-1]), initial=0)
    owner = [start + word_at[begin] for begin in begins] if letters else []
    for number, token in enumerate(tokens, start):
        if number not in owner:
            raise ValueError(f"no piece begins in {token!r}")
    after = [] if end is None else list(pieces[end:])
    texts = [*pieces[:start], *tokens, *after]
    first_after = start + len(tokens)
    marks = range(first_after, first_after + len(after))
    return Words(texts, [*range(start), *owner, *marks])


def join(weights: Tensor, queries: Sequence[int], keys: Sequence[int]) -> Tensor:
    """Weights between words from weights between pieces.

    weights: (…, T, S) float. queries, keys: the number of its word for each of T and of
    S pieces. A word's row is the mean of its pieces' rows, its column the sum of their
    columns: rows that sum to 1 still do. Returns (…, words, words).
    """
    rows, columns = (
        F.one_hot(torch.tensor(owner, device=weights.device)).to(weights.dtype)
        for owner in (queries, keys)
    )
    return (rows / rows.sum(dim=0)).T @ weights @ columns


def joined(
    attention: Attention,
    source: Sequence[str] | None = None,
    target: Sequence[str] | None = None,
) -> Attention:
    """Attention between words from attention between pieces.

    source, target: the words, where they are known (`given_words`); otherwise they are
    what `words` finds.
    """
    src = words(attention.source)
    read, tgt = words(attention.read), words(attention.target)
    if source is not None:
        src = given_words(attention.source, source)
    if target is not None:
        read, tgt = (given_words(p, target) for p in (attention.read, attention.target))
    encoder, decoder, cross = attention.maps
    maps = AttentionMaps(
        join(encoder, src.owner, src.owner),
        join(decoder, tgt.owner, read.owner),
        join(cross, tgt.owner, src.owner),
    )
    return Attention(src.texts, read.texts, tgt.texts, maps)


KINDS = {
    "encoder": "encoder self-attention",
    "decoder": "decoder self-attention",
    "cross": "encoder-decoder attention",
}
_SIDES = {  # of rows and columns
    "encoder": ("source", "looks at the source"),
    "decoder": ("chosen", "looks at what is written"),
    "cross": ("chosen", "looks at the source"),
}


class View(NamedTuple):
    """The weights of one head, or the mean of several, with their labels."""

    weights: Tensor  # (T, S), a row sums to 1
    queries: list[str]  # T, of the rows
    keys: list[str]  # S, of the columns
    title: str  # kind, layer and head, counted from 1


def view(
    attention: Attention, kind: str, layer: int = -1, head: int | None = None
) -> View:
    """One map of an attention.

    kind: of KINDS. layer, head: from 0, or from the end if negative; no head: the mean
    of the layer's heads. Raises ValueError for a kind, layer or head that is not there.
    """
    if kind not in KINDS:
        raise ValueError(f"kind is {kind!r}: it must be one of {', '.join(KINDS)}")
    stack: Tensor = getattr(attention.maps, kind)  # (N, H, T, S)
    n_layers, n_heads = stack.shape[:2]
    for name, value, n in (("layer", layer, n_layers), ("head", head or 0, n_heads)):
        if not -n <= value < n:
            raise ValueError(f"{name} is {value}: there are {n}")
    weights, which = stack[layer].mean(dim=0), "mean of the heads"
    if head is not None:
        weights, which = stack[layer, head], f"head {head % n_heads + 1}"
    queries = attention.source if kind == "encoder" else attention.target
    keys = attention.read if kind == "decoder" else attention.source
    title = f"{KINDS[kind]}, layer {layer % n_layers + 1}, {which}"
    return View(weights, queries, keys, title)


def _axes(axes: "Axes | None", width: float, height: float) -> "Axes":
    if axes is not None:
        return axes
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))[1]


def heat_map(
    attention: Attention,
    kind: str,
    layer: int = -1,
    head: int | None = None,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw one map as a grid of cells. Arguments as `view`; axes: new if not given."""
    shown = view(attention, kind, layer, head)
    rows, columns = shown.weights.shape
    axes = _axes(axes, 1.8 + 0.3 * columns, 1.2 + 0.26 * rows)
    image = axes.imshow(shown.weights.cpu().numpy(), cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(columns), shown.keys, rotation=90)
    axes.set_yticks(range(rows), shown.queries)
    axes.grid(visible=False)
    below, right = _SIDES[kind]
    axes.set(xlabel=right, ylabel=below, title=shown.title)
    axes.figure.colorbar(image, ax=axes, label="weight")
    return axes


def _draw_lines(axes: "Axes", shown: View, rows: Sequence[int], **style) -> None:
    """Lines from some rows to all keys, as strong as their weights."""
    apart = style.pop("apart")
    for y in rows:
        for to, weight in enumerate(shown.weights[y].tolist()):
            style |= {"alpha": min(weight, 1.0), "lw": 0.5 + 2.5 * weight}
            axes.plot([0, 1], [y + apart, to + apart], **style)


def arcs(
    attention: Attention,
    kind: str,
    layer: int = -1,
    heads: Sequence[int] | None = None,
    rows: Sequence[int] | None = None,
    axes: "Axes | None" = None,
) -> "Axes":
    """Draw lines between two columns of words, as Figures 3 to 5 do.

    heads: a colour each; the mean of all if not given. rows: the queries whose lines
    are drawn, by number; all if not given. The other arguments as `heat_map`.
    """
    several = [None] if heads is None else list(heads)
    views = [view(attention, kind, layer, head) for head in several]
    _, queries, keys, title = views[0]
    rows = range(len(queries)) if rows is None else rows
    longest = max(len(queries), len(keys))
    axes = _axes(axes, 5, 0.9 + 0.26 * longest)
    for x, labels, side in (-0.03, queries, "right"), (1.03, keys, "left"):
        for y, label in enumerate(labels):
            axes.text(x, y, label, ha=side, va="center")
    for number, shown in enumerate(views):
        apart = 0.1 * (number - (len(views) - 1) / 2)  # lines of several heads
        _draw_lines(axes, shown, rows, color=f"C{number}", apart=apart)
        axes.plot([], [], color=f"C{number}", label=shown.title.rsplit(", ", 1)[1])
    if len(views) > 1:
        axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4)
    else:
        axes.set_title(title)
    axes.set(xlim=(-0.6, 1.6), ylim=(longest - 0.5, -0.7), yticks=[])
    axes.set_xticks([0, 1], _SIDES[kind])
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return axes


def head_grid(attention: Attention, kind: str) -> "Figure":
    """Draw every head of a kind, small: layers in rows, heads in columns."""
    import matplotlib.pyplot as plt

    view(attention, kind)  # there is such a kind
    n_layers, n_heads = getattr(attention.maps, kind).shape[:2]
    figure, grid = plt.subplots(
        n_layers,
        n_heads,
        figsize=(0.6 + 1.1 * n_heads, 0.6 + 1.1 * n_layers),
        squeeze=False,
    )
    for layer, row in enumerate(grid):
        row[0].set_ylabel(f"layer {layer + 1}")
        for head, axes in enumerate(row):
            weights = view(attention, kind, layer, head).weights
            axes.imshow(
                weights.cpu().numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto"
            )
            axes.set(xticks=[], yticks=[])
            axes.grid(visible=False)
            if layer == 0:
                axes.set_title(f"head {head + 1}")
    figure.suptitle(f"{KINDS[kind]}: {_SIDES[kind][0]} (row) {_SIDES[kind][1]}")
    return figure


def quantised(weights: Tensor) -> Tensor:
    """Weights in steps of 1/255, rounded so that each row keeps its sum.

    weights: (…, S), from 0 to 1. Returns uint8 of the same shape, less than one step
    from the weights; a row that sums to 1 sums to 255.
    """
    steps = weights.double() * 255
    down = steps.floor()
    lost = steps.sum(dim=-1).round() - down.sum(dim=-1)  # (…)
    rank = (down - steps).argsort(dim=-1, stable=True).argsort(dim=-1)
    return (down + (rank < lost[..., None])).to(torch.uint8)


def _summary(attention: Attention) -> str:
    """The sentence, and for each word of its translation the one it looks at most."""
    by_word = joined(attention)
    shown = view(by_word, "cross")
    shares, places = shown.weights.max(dim=-1)
    looks = (
        f"{word}: {shown.keys[place]} ({share:.0%})"
        for word, place, share in zip(
            shown.queries, places.tolist(), shares.tolist(), strict=True
        )
    )
    title = shown.title[0].upper() + shown.title[1:]
    line = f"{_text(attention.source[:-1])} → {_text(attention.target[:-1])}"
    rest = f"{title}. Each word chosen, with the one it looks at most: "
    return f"{html.escape(line)}<br>\n{html.escape(rest + ', '.join(looks))}."


def _sentence(attention: Attention) -> str:
    """A sentence in the page: a paragraph to read, and the data to explore."""
    sides = {}
    for side in ("source", "read", "target"):
        pieces = getattr(attention, side)
        sides[side] = {"pieces": pieces, **words(pieces)._asdict()}
    n_layers, n_heads = attention.maps.cross.shape[:2]
    weights = {
        kind: base64.b64encode(quantised(stack).cpu().numpy().tobytes()).decode()
        for kind, stack in attention.maps._asdict().items()
        if len(stack)
    }
    data = {"layers": n_layers, "heads": n_heads, **sides, "weights": weights}
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", "\\u003c")  # no text ends the script it stands in
    line = html.escape(_text(attention.source[:-1]))
    return (
        f"<p>{_summary(attention)}</p>\n"
        f'<script type="application/json" data-line="{line}">{text}</script>\n'
    )


def _file(name: str) -> str:
    return files("annotated_transformer").joinpath(name).read_text(encoding="utf-8")


def _opening() -> str:
    """The element that holds the sentences, and in it what the script will copy."""
    template = f"<template>\n{_file('explorer.html')}</template>"
    return f'<div data-attention-explorer="1">\n{template}\n'


def _script() -> str:
    return f"<script>\n{_file('explorer.js')}</script>\n"


class Explorer:
    """Attention maps to point at, in a notebook or as a page; all it needs is in it.

    attentions: as `Translator.attention` returns them, between pieces. Raises
    ValueError where there is none.
    """

    def __init__(self, attentions: Sequence[Attention]) -> None:
        self.attentions = list(attentions)
        if not self.attentions:
            raise ValueError("an explorer of no sentences")

    def __repr__(self) -> str:
        return f"Explorer of {len(self.attentions)} sentence(s)"

    def _repr_html_(self) -> str:
        sentences = "".join(map(_sentence, self.attentions))
        return f"{_opening()}{sentences}</div>\n{_script()}"


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Where the model looked</title>
<style>
:root { color-scheme: light dark; font: 1rem/1.4 system-ui, sans-serif; }
body { margin: 1.5rem auto; max-width: 60rem; padding: 0 1rem; }
</style>
<h1>Where the model looked</h1>
"""


class AttentionPage:
    """An HTML file with an explorer that grows by one sentence after another.

    path: of the file, which must not be there yet. Where an error comes before the
    first sentence, none is left. Raises OSError where it is there, or cannot be
    written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path, self.empty = Path(path), True
        self.file = open(path, "x", encoding="utf-8")
        self.file.write(_PAGE + _script() + _opening())

    def __enter__(self) -> "AttentionPage":
        return self

    def __exit__(self, error: type | None = None, *_) -> None:
        if error is not None and self.empty:
            self.file.close()
            self.path.unlink()
            return
        self.file.write("</div>\n")
        self.file.close()

    def add(self, attention: Attention) -> None:
        """One sentence and its translation, as `Translator.attention` returns them."""
        self.file.write(_sentence(attention))
        self.file.flush()
        self.empty = False
