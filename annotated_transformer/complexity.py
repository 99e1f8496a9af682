# Written in notebooks/4_why_self_attention.ipynb; edit it there.
"""Table 1: what a layer costs, what has to wait, how far a signal travels (§4)."""

import weakref
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from .attention import SelfAttention, fused_attention
from .restricted_attention import RestrictedAttention

__all__ = [
    "KINDS",
    "RecurrentLayer",
    "ConvolutionalLayer",
    "SeparableLayer",
    "operations",
    "make_layer",
    "count_operations",
    "longest_chain",
    "links",
    "path_lengths",
    "power_law",
    "crossing",
    "peak_memory",
]


class RecurrentLayer(nn.Module):
    """h_t = tanh(W x_t + U h_{t-1}), from the first position to the last (§4).

    d_model: width D of inputs and states.
    """

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(d_model, d_model, bias=False, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, n, D). Returns the states, (B, n, D)."""
        return self.rnn(x)[0]

    def step(self, states: Tensor, x: Tensor) -> Tensor:
        """Every state once, at the same time, from what is taken for the one before.

        states, x: (B, n, D). Returns (B, n, D).
        """
        before = F.pad(states, (0, 0, 1, -1))  # (B, n, D): zeros before the first
        taken_in = F.linear(x, self.rnn.weight_ih_l0)
        return (taken_in + F.linear(before, self.rnn.weight_hh_l0)).tanh()


class ConvolutionalLayer(nn.Module):
    """y_t is the sum of W_i x over k positions around t, one matrix for each (§4).

    d_model: width D. k: positions, odd. dilation: from one of them to the next.
    Raises ValueError where k is even.
    """

    def __init__(self, d_model: int, k: int, dilation: int = 1) -> None:
        super().__init__()
        around = {"padding": _half(k) * dilation, "dilation": dilation, "bias": False}
        self.convolution = nn.Conv1d(d_model, d_model, k, **around)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, n, D). Returns (B, n, D)."""
        return self.convolution(x.transpose(1, 2)).transpose(1, 2)


class SeparableLayer(nn.Module):
    """A convolution of each channel by itself, then one matrix for all channels (§4).

    d_model: width D. k: positions, odd. Raises ValueError where k is even.
    """

    def __init__(self, d_model: int, k: int) -> None:
        super().__init__()
        each = {"padding": _half(k), "groups": d_model, "bias": False}
        self.depthwise = nn.Conv1d(d_model, d_model, k, **each)
        self.pointwise = nn.Conv1d(d_model, d_model, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, n, D). Returns (B, n, D)."""
        return self.pointwise(self.depthwise(x.transpose(1, 2))).transpose(1, 2)


def _half(k: int) -> int:
    """The positions on either side of the middle one."""
    if k < 1 or k % 2 == 0:
        raise ValueError(f"k is {k}: it must be odd and positive, to have a middle")
    return k // 2


KINDS = ("self-attention", "recurrent", "convolutional", "separable", "restricted")


def operations(kind: str, n: int, d_model: int, window: int = 3) -> int:
    """Multiplications and additions of a layer's products, in one pass (Table 1).

    kind: one of KINDS. n: positions. window: k or r, where there is one. Softmax, tanh
    and other work on single numbers are not counted. Raises ValueError for other kinds.
    """
    d = d_model
    formulas = {
        "self-attention": 8 * n * d * d + 4 * n * n * d,
        "recurrent": 4 * n * d * d,
        "convolutional": 2 * window * n * d * d,
        "separable": 2 * window * n * d + 2 * n * d * d,
    }
    if kind == "restricted":
        return 8 * n * d * d + 4 * RestrictedAttention(window).n_scores(n) * d
    if kind not in formulas:
        raise ValueError(f"kind is {kind!r}: it must be one of {', '.join(KINDS)}")
    return formulas[kind]


def make_layer(
    kind: str,
    d_model: int,
    window: int = 3,
    attention: Callable[..., Tensor] = fused_attention,
) -> nn.Module:
    """A layer of one of KINDS, (B, n, D) → (B, n, D), with heads of width 64.

    d_model: D, below 128 or a multiple of 64 where there is attention.
    window: k or r. attention: of self-attention, restricted or not. Raises ValueError
    for other kinds.
    """
    n_heads = max(1, d_model // 64)
    if kind == "restricted":
        attention = RestrictedAttention(window, attention=attention)
    if kind in ("self-attention", "restricted"):
        return SelfAttention(d_model, n_heads, attention=attention)
    if kind == "recurrent":
        return RecurrentLayer(d_model)
    if kind in ("convolutional", "separable"):
        kinds = {"convolutional": ConvolutionalLayer, "separable": SeparableLayer}
        return kinds[kind](d_model, window)
    raise ValueError(f"kind is {kind!r}: it must be one of {', '.join(KINDS)}")


@torch.no_grad()
def count_operations(function: Callable[..., object], *inputs: Tensor) -> int:
    """What torch's counter counts while function(*inputs) runs: 2 a multiplication.

    It does not know every kernel, that of attention on a CPU for one: give a layer the
    readable attention, or its attention goes uncounted.
    """
    with FlopCounterMode(display=False) as counter:
        function(*inputs)
    return counter.get_total_flops()


def longest_chain(output: Tensor) -> int:
    """Matrix products, one waiting for the other, on the longest way to an output.

    Read from autograd's graph, so something on the way must want a gradient. A fused
    kernel is not seen: give a layer the readable attention.
    """
    chain: dict[object, int] = {None: 0}
    stack = [output.grad_fn]
    while stack:
        node = stack[-1]
        before = [parent for parent, _ in node.next_functions]
        waiting = [parent for parent in before if parent not in chain]
        if waiting:
            stack += waiting
        else:
            chain[node] = max((chain[parent] for parent in before), default=0)
            chain[node] += node.name().startswith(_PRODUCTS)
            stack.pop()
    return chain[output.grad_fn]


_PRODUCTS = ("MmBackward", "AddmmBackward", "BmmBackward", "ConvolutionBackward")


def links(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Which positions each position of an output depends on, by its gradient (§4).

    function: (1, n, D) → (1, n, D). x: an input, best a random one, for a derivative
    can be zero by chance. Returns (n, n) bool, [t, s]: output t depends on input s.
    """
    x = x.detach().requires_grad_()
    rows = []
    output = function(x)[0]  # (n, D)
    direction = torch.arange(1.0, output.size(-1) + 1).sqrt()  # a norm keeps sums at 0
    for total in output @ direction.to(output):
        (gradient,) = torch.autograd.grad(total, x, retain_graph=True)
        rows.append(gradient[0].ne(0).any(dim=-1))  # (n,)
    return torch.stack(rows)


def path_lengths(links: Iterable[Tensor]) -> Tensor:
    """How many links lie between two positions, for every pair: breadth first (§4).

    links: (n, n) bool for each layer, from the input upwards; no more are asked for
    than it takes. Returns (n, n) int64, [t, s]: the layers until output t depends on
    input s, 0 for a position and itself, -1 where so many do not link them. Raises
    ValueError where there is no layer.
    """
    lengths = None
    for length, linked in enumerate(links, start=1):
        if lengths is None:
            lengths = torch.eye(len(linked), dtype=torch.int64) - 1
            reached = lengths + 1.0  # (n, n): by paths of so many links
        reached = (linked.float() @ reached).clamp(max=1)
        lengths[(reached > 0) & (lengths < 0)] = length
        if (lengths >= 0).all():
            break
    if lengths is None:
        raise ValueError("no layers: a path needs at least one")
    return lengths


def power_law(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """The exponent p of y ~ x^p, and its standard error, by least squares of the logs.

    x, y: three points or more, all positive.
    """
    (slope, _), covariance = np.polyfit(np.log(x), np.log(y), 1, cov=True)
    return float(slope), float(np.sqrt(covariance[0, 0]))


def crossing(
    x: Sequence[float], one: Sequence[float], other: Sequence[float]
) -> float | None:
    """From which x on `one` lies above `other`, on straight lines between the logs.

    x rises. None where it never does, or does from the beginning.
    """
    gaps = np.log(one) - np.log(other)
    below = np.flatnonzero(gaps <= 0)
    if len(below) == 0 or below[-1] == len(gaps) - 1:
        return None
    i = below[-1]
    share = gaps[i] / (gaps[i] - gaps[i + 1])
    return float(np.exp((1 - share) * np.log(x[i]) + share * np.log(x[i + 1])))


class _Alive(TorchDispatchMode):
    """Adds up the bytes of all tensors that operations make, while they are there."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}  # of each storage that is there
        self.now = self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        for given in tree_leaves((args, kwargs)):
            self.see(given, is_new=False)
        made = function(*args, **(kwargs or {}))
        for result in tree_leaves(made):
            self.see(result, is_new=True)
        return made

    def see(self, value: object, is_new: bool) -> None:
        if not isinstance(value, Tensor):
            return
        storage = value.untyped_storage()
        if storage._cdata not in self.sizes:
            self.sizes[storage._cdata] = size = storage.nbytes() if is_new else 0
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.forget, storage._cdata)

    def forget(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def peak_memory(function: Callable[..., object], *inputs: Tensor) -> int:
    """The most bytes of tensors, made by function(*inputs), that were there at once.

    What was there before does not count, nor what a kernel uses inside itself. On the
    meta device nothing is allocated, and the count is the same.
    """
    with _Alive() as alive:
        function(*inputs)
    return alive.peak
