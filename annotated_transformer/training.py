# Written in notebooks/5_2_hardware_and_schedule.ipynb; edit it there.
"""The training loop, its checkpoints and its processes (§5.2)."""

import contextlib
import hashlib
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from .batching import Batch, TokenBatches
from .checkpoints import Progress, RunFolder
from .loss import projected_cross_entropy
from .model import EncoderDecoder
from .schedule import learning_rate

__all__ = [
    "OF_SAVING",
    "READ_EVERY",
    "AHEAD",
    "Item",
    "TrainingConfig",
    "Objective",
    "batch_loss",
    "evaluate_loss",
    "processes",
    "make_adam",
    "update",
    "batch_seed",
    "steps_from",
    "Cost",
    "cost",
    "process_group",
    "shared",
    "pinned",
    "share_out",
    "wrap",
    "run_tensors",
    "run_settings",
    "open_folder",
    "Step",
    "take_stock",
    "require_work",
    "progress_bar",
    "is_due",
    "validate",
    "describe_failure",
    "ahead",
    "prepare",
    "train",
]


@dataclass(frozen=True)
class TrainingConfig:
    """How a model is trained; the defaults are the paper's where the paper has one.

    Raises ValueError, naming the field and its value, where a value makes no sense.
    """

    max_tokens: int = 25_000  # tokens in a batch, on either side (§5.1)
    accumulation: int = 1  # batches in a step, over all processes together
    epochs: int | None = 10  # times through the training pairs; None: see max_steps
    max_steps: int | None = None  # the last step, where the epochs do not end before
    warmup: int = 4000  # steps until the learning rate is highest (§5.3)
    rate: float = 1.0  # by which the learning rate of §5.3 is multiplied
    smoothing: float = 0.1  # the paper's ε_ls (§5.4)
    adam_betas: tuple[float, float] = (0.9, 0.98)  # β1, β2 (§5.3)
    adam_eps: float = 1e-9  # ε (§5.3)
    seed: int = 0  # of the initial weights, the order of batches and the dropout
    bfloat16: bool = False  # matrix products in bfloat16, the weights stay float32
    compile: bool = False  # let torch.compile fuse what it can
    validate_every: int | None = None  # steps; None: at the end of each epoch
    checkpoint_every: int | None = None  # steps; one follows each validation anyway
    checkpoint_minutes: float | None = 10.0  # since the last one (§6.1)
    keep: int = 5  # latest checkpoints that stay; the best one does too (§6.1)

    def __post_init__(self) -> None:
        for name in ("max_tokens", "accumulation", "warmup", "keep"):
            self._require(name, _is_count(getattr(self, name), 1), "an integer from 1")
        for name in ("epochs", "max_steps", "validate_every", "checkpoint_every"):
            value = getattr(self, name)
            counted = value is None or _is_count(value, 1)
            self._require(name, counted, "an integer from 1, or None")
        endless = self.epochs is None and self.max_steps is None
        self._require("max_steps", not endless, "a number where epochs is None")
        minutes = self.checkpoint_minutes
        self._require("checkpoint_minutes", minutes is None or minutes > 0, "positive")
        self._require("rate", 0 < self.rate < math.inf, "positive")
        self._require("smoothing", 0 <= self.smoothing < 1, "in [0, 1)")
        betas = self.adam_betas
        inside = len(betas) == 2 and all(0 <= beta < 1 for beta in betas)
        self._require("adam_betas", inside, "two numbers in [0, 1)")
        self._require("adam_eps", self.adam_eps > 0, "positive")
        self._require("seed", _is_count(self.seed, 0), "an integer from 0")
        for name in ("bfloat16", "compile"):
            value = getattr(self, name)
            self._require(name, isinstance(value, bool), "True or False")

    def _require(self, name: str, condition: bool, expected: str) -> None:
        if not condition:
            value = getattr(self, name)
            raise ValueError(f"{name} is {value!r}: it must be {expected}")

    def steps_an_epoch(self, n_batches: int) -> int:
        """Steps once through n_batches; the last one may have fewer batches."""
        return math.ceil(n_batches / self.accumulation)

    def steps(self, n_batches: int) -> int:
        """Steps of the whole run, where an epoch has n_batches."""
        ends = [] if self.max_steps is None else [self.max_steps]
        if self.epochs is not None:
            ends.append(self.epochs * self.steps_an_epoch(n_batches))
        return min(ends)


def _is_count(value: object, smallest: int) -> bool:
    is_integer = isinstance(value, int) and not isinstance(value, bool)
    return is_integer and value >= smallest


class Objective(nn.Module):
    """A model and its loss as one module: what is compiled, and run by many processes.

    smoothing: the paper's ε_ls; 0 to evaluate.
    """

    def __init__(self, model: EncoderDecoder, smoothing: float) -> None:
        super().__init__()
        self.model, self.smoothing = model, smoothing

    def forward(self, src: Tensor, tgt: Tensor, labels: Tensor) -> Tensor:
        """The loss summed over the target tokens, in nats: () float32.

        src: (B, S), tgt and labels: (B, T), int64, filled up with pad_id.
        """
        hidden = self.model.hidden(src, tgt)  # (B, T, D)
        weight, pad_id = self.model.embedding.weight, self.model.config.pad_id
        return projected_cross_entropy(hidden, weight, labels, self.smoothing, pad_id)


def batch_loss(objective: nn.Module, batch: Batch, bfloat16: bool = False) -> Tensor:
    """The loss summed over a batch's target tokens, in nats: () float32.

    objective: an `Objective`, as it is or wrapped. batch: on the CPU; it is moved to
    the device of the objective.
    """
    device = next(objective.parameters()).device
    src, tgt, labels = (part.to(device, non_blocking=True) for part in batch)
    with torch.autocast(device.type, torch.bfloat16, enabled=bfloat16):
        return objective(src, tgt, labels)


@torch.no_grad()
def evaluate_loss(
    model: EncoderDecoder, batches: Iterable[Batch], bfloat16: bool = False
) -> float:
    """Mean cross-entropy in nats a token, without smoothing and without dropout.

    exp of it is the perplexity. The model goes back to the mode (train or eval) it
    was in. Raises ValueError where the batches hold no token.
    """
    was_training = model.training
    objective = Objective(model, smoothing=0.0).eval()
    total, tokens = 0.0, 0
    for batch in batches:
        total += batch_loss(objective, batch, bfloat16)  # nobody waits for it yet
        tokens += int((batch.labels != model.config.pad_id).sum())
    model.train(was_training)
    if tokens == 0:
        raise ValueError("no token to evaluate: the batches are empty")
    return float(total) / tokens


def processes() -> tuple[int, int]:
    """The number of this process, from 0, and how many there are; alone: (0, 1)."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def make_adam(model: EncoderDecoder, config: TrainingConfig) -> torch.optim.Adam:
    """The paper's optimiser (§5.3) in its fused form, its state laid out at once.

    `update` sets the learning rate, and `found_inf`: once it is 1, no weight and no
    mean moves any more.
    """
    adam = torch.optim.Adam(
        model.parameters(),
        lr=0.0,
        betas=config.adam_betas,
        eps=config.adam_eps,
        fused=True,
    )
    for p in model.parameters():
        adam.state[p] = {
            "step": torch.zeros((), device=p.device),
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
        }
    adam.found_inf = torch.zeros((), device=p.device)
    return adam


def update(
    objective: nn.Module,
    adam: torch.optim.Adam,
    batches: Sequence[tuple[int, Batch]],
    tokens: int,
    rate: float,
    bfloat16: bool = False,
) -> tuple[Tensor, Tensor]:
    """One update of the weights: several batches, one gradient, one move.

    batches: this process's share of the step, each with the seed of its dropout.
    tokens: target tokens in the step, those of other processes included; the gradient
    is that of the mean loss over all of them. rate: the learning rate.
    Returns the loss before the move, in nats summed over these tokens, and the
    gradient's norm; where one of them is not finite, nothing moves, and never again.
    """
    together = isinstance(objective, DistributedDataParallel)
    share = 1 / max(tokens, 1)
    if together:
        share *= processes()[1]  # the gradients are averaged over the processes
    adam.zero_grad()
    total = torch.zeros_like(adam.found_inf)
    for left, (seed, batch) in zip(reversed(range(len(batches))), batches, strict=True):
        torch.manual_seed(seed)
        with objective.no_sync() if together and left else contextlib.nullcontext():
            loss = batch_loss(objective, batch, bfloat16)
            (loss * share).backward()
        total += loss.detach()
    if together:
        dist.all_reduce(total)
    norm = nn.utils.clip_grad_norm_(objective.parameters(), math.inf)  # clips nothing
    bad = ~torch.isfinite(total + norm)
    adam.found_inf = torch.maximum(adam.found_inf, bad.float())
    for group in adam.param_groups:
        group["lr"] = rate
    adam.step()
    return total, norm


def batch_seed(seed: int, step: int, index: int) -> int:
    """What torch's generator starts from before batch `index` of a step."""
    digest = hashlib.blake2b(f"{seed} {step} {index}".encode(), digest_size=8)
    return int.from_bytes(digest.digest(), "big") >> 1


def steps_from(
    first: int, batches: TokenBatches, config: TrainingConfig
) -> Iterator[tuple[int, int, list]]:
    """From step `first` to the last: (step, epoch, the groups of its batches).

    Steps and epochs are counted from 1. A function of its arguments: it has no past.
    """
    a_epoch, size = config.steps_an_epoch(len(batches)), config.accumulation
    epoch, groups = 0, []
    for step in range(first, config.steps(len(batches)) + 1):
        before, at = divmod(step - 1, a_epoch)
        if epoch != before + 1:
            epoch, groups = before + 1, batches.groups(before)
        yield step, epoch, groups[at * size : (at + 1) * size]


class Cost(NamedTuple):
    """What a run is going to cost."""

    parameters: int
    steps: int
    tokens: int  # target tokens, each counted as often as it is trained on
    operations: float  # 6 × parameters × tokens
    seconds: float  # of training alone, if all batches go like the three tried out


def cost(model: EncoderDecoder, batches: TokenBatches, config: TrainingConfig) -> Cost:
    """What `train` is going to cost, from forward and backward passes of three batches.

    One of short, one of middling and one of long sentences, after one that is not
    timed. Nothing is updated. Of many processes each times its own, all at once.
    """
    groups = sorted(batches.groups(0), key=len)
    trials = [groups[len(groups) * i // 6] for i in (3, 1, 3, 5)]
    objective = Objective(model, config.smoothing)
    device = next(model.parameters()).device
    for number, group in enumerate(trials):
        if number == 1:
            started = time.perf_counter()
        batch_loss(objective, batches.make(group), config.bfloat16).backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    seconds = time.perf_counter() - started
    model.zero_grad()
    rate = sum(map(batches.target_tokens, trials[1:])) / seconds * processes()[1]
    steps = config.steps(len(groups))
    epochs = steps / config.steps_an_epoch(len(groups))
    tokens = round(epochs * batches.target_tokens(slice(None)))
    parameters = sum(p.numel() for p in model.parameters())
    operations = 6.0 * parameters * tokens
    return Cost(parameters, steps, tokens, operations, tokens / rate)


@contextlib.contextmanager
def process_group(device: torch.device, timeout: float = 30.0) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did; leave them at the end.

    timeout: minutes that one waits for the others. Raises RuntimeError where another
    has ended, or does not answer for so long.
    """
    if "WORLD_SIZE" not in os.environ:
        yield
        return
    backend = "gloo"
    if device.type == "cuda":
        backend = "nccl"
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, timeout=timedelta(minutes=timeout))
        yield
        dist.barrier()  # the first process may still have something to write
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error):
            raise
        raise RuntimeError(
            f"lost another process: it has ended, or was silent for {timeout:g} minutes"
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def shared(make: Callable[[], Any]) -> Any:
    """What process 0 makes, in all processes. What it raises, all of them raise."""
    rank, world = processes()
    if world == 1:
        return make()
    box: list = [None, None]
    if rank == 0:
        try:
            box[0] = make()
        except (OSError, ValueError) as error:
            box[1] = error
    dist.broadcast_object_list(box, 0)
    if box[1] is not None:
        raise box[1] if rank == 0 else ValueError(str(box[1]))
    return box[0]


def pinned(batch: Batch, device: torch.device) -> Batch:
    """The batch in memory that a GPU reads by itself; for a CPU, as it is."""
    if device.type != "cuda":
        return batch
    with torch.cuda.device(device):  # a thread of its own begins with the first GPU
        return Batch(*(part.pin_memory() for part in batch))


def share_out(
    step: int, groups: list, batches: TokenBatches, model: EncoderDecoder, seed: int
) -> list[tuple[int, Batch]]:
    """This process's batches of a step, each with the seed of its dropout.

    Batch number i is for process i modulo their number. A process that gets none, at
    the end of an epoch, takes part with a batch that has nothing to predict. Where
    the model is on a GPU, the batches lie where it can fetch them.
    """
    rank, world = processes()
    device = next(model.parameters()).device
    mine = [
        (batch_seed(seed, step, i), pinned(batches.make(group), device))
        for i, group in enumerate(groups)
        if i % world == rank
    ]
    c = model.config
    rows = [torch.tensor([[token]]) for token in (c.eos_id, c.bos_id, c.pad_id)]
    return mine or [(0, Batch(*rows))]


def wrap(model: EncoderDecoder, config: TrainingConfig) -> nn.Module:
    """The objective of a run, compiled if asked for, one of many if there are many."""
    objective = Objective(model, config.smoothing)
    if config.compile:
        objective = torch.compile(objective, dynamic=True)
    _, world = processes()
    if world == 1:
        return objective
    together = DistributedDataParallel(objective)
    together.broadcast_buffers = False  # the positions are the same everywhere
    return together


def run_tensors(model: EncoderDecoder, adam: torch.optim.Adam) -> dict[str, Tensor]:
    """The tensors that change in training, by name: weights and Adam's state."""
    tensors = {}
    for name, p in model.named_parameters():
        tensors[f"model.{name}"] = p.detach()
        for key, value in adam.state[p].items():
            tensors[f"adam.{key}.{name}"] = value
    return tensors


OF_SAVING = "checkpoint_every", "checkpoint_minutes", "keep"  # the curve does not care


def run_settings(
    model: Any,
    config: TrainingConfig,
    batches: TokenBatches | None = None,
) -> dict:
    """What decides a run's curve, the machine apart, in values that JSON has.

    batches: where they are known already; of the data, their number and tokens count.
    """
    settings = {**asdict(config), **model.to_dict()}
    for name in OF_SAVING:
        del settings[name]
    if batches is not None:
        settings["batches"] = len(batches)
        settings["target tokens"] = batches.target_tokens(slice(None))
    return settings


def open_folder(
    folder: str | Path | None, settings: dict, keep: int, tensors: dict[str, Tensor]
) -> tuple[RunFolder | None, Progress]:
    """The run's files, for the first process alone; where it goes on, for all."""
    if folder is None:
        return None, Progress()
    files = RunFolder(folder, settings, keep)
    progress = shared(lambda: files.open(tensors))
    rank, world = processes()
    if world > 1:
        for tensor in tensors.values():
            dist.broadcast(tensor, 0)
    return (files if rank == 0 else None), progress


READ_EVERY = 1.0  # seconds; to read a loss is to wait for the GPU


class Step(NamedTuple):
    """What is known of a step: a line of steps.jsonl, once it is read."""

    step: int  # from 1
    epoch: int  # from 1
    tokens: int  # target tokens
    learning_rate: float
    loss: Tensor | float  # unread: nats summed over the tokens; read: nats a token
    gradient_norm: Tensor | float


def take_stock(
    unread: list[Step], progress: Progress
) -> tuple[list[Step], Step | None]:
    """Read the numbers of the latest steps, and count the steps in.

    Returns the steps, and apart from them the first that has a number which is not
    finite; nothing moved in it or after it, and it is not counted.
    """
    numbers = torch.stack([torch.stack(each[-2:]) for each in unread]).tolist()
    read = []
    for each, (nats, norm) in zip(unread, numbers, strict=True):
        each = each._replace(loss=nats / each.tokens, gradient_norm=norm)
        if not math.isfinite(nats + norm):
            return read, each
        read.append(each)
        progress.step = each.step
        progress.nats += nats
        progress.tokens += each.tokens
    return read, None


def require_work(
    model: EncoderDecoder, batches: TokenBatches, config: TrainingConfig
) -> None:
    """Raises ValueError where a run with these settings cannot begin."""
    _, world = processes()
    if len(batches) == 0:
        raise ValueError("no token to train on: the batches are empty")
    if config.accumulation < world:
        raise ValueError(
            f"accumulation is {config.accumulation}, batches in a step: {world} "
            f"processes need at least {world}"
        )
    device = next(model.parameters()).device
    has_bfloat16 = device.type != "cuda" or torch.cuda.is_bf16_supported(False)
    if config.bfloat16 and not has_bfloat16:
        raise ValueError(f"{torch.cuda.get_device_name(device)} has no bfloat16")


def progress_bar(step: int, last: int) -> tqdm:
    """On the terminal of the first process: steps, their rate and the time left."""
    shown = None if processes()[0] == 0 else True  # None: if it is a terminal
    form = {"unit": " steps", "leave": False, "disable": shown}
    return tqdm(desc="training", total=last, initial=step, **form)


def is_due(step: int, seconds: float, config: TrainingConfig) -> bool:
    """Whether a checkpoint is due; seconds: since the last one."""
    every, minutes = config.checkpoint_every, config.checkpoint_minutes
    by_step = every is not None and step % every == 0
    return by_step or (minutes is not None and seconds >= 60 * minutes)


def validate(
    model: EncoderDecoder,
    validation: Iterable[Batch],
    config: TrainingConfig,
    score: Callable[[EncoderDecoder], dict] | None,
    progress: Progress,
    epoch: int,
) -> dict:
    """The record of a validation; the model is in eval mode then."""
    model.eval()
    loss = evaluate_loss(model, validation, config.bfloat16)
    with torch.no_grad():
        scores = {} if score is None else score(model)
    model.eval()  # whatever the score did to it
    merit = [*list(scores.values())[:1], -loss]
    best = progress.best is None or merit > progress.best
    if best:
        progress.best, progress.best_step = merit, progress.step
    return {
        "epoch": epoch,
        "step": progress.step,
        "train_loss": progress.nats / progress.tokens,
        "validation_loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "tokens_per_second": progress.tokens / progress.seconds,
        "seconds": progress.seconds,
        **scores,
        "best": best,
    }


def describe_failure(bad: Step, n_batches: int, size: int) -> str:
    """Where a number is not finite; n_batches: in an epoch, size: in a step."""
    first = (bad.step - 1) % math.ceil(n_batches / size) * size + 1
    last = min(first + size - 1, n_batches)
    where = f"batch {first}" if last == first else f"batches {first} to {last}"
    what, value = "loss", bad.loss
    if math.isfinite(bad.loss):
        what, value = "gradient's norm", bad.gradient_norm
    return (
        f"the {what} is {value} at step {bad.step} (epoch {bad.epoch}, {where}): "
        f"training stops with the weights of step {bad.step - 1}; a longer warm-up may "
        "help"
    )


AHEAD = 2  # steps that are prepared before they are asked for
Item = TypeVar("Item")


def ahead(items: Iterator[Item]) -> Iterator[Item]:
    """The same items, made by a thread while the ones before them are in use."""
    end = object()
    with ThreadPoolExecutor(max_workers=1) as thread:
        waiting = deque(thread.submit(next, items, end) for _ in range(AHEAD))
        try:
            while (item := waiting.popleft().result()) is not end:
                waiting.append(thread.submit(next, items, end))
                yield item
        finally:
            for one in waiting:
                one.cancel()


def prepare(
    first: int, batches: TokenBatches, model: EncoderDecoder, config: TrainingConfig
) -> Iterator[tuple[int, int, int, list[tuple[int, Batch]]]]:
    """From step `first` on: (step, epoch, target tokens, this process's batches)."""
    for step, epoch, groups in steps_from(first, batches, config):
        tokens = sum(map(batches.target_tokens, groups))
        yield step, epoch, tokens, share_out(step, groups, batches, model, config.seed)


def train(
    model: EncoderDecoder,
    batches: TokenBatches,
    validation: Iterable[Batch],
    config: TrainingConfig,
    score: Callable[[EncoderDecoder], dict] | None = None,
    folder: str | Path | None = None,
    about: dict | None = None,
    stop: Callable[[], bool] = lambda: False,
) -> Iterator[dict]:
    """Train the model where it is, on its device; one record a validation (§5).

    batches: the training pairs. score: called at each validation, with the model in
    eval mode and without gradients; what it returns joins the record, and the first of
    its values says which model is best, the highest (without it: the lowest validation
    loss). folder: where checkpoints and metrics go (`RunFolder`); a run that was broken
    off there goes on, if the settings and `about` are the same. stop: asked after each
    step; at True the run is saved and ends, to go on later. At each record the model is
    in eval mode. Of several processes (`process_group`) all call this; the first alone
    validates, writes and yields records.

    A record holds: epoch, from 1; step, updates so far; train_loss, nats a target
    token, with dropout and smoothing, since the last record; validation_loss, without
    either; perplexity, its exponential; tokens_per_second, target tokens without
    padding; seconds, both of training alone; best, whether it is the best so far.
    Raises ValueError, naming step and batch, where a loss or a gradient is not finite:
    model and last checkpoint are then those of the step before.
    """
    require_work(model, batches, config)
    an_epoch, last = config.steps_an_epoch(len(batches)), config.steps(len(batches))
    adam = make_adam(model, config)
    tensors = run_tensors(model, adam)
    settings = {**(about or {}), **run_settings(model.config, config, batches)}
    files, progress = open_folder(folder, settings, config.keep, tensors)
    objective = wrap(model, config)
    bar = progress_bar(progress.step, last)
    unread: list[Step] = []
    with bar, contextlib.closing(files) if files else contextlib.nullcontext():
        model.train()
        since = saved = time.perf_counter()
        for step, epoch, tokens, mine in ahead(
            prepare(progress.step + 1, batches, model, config)
        ):
            rate = learning_rate(step, model.config.d_model, config.warmup)
            rate *= config.rate
            loss, norm = update(objective, adam, mine, tokens, rate, config.bfloat16)
            unread.append(Step(step, epoch, tokens, rate, loss, norm))
            bar.update()
            now, stops = time.perf_counter(), stop()
            validates = step == last or step % (config.validate_every or an_epoch) == 0
            saves = validates or stops or is_due(step, now - saved, config)
            if not saves and now - since < READ_EVERY:
                continue

            before = progress.tokens
            read, bad = take_stock(unread, progress)
            unread, seconds = [], time.perf_counter() - since
            progress.seconds += seconds
            if files:
                files.log("steps.jsonl", [each._asdict() for each in read])
            if bad and files:
                files.save(tensors, progress)
            if bad:
                failure = describe_failure(bad, len(batches), config.accumulation)
                raise ValueError(failure)
            speed = (progress.tokens - before) / seconds
            bar.set_postfix_str(f"loss {read[-1].loss:.3f}, {speed:.0f} tokens/s")
            if validates and processes()[0] == 0:
                record = validate(model, validation, config, score, progress, epoch)
                if files:
                    files.log("training.jsonl", [record])
                bar.clear()
                yield record
                model.train()
            if validates:
                progress.nats, progress.tokens, progress.seconds = 0.0, 0, 0.0
            if saves and files:
                files.save(tensors, progress)
            since = time.perf_counter()
            saved = since if saves else saved
            if stops:
                break
    model.eval()
