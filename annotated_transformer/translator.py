# Written in notebooks/6_1_machine_translation.ipynb; edit it there.
"""A model and its tokenizer as one thing that translates, saves and loads (§6.1)."""

import json
import math
import os
import random
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .baselines import model_type
from .batching import pad
from .checkpoints import checkpoints, read_state
from .corpora import stream_lines
from .decoding import (
    AttentionMaps,
    Hypothesis,
    attention_maps,
    beam_search,
    evaluating,
    greedy_search,
    log_probability,
    sample,
)
from .model import EncoderDecoder
from .tokenizer import Tokenizer

__all__ = [
    "shipped_models",
    "find_model",
    "Translation",
    "Attention",
    "Translator",
    "average_weights",
    "last_checkpoints",
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


def shipped_models() -> list[str]:
    """The names of the models that ship with the package."""
    folder = Path(str(files("annotated_transformer")), "models")
    return sorted(path.parent.name for path in folder.glob(f"*/{WEIGHTS}"))


def find_model(name: str | Path) -> Path:
    """A folder or a checkpoint: what has this path, or else ships under this name.

    Raises ValueError where there is neither.
    """
    if (path := Path(name)).exists():
        return path
    if str(name) in (known := shipped_models()):
        return Path(str(files("annotated_transformer")), "models", name)
    ships = ", ".join(known) or "none"
    raise ValueError(
        f"{name}: no such folder, and no model that ships with the package ({ships})"
    )


class _Saved(NamedTuple):
    """A model on the disk, its weights not read yet."""

    weights: Path
    kind: type[EncoderDecoder]
    config: Any
    tokenizer: Path
    prefix: str = ""  # of the names that the weights have in their file


def _open_model(name: str | Path) -> _Saved:
    path = find_model(name)
    if path.is_file():
        _, settings = read_state(path)
        kind = model_type(settings)
        known = {field.name for field in fields(kind.config_type)}
        values = {name: settings[name] for name in known & settings.keys()}
        if not (path.with_name(TOKENIZER)).is_file():
            raise ValueError(f"{path} has no {TOKENIZER} beside it")
        config = kind.config_type.from_dict(values)
        return _Saved(path, kind, config, path.with_name(TOKENIZER), "model.")
    for part in (CONFIG, TOKENIZER, WEIGHTS):
        if not (path / part).is_file():
            raise ValueError(
                f"{path} has no {part}: a model is a folder with {CONFIG}, "
                f"{TOKENIZER} and {WEIGHTS}"
            )
    return _Saved(path / WEIGHTS, *_read_config(path / CONFIG), path / TOKENIZER)


def _read_config(path: Path) -> tuple[type[EncoderDecoder], Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(values, dict):
            raise ValueError("not a JSON object")
        kind = model_type(values)
        return kind, kind.config_type.from_dict(values)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {error}") from None


def _read_weights(saved: _Saved, model: EncoderDecoder) -> None:
    """Fill a float32 model from a file in any float type."""
    path, prefix = saved.weights, saved.prefix
    try:
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]
            weights = {name[len(prefix) :]: file.get_tensor(name) for name in names}
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
        if not weights[name].is_floating_point():
            kind = str(weights[name].dtype).removeprefix("torch.")
            raise ValueError(f"{path}: {name} is {kind}, and should be of a float type")
    model.load_state_dict(weights)  # converts


class Translation(NamedTuple):
    """One translation of a line."""

    text: str
    tokens: list[int]  # without bos and eos
    log_prob: float  # nats, eos included where it ended
    score: float  # log_prob divided by the length penalty
    ended: bool  # False: cut at the longest length allowed


class Attention(NamedTuple):
    """Where a model looked when it translated a line."""

    source: list[str]  # S pieces, eos last: what the encoder reads
    read: list[str]  # T pieces, bos first: what the decoder reads
    target: list[str]  # T pieces, eos last: what it chooses, each after reading one
    maps: AttentionMaps  # over these pieces


_Result = TypeVar("_Result")


def in_groups(order: list[int], batch_size: int) -> list[list[int]]:
    """Neighbours together. Raises ValueError for groups of less than one."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}: it must be at least 1")
    return [order[i : i + batch_size] for i in range(0, len(order), batch_size)]


def too_long(ids: list[int], longest: int) -> str:
    """What is said of a sentence above a model's longest."""
    if longest < 1:
        return f"the model's max_length leaves no room for {EXTRA_LENGTH} more tokens"
    return (
        f"{len(ids)} tokens, more than the {longest} the model takes: "
        "give it one sentence a line"
    )


def text_lines(lines: Iterable[str] | Path) -> Iterator[str]:
    """The lines of a list, an iterator, an open file or a path, without line ends."""
    if isinstance(lines, str):
        raise TypeError("lines is a string: hand over a list of sentences")
    if isinstance(lines, Path):
        lines = stream_lines(lines)
    for line in lines:
        yield line.removesuffix("\n").removesuffix("\r")


def _side_by_side(
    work: Callable[[list[int]], list[_Result]], groups: list[list[int]], device: str
) -> list[list[_Result]]:
    """work(group) for each; on a CPU each group has a thread, and cores of its own."""
    n_threads = torch.get_num_threads()
    n_workers = min(n_threads, len(groups)) if device == "cpu" else 1
    if n_workers < 2:
        return [work(group) for group in groups]
    share = {"initializer": torch.set_num_threads, "initargs": [n_threads // n_workers]}
    try:
        with ThreadPoolExecutor(n_workers, **share) as pool:
            return list(pool.map(work, groups))
    finally:
        torch.set_num_threads(n_threads)


def _in_batches(
    translator: "Translator",
    lines: Iterable[str],
    batch_size: int,
    search: Callable[[Tensor, list[int]], list[_Result]],
) -> list[_Result | None]:
    """What search finds for each line, in the order of the lines; None: blank.

    search: called with src, (B, S), and the numbers of its lines, from 0.
    """
    encoded: list[list[int]] = []
    for number, line in enumerate(text_lines(lines), start=1):
        try:
            encoded.append(translator.encode(line) if line.strip() else [])
        except ValueError as error:
            raise ValueError(f"line {number}: {error}") from None
    order = [i for i, ids in enumerate(encoded) if ids]
    order.sort(key=lambda i: len(encoded[i]), reverse=True)
    groups = in_groups(order, batch_size)
    models, special = [translator.model, *translator.others], translator.tokenizer
    device = translator.model.embedding.weight.device

    def of_group(group: list[int]) -> list[_Result]:
        ids = [[*encoded[i], special.eos_id] for i in group]
        return search(pad(ids, special.pad_id).to(device), group)

    with evaluating(models):  # here, since the groups share them
        found = _side_by_side(of_group, groups, device.type)
    results: list[_Result | None] = [None] * len(encoded)
    for group, several in zip(groups, found, strict=True):
        for i, result in zip(group, several, strict=True):
            results[i] = result
    return results


def _with_starts(
    translator: "Translator", lines: Iterable[str], prefixes: Sequence[str] | None
) -> tuple[Iterable[str], list[list[int]] | None]:
    """The lines, and the pieces with which the translation of each begins."""
    if prefixes is None:
        return lines, None
    lines = list(text_lines(lines))
    if len(prefixes) != len(lines):
        raise ValueError(f"{len(prefixes)} prefixes for {len(lines)} lines")
    starts = [translator.tokenizer.encode(prefix) for prefix in prefixes]
    for number, (line, start) in enumerate(zip(lines, starts, strict=True), start=1):
        most = len(translator.tokenizer.encode(line)) + EXTRA_LENGTH
        if len(start) > most and line.strip():
            raise ValueError(
                f"line {number}: a prefix of {len(start)} tokens, and its translation "
                f"has {most} at most"
            )
    return lines, starts


def _translations(
    translator: "Translator", found: list[list[Hypothesis] | None]
) -> list[list[Translation]]:
    """Hypotheses with their text; None, a blank line, has one that is empty."""
    nothing = [Translation("", [], 0.0, 0.0, True)]
    return [
        nothing
        if some is None
        else [Translation(translator.decode(one.tokens), *one) for one in some]
        for some in found
    ]


class Translator:
    """A model with the `Tokenizer` it was trained with: text in, text out.

    others: more models of the same vocabulary; translations are then those of the
    ensemble. Raises ValueError where models and tokenizer do not belong together.
    """

    def __init__(
        self,
        model: EncoderDecoder,
        tokenizer: Tokenizer,
        others: Sequence[EncoderDecoder] = (),
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
            raise ValueError(too_long(ids, longest))
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of ids, on one line: a byte piece can spell a line end."""
        return re.sub(r"[\r\n]+", " ", self.tokenizer.decode(ids))

    def translate(
        self,
        lines: Iterable[str],
        batch_size: int = 64,
        beam_size: int = 1,
        alpha: float = 0.6,
        **conditions,
    ) -> list[str]:
        """Translations of lines, in their order; a blank line gives an empty one.

        lines: strings, from a list, an iterator, an open file; or the path of a file.
        A line end at the end of one is not part of it. batch_size: sentences translated
        at a time, grouped by length; on a CPU, by each of torch's threads. It decides
        time and memory and, rounding of the last bit apart, nothing else. beam_size,
        alpha: as `beam_search`; a beam of 1 is greedy search, where alpha means
        nothing. conditions: min_length, prefixes, as `n_best`.
        Raises ValueError, naming the line from 1, where one is too long; TypeError
        where lines is one string.
        """
        if beam_size == 1 and not self.others and not conditions:

            def search(src: Tensor, group: list[int]) -> list[list[int]]:
                return greedy_search(self.model, src, EXTRA_LENGTH)

            outputs = _in_batches(self, lines, batch_size, search)
            return ["" if ids is None else self.decode(ids) for ids in outputs]
        found = self.n_best(lines, 1, batch_size, beam_size, alpha, **conditions)
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
        lines, starts = _with_starts(self, lines, prefixes)

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

        return _translations(self, _in_batches(self, lines, batch_size, search))

    def sample(
        self,
        lines: Iterable[str],
        n: int = 1,
        temperature: float = 1.0,
        *,
        top_k: int | None = None,
        top_p: float | None = None,
        min_length: int = 0,
        prefixes: Sequence[str] | None = None,
        seed: int = 0,
        first: int = 0,
    ) -> list[list[Translation]]:
        """n translations of each line by lot; options as `draw` and `n_best`.

        seed: with it and its number, from first on, each line has a lot of its own,
        whatever stands on the other lines.
        """
        lines, starts = _with_starts(self, lines, prefixes)
        device = self.model.embedding.weight.device

        def search(src: Tensor, group: list[int]) -> list[list[Hypothesis]]:
            of_line = random.Random(f"{seed} {first + group[0]}").getrandbits(63)
            return sample(
                [self.model, *self.others],
                src,
                n,
                temperature,
                top_k=top_k,
                top_p=top_p,
                generator=torch.Generator(device).manual_seed(of_line),
                extra_length=EXTRA_LENGTH,
                min_length=min_length,
                prefixes=None if starts is None else [starts[i] for i in group],
            )

        return _translations(self, _in_batches(self, lines, 1, search))

    def score(
        self,
        lines: Iterable[str],
        translations: Iterable[str],
        batch_size: int = 64,
    ) -> list[float]:
        """log p, in nats, of a given translation of each line, eos included.

        A blank line has one translation, which is empty: its log p is 0, that of any
        other -inf. Raises ValueError where there are not as many translations as lines,
        and, naming it, at one that is too long.
        """
        models = self.model, *self.others
        outputs, longest = [], min(one.config.max_length for one in models) - 1
        for number, text in enumerate(text_lines(translations), start=1):
            outputs.append(self.tokenizer.encode(text))
            if len(outputs[-1]) > longest:
                raise ValueError(
                    f"translation {number}: {len(outputs[-1])} tokens, more than the "
                    f"{longest} the model takes"
                )
        lines = list(text_lines(lines))
        if len(lines) != len(outputs):
            raise ValueError(f"{len(outputs)} translations for {len(lines)} lines")

        def search(src: Tensor, group: list[int]) -> list[float]:
            given = [outputs[i] for i in group]
            return log_probability([self.model, *self.others], src, given)

        scores = _in_batches(self, lines, batch_size, search)
        blank = [-math.inf if ids else 0.0 for ids in outputs]
        return [b if s is None else s for s, b in zip(scores, blank, strict=True)]

    def attention(
        self, line: str, translation: str | Sequence[int] | None = None
    ) -> Attention:
        """Where the model looked, in all layers and heads, for a translation of line.

        translation: a text, or tokens as in `Translation`; that of greedy search if not
        given. Of an ensemble, the first model is asked. Raises ValueError where one of
        the two is too long.
        """
        tokenizer = self.tokenizer
        ids = [*self.encode(line), tokenizer.eos_id]
        src = torch.tensor([ids], device=self.model.embedding.weight.device)
        if translation is None:
            (translation,) = greedy_search(self.model, src, EXTRA_LENGTH)
        elif isinstance(translation, str):
            translation = tokenizer.encode(translation)
        if len(translation) >= self.model.config.max_length:
            raise ValueError(
                f"a translation of {len(translation)} tokens, more than the "
                f"{self.model.config.max_length - 1} the model takes"
            )
        (maps,) = attention_maps(self.model, src, [translation])
        piece = tokenizer.processor.id_to_piece
        source, chosen = [piece(i) for i in ids], [piece(i) for i in translation]
        bos, eos = piece(tokenizer.bos_id), piece(tokenizer.eos_id)
        return Attention(source, [bos, *chosen], [*chosen, eos], maps)

    def save_pretrained(
        self, directory: str | Path, dtype: torch.dtype | None = None
    ) -> None:
        """Write config.json, tokenizer.model and model.safetensors, the weights last.

        dtype: of the numbers in the file, for instance torch.float16; as they are if
        not given. A save that is broken off leaves the model that was there, or a
        folder that does not load. Raises ValueError for an ensemble, which is several
        models, and where a weight is too large for dtype.
        """
        if self.others:
            raise ValueError("an ensemble is several models: save each by itself")
        state = self.model.state_dict()
        if dtype is not None:
            state = {name: value.to(dtype) for name, value in state.items()}
        for name, value in state.items():
            if dtype is not None and not value.isfinite().all():
                raise ValueError(f"{name} has numbers too large for {dtype}")
        config = json.dumps(self.model.config.to_dict(), indent=2) + "\n"
        files = {
            CONFIG: config.encode(),
            TOKENIZER: self.tokenizer.model,
            WEIGHTS: safetensors.torch.save(state),
        }
        _write(Path(directory), files)

    @classmethod
    def from_pretrained(
        cls, name: str | Path, device: torch.device | str | None = None
    ) -> "Translator":
        """Load a model for translating, in evaluation mode and in float32.

        name: a folder that `save_pretrained` or a training run wrote, a checkpoint of
        such a run, or the name of a model that ships with the package. device: where
        the model runs; the CPU if not given.
        Raises ValueError, naming the file, where one is missing, broken, or does not
        fit the others.
        """
        saved = _open_model(name)
        model = saved.kind(saved.config)
        _read_weights(saved, model)
        tokenizer = Tokenizer.load(saved.tokenizer)
        try:
            return cls(model.to(device).eval(), tokenizer)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None

    @classmethod
    def ensemble(
        cls, names: Sequence[str | Path], device: torch.device | str | None = None
    ) -> "Translator":
        """Several models of one tokenizer, each named as for `from_pretrained`.

        Raises ValueError where there is none and, naming it, where one has another
        tokenizer than the first.
        """
        if not names:
            raise ValueError("an ensemble of no models")
        first, *others = (cls.from_pretrained(name, device) for name in names)
        for name, other in zip(names[1:], others, strict=True):
            if other.tokenizer.model != first.tokenizer.model:
                raise ValueError(f"{name} has another {TOKENIZER} than {names[0]}")
        return cls(first.model, first.tokenizer, [other.model for other in others])


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


def last_checkpoints(run: str | Path, n: int) -> list[Path]:
    """The last n checkpoints of a training run. Raises ValueError if it has fewer."""
    found = checkpoints(Path(run))
    if not 1 <= n <= len(found):
        raise ValueError(f"{run} has {len(found)} checkpoints, and {n} are asked for")
    return found[-n:]


def average_pretrained(names: Sequence[str | Path]) -> Translator:
    """One model with the mean weights of several, each as for `from_pretrained`.

    Raises ValueError, naming it, where one is not like the first.
    """
    several = [_open_model(name) for name in names]
    for name, saved in zip(names, several, strict=True):
        if saved.config != several[0].config:
            raise ValueError(f"{name} has another configuration than {names[0]}")
        if saved.tokenizer.read_bytes() != several[0].tokenizer.read_bytes():
            raise ValueError(f"{name} has another {TOKENIZER} than {names[0]}")

    def states() -> Iterator[dict[str, Tensor]]:
        for name in names:
            yield Translator.from_pretrained(name).model.state_dict()

    mean = average_weights(states())
    translator = Translator.from_pretrained(names[0])
    translator.model.load_state_dict(mean)
    return translator
