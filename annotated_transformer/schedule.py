"""The learning rate of Eq. 3 (§5.3)."""


def learning_rate(step: int, d_model: int, warmup: int = 4000) -> float:
    """lr = d_model^-0.5 · min(step^-0.5, step · warmup^-1.5) (§5.3, Eq. 3).

    step: the update about to be made, counted from 1. warmup: the step at which the rate
    is highest. Raises ValueError where step or warmup is below 1.
    """
    if step < 1 or warmup < 1:
        raise ValueError(f"step {step}, warmup {warmup}: both are counted from 1")
    return d_model**-0.5 * min(step**-0.5, step * warmup**-1.5)
