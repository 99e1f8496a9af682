"""Runs of `annotated-transformer train` in processes that a test can kill.

A process is started by fork, so that it need not load torch again: a second or so
instead of several. A process that has run torch's autograd cannot be forked; a test
that forks is therefore run in a process that has not (`in_fresh_python`).
"""

import atexit
import functools
import importlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

TESTS = Path(__file__).parent


def in_fresh_python(test):
    """Run a test with tmp_path and simple arguments in a process that may fork."""

    @functools.wraps(test)
    def run(tmp_path, **arguments):
        log = tmp_path / "test.log"
        call = [test.__module__, test.__name__, str(tmp_path), arguments, str(log)]
        nursery = _nursery()
        nursery.stdin.write(json.dumps(call) + "\n")
        nursery.stdin.flush()
        code = nursery.stdout.readline().strip()
        print(log.read_text() if log.exists() else "")
        assert code == "0"

    return run


@functools.cache
def _nursery():
    """A Python that has imported everything and run nothing; it forks for each test."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    nursery = subprocess.Popen(
        [sys.executable, "-c", "import runs; runs.make_small(); runs.serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    atexit.register(nursery.stdin.close)  # which ends it
    return nursery


def serve():
    """Run each test that standard input names in a fork; answer with its exit code."""
    for line in sys.stdin:
        module, name, folder, arguments, log = json.loads(line)
        test = getattr(importlib.import_module(module), name).__wrapped__
        call = functools.partial(test, Path(folder), **arguments)
        cache = {"ANNOTATED_TRANSFORMER_CACHE": f"{folder}/cache"}
        try:
            code = end(fork(call, log, **cache), 300)
        except AssertionError as error:
            code = error
        print(code, flush=True)


def make_small():
    """A small embedded corpus, and a smaller `tiny`, in this process and its forks."""
    from annotated_transformer import TransformerConfig, cli

    def tiny(cls, vocab_size, **changes):
        shape = {"d_model": 32, "n_layers": 1, "n_heads": 2, "d_ff": 64}
        return cls(vocab_size, **{**shape, **changes})

    cli.EMBEDDED = {"n_train": 500, "n_val": 12, "n_test": 12}
    TransformerConfig.tiny = classmethod(tiny)


def train_arguments(out, *more):
    """The command of a run of 30 steps or so."""
    text = (
        "train --corpus embedded --source en --target de --vocab-size 450 --epochs 2 "
        "--max-tokens 500 --warmup 20 --checkpoint-every 2 --keep 3 --device cpu"
    )
    return [*text.split(), "--out", str(out), *more]


def fork(function, log, **environment):
    """Call a function in a forked process, which ends with the code it returns.

    Returns the number of the process. log: of both its streams.
    """
    number = os.fork()
    if number:
        return number
    code = 99
    try:
        descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.environ.update(environment)
        code = function() or 0
        sys.stderr.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
    finally:
        os._exit(code)


def start(arguments, log, before=lambda: None, **environment):
    """Run a command in a forked process; return its number."""

    def run():
        before()
        from annotated_transformer import cli

        return cli.main(arguments)

    return fork(run, log, **environment)


def together(function, log, world=2, **environment):
    """Call function(rank) in `world` processes, as torchrun would start them.

    Returns their numbers. log: each process writes to one with its rank added.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment["WORLD_SIZE"] = str(world)
    return [
        fork(
            functools.partial(function, rank),
            f"{log}{rank}",
            RANK=str(rank),
            LOCAL_RANK=str(rank),
            **environment,
        )
        for rank in range(world)
    ]


def start_together(arguments, log, world=2, before=lambda rank: None):
    """Run one command in `world` processes; return their numbers."""

    def run(rank):
        before(rank)
        from annotated_transformer import cli

        return cli.main(arguments)

    return together(run, log, world)


def end(number, timeout=120):
    """Wait for a process; return its exit code, or minus the signal that ended it."""
    limit = time.monotonic() + timeout
    while time.monotonic() < limit:
        found, status = os.waitpid(number, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.01)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    raise AssertionError(f"a process was still running after {timeout} s")


def finish(arguments, log, **options):
    """Run a command to its end: exit code, and the lines it wrote."""
    code = end(start(arguments, log, **options))
    return code, Path(log).read_text().splitlines()


def lines(out, name="steps.jsonl"):
    """Whole lines in one of the files of metrics of a run."""
    path = Path(out, name)
    return path.read_bytes().count(b"\n") if path.exists() else 0


def wait_for_line(out, number, process):
    """Wait until steps.jsonl has so many lines, or the process has ended."""
    while lines(out) < number:
        if os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT):
            return
        time.sleep(0.002)


def validations(out):
    """training.jsonl without what a clock decides."""
    rows = [json.loads(line) for line in Path(out, "training.jsonl").open()]
    return [
        {k: v for k, v in row.items() if k not in ("seconds", "tokens_per_second")}
        for row in rows
    ]


def tensors(path):
    """The tensors of a checkpoint or of weights, as bytes by name."""
    from safetensors.torch import load_file

    return {name: t.numpy().tobytes() for name, t in load_file(path).items()}


def assert_same_run(one, other):
    """Equal to the bit: every step, every validation, the weights, the last state."""
    from annotated_transformer.checkpoints import checkpoints

    one, other = Path(one), Path(other)
    assert (one / "steps.jsonl").read_text() == (other / "steps.jsonl").read_text()
    assert validations(one) == validations(other)
    for name in ("config.json", "model.safetensors", "tokenizer.model"):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    lasts = [checkpoints(folder)[-1] for folder in (one, other)]
    assert lasts[0].name == lasts[1].name
    assert tensors(lasts[0]) == tensors(lasts[1])
    for folder in (one, other):
        numbers = [json.loads(row)["step"] for row in (folder / "steps.jsonl").open()]
        assert numbers == [*range(1, len(numbers) + 1)]  # none twice, none missing
        assert not [p for p in folder.rglob("*") if ".saving" in p.name]
        assert json.loads((folder / "record.json").read_text())["finished"] is True
