"""Interventions do what they say and leave nothing; alignments, probes, pruning."""

import pickle

import pytest
import torch

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.attention import (
    attention_weights,
    fused_attention,
    scaled_dot_product_attention,
)
from annotated_transformer.decoding import (
    attention_maps,
    attention_places,
    replaced_attention,
)
from annotated_transformer.grammar import alignment, generate
from annotated_transformer.interpretation import (
    alignment_error_rate,
    all_heads,
    at,
    cut_heads,
    cut_links,
    diagonal_links,
    encoder_states,
    head_importance,
    linear_probe,
    move_links,
    pruning_curve,
    strongest_links,
    without_heads,
)

B, H, T, S, D_K = 2, 3, 4, 5, 6


def qkv(seed=0):
    torch.manual_seed(seed)
    shapes = (B, H, T, D_K), (B, H, S, D_K), (B, H, S, D_K)
    return [torch.randn(shape) for shape in shapes]


def weights_of(function, mask=None):
    """The weights a function uses: what it returns for the identity as values."""
    query, key, _ = qkv()
    return function(query, key, torch.eye(S).expand(B, H, S, S), mask)


def toy(seed=0, **changes):
    torch.manual_seed(seed)
    sizes = {"d_model": 12, "n_layers": 2, "n_heads": 3, "d_ff": 16, "max_length": 40}
    model = Transformer(TransformerConfig(23, **{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)
    return model


SRC = torch.tensor([[5, 6, 7, 8, 2], [9, 10, 2, 0, 0]])
TGT = torch.tensor([[1, 11, 12, 13], [1, 14, 0, 0]])
PADDED = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]).bool()[:, None, None]


def test_positions_as_a_mask():
    assert at([[0, 2], []], 3).tolist() == [[True, False, True], [False] * 3]


@pytest.mark.parametrize("kernel", [fused_attention, scaled_dot_product_attention])
def test_a_cut_link_has_no_weight_and_the_rest_of_its_row_has_it_all(kernel):
    rows, columns = at([[1], [0, 3]], T), at([[2, 4], [1]], S)
    before = weights_of(fused_attention, PADDED)
    after = weights_of(cut_links(rows, columns, [0, 2], kernel), PADDED)
    cut = (rows[:, None, :, None] & columns[:, None, None]).expand(B, H, T, S).clone()
    cut[:, 1] = False
    assert cut.sum() == 2 * (1 * 2 + 2 * 1)
    assert (after[cut] == 0).all() and (before[cut] > 0).all()
    torch.testing.assert_close(after.sum(-1), torch.ones(B, H, T))
    left = before.masked_fill(cut, 0)
    expected = left / left.sum(-1, keepdim=True)
    torch.testing.assert_close(after, expected)
    assert (after[1, :, :, 3:] == 0).all()


def test_all_heads_are_meant_where_none_is_named():
    rows, columns = at([[1]] * B, T), at([[2]] * B, S)
    after = weights_of(cut_links(rows, columns))
    assert (after[:, :, 1, 2] == 0).all()
    assert torch.equal(after[:, :, 0], weights_of(fused_attention)[:, :, 0])
    nothing = weights_of(cut_links(rows, columns, heads=[]))
    torch.testing.assert_close(nothing, weights_of(fused_attention))


def test_a_row_whose_every_link_is_cut_gives_zeros():
    everything = at([range(S)] * B, S)
    query, key, value = qkv()
    result = cut_links(at([[1]] * B, T), everything)(query, key, value)
    assert not result[:, :, 1].any() and result[:, :, 0].all()


def test_a_moved_link_takes_its_weight_along():
    rows, columns, to = at([[1], [0]], T), at([[2], [0, 1]], S), at([[0, 3], [2]], S)
    before = weights_of(fused_attention, PADDED)
    after = weights_of(move_links(rows, columns, to, [1]), PADDED)
    torch.testing.assert_close(after.sum(-1), torch.ones(B, H, T))
    expected = before.clone()
    expected[0, 1, 1, 2] = 0
    expected[0, 1, 1, [0, 3]] += before[0, 1, 1, 2] / 2
    expected[1, 1, 0, :2] = 0
    expected[1, 1, 0, 2] += before[1, 1, 0, :2].sum()
    torch.testing.assert_close(after, expected)


def test_a_link_moved_onto_itself_stays():
    rows, columns = at([[1], [0]], T), at([[2], [1]], S)
    query, key, value = qkv()
    torch.testing.assert_close(
        move_links(rows, columns, columns)(query, key, value),
        scaled_dot_product_attention(query, key, value),
    )


def test_a_cut_head_adds_nothing():
    """The layer is then what W^O makes of the other heads."""
    model = toy()
    attention, x = model.encoder.layers[0].self_attention, torch.randn(1, 5, 12)
    query, key, value = (
        attention.split_heads(part)
        for part in attention.w_qkv(x).split(attention.widths, dim=-1)
    )
    heads = attention_weights(query, key) @ value  # (1, H, 5, d_v)
    by_hand = sum(
        heads[:, h] @ attention.w_o.weight[:, 4 * h : 4 * h + 4].T for h in (0, 2)
    )
    with without_heads(model, [("encoder", 0, 1)]):
        torch.testing.assert_close(attention(x), by_hand)
    assert not torch.allclose(attention(x), by_hand, atol=1e-2)


@pytest.mark.parametrize("kind", ["encoder", "decoder", "cross"])
def test_a_layer_without_heads_is_its_residual_connection(kind):
    model = toy()
    place = attention_places(model)[kind, 1]
    results, inputs = [], []
    place.register_forward_hook(lambda m, args, out: results.append(out))
    layers = model.encoder.layers if kind == "encoder" else model.decoder.layers
    number = 1 if kind == "cross" else 0
    connection = layers[1].residuals[number]
    connection.register_forward_hook(lambda m, args, out: inputs.append((args, out)))
    with torch.no_grad(), without_heads(model, [(kind, 1, h) for h in range(3)]):
        model(SRC, TGT)
    assert not results[0].any()
    ((x, _), out) = inputs[0]
    torch.testing.assert_close(out, connection.norm(x))


def test_the_model_is_as_before():
    model = toy()
    before, state = model(SRC, TGT), pickle.dumps(model.state_dict())
    functions = {place: at.attention for place, at in attention_places(model).items()}
    with pytest.raises(ZeroDivisionError), without_heads(model, all_heads(model)):
        changed = model(SRC, TGT)
        raise ZeroDivisionError
    assert not torch.allclose(changed, before, atol=1e-3)
    assert torch.equal(model(SRC, TGT), before)
    assert pickle.dumps(model.state_dict()) == state
    for place, attention in attention_places(model).items():
        assert attention.attention is functions[place]


def test_interventions_can_be_nested():
    """A head cut where a link is cut: both are."""
    model = toy()
    link = cut_links(at([[1], [1]], 4), at([[0], [0]], 5))
    outputs = [[11, 12, 13], [14]]
    with (
        replaced_attention(model, {("cross", 0): link}),
        without_heads(model, [("cross", 0, 2)]),
    ):
        maps = attention_maps(model, SRC, outputs)
    weights = maps[0].cross[0]
    assert not weights[2].any() and (weights[:2, 1, 0] == 0).all()
    assert (weights[:2, 0, 0] > 0).all()


def test_every_head_has_a_name():
    heads = all_heads(toy())
    assert len(heads) == len(set(heads)) == 3 * 2 * 3
    assert ("cross", 1, 2) in heads


def call(function):
    query, key, value = qkv()
    return function(query, key, value, PADDED)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (cut_links(at([[0]], 3), at([[0]], S)), "rows are 3 positions, .* are 4"),
        (cut_links(at([[0]], T), at([[0]], 9)), "columns are 9 positions, .* are 5"),
        (cut_links(at([[0]], T), at([[0]], S), [3]), "head is 3: .* from 0 to 2"),
        (cut_heads([-1]), "head is -1: .* from 0 to 2"),
        (
            move_links(at([[0]], T), at([[0]], S), at([[]], S)),
            "no key to move it to",
        ),
        (
            move_links(at([[0]] * B, T), at([[0]] * B, S), at([[3]] * B, S)),
            "to a key that the mask hides",
        ),
    ],
)
def test_what_does_not_fit_is_named(function, message):
    with pytest.raises(ValueError, match=message):
        call(function)


def test_there_is_such_a_head():
    with pytest.raises(ValueError, match=r"no head \('cross', 0, 3\)"):
        without_heads(toy(), [("cross", 0, 3)])


# Alignments


def test_links_are_the_largest_weights():
    weights = torch.tensor([[0.1, 0.6, 0.3], [0.2, 0.1, 0.7], [0.5, 0.1, 0.4]])
    assert strongest_links(weights) == [(1, 0), (2, 1), (0, 2)]
    assert strongest_links(weights, 2) == [(1, 0), (0, 1), (0, 2)]


@pytest.mark.parametrize(
    ("n_source", "n_target", "keys"),
    [(3, 3, [0, 1, 2]), (5, 3, [0, 2, 4]), (3, 5, [0, 1, 1, 2, 2]), (4, 1, [0])],
)
def test_the_diagonal(n_source, n_target, keys):
    links = diagonal_links(n_source, n_target)
    assert links == [(key, row) for row, key in enumerate(keys)]


def test_alignment_error_rate_by_hand():
    found, gold = [[(0, 0), (1, 1), (2, 2)], [(0, 0)]], [[(1, 1), (2, 0)], [(0, 0)]]
    assert alignment_error_rate(found[:1], gold[:1]) == pytest.approx(1 - 2 / 5)
    assert alignment_error_rate(found, gold) == pytest.approx(1 - 4 / 7)
    assert alignment_error_rate(gold, gold) == 0
    assert alignment_error_rate([[(0, 1)]], [[(1, 0)]]) == 1
    with pytest.raises(ValueError, match="links of 1 sentences and 2 of gold"):
        alignment_error_rate(found[:1], gold)
    with pytest.raises(ValueError, match="no links"):
        alignment_error_rate([[]], [[]])


def test_gold_of_the_grammar_has_the_same_order():
    """Source first: a head that copies gold is right, and so is its diagonal here."""
    triple = next(generate(1, 3, ["comparison"]))
    gold = alignment(triple.english, triple.german)
    n = len(triple.german.tokens)
    weights = torch.zeros(n, len(triple.english.tokens))
    for source, target in gold:
        weights[target, source] = 1
    has_link = weights.any(dim=-1)
    found = [link for link in strongest_links(weights) if has_link[link[1]]]
    assert set(found) <= set(gold) and len(found) == has_link.sum()


# Probes


def test_the_states_are_those_of_the_encoder():
    model = toy(norm="pre").train()
    states = encoder_states(model, SRC)
    assert states.shape == (3, 2, 5, 12) and model.training
    model.eval()
    mask = (SRC != 0)[:, None, None]
    with torch.no_grad():
        torch.testing.assert_close(states[0], model.embed(SRC))
        memory = model.encode(SRC, mask)
    torch.testing.assert_close(model.encoder.final_norm(states[-1]), memory)
    alone = encoder_states(model, SRC[1:, :3])
    torch.testing.assert_close(states[:, 1:, :3], alone, atol=1e-5, rtol=1e-4)


def test_a_probe_finds_what_a_plane_divides_and_nothing_else():
    torch.manual_seed(0)
    x = torch.randn(600, 8) * torch.tensor([1e-3, 1, 1, 1, 1, 1, 1, 1e3]) + 5
    divided = (x[:, 0] > 5).long()
    halves = slice(0, 400), slice(400, 600)

    def accuracy(y):
        return linear_probe(*((x[half], y[half]) for half in halves))

    assert accuracy(divided) > 0.95
    assert 0.4 < accuracy(torch.randint(0, 2, (600,))) < 0.6
    three = divided * (1 + (x[:, 1] > 5).long())
    assert accuracy(three) > 0.8
    assert accuracy(divided) == accuracy(divided)


def test_a_vector_without_differences_tells_the_majority():
    x, y = torch.ones(30, 4), torch.tensor([0, 1, 1] * 10)
    assert linear_probe((x, y), (x[:9], torch.tensor([1] * 6 + [0] * 3))) == 6 / 9


# Pruning


def test_pruning_takes_heads_out_one_after_another():
    model = toy()
    asked = []

    @torch.no_grad()
    def score(model):
        asked.append(sum(a.attention is fused_attention for a in places.values()))
        return model(SRC, TGT)[0, -1, 7].item()

    places = attention_places(model)
    whole = score(model)
    order = [("cross", 0, 1), ("cross", 0, 2), ("encoder", 1, 0)]
    curve = pruning_curve(model, score, order)
    assert len(curve) == 4 and curve[0] == whole
    assert asked[1:] == [6, 5, 5, 4]
    for n in range(4):
        with without_heads(model, order[:n]):
            assert score(model) == curve[n]
    lost = head_importance(model, score)
    assert list(lost) == all_heads(model)
    assert lost["cross", 0, 1] == whole - curve[1]
    assert score(model) == whole
