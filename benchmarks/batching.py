"""Count how much padding four ways to fill batches leave on Multi30k, for §5.1.

    python benchmarks/batching.py

prints the table and writes book/records/padding_multi30k.json (--record). It needs no
training and takes about half a minute; the counts are the same on every machine.
"""

import argparse
import random
from collections import Counter
from pathlib import Path

import numpy as np
from recording import ROOT, origin, save

from annotated_transformer.batching import group_by_length
from annotated_transformer.corpora import load_pairs
from annotated_transformer.tokenizer import Tokenizer

LANGUAGES = "en", "de"
VOCAB_SIZE = 4000
SEEDS = 0, 1, 2
MAX_TOKENS = 1024, 4096, 25_000


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
        "--record", type=Path, default=ROOT / "book/records/padding_multi30k.json"
    )
    arguments = parser.parse_args()
    head = origin("python benchmarks/batching.py", ("numpy", "sentencepiece"))
    text = load_pairs("multi30k", *LANGUAGES, "train")
    tokenizer = Tokenizer.train(text[0] + text[1], VOCAB_SIZE)
    src, tgt = ([len(ids) + 1 for ids in tokenizer.encode(lines)] for lines in text)
    lengths = list(zip(src, tgt, strict=True))
    record = {
        **head,
        "seeds": SEEDS,
        "pairs": len(lengths),
        "vocab_size": VOCAB_SIZE,
        "tokens": {
            "mean": [round(sum(side) / len(side), 2) for side in (src, tgt)],
            "longest": [max(src), max(tgt)],
            "same_length": round(sum(s == t for s, t in lengths) / len(lengths), 4),
        },
        "padding": [row for m in MAX_TOKENS for row in describe_padding(lengths, m)],
        "company": [describe_company(lengths, m) for m in MAX_TOKENS],
    }
    save(arguments.record, record)
    for row in record["padding"]:
        print(row["way"], row["max_tokens"], row["batches"], row["both"])


if __name__ == "__main__":
    main()
