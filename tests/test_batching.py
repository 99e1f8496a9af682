"""Batches: notebooks/5_1_training_data_and_batching.ipynb, `batching`."""

import os
import random
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer.batching import (
    TokenBatches,
    group_by_length,
    make_batch,
    pad,
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
@given(corpora, st.integers(0, 3))
def test_every_pair_once_and_no_batch_too_large(pairs, epoch):
    batches = TokenBatches(pairs, MAX_TOKENS, *SPECIAL)
    batches.epoch = epoch
    seen = []
    for batch in batches:
        assert all(0 < side.numel() <= MAX_TOKENS for side in batch)
        assert batch.tgt.shape == batch.labels.shape
        assert len(batch.src) == len(batch.tgt)
        seen += sentences_of(batch)
    assert sorted(seen) == sorted((tuple(src), tuple(tgt)) for src, tgt in pairs)


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


@SETTINGS
@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 30)), max_size=80),
    st.integers(30, 200),
)
def test_groups_are_as_large_as_they_may_be(lengths, max_tokens):
    """Of two groups that follow each other in length, the first is full."""
    groups = group_by_length(lengths, max_tokens, random.Random(0))
    assert sorted(i for group in groups for i in group) == list(range(len(lengths)))
    sizes = sorted(
        ([max(lengths[i]) for i in group] for group in groups),
        key=lambda sizes: (min(sizes), max(sizes), -len(sizes)),
    )
    assert all(max(group) * len(group) <= max_tokens for group in sizes)
    for group, after in pairwise(sizes):
        assert min(after) * (len(group) + 1) > max_tokens


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


def test_order_is_decided_by_seed_and_epoch_alone():
    def order(seed, epoch):
        batches = TokenBatches(captions(500), 400, *SPECIAL, seed)
        batches.epoch = epoch
        random.seed(len(orders))  # nobody else's dice
        torch.manual_seed(len(orders))
        return [batch.src[:, 0].tolist() for batch in batches]

    orders = {}
    for seed in (0, 1):
        for epoch in (0, 1, 2):
            orders[seed, epoch] = order(seed, epoch)
    assert all(order(*key) == value for key, value in orders.items())
    values = list(orders.values())
    assert all(a != b for i, a in enumerate(values) for b in values[:i])


def test_epochs_differ_in_who_shares_a_batch_too():
    batches = TokenBatches(captions(500), 400, *SPECIAL)
    first = {frozenset(group) for group in batches.groups()}
    batches.epoch = 1
    second = {frozenset(group) for group in batches.groups()}
    assert first != second


def test_batches_do_not_come_in_order_of_length():
    batches = TokenBatches(captions(2000), 400, *SPECIAL)
    widths = [batch.src.shape[1] for batch in batches]
    rising, falling = (
        sum(sign * (b - a) > 0 for a, b in pairwise(widths)) for sign in (1, -1)
    )
    assert min(rising, falling) > 0.3 * len(widths)


def test_same_order_in_another_process():
    code = (
        "import random; from annotated_transformer.batching import TokenBatches;"
        "rng = random.Random(5);"
        "pairs = [([3] * rng.randint(1, 9), [3]) for _ in range(200)];"
        "print(TokenBatches(pairs, 50, 0, 1, 2, seed=3).groups())"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "7"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, check=True
    )
    rng = random.Random(5)
    pairs = [([3] * rng.randint(1, 9), [3]) for _ in range(200)]
    here = TokenBatches(pairs, 50, *SPECIAL, seed=3).groups()
    assert done.stdout.decode() == f"{here}\n"


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
    assert group_by_length([], 100, random.Random(0)) == []


def test_empty_sentences_are_bos_and_eos():
    (batch,) = TokenBatches([([], [])], 10, *SPECIAL)
    assert [side.tolist() for side in batch] == [[[EOS]], [[BOS]], [[EOS]]]


def test_batching_leaves_the_pairs_as_they_were():
    pairs = captions(20)
    before = [(list(src), list(tgt)) for src, tgt in pairs]
    list(TokenBatches(pairs, 200, *SPECIAL))
    assert pairs == before
