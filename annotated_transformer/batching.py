# Written in notebooks/5_1_batches.ipynb; edit it there.
"""Batches of sentence pairs, counted in tokens and grouped by length (§5.1)."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pair", "Batch", "pad", "make_batch", "group_by_length", "TokenBatches"]


Pair = tuple[list[int], list[int]]  # ids of a source sentence and of its translation


class Batch(NamedTuple):
    """Sentence pairs of similar length, filled up with pad_id to a rectangle."""

    src: Tensor  # (B, S) int64, each row ends with eos
    tgt: Tensor  # (B, T) int64, what the decoder reads: bos, then the translation
    labels: Tensor  # (B, T) int64, what it must say next: the translation, then eos


def pad(sequences: Sequence[list[int]], pad_id: int) -> Tensor:
    """Sequences filled up with pad_id on the right: (B, longest) int64."""
    longest = max(map(len, sequences))
    rows = [ids + [pad_id] * (longest - len(ids)) for ids in sequences]
    return torch.tensor(rows, dtype=torch.int64)


def make_batch(pairs: Sequence[Pair], pad_id: int, bos_id: int, eos_id: int) -> Batch:
    """One batch of these pairs, with bos and eos where the model needs them."""
    return Batch(
        src=pad([src + [eos_id] for src, _ in pairs], pad_id),
        tgt=pad([[bos_id] + tgt for _, tgt in pairs], pad_id),
        labels=pad([tgt + [eos_id] for _, tgt in pairs], pad_id),
    )


def group_by_length(
    lengths: Sequence[tuple[int, int]], max_tokens: int, rng: random.Random
) -> list[list[int]]:
    """Indices of pairs, in groups of similar length on both sides (§5.1).

    lengths: (source, target) tokens of each pair. max_tokens: the most that a group may
    take on either side, padding included: pairs times the longest. rng shuffles pairs
    of equal lengths before they are grouped, and the groups after. Raises ValueError
    where one pair alone is above max_tokens.
    """

    def along_the_rims(i: int) -> tuple[int, int]:
        """By the longer side, then by the difference, up and down in turn.

        Where pairs of every length exist, a step changes one side by one token.
        """
        src, tgt = lengths[i]
        longer = max(src, tgt)
        return longer, src - tgt if longer % 2 else tgt - src

    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=along_the_rims)
    groups: list[list[int]] = []
    for i in order:
        longest = max(lengths[i])  # of the group so far: the order is by it
        if longest > max_tokens:
            raise ValueError(
                f"pair {i} has {longest} tokens, more than a batch of {max_tokens}"
            )
        if not groups or longest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
        groups[-1].append(i)
    rng.shuffle(groups)
    return groups


class TokenBatches:
    """Batches of at most max_tokens tokens a side, every pair once an epoch (§5.1).

    pairs: ids of source and target, without bos and eos. max_tokens: tokens of a batch
    on either side, padding included. seed and `epoch`, which is 0 until whoever
    iterates sets it, decide the order; nothing else does. Iterating gives `Batch`es.
    Raises ValueError where there is no pair, or one alone is above max_tokens.
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
        if not pairs:
            raise ValueError("there are no sentence pairs to make batches of")
        self.pairs, self.max_tokens, self.seed = pairs, max_tokens, seed
        self.special = (pad_id, bos_id, eos_id)
        # One more than the pieces: eos at the source and the labels, bos at the target.
        self.lengths = [(len(src) + 1, len(tgt) + 1) for src, tgt in pairs]
        self.epoch = 0
        self.groups()  # a pair that is too long is an error now, not in an hour

    def groups(self) -> list[list[int]]:
        """Indices of the pairs in each of this epoch's batches."""
        rng = random.Random(f"{self.seed} {self.epoch}")
        return group_by_length(self.lengths, self.max_tokens, rng)

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups():
            yield make_batch([self.pairs[i] for i in group], *self.special)
