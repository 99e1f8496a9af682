"""One matrix, three uses: notebooks/3_4_embeddings_and_softmax.ipynb."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, load_model, save_file, save_model
from torch import nn

from annotated_transformer.embeddings import SharedEmbedding

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True)


def shared(vocab_size=20, d_model=8, pad_id=0, seed=0):
    torch.manual_seed(seed)
    return SharedEmbedding(vocab_size, d_model, pad_id)


class TwoEnds(nn.Module):
    """A model that holds the embedding under two names, as one with shared ends may."""

    def __init__(self):
        super().__init__()
        self.source = SharedEmbedding(20, 8, pad_id=0)
        self.target = self.source


def storages(module):
    """Where each name's numbers lie; a second name for the same ones counts."""
    return [p.data_ptr() for _, p in module.named_parameters(remove_duplicate=False)]


# --- values


@SETTINGS
@given(
    vocab_size=st.integers(2, 30),
    d_model=st.integers(1, 40),
    shape=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 99),
)
def test_embedding_is_the_row_times_the_root_of_d_model(
    vocab_size, d_model, shape, seed
):
    module = shared(vocab_size, d_model, pad_id=vocab_size - 1, seed=seed)
    tokens = torch.randint(0, vocab_size, shape)
    expected = module.weight[tokens] * math.sqrt(d_model)
    assert module(tokens).shape == (*shape, d_model)
    torch.testing.assert_close(module(tokens), expected, rtol=0, atol=0)


@SETTINGS
@given(
    d_model=st.integers(1, 40),
    shape=st.lists(st.integers(0, 4), max_size=3),
    seed=st.integers(0, 99),
)
def test_logits_are_the_plain_product(d_model, shape, seed):
    module = shared(d_model=d_model, seed=seed)
    hidden = torch.randn(*shape, d_model)
    expected = torch.einsum("...d,vd->...v", hidden, module.weight)
    torch.testing.assert_close(module.logits(hidden), expected, rtol=1e-5, atol=1e-6)


def test_the_two_ends_differ_by_the_factor_alone():
    # The embedding of t, sent straight to the other end, scores √D |E_t|² for t.
    module = shared(d_model=16)
    tokens = torch.arange(20)
    scores = module.logits(module(tokens)).diagonal()
    torch.testing.assert_close(scores, 4.0 * module.weight.square().sum(dim=1))


# --- one parameter


@pytest.mark.parametrize(("vocab_size", "d_model"), [(37_000, 512), (32_000, 1024)])
def test_there_is_one_matrix(vocab_size, d_model):
    with torch.device("meta"):
        module = SharedEmbedding(vocab_size, d_model, pad_id=0)
    assert [name for name, _ in module.named_parameters()] == ["weight"]
    assert sum(p.numel() for p in module.parameters()) == vocab_size * d_model


def is_tied(module):
    """Whether changing the matrix changes both ends, and there is one matrix."""
    tokens, hidden = torch.arange(20), torch.randn(3, 8)
    before = module(tokens).detach(), module.logits(hidden).detach()
    with torch.no_grad():
        module.weight.mul_(2.0)
    after = module(tokens), module.logits(hidden)
    both_moved = all(
        torch.allclose(new, 2 * old) for new, old in zip(after, before, strict=True)
    )
    return both_moved and len(set(storages(module))) == 1


def test_tied_from_the_start():
    assert is_tied(shared())


def test_tied_after_a_state_dict_round_trip():
    module, other = shared(seed=0), shared(seed=1)
    other.load_state_dict(module.state_dict())
    assert torch.equal(other.weight, module.weight)
    assert is_tied(other)


def test_tied_after_safetensors(tmp_path):
    module, other = shared(seed=0), shared(seed=1)
    save_file(module.state_dict(), tmp_path / "weights.safetensors")
    other.load_state_dict(load_file(tmp_path / "weights.safetensors"))
    assert torch.equal(other.weight, module.weight)
    assert is_tied(other)


def test_two_names_are_saved_once_and_come_back_tied(tmp_path):
    model, other = TwoEnds(), TwoEnds()
    save_model(model, str(tmp_path / "weights.safetensors"))
    assert len(load_file(tmp_path / "weights.safetensors")) == 1
    load_model(other, str(tmp_path / "weights.safetensors"))
    assert torch.equal(other.source.weight, model.source.weight)
    assert len(set(storages(other))) == 1
    assert is_tied(other.target)


def test_tied_after_deepcopy_and_apart_from_the_original():
    model = TwoEnds()
    model.source(torch.arange(20))
    twin = copy.deepcopy(model)
    assert len(set(storages(twin))) == 1
    assert set(storages(twin)).isdisjoint(storages(model))
    assert is_tied(twin.source)


def average(models):
    """The mean of several models' parameters (§6.1: averaged checkpoints)."""
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name].double() for state in states])
        .mean(dim=0)
        .to(states[0][name].dtype)
        for name in states[0]
    }
    result = copy.deepcopy(models[0])
    result.load_state_dict(mean)
    return result


def test_tied_after_averaging_and_the_average_is_exact():
    a, b = shared(seed=0), shared(seed=1)
    assert torch.equal(average([a, a]).weight, a.weight)
    assert torch.equal(average([a, a, a]).weight, a.weight)
    torch.testing.assert_close(
        average([a, b]).weight, (a.weight + b.weight) / 2, rtol=0, atol=1e-7
    )
    assert is_tied(average([a, b]))


# --- how it starts


@pytest.mark.parametrize("d_model", [64, 128, 512, 1024])
def test_scaled_embeddings_start_with_unit_variance(d_model):
    module = shared(2000, d_model)
    scaled = module(torch.arange(1, 2000))
    assert scaled.std().item() == pytest.approx(1, rel=0.02)
    assert scaled.mean().item() == pytest.approx(0, abs=0.02)


def test_logits_of_a_normalised_state_start_with_unit_variance():
    module = shared(2000, 512)
    hidden = F.layer_norm(torch.randn(200, 512), (512,))
    assert module.logits(hidden)[:, 1:].std().item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize("vocab_size", [500, 2_000, 8_000, 37_000])
@pytest.mark.parametrize("d_model", [128, 512])
def test_initial_loss_is_near_that_of_guessing(vocab_size, d_model):
    module = shared(vocab_size, d_model)
    hidden = F.layer_norm(torch.randn(64, d_model), (d_model,))
    targets = torch.randint(1, vocab_size, (64,))
    with torch.no_grad():
        loss = F.cross_entropy(module.logits(hidden), targets).item()
    assert loss == pytest.approx(math.log(vocab_size), rel=0.1)


def test_two_of_them_start_different():
    torch.manual_seed(0)
    a, b = SharedEmbedding(20, 8, 0), SharedEmbedding(20, 8, 0)
    assert not torch.equal(a.weight, b.weight)


# --- padding


@pytest.mark.parametrize("pad_id", [0, 3, 19])
def test_the_padding_row_and_no_other_starts_at_zero(pad_id):
    rows = shared(pad_id=pad_id).weight.eq(0).all(dim=1)
    assert rows.nonzero().flatten().tolist() == [pad_id]


@SETTINGS
@given(
    tokens=st.lists(st.integers(0, 19), min_size=1, max_size=12),
    pad_id=st.integers(0, 19),
)
def test_look_ups_reach_the_tokens_that_occur_and_never_the_padding(tokens, pad_id):
    module = shared(pad_id=pad_id)
    module(torch.tensor(tokens)).sum().backward()
    reached = module.weight.grad.abs().sum(dim=1).nonzero().flatten().tolist()
    assert reached == sorted(set(tokens) - {pad_id})


def test_the_softmax_reaches_every_row():
    module, hidden = shared(), torch.randn(3, 8)
    F.cross_entropy(module.logits(hidden), torch.tensor([4, 7, 4])).backward()
    assert module.weight.grad.abs().sum(dim=1).gt(0).all()


def test_gradients_of_the_two_ends_add_up():
    module, tokens = shared(), torch.tensor([3, 5, 3, 0])
    targets = torch.tensor([5, 3, 7, 1])

    def gradient(hidden, weight):
        loss = F.cross_entropy(F.linear(hidden, weight), targets)
        return torch.autograd.grad(loss, module.weight)[0]

    look_up = gradient(module(tokens), module.weight.detach())
    softmax = gradient(module(tokens).detach(), module.weight)
    loss = F.cross_entropy(module.logits(module(tokens)), targets)
    (both,) = torch.autograd.grad(loss, module.weight)
    torch.testing.assert_close(both, look_up + softmax)
    assert look_up.abs().sum() > 0 and softmax.abs().sum() > 0


# --- what is refused


@pytest.mark.parametrize("token", [20, -1])
def test_a_token_outside_the_vocabulary_is_refused(token):
    with pytest.raises(IndexError, match="out of range"):
        shared()(torch.tensor([1, token]))


@pytest.mark.parametrize("pad_id", [20, -1])
def test_a_padding_row_that_does_not_exist_is_refused(pad_id):
    message = rf"^pad_id is {pad_id}: it must be in \[0, 20\)$"
    with pytest.raises(ValueError, match=message):
        shared(pad_id=pad_id)
