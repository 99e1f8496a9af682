# Written in notebooks/5_1_batches.ipynb; edit it there.
"""Batches of sentence pairs, counted in tokens and grouped by length (§5.1)."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

__all__ = [
    "Pair",
    "Batch",
    "pad",
    "make_batch",
    "place_on_walk",
    "rim_order",
    "cut",
    "longer_sides",
    "group_by_length",
    "TokenBatches",
]


Pair = tuple[list[int], list[int]]  # ids of a source sentence and of its translation


class Batch(NamedTuple):
    """Sentence pairs of similar length, filled up with pad_id to a rectangle."""

    src: Tensor  # (B, S) int64, each row ends with eos
    tgt: Tensor  # (B, T) int64, what the decoder reads: bos, then the translation
    labels: Tensor  # (B, T) int64, what it must say next: the translation, then eos


def pad(sequences: Sequence[list[int]], pad_id: int) -> Tensor:
    """Sequences filled up with pad_id on the right: (B, longest) int64."""
    longest = max(map(len, sequences))
    rows = np.full((len(sequences), longest), pad_id, dtype=np.int64)
    for row, ids in zip(rows, sequences, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(rows)


def make_batch(pairs: Sequence[Pair], pad_id: int, bos_id: int, eos_id: int) -> Batch:
    """One batch of these pairs, with bos and eos where the model needs them."""
    return Batch(
        src=pad([src + [eos_id] for src, _ in pairs], pad_id),
        tgt=pad([[bos_id] + tgt for _, tgt in pairs], pad_id),
        labels=pad([tgt + [eos_id] for _, tgt in pairs], pad_id),
    )


def place_on_walk(lengths: np.ndarray) -> np.ndarray:
    """Where pairs stand on a walk along the rims of growing squares, from 0.

    lengths: (N, 2), source and target tokens, from 1. The longer side never shrinks
    along the walk, and a step changes one of the sides by one token.
    """
    src, tgt = lengths.astype(np.int64).T
    longer = np.maximum(src, tgt)
    return longer * (longer - 1) + np.where(longer % 2, src - tgt, tgt - src)


def rim_order(lengths: np.ndarray, bits: np.random.PCG64) -> np.ndarray:
    """Indices of the pairs along the walk; pairs of the same lengths in random order.

    lengths: as in `place_on_walk`. The order depends on the lengths and on bits alone.
    """
    last_place = int(lengths.max()) ** 2 - 1
    room = np.uint64(64 - last_place.bit_length())  # bits left under a place
    digits = np.empty((4, len(lengths)), dtype=np.uint16)  # of the keys, least first
    for start in range(0, len(lengths), 1 << 20):
        block = slice(start, start + (1 << 20))
        keys = place_on_walk(lengths[block]).astype(np.uint64) << room
        keys |= bits.random_raw(len(keys)) >> (np.uint64(64) - room)
        for i, digit in enumerate(digits):
            digit[block] = (keys >> np.uint64(16 * i)) & np.uint64(0xFFFF)
    return np.lexsort(digits)


def cut(sizes: np.ndarray, max_tokens: int) -> list[int]:
    """Where each group begins, if each is as large as max_tokens allows.

    sizes: the longer side of each pair, from small to large, none above max_tokens. A
    group takes the size of its last pair, times the number of its pairs.
    """
    starts, start = [], 0
    while start < len(sizes):
        starts.append(start)
        ahead = sizes[start : start + max_tokens // int(sizes[start])]
        takes = ahead * np.arange(1, len(ahead) + 1)  # tokens, were this the last pair
        start += np.count_nonzero(takes <= max_tokens)
    return starts


def longer_sides(lengths: np.ndarray, max_tokens: int) -> np.ndarray:
    """Tokens on the longer side of each pair, (N,); ValueError if above max_tokens."""
    sizes = np.maximum(lengths[:, 0], lengths[:, 1])
    too_long = sizes > max_tokens
    if too_long.any():
        i = int(too_long.argmax())
        raise ValueError(
            f"pair {i} has {sizes[i]} tokens, more than a batch of {max_tokens}"
        )
    return sizes


def group_by_length(
    lengths: np.ndarray, max_tokens: int, bits: np.random.PCG64
) -> list[np.ndarray]:
    """Indices of pairs, in groups of similar length on both sides (§5.1).

    lengths: (N, 2), source and target tokens of each pair, from 1. max_tokens: the most
    that a group may take on either side, padding included: pairs times the longest.
    bits shuffles pairs of equal lengths before they are cut, and the groups after: the
    groups are always as many. Raises ValueError where a pair alone is above max_tokens.
    """
    if len(lengths) == 0:
        return []
    sizes = longer_sides(lengths, max_tokens)
    order = rim_order(lengths, bits)
    groups = np.split(order, cut(sizes[order], max_tokens)[1:])
    return [groups[i] for i in np.argsort(bits.random_raw(len(groups)), kind="stable")]


class TokenBatches:
    """Batches of at most max_tokens tokens a side, every pair once an epoch (§5.1).

    pairs: ids of source and target, without bos and eos. Where they have an attribute
    `lengths`, (N, 2) tokens, they are not read to be counted. max_tokens: tokens of a
    batch on either side, padding included. seed and epoch decide the order; nothing
    else does. len is the number of batches, the same in every epoch; iterating gives
    the batches of epoch 0. Raises ValueError where there is no pair, or one alone is
    above max_tokens.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        max_tokens: int,
        pad_id: int,
        bos_id: int,
        eos_id: int,
        seed: int = 0,
    ) -> None:
        if not len(pairs):
            raise ValueError("there are no sentence pairs to make batches of")
        self.pairs, self.max_tokens, self.seed = pairs, max_tokens, seed
        self.special = (pad_id, bos_id, eos_id)
        lengths = getattr(pairs, "lengths", None)
        if lengths is None:
            lengths = [(len(src), len(tgt)) for src, tgt in pairs]
        # One more than the pieces: eos at the source and the labels, bos at the target.
        self.lengths = np.asarray(lengths, dtype=np.int32) + np.int32(1)  # (N, 2)
        sizes = longer_sides(self.lengths, max_tokens)  # too long is an error now
        self._length = len(cut(np.sort(sizes), max_tokens))

    def __len__(self) -> int:
        return self._length

    def groups(self, epoch: int) -> list[np.ndarray]:
        """Indices of the pairs in each batch of an epoch, counted from 0."""
        entropy = np.random.SeedSequence(self.seed, spawn_key=(epoch,))
        return group_by_length(self.lengths, self.max_tokens, np.random.PCG64(entropy))

    def target_tokens(self, group: np.ndarray) -> int:
        """Labels in the batch of this group, eos counted and padding not."""
        return int(self.lengths[group, 1].sum())

    def make(self, group: np.ndarray) -> Batch:
        """The batch of the pairs with these indices."""
        return make_batch([self.pairs[i] for i in group], *self.special)

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups(epoch=0):
            yield self.make(group)
