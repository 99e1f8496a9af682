"""The training loop (§5.2)."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from .batching import Batch, TokenBatches
from .loss import label_smoothed_cross_entropy
from .model import Transformer
from .schedule import learning_rate


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the defaults are the paper's where the paper has one."""

    max_tokens: int = 25_000  # tokens a batch and side (§5.1)
    epochs: int = 10  # times through the data
    warmup: int = 4000  # steps until the learning rate is highest (§5.3)
    smoothing: float = 0.1  # the paper's ε_ls (§5.4)
    adam_betas: tuple[float, float] = (0.9, 0.98)  # decay of the two moments (§5.3)
    adam_eps: float = 1e-9  # (§5.3)
    seed: int = 0  # of the initial weights, the dropout masks and the order of batches
    bfloat16: bool = False  # autocast matrix products


def batch_loss(model, batch, smoothing):
    logits = model(batch.src, batch.tgt)  # (B, T, V)
    return label_smoothed_cross_entropy(logits, batch.labels, smoothing, model.config.pad_id)


@torch.no_grad()
def evaluate_loss(model, batches, bfloat16=False) -> float:
    model.eval()
    total, tokens = 0.0, 0
    for batch in batches:
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            total += batch_loss(model, batch, 0.0).item()
        tokens += (batch.labels != model.config.pad_id).sum().item()
    return total / tokens


def train(model, batches: TokenBatches, validation: TokenBatches, config: TrainingConfig) -> Iterator[dict]:
    optimizer = torch.optim.Adam(model.parameters(), lr=0.0, betas=config.adam_betas, eps=config.adam_eps, fused=True)
    step = 0
    for epoch in range(config.epochs):
        batches.epoch = epoch
        model.train()
        started, tokens, total = time.perf_counter(), 0, 0.0
        for batch in batches:
            step += 1
            optimizer.param_groups[0]["lr"] = learning_rate(step, model.config.d_model, config.warmup)
            n_tokens = (batch.labels != model.config.pad_id).sum()
            with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
                loss = batch_loss(model, batch, config.smoothing)
            (loss / n_tokens).backward()
            optimizer.step()
            optimizer.zero_grad()
            tokens += n_tokens.item()
            total += loss.item()
        seconds = time.perf_counter() - started
        yield {
            "epoch": epoch + 1, "step": step, "train_loss": total / tokens,
            "validation_loss": evaluate_loss(model, validation, config.bfloat16),
            "tokens_per_second": tokens / seconds, "seconds": seconds,
        }
