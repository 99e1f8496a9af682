"""What the comparisons of short trainings share: corpus, steps, scores.

English to German, a joint vocabulary, the trainer's own update in bfloat16, the
batches and the dropout of a seed the same for every model that is compared.
"""

import functools
import math
import time
from collections.abc import Iterator

from torch import nn

from annotated_transformer import Translator
from annotated_transformer.batching import Batch, TokenBatches
from annotated_transformer.cli import corpus_folder
from annotated_transformer.corpora import load_pairs
from annotated_transformer.evaluation import bleu
from annotated_transformer.schedule import learning_rate
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.training import (
    Objective,
    TrainingConfig,
    make_adam,
    share_out,
    steps_from,
    update,
)

LANGUAGES, TEST = ("en", "de"), {"multi30k": "test_2016_flickr", "embedded": "test"}
LONGEST = 200  # tokens of a training sentence
LENGTHS = 0, 8, 12, 16, math.inf  # words of a source, the edges of the groups


class Data:
    """A corpus, its pieces and its batches; with `toy`, a little of it."""

    def __init__(self, corpus: str, sizes: dict, toy: bool = False) -> None:
        folder = corpus_folder(corpus)
        train, val, test = (
            load_pairs(folder, *LANGUAGES, split)
            for split in ("train", "val", TEST[corpus])
        )
        if toy:
            train, val, test = _few(train, 400), _few(val, 8), _few(test, 2)
        self.test = test
        self.tokenizer = Tokenizer.train(train[0] + train[1], sizes["vocab_size"])
        self.special = (
            self.tokenizer.pad_id,
            self.tokenizer.bos_id,
            self.tokenizer.eos_id,
        )
        self.max_tokens = sizes["max_tokens"]
        self.train_pairs, self.val_pairs = map(self.pairs, (train, val))

    def pairs(self, sides) -> list:
        """Ids of both sides, without pairs that do not fit a batch."""
        ids = [list(map(self.tokenizer.encode, side)) for side in sides]
        pairs = zip(*ids, strict=True)
        return [p for p in pairs if 0 < min(map(len, p)) and max(map(len, p)) < LONGEST]

    def batches(self, seed: int) -> TokenBatches:
        """The training pairs in the order of a seed."""
        return TokenBatches(self.train_pairs, self.max_tokens, *self.special, seed)

    @functools.cached_property
    def validation(self) -> list[Batch]:
        """The validation pairs in batches."""
        return list(TokenBatches(self.val_pairs, self.max_tokens, *self.special))


def _few(sides, n: int) -> list:
    """The first n lines of both sides."""
    return [side[:n] for side in sides]


def training(
    model: nn.Module, data: Data, sizes: dict, rate: float, seed: int, steps: int
) -> Iterator[tuple[int, float]]:
    """Train step by step: yields each step's number and the CPU seconds until then.

    rate multiplies the learning rate of Eq. 3, whose warm-up is sizes["warmup"].
    """
    config = TrainingConfig(
        sizes["max_tokens"],
        epochs=None,
        max_steps=steps,
        warmup=sizes["warmup"],
        rate=rate,
        seed=seed,
        bfloat16=True,
    )
    batches, adam = data.batches(seed), make_adam(model, config)
    objective = Objective(model, config.smoothing).train()
    seconds = 0.0
    for step, _, groups in steps_from(1, batches, config):
        tokens = sum(map(batches.target_tokens, groups))
        lr = config.rate * learning_rate(step, model.config.d_model, config.warmup)
        mine = share_out(step, groups, batches, model, seed)
        started = time.process_time()
        update(objective, adam, mine, tokens, lr, config.bfloat16)
        seconds += time.process_time() - started
        yield step, seconds


def score(model: nn.Module, data: Data, **search) -> dict:
    """BLEU of the test set, whole and by words of the source."""
    lines, references = data.test
    outputs = Translator(model, data.tokenizer).translate(lines, **search)
    by_length = {}
    for low, high in zip(LENGTHS, LENGTHS[1:], strict=False):
        group = [i for i, line in enumerate(lines) if low < len(line.split()) <= high]
        if group:
            texts = [[side[i] for i in group] for side in (outputs, references)]
            name = f"{low + 1}-{high}" if high < math.inf else f"{low + 1}-"
            value = round(bleu(*texts).value, 2)
            by_length[name] = {"lines": len(group), "bleu": value}
    whole = bleu(outputs, references)
    return {
        "bleu": round(whole.value, 2),
        "signature": whole.signature,
        "by_length": by_length,
    }
