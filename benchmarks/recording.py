"""What the long measurements share: batches, runs that are kept, and the record.

A measurement is a list of runs, each decided by its settings alone. `run_all` writes
every result to `<record>.runs` as it comes, one line each, so that a command that was
broken off goes on where it stopped; `write_record` puts them all in one file that
says where they are from, and removes the lines.
"""

import datetime
import json
import os
import platform
import random
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from annotated_transformer.batching import Batch, Pair, make_batch

ROOT = Path(__file__).resolve().parent.parent


COMMIT = "ANNOTATED_TRANSFORMER_COMMIT"  # set where a copy has no history of its own


def git_commit() -> str:
    """The commit of the code, with -dirty where files differ from it.

    In a copy without history it is what the environment variable COMMIT names says.
    """
    if os.environ.get(COMMIT):
        return os.environ[COMMIT]
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    done = subprocess.run(git, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"git does not know the commit of {ROOT}: set {COMMIT} to it")
    return done.stdout.strip()


def length_batches(
    pairs: Sequence[Pair], max_tokens: int, seed: int, special=(0, 1, 2)
) -> list[Batch]:
    """All pairs once: neighbours in length together, the batches in a seed's order.

    special: pad_id, bos_id, eos_id.
    """
    rng = random.Random(seed)
    order = rng.sample(range(len(pairs)), len(pairs))
    order.sort(key=lambda i: max(map(len, pairs[i])))
    groups: list[list[Pair]] = [[]]
    for i in order:
        longest = 1 + max(map(len, pairs[i]))  # with eos; of the group, by the order
        if longest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
        groups[-1].append(pairs[i])
    rng.shuffle(groups)
    return [make_batch(group, *special) for group in groups]


def _lines(record: Path) -> Path:
    return record.with_suffix(".runs")


def run_all(
    cases: Sequence[dict], run: Callable[..., dict], record: Path
) -> list[dict]:
    """run(**case) for each case: the case, its results, CPU seconds and commit.

    Cases that an earlier command finished are read, not repeated, also while this one
    runs: several commands may share the work. To start anew, remove the lines.
    """
    lines = _lines(record)
    lines.parent.mkdir(parents=True, exist_ok=True)
    commit = git_commit()
    for case in cases:
        if json.dumps(case) in _finished(lines):
            continue
        started = time.process_time()
        result = run(**case)
        seconds = round(time.process_time() - started, 1)
        result |= {"cpu_seconds": seconds, "commit": commit}
        with lines.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"case": case, "result": result}) + "\n")
        said = ", ".join(f"{name} {value}" for name, value in case.items())
        print(f"{said}: {seconds} s", file=sys.stderr, flush=True)
    done = _finished(lines)
    return [case | done[json.dumps(case)] for case in cases]


def _finished(lines: Path) -> dict[str, dict]:
    """The results so far, by the case as JSON."""
    if not lines.exists():
        return {}
    entries = map(json.loads, lines.read_text(encoding="utf-8").splitlines())
    return {json.dumps(entry["case"]): entry["result"] for entry in entries}


ONE_CORE = f"one of {os.cpu_count()} CPU cores, {platform.machine()}"
ALL_CORES = f"{os.cpu_count()}-core {platform.machine()} CPU"


def origin(command: str, packages: Sequence[str] = (), device: str = ALL_CORES) -> dict:
    """The head of a record: what makes it again, from which commit, when and on what.

    packages: whose versions matter; None for one that is not there. To be called
    before the measurement begins.
    """
    return {
        "command": command,
        "commit": git_commit(),
        "date": datetime.date.today().isoformat(),
        "device": device,
        "versions": {
            "python": platform.python_version(),
            **{package: _version(package) for package in packages},
        },
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def save(record: Path, contents: dict, tables: Sequence[str] = ()) -> None:
    """Write a record as JSON. tables: lists in it that get a line for each item."""
    bare = contents | {name: [] for name in tables}
    text = json.dumps(bare, indent=1, ensure_ascii=False) + "\n"
    for name in tables:
        rows = ",\n".join(
            "  " + json.dumps(row, ensure_ascii=False) for row in contents[name]
        )
        text = text.replace(f'"{name}": []', f'"{name}": [\n{rows}\n ]', 1)
    if json.loads(text) != json.loads(json.dumps(contents)):
        raise AssertionError(f"{record} would not say what was measured")
    record.parent.mkdir(parents=True, exist_ok=True)
    record.write_text(text, encoding="utf-8")
    print(record, file=sys.stderr)


def write_record(
    record: Path, command: str, contents: dict, packages=(), whole: bool = True
) -> None:
    """The record of runs that `run_all` made on one core, with torch; one run a line.

    whole: nothing is missing, so the lines of the runs can go.
    """
    head = origin(command, ("torch", *packages), ONE_CORE)
    head["cpu_seconds"] = round(sum(run["cpu_seconds"] for run in contents["runs"]))
    save(record, head | contents, ["runs"])
    if whole:
        _lines(record).unlink(missing_ok=True)
