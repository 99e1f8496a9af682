"""The training loop: notebooks/5_2_hardware_and_schedule.ipynb."""

import itertools
import json
import math
import random
import sys
import types

import pytest
import torch
from safetensors.torch import load_file

from annotated_transformer import training
from annotated_transformer.batching import Batch, TokenBatches, make_batch
from annotated_transformer.checkpoints import checkpoints, read_state
from annotated_transformer.loss import label_smoothed_cross_entropy
from annotated_transformer.model import Transformer, TransformerConfig
from annotated_transformer.training import (
    Objective,
    TrainingConfig,
    batch_loss,
    batch_seed,
    cost,
    evaluate_loss,
    make_adam,
    steps_from,
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


def count(batch):
    return int((batch.labels != 0).sum())


def step(model, optimizer, *batches, rate=1e-3, seed=0):
    """One update from these batches; the loss and the gradient's norm."""
    seeded = [(seed + i, batch) for i, batch in enumerate(batches)]
    objective = Objective(model, 0.1)
    return update(objective, optimizer, seeded, sum(map(count, batches)), rate)


def weights(model):
    return [p.detach().clone() for p in model.parameters()]


def equal(ones, others):
    return all(map(torch.equal, ones, others))


def curve(records):
    return [(record["train_loss"], record["validation_loss"]) for record in records]


def modes(model):
    """A list that notes, for each forward pass, (train mode, gradients kept)."""
    seen = []
    model.decoder.register_forward_pre_hook(
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
    several, still = batches(), model()
    config = settings(epochs=1, smoothing=0.0)
    (record,) = train(still, several, several, config)
    assert record["train_loss"] == pytest.approx(evaluate_loss(still, several))
    losses = [batch_loss(Objective(still, 0.0), b).item() / count(b) for b in several]
    means = losses
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


def test_every_epoch_has_an_order_of_its_own_and_every_pair():
    config = settings(epochs=3, accumulation=2)
    steps = list(steps_from(1, batches(), config))
    assert [step for step, _, _ in steps] == [*range(1, len(steps) + 1)]
    orders = []
    for epoch in (1, 2, 3):
        groups = [g for _, e, groups in steps if e == epoch for g in groups]
        orders.append([i for group in groups for i in group])
        assert sorted(orders[-1]) == list(range(24))
    assert orders[0] != orders[1] != orders[2] != orders[0]
    for first in range(1, len(steps) + 1):
        for here, there in zip(
            steps_from(first, batches(), config), steps[first - 1 :], strict=True
        ):
            assert here[:2] == there[:2]
            assert [*map(list, here[2])] == [*map(list, there[2])]


def test_the_loop_makes_the_batches_of_these_steps():
    made = []

    class Watched(TokenBatches):
        def make(self, group):
            made.append(list(group))
            return super().make(group)

    config = settings(epochs=3, accumulation=2)
    list(train(model(), Watched(pairs(24), 30, *SPECIAL), batches(seed=1), config))
    steps = steps_from(1, batches(), config)
    assert made == [list(g) for _, _, groups in steps for g in groups]


def test_seeds_of_batches_all_differ():
    cases = itertools.product(range(2), range(1, 400), range(8))
    seeds = {batch_seed(*case) & 0xFFFFFFFF for case in cases}  # what torch keeps of it
    assert len(seeds) == 2 * 399 * 8


def test_a_step_may_be_taken_anywhere():
    """Its dropout does not depend on what the generator did before."""
    batch, losses = make_batch(pairs(7), *SPECIAL), []
    for noise in (0, 5):
        torch.rand(noise)
        dropped = model(dropout=0.3)
        loss, _ = step(dropped, make_adam(dropped, settings()), batch, seed=3)
        losses.append(loss.item())
    assert losses[0] == losses[1]


@pytest.mark.parametrize(
    ("changes", "steps"),
    [
        ({"epochs": 2}, 18),
        ({"epochs": 2, "accumulation": 2}, 10),
        ({"epochs": 2, "max_steps": 7}, 7),
        ({"epochs": None, "max_steps": 30}, 30),
        ({"epochs": 1, "max_steps": 30}, 9),
    ],
)
def test_where_a_run_ends(changes, steps):
    assert settings(**changes).steps(9) == steps


def test_it_ends_there():
    config = settings(epochs=None, max_steps=7, validate_every=3)
    records = list(train(model(), batches(), batches(8), config))
    assert [record["step"] for record in records] == [3, 6, 7]


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
    objective = Objective(evaluated, 0.0)
    total = sum(batch_loss(objective, batch).item() for batch in some)
    tokens = sum(len(tgt) + 1 for _, tgt in some.pairs)
    assert evaluate_loss(evaluated, some) == pytest.approx(total / tokens, rel=1e-6)


# One update


def gradients(model):
    return [p.grad.clone() for p in model.parameters()]


def test_the_gradient_is_that_of_the_mean_over_tokens():
    batch = make_batch(pairs(7), *SPECIAL)
    updated, reference = model(), model()
    loss, norm = step(updated, make_adam(updated, settings()), batch)
    tokens = sum(len(tgt) + 1 for _, tgt in pairs(7))
    logits = reference(batch.src, batch.tgt)
    per_token = torch.nn.functional.cross_entropy(
        logits.mT, batch.labels, ignore_index=0, label_smoothing=0.1, reduction="mean"
    )
    per_token.backward()
    assert loss.item() / tokens == pytest.approx(per_token.item(), rel=1e-6)
    for ours, theirs in zip(updated.parameters(), reference.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad, atol=1e-7)
    flat = torch.cat([p.grad.flatten() for p in reference.parameters()])
    assert norm.item() == pytest.approx(flat.norm().item(), rel=1e-5)


@pytest.mark.parametrize("cuts", [(7, 24), (1, 2, 20, 24), range(1, 25)])
def test_micro_batches_of_unequal_size_equal_one_batch(cuts):
    rows, results = pairs(24), []
    parts = [make_batch(rows[i:j], *SPECIAL) for i, j in itertools.pairwise((0, *cuts))]
    assert len({count(part) for part in parts}) > 1
    for batches in ([make_batch(rows, *SPECIAL)], parts):
        updated = model()
        loss, norm = step(updated, make_adam(updated, settings()), *batches)
        results.append((loss.item(), norm.item(), gradients(updated)))
    (loss, norm, whole), (other_loss, other_norm, added) = results
    assert other_loss == pytest.approx(loss, rel=1e-6)
    assert other_norm == pytest.approx(norm, rel=1e-5)
    for one, other in zip(whole, added, strict=True):
        assert torch.allclose(one, other, rtol=0, atol=1e-6)


def test_more_padding_does_not_change_an_update():
    batch = make_batch(pairs(5), *SPECIAL)
    wider = Batch(*(torch.nn.functional.pad(part, (0, 4)) for part in batch))
    results = []
    for each in (batch, wider):
        updated = model()
        step(updated, make_adam(updated, settings()), each)
        results.append(gradients(updated))
    for narrow, wide in zip(*results, strict=True):
        assert torch.allclose(narrow, wide, atol=1e-6)


def test_gradients_do_not_pile_up():
    batch, updated = make_batch(pairs(5), *SPECIAL), model()
    optimizer = make_adam(updated, settings())
    step(updated, optimizer, batch)
    rerun = model()
    step(rerun, make_adam(rerun, settings()), batch)
    step(updated, optimizer, batch)
    loss = batch_loss(Objective(rerun, 0.1), batch)
    rerun.zero_grad()
    (loss / count(batch)).backward()
    for ours, expected in zip(gradients(updated), gradients(rerun), strict=True):
        assert torch.allclose(ours, expected, atol=1e-7)


def test_the_fused_optimiser_starts_as_torch_s_does():
    """Laying out its state at once must not change what it does."""
    batch, ends = make_batch(pairs(5), *SPECIAL), []
    for ours in (True, False):
        updated = model()
        optimizer = make_adam(updated, settings())
        if not ours:
            options = {"lr": 0.0, "betas": (0.9, 0.98), "eps": 1e-9}
            optimizer = torch.optim.Adam(updated.parameters(), **options, fused=True)
            optimizer.found_inf = torch.zeros(())
        for _ in range(3):
            step(updated, optimizer, batch)
        ends.append(weights(updated))
    assert equal(*ends)


def test_a_batch_of_padding_moves_nothing_at_first():
    nothing = Batch(*(torch.zeros(2, 3, dtype=torch.int64) for _ in range(3)))
    updated = model()
    before = weights(updated)
    loss, norm = step(updated, make_adam(updated, settings()), nothing)
    assert (loss.item(), norm.item()) == (0, 0)
    assert equal(before, weights(updated))


class Poisoned(Objective):
    """Spoils the loss, or the gradient alone, of one training batch."""

    at, calls, what = 1, 0, "loss"

    def forward(self, *batch):
        loss = super().forward(*batch)
        if not self.training:
            return loss
        Poisoned.calls += 1
        if Poisoned.calls == self.at and self.what == "loss":
            return loss * math.inf
        if Poisoned.calls == self.at:  # the same value, without a finite gradient
            return loss + (self.model.embedding.weight[0, 0] * 0).abs().sqrt()
        return loss


@pytest.fixture
def poison(monkeypatch):
    def poison(at, what="loss"):
        monkeypatch.setattr(Poisoned, "at", at)
        monkeypatch.setattr(Poisoned, "what", what)
        monkeypatch.setattr(Poisoned, "calls", 0)
        monkeypatch.setattr(training, "Objective", Poisoned)

    return poison


def test_after_a_bad_step_nothing_moves_any_more(poison):
    batch, updated = make_batch(pairs(5), *SPECIAL), model()
    optimizer = make_adam(updated, settings())
    step(updated, optimizer, batch)
    before = weights(updated)
    state = [v.clone() for s in optimizer.state.values() for v in s.values()]
    poison(1)
    bad = Poisoned(updated, 0.1)
    loss, _ = update(bad, optimizer, [(0, batch)], count(batch), 1e-3)
    assert not math.isfinite(loss)
    loss, _ = step(updated, optimizer, batch)  # sound, but too late
    assert math.isfinite(loss)
    assert equal(before, weights(updated))
    after = [v for s in optimizer.state.values() for v in s.values()]
    assert equal(state, after)


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


@pytest.mark.parametrize("read_every", [0.0, 1e9])
@pytest.mark.parametrize(
    ("at", "epoch", "what"),
    [(1, 1, "loss"), (3, 1, "loss"), (2, 2, "loss"), (2, 1, "gradient")],
)
def test_a_bad_number_stops_the_run_before_it_does_harm(
    at, epoch, what, read_every, monkeypatch, poison, tmp_path
):
    monkeypatch.setattr(training, "READ_EVERY", read_every)
    n = len(batches())
    last_good = (epoch - 1) * n + at - 1
    reference = model(dropout=0.1)
    if last_good:
        short = settings(epochs=None, max_steps=last_good)
        list(train(reference, batches(), batches(8), short))
    poison(last_good + 1, what)
    spoilt = model(dropout=0.1)
    quantity = {"loss": "loss is inf", "gradient": "gradient's norm is (inf|nan)"}[what]
    place = rf"{quantity} at step {last_good + 1} \(epoch {epoch}, batch {at}\)"
    records = train(spoilt, batches(), batches(8), settings(), folder=tmp_path / "run")
    for _ in range(epoch - 1):
        assert math.isfinite(next(records)["train_loss"])  # not lost
    with pytest.raises(ValueError, match=place):
        next(records)
    assert equal(weights(reference), weights(spoilt))
    kept = checkpoints(tmp_path / "run")[-1]
    assert read_state(kept)[0].step == last_good
    saved = load_file(kept)
    for name, p in reference.named_parameters():
        assert torch.equal(saved[f"model.{name}"], p)
    lines = (tmp_path / "run/steps.jsonl").read_text().splitlines()
    assert len(lines) == last_good


def test_a_bad_step_of_several_batches_names_them(poison):
    n, config = len(batches()), settings(accumulation=2)
    assert n % 2 == 1
    for at, where in ((3, "batches 3 to 4"), (n, f"batch {n}")):
        poison(at)
        with pytest.raises(ValueError, match=rf"\(epoch 1, {where}\)"):
            list(train(model(), batches(), batches(8), config))


def test_nothing_to_train_or_to_evaluate_on_is_an_error():
    nothing = Batch(*(torch.zeros(1, 2, dtype=torch.int64) for _ in range(3)))
    for empty in ([], [nothing]):
        with pytest.raises(ValueError, match="no token to evaluate"):
            evaluate_loss(model(), empty)
    with pytest.raises(ValueError, match="no token to train on"):
        list(train(model(), [], batches(), settings()))


# Which model is best, and when it is saved


def test_the_best_is_that_of_the_first_score_then_of_the_loss(tmp_path, monkeypatch):
    losses, scores = iter([3.0, 2.0, 2.5, 2.0, 1.0]), iter([1.0, 5.0, 5.0, 5.0, 4.0])
    monkeypatch.setattr(training, "evaluate_loss", lambda *_: next(losses))
    steps, counter = [], itertools.count()

    def score(_):
        return {"bleu": next(scores), "of no account": next(counter)}

    config = settings(epochs=5, keep=1)
    data = model(), batches(), batches(8), config
    for record in train(*data, score, tmp_path):
        steps.append(record["step"] if record["best"] else None)
    n = len(batches())
    assert steps == [n, 2 * n, None, None, None]
    assert read_state(checkpoints(tmp_path)[-1])[0].best == [5.0, -2.0]
    names = [path.name for path in checkpoints(tmp_path)]
    assert f"step-{2 * n:08}.safetensors" in names and len(names) == 2


def test_a_checkpoint_when_its_time_has_come():
    config = settings(checkpoint_minutes=2.0, checkpoint_every=None)
    due = [training.is_due(7, seconds, config) for seconds in (0, 119, 120, 5000)]
    assert due == [False, False, True, True]
    never = settings(checkpoint_minutes=None)
    assert not training.is_due(7, 1e9, never)


def test_the_minutes_are_counted_from_the_last_checkpoint(tmp_path, monkeypatch):
    """Reading the numbers in between must not put it off."""
    seen, is_due = [], training.is_due
    monkeypatch.setattr(training, "READ_EVERY", 0.0)

    def watched(step, seconds, config):
        seen.append(seconds)
        return is_due(step, seconds, config)

    monkeypatch.setattr(training, "is_due", watched)
    config = settings(epochs=1, checkpoint_every=None, checkpoint_minutes=None)
    list(train(model(), batches(n=60), batches(8), config, folder=tmp_path))
    assert len(seen) > 3 and seen == sorted(seen)


def test_a_run_that_is_stopped_leaves_the_model_in_eval_mode(tmp_path):
    stopped = model(dropout=0.1)
    data = stopped, batches(), batches(8), settings()
    assert list(train(*data, folder=tmp_path, stop=lambda: True)) == []
    assert not stopped.training and read_state(checkpoints(tmp_path)[-1])[0].step == 1


def test_other_data_is_another_run(tmp_path):
    data = model(), batches(), batches(8), settings()
    list(train(*data, folder=tmp_path, stop=lambda: True))
    other = TokenBatches(pairs(24, seed=5), 30, *SPECIAL)
    with pytest.raises(ValueError, match="with (batches|target tokens) "):
        list(train(model(), other, batches(8), settings(), folder=tmp_path))


# What it costs, and what it writes down


def test_the_cost_is_counted():
    config = settings(epochs=3, accumulation=2)
    measured = model()
    before = weights(measured)
    expected = cost(measured, batches(), config)
    assert expected.steps == len(list(steps_from(1, batches(), config)))
    assert expected.tokens == 3 * sum(len(tgt) + 1 for _, tgt in pairs(24))
    parameters = sum(p.numel() for p in measured.parameters())
    assert expected.operations == 6 * parameters * expected.tokens
    assert expected.seconds > 0
    assert equal(before, weights(measured))
    assert all(p.grad is None for p in measured.parameters())
    part = cost(measured, batches(), settings(epochs=None, max_steps=2))
    assert part.tokens == round(2 / len(batches()) * expected.tokens / 3)


def test_a_line_for_every_step(tmp_path):
    config = settings(epochs=2, accumulation=2)
    list(train(model(), batches(), batches(8), config, folder=tmp_path))
    text = (tmp_path / "steps.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    steps = list(steps_from(1, batches(), config))
    assert [line["step"] for line in lines] == [step for step, _, _ in steps]
    for line, (number, epoch, groups) in zip(lines, steps, strict=True):
        tokens = sum(map(batches().target_tokens, groups))
        assert (line["epoch"], line["tokens"]) == (epoch, tokens)
        assert line["learning_rate"] == training.learning_rate(number, 16, 10)
        assert line["gradient_norm"] > 0 and 0 < line["loss"] < 5
    validations = (tmp_path / "training.jsonl").read_text().splitlines()
    assert [json.loads(line)["epoch"] for line in validations] == [1, 2]


@pytest.mark.parametrize("installed", [True, False])
def test_tensorboard_if_it_is_there(tmp_path, monkeypatch, installed):
    scalars = []

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            scalars.append((folder, purge_step))

        def add_scalar(self, name, value, step):
            scalars.append((name, value, step))

        def close(self):
            scalars.append("closed")

    module = types.ModuleType("tensorboard")
    module.SummaryWriter = SummaryWriter
    there = module if installed else None  # None: the import fails
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", there)
    records = list(train(model(), batches(), batches(8), settings(), folder=tmp_path))
    if not installed:
        assert scalars == []
        return
    assert scalars[0] == (tmp_path / "tensorboard", 1) and scalars[-1] == "closed"
    for record in records:
        value = record["validation_loss"]
        assert ("validation_loss", value, record["step"]) in scalars
    steps = [entry[2] for entry in scalars if entry[0] == "gradient_norm"]
    assert steps == [*range(1, records[-1]["step"] + 1)]


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("max_tokens", 0, "max_tokens is 0: it must be an integer from 1"),
        ("max_tokens", 10.0, "max_tokens is 10.0"),
        ("epochs", -1, "epochs is -1: it must be an integer from 1, or None"),
        ("epochs", None, "max_steps is None: it must be a number where epochs is None"),
        ("max_steps", 0, "max_steps is 0"),
        ("accumulation", 0, "accumulation is 0: it must be an integer from 1"),
        ("validate_every", 0, "validate_every is 0"),
        ("checkpoint_every", 1.5, "checkpoint_every is 1.5"),
        ("checkpoint_minutes", 0, "checkpoint_minutes is 0: it must be positive"),
        ("keep", 0, "keep is 0"),
        ("compile", 1, "compile is 1: it must be True or False"),
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
