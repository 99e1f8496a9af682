"""What Table 1 is measured with: notebooks/4_why_self_attention.ipynb."""

import math
from itertools import cycle, repeat

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from annotated_transformer.attention import SelfAttention, scaled_dot_product_attention
from annotated_transformer.complexity import (
    KINDS,
    ConvolutionalLayer,
    RecurrentLayer,
    SeparableLayer,
    count_operations,
    crossing,
    links,
    longest_chain,
    make_layer,
    operations,
    path_lengths,
    peak_memory,
    power_law,
)
from annotated_transformer.restricted_attention import RestrictedAttention

kinds = pytest.mark.parametrize("kind", KINDS)


def readable(kind, d_model, window=3):
    """A layer whose every product the counter and the walk can see."""
    return make_layer(kind, d_model, window, scaled_dot_product_attention)


# Layers


@kinds
@pytest.mark.parametrize("n", [1, 2, 33, 200])
def test_a_layer_keeps_the_shape_and_gives_every_weight_a_gradient(kind, n):
    torch.manual_seed(0)
    layer = make_layer(kind, 128, 5)
    y = layer(torch.randn(2, n, 128))
    assert y.shape == (2, n, 128)
    y.square().sum().backward()
    assert all(p.grad is not None for p in layer.parameters())
    assert all(p.grad.isfinite().all() for p in layer.parameters())


def test_layers_are_what_their_kinds_say():
    assert [type(make_layer(kind, 256, 3)) for kind in KINDS] == [
        SelfAttention,
        RecurrentLayer,
        ConvolutionalLayer,
        SeparableLayer,
        SelfAttention,
    ]
    assert make_layer("self-attention", 256).n_heads == 4
    assert make_layer("self-attention", 16).n_heads == 1
    assert make_layer("restricted", 16, 7).attention == RestrictedAttention(7)


def test_recurrence_is_a_loop_over_the_positions():
    torch.manual_seed(0)
    layer, x = RecurrentLayer(5), torch.randn(2, 9, 5)
    w, u = layer.rnn.weight_ih_l0, layer.rnn.weight_hh_l0
    h, states = torch.zeros(2, 5), []
    for t in range(9):
        h = (x[:, t] @ w.T + h @ u.T).tanh()
        states.append(h)
    torch.testing.assert_close(layer(x), torch.stack(states, dim=1))


def test_a_step_of_all_states_leaves_the_right_ones_alone():
    torch.manual_seed(0)
    layer, x = RecurrentLayer(5), torch.randn(2, 9, 5)
    states = layer(x)
    torch.testing.assert_close(layer.step(states, x), states)
    changed = states.clone()
    changed[:, 4] += 1
    moved = (layer.step(changed, x) - states).abs().amax(dim=(0, 2)) > 1e-4
    assert moved.nonzero().flatten().tolist() == [5]


@pytest.mark.parametrize("k, dilation", [(1, 1), (3, 1), (5, 2), (3, 4)])
def test_convolution_is_a_sum_of_products_around_each_position(k, dilation):
    torch.manual_seed(0)
    layer, x = ConvolutionalLayer(4, k, dilation), torch.randn(2, 11, 4)
    weight, reach = layer.convolution.weight, k // 2 * dilation  # (D, D, k)
    wide = F.pad(x, (0, 0, reach, reach))
    expected = sum(
        wide[:, i * dilation : i * dilation + 11] @ weight[:, :, i].T for i in range(k)
    )
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_a_separable_layer_mixes_neighbours_and_then_channels():
    torch.manual_seed(0)
    layer, x = SeparableLayer(4, 3), torch.randn(2, 11, 4)
    wide = F.pad(x, (0, 0, 1, 1))
    w = layer.depthwise.weight[:, 0]  # (D, k)
    neighbours = sum(wide[:, i : i + 11] * w[:, i] for i in range(3))
    expected = neighbours @ layer.pointwise.weight[:, :, 0].T
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [ConvolutionalLayer, SeparableLayer])
@pytest.mark.parametrize("k", [0, 2, 4, -3])
def test_a_window_without_a_middle_is_refused(layer, k):
    with pytest.raises(ValueError, match=f"k is {k}: it must be odd"):
        layer(8, k)


@pytest.mark.parametrize("function", [make_layer, lambda k, d: operations(k, 5, d)])
def test_an_unknown_kind_is_refused(function):
    with pytest.raises(ValueError, match="kind is 'pooling': it must be one of self-"):
        function("pooling", 8)


# Operations


@kinds
@pytest.mark.parametrize("n", [1, 7, 40, 513])
@pytest.mark.parametrize("d", [2, 64, 192])
@pytest.mark.parametrize("window", [1, 3, 65])
def test_the_formula_is_exact(kind, n, d, window):
    with torch.device("meta"):
        count = count_operations(readable(kind, d, window), torch.empty(1, n, d))
    assert count == operations(kind, n, d, window)


def test_the_formula_by_hand():
    counts = [operations(kind, 3, 2, 3) for kind in KINDS]
    assert counts == [168, 48, 72, 60, 168]
    # 2 blocks of 16 queries and 18 keys, 4 operations for each score and channel
    assert operations("restricted", 32, 1, 3) == 8 * 32 + 4 * 2 * 16 * 18


def test_a_batch_counts_as_often_as_it_has_sentences():
    with torch.device("meta"):
        layer = readable("self-attention", 64)
        one, many = (count_operations(layer, torch.empty(b, 9, 64)) for b in (1, 5))
    assert many == 5 * one


def test_counting_leaves_no_graph():
    layer, outputs = readable("recurrent", 4), []
    count_operations(lambda x: outputs.append(layer(x)), torch.randn(1, 3, 4))
    assert outputs[0].grad_fn is None


# Chains


@pytest.mark.parametrize("n", [1, 2, 50])
def test_products_that_wait_for_each_other(n):
    x = torch.randn(1, n, 16)
    chains = [longest_chain(readable(kind, 16, 5)(x)) for kind in KINDS]
    assert chains == [4, n, 1, 2, 4]


def test_products_side_by_side_do_not_wait():
    x, w = torch.randn(3, 3), torch.randn(3, 3, requires_grad=True)
    a, b = x @ w, (x + 1) @ w
    assert longest_chain(a + b) == 1
    assert longest_chain((a + b) @ w) == 2
    assert longest_chain((a @ w) @ w + b) == 3
    assert longest_chain(w.exp().sum()) == 0


def test_a_chain_longer_than_the_stack_of_python():
    y = w = torch.eye(2, requires_grad=True)
    for _ in range(3000):
        y = y @ w
    assert longest_chain(y) == 3000


# Paths


def test_links_are_what_an_output_depends_on():
    torch.manual_seed(0)
    x = torch.randn(1, 9, 4)
    assert links(make_layer("self-attention", 4), x).all()
    assert torch.equal(links(RecurrentLayer(4), x), torch.ones(9, 9).tril().bool())
    recurrent = RecurrentLayer(4)
    step = links(lambda states: recurrent.step(states, x), x)
    assert torch.equal(step, torch.ones(8).diag(-1).bool())
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    for layer in (ConvolutionalLayer(4, 5), SeparableLayer(4, 5)):
        assert torch.equal(links(layer, x), distance <= 2)
    assert torch.equal(links(make_layer("restricted", 4, 5), x), distance <= 2)
    dilated = links(ConvolutionalLayer(4, 3, dilation=4), x)
    assert torch.equal(dilated, (distance == 0) | (distance == 4))


@pytest.mark.parametrize("n, k", [(2, 3), (17, 3), (60, 9), (61, 25)])
def test_paths_of_equal_layers(n, k):
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    near = path_lengths(repeat(distance <= k // 2))
    expected = torch.ceil(distance / (k // 2)).long()
    assert torch.equal(near, expected)
    assert near.max() == math.ceil(2 * (n - 1) / (k - 1))


def test_paths_of_a_recurrence_lead_back_only():
    lengths = path_lengths(repeat(torch.ones(6).diag(-1).bool(), 7))
    t, s = torch.arange(7)[:, None], torch.arange(7)
    assert torch.equal(lengths, torch.where(t >= s, t - s, -1))


def test_a_layer_that_links_nothing_ends_no_path():
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    near, still = distance <= 1, distance == 0
    lengths = path_lengths([near, still, near, still, near])
    assert lengths[0].tolist() == [0, 1, 3, 5, -1, -1, -1, -1, -1]


def test_a_path_needs_a_layer():
    with pytest.raises(ValueError, match="no layers"):
        path_lengths([])


def test_links_are_seen_through_a_norm():
    """What a layer norm puts out sums to nothing, whatever it depends on."""
    torch.manual_seed(0)
    norm, convolution = torch.nn.LayerNorm(4), make_layer("convolutional", 4, 3)
    found = links(lambda x: norm(convolution(x)), torch.randn(1, 9, 4))
    distance = (torch.arange(9)[:, None] - torch.arange(9)).abs()
    assert torch.equal(found, distance <= 1)


def test_layers_are_taken_from_the_input_upwards():
    """Output 2 sees 1, which the layer below has from 0; not the other way round."""
    low, high = torch.eye(3).bool(), torch.eye(3).bool()
    low[1, 0] = high[2, 1] = True
    assert path_lengths([low, high])[2, 0] == 2
    assert path_lengths([high, low])[2, 0] == -1


def test_dilation_reaches_a_power_of_k():
    n, k = 81, 3  # from the middle (3⁴ - 1) / 2 = 40 to either side
    distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
    stack = [(distance == 0) | (distance == k**i) for i in range(4)]
    three, four = path_lengths(stack[:3])[40], path_lengths(stack)[40]
    assert (three >= 0).nonzero().flatten().tolist() == list(range(40 - 13, 40 + 14))
    assert (four >= 0).all() and four.max() == 4


def test_a_cycle_of_dilations_connects_every_pair():
    for n, k in ((14, 3), (100, 3), (60, 9)):
        distance = (torch.arange(n)[:, None] - torch.arange(n)).abs()
        near = [
            (distance % k**i == 0) & (distance // k**i <= k // 2)
            for i in range(n)
            if k**i < n
        ]
        lengths = path_lengths(cycle(near))
        at_least = math.ceil(math.log(2 * n - 1, k))
        assert (lengths >= 0).all() and at_least <= lengths.max() < 2 * at_least


# Fits and crossings


def test_a_power_law_is_found():
    x = np.array([16, 32, 64, 128, 256])
    exponent, error = power_law(x, 0.3 * x**1.5)
    assert exponent == pytest.approx(1.5) and error < 1e-7
    noisy = 0.3 * x**1.5 * np.array([1.1, 0.9, 1.1, 0.9, 1.1])
    exponent, error = power_law(x, noisy)
    log_x, log_y = np.log(x) - np.log(x).mean(), np.log(noisy)
    residual = log_y - log_y.mean() - exponent * log_x
    by_hand = math.sqrt((residual**2).sum() / (5 - 2) / (log_x**2).sum())
    assert exponent == pytest.approx(1.5, abs=0.05)
    assert error == pytest.approx(by_hand)


def test_a_crossing_is_found_on_straight_lines_between_logs():
    x = [1, 10, 100, 1000]
    square, line = [a**2 for a in x], [30 * a for a in x]
    assert crossing(x, square, line) == pytest.approx(30)
    assert crossing(x, line, square) is None  # above from the beginning, not in the end
    assert crossing(x, square, [0.5] * 4) is None  # above from the beginning
    assert crossing(x, [1] * 4, [2] * 4) is None  # never


def test_of_several_crossings_the_last_counts():
    x = [1, 2, 4, 8, 16]
    assert 4 < crossing(x, [1, 3, 1, 4, 5], [2, 2, 2, 2, 2]) < 8


# Memory


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_memory_is_the_most_that_was_there_at_once(device):
    x = torch.zeros(1000, device=device)  # 4,000 bytes that were there before
    assert peak_memory(lambda: None) == 0
    assert peak_memory(lambda x: x + 1, x) == 4000
    assert peak_memory(lambda x: (x + 1) * 2, x) == 8000
    assert peak_memory(lambda x: ((x + 1) * 2).exp(), x) == 8000
    assert peak_memory(lambda x: [x + i for i in range(3)], x) == 12_000
    assert peak_memory(lambda x: [(x + i).sum().shape for i in range(3)], x) == 4004


def test_views_and_changes_in_place_take_no_memory():
    x = torch.zeros(10, 10)
    assert peak_memory(lambda x: x.T[2:].reshape(8, 10).add_(1), x[:, :10]) <= 320
    assert peak_memory(lambda x: x.view(100).add_(1), x) == 0
    assert peak_memory(lambda x: x.expand(50, 10, 10), x) == 0


def test_what_the_backward_pass_needs_is_counted():
    x = torch.zeros(1000, requires_grad=True)
    forward = peak_memory(lambda x: x.exp().sin().sum(), x)
    both = peak_memory(lambda x: x.exp().sin().sum().backward(), x)
    assert 8004 == forward < both


def test_the_definition_of_attention_needs_the_square():
    def needed(n):
        inputs = [torch.empty(1, 1, n, 16, device="meta") for _ in range(3)]
        return peak_memory(scaled_dot_product_attention, *inputs)

    assert needed(4096) >= 2 * 4 * 4096**2
    assert needed(4096) / needed(2048) == pytest.approx(4, abs=0.1)


def test_counting_works_on_a_module():
    layer = nn.Linear(10, 5, bias=False)
    assert peak_memory(layer, torch.zeros(3, 10)) == 3 * 5 * 4
