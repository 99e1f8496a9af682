"""Batches: notebooks/5_1_batches.ipynb, `batching`."""

import os
import random
import subprocess
import sys
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer.batching import (
    TokenBatches,
    cut,
    group_by_length,
    make_batch,
    pad,
    place_on_walk,
    rim_order,
)

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
SPECIAL = PAD, BOS, EOS = 0, 1, 2
MAX_TOKENS = 24
sentences = st.lists(st.integers(3, 99), max_size=MAX_TOKENS - 1)
corpora = st.lists(st.tuples(sentences, sentences), min_size=1, max_size=60)


def captions(n, seed=0):
    """n pairs with lengths like those of captions, each sentence different."""
    rng = random.Random(seed)
    pairs = []
    for i in range(n):
        source = max(1, round(rng.gauss(15, 5)))
        target = max(1, round(source + rng.gauss(1, 3)))
        pairs.append(([1000 + i] * source, [1000 + i] * target))
    return pairs


def sentences_of(batch):
    """The pairs in a batch, each side as it was before bos, eos and padding."""
    for src, tgt, labels in zip(*(side.tolist() for side in batch), strict=True):
        src, tgt, labels = ([i for i in row if i != PAD] for row in (src, tgt, labels))
        assert src.pop() == EOS and labels.pop() == EOS and tgt.pop(0) == BOS
        assert tgt == labels
        yield tuple(src), tuple(tgt)


def test_pad():
    assert pad([[5], [6, 7, 8], []], 9).tolist() == [[5, 9, 9], [6, 7, 8], [9, 9, 9]]
    assert pad([[], []], 9).dtype == torch.int64


def test_a_batch_by_hand():
    batch = make_batch([([5, 6], [7]), ([8], [9, 10, 11])], *SPECIAL)
    assert batch.src.tolist() == [[5, 6, EOS], [8, EOS, PAD]]
    assert batch.tgt.tolist() == [[BOS, 7, PAD, PAD], [BOS, 9, 10, 11]]
    assert batch.labels.tolist() == [[7, EOS, PAD, PAD], [9, 10, 11, EOS]]
    assert all(side.dtype == torch.int64 for side in batch)


@SETTINGS
@given(corpora, st.integers(0, 3), st.integers(0, 3))
def test_every_pair_once_and_no_batch_too_large(pairs, seed, epoch):
    batches = TokenBatches(pairs, MAX_TOKENS, *SPECIAL, seed)
    groups, seen = batches.groups(epoch), []
    assert len(groups) == len(batches)
    for group in groups:
        batch = batches.make(group)
        assert all(0 < side.numel() <= MAX_TOKENS for side in batch)
        assert batch.tgt.shape == batch.labels.shape
        assert len(batch.src) == len(batch.tgt) == len(group)
        assert batches.target_tokens(group) == (batch.labels != PAD).sum()
        assert list(sentences_of(batch)) == [
            (tuple(pairs[i][0]), tuple(pairs[i][1])) for i in group
        ]
        seen += group.tolist()
    assert sorted(seen) == list(range(len(pairs)))


@SETTINGS
@given(corpora)
def test_labels_are_the_target_one_place_on(pairs):
    for src, tgt, labels in TokenBatches(pairs, MAX_TOKENS, *SPECIAL):
        last = labels == EOS
        assert last.sum(dim=1).eq(1).all() and (src == EOS).sum(dim=1).eq(1).all()
        assert tgt[:, 0].eq(BOS).all()
        moved = torch.cat([tgt[:, 1:], torch.full((len(tgt), 1), PAD)], dim=1)
        assert torch.equal(labels.masked_fill(last, PAD), moved)
        assert torch.equal(labels == PAD, tgt == PAD)  # padded in the same places


def test_the_walk_by_hand():
    """Source across, target up: along one rim, and back along the next."""
    walk = [(1, 1), (2, 1), (2, 2), (1, 2), (1, 3), (2, 3), (3, 3), (3, 2), (3, 1)]
    assert place_on_walk(np.array(walk)).tolist() == list(range(9))


@pytest.mark.parametrize("side", [40, 41])
def test_the_walk_meets_every_pair_of_lengths_once_and_never_jumps(side):
    every = np.indices((side, side)).reshape(2, -1).T + 1
    places = place_on_walk(every.astype(np.int32))
    walk = every[np.argsort(places)]
    assert np.array_equal(np.sort(places), np.arange(side**2))
    assert (np.abs(np.diff(walk, axis=0)).sum(axis=1) == 1).all()
    assert (np.diff(walk.max(axis=1)) >= 0).all()


def test_places_of_very_long_sentences_do_not_overflow():
    lengths = np.array([[2**31 - 1, 1], [2**31 - 1, 2**31 - 1]], dtype=np.int32)
    n = 2**31 - 1  # odd: up with src - tgt
    assert place_on_walk(lengths).tolist() == [n * (n - 1) + n - 1, n * (n - 1)]
    assert rim_order(lengths, np.random.PCG64(0)).tolist() == [1, 0]


lengths_of_pairs = st.lists(
    st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=80
).map(lambda rows: np.array(rows, dtype=np.int32).reshape(-1, 2))


@SETTINGS
@given(lengths_of_pairs.filter(len), st.integers(0, 9))
def test_the_order_is_by_place_and_else_by_chance(lengths, seed):
    order = rim_order(lengths, np.random.PCG64(seed))
    assert sorted(order) == list(range(len(lengths)))
    assert (np.diff(place_on_walk(lengths)[order]) >= 0).all()


def test_pairs_of_the_same_lengths_are_shuffled_well():
    """Over many draws every pair stands at every place about as often."""
    lengths, draws = np.full((5, 2), 7), 4000
    places = np.zeros((5, 5))
    for seed in range(draws):
        order = rim_order(lengths, np.random.PCG64(seed))
        places[np.arange(5), order] += 1
    assert np.abs(places / draws - 0.2).max() < 0.03  # 4.7 standard deviations


@SETTINGS
@given(lengths_of_pairs, st.integers(30, 200), st.integers(0, 9))
def test_groups_are_as_large_as_they_may_be(lengths, max_tokens, seed):
    """Of two groups that follow each other in length, the first is full."""
    groups = group_by_length(lengths, max_tokens, np.random.PCG64(seed))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    sizes = sorted(
        (lengths[group].max(axis=1).tolist() for group in groups),
        key=lambda sizes: (min(sizes), max(sizes), -len(sizes)),
    )
    assert all(max(group) * len(group) <= max_tokens for group in sizes)
    for group, after in pairwise(sizes):
        assert min(after) * (len(group) + 1) > max_tokens


@SETTINGS
@given(st.lists(st.integers(1, 30), max_size=80), st.integers(30, 200))
def test_cuts_are_those_of_taking_one_pair_after_the_other(sizes, max_tokens):
    sizes, starts = sorted(sizes), []
    for i, size in enumerate(sizes):
        if not starts or size * (i - starts[-1] + 1) > max_tokens:
            starts.append(i)
    assert cut(np.array(sizes, dtype=np.int32), max_tokens) == starts


def test_cuts_do_not_overflow():
    sizes = np.full(10, 2**30, dtype=np.int32)
    assert cut(sizes, 2**31) == [0, 2, 4, 6, 8]


def waste(batches):
    """Share of padding on the source side, and on the target side."""
    empty, room = [0, 0], [0, 0]
    for src, tgt, _ in batches:
        for side, tokens in enumerate((src, tgt)):
            empty[side] += (tokens == PAD).sum().item()
            room[side] += tokens.numel()
    return empty[0] / room[0], empty[1] / room[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_grouping_leaves_little_padding_on_either_side(seed):
    pairs = captions(5000, seed)
    grouped = waste(TokenBatches(pairs, 2000, *SPECIAL, seed))
    at_random = waste(
        make_batch(pairs[i : i + 60], *SPECIAL) for i in range(0, len(pairs), 60)
    )
    assert max(grouped) < 0.09 and min(at_random) > 0.3


def as_lists(groups):
    return [group.tolist() for group in groups]


def test_order_is_decided_by_seed_and_epoch_alone():
    def order(seed, epoch):
        batches = TokenBatches(captions(500), 400, *SPECIAL, seed)
        random.seed(len(orders))  # nobody else's dice
        np.random.seed(len(orders))
        torch.manual_seed(len(orders))
        batches.groups(7)  # what was asked before does not matter
        return as_lists(batches.groups(epoch))

    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            orders[seed, epoch] = order(seed, epoch)
    assert all(order(*key) == value for key, value in orders.items())
    values = list(orders.values())
    assert all(a != b for i, a in enumerate(values) for b in values[:i])


def test_epochs_differ_in_who_shares_a_batch_too():
    batches = TokenBatches(captions(500), 400, *SPECIAL)
    first, second = (
        {frozenset(group) for group in as_lists(batches.groups(epoch))}
        for epoch in (0, 1)
    )
    assert len(first) == len(second) == len(batches) and first != second


def test_batches_do_not_come_in_order_of_length():
    batches = TokenBatches(captions(2000), 400, *SPECIAL)
    widths = [batch.src.shape[1] for batch in batches]
    rising, falling = (
        sum(sign * (b - a) > 0 for a, b in pairwise(widths)) for sign in (1, -1)
    )
    assert min(rising, falling) > 0.3 * len(widths)


def test_iterating_is_epoch_0():
    batches = TokenBatches(captions(60), 200, *SPECIAL, seed=3)
    for _ in range(2):
        for batch, group in zip(batches, batches.groups(0), strict=True):
            assert all(map(torch.equal, batch, batches.make(group)))


@SETTINGS
@given(corpora, st.integers(0, 3), st.data())
def test_the_rest_of_an_epoch_from_any_batch(pairs, epoch, data):
    """A position is the epoch and the number of the next group, in a new process."""
    whole = list(map(tuple, as_lists(TokenBatches(pairs, 24, *SPECIAL).groups(epoch))))
    k = data.draw(st.integers(0, len(whole)))
    resumed = TokenBatches(pairs, 24, *SPECIAL)
    rest = list(map(tuple, as_lists(resumed.groups(epoch)[k:])))
    assert whole[:k] + rest == whole


@pytest.mark.parametrize("n_processes", [1, 2, 3])
def test_processes_share_an_epoch_without_a_word(n_processes):
    pairs = captions(200)
    parts = [
        TokenBatches(pairs, 300, *SPECIAL).groups(1)[rank::n_processes]
        for rank in range(n_processes)
    ]
    dealt = sorted(i for part in parts for group in part for i in group)
    assert dealt == list(range(200))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_the_order_is_the_one_of_every_numpy():
    """PCG64's bits are promised to stay; if this changes, resumed runs go astray."""
    lengths = np.array([[2 + i % 3, 2 + i % 2] for i in range(20)], dtype=np.int32)
    bits = np.random.PCG64(np.random.SeedSequence(1, spawn_key=(2,)))
    groups = as_lists(group_by_length(lengths, 16, bits))
    assert groups == [
        [2, 14, 8, 17],
        [6, 0, 12, 18, 15],
        [7, 16, 4, 10],
        [3, 9, 19, 1, 13],
        [11, 5],
    ]


def test_same_order_in_another_process():
    code = (
        "import random; from annotated_transformer.batching import TokenBatches;"
        "rng = random.Random(5);"
        "pairs = [([3] * rng.randint(1, 9), [3]) for _ in range(200)];"
        "groups = TokenBatches(pairs, 50, 0, 1, 2, seed=3).groups(4);"
        "print([group.tolist() for group in groups])"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    rng = random.Random(5)
    pairs = [([3] * rng.randint(1, 9), [3]) for _ in range(200)]
    here = TokenBatches(pairs, 50, *SPECIAL, seed=3).groups(4)
    assert done.stdout.decode() == f"{as_lists(here)}\n"


class Counted:
    """Pairs that know their lengths, and say which of them were read."""

    def __init__(self, pairs):
        self.pairs, self.read = pairs, []
        self.lengths = np.array([[len(src), len(tgt)] for src, tgt in pairs])

    def __len__(self):
        return len(self.pairs)

    def __getitem__(self, i):
        self.read.append(int(i))
        return self.pairs[i]


def test_pairs_that_know_their_lengths_are_read_only_in_their_turn():
    pairs = captions(50)
    counted = Counted(pairs)
    batches, plain = (TokenBatches(p, 200, *SPECIAL) for p in (counted, pairs))
    groups = batches.groups(1)
    assert as_lists(groups) == as_lists(plain.groups(1))
    tokens = [batches.target_tokens(group) for group in groups]
    assert counted.read == []
    batch = batches.make(groups[2])
    assert counted.read == groups[2].tolist()
    assert tokens[2] == (batch.labels != PAD).sum()
    assert counted.lengths[0].tolist() == [len(side) for side in pairs[0]]  # not moved


@pytest.mark.parametrize("pair", [([3] * 10, [3]), ([3], [3] * 10)])
def test_a_pair_too_long_is_named_before_training(pair):
    pairs = [([3], [3]), pair]
    TokenBatches(pairs, 11, *SPECIAL)
    with pytest.raises(
        ValueError, match="^pair 1 has 11 tokens, more than a batch of 10"
    ):
        TokenBatches(pairs, 10, *SPECIAL)


def test_no_pairs_at_all():
    with pytest.raises(ValueError, match="no sentence pairs"):
        TokenBatches([], 100, *SPECIAL)
    nothing = np.empty((0, 2), dtype=np.int32)
    assert group_by_length(nothing, 100, np.random.PCG64(0)) == []


def test_empty_sentences_are_bos_and_eos():
    (batch,) = TokenBatches([([], [])], 10, *SPECIAL)
    assert [side.tolist() for side in batch] == [[[EOS]], [[BOS]], [[EOS]]]


def test_batching_leaves_the_pairs_as_they_were():
    pairs = captions(20)
    before = [(list(src), list(tgt)) for src, tgt in pairs]
    list(TokenBatches(pairs, 200, *SPECIAL))
    assert pairs == before
