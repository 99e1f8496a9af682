# Written in notebooks/5_2_hardware_and_schedule.ipynb; edit it there.
"""The training loop and its settings (§5.2)."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from tqdm import tqdm

from .batching import Batch, TokenBatches
from .loss import label_smoothed_cross_entropy
from .model import Transformer
from .schedule import learning_rate

__all__ = [
    "READ_EVERY",
    "TrainingConfig",
    "Objective",
    "batch_loss",
    "evaluate_loss",
    "update",
    "train",
]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the defaults are the paper's where the paper has one.

    Raises ValueError, naming the field and its value, where a value makes no sense.
    """

    max_tokens: int = 25_000  # tokens in a batch, on either side (§5.1)
    epochs: int = 10  # times through the training pairs
    warmup: int = 4000  # steps until the learning rate is highest (§5.3)
    smoothing: float = 0.1  # the paper's ε_ls (§5.4)
    adam_betas: tuple[float, float] = (0.9, 0.98)  # β1, β2 (§5.3)
    adam_eps: float = 1e-9  # ε (§5.3)
    seed: int = 0  # of the initial weights, the order of batches and the dropout
    bfloat16: bool = False  # matrix products in bfloat16, the weights stay float32

    def __post_init__(self) -> None:
        for name in ("max_tokens", "epochs", "warmup"):
            self._require(name, _is_count(getattr(self, name), 1), "an integer from 1")
        self._require("smoothing", 0 <= self.smoothing < 1, "in [0, 1)")
        betas = self.adam_betas
        inside = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        self._require("adam_betas", inside, "two numbers in [0, 1)")
        self._require("adam_eps", self.adam_eps > 0, "positive")
        self._require("seed", _is_count(self.seed, 0), "an integer from 0")
        self._require("bfloat16", isinstance(self.bfloat16, bool), "True or False")

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            value = getattr(self, name)
            raise ValueError(f"{name} is {value!r}: it must be {expected}")


def _is_count(value, smallest: int) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and value >= smallest


class Objective(nn.Module):
    """A model and its loss as one module: what is compiled, and run by many processes.

    smoothing: the paper's ε_ls; 0 to evaluate.
    """

    def __init__(self, model: Transformer, smoothing: float) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, src: Tensor, tgt: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over the target tokens, in nats: () float32.

        src: (B, S), tgt and labels: (B, T), int64, filled up with pad_id.
        """
        logits = self.model(src, tgt)  # (B, T, V)
        pad_id = self.model.config.pad_id
        return label_smoothed_cross_entropy(logits, labels, self.smoothing, pad_id)


def batch_loss(
    model: Transformer, batch: Batch, smoothing: float, bfloat16: bool = False
) -> tuple[Tensor, int]:
    """The loss summed over a batch's target tokens, and how many tokens that is.

    batch: on the CPU, where counting makes nobody wait; it is moved to the model's
    device. Returns (nats, a () float32 tensor on that device; tokens, without padding).
    """
    objective = Objective(model, smoothing)
    tokens = int((batch.labels != model.config.pad_id).sum())
    device = next(model.parameters()).device
    src, tgt, labels = (part.to(device, non_blocking=True) for part in batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        loss = objective(src, tgt, labels)
    return loss, tokens


@torch.no_grad()
def evaluate_loss(
    model: Transformer, batches: Iterable[Batch], bfloat16: bool = False
) -> float:
    """Mean cross-entropy in nats a token, without smoothing and without dropout.

    exp of it is the perplexity. The model goes back to the mode (train or eval) it
    was in. Raises ValueError where the batches hold no token.
    """
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        loss, n_tokens = batch_loss(model, batch, 0.0, bfloat16)
        total += loss  # a tensor from here on: nobody waits for it yet
        tokens += n_tokens
    model.train(was_training)
    if tokens == 0:
        raise ValueError("no token to evaluate: the batches are empty")
    return float(total) / tokens


def update(
    model: Transformer,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    step: int,
    config: TrainingConfig,
) -> tuple[Tensor, int]:
    """Update number `step`, counted from 1: one batch, one gradient, one move.

    The gradient is that of the mean loss a target token: every token weighs the same,
    in a batch of long sentences as in one of short ones. Returns the loss before the
    move and the number of tokens, as `batch_loss` does.
    """
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, model.config.d_model, config.warmup)
    loss, tokens = batch_loss(model, batch, config.smoothing, config.bfloat16)
    optimizer.zero_grad()
    (loss / max(tokens, 1)).backward()
    optimizer.step()
    return loss.detach(), tokens


READ_EVERY = 100  # steps; to read a loss is to wait for the GPU, so not at each


def _read(losses: list[Tensor], step: int, epoch: int, batch: int) -> float:
    """The sum of the losses of the latest updates, the last of them number `step`."""
    values = torch.stack(losses).tolist() if losses else []
    for i, value in enumerate(values, start=1 - len(values)):
        if not math.isfinite(value):
            raise ValueError(
                f"the loss is {value} at step {step + i} (epoch {epoch}, batch "
                f"{batch + i}): training stops; a longer warm-up may help"
            )
    return math.fsum(values)


def train(
    model: Transformer,
    batches: TokenBatches,
    validation: Iterable[Batch],
    config: TrainingConfig,
    score: Callable[[Transformer], dict] | None = None,
) -> Iterator[dict]:
    """Train the model where it is, on the device it is on, one record an epoch (§5).

    batches: the training pairs; their `epoch` is set, from 0, before each time
    through. score: called after each epoch with the model in eval mode and without
    gradients; what it returns joins the record. At each record the model is in eval
    mode, for whoever saves or tries it. Seeds torch's generator with config.seed.

    A record holds: epoch, from 1; step, updates so far; train_loss, nats a target
    token, with dropout and smoothing, over the epoch; validation_loss, the same
    without either; tokens_per_second, target tokens without padding; seconds, both of
    training alone. Raises ValueError, naming step and batch, where a loss is not
    finite, within 100 steps of it.
    """
    torch.manual_seed(config.seed)
    optimizer = torch.optim.Adam(
        model.parameters(),
        lr=0.0,  # `update` sets it
        betas=config.adam_betas,
        eps=config.adam_eps,
        fused=next(model.parameters()).device.type in ("cpu", "cuda"),
    )
    step = 0
    for epoch in range(1, config.epochs + 1):
        batches.epoch = epoch - 1
        model.train()
        total, tokens, unread = 0.0, 0, []
        first, started = step, time.perf_counter()
        for batch in tqdm(batches, f"epoch {epoch}", leave=False, disable=None):
            step += 1
            loss, n_tokens = update(model, optimizer, batch, step, config)
            unread.append(loss)
            tokens += n_tokens
            if len(unread) == READ_EVERY:
                total += _read(unread, step, epoch, step - first)
                unread = []
        if tokens == 0:
            raise ValueError("no token to train on: the batches are empty")
        total += _read(unread, step, epoch, step - first)
        seconds = time.perf_counter() - started
        model.eval()
        record = {
            "epoch": epoch,
            "step": step,
            "train_loss": total / tokens,
            "validation_loss": evaluate_loss(model, validation, config.bfloat16),
            "tokens_per_second": tokens / seconds,
            "seconds": seconds,
        }
        if score is not None:
            with torch.no_grad():
                record |= score(model)
        yield record
