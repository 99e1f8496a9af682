# Written in notebooks/5_1_sub_words.ipynb; edit it there.
"""Sub-word pieces by byte-pair encoding, one vocabulary for both languages (§5.1)."""

import io
import re
from collections.abc import Iterable
from pathlib import Path

import sentencepiece

__all__ = ["Tokenizer"]


class Tokenizer:
    """Text ↔ ids of pieces: a sentencepiece model with fixed special tokens (§5.1).

    A space counts as part of the word after it, and one the writer did not need (a
    second, one at either end) is dropped; the mark ▁ (U+2581), which stands for a space
    inside the model, is read as one. Every other character comes back as it was:
    nothing is normalised, and what no piece covers is spelt in UTF-8 bytes.
    """

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3

    def __init__(self, model: bytes) -> None:
        """model: what `save` writes. Raises ValueError where it is anything else."""
        self.model = model
        try:
            if not model:
                raise RuntimeError
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError:
            raise ValueError("not a sentencepiece model") from None
        for name in ("pad_id", "bos_id", "eos_id", "unk_id"):
            ours, theirs = getattr(self, name), getattr(self.processor, name)()
            if theirs != ours:
                raise ValueError(f"{name} is {theirs}, but must be {ours}")

    @classmethod
    def train(cls, lines: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn the pieces from lines of the training side alone, in both languages.

        vocab_size: number of pieces, the 4 special tokens and the 256 bytes included.
        The same lines in the same order always give the same pieces. Raises ValueError
        where the text has too few or too many distinct pieces for vocab_size.
        """
        if vocab_size <= 4 + 256:
            raise ValueError(
                f"cannot learn {vocab_size} pieces: the special tokens and the bytes "
                "alone are 260"
            )
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=1.0,  # no character of the text is left to the bytes
                byte_fallback=True,
                normalization_rule_name="identity",
                max_sentence_length=1 << 20,  # bytes; a longer line is not learned from
                pad_id=cls.pad_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                unk_id=cls.unk_id,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(
                f"cannot learn {vocab_size} pieces: {cls._why(str(error))}"
            ) from None
        return cls(model.getvalue())

    @staticmethod
    def _why(message: str) -> str:
        """sentencepiece's message in words that help whoever called `train`."""
        if "sentences_.empty()" in message:
            return "there is no text to learn from"
        if most := re.search(r"value <= (\d+)", message):
            return f"this text gives at most {most[1]}"
        if least := re.search(r"required_chars\. \d+ vs (\d+)", message):
            return (
                f"the special tokens, the 256 bytes and the characters of this text "
                f"alone are {least[1]}"
            )
        return message.splitlines()[0]

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the special tokens included."""
        return self.processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces of text, without bos and eos."""
        return self.processor.encode(text.replace("▁", " "))

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
