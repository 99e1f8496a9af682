"""The training loop: notebooks/5_2_hardware_and_schedule.ipynb."""

import math
import random

import pytest
import torch

from annotated_transformer import training
from annotated_transformer.batching import Batch, TokenBatches, make_batch
from annotated_transformer.loss import label_smoothed_cross_entropy
from annotated_transformer.model import Transformer, TransformerConfig
from annotated_transformer.training import (
    TrainingConfig,
    batch_loss,
    evaluate_loss,
    train,
    update,
)

SPECIAL = 0, 1, 2
VOCAB_SIZE = 12


def model(dropout=0.0, seed=0, **changes):
    torch.manual_seed(seed)
    shape = {"d_model": 16, "n_layers": 1, "n_heads": 2, "d_ff": 32, **changes}
    return Transformer(TransformerConfig(VOCAB_SIZE, dropout=dropout, **shape))


def pairs(n, seed=0, longest=6):
    """Random sequences of unequal length, each with its reverse."""
    rng = random.Random(seed)
    rows = [
        [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, longest))]
        for _ in range(n)
    ]
    return [(row, row[::-1]) for row in rows]


def batches(n=24, max_tokens=30, seed=0):
    return TokenBatches(pairs(n, seed), max_tokens, *SPECIAL, seed)


def settings(**changes):
    return TrainingConfig(**{"max_tokens": 30, "epochs": 2, "warmup": 10, **changes})


def adam(model, **changes):
    return torch.optim.Adam(model.parameters(), lr=0.0, betas=(0.9, 0.98), **changes)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(ones, others):
    return all(map(torch.equal, ones, others))


def curve(records):
    return [(record["train_loss"], record["validation_loss"]) for record in records]


def modes(model):
    """A list that notes, for each forward pass, (train mode, gradients kept)."""
    seen = []
    model.register_forward_pre_hook(
        lambda module, _: seen.append((module.training, torch.is_grad_enabled()))
    )
    return seen


# Learning


def test_it_learns_a_handful_of_pairs_by_heart():
    few = TokenBatches(pairs(4, longest=4), 60, *SPECIAL)
    config = settings(epochs=150, warmup=40, smoothing=0.0)
    records = list(train(model(d_model=32, d_ff=64), few, few, config))
    assert records[0]["validation_loss"] > 1
    assert records[-1]["validation_loss"] < 0.01
    assert records[-1]["train_loss"] < 0.02


def test_the_records_of_a_run():
    config = settings(epochs=3)
    train_batches, validation = batches(), batches(8, seed=1)
    n_batches = len(list(train_batches))
    assert n_batches > 2
    trained = model()
    for number, record in enumerate(train(trained, train_batches, validation, config)):
        assert record["epoch"] == number + 1
        assert record["step"] == n_batches * (number + 1)
        assert record["validation_loss"] == evaluate_loss(trained, validation)
        tokens = sum(len(tgt) + 1 for _, tgt in train_batches.pairs)
        rate = tokens / record["seconds"]
        assert record["tokens_per_second"] == pytest.approx(rate)
    assert number == 2


def test_the_training_loss_is_the_mean_over_tokens():
    """Seen from outside: one batch, no dropout, so the loss before the first move."""
    one = batches(n=5, max_tokens=100)
    (batch,) = one
    untrained = model()
    total = label_smoothed_cross_entropy(
        untrained(batch.src, batch.tgt), batch.labels, 0.1, 0
    )
    expected = total.item() / sum(len(tgt) + 1 for _, tgt in one.pairs)
    (record,) = train(untrained, one, one, settings(epochs=1))
    assert record["train_loss"] == pytest.approx(expected, rel=1e-6)


def test_the_training_loss_over_several_batches_is_weighted_by_tokens(monkeypatch):
    monkeypatch.setattr(training, "learning_rate", lambda *_: 0.0)  # nothing moves
    monkeypatch.setattr(training, "READ_EVERY", 2)
    several, still = batches(), model()
    config = settings(epochs=1, smoothing=0.0)
    (record,) = train(still, several, several, config)
    assert record["train_loss"] == pytest.approx(evaluate_loss(still, several))
    means = [loss.item() / n for loss, n in (batch_loss(still, b, 0) for b in several)]
    assert record["train_loss"] != pytest.approx(sum(means) / len(means), rel=1e-4)


# The same again


def test_a_seed_decides_everything():
    def run(seed):
        config = settings(seed=seed)
        return list(train(model(dropout=0.1), batches(), batches(seed=1), config))

    torch.manual_seed(99)  # what came before must not matter
    first = curve(run(0))
    torch.rand(7)
    assert curve(run(0)) == first
    assert curve(run(1)) != first


def test_every_epoch_has_an_order_of_its_own():
    seen = []

    class Watched(TokenBatches):
        def __iter__(self):
            seen.append((self.epoch, self.groups()))
            yield from super().__iter__()

    watched = Watched(pairs(24), 30, *SPECIAL)
    list(train(model(), watched, batches(), settings(epochs=3)))
    assert [epoch for epoch, _ in seen] == [0, 1, 2]
    assert seen[0][1] != seen[1][1] != seen[2][1]


# Train mode and eval mode


def test_dropout_is_on_in_training_and_off_in_validation():
    watched, train_batches, validation = model(dropout=0.1), batches(), batches(8)
    seen = modes(watched)
    list(train(watched, train_batches, validation, settings(epochs=2)))
    n, m = len(list(train_batches)), len(list(validation))
    assert seen == ([(True, True)] * n + [(False, False)] * m) * 2


@pytest.mark.parametrize("mode", [True, False])
def test_evaluation_changes_nothing(mode):
    evaluated = model(dropout=0.5).train(mode)
    before = weights(evaluated)
    losses = {evaluate_loss(evaluated, batches()) for _ in range(3)}
    assert len(losses) == 1
    assert evaluated.training is mode
    assert torch.is_grad_enabled()
    assert equal(before, weights(evaluated))
    assert all(p.grad is None for p in evaluated.parameters())


def test_validation_does_not_train():
    """Whatever is validated on, and however often, the weights come out the same."""
    results = []
    for validation in (batches(2, seed=1), batches(24, seed=2)):
        trained = model(dropout=0.1)
        list(train(trained, batches(), validation, settings()))
        results.append(weights(trained))
    assert equal(*results)


def test_the_score_joins_the_record():
    scored = model(dropout=0.1)
    seen = []

    def score(handed_in):
        assert handed_in is scored
        seen.append((handed_in.training, torch.is_grad_enabled()))
        handed_in.train()  # a careless one
        return {"bleu": 12.5}

    for record in train(scored, batches(), batches(), settings(), score):
        assert record["bleu"] == 12.5
        assert torch.is_grad_enabled()
    assert seen == [(False, False)] * 2


def test_the_model_is_handed_out_in_eval_mode():
    trained = model(dropout=0.1)
    for _ in train(trained, batches(), batches(), settings()):
        assert not trained.training


def test_the_loss_of_validation_is_not_smoothed():
    evaluated, some = model(), batches()
    total = sum(batch_loss(evaluated, batch, 0.0)[0].item() for batch in some)
    tokens = sum(len(tgt) + 1 for _, tgt in some.pairs)
    assert evaluate_loss(evaluated, some) == pytest.approx(total / tokens, rel=1e-6)


# One update


def test_the_gradient_is_that_of_the_mean_over_tokens():
    batch = make_batch(pairs(7), *SPECIAL)
    updated, reference = model(), model()
    loss, tokens = update(updated, adam(updated), batch, 1, settings())
    assert tokens == sum(len(tgt) + 1 for _, tgt in pairs(7))
    logits = reference(batch.src, batch.tgt)
    per_token = torch.nn.functional.cross_entropy(
        logits.mT, batch.labels, ignore_index=0, label_smoothing=0.1, reduction="mean"
    )
    per_token.backward()
    assert loss.item() / tokens == pytest.approx(per_token.item(), rel=1e-6)
    for ours, theirs in zip(updated.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)


def test_more_padding_does_not_change_an_update():
    batch = make_batch(pairs(5), *SPECIAL)
    wider = Batch(*(torch.nn.functional.pad(part, (0, 4)) for part in batch))
    gradients = []
    for each in (batch, wider):
        updated = model()
        update(updated, adam(updated), each, 1, settings())
        gradients.append([p.grad for p in updated.parameters()])
    for narrow, wide in zip(*gradients, strict=True):
        assert torch.allclose(narrow, wide, atol=1e-6)


def test_gradients_do_not_pile_up():
    batch, updated = make_batch(pairs(5), *SPECIAL), model()
    optimizer = adam(updated)
    for step in (1, 2):
        update(updated, optimizer, batch, step, settings())
    second = [p.grad.clone() for p in updated.parameters()]
    rerun = model()
    optimizer = adam(rerun)
    update(rerun, optimizer, batch, 1, settings())
    rerun.zero_grad()
    loss, tokens = batch_loss(rerun, batch, 0.1)
    (loss / tokens).backward()
    for ours, expected in zip(second, rerun.parameters(), strict=True):
        assert torch.allclose(ours, expected.grad, atol=1e-7)


def test_a_batch_of_padding_moves_nothing_at_first():
    nothing = Batch(*(torch.zeros(2, 3, dtype=torch.int64) for _ in range(3)))
    updated = model()
    before = weights(updated)
    loss, tokens = update(updated, adam(updated), nothing, 1, settings())
    assert (loss.item(), tokens) == (0, 0)
    assert equal(before, weights(updated))


def test_adam_has_the_paper_s_settings(monkeypatch):
    seen = {}

    class Watched(torch.optim.Adam):
        def __init__(self, parameters, **options):
            seen.update(options)
            super().__init__(parameters, **options)

    monkeypatch.setattr(torch.optim, "Adam", Watched)
    list(train(model(), batches(), batches(), settings(epochs=1)))
    assert (seen["betas"], seen["eps"]) == ((0.9, 0.98), 1e-9)


# Precision and devices


def test_bfloat16_is_close_and_leaves_the_weights_in_float32():
    runs = {}
    for bfloat16 in (False, True):
        trained = model()
        config = settings(epochs=4, bfloat16=bfloat16)
        runs[bfloat16] = curve(train(trained, batches(), batches(), config))
        assert {p.dtype for p in trained.parameters()} == {torch.float32}
        assert {p.grad.dtype for p in trained.parameters()} == {torch.float32}
    assert runs[True] != runs[False]
    for exact, rounded in zip(runs[False], runs[True], strict=True):
        assert rounded == pytest.approx(exact, rel=0.03)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("bfloat16", [False, True])
def test_it_trains_where_the_model_is(bfloat16):
    config = settings(epochs=4, bfloat16=bfloat16)
    here = curve(train(model(), batches(), batches(), config))
    moved = model().cuda()
    there = curve(train(moved, batches(), batches(), config))
    assert next(moved.parameters()).is_cuda
    for one, other in zip(here, there, strict=True):
        assert other == pytest.approx(one, rel=0.03)


# What goes wrong


class Sabotaged(TokenBatches):
    """Spoils a weight of `victim` when batch `at` of epoch `in_epoch` is drawn."""

    victim, at, in_epoch, value = None, 2, 0, math.nan

    def __iter__(self):
        for number, batch in enumerate(super().__iter__(), start=1):
            if (self.epoch, number) == (self.in_epoch, self.at):
                self.victim.embedding.weight.data[:, 0] = self.value
            yield batch


@pytest.mark.parametrize("read_every", [1, 2, 100])
@pytest.mark.parametrize("at, in_epoch", [(1, 0), (3, 0), (2, 1)])
def test_a_loss_that_is_not_finite_stops_the_run(at, in_epoch, read_every, monkeypatch):
    monkeypatch.setattr(training, "READ_EVERY", read_every)
    spoilt = Sabotaged(pairs(24), 30, *SPECIAL)
    spoilt.victim, spoilt.at, spoilt.in_epoch = model(), at, in_epoch
    n = len(list(batches()))
    step = in_epoch * n + at
    place = rf"nan at step {step} \(epoch {in_epoch + 1}, batch {at}\): training stops"
    records = train(spoilt.victim, spoilt, batches(), settings())
    for _ in range(in_epoch):
        assert math.isfinite(next(records)["train_loss"])  # not lost
    with pytest.raises(ValueError, match=place):
        next(records)


def test_a_long_epoch_stops_soon(monkeypatch):
    monkeypatch.setattr(training, "READ_EVERY", 2)
    spoilt = Sabotaged(pairs(60), 12, *SPECIAL)
    spoilt.victim, spoilt.at = model(), 3
    assert len(spoilt.groups()) > 8
    spoilt.epoch = 0
    passes = modes(spoilt.victim)
    with pytest.raises(ValueError, match="step 3 "):
        list(train(spoilt.victim, spoilt, batches(), settings()))
    assert len(passes) == 4


def test_nothing_to_train_or_to_evaluate_on_is_an_error():
    nothing = Batch(*(torch.zeros(1, 2, dtype=torch.int64) for _ in range(3)))

    class Padding(list):
        epoch = 0

    for empty in (Padding(), Padding([nothing])):
        with pytest.raises(ValueError, match="no token to evaluate"):
            evaluate_loss(model(), empty)
        with pytest.raises(ValueError, match="no token to train on"):
            list(train(model(), empty, batches(), settings()))


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("max_tokens", 0, "max_tokens is 0: it must be an integer from 1"),
        ("max_tokens", 10.0, "max_tokens is 10.0"),
        ("epochs", -1, "epochs is -1"),
        ("epochs", True, "epochs is True"),
        ("warmup", 0, "warmup is 0"),
        ("smoothing", 1.0, r"smoothing is 1.0: it must be in \[0, 1\)"),
        ("smoothing", -0.1, "smoothing is -0.1"),
        ("smoothing", math.nan, "smoothing is nan"),
        ("adam_betas", (0.9,), r"adam_betas is \(0.9,\): it must be two numbers"),
        ("adam_betas", (0.9, 1.0), r"adam_betas is \(0.9, 1.0\)"),
        ("adam_eps", 0.0, "adam_eps is 0.0: it must be positive"),
        ("seed", -1, "seed is -1: it must be an integer from 0"),
        ("seed", 0.5, "seed is 0.5"),
        ("bfloat16", "yes", "bfloat16 is 'yes': it must be True or False"),
    ],
)
def test_settings_that_make_no_sense_are_refused(field, value, expected):
    with pytest.raises(ValueError, match=expected):
        TrainingConfig(**{field: value})


def test_the_defaults_are_the_paper_s():
    config = TrainingConfig()
    assert (config.max_tokens, config.warmup, config.smoothing) == (25_000, 4000, 0.1)
    assert (config.adam_betas, config.adam_eps) == ((0.9, 0.98), 1e-9)
