"""The configuration of the model: notebooks/3_1_encoder_and_decoder_stacks.ipynb."""

import dataclasses
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer import Transformer, TransformerConfig

SETTINGS = settings(max_examples=50, deadline=None, derandomize=True)

PRESETS = {
    "base": (512, 6, 8, 2048, 0.1),
    "big": (1024, 6, 16, 4096, 0.3),
    "tiny": (128, 3, 4, 512, 0.1),
}


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_what_was_published(name):
    config = getattr(TransformerConfig, name)(37_000)
    shape = (config.d_model, config.n_layers, config.n_heads, config.d_ff)
    assert (*shape, config.dropout) == PRESETS[name]
    assert (config.d_k, config.d_v) == (None, None)
    assert config.attention_dropout == config.activation_dropout == 0.0
    assert (config.norm, config.positions) == ("post", "sinusoidal")
    assert (config.pad_id, config.bos_id, config.eos_id) == (0, 1, 2)


def test_the_defaults_are_the_base_model():
    assert TransformerConfig(100) == TransformerConfig.base(100)


def test_a_preset_takes_changes():
    config = TransformerConfig.big(100, dropout=0.1, norm="pre")
    assert (config.d_model, config.dropout, config.norm) == (1024, 0.1, "pre")


@pytest.mark.parametrize(
    "field, value, part",
    [
        ("vocab_size", 0, "a positive integer"),
        ("vocab_size", "37000", "a positive integer"),
        ("d_model", -512, "a positive integer"),
        ("d_model", 512.0, "a positive integer"),
        ("d_model", 500, "divisible by n_heads (8)"),
        ("n_layers", 0, "a positive integer"),
        ("n_layers", True, "a positive integer"),
        ("n_heads", 0, "a positive integer"),
        ("d_k", 0, "a positive integer or None"),
        ("d_v", -1, "a positive integer or None"),
        ("d_ff", None, "a positive integer"),
        ("dropout", -0.1, "[0, 1)"),
        ("dropout", 1.0, "[0, 1)"),
        ("dropout", float("nan"), "[0, 1)"),
        ("dropout", "0.1", "[0, 1)"),
        ("dropout", None, "[0, 1)"),
        ("attention_dropout", 2, "[0, 1)"),
        ("activation_dropout", -1, "[0, 1)"),
        ("norm", "middle", "'post' or 'pre'"),
        ("norm", ["post"], "'post' or 'pre'"),
        ("positions", "rotary", "'sinusoidal' or 'learned'"),
        ("max_length", 0, "a positive integer"),
        ("pad_id", -1, "[0, 100)"),
        ("bos_id", 100, "[0, 100)"),
        ("eos_id", 1.5, "[0, 100)"),
        ("pad_id", 1, "different from bos_id (1) and eos_id (2)"),
        ("pad_id", 2, "different from bos_id (1) and eos_id (2)"),
    ],
)
def test_nonsense_is_refused_by_field_and_value(field, value, part):
    with pytest.raises(ValueError) as error:
        TransformerConfig(**{"vocab_size": 100, field: value})
    message = str(error.value)
    assert message.startswith(f"{field} is {value!r}: it must be ")
    assert part in message and "\n" not in message


def test_an_odd_width_is_refused_with_sinusoids_only():
    with pytest.raises(ValueError, match="d_model is 27: it must be even"):
        TransformerConfig(100, d_model=27, n_heads=3)
    TransformerConfig(100, d_model=27, n_heads=3, positions="learned")


def test_heads_of_a_given_width_need_not_divide_the_model():
    config = TransformerConfig(100, d_model=10, n_heads=3, d_k=4, d_v=5, d_ff=8)
    assert Transformer(config).encoder.layers[0].self_attention.d_v == 5
    with pytest.raises(ValueError, match="d_model is 10: it must be divisible"):
        TransformerConfig(100, d_model=10, n_heads=3, d_k=4)


def test_one_token_may_start_and_end_a_target():
    assert TransformerConfig(100, bos_id=2, eos_id=2).bos_id == 2


def test_a_configuration_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        TransformerConfig(100).d_model = 256


configurations = st.builds(
    lambda heads, width, **others: TransformerConfig(
        d_model=2 * heads * width, n_heads=heads, **others
    ),
    heads=st.integers(1, 8),
    width=st.integers(1, 64),
    vocab_size=st.integers(3, 10**6),
    n_layers=st.integers(1, 48),
    d_k=st.none() | st.integers(1, 99),
    d_v=st.none() | st.integers(1, 99),
    d_ff=st.integers(1, 9999),
    dropout=st.floats(0, 1, exclude_max=True),
    attention_dropout=st.floats(0, 1, exclude_max=True),
    activation_dropout=st.floats(0, 1, exclude_max=True),
    norm=st.sampled_from(["post", "pre"]),
    positions=st.sampled_from(["sinusoidal", "learned"]),
    max_length=st.integers(1, 10**5),
)


@SETTINGS
@given(configurations)
def test_a_configuration_survives_json(config):
    text = json.dumps(config.to_dict())
    assert TransformerConfig.from_dict(json.loads(text)) == config


def test_to_dict_names_every_field():
    names = [field.name for field in dataclasses.fields(TransformerConfig)]
    assert list(TransformerConfig(100).to_dict()) == names


def test_from_dict_fills_in_the_defaults():
    assert TransformerConfig.from_dict({"vocab_size": 9}) == TransformerConfig(9)


def test_from_dict_names_what_it_does_not_know_or_misses():
    with pytest.raises(ValueError, match="unknown configuration field: n_head, width"):
        TransformerConfig.from_dict({"vocab_size": 9, "width": 1, "n_head": 2})
    with pytest.raises(ValueError, match="missing configuration field: vocab_size"):
        TransformerConfig.from_dict({"d_model": 512})
    with pytest.raises(ValueError, match="dropout is 7"):
        TransformerConfig.from_dict({"vocab_size": 9, "dropout": 7})
