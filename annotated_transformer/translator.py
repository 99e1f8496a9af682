# Written in notebooks/6_1_machine_translation.ipynb; edit it there.
"""A model and its tokenizer as one thing that translates, saves and loads (§6.1)."""

import json
import os
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError

from .batching import pad
from .decoding import greedy_search
from .model import Transformer, TransformerConfig
from .tokenizer import Tokenizer

__all__ = ["Translator"]


CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.model", "model.safetensors"
EXTRA_LENGTH = 50  # tokens that a translation may be longer than its source (§6.1)


def _write(directory: Path, files: dict[str, bytes]) -> None:
    """Put the files of a model in their place, the last one last."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = directory / WEIGHTS
    with tempfile.TemporaryDirectory(dir=directory, prefix=".saving-") as scratch:
        for name, data in files.items():
            with open(Path(scratch, name), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for name in (CONFIG, TOKENIZER):
            path = directory / name
            if weights.exists() and not (
                path.exists() and path.read_bytes() == files[name]
            ):
                weights.unlink()
        for name in files:
            os.replace(Path(scratch, name), directory / name)


def _check_complete(directory: Path) -> None:
    if not directory.is_dir():
        raise ValueError(f"{directory}: no such folder")
    for name in (CONFIG, TOKENIZER, WEIGHTS):
        if not (directory / name).is_file():
            raise ValueError(
                f"{directory} has no {name}: a model is a folder with {CONFIG}, "
                f"{TOKENIZER} and {WEIGHTS}"
            )


def _read_config(path: Path) -> TransformerConfig:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        return TransformerConfig.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read_weights(path: Path, model: Transformer) -> None:
    try:
        weights = safetensors.torch.load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: not a whole safetensors file") from error
    found = {name: tuple(value.shape) for name, value in weights.items()}
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name in sorted(found.keys() | expected.keys()):
        if found.get(name) != expected.get(name):
            raise ValueError(
                f"{path} does not fit {CONFIG}: {name} is {found.get(name, 'missing')}"
                f" and should be {expected.get(name, 'absent')}"
            )
    model.load_state_dict(weights)


class Translator:
    """A `Transformer` with the `Tokenizer` it was trained with: text in, text out.

    Raises ValueError where model and tokenizer do not belong together.
    """

    def __init__(self, model: Transformer, tokenizer: Tokenizer) -> None:
        for name in ("vocab_size", "pad_id", "bos_id", "eos_id"):
            ours, theirs = getattr(model.config, name), getattr(tokenizer, name)
            if ours != theirs:
                raise ValueError(
                    f"{name} is {ours} in the model and {theirs} in the tokenizer"
                )
        self.model, self.tokenizer = model, tokenizer

    def encode(self, line: str) -> list[int]:
        """The ids of a sentence, without eos.

        Raises ValueError where it is too long for the model to translate whole.
        """
        ids = self.tokenizer.encode(line)
        longest = self.model.config.max_length - EXTRA_LENGTH
        if len(ids) > longest:
            raise ValueError(
                f"{len(ids)} tokens, more than the {longest} the model takes"
            )
        return ids

    def translate(self, lines: Iterable[str], batch_size: int = 64) -> list[str]:
        """Translations of lines, in their order; a blank line gives an empty one.

        batch_size: sentences translated at a time, grouped by length. It decides time
        and memory and, rounding of the last bit apart, nothing else.
        Raises ValueError, naming the line from 1, where one is too long; TypeError
        where lines is one string.
        """
        if isinstance(lines, str):
            raise TypeError("lines is a string: hand over a list of sentences")
        encoded = []
        for number, line in enumerate(lines, start=1):
            try:
                encoded.append(self.encode(line) if line.strip() else [])
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        outputs = [""] * len(encoded)
        order = [i for i, ids in enumerate(encoded) if ids]
        order.sort(key=lambda i: len(encoded[i]), reverse=True)
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            texts = self._translate_batch([encoded[i] for i in group])
            for i, text in zip(group, texts, strict=True):
                outputs[i] = text
        return outputs

    def _translate_batch(self, sources: list[list[int]]) -> list[str]:
        config = self.model.config
        src = pad([ids + [config.eos_id] for ids in sources], config.pad_id)  # (B, S)
        src = src.to(self.model.embedding.weight.device)
        outputs = greedy_search(self.model, src, EXTRA_LENGTH)
        # A byte piece can spell a line end: one line in is one line out all the same.
        return [re.sub(r"[\r\n]+", " ", self.tokenizer.decode(ids)) for ids in outputs]

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, tokenizer.model and model.safetensors, the weights last.

        A save that is broken off leaves the model that was there, or a folder that
        does not load.
        """
        config = json.dumps(self.model.config.to_dict(), indent=2) + "\n"
        files = {
            CONFIG: config.encode(),
            TOKENIZER: self.tokenizer.model,
            WEIGHTS: safetensors.torch.save(self.model.state_dict()),
        }
        _write(Path(directory), files)

    @classmethod
    def from_pretrained(
        cls, directory: str | Path, device: torch.device | str | None = None
    ) -> "Translator":
        """Load what `save_pretrained` wrote, in evaluation mode.

        device: where the model runs; the CPU if not given.
        Raises ValueError, naming the file, where one is missing, broken, or does not
        fit the others.
        """
        directory = Path(directory)
        _check_complete(directory)
        model = Transformer(_read_config(directory / CONFIG))
        _read_weights(directory / WEIGHTS, model)
        tokenizer = Tokenizer.load(directory / TOKENIZER)
        try:
            return cls(model.to(device).eval(), tokenizer)
        except ValueError as error:
            raise ValueError(f"{directory}: {error}") from None
