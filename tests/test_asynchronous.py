"""A training step that never waits for the device, and the batches made ahead of it."""

import itertools
import threading
import time

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from annotated_transformer import Transformer, TransformerConfig, loss, training
from annotated_transformer.batching import TokenBatches
from annotated_transformer.loss import projected_cross_entropy
from annotated_transformer.training import (
    Objective,
    TrainingConfig,
    ahead,
    make_adam,
    pinned,
    prepare,
    share_out,
    steps_from,
    train,
    update,
)

PAD = 0
WAITS = {  # to know what these return, a program has to wait for the device
    torch.ops.aten._local_scalar_dense.default: "item",
    torch.ops.aten.is_nonzero.default: "bool",
    torch.ops.aten.equal.default: "equal",
    torch.ops.aten.nonzero.default: "nonzero",
    torch.ops.aten.masked_select.default: "masked_select",
}


class Waiting(TorchDispatchMode):
    """Inside `with`: the operations that would wait, by name."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operation, types, arguments=(), options=None):
        if operation in WAITS:
            self.seen.append(WAITS[operation])
        return operation(*arguments, **(options or {}))


def small_model():
    torch.manual_seed(0)
    return Transformer(TransformerConfig(40, 16, 1, 2, d_ff=32))


def some_batches(n=60, max_tokens=60):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 12, (n, 2), generator=draw).tolist()
    pairs = [
        ([3 + i % 37] * src, [4 + i % 36] * tgt) for i, (src, tgt) in enumerate(lengths)
    ]
    return TokenBatches(pairs, max_tokens, PAD, 1, 2)


def test_what_counts_as_waiting():
    x = torch.ones(3)
    with Waiting() as waiting:
        x.sum().item(), bool(x[0] > 0), x[x > 0], torch.equal(x, x)
    assert {"item", "equal"} <= set(waiting.seen) and len(waiting.seen) >= 3


@pytest.mark.parametrize("bfloat16", [False, True])
def test_an_update_waits_for_nothing(bfloat16):
    model, batches = small_model(), some_batches()
    adam = make_adam(model, TrainingConfig())
    mine = share_out(1, batches.groups(0)[:3], batches, model, seed=0)
    with Waiting() as waiting:
        for _ in range(2):
            update(Objective(model, 0.1), adam, mine, 100, 1e-3, bfloat16)
    assert waiting.seen == []


def test_a_loop_reads_its_numbers_once_a_while_and_not_at_each_step(monkeypatch):
    batches, reads = some_batches(), []

    def count(name):
        real = getattr(torch.Tensor, name)

        def counted(self, *rest):
            if threading.current_thread() is threading.main_thread():
                reads.append(name)
            return real(self, *rest)

        monkeypatch.setattr(torch.Tensor, name, counted)

    for name in ("item", "tolist", "__float__", "__bool__"):
        count(name)
    monkeypatch.setattr(training, "READ_EVERY", 1e9)  # seconds: only at the end
    counts = []
    for steps in (4, 12):
        reads.clear()
        only = {"epochs": None, "max_steps": steps, "validate_every": steps}
        config = TrainingConfig(max_tokens=60, **only)
        list(train(small_model(), batches, list(batches)[:1], config))
        counts.append(len(reads))
    assert counts[0] == counts[1] > 0


def test_the_loss_of_a_device_waits_for_nothing():
    body = loss._project._init_fn  # of the operator, which a mode cannot look into
    shapes = (20_000, 16), (50, 16)
    hidden, weight = (torch.empty(shape, device="meta") for shape in shapes)
    target = torch.empty(20_000, dtype=torch.int64, device="meta")
    total, *gradients = body(hidden, weight, target, 0.1, PAD, True)  # meta has no item
    assert total.shape == ()
    assert [tuple(gradient.shape) for gradient in gradients] == [*shapes]


def test_items_come_in_their_order_from_another_thread():
    threads = set()

    def items():
        for n in range(50):
            threads.add(threading.get_ident())
            yield n

    assert list(ahead(items())) == list(range(50))
    assert threading.get_ident() not in threads and len(threads) == 1


def test_it_is_ahead_and_not_far_ahead():
    made = []

    def items():
        for n in itertools.count():
            made.append(n)
            yield n

    before = set(threading.enumerate())  # other tests may have left some of theirs
    several = ahead(items())
    assert next(several) == 0
    assert set(threading.enumerate()) - before, "it makes them in a thread"
    later = time.monotonic() + 30
    while len(made) < 1 + training.AHEAD and time.monotonic() < later:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(made) == 1 + training.AHEAD, "made while nobody asked"
    several.close()
    assert not set(threading.enumerate()) - before


def test_an_error_comes_where_its_item_would():
    def items():
        yield 1
        raise OSError("the disk is gone")

    several = ahead(items())
    assert next(several) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(several)


def test_what_is_prepared_is_what_the_steps_say():
    model, batches = small_model(), some_batches()
    config = TrainingConfig(max_tokens=60, epochs=2, accumulation=2)
    prepared = list(ahead(prepare(3, batches, model, config)))
    plain = list(steps_from(3, batches, config))
    assert [each[:2] for each in prepared] == [each[:2] for each in plain]
    for (step, _, tokens, mine), (_, _, groups) in zip(prepared, plain, strict=True):
        assert tokens == sum(int((b.labels != PAD).sum()) for _, b in mine)
        expected = share_out(step, groups, batches, model, config.seed)
        for (seed, batch), (other_seed, other) in zip(mine, expected, strict=True):
            assert seed == other_seed
            assert all(map(torch.equal, batch, other))


def test_a_cpu_s_batch_is_not_copied():
    batch = next(iter(some_batches()))
    assert pinned(batch, torch.device("cpu")) is batch


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_compiled_softmax_is_the_same(dtype):
    torch.manual_seed(0)
    logits = torch.randn(33, 70, dtype=dtype)
    target = torch.randint(0, 70, (33, 1))
    both, losses = [logits.clone() for _ in range(2)], []
    for softmax_loss_, z in zip(
        (loss._softmax_loss_, loss._fused_softmax_loss_()), both, strict=True
    ):
        losses.append(softmax_loss_(z, target, target == PAD, 0.1))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(*both)


@pytest.mark.slow
def test_a_compiled_run_has_it_compiled(monkeypatch):
    monkeypatch.setattr(loss, "FUSED", {"cpu"})
    used = []

    def counted():
        def softmax_loss_(*arguments):
            used.append(len(arguments[0]))
            return real(*arguments)

        real = loss_of()
        return softmax_loss_

    loss_of = loss._fused_softmax_loss_
    monkeypatch.setattr(loss, "_fused_softmax_loss_", counted)
    torch.manual_seed(0)
    hidden = torch.randn(3, 5, 16, requires_grad=True)
    weight = torch.randn(40, 16, requires_grad=True)
    target = torch.randint(0, 40, (3, 5))

    def both(function):
        total = function(hidden, weight, target, 0.1, PAD)
        return total, *torch.autograd.grad(total, (hidden, weight))

    plain = both(projected_cross_entropy)
    assert used == []
    compiled = both(torch.compile(projected_cross_entropy, backend="aot_eager"))
    assert used, "the outer one is compiled, the inner one is not"
    for here, there in zip(plain, compiled, strict=True):
        torch.testing.assert_close(here, there)
