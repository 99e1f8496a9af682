"""Eq. 3, and the rates that real updates get: notebooks/5_3_optimizer.ipynb."""

from decimal import Decimal, getcontext

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from annotated_transformer.batching import TokenBatches
from annotated_transformer.model import Transformer, TransformerConfig
from annotated_transformer.schedule import learning_rate
from annotated_transformer.training import TrainingConfig, train

getcontext().prec = 40


def equation_3(step, d_model, warmup):
    """Eq. 3 as printed, in 40 digits."""
    step, warmup = Decimal(step), Decimal(warmup)
    rising, falling = step * warmup ** Decimal("-1.5"), step ** Decimal("-0.5")
    return float(Decimal(d_model) ** Decimal("-0.5") * min(rising, falling))


@pytest.mark.parametrize("d_model", [512, 1024])
@pytest.mark.parametrize("step", [1, 2, 3999, 4000, 4001, 100_000, 300_000])
def test_it_is_equation_3(step, d_model):
    expected = equation_3(step, d_model, 4000)
    assert learning_rate(step, d_model, 4000) == pytest.approx(expected, rel=1e-13)


def test_the_default_warm_up_is_the_paper_s():
    assert learning_rate(7, 512) == learning_rate(7, 512, 4000)


@pytest.mark.parametrize("warmup", [1, 2, 100, 4000])
def test_the_peak_is_at_the_warm_up(warmup):
    rates = [learning_rate(step, 64, warmup) for step in range(1, 3 * warmup + 2)]
    assert rates.index(max(rates)) + 1 == warmup
    assert max(rates) == pytest.approx((64 * warmup) ** -0.5, rel=1e-13)


@given(st.integers(1, 4096), st.integers(1, 100_000))
def test_width_and_warm_up_enter_the_peak_as_a_product(d_model, warmup):
    peak = learning_rate(warmup, d_model, warmup)
    assert peak == pytest.approx(learning_rate(d_model, warmup, d_model), rel=1e-12)
    assert peak == pytest.approx((d_model * warmup) ** -0.5, rel=1e-12)


@given(st.integers(1, 10**6), st.integers(1, 4096), st.integers(1, 10**5))
def test_after_the_warm_up_the_rate_forgets_how_long_it_was(step, d_model, warmup):
    if step > warmup:
        assert learning_rate(step, d_model, warmup) == d_model**-0.5 * step**-0.5
    else:  # proportional to the step, and below where it will be
        first = learning_rate(1, d_model, warmup)
        assert learning_rate(step, d_model, warmup) == pytest.approx(step * first)


def test_the_peak_of_base():
    assert f"{learning_rate(4000, 512):.2e}" == "6.99e-04"


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"step": 0}, "step is 0: it must be 1 or more"),
        ({"step": -3}, "step is -3"),
        ({"warmup": 0}, "warmup is 0"),
        ({"d_model": 0}, "d_model is 0"),
    ],
)
def test_what_is_below_1_is_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        learning_rate(**{"step": 1, "d_model": 512, "warmup": 4000, **wrong})


def test_updates_of_a_real_run_get_the_rates_of_steps_1_2_3():
    """Off by one, the first two updates would share a rate, or none would be lr(1)."""
    config = TransformerConfig(8, d_model=8, n_layers=1, n_heads=2, d_ff=8)
    batches = TokenBatches([([4, 5], [5, 4])] * 6, 6, 0, 1, 2)
    assert len(list(batches)) == 3
    rates = []

    def note(optimizer, args, kwargs):
        rates.append([group["lr"] for group in optimizer.param_groups])

    handle = register_optimizer_step_pre_hook(note)
    try:
        settings = TrainingConfig(max_tokens=6, epochs=2, warmup=4)
        torch.manual_seed(0)
        list(train(Transformer(config), batches, batches, settings))
    finally:
        handle.remove()
    assert rates == [[learning_rate(step, 8, 4)] for step in range(1, 7)]
    rising = [rate for (rate,) in rates[:4]]
    assert len(set(rising)) == 4
