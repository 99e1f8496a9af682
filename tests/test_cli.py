"""The command line: what it writes, what it refuses, and how it says so."""

import base64
import gzip
import io
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch

from annotated_transformer import (
    Transformer,
    TransformerConfig,
    Translator,
    checkpoints,
    cli,
    corpora,
    evaluation,
)
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.translator import average_pretrained

ADJECTIVES = {"red": "roter", "old": "alter"}
NOUNS = {"dog": "Hund", "cat": "Kater", "fish": "Fisch"}
VERBS = {"runs": "rennt", "sleeps": "schläft", "eats": "frisst", "waits": "wartet"}
WORDS = list(itertools.product(ADJECTIVES, NOUNS, VERBS))
ENGLISH = [f"A {a} {n} {v}." for a, n, v in WORDS]
GERMAN = [f"Ein {ADJECTIVES[a]} {NOUNS[n]} {VERBS[v]}." for a, n, v in WORDS]
FILES = [
    "config.json",
    "model.safetensors",
    "record.json",
    "steps.jsonl",
    "tokenizer.model",
    "training.jsonl",
]
QUICK = ["--vocab-size", "330", "--epochs", "2", "--max-tokens", "100"]


def write_corpus(folder, **changes):
    """A corpus of 24 pairs in each split; changes: file name → bytes, or None."""
    folder.mkdir()
    for split in ("train", "val", "test"):
        for language, lines in (("en", ENGLISH), ("de", GERMAN)):
            text = "".join(f"{line}\n" for line in lines)
            (folder / f"{split}.{language}").write_text(text, "utf-8")
    for name, data in changes.items():
        path = folder / name.replace("_", ".")
        path.unlink() if data is None else path.write_bytes(data)
    return folder


def contents(folder):
    """Every file in a folder with its bytes."""
    files = [path for path in Path(folder).iterdir() if path.is_file()]
    return {path.name: path.read_bytes() for path in files}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """A folder for what is made once: token arrays, the embedded corpus."""
    folder = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("ANNOTATED_TRANSFORMER_CACHE", str(folder))
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpora") / "farm")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A small random model whose translations depend on what it reads."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(ENGLISH + GERMAN, 330)
    network = Transformer(TransformerConfig(330, 16, 1, 2, d_ff=32, max_length=150))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.7)
    folder = tmp_path_factory.mktemp("models") / "random"
    Translator(network, tokenizer).save_pretrained(folder)
    (folder / "record.json").write_text('{"source": "en", "target": "de"}')
    return folder


@pytest.fixture
def run(monkeypatch, capfdbinary):
    """Run a command in this process: exit code, standard output, standard error."""

    def run(*arguments, stdin=b""):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = cli.main([str(argument) for argument in arguments])
        out, err = capfdbinary.readouterr()
        return code, out.decode(), err.decode()

    return run


def process(*arguments, **options):
    """Start a command as a process of its own."""
    command = [sys.executable, "-m", "annotated_transformer", *map(str, arguments)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    options = {**pipes, "stderr": subprocess.PIPE, **options}
    # Unbuffered, Python has nothing left to write at its end, nor to complain about.
    options["env"] = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    # Where the tests run in the background of a shell, interrupts are switched off.
    return subprocess.Popen(
        command,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **options,
    )


def train_arguments(corpus, out, *more):
    languages = ["--source", "en", "--target", "de"]
    return ["train", "--corpus", corpus, *languages, "--out", out, *QUICK, *more]


def is_one_line(err):
    return err.startswith("annotated-transformer: ") and err.count("\n") == 1


# What the commands do


@pytest.mark.slow
def test_train_leaves_a_model_a_log_and_a_record(run, corpus, tmp_path):
    arguments = train_arguments(corpus, tmp_path / "run", "--seed", "3")
    code, out, err = run(*arguments)
    assert (code, out) == (0, "")
    said = [line.split()[0] for line in err.splitlines()]
    assert said == ["24", said[1], "epoch", "epoch", "kept"]
    assert " steps, " in err and " operations: about " in err
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", *FILES]

    log = (tmp_path / "run/training.jsonl").read_text().splitlines()
    epochs = [json.loads(line) for line in log]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2]
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert record["command"].split()[:2] == ["annotated-transformer", "train"]
    assert record["validation_bleu"] == max(epoch["bleu"] for epoch in epochs)
    assert record["signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a")
    assert record["pairs"] == 24 and record["training"]["seed"] == 3
    assert record["finished"] is True and record["steps"] == epochs[-1]["step"]
    assert record["config"] == json.loads((tmp_path / "run/config.json").read_text())
    translator = Translator.from_pretrained(tmp_path / "run")
    parameters = sum(p.numel() for p in translator.model.parameters())
    assert record["parameters"] == parameters
    for name in ("date", "device", "threads", "versions", "seconds", "source"):
        assert record[name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["recurrent", "recurrent-attention"])
def test_rivals_are_trained_and_translate(run, corpus, tmp_path, kind):
    out = tmp_path / "run"
    shape = ["--model", kind, "--d-model", "16", "--d-hidden", "24", "--max-steps", "4"]
    arguments = train_arguments(corpus, out, *shape)
    code, _, err = run(*arguments)
    assert code == 0 and "epoch" in err
    record = json.loads((out / "record.json").read_text())
    assert record["config"]["kind"] == kind and record["config"]["d_hidden"] == 24
    translator = Translator.from_pretrained(out)
    for beam in ("1", "3"):
        code, lines, _ = run(
            *("translate", "--model", out, "--beam", beam), stdin=b"A red dog runs.\n"
        )
        expected = translator.translate(["A red dog runs."], beam_size=int(beam))
        assert (code, lines) == (0, f"{expected[0]}\n")
    (out / "record.json").unlink()
    code, _, err = run(*train_arguments(corpus, out, "--max-steps", "4"))
    assert code == 1 and is_one_line(err) and "give it the same settings" in err


def test_what_a_kind_of_model_has_not(run, corpus, tmp_path):
    for more, code, expected in (
        (["--model", "gru"], 2, "'gru' is not one of transformer, recurrent, "),
        (["--model", "recurrent", "--n-heads", "2"], 1, "--n-heads is not of a model"),
        (["--kernel-size", "3"], 1, "--kernel-size is not of a model of kind transf"),
        (["--model", "bytenet", "--config", "paper-big"], 1, "has no --config paper-b"),
        (["--model", "convs2s", "--kernel-size", "2"], 1, "kernel_size is 2: it must"),
    ):
        found, out, err = run(*train_arguments(corpus, tmp_path / "run", *more))
        assert (found, out) == (code, "") and is_one_line(err) and expected in err, more
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(run, corpus, tmp_path):
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        more = ["--seed", seed, "--epochs", "1"]
        assert run(*train_arguments(corpus, tmp_path / name, *more))[0] == 0
    a, b, c = ((tmp_path / n / "model.safetensors").read_bytes() for n in "abc")
    assert a == b != c


def fake_training(scores):
    """A stand-in for `train`: each epoch marks the weights with its number."""

    def train(model, batches, validation, config, score, folder, about, stop):
        results = []
        for epoch, bleu in enumerate(scores, start=1):
            torch.nn.init.constant_(model.embedding.weight, epoch)
            result = {
                "epoch": epoch,
                "step": epoch,
                "train_loss": 1.0,
                "validation_loss": 1 / epoch,
                "tokens_per_second": 1.0,
                "seconds": 1.0,
                "bleu": bleu,
                "signature": "s",
            }
            results.append(result)
            result["best"] = cli.best_of(results) is result
            with open(folder / "training.jsonl", "a") as log:
                print(json.dumps(result), file=log)
            yield result

    return train


@pytest.mark.parametrize(
    ("scores", "best"), [([1.0, 3.0, 2.0], 2), ([3.0, 3.0, 1.0], 2), ([0.0], 1)]
)
def test_the_best_epoch_is_kept(run, corpus, tmp_path, monkeypatch, scores, best):
    monkeypatch.setattr(cli, "train", fake_training(scores))
    assert run(*train_arguments(corpus, tmp_path / "run"))[0] == 0
    translator = Translator.from_pretrained(tmp_path / "run")
    assert translator.model.embedding.weight.unique().tolist() == [best]
    record = json.loads((tmp_path / "run/record.json").read_text())
    assert record["best_epoch"] == best
    assert record["validation_bleu"] == scores[best - 1]


def test_pairs_left_out_are_counted(run, tmp_path, monkeypatch):
    monkeypatch.setattr(cli, "train", fake_training([0.0]))
    lines = [*ENGLISH]
    lines[3], lines[5], lines[9] = "", "   ", " ".join(["dog"] * 101)
    corpus = write_corpus(
        tmp_path / "gaps", train_en="".join(f"{x}\n" for x in lines).encode()
    )
    code, out, err = run(*train_arguments(corpus, tmp_path / "run"))
    message = (
        "train: left out 2 pairs with an empty side, 1 with one of more than 100"
        " tokens\n"
    )
    assert code == 0 and message in err and "val: left out" not in err
    assert json.loads((tmp_path / "run/record.json").read_text())["pairs"] == 21


def test_a_public_corpus_is_tokenised_once(run, tmp_path, monkeypatch):
    """Tatoeba from one table; again for the other direction, not for another run."""
    monkeypatch.setenv("ANNOTATED_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("ANNOTATED_TRANSFORMER_DATA", str(tmp_path))
    monkeypatch.setattr(corpora, "HELD_OUT", {"de": (2, 2)})
    monkeypatch.setattr(cli, "train", fake_training([1.0]))
    folder = tmp_path / "tatoeba_deu"
    folder.mkdir()
    table = "".join(map("{}\t{}\tCC-BY\n".format, ENGLISH, GERMAN))
    (folder / "pairs.tsv.gz").write_bytes(gzip.compress(table.encode()))
    made = []
    for number, languages in enumerate((("en", "de"), ("en", "de"), ("de", "en"))):
        out = tmp_path / str(number)
        source, target = zip(("--source", "--target"), languages, strict=True)
        command = ["train", "--corpus", "tatoeba", *source, *target, *QUICK]
        assert run(*command, "--out", out)[0] == 0
        assert json.loads((out / "record.json").read_text())["pairs"] == 20
        made.append(len(list((tmp_path / "cache/tokens").iterdir())))
    assert made == [2, 2, 4]  # train and val


def test_the_embedded_corpus_is_made_once(run, tmp_path, monkeypatch):
    monkeypatch.setenv("ANNOTATED_TRANSFORMER_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(cli, "EMBEDDED", {"n_train": 200, "n_val": 5, "n_test": 4})
    monkeypatch.setattr(cli, "train", fake_training([1.0]))
    for out, source, target in (("a", "en", "de"), ("b", "de", "en")):
        command = ["train", "--corpus", "embedded", "--vocab-size", "450"]
        languages = ["--source", source, "--target", target]
        assert run(*command, *languages, "--out", tmp_path / out)[0] == 0
        record = json.loads((tmp_path / out / "record.json").read_text())
        assert record["corpus"] == "embedded" and record["pairs"] == 200
        if out == "a":
            monkeypatch.setattr(cli, "write_corpus", None)  # not again
    (folder,) = (tmp_path / "cache").glob("embedded-*")
    assert len(os.listdir(folder)) == 9
    command = ["evaluate", "--model", tmp_path / "a", "--corpus", "embedded"]
    code, out, err = run(*command, "--split", "test")
    assert code == 0 and out.startswith("BLEU ")


@pytest.mark.parametrize(
    ("given", "epochs", "max_steps"),
    [
        ([], 10, None),
        (["--epochs", "3"], 3, None),
        (["--max-steps", "7"], None, 7),
        (["--max-steps", "7", "--epochs", "3"], 3, 7),
    ],
)
def test_epochs_or_steps(given, epochs, max_steps):
    command = "train --corpus farm --source en --target de --out run".split()
    _, training = cli.settings(cli.build_parser().parse_args([*command, *given]))
    assert (training.epochs, training.max_steps) == (epochs, max_steps)


def test_every_shape_reaches_the_model():
    command = "train --corpus farm --source en --target de --out run --vocab-size 99 "
    command += "--d-model 24 --n-layers 5 --n-heads 6 --d-ff 7 --dropout 0.25"
    config, _ = cli.settings(cli.build_parser().parse_args(command.split()))
    shape = {"d_model": 24, "n_layers": 5, "n_heads": 6, "d_ff": 7, "dropout": 0.25}
    assert config == TransformerConfig.tiny(99, **shape)


def test_every_setting_reaches_the_run():
    command = "train --corpus farm --source en --target de --out run --max-tokens 9 "
    command += "--epochs 2 --warmup 3 --accumulation 4 --smoothing 0.2 --seed 5 "
    command += "--bfloat16 --compile --validate-every 6 --checkpoint-every 7 "
    command += "--checkpoint-minutes 1.5 --keep 8 --max-steps 10"
    _, training = cli.settings(cli.build_parser().parse_args(command.split()))
    assert training == cli.TrainingConfig(
        max_tokens=9,
        accumulation=4,
        epochs=2,
        max_steps=10,
        warmup=3,
        smoothing=0.2,
        seed=5,
        bfloat16=True,
        compile=True,
        validate_every=6,
        checkpoint_every=7,
        checkpoint_minutes=1.5,
        keep=8,
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0.4 s"),
        (50, "50 s"),
        (720, "12 min"),
        (12_600, "3.5 h"),
        (43_200, "12 h"),
        (181_440, "2.1 days"),
    ],
)
def test_a_time_in_words(seconds, text):
    assert cli.duration(seconds) == text


def test_translate_is_line_in_line_out(run, model):
    lines = [ENGLISH[0], "", "  ", ENGLISH[1], "Ünïcödé \u2028 \u00a0x", ENGLISH[2]]
    expected = Translator.from_pretrained(model).translate(lines)
    text = "".join(f"{line}\n" for line in expected)
    command = "translate", "--model", model
    assert run(*command, stdin="\n".join(lines).encode()) == (0, text, "")
    assert run(*command, stdin="\r\n".join([*lines, ""]).encode()) == (0, text, "")
    assert run(*command) == (0, "", "")
    assert run(*command, stdin=b"\n\n") == (0, "\n\n", "")


def test_thousands_of_lines_keep_their_order(run, model, monkeypatch):
    class Echo(Translator):
        def translate(self, lines, **_):
            return [line[::-1] for line in lines]

    monkeypatch.setattr(cli, "Translator", Echo)
    lines = [f"{number} dogs" for number in range(5000)]
    stdin = "".join(f"{line}\n" for line in lines).encode()
    code, out, err = run("translate", "--model", model, stdin=stdin)
    assert out.splitlines() == [line[::-1] for line in lines]


def test_chunks_do_not_change_a_translation(run, model, monkeypatch):
    stdin = "".join(f"{line}\n" for line in ENGLISH).encode()
    whole = run("translate", "--model", model, stdin=stdin)
    monkeypatch.setattr(cli, "CHUNK", 5)
    assert run("translate", "--model", model, stdin=stdin) == whole


def test_evaluate_prints_bleu_and_signature(run, corpus, model, monkeypatch):
    class Oracle(Translator):
        def translate(self, lines, **_):
            return [dict(zip(ENGLISH, GERMAN, strict=True))[line] for line in lines]

    monkeypatch.setattr(cli, "Translator", Oracle)
    command = "evaluate", "--model", model, "--corpus", corpus, "--split", "test"
    code, out, err = run(*command)
    assert code == 0 and err == ""
    signature = "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    bleu, chrf, tokenised, between = out.splitlines()
    assert bleu.startswith(f"BLEU 100.00  {signature}")
    assert chrf.startswith("chrF 100.00  nrefs:1|case:mixed|eff:yes|nc:6|nw:0|")
    assert tokenised.startswith("tokenised BLEU 100.00  nrefs:1|case:mixed|eff:no|tok:")
    assert between.startswith("BLEU, 95 % 100.00 to 100.00  nrefs:1|bs:1000|seed:")


def test_languages_given_go_before_those_of_the_record(run, corpus, model, monkeypatch):
    seen = []

    class Spy(Translator):
        def translate(self, lines, **_):
            seen.append(lines[0])
            return lines

    monkeypatch.setattr(cli, "Translator", Spy)
    command = ["evaluate", "--model", model, "--corpus", corpus, "--split", "test"]
    same = "BLEU 100.00"
    assert not run(*command)[1].startswith(same)
    assert not run(*command, "--source", "de", "--target", "en")[1].startswith(same)
    assert run(*command, "--target", "en")[1].startswith(same)
    assert seen == [ENGLISH[0], GERMAN[0], ENGLISH[0]]


def test_evaluate_takes_empty_lines(run, model, tmp_path):
    text = "".join(f"{line}\n" for line in ["", *ENGLISH[1:]]).encode()
    corpus = write_corpus(tmp_path / "gaps", test_en=text)
    command = "evaluate", "--model", model, "--corpus", corpus, "--split", "test"
    assert run(*command)[0] == 0


def test_evaluate_scores_what_the_options_find(run, corpus, model):
    options = "--beam", "3", "--alpha", "0", "--min-length", "4"
    command = "evaluate", "--model", model, "--corpus", corpus, "--split", "test"
    given = {"beam_size": 3, "alpha": 0.0, "min_length": 4}
    outputs = Translator.from_pretrained(model).translate(ENGLISH, **given)
    assert (
        run(*command, *options)[1]
        .splitlines()[1]
        .startswith(f"chrF {evaluation.chrf(outputs, GERMAN).value:.2f}  ")
    )


# Ways to translate


def text_of(lines):
    return "".join(f"{line}\n" for line in lines).encode()


def test_an_answer_comes_before_the_next_question(model):
    with process("translate", "--model", model) as running:
        for line in ENGLISH[:3]:
            running.stdin.write(line.encode() + b"\n")
            running.stdin.flush()
            assert running.stdout.readline().endswith(b"\n")
        running.stdin.write(b"A dog")  # without its line end
        assert running.communicate()[0].count(b"\n") == 1
    assert running.returncode == 0


def test_lines_arrive_as_they_are_there():
    class Slow(io.BytesIO):
        parts = [b"a\nb", b"c\n", b"d", b"\n\ne"]

        def read1(self, size):
            return self.parts.pop(0) if self.parts else b""

    stream = cli.Arriving(Slow())
    chunks = cli.in_chunks(stream, 9, lambda: not stream.waiting)
    assert list(chunks) == [[b"a"], [b"bc"], [b"d", b""], [b"e"]]
    stream = cli.Arriving(io.BytesIO(b"a\n" * 7))
    chunks = cli.in_chunks(stream, 3, lambda: not stream.waiting)
    assert [len(chunk) for chunk in chunks] == [3, 3, 1]


def test_two_first_runs_make_the_embedded_corpus_at_once(tmp_path, monkeypatch):
    """The one that comes second finds the folder there, and takes it."""
    monkeypatch.setattr(cli, "cache_folder", lambda: tmp_path)

    def written_meanwhile(folder, **sizes):
        for place in (folder, next(tmp_path.glob(".part-*")).with_name(name)):
            place.mkdir(parents=True, exist_ok=True)
            (place / "train.en").write_text("A dog.\n")

    monkeypatch.setattr(cli, "write_corpus", lambda folder, **sizes: None)
    monkeypatch.setattr(cli.os, "replace", lambda before, after: None)
    name = Path(cli.corpus_folder("embedded")).name
    monkeypatch.undo()
    monkeypatch.setattr(cli, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cli, "write_corpus", written_meanwhile)
    folder = Path(cli.corpus_folder("embedded"))
    assert folder == tmp_path / name and list(tmp_path.iterdir()) == [folder]


@pytest.mark.parametrize("command", ["average", "convert"])
def test_what_computes_nothing_has_no_device(run, command):
    code, out, _ = run(command, "--help")
    assert code == 0 and "--out" in out and "--device" not in out


def test_n_best_and_scores(run, model, monkeypatch):
    lines = [*ENGLISH[:4], "", ENGLISH[5]]
    found = Translator.from_pretrained(model).n_best(lines, 3, beam_size=4, alpha=0.5)
    command = "translate", "--model", model, "--beam", "4", "--alpha", "0.5"
    best = [f"{some[0].score:.4f}\t{some[0].text}" for some in found]
    assert run(*command, "--scores", stdin=text_of(lines))[1].split("\n")[:-1] == best
    every = [(i, one) for i, some in enumerate(found, start=1) for one in some]
    texts = [f"{i}\t{one.text}" for i, one in every]
    both = [f"{i}\t{one.score:.4f}\t{one.text}" for i, one in every]
    command = *command, "--n-best", "3"
    monkeypatch.setattr(cli, "CHUNK", 2)
    assert run(*command, stdin=text_of(lines))[1].split("\n")[:-1] == texts
    assert run(*command, "--scores", stdin=text_of(lines))[1].split("\n")[:-1] == both


def test_n_best_decides_the_beam_where_none_is_given(run, model):
    translator = Translator.from_pretrained(model)
    (found,) = translator.n_best(ENGLISH[:1], 3, beam_size=3)
    command = "translate", "--model", model, "--n-best", "3"
    out = run(*command, stdin=text_of(ENGLISH[:1]))[1]
    assert out.split("\n")[:-1] == [f"1\t{one.text}" for one in found]
    code, out, err = run(*command, "--beam", "2", stdin=text_of(ENGLISH[:1]))
    assert (code, out) == (1, "") and is_one_line(err)
    assert "--n-best 3 is more than --beam 2" in err


def test_conditions_reach_the_search(run, model):
    options = {"prefixes": ["Ein Hund"] * 3, "min_length": 6}
    expected = Translator.from_pretrained(model).translate(ENGLISH[:3], **options)
    command = "translate", "--model", model, "--prefix", "Ein Hund", "--min-length", "6"
    assert run(*command, stdin=text_of(ENGLISH[:3]))[1].split("\n")[:-1] == expected
    assert all(text.startswith("Ein Hund") for text in expected)


def test_samples_do_not_depend_on_chunks(run, model, monkeypatch):
    command = "translate", "--model", model, "--sample", "--n-best", "2", "--seed", "4"
    command = *command, "--temperature", "1.5"
    whole = run(*command, stdin=text_of(ENGLISH[:5]))
    translator = Translator.from_pretrained(model)
    found = translator.sample(ENGLISH[:5], 2, 1.5, seed=4)
    rows = [f"{i}\t{one.text}" for i, some in enumerate(found, 1) for one in some]
    assert whole == (0, "".join(f"{row}\n" for row in rows), "")
    monkeypatch.setattr(cli, "CHUNK", 2)
    assert run(*command, stdin=text_of(ENGLISH[:5])) == whole


def test_a_byte_order_mark_is_not_translated(run, model):
    command = "translate", "--model", model
    plain = run(*command, stdin=text_of(ENGLISH[:2]))
    assert plain[0] == 0 and plain == run(
        *command, stdin=b"\xef\xbb\xbf" + text_of(ENGLISH[:2])
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--temperature", "2"], "--temperature is of --sample"),
        (["--seed", "5"], "--seed is of --sample"),
        (["--sample", "--beam", "4"], "--beam is of a search, and --sample does not"),
        (["--sample", "--alpha", "1"], "--alpha is of a search, and --sample does not"),
        (
            ["--sample", "--batch-size", "8"],
            "--batch-size is of a search, and --sample",
        ),
        (["--sample", "--beam", "1"], "--beam is of a search, and --sample does not"),
        (["--n-best", "4", "--beam", "2"], "--n-best 4 is more than --beam 2"),
        (["--n-best", "4", "--beam", "1"], "--n-best 4 is more than --beam 1"),
    ],
)
def test_options_that_would_do_nothing_are_refused(run, model, options, expected):
    code, out, err = run("translate", "--model", model, *options, stdin=b"A dog.\n")
    assert (code, out) == (1, "") and is_one_line(err) and expected in err


@pytest.fixture(scope="module")
def second(model, tmp_path_factory):
    """Another model of the same tokenizer."""
    translator = Translator.from_pretrained(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in translator.model.parameters():
            parameter.normal_(std=0.7)
    folder = tmp_path_factory.mktemp("models") / "second"
    translator.save_pretrained(folder)
    return folder


def test_several_models_translate_together(run, model, second):
    found = Translator.ensemble([model, second]).n_best(ENGLISH, beam_size=1)
    expected = [f"{best.score:.4f}\t{best.text}" for (best,) in found]
    command = "translate", "--model", model, "--model", second, "--scores"
    code, out, err = run(*command, stdin=text_of(ENGLISH))
    assert (code, out.split("\n")[:-1], err) == (0, expected, "")


class Page(HTMLParser):
    """What a page with an explorer holds, and whether it asks for anything else."""

    def __init__(self, text):
        super().__init__()
        self.lines, self.data, self.asks, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if attributes.get("type") == "application/json":
            self.lines.append(attributes["data-line"])
            self.data.append("")
        if tag in ("link", "img", "iframe") or {"src", "href"} & attributes.keys():
            self.asks.append(tag)

    def handle_data(self, data):
        if self.lasttag == "script" and data.startswith("{"):
            self.data[-1] = json.loads(data)
        self.text += data


def test_a_page_of_attention(run, model, tmp_path):
    path = tmp_path / "out.html"
    lines = ["A <b>dog</b> & runs.", "", ENGLISH[1]]
    command = "translate", "--model", model, "--beam", "2", "--attention", path
    code, out, err = run(*command, stdin=text_of(lines))
    translator = Translator.from_pretrained(model)
    found = [best for (best,) in translator.n_best(lines, beam_size=2)]
    assert (code, out.split("\n")[:-1], err) == (0, [one.text for one in found], "")
    page = Page(text := path.read_text("utf-8"))
    assert not page.asks and "url(" not in text and "@import" not in text
    assert "<b>" not in text and found[2].text in page.text
    assert page.lines == [lines[0], lines[2]]
    for data, i in zip(page.data, (0, 2), strict=True):
        attention = translator.attention(lines[i], found[i].tokens)
        assert data["target"]["pieces"] == attention.target
        packed = base64.b64decode(data["weights"]["cross"])
        shown = torch.tensor(list(packed)).view(attention.maps.cross.shape)
        assert torch.allclose(shown / 255, attention.maps.cross, atol=1 / 250)
    code, out, err = run(*command, stdin=text_of(lines))
    assert (
        (code, out) == (1, "") and is_one_line(err) and "out.html: File exists" in err
    )
    assert path.read_text("utf-8") == text


def test_no_page_is_left_where_nothing_was_translated(run, model, tmp_path):
    path = tmp_path / "out.html"
    command = "translate", "--model", model, "--attention", path
    code, out, err = run(*command, stdin=b"\xff\n")
    assert (code, out) == (1, "") and is_one_line(err) and not path.exists()
    code, out, err = run(*command, stdin=text_of(ENGLISH[:1]) + b"\xff\n")
    assert code == 1 and out.count("\n") == 1 and is_one_line(err)
    assert Page(path.read_text("utf-8")).lines == ENGLISH[:1]


def test_score_is_log_p_of_each_line(run, model, second, monkeypatch):
    monkeypatch.setattr(cli, "CHUNK", 5)
    lines = [f"{e}\t{g}" for e, g in zip(ENGLISH, GERMAN, strict=True)]
    lines += ["\t", "\tEin Hund.", "A dog.\t"]
    sources, targets = zip(*(line.split("\t") for line in lines), strict=True)
    for names in ([model], [model, second]):
        scores = Translator.ensemble(names).score(sources, targets)
        command = ["score", *(word for name in names for word in ("--model", name))]
        code, out, err = run(*command, stdin=text_of(lines))
        assert (code, err) == (0, "") and out.split("\n")[:-1][-3:-1] == [
            "0.0000",
            "-inf",
        ]
        printed = [float(line) for line in out.split("\n")[:-1]]
        assert printed == pytest.approx(scores, abs=2e-3)


@pytest.mark.parametrize(
    "bad, message",
    [
        ("A dog.", "line 3: 0 tabs, and there must be one"),
        ("A\tdog\tEin Hund", "line 3: 2 tabs"),
        ("A dog.\t" + "Hund " * 200, "line 3, side, line 2: "),
    ],
)
def test_score_writes_what_comes_before_a_bad_line(run, model, bad, message):
    stdin = text_of(["A dog.\tEin Hund.", "A cat.\tEin Kater.", bad, "x\ty"])
    code, out, err = run("score", "--model", model, stdin=stdin)
    assert code == 1 and out.count("\n") == 2 and is_one_line(err)
    assert f"standard input, {message}" in err


# Averages


def test_the_average_of_models_is_a_model(run, model, second, tmp_path):
    out = tmp_path / "mean"
    code, written, err = run("average", model, second, "--out", out)
    assert (code, written) == (0, "") and err == f"the mean of 2 models is in {out}\n"
    mean = Translator.from_pretrained(out).model.state_dict()
    for name, value in average_pretrained([model, second]).model.state_dict().items():
        assert torch.equal(mean[name], value)
    record = json.loads((out / "record.json").read_text())
    assert record["averaged"] == [str(model), str(second)] and record["source"] == "en"
    assert run("translate", "--model", out, stdin=b"A dog.\n")[0] == 0
    before = contents(out)
    code, _, err = run("average", model, second, "--out", out)
    assert code == 1 and is_one_line(err) and "already holds" in err
    assert contents(out) == before


@pytest.mark.slow
def test_the_average_of_the_last_checkpoints_of_a_run(run, corpus, tmp_path):
    trained = tmp_path / "run"
    assert run(*train_arguments(corpus, trained, "--checkpoint-every", "1"))[0] == 0
    paths = checkpoints.checkpoints(trained)[-3:]
    assert run("average", trained, "--last", "3", "--out", tmp_path / "mean")[0] == 0
    mean = Translator.from_pretrained(tmp_path / "mean").model.state_dict()
    for name, value in average_pretrained(paths).model.state_dict().items():
        assert torch.equal(mean[name], value)
    record = json.loads((tmp_path / "mean/record.json").read_text())
    assert record["averaged"] == [str(path) for path in paths]
    command = "translate", "--model", paths[0]
    assert run(*command, stdin=b"A dog.\n\n")[1].count("\n") == 2


def test_average_refuses(run, model, second, tmp_path):
    shutil.copytree(second, tmp_path / "heads")
    config = json.loads((tmp_path / "heads/config.json").read_text())
    (tmp_path / "heads/config.json").write_text(json.dumps(config | {"n_heads": 4}))
    shutil.copytree(second, tmp_path / "pieces")
    tokenizer = Tokenizer.train([line[::-1] for line in ENGLISH + GERMAN], 330)
    tokenizer.save(tmp_path / "pieces/tokenizer.model")
    for arguments, message in (
        ([model, tmp_path / "heads"], "heads has another configuration than"),
        ([model, tmp_path / "pieces"], "pieces has another tokenizer.model than"),
        ([model, tmp_path / "nowhere"], "nowhere: no such folder"),
        ([model, second, "--last", "2"], "--last is for one run, and here are 2"),
        ([model, "--last", "2"], "has 0 checkpoints, and 2 are asked for"),
    ):
        code, out, err = run("average", *arguments, "--out", tmp_path / "mean")
        assert (code, out) == (1, "") and is_one_line(err) and message in err
        assert not (tmp_path / "mean").exists()


def test_help_and_version(run):
    for arguments in (["--help"], ["train", "--help"], ["--version"]):
        code, out, err = run(*arguments)
        assert code == 0 and out and not err


# What they refuse

TRAIN = {
    "unknown corpus": ({"corpus": "multi31k"}, 1, "unknown corpus 'multi31k'"),
    "missing folder": ({"corpus": "no/such/folder"}, 1, "no/such/folder"),
    "unknown language": ({"target": "xx"}, 1, "no train.xx"),
    "unknown --config": ({"config": "huge"}, 2, "'huge' is not one of tiny, paper"),
    "no --out": ({"out": None}, 2, "--out"),
    "not a number": ({"epochs": "many"}, 2, "--epochs: 'many' is not a positive"),
    "zero epochs": ({"epochs": "0"}, 2, "--epochs: '0' is not a positive"),
    "no such device": ({"device": "cuda:99"}, 2, "no device 'cuda:99'"),
    "dropout": ({"dropout": "1.5"}, 1, "dropout is 1.5"),
    "smoothing": ({"smoothing": "nan"}, 1, "smoothing is nan"),
    "seed": ({"seed": "-1"}, 1, "seed is -1"),
    "no time": ({"timeout": "0"}, 2, "--timeout: '0' is not a positive number"),
    "no time at all": ({"checkpoint-minutes": "x"}, 2, "'x' is not a positive number"),
    "no batches": ({"accumulation": "0"}, 2, "--accumulation: '0' is not a positive"),
    "pieces, too many": ({"vocab-size": "9999"}, 1, "cannot learn 9999 pieces"),
    "pieces, too few": ({"vocab-size": "200"}, 1, "cannot learn 200 pieces"),
    "no room for a pair": ({"max-tokens": "2"}, 1, "train: no pair is left"),
    "unknown argument": ({"gpu": "1"}, 2, "unrecognized arguments: --gpu 1"),
}


@pytest.mark.parametrize("what", TRAIN)
def test_train_refuses(run, corpus, tmp_path, what):
    changes, expected, message = TRAIN[what]
    values = {"corpus": corpus, "source": "en", "target": "de", "out": tmp_path / "run"}
    values |= {"vocab-size": 330, **changes}
    options = [[f"--{name}", v] for name, v in values.items() if v is not None]
    code, out, err = run("train", *sum(options, []))
    assert (code, out) == (expected, "") and message in err and is_one_line(err)
    assert not (tmp_path / "run").exists() or not os.listdir(tmp_path / "run")


SPLITS = {
    "unequal line counts": (
        {"train_de": b"Ein Hund.\n"},
        ["train.en has 24 lines", "train.de has 1"],
    ),
    "unequal, validation": ({"val_en": b"A dog.\n"}, ["val.en has 1 lines"]),
    "invalid UTF-8": (
        {"train_en": b"A dog.\nA caf\xe9.\n"},
        ["train.en, line 2", "not valid UTF-8"],
    ),
    "no validation": ({"val_de": None}, ["no val.de"]),
    "empty file": ({"train_en": b"", "train_de": b""}, ["train.en is empty"]),
    "nothing but gaps": (
        {"train_en": b"A dog.\n\n", "train_de": b"\nEin Hund.\n"},
        ["train: no pair is left: 2 have an empty side, 0 one of more than"],
    ),
    "too long to validate": (
        {"val_en": b"dog " * 9000 + b"\n", "val_de": b"Hund\n"},
        ["val"],
    ),
}


@pytest.mark.parametrize("what", SPLITS)
def test_train_names_the_file_and_the_line(run, tmp_path, what):
    changes, messages = SPLITS[what]
    corpus = write_corpus(tmp_path / "corpus", **changes)
    size = ["--vocab-size", "290"] if what == "nothing but gaps" else []
    code, out, err = run(*train_arguments(corpus, tmp_path / "run", *size))
    assert (code, out) == (1, "") and is_one_line(err.splitlines()[-1] + "\n")
    assert all(message in err for message in messages), err
    assert not list(tmp_path.glob("run/*"))


@pytest.mark.parametrize("name", FILES)
def test_train_overwrites_nothing(run, corpus, tmp_path, name):
    (tmp_path / name).write_text("dear to someone")
    before = contents(tmp_path)
    code, out, err = run(*train_arguments(corpus, tmp_path))
    assert code == 1 and is_one_line(err) and f"already holds {name}" in err
    assert contents(tmp_path) == before


def test_train_needs_a_folder_it_can_write_to(run, corpus, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for out, message in (
        ("file", "file is not a folder"),
        ("file/run", "cannot write to"),
        ("/proc/run", "cannot write to /proc/run"),
    ):
        code, _, err = run(*train_arguments(corpus, tmp_path / out))
        assert code == 1 and is_one_line(err) and message in err


SPOILT = {
    "missing": (None, "no such folder"),
    "a text file": (("model.safetensors", b"text\n" * 9), "not a whole safetensors"),
    "cut short": (("model.safetensors", 5000), "not a whole safetensors"),
    "of another shape": (("config.json", {"d_ff": 64}), "does not fit config.json"),
    "an unknown field": (("config.json", {"n_heds": 1}), "field: n_heds"),
    "broken JSON": (("config.json", 20), "config.json: "),
    "no tokenizer": (("tokenizer.model", None), "has no tokenizer.model"),
    "no weights": (("model.safetensors", None), "has no model.safetensors"),
    "a text tokenizer": (("tokenizer.model", b"text"), "tokenizer.model: "),
}


@pytest.mark.parametrize("command", ["translate", "evaluate"])
@pytest.mark.parametrize("what", SPOILT)
def test_a_spoilt_model_is_named(run, corpus, model, tmp_path, what, command):
    spoil, message = SPOILT[what]
    folder = tmp_path / "model"
    if spoil:
        shutil.copytree(model, folder)
        path, change = folder / spoil[0], spoil[1]
        if change is None:
            path.unlink()
        elif isinstance(change, dict):
            path.write_text(json.dumps(json.loads(path.read_text()) | change))
        else:
            is_size = isinstance(change, int)
            path.write_bytes(path.read_bytes()[:change] if is_size else change)
    more = ["--corpus", corpus, "--split", "test"] if command == "evaluate" else []
    code, out, err = run(command, "--model", folder, *more, stdin=b"A dog.\n")
    assert (code, out) == (1, "") and is_one_line(err)
    assert message in err and str(folder) in err


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (b"A caf\xe9.\n", "line 3: byte 6 is not valid UTF-8"),
        (b"x" * 400 + b"\n", "line 3: 401 tokens, more than the 100 the model takes"),
    ],
    ids=["not UTF-8", "too long"],
)
def test_translate_writes_what_comes_before_a_bad_line(run, model, bad, message):
    good = f"{ENGLISH[0]}\n{ENGLISH[5]}\n".encode()
    _, expected, _ = run("translate", "--model", model, stdin=good)
    code, out, err = run("translate", "--model", model, stdin=good + bad + good)
    assert (code, out) == (1, expected) and is_one_line(err)
    assert f"standard input, {message}" in err


def test_evaluate_refuses(run, corpus, model, tmp_path):
    command = ["evaluate", "--model", model, "--corpus", corpus, "--split"]
    code, out, err = run(*command, "exam")
    assert (code, out) == (1, "") and is_one_line(err) and "no exam.en" in err

    long = write_corpus(tmp_path / "long", test_en=b"\n" * 23 + b"x" * 400)
    command[4] = long
    code, out, err = run(*command, "test")
    assert (code, out) == (1, "") and "test.en, line 24: 401 tokens" in err

    shutil.copytree(model, tmp_path / "model")
    command[2:5] = [tmp_path / "model", "--corpus", corpus]
    for record in ("[]", "{", '{"source": "en"}', None):
        path = tmp_path / "model" / "record.json"
        path.unlink() if record is None else path.write_text(record)
        code, out, err = run(*command, "test")
        assert (code, out) == (1, "") and is_one_line(err)
        assert "record.json" in err and "give --source and --target" in err
    assert run(*command, "test", "--source", "en", "--target", "de")[0] == 0


@pytest.mark.parametrize(
    "arguments",
    [
        *([name] for name in ("train", "translate", "evaluate", "score", "average")),
        [],
        ["sing"],
        ["--loud"],
        ["translate", "--model", "m", "--beam", "0"],
        ["translate", "--model", "m", "--alpha", "-1"],
        ["translate", "--model", "m", "--alpha", "nan"],
        ["translate", "--model", "m", "--temperature", "0"],
        ["translate", "--model", "m", "--min-length", "-1"],
    ],
)
def test_wrong_arguments_give_one_line_and_2(run, arguments):
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and is_one_line(err) and "--help" in err


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("two\nlines of it"),
        torch.OutOfMemoryError("out of memory"),
        OSError("a download"),
        PermissionError(13, "Permission denied", "model/config.json"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_whatever_goes_wrong_is_one_line(run, model, monkeypatch, error):
    def fails(*args):
        raise error

    monkeypatch.setattr(cli.Translator, "from_pretrained", fails)
    code, out, err = run("translate", "--model", model)
    assert (code, out) == (1, "") and is_one_line(err)
    if error.args[0] == 13:
        assert "model/config.json: Permission denied" in err


# As processes of their own


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(model, tmp_path):
    (tmp_path / "long").write_text((ENGLISH[0] + "\n") * 3 * cli.CHUNK)
    with (
        open(tmp_path / "long", "rb") as lines,
        process("translate", "--model", model, stdin=lines) as running,
    ):
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
        assert running.wait() == 141


@pytest.mark.slow
def test_an_interrupt_is_quiet_and_leaves_the_best_so_far(corpus, tmp_path):
    arguments = train_arguments(corpus, tmp_path / "run", "--epochs", "9999")
    with process(*arguments) as running:
        said = [running.stderr.readline() for _ in range(3)]
        running.send_signal(signal.SIGINT)
        try:
            said += running.communicate(timeout=60)
        finally:
            running.kill()  # where it did not hear
    assert running.returncode == 130
    assert said[2].startswith(b"epoch 1 ") and b"Traceback" not in b"".join(said)
    Translator.from_pretrained(tmp_path / "run")
    assert sorted(os.listdir(tmp_path / "run")) == ["checkpoints", *FILES]


def test_an_interrupt_in_the_middle_of_a_line_is_only_noted(monkeypatch):
    class Interrupted(io.RawIOBase):
        lines = []

        def writable(self):
            return True

        def write(self, data):
            if not self.lines:
                signal.raise_signal(signal.SIGINT)
            self.lines.append(bytes(data))
            return len(data)

    stream = io.TextIOWrapper(io.BufferedWriter(Interrupted()))
    monkeypatch.setattr(sys, "stderr", stream)
    with pytest.raises(SystemExit) as end, cli.Signals() as signals:
        assert not signals.came()
        cli.say("epoch 1")
        assert signals.came()
    assert end.value.code == 130 and Interrupted.lines == [b"epoch 1\n"]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_full_disk_is_one_line(model):
    with (
        open("/dev/full", "wb") as full,
        process("translate", "--model", model, stdout=full) as running,
    ):
        _, err = running.communicate(b"A dog.\n")
    assert running.returncode == 1 and is_one_line(err.decode())
    assert b"standard output: No space left on device" in err


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_a_closed_stream_is_one_line(model, monkeypatch, capfd, stream):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"A dog.\n")))
    monkeypatch.setattr(sys, stream, None)
    assert cli.main(["translate", "--model", str(model)]) == 1
    err = capfd.readouterr().err
    assert is_one_line(err) and f"standard {stream[3:]}put is closed" in err


@pytest.mark.slow
def test_the_installed_script_and_a_traceback_for_developers(tmp_path):
    script = Path(sys.executable).with_name("annotated-transformer")
    options = ["translate", "--model", tmp_path / "nowhere"]
    for start, code, traceback in (
        ([script], 1, False),
        ([sys.executable, "-X", "dev", "-m", "annotated_transformer"], 1, True),
    ):
        if start[0] == script and not script.exists():
            continue
        done = subprocess.run([*start, *options], capture_output=True, text=True)
        assert done.returncode == code and "no such folder" in done.stderr
        assert ("Traceback" in done.stderr) == traceback
