"""The position-wise feed-forward network: notebooks/3_3_feed_forward.ipynb."""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from annotated_transformer.feed_forward import FeedForward

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
sizes = st.integers(1, 9)


def network(d_model=6, d_ff=10, seed=0, **arguments):
    """A network whose biases are not zero, so that a lost bias is seen."""
    torch.manual_seed(seed)
    ffn = FeedForward(d_model, d_ff, **arguments)
    with torch.no_grad():
        for linear in (ffn.w_1, ffn.w_2):
            linear.bias.normal_()
    return ffn


def test_numbers_worked_by_hand():
    ffn = FeedForward(d_model=2, d_ff=3)
    with torch.no_grad():
        ffn.w_1.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, -1.0], [-1.0, 2.0]]))
        ffn.w_1.bias.copy_(torch.tensor([0.0, 0.0, -1.0]))
        ffn.w_2.weight.copy_(torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, -1.0]]))
        ffn.w_2.bias.copy_(torch.tensor([0.0, 1.0]))
    outputs = ffn(torch.tensor([[1.0, 2.0], [3.0, 1.0]]))
    assert outputs.tolist() == [[3, -1], [3, 3]]


@SETTINGS
@given(batch=sizes, length=sizes, d_model=sizes, d_ff=sizes, seed=st.integers(0, 99))
def test_equals_linear_relu_linear_in_values_and_gradients(
    batch, length, d_model, d_ff, seed
):
    ffn = network(d_model, d_ff, seed)
    torch_ffn = nn.Sequential(
        nn.Linear(d_model, d_ff), nn.ReLU(), nn.Linear(d_ff, d_model)
    )
    torch_ffn[0].load_state_dict(ffn.w_1.state_dict())
    torch_ffn[2].load_state_dict(ffn.w_2.state_dict())
    x = torch.randn(batch, length, d_model, requires_grad=True)
    upstream = torch.randn(batch, length, d_model)

    ours, theirs = ffn(x), torch_ffn(x)
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    our_gradients = torch.autograd.grad(ours, [x, *ffn.parameters()], upstream)
    their_gradients = torch.autograd.grad(
        theirs, [x, *torch_ffn.parameters()], upstream
    )
    torch.testing.assert_close(our_gradients, their_gradients, atol=1e-5, rtol=1e-5)


def test_gradients_agree_with_finite_differences():
    ffn = network().double()
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ffn, x)


@SETTINGS
@given(length=st.integers(1, 12), seed=st.integers(0, 99), data=st.data())
def test_shuffling_positions_shuffles_outputs(length, seed, data):
    ffn, x = network(seed=seed), torch.randn(2, length, 6)
    order = torch.tensor(data.draw(st.permutations(range(length))))
    torch.testing.assert_close(ffn(x[:, order]), ffn(x)[:, order])


@SETTINGS
@given(length=st.integers(2, 12), seed=st.integers(0, 99), data=st.data())
def test_a_changed_position_moves_no_other(length, seed, data):
    ffn, x = network(seed=seed), torch.randn(2, length, 6)
    position = data.draw(st.integers(0, length - 1))
    changed = x.clone()
    changed[:, position] += 1.0
    moved = (ffn(changed) - ffn(x)).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == [position]


def test_no_gradient_crosses_from_one_position_to_another():
    ffn, x = network(), torch.randn(5, 6)
    derivative = torch.autograd.functional.jacobian(ffn, x)  # (T, D, T, D)
    crossing = derivative[
        ~torch.eye(5, dtype=torch.bool)[:, None, :, None].expand(5, 6, 5, 6)
    ]
    assert crossing.eq(0).all()
    assert derivative.diagonal(dim1=0, dim2=2).ne(0).any()


def test_equals_two_convolutions_of_width_one():
    ffn, x = network(), torch.randn(2, 7, 6)
    hidden = F.conv1d(x.mT, ffn.w_1.weight[:, :, None], ffn.w_1.bias).relu()
    outputs = F.conv1d(hidden, ffn.w_2.weight[:, :, None], ffn.w_2.bias)
    torch.testing.assert_close(ffn(x), outputs.mT)


@pytest.mark.parametrize("shape", [(6,), (4, 6), (2, 4, 6), (2, 3, 4, 6), (0, 4, 6)])
def test_any_number_of_leading_dimensions(shape):
    assert network()(torch.randn(shape)).shape == shape


def test_dropout_zero_trains_and_evaluates_alike():
    ffn, x = network(dropout=0.0), torch.randn(3, 6)
    assert torch.equal(ffn.train()(x), ffn.eval()(x))
    assert FeedForward(6, 10).dropout == 0.0


def test_dropout_falls_on_the_activated_hidden_layer_and_in_training_alone():
    ffn, x = network(64, 256, dropout=0.5), torch.randn(64, 64)
    arrived = []
    ffn.w_2.register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
    outputs = ffn.train()(x)
    full = ffn.w_1(x).relu()
    kept = arrived[0] != 0
    # What is kept is the activated value over 1 - p; what is dropped is dropped here.
    torch.testing.assert_close(arrived[0][kept], 2 * full[kept])
    assert 0.45 < kept.sum() / (full > 0).sum() < 0.55
    # Nothing is dropped behind it, and nothing at all in evaluation.
    torch.testing.assert_close(outputs, ffn.w_2(arrived[0]))
    torch.testing.assert_close(ffn.eval()(x), ffn.w_2(full))


def test_dropout_comes_after_the_activation():
    # exp(0) is 1: dropped before the activation, a unit would arrive as 1.
    ffn, x = network(dropout=0.5, activation=torch.exp), torch.randn(32, 6)
    arrived = []
    ffn.w_2.register_forward_pre_hook(lambda _, inputs: arrived.append(inputs[0]))
    ffn.train()(x)
    assert 0.3 < arrived[0].eq(0).float().mean() < 0.7


@pytest.mark.parametrize("activation", [F.gelu, F.silu, torch.tanh, nn.Identity()])
def test_the_activation_can_be_replaced(activation):
    ffn, x = network(activation=activation), torch.randn(2, 4, 6)
    torch.testing.assert_close(ffn(x), ffn.w_2(activation(ffn.w_1(x))))
    assert not torch.allclose(ffn(x), ffn.w_2(ffn.w_1(x).relu()))


def test_without_a_bend_it_is_one_matrix():
    ffn, x = network(activation=nn.Identity()), torch.randn(4, 6)
    matrix = ffn.w_2.weight @ ffn.w_1.weight
    expected = F.linear(x, matrix, ffn.w_2(ffn.w_1.bias))
    torch.testing.assert_close(ffn(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("d_model", "d_ff"), [(512, 2048), (128, 512), (64, 64)])
def test_starts_from_glorot_uniform_and_zero_biases(d_model, d_ff):
    torch.manual_seed(0)
    ffn = FeedForward(d_model, d_ff)
    bound = (6 / (d_model + d_ff)) ** 0.5
    for linear in (ffn.w_1, ffn.w_2):
        assert linear.weight.abs().max() <= bound
        assert linear.weight.abs().max() > 0.98 * bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
        assert linear.bias.eq(0).all()
    assert not torch.equal(ffn.w_1.weight, FeedForward(d_model, d_ff).w_1.weight)


def test_parameters_of_the_base_model():
    with torch.device("meta"):
        ffn = FeedForward(512, 2048)
    shapes = {name: tuple(p.shape) for name, p in ffn.named_parameters()}
    assert shapes == {
        "w_1.weight": (2048, 512),
        "w_1.bias": (2048,),
        "w_2.weight": (512, 2048),
        "w_2.bias": (512,),
    }
    assert sum(p.numel() for p in ffn.parameters()) == 2_099_712


def test_copies_after_a_forward_pass():
    ffn, x = network(dropout=0.1), torch.randn(2, 6)
    ffn(x)
    twin = copy.deepcopy(ffn).eval()
    assert torch.equal(twin(x), ffn.eval()(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_finite_forward_and_backward(dtype):
    ffn = network(64, 256).to(dtype)
    x = torch.randn(8, 64, dtype=dtype, requires_grad=True)
    outputs = ffn(x)
    outputs.sum().backward()
    assert outputs.dtype == dtype and outputs.isfinite().all()
    assert x.grad.isfinite().all()


def test_a_wrong_width_is_refused():
    with pytest.raises(RuntimeError, match="shape"):
        network()(torch.randn(2, 5))
