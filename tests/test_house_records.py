"""Each record of a heavy run says where it is from, and some page shows it."""

import json
import re
import shlex
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
RECORDS = sorted((ROOT / "book" / "records").glob("*.json"))


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_record_says_how_to_make_it_again(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    program, *rest = shlex.split(record["command"])
    if program == "python":
        assert (ROOT / rest[0]).is_file(), f"there is no {rest[0]}"
    else:
        assert program in ("annotated-transformer", "torchrun")
    assert re.fullmatch(r"[0-9a-f]{12}", record["commit"]), "of files as committed"
    assert re.fullmatch(r"20\d\d-\d\d-\d\d", record["date"])
    assert record["device"]
    assert "python" in record.get("versions", {}) or record.get("torch")


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_the_runs_of_a_record_are_of_one_commit(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    runs = record.get("runs", [])
    assert {run.get("commit", record["commit"]) for run in runs} <= {record["commit"]}


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.name)
def test_a_record_is_shown_on_a_page(path):
    pages = [*ROOT.glob("notebooks/*.ipynb"), *ROOT.glob("book/*.md")]
    assert any(path.name in page.read_text(encoding="utf-8") for page in pages)
