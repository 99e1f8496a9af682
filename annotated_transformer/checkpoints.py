# Written in notebooks/5_2_hardware_and_schedule.ipynb; edit it there.
"""What a training run leaves on the disk, and goes on from (§5.2)."""

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

__all__ = [
    "METRICS",
    "Progress",
    "write_checkpoint",
    "checkpoints",
    "read_state",
    "read_tensors",
    "check_settings",
    "last_state",
    "RunFolder",
]


@dataclass
class Progress:
    """Where a run is: what a checkpoint holds beside tensors."""

    step: int = 0  # updates made
    nats: float = 0.0  # training loss, summed since the last validation
    tokens: int = 0  # target tokens that it is the loss of
    seconds: float = 0.0  # that they took, in training alone
    best: list[float] | None = None  # how good the best validation was
    best_step: int = 0  # and when
    sizes: dict[str, int] = field(default_factory=dict)  # of the metrics, in bytes


def write_checkpoint(
    path: Path, tensors: dict[str, Tensor], progress: Progress, settings: dict
) -> None:
    """One file, under another name until it is whole and on the disk.

    Raises OSError, naming the file, where it cannot be written; nothing stays of it.
    """
    scratch = path.with_name(f".saving-{path.name}")
    state = {"progress": asdict(progress), "settings": settings}
    try:
        save_file(tensors, scratch, {"state": json.dumps(state)})
        _to_disk(scratch)
        os.replace(scratch, path)
        _to_disk(path.parent)
    except (OSError, SafetensorError) as error:
        scratch.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error}") from None


def _to_disk(path: Path) -> None:
    """Wait until what was written to a file or a folder would survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of the run in a folder, the latest last."""
    return sorted((folder / "checkpoints").glob("step-*.safetensors"))


def read_state(path: Path) -> tuple[Progress, dict]:
    """The progress and the settings in a checkpoint, without its tensors.

    Raises ValueError, naming the file, where it is not a whole checkpoint.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
        if "state" not in metadata:
            raise ValueError("it holds the state of no run")
        state = json.loads(metadata["state"])
        return Progress(**state["progress"]), state["settings"]
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        others = [other.name for other in path.parent.glob("step-*") if other != path]
        way_out = f": delete it to go on from {max(others)}" if others else ""
        raise ValueError(
            f"{path} is not a whole checkpoint ({error}){way_out}"
        ) from None


def read_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """Copy a checkpoint's tensors into these, by name.

    Raises ValueError, naming both, where one is not there or has another shape.
    """
    with safe_open(path, "pt") as file, torch.no_grad():
        there = set(file.keys())
        for name, tensor in tensors.items():
            saved = file.get_tensor(name) if name in there else None
            if saved is None or saved.shape != tensor.shape:
                shape = "no" if saved is None else f"a {tuple(saved.shape)}"
                raise ValueError(f"{path} has {shape} tensor {name}")
            tensor.copy_(saved)


def check_settings(path: Path, settings: dict) -> None:
    """Raises ValueError where one of these settings was another when it was written.

    The error names the first one that differs, with both its values.
    """
    then = {"rate": 1.0} | read_state(path)[1]  # there was no rate at first
    for name, now in json.loads(json.dumps(settings)).items():
        if then.get(name) != now:
            raise ValueError(
                f"{path} is of a run with {name} {then.get(name)!r}, and this one has "
                f"{now!r}: give it the same settings, or another folder"
            )


METRICS = "steps.jsonl", "training.jsonl"  # a line a step; a line a validation


def last_state(folder: Path, settings: dict) -> tuple[Path | None, Progress]:
    """The latest checkpoint of the run in a folder, and where that run was.

    Without a checkpoint: None, and the beginning. Raises ValueError, naming the file,
    where a run with these settings cannot go on from there or begin there.
    """
    latest, progress = None, Progress(sizes=dict.fromkeys(METRICS, 0))
    for latest in checkpoints(folder)[-1:]:
        check_settings(latest, settings)
        progress, _ = read_state(latest)
    for name, size in progress.sizes.items():
        path = folder / name
        there = path.stat().st_size if path.exists() else 0
        if there and not latest:
            raise ValueError(f"{path} is there already, without a checkpoint")
        if there < size:
            raise ValueError(f"{path} is cut: {there} of {size} bytes are left")
    return latest, progress


class RunFolder:
    """The files of one run. One process opens them, once.

    settings: what must not change for the run to go on, in values that JSON has.
    keep: how many of the latest checkpoints stay; the best one stays too.
    """

    def __init__(self, folder: str | Path, settings: dict, keep: int) -> None:
        self.folder, self.settings, self.keep = Path(folder), settings, keep

    def open(self, tensors: dict[str, Tensor]) -> Progress:
        """Go on from the latest checkpoint, or write the first one.

        tensors: filled from the checkpoint. The metrics are cut back to where they
        were when it was written. Raises ValueError, and changes nothing, where
        `last_state` does; OSError where a file cannot be written.
        """
        latest, progress = last_state(self.folder, self.settings)
        if latest:
            read_tensors(latest, tensors)
        for name, size in progress.sizes.items():
            if (self.folder / name).exists():
                os.truncate(self.folder / name, size)
        (self.folder / "checkpoints").mkdir(parents=True, exist_ok=True)
        for left_over in (self.folder / "checkpoints").glob(".saving-*"):
            left_over.unlink()
        self.metrics = {name: open(self.folder / name, "ab") for name in METRICS}
        self.board = _tensorboard(self.folder / "tensorboard", progress.step + 1)
        if not latest:
            self.save(tensors, progress)
        return progress

    def save(self, tensors: dict[str, Tensor], progress: Progress) -> None:
        """Write a checkpoint; only then remove those that need not stay."""
        for name, file in self.metrics.items():
            file.flush()
            os.fsync(file.fileno())
            progress.sizes[name] = file.tell()
        folder = self.folder / "checkpoints"
        path = folder / f"step-{progress.step:08}.safetensors"
        write_checkpoint(path, tensors, progress, self.settings)
        best = folder / f"step-{progress.best_step:08}.safetensors"
        for old in checkpoints(self.folder)[: -self.keep]:
            if old != best:
                old.unlink()

    def log(self, name: str, records: list[dict]) -> None:
        """Add lines to one of METRICS, and their numbers to TensorBoard."""
        lines = "".join(f"{json.dumps(record)}\n" for record in records)
        try:
            self.metrics[name].write(lines.encode())
            self.metrics[name].flush()
        except OSError as error:
            path = self.folder / name
            raise OSError(f"cannot write {path}: {error.strerror}") from None
        for record in records if self.board else ():
            for key, value in record.items():
                if isinstance(value, int | float) and key not in ("step", "best"):
                    self.board.add_scalar(key, value, record["step"])

    def close(self) -> None:
        """Nothing is written any more; what could not be was said when it was tried."""
        for file in (*self.metrics.values(), *filter(None, [self.board])):
            with suppress(OSError):
                file.close()


def _tensorboard(folder: Path, first: int):
    """A writer for TensorBoard, if it is installed; events from step `first` on go."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(folder, purge_step=first)
