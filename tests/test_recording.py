"""What the long measurements share: benchmarks/recording.py."""

import json
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True, scope="module")
def recording():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import recording

    yield recording
    sys.path.remove(str(ROOT / "benchmarks"))


CASES = [{"rate": rate, "seed": seed} for rate in (1, 2) for seed in (0, 1)]


def test_a_command_that_was_broken_off_goes_on_where_it_stopped(recording, tmp_path):
    record, calls = tmp_path / "x.json", []

    def run(rate, seed):
        if len(calls) == 2:
            raise KeyboardInterrupt
        calls.append((rate, seed))
        return {"loss": 10 * rate + seed}

    with pytest.raises(KeyboardInterrupt):
        recording.run_all(CASES, run, record)
    assert calls == [(1, 0), (1, 1)]
    again = []

    def rest(rate, seed):
        again.append((rate, seed))
        return {"loss": 10 * rate + seed}

    runs = recording.run_all(CASES, rest, record)
    assert again == [(2, 0), (2, 1)]
    assert [(r["rate"], r["seed"], r["loss"]) for r in runs] == [
        (1, 0, 10),
        (1, 1, 11),
        (2, 0, 20),
        (2, 1, 21),
    ]
    assert all(r["commit"] == recording.git_commit() for r in runs)


def test_a_case_that_another_command_finished_meanwhile_is_not_run(recording, tmp_path):
    record, calls = tmp_path / "x.json", []

    def other(rate, seed):
        return {"loss": -1}

    def run(rate, seed):
        calls.append((rate, seed))
        if len(calls) == 1:
            recording.run_all(CASES[1:3], other, record)
        return {"loss": 0}

    runs = recording.run_all(CASES, run, record)
    assert calls == [(1, 0), (2, 1)]
    assert [r["loss"] for r in runs] == [0, -1, -1, 0]


def test_the_record_is_whole_and_the_lines_are_gone(recording, tmp_path):
    record = tmp_path / "x.json"
    runs = recording.run_all(CASES, lambda **case: {"loss": 0.5}, record)
    assert [path.name for path in tmp_path.iterdir()] == ["x.runs"]
    recording.write_record(record, "python x.py", {"seeds": (0, 1), "runs": runs})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
    written = json.loads(record.read_text(encoding="utf-8"))
    assert written["runs"] == runs and len(runs) == 4
    assert written["command"] == "python x.py" and written["seeds"] == [0, 1]
    assert written["versions"]["torch"] == torch.__version__
    assert {"commit", "date", "device", "cpu_seconds"} <= written.keys()


def test_batches_hold_every_pair_once_and_no_more_tokens_than_they_may(recording):
    torch.manual_seed(0)
    lengths = torch.randint(1, 12, (200, 2)).tolist()
    pairs = [([5 + i] * src, [5 + i] * tgt) for i, (src, tgt) in enumerate(lengths)]
    batches = recording.length_batches(pairs, 40, seed=3)
    rows = [row for batch in batches for row in batch.labels[:, 0].tolist()]
    assert sorted(rows) == [5 + i for i in range(200)]
    assert all(max(batch.src.numel(), batch.labels.numel()) <= 40 for batch in batches)
    assert all(batch.src.numel() for batch in batches)
    other = recording.length_batches(pairs, 40, seed=4)
    assert [b.labels.tolist() for b in other] != [b.labels.tolist() for b in batches]
    same = recording.length_batches(pairs, 40, seed=3)
    assert [b.labels.tolist() for b in same] == [b.labels.tolist() for b in batches]


def test_what_is_not_whole_can_go_on(recording, tmp_path):
    record = tmp_path / "x.json"
    runs = recording.run_all(CASES[:1], lambda **case: {"loss": 0.5}, record)
    recording.write_record(record, "python x.py", {"runs": runs}, whole=False)
    assert {path.name for path in tmp_path.iterdir()} == {"x.json", "x.runs"}


def test_a_copy_without_history_is_told_its_commit(recording, tmp_path, monkeypatch):
    monkeypatch.setattr(recording, "ROOT", tmp_path)
    monkeypatch.delenv(recording.COMMIT, raising=False)
    with pytest.raises(SystemExit, match=f"set {recording.COMMIT} to it"):
        recording.git_commit()
    monkeypatch.setenv(recording.COMMIT, "0123456789ab")
    assert recording.git_commit() == "0123456789ab"


def test_a_record_says_where_it_is_from(recording, monkeypatch):
    monkeypatch.setattr(recording, "git_commit", lambda: "0123456789ab")
    head = recording.origin("python benchmarks/x.py", ["torch", "no-such-package"])
    assert list(head) == ["command", "commit", "date", "device", "versions"]
    found = head["command"], head["commit"]
    assert found == ("python benchmarks/x.py", "0123456789ab")
    assert head["device"] == recording.ALL_CORES
    versions = head["versions"]
    assert versions["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert versions["no-such-package"] is None and versions["python"]


def test_tables_have_a_line_for_each_row(recording, tmp_path):
    record = tmp_path / "new" / "x.json"
    rows = [{"n": n, "ms": n / 3} for n in (16, 32)]
    contents = {"name": "größe", "rows": rows, "none": []}
    recording.save(record, contents, ["rows", "none"])
    text = record.read_text(encoding="utf-8")
    assert json.loads(text) == contents and "größe" in text
    assert [line for line in text.splitlines() if '"n"' in line] == [
        f"  {json.dumps(rows[0])},",
        f"  {json.dumps(rows[1])}",
    ]


def test_a_record_that_would_not_say_what_it_was_given_is_not_written(
    recording, tmp_path
):
    """An empty table of the same name, further up, would get the lines."""
    contents = {"sizes": {"rows": []}, "rows": [{"n": 1}]}
    with pytest.raises(AssertionError, match="would not say"):
        recording.save(tmp_path / "x.json", contents, ["rows"])
    assert not (tmp_path / "x.json").exists()
