# Written in notebooks/6_1_machine_translation.ipynb; edit it there.
"""A model and its tokenizer as one thing that translates, saves and loads (§6.1)."""

import json
import os
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from .batching import pad
from .decoding import (
    Hypothesis,
    beam_search,
    cross_attention_weights,
    greedy_search,
)
from .model import Transformer, TransformerConfig
from .tokenizer import Tokenizer

__all__ = [
    "Translation",
    "Attention",
    "Translator",
    "average_weights",
    "average_pretrained",
]


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


class Translation(NamedTuple):
    """One translation of a line."""

    text: str
    tokens: list[int]  # without bos and eos
    log_prob: float  # nats, eos included where it ended
    score: float  # log_prob divided by the length penalty
    ended: bool  # False: cut at the longest length allowed


class Attention(NamedTuple):
    """Where each piece of a translation came from, as the model sees it."""

    source: list[str]  # S pieces, eos last
    target: list[str]  # T pieces, eos last
    weights: Tensor  # (H, T, S), a row sums to 1 over the source


_Result = TypeVar("_Result")


class Translator:
    """A `Transformer` with the `Tokenizer` it was trained with: text in, text out.

    others: more models of the same vocabulary; translations are then those of the
    ensemble. Raises ValueError where models and tokenizer do not belong together.
    """

    def __init__(
        self,
        model: Transformer,
        tokenizer: Tokenizer,
        others: Sequence[Transformer] = (),
    ) -> None:
        for one in (model, *others):
            for name in ("vocab_size", "pad_id", "bos_id", "eos_id"):
                ours, theirs = getattr(one.config, name), getattr(tokenizer, name)
                if ours != theirs:
                    raise ValueError(
                        f"{name} is {ours} in the model and {theirs} in the tokenizer"
                    )
        self.model, self.tokenizer, self.others = model, tokenizer, list(others)

    def encode(self, line: str) -> list[int]:
        """The ids of a sentence, without eos.

        Raises ValueError where it is too long for the model to translate whole.
        """
        ids = self.tokenizer.encode(line)
        models = self.model, *self.others
        longest = min(one.config.max_length for one in models) - EXTRA_LENGTH
        if len(ids) > longest:
            raise ValueError(
                f"{len(ids)} tokens, more than the {longest} the model takes"
            )
        return ids

    def translate(
        self,
        lines: Iterable[str],
        batch_size: int = 64,
        beam_size: int = 1,
        alpha: float = 0.6,
    ) -> list[str]:
        """Translations of lines, in their order; a blank line gives an empty one.

        batch_size: sentences translated at a time, grouped by length. It decides time
        and memory and, rounding of the last bit apart, nothing else. beam_size, alpha:
        as `beam_search`; a beam of 1 is greedy search, where alpha means nothing.
        Raises ValueError, naming the line from 1, where one is too long; TypeError
        where lines is one string.
        """
        if beam_size == 1 and not self.others:
            outputs = self._in_batches(lines, batch_size, self._greedy)
            return ["" if ids is None else self._text(ids) for ids in outputs]
        found = self.n_best(lines, 1, batch_size, beam_size, alpha)
        return [best.text for (best,) in found]

    def n_best(
        self,
        lines: Iterable[str],
        n: int = 1,
        batch_size: int = 64,
        beam_size: int = 4,
        alpha: float = 0.6,
        *,
        min_length: int = 0,
        prefixes: Sequence[str] | None = None,
    ) -> list[list[Translation]]:
        """At most n translations of each line with their scores, the best first.

        lines, batch_size: as `translate`. n, beam_size, alpha, min_length: as
        `beam_search`. prefixes: for each line, the text its translations begin with, in
        whole words; the pieces are those the tokenizer has for it. A blank line has one
        translation, which is empty. Two can differ in their pieces and not in the text.
        """
        starts = None
        if prefixes is not None:
            lines = list(lines)
            if len(prefixes) != len(lines):
                raise ValueError(f"{len(prefixes)} prefixes for {len(lines)} lines")
            starts = [self.tokenizer.encode(prefix) for prefix in prefixes]

        def search(src: Tensor, group: list[int]) -> list[list[Hypothesis]]:
            return beam_search(
                [self.model, *self.others],
                src,
                beam_size,
                alpha,
                n,
                extra_length=EXTRA_LENGTH,
                min_length=min_length,
                prefixes=None if starts is None else [starts[i] for i in group],
            )

        nothing = [Translation("", [], 0.0, 0.0, True)]
        return [
            nothing if found is None else [self._translation(one) for one in found]
            for found in self._in_batches(lines, batch_size, search)
        ]

    def attention(self, line: str, tokens: Sequence[int], layer: int = -1) -> Attention:
        """Where the model looked for each piece of a translation of line.

        tokens: of the translation, as in `Translation`. layer: of the decoder.
        """
        eos_id = self.tokenizer.eos_id
        ids, out = [*self.encode(line), eos_id], [*tokens, eos_id]
        src = torch.tensor([ids], device=self.model.embedding.weight.device)
        (weights,) = cross_attention_weights(self.model, src, [tokens], layer)
        piece = self.tokenizer.processor.id_to_piece
        return Attention([piece(i) for i in ids], [piece(i) for i in out], weights)

    def _in_batches(
        self,
        lines: Iterable[str],
        batch_size: int,
        search: Callable[[Tensor, list[int]], list[_Result]],
    ) -> list[_Result | None]:
        """What search finds for each line, in the order of the lines; None: blank.

        search: called with src, (B, S), and the numbers of its lines, from 0.
        """
        if isinstance(lines, str):
            raise TypeError("lines is a string: hand over a list of sentences")
        encoded: list[list[int]] = []
        for number, line in enumerate(lines, start=1):
            try:
                encoded.append(self.encode(line) if line.strip() else [])
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from None
        results: list[_Result | None] = [None] * len(encoded)
        order = [i for i, ids in enumerate(encoded) if ids]
        order.sort(key=lambda i: len(encoded[i]), reverse=True)
        config = self.model.config
        for start in range(0, len(order), batch_size):
            group = order[start : start + batch_size]
            src = pad([[*encoded[i], config.eos_id] for i in group], config.pad_id)
            src = src.to(self.model.embedding.weight.device)  # (B, S)
            for i, result in zip(group, search(src, group), strict=True):
                results[i] = result
        return results

    def _greedy(self, src: Tensor, group: list[int]) -> list[list[int]]:
        return greedy_search(self.model, src, EXTRA_LENGTH)

    def _translation(self, found: Hypothesis) -> Translation:
        return Translation(self._text(found.tokens), *found)

    def _text(self, ids: list[int]) -> str:
        # A byte piece can spell a line end: one line in is one line out all the same.
        return re.sub(r"[\r\n]+", " ", self.tokenizer.decode(ids))

    def save_pretrained(self, directory: str | Path) -> None:
        """Write config.json, tokenizer.model and model.safetensors, the weights last.

        A save that is broken off leaves the model that was there, or a folder that
        does not load. Raises ValueError for an ensemble, which is several models.
        """
        if self.others:
            raise ValueError("an ensemble is several models: save each by itself")
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


def average_weights(states: Iterable[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The mean of several state dicts, entry by entry (§6.1).

    Raises ValueError where there is none, or where two differ in a name, shape or type.
    """
    total: dict[str, Tensor] = {}
    number = 0
    for number, state in enumerate(states, start=1):
        if number == 1:
            first = {name: value.clone() for name, value in state.items()}
            total = {name: value.double() for name, value in first.items()}
            continue
        for name in sorted(first.keys() | state.keys()):
            one, other = (
                (tuple(s[name].shape), s[name].dtype) if name in s else "missing"
                for s in (first, state)
            )
            if one != other:
                raise ValueError(f"{name} is {one} in state 1 and {other} in {number}")
            total[name] += state[name]
    if not number:
        raise ValueError("an average of no states")
    return {name: (total[name] / number).to(first[name].dtype) for name in first}


def average_pretrained(directories: Sequence[str | Path]) -> Translator:
    """One model with the mean weights of several saved ones.

    Raises ValueError, naming the folder, where one is not like the first.
    """
    paths = [Path(directory) for directory in directories]
    for path in paths:
        _check_complete(path)
        if _read_config(path / CONFIG) != _read_config(paths[0] / CONFIG):
            raise ValueError(f"{path} has another {CONFIG} than {paths[0]}")
        if (path / TOKENIZER).read_bytes() != (paths[0] / TOKENIZER).read_bytes():
            raise ValueError(f"{path} has another {TOKENIZER} than {paths[0]}")

    def states() -> Iterator[dict[str, Tensor]]:
        for path in paths:
            yield Translator.from_pretrained(path).model.state_dict()

    mean = average_weights(states())
    translator = Translator.from_pretrained(paths[0])
    translator.model.load_state_dict(mean)
    return translator
