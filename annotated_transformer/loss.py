# Written in notebooks/5_4_regularization.ipynb; edit it there.
"""Cross-entropy with label smoothing (§5.4)."""

import functools
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "PRODUCT_ROWS",
    "SOFTMAX_ROWS",
    "FUSED",
    "label_smoothed_cross_entropy",
    "projected_cross_entropy",
]


def label_smoothed_cross_entropy(
    logits: Tensor, target: Tensor, smoothing: float, pad_id: int
) -> Tensor:
    """Cross-entropy against 1 - ε on the right token and ε over the vocabulary (§5.4).

    logits: (…, V), any float type; the sum is taken in float32. target: (…) int64.
    smoothing: the paper's ε_ls. pad_id: positions with this target count for nothing.
    Returns the sum over all other positions, in nats, () float32. Divide it by their
    number to get a mean: a sum is what adds up over batches of unequal size. Raises
    ValueError where smoothing is outside [0, 1].

    The mass ε is spread evenly over all V tokens, the right one included, as Szegedy
    et al. (2016) define it. Differs from the original code, which spreads it over the
    V - 1 others.
    """
    _check_smoothing(smoothing)
    return F.cross_entropy(
        logits.flatten(0, -2).float(),  # (positions, V)
        target.flatten(),  # (positions,)
        ignore_index=pad_id,
        label_smoothing=smoothing,
        reduction="sum",
    )


def _check_smoothing(smoothing: float) -> None:
    if not 0 <= smoothing <= 1:
        raise ValueError(f"smoothing is {smoothing!r}: it must be in [0, 1]")


PRODUCT_ROWS = {"cpu": 2048}  # positions whose logits are there at once
SOFTMAX_ROWS = 128  # positions of one softmax: 4 MiB of float32 where V is 8,000
FUSED = {"cuda"}  # devices on which a compiled run has the softmax compiled as well


def _softmax_loss_(
    logits: Tensor, target: Tensor, pads: Tensor, smoothing: float
) -> Tensor:
    """The loss of one block, (); leaves the gradient p - q where the logits were.

    logits: (n, V), target and pads: (n, 1). Rows that are padding add nothing.
    """
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    p = z.softmax(dim=-1)
    log_sum = z.amax(dim=-1) - p.amax(dim=-1).log()  # ln p = z - ln Σ exp(z)
    share = smoothing / logits.size(-1)  # ε / V
    right = z.gather(1, target)[:, 0]  # (n,)
    losses = log_sum - (1 - smoothing) * right - share * z.sum(dim=-1)
    p -= share
    at_target = p.gather(1, target) + (smoothing - 1)  # (n, 1)
    logits.copy_(p).scatter_(1, target, at_target.to(logits.dtype))
    return losses.masked_fill(pads[:, 0], 0.0).sum()


@functools.cache
def _fused_softmax_loss_() -> Callable[..., Tensor]:
    """The same from torch.compile: few passes over the block, no float32 copy of it."""
    return torch.compile(_softmax_loss_, dynamic=True)


def _positions(target: Tensor, pad_id: int) -> tuple[Tensor, ...]:
    """Indices of the positions, in blocks; on a CPU without those of padding.

    Another device would have to be waited for to know how many those are.
    """
    device = target.device.type
    if device == "cpu":
        positions = (target != pad_id).nonzero()[:, 0]
    else:
        positions = torch.arange(len(target), device=target.device)
    return positions.split(PRODUCT_ROWS.get(device, 8192))


def _scalar(hidden: Tensor) -> Tensor:
    """Zero, in float32 or what is more exact."""
    return hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))


def _gradients(hidden: Tensor, weight: Tensor, wanted: bool) -> tuple[Tensor, Tensor]:
    """Zeros for both gradients; nothing where they are not wanted."""
    return tuple(
        torch.zeros_like(x) if wanted else x.new_empty(0) for x in (hidden, weight)
    )


def projected_cross_entropy(
    hidden: Tensor, weight: Tensor, target: Tensor, smoothing: float, pad_id: int
) -> Tensor:
    """`label_smoothed_cross_entropy` of hidden · weightᵀ, a block of logits at a time.

    hidden: (…, D), what the decoder returns. weight: (V, D), the pre-softmax matrix.
    target, smoothing and what is returned and raised: as there. pad_id: as there, and
    in [0, V), since a GPU computes rows of padding too. Under autocast the products are
    in its type; the softmax is in float32 always. Differentiable
    once, and compiled as one operator; what is inside it is compiled for itself.
    """
    _check_smoothing(smoothing)
    device = hidden.device.type
    if torch.is_autocast_enabled(device):
        hidden = hidden.to(torch.get_autocast_dtype(device))
    wanted = torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad)
    fused = torch.compiler.is_compiling() and device in FUSED
    rows = hidden.flatten(0, -2), weight, target.flatten()
    loss, _, _ = _project(*rows, smoothing, pad_id, wanted, fused)
    return loss


@torch.library.custom_op("annotated_transformer::project", mutates_args=())
def _project(
    hidden: Tensor,
    weight: Tensor,
    target: Tensor,
    smoothing: float,
    pad_id: int,
    wanted: bool,
    fused: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """The loss and, where wanted, its gradients: (), (P, D), (V, D)."""
    softmax_loss_ = _fused_softmax_loss_() if fused else _softmax_loss_
    loss = _scalar(hidden)
    grad_hidden, grad_weight = _gradients(hidden, weight, wanted)
    weight = weight.to(hidden.dtype)
    for rows in _positions(target, pad_id):
        y = target[rows, None]  # (n, 1)
        pads = y == pad_id  # none on a CPU
        x = hidden[rows].masked_fill(pads, 0.0)  # (n, D)
        logits = x @ weight.t()  # (n, V), and a moment later p - q
        n = SOFTMAX_ROWS if hidden.device.type == "cpu" else len(rows)
        for parts in zip(logits.split(n), y.split(n), pads.split(n), strict=True):
            loss += softmax_loss_(*parts, smoothing)
        if wanted:
            grad_hidden[rows] = (logits @ weight).masked_fill(pads, 0.0)
            grad_weight += logits.t() @ x
    return loss, grad_hidden, grad_weight


@_project.register_fake
def _(hidden, weight, target, smoothing, pad_id, wanted, fused=False):
    return _scalar(hidden), *_gradients(hidden, weight, wanted)


def _keep_gradients(ctx, inputs: tuple, output: tuple[Tensor, Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output[1:])


def _scale_gradients(ctx, upstream: Tensor, *_: Tensor | None) -> tuple:
    grad_hidden, grad_weight = ctx.saved_tensors
    return grad_hidden * upstream, grad_weight * upstream, *[None] * 5


_project.register_autograd(_scale_gradients, setup_context=_keep_gradients)
