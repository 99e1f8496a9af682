"""Count what §5.1 states about the corpora that are here, and record it.

    python benchmarks/corpora.py

reads every public corpus that `$ANNOTATED_TRANSFORMER_DATA` has, downloads nothing, and
writes book/records/corpora.json. It takes about a minute; the counts are the same on
every machine. Of the sentences it keeps a few, of Tatoeba's training pairs alone: CC BY
allows it, with the attribution that stands beside them.
"""

import argparse
import gzip
import random
import sys
from collections import Counter, defaultdict
from itertools import combinations, islice
from pathlib import Path
from statistics import correlation

from recording import ROOT, origin, save

from annotated_transformer.corpora import (
    DATA_VARIABLE,
    HELD_OUT,
    PUBLIC,
    TATOEBA,
    data_folder,
    families,
    find_split,
    load_pairs,
    provenance,
    read_table,
    sentence_key,
)

SEED = 0  # of the splits at random that the real ones are compared with
PREFIX, SHIFT = 4000, 11  # pairs that are compared in length; lines lost
SHOWN = 4  # pairs of each Tatoeba corpus that go into the record
CORPORA = {
    "multi30k": (
        ["de", "fr"],
        ["train", "val", "test_2016_flickr", "test_2017_flickr"],
    ),
    "tatoeba": (["de", "fr", "ko"], ["train", "val", "test"]),
    "wmt14": (["de", "fr"], ["val", "test"]),
    "wmt_train_slice_10k": (["de"], ["train.tok"]),
    "korean_parallel_eval": (["ko"], ["jhe.dev", "jhe.eval", "news.dev", "news.test"]),
}
Pairs = tuple[list[str], list[str]]


def is_here(corpus: str, language: str, splits: list[str]) -> bool:
    """Whether the data folder has all of it: nothing is to be downloaded."""
    data = data_folder()
    try:
        files = [
            file
            for split in splits
            for file in find_split(corpus, "en", language, split).files
        ]
    except (OSError, ValueError):
        return False
    return all(data in file.parents for file in files)


def joined(pairs: Pairs) -> set[tuple[str, str]]:
    """The distinct pairs of a split."""
    return set(zip(*pairs, strict=True))


def describe_split(pairs: Pairs) -> dict:
    """Sizes of one split, English first. Words are what stands between spaces."""
    translations = defaultdict(set)
    for english, other in zip(*pairs, strict=True):
        translations[english].add(other)
    rows = list(zip(*pairs, strict=True))
    several = sum(len(found) > 1 for found in translations.values())
    return {
        "pairs": len(pairs[0]),
        "words": [sum(len(line.split()) for line in side) for side in pairs],
        "characters": [sum(map(len, side)) for side in pairs],
        "distinct": [len(set(side)) for side in pairs],
        "several_translations": round(several / len(translations), 4),
        "empty": sum(not (a.strip() and b.strip()) for a, b in rows),
    }


def shared(texts: dict[str, Pairs]) -> list[dict]:
    """What two splits have in common: distinct sentences of each side, and keys."""
    return [
        {
            "splits": [one, other],
            "english": len(set(texts[one][0]) & set(texts[other][0])),
            "english_but_for_case_and_punctuation": len(
                set(map(sentence_key, texts[one][0]))
                & set(map(sentence_key, texts[other][0]))
            ),
            "other": len(set(texts[one][1]) & set(texts[other][1])),
            "pairs": len(joined(texts[one]) & joined(texts[other])),
        }
        for one, other in combinations(texts, 2)
    ]


def describe_table(language: str) -> dict:
    """A table of pairs before it is split, and what two worse ways to split it leak."""
    code = TATOEBA[language]
    path = find_split("tatoeba", "en", language, "train").files[0]
    table = sorted(set(read_table(path, f"{code}.txt")))
    translations = Counter(english for english, _ in table)
    sizes = list(map(len, families(table)))
    held = sum(HELD_OUT[language])
    rng = random.Random(SEED)
    by_pair = rng.sample(table, len(table))
    keys = sorted({sentence_key(english) for english, _ in table})
    out = set(rng.sample(keys, held))
    by_english = [[], []]
    for pair in by_pair:
        by_english[sentence_key(pair[0]) not in out].append(pair)
    return {
        "pairs": len(table),
        "english": len(translations),
        "several_translations": round(
            sum(n > 1 for n in translations.values()) / len(translations), 4
        ),
        "most_translations": max(translations.values()),
        "seed": SEED,
        "dealt_by_pair": seen_before(by_pair[held:], by_pair[:held]),
        "dealt_by_english": seen_before(by_english[1], by_english[0]),
        "families": len(sizes),
        "largest_family": max(sizes),
    }


def seen_before(train: list[tuple[str, str]], held: list[tuple[str, str]]) -> dict:
    """Share of held-out pairs whose English, or translation, train has as well."""
    shares = []
    for side in (0, 1):
        known = {sentence_key(pair[side]) for pair in train}
        seen = sum(sentence_key(pair[side]) in known for pair in held)
        shares.append(round(seen / len(held), 4))
    return dict(zip(("english", "other"), shares, strict=True))


def length_correlation(pairs: Pairs) -> dict:
    """How well the length of one side tells that of the other; and of a stranger's."""
    lengths = [[len(line) for line in side[:PREFIX]] for side in pairs]
    return {
        "pairs": len(lengths[0]),
        "aligned": round(correlation(*lengths), 3),
        "shifted": round(correlation(lengths[0][SHIFT:], lengths[1][:-SHIFT]), 3),
        "shift": SHIFT,
    }


def examples(language: str, train: Pairs) -> list[list[str]]:
    """The first training pairs of some length; the authors, if the table has them."""
    path = find_split("tatoeba", "en", language, "train").files[0]
    authors = {}
    if path.suffix == ".gz":
        with gzip.open(path, "rt", encoding="utf-8", newline="\n") as file:
            for row in (line.rstrip("\n").split("\t") for line in file):
                authors[tuple(row[:2])] = row[2] if len(row) > 2 else ""
    short = (p for p in zip(*train, strict=True) if 8 <= len(p[0].split()) <= 10)
    return [[*pair, authors.get(pair, "")] for pair in islice(short, SHOWN)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book/records/corpora.json"
    )
    arguments = parser.parse_args()
    if data_folder() is None:
        sys.exit(f"${DATA_VARIABLE} must name the folder with the corpora")
    head = origin("python benchmarks/corpora.py")
    corpora, tables = [], {}
    for corpus, (languages, splits) in CORPORA.items():
        for language in languages:
            if not is_here(corpus, language, splits):
                print(f"{corpus} en-{language}: not here", file=sys.stderr)
                continue
            print(f"{corpus} en-{language}", file=sys.stderr)
            texts = {
                split: load_pairs(corpus, "en", language, split) for split in splits
            }
            entry = {
                "corpus": corpus,
                "languages": ["en", language],
                "source": provenance(corpus, "en", language, splits),
                "splits": {split: describe_split(texts[split]) for split in splits},
                "shared": shared(texts),
                "length_correlation": length_correlation(texts[splits[0]]),
            }
            if corpus == "tatoeba":
                tables[language] = describe_table(language)
                entry["examples"] = examples(language, texts["train"])
            corpora.append(entry)
    record = {
        **head,
        "credits": {name: public.credit for name, public in PUBLIC.items()},
        "downloads": {
            name: {file: remote.size for file, remote in public.files.items()}
            for name, public in PUBLIC.items()
        },
        "corpora": corpora,
        "tatoeba_tables": tables,
    }
    save(arguments.record, record)


if __name__ == "__main__":
    main()
