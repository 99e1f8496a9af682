"""Where a token stands: sinusoids, and the learned alternative of Table 3, row E (§3.5)."""

import torch
from torch import Tensor, nn


def sinusoidal_encoding(n_positions: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i / d_model)), PE(pos, 2i + 1) = cos(the same) (§3.5).

    Returns (n_positions, d_model) float32, row 0 for the first token. Angles are computed in float64: at position
    2000 a float32 angle is already wrong in the fifth digit.
    Raises ValueError where d_model is odd: sines and cosines come in pairs.
    """
    if d_model % 2:
        raise ValueError(
            f"d_model {d_model} is odd: the encoding needs a sine and a cosine for each frequency"
        )
    position = torch.arange(n_positions, dtype=torch.float64)[:, None]  # (n, 1)
    exponent = (
        torch.arange(0, d_model, 2, dtype=torch.float64) / d_model
    )  # (D / 2,), the paper's 2i / d_model
    angle = position / 10_000.0**exponent  # (n, D / 2)
    return (
        torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1).float()
    )  # (n, D / 2, 2) → (n, D)


class PositionalEncoding(nn.Module):
    """A table with one row per position; both kinds below are read the same way.

    d_model: width D. max_length: number of positions (tokens).
    """

    table: Tensor  # (max_length, D)

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        self.max_length = max_length

    def forward(self, length: int, start: int = 0) -> Tensor:
        """Rows start … start + length - 1: (length, D), to be added to embeddings (B, length, D).

        Raises ValueError where the last position is beyond max_length.
        """
        if start + length > self.max_length:
            raise ValueError(
                f"a sequence of {start + length} tokens is longer than max_length {self.max_length}"
            )
        return self.table[start : start + length]


class SinusoidalPositionalEncoding(PositionalEncoding):
    """The paper's fixed sinusoids. Nothing is learned, and nothing is saved with the model."""

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__(d_model, max_length)
        self.register_buffer(
            "table", sinusoidal_encoding(max_length, d_model), persistent=False
        )


class LearnedPositionalEncoding(PositionalEncoding):
    """One learned vector per position (Table 3, row E).

    Starts from N(0, 1/2), the mean square of the sinusoids, so that position weighs as much against the token in both.
    """

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__(d_model, max_length)
        self.table = nn.Parameter(torch.randn(max_length, d_model) * 0.5**0.5)
