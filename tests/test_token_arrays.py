"""Token arrays on disk: notebooks/5_1_batches.ipynb, `token_arrays`."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer import token_arrays
from annotated_transformer.batching import TokenBatches
from annotated_transformer.token_arrays import (
    TokenArrays,
    corpus_key,
    encode_in_order,
    tokenize_once,
)
from annotated_transformer.tokenizer import Tokenizer

SETTINGS = settings(max_examples=30, deadline=None, derandomize=True)
SPECIAL = 0, 1, 2
FILES = [
    "header.json",
    "source.offsets",
    "source.tokens",
    "target.offsets",
    "target.tokens",
]


class Numbers:
    """A tokenizer whose texts are the ids: "5 17 65535"."""

    def __init__(self, vocab_size=65_536, model=b"numbers"):
        self.vocab_size, self.model = vocab_size, model

    def encode(self, texts):
        return [[int(word) for word in text.split()] for text in texts]


class Deadly(Numbers):
    """Its process ends at the number 13."""

    def encode(self, texts):
        if "13" in texts:
            os._exit(3)
        return super().encode(texts)


def written(ids):
    return " ".join(map(str, ids))


def untouchable():
    raise AssertionError("the text was read again")
    yield


def some(n=200):
    """n pairs of lines of different lengths, each different."""
    return [
        (written(range(i, i + i % 7 + 1)), written([i] * (i % 5 + 1))) for i in range(n)
    ]


def contents(folder):
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def pairs_with_ids_below(vocab_size):
    side = st.lists(st.integers(0, vocab_size - 1), min_size=1, max_size=12)
    pairs = st.lists(st.tuples(side, side), min_size=1, max_size=20)
    return st.tuples(st.just(vocab_size), pairs)


any_pairs = st.sampled_from([4, 65_536, 65_537, 2**31]).flatmap(pairs_with_ids_below)


# What is written is what is read


@SETTINGS
@given(any_pairs, st.integers(1, 6))
def test_any_ids_come_back(tmp_path_factory, sized_pairs, chunk):
    vocab_size, pairs = sized_pairs
    lines = [(written(src), written(tgt)) for src, tgt in pairs]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(token_arrays, "CHUNK", chunk)
        folder = tmp_path_factory.mktemp("arrays")
        arrays = tokenize_once(lines, Numbers(vocab_size), 99, folder, "any")
    assert list(arrays) == pairs == [arrays[i - len(pairs)] for i in range(len(pairs))]
    assert arrays.lengths.tolist() == [[len(src), len(tgt)] for src, tgt in pairs]
    assert arrays.lengths.dtype == np.int32
    assert arrays.tokens[0].itemsize == (2 if vocab_size <= 65_536 else 4)
    assert all(type(i) is int for i in arrays[0][0])


@SETTINGS
@given(any_pairs, st.integers(0, 2))
def test_batches_from_disk_are_those_of_lists(tmp_path_factory, sized_pairs, epoch):
    vocab_size, pairs = sized_pairs
    lines = ((written(src), written(tgt)) for src, tgt in pairs)
    folder = tmp_path_factory.mktemp("arrays")
    arrays = tokenize_once(lines, Numbers(vocab_size), 99, folder, "any")
    disk, lists = (TokenBatches(p, 30, *SPECIAL, 3) for p in (arrays, pairs))
    for one, other in zip(disk.groups(epoch), lists.groups(epoch), strict=True):
        assert one.tolist() == other.tolist()
        assert all(map(torch.equal, disk.make(one), lists.make(other)))


def test_no_pair_is_behind_the_last(tmp_path):
    arrays = tokenize_once(some(3), Numbers(), 99, tmp_path, "x")
    for i in (3, -4):
        with pytest.raises(IndexError):
            arrays[i]


def test_offsets_reach_beyond_two_thousand_million_and_nothing_is_copied(tmp_path):
    """Four gigabytes of zeros, which take no room on the disk and none in memory."""
    folder = tokenize_once(some(2), Numbers(), 99, tmp_path, "x").folder
    ends = [0, 2**31 + 4, 2**31 + 7]
    (folder / "source.offsets").write_bytes(np.array(ends, dtype="<i8").tobytes())
    os.truncate(folder / "source.tokens", 0)
    os.truncate(folder / "source.tokens", 2 * ends[-1])
    header = json.loads((folder / "header.json").read_text())
    header["tokens"][0] = ends[-1]
    (folder / "header.json").write_text(json.dumps(header))
    before = resident()
    arrays = TokenArrays(folder)
    assert arrays[1] == ([0, 0, 0], [1, 1])
    assert resident() - before < 50e6


def resident():
    """Bytes of this process in memory."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


# What is left out


def test_empty_and_too_long_pairs_are_left_out_and_counted(tmp_path):
    lines = [
        ("1 2 3", "4"),
        ("", "4"),
        ("1", "  "),
        ("\u00a0", "4"),
        ("1 2 3 4", "5"),  # 4 and eos are more than 4
        ("5", "1 2 3 4 5 6"),
        ("", "1 2 3 4 5 6"),
        ("6", "7 8 9"),
    ]
    arrays = tokenize_once(lines, Numbers(), 4, tmp_path, "x")
    assert list(arrays) == [([1, 2, 3], [4]), ([6], [7, 8, 9])]
    assert arrays.header["left_out"] == {"empty": 4, "too_long": 2}


def test_a_text_without_a_token_is_empty(tmp_path):
    class Deaf(Numbers):
        def encode(self, texts):
            return super().encode(text.replace("?", "") for text in texts)

    arrays = tokenize_once([("?", "1"), ("1", "2")], Deaf(), 4, tmp_path, "x")
    assert len(arrays) == 1 and arrays.header["left_out"]["empty"] == 1


@pytest.mark.parametrize("lines", [[], [("", "1"), ("1 2", "3")]])
def test_no_pair_left(lines, tmp_path):
    with pytest.raises(ValueError, match="^no pair is left: . have an empty side, . "):
        tokenize_once(lines, Numbers(), 2, tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


# Several processes


@pytest.fixture(scope="module")
def tokenizer():
    words = "the dog and a cat or this cow under that tree".split()
    lines = [f"{one} {other}" for one in words for other in words]
    return Tokenizer.train(lines, 300)


def test_the_files_are_the_same_for_any_number_of_workers(
    tmp_path, monkeypatch, tokenizer
):
    lines = [(f"the dog {i} " * (i % 5), f"a cat {i}") for i in range(400)]
    folders = []
    for workers, chunk in ((1, 4096), (1, 7), (2, 7)):
        monkeypatch.setattr(token_arrays, "CHUNK", chunk)
        folder = tmp_path / f"{workers} {chunk}"
        arrays = tokenize_once(iter(lines), tokenizer, 99, folder, "x", workers)
        folders.append(arrays.folder)
    first = contents(folders[0])
    assert sorted(first) == FILES
    assert all(contents(folder) == first for folder in folders)
    assert arrays[0] == (tokenizer.encode(lines[1][0]), tokenizer.encode(lines[1][1]))


@pytest.mark.parametrize("workers", [1, 2])
def test_an_endless_text_is_read_a_few_chunks_at_a_time(
    workers, monkeypatch, tokenizer
):
    monkeypatch.setattr(token_arrays, "CHUNK", 10)
    numbers = count()
    lines = ((f"dog {i}", f"cat {i}") for i in numbers)
    chunks = encode_in_order(lines, tokenizer, 99, workers)
    done = 5
    for _ in range(done):
        assert len(next(chunks).lengths[0]) == 10
    assert next(numbers) <= 10 * (done + 2 * workers + 1)
    chunks.close()


def test_a_worker_that_dies_ends_the_run_and_not_the_patience(tmp_path):
    lines = [("1", "2"), ("13", "2"), ("3", "4")]
    with pytest.raises(RuntimeError, match="^a tokenising process has died"):
        tokenize_once(lines, Deadly(), 9, tmp_path, "x", workers=2)
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_a_worker_is_the_error(tmp_path):
    with pytest.raises(ValueError, match="invalid literal"):
        tokenize_once([("1", "two")], Numbers(), 9, tmp_path, "x", workers=2)
    assert list(tmp_path.iterdir()) == []


def alive(process):
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except FileNotFoundError:
        return False


def descendants(process):
    children = Path(f"/proc/{process}/task/{process}/children").read_text().split()
    return children + [other for child in children for other in descendants(child)]


@pytest.mark.slow
def test_killed_in_the_middle(tmp_path):
    """Nothing counts as made, the workers go too, and the next run makes it."""
    code = """
import sys
from itertools import count
from annotated_transformer import token_arrays
from annotated_transformer.tokenizer import Tokenizer

if __name__ == "__main__":
    folder, endless = sys.argv[1], sys.argv[2] == "endless"
    token_arrays.CHUNK = 50
    tokenizer = Tokenizer.train(["a dog and a cat"], 271)
    lines = ((f"dog {i}", f"cat {i}") for i in (count() if endless else range(500)))
    arrays = token_arrays.tokenize_once(lines, tokenizer, 99, folder, "x", 2)
    print(len(arrays))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    folder = tmp_path / "cache"
    command = [sys.executable, str(script), str(folder)]
    run = subprocess.Popen([*command, "endless"])
    try:
        deadline = time.monotonic() + 60
        while not any(p.stat().st_size > 8 for p in folder.glob(".part-*/*/*.offsets")):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        started = descendants(run.pid)
        assert len(started) >= 3 and all(map(alive, started))
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    while any(map(alive, started)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert all(path.name.startswith(".part-") for path in folder.iterdir())

    done = subprocess.run([*command, "whole"], capture_output=True, text=True)
    assert done.stdout == "500\n", done.stderr


# Once


def test_the_second_run_reads_nothing(tmp_path):
    first = tokenize_once(some(), Numbers(), 99, tmp_path, "x")
    before = contents(first.folder)
    again = tokenize_once(untouchable(), Numbers(), 99, tmp_path, "x")
    assert again.folder == first.folder and list(again) == list(first)
    assert contents(first.folder) == before


@pytest.mark.parametrize(
    "change", [{"key": "y"}, {"longest": 98}, {"tokenizer": Numbers(model=b"other")}]
)
def test_anything_that_changes_the_arrays_makes_new_ones(tmp_path, change):
    same = {"tokenizer": Numbers(), "longest": 99, "folder": tmp_path, "key": "x"}
    first = tokenize_once(some(5), **same)
    other = tokenize_once(some(6), **(same | change))
    assert (len(first), len(other)) == (5, 6) and len(list(tmp_path.iterdir())) == 2
    assert len(tokenize_once(untouchable(), **same)) == 5


def test_made_by_another_process_meanwhile(tmp_path):
    def lines():
        yield from some(4)
        tokenize_once(some(4), Numbers(), 99, tmp_path, "x")

    arrays = tokenize_once(lines(), Numbers(), 99, tmp_path, "x")
    assert len(arrays) == 4 and list(tmp_path.iterdir()) == [arrays.folder]


def test_the_key_of_files_is_that_of_their_contents(tmp_path):
    def key(*texts):
        paths = [tmp_path / f"{i}" for i in range(len(texts))]
        for path, text in zip(paths, texts, strict=True):
            path.write_text(text)
        return corpus_key(paths)

    first = key("ab", "c")
    assert first == key("ab", "c")
    others = [key("ab", "d"), key("a", "bc"), key("c", "ab"), key("abc"), key("ab", "")]
    assert len({first, *others}) == 6
    (tmp_path / "elsewhere").write_text("ab")
    assert corpus_key([tmp_path / "elsewhere"]) == key("ab")


# What goes wrong


@pytest.mark.parametrize(
    "error", [ValueError("train.de, line 3: not UTF-8"), OSError("cannot download x")]
)
def test_an_error_of_the_text_stays_as_it_is_and_leaves_nothing(error, tmp_path):
    def lines():
        yield from some(3)
        raise error

    with pytest.raises(type(error)) as raised:
        tokenize_once(lines(), Numbers(), 99, tmp_path, "x")
    assert raised.value is error
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(tmp_path, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(token_arrays, "_sync", full)
    with pytest.raises(OSError, match=f"^cannot write {tmp_path}/.*: No space left"):
        tokenize_once(some(), Numbers(), 99, tmp_path, "x")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError) as raised:
        tokenize_once(some(), Numbers(), 99, tmp_path / "file" / "x", "x")
    assert str(tmp_path / "file") in str(raised.value)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["shorter", "longer", "gone"])
def test_a_torn_file_is_refused_by_name(name, damage, tmp_path):
    path = tokenize_once(some(), Numbers(), 99, tmp_path, "x").folder / name
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-1] if damage == "shorter" else content + b"}")
    with pytest.raises(ValueError) as raised:
        tokenize_once(untouchable(), Numbers(), 99, tmp_path, "x")
    message = str(raised.value)
    assert message.startswith(f"{path} ") and "\n" not in message
    assert message.endswith("delete the folder to have it made again")
    if name != "header.json" and damage != "gone":
        sizes = f"has {len(path.read_bytes())} bytes and should have {len(content)}"
        assert sizes in message


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("at", [0, -1])
def test_offsets_of_other_tokens_are_refused(side, at, tmp_path):
    path = (
        tokenize_once(some(), Numbers(), 99, tmp_path, "x").folder / f"{side}.offsets"
    )
    offsets = np.fromfile(path, dtype="<i8")
    offsets[at] += 1
    offsets.tofile(path)
    with pytest.raises(ValueError, match=f"{side}.offsets does not lead from 0 to "):
        TokenArrays(path.parent)


@pytest.mark.parametrize(
    "change",
    [
        {"identity": {"format": 2}},
        {"identity": None},
        {"dtype": "<u8"},
        {"pairs": 200.0},
        {"pairs": -1},
        {"pairs": "200"},
        {"tokens": [1]},
        {"tokens": None},
        None,
    ],
)
def test_a_foreign_header_is_refused(change, tmp_path):
    path = tokenize_once(some(), Numbers(), 99, tmp_path, "x").folder / "header.json"
    header = json.loads(path.read_text())
    path.write_text("[]" if change is None else json.dumps(header | change))
    with pytest.raises(ValueError, match="is not a header of token arrays, format 1"):
        TokenArrays(path.parent)


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(ValueError, match="header.json is not there"):
        TokenArrays(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="header.json is not there"):
        TokenArrays(tmp_path / "file")


def test_arrays_under_a_wrong_name_are_refused(tmp_path):
    first = tokenize_once(some(), Numbers(), 99, tmp_path, "x").folder
    other = tokenize_once(some(3), Numbers(), 99, tmp_path, "y").folder
    for name in FILES:
        (first / name).write_bytes((other / name).read_bytes())
    with pytest.raises(ValueError, match=f"^{first} holds other token arrays"):
        tokenize_once(untouchable(), Numbers(), 99, tmp_path, "x")
