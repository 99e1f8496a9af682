"""Parallel text: notebooks/5_1_training_data_and_batching.ipynb, `corpora`.

It is read strictly, found in the right place, and downloaded whole or not at all.
"""

import gzip
import hashlib
import http.server
import io
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer import corpora
from annotated_transformer.corpora import (
    CACHE_VARIABLE,
    DATA_VARIABLE,
    PublicCorpus,
    decode_lines,
    find_file,
    load_pairs,
    read_lines,
)

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
TEXT = "A dog runs.\nTwo children play.\n"
PACKED = gzip.compress(TEXT.encode(), mtime=0)


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    """An empty cache, no data folder, no proxy, and no patience."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(corpora, "TIMEOUT", 0.5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


# Reading


@pytest.mark.parametrize("inner", ["\u2028", "\x85", "\x0b", "\x0c", "\x1c", "a\rb"])
def test_only_a_line_feed_ends_a_line(tmp_path, inner):
    path = tmp_path / "x.en"
    path.write_bytes(f"one{inner}two\nthree\n".encode())
    assert read_lines(path) == [f"one{inner}two", "three"]


@SETTINGS
@given(st.lists(st.text().filter(lambda s: "\n" not in s and not s.endswith("\r"))))
def test_lines_come_back_as_they_were_written(lines):
    file = io.BytesIO("".join(f"{line}\n" for line in lines).encode())
    assert list(decode_lines(file, "x")) == lines


def test_line_ends_of_windows_and_a_last_line_without_one(tmp_path):
    path = tmp_path / "x.en"
    path.write_bytes(b"one\r\n\r\nthree")
    assert read_lines(path) == ["one", "", "three"]


def test_gzipped_and_plain_files_read_the_same(tmp_path):
    (tmp_path / "x.en").write_text(TEXT)
    (tmp_path / "x.en.gz").write_bytes(PACKED)
    assert read_lines(tmp_path / "x.en") == read_lines(tmp_path / "x.en.gz")


@pytest.mark.parametrize("name", ["x.de", "x.de.gz"])
def test_invalid_utf8_is_named_with_its_line(tmp_path, name):
    content = b"gut\n" * 2 + "schön\n".encode("latin-1") + b"gut\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    with pytest.raises(ValueError) as error:
        read_lines(path)
    assert one_line(error) == f"{path}, line 3: byte 4 is not valid UTF-8"


@pytest.mark.parametrize(
    "content",
    [b"plain text\n", PACKED[:-4], PACKED[: len(PACKED) // 2], PACKED[:-9] + b"x" * 9],
    ids=["not gzip", "no checksum", "half", "wrong checksum"],
)
def test_a_broken_gz_file_is_named(tmp_path, content):
    path = tmp_path / "x.en.gz"
    path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        read_lines(path)
    assert one_line(error).startswith(f"{path}: not a whole gzip file")


# Pairs


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)
    return str(folder)


def test_a_folder_is_a_corpus(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\nb\n", train_de="c\nd\n")
    assert load_pairs(corpus, "en", "de", "train") == (["a", "b"], ["c", "d"])
    assert load_pairs("mine", "de", "en", "train") == (["c", "d"], ["a", "b"])


def test_unequal_counts_name_both_files(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\nb\n", train_de="c\n")
    with pytest.raises(ValueError) as error:
        load_pairs(corpus, "en", "de", "train")
    message = one_line(error)
    assert "train.en has 2 lines" in message and "train.de has 1:" in message


@pytest.mark.parametrize("empty", ["en", "de"])
def test_an_empty_file_is_named(tmp_path, empty):
    texts = {"train_en": "a\n", "train_de": "c\n", f"train_{empty}": ""}
    corpus = write(tmp_path / "mine", **texts)
    with pytest.raises(ValueError, match=rf"train\.{empty} is empty$"):
        load_pairs(corpus, "en", "de", "train")


def test_an_empty_line_is_a_sentence_like_any_other(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\n\nb\n", train_de="c\nd\n\n")
    assert load_pairs(corpus, "en", "de", "train") == (["a", "", "b"], ["c", "d", ""])


def test_unknown_corpus_lists_the_known():
    with pytest.raises(ValueError) as error:
        load_pairs("multi31k", "en", "de", "train")
    message = one_line(error)
    assert "'multi31k'" in message and "multi30k" in message
    assert "folder" in message and "train.en" in message


def test_missing_file_lists_those_that_exist(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\n", train_de="c\n", val_en="a\n")
    for split, language in (("train", "fr"), ("test", "de")):
        with pytest.raises(ValueError) as error:
            load_pairs(corpus, "en", language, split)
        assert "train.de, train.en, val.en" in one_line(error)


def test_missing_split_of_a_public_corpus_lists_its_files():
    with pytest.raises(ValueError) as error:
        find_file("multi30k", "dev.en")
    message = one_line(error)
    assert "no dev.en" in message and "val.en" in message and ".gz" not in message


def test_a_data_folder_that_is_none_is_an_error(monkeypatch, tmp_path):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError) as error:
        find_file("multi30k", "train.en")
    assert DATA_VARIABLE in one_line(error) and "nowhere" in one_line(error)


# Download, from a server on this machine


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves PACKED, in the way that the first part of the path says."""

    requests: list[str] = []

    def do_GET(self):
        self.requests.append(self.path)
        way = self.path.split("/")[1]
        if way == "missing":
            return self.send_error(404)
        length = {"truncated": len(PACKED), "long": 10**9, "silent": len(PACKED)}
        self.send_response(200)
        if way != "unannounced":
            self.send_header("Content-Length", str(length.get(way, len(PACKED))))
        self.end_headers()
        half = PACKED[: len(PACKED) // 2]
        if way == "lying":
            self.wfile.write(bytes(len(PACKED)))
        elif way in ("truncated", "unannounced"):
            self.wfile.write(half)
        elif way == "silent":
            self.wfile.write(half)
            self.wfile.flush()
            self.server.released.wait(5)
        elif way == "long":
            try:
                for _ in range(64):
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                pass  # whoever asked has gone, as it should
        else:
            self.wfile.write(PACKED)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    Handler.requests = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.released.set()
        server.shutdown()
        thread.join(5)


def publish(monkeypatch, address):
    sha256 = hashlib.sha256(PACKED).hexdigest()
    files = {"train.en.gz": sha256, "train.de.gz": sha256}
    corpus = PublicCorpus(address + "/", 1 << 20, files)
    monkeypatch.setitem(corpora.PUBLIC, "demo", corpus)


def test_download_is_whole_and_asked_for_once(monkeypatch, server, places):
    publish(monkeypatch, f"{server}/good")
    path = find_file("demo", "train.en")
    assert path == places / "cache" / "demo" / "train.en.gz"
    assert path.read_bytes() == PACKED and read_lines(path) == TEXT.splitlines()
    assert Handler.requests == ["/good/train.en.gz"]
    assert find_file("demo", "train.en") == path
    assert Handler.requests == ["/good/train.en.gz"]
    assert [p.name for p in path.parent.iterdir()] == ["train.en.gz"]


def test_nothing_is_asked_for_what_the_data_folder_or_the_cache_has(
    monkeypatch, server, places
):
    publish(monkeypatch, f"{server}/good")
    write(places / "data" / "demo", train_en="from data\n")
    write(places / "cache" / "demo", train_en="from cache\n", train_de="from cache\n")
    monkeypatch.setenv(DATA_VARIABLE, str(places / "data"))
    pairs = load_pairs("demo", "en", "de", "train")
    assert pairs == (["from data"], ["from cache"])
    assert Handler.requests == []


@pytest.mark.parametrize(
    ("way", "reason"),
    [
        ("missing", "404"),
        ("truncated", "bytes"),
        ("unannounced", "SHA-256"),
        ("lying", "SHA-256"),
        ("silent", "timed out"),
        ("long", "more than 1048576 bytes"),
    ],
)
def test_a_bad_download_leaves_nothing(monkeypatch, server, places, way, reason):
    publish(monkeypatch, f"{server}/{way}")
    began = time.monotonic()
    with pytest.raises(OSError) as error:
        find_file("demo", "train.en")
    message = one_line(error)
    assert f"{server}/{way}/train.en.gz" in message and reason in message
    assert time.monotonic() - began < 5
    assert not [p for p in (places / "cache").rglob("*") if p.is_file()]
    assert not list((places / "cache" / "demo").iterdir())


def test_an_address_that_nobody_answers(monkeypatch, server, places):
    publish(monkeypatch, "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"^cannot download http://127\.0\.0\.1:9/train"):
        find_file("demo", "train.en")


def test_an_interrupted_download_leaves_nothing(monkeypatch, server, places):
    publish(monkeypatch, f"{server}/good")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(corpora.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find_file("demo", "train.en")
    assert not list((places / "cache" / "demo").iterdir())


def test_a_cache_that_cannot_be_written(monkeypatch, server, places):
    publish(monkeypatch, f"{server}/good")
    (places / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError) as error:
        find_file("demo", "train.en")
    assert "cannot download" in one_line(error)


def test_the_table_of_multi30k_is_complete():
    files = corpora.PUBLIC["multi30k"].sha256
    assert len(files) == 4 * 3 == len(set(files.values()))
    assert all(len(bytes.fromhex(value)) == 32 for value in files.values())
    assert corpora.PUBLIC["multi30k"].address.startswith("https://")
    assert corpora.PUBLIC["multi30k"].address.endswith("/")
