# Written in notebooks/5_3_optimizer.ipynb; edit it there.
"""The learning rate of Eq. 3 (§5.3)."""

__all__ = ["learning_rate"]


def learning_rate(step: int, d_model: int, warmup: int = 4000) -> float:
    """lr = d_model^-0.5 · min(step^-0.5, step · warmup^-1.5) (§5.3, Eq. 3).

    step: number of the update about to be made, counted from 1. d_model: width D of
    the model. warmup: steps; at this one the rate is highest. Raises ValueError where
    one of them is below 1.
    """
    for name, value in {"step": step, "d_model": d_model, "warmup": warmup}.items():
        if value < 1:
            raise ValueError(f"{name} is {value!r}: it must be 1 or more")
    return d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
