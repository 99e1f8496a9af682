"""Label-smoothed cross-entropy: notebooks/5_4_regularization.ipynb."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer.loss import (
    PRODUCT_ROWS,
    SOFTMAX_ROWS,
    _project,
    label_smoothed_cross_entropy,
    projected_cross_entropy,
)

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)
SMOOTHINGS = [0.0, 0.1, 0.3, 1.0]
PAD = 0


def example(seed=0, shape=(3, 5), vocab_size=7, padding=True):
    """Logits, and targets that end in padding in every row but the first."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(*shape, vocab_size, generator=generator)
    target = torch.randint(1, vocab_size, shape, generator=generator)
    if padding:
        for row in range(1, shape[0]):
            target[row, -min(row, shape[1]) :] = PAD
    return logits, target


def over_all(target, vocab_size, smoothing):
    """Szegedy et al. 2016, by its definition, entry by entry."""
    q = torch.full((*target.shape, vocab_size), smoothing / vocab_size).double()
    return q.scatter_add(
        -1,
        target[..., None],
        torch.full((*target.shape, 1), 1 - smoothing).double(),
    )


def over_others(target, vocab_size, smoothing):
    """The original code: the V - 1 other tokens share the mass."""
    q = torch.full((*target.shape, vocab_size), smoothing / (vocab_size - 1)).double()
    right = torch.full((*target.shape, 1), 1 - smoothing).double()
    return q.scatter(-1, target[..., None], right)


def by_matrix(logits, target, q):
    """Cross-entropy against the distributions q, padding left out by selection."""
    rows = -(q * logits.double().log_softmax(-1)).sum(-1)
    return rows[target != PAD].sum()


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_the_target_distribution_adds_up(smoothing):
    """The gradient is p - q at each position: q is read off it, and sums to 1."""
    logits, target = example(padding=False)
    logits.requires_grad_()
    label_smoothed_cross_entropy(logits, target, smoothing, PAD).backward()
    q = logits.detach().softmax(-1) - logits.grad
    assert torch.allclose(q.sum(-1), torch.ones(target.shape), atol=1e-5)
    expected = over_all(target, 7, smoothing).float()
    assert torch.allclose(q, expected, atol=1e-5)


@SETTINGS
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 5)),
    vocab_size=st.integers(2, 12),
    smoothing=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_it_equals_the_explicit_matrix(shape, vocab_size, smoothing, seed):
    logits, target = example(seed, shape, vocab_size)
    loss = label_smoothed_cross_entropy(logits, target, smoothing, PAD)
    expected = by_matrix(logits, target, over_all(target, vocab_size, smoothing))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-5)


def test_without_smoothing_it_is_cross_entropy():
    logits, target = example()
    loss = label_smoothed_cross_entropy(logits, target, 0.0, PAD)
    kept = target != PAD
    expected = F.cross_entropy(logits[kept], target[kept], reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_it_equals_torch_s_where_nothing_is_padded(smoothing):
    logits, target = example(padding=False)
    loss = label_smoothed_cross_entropy(logits, target, smoothing, PAD)
    mean = F.cross_entropy(logits.mT, target, label_smoothing=smoothing)
    assert loss.item() / target.numel() == pytest.approx(mean.item(), rel=1e-6)


@pytest.mark.parametrize("vocab_size", [3, 7, 100])
def test_the_original_convention_is_a_rescaled_epsilon(vocab_size):
    """ε' over the V - 1 others is our ε' · V / (V - 1), and not our ε'."""
    logits, target = example(vocab_size=vocab_size)
    others = by_matrix(logits, target, over_others(target, vocab_size, 0.1)).item()
    rescaled = 0.1 * vocab_size / (vocab_size - 1)
    converted = label_smoothed_cross_entropy(logits, target, rescaled, PAD)
    assert converted.item() == pytest.approx(others, rel=1e-5)
    unconverted = label_smoothed_cross_entropy(logits, target, 0.1, PAD)
    assert unconverted.item() != pytest.approx(others, rel=1e-5)


def test_the_optimum_is_the_target_itself():
    """At q the gradient is zero, the loss is q's entropy, the gap is finite."""
    target = torch.tensor([[2]])
    q = over_all(target, 5, 0.1)
    logits = q.log().float().requires_grad_()
    loss = label_smoothed_cross_entropy(logits, target, 0.1, PAD)
    loss.backward()
    assert logits.grad.abs().max() < 1e-6
    assert loss.item() == pytest.approx(-(q * q.log()).sum().item(), rel=1e-5)
    gap = (logits[0, 0, 2] - logits[0, 0, 0]).item()
    assert gap == pytest.approx(math.log(1 + 5 * 0.9 / 0.1), rel=1e-5)


# Padding


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_padding_never_counts(smoothing):
    logits, target = example()
    padded = target == PAD
    nonsense = torch.where(padded[..., None], 1e4 * torch.randn(7), logits)
    loss = label_smoothed_cross_entropy(logits, target, smoothing, PAD)
    assert label_smoothed_cross_entropy(nonsense, target, smoothing, PAD) == loss

    wider = F.pad(logits, (0, 0, 0, 3), value=5.0), F.pad(target, (0, 3), value=PAD)
    more = label_smoothed_cross_entropy(*wider, smoothing, PAD)
    assert more.item() == pytest.approx(loss.item(), rel=1e-6)


def test_padding_gets_no_gradient():
    logits, target = example()
    logits.requires_grad_()
    label_smoothed_cross_entropy(logits, target, 0.1, PAD).backward()
    assert (logits.grad[target == PAD] == 0).all()
    assert (logits.grad[target != PAD] != 0).all()


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
def test_a_batch_of_padding_gives_zero(smoothing):
    logits, target = example()
    logits.requires_grad_()
    target.fill_(PAD)
    loss = label_smoothed_cross_entropy(logits, target, smoothing, PAD)
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


def test_padding_is_the_id_that_is_handed_in():
    logits, target = example(padding=False)
    rest = target != 3
    assert 0 < rest.sum() < target.numel()
    loss = label_smoothed_cross_entropy(logits, target, 0.0, pad_id=3)
    expected = F.cross_entropy(logits[rest], target[rest], reduction="sum")
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)


# Sums and precision


def test_unequal_parts_add_up_to_the_whole():
    logits, target = example(shape=(6, 5))
    whole = label_smoothed_cross_entropy(logits, target, 0.1, PAD)
    cuts = [slice(0, 1), slice(1, 2), slice(2, 6)]
    assert len({int((target[cut] != PAD).sum()) for cut in cuts}) == 3
    parts = [
        label_smoothed_cross_entropy(logits[cut], target[cut], 0.1, PAD) for cut in cuts
    ]
    assert sum(parts).item() == pytest.approx(whole.item(), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    """The sum over 2,000 tokens has more digits than either type can hold."""
    logits, target = example(shape=(40, 50), padding=False)
    logits = (8 * logits).to(dtype).requires_grad_()
    loss = label_smoothed_cross_entropy(logits, target, 0.1, PAD)
    expected = by_matrix(logits.detach(), target, over_all(target, 7, 0.1)).item()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=1e-6)
    loss.backward()
    assert logits.grad.dtype == dtype
    assert logits.grad.isfinite().all()


def test_extreme_logits_stay_finite():
    logits = torch.tensor([[[1e4, -1e4, 0.0]]], requires_grad=True)
    loss = label_smoothed_cross_entropy(logits, torch.tensor([[1]]), 0.1, PAD)
    loss.backward()
    assert loss.isfinite() and logits.grad.isfinite().all()


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, math.nan])
def test_smoothing_outside_0_to_1_is_refused(smoothing):
    logits, target = example()
    with pytest.raises(ValueError, match=f"smoothing is {smoothing}"):
        label_smoothed_cross_entropy(logits, target, smoothing, PAD)


# The product and the loss in blocks


def projection(positions=(3, 5), d_model=6, vocab_size=7, dtype=torch.float32, seed=0):
    """Hidden states, a matrix, and targets a fifth of which are padding."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*positions, d_model, generator=generator).to(dtype)
    weight = torch.randn(vocab_size, d_model, generator=generator).to(dtype)
    target = torch.randint(1, vocab_size, positions, generator=generator)
    target[torch.rand(positions, generator=generator) < 0.2] = PAD
    return hidden.requires_grad_(), weight.requires_grad_(), target


def in_one(hidden, weight, target, smoothing=0.1, pad_id=PAD):
    """The readable form: all the logits, then the loss."""
    return label_smoothed_cross_entropy(hidden @ weight.T, target, smoothing, pad_id)


BLOCK, PRODUCT = SOFTMAX_ROWS, PRODUCT_ROWS["cpu"]


@pytest.mark.parametrize("smoothing", SMOOTHINGS)
@pytest.mark.parametrize(
    "n", [1, BLOCK - 1, BLOCK, BLOCK + 1, PRODUCT, PRODUCT + 1, 3 * PRODUCT + 7]
)
def test_blocks_equal_the_whole(n, smoothing):
    hidden, weight, target = projection((n,), vocab_size=11)
    whole = in_one(hidden, weight, target, smoothing)
    blocks = projected_cross_entropy(hidden, weight, target, smoothing, PAD)
    assert blocks.dtype == torch.float32 and blocks.shape == ()
    assert blocks.item() == pytest.approx(whole.item(), rel=1e-5, abs=1e-5)
    wanted = torch.autograd.grad(whole / 7, (hidden, weight))
    found = torch.autograd.grad(blocks / 7, (hidden, weight))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * n**0.5)


@SETTINGS
@given(
    positions=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    d_model=st.integers(1, 5),
    vocab_size=st.integers(2, 9),
    pad_id=st.integers(0, 1),
    smoothing=st.floats(0, 1),
    seed=st.integers(0, 1000),
)
def test_blocks_equal_the_whole_for_any_shape(
    positions, d_model, vocab_size, pad_id, smoothing, seed
):
    hidden, weight, target = projection(
        tuple(positions), d_model, vocab_size, seed=seed
    )
    whole = in_one(hidden, weight, target, smoothing, pad_id)
    blocks = projected_cross_entropy(hidden, weight, target, smoothing, pad_id)
    torch.testing.assert_close(blocks, whole, rtol=1e-4, atol=1e-4)
    wanted = torch.autograd.grad(whole, (hidden, weight))
    found = torch.autograd.grad(blocks, (hidden, weight))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_its_gradients_are_those_of_its_values():
    hidden, weight, target = projection(dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda *both: projected_cross_entropy(*both, target, 0.1, PAD), (hidden, weight)
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_in_half_precision_sum_in_float32(dtype):
    """As good as the whole form under the same products, against float64."""
    hidden, weight, target = projection((40, 33), 32, 50)
    exact = in_one(hidden.double(), weight.double(), target)
    truth = torch.autograd.grad(exact, (hidden, weight))
    with torch.autocast("cpu", dtype):
        whole = in_one(hidden, weight, target)
        blocks = projected_cross_entropy(hidden, weight, target, 0.1, PAD)
    assert blocks.dtype == torch.float32
    assert blocks.item() == pytest.approx(whole.item(), rel=1e-6)
    assert blocks.item() == pytest.approx(exact.item(), rel=1e-3)
    found = torch.autograd.grad(blocks, (hidden, weight))
    usual = torch.autograd.grad(whole, (hidden, weight))
    for ours, theirs, true in zip(found, usual, truth, strict=True):
        assert ours.dtype == torch.float32
        error, usual_error = (ours - true).norm(), (theirs - true).norm()
        assert error < 1.1 * usual_error + 1e-4 * true.norm()
        assert error < 0.01 * true.norm()


def test_a_projected_batch_of_padding_gives_zero():
    hidden, weight, target = projection()
    target.fill_(PAD)
    loss = projected_cross_entropy(hidden, weight, target, 0.1, PAD)
    loss.backward()
    assert loss == 0 and (hidden.grad == 0).all() and (weight.grad == 0).all()


@pytest.mark.parametrize("compacted", [True, False])
def test_padding_has_no_part_in_the_projection(monkeypatch, compacted):
    """Left out, as on a CPU, or computed and wiped out, as elsewhere: NaN included."""
    if not compacted:
        monkeypatch.setattr(
            "annotated_transformer.loss._positions",
            lambda target, _: torch.arange(len(target)).split(4),
        )
    hidden, weight, target = projection((30,))
    assert (target == PAD).any()
    loss = projected_cross_entropy(hidden, weight, target, 0.1, PAD)
    wanted = torch.autograd.grad(loss, (hidden, weight))
    assert loss.item() == pytest.approx(in_one(hidden, weight, target).item(), rel=1e-5)
    with torch.no_grad():
        hidden[target == PAD] = torch.nan
    again = projected_cross_entropy(hidden, weight, target, 0.1, PAD)
    found = torch.autograd.grad(again, (hidden, weight))
    torch.testing.assert_close(again, loss)
    torch.testing.assert_close(found, wanted)
    assert (found[0][target == PAD] == 0).all()


def test_extreme_hidden_states_stay_finite():
    hidden, weight, target = projection()
    loss = projected_cross_entropy(1e4 * hidden, weight, target, 0.1, PAD)
    assert loss.item() == pytest.approx(
        in_one(1e4 * hidden, weight, target).item(), rel=1e-5
    )
    gradients = torch.autograd.grad(loss, (hidden, weight))
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_without_gradients_none_are_computed():
    hidden, weight, target = projection()
    with torch.no_grad():
        loss = projected_cross_entropy(hidden, weight, target, 0.1, PAD)
    assert not loss.requires_grad
    assert loss.item() == pytest.approx(in_one(hidden, weight, target).item(), rel=1e-5)
    results = _project(hidden[0], weight, target[0], 0.1, PAD, False)
    assert [tensor.numel() for tensor in results] == [1, 0, 0]


def test_the_operator_keeps_torch_s_rules():
    hidden, weight, target = projection((15,))
    checks = torch.library.opcheck(_project, (hidden, weight, target, 0.1, PAD, True))
    assert set(checks.values()) == {"SUCCESS"}


def test_it_compiles_into_one_graph_for_any_length():
    graphs = []

    def count(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(
        lambda *arguments: projected_cross_entropy(*arguments, 0.1, PAD) / 3,
        backend=count,
        dynamic=True,
        fullgraph=True,
    )
    for n in (5, 2 * PRODUCT, 3 * PRODUCT + 1):
        arguments = projection((n,))
        expected = in_one(*arguments) / 3
        assert compiled(*arguments).item() == pytest.approx(expected.item(), rel=1e-5)
    assert len(graphs) == 1


@pytest.mark.parametrize("smoothing", [-0.1, 1.5, math.nan])
def test_the_projection_refuses_what_the_loss_refuses(smoothing):
    with pytest.raises(ValueError, match=f"smoothing is {smoothing}"):
        projected_cross_entropy(*projection(), smoothing, PAD)
