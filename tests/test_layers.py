"""Connections, layers and stacks: notebooks/3_1_encoder_and_decoder_stacks.ipynb.

Parity with `torch.nn` is measured with copied weights; the worst difference seen is
printed (`pytest -rP`) and recorded as a property of the test.
"""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from annotated_transformer.attention import (
    CrossAttention,
    SelfAttention,
    causal_mask,
    fused_attention,
    scaled_dot_product_attention,
)
from annotated_transformer.feed_forward import FeedForward
from annotated_transformer.layers import (
    Decoder,
    DecoderCache,
    DecoderLayer,
    Dropout,
    Encoder,
    EncoderLayer,
    PostNorm,
    PreNorm,
)

SETTINGS = settings(max_examples=20, deadline=None, derandomize=True)
NORMS = {"post": PostNorm, "pre": PreNorm}
ATTENTIONS = {"readable": scaled_dot_product_attention, "fused": fused_attention}
D, H, D_FF = 16, 4, 24


def encoder_layer(norm=PostNorm, **attention):
    return EncoderLayer(
        SelfAttention(D, H, **attention), FeedForward(D, D_FF), lambda: norm(D, 0.0)
    )


def decoder_layer(norm=PostNorm, **attention):
    return DecoderLayer(
        SelfAttention(D, H, **attention),
        CrossAttention(D, H, **attention),
        FeedForward(D, D_FF),
        lambda: norm(D, 0.0),
    )


# The residual connection


def by_definition(x, gain, bias, eps=1e-6):
    """Layer normalisation, from Ba et al. 2016: biased variance, ε inside the root."""
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return gain * (x - mean) / (variance + eps).sqrt() + bias


@pytest.mark.parametrize("width", [2, 4, 64, 512])
@pytest.mark.parametrize("spread", [1e-4, 1e-3, 1.0, 1e3])
def test_the_norm_is_the_formula(width, spread):
    torch.manual_seed(0)
    x = spread * torch.randn(5, width, dtype=torch.float64)
    for kind in NORMS.values():
        connection = kind(width, 0.0).double()
        with torch.no_grad():
            connection.norm.weight.normal_()
            connection.norm.bias.normal_()
        norm = connection.norm
        expected = by_definition(x, norm.weight, norm.bias)
        torch.testing.assert_close(norm(x), expected)
        torch.testing.assert_close(
            F.layer_norm(x, (width,), norm.weight, norm.bias, 1e-6), expected
        )


def test_numbers_worked_by_hand():
    x = torch.tensor([1.0, 3.0, 3.0, 9.0])
    y = torch.tensor([-3.0, -1.0, -1.0, 5.0]) / 3  # (x - 4) / 3
    torch.testing.assert_close(PostNorm(4, 0.0)(x, lambda x: 2 * x), y)
    torch.testing.assert_close(PreNorm(4, 0.0)(x, lambda x: 2 * x), x + 2 * y)


def test_dropout_falls_on_the_branch_before_the_sum():
    torch.manual_seed(0)
    x = torch.randn(3, D)
    post, pre = PostNorm(D, 0.0).train(), PreNorm(D, 0.0).train()
    post.dropout.p = pre.dropout.p = 1.0  # nothing of the branch is left
    torch.testing.assert_close(post(x, torch.exp), F.layer_norm(x, (D,), eps=1e-6))
    assert torch.equal(pre(x, torch.exp), x)


# Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("p", [0.1, 0.3, 0.5, 0.9])
def test_dropout_keeps_its_rate_and_the_mean(p, dtype):
    torch.manual_seed(0)
    n = 400_001  # no multiple of four
    x = torch.full((n,), 3.0, dtype=dtype, requires_grad=True)
    dropped = Dropout(p)(x)
    zeros = (dropped == 0).float()
    assert dropped.dtype == dtype
    for place in range(4):  # each of the four values that one draw decides
        assert abs(zeros[place::4].mean() - p) < 5 * (p * (1 - p) / (n / 4)) ** 0.5
    exact = 1 / (1 - round(p * 2**16) / 2**16)
    torch.testing.assert_close(
        dropped[dropped != 0].double(),
        torch.full_like(dropped[dropped != 0], 3 * exact, dtype=torch.float64),
        rtol=8e-3 if dtype == torch.bfloat16 else 1e-6,
        atol=0,
    )
    (gradient,) = torch.autograd.grad(dropped.sum(), x)
    torch.testing.assert_close(gradient, dropped.detach() / 3)


def test_dropout_of_neighbours_is_independent():
    torch.manual_seed(0)
    zeros = (Dropout(0.5)(torch.ones(1_000_000)) == 0).float() - 0.5
    for distance in (1, 2, 3, 4, 5, 8, 16, 64, 256):
        together = (zeros[distance:] * zeros[:-distance]).mean()  # 1/4 were they equal
        assert abs(together) < 5 * 0.25 / 1000, distance


def test_dropout_is_drawn_anew_and_repeated_by_its_seed():
    module, x = Dropout(0.5), torch.ones(3, 5, 7)
    draws = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        draws.append(torch.stack([module(x), module(x)]))
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0][0], draws[0][1])


def test_dropout_is_an_ordinary_module():
    x = torch.ones(4, 6).t()  # not contiguous
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    assert torch.equal(Dropout(1.0)(x), torch.zeros_like(x))
    assert torch.equal(Dropout(1e-9)(x), x)
    assert Dropout(0.5)(torch.ones(0, 3)).shape == (0, 3)
    assert Dropout(0.5)(torch.ones(2, 3, device="meta")).shape == (2, 3)
    module = Dropout(0.3)
    module(x)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert twin.p == 0.3


def test_dropout_does_not_break_a_graph():
    module = Dropout(0.5)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    dropped = compiled(torch.ones(100, 100))
    assert set(dropped.unique().tolist()) == {0.0, 2.0}
    report = torch._dynamo.explain(module)(torch.ones(4))
    assert report.graph_break_count == 0


def test_one_encoder_layer_by_hand():
    layer = EncoderLayer(
        SelfAttention(4, 1), FeedForward(4, 4), lambda: PostNorm(4, 0.0)
    )
    eye, zero = torch.eye(4), torch.zeros(4, 4)
    with torch.no_grad():
        layer.self_attention.w_qkv.weight.copy_(torch.cat([zero, zero, eye]))
        layer.self_attention.w_o.weight.copy_(eye)
        layer.feed_forward.w_1.weight.copy_(eye)
        layer.feed_forward.w_2.weight.copy_(eye)
    x = torch.tensor([[[0.0, 2.0, 0.0, 6.0], [2.0, 0.0, 6.0, 0.0]]])
    expected = torch.tensor([-17.0, -9.0, -9.0, 35.0]) / 419**0.5
    torch.testing.assert_close(layer(x)[0, 0], expected)


# The order of calls


def call_order(layer, *inputs):
    parts = ("self_attention", "cross_attention", "feed_forward", "dropout", "norm")
    order, handles = [], []
    for name, module in layer.named_modules():
        part = name.rpartition(".")[2]
        if part in parts:
            hook = module.register_forward_hook
            handles.append(hook(lambda *_, part=part: order.append(part)))
    layer(*inputs)
    for handle in handles:
        handle.remove()
    return order


@pytest.mark.parametrize("norm", NORMS)
def test_the_order_of_calls(norm):
    def wrapped(sublayer):
        inside = [sublayer, "dropout"]
        return [*inside, "norm"] if norm == "post" else ["norm", *inside]

    x = torch.randn(2, 3, D)
    expected = wrapped("self_attention") + wrapped("feed_forward")
    assert call_order(encoder_layer(NORMS[norm]), x) == expected
    expected[3:3] = wrapped("cross_attention")
    assert call_order(decoder_layer(NORMS[norm]), x, x) == expected


@pytest.mark.parametrize("kind, connections", [(encoder_layer, 2), (decoder_layer, 3)])
def test_each_sublayer_has_a_norm_of_its_own(kind, connections):
    norms = {m for m in kind().modules() if isinstance(m, nn.LayerNorm)}
    assert len(norms) == connections


def test_post_norm_adds_nothing_on_top_and_pre_norm_one_norm():
    x = torch.randn(2, 3, D)
    layers = [encoder_layer(PostNorm) for _ in range(2)]
    stack = Encoder(layers, PostNorm.final_norm(D))
    assert torch.equal(stack(x), layers[1](layers[0](x)))
    assert sum(isinstance(m, nn.LayerNorm) for m in stack.modules()) == 2 * 2

    layers = [encoder_layer(PreNorm) for _ in range(2)]
    stack = Encoder(layers, PreNorm.final_norm(D))
    expected = F.layer_norm(layers[1](layers[0](x)), (D,), eps=1e-6)
    torch.testing.assert_close(stack(x), expected)
    assert sum(isinstance(m, nn.LayerNorm) for m in stack.modules()) == 2 * 2 + 1

    for kind, norms in ((PostNorm, 3), (PreNorm, 4)):
        stack = Decoder([decoder_layer(kind)], kind.final_norm(D))
        assert sum(isinstance(m, nn.LayerNorm) for m in stack.modules()) == norms


# The decoder's two inputs


def test_masks_reach_the_attention_they_are_for():
    torch.manual_seed(0)
    layer = decoder_layer()
    x = torch.randn(1, 4, D, requires_grad=True)
    memory = torch.randn(1, 5, D, requires_grad=True)
    src_mask = torch.tensor([True, True, False, True, False])[None, None, None]
    out = layer(x, memory, src_mask, causal_mask(4))
    to_x, to_memory = torch.autograd.grad(out[0, 1].pow(3).sum(), [x, memory])
    assert (to_x[0].abs().sum(-1) > 0).tolist() == [True, True, False, False]
    seen = (to_memory[0].abs().sum(-1) > 0).tolist()
    assert seen == src_mask.flatten().tolist()


def test_every_decoder_layer_reads_the_same_memory():
    layers, seen = [decoder_layer() for _ in range(3)], []
    for layer in layers:
        layer.cross_attention.register_forward_hook(lambda _, a, out: seen.append(a[1]))
    memory = torch.randn(1, 2, D)
    Decoder(layers, nn.Identity())(torch.randn(1, 2, D), memory)
    assert len(seen) == 3 and all(m is memory for m in seen)


@pytest.mark.parametrize("norm", NORMS)
@SETTINGS
@given(data=st.data())
def test_steps_with_a_cache_equal_the_whole(norm, data):
    batch, length, source, n_layers, start, seed = (
        data.draw(st.integers(low, high), label=name)
        for name, low, high in (
            ("batch", 1, 3),
            ("length", 2, 6),
            ("source", 1, 5),
            ("n_layers", 1, 3),
            ("start", 1, 3),
            ("seed", 0, 99),
        )
    )
    torch.manual_seed(seed)
    start = min(start, length)
    kind = NORMS[norm]
    layers = [decoder_layer(kind) for _ in range(n_layers)]
    stack = Decoder(layers, kind.final_norm(D))
    x, memory = torch.randn(batch, length, D), torch.randn(batch, source, D)
    src_mask = torch.rand(batch, 1, 1, source) < 0.7
    whole = stack(x, memory, src_mask, causal_mask(length))

    cache = DecoderCache(n_layers)
    first = stack(x[:, :start], memory, src_mask, causal_mask(start), cache)
    steps = [first]
    for t in range(start, length):
        assert cache.length == t
        steps.append(stack(x[:, t : t + 1], memory, src_mask, None, cache))
    torch.testing.assert_close(torch.cat(steps, 1), whole, atol=1e-5, rtol=1e-5)


def test_selected_rows_continue_as_themselves():
    torch.manual_seed(0)
    stack = Decoder([decoder_layer() for _ in range(2)], nn.Identity())
    x, memory = torch.randn(3, 4, D), torch.randn(3, 5, D)
    cache = DecoderCache(2)
    stack(x[:, :3], memory, None, causal_mask(3), cache)
    rows = torch.tensor([2, 0, 2, 1, 1])
    cache.select(rows)
    step = stack(x[rows, 3:], memory[rows], None, None, cache)
    whole = stack(x[rows], memory[rows], None, causal_mask(4))
    torch.testing.assert_close(step, whole[:, 3:], atol=1e-5, rtol=1e-5)


def test_a_cache_of_another_depth_is_refused():
    stack = Decoder([decoder_layer()], nn.Identity())
    with pytest.raises(ValueError, match="a cache of 2 layers for 1 layers"):
        stack(torch.randn(1, 1, D), torch.randn(1, 1, D), cache=DecoderCache(2))


# Parity with torch.nn


def parameter_pairs(ours, theirs):
    """(our parameter, a view of theirs), for a layer of either kind."""
    attention = theirs.self_attn
    pairs = [
        (ours.self_attention.w_qkv.weight, attention.in_proj_weight, slice(None)),
        (ours.self_attention.w_qkv.bias, attention.in_proj_bias, slice(None)),
    ]
    modules = [
        (ours.self_attention.w_o, attention.out_proj),
        (ours.feed_forward.w_1, theirs.linear1),
        (ours.feed_forward.w_2, theirs.linear2),
    ]
    if isinstance(ours, DecoderLayer):
        attention, d = theirs.multihead_attn, theirs.multihead_attn.embed_dim
        for linear, rows in (
            (ours.cross_attention.w_q, slice(0, d)),
            (ours.cross_attention.w_kv, slice(d, None)),
        ):
            pairs.append((linear.weight, attention.in_proj_weight, rows))
            pairs.append((linear.bias, attention.in_proj_bias, rows))
        modules.append((ours.cross_attention.w_o, attention.out_proj))
    for i, connection in enumerate(ours.residuals, start=1):
        modules.append((connection.norm, getattr(theirs, f"norm{i}")))
    for a, b in modules:
        pairs += [(a.weight, b.weight, slice(None)), (a.bias, b.bias, slice(None))]
    return pairs


def stack_pairs(ours, theirs):
    pairs = [
        pair
        for our_stack, their_stack in zip(ours, theirs, strict=True)
        for layers in zip(our_stack.layers, their_stack.layers, strict=True)
        for pair in parameter_pairs(*layers)
    ]
    for our_stack, their_stack in zip(ours, theirs, strict=True):
        for name in ("weight", "bias"):
            a = getattr(our_stack.final_norm, name)
            pairs.append((a, getattr(their_stack.norm, name), slice(None)))
    return pairs


def copy_weights(pairs):
    """Give both sides the same random weights, biases and gains included."""
    with torch.no_grad():
        for ours, theirs, rows in pairs:
            if ours.dim() == 1:  # they start at 0 or 1: a lost one would not be seen
                ours.uniform_(0.5, 1.5)
            else:
                ours.copy_(theirs[rows])
            theirs[rows] = ours


def use_eps(module, eps=1e-6):
    for m in module.modules():
        if isinstance(m, nn.LayerNorm):
            m.eps = eps
    return module


class Worst:
    """The largest differences met so far, in values and in gradients."""

    def __init__(self):
        self.values = self.gradients = 0.0

    def compare(self, pairs, ours, theirs, inputs):
        assert len(pairs) == len({id(a) for a, _, _ in pairs})
        torch.manual_seed(0)
        upstream = torch.randn_like(ours)
        our_leaves = [*inputs, *(a for a, _, _ in pairs)]
        their_leaves = [*inputs, *(b for _, b, _ in pairs)]
        our_side = torch.autograd.grad(ours, our_leaves, upstream)
        their_side = torch.autograd.grad(theirs, their_leaves, upstream)
        rows = [slice(None)] * len(inputs) + [r for _, _, r in pairs]
        values = (ours - theirs).abs().max().item()
        gradients = max(
            (a - b[r]).abs().max().item()
            for a, b, r in zip(our_side, their_side, rows, strict=True)
        )
        self.values = max(self.values, values)
        self.gradients = max(self.gradients, gradients)
        assert values <= 1e-5 and gradients <= 1e-4, (values, gradients)

    def report(self, record_property):
        for name in ("values", "gradients"):
            record_property(f"worst difference, {name}", getattr(self, name))
            print(f"worst difference in {name}: {getattr(self, name):.1e}")


def draw_inputs(data):
    """A batch with padding on both sides, every sentence at least one token long."""
    batch, source, target, seed = (
        data.draw(st.integers(low, high), label=name)
        for name, low, high in (
            ("batch", 1, 4),
            ("source", 1, 9),
            ("target", 1, 9),
            ("seed", 0, 99),
        )
    )
    torch.manual_seed(seed)
    src_length = torch.randint(1, source + 1, (batch, 1))
    tgt_length = torch.randint(1, target + 1, (batch, 1))
    src_exists = torch.arange(source) < src_length  # (B, S)
    tgt_exists = torch.arange(target) < tgt_length  # (B, T)
    x = torch.randn(batch, target, D, requires_grad=True)
    memory = torch.randn(batch, source, D, requires_grad=True)
    return x, memory, src_exists, tgt_exists


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_encoder_layer_equals_torch(norm, attention, record_property):
    worst = Worst()

    @SETTINGS
    @given(data=st.data())
    def check(data):
        _, x, exists, _ = draw_inputs(data)
        ours = encoder_layer(NORMS[norm], bias=True, attention=ATTENTIONS[attention])
        theirs = nn.TransformerEncoderLayer(
            D, H, D_FF, 0.0, batch_first=True, norm_first=norm == "pre"
        )
        pairs = parameter_pairs(ours, use_eps(theirs))
        assert len(pairs) == len(list(theirs.parameters()))
        copy_weights(pairs)
        out = theirs(x, src_key_padding_mask=~exists)
        worst.compare(pairs, ours(x, exists[:, None, None]), out, [x])

    check()
    worst.report(record_property)


@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_decoder_layer_equals_torch(norm, attention, record_property):
    worst = Worst()

    @SETTINGS
    @given(data=st.data())
    def check(data):
        x, memory, src_exists, tgt_exists = draw_inputs(data)
        ours = decoder_layer(NORMS[norm], bias=True, attention=ATTENTIONS[attention])
        theirs = nn.TransformerDecoderLayer(
            D, H, D_FF, 0.0, batch_first=True, norm_first=norm == "pre"
        )
        pairs = parameter_pairs(ours, use_eps(theirs))
        copy_weights(pairs)
        causal = causal_mask(x.size(1))
        out = theirs(
            x,
            memory,
            tgt_mask=~causal[0, 0],
            tgt_key_padding_mask=~tgt_exists,
            memory_key_padding_mask=~src_exists,
        )
        tgt_mask = tgt_exists[:, None, None] & causal
        result = ours(x, memory, src_exists[:, None, None], tgt_mask)
        worst.compare(pairs, result, out, [x, memory])

    check()
    worst.report(record_property)


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
@pytest.mark.parametrize("attention", ATTENTIONS)
@pytest.mark.parametrize("norm", NORMS)
def test_stacks_equal_torch_with_its_extra_norms(norm, attention, record_property):
    """nn.Transformer ends both stacks with a norm, post-norm too: so do ours here."""
    worst = Worst()

    @settings(SETTINGS, max_examples=8)
    @given(data=st.data())
    def check(data):
        x, src, src_exists, tgt_exists = draw_inputs(data)
        kind = NORMS[norm]
        heads = {"bias": True, "attention": ATTENTIONS[attention]}
        encoder = [encoder_layer(kind, **heads) for _ in range(3)]
        decoder = [decoder_layer(kind, **heads) for _ in range(2)]
        ours = Encoder(encoder, nn.LayerNorm(D)), Decoder(decoder, nn.LayerNorm(D))
        theirs = nn.Transformer(
            D, H, 3, 2, D_FF, 0.0, batch_first=True, norm_first=norm == "pre"
        )
        pairs = stack_pairs(ours, (theirs.encoder, theirs.decoder))
        assert len(pairs) == len(list(theirs.parameters())) + 2 * 2  # w_q, w_kv: two
        copy_weights(pairs)
        use_eps(theirs), use_eps(ours[0]), use_eps(ours[1])
        causal = causal_mask(x.size(1))
        out = theirs(
            src,
            x,
            tgt_mask=~causal[0, 0],
            src_key_padding_mask=~src_exists,
            tgt_key_padding_mask=~tgt_exists,
            memory_key_padding_mask=~src_exists,
        )
        src_mask, tgt_mask = (
            src_exists[:, None, None],
            tgt_exists[:, None, None] & causal,
        )
        result = ours[1](x, ours[0](src, src_mask), src_mask, tgt_mask)
        worst.compare(pairs, result, out, [x, src])

        if norm == "post":  # and as the paper has it, without them, they differ
            for stack in ours:
                stack.final_norm = PostNorm.final_norm(D)
            paper = ours[1](x, ours[0](src, src_mask), src_mask, tgt_mask)
            assert (paper - out).abs().max() > 0.01

    check()
    worst.report(record_property)
