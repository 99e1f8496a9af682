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

import sacrebleu
import sentencepiece
import torch
from tqdm import tqdm

from . import __version__
from .batching import Pair, TokenBatches
from .corpora import decode_lines, load_pairs
from .evaluation import bleu
from .model import Transformer, TransformerConfig
from .tokenizer import Tokenizer
from .training import TrainingConfig, train
from .translator import CONFIG, TOKENIZER, WEIGHTS, Translator

__all__ = ["main"]

PROGRAM = "annotated-transformer"
LOG, RECORD = "training.jsonl", "record.json"
CHUNK = 512  # lines translated, and written, at a time
# What --config stands for where a run does not say otherwise: `tiny` is set for
# 30,000 short pairs on two CPU cores, the others as in the paper (§5).
RUNS = {
    "tiny": {"vocab_size": 4000, "max_tokens": 2500, "epochs": 15, "warmup": 1000},
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


def device(text: str) -> torch.device:
    """An argument that names a device which is there."""
    try:
        torch.zeros(1, device=text)
        return torch.device(text)
    except (RuntimeError, AssertionError):
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here") from None


def build_parser() -> Parser:
    """The commands and their arguments."""
    parser = Parser(
        prog=PROGRAM,
        description="Train a Transformer on pairs of sentences, and translate with it.",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    auto = "cuda" if torch.cuda.is_available() else "cpu"

    def add(name: str, function, purpose: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=purpose, description=purpose)
        command.set_defaults(run=function)
        command.add_argument(
            "--device", type=device, default=auto, help="default: a GPU if there is one"
        )
        return command

    def add_corpus(command: argparse.ArgumentParser, languages: dict) -> None:
        command.add_argument(
            "--corpus",
            required=True,
            help="a public corpus (multi30k) or a folder of files SPLIT.LANGUAGE[.gz]",
        )
        command.add_argument("--source", metavar="LANGUAGE", **languages)
        command.add_argument("--target", metavar="LANGUAGE", **languages)

    def preset(field: str) -> str:
        return "default: " + ", ".join(f"{c} {RUNS[c][field]}" for c in RUNS)

    command = add("train", run_train, "Train on the split train, validate on val.")
    add_corpus(command, {"required": True})
    command.add_argument("--config", choices=RUNS, default="tiny", help="default: tiny")
    command.add_argument("--out", required=True, metavar="FOLDER", type=Path)
    for field in ("vocab_size", "max_tokens", "epochs", "warmup"):
        flag = "--" + field.replace("_", "-")
        command.add_argument(flag, type=positive, metavar="N", help=preset(field))
    command.add_argument("--smoothing", type=float, default=0.1, help="default: 0.1")
    command.add_argument("--dropout", type=float, help="default: big 0.3, others 0.1")
    command.add_argument("--seed", type=int, default=0, help="default: 0")
    command.add_argument(
        "--bfloat16", action="store_true", help="matrix products in bfloat16"
    )

    command = add(
        "translate",
        run_translate,
        "Translate standard input, line by line, to standard output.",
    )
    command.add_argument("--model", required=True, metavar="FOLDER")

    command = add("evaluate", run_evaluate, "Translate a split and print its BLEU.")
    command.add_argument("--model", required=True, metavar="FOLDER")
    add_corpus(command, {"help": "default: as the model was trained"})
    command.add_argument("--split", required=True, help="for instance test_2016_flickr")
    return parser


def say(message: str) -> None:
    """A line about the progress, on standard error."""
    print(message, file=sys.stderr, flush=True)


def check_out(out: Path) -> None:
    """Raises ValueError where a run in this folder would overwrite something."""
    for name in (WEIGHTS, CONFIG, TOKENIZER, LOG, RECORD):
        if (out / name).exists():
            raise ValueError(f"{out} already holds {name}: choose another --out")


def prepare_out(out: Path) -> None:
    """Make the folder and prove, before minutes of work, that it can be written to."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def encode_pairs(
    tokenizer: Tokenizer, sources: list[str], targets: list[str], longest: int
) -> tuple[list[Pair], int, int]:
    """Pairs of ids, the number of pairs with an empty side, and of those too long.

    longest: tokens that either side of a pair may have, eos counted.
    """
    pairs, empty, too_long = [], 0, 0
    for pair in zip(
        map(tokenizer.encode, sources), map(tokenizer.encode, targets), strict=True
    ):
        if not all(pair):
            empty += 1
        elif max(map(len, pair)) + 1 > longest:
            too_long += 1
        else:
            pairs.append(pair)
    return pairs, empty, too_long


def report_left_out(split: str, kept: int, empty: int, long: int, longest: int) -> None:
    """One message where pairs were left out. Raises ValueError where none is left."""
    total, reasons = kept + empty + long, []
    if empty:
        reasons.append(f"{empty} with an empty side")
    if long:
        reasons.append(f"{long} with a side of more than {longest} tokens")
    left_out = f"{split}: left out {empty + long} of {total} pairs, "
    left_out += " and ".join(reasons)
    if not kept:
        raise ValueError(f"{left_out}: none is left")
    if reasons:
        say(left_out)


def describe_machine(where: torch.device) -> str:
    """The device in words."""
    if where.type == "cuda":
        return torch.cuda.get_device_name(where)
    return f"{os.cpu_count()}-core {platform.machine()} CPU"


def run_train(arguments: argparse.Namespace) -> None:
    """Learn the pieces, train, and keep the epoch with the best validation BLEU."""
    started = time.perf_counter()
    out, where = arguments.out, torch.device(arguments.device)
    run = {
        field: getattr(arguments, field) or default
        for field, default in RUNS[arguments.config].items()
    }
    vocab_size = run.pop("vocab_size")
    changes = {} if arguments.dropout is None else {"dropout": arguments.dropout}
    config = getattr(TransformerConfig, arguments.config)(vocab_size, **changes)
    training = TrainingConfig(
        **run,
        smoothing=arguments.smoothing,
        seed=arguments.seed,
        bfloat16=arguments.bfloat16,
    )
    check_out(out)

    def load(split: str) -> tuple[list[str], list[str]]:
        return load_pairs(arguments.corpus, arguments.source, arguments.target, split)

    train_text, val_text = load("train"), load("val")
    prepare_out(out)
    tokenizer = Tokenizer.train(train_text[0] + train_text[1], vocab_size)
    longest = min(config.max_length, training.max_tokens)

    def batches(split: str, text: tuple[list[str], list[str]]) -> TokenBatches:
        pairs, empty, too_long = encode_pairs(tokenizer, *text, longest)
        report_left_out(split, len(pairs), empty, too_long, longest)
        special = tokenizer.pad_id, tokenizer.bos_id, tokenizer.eos_id
        return TokenBatches(pairs, training.max_tokens, *special, training.seed)

    train_batches, val_batches = batches("train", train_text), batches("val", val_text)
    torch.manual_seed(training.seed)
    model = Transformer(config).to(where)
    translator = Translator(model, tokenizer)
    val_lines = list(checked(translator, val_text[0], "val"))
    parameters = sum(p.numel() for p in model.parameters())
    say(
        f"{len(train_batches.pairs)} pairs, {vocab_size} pieces, "
        f"{parameters} parameters, {describe_machine(where)}"
    )

    def score(model: Transformer) -> dict:
        result = bleu(translator.translate(val_lines), val_text[1])
        return {"bleu": result.value, "signature": result.signature}

    best, tokens, seconds = {"bleu": -1.0}, 0.0, 0.0
    for epoch in train(model, train_batches, val_batches, training, score):
        with open(out / LOG, "a", encoding="utf-8") as log:
            print(json.dumps(epoch), file=log)
        if epoch["bleu"] > best["bleu"]:
            best = epoch
            translator.save_pretrained(out)
        seconds += epoch["seconds"]
        tokens += epoch["tokens_per_second"] * epoch["seconds"]
        say(
            f"epoch {epoch['epoch']}/{training.epochs}  "
            f"loss {epoch['train_loss']:.3f}  "
            f"validation {epoch['validation_loss']:.3f}  "
            f"BLEU {epoch['bleu']:.2f}  "
            f"{epoch['tokens_per_second']:.0f} tokens/s  "
            f"{(time.perf_counter() - started) / 60:.1f} min"
        )
    record = {
        "command": shlex.join([PROGRAM, *arguments.argv]),
        "date": datetime.now(timezone.utc).date().isoformat(),
        "corpus": arguments.corpus,
        "source": arguments.source,
        "target": arguments.target,
        "pairs": len(train_batches.pairs),
        "config": config.to_dict(),
        "training": asdict(training),
        "parameters": parameters,
        "device": describe_machine(where),
        "threads": torch.get_num_threads(),
        "versions": {
            "annotated_transformer": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "sentencepiece": sentencepiece.__version__,
            "sacrebleu": sacrebleu.__version__,
        },
        "seconds": round(time.perf_counter() - started, 1),  # all of it, from raw text
        "tokens_per_second": round(tokens / seconds),  # target tokens, in updates alone
        "best_epoch": best["epoch"],
        "validation_bleu": best["bleu"],
        "signature": best["signature"],
    }
    text = json.dumps(record, indent=2, ensure_ascii=False) + "\n"
    (out / RECORD).write_text(text, encoding="utf-8")
    say(f"kept epoch {best['epoch']} in {out}: validation BLEU {best['bleu']:.2f}")


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


def run_translate(arguments: argparse.Namespace) -> None:
    """A line out for every line in; at a bad line, those before it and an error."""
    translator = Translator.from_pretrained(arguments.model, arguments.device)
    lines = decode_lines(sys.stdin.buffer, "standard input")
    size = 1 if sys.stdin.isatty() else CHUNK  # who types waits for each line
    for chunk in translations(translator, lines, "standard input", size):
        sys.stdout.buffer.write("".join(f"{line}\n" for line in chunk).encode())
        sys.stdout.buffer.flush()


def run_evaluate(arguments: argparse.Namespace) -> None:
    """The BLEU of a split, and the signature that says which BLEU."""
    translator = Translator.from_pretrained(arguments.model, arguments.device)
    source, target = trained_languages(arguments)
    sources, references = load_pairs(arguments.corpus, source, target, arguments.split)
    name = f"{arguments.split}.{source}"
    outputs = sum(translations(translator, sources, name), [])
    score = bleu(outputs, references)
    sys.stdout.buffer.write(f"BLEU {score.value:.2f}  {score.signature}\n".encode())
    sys.stdout.buffer.flush()


def trained_languages(arguments: argparse.Namespace) -> tuple[str, str]:
    """Source and target as given, or else as in the record of the training."""
    if arguments.source and arguments.target:
        return arguments.source, arguments.target
    path = Path(arguments.model, RECORD)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return arguments.source or record["source"], arguments.target or record[
            "target"
        ]
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"{path} does not say which languages these are: give --source and --target"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, 1 for an error, 2 for wrong arguments.

    130 where it was interrupted, 141 where nobody reads its output any more.
    `python -X dev -m annotated_transformer …` shows where an error comes from.
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
        # Python would try again to write what is left, and complain, at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
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
