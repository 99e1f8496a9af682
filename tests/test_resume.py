"""Runs that are killed, go on, or cannot: nothing is lost, nothing is overwritten."""

import json
import os
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest

import runs
from annotated_transformer import TransformerConfig
from annotated_transformer.checkpoints import (
    Progress,
    RunFolder,
    check_settings,
    checkpoints,
    read_state,
    read_tensors,
    write_checkpoint,
)
from annotated_transformer.training import TrainingConfig, run_settings


def contents(folder):
    """Every file under a folder with its bytes."""
    paths = [path for path in Path(folder).rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


def is_one_line(log):
    return len(log) == 1 and log[0].startswith("annotated-transformer: ")


# Killed


@pytest.mark.slow
@runs.in_fresh_python
def test_ten_kills_at_random_moments_change_nothing(tmp_path):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    code, _ = runs.finish(runs.train_arguments(whole), tmp_path / "log")
    assert code == 0
    n, rng = runs.lines(whole), random.Random(os.environ.get("KILL_SEED", 0))
    assert n >= 24
    targets = sorted(rng.sample(range(0, n - 2, 2), 9))  # and one before any step
    kills = []
    for target in (None, *targets):
        process = runs.start(runs.train_arguments(broken), tmp_path / "broken.log")
        if target is not None:
            runs.wait_for_line(broken, target, process)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(process, signal.SIGKILL)
        kills.append((runs.end(process), runs.lines(broken)))
    code, log = runs.finish(runs.train_arguments(broken), tmp_path / "broken.log")
    assert code == 0, log
    assert [code for code, _ in kills] == [-signal.SIGKILL] * 10, kills
    assert len({reached for _, reached in kills}) >= 5, kills
    assert sum("going on after step" in line for line in log) >= 5, log
    runs.assert_same_run(whole, broken)


@pytest.mark.parametrize("number", [int(signal.SIGINT), int(signal.SIGTERM)])
@runs.in_fresh_python
def test_a_signal_is_answered_with_a_checkpoint(tmp_path, number):
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    # No checkpoint of its own accord between the first and the validation.
    rare = ["--checkpoint-every", "1000", "--epochs", "1"]
    assert runs.finish(runs.train_arguments(whole, *rare), tmp_path / "log")[0] == 0

    def slow():
        import annotated_transformer.training as training

        signal.signal(signal.SIGINT, signal.default_int_handler)
        training.READ_EVERY = 0.0
        update = training.update
        training.update = lambda *args: (time.sleep(0.1), update(*args))[1]

    arguments = runs.train_arguments(broken, *rare)
    process = runs.start(arguments, tmp_path / "one", before=slow)
    runs.wait_for_line(broken, 3, process)
    os.kill(process, number)
    assert runs.end(process) == 128 + number
    log = (tmp_path / "one").read_text().splitlines()
    assert "stopping after this step" in log[-1]
    step = read_state(checkpoints(broken)[-1])[0].step
    assert step == runs.lines(broken) >= 3
    code, log = runs.finish(arguments, tmp_path / "two")
    assert code == 0 and any(f"going on after step {step}," in line for line in log)
    runs.assert_same_run(whole, broken)


@runs.in_fresh_python
def test_a_full_disk_is_one_line_and_costs_nothing(tmp_path):
    """A limit on the size of files stands in for the disk."""
    whole, full = tmp_path / "whole", tmp_path / "full"
    assert runs.finish(runs.train_arguments(whole), tmp_path / "log")[0] == 0
    process = runs.start(runs.train_arguments(full), tmp_path / "killed")
    runs.wait_for_line(full, 6, process)
    os.kill(process, signal.SIGKILL)
    runs.end(process)
    for old in (full / "checkpoints").glob(".saving-*"):
        old.unlink()
    before = contents(full / "checkpoints")
    limit = checkpoints(full)[-1].stat().st_size // 2

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    arguments = runs.train_arguments(full)
    code, log = runs.finish(arguments, tmp_path / "full.log", before=fill)
    assert code == 1 and is_one_line(log[-1:]) and "Traceback" not in " ".join(log)
    assert "cannot write" in log[-1] and "step-" in log[-1] and "too large" in log[-1]
    assert contents(full / "checkpoints") == before
    assert runs.finish(arguments, tmp_path / "again")[0] == 0
    runs.assert_same_run(whole, full)


# What is refused


@runs.in_fresh_python
def test_what_a_run_does_not_go_on_from(tmp_path):
    """Another setting, a checkpoint that is none, metrics that are cut; a finished run.

    Each is one line, and no byte of the folder changes.
    """
    out = tmp_path / "run"
    arguments = runs.train_arguments(out)
    process = runs.start(arguments, tmp_path / "killed")
    runs.wait_for_line(out, 7, process)
    os.kill(process, signal.SIGKILL)
    runs.end(process)

    def refused(more, *expected):
        before = contents(out)
        log = tmp_path / f"log{len(list(tmp_path.iterdir()))}"
        code, said = runs.finish([*arguments, *more], log)
        assert code == 1 and is_one_line(said), said
        assert all(each in said[0] for each in expected), said
        assert contents(out) == before

    refused(["--warmup", "30"], "warmup 20", "30", "step-")
    refused(["--dropout", "0.2"], "dropout 0.1", "0.2")
    refused(["--seed", "1"], "seed 0", "1")
    refused(["--source", "ko"], "source 'en'", "'ko'")
    refused(["--accumulation", "2"], "accumulation 1", "2")
    last, other = checkpoints(out)[-1], checkpoints(out)[-2]
    data = last.read_bytes()
    for spoilt in (data[: len(data) // 2], b"", b"text\n" * 20, data[:-1]):
        last.write_bytes(spoilt)
        way_out = f"delete it to go on from {other.name}"
        refused([], str(last), "not a whole checkpoint", way_out)
    last.write_bytes(data)
    metrics = (out / "steps.jsonl").read_bytes()
    (out / "steps.jsonl").write_bytes(metrics[:30])
    refused([], "steps.jsonl is cut")
    (out / "steps.jsonl").write_bytes(metrics)
    assert runs.finish([*arguments, "--keep", "1"], tmp_path / "end")[0] == 0  # may
    assert len(checkpoints(out)) <= 2
    refused([], "already holds a finished run")
    refused(["--warmup", "30"], "already holds a finished run")


def test_another_factor_of_the_learning_rate_is_refused(tmp_path):
    """Also where one of the two is the usual 1, which old checkpoints do not name."""
    model, path = TransformerConfig.tiny(300), tmp_path / "step-00000001.safetensors"
    settings = {rate: run_settings(model, TrainingConfig(rate=rate)) for rate in (1, 2)}
    old = {name: value for name, value in settings[1].items() if name != "rate"}
    for then, now, told in (
        (settings[2], settings[1], "rate 2, and this one has 1"),
        (settings[1], settings[2], "rate 1, and this one has 2"),
        (old, settings[2], "rate 1.0, and this one has 2"),
    ):
        write_checkpoint(path, {}, Progress(step=1), then)
        with pytest.raises(ValueError, match=told):
            check_settings(path, now)
        check_settings(path, then)
    check_settings(path, settings[1])


@runs.in_fresh_python
def test_the_last_checkpoint_deleted_goes_on_from_the_one_before(tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "run"
    assert runs.finish(runs.train_arguments(whole), tmp_path / "log")[0] == 0
    process = runs.start(runs.train_arguments(out), tmp_path / "killed")
    runs.wait_for_line(out, 7, process)
    os.kill(process, signal.SIGKILL)
    runs.end(process)
    checkpoints(out)[-1].unlink()
    assert runs.finish(runs.train_arguments(out), tmp_path / "again")[0] == 0
    runs.assert_same_run(whole, out)


# The files


def tensor(value=1.0):
    import torch

    return {"w": torch.full((3,), value)}


def test_a_checkpoint_comes_back(tmp_path):
    progress = Progress(7, 0.1 + 0.2, 5, 1.5, [12.5, -1 / 3], 6, {"steps.jsonl": 80})
    path = tmp_path / "step-00000007.safetensors"
    write_checkpoint(path, tensor(2.5), progress, {"seed": 1})
    assert read_state(path) == (progress, {"seed": 1})
    read_tensors(path, back := tensor())
    assert back["w"].tolist() == [2.5] * 3
    assert os.listdir(tmp_path) == [path.name]


def test_a_name_appears_when_the_file_is_whole(tmp_path, monkeypatch):
    seen = []
    replace = os.replace

    def watched(source, target):
        seen.append((Path(target).exists(), read_state(Path(source))[0].step))
        replace(source, target)

    monkeypatch.setattr(os, "replace", watched)
    write_checkpoint(tmp_path / "step-00000003.safetensors", tensor(), Progress(3), {})
    assert seen == [(False, 3)]


def test_the_latest_and_the_best_stay(tmp_path):
    files = RunFolder(tmp_path, {}, keep=2)
    progress = files.open(tensor())
    for step in range(1, 8):
        progress.step = step
        if step == 3:
            progress.best_step = 3
        files.save(tensor(), progress)
        steps = [read_state(path)[0].step for path in checkpoints(tmp_path)]
        best = [progress.best_step] if progress.best_step < step - 1 else []
        assert steps == [*best, *range(max(0, step - 1), step + 1)]
    files.close()


def test_an_old_checkpoint_goes_only_when_the_new_one_is_there(tmp_path, monkeypatch):
    files = RunFolder(tmp_path, {}, keep=1)
    progress = files.open(tensor())
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
    progress.step = 1
    with pytest.raises(OSError, match="cannot write .*step-00000001"):
        files.save(tensor(), progress)
    files.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == [
        "step-00000000.safetensors"
    ]


def test_metrics_are_cut_back_to_the_checkpoint(tmp_path):
    files = RunFolder(tmp_path, {"seed": 0}, keep=5)
    progress = files.open(tensor())
    files.log("steps.jsonl", [{"step": 1}])
    progress.step = 1
    files.save(tensor(5.0), progress)
    files.log("steps.jsonl", [{"step": 2}, {"step": 3}])
    files.close()
    with open(tmp_path / "steps.jsonl", "a") as torn:
        torn.write('{"step": 4, "lo')
    (tmp_path / "checkpoints/.saving-step-00000002.safetensors").write_text("half")
    again = RunFolder(tmp_path, {"seed": 0}, keep=5)
    progress = again.open(back := tensor())
    assert (progress.step, back["w"][0].item()) == (1, 5.0)
    again.log("steps.jsonl", [{"step": 2}])
    again.close()
    rows = (tmp_path / "steps.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2]
    assert not list((tmp_path / "checkpoints").glob(".*"))


def test_metrics_of_someone_else_are_left_alone(tmp_path):
    (tmp_path / "steps.jsonl").write_text("dear to someone")
    with pytest.raises(ValueError, match="steps.jsonl is there already"):
        RunFolder(tmp_path, {}, keep=5).open(tensor())
    assert os.listdir(tmp_path) == ["steps.jsonl"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device of Linux")
def test_a_line_that_cannot_be_written_names_its_file(tmp_path):
    files = RunFolder(tmp_path, {}, keep=5)
    files.open(tensor())
    files.metrics["steps.jsonl"] = open("/dev/full", "wb")
    with pytest.raises(OSError, match="cannot write .*steps.jsonl: No space left"):
        files.log("steps.jsonl", [{"step": 1}])
    files.close()


def test_a_folder_that_was_copied_goes_on(tmp_path):
    files = RunFolder(tmp_path / "here", {}, keep=5)
    progress = files.open(tensor())
    progress.step = 4
    files.save(tensor(7.0), progress)
    files.close()
    shutil.copytree(tmp_path / "here", tmp_path / "there")
    moved = RunFolder(tmp_path / "there", {}, keep=5)
    assert moved.open(back := tensor()).step == 4 and back["w"][0].item() == 7.0
    moved.close()
