"""Masks, attention, heads and the key/value cache: notebooks/3_2_attention.ipynb."""

import copy
import itertools
import math
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from annotated_transformer.attention import (
    PLAIN_KEYS,
    PLAIN_SCORES,
    CrossAttention,
    KeyValueCache,
    MultiHeadAttention,
    SelfAttention,
    attention_weights,
    causal_mask,
    fused_attention,
    padding_mask,
    scaled_dot_product_attention,
    target_mask,
)

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)
IMPLEMENTATIONS = [scaled_dot_product_attention, fused_attention]
PAD = 0

both = pytest.mark.parametrize("attention", IMPLEMENTATIONS)
sizes = st.integers(1, 7)
seeds = st.integers(0, 999)


def heads(*shapes, dtype=torch.float32, seed=0):
    """One random tensor per shape, each of which wants a gradient."""
    torch.manual_seed(seed)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def difference(ours, theirs):
    """The largest absolute difference between two lists of tensors."""
    pairs = zip(ours, theirs, strict=True)
    return max((a.float() - b.float()).abs().max().item() for a, b in pairs)


def is_finite(tensors):
    return all(tensor.isfinite().all() for tensor in tensors)


@pytest.fixture
def report(record_property):
    """Keeps and prints the worst difference a test has seen; it must keep a limit."""

    def report_worst(name, worst, limit):
        record_property(f"worst difference, {name}", worst)
        print(f"worst difference, {name}: {worst:.1e} (limit {limit:.0e})")
        assert worst <= limit, f"{name}: {worst:.1e} > {limit:.0e}"

    return report_worst


# Masks


def test_masks_say_who_may_attend():
    tokens = torch.tensor([[5, 6, 7, PAD], [8, PAD, PAD, PAD]])
    padding = padding_mask(tokens, PAD)
    assert padding.shape == (2, 1, 1, 4) and padding.dtype == torch.bool
    assert padding[:, 0, 0].tolist() == [
        [True, True, True, False],
        [True] + [False] * 3,
    ]
    causal = causal_mask(3)
    assert causal.shape == (1, 1, 3, 3) and causal.dtype == torch.bool
    assert causal[0, 0].tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]
    target = target_mask(tokens, PAD)
    assert target.shape == (2, 1, 4, 4)
    assert (
        target[0, 0].int().tolist() == [[1, 0, 0, 0], [1, 1, 0, 0]] + [[1, 1, 1, 0]] * 2
    )
    assert target[1, 0].int().tolist() == [[1, 0, 0, 0]] * 4


@SETTINGS
@given(batch=sizes, length=sizes, pad_id=st.integers(0, 3), seed=seeds)
def test_target_mask_is_padding_and_causal_in_every_place(batch, length, pad_id, seed):
    torch.manual_seed(seed)
    tokens = torch.randint(0, 4, (batch, length))
    mask = target_mask(tokens, pad_id)
    assert mask.shape == (batch, 1, length, length)
    for b, t, s in itertools.product(range(batch), range(length), range(length)):
        assert mask[b, 0, t, s].item() == (s <= t and tokens[b, s].item() != pad_id)


def test_masks_are_built_where_the_tokens_are():
    tokens = torch.zeros(2, 3, dtype=torch.int64, device="meta")
    assert padding_mask(tokens, PAD).device.type == "meta"
    assert target_mask(tokens, PAD).device.type == "meta"
    assert causal_mask(3, "meta").device.type == "meta"


# Eq. 1


@both
def test_numbers_worked_by_hand(attention):
    query = torch.tensor([[1.0, 1.0, 1.0, 1.0]])
    key = torch.tensor([[1.0, 0, 0, 0], [1.0, 1, 1, 0], [1.0, 1, -1, -1]])
    value = torch.tensor([[10.0, 0.0], [0.0, 10.0], [5.0, 5.0]])
    exps = [math.exp(score) for score in (0.5, 1.5, 0.0)]
    weights = torch.tensor([[e / sum(exps) for e in exps]])
    torch.testing.assert_close(attention_weights(query, key), weights)
    output = attention(query[None, None], key[None, None], value[None, None])
    torch.testing.assert_close(output[0, 0], weights @ value)
    # Scores log 0.2, log 0.7, log 0.1 give the row 0.2, 0.7, 0.1.
    key = torch.zeros(3, 4)
    key[:, 0] = 2 * torch.tensor([0.2, 0.7, 0.1]).log()
    output = attention(query[None, None], key[None, None], value[None, None])
    torch.testing.assert_close(output[0, 0], torch.tensor([[2.5, 7.5]]))


@SETTINGS
@given(
    shape=st.tuples(sizes, sizes, sizes, sizes, sizes, sizes),
    density=st.floats(0, 1),
    seed=seeds,
)
def test_rows_are_convex_combinations_of_what_the_mask_allows(shape, density, seed):
    batch, n_heads, t, s, d_k, d_v = shape
    query, key, value = heads(
        (batch, n_heads, t, d_k),
        (batch, n_heads, s, d_k),
        (batch, n_heads, s, d_v),
        seed=seed,
    )
    mask = torch.rand(batch, 1, t, s) < density
    weights = attention_weights(query, key, mask)
    allowed = mask.expand_as(weights)
    alive = mask.any(dim=-1).expand(batch, n_heads, t)
    assert weights.shape == (batch, n_heads, t, s)
    assert (weights >= 0).all() and (weights[~allowed] == 0).all()
    torch.testing.assert_close(weights.sum(dim=-1), alive.float())
    for attention in IMPLEMENTATIONS:
        output = attention(query, key, value, mask)
        candidates = value[:, :, None].expand(batch, n_heads, t, s, d_v)
        hidden = ~allowed[..., None]
        low = candidates.masked_fill(hidden, math.inf).amin(dim=3)
        high = candidates.masked_fill(hidden, -math.inf).amax(dim=3)
        assert (output[~alive] == 0).all()
        assert (output[alive] >= low[alive] - 1e-5).all()
        assert (output[alive] <= high[alive] + 1e-5).all()


@both
@SETTINGS
@given(t=sizes, s=st.integers(2, 8), seed=seeds)
def test_what_is_masked_has_no_influence(attention, t, s, seed):
    query, key, value = heads((2, 3, t, 4), (2, 3, s, 4), (2, 3, s, 5), seed=seed)
    mask = torch.rand(2, 1, t, s) < 0.5
    mask[..., 0] = False  # no query may look at key 0
    output = attention(query, key, value, mask)
    gradients = torch.autograd.grad(output.square().sum(), (key, value))
    assert all((gradient[:, :, 0] == 0).all() for gradient in gradients)
    with torch.no_grad():
        key[:, :, 0] *= -100
        value[:, :, 0] += 1000
    torch.testing.assert_close(
        attention(query, key, value, mask), output, atol=0, rtol=0
    )


@both
@SETTINGS
@given(t=sizes, s=sizes, seed=seeds)
def test_permutation(attention, t, s, seed):
    """Permuted queries permute the output; permuted keys and values change nothing."""
    query, key, value = heads((2, 3, t, 4), (2, 3, s, 4), (2, 3, s, 5), seed=seed)
    mask = torch.rand(2, 1, t, s) < 0.7
    output = attention(query, key, value, mask)
    rows, columns = torch.randperm(t), torch.randperm(s)
    permuted = attention(
        query[:, :, rows],
        key[:, :, columns],
        value[:, :, columns],
        mask[:, :, rows][..., columns],
    )
    torch.testing.assert_close(permuted, output[:, :, rows], atol=1e-6, rtol=1e-5)


@both
def test_scale_is_one_over_the_root_of_d_k(attention):
    """A wrong scale changes a float64 result by far more than this tolerance."""
    query, key, value = heads(
        (1, 1, 3, 64), (1, 1, 5, 64), (1, 1, 5, 7), dtype=torch.float64
    )
    scores = torch.einsum("bhtd,bhsd->bhts", query, key) / 8
    expected = scores.exp() / scores.exp().sum(dim=-1, keepdim=True) @ value
    torch.testing.assert_close(
        attention(query, key, value), expected, atol=1e-12, rtol=0
    )


def test_dropout_is_on_the_weights_and_keeps_their_mean():
    torch.manual_seed(0)
    query, key = torch.randn(1, 1, 1, 4), torch.randn(1, 1, 6, 4)
    value = torch.eye(6)[None, None]  # the output is the row of weights
    weights = attention_weights(query, key)
    for attention in IMPLEMENTATIONS:
        draws = torch.stack(
            [attention(query, key, value, dropout=0.25) for _ in range(2000)]
        )
        kept = draws != 0
        expected = (weights / 0.75).expand_as(draws)[kept]
        torch.testing.assert_close(draws[kept], expected, atol=1e-6, rtol=1e-5)
        assert abs(kept.float().mean() - 0.75) < 0.02
        assert torch.equal(
            attention(query, key, value), attention(query, key, value, dropout=0.0)
        )


# A query that may attend to nothing


@both
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("whole_sentence", [True, False])
def test_query_without_keys_gets_zeros(attention, dtype, whole_sentence):
    tensors = heads((2, 2, 5, 8), (2, 2, 6, 8), (2, 2, 6, 8), dtype=dtype)
    if whole_sentence:
        mask = padding_mask(torch.tensor([[PAD] * 6, [3] * 6]), PAD)  # (B, 1, 1, S)
        empty = (0, slice(None), slice(None))
    else:
        mask = torch.ones(2, 1, 5, 6, dtype=torch.bool)
        mask[0, 0, 3] = False
        empty = (0, slice(None), 3)
    output = attention(*tensors, mask)
    gradients = torch.autograd.grad(output.float().square().sum(), tensors)
    assert output.dtype == dtype
    assert (output[empty] == 0).all() and is_finite([output, *gradients])
    assert (gradients[0][empty] == 0).all()
    assert (output[1] != 0).any()


@both
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_masks_are_finite_in_half_precision(attention, dtype):
    """The popular -1e9 does not exist in float16; -inf turns an empty row into NaN."""
    tensors = heads((2, 2, 6, 8), (2, 2, 6, 8), (2, 2, 6, 8), dtype=dtype)
    mask = target_mask(
        torch.tensor([[3, 4, 5, PAD, PAD, PAD], [PAD, 3, 4, 5, 6, 7]]), PAD
    )
    output = attention(*tensors, mask)
    gradients = torch.autograd.grad(output.float().sum(), tensors)
    assert is_finite([output, *gradients])
    assert (output[1, :, 0] == 0).all()  # left padding: the first query sees nothing


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@both
def test_query_without_keys_never_passes_through_nan(attention):
    """A NaN that a later mask wipes out would still stop whoever hunts for NaNs."""
    tensors = heads((1, 1, 2, 4), (1, 1, 3, 4), (1, 1, 3, 4))
    mask = torch.zeros(2, 3, dtype=torch.bool)
    with torch.autograd.detect_anomaly(check_nan=True):
        attention(*tensors, mask).sum().backward()
    assert is_finite([tensor.grad for tensor in tensors])


@both
def test_query_without_keys_through_the_modules_with_and_without_cache(attention):
    torch.manual_seed(0)
    self_attention = SelfAttention(8, 2, attention=attention)
    cross_attention = CrossAttention(8, 2, attention=attention)
    x, memory = heads((2, 1, 8), (2, 4, 8))
    src_mask = padding_mask(torch.tensor([[PAD] * 4, [3, 4, PAD, PAD]]), PAD)
    parameters = [*self_attention.parameters(), *cross_attention.parameters()]
    for cache in (None, KeyValueCache()):
        outputs = [
            self_attention(
                x, src_mask[..., :1], None if cache is None else KeyValueCache()
            ),
            cross_attention(x, memory, src_mask, cache),
            cross_attention(x, memory, src_mask, cache),  # this time from the cache
        ]
        for output in outputs:
            assert (output[0] == 0).all() and (output[1] != 0).any()
        gradients = torch.autograd.grad(
            sum(o.square().sum() for o in outputs), parameters
        )
        assert is_finite(gradients)


# The fused kernel against the definition


@pytest.mark.parametrize(
    "dtype, value_limit, gradient_limit",
    [(torch.float32, 1e-5, 1e-5), (torch.bfloat16, 3e-2, 6e-2)],
)
def test_fused_equals_readable(dtype, value_limit, gradient_limit, report):
    worst, worst_gradient = 0.0, 0.0
    for t, s, d_k, d_v in [
        (1, 1, 1, 1),
        (5, 7, 8, 8),
        (32, 32, 64, 64),
        (33, 70, 16, 32),
        (33, 300, 16, 16),  # above PLAIN_KEYS
    ]:
        shapes = (2, 3, t, d_k), (2, 3, s, d_k), (2, 3, s, d_v)
        tensors = heads(*shapes, dtype=dtype)
        random_mask = torch.rand(2, 1, t, s) < 0.5
        random_mask[0, 0, 0] = False
        masks = [None, random_mask, random_mask[:, :, :1], causal_mask(s)[:, :, -t:]]
        for mask in masks:
            outputs = [attention(*tensors, mask) for attention in IMPLEMENTATIONS]
            upstream = torch.randn_like(outputs[0])
            gradients = [torch.autograd.grad(o, tensors, upstream) for o in outputs]
            worst = max(worst, difference(*([o] for o in outputs)))
            worst_gradient = max(worst_gradient, difference(*gradients))
    report(f"fused and readable, {dtype}, values", worst, value_limit)
    report(f"fused and readable, {dtype}, gradients", worst_gradient, gradient_limit)


def test_the_kernel_is_left_out_only_where_it_is_slower(monkeypatch):
    """On a CPU: to train in bfloat16 with few keys, or without a gradient at all."""
    calls = []

    def kernel(query, *rest, real=F.scaled_dot_product_attention, **more):
        calls.append(query.dtype)
        return real(query, *rest, **more)

    monkeypatch.setattr(F, "scaled_dot_product_attention", kernel)
    fewest, most = PLAIN_SCORES
    for dtype, heads_, t, s, trains, expected in [
        (torch.bfloat16, 1, PLAIN_KEYS, PLAIN_KEYS, True, 0),
        (torch.bfloat16, 1, 4, PLAIN_KEYS + 1, True, 1),
        (torch.float16, 8, 16, 16, True, 1),
        (torch.float32, 8, 16, 16, True, 1),
        (torch.float32, 1, 1, fewest, False, 0),
        (torch.bfloat16, 1, 1, fewest, False, 0),
        (torch.float32, 1, 1, fewest - 1, False, 1),
        (torch.float32, 4, 2, most // 8, False, 0),
        (torch.float32, 4, 2, most // 8 + 1, False, 1),
    ]:
        calls.clear()
        shapes = (1, heads_, t, 4), (1, heads_, s, 4), (1, heads_, s, 4)
        tensors = heads(*shapes, dtype=dtype)
        if not trains:
            tensors = [tensor.detach() for tensor in tensors]
        fused_attention(*tensors, torch.ones(1, 1, 1, s, dtype=torch.bool))
        assert len(calls) == expected, (dtype, heads_, t, s, trains)


@pytest.mark.parametrize(
    "dtype, limit", [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)]
)
@pytest.mark.parametrize("t, s", [(1, 5), (1, 200), (4, 40), (30, 30)])
def test_without_a_gradient_fused_equals_readable(dtype, limit, t, s):
    shapes = (40, 3, t, 8), (40, 3, s, 8), (40, 3, s, 16)
    tensors = [tensor.detach() for tensor in heads(*shapes, dtype=dtype)]
    mask = torch.rand(40, 1, t, s) < 0.5
    mask[0] = False
    for one in (None, mask, mask[:, :, :1]):
        output, expected = (attention(*tensors, one) for attention in IMPLEMENTATIONS)
        torch.testing.assert_close(output, expected, rtol=limit, atol=limit)
    assert (output[0] == 0).all()


def test_two_products_are_more_exact_than_the_definition():
    """In bfloat16, values and gradients against float64; zeros without a key."""
    tensors = heads(*[(8, 4, 20, 16)] * 3, dtype=torch.bfloat16)
    mask = torch.rand(8, 1, 20, 20) < 0.7
    mask[0, 0, 3] = False
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    truth = scaled_dot_product_attention(*exact, mask)
    upstream = torch.randn_like(truth).bfloat16()
    true_gradients = torch.autograd.grad(truth, exact, upstream.double())
    errors = {}
    for attention in IMPLEMENTATIONS:
        output = attention(*tensors, mask)
        assert output.dtype == torch.bfloat16
        assert (output[0, :, 3] == 0).all()
        found = output, *torch.autograd.grad(output, tensors, upstream)
        pairs = zip(found, (truth, *true_gradients), strict=True)
        errors[attention] = [(a - b).norm() / b.norm() for a, b in pairs]
    usual, ours = (errors[attention] for attention in IMPLEMENTATIONS)
    assert all(a < 0.01 for a in ours)
    assert all(a < 1.02 * b for a, b in zip(ours, usual, strict=True))
    # The softmax is in float32, which the gradients of query and key show.
    assert ours[1] < 0.98 * usual[1] and ours[2] < 0.98 * usual[2]


def test_two_products_drop_the_same_weights_as_the_definition():
    tensors = heads(*[(2, 3, 16, 8)] * 3, dtype=torch.bfloat16)
    outputs = []
    for attention in IMPLEMENTATIONS:
        torch.manual_seed(1)
        outputs.append(attention(*tensors, None, 0.5))
    torch.testing.assert_close(*outputs, rtol=0.02, atol=0.02)
    assert not torch.equal(outputs[0], scaled_dot_product_attention(*tensors))


@SETTINGS
@given(shape=st.tuples(sizes, sizes, sizes, sizes, sizes, sizes), seed=seeds)
def test_fused_equals_readable_for_any_shape(shape, seed):
    batch, n_heads, t, s, d_k, d_v = shape
    query, key, value = heads(
        (batch, n_heads, t, d_k),
        (batch, n_heads, s, d_k),
        (batch, n_heads, s, d_v),
        seed=seed,
    )
    for mask in (
        None,
        torch.rand(batch, 1, 1, s) < 0.5,
        torch.rand(1, n_heads, t, s) < 0.5,
    ):
        torch.testing.assert_close(
            fused_attention(query, key, value, mask),
            scaled_dot_product_attention(query, key, value, mask),
            atol=1e-5,
            rtol=1e-5,
        )


@both
def test_a_mask_that_is_not_boolean_is_refused(attention):
    query, key, value = heads((1, 1, 2, 4), (1, 1, 2, 4), (1, 1, 2, 4))
    for mask in (torch.ones(2, 2), torch.ones(2, 2, dtype=torch.int64)):
        with pytest.raises((TypeError, RuntimeError)):
            attention(query, key, value, mask)
    with pytest.raises(TypeError, match="mask is torch.float32: it must be bool"):
        fused_attention(query, key, value, torch.ones(2, 2))


# Multi-head attention against torch's


def torch_twin(ours):
    """torch.nn.MultiheadAttention with the weights of a module of ours."""
    d_model = ours.w_o.out_features
    theirs = nn.MultiheadAttention(
        d_model, ours.n_heads, bias=ours.bias, batch_first=True
    )
    packed = [ours.w_qkv] if isinstance(ours, SelfAttention) else [ours.w_q, ours.w_kv]
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([linear.weight for linear in packed]))
        theirs.out_proj.weight.copy_(ours.w_o.weight)
        if ours.bias:
            theirs.in_proj_bias.copy_(torch.cat([linear.bias for linear in packed]))
            theirs.out_proj.bias.copy_(ours.w_o.bias)
    return theirs, packed


def with_random_biases(module):
    """A lost or misplaced bias is seen only where biases are not zero."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return module


SRC = torch.tensor([[3, 4, 5, 6, 7], [3, 4, PAD, PAD, PAD], [3, 4, 5, 6, PAD]])
TGT = torch.tensor([[1, 8, 9, 10], [1, 8, 9, PAD], [1, 8, PAD, PAD]])


@pytest.mark.parametrize(
    "mask_kind", ["none", "padding", "causal", "causal and padding"]
)
@pytest.mark.parametrize("bias", [False, True])
@both
def test_parity_of_self_attention_with_torch(attention, bias, mask_kind, report):
    torch.manual_seed(0)
    ours = with_random_biases(SelfAttention(32, 4, bias=bias, attention=attention))
    theirs, packed = torch_twin(ours)
    x = torch.randn(3, 4, 32, requires_grad=True)
    mask, converted = {
        "none": (None, {}),
        "padding": (padding_mask(TGT, PAD), {"key_padding_mask": TGT == PAD}),
        "causal": (causal_mask(4), {"attn_mask": ~causal_mask(4)[0, 0]}),
        "causal and padding": (
            target_mask(TGT, PAD),
            {"key_padding_mask": TGT == PAD, "attn_mask": ~causal_mask(4)[0, 0]},
        ),
    }[mask_kind]
    output = ours(x, mask)
    expected, weights = theirs(x, x, x, average_attn_weights=False, **converted)
    parts = ours.w_qkv(x).split(ours.widths, dim=-1)
    query, key, _ = map(ours.split_heads, parts)
    case = (
        f"self-attention and torch, {attention.__name__}, bias {bias}, mask {mask_kind}"
    )
    report(
        f"{case}, weights",
        difference([attention_weights(query, key, mask)], [weights]),
        1e-5,
    )
    compare_with_torch(output, expected, x, ours, packed, theirs, case, report)


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@both
def test_parity_of_cross_attention_with_torch(attention, bias, padded, report):
    torch.manual_seed(0)
    ours = with_random_biases(CrossAttention(32, 4, bias=bias, attention=attention))
    theirs, packed = torch_twin(ours)
    x, memory = heads((3, 4, 32), (3, 5, 32))
    output = ours(x, memory, padding_mask(SRC, PAD) if padded else None)
    expected, _ = theirs(
        x, memory, memory, key_padding_mask=SRC == PAD if padded else None
    )
    case = (
        f"cross-attention and torch, {attention.__name__}, bias {bias}, padded {padded}"
    )
    compare_with_torch(
        output, expected, [x, memory], ours, packed, theirs, case, report
    )


def compare_with_torch(output, expected, inputs, ours, packed, theirs, case, report):
    inputs = [inputs] if isinstance(inputs, torch.Tensor) else inputs
    upstream = torch.randn_like(output)
    kinds = ["weight", "bias"] if ours.bias else ["weight"]
    our_parameters = [
        [getattr(linear, kind) for linear in packed] + [getattr(ours.w_o, kind)]
        for kind in kinds
    ]
    their_parameters = [
        [getattr(theirs, f"in_proj_{kind}"), getattr(theirs.out_proj, kind)]
        for kind in kinds
    ]
    got = torch.autograd.grad(output, [*inputs, *sum(our_parameters, [])], upstream)
    wanted = torch.autograd.grad(
        expected, [*inputs, *sum(their_parameters, [])], upstream
    )
    joined, rest = list(got[: len(inputs)]), list(got[len(inputs) :])
    while rest:  # what we keep in one or two packed matrices, torch keeps in one
        joined += [torch.cat(rest[: len(packed)]), rest[len(packed)]]
        rest = rest[len(packed) + 1 :]
    report(f"{case}, values", difference([output], [expected]), 1e-5)
    report(f"{case}, gradients", difference(joined, wanted), 1e-4)


# Heads, shapes, initialisation


@both
@SETTINGS
@given(n_heads=st.integers(1, 4), d_k=sizes, d_v=sizes, d_model=sizes, seed=seeds)
def test_packed_projections_equal_a_loop_over_the_heads(
    attention, n_heads, d_k, d_v, d_model, seed
):
    torch.manual_seed(seed)
    module = SelfAttention(d_model, n_heads, d_k, d_v, attention=attention)
    cross = CrossAttention(d_model, n_heads, d_k, d_v, attention=attention)
    x, memory = torch.randn(2, 3, d_model), torch.randn(2, 5, d_model)
    w_q, w_k, w_v = module.w_qkv.weight.split(module.widths)
    check = [(module(x), x, x, w_q, w_k, w_v, module.w_o)]
    check.append(
        (cross(x, memory), x, memory, cross.w_q.weight)
        + (*cross.w_kv.weight.split(cross.widths), cross.w_o)
    )
    for output, asks, answers, w_q, w_k, w_v, w_o in check:
        looped = torch.cat(
            [
                scaled_dot_product_attention(asks @ q.T, answers @ k.T, answers @ v.T)
                for q, k, v in zip(
                    w_q.split(d_k), w_k.split(d_k), w_v.split(d_v), strict=True
                )
            ],
            dim=-1,
        )  # (B, T, H · d_v)
        torch.testing.assert_close(output, looped @ w_o.weight.T, atol=1e-5, rtol=1e-5)


# Table 3: base, big, and rows A and B, as (d_model, n_heads, d_k, d_v)
TABLE_3 = [(512, 8, None, None), (1024, 16, None, None)]
TABLE_3 += [
    (512, 1, 512, 512),
    (512, 4, 128, 128),
    (512, 16, 32, 32),
    (512, 32, 16, 16),
]
TABLE_3 += [(512, 8, 16, 64), (512, 8, 32, 64), (512, 8, 16, None), (512, 8, None, 16)]


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
@pytest.mark.parametrize("shape", TABLE_3, ids=str)
def test_shapes_of_table_3(kind, shape):
    d_model, n_heads, d_k, d_v = shape
    module = kind(*shape)
    d_k, d_v = d_k or d_model // n_heads, d_v or d_model // n_heads
    assert (module.d_k, module.d_v) == (d_k, d_v)
    counted = sum(parameter.numel() for parameter in module.parameters())
    assert counted == d_model * n_heads * (2 * d_k + 2 * d_v)
    inputs = [torch.randn(2, 3, d_model)] * (1 + (kind is CrossAttention))
    assert module(*inputs).shape == (2, 3, d_model)


@pytest.mark.parametrize("bias", [False, True])
def test_each_projection_is_glorot_initialised_on_its_own_fan(bias):
    torch.manual_seed(0)
    d_model, n_heads, d_k, d_v = 96, 4, 16, 40
    own = SelfAttention(d_model, n_heads, d_k, d_v, bias=bias)
    cross = CrossAttention(d_model, n_heads, d_k, d_v, bias=bias)
    blocks = [*own.w_qkv.weight.split([64, 64, 160]), own.w_o.weight]
    blocks += [cross.w_q.weight, *cross.w_kv.weight.split([64, 160]), cross.w_o.weight]
    for block in blocks:
        bound = math.sqrt(6 / sum(block.shape))
        largest = block.abs().max().item()
        assert 0.995 * bound < largest <= bound, (tuple(block.shape), largest, bound)
        assert abs(block.std().item() * math.sqrt(3) / bound - 1) < 0.02
    biases = [p for m in (own, cross) for n, p in m.named_parameters() if "bias" in n]
    assert len(biases) == (5 if bias else 0) and all((b == 0).all() for b in biases)


def test_parameter_names_are_the_published_ones():
    assert list(SelfAttention(8, 2).state_dict()) == ["w_qkv.weight", "w_o.weight"]
    assert list(CrossAttention(8, 2).state_dict()) == [
        "w_q.weight",
        "w_kv.weight",
        "w_o.weight",
    ]


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
def test_nonsense_is_refused(kind):
    with pytest.raises(
        ValueError, match=r"^d_model is 10: .*divisible by n_heads \(4\)"
    ):
        kind(10, 4)
    with pytest.raises(ValueError, match="d_model is 10"):
        kind(10, 4, d_k=3)
    with pytest.raises(
        ValueError, match="^n_heads is 0: it must be a positive integer$"
    ):
        kind(10, 0)
    assert kind(10, 4, d_k=3, d_v=2).w_o.in_features == 8
    with pytest.raises(NotImplementedError):
        MultiHeadAttention(8, 2)


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
@both
def test_dropout_only_while_training(kind, attention):
    torch.manual_seed(0)
    module = kind(8, 2, dropout=0.5, attention=attention)
    inputs = [torch.randn(2, 6, 8)] * (1 + (kind is CrossAttention))
    assert not torch.equal(module(*inputs), module(*inputs))
    module.eval()
    assert torch.equal(module(*inputs), module(*inputs))
    without = copy.deepcopy(module)
    without.dropout = 0.0
    assert torch.equal(without.train()(*inputs), module(*inputs))


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
@both
def test_copies_and_pickles_after_a_forward_pass(kind, attention):
    torch.manual_seed(0)
    module = kind(8, 2, attention=attention)
    inputs = [torch.randn(2, 3, 8, requires_grad=True)] * (1 + (kind is CrossAttention))
    output = module(*inputs)
    output.sum().backward()
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(*inputs), output)
        twin.w_o.weight.data.zero_()
    assert torch.equal(module(*inputs), output)  # a copy, not a second name


# Causality and padding, through the modules


@both
@SETTINGS
@given(length=st.integers(2, 8), data=st.data(), seed=seeds)
def test_no_causal_leak(attention, length, data, seed):
    position = data.draw(st.integers(1, length - 1))
    torch.manual_seed(seed)
    module = SelfAttention(8, 2, attention=attention)
    x = torch.randn(2, length, 8, requires_grad=True)
    mask = causal_mask(length)
    output = module(x, mask)
    before = output[:, :position].square().sum()
    (gradient,) = torch.autograd.grad(before, x)
    assert (gradient[:, position:] == 0).all()
    assert (gradient[:, :position] != 0).any(dim=-1).all()
    changed = x.detach().clone()
    changed[:, position] += 1
    moved = (module(changed, mask) != output).any(dim=-1)  # (B, T)
    assert not moved[:, :position].any() and moved[:, position:].all()


@both
@SETTINGS
@given(length=st.integers(1, 6), more=st.integers(1, 4), seed=seeds)
def test_more_padding_changes_nothing(attention, length, more, seed):
    torch.manual_seed(seed)
    own = SelfAttention(8, 2, attention=attention)
    cross = CrossAttention(8, 2, attention=attention)
    tokens = torch.randint(1, 9, (2, length))
    x, query, filler = (torch.randn(2, n, 8) for n in (length, 3, more))
    padded_tokens = F.pad(tokens, (0, more), value=PAD)
    padded = torch.cat([x, 100 * filler], dim=1)
    mask, padded_mask = padding_mask(tokens, PAD), padding_mask(padded_tokens, PAD)
    close = {"atol": 1e-5, "rtol": 1e-5}
    torch.testing.assert_close(
        own(padded, padded_mask)[:, :length], own(x, mask), **close
    )
    torch.testing.assert_close(
        own(padded, target_mask(padded_tokens, PAD))[:, :length],
        own(x, target_mask(tokens, PAD)),
        **close,
    )
    torch.testing.assert_close(
        cross(query, padded, padded_mask), cross(query, x, mask), **close
    )


@both
def test_self_attention_is_permutation_equivariant_and_a_causal_mask_is_not(attention):
    torch.manual_seed(0)
    module, x = SelfAttention(16, 4, attention=attention), torch.randn(2, 9, 16)
    order = torch.randperm(9)
    torch.testing.assert_close(
        module(x[:, order]), module(x)[:, order], atol=1e-6, rtol=0
    )
    mask = causal_mask(9)
    assert (module(x[:, order], mask) - module(x, mask)[:, order]).abs().max() > 0.1


# The key/value cache


@both
@pytest.mark.parametrize("chunks", [[1] * 7, [3, 1, 1, 2], [7]], ids=str)
def test_cache_equals_full_recomputation(attention, chunks, report):
    torch.manual_seed(0)
    module = SelfAttention(16, 4, d_k=3, d_v=5, attention=attention)
    x = torch.randn(3, 7, 16)
    full = causal_mask(7)
    cache, outputs = KeyValueCache(), []
    assert cache.length == 0
    for new in x.split(chunks, dim=1):
        start, end = cache.length, cache.length + new.size(1)
        mask = None if new.size(1) == 1 else full[:, :, start:end, :end]
        outputs.append(module(new, mask, cache))
        assert cache.length == end
        assert cache.key.shape == (3, 4, end, 3) and cache.value.shape == (3, 4, end, 5)
        recomputed = module(x[:, :end], causal_mask(end))
        report(
            f"cache after {end}",
            difference(outputs[-1:], [recomputed[:, start:]]),
            1e-5,
        )
    report(
        "cache, whole", difference([torch.cat(outputs, dim=1)], [module(x, full)]), 1e-5
    )


@both
def test_cross_attention_projects_the_memory_once(attention):
    torch.manual_seed(0)
    module = CrossAttention(16, 4, attention=attention)
    x, memory = torch.randn(3, 4, 16), torch.randn(3, 5, 16)
    mask = padding_mask(SRC, PAD)
    calls = []
    module.w_kv.register_forward_hook(lambda *_: calls.append(1))
    cache = KeyValueCache()
    steps = [module(x[:, t : t + 1], memory, mask, cache) for t in range(4)]
    assert len(calls) == 1 and cache.length == 5
    torch.testing.assert_close(
        torch.cat(steps, dim=1), module(x, memory, mask), atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize("rows", [[2, 0], [1, 1, 0, 2, 2], [0, 1, 2], []], ids=str)
def test_select_drops_and_repeats_rows(rows):
    torch.manual_seed(0)
    module = SelfAttention(8, 2)
    x, rows = torch.randn(3, 4, 8), torch.tensor(rows, dtype=torch.int64)
    cache = KeyValueCache()
    for t in range(3):
        module(x[:, t : t + 1], cache=cache)
    cache.select(rows)
    assert cache.key.shape[0] == cache.value.shape[0] == len(rows) and cache.length == 3
    expected = module(x, causal_mask(4))[rows, 3:]
    torch.testing.assert_close(
        module(x[rows, 3:], cache=cache), expected, atol=1e-6, rtol=1e-5
    )


def test_select_before_the_first_step_is_allowed():
    cache = KeyValueCache()
    cache.select(torch.tensor([0, 0]))
    assert cache.length == 0
