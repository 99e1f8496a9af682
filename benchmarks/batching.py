"""Count what §5.1 states about Multi30k: words, pieces, and padding of four orders.

    python benchmarks/batching.py

prints the tables and writes book/records/batching_multi30k.json. It needs no training
and takes about half a minute; the counts are the same on every machine.
"""

import argparse
import json
import os
import platform
import random
import shlex
import subprocess
import sys
from collections import Counter
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np

from annotated_transformer.batching import group_by_length
from annotated_transformer.corpora import load_pairs
from annotated_transformer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
LANGUAGES = "en", "de"
SPLITS = "train", "val", "test_2016_flickr", "test_2017_flickr"
VOCABULARIES = 500, 1000, 2000, 4000, 8000, 16000, 32000
VOCAB_SIZE = 4000  # for everything but the table of vocabularies
SEEDS = 0, 1, 2
MAX_TOKENS = 1024, 4096, 25_000
RARE = 10  # a piece that the training text has less often than this


def git_commit() -> str:
    """The commit of the code, with -dirty where files differ from it."""
    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(
        git, check=True, capture_output=True, text=True
    ).stdout.strip()


def describe_split(pair: tuple[list[str], list[str]]) -> dict:
    """Sizes of one split, in pairs and in words between spaces."""
    words = {
        language: sum(len(line.split()) for line in lines)
        for language, lines in zip(LANGUAGES, pair, strict=True)
    }
    return {"pairs": len(pair[0]), "words": words}


def describe_words(train: list[str], test: list[str]) -> dict:
    """How far words, or characters, would reach as a vocabulary: one language."""
    counts = Counter(word for line in train for word in line.split())
    unseen = Counter(word for line in test for word in line.split())
    lines = sum(any(word not in counts for word in line.split()) for line in test)
    return {
        "characters": len(set("".join(train))),
        "characters_per_word": round(
            sum(len(line) + 1 for line in train) / sum(counts.values()), 2
        ),
        "distinct": len(counts),
        "seen_once": sum(count == 1 for count in counts.values()),
        "test_words_unseen": sum(n for w, n in unseen.items() if w not in counts),
        "test_lines_with_one": lines,
    }


def pieces_per_word(tokenizer: Tokenizer, lines: list[str]) -> float:
    pieces = sum(len(tokenizer.encode(line)) for line in lines)
    return pieces / sum(len(line.split()) for line in lines)


def describe_vocabulary(train, val, vocab_size: int) -> dict:
    """What a vocabulary of this size makes of the validation set."""
    tokenizer = Tokenizer.train(train[0] + train[1], vocab_size)
    counts = [
        Counter(i for line in lines for i in tokenizer.encode(line)) for lines in train
    ]
    learned = range(4 + 256, vocab_size)
    rare = sum(counts[0][i] + counts[1][i] < RARE for i in learned)
    both = sum(bool(counts[0][i] and counts[1][i]) for i in learned)
    return {
        "vocab_size": vocab_size,
        "pieces_per_word": {
            language: round(pieces_per_word(tokenizer, lines), 4)
            for language, lines in zip(LANGUAGES, val, strict=True)
        },
        "rare": round(rare / len(learned), 4),
        "used_by_both": round(both / len(learned), 4),
    }


def describe_leak(train, test) -> dict:
    """What learning the pieces from the test text too would change."""
    honest = Tokenizer.train(train[0] + train[1], VOCAB_SIZE)
    leaked = Tokenizer.train(train[0] + train[1] + test[0] + test[1], VOCAB_SIZE)
    pieces = [
        {tokenizer.processor.id_to_piece(i) for i in range(VOCAB_SIZE)}
        for tokenizer in (honest, leaked)
    ]
    return {
        "pieces_that_differ": len(pieces[1] - pieces[0]),
        "test_pieces_per_word": {
            name: round(pieces_per_word(tokenizer, test[0] + test[1]), 4)
            for name, tokenizer in (("honest", honest), ("leaked", leaked))
        },
    }


def cut(order: list[int], lengths, max_tokens: int) -> list[list[int]]:
    """Groups of neighbours in an order, each as large as max_tokens a side allows."""
    groups: list[list[int]] = [[]]
    longest = 0
    for i in order:
        longest = max(longest, *lengths[i])
        if groups[-1] and longest * (len(groups[-1]) + 1) > max_tokens:
            groups.append([])
            longest = max(lengths[i])
        groups[-1].append(i)
    return groups


def waste(groups, lengths, fixed: tuple[int, int] | None = None) -> list[float]:
    """Share of padding: source, target, both. fixed: widths that are always filled."""
    used, room = [0, 0], [0, 0]
    for group in groups:
        for side in (0, 1):
            longest = max(lengths[i][side] for i in group)
            used[side] += sum(lengths[i][side] for i in group)
            room[side] += len(group) * (fixed[side] if fixed else longest)
    used, room = used + [sum(used)], room + [sum(room)]
    return [1 - u / r for u, r in zip(used, room, strict=True)]


def describe_padding(lengths, max_tokens: int) -> list[dict]:
    """Batches and padding of each way to fill them, over the seeds."""
    longest = max(s for s, _ in lengths), max(t for _, t in lengths)
    rows = max_tokens // max(longest)

    def fixed(order, _):
        return [order[i : i + rows] for i in range(0, len(order), rows)]

    def shuffled(order, _):
        return cut(order, lengths, max_tokens)

    def by_source(order, _):
        return cut(sorted(order, key=lambda i: lengths[i][0]), lengths, max_tokens)

    def by_both(_, rng):
        bits = np.random.PCG64(rng.getrandbits(64))
        return group_by_length(np.array(lengths), max_tokens, bits)

    table = []
    for way in (fixed, shuffled, by_source, by_both):
        results = []
        for seed in SEEDS:
            rng = random.Random(seed)
            groups = way(rng.sample(range(len(lengths)), len(lengths)), rng)
            width = longest if way is fixed else None
            results.append((len(groups), *waste(groups, lengths, width)))
        batches, src, tgt, both = zip(*results, strict=True)
        table.append(
            {
                "way": way.__name__,
                "max_tokens": max_tokens,
                "batches": list(batches),
                "src": [round(value, 4) for value in src],
                "tgt": [round(value, 4) for value in tgt],
                "both": [round(value, 4) for value in both],
            }
        )
    return table


def describe_company(lengths, max_tokens: int) -> dict:
    """How many of the pairs in a pair's batch are there again in the next epoch."""
    before, after = (
        group_by_length(np.array(lengths), max_tokens, np.random.PCG64(seed))
        for seed in SEEDS[:2]
    )
    place = {i: number for number, group in enumerate(after) for i in group}
    again = total = 0
    for group in before:
        counts = Counter(place[i] for i in group).values()
        again += sum(n * (n - 1) for n in counts)
        total += len(group) * (len(group) - 1)
    return {"max_tokens": max_tokens, "again": round(again / total, 4)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book/records/batching_multi30k.json"
    )
    arguments = parser.parse_args()
    commit = git_commit()
    text = {split: load_pairs("multi30k", *LANGUAGES, split) for split in SPLITS}
    train, val, test = (text[split] for split in SPLITS[:3])
    tokenizer = Tokenizer.train(train[0] + train[1], VOCAB_SIZE)
    src, tgt = ([len(tokenizer.encode(line)) + 1 for line in lines] for lines in train)
    lengths = list(zip(src, tgt, strict=True))
    record = {
        "command": shlex.join(["python", "benchmarks/batching.py"]),
        "commit": commit,
        "date": datetime.now(timezone.utc).date().isoformat(),
        "device": f"{os.cpu_count()}-core {platform.machine()} CPU",
        "versions": {
            "python": platform.python_version(),
            "sentencepiece": version("sentencepiece"),
        },
        "seeds": SEEDS,
        "splits": {split: describe_split(pair) for split, pair in text.items()},
        "words": {
            language: describe_words(train[side], test[side])
            for side, language in enumerate(LANGUAGES)
        },
        "vocab_size": VOCAB_SIZE,
        "rare_below": RARE,
        "vocabularies": [describe_vocabulary(train, val, v) for v in VOCABULARIES],
        "leak": describe_leak(train, test),
        "tokens": {
            "mean": [round(sum(side) / len(side), 2) for side in (src, tgt)],
            "longest": [max(src), max(tgt)],
            "same_length": round(sum(s == t for s, t in lengths) / len(lengths), 4),
        },
        "padding": [row for m in MAX_TOKENS for row in describe_padding(lengths, m)],
        "company": [describe_company(lengths, m) for m in MAX_TOKENS],
    }
    arguments.record.parent.mkdir(parents=True, exist_ok=True)
    lines = json.dumps(record, indent=1, ensure_ascii=False) + "\n"
    arguments.record.write_text(lines, encoding="utf-8")

    for row in record["vocabularies"]:
        print(*row.values())
    for row in record["padding"]:
        print(row["way"], row["max_tokens"], row["batches"], row["both"])
    print(arguments.record, file=sys.stderr)


if __name__ == "__main__":
    main()
