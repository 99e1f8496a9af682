# Written in notebooks/appendix_command_line.ipynb; edit it there.
"""The command `annotated-transformer`: train, translate, evaluate (appendix)."""

import argparse
import json
import os
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

import sacrebleu
import sentencepiece
import torch
from tqdm import tqdm

import annotated_transformer

from .batching import Pair, TokenBatches
from .corpora import PUBLIC, decode_lines, load_pairs
from .evaluation import bleu
from .model import Transformer, TransformerConfig
from .tokenizer import Tokenizer
from .training import TrainingConfig, train
from .translator import CONFIG, TOKENIZER, WEIGHTS, Translator

__all__ = ["main", "one_line"]


PROGRAM, VERSION = "annotated-transformer", annotated_transformer.__version__
LOG, RECORD = "training.jsonl", "record.json"
CHUNK = 512  # lines translated, and written, at a time

# What --config stands for where a run does not say otherwise: `tiny` is set for
# 30,000 short pairs on two CPU cores, the others as in the paper (§5).
RUNS = {
    "tiny": {"vocab_size": 4000, "max_tokens": 1500, "epochs": 10, "warmup": 1000},
    "base": {"vocab_size": 37000, "max_tokens": 25000, "epochs": 10, "warmup": 4000},
    "big": {"vocab_size": 37000, "max_tokens": 25000, "epochs": 10, "warmup": 4000},
}


class Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with the arguments, and exits with 2."""

    def error(self, message: str) -> None:
        self.exit(2, f"{PROGRAM}: {message} (see {self.prog} --help)\n")


def positive(text: str) -> int:
    """An argument that is counted from 1."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def preset(text: str) -> str:
    """An argument that names a configuration."""
    if text not in RUNS:
        names = ", ".join(RUNS)
        raise argparse.ArgumentTypeError(f"{text!r} is not one of {names}")
    return text


def device(text: str) -> torch.device:
    """An argument that names a device which is there."""
    try:
        torch.zeros(1, device=text)
        return torch.device(text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here") from None


def add_train(command: argparse.ArgumentParser) -> None:
    """The arguments of `train`."""
    command.set_defaults(run=run_train)
    add_corpus(command, required=True)
    command.add_argument("--out", required=True, metavar="FOLDER", type=Path)
    command.add_argument(
        "--config", type=preset, default="tiny", help="tiny (default), base or big"
    )
    for field in ("vocab_size", "max_tokens", "epochs", "warmup"):
        defaults = ", ".join(f"{config} {RUNS[config][field]}" for config in RUNS)
        flag, text = "--" + field.replace("_", "-"), f"default: {defaults}"
        command.add_argument(flag, type=positive, metavar="N", help=text)
    command.add_argument("--smoothing", type=float, default=0.1, help="default: 0.1")
    command.add_argument("--dropout", type=float, help="default: big 0.3, others 0.1")
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument(
        "--bfloat16", action="store_true", help="matrix products in bfloat16"
    )


def add_corpus(command: argparse.ArgumentParser, **languages) -> None:
    """Where the text is, and in which languages."""
    names = ", ".join(PUBLIC)
    text = f"a public corpus ({names}) or a folder of files SPLIT.LANGUAGE[.gz]"
    command.add_argument("--corpus", required=True, help=text)
    command.add_argument("--source", metavar="LANGUAGE", **languages)
    command.add_argument("--target", metavar="LANGUAGE", **languages)


def add_translate(command: argparse.ArgumentParser) -> None:
    """The arguments of `translate`."""
    command.set_defaults(run=run_translate)
    command.add_argument("--model", required=True, metavar="FOLDER")


def add_evaluate(command: argparse.ArgumentParser) -> None:
    """The arguments of `evaluate`."""
    command.set_defaults(run=run_evaluate)
    command.add_argument("--model", required=True, metavar="FOLDER")
    add_corpus(command, help="default: as the model was trained")
    command.add_argument("--split", required=True, help="for instance test_2016_flickr")


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
        ("evaluate", add_evaluate, "translate a split and print its BLEU"),
    ):
        command = commands.add_parser(name, help=purpose, description=purpose)
        add_arguments(command)
        command.add_argument(
            "--device", type=device, default=present, help="default: a GPU, else cpu"
        )
    return parser


def say(message: str) -> None:
    """A line about the progress, on standard error."""
    print(message, file=sys.stderr, flush=True)


def check_out(out: Path) -> None:
    """Raises ValueError where a run in this folder would overwrite something."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is not a folder")
    for name in (WEIGHTS, CONFIG, TOKENIZER, LOG, RECORD):
        if (out / name).exists():
            raise ValueError(f"{out} already holds {name}: choose another --out")


def prepare_out(out: Path) -> None:
    """Make the folder. Raises OSError where nothing can be written to it."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise OSError(f"cannot write to {out}: {error.strerror}") from None


def make_batches(
    split: str,
    text: tuple[list[str], list[str]],
    tokenizer: Tokenizer,
    longest: int,
    training: TrainingConfig,
) -> TokenBatches:
    """Batches of a split; says how many pairs it leaves out, and why.

    longest: tokens that either side of a pair may have, eos counted.
    Raises ValueError where no pair is left.
    """
    pairs: list[Pair] = []
    empty = too_long = 0
    for source, target in zip(*text, strict=True):
        pair = tokenizer.encode(source), tokenizer.encode(target)
        if not (source.strip() and target.strip()):
            empty += 1
        elif max(map(len, pair)) + 1 > longest:
            too_long += 1
        else:
            pairs.append(pair)
    reasons = [f"{empty} with an empty side"] if empty else []
    if too_long:
        reasons.append(f"{too_long} with a side of more than {longest} tokens")
    left_out = f"{split}: left out {empty + too_long} of {len(text[0])} pairs, "
    left_out += " and ".join(reasons)
    if not pairs:
        raise ValueError(f"{left_out}; none remains")
    if reasons:
        say(left_out)
    special = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
    return TokenBatches(pairs, training.max_tokens, *special, training.seed)


def run_train(arguments: argparse.Namespace) -> None:
    """Learn the pieces, train, and keep the epoch with the best validation BLEU."""
    started = time.perf_counter()
    config, training = settings(arguments)
    check_out(arguments.out)
    languages = arguments.source, arguments.target
    train_text = load_pairs(arguments.corpus, *languages, "train")
    val_text = load_pairs(arguments.corpus, *languages, "val")
    prepare_out(arguments.out)

    tokenizer = Tokenizer.train(train_text[0] + train_text[1], config.vocab_size)
    options = tokenizer, min(config.max_length, training.max_tokens), training
    batches = make_batches("train", train_text, *options)
    validation = make_batches("val", val_text, *options)
    torch.manual_seed(training.seed)
    model = Transformer(config).to(arguments.device)
    translator = Translator(model, tokenizer)
    val_lines = list(checked(translator, val_text[0], f"val.{arguments.source}"))
    say(
        f"{len(batches.pairs)} pairs, {config.vocab_size} pieces, "
        f"{sum(p.numel() for p in model.parameters())} parameters, "
        f"{describe(arguments.device)}"
    )

    def score(model: Transformer) -> dict:
        result = bleu(translator.translate(val_lines), val_text[1])
        return {"bleu": result.value, "signature": result.signature}

    log: list[dict] = []
    for epoch in train(model, batches, validation, training, score):
        log.append(epoch)
        if best_of(log) is epoch:
            translator.save_pretrained(arguments.out)
        seconds = time.perf_counter() - started  # all of it, from raw text on
        write_log(arguments.out, log)
        write_record(arguments, model, len(batches.pairs), training, log, seconds)
        say(describe_epoch(epoch, training.epochs, seconds))
    say(f"kept epoch {best_of(log)['epoch']} in {arguments.out}")


def settings(arguments: argparse.Namespace) -> tuple[TransformerConfig, TrainingConfig]:
    """The shape of the model and how it is trained, both checked."""
    run = {
        field: getattr(arguments, field) or default
        for field, default in RUNS[arguments.config].items()
    }
    make = getattr(TransformerConfig, arguments.config)
    changes = {} if arguments.dropout is None else {"dropout": arguments.dropout}
    config = make(run.pop("vocab_size"), **changes)
    return config, TrainingConfig(
        **run,
        smoothing=arguments.smoothing,
        seed=arguments.seed,
        bfloat16=arguments.bfloat16,
    )


def best_of(log: list[dict]) -> dict:
    """The epoch with the best validation BLEU; of equals, that of the lowest loss."""
    return max(log, key=lambda epoch: (epoch["bleu"], -epoch["validation_loss"]))


def describe(where: torch.device | str) -> str:
    """A device in words."""
    where = torch.device(where)
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


def describe_epoch(epoch: dict, epochs: int, seconds: float) -> str:
    """One line about an epoch; seconds: since the start of the command."""
    return (
        f"epoch {epoch['epoch']}/{epochs}"
        f"  loss {epoch['train_loss']:.3f}"
        f"  validation {epoch['validation_loss']:.3f}"
        f"  BLEU {epoch['bleu']:.2f}"
        f"  {epoch['tokens_per_second']:.0f} tokens/s"
        f"  {seconds / 60:.1f} min"
    )


def write_log(out: Path, log: list[dict]) -> None:
    """training.jsonl: the last epoch's line goes to the end of it."""
    with open(out / LOG, "a", encoding="utf-8") as file:
        print(json.dumps(log[-1]), file=file)


def write_record(
    arguments: argparse.Namespace,
    model: Transformer,
    pairs: int,
    training: TrainingConfig,
    log: list[dict],
    seconds: float,
) -> None:
    """record.json: how this model came to be, and how good it is."""
    tokens = sum(epoch["tokens_per_second"] * epoch["seconds"] for epoch in log)
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
        "versions": {
            "annotated_transformer": VERSION,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sentencepiece": sentencepiece.__version__,
            "sacrebleu": sacrebleu.__version__,
        },
        "seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / sum(epoch["seconds"] for epoch in log)),
        "epochs": len(log),
        "best_epoch": best_of(log)["epoch"],
        "validation_bleu": best_of(log)["bleu"],
        "signature": best_of(log)["signature"],
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (arguments.out / RECORD).write_text(text, encoding="utf-8")


def checked(translator: Translator, lines: Iterable[str], name: str) -> Iterator[str]:
    """The same lines. Raises ValueError, naming it, at one the model cannot take."""
    for number, line in enumerate(lines, start=1):
        try:
            translator.encode(line)
        except ValueError as error:
            raise ValueError(f"{name}, line {number}: {error}") from None
        yield line


def in_chunks(lines: Iterable[str], size: int) -> Iterator[list[str]]:
    """The lines in lists of `size`; where they break off, first those before."""
    chunk: list[str] = []
    try:
        for line in lines:
            chunk.append(line)
            if len(chunk) == size:
                yield chunk
                chunk = []
    except ValueError:
        yield chunk
        raise
    if chunk:
        yield chunk


def translations(
    translator: Translator, lines: Iterable[str], name: str, size: int = CHUNK
) -> Iterator[list[str]]:
    """Translations in the order of the lines, chunk by chunk, with a bar."""
    with tqdm(desc="translating", unit=" lines", disable=None) as bar:
        for chunk in in_chunks(checked(translator, lines, name), size):
            yield translator.translate(chunk)
            bar.update(len(chunk))


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


def run_translate(arguments: argparse.Namespace) -> None:
    """A line out for every line in; at a bad line, those before it and an error."""
    translator = Translator.from_pretrained(arguments.model, arguments.device)
    name = "standard input"
    stdin = binary(sys.stdin, name)
    size = 1 if sys.stdin.isatty() else CHUNK
    for chunk in translations(translator, decode_lines(stdin, name), name, size):
        write(chunk)


def run_evaluate(arguments: argparse.Namespace) -> None:
    """The BLEU of a split, and the signature that says which BLEU."""
    translator = Translator.from_pretrained(arguments.model, arguments.device)
    source, target = trained_languages(arguments)
    lines, references = load_pairs(arguments.corpus, source, target, arguments.split)
    name, outputs = f"{arguments.split}.{source}", []
    for chunk in translations(translator, lines, name):
        outputs += chunk
    score = bleu(outputs, references)
    write([f"BLEU {score.value:.2f}  {score.signature}"])


def trained_languages(arguments: argparse.Namespace) -> tuple[str, str]:
    """Source and target as given, or else as in the record of the training."""
    if arguments.source and arguments.target:
        return arguments.source, arguments.target
    path = Path(arguments.model, RECORD)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        trained = record["source"], record["target"]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} does not say which languages these are: give --source and --target"
        ) from None
    return arguments.source or trained[0], arguments.target or trained[1]


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
        say(f"{PROGRAM}: {one_line(error)}")
        return 1


def one_line(error: Exception) -> str:
    """What went wrong, and with which file."""
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
