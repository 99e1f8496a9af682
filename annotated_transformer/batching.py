"""Batches of sentence pairs, counted in tokens and grouped by length (§5.1)."""

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

Pair = tuple[list[int], list[int]]  # ids of a source sentence and of its translation


class Batch(NamedTuple):
    """Sentence pairs of similar length, filled up with pad_id to a rectangle."""

    src: Tensor  # (B, S) int64, each row ends with eos
    tgt: Tensor  # (B, T) int64, what the decoder reads: bos, then the translation
    labels: Tensor  # (B, T) int64, what it must say next: the translation, then eos


def pad(sequences: Sequence[list[int]], pad_id: int) -> Tensor:
    """Fill sequences up with pad_id on the right to the longest: (B, longest) int64."""
    longest = max(map(len, sequences))
    return torch.tensor([ids + [pad_id] * (longest - len(ids)) for ids in sequences])


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
    """Indices of pairs in groups of similar length, none above max_tokens on either side (§5.1).

    lengths: (source, target) tokens of each pair. max_tokens: of a padded group, rows times the
    longest, on the source side and, separately, on the target side. Pairs of equal length are
    shuffled before grouping and the groups after it, so an epoch is different for each state of
    rng and no pair is lost. Raises ValueError where one pair alone is above max_tokens.
    """
    order = list(range(len(lengths)))
    rng.shuffle(order)
    order.sort(key=lambda i: (max(lengths[i]), lengths[i]))
    groups, group, longest = [], [], 0
    for i in order:
        if max(lengths[i]) > max_tokens:
            raise ValueError(
                f"pair {i} has {max(lengths[i])} tokens, more than a batch of {max_tokens}"
            )
        longest = max(longest, *lengths[i])
        if group and longest * (len(group) + 1) > max_tokens:
            groups.append(group)
            group, longest = [], max(lengths[i])
        group.append(i)
    groups.append(group)
    rng.shuffle(groups)
    return groups


class TokenBatches:
    """An epoch's batches of about max_tokens tokens a side, in an order that seed and epoch decide (§5.1).

    pairs: ids of source and target, without bos and eos. Iterating gives `Batch`es; `epoch` is
    counted from 0 and set by whoever iterates.
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
        self.pairs, self.max_tokens, self.seed = pairs, max_tokens, seed
        self.special = (pad_id, bos_id, eos_id)
        self.lengths = [(len(src) + 1, len(tgt) + 1) for src, tgt in pairs]  # with eos
        self.epoch = 0

    def groups(self) -> list[list[int]]:
        """Indices of the pairs in each of this epoch's batches."""
        rng = random.Random(f"{self.seed} {self.epoch}")
        return group_by_length(self.lengths, self.max_tokens, rng)

    def __iter__(self) -> Iterator[Batch]:
        for group in self.groups():
            yield make_batch([self.pairs[i] for i in group], *self.special)
