"""Sub-word pieces: notebooks/5_1_sub_words.ipynb, `tokenizer`."""

import io
import subprocess
import sys

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from annotated_transformer.model import TransformerConfig
from annotated_transformer.tokenizer import Tokenizer

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
def test_nothing_but_extra_spaces_is_lost(tokenizer, text):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == without_extra_spaces(text)
    assert not set(ids) & set(SPECIAL)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)
    assert tokenizer.pieces(text) == [tokenizer.processor.id_to_piece(i) for i in ids]


@SETTINGS
@given(
    st.text(alphabet="adehgmnorsu", min_size=1, max_size=12), st.text(" ", max_size=3)
)
def test_a_stray_space_changes_nothing(tokenizer, word, spaces):
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


def test_learned_pieces_are_used(tokenizer):
    """Frequent words are one piece, and no letter of the text needs bytes."""
    assert tokenizer.pieces("Hund dog") == ["▁Hund", "▁dog"]
    assert all(i >= 260 for line in LINES for i in tokenizer.encode(line))


def test_same_lines_same_pieces(tokenizer):
    assert Tokenizer.train(iter(LINES), 340).model == tokenizer.model
    assert Tokenizer.train(LINES[:2] * 9, 300).model != tokenizer.model


def test_same_pieces_in_another_process(tokenizer):
    code = (
        "import sys; from annotated_transformer.tokenizer import Tokenizer;"
        f"sys.stdout.buffer.write(Tokenizer.train({LINES!r}, 340).model)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert done.stdout == tokenizer.model
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
def test_impossible_sizes_give_one_line(lines, vocab_size, reason):
    with pytest.raises(ValueError) as error:
        Tokenizer.train(lines, vocab_size)
    message = str(error.value)
    assert message.startswith(f"cannot learn {vocab_size} pieces: ")
    assert reason in message and "\n" not in message and ".cc" not in message


def test_the_largest_size_it_names_is_possible():
    with pytest.raises(ValueError) as error:
        Tokenizer.train(LINES, 100_000)
    most = int(str(error.value).split()[-1])
    assert Tokenizer.train(LINES, most).vocab_size == most


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
