"""Attention to a neighbourhood, in blocks: notebooks/4_why_self_attention.ipynb."""

import copy
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.attention import (
    CrossAttention,
    KeyValueCache,
    SelfAttention,
    causal_mask,
    fused_attention,
    padding_mask,
    scaled_dot_product_attention,
    target_mask,
)
from annotated_transformer.complexity import count_operations, peak_memory
from annotated_transformer.decoding import beam_search, greedy_search
from annotated_transformer.restricted_attention import (
    RestrictedAttention,
    neighbourhood_mask,
    restrict_self_attention,
)

SETTINGS = settings(max_examples=60, deadline=None, derandomize=True)
INNER = [scaled_dot_product_attention, fused_attention]
inner = pytest.mark.parametrize("attention", INNER)
odd = st.integers(0, 12).map(lambda half: 2 * half + 1)


def heads(*shapes, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]


def assert_equals_masked(restricted, tensors, mask=None, **limits):
    """Output and gradients are those of the definition with the mask of the band."""
    t, s = tensors[0].size(-2), tensors[1].size(-2)
    near = neighbourhood_mask(s, restricted.r)[0, 0, s - t :]
    output = restricted(*tensors, mask)
    both = near if mask is None else near & mask
    expected = scaled_dot_product_attention(*tensors, both)
    upstream = torch.randn_like(expected)
    gradients = torch.autograd.grad(output, tensors, upstream)
    truth = torch.autograd.grad(expected, tensors, upstream)
    limits = limits or {"atol": 1e-12, "rtol": 0}
    for found, right in zip((output, *gradients), (expected, *truth), strict=True):
        torch.testing.assert_close(found, right, **limits)
        assert found.isfinite().all()


# The mask


def test_a_neighbourhood_is_centred_and_has_r_positions():
    mask = neighbourhood_mask(6, 3)
    assert mask.shape == (1, 1, 6, 6) and mask.dtype == torch.bool
    assert mask[0, 0].int().tolist() == [
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [0, 1, 1, 1, 0, 0],
        [0, 0, 1, 1, 1, 0],
        [0, 0, 0, 1, 1, 1],
        [0, 0, 0, 0, 1, 1],
    ]
    assert neighbourhood_mask(20, 7)[0, 0, 10].sum() == 7
    assert neighbourhood_mask(4, 99).all()
    assert neighbourhood_mask(3, 1, device="meta").device.type == "meta"


@pytest.mark.parametrize("r", [-1, 0, 2, 64])
def test_a_neighbourhood_without_a_middle_is_refused(r):
    for make in (RestrictedAttention, lambda r: neighbourhood_mask(5, r)):
        with pytest.raises(ValueError, match=f"r is {r}: it must be odd"):
            make(r)


def test_a_block_without_queries_is_refused():
    with pytest.raises(ValueError, match="block is 0"):
        RestrictedAttention(3, block=0)


# Equality with the definition


@inner
@SETTINGS
@given(
    n=st.integers(1, 50),
    r=odd,
    block=st.one_of(st.none(), st.integers(1, 20)),
    kind=st.sampled_from(["none", "padding", "causal", "both", "any", "no keys"]),
    seed=st.integers(0, 99),
)
def test_blocks_equal_the_mask(attention, n, r, block, kind, seed):
    tensors = heads((2, 3, n, 4), (2, 3, n, 4), (2, 3, n, 5), seed=seed)
    tokens = (torch.rand(2, n) < 0.7).long()
    masks = {
        "none": None,
        "padding": padding_mask(tokens, 0),
        "causal": causal_mask(n),
        "both": target_mask(tokens, 0),
        "any": torch.rand(2, 3, n, n) < 0.5,
        "no keys": torch.zeros(n, dtype=torch.bool),
    }
    restricted = RestrictedAttention(r, block, attention)
    assert_equals_masked(restricted, tensors, masks[kind])


@pytest.mark.parametrize("shape", [(), (1,), (37,), (1, 37), (37, 1), (2, 1, 37, 1)])
def test_a_mask_of_any_shape_is_broadcast(shape):
    torch.manual_seed(1)
    tensors = heads(*[(2, 3, 37, 4)] * 3)
    mask = torch.rand(shape) < 0.7
    assert_equals_masked(RestrictedAttention(5, block=4), tensors, mask)


@pytest.mark.parametrize("leading", [(), (3,), (2, 1, 3)])
def test_any_number_of_leading_dimensions(leading):
    tensors = heads((*leading, 41, 4), (*leading, 41, 4), (*leading, 41, 2))
    assert_equals_masked(RestrictedAttention(7, block=6), tensors)


@pytest.mark.parametrize("n", [300, 301, 511])
def test_blocks_equal_the_mask_in_float32_as_they_come(n):
    """Without a block of one's own, and long enough to be cut."""
    restricted = RestrictedAttention(65)
    assert restricted.n_scores(n) < n * n
    tensors = heads(*[(1, 2, n, 64)] * 3, dtype=torch.float32)
    assert_equals_masked(restricted, tensors, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_finite_and_near(dtype):
    tensors = heads(*[(2, 2, 90, 8)] * 3, dtype=dtype)
    mask = padding_mask(torch.arange(90)[None].expand(2, -1) % 7, 0).clone()
    mask[1] = False
    restricted = RestrictedAttention(5, block=8)
    output = restricted(*tensors, mask)
    gradients = torch.autograd.grad(output.float().square().sum(), tensors)
    assert all(x.isfinite().all() for x in (output, *gradients))
    assert (output[1] == 0).all() and output.dtype == dtype
    exact = restricted(*(x.detach().double() for x in tensors), mask)
    torch.testing.assert_close(output.double(), exact, atol=0.05, rtol=0.05)


def test_what_is_out_of_the_neighbourhood_has_no_influence_at_all():
    restricted = RestrictedAttention(9, block=4)
    query, key, value = heads(*[(1, 1, 40, 4)] * 3)
    output = restricted(query, key, value)
    (gradient,) = torch.autograd.grad(output[0, 0, 20].sum(), value)
    seen = gradient[0, 0].any(dim=-1).nonzero().flatten().tolist()
    assert seen == list(range(16, 25))


def test_dropout_is_on_the_weights():
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 1, 60, 4) for _ in range(3))
    value = torch.ones_like(value)
    restricted = RestrictedAttention(5, block=8)
    assert torch.allclose(restricted(query, key, value), value)
    dropped = torch.stack(
        [restricted(query, key, value, None, 0.5) for _ in range(400)]
    )
    assert not torch.allclose(dropped[0], value)
    assert abs(dropped.mean() - 1) < 0.02


# Work and memory


@pytest.mark.parametrize("n, r", [(1000, 9), (1000, 65), (777, 129), (4096, 129)])
def test_no_more_is_computed_than_it_says(n, r):
    restricted = RestrictedAttention(r, attention=scaled_dot_product_attention)
    inputs = [torch.empty(1, 2, n, 8, device="meta") for _ in range(3)]
    scores = restricted.n_scores(n)
    assert count_operations(restricted, *inputs) == 2 * 2 * 2 * 8 * scores
    assert scores < n * n and scores <= 1.6 * n * max(r, 33) + 200 * r
    assert peak_memory(restricted, *inputs) < 2 * n * n * 4


def test_blocks_are_as_large_as_they_are_told():
    assert RestrictedAttention(9, block=4).n_scores(24) == 24 * (4 + 8)
    assert RestrictedAttention(9, block=4).n_scores(25) == 28 * (4 + 8)
    assert RestrictedAttention(9).n_scores(48) == 48 * (16 + 8)
    assert RestrictedAttention(101).n_scores(400) == 400 * (50 + 100)
    for block in (4, 7):
        attention = RestrictedAttention(9, block, scaled_dot_product_attention)
        inputs = [torch.empty(1, 1, 56, 1, device="meta") for _ in range(3)]
        assert count_operations(attention, *inputs) == 4 * attention.n_scores(56)


def test_a_short_sequence_is_not_cut_into_more_than_there_is():
    for n in range(1, 70):
        assert RestrictedAttention(65).n_scores(n) <= n * n
    assert RestrictedAttention(3).n_scores(3) == 9


def test_memory_grows_with_the_length_and_not_with_its_square():
    def needed(n):
        inputs = [torch.empty(1, 1, n, 16, device="meta") for _ in range(3)]
        return peak_memory(RestrictedAttention(33), *inputs)

    assert needed(8192) / needed(4096) == pytest.approx(2, abs=0.05)


# In modules and models


@inner
def test_a_new_query_with_a_cache_sees_the_last_half_of_its_neighbourhood(attention):
    torch.manual_seed(0)
    restricted = RestrictedAttention(7, block=4, attention=attention)
    module = SelfAttention(8, 2, attention=restricted).double()
    x, cache = torch.randn(2, 30, 8, dtype=torch.float64), KeyValueCache()
    steps = [module(x[:, t : t + 1], cache=cache) for t in range(30)]
    at_once = module(x, causal_mask(30))
    torch.testing.assert_close(torch.cat(steps, dim=1), at_once, atol=1e-12, rtol=0)
    mask = padding_mask(torch.arange(31)[None] % 3, 0).expand(2, -1, -1, -1)
    last = module(x[:, :1], mask, cache)  # position 30, with padding among its keys
    both = target_mask(torch.arange(31)[None] % 3, 0)
    again = module(torch.cat([x, x[:, :1]], dim=1), both)[:, -1:]
    torch.testing.assert_close(last, again, atol=1e-12, rtol=0)


@pytest.mark.parametrize("t", [2, 9, 11])
def test_queries_whose_positions_are_not_known_are_refused(t):
    tensors = heads((1, 1, t, 4), (1, 1, 10, 4), (1, 1, 10, 4))
    with pytest.raises(ValueError, match=f"{t} queries, 10 keys"):
        RestrictedAttention(3)(*tensors)


def test_a_mask_that_is_not_bool_is_refused():
    tensors = heads(*[(1, 1, 40, 4)] * 3)
    for r in (3, 99):
        with pytest.raises(TypeError, match="mask is torch.float32: it must be bool"):
            RestrictedAttention(r)(*tensors, torch.zeros(40, 40))


def small_model():
    torch.manual_seed(0)
    config = TransformerConfig.tiny(vocab_size=60, dropout=0.0)
    return Transformer(config).eval()


def test_a_model_is_restricted_where_it_attends_to_itself():
    model = small_model()
    restrict_self_attention(model, 5)
    kinds = {True: 0, False: 0}
    for module in model.modules():
        if isinstance(module, SelfAttention | CrossAttention):
            is_self = isinstance(module, SelfAttention)
            restricted = isinstance(module.attention, RestrictedAttention)
            assert restricted == is_self
            kinds[is_self] += 1
    assert kinds == {True: 6, False: 3}


def test_a_neighbourhood_larger_than_the_sentences_changes_nothing():
    model, other = small_model(), small_model()
    restrict_self_attention(other, 199)
    src, tgt = torch.randint(3, 60, (3, 40)), torch.randint(3, 60, (3, 33))
    src[0, 20:] = tgt[1, 10:] = 0
    torch.testing.assert_close(model(src, tgt), other(src, tgt), atol=1e-5, rtol=1e-4)
    restrict_self_attention(other, 9)
    assert (model(src, tgt) - other(src, tgt)).abs().max() > 1e-3


def test_padding_leaves_a_restricted_model_alone():
    model = small_model()
    restrict_self_attention(model, 9)
    src, tgt = torch.randint(3, 60, (2, 45)), torch.randint(3, 60, (2, 40))
    more = [torch.nn.functional.pad(x, (0, 23)) for x in (src, tgt)]
    logits = model(*more)[:, :40]
    torch.testing.assert_close(logits, model(src, tgt), atol=1e-5, rtol=1e-4)


def test_a_restricted_model_writes_with_a_cache_what_it_would_without():
    model = small_model()
    restrict_self_attention(model, 9)
    src = torch.randint(3, 60, (3, 50))
    for row, written in zip(src, greedy_search(model, src, 1), strict=True):
        assert len(written) > 20
        logits = model(row[None], torch.tensor([[model.config.bos_id, *written]]))
        logits[..., [model.config.pad_id, model.config.bos_id]] = -torch.inf
        assert logits[0].argmax(dim=-1)[: len(written)].tolist() == written


def test_a_beam_is_refused():
    """Its cache holds several hypotheses: a key's place is not its position."""
    model = small_model()
    restrict_self_attention(model, 9)
    with pytest.raises(ValueError, match="queries"):
        beam_search(model, torch.randint(3, 60, (2, 12)), 4)


def test_a_module_can_be_copied_and_pickled():
    torch.manual_seed(0)
    module = SelfAttention(8, 2, attention=RestrictedAttention(3))
    x = torch.randn(1, 40, 8)
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(again(x), module(x))
