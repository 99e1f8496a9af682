"""One run in several processes: the same numbers, one writer, an end and not a hang."""

import functools
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import runs

SPECIAL = 0, 1, 2
VOCAB_SIZE = 40
SECONDS = 120  # a process that has not ended by then hangs


def pairs(n, longest=12):
    """Random sequences of unequal length, each with its reverse."""
    import random

    rng = random.Random(n)
    rows = [
        [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.randint(1, longest))]
        for _ in range(n)
    ]
    return [(row, row[::-1]) for row in rows]


def model():
    import torch

    from annotated_transformer import Transformer, TransformerConfig

    torch.manual_seed(0)
    shape = {"d_model": 32, "n_layers": 2, "n_heads": 2, "d_ff": 64, "dropout": 0.1}
    return Transformer(TransformerConfig(VOCAB_SIZE, **shape))


def ended(processes, timeout=SECONDS):
    """The exit codes; a process that does not end fails the test, and all are ended."""
    limit, codes = time.monotonic() + timeout, []
    try:
        for number in processes:
            codes.append(runs.end(number, max(limit - time.monotonic(), 0.1)))
    finally:
        for number in processes[len(codes) + 1 :]:
            os.kill(number, signal.SIGKILL)
            os.waitpid(number, 0)
    return codes


def logs(log, world=2):
    return [Path(f"{log}{rank}").read_text() for rank in range(world)]


# The same numbers


CUTS = (7, 40), (7, 40, 3), (30, 2, 25, 9), (12,), (5, 60, 1, 8, 20)  # pairs a batch


def one_update(folder, rank):
    """For each of CUTS write one update's gradient, loss and norm, and what it took."""
    import torch
    import torch.distributed as dist
    from safetensors.torch import save_file
    from torch.distributed.algorithms.ddp_comm_hooks import default_hooks

    from annotated_transformer.batching import make_batch
    from annotated_transformer.training import (
        TrainingConfig,
        make_adam,
        process_group,
        processes,
        share_out,
        update,
        wrap,
    )

    class Batches:
        def make(self, group):
            return make_batch(group, *SPECIAL)

    def hook(reduced, bucket):
        reduced.append(bucket.is_last())
        return default_hooks.allreduce_hook(dist.group.WORLD, bucket)

    torch.set_num_threads(1)
    config = TrainingConfig()
    with process_group(torch.device("cpu"), timeout=1):
        _, world = processes()
        for sizes in CUTS:
            rows, ends = pairs(sum(sizes)), [*itertools.accumulate(sizes)]
            groups = [
                rows[end - size : end] for size, end in zip(sizes, ends, strict=True)
            ]
            tokens = sum(len(tgt) + 1 for _, tgt in rows)
            trained, reduced = model(), []
            adam, objective = make_adam(trained, config), wrap(trained, config)
            if world > 1:
                objective.register_comm_hook(reduced, hook)
            mine = share_out(5, groups, Batches(), trained, seed=3)
            loss, norm = update(objective, adam, mine, tokens, 1e-3)
            results = {n: p.grad for n, p in trained.named_parameters()}
            results |= {"loss": loss / tokens, "norm": norm}
            results["reductions"] = torch.tensor(float(sum(reduced)))
            results["batches"] = torch.tensor(float(len(mine)))
            save_file(results, f"{folder}/{sizes} {world} {rank}")


@runs.in_fresh_python
def test_one_gradient_however_many_processes(tmp_path):
    """Of unequal batches, with dropout; one all-reduce for each, none but the last."""
    from safetensors.torch import load_file

    work = functools.partial(one_update, tmp_path)
    assert ended([runs.fork(lambda: work(0), tmp_path / "log")]) == [0]
    for world in (2, 3):
        log = tmp_path / f"log-{world}-"
        assert ended(runs.together(work, log, world)) == [0] * world, logs(log, world)
    for sizes, world in itertools.product(CUTS, (2, 3)):
        whole = load_file(tmp_path / f"{sizes} 1 0")
        worst = {"gradient": 0.0, "loss": 0.0, "norm": 0.0}
        for rank in range(world):
            part = load_file(tmp_path / f"{sizes} {world} {rank}")
            assert part.pop("reductions").item() == 1  # not one for each batch
            assert part.pop("batches").item() == max(len(sizes[rank::world]), 1)
            for name, value in part.items():
                kind = name if name in worst else "gradient"
                difference = (value - whole[name]).abs().max().item()
                worst[kind] = max(worst[kind], difference)
        largest = max(value.abs().max().item() for value in part.values())
        print(
            f"batches of {sizes} pairs, 1 against {world} processes: "
            + ", ".join(f"{kind} {value:.1e}" for kind, value in worst.items())
        )
        assert worst["gradient"] < 1e-6 and worst["loss"] < 1e-6 < largest
        assert worst["norm"] < 1e-5
        if len(sizes) <= 2 and world == 2:  # there is one order of adding only
            assert set(worst.values()) == {0.0}


def curves(folder):
    """Losses and norms of the steps, and the validations."""
    steps = [json.loads(line) for line in Path(folder, "steps.jsonl").open()]
    return steps, runs.validations(folder)


def largest_difference(one, other):
    """Of the losses and norms of all steps, and of the validations, of two runs."""
    (ones, before), (others, after) = curves(one), curves(other)
    exact = ("step", "epoch", "tokens", "learning_rate")
    assert [[row[k] for k in exact] for row in ones] == [
        [row[k] for k in exact] for row in others
    ]
    worst = {
        key: max(abs(a[key] - b[key]) for a, b in zip(ones, others, strict=True))
        for key in ("loss", "gradient_norm")
    }
    worst["validation_loss"] = max(
        abs(a["validation_loss"] - b["validation_loss"])
        for a, b in zip(before, after, strict=True)
    )
    return worst


@runs.in_fresh_python
def test_one_curve_however_many_processes(tmp_path):
    """Three batches to a step: equal to the rounding of a sum. (Two: see the kills.)"""
    folders = tmp_path / "one", tmp_path / "two"
    one, two = (
        runs.train_arguments(folder, "--accumulation", "3", "--warmup", "400")
        for folder in folders
    )
    assert runs.finish(one, tmp_path / "log")[0] == 0
    assert ended(runs.start_together(two, tmp_path / "log-")) == [0, 0]
    worst = largest_difference(*folders)
    print(
        f"{runs.lines(folders[0])} steps of 3 batches, 1 against 2 processes: "
        + ", ".join(f"{key} {value:.1e}" for key, value in worst.items())
    )
    assert 0 < worst["loss"] < 1e-5 and worst["validation_loss"] < 1e-5, worst
    assert worst["gradient_norm"] < 1e-4, worst


# One writer


@runs.in_fresh_python
def test_only_the_first_process_writes_and_speaks(tmp_path):
    import annotated_transformer

    out = tmp_path / "run"
    once = runs.train_arguments(out, "--max-steps", "1")
    assert runs.finish([*once, "--out", str(tmp_path / "x")], tmp_path / "log")[0] == 0
    events = "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"

    def forbid(rank):
        def watch(event, details):
            touched = str(details[0]) if details else ""
            writes = event in events
            if event == "open" and isinstance(details[2], int):
                writes = details[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if writes and touched.startswith(str(tmp_path)):
                raise AssertionError(f"process {rank} writes: {event} {touched}")

        if rank:
            sys.addaudithook(watch)

    log = tmp_path / "log-"
    codes = ended(runs.start_together(runs.train_arguments(out), log, before=forbid))
    first, second = logs(log)
    assert codes == [0, 0] and second == "", second
    assert ", 2 processes\n" in first and "kept step" in first
    record = json.loads((out / "record.json").read_text())
    assert record["processes"] == 2 and record["training"]["accumulation"] == 2
    assert annotated_transformer.Translator.from_pretrained(out)


@runs.in_fresh_python
def test_what_is_wrong_is_said_once(tmp_path):
    log = tmp_path / "log-"
    for number, (more, expected) in enumerate(
        (
            (["--corpus", "nowhere"], "nowhere"),
            (["--out", "/proc/run"], "cannot write to /proc/run"),
            (["--warmup", "0"], "--warmup: '0' is not"),
            (["--dropout", "1.5"], "dropout is 1.5"),
            (["--accumulation", "1"], "2 processes need at least 2"),
        )
    ):
        out = tmp_path / f"run{number}"
        log = tmp_path / f"log{number}-"
        arguments = runs.train_arguments(out, *more)
        codes = ended(runs.start_together(arguments, log))
        first, second = logs(log)
        assert codes[0] == codes[1] in (1, 2)
        assert expected in first and first.count("\n") == 1, first
        if codes[0] == 1:  # argparse speaks before there is a group
            assert second == ""
        assert not list(out.glob("*.*"))


# The end of one


def kill_at(out, process, processes, line, number=signal.SIGKILL):
    """Send a signal to one process when steps.jsonl has so many lines."""
    runs.wait_for_line(out, line, processes[0])
    os.kill(process, number)


@runs.in_fresh_python
def test_killed_in_two_processes_and_gone_on_in_two_and_in_one(tmp_path):
    """Two batches to a step: all of it is what one process does, to the bit."""
    whole, out = tmp_path / "whole", tmp_path / "run"
    more = "--accumulation", "2"
    arguments = runs.train_arguments(whole, *more)
    assert runs.finish(arguments, tmp_path / "log")[0] == 0
    arguments, log = runs.train_arguments(out, *more), tmp_path / "log-"
    for line in (8, 20):
        processes = runs.start_together(arguments, log)
        runs.wait_for_line(out, line, processes[0])
        for process in processes:
            os.kill(process, signal.SIGKILL)
        assert ended(processes) == [-signal.SIGKILL] * 2, logs(log)
        assert line <= runs.lines(out) < runs.lines(whole)
    assert runs.finish(arguments, f"{log}0")[0] == 0
    assert logs(log)[0].count("going on after step") == 2
    runs.assert_same_run(whole, out)


@pytest.mark.parametrize("victim", [0, 1])
@runs.in_fresh_python
def test_a_process_that_dies_ends_the_others(tmp_path, victim):
    from annotated_transformer.checkpoints import checkpoints, read_state

    out, log = tmp_path / "run", tmp_path / "log-"
    arguments = runs.train_arguments(out, "--epochs", "1000")
    processes = runs.start_together(arguments, log)
    kill_at(out, processes[victim], processes, 4)
    started = time.monotonic()
    codes = ended(processes)
    print(f"the other process ended after {time.monotonic() - started:.1f} s")
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1
    said = logs(log)[1 - victim].splitlines()[-1]
    name = "annotated-transformer" + ("" if victim else ", process 1")
    assert said.replace(", process 1", "") == (
        "annotated-transformer: lost another process: it has ended, or was silent for "
        "30 minutes"
    )
    assert said.startswith(name) and "Traceback" not in "".join(logs(log))
    assert read_state(checkpoints(out)[-1])[0].step >= 2


@runs.in_fresh_python
def test_a_process_that_hangs_is_not_waited_for_for_ever(tmp_path):
    out, log = tmp_path / "run", tmp_path / "log-"
    arguments = runs.train_arguments(out, "--epochs", "1000", "--timeout", "0.05")
    processes = runs.start_together(arguments, log)
    kill_at(out, processes[1], processes, 4, signal.SIGSTOP)
    try:
        assert ended(processes[:1]) == [1]
    finally:
        os.kill(processes[1], signal.SIGKILL)
        ended(processes[1:])
    assert "or was silent for 0.05 minutes" in logs(log)[0].splitlines()[-1]


@runs.in_fresh_python
def test_an_error_of_the_first_process_is_the_end_of_all(tmp_path):
    """A full disk, say: only the first process writes, and the second must not wait."""
    import resource

    out, log = tmp_path / "run", tmp_path / "log-"
    arguments = runs.train_arguments(out, "--epochs", "1000")

    def fill(rank):
        if rank == 0:
            from annotated_transformer import checkpoints

            write = checkpoints.write_checkpoint

            def full(path, tensors, progress, settings):
                if progress.step >= 4:
                    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
                write(path, tensors, progress, settings)

            checkpoints.write_checkpoint = full

    codes = ended(runs.start_together(arguments, log, before=fill))
    first, second = (said.splitlines()[-1] for said in logs(log))
    assert codes == [1, 1]
    assert "cannot write" in first and "step-00000004" in first
    assert second.startswith("annotated-transformer, process 1: lost another process")


@runs.in_fresh_python
def test_a_loss_that_is_not_finite_in_one_process_stops_all(tmp_path):
    """The batch is that of process 1; both see it, and the first says where it was."""
    from annotated_transformer.checkpoints import checkpoints, read_state

    out, log = tmp_path / "run", tmp_path / "log-"

    def spoil(rank):
        from annotated_transformer import training

        calls, loss_of = [], training.batch_loss

        def spoilt(objective, batch, bfloat16=False):
            loss = loss_of(objective, batch, bfloat16)
            calls.append(objective.training)
            return loss * math.inf if rank == 1 and sum(calls) == 4 + 7 else loss

        training.batch_loss = spoilt

    codes = ended(runs.start_together(runs.train_arguments(out), log, before=spoil))
    first, second = logs(log)
    assert codes == [1, 1] and second == ""
    assert "the loss is inf at step 7 (epoch 1, batches 13 to 14)" in first
    assert read_state(checkpoints(out)[-1])[0].step == 6 == runs.lines(out)


# Under torchrun itself


def worker(agent, rank):
    """The number of the process that torchrun started with this rank."""
    limit = time.monotonic() + SECONDS
    while time.monotonic() < limit:
        children = Path(f"/proc/{agent}/task/{agent}/children").read_text().split()
        for child in children:
            environment = Path(f"/proc/{child}/environ").read_bytes().split(b"\0")
            if f"RANK={rank}".encode() in environment:
                return int(child)
        time.sleep(0.05)
    raise AssertionError("torchrun has not started its processes")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs Linux")
def test_the_same_command_under_torchrun(tmp_path):
    """Killed in one of its processes, it ends; started again, it goes on to the end."""
    words = [f"{a} {b} {c}." for a in "abc" for b in "defgh" for c in "ijk"]
    (tmp_path / "corpus").mkdir()
    for split in ("train", "val"):
        for language in ("en", "de"):
            rows = words if split == "train" else words[:4]
            path = tmp_path / "corpus" / f"{split}.{language}"
            path.write_text("".join(f"{row}\n" for row in rows))
    command = (
        "-m annotated_transformer train --corpus corpus --source en --target de "
        "--vocab-size 280 --max-tokens 60 --accumulation 2 --d-model 32 --n-layers 1 "
        "--n-heads 2 --d-ff 32 --epochs 15 --validate-every 1000 --warmup 50 "
        "--checkpoint-every 5 --device cpu --out"
    ).split()
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(runs.TESTS.parent)
    environment["ANNOTATED_TRANSFORMER_CACHE"] = str(tmp_path / "cache")
    options = {"cwd": tmp_path, "env": environment, "text": True}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}

    with subprocess.Popen([*torchrun, *command, "two"], **options, **pipes) as running:
        second = worker(running.pid, 1)
        while runs.lines(tmp_path / "two") < 5:
            assert running.poll() is None, running.stdout.read()
            time.sleep(0.01)
        os.kill(second, signal.SIGKILL)
        said, _ = running.communicate(timeout=SECONDS)
    assert running.returncode == 1
    assert "lost another process" in said or "Signal 9 (SIGKILL)" in said, said
    reached = runs.lines(tmp_path / "two")

    done = subprocess.run(
        [*torchrun, *command, "two"], **options, **pipes, timeout=4 * SECONDS
    )
    assert done.returncode == 0, done.stdout
    assert "going on after step" in done.stdout and ", 2 processes" in done.stdout
    alone = [sys.executable, *command, "one"]
    done = subprocess.run(alone, **options, **pipes, timeout=4 * SECONDS)
    assert done.returncode == 0, done.stdout
    assert 5 <= reached < runs.lines(tmp_path / "one")
    runs.assert_same_run(tmp_path / "one", tmp_path / "two")
