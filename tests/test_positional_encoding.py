"""Positional encoding (§3.5): the table, its rotation, and how rows are read."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer.positional_encoding import (
    LearnedPositionalEncoding,
    SinusoidalPositionalEncoding,
    sinusoidal_encoding,
)

KINDS = [SinusoidalPositionalEncoding, LearnedPositionalEncoding]
widths = st.integers(1, 48).map(lambda pairs: 2 * pairs)


def scalar_encoding(position: int, column: int, d_model: int) -> float:
    """One number of the table, as §3.5 prints the formula."""
    i = column // 2
    angle = position / 10_000 ** (2 * i / d_model)
    return math.cos(angle) if column % 2 else math.sin(angle)


def rotation(k: int, d_model: int) -> torch.Tensor:
    """R(k), written entry by entry: PE(pos + k) = R(k) PE(pos)."""
    matrix = torch.zeros(d_model, d_model, dtype=torch.float64)
    for i in range(d_model // 2):
        angle = k / 10_000 ** (2 * i / d_model)
        matrix[2 * i, 2 * i] = matrix[2 * i + 1, 2 * i + 1] = math.cos(angle)
        matrix[2 * i, 2 * i + 1] = math.sin(angle)
        matrix[2 * i + 1, 2 * i] = -math.sin(angle)
    return matrix


@pytest.mark.parametrize("d_model", [2, 4, 10, 64, 512])
def test_table_is_the_formula(d_model):
    table = sinusoidal_encoding(70, d_model)
    expected = [
        [scalar_encoding(position, column, d_model) for column in range(d_model)]
        for position in range(70)
    ]
    assert table.shape == (70, d_model) and table.dtype == torch.float32
    assert (table - torch.tensor(expected)).abs().max() < 1e-6


def test_first_row_alternates_zero_and_one():
    assert sinusoidal_encoding(1, 512)[0].tolist() == [0.0, 1.0] * 256


@settings(deadline=None, max_examples=100)
@given(widths, st.integers(0, 3_000), st.integers(-300, 300))
def test_a_step_is_a_rotation_that_does_not_depend_on_the_position(d_model, first, k):
    low, high = min(first, first + k), max(first, first + k)
    shift = max(0, -low)  # both ends inside the table
    table = sinusoidal_encoding(high + shift + 8, d_model).double()
    start = torch.arange(8) + first + shift  # one matrix for eight positions
    stepped = table[start] @ rotation(k, d_model).T
    torch.testing.assert_close(stepped, table[start + k], atol=1e-6, rtol=0)


@settings(deadline=None, max_examples=100)
@given(widths, st.integers(0, 1_500), st.integers(0, 1_500), st.integers(0, 400))
def test_dot_product_depends_on_the_difference_only(d_model, p, q, distance):
    table = sinusoidal_encoding(2_000, d_model).double()
    one = table[p] @ table[p + distance]
    two = table[q + distance] @ table[q]  # elsewhere, and the other way round
    assert abs(one - two) < 1e-6 * d_model


def test_mean_square_of_every_row_is_one_half():
    mean_square = sinusoidal_encoding(300, 64).square().mean(dim=1)
    torch.testing.assert_close(mean_square, torch.full((300,), 0.5))


@pytest.mark.parametrize("position", [2_000, 20_000, 100_000])
def test_large_positions_are_as_exact_as_small_ones(position):
    """Angles computed in float32 miss this by a factor of a hundred and more."""
    row = sinusoidal_encoding(position + 1, 64)[position]
    expected = [scalar_encoding(position, column, 64) for column in range(64)]
    assert (row - torch.tensor(expected)).abs().max() < 1e-6


@pytest.mark.parametrize("d_model", [1, 7, 513])
def test_odd_width_is_refused(d_model):
    with pytest.raises(ValueError, match=f"d_model {d_model} is odd"):
        sinusoidal_encoding(4, d_model)
    with pytest.raises(ValueError, match=f"d_model {d_model} is odd"):
        SinusoidalPositionalEncoding(d_model, 4)


def test_sinusoids_are_neither_saved_nor_trained():
    positions = SinusoidalPositionalEncoding(8, 16)
    assert list(positions.state_dict()) == []
    assert list(positions.parameters()) == []
    longer = SinusoidalPositionalEncoding(8, 32)
    longer.load_state_dict(positions.state_dict())  # another length, the same weights
    assert torch.equal(longer(16), positions(16))


def test_sinusoids_follow_the_module_to_another_type():
    assert SinusoidalPositionalEncoding(8, 16).to(torch.bfloat16)(4).dtype == (
        torch.bfloat16
    )


def test_learned_rows_are_saved_and_trained():
    positions = LearnedPositionalEncoding(8, 16)
    assert list(positions.state_dict()) == ["table"]
    positions(4, start=3).sum().backward()
    touched = positions.table.grad.abs().sum(dim=1) > 0
    assert touched.nonzero().flatten().tolist() == [3, 4, 5, 6]


def test_learned_rows_start_as_loud_as_the_sinusoids():
    torch.manual_seed(0)
    table = LearnedPositionalEncoding(512, 1_000).table
    assert abs(table.mean()) < 0.005
    assert abs(table.square().mean() - 0.5) < 0.005


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start, length", [(0, 16), (0, 1), (5, 3), (15, 1), (16, 0)])
def test_start_reads_a_slice(kind, start, length):
    positions = kind(8, 16)
    rows = positions(length, start)
    assert rows.shape == (length, 8)
    assert torch.equal(rows, positions(16)[start : start + length])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("start, length", [(0, 17), (16, 1), (10, 7), (100, 1)])
def test_beyond_max_length_is_one_clear_line(kind, start, length):
    with pytest.raises(ValueError) as error:
        kind(8, 16)(length, start)
    message = str(error.value)
    assert f"{start + length} tokens" in message and "max_length 16" in message
    assert "\n" not in message
