"""Greedy search: cached, batched and limited, it is still step-by-step argmax."""

import pytest
import torch

from annotated_transformer.batching import pad
from annotated_transformer.decoding import greedy_search
from annotated_transformer.model import Transformer, TransformerConfig

PAD, BOS, EOS = 0, 1, 2


class Toy(Transformer):
    """A random model whose logits get `bias`: a dictionary from token to number."""

    bias: dict = {}

    def logits(self, hidden):
        logits = super().logits(hidden)
        for token, value in self.bias.items():
            logits[..., token] += value
        return logits


def toy(seed=0, bias=None, **changes):
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_length": 90}
    model = Toy(TransformerConfig(23, **{**sizes, **changes})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.7)  # far from initialisation: outputs that vary
    model.bias = {} if bias is None else bias
    return model


def sentences(seed=0, lengths=(3, 0, 7, 1, 12, 5, 2)):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(3, 23, (n,), generator=generator).tolist() for n in lengths]


def rectangle(sources, extra_columns=0):
    src = pad([[*ids, EOS] for ids in sources], PAD)
    return torch.nn.functional.pad(src, (0, extra_columns), value=PAD)


@torch.no_grad()
def step_by_step(model, ids, extra_length=50):
    """The definition: no batch, no cache, everything decoded again at every step."""
    src, prefix = torch.tensor([[*ids, EOS]]), [BOS]
    while len(prefix) - 1 < len(ids) + extra_length:
        logits = model(src, torch.tensor([prefix]))[0, -1].tolist()
        allowed = [token for token in range(len(logits)) if token not in (PAD, BOS)]
        prefix.append(max(allowed, key=logits.__getitem__))
        if prefix[-1] == EOS:
            return prefix[1:-1]
    return prefix[1:]


VARIANTS = [
    {},
    {"norm": "pre"},
    {"positions": "learned"},
    {"d_k": 5, "d_v": 3},
    {"n_layers": 1},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
@pytest.mark.parametrize("seed", range(3))
def test_equals_step_by_step_argmax(seed, changes):
    model = toy(seed, {EOS: 3.0}, **changes)
    sources = sentences(seed)
    expected = [step_by_step(model, ids) for ids in sources]
    assert greedy_search(model, rectangle(sources)) == expected


def test_the_toys_end_at_different_lengths():
    """Otherwise the tests above would not see a sentence leave the batch."""
    lengths = set()
    for seed in range(3):
        outputs = greedy_search(toy(seed, {EOS: 3.0}), rectangle(sentences(seed)))
        lengths |= set(map(len, outputs))
    assert len(lengths) > 5


@pytest.mark.parametrize("extra_columns", [0, 1, 9])
def test_batched_equals_one_by_one_whatever_the_padding(extra_columns):
    model, sources = toy(1, {EOS: 3.0}), sentences(1)
    alone = [greedy_search(model, rectangle([ids]))[0] for ids in sources]
    assert greedy_search(model, rectangle(sources, extra_columns)) == alone
    assert greedy_search(model, rectangle(sources[::-1], extra_columns)) == alone[::-1]


@pytest.mark.parametrize("extra_length", [1, 8, 50])
def test_a_model_that_never_ends_stops_at_each_sentences_own_limit(extra_length):
    sources = sentences()
    outputs = greedy_search(toy(0, {EOS: -1e9}), rectangle(sources), extra_length)
    assert list(map(len, outputs)) == [len(ids) + extra_length for ids in sources]


def test_a_model_that_ends_at_once_says_nothing():
    assert greedy_search(toy(0, {EOS: 1e9}), rectangle(sentences())) == [[]] * 7


def test_an_empty_sentence_and_an_empty_batch():
    model = toy(2)
    assert greedy_search(model, rectangle([[]])) == [step_by_step(model, [])]
    assert greedy_search(model, torch.zeros(0, 4, dtype=torch.int64)) == []
    assert greedy_search(model, torch.zeros(0, 0, dtype=torch.int64)) == []


def test_padding_and_bos_are_never_chosen():
    model = toy(0, {PAD: 1e6, BOS: 1e6})
    sources = sentences()
    outputs = greedy_search(model, rectangle(sources))
    assert not {PAD, BOS, EOS} & {token for out in outputs for token in out}
    assert outputs == [step_by_step(model, ids) for ids in sources]


def test_no_position_is_decoded_twice_and_ended_sentences_leave():
    model, sources = toy(1, {EOS: 3.0}), sentences(1)
    decoded, encoded = [], []
    for stack, counts in ((model.decoder, decoded), (model.encoder, encoded)):
        stack.layers[0].register_forward_pre_hook(
            lambda layer, args, counts=counts: counts.append(args[0].shape[:2].numel())
        )
    outputs = greedy_search(model, rectangle(sources))
    limits = [len(ids) + 50 for ids in sources]
    steps = [min(len(o) + 1, n) for o, n in zip(outputs, limits, strict=True)]
    assert sum(decoded) == sum(steps)
    assert len(encoded) == 1


def test_dropout_is_off_and_the_mode_comes_back():
    model = toy(1, {EOS: 3.0}, dropout=0.5)
    expected = greedy_search(model, rectangle(sentences()))
    model.train()
    assert greedy_search(model, rectangle(sentences())) == expected
    assert model.training and model.decoder.layers[0].training


def test_the_limit_has_to_fit_the_positions():
    model = toy(0, {EOS: -1e9}, max_length=60)
    assert len(greedy_search(model, rectangle([[5] * 10]))[0]) == 60
    with pytest.raises(ValueError, match="11 input tokens and 50 more .* 60"):
        greedy_search(model, rectangle([[5], [5] * 11]))
    with pytest.raises(ValueError, match="extra_length is 0"):
        greedy_search(model, rectangle([[5]]), 0)


def test_bfloat16():
    model = toy(0, {EOS: 3.0}).bfloat16()
    assert len(greedy_search(model, rectangle(sentences()))) == 7
