"""Measure what §5.1 states about sub-words: sizes, cuts, samples, rates, Korean.

    python benchmarks/sub_words.py

prints a summary and writes book/records/sub_words_multi30k.json. It takes some minutes.
Everything but the rates and times is the same on every machine. Multi30k and Tatoeba
are downloaded where they are missing. The part on Korean needs a file of pairs, one a
line, English TAB Korean, in $ANNOTATED_TRANSFORMER_DATA, too: DOCS below, made from
github.com/python/python-docs-ko, branch 3.13, markup stripped. Without it, the record
keeps what it had.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
import unicodedata
import zlib
from collections import Counter, defaultdict
from concurrent.futures import ProcessPoolExecutor
from itertools import pairwise
from pathlib import Path

from recording import ROOT, origin, save

from annotated_transformer.corpora import data_folder, load_pairs, read_lines
from annotated_transformer.tokenizer import (
    Tokenizer,
    join,
    longest_match,
    may_join,
    most_probable_cut,
)

LANGUAGES = "en", "de"
SPLITS = "train", "val", "test_2016_flickr", "test_2017_flickr"
VOCABULARIES = 500, 1000, 2000, 4000, 8000, 16000, 32000
VOCAB_SIZE = 4000  # for the leak, the cuts and the samples
JOINT = 8000  # against two vocabularies of half the size, and of the same
RARE = 10  # a piece that the training text has less often than this
SEEDS = 0, 1, 2
SAMPLES = 1000, 3000, 10_000
STREAM, KEPT = 5_000_000, 500_000  # lines that pass, lines that are kept
MERGES = 1000  # that are compared with the library's
TATOEBA = 4000, 8000, 37_000
KOREAN = 1000, 2000, 4000, 8000
UNIGRAM = 1000, 4000, 16000  # for it takes longer
DOCS = "python_docs_ko/pairs.clean.tsv.gz"
FIRST = 4 + 256  # the first learned piece

Lines = list[str]


def describe_split(pair: tuple[Lines, Lines]) -> dict:
    """Sizes of one split, in pairs and in words between spaces."""
    words = {
        language: sum(len(line.split()) for line in lines)
        for language, lines in zip(LANGUAGES, pair, strict=True)
    }
    return {"pairs": len(pair[0]), "words": words}


def describe_words(train: Lines, test: Lines) -> dict:
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


def pieces_per_word(tokenizer: Tokenizer, lines: Lines, words: int | None = None):
    pieces = sum(map(len, tokenizer.encode(lines)))
    return round(pieces / (words or sum(len(line.split()) for line in lines)), 4)


def of_both(tokenizer: Tokenizer, pair) -> dict:
    return {
        language: pieces_per_word(tokenizer, lines)
        for language, lines in zip(LANGUAGES, pair, strict=True)
    }


def how_often(tokenizer: Tokenizer, pair) -> dict:
    """How often the learned pieces occur in a text of two languages."""
    one, other = (
        Counter(i for ids in tokenizer.encode(lines) for i in ids) for lines in pair
    )
    learned = range(FIRST, tokenizer.vocab_size)
    counts = [one[i] + other[i] for i in learned]
    return {
        "rare": round(sum(count < RARE for count in counts) / len(learned), 4),
        "never": sum(count == 0 for count in counts),
        "median": statistics.median_low(counts),
        "used_by_both": round(
            sum(bool(one[i] and other[i]) for i in learned) / len(learned), 4
        ),
    }


def describe_vocabulary(train, val, vocab_size: int, model_type: str) -> dict:
    """What a vocabulary of this size makes of the validation set."""
    start = time.process_time()
    tokenizer = Tokenizer.train(train[0] + train[1], vocab_size, model_type)
    seconds = time.process_time() - start
    return {
        "vocab_size": vocab_size,
        "model_type": model_type,
        "pieces_per_word": of_both(tokenizer, val),
        **how_often(tokenizer, train),
        "processor_seconds": round(seconds, 1),
    }


def pieces_of(tokenizer: Tokenizer) -> Lines:
    """The learned pieces, merges first."""
    piece = tokenizer.processor.id_to_piece
    return [piece(i) for i in range(FIRST, tokenizer.vocab_size)]


def learn_quickly(lines: Lines, n_merges: int) -> Lines:
    """What `learn_merges` learns, joined: recounts only the words with the pair."""
    texts = Counter("▁" + word for line in lines for word in line.split(" ") if word)
    words, counts = [tuple(word) for word in texts], list(texts.values())
    pairs, places = Counter(), defaultdict(set)
    for number, word in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += counts[number]
            places[pair].add(number)
    merges = []
    while len(merges) < n_merges:
        possible = [p for p in pairs if pairs[p] and may_join(p[0] + p[1])]
        most = max(pairs[pair] for pair in possible)
        tied = (pair for pair in possible if pairs[pair] == most)
        best = min(tied, key=lambda p: (len(p[0] + p[1]), p[0] + p[1]))
        merges.append("".join(best))
        for number in places.pop(best):
            for pair in pairwise(words[number]):
                pairs[pair] -= counts[number]
            words[number] = join(words[number], best)
            for pair in pairwise(words[number]):
                pairs[pair] += counts[number]
                places[pair].add(number)
        pairs = +pairs
    return merges


def describe_merges(train) -> dict:
    """Whether byte-pair encoding by the definition gives the library's pieces."""
    lines = train[0] + train[1]
    learned = pieces_of(Tokenizer.train(lines, JOINT))
    theirs = [piece for piece in learned if len(piece) > 1][:MERGES]
    ours = learn_quickly(lines, len(theirs))
    same = sum(itertools.takewhile(bool, map(str.__eq__, ours, theirs)))
    return {
        "compared": len(theirs),
        "same_from_the_first": same,
        "in_both": len(set(ours) & set(theirs)),
    }


def describe_cuts(train, val) -> dict:
    """Three ways to cut the words of the validation set with the same pieces."""
    tokenizer = Tokenizer.train(train[0] + train[1], VOCAB_SIZE)
    known = pieces_of(tokenizer)
    characters = {piece for piece in known if len(piece) == 1}
    words = Counter(word for lines in val for line in lines for word in line.split())
    words = {w: n for w, n in words.items() if set(w) <= characters}
    total = sum(words.values())
    equal = dict.fromkeys(known, -1.0)
    ways = {
        "merges": tokenizer.pieces,
        "longest_match": lambda word: longest_match("▁" + word, known),
        "fewest": lambda word: most_probable_cut("▁" + word, equal)[0],
    }
    cuts = {name: {word: way(word) for word in words} for name, way in ways.items()}
    return {
        "vocab_size": VOCAB_SIZE,
        "words": total,
        "pieces_per_word": {
            name: round(sum(len(of[w]) * n for w, n in words.items()) / total, 4)
            for name, of in cuts.items()
        },
        "cut_differently": round(
            sum(
                n
                for w, n in words.items()
                if cuts["longest_match"][w] != cuts["merges"][w]
            )
            / total,
            4,
        ),
    }


def describe_joint(train, val) -> list[dict]:
    """One vocabulary for both languages, or one for each."""
    joint = Tokenizer.train(train[0] + train[1], JOINT)
    words = [Counter(w for line in lines for w in line.split()) for lines in train]
    shared = sorted(set(words[0]) & set(words[1]))
    rows = []
    for name, size in (("joint", JOINT), ("half", JOINT // 2), ("same", JOINT)):
        if name == "joint":
            both = joint, joint
        else:
            both = tuple(Tokenizer.train(lines, size) for lines in train)
        one, other = (set(pieces_of(tokenizer)) for tokenizer in both)
        rows.append(
            {
                "name": name,
                "sizes": [JOINT] if name == "joint" else [size, size],
                "pieces_per_word": {
                    language: pieces_per_word(tokenizer, lines)
                    for language, tokenizer, lines in zip(
                        LANGUAGES, both, val, strict=True
                    )
                },
                "pieces_in_both": len(one & other) if name != "joint" else None,
                "shared_words": len(shared),
                "shared_words_cut_alike": sum(
                    both[0].pieces(word) == both[1].pieces(word) for word in shared
                ),
            }
        )
    return rows


def describe_leak(train, test) -> dict:
    """What learning the pieces from the test text too would change."""
    honest = Tokenizer.train(train[0] + train[1], VOCAB_SIZE)
    leaked = Tokenizer.train(train[0] + train[1] + test[0] + test[1], VOCAB_SIZE)
    return {
        "vocab_size": VOCAB_SIZE,
        "pieces_that_differ": len(set(pieces_of(leaked)) - set(pieces_of(honest))),
        "test_pieces_per_word": {
            name: pieces_per_word(tokenizer, test[0] + test[1])
            for name, tokenizer in (("honest", honest), ("leaked", leaked))
        },
    }


def describe_samples(train, val) -> list[dict]:
    """How good a vocabulary is that was learned from some of the lines."""
    lines = train[0] + train[1]
    whole = set(pieces_of(Tokenizer.train(lines, VOCAB_SIZE)))
    rows = []
    for n in (*SAMPLES, len(lines)):
        per_word, in_common = [], []
        for seed in SEEDS if n < len(lines) else SEEDS[:1]:
            some = Tokenizer.train(lines, VOCAB_SIZE, max_lines=n, seed=seed)
            per_word.append(pieces_per_word(some, val[0] + val[1]))
            in_common.append(round(len(whole & set(pieces_of(some))) / len(whole), 4))
        rows.append({"lines": n, "pieces_per_word": per_word, "in_common": in_common})
    return rows


STREAM_CODE = f"""
import json, sys, time
sys.path[:0] = sys.argv[1:]
from annotated_transformer.tokenizer import sample_lines
def memory():  # not getrusage's, which begins with that of the process before exec
    status = open("/proc/self/status").read()
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024
before, start = memory(), time.process_time()
kept = sample_lines((f"{{i:070}}" for i in range({STREAM})), {KEPT})
seconds = time.process_time() - start
print(json.dumps({{"lines": {STREAM}, "kept": len(kept),
    "processor_seconds": round(seconds, 1), "mebibytes": round(memory() - before)}}))
"""


def describe_stream() -> dict:
    """Time and memory of a sample from more lines than fit, in a fresh process."""
    command = [sys.executable, "-c", STREAM_CODE, str(ROOT)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


LIBRARY_CODE = """
import hashlib, io, sentencepiece
lines = [f"line {i} of {i * i} words w{i % 97} v{i % 13}" for i in range(20000)]
model = io.BytesIO()
sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(lines),
    model_writer=model, model_type="bpe", vocab_size=200, minloglevel=2,
    input_sentence_size=1000, shuffle_input_sentence=True)
loaded = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
pieces = " ".join(loaded.id_to_piece(i) for i in range(200))
print(hashlib.sha256(pieces.encode()).hexdigest())
"""


def describe_library_sample() -> dict:
    """Vocabularies that the library's own sampling gives in five processes."""
    command = [sys.executable, "-c", LIBRARY_CODE]
    runs = [subprocess.run(command, check=True, capture_output=True) for _ in range(5)]
    return {"processes": len(runs), "different": len({run.stdout for run in runs})}


def describe_rates(train) -> list[dict]:
    """Lines a second of processor time, the best of three: one by one, and together."""
    lines, rows = train[0][:10_000] + train[1][:10_000], []
    for model_type in Tokenizer.model_types:
        tokenizer = Tokenizer.train(lines, JOINT, model_type)
        ways = {
            "one by one": lambda t: [t.encode(line) for line in lines],
            "together": lambda t: t.encode(lines),
        }
        for name, way in ways.items():
            seconds = []
            for _ in range(3):
                start = time.process_time()
                way(tokenizer)
                seconds.append(time.process_time() - start)
            rate = round(len(lines) / min(seconds))
            rows.append({"model_type": model_type, "way": name, "lines": rate})
    return rows


def read_docs() -> tuple[Lines, Lines] | None:
    """The Python documentation, English and Korean; None where it is missing."""
    path = (data_folder() or Path("/nowhere")) / DOCS
    if not path.is_file():
        return None
    rows = [line.split("\t")[:2] for line in read_lines(path)]
    return tuple(map(list, zip(*rows, strict=True)))


def split_pairs(pairs: tuple[Lines, Lines]):
    """Training and held-out pairs (a twentieth), split by the English sentence."""
    held = [zlib.crc32(line.encode()) % 20 == 0 for line in pairs[0]]
    return tuple(
        tuple(
            [x for x, h in zip(lines, held, strict=True) if h == out] for lines in pairs
        )
        for out in (False, True)
    )


def describe_tatoeba(size: int) -> dict:
    """How often a piece is seen in everyday sentences."""
    train, held = (load_pairs("tatoeba", "en", "de", split) for split in SPLITS[:2])
    tokenizer = Tokenizer.train(train[0] + train[1], size)
    return {
        "pairs": len(train[0]),
        "vocab_size": size,
        "pieces_per_word": of_both(tokenizer, held),
        **how_often(tokenizer, train),
    }


def korean_text() -> tuple[list[Lines], list[Lines]] | None:
    """English and Korean lines to learn from, and the same held out."""
    docs = read_docs()
    if docs is None:
        return None
    parts = []
    for split, some in zip(SPLITS[:2], split_pairs(docs), strict=True):
        everyday = load_pairs("tatoeba", "en", "ko", split)
        both = [a + b for a, b in zip(everyday, some, strict=True)]
        parts.append([[unicodedata.normalize("NFC", x) for x in one] for one in both])
    return tuple(parts)


def is_syllable(character: str) -> bool:
    return "\uac00" <= character <= "\ud7a3"


def describe_korean(train) -> dict | None:
    """The syllables of Korean text, and what a vocabulary without Korean does."""
    if not (parts := korean_text()):
        return None
    (english, korean), held = parts
    seen = Counter(filter(is_syllable, "".join(korean)))
    syllables = list(filter(is_syllable, "".join(held[1])))
    words = sum(len(line.split()) for line in held[1])
    return {
        "pairs": len(english),
        "held_out": len(held[0]),
        "syllables_per_word": round(len(syllables) / words, 4),
        "distinct_syllables": len(seen),
        "rare_syllables": sum(count < RARE for count in seen.values()),
        "syllables": len(syllables),
        "unseen_syllables": sum(x not in seen for x in syllables),
        "covered": {
            str(n): round(sum(c for _, c in seen.most_common(n)) / seen.total(), 4)
            for n in (100, 200, 500, 1000)
        },
        "without_korean": pieces_per_word(
            Tokenizer.train(train[0] + train[1], JOINT), held[1]
        ),
    }


def describe_form(form: str, normal: str, coverage: float, size: int) -> dict | None:
    """One vocabulary of English and Korean, the text in syllables or in letters."""
    if not (parts := korean_text()):
        return None
    words = [sum(len(line.split()) for line in lines) for lines in parts[1]]
    train, test = (
        [[unicodedata.normalize(normal, x) for x in lines] for lines in part]
        for part in parts
    )
    row = {"form": form, "coverage": coverage, "vocab_size": size}
    try:
        tokenizer = Tokenizer.train(
            train[0] + train[1], size, character_coverage=coverage
        )
    except ValueError as error:
        return {**row, "error": str(error)}
    coded = [tokenizer.encode(lines) for lines in test]
    for ids, line in zip(coded[1], parts[1][1], strict=True):
        back = unicodedata.normalize("NFC", tokenizer.decode(ids))
        assert back == " ".join(word for word in line.split(" ") if word)
    counts = [sum(map(len, lines)) for lines in coded]
    spelt = sum(4 <= i < FIRST for ids in coded[1] for i in ids)
    return {
        **row,
        "pieces_per_word": {
            language: round(count / n, 4)
            for language, count, n in zip(("en", "ko"), counts, words, strict=True)
        },
        "bytes": round(spelt / counts[1], 4),
    }


FORMS = (
    ("syllables", "NFC", 1.0),
    ("most syllables", "NFC", 0.9995),
    ("few syllables", "NFC", 0.98),
    ("letters", "NFD", 0.9999),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book/records/sub_words_multi30k.json"
    )
    parser.add_argument("--processes", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    head, old = origin("python benchmarks/sub_words.py", ["sentencepiece"]), {}
    if arguments.record.exists():
        old = json.loads(arguments.record.read_text(encoding="utf-8"))
    text = {split: load_pairs("multi30k", *LANGUAGES, split) for split in SPLITS}
    train, val, test = (text[split] for split in SPLITS[:3])
    with ProcessPoolExecutor(arguments.processes) as pool:
        vocabularies = [
            pool.submit(describe_vocabulary, train, val, size, model_type)
            for model_type, sizes in (("unigram", UNIGRAM), ("bpe", VOCABULARIES))
            for size in sizes
        ]
        tatoeba = [pool.submit(describe_tatoeba, size) for size in TATOEBA]
        forms = [
            pool.submit(describe_form, *form, size)
            for form, size in itertools.product(FORMS, KOREAN)
        ]
        parts = {
            "merges": pool.submit(describe_merges, train),
            "cuts": pool.submit(describe_cuts, train, val),
            "joint": pool.submit(describe_joint, train, val),
            "leak": pool.submit(describe_leak, train, test),
            "samples": pool.submit(describe_samples, train, val),
            "stream": pool.submit(describe_stream),
            "library_sample": pool.submit(describe_library_sample),
            "rates": pool.submit(describe_rates, train),
            "korean": pool.submit(describe_korean, train),
        }
        parts = {name: future.result() for name, future in parts.items()}
        parts["vocabularies"] = [future.result() for future in vocabularies]
        parts["tatoeba"] = [future.result() for future in tatoeba]
        if parts["korean"]:
            parts["korean"]["vocabularies"] = [future.result() for future in forms]
        else:
            parts["korean"] = old.get("korean")
    record = {
        **head,
        "seeds": SEEDS,
        "rare_below": RARE,
        "splits": {split: describe_split(pair) for split, pair in text.items()},
        "words": {
            language: describe_words(train[side], test[side])
            for side, language in enumerate(LANGUAGES)
        },
        **parts,
    }
    save(arguments.record, record)
    for name in ("vocabularies", "joint", "samples", "rates", "tatoeba"):
        for row in record[name]:
            print(*row.values())
    for name in ("merges", "cuts", "leak", "stream", "library_sample", "korean"):
        print(name, record[name])


if __name__ == "__main__":
    main()
