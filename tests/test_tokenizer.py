"""Sub-word pieces: notebooks/5_1_sub_words.ipynb, `tokenizer`."""

import copy
import importlib
import io
import math
import multiprocessing
import pickle
import random
import struct
import subprocess
import sys
from itertools import chain, product
from pathlib import Path

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from annotated_transformer.grammar import generate
from annotated_transformer.model import TransformerConfig
from annotated_transformer.tokenizer import (
    Tokenizer,
    apply_merges,
    count_pairs,
    join,
    learn_merges,
    longest_match,
    may_join,
    most_probable_cut,
    sample_lines,
)

SETTINGS = settings(max_examples=300, deadline=None, derandomize=True)
LINES = [
    "A dog runs across the meadow.",
    "The dog is asleep under the table.",
    "Ein Hund rennt über die Wiese.",
    "Der Hund schläft unter dem Tisch.",
] * 3
SPECIAL = (Tokenizer.pad_id, Tokenizer.bos_id, Tokenizer.eos_id, Tokenizer.unk_id)


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(LINES, 340)


@pytest.fixture(scope="module", params=Tokenizer.model_types)
def of_each_type(request):
    return Tokenizer.train(LINES, 300, request.param)


def without_extra_spaces(text):
    """What the class says is dropped, and nothing else."""
    return " ".join(word for word in text.replace("\u2581", " ").split(" ") if word)


@SETTINGS
@given(st.text())
@example("")
@example(" ")
@example("a \u2581 b\u2581")
@example("\ub4dc\ub514\uc5b4 \uae08\uc694\uc77c\uc774\ub2e4.")
@example("\U0001f6b2\u200d\ufe0f \ufb01 \u00bd \u212b A\u030a \ufeff")
@example("a\tb\u00a0c\u3000d\ne\r\nf\u2028g\x85h\x00")
@example("</s> <s> <pad> <unk> <0x41> \u2585 \u2047 \ufffd")
def test_nothing_but_extra_spaces_is_lost(of_each_type, text):
    tokenizer = of_each_type
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == without_extra_spaces(text)
    assert not set(ids) & set(SPECIAL)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.pieces(text) == [tokenizer.processor.id_to_piece(i) for i in ids]


@SETTINGS
@given(
    st.text(alphabet="adehgmnorsu", min_size=1, max_size=12), st.text(" ", max_size=3)
)
def test_a_stray_space_changes_nothing(of_each_type, word, spaces):
    tokenizer = of_each_type
    clean = tokenizer.encode(f"{word} dog")
    assert tokenizer.encode(f"{spaces}{word} {spaces}dog{spaces}") == clean


def test_special_ids_are_the_model_s(tokenizer):
    config = TransformerConfig.tiny(vocab_size=340)
    assert SPECIAL == (0, 1, 2, 3)
    assert (config.pad_id, config.bos_id, config.eos_id) == SPECIAL[:3]
    processor = tokenizer.processor
    found = processor.pad_id(), processor.bos_id(), processor.eos_id()
    assert (*found, processor.unk_id()) == SPECIAL


def test_special_tokens_are_silent(tokenizer):
    ids = tokenizer.encode("The dog.")
    assert tokenizer.decode([1, *ids, 2, 0, 0]) == "The dog."
    assert tokenizer.decode([]) == tokenizer.decode([0, 1, 2]) == ""


def test_broken_characters_do_not_raise(tokenizer):
    first, *_ = tokenizer.encode("\ud55c")[1:]  # the first of three bytes
    assert tokenizer.decode([first]) == "\ufffd"


def test_half_of_a_surrogate_pair_is_refused(tokenizer):
    for text, number in (("a\ud83d", 1), (["fine", "a\ud83db"], 2)):
        with pytest.raises(ValueError) as error:
            tokenizer.encode(text)
        assert str(error.value) == (
            f"text {number}, character 2: half of a surrogate pair (U+D83D) is not text"
        )
    with pytest.raises(ValueError, match="a line is not a string that UTF-8 can hold"):
        Tokenizer.train(["a\ud83d"], 300)


@pytest.mark.parametrize("text", [None, 3])
def test_what_is_no_text_is_a_type_error(tokenizer, text):
    with pytest.raises(TypeError, match="not iterable"):
        tokenizer.encode(text)


def test_learned_pieces_are_used(tokenizer):
    """Frequent words are one piece, and no letter of the text needs bytes."""
    assert tokenizer.pieces("Hund dog") == ["▁Hund", "▁dog"]
    assert all(i >= 260 for line in LINES for i in tokenizer.encode(line))


@pytest.mark.parametrize("model_type", Tokenizer.model_types)
def test_same_lines_same_pieces(model_type):
    model = Tokenizer.train(LINES, 300, model_type).model
    assert Tokenizer.train(iter(LINES), 300, model_type).model == model
    assert Tokenizer.train(LINES[:2] * 9, 285, model_type).model != model


@pytest.mark.parametrize("model_type", Tokenizer.model_types)
def test_same_pieces_in_another_process(model_type):
    """The seed of the sample counts, and nothing that differs between processes."""
    arguments = f"{LINES!r} * 9, 300, {model_type!r}, max_lines=50, seed=3"
    code = (
        "import sys; from annotated_transformer.tokenizer import Tokenizer;"
        f"sys.stdout.buffer.write(Tokenizer.train({arguments}).model)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    here = Tokenizer.train(LINES * 9, 300, model_type, max_lines=50, seed=3)
    assert done.stdout == here.model
    assert done.stderr == b""  # the library's own log is kept quiet


def test_a_very_long_line_is_learned_from():
    pieces = Tokenizer.train(["zug " * 2000], 260 + 4 + 3).pieces("zug")
    assert pieces == ["▁zug"]


def test_vocab_size_is_exact(tokenizer):
    assert tokenizer.vocab_size == 340 == tokenizer.processor.vocab_size()
    assert Tokenizer.train(LINES, 301).vocab_size == 301


@pytest.mark.parametrize(
    ("lines", "vocab_size", "reason"),
    [
        (LINES, 100_000, "this text gives at most "),
        (LINES, 262, "alone are 289"),
        (LINES, 260, "alone are 260"),
        (LINES, 0, "alone are 260"),
        (LINES, -1, "alone are 260"),
        ([], 300, "there is no text to learn from"),
        (["", ""], 300, "there is no text to learn from"),
    ],
)
@pytest.mark.parametrize("model_type", Tokenizer.model_types)
def test_impossible_sizes_give_one_line(lines, vocab_size, reason, model_type):
    with pytest.raises(ValueError) as error:
        Tokenizer.train(lines, vocab_size, model_type)
    message = str(error.value)
    assert message.startswith(f"cannot learn {vocab_size} pieces: ")
    assert reason in message and "\n" not in message and ".cc" not in message


@pytest.mark.parametrize("model_type", Tokenizer.model_types)
def test_the_largest_size_it_names_is_possible(model_type):
    with pytest.raises(ValueError) as error:
        Tokenizer.train(LINES, 100_000, model_type)
    most = int(str(error.value).split()[-1])
    assert Tokenizer.train(LINES, most, model_type).vocab_size == most


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"model_type": "word"},
            "model_type is 'word', but must be 'bpe' or 'unigram'",
        ),
        ({"model_type": None}, "model_type is None, but must be 'bpe' or 'unigram'"),
        (
            {"character_coverage": 0.9},
            "character_coverage is 0.9, but must be from 0.98 to 1",
        ),
        (
            {"character_coverage": math.nan},
            "character_coverage is nan, but must be from 0.98 to 1",
        ),
        ({"max_lines": 0}, "max_lines is 0, but must be at least 1"),
    ],
)
def test_arguments_out_of_range_are_named(arguments, message):
    with pytest.raises(ValueError) as error:
        Tokenizer.train(LINES, 300, **arguments)
    assert str(error.value) == message


def test_save_and_load(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert loaded.model == tokenizer.model
    assert loaded.encode(LINES[0]) == tokenizer.encode(LINES[0])
    plain = sentencepiece.SentencePieceProcessor(str(tmp_path / "tokenizer.model"))
    assert plain.encode(LINES[0]) == tokenizer.encode(LINES[0])


@pytest.mark.parametrize("content", [b"", b"text", bytes(50), "truncated"])
def test_a_file_that_is_no_model_is_named(tokenizer, tmp_path, content, capfd):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(tokenizer.model[:-1] if content == "truncated" else content)
    with pytest.raises(ValueError) as error:
        Tokenizer.load(path)
    assert str(error.value) == f"{path}: not a sentencepiece model"
    assert capfd.readouterr().err == ""


def test_a_model_with_other_special_ids_is_refused(tmp_path):
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES),
        model_writer=model,
        vocab_size=60,
        model_type="bpe",
        minloglevel=2,
    )
    (tmp_path / "foreign.model").write_bytes(model.getvalue())
    with pytest.raises(
        ValueError, match=r"foreign\.model: pad_id is -1, but must be 0"
    ):
        Tokenizer.load(tmp_path / "foreign.model")


# Byte-pair encoding as the page writes it, against the library's.


def library_pieces(lines):
    """All that sentencepiece makes of a text by merging, in the order of merging."""
    with pytest.raises(ValueError, match="at most") as error:
        Tokenizer.train(lines, 10**6)
    most = int(str(error.value).split()[-1])
    processor = Tokenizer.train(lines, most).processor
    pieces = [processor.id_to_piece(i) for i in range(260, most)]
    while len(pieces[-1]) == 1:  # the characters come last
        pieces.pop()
    return pieces


def grammar_lines(n, seed, language):
    return [getattr(triple, language).text for triple in generate(n, seed)]


@pytest.mark.parametrize("language", ["english", "german", "korean"])
def test_merges_are_sentencepiece_s(language):
    """All merges, in order; what it lists after them stands nowhere in the text."""
    lines = grammar_lines(60, 5, language)
    ours = ["".join(pair) for pair in learn_merges(lines, 10**6)]
    theirs = library_pieces(lines)
    assert len(ours) > 400
    assert ours == theirs[: len(ours)]
    used = Tokenizer.train(lines, 260 + len(theirs) + len(set("▁".join(lines))) - 1)
    last = set(chain(*(used.pieces(line) for line in lines)))
    assert not last & set(theirs[len(ours) :])


def test_merges_of_three_languages_together():
    lines = list(chain(*(grammar_lines(20, 6, x) for x in ("english", "korean"))))
    ours = ["".join(pair) for pair in learn_merges(lines, 300)]
    assert ours == library_pieces(lines)[:300]


def test_merges_of_texts_full_of_ties():
    rng = random.Random(0)
    for alphabet, _ in product(("ab", "aaab .", "aäb가나다.1 ", "xyжя,-' "), range(25)):
        lines = ["".join(rng.choices(alphabet, k=20)) for _ in range(4)]
        ours = ["".join(pair) for pair in learn_merges(lines, 10**6)]
        assert ours == library_pieces(lines)[: len(ours)], lines


def test_the_benchmark_s_faster_merges_are_the_same(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    learn_quickly = importlib.import_module("sub_words").learn_quickly
    for lines in (grammar_lines(40, 8, "german"), ["aaab aab aaaa"] * 3):
        merges = ["".join(pair) for pair in learn_merges(lines, 10**6)]
        assert learn_quickly(lines, len(merges)) == merges


def test_merges_applied_are_sentencepiece_s_cut():
    """On sentences that were not learned from, every one of their words."""
    for language in ("english", "german", "korean"):
        lines = grammar_lines(60, 5, language)
        merges = learn_merges(lines, 200)
        size = 260 + 200 + len(set("▁".join(lines)) - {" "} | {"▁"})
        tokenizer = Tokenizer.train(lines, size)
        known = set("".join(lines))
        words = set(" ".join(grammar_lines(150, 7, language)).split())
        words = [word for word in sorted(words) if set(word) <= known]
        assert len(words) > 100
        for word in words:
            assert apply_merges("▁" + word, merges) == tokenizer.pieces(word)


@SETTINGS
@given(st.lists(st.sampled_from("aab"), max_size=12), st.sampled_from(["aa", "ab"]))
def test_join_glues_from_the_left(pieces, pair):
    """As `str.replace` does, which does not overlap either."""
    marked = "".join(pieces).replace(pair, "#")
    assert join(pieces, tuple(pair)) == tuple(pair if m == "#" else m for m in marked)


def test_pairs_are_counted_with_their_words():
    assert count_pairs({("a", "a", "a"): 5, ("a",): 9, ("a", "b"): 2}) == {
        ("a", "a"): 10,
        ("a", "b"): 2,
    }


def test_no_merge_is_left_when_every_word_is_a_piece():
    assert learn_merges(["ab ab"], 5) == [("a", "b"), ("▁", "ab")]
    assert (
        learn_merges([], 5) == learn_merges([" "], 5) == learn_merges(["ab"], 0) == []
    )


@pytest.mark.parametrize(
    ("piece", "allowed"),
    [
        ("▁dog", True),
        ("dog.", False),
        ("3.5", True),
        ("a1", False),
        ("가a", False),
        ("▁금요일", True),
        ("x" * 16, True),
        ("▁" + "x" * 16, False),
        ("▁.", True),
    ],
)
def test_what_may_be_a_piece(piece, allowed):
    assert may_join(piece) is allowed


# The most probable cut, and the longest match.


def library_score(processor, word):
    """The score of sentencepiece's best cut, the last field of the first message."""
    found = processor.nbest_encode(word, nbest_size=2, return_type="serialized_proto")
    length, start = found[1], 2
    if length >= 128:
        length, start = length - 128 + 128 * found[2], 3
    tag, score = struct.unpack("<Bf", found[start + length - 5 : start + length])
    assert (found[0], tag) == (0x0A, 0x1D)
    return score


def test_most_probable_cut_is_sentencepiece_s():
    lines = grammar_lines(300, 5, "german")
    tokenizer = Tokenizer.train(lines, 450, "unigram")
    processor = tokenizer.processor
    scores = {processor.id_to_piece(i): processor.get_score(i) for i in range(260, 450)}
    words = sorted({word for line in lines for word in line.split()})
    several = 0
    for word in words:
        pieces, score = most_probable_cut("▁" + word, scores)
        assert pieces == tokenizer.pieces(word)
        assert score == pytest.approx(library_score(processor, word), abs=1e-4)
        several += len(pieces) > 1
    assert several > 100


@SETTINGS
@given(
    st.text("ab", min_size=1, max_size=7),
    st.dictionaries(st.text("ab", min_size=1, max_size=3), st.integers(-9, -1)),
)
def test_no_cut_is_more_probable(word, scores):
    """Against every cut there is: a choice among the places between letters."""
    possible = []
    for cuts in product((False, True), repeat=len(word) - 1):
        pieces = [word[0]]
        for letter, cut in zip(word[1:], cuts, strict=True):
            if cut:
                pieces.append(letter)
            else:
                pieces[-1] += letter
        if all(piece in scores for piece in pieces):
            possible.append(sum(scores[piece] for piece in pieces))
    if possible:
        pieces, score = most_probable_cut(word, scores)
        assert "".join(pieces) == word
        assert score == sum(scores[piece] for piece in pieces) == max(possible)
    else:
        with pytest.raises(ValueError, match="no pieces make up"):
            most_probable_cut(word, scores)


@SETTINGS
@given(st.text("abc", max_size=9), st.sets(st.text("abc", min_size=2, max_size=4)))
def test_longest_match_takes_the_longest_prefix(word, longer):
    pieces, rest = longer | set("abc"), word
    for piece in longest_match(word, pieces):
        assert piece in pieces and rest.startswith(piece)
        assert len(piece) == max(len(p) for p in pieces if rest.startswith(p))
        rest = rest[len(piece) :]
    assert rest == ""


def test_longest_match_names_what_nothing_fits():
    with pytest.raises(ValueError, match="no piece fits 'xy' in 'abxy'"):
        longest_match("abxy", ["ab", "y"])


# Many lines: a sample to learn from, a batch to encode, worker processes.


@SETTINGS
@given(st.integers(0, 60), st.integers(1, 70), st.integers(0, 5))
def test_a_sample_is_of_its_size_in_order_and_the_same_again(total, n, seed):
    lines = [f"{i:02}" for i in range(total)]
    sample = sample_lines(iter(lines), n, seed)
    assert len(sample) == min(n, total)
    assert sample == sorted(set(sample))
    assert sample == sample_lines(lines, n, seed)
    if n >= total:
        assert sample == lines


def test_every_line_is_drawn_equally_often():
    drawn = [0] * 20
    for seed in range(4000):
        for line in sample_lines(map(str, range(20)), 5, seed):
            drawn[int(line)] += 1
    assert all(abs(count - 1000) < 5 * math.sqrt(4000 * 0.25 * 0.75) for count in drawn)


def test_a_sample_does_not_hold_the_lines():
    alive = peak = 0

    class Line(str):
        def __new__(cls, text):
            nonlocal alive, peak
            alive += 1
            peak = max(peak, alive)
            return super().__new__(cls, text)

        def __del__(self):
            nonlocal alive
            alive -= 1

    sample = sample_lines((Line(i) for i in range(5000)), 50)
    assert len(sample) == 50 and peak <= 53


def test_pieces_are_learned_from_the_sample_alone():
    lines = [f"word{chr(97 + i % 26)} other{i % 7}" for i in range(900)]
    sampled = Tokenizer.train(iter(lines), 310, max_lines=100, seed=4)
    assert sampled.model == Tokenizer.train(sample_lines(lines, 100, 4), 310).model
    assert sampled.model != Tokenizer.train(lines, 310, max_lines=100, seed=5).model
    whole = Tokenizer.train(lines, 310)
    assert Tokenizer.train(lines, 310, max_lines=900, seed=9).model == whole.model


def test_rare_characters_can_be_left_to_the_bytes():
    lines = ["ab cd " * 500] * 9 + ["\ud55c"]
    covered = Tokenizer.train(lines, 269)
    left = Tokenizer.train(lines, 269, character_coverage=0.999)
    spelt = ["▁", "<0xED>", "<0x95>", "<0x9C>"]
    assert covered.pieces("\ud55c") == ["▁", "\ud55c"]
    assert left.pieces("\ud55c") == spelt
    assert left.decode(left.encode("\ud55c ab")) == "\ud55c ab"


@settings(SETTINGS, max_examples=50)
@given(st.lists(st.text(max_size=20), max_size=9), st.integers(1, 3))
def test_a_batch_is_its_lines_one_by_one(of_each_type, lines, threads):
    expected = [of_each_type.encode(line) for line in lines]
    assert of_each_type.encode(lines, threads=threads) == expected
    assert of_each_type.encode(iter(lines)) == expected


def test_a_copy_is_the_same_and_no_larger(of_each_type):
    text = "Der Hund \ud55c"
    for other in (
        pickle.loads(pickle.dumps(of_each_type)),
        copy.deepcopy(of_each_type),
    ):
        assert other.model == of_each_type.model
        assert other.encode(text) == of_each_type.encode(text)
    assert len(pickle.dumps(of_each_type)) < len(of_each_type.model) + 200


def test_worker_processes_encode_the_same(tokenizer):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.map(tokenizer.encode, LINES) == tokenizer.encode(LINES)
