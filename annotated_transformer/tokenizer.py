"""Sub-word pieces shared by both languages (§5.1)."""

import io
from collections.abc import Iterable
from pathlib import Path

import sentencepiece


class Tokenizer:
    """A sentencepiece model: text ↔ ids of pieces, one vocabulary for source and target (§5.1).

    The ids of the special tokens are fixed: pad_id, bos_id, eos_id, unk_id below.
    """

    pad_id, bos_id, eos_id, unk_id = 0, 1, 2, 3

    def __init__(self, model: bytes) -> None:
        """model: the bytes of a sentencepiece model. Raises ValueError where they are not one."""
        self.model = model
        try:
            self.processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise ValueError("not a sentencepiece model") from error

    @classmethod
    def train(cls, lines: Iterable[str], vocab_size: int) -> "Tokenizer":
        """Learn byte-pair encoding from lines: the training side alone, both languages together.

        vocab_size: number of pieces, the special tokens and the 256 bytes (which spell what no
        piece covers) included. The same lines always give the same pieces.
        Raises ValueError where the text has too few distinct pieces for vocab_size.
        """
        model = io.BytesIO()
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(lines),
                model_writer=model,
                model_type="bpe",
                vocab_size=vocab_size,
                character_coverage=1.0,
                byte_fallback=True,
                pad_id=cls.pad_id,
                bos_id=cls.bos_id,
                eos_id=cls.eos_id,
                unk_id=cls.unk_id,
                minloglevel=2,
            )
        except RuntimeError as error:
            raise ValueError(f"cannot learn {vocab_size} pieces from this text: {error}") from error
        return cls(model.getvalue())

    @property
    def vocab_size(self) -> int:
        """Number of pieces, the special tokens included."""
        return self.processor.vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of the pieces of text, without bos and eos."""
        return self.processor.encode(text)

    def decode(self, ids: list[int]) -> str:
        """The text of the pieces; bos, eos and padding are silent."""
        return self.processor.decode(ids)

    def pieces(self, text: str) -> list[str]:
        """The pieces of text as strings; ▁ marks the start of a word."""
        return self.processor.encode(text, out_type=str)

    def save(self, path: str | Path) -> None:
        """Write the sentencepiece model, readable by any other program that uses sentencepiece."""
        Path(path).write_bytes(self.model)

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read what `save` wrote. Raises ValueError, naming the file, where it is not a model."""
        try:
            return cls(Path(path).read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
