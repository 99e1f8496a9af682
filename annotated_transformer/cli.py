# Written in notebooks/appendix_command_line.ipynb; edit it there.
"""The command `annotated-transformer`: train, translate, evaluate … (appendix)."""

import argparse
import contextlib
import hashlib
import itertools
import json
import math
import os
import platform
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, fields
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, BinaryIO

import sacrebleu
import sentencepiece
import torch
from tqdm import tqdm

import annotated_transformer

from .baselines import MODELS
from .batching import TokenBatches
from .checkpoints import METRICS, checkpoints, last_state
from .corpora import (
    PUBLIC,
    Split,
    cache_folder,
    decode_lines,
    find_split,
    load_pairs,
)
from .evaluation import bleu, bleu_interval, chrf, tokenized_bleu
from .grammar import write_corpus
from .interop import to_ctranslate2, to_onnx
from .model import EncoderDecoder
from .token_arrays import TokenArrays, corpus_key, tokenize_once
from .tokenizer import Tokenizer
from .training import (
    TrainingConfig,
    cost,
    process_group,
    processes,
    require_work,
    run_settings,
    shared,
    train,
)
from .translator import (
    CONFIG,
    TOKENIZER,
    WEIGHTS,
    Translation,
    Translator,
    average_pretrained,
    find_model,
    last_checkpoints,
)
from .visualization import AttentionPage

__all__ = ["main", "complain", "one_line"]


PROGRAM, VERSION = "annotated-transformer", annotated_transformer.__version__
RECORD = "record.json"
CHUNK = 512  # lines translated, and written, at a time
ALPHA = 0.6  # of the length penalty (§6.1)

# What --config stands for where a run does not say otherwise: the preset of the model,
# a size of the vocabulary, and any fields of TrainingConfig. `tiny` is set for 30,000
# short pairs on two CPU cores. The others are the paper's recipes for English to German
# (§5, §6.1): the batches of a step share step_tokens, and `keep` is what is averaged.
PAPER = {"vocab_size": 37_000, "step_tokens": 25_000, "epochs": None, "warmup": 4000}
RUNS = {
    "tiny": {
        "model": "tiny",
        "vocab_size": 4000,
        "max_tokens": 1500,
        "epochs": 10,
        "warmup": 1000,
    },
    "paper-base": {**PAPER, "model": "base", "max_steps": 100_000, "keep": 5},
    "paper-big": {**PAPER, "model": "big", "max_steps": 300_000, "keep": 20},
}
LINES = 2_000_000  # at most, that the pieces are learned from
LARGE = 1 << 26  # bytes of a corpus that several processes tokenise
EMBEDDED = {"n_train": 30_000, "n_val": 1000, "n_test": 1000}  # sentences in its splits


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, and exits with 2."""

    def error(self, message: str) -> None:
        self.exit(2, f"{PROGRAM}: {message} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """An argument that is counted from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def above_zero(text: str) -> float:
    """An argument that is a number above 0."""
    try:
        value = amount(text)
    except argparse.ArgumentTypeError:
        value = 0.0
    if not value:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def count(text: str) -> int:
    """An argument that is counted from 0."""
    return 0 if text == "0" else positive(text)


def amount(text: str) -> float:
    """An argument that is a number of at least 0."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of at least 0")
    return value


def preset(text: str) -> str:
    """An argument that names a configuration."""
    if text not in RUNS:
        names = ", ".join(RUNS)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {names}")
    return text


def kind_of_model(text: str) -> str:
    """An argument that names a kind of model."""
    if text not in MODELS:
        names = ", ".join(MODELS)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {names}")
    return text


def device(text: str) -> torch.device:
    """An argument that names a device which is there."""
    try:
        torch.zeros(1, device=text)
        return torch.device(text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here") from None


def usual(field: str, config: str) -> str:
    """What a configuration has for a setting, in words."""
    run = RUNS[config]
    if field == "max_tokens" and "step_tokens" in run:
        return f"{run['step_tokens']} a step"
    if field == "epochs" and run[field] is None:
        return f"{run['max_steps']} steps"
    return str(run[field])


def add_train(command: argparse.ArgumentParser) -> None:
    """The arguments of `train`."""
    command.set_defaults(run=run_train)
    add_corpus(command, required=True)
    command.add_argument("--out", required=True, metavar="FOLDER", type=Path)
    command.add_argument(
        "--model",
        type=kind_of_model,
        default="transformer",
        metavar="KIND",
        help=f"{', '.join(MODELS)} (default: transformer)",
    )
    command.add_argument(
        "--config",
        type=preset,
        default="tiny",
        help="tiny (default), or the paper's recipes: paper-base, paper-big",
    )
    for field in ("vocab_size", "max_tokens", "epochs", "warmup"):
        defaults = ", ".join(f"{config} {usual(field, config)}" for config in RUNS)
        flag, text = "--" + field.replace("_", "-"), f"default: {defaults}"
        command.add_argument(flag, type=positive, metavar="N", help=text)
    text = "default: paper-big 0.3, the others 0.1"
    command.add_argument("--dropout", type=float, help=text)
    for field in SHAPE:
        flag, text = "--" + field.replace("_", "-"), "default: that of --config"
        command.add_argument(flag, type=positive, metavar="N", help=text)
    for field, kind, text in OPTIONS:
        flag = "--" + field.replace("_", "-")
        if kind is bool:
            command.add_argument(flag, action="store_true", default=None, help=text)
        else:
            command.add_argument(flag, type=kind, metavar="N", help=text)
    command.add_argument(
        "--timeout",
        type=above_zero,
        default=30.0,
        metavar="N",
        help="minutes that one of many processes waits for another (default: 30)",
    )


# Of the model, where it is another; no kind of model has them all.
SHAPE = "d_model", "n_layers", "n_heads", "d_ff", "d_hidden", "kernel_size"
OPTIONS = [  # of a training run, for each configuration the same
    ("max_steps", positive, "end after so many steps (then --epochs counts if given)"),
    ("accumulation", positive, "batches in a step (default: one for each process)"),
    ("rate", above_zero, "that multiplies the learning rate (default: 1)"),
    ("smoothing", float, "of the labels (default: 0.1)"),
    ("seed", int, "default: 0"),
    ("bfloat16", bool, "matrix products in bfloat16"),
    ("compile", bool, "let torch.compile fuse what it can"),
    ("validate_every", positive, "steps (default: at the end of each epoch)"),
    ("checkpoint_every", positive, "steps; a checkpoint follows each validation too"),
    ("checkpoint_minutes", above_zero, "since the last checkpoint (default: 10)"),
    ("keep", positive, "last checkpoints that stay (default: 5, paper-big 20)"),
]


def add_corpus(command: argparse.ArgumentParser, **languages) -> None:
    """Where the text is, and in which languages."""
    text = f"embedded, {', '.join(PUBLIC)}, or a folder of files SPLIT.LANGUAGE[.gz]"
    command.add_argument("--corpus", required=True, help=text)
    command.add_argument("--source", metavar="LANGUAGE", **languages)
    command.add_argument("--target", metavar="LANGUAGE", **languages)


def add_models(command: argparse.ArgumentParser) -> None:
    """One model, or several that are asked together."""
    command.add_argument(
        "--model",
        required=True,
        action="append",
        help="a folder, a checkpoint, or the name of a model that ships with the "
        "package; given more than once, the models translate together",
    )


def add_search(command: argparse.ArgumentParser) -> None:
    """How translations are looked for."""
    for flag, kind, default, text in (
        ("--beam", positive, None, "hypotheses kept (default: 1; the paper: 4)"),
        ("--alpha", amount, ALPHA, f"of the length penalty (default: {ALPHA})"),
        ("--min-length", count, 0, "pieces that a translation has at least"),
        ("--batch-size", positive, 64, "sentences at a time (default: 64)"),
    ):
        command.add_argument(flag, type=kind, default=default, metavar="N", help=text)


def add_translate(command: argparse.ArgumentParser) -> None:
    """The arguments of `translate`."""
    command.set_defaults(run=run_translate)
    add_models(command)
    add_search(command)
    for flag, kind, default, text in (
        ("--n-best", positive, None, "so many, each after its line's number and a tab"),
        ("--temperature", above_zero, 1.0, "of --sample (default: 1)"),
        ("--seed", int, 0, "of --sample (default: 0)"),
    ):
        command.add_argument(flag, type=kind, default=default, metavar="N", help=text)
    command.add_argument("--sample", action="store_true", help="draw, do not search")
    command.add_argument(
        "--scores", action="store_true", help="before each translation, and a tab"
    )
    text = "whole words with which every translation begins"
    command.add_argument("--prefix", metavar="TEXT", help=text)
    command.add_argument(
        "--attention", metavar="FILE.html", type=Path, help="a page to explore"
    )


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    command.set_defaults(run=run_evaluate)
    add_models(command)
    add_corpus(command, help="default: as the model was trained")
    command.add_argument("--split", required=True, help="for instance test_2016_flickr")
    add_search(command)


def add_score(command: argparse.ArgumentParser) -> None:
    """The arguments of `score`."""
    command.set_defaults(run=run_score)
    add_models(command)
    command.add_argument(
        "--batch-size", type=positive, default=64, metavar="N", help="default: 64"
    )


def add_average(command: argparse.ArgumentParser) -> None:
    """The arguments of `average`."""
    command.set_defaults(run=run_average)
    command.add_argument(
        "models", nargs="+", metavar="MODEL", help="models, or one training run"
    )
    command.add_argument(
        "--last",
        type=positive,
        metavar="N",
        help="the last N checkpoints of the run, not its model (the paper: 5, big 20)",
    )
    command.add_argument("--out", required=True, metavar="FOLDER", type=Path)


def add_convert(command: argparse.ArgumentParser) -> None:
    """The arguments of `convert`."""
    command.set_defaults(run=run_convert)
    command.add_argument("--model", required=True, help="as for translate")
    command.add_argument("--to", required=True, choices=["ctranslate2", "onnx"])
    command.add_argument("--out", required=True, metavar="FOLDER", type=Path)
    command.add_argument(
        "--quantization",
        choices=["int8", "int16", "float16", "bfloat16"],
        help="how ctranslate2 stores the weights (default: float32)",
    )


def build_parser() -> Parser:
    """The commands and their arguments."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a Transformer on pairs of sentences, and translate with it.",
    )
    parser.add_argument("--version", action="version", version=VERSION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    present = "cuda" if torch.cuda.is_available() else "cpu"
    for name, add_arguments, purpose in (
        ("train", add_train, "train on the split train, validate on val"),
        ("translate", add_translate, "translate standard input, line by line"),
        ("evaluate", add_evaluate, "translate a split and print its BLEU and chrF"),
        ("score", add_score, "log-probabilities of given translations"),
        ("average", add_average, "one model with the mean weights of several"),
        ("convert", add_convert, "a model for another runtime"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose)
        add_arguments(command)
        if name not in ("average", "convert"):
            text = "default: a GPU, else cpu"
            command.add_argument("--device", type=device, default=present, help=text)
    return parser


def say(message: str) -> None:
    """A line about the progress, on standard error, from the first process."""
    if processes()[0] == 0:
        print(message, file=sys.stderr, flush=True)


def unfinished(out: Path, settings: dict) -> tuple[Path | None, int]:
    """The last checkpoint of the run in a folder, and its step; a new one: None, 0.

    Raises ValueError where the run there is finished, has other settings or cannot go
    on, and where a new one would overwrite something.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder")
    if read_record(out).get("finished"):
        raise ValueError(f"{out} already holds a finished run: choose another --out")
    for name in (WEIGHTS, CONFIG, TOKENIZER, *METRICS, RECORD):
        if (out / name).exists() and not checkpoints(out):
            raise ValueError(f"{out} already holds {name}: choose another --out")
    found, progress = last_state(out, settings)
    return found, progress.step


def read_record(out: Path) -> dict:
    """What record.json says; nothing where it is not there or is not whole."""
    try:
        record = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


@contextlib.contextmanager
def written_to(out: Path) -> Iterator[None]:
    """Let an OSError inside name the folder that could not be written to."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"cannot write to {out}: {reason}") from None


def prepare_out(out: Path) -> None:
    """Make the folder, without what was half saved when a run there was killed.

    Raises OSError where nothing can be written to it.
    """
    with written_to(out):
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
        for half in out.glob(".saving-*"):
            shutil.rmtree(half)


def corpus_folder(name: str) -> str:
    """What `load_pairs` is to be given for a corpus; "embedded" is made if need be."""
    if name != "embedded":
        return name
    here = Path(annotated_transformer.__file__)
    sources = [here.with_name(f"{module}.py") for module in ("grammar", "lexicon")]
    digest = hashlib.sha256(b"".join(map(Path.read_bytes, sources))).hexdigest()
    folder = cache_folder() / f"embedded-{digest[:12]}"
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".part-") as scratch:
            write_corpus(Path(scratch, "corpus"), **EMBEDDED)
            try:
                os.replace(Path(scratch, "corpus"), folder)
            except OSError:  # another process was first, with the same sentences
                if not folder.is_dir():
                    raise
    return str(folder)


def make_batches(
    name: str,
    languages: tuple[str, str],
    split: Split,
    tokenizer: Tokenizer,
    longest: int,
    training: TrainingConfig,
) -> TokenBatches:
    """Batches of a split, tokenised once and for all; says which pairs it leaves out.

    longest: tokens that either side of a pair may have, eos counted.
    Raises ValueError where no pair is left.
    """

    def tokenize() -> Path:
        folder = cache_folder() / "tokens"
        key = " ".join((name, *languages, corpus_key(split.files)))
        large = sum(path.stat().st_size for path in split.files) > LARGE
        workers = (os.cpu_count() or 1) if large else 1
        lines = split.stream()
        return tokenize_once(lines, tokenizer, longest, folder, key, workers).folder

    try:
        pairs = TokenArrays(shared(tokenize))
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    left_out = pairs.header["left_out"]
    if any(left_out.values()):
        say(
            f"{name}: left out {left_out['empty']} pairs with an empty side, "
            f"{left_out['too_long']} with one of more than {longest} tokens"
        )
    special = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
    return TokenBatches(pairs, training.max_tokens, *special, training.seed)


def run_train(arguments: argparse.Namespace) -> None:
    """Train in this process, or in all those that `torchrun` started."""
    if arguments.device.type == "cuda" and "LOCAL_RANK" in os.environ:
        arguments.device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    with process_group(arguments.device, arguments.timeout):
        learn(arguments, *settings(arguments))


def learn(arguments: argparse.Namespace, config: Any, training: TrainingConfig) -> None:
    """Learn the pieces, train, and keep the model with the best validation BLEU."""
    started, out = time.perf_counter(), arguments.out
    languages = arguments.source, arguments.target
    about = dict(zip(("source", "target"), languages, strict=True))
    about["corpus"] = arguments.corpus
    same = about | run_settings(config, training)
    found, _ = shared(lambda: unfinished(out, same))
    corpus = shared(lambda: ready(arguments.corpus, *languages))
    splits = {name: find_split(corpus, *languages, name) for name in ("train", "val")}
    val_text = load_pairs(corpus, *languages, "val")
    shared(lambda: prepare_out(out))
    tokenizer = Tokenizer(shared(lambda: pieces(found, splits["train"], config)))

    longest = min(config.max_length, training.max_tokens)
    batches, validation = (
        make_batches(name, languages, split, tokenizer, longest, training)
        for name, split in splits.items()
    )
    torch.manual_seed(training.seed)
    model = MODELS[arguments.model](config).to(arguments.device)
    translator = Translator(model, tokenizer)
    val_lines = list(checked(translator, val_text[0], f"val.{arguments.source}"))
    require_work(model, batches, training)
    same |= run_settings(config, training, batches)
    found, done = shared(lambda: unfinished(out, same))
    shared(lambda: keep_pieces(out, tokenizer))
    announce(model, batches, training, arguments.device, found, done)
    started -= read_record(out).get("seconds", 0.0) if found else 0.0

    def score(model: EncoderDecoder) -> dict:
        result = bleu(translator.translate(val_lines), val_text[1])
        return {"bleu": result.value, "signature": result.signature}

    def record(finished: bool) -> None:
        seconds = time.perf_counter() - started  # all of it, from raw text on
        write_record(arguments, model, len(batches.pairs), training, seconds, finished)

    with Signals() as signals:
        data = batches, validation, training, score, out, about
        for result in train(model, *data, stop=signals.came):
            if result["best"]:
                with written_to(out):
                    translator.save_pretrained(out)
            record(finished=False)
            say(describe_validation(result, training.steps(len(batches))))
    if processes()[0] == 0:
        record(finished=True)
        say(f"kept step {best_of(read_log(out))['step']} in {out}")
        if "step_tokens" in RUNS[arguments.config]:
            say(f"scored as in §6.1: {as_in_the_paper(arguments, training.keep)}")


def ready(corpus: str, source: str, target: str) -> str:
    """The corpus as `load_pairs` takes it, with the files of the training there."""
    folder = corpus_folder(corpus)
    for split in ("train", "val"):
        find_split(folder, source, target, split)
    return folder


def pieces(found: Path | None, split: Split, config: Any) -> bytes:
    """The model of the tokenizer: that of the run which goes on, or a new one."""
    if found:
        return Tokenizer.load(found.with_name(TOKENIZER)).model
    sides = ((pair[side] for pair in split.stream()) for side in (0, 1))
    lines = itertools.chain.from_iterable(sides)
    return Tokenizer.train(lines, config.vocab_size, max_lines=LINES).model


def keep_pieces(out: Path, tokenizer: Tokenizer) -> None:
    """Write the tokenizer beside the checkpoints, if it is not there already."""
    path = out / "checkpoints" / TOKENIZER
    with written_to(path.parent):
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_bytes() != tokenizer.model:
            tokenizer.save(path)


def announce(
    model: EncoderDecoder,
    batches: TokenBatches,
    training: TrainingConfig,
    where: torch.device,
    found: Path | None,
    done: int,
) -> None:
    """Say what the run is, what it costs, and where it goes on if it does.

    found, done: the checkpoint to go on from, and its step.
    """
    expected = cost(model, batches, training)
    seconds = expected.seconds * (1 - done / expected.steps)
    _, world = processes()
    say(
        f"{len(batches.pairs)} pairs, {model.config.vocab_size} pieces, "
        f"{expected.parameters} parameters, {describe(where)}"
        + (f", {world} processes" if world > 1 else "")
    )
    say(
        f"{expected.steps} steps, {expected.tokens:.3g} target tokens, "
        f"{expected.operations:.2g} operations: about {duration(seconds)}, as three "
        "batches went (validation comes on top)"
    )
    if found:
        say(f"going on after step {done}, from {found}")


def duration(seconds: float) -> str:
    """A time in words: 50 s, 12 min, 3.5 h, 2.1 days."""
    for size, unit in ((1, "s"), (60, "min"), (3600, "h"), (86400, "days")):
        amount, shown = seconds / size, unit
        if amount < {"s": 90, "min": 90, "h": 36}.get(unit, math.inf):
            break
    return f"{amount:.1f} {shown}" if amount < 10 else f"{amount:.0f} {shown}"


class Signals:
    """Inside `with`: the first SIGINT or SIGTERM is noted, a second one interrupts."""

    def __enter__(self) -> "Signals":
        self.seen: int | None = None
        self.former = {}
        alone = processes()[1] == 1
        if alone and threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self.former[number] = signal.signal(number, self.note)
        return self

    def note(self, number: int, _) -> None:
        if self.seen is not None:
            raise KeyboardInterrupt
        self.seen = number
        # A line may be on its way through sys.stderr, which cannot be entered twice.
        with contextlib.suppress(OSError):
            os.write(2, b"stopping after this step; once more to stop at once\n")

    def came(self) -> bool:
        """Whether a signal came."""
        return self.seen is not None

    def __exit__(self, error: type | None, *_) -> None:
        for number, handler in self.former.items():
            signal.signal(number, handler)
        if self.seen is not None and error is None:
            raise SystemExit(128 + self.seen)


def settings(arguments: argparse.Namespace) -> tuple[Any, TrainingConfig]:
    """The shape of the model and how it is trained, both checked."""
    run = {"accumulation": processes()[1], **RUNS[arguments.config]}
    size, step_tokens = run.pop("model"), run.pop("step_tokens", None)
    for name in ("vocab_size", *(field.name for field in fields(TrainingConfig))):
        if getattr(arguments, name, None) is not None:
            run[name] = getattr(arguments, name)
    if arguments.max_steps is not None and arguments.epochs is None:
        run["epochs"] = None
    if "max_tokens" not in run:
        run["max_tokens"] = max(step_tokens // run["accumulation"], 1)
    shape = MODELS[arguments.model].config_type
    given = {name: getattr(arguments, name) for name in ("dropout", *SHAPE)}
    changes = {name: value for name, value in given.items() if value is not None}
    for name in sorted(changes.keys() - {field.name for field in fields(shape)}):
        flag = "--" + name.replace("_", "-")
        raise ValueError(f"{flag} is not of a model of kind {arguments.model}")
    if not hasattr(shape, size):
        raise ValueError(f"{arguments.model} has no --config {arguments.config}")
    make = getattr(shape, size)
    return make(run.pop("vocab_size"), **changes), TrainingConfig(**run)


def as_in_the_paper(arguments: argparse.Namespace, averaged: int) -> str:
    """The commands that average a run's last checkpoints and score the mean (§6.1)."""
    run, mean = str(arguments.out), f"{arguments.out}-mean"
    first = ["average", run, "--last", str(averaged), "--out", mean]
    text = ["--corpus", arguments.corpus, "--split", "test"]
    text += ["--source", arguments.source, "--target", arguments.target]
    second = ["evaluate", "--model", mean, *text, "--beam", "4", "--alpha", "0.6"]
    return " && ".join(shlex.join([PROGRAM, *words]) for words in (first, second))


def best_of(log: list[dict]) -> dict:
    """The validation with the best BLEU; of equals, that of the lowest loss."""
    return max(log, key=lambda result: (result["bleu"], -result["validation_loss"]))


def describe(where: torch.device | str) -> str:
    """A device in words."""
    where = torch.device(where)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


def describe_validation(result: dict, steps: int) -> str:
    """One line about a validation; steps: of the whole run."""
    return (
        f"epoch {result['epoch']}"
        f"  step {result['step']}/{steps}"
        f"  loss {result['train_loss']:.3f}"
        f"  validation {result['validation_loss']:.3f}"
        f"  BLEU {result['bleu']:.2f}"
        f"  {result['tokens_per_second']:.0f} tokens/s"
    )


def read_log(out: Path) -> list[dict]:
    """The lines of training.jsonl."""
    lines = (out / "training.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


def write_record(
    arguments: argparse.Namespace,
    model: EncoderDecoder,
    pairs: int,
    training: TrainingConfig,
    seconds: float,
    finished: bool,
) -> None:
    """record.json: how this model came to be, and how good it is."""
    log = read_log(arguments.out)
    trained = sum(result["seconds"] for result in log)
    tokens = sum(result["tokens_per_second"] * result["seconds"] for result in log)
    record = {
        "command": shlex.join([PROGRAM, *arguments.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "corpus": arguments.corpus,
        "source": arguments.source,
        "target": arguments.target,
        "pairs": pairs,
        "config": model.config.to_dict(),
        "training": asdict(training),
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": describe(arguments.device),
        "threads": torch.get_num_threads(),
        "processes": processes()[1],
        "versions": {
            "annotated_transformer": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sentencepiece": sentencepiece.__version__,
            "sacrebleu": sacrebleu.__version__,
        },
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / trained),
        "epochs": log[-1]["epoch"],
        "steps": log[-1]["step"],
        "best_epoch": best_of(log)["epoch"],
        "best_step": best_of(log)["step"],
        "validation_bleu": best_of(log)["bleu"],
        "signature": best_of(log)["signature"],
        "finished": finished,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    scratch = arguments.out / f".{RECORD}"  # a record is whole or not there
    with written_to(arguments.out):
        scratch.write_text(text, encoding="utf-8")
        os.replace(scratch, arguments.out / RECORD)


class Arriving:
    """The lines of a stream as they come; waiting: lines that are there already."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.waiting = stream, 0

    def __iter__(self) -> Iterator[bytes]:
        rest = b""
        while data := self.stream.read1(1 << 16):
            *lines, rest = (rest + data).split(b"\n")
            self.waiting = len(lines)
            for line in lines:
                self.waiting -= 1
                yield line
        if rest:
            yield rest


def checked(translator: Translator, lines: Iterable[str], name: str) -> Iterator[str]:
    """The same lines. Raises ValueError, naming it, at one the model cannot take."""
    for number, line in enumerate(lines, start=1):
        try:
            translator.encode(line)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
        yield line


def in_chunks(
    lines: Iterable, size: int, at_once: Callable[[], bool] = lambda: False
) -> Iterator[list]:
    """The lines in lists of `size`, or of fewer where one is to be handed on at once.

    Where they break off, first those before.
    """
    chunk: list = []
    try:
        for line in lines:
            chunk.append(line)
            if len(chunk) == size or at_once():
                yield chunk
                chunk = []
    except ValueError:
        if chunk:
            yield chunk
        raise
    if chunk:
        yield chunk


def read_chunks(check: Callable[[Iterable[str], str], Iterator]) -> Iterator[list]:
    """Standard input as `check` lets it through, chunk by chunk, with a bar."""
    name = "standard input"
    stream = Arriving(binary(sys.stdin, name))
    lines = check(decode_lines(stream, name), name)
    with bar() as progress:
        for chunk in in_chunks(lines, CHUNK, lambda: not stream.waiting):
            yield chunk
            progress.update(len(chunk))


def bar() -> tqdm:
    """Lines so far, on standard error, if that is a terminal."""
    return tqdm(desc="translating", unit=" lines", disable=None)


def binary(stream, name: str) -> BinaryIO:
    """The bytes beneath a standard stream. Raises OSError where it is closed."""
    if stream is None:
        raise OSError(f"{name} is closed")
    return stream.buffer


def write(lines: Iterable[str]) -> None:
    """Lines to standard output, at once."""
    output = binary(sys.stdout, "standard output")
    try:
        output.write("".join(f"{line}\n" for line in lines).encode())
        output.flush()
    except BrokenPipeError:
        discard_output()
        raise
    except OSError as error:
        discard_output()
        raise OSError(f"standard output: {error.strerror}") from None


def discard_output() -> None:
    """Let what Python could not write disappear, instead of failing again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def load(arguments: argparse.Namespace) -> Translator:
    """The model, or the ensemble."""
    return Translator.ensemble(arguments.model, arguments.device)


def options(arguments: argparse.Namespace, n_lines: int) -> dict:
    """What every search is given, for a chunk of so many lines."""
    beam = arguments.beam or getattr(arguments, "n_best", None) or 1
    given: dict = {"batch_size": arguments.batch_size, "beam_size": beam}
    given["alpha"] = arguments.alpha
    if arguments.min_length:
        given["min_length"] = arguments.min_length
    if getattr(arguments, "prefix", None):
        given["prefixes"] = [arguments.prefix] * n_lines
    return given


def find(
    translator: Translator, lines: list[str], arguments: argparse.Namespace, first: int
) -> list[list[Translation]]:
    """By search or by lot, for each line; first: the number of the first, from 0."""
    given, n = options(arguments, len(lines)), arguments.n_best or 1
    if not arguments.sample:
        return translator.n_best(lines, n, **given)
    for name in ("batch_size", "beam_size", "alpha"):
        del given[name]
    given |= {"temperature": arguments.temperature, "seed": arguments.seed}
    return translator.sample(lines, n, **given, first=first)


def rows(
    found: list[list[Translation]], arguments: argparse.Namespace, first: int
) -> Iterator[str]:
    """What is written about each translation."""
    for number, several in enumerate(found, start=first + 1):
        for one in several:
            score = [f"{one.score:.4f}"] if arguments.scores else []
            before = [str(number)] if arguments.n_best else []
            yield "\t".join([*before, *score, one.text])


def check_search(arguments: argparse.Namespace) -> None:
    """Options that go together; a beam that is not given is as wide as --n-best."""
    n_best, beam = arguments.n_best, arguments.beam
    if n_best and beam and beam < n_best and not arguments.sample:
        raise ValueError(f"--n-best {n_best} is more than --beam {beam}")
    for name, usual in {"beam": None, "alpha": ALPHA, "batch_size": 64}.items():
        if arguments.sample and getattr(arguments, name) != usual:
            flag = name.replace("_", "-")
            raise ValueError(f"--{flag} is of a search, and --sample does not search")
    for name, usual in {"temperature": 1.0, "seed": 0}.items():
        if not arguments.sample and getattr(arguments, name) != usual:
            raise ValueError(f"--{name} is of --sample")


def run_translate(arguments: argparse.Namespace) -> None:
    """A line out for every line in; at a bad line, those before it and an error."""
    check_search(arguments)
    translator, done = load(arguments), 0
    plain = not (arguments.n_best or arguments.sample or arguments.scores)
    page = AttentionPage(arguments.attention) if arguments.attention else nullcontext()
    with page:
        for chunk in read_chunks(lambda *lines: checked(translator, *lines)):
            if plain and not arguments.attention:
                write(translator.translate(chunk, **options(arguments, len(chunk))))
                continue
            found = find(translator, chunk, arguments, done)
            write(rows(found, arguments, done))
            done += len(chunk)
            if arguments.attention:
                for line, (best, *_) in zip(chunk, found, strict=True):
                    if line.strip():
                        page.add(translator.attention(line, best.tokens))


def run_evaluate(arguments: argparse.Namespace) -> None:
    """The scores of a split, each with the signature that says which score it is."""
    translator = load(arguments)
    source, target = trained_languages(arguments)
    corpus = corpus_folder(arguments.corpus)
    lines, references = load_pairs(corpus, source, target, arguments.split)
    outputs: list[str] = []
    with bar() as progress:
        checked_lines = checked(translator, lines, f"{arguments.split}.{source}")
        for chunk in in_chunks(checked_lines, CHUNK):
            outputs += translator.translate(chunk, **options(arguments, len(chunk)))
            progress.update(len(chunk))
    for name, metric in (
        ("BLEU", bleu),
        ("chrF", chrf),
        ("tokenised BLEU", tokenized_bleu),
    ):
        score = metric(outputs, references)
        write([f"{name} {score.value:.2f}  {score.signature}"])
    between = bleu_interval(outputs, references)
    low, high = between.mean - between.margin, between.mean + between.margin
    write([f"BLEU, 95 % {low:.2f} to {high:.2f}  {between.signature}"])


def trained_languages(arguments: argparse.Namespace) -> tuple[str, str]:
    """Source and target as given, or else as in the record of the training."""
    if arguments.source and arguments.target:
        return arguments.source, arguments.target
    path = find_model(arguments.model[0]) / RECORD
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        trained = record["source"], record["target"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} does not say which languages these are: give --source and --target"
        ) from None
    return arguments.source or trained[0], arguments.target or trained[1]


def pairs_of(
    translator: Translator, lines: Iterable[str], name: str
) -> Iterator[tuple[str, str]]:
    """The two sides of each line. Raises ValueError, naming it, where there are not."""
    for number, line in enumerate(lines, start=1):
        sides = line.split("\t")
        if len(sides) != 2:
            raise ValueError(
                f"{name}, line {number}: {len(sides) - 1} tabs, and there must be one, "
                "between a sentence and its translation"
            )
        for _ in checked(translator, sides, f"{name}, line {number}, side"):
            pass
        yield sides[0], sides[1]


def run_score(arguments: argparse.Namespace) -> None:
    """log p of a translation, for every line in."""
    translator = load(arguments)
    for chunk in read_chunks(lambda *lines: pairs_of(translator, *lines)):
        lines, translations = zip(*chunk, strict=True)
        scores = translator.score(lines, translations, arguments.batch_size)
        write(f"{score:.4f}" for score in scores)


def run_average(arguments: argparse.Namespace) -> None:
    """Write the mean of the weights of several models, or of a run's checkpoints."""
    out, several = arguments.out, list(arguments.models)
    if arguments.last:
        if len(several) > 1:
            raise ValueError(f"--last is for one run, and here are {len(several)}")
        several = [str(path) for path in last_checkpoints(several[0], arguments.last)]
    for name in (WEIGHTS, CONFIG, TOKENIZER, RECORD):
        if (out / name).exists():
            raise ValueError(f"{out} already holds {name}: choose another --out")
    translator = average_pretrained(several)
    prepare_out(out)
    translator.save_pretrained(out)
    trained = read_record(find_model(arguments.models[0]))
    kept = [key for key in ("corpus", "source", "target") if key in trained]
    record = {
        "command": shlex.join([PROGRAM, *arguments.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        **{key: trained[key] for key in kept},
        "averaged": several,
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (out / RECORD).write_text(text, encoding="utf-8")
    say(f"the mean of {len(several)} models is in {out}")


def run_convert(arguments: argparse.Namespace) -> None:
    """Write a model as another runtime reads it."""
    out = arguments.out
    if arguments.quantization and arguments.to != "ctranslate2":
        raise ValueError("--quantization is for ctranslate2 alone")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out} is not empty: choose another --out")
    translator = Translator.from_pretrained(arguments.model)
    if arguments.to == "onnx":
        to_onnx(translator, out)
    else:
        to_ctranslate2(translator, out, arguments.quantization)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns its exit code.

    argv: the arguments; those of the process if not given. 0: done. 1: an error, named
    in one line on standard error. 2: wrong arguments. 130: interrupted. 141: nobody
    reads the output any more.
    """
    argv = sys.argv[1:] if argv is None else list(argv)
    try:
        arguments = build_parser().parse_args(argv)
        arguments.argv = argv
        arguments.run(arguments)
        return 0
    except SystemExit as end:
        return end.code or 0
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        return 141
    except (OSError, ValueError, RuntimeError) as error:
        if sys.flags.dev_mode:
            raise
        complain(error)
        return 1


def complain(error: Exception) -> None:
    """One line. Of many processes those after the first speak for themselves alone.

    What is wrong with the settings or the data, all of them find, and the first says.
    """
    rank = int(os.environ.get("RANK", 0))
    if rank == 0:
        print(f"{PROGRAM}: {one_line(error)}", file=sys.stderr, flush=True)
    elif not isinstance(error, ValueError):
        message = f"{PROGRAM}, process {rank}: {one_line(error)}"
        print(message, file=sys.stderr, flush=True)


def one_line(error: Exception) -> str:
    """What went wrong, and with which file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
