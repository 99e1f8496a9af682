"""Parallel text: notebooks/5_1_training_data_and_batching.ipynb.

`corpora`: text is read strictly, found in the right place, and split without leaks.
`downloads`: a file arrives whole or not at all, and an archive stays in its place.
"""

import gzip
import hashlib
import http.server
import io
import json
import random
import stat
import subprocess
import sys
import tarfile
import threading
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from annotated_transformer import corpora, downloads
from annotated_transformer.corpora import (
    CACHE_VARIABLE,
    DATA_VARIABLE,
    PUBLIC,
    PublicCorpus,
    decode_lines,
    divide,
    families,
    find_file,
    find_split,
    load_pairs,
    provenance,
    read_lines,
    sentence_key,
    stream_lines,
    stream_pairs,
)
from annotated_transformer.downloads import Remote, download, extract

SETTINGS = settings(max_examples=100, deadline=None, derandomize=True)
TEXT = "A dog runs.\nTwo children play.\n"
PACKED = gzip.compress(TEXT.encode(), mtime=0)


@pytest.fixture(autouse=True)
def places(monkeypatch, tmp_path):
    """An empty cache, no data folder, no proxy, and no patience."""
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.delenv(DATA_VARIABLE, raising=False)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(downloads, "TIMEOUT", 1.5)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def data(monkeypatch, tmp_path):
    """A data folder."""
    folder = tmp_path / "data"
    folder.mkdir()
    monkeypatch.setenv(DATA_VARIABLE, str(folder))
    return folder


def one_line(error: pytest.ExceptionInfo) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


def files_in(folder: Path) -> dict[str, bytes]:
    """What there is in a folder and below, but for the locks."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


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


SGML = """\
<srcset setid="newstest2014" srclang="any">
<doc sysid="ref" docid="1" genre="news" origlang="en">
<p>
<seg id="1">Gutach: Increased safety &amp; calm</seg>
<SEG id="2"> 3 &lt; 4 </SEG>
<seg id="3"></seg>
</p>
</doc>
</srcset>
"""


def test_the_segments_of_a_test_set_in_sgml(tmp_path):
    path = tmp_path / "test.en.sgm"
    path.write_text(SGML)
    assert read_lines(path) == ["Gutach: Increased safety & calm", "3 < 4", ""]


@pytest.mark.parametrize("name", ["x.de", "x.de.gz"])
def test_a_byte_order_mark_is_no_text(tmp_path, name):
    """Before the first line alone: elsewhere it is a character like others."""
    content = "\ufeffgut\n\ufeffschön\n".encode()
    path = tmp_path / name
    path.write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_lines(path) == ["gut", "\ufeffschön"]


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


def test_lines_are_read_as_they_are_asked_for(tmp_path):
    path = tmp_path / "x.en"
    path.write_bytes(b"one\ntwo\n\xff\n")
    lines = stream_lines(path)
    assert [next(lines), next(lines)] == ["one", "two"]
    with pytest.raises(ValueError, match="line 3"):
        next(lines)


# Pairs


def write(folder, **files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text, encoding="utf-8")
    return str(folder)


def test_a_folder_is_a_corpus(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\nb\n", train_de="c\nd\n")
    assert load_pairs(corpus, "en", "de", "train") == (["a", "b"], ["c", "d"])
    assert load_pairs("mine", "de", "en", "train") == (["c", "d"], ["a", "b"])


def test_a_folder_in_the_data_folder_is_a_corpus_at_any_depth(data):
    write(data / "mine" / "en-de", train_en="a\n", train_de="c\n")
    assert load_pairs("mine/en-de", "en", "de", "train") == (["a"], ["c"])


def test_unequal_counts_name_both_files(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\nb\n", train_de="c\n")
    with pytest.raises(ValueError) as error:
        load_pairs(corpus, "en", "de", "train")
    message = one_line(error)
    assert "train.en has 2 lines" in message and "train.de has 1:" in message


@pytest.mark.parametrize("longer", ["en", "de"])
def test_unequal_counts_are_an_error_after_the_last_pair(tmp_path, longer):
    texts = {"train_en": "a\nb\n", "train_de": "c\nd\n"}
    texts[f"train_{longer}"] += "e\nf\n"
    pairs = stream_pairs(write(tmp_path / "mine", **texts), "en", "de", "train")
    assert [next(pairs), next(pairs)] == [("a", "c"), ("b", "d")]
    with pytest.raises(ValueError, match="has 4 lines" if longer == "en" else "has 4:"):
        next(pairs)


@pytest.mark.parametrize("empty", ["en", "de"])
def test_an_empty_file_is_named(tmp_path, empty):
    texts = {"train_en": "a\n", "train_de": "c\n", f"train_{empty}": ""}
    corpus = write(tmp_path / "mine", **texts)
    with pytest.raises(ValueError, match=rf"train\.{empty} is empty$"):
        load_pairs(corpus, "en", "de", "train")


def test_an_empty_line_is_a_sentence_like_any_other(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\n\nb\n", train_de="c\nd\n\n")
    assert load_pairs(corpus, "en", "de", "train") == (["a", "", "b"], ["c", "d", ""])


def test_streaming_holds_next_to_nothing(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a" * 99 + "\n", train_de="c\n")
    for language in ("en", "de"):
        path = tmp_path / "mine" / f"train.{language}"
        path.write_bytes(path.read_bytes() * 30_000)
    tracemalloc.start()
    count = sum(1 for _ in stream_pairs(corpus, "en", "de", "train"))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000 and peak < 500_000


def test_unknown_corpus_lists_the_known():
    with pytest.raises(ValueError) as error:
        load_pairs("multi31k", "en", "de", "train")
    message = one_line(error)
    assert "'multi31k'" in message and "folder" in message and "train.en" in message
    assert all(name in message for name in ("multi30k", "tatoeba", "wmt14"))


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
    for corpus in PUBLIC:
        with pytest.raises(ValueError) as error:
            load_pairs(corpus, "en", "de", "train")
        assert DATA_VARIABLE in one_line(error) and "nowhere" in one_line(error)


# Splits of a table


SENTENCES = st.sampled_from([f"{a}{b}" for a in "abcdefghij" for b in ("", "!", ".")])
TABLES = st.lists(st.tuples(SENTENCES, SENTENCES), max_size=40)


@SETTINGS
@given(TABLES, st.randoms(use_true_random=False))
def test_no_sentence_is_in_two_splits_and_order_has_no_influence(table, rng):
    count = len(families(table))
    if count < 3:
        with pytest.raises(ValueError, match=f"{count} families"):
            divide(table, 1, 1)
        return
    splits = divide(table, 1, count - 2)
    assert divide(rng.sample(table, len(table)), 1, count - 2) == splits
    assert len(splits["val"]) == 1 and len(splits["test"]) == count - 2
    for side in (0, 1):
        keys = [{sentence_key(pair[side]) for pair in part} for part in splits.values()]
        assert sum(map(len, keys)) == len(set().union(*keys))
    assert set().union(*splits.values()) <= set(table)
    family = next(f for f in families(table) if splits["train"][0] in f)
    assert sorted(splits["train"]) == sorted(family)


@SETTINGS
@given(TABLES)
def test_families_are_the_connected_components(table):
    def joined(one, other):
        return any(sentence_key(one[i]) == sentence_key(other[i]) for i in (0, 1))

    slow = []
    for pair in dict.fromkeys(table):
        near = [group for group in slow if any(joined(pair, old) for old in group)]
        slow = [group for group in slow if group not in near]
        slow.append({pair}.union(*near))
    assert sorted(map(sorted, slow)) == sorted(map(sorted, families(table)))


def test_the_splits_never_change():
    """Models that were trained on them, and their scores, depend on it."""
    table = [(f"Sentence {i}.", f"Satz {i // 2}.") for i in range(4000)]
    text = json.dumps(divide(table, 100, 200))
    digest = "899ee95a88abdd16b8888fad2abe2fd460864cb875b1b7d04eb8f717a2cf57b1"
    assert hashlib.sha256(text.encode()).hexdigest() == digest


def test_a_larger_table_keeps_most_of_the_test_set():
    table = [(f"Sentence {i}.", f"Satz {i}.") for i in range(4000)]
    old, new = (set(divide(t, 100, 200)["test"]) for t in (table[:3600], table))
    assert len(old & new) > 150


def rows(count, third=""):
    """A table of `count` pairs, sorted, two translations a sentence."""
    lines = [f"Sentence {i // 2}.\tSatz {i}.{third}\n" for i in range(count)]
    return "".join(sorted(lines))


def zip_of(members: dict[str, str | bytes]) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return made.getvalue()


@pytest.fixture
def small(monkeypatch):
    """Few sentences are held out."""
    monkeypatch.setattr(corpora, "HELD_OUT", dict.fromkeys(corpora.TATOEBA, (10, 20)))


def load_all(corpus, source, target):
    return {s: load_pairs(corpus, source, target, s) for s in ("train", "val", "test")}


@pytest.mark.parametrize(
    ("language", "code"), [("de", "deu"), ("fr", "fra"), ("ko", "kor")]
)
def test_tatoeba_in_either_form_and_direction_gives_the_same_splits(
    data, small, language, code
):
    folder = data / f"tatoeba_{code}"
    folder.mkdir()
    table = rows(200, "\tCC-BY #1 & #2")
    archive = {
        f"{code}-eng/{code}.txt": table,
        f"__MACOSX/{code}-eng/._{code}.txt": b"\0\5\26\7",
        "_about.txt": "See the terms of use.",
    }
    (folder / f"{code}-eng.zip").write_bytes(zip_of(archive))
    zipped = load_all("tatoeba", "en", language)
    (folder / f"{code}-eng.zip").unlink()
    (folder / "pairs.tsv.gz").write_bytes(gzip.compress(table.encode()))
    assert load_all("tatoeba", "en", language) == zipped
    back = load_all("tatoeba", language, "en")
    assert {split: pair[::-1] for split, pair in back.items()} == zipped
    assert [len(pair[0]) for pair in zipped.values()] == [140, 10, 20]
    assert zipped["train"][1] != sorted(zipped["train"][1])
    assert all("CC-BY" not in line for pair in zipped.values() for line in pair[1])


@pytest.mark.parametrize(
    ("source", "target", "split", "said"),
    [
        ("de", "fr", "train", "tatoeba pairs en with de, fr, ko; it has no de to fr"),
        ("en", "nl", "train", "tatoeba pairs en with de, fr, ko; it has no en to nl"),
        ("en", "en", "train", "tatoeba pairs en with de, fr, ko; it has no en to en"),
        ("en", "de", "dev", "tatoeba has no split dev; it has train, val, test"),
    ],
)
def test_what_tatoeba_does_not_have(source, target, split, said):
    with pytest.raises(ValueError) as error:
        load_pairs("tatoeba", source, target, split)
    assert one_line(error) == said


def test_a_table_that_is_not_one_is_named_with_its_line(data, small):
    folder = data / "tatoeba_deu"
    folder.mkdir()
    path = folder / "pairs.tsv.gz"
    path.write_bytes(gzip.compress(b"Hi.\tHallo!\nHi. Hallo!\n"))
    with pytest.raises(ValueError) as error:
        load_pairs("tatoeba", "en", "de", "train")
    assert one_line(error) == f"{path}, line 2: no tab between two sentences"
    path.write_bytes(gzip.compress(rows(20).encode()))
    with pytest.raises(ValueError, match="10 families of sentences, 30 to be held out"):
        load_pairs("tatoeba", "en", "de", "train")


# Downloads, from a server on this machine


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves what the test put under the path, in the manner it says."""

    def do_GET(self):
        asked = self.headers["Range"]
        self.server.requests.append((self.path, asked))
        manner = self.server.manners.get(self.path[1:])
        if manner is None:
            return self.send_error(404)
        body, total = manner.body, len(manner.body)
        begin = 0
        if asked and manner.ranges:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            if begin >= total:
                return self.send_error(416)
        self.send_response(206 if begin else 200)
        if begin:
            given = begin + manner.slip
            self.send_header("Content-Range", f"bytes {given}-{total - 1}/{total}")
        if manner.length is not None:
            self.send_header("Content-Length", str(manner.length - begin))
        self.end_headers()
        try:
            self.wfile.write(body[begin : manner.stop])
            self.wfile.flush()
        except OSError:
            pass  # whoever asked has gone, as it should
        self.server.released.wait(5 * manner.silent)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.requests, server.manners = [], {}
        server.released = threading.Event()
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        server.address = f"http://127.0.0.1:{server.server_port}/"
        yield server
        server.released.set()
        server.shutdown()
        thread.join(5)


def serve(server, name, body, **manner):
    """Put a body under a name; what is not said is done properly."""
    proper = {"length": len(body), "ranges": True, "stop": None, "silent": 0, "slip": 0}
    server.manners[name] = SimpleNamespace(body=body, **(proper | manner))


def remote(server, name, body=PACKED, sha256=None):
    sha256 = hashlib.sha256(body).hexdigest() if sha256 is None else sha256
    return Remote(server.address + name, len(body), sha256)


def publish(monkeypatch, server, **files):
    """A public corpus named demo, with these files behind the server."""
    published = {name: remote(server, name, body) for name, body in files.items()}
    corpus = PublicCorpus("en, de: train", "by its authors", published)
    monkeypatch.setitem(PUBLIC, "demo", corpus)


def test_download_is_whole_and_asked_for_once(monkeypatch, server, places):
    publish(monkeypatch, server, **{"train.en.gz": PACKED, "train.de.gz": PACKED})
    serve(server, "train.en.gz", PACKED)
    path = find_file("demo", "train.en")
    assert path == places / "cache" / "demo" / "train.en.gz"
    assert path.read_bytes() == PACKED and read_lines(path) == TEXT.splitlines()
    assert find_file("demo", "train.en") == path
    assert server.requests == [("/train.en.gz", None)]
    assert files_in(places / "cache") == {"demo/train.en.gz": PACKED}


def test_nothing_is_asked_for_what_the_data_folder_or_the_cache_has(
    monkeypatch, server, places, data
):
    publish(monkeypatch, server, **{"train.en.gz": PACKED, "train.de.gz": PACKED})
    write(data / "demo", train_en="from data\n")
    write(places / "cache" / "demo", train_en="from cache\n", train_de="from cache\n")
    pairs = load_pairs("demo", "en", "de", "train")
    assert pairs == (["from data"], ["from cache"])
    assert server.requests == []


def test_nothing_is_asked_for_where_the_other_side_does_not_exist(monkeypatch, server):
    publish(monkeypatch, server, **{"train.en.gz": PACKED})
    with pytest.raises(ValueError, match=r"demo has no train\.nl; it has train\.en$"):
        load_pairs("demo", "en", "nl", "train")
    assert server.requests == []


HALF = len(PACKED) // 2
FAULTS = {
    "missing": (None, "HTTP Error 404: Not Found", 0),
    "cut": ({"stop": HALF}, f"ended after {HALF} of {len(PACKED)} bytes", HALF),
    "cut, unannounced": (
        {"stop": HALF, "length": None},
        f"ended after {HALF} of",
        HALF,
    ),
    "cut at once": ({"stop": 0}, "ended after 0 of", 0),
    "silent": ({"stop": HALF, "silent": 1}, "timed out", HALF),
    "announces more": ({"length": 10**9}, "announces 1000000000 bytes, not", 0),
    "announces less": ({"length": HALF}, f"announces {HALF} bytes, not", 0),
    "endless": ({"body": bytes(1 << 22), "length": None}, "sends more than", 0),
    "other content": ({"body": bytes(len(PACKED))}, "its SHA-256 is", 0),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_download_never_looks_like_a_whole_one(
    monkeypatch, server, places, fault
):
    manner, reason, kept = FAULTS[fault]
    if manner is not None:
        serve(
            server, "train.en.gz", **({"body": PACKED, "length": len(PACKED)} | manner)
        )
    publish(monkeypatch, server, **{"train.en.gz": PACKED})
    with pytest.raises(OSError) as error:
        find_file("demo", "train.en")
    message = one_line(error)
    assert message.startswith(f"cannot download {server.address}train.en.gz: ")
    assert reason in message and f"${DATA_VARIABLE} may name a folder" in message
    assert (f"{kept} bytes are kept" in message) == bool(kept)
    part = {"demo/train.en.gz.part": PACKED[:kept]} if kept else {}
    assert files_in(places / "cache") == part

    serve(server, "train.en.gz", PACKED)  # and the same call, when all is well again
    assert find_file("demo", "train.en").read_bytes() == PACKED
    assert server.requests[-1][1] == (f"bytes={kept}-" if kept else None)
    assert files_in(places / "cache") == {"demo/train.en.gz": PACKED}


@pytest.mark.parametrize(
    ("part", "manner", "asked"),
    [
        (PACKED[:9], {}, ["bytes=9-"]),
        (PACKED[:9], {"ranges": False}, ["bytes=9-"]),
        (PACKED[:9], {"slip": 1}, ["bytes=9-", None]),
        (b"x" * 9, {}, ["bytes=9-", None]),
        (PACKED, {}, []),
        (PACKED + b"x", {}, [None]),
        (b"x" * len(PACKED), {}, [None]),
    ],
    ids=["ranges", "no ranges", "other range", "bad part", "whole", "long", "as long"],
)
def test_what_an_earlier_call_left_is_used_where_it_is_good(
    server, places, part, manner, asked
):
    path = places / "x.gz"
    path.with_name("x.gz.part").write_bytes(part)
    serve(server, "x.gz", PACKED, **manner)
    download(remote(server, "x.gz"), path)
    assert files_in(places) == {"x.gz": PACKED}
    assert [request[1] for request in server.requests] == asked


def test_a_server_that_has_less_than_the_part(server, places):
    (places / "x.gz.part").write_bytes(PACKED[:20])
    serve(server, "x.gz", PACKED[:10])
    with pytest.raises(OSError, match="announces 10 bytes"):
        download(remote(server, "x.gz"), places / "x.gz")
    assert [request[1] for request in server.requests] == ["bytes=20-", None]
    assert files_in(places) == {}


def whole_zip(path):
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip archive")


@pytest.mark.parametrize(
    ("manner", "reason"),
    [
        ({"stop": 60}, "ended after 60 of"),
        ({"stop": 60, "length": None}, "it is not a zip archive"),
        ({"length": 60}, "it is not a zip archive"),
        ({"body": b"<html>moved</html>", "length": 18}, "it is not a zip archive"),
        ({"length": 10**9}, "announces 1000000000 bytes, more than"),
        ({"body": bytes(1 << 22), "length": None}, "sends more than"),
        ({"stop": 60, "silent": 1}, "timed out"),
    ],
)
def test_without_a_checksum_nothing_stays_and_nothing_is_resumed(
    server, places, manner, reason
):
    body = zip_of({"a.txt": TEXT * 9})
    serve(server, "a.zip", **({"body": body, "length": len(body)} | manner))
    changing = Remote(server.address + "a.zip", 2 * len(body))
    with pytest.raises(OSError) as error:
        download(changing, places / "a.zip", whole_zip)
    assert reason in one_line(error) and "kept" not in one_line(error)
    assert files_in(places) == {}

    (places / "a.zip.part").write_bytes(b"half of last month's")
    serve(server, "a.zip", body)
    download(changing, places / "a.zip", whole_zip)
    assert files_in(places) == {"a.zip": body}
    assert {request[1] for request in server.requests} == {None}


def test_an_address_that_nobody_answers(places):
    refused = Remote("http://127.0.0.1:9/train.en.gz", 9, "0" * 64)
    with pytest.raises(OSError) as error:
        download(refused, places / "x.gz")
    message = one_line(error)
    assert message.startswith("cannot download http://127.0.0.1:9/train.en.gz: ")
    assert "refused" in message and "urlopen" not in message


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_download_goes_on_later(monkeypatch, server, places, stop):
    def interrupt(*_):
        raise stop

    serve(server, "x.gz", PACKED)
    monkeypatch.setattr(downloads.os, "replace", interrupt)
    with pytest.raises(stop):
        download(remote(server, "x.gz"), places / "x.gz")
    assert files_in(places) == {"x.gz.part": PACKED}
    monkeypatch.undo()
    download(remote(server, "x.gz"), places / "x.gz")
    assert files_in(places) == {"x.gz": PACKED} and len(server.requests) == 1


def test_a_cache_that_cannot_be_written(monkeypatch, server, places):
    publish(monkeypatch, server, **{"train.en.gz": PACKED})
    (places / "cache").write_text("a file where the folder should be")
    with pytest.raises(OSError) as error:
        find_file("demo", "train.en")
    assert "cannot download" in one_line(error)


FETCH = """
import sys
sys.path.insert(0, sys.argv[1])  # the module by itself: torch takes its time to import
from pathlib import Path
from downloads import Remote, download
address, size, sha256, path = sys.argv[2:]
download(Remote(address, int(size), sha256), Path(path))
"""


def test_processes_that_want_the_same_file_fetch_it_once(server, places):
    body = random.Random(0).randbytes(1 << 22)
    serve(server, "x.bin", body)
    arguments = [*map(str, remote(server, "x.bin", body)), str(places / "x.bin")]
    command = [sys.executable, "-c", FETCH, str(Path(downloads.__file__).parent)]
    crowd = [subprocess.Popen([*command, *arguments]) for _ in range(4)]
    assert [process.wait(60) for process in crowd] == [0] * 4
    assert files_in(places) == {"x.bin": body}
    assert server.requests == [("/x.bin", None)]


# Archives


def entry(name, content=b"", kind=tarfile.REGTYPE, link="", size=None):
    made = tarfile.TarInfo(name)
    made.type, made.linkname = kind, link
    made.size = len(content) if size is None else size
    return made, content


def tar_of(*entries) -> bytes:
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as archive:
        for info, content in entries:
            archive.addfile(info, io.BytesIO(content) if content else None)
    return made.getvalue()


def zip_link(name, target) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        info = zipfile.ZipInfo(name)
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, target)
    return made.getvalue()


def flip(archive: bytes, at: bytes) -> bytes:
    position = archive.index(at)
    return archive[:position] + bytes([archive[position] ^ 1]) + archive[position + 1 :]


GOOD = b"one line\n"
BIG = bytes(3_000_000)
BAD_ARCHIVES = {
    "tar ..": (tar_of(entry("../../a.txt", GOOD)), "would leave the folder"),
    "tar a/../..": (tar_of(entry("b/../../a.txt", GOOD)), "would leave the folder"),
    "tar absolute": (tar_of(entry("/etc/a.txt", GOOD)), "would leave the folder"),
    "tar beside": (
        tar_of(entry("a.txt", GOOD), entry("../b.txt", GOOD)),
        "'../b.txt' would leave the folder",
    ),
    "tar symbolic link": (
        tar_of(entry("a.txt", kind=tarfile.SYMTYPE, link="/etc/passwd")),
        "a.txt is not a file",
    ),
    "tar hard link": (
        tar_of(entry("a.txt", kind=tarfile.LNKTYPE, link="/etc/passwd")),
        "a.txt is not a file",
    ),
    "tar device": (tar_of(entry("a.txt", kind=tarfile.CHRTYPE)), "a.txt is not a file"),
    "tar pipe": (tar_of(entry("a.txt", kind=tarfile.FIFOTYPE)), "a.txt is not a file"),
    "tar folder": (tar_of(entry("a.txt", kind=tarfile.DIRTYPE)), "a.txt is not a file"),
    "tar bomb": (gzip.compress(tar_of(entry("a.txt", BIG))), "unpacks to more than"),
    "tar bomb elsewhere": (
        gzip.compress(tar_of(entry("b.txt", BIG), entry("a.txt", GOOD))),
        "unpacks to more than",
    ),
    "tar bomb behind the end": (
        gzip.compress(tar_of(entry("a.txt", GOOD)) + BIG),
        "unpacks to more than",
    ),
    "tar of many": (
        gzip.compress(tar_of(*(entry(f"{i}.txt") for i in range(3000)))),
        "unpacks to more than",
    ),
    "tar cut": (
        gzip.compress(tar_of(entry("a.txt", GOOD)))[:-9],
        "not a whole archive",
    ),
    "tar cut, plain": (tar_of(entry("a.txt", GOOD * 99))[:600], "not a whole archive"),
    "tar changed": (
        gzip.compress(tar_of(entry("a.txt", GOOD)))[:-8] + bytes(8),
        "not a whole archive",
    ),
    "tar without it": (tar_of(entry("b.txt", GOOD)), "there is no a.txt in it"),
    "empty": (b"", "not a whole archive"),
    "text": (b"<html>moved</html>" * 99, "not a whole archive"),
    "zip ..": (zip_of({"../a.txt": GOOD}), "would leave the folder"),
    "zip backslash": (zip_of({"b\\..\\..\\a.txt": GOOD}), "would leave the folder"),
    "zip absolute": (zip_of({"/etc/a.txt": GOOD}), "would leave the folder"),
    "zip drive": (zip_of({"C:\\a.txt": GOOD}), "would leave the folder"),
    "zip link": (zip_link("a.txt", "/etc/passwd"), "a.txt is not a file"),
    "zip folder": (zip_of({"a.txt/": b""}), "there is no a.txt in it"),
    "zip bomb": (zip_of({"a.txt": BIG}), "unpacks to more than"),
    "zip changed": (
        flip(zip_link("b.txt", "one line"), b"one line").replace(b"b.txt", b"a.txt"),
        "not",
    ),
    "zip cut": (zip_of({"a.txt": GOOD})[:-9], "not a whole archive"),
    "zip without it": (zip_of({"b.txt": GOOD}), "there is no a.txt in it"),
}


@pytest.mark.parametrize("name", BAD_ARCHIVES)
def test_a_bad_archive_leaves_nothing_anywhere(places, name):
    content, reason = BAD_ARCHIVES[name]
    archive = places / "deep" / "down" / "archive"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(content)
    with pytest.raises(ValueError) as error:
        extract(archive, {"a.txt": archive.with_name("a.txt")}, largest=1_000_000)
    message = one_line(error)
    assert message.startswith(f"{archive}: ") and reason in message
    assert files_in(places) == {"deep/down/archive": content}
    assert not any(path.is_symlink() for path in places.rglob("*"))


def test_a_zip_that_lies_about_its_size(places):
    content = zip_of({"a.txt": BIG})
    for header, offset in ((b"PK\x03\x04", 22), (b"PK\x01\x02", 24)):
        at = content.index(header) + offset
        content = content[:at] + (99).to_bytes(4, "little") + content[at + 4 :]
    (places / "archive").write_bytes(content)
    with pytest.raises(ValueError, match="not a whole archive"):
        extract(places / "archive", {"a.txt": places / "a.txt"}, largest=1_000_000)
    assert list(files_in(places)) == ["archive"]


def test_a_sparse_file_is_as_large_as_it_says(places):
    made = tarfile.TarInfo("a.txt")
    made.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(made.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # the real size, in octal
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    (places / "archive").write_bytes(bytes(header) + bytes(1024))
    with pytest.raises(ValueError, match="unpacks to more than"):
        extract(places / "archive", {"a.txt": places / "a.txt"}, largest=1_000_000)
    assert list(files_in(places)) == ["archive"]


@pytest.mark.parametrize("form", ["tar", "tgz", "zip"])
def test_what_is_wanted_comes_out_and_nothing_else(places, form):
    names = "./train/a.txt", "train/b.txt", "train/c.txt"
    tar = tar_of(
        entry("train", kind=tarfile.DIRTYPE),
        entry("train/link", kind=tarfile.SYMTYPE, link="../../.."),
        *(entry(name, name.encode()) for name in names),
    )
    made = {"tar": tar, "tgz": gzip.compress(tar), "zip": zip_of({n: n for n in names})}
    (places / "archive").write_bytes(made[form])
    wanted = {"train/a.txt": places / "one", "train/c.txt": places / "three"}
    extract(places / "archive", wanted, largest=1_000_000)
    found = files_in(places)
    assert found.pop("archive") == made[form]
    assert found == {"one": b"./train/a.txt", "three": b"train/c.txt"}


# WMT14, from archives like the real ones


def lines(*texts):
    return "".join(f"{text}\n" for text in texts).encode()


def sgml(*texts):
    marked = (f'<seg id="{i}">{text}</seg>' for i, text in enumerate(texts, 1))
    return lines("<srcset>", *marked, "</srcset>")


def wmt14_lines(part, language, other):
    """Two lines that tell where they come from; of some parts both pairs share one."""
    pair = other if "{other}" in corpora.WMT14_PARTS[part][1] else "any pair"
    return [f"{part} {language} {i} of {pair} & co" for i in (1, 2)]


def wmt14_archives() -> dict[str, bytes]:
    """Small archives with the names and the inner names of the real ones."""
    members = {name: [] for name in corpora.WMT14_ARCHIVES}
    for other in ("de", "fr"):
        for language in ("en", other):
            for part, (archive, path) in corpora.WMT14_PARTS.items():
                if part.startswith(("undoc", "giga")) and other == "de":
                    continue
                side = "ref" if language == "en" else "src"
                name = path.format(other=other, language=language, side=side)
                texts = wmt14_lines(part, language, other)
                content = lines(*texts)
                if name.endswith(".sgm"):
                    content = sgml(*(text.replace("&", "&amp;") for text in texts))
                elif name.endswith(".gz"):
                    content = gzip.compress(content)
                members[archive].append(entry(name, content))
    return {
        name: zip_of({info.name: content for info, content in entries})
        if name.endswith(".zip")
        else gzip.compress(tar_of(*entries))
        for name, entries in members.items()
    }


@pytest.fixture
def wmt14(monkeypatch, server):
    """The archives, behind the server."""
    archives = wmt14_archives()
    for name, body in archives.items():
        serve(server, name, body)
    published = {name: remote(server, name, body) for name, body in archives.items()}
    monkeypatch.setitem(PUBLIC, "wmt14", PUBLIC["wmt14"]._replace(files=published))
    return archives


PARTS = {
    "de": ["europarl-v7", "commoncrawl", "news-commentary-v9"],
    "fr": [
        "europarl-v7",
        "commoncrawl",
        "news-commentary-v9",
        "undoc.2000",
        "giga-fren.release2",
    ],
}


@pytest.mark.parametrize("other", ["de", "fr"])
def test_wmt14_is_fetched_once_and_read_part_by_part(wmt14, server, places, other):
    for split, parts in (
        ("train", PARTS[other]),
        ("val", ["newstest2013"]),
        ("test", ["newstest2014"]),
    ):
        pairs = list(stream_pairs("wmt14", "en", other, split))
        assert pairs == [
            pair
            for part in parts
            for pair in zip(
                wmt14_lines(part, "en", other),
                wmt14_lines(part, other, other),
                strict=True,
            )
        ]
        asked = len(server.requests)
        back = list(stream_pairs("wmt14", other, "en", split))
        assert back == [pair[::-1] for pair in pairs]
        assert len(server.requests) == asked
    names = [path for path, _ in server.requests]
    assert len(set(names)) == len(names) == (4 if other == "de" else 6)
    assert not [name for name in files_in(places) if name.endswith(".part")]


def test_the_other_language_needs_no_second_download(wmt14, server):
    for other in ("de", "fr"):
        assert len(load_pairs("wmt14", "en", other, "val")[0]) == 2
    assert [path for path, _ in server.requests] == ["/dev.tgz"]


def test_a_part_that_lost_one_side_is_unpacked_again(wmt14, places):
    load_pairs("wmt14", "en", "de", "val")
    (places / "cache/wmt14/en-de/newstest2013.de").unlink()
    assert len(load_pairs("wmt14", "en", "de", "val")[0]) == 2


def test_wmt14_as_it_lies_in_the_data_folder(data, wmt14, server):
    write(data / "wmt_newstest/en-de", newstest2013_en="a\n", newstest2013_de="b\n")
    write(data / "wmt_newstest/en-de", newstest2019_en="c\n", newstest2019_de="d\n")
    write(data / "wmt14/en-de", train_en="e\n", train_de="f\n")
    assert load_pairs("wmt14", "en", "de", "val") == (["a"], ["b"])
    assert load_pairs("wmt14", "de", "en", "newstest2013") == (["b"], ["a"])
    assert load_pairs("wmt14", "en", "de", "newstest2019") == (["c"], ["d"])
    assert load_pairs("wmt14", "en", "de", "train") == (["e"], ["f"])
    assert server.requests == []
    (data / "wmt14/dev.tgz").write_bytes(wmt14["dev.tgz"])
    assert len(load_pairs("wmt14", "en", "fr", "test")[0]) == 2
    assert server.requests == []


@pytest.mark.parametrize(
    ("source", "target", "split", "said"),
    [
        ("de", "fr", "train", "wmt14 pairs en with de, fr; it has no de to fr"),
        ("en", "ko", "train", "wmt14 pairs en with de, fr; it has no en to ko"),
        ("en", "de", "undoc.2001", "wmt14 has no split undoc.2001; it has train, val,"),
    ],
)
def test_what_wmt14_does_not_have(wmt14, server, source, target, split, said):
    with pytest.raises(ValueError) as error:
        load_pairs("wmt14", source, target, split)
    assert one_line(error).startswith(said)
    assert server.requests == []


def test_an_archive_that_would_leave_the_cache(monkeypatch, server, places, wmt14):
    """With the right checksum, as its publisher could make one."""
    name = "dev/newstest2013"
    evil = gzip.compress(
        tar_of(
            entry(f"{name}.en", GOOD),
            entry(f"{name}.de", GOOD),
            entry("../../../../evil.txt", GOOD),
        )
    )
    serve(server, "dev.tgz", evil)
    files = PUBLIC["wmt14"].files | {"dev.tgz": remote(server, "dev.tgz", evil)}
    monkeypatch.setitem(PUBLIC, "wmt14", PUBLIC["wmt14"]._replace(files=files))
    before = set(places.parent.iterdir())
    with pytest.raises(ValueError) as error:
        load_pairs("wmt14", "en", "de", "val")
    assert "'../../../../evil.txt' would leave the folder" in one_line(error)
    assert files_in(places) == {"cache/wmt14/dev.tgz": evil}
    assert set(places.parent.iterdir()) == before


# Tatoeba from its address


def test_tatoeba_is_checked_without_a_checksum(monkeypatch, server, places, small):
    body = zip_of({"deu.txt": rows(200), "_about.txt": "See the terms of use."})
    changing = {"deu-eng.zip": Remote(server.address + "deu-eng.zip", 1 << 20)}
    monkeypatch.setitem(PUBLIC, "tatoeba", PUBLIC["tatoeba"]._replace(files=changing))
    for bad, reason in (
        (b"<html>not acceptable</html>", "it is not a zip archive"),
        (zip_of({"fra.txt": rows(200)}), "there is no deu.txt in it"),
        (zip_of({"deu.txt": "no tabs\n"}), "deu.txt, line 1: no tab"),
        (zip_of({"deu.txt": rows(200), "../x": ""}), "'../x' would leave the folder"),
        (body[:-30], "it is not a zip archive"),
    ):
        serve(server, "deu-eng.zip", bad)
        with pytest.raises(OSError) as error:
            load_pairs("tatoeba", "en", "de", "train")
        assert reason in one_line(error), reason
        assert files_in(places / "cache") == {}
    serve(server, "deu-eng.zip", body)
    splits = load_all("tatoeba", "en", "de")
    assert [len(pair[0]) for pair in splits.values()] == [140, 10, 20]
    assert files_in(places / "cache") == {"tatoeba/deu-eng.zip": body}


# What is published, and what a record says of it


def test_provenance_names_credit_and_bytes(data, places, small):
    path = data / "tatoeba_deu" / "pairs.tsv.gz"
    path.parent.mkdir()
    path.write_bytes(gzip.compress(rows(200).encode()))
    found = provenance("tatoeba", "en", "de", ["train", "val"])
    assert "CC BY 2.0 FR" in found["credit"] and "tatoeba.org" in found["credit"]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert found["files"] == {"tatoeba_deu/pairs.tsv.gz": digest}
    mine = write(places / "mine", train_en="a\n", train_de="c\n")
    found = provenance(mine, "en", "de", ["train"])
    assert found["credit"] == "" and list(found["files"]) == [
        "mine/train.en",
        "mine/train.de",
    ]
    json.dumps(found)


def test_the_tables_of_what_is_published_are_complete():
    assert len(PUBLIC["multi30k"].files) == 4 * 3
    known = [r for name in ("multi30k", "wmt14") for r in PUBLIC[name].files.values()]
    assert len({r.sha256 for r in known}) == len(known)
    assert all(len(bytes.fromhex(r.sha256)) == 32 and r.size for r in known)
    for corpus in PUBLIC.values():
        assert corpus.credit and "\n" not in corpus.credit
        for name, file in corpus.files.items():
            assert file.address.startswith("https://")
            assert file.address.endswith(f"/{name}")
    parts = {archive for archive, _ in corpora.WMT14_PARTS.values()}
    assert parts == set(PUBLIC["wmt14"].files)
    assert {part for parts in PARTS.values() for part in parts} <= set(
        corpora.WMT14_PARTS
    )


def test_files_are_found_before_anything_is_read(tmp_path):
    corpus = write(tmp_path / "mine", train_en="a\n", train_de="")
    split = find_split(corpus, "en", "de", "train")
    assert [path.name for path in split.files] == ["train.en", "train.de"]
    with pytest.raises(ValueError, match="is empty"):
        list(split.stream())
