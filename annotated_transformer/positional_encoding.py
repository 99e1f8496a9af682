# Written in notebooks/3_5_positional_encoding.ipynb; edit it there.
"""Where a token stands: sinusoids, or learned vectors (§3.5, Table 3 row E)."""

import torch
from torch import Tensor, nn

__all__ = [
    "sinusoidal_encoding",
    "PositionalEncoding",
    "SinusoidalPositionalEncoding",
    "LearnedPositionalEncoding",
]


def sinusoidal_encoding(n_positions: int, d_model: int) -> Tensor:
    """PE(pos, 2i) = sin(pos / 10000^(2i / D)), PE(pos, 2i + 1) = cos(the same) (§3.5).

    n_positions: number of positions (tokens). d_model: width D, even.
    Returns (n_positions, D) float32, row 0 for the first token. The angles are
    computed in float64: float32 knows an angle of 2,000 radians only to 6e-5.
    Raises ValueError where d_model is odd: sines and cosines come in pairs.
    """
    if d_model % 2:
        raise ValueError(
            f"d_model {d_model} is odd: each frequency needs a sine and a cosine"
        )
    position = torch.arange(n_positions, dtype=torch.float64)[:, None]  # (n, 1)
    exponent = torch.arange(0, d_model, 2, dtype=torch.float64) / d_model  # (D / 2,)
    angle = position / 10_000.0**exponent  # (n, D / 2)
    pairs = torch.stack([angle.sin(), angle.cos()], dim=-1)  # (n, D / 2, 2)
    return pairs.flatten(1).float()  # (n, D)


class PositionalEncoding(nn.Module):
    """A table with one row per position, added to the embeddings (§3.5).

    The subclasses say what is in the table, (max_length, D).
    d_model: width D. max_length: number of positions (tokens).
    """

    table: Tensor

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__()
        self.d_model = d_model
        self.max_length = max_length

    def extra_repr(self) -> str:
        return f"d_model={self.d_model}, max_length={self.max_length}"

    def forward(self, length: int, start: int = 0) -> Tensor:
        """Rows start … start + length - 1: (length, D).

        Raises ValueError where the last of them is beyond max_length.
        """
        if start + length > self.max_length:
            raise ValueError(
                f"a sequence of {start + length} tokens is longer than max_length "
                f"{self.max_length}"
            )
        return self.table[start : start + length]


class SinusoidalPositionalEncoding(PositionalEncoding):
    """The paper's fixed sinusoids: nothing is learned, nothing is saved (§3.5)."""

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__(d_model, max_length)
        table = sinusoidal_encoding(max_length, d_model)  # (max_length, D)
        self.register_buffer("table", table, persistent=False)


class LearnedPositionalEncoding(PositionalEncoding):
    """One learned vector per position (§3.5; Table 3, row E).

    Starts from N(0, 1/2), the mean square of the sinusoids, so that position weighs
    as much against the token in both. The paper does not say how its own start.
    """

    def __init__(self, d_model: int, max_length: int) -> None:
        super().__init__(d_model, max_length)
        self.table = nn.Parameter(torch.randn(max_length, d_model) * 0.5**0.5)
