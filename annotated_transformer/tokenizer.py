# Written in notebooks/5_1_sub_words.ipynb; edit it there.
"""Sub-word pieces: byte-pair encoding, unigram, and a vocabulary for a model (§5.1)."""

import functools
import io
import math
import random
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import overload

import sentencepiece

__all__ = [
    "count_pairs",
    "join",
    "apply_merges",
    "may_join",
    "learn_merges",
    "sample_lines",
    "Tokenizer",
    "most_probable_cut",
    "longest_match",
]


def count_pairs(words: Mapping[tuple[str, ...], int]) -> Counter[tuple[str, str]]:
    """How often each two pieces stand side by side; words: pieces → occurrences."""
    pairs = Counter()
    for pieces, count in words.items():
        for pair in pairwise(pieces):
            pairs[pair] += count
    return pairs


def join(pieces: Iterable[str], pair: tuple[str, str]) -> tuple[str, ...]:
    """The pieces of a word after every such pair has become one piece."""
    result = []
    for piece in pieces:
        if result and (result[-1], piece) == pair:
            result[-1] += piece
        else:
            result.append(piece)
    return tuple(result)


def apply_merges(word: str, merges: Sequence[tuple[str, str]]) -> list[str]:
    """The pieces of a word, with ▁ before it, by merges in the order of learning."""
    rank = {"".join(pair): number for number, pair in enumerate(merges)}
    pieces = list(word)
    while True:
        joined = [left + right for left, right in pairwise(pieces)]
        best = min(joined, key=lambda piece: rank.get(piece, len(rank)), default="")
        if best not in rank:
            return pieces
        place = joined.index(best)  # the leftmost of equals
        pieces[place : place + 2] = [best]


@functools.cache
def may_join(piece: str) -> bool:
    """Whether sentencepiece would let this be a piece: one script, 16 characters."""
    scripts = {
        unicodedata.name(character, "?").split()[0] if character.isalpha() else ""
        for character in piece.removeprefix("▁")
    }
    return len(piece) <= 16 and len(scripts) <= 1


def learn_merges(lines: Iterable[str], n_merges: int) -> list[tuple[str, str]]:
    """The first merges of byte-pair encoding; fewer where no pair is left to join.

    Ties go to the shorter piece, then to the first in code-point order. This is the
    definition; `Tokenizer.train` finds the same merges many times faster.
    """
    texts = Counter("▁" + word for line in lines for word in line.split(" ") if word)
    words = {tuple(word): count for word, count in texts.items()}
    merges = []
    while len(merges) < n_merges:
        pairs = count_pairs(words)
        joined = {pair: "".join(pair) for pair in pairs if may_join("".join(pair))}
        if not joined:
            break
        best = min(joined, key=lambda p: (-pairs[p], len(joined[p]), joined[p]))
        merges.append(best)
        words = {join(pieces, best): count for pieces, count in words.items()}
    return merges


def sample_lines(lines: Iterable[str], n: int, seed: int = 0) -> list[str]:
    """n lines drawn at random, in their order; all of them where there are no more.

    Reads each line once and keeps n in memory. The same lines, n and seed give the
    same sample on every machine.
    """
    rng = random.Random(seed)
    kept: list[tuple[int, str]] = []
    for number, line in enumerate(lines):
        if number < n:
            kept.append((number, line))
        elif (place := int(rng.random() * (number + 1))) < n:
            kept[place] = (number, line)
    return [line for _, line in sorted(kept)]


SPECIAL, MODEL_TYPES = ("pad_id", "bos_id", "eos_id", "unk_id"), ("bpe", "unigram")


def _check_wishes(
    vocab_size: int, model_type: str, coverage: float, max_lines: int | None
) -> None:
    """Raises ValueError where an argument of `Tokenizer.train` is out of range."""
    if model_type not in MODEL_TYPES:
        known = " or ".join(map(repr, MODEL_TYPES))
        raise ValueError(f"model_type is {model_type!r}, but must be {known}")
    if not 0.98 <= coverage <= 1:
        raise ValueError(
            f"character_coverage is {coverage}, but must be from 0.98 to 1"
        )
    if max_lines is not None and max_lines < 1:
        raise ValueError(f"max_lines is {max_lines}, but must be at least 1")
    if vocab_size <= 4 + 256:
        raise ValueError(
            f"cannot learn {vocab_size} pieces: the special tokens and the bytes "
            "alone are 260"
        )


def _learn(
    lines: Iterable[str],
    vocab_size: int,
    model_type: str,
    coverage: float,
    special: dict[str, int],
) -> bytes:
    """The model that sentencepiece learns, with the decisions above."""
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(lines),
            model_writer=model,
            model_type=model_type,
            vocab_size=vocab_size,
            character_coverage=coverage,
            byte_fallback=True,
            normalization_rule_name="identity",
            max_sentence_length=1 << 20,  # bytes; a longer line is not learned from
            minloglevel=2,
            **special,
        )
    except RuntimeError as error:
        why = _why(str(error))
        raise ValueError(f"cannot learn {vocab_size} pieces: {why}") from None
    return model.getvalue()


def _why(message: str) -> str:
    """sentencepiece's message in words that help whoever called."""
    if "sentences_.empty()" in message:
        return "there is no text to learn from"
    if most := re.search(r"value <= (\d+)", message):
        return f"this text gives at most {most[1]}"
    if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
        return (
            f"the special tokens, the 256 bytes and the characters of this text "
            f"alone are {least[1]}"
        )
    if "Unable to cast" in message:
        return "a line is not a string that UTF-8 can hold"
    return message.splitlines()[0]


class Tokenizer:
    """Text ↔ ids of pieces: a sentencepiece model with fixed special tokens (§5.1).

    A space counts as part of the word after it, and one the writer did not need (a
    second, one at either end) is dropped; the mark ▁ (U+2581), which stands for a space
    inside the model, is read as one. Every other character comes back as it was:
    nothing is normalised, and what no piece covers is spelt in UTF-8 bytes.
    """

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3
    model_types = MODEL_TYPES

    def __init__(self, model: bytes) -> None:
        """model: what `save` writes. Raises ValueError where it is anything else."""
        self.model = model
        try:
            if not model:
                raise RuntimeError
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError("not a sentencepiece model") from None
        for name in SPECIAL:
            ours, theirs = getattr(self, name), getattr(self.processor, name)()
            if theirs != ours:
                raise ValueError(f"{name} is {theirs}, but must be {ours}")

    def __reduce__(self):
        """Copies, and those that worker processes get, are made from the model."""
        return type(self), (self.model,)

    @classmethod
    def train(
        cls,
        lines: Iterable[str],
        vocab_size: int,
        model_type: str = "bpe",
        *,
        character_coverage: float = 1.0,
        max_lines: int | None = None,
        seed: int = 0,
    ) -> "Tokenizer":
        """Learn the pieces from lines of the training side alone, in both languages.

        vocab_size: number of pieces, the 4 special tokens and the 256 bytes included.
        model_type: "bpe" (byte-pair encoding) or "unigram".
        character_coverage: share of the text, from 0.98 to 1, whose characters must be
        pieces; the rarest beyond it are left to the bytes.
        max_lines: where there are more lines, learn from so many of them, drawn by
        `sample_lines` with the seed; no more than these are held in memory.
        The same arguments always give the same pieces. Raises ValueError where one is
        out of range, or the text has too few or too many pieces for vocab_size.
        """
        _check_wishes(vocab_size, model_type, character_coverage, max_lines)
        if max_lines is not None:
            lines = sample_lines(lines, max_lines, seed)
        special = {name: getattr(cls, name) for name in SPECIAL}
        return cls(_learn(lines, vocab_size, model_type, character_coverage, special))

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the special tokens included."""
        return self.processor.vocab_size()

    @overload
    def encode(self, text: str, threads: int = 1) -> list[int]: ...

    @overload
    def encode(self, text: Iterable[str], threads: int = 1) -> list[list[int]]: ...

    def encode(self, text, threads=1):
        """The ids of the pieces of a text, without bos and eos; or of each of several.

        text: a string gives one list, several strings give a list of lists, faster
        than one by one. threads: how many of them at a time. Raises ValueError, naming
        the place, for half of a surrogate pair, which no text has.
        """
        alone = isinstance(text, str)
        lines = [line.replace("▁", " ") for line in ([text] if alone else text)]
        try:
            if alone:
                return self.processor.encode(lines[0])
            return self.processor.encode(lines, num_threads=threads)
        except (RuntimeError, TypeError):
            for number, line in enumerate(lines, start=1):
                if half := re.search("[\ud800-\udfff]", line):
                    raise ValueError(
                        f"text {number}, character {half.start() + 1}: half of a "
                        f"surrogate pair (U+{ord(half[0]):04X}) is not text"
                    ) from None
            raise

    def decode(self, ids: list[int]) -> str:
        """The text of the pieces; pad, bos and eos are silent.

        Bytes that do not make a character come out as U+FFFD, the replacement mark.
        """
        return self.processor.decode(ids)

    def pieces(self, text: str) -> list[str]:
        """The pieces of text as strings; ▁ marks the start of a word."""
        return [self.processor.id_to_piece(i) for i in self.encode(text)]

    def save(self, path: str | Path) -> None:
        """Write the model, readable by every program that uses sentencepiece."""
        Path(path).write_bytes(self.model)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. Raises ValueError, naming the file, otherwise."""
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None


def most_probable_cut(
    word: str, log_probability: Mapping[str, float]
) -> tuple[list[str], float]:
    """The pieces of a word whose log-probabilities add up to the most, and their sum.

    Raises ValueError where no pieces make up the word.
    """
    best = [0.0] + [-math.inf] * len(word)  # best sum of a cut of word[:end]
    start = [0] * (len(word) + 1)  # where the last piece of that cut begins
    for end in range(1, len(word) + 1):
        for begin in range(end):
            score = log_probability.get(word[begin:end], -math.inf)
            if best[begin] + score > best[end]:
                best[end], start[end] = best[begin] + score, begin
    if best[-1] == -math.inf:
        raise ValueError(f"no pieces make up {word!r}")
    pieces, end = [], len(word)
    while end:
        pieces.append(word[start[end] : end])
        end = start[end]
    return pieces[::-1], best[-1]


def longest_match(word: str, pieces: Iterable[str]) -> list[str]:
    """The pieces of a word, the longest that fits taken first, from left to right.

    Raises ValueError where nothing fits.
    """
    known, cut, begin = set(pieces), [], 0
    while begin < len(word):
        ends = range(len(word), begin, -1)
        end = next((end for end in ends if word[begin:end] in known), None)
        if end is None:
            raise ValueError(f"no piece fits {word[begin:]!r} in {word!r}")
        cut.append(word[begin:end])
        begin = end
    return cut
