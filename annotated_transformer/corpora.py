# Written in notebooks/5_1_training_data_and_batching.ipynb; edit it there.
"""Parallel text: public corpora, or two aligned files, as pairs of sentences (§5.1)."""

import codecs
import gzip
import hashlib
import html
import os
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, product, zip_longest
from pathlib import Path
from typing import NamedTuple

from .downloads import (
    Remote,
    alone,
    blocks,
    checked_members,
    download,
    extract,
    reading,
)

__all__ = [
    "SUFFIXES",
    "SEGMENT",
    "SEED",
    "HELD_OUT",
    "MULTI30K",
    "TATOEBA",
    "TATOEBA_ZIPS",
    "WMT14_ARCHIVES",
    "PUBLIC",
    "DATA_VARIABLE",
    "CACHE_VARIABLE",
    "WMT14_PARTS",
    "WMT14_TRAIN",
    "WMT14_HELD_OUT",
    "UNPACKED",
    "decode_lines",
    "stream_lines",
    "read_lines",
    "align",
    "table_rows",
    "read_table",
    "sentence_key",
    "lot",
    "families",
    "divide",
    "PublicCorpus",
    "published",
    "data_folder",
    "cache_folder",
    "first_file",
    "obtain",
    "locate",
    "find_file",
    "Split",
    "other_language",
    "check_table",
    "tatoeba_split",
    "unpack_wmt14",
    "find_aligned",
    "aligned_split",
    "wmt14_split",
    "find_split",
    "stream_pairs",
    "load_pairs",
    "provenance",
]


def decode_lines(file: Iterable[bytes], name: str | Path) -> Iterator[str]:
    r"""The lines of a file opened in binary mode, as text, without their line ends.

    A line ends with "\n" or "\r\n" and with nothing else: a sentence may contain the
    other characters at which `str.splitlines` breaks (U+0085, U+2028, a lone "\r"…).
    A byte order mark before the first line is no part of it. name: what to call the
    file in an error. Raises ValueError, naming the file and the line, where a line is
    not UTF-8.
    """
    for number, line in enumerate(file, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        try:
            yield line.removesuffix(b"\n").removesuffix(b"\r").decode("utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{name}, line {number}: byte {error.start + 1} is not valid UTF-8"
            ) from None


SUFFIXES = "", ".gz", ".sgm"  # of a text file: as it is, gzipped, marked up
SEGMENT = re.compile(r"<seg\b[^>]*>(.*?)</seg>", re.IGNORECASE)


def stream_lines(path: str | Path) -> Iterator[str]:
    """The lines of a UTF-8 text file one by one, unpacked if its name ends with .gz.

    Of a file whose name ends with .sgm, the form of the WMT test sets, it gives the
    segments. Raises ValueError, naming the file, where it is not UTF-8 or not whole.
    """
    path = Path(path)
    open_bytes = gzip.open if path.suffix == ".gz" else open
    with open_bytes(path, "rb") as file:
        try:
            for line in decode_lines(file, path):
                if path.suffix != ".sgm":
                    yield line
                elif segment := SEGMENT.search(line):
                    yield html.unescape(segment[1]).strip()
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: not a whole gzip file ({error})") from None


def read_lines(path: str | Path) -> list[str]:
    """All lines of a text file, as `stream_lines` gives them."""
    return list(stream_lines(path))


def align(source: Path, target: Path) -> Iterator[tuple[str, str]]:
    """Line n of one file with line n of the other, as long as both have one.

    Raises ValueError at the end where the files have different numbers of lines, or
    none: only then is it known.
    """
    counts = [0, 0]
    for pair in zip_longest(stream_lines(source), stream_lines(target)):
        counts = [n + (line is not None) for n, line in zip(counts, pair, strict=True)]
        if counts[0] == counts[1]:
            yield pair
    for path, count in zip((source, target), counts, strict=True):
        if not count:
            raise ValueError(f"{path} is empty")
    if counts[0] != counts[1]:
        raise ValueError(
            f"{source} has {counts[0]} lines but {target} has {counts[1]}: "
            "each line must be the translation of the same line in the other file"
        )


def table_rows(lines: Iterable[str], name: str | Path) -> Iterator[tuple[str, str]]:
    """The first two columns of each line."""
    for number, line in enumerate(lines, start=1):
        english, tab, rest = line.partition("\t")
        if not tab:
            raise ValueError(f"{name}, line {number}: no tab between two sentences")
        yield english, rest.partition("\t")[0]


def read_table(path: Path, member: str = "") -> list[tuple[str, str]]:
    """Pairs from a file with one a line: English, tab, translation, and what follows.

    member: of a zip archive, the name of the file in it, in whatever folder. Raises
    ValueError, naming the file, where it is not whole or a line is not a pair.
    """
    if path.suffix == ".gz":
        return list(table_rows(stream_lines(path), path))
    table = None
    with reading(path):
        for entry in checked_members(path, 1 << 30):
            if entry.regular and Path(entry.name).name == member:
                with entry.open() as file:
                    table = list(table_rows(decode_lines(file, member), member))
        if table is None:
            raise ValueError(f"there is no {member} in it")
    return table


SEED = 2017  # of the lots by which sentences are dealt to the splits
HELD_OUT = {"de": (1000, 2000), "fr": (1000, 2000), "ko": (250, 500)}  # val, test


def sentence_key(sentence: str) -> str:
    """What two sentences have in common that differ in case and punctuation only."""
    return "".join(filter(str.isalnum, sentence.casefold()))


def lot(*texts: str) -> bytes:
    """A number drawn for a text: the same on every machine, and like no other's."""
    return hashlib.sha256("\t".join((str(SEED), *texts)).encode()).digest()


def families(pairs: Iterable[tuple[str, str]]) -> list[list[tuple[str, str]]]:
    """Groups of pairs, as small as they can be so that no two share a sentence.

    A sentence of either side is the same as another with the same `sentence_key`.
    """
    keyed = {pair: tuple(enumerate(map(sentence_key, pair))) for pair in pairs}
    leader: dict[tuple[int, str], tuple[int, str]] = {}

    def find(sentence: tuple[int, str]) -> tuple[int, str]:
        while leader.setdefault(sentence, sentence) != sentence:
            leader[sentence] = sentence = leader[leader[sentence]]
        return sentence

    for one, other in keyed.values():
        leader[find(one)] = find(other)
    groups: dict[tuple[int, str], list[tuple[str, str]]] = {}
    for pair, (one, _) in keyed.items():
        groups.setdefault(find(one), []).append(pair)
    return list(groups.values())


def divide(
    pairs: Iterable[tuple[str, str]], n_val: int, n_test: int
) -> dict[str, list[tuple[str, str]]]:
    """Splits of pairs (English, other), with no sentence of either side in two.

    Whole families are dealt. One pair of each of n_test families is test, one of each
    of n_val more is val; the others of these are not used. The rest is train,
    shuffled. The order of the pairs has no influence, nor has a pair that stands twice.
    Raises ValueError where nothing is left for train.
    """

    def lot_of_family(family: list[tuple[str, str]]) -> bytes:
        return lot(min(sentence_key(english) for english, _ in family))

    def lot_of_pair(pair: tuple[str, str]) -> bytes:
        return lot(*pair)

    drawn = sorted(families(pairs), key=lot_of_family)
    held = n_val + n_test
    if len(drawn) <= held:
        raise ValueError(f"{len(drawn)} families of sentences, {held} to be held out")
    chosen = [min(family, key=lot_of_pair) for family in drawn[:held]]
    return {
        "train": sorted(chain.from_iterable(drawn[held:]), key=lot_of_pair),
        "val": chosen[n_test:],
        "test": chosen[:n_test],
    }


class PublicCorpus(NamedTuple):
    """What there is of a published corpus, whose it is, and where its files are."""

    contents: str  # languages and splits, in words
    credit: str  # who made it, and on what terms it may be used
    files: dict[str, Remote]  # by the name that each has in the cache


def published(address: str, table: str) -> dict[str, Remote]:
    """Files of one folder on the web. table: name, bytes and SHA-256 of each."""
    words = iter(table.split())
    rows = zip(words, words, words, strict=True)
    return {name: Remote(address + name, int(size), sha) for name, size, sha in rows}


MULTI30K = published(
    "https://raw.githubusercontent.com/multi30k/dataset/"
    "a3d2e0d26b56f3846f66a952536ffed4e401d05a/data/task1/raw/",
    """
train.en.gz 568929
d79cfa999dd4c51d2cb42499b6796d5a882c3a8a961923c25a898c90f8bbd56f
train.de.gz 637044
726e39b2fa9eb9ffb6dc763fb35a179f80fae06ffc5d28b6ace5faa883de28a6
train.fr.gz 604242
622e75069e9f4c577425c4f277116ce66e63a2401c0a2312d90073cb12379a3c
val.en.gz 21650
14f7d25ddd868909a9213e361768460edcacdd6ab9d1e77b92560dc10c10dc28
val.de.gz 24681
f0cba2f995189cf5770f29a8a9a537a3ad3f51657ad873405082ff6863a5e75a
val.fr.gz 23001
ca3106f1a72390591d25f6c45cb4cd39dec4cd3f123e099748a3ce5256c160e9
test_2016_flickr.en.gz 21077
611d361c6334bc7246101d48097c13cf5c4413c5befc793cc629934359d532d9
test_2016_flickr.de.gz 22890
9204244e408ccb38d2a55cfcd344df15005fc42a07a6e55ca6c52b6ababb8cc8
test_2016_flickr.fr.gz 22310
6d326e188d259fb1d04ac19eae3af956559b3a0b93d7635e56c90987c40c8b90
test_2017_flickr.en.gz 19138
76a444ee25172e72695cddb13ae4a3bda59430617be88e0bb46b60504f054074
test_2017_flickr.de.gz 21471
a2c89666db00c495cd8513b9d708d5a3acc205d7de312ef2bf5fb7ebc1540aee
test_2017_flickr.fr.gz 20434
3ba671ceb2299f3304ffafefea7a833d08632fbaf0ba18546f8a2ec2391af496
""",
)
TATOEBA = {"de": "deu", "fr": "fra", "ko": "kor"}  # the names it has for languages
TATOEBA_ZIPS = {
    name: Remote("https://www.manythings.org/anki/" + name, 64 << 20)
    for name in (f"{code}-eng.zip" for code in TATOEBA.values())
}
WMT14_ARCHIVES = {
    **published(
        "https://www.statmt.org/wmt13/",
        """
training-parallel-europarl-v7.tgz 657632379
0224c7c710c8a063dfd893b0cc0830202d61f4c75c17eb8e31836103d27d96e7
training-parallel-commoncrawl.tgz 918311367
c7a74e2ea01ac6c920123108627e35278d4ccb5701e15428ffa34de86fa3a9e5
""",
    ),
    **published(
        "https://www.statmt.org/wmt14/",
        """
training-parallel-nc-v9.tgz 80418416
cb8953f292298e6877ae433c98912b927cb0766b303f4540512ddd286c748485
""",
    ),
    **published(
        "https://data.statmt.org/wmt19/translation-task/",
        """
dev.tgz 38654961
7a7deccf82ebb05ba508dba5eb21356492224e8f630ec4f992132b029b4b25e7
""",
    ),
    **published(
        "https://huggingface.co/datasets/wmt/wmt13/resolve/main-zip/",
        """
training-parallel-un.zip 2366237633
74f07002e053c81bc7f73b4fdab58e7987e831338748f264cbda82a8b062d2e2
""",
    ),
    **published(
        "https://huggingface.co/datasets/wmt/wmt10/resolve/main-zip/",
        """
training-giga-fren.zip 2595877717
9439f86523e5dff3f923526dbf6c6929da1786c18dbf64436d2b7564b83aaba3
""",
    ),
}


PUBLIC = {
    "multi30k": PublicCorpus(
        "en, de, fr: train, val, test_2016_flickr, test_2017_flickr",
        "Multi30k (Elliott et al. 2016, 2017), captions of Flickr30k photographs; "
        "no licence stated, for research and education",
        MULTI30K,
    ),
    "tatoeba": PublicCorpus(
        "en with de, fr or ko: train, val, test",
        "sentences of tatoeba.org, paired by www.manythings.org/anki; CC BY 2.0 FR",
        TATOEBA_ZIPS,
    ),
    "wmt14": PublicCorpus(
        "en with de or fr: train, val (newstest2013), test (newstest2014)",
        "WMT 2014 shared task (Bojar et al. 2014), from Europarl, Common Crawl, News "
        "Commentary and, for French, United Nations documents and the 10^9 corpus; "
        "for research, each part on terms of its own: statmt.org/wmt14",
        WMT14_ARCHIVES,
    ),
}


DATA_VARIABLE = "ANNOTATED_TRANSFORMER_DATA"
CACHE_VARIABLE = "ANNOTATED_TRANSFORMER_CACHE"


def data_folder() -> Path | None:
    """The folder that $ANNOTATED_TRANSFORMER_DATA names; None where it is not set.

    Raises ValueError where it names something that is not a folder.
    """
    value = os.environ.get(DATA_VARIABLE)
    if value and not Path(value).is_dir():
        raise ValueError(f"${DATA_VARIABLE} is {value}, which is not a folder")
    return Path(value) if value else None


def cache_folder() -> Path:
    """$ANNOTATED_TRANSFORMER_CACHE, or ~/.cache/annotated_transformer if not set."""
    folder = os.environ.get(CACHE_VARIABLE) or "~/.cache/annotated_transformer"
    return Path(folder).expanduser()


def first_file(paths: Iterable[Path]) -> Path | None:
    """The first of some paths where there is a file."""
    return next((path for path in paths if path.is_file()), None)


def obtain(corpus: str, name: str, check: Callable[[Path], None] | None = None) -> Path:
    """A file of a public corpus: from the data folder, the cache, or its address.

    check: see `download`. Raises OSError where a download fails.
    """
    data, cached = data_folder(), cache_folder() / corpus / name
    found = first_file(([data / corpus / name] if data else []) + [cached])
    if not found:
        try:
            download(PUBLIC[corpus].files[name], cached, check)
        except OSError as error:
            raise OSError(
                f"{error} (${DATA_VARIABLE} may name a folder with {corpus}/{name})"
            ) from error
    return found or cached


def locate(corpus: str, name: str) -> Path:
    """The path that a file of a corpus has, or will have once it is downloaded.

    Raises ValueError where there is no such corpus or file.
    """
    data = data_folder()
    folders = [data / corpus] if data else []
    folders.append(cache_folder() / corpus if corpus in PUBLIC else Path(corpus))
    if found := first_file(
        folder / f"{name}{suffix}" for folder, suffix in product(folders, SUFFIXES)
    ):
        return found

    if corpus in PUBLIC:
        files = PUBLIC[corpus].files
        if f"{name}.gz" in files:
            return folders[-1] / f"{name}.gz"
        known = ", ".join(file.removesuffix(".gz") for file in files)
        raise ValueError(f"{corpus} has no {name}; it has {known}")
    for folder in folders:
        if folder.is_dir():
            there = sorted(path.name for path in folder.iterdir())
            shown = ", ".join(there[:20]) + (", …" if len(there) > 20 else "")
            raise ValueError(
                f"no {name} or {name}.gz in {folder}; there is {shown or 'nothing'}"
            )
    raise ValueError(
        f"unknown corpus {corpus!r}: give one of {', '.join(PUBLIC)}, or the path of a "
        f"folder with files like {name}"
    )


def find_file(corpus: str, name: str) -> Path:
    """The path of one file of a corpus. name: SPLIT.LANGUAGE, like "train.en".

    corpus: a folder in $ANNOTATED_TRANSFORMER_DATA; or multi30k, looked for in that
    folder, then in the cache, and then downloaded to the cache; or the path of any
    folder. The file may have more to its name: see SUFFIXES. Raises ValueError where
    there is no such corpus or file; OSError where a download fails.
    """
    path = locate(corpus, name)
    return path if path.is_file() else obtain(corpus, path.name)


class Split(NamedTuple):
    """One split of a corpus, found but not read."""

    files: list[Path]  # that it is read from
    stream: Callable[[], Iterator[tuple[str, str]]]  # source and target, pair by pair


def other_language(corpus: str, source: str, target: str, known: Iterable[str]) -> str:
    """The one of two languages that is not English. Raises ValueError otherwise."""
    pair = {source, target}
    for language in known:
        if pair == {"en", language}:
            return language
    raise ValueError(
        f"{corpus} pairs en with {', '.join(known)}; it has no {source} to {target}"
    )


def check_table(path: Path, member: str) -> None:
    """Raises ValueError where a file is not a zip archive with a table of pairs."""
    if not zipfile.is_zipfile(path):
        raise ValueError("it is not a zip archive")
    read_table(path, member)


def tatoeba_split(source: str, target: str, split: str) -> Split:
    """A split of the Tatoeba pairs of two languages, one of them English.

    The table is tatoeba_CODE/pairs.tsv.gz or tatoeba_CODE/CODE-eng.zip in the data
    folder, or tatoeba/CODE-eng.zip there, in the cache, or at its address.
    """
    language = other_language("tatoeba", source, target, TATOEBA)
    if split not in ("train", "val", "test"):
        raise ValueError(f"tatoeba has no split {split}; it has train, val, test")
    code, data = TATOEBA[language], data_folder()
    archive, member = f"{code}-eng.zip", f"{code}.txt"
    table = None
    if data:
        folder = data / f"tatoeba_{code}"
        table = first_file([folder / "pairs.tsv.gz", folder / archive])
    table = table or obtain("tatoeba", archive, partial(check_table, member=member))

    def stream() -> Iterator[tuple[str, str]]:
        pairs = divide(read_table(table, member), *HELD_OUT[language])[split]
        return ((en, x) if source == "en" else (x, en) for en, x in pairs)

    return Split([table], stream)


WMT14_PARTS = {  # the archive that each is in, and its name there
    "europarl-v7": (
        "training-parallel-europarl-v7.tgz",
        "training/europarl-v7.{other}-en.{language}",
    ),
    "commoncrawl": (
        "training-parallel-commoncrawl.tgz",
        "commoncrawl.{other}-en.{language}",
    ),
    "news-commentary-v9": (
        "training-parallel-nc-v9.tgz",
        "training/news-commentary-v9.{other}-en.{language}",
    ),
    "undoc.2000": (
        "training-parallel-un.zip",
        "un/undoc.2000.{other}-en.{language}",
    ),
    "giga-fren.release2": (
        "training-giga-fren.zip",
        "giga-fren.release2.fixed.{language}.gz",
    ),
    "newstest2013": ("dev.tgz", "dev/newstest2013.{language}"),
    "newstest2014": ("dev.tgz", "dev/newstest2014-{other}en-{side}.{language}.sgm"),
}
WMT14_TRAIN = {
    "de": ("europarl-v7", "commoncrawl", "news-commentary-v9"),
    "fr": (
        "europarl-v7",
        "commoncrawl",
        "news-commentary-v9",
        "undoc.2000",
        "giga-fren.release2",
    ),
}
WMT14_HELD_OUT = {"val": "newstest2013", "test": "newstest2014"}  # as in §6


UNPACKED = 64 << 30  # bytes; a guard against an archive without end, not a size


def unpack_wmt14(part: str, other: str, folder: Path) -> None:
    """Take one part, in two languages, out of its archive and put it into a folder."""
    archive_name, member = WMT14_PARTS[part]
    archive = obtain("wmt14", archive_name)
    wanted = {}
    for language in ("en", other):
        side = "ref" if language == "en" else "src"
        name = member.format(other=other, language=language, side=side)
        suffix = Path(name).suffix if Path(name).suffix in SUFFIXES else ""
        wanted[name] = folder / f"{part}.{language}{suffix}"
    with alone(folder):
        if not all(path.is_file() for path in wanted.values()):
            extract(archive, wanted, UNPACKED)


def find_aligned(
    folders: Iterable[Path], name: str, languages: tuple[str, str]
) -> list[Path]:
    """The files NAME.LANGUAGE of the first folder that has both; else none."""
    for folder in folders:
        files = [
            first_file(folder / f"{name}.{language}{suffix}" for suffix in SUFFIXES)
            for language in languages
        ]
        if all(files):
            return files
    return []


def aligned_split(parts: list[list[Path]]) -> Split:
    """A split of pairs of aligned files, read one after the other."""

    def stream() -> Iterator[tuple[str, str]]:
        return chain.from_iterable(align(*files) for files in parts)

    return Split([*chain(*parts)], stream)


def wmt14_split(source: str, target: str, split: str) -> Split:
    """A split of the WMT14 data, in parts that are read one after the other.

    A part of en and de is a pair of files NAME.en and NAME.de. They are looked for in
    wmt14/en-de and wmt_newstest/en-de of the data folder and in wmt14/en-de of the
    cache, and at last taken out of their archive. Files of a whole split, like
    train.en and train.de, go before its parts.
    """
    other = other_language("wmt14", source, target, WMT14_TRAIN)
    place, data = f"en-{other}", data_folder()
    folders = [data / name / place for name in ("wmt14", "wmt_newstest") if data]
    folders.append(cache_folder() / "wmt14" / place)
    languages = source, target
    name = WMT14_HELD_OUT.get(split, split)
    if whole := find_aligned(folders, split, languages):
        parts = [whole]
    elif name in WMT14_PARTS or name == "train":
        parts = []
        for part in WMT14_TRAIN[other] if name == "train" else [name]:
            if not find_aligned(folders, part, languages):
                unpack_wmt14(part, other, folders[-1])
            parts.append(find_aligned(folders, part, languages))
    elif found := find_aligned(folders, name, languages):
        parts = [found]
    else:
        where = " or ".join(map(str, folders))
        known = "train, val, test, and what there is in"
        raise ValueError(f"wmt14 has no split {split}; it has {known} {where}")
    return aligned_split(parts)


def find_split(corpus: str, source: str, target: str, split: str) -> Split:
    """Find the files of one split of a corpus, and download them where they are not.

    corpus: tatoeba, wmt14, or what `find_file` takes. source, target: languages, like
    "en" and "de". Raises ValueError where the corpus, the split or the language does
    not exist; OSError where a download fails.
    """
    if corpus == "tatoeba":
        return tatoeba_split(source, target, split)
    if corpus == "wmt14":
        return wmt14_split(source, target, split)
    names = [f"{split}.{language}" for language in (source, target)]
    for name in names:
        locate(corpus, name)  # is there such a file at all? before any is downloaded
    return aligned_split([[find_file(corpus, name) for name in names]])


def stream_pairs(
    corpus: str, source: str, target: str, split: str
) -> Iterator[tuple[str, str]]:
    """Source and target sentence of each pair of a split, without holding them all.

    The files are found, or downloaded, by the call; arguments and errors are those of
    `find_split`. While it runs it raises ValueError where a file is not text, and at
    the end where a file is empty or two do not have the same number of lines.
    """
    return find_split(corpus, source, target, split).stream()


def load_pairs(
    corpus: str, source: str, target: str, split: str
) -> tuple[list[str], list[str]]:
    """All source and all target sentences of a split; see `stream_pairs`."""
    sources, targets = [], []
    for one, other in stream_pairs(corpus, source, target, split):
        sources.append(one)
        targets.append(other)
    return sources, targets


def provenance(corpus: str, source: str, target: str, splits: Iterable[str]) -> dict:
    """What a training record should say about its data: whose it is, and which bytes.

    The files are named by their folder and name, and identified by their SHA-256.
    """
    credit = PUBLIC[corpus].credit if corpus in PUBLIC else ""
    files = {}
    for split in splits:
        for path in find_split(corpus, source, target, split).files:
            digest = hashlib.sha256()
            with open(path, "rb") as file:
                for block in blocks(file.read):
                    digest.update(block)
            files["/".join(path.parts[-2:])] = digest.hexdigest()
    return {"corpus": corpus, "credit": credit, "files": files}
