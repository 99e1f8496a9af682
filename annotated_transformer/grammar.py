# Written in notebooks/5_1_the_embedded_corpus.ipynb; edit it there.
"""Sentences by rule in English, German and Korean, one meaning each (§5.1)."""

import os
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .lexicon import (
    ADJECTIVE,
    CASES,
    CONJUNCTIONS,
    CONTRACTIONS,
    DETERMINERS,
    DOING,
    DONE_TO,
    FITTING,
    KINDS,
    MANNERS,
    MODES,
    OF_KIND,
    PARTICLES,
    PLURAL,
    PREPOSITIONS,
    REPORTING,
    TIMES,
    VERB,
    Adjective,
    Frame,
    Noun,
    Verb,
    inflect,
    korean_endings,
    korean_forms,
    rows,
    with_particle,
)

__all__ = [
    "Links",
    "CONSTRUCTIONS",
    "RIDDLES",
    "NEUTRAL",
    "LANGUAGES",
    "Sentence",
    "Triple",
    "alignment",
    "generate",
    "write_corpus",
]


Words = tuple[tuple[str, ...], tuple[str, ...]]  # words, and as many labels
Three = tuple[Words, Words, Words]  # English, German, Korean
Part = tuple[int, Words]  # a phrase's number in its sentence, and words of it
Parts = list[Part]
Translated = tuple[Parts, Parts, Parts]  # English, German, Korean


def label(*pairs: tuple[str, str]) -> Words:
    """Words with labels, from pairs of both; the words of one text share its label.

    Words of a phrase whose labels share a small letter translate each other. A capital
    marks one word for the rules: N the noun that counts, the last of its text; F the
    finite verb and R a pronoun, the first.
    """
    found = []
    for text, letters in pairs:
        words = text.split()
        marked = len(words) - 1 if letters[-1] == "N" else 0
        for i, word in enumerate(words):
            found.append((word, letters if i == marked else letters.rstrip("NFR")))
    return tuple(word for word, _ in found), tuple(letters for _, letters in found)


def joined(*pieces: Words) -> Words:
    return sum((words for words, _ in pieces), ()), sum((to for _, to in pieces), ())


@dataclass(frozen=True, eq=False)
class NounPhrase:
    """Determiner, adjective and noun, in the forms of three languages."""

    kind: str
    column: int  # of GERMAN_ENDINGS: the gender, or PLURAL
    known: bool  # definite: as a subject, the topic of a Korean sentence
    english: Words
    german: dict[str, Words]  # by case
    korean: dict[str, Words]  # by particle
    owned: Words = ((), ())  # English, without the determiner: what follows an owner
    owner: Words = ((), ())  # English, with 's


ANIMATE = ("adult", "youth", "child", "animal", "insect")  # always take 들
_DETERMINERS = {name: columns for _, (name, *columns) in rows(DETERMINERS)}


@cache
def noun_phrase(
    noun: Noun, determiner: str, plural: bool, adjective: Adjective | None
) -> NounPhrase:
    """The noun with one of DETERMINERS and, if given, an adjective."""
    articles, row, endings, demonstrative = _DETERMINERS[determiner]
    alone = plural and determiner in ("a", "bare")
    column = PLURAL if plural else noun.gender
    article, name = articles.split("/")[plural].strip("-"), noun.english[plural]
    if article == "a" and (adjective.english if adjective else name)[0] in "aeiou":
        article = "an"
    german = {}
    for case, form in zip(CASES, noun.german[plural], strict=True):
        before = [] if alone else [(inflect(row, column, case), "d")]
        if adjective:
            ending = "strong" if alone else endings
            before.append((inflect(ending, column, case, adjective.stem), "a"))
        german[case] = label(*before, (form, "nN"))
    quality = [(adjective.english, "a")] if adjective else []
    words, letters = label(
        (demonstrative, "d"), (adjective.korean if adjective else "", "a")
    )
    counted = plural and determiner != "bare"
    if noun.kind not in ANIMATE:
        counted = counted and determiner in ("this", "my")
    korean = noun.korean + "들" * counted
    return NounPhrase(
        kind=noun.kind,
        column=column,
        known=determiner != "a",
        english=label((article, "d"), *quality, (name, "nN")),
        german=german,
        korean={
            particle: ((*words, with_particle(korean, particle)), (*letters, "nN"))
            for particle in PARTICLES
        },
        owned=label(*quality, (name, "nN")),
        owner=label((article, "d"), *quality, (f"{name}'s", "nN")),
    )


def both(first: NounPhrase, second: NounPhrase) -> NounPhrase:
    """Two noun phrases with "and" between; it is the "and" that makes them plural."""
    others = {"d": "x", "a": "y", "nN": "z"}  # the second phrase's words have their own

    def join(one: Words, word: str, other: Words) -> Words:
        head = one[0], (*one[1][:-1], "n" if word else "ncN")
        return joined(
            head, label((word, "cN")), (other[0], tuple(map(others.get, other[1])))
        )

    nominative = join(first.german["nominative"], "und", second.german["nominative"])
    korean = join(first.korean["and"], "", second.korean["topic"])
    return NounPhrase(
        kind=first.kind,
        column=PLURAL,
        known=True,
        english=join(first.english, "and", second.english),
        german={"nominative": nominative},
        korean={"topic": korean},
    )


@cache
def prepositional_phrase(
    english: str, german: str, korean: str, noun: NounPhrase, case: str
) -> Three:
    """A preposition and its noun. korean: a particle, or a word after the noun."""
    words, letters = noun.german[case]
    contracted = CONTRACTIONS.get(f"{german} {words[0]}")
    if contracted:
        in_german = (contracted, *words[1:]), ("pd", *letters[1:])
    else:
        in_german = (german, *words), ("p", *letters)
    if korean in PARTICLES:
        words, letters = noun.korean[korean]
        in_korean = words, (*letters[:-1], "p" + letters[-1])
    else:
        in_korean = joined(noun.korean["none"], label((korean, "p")))
    return joined(label((english, "p")), noun.english), in_german, in_korean


@dataclass(frozen=True, eq=False)
class Predicate:
    """What is said of a subject, in three languages."""

    english: Words
    finite: Words  # German, comes second in a main clause
    final: Words  # German, the end of a subordinate clause: rest and finite verb
    korean: dict[str, Words]  # by ending of KOREAN_ENDINGS
    negation: Words | None = None  # German
    rest: Words | None = None  # German, the end of a main clause: prefix, infinitive…


def _korean(before: list, endings: dict, letters: str, past: bool) -> dict[str, Words]:
    """A predicate by its ending; the label c is for what acts as a conjunction."""
    table = {}
    for (name, tense), text in endings.items():
        if tense == past:
            word, _, after = text.partition(" ")
            inside = "" if after or name in ("plain", "relative") else "c"
            table[name] = label(*before, (word, letters + inside), (after, "c"))
    return table


_MODES = {mode: columns for _, (mode, *columns) in rows(MODES)}


@cache
def verb_predicate(verb: Verb, past: bool, plural: bool, mode: str) -> Predicate:
    """A verb in a tense and a number; mode: one of MODES, or nothing."""
    tense = 2 if past else 0 if plural else 1
    form = verb.german[past]
    if plural:
        form = form + ("n" if form[-1] == "e" else "en") if past else verb.infinitive
    alone = Predicate(
        english=label((verb.english[tense], "vF")),
        finite=label((form, "vF")),
        final=label((verb.prefix + form, "vF")),
        korean=_korean([], korean_endings(verb.korean), "v", past),
        rest=label((verb.prefix, "v")) if verb.prefix else None,
    )
    if not mode:
        return alone
    names, modals, pattern, auxiliary = _MODES[mode]
    singular, base, preterite = names.split("/")
    helper = (base, singular, preterite)[tense]
    english = label((helper, "mF"), (verb.english[0], "v"))
    forms = korean_forms(*auxiliary.format(**verb.korean).split())
    if mode == "can":  # this 있다 is conjugated like an adjective
        forms |= {"plain": "있다", "retrospective": "있었던"}
    word, _, helper = pattern.format(**verb.korean).partition(" ")
    korean = _korean([(word, "v"), (helper, "m")], korean_endings(forms), "m", past)
    if mode == "not":
        nicht = label(("nicht", "m"))
        return replace(alone, english=english, korean=korean, negation=nicht)
    singular, base, preterite = modals.split()
    modal = preterite + "n" * plural if past else base if plural else singular
    infinitive = verb.prefix + verb.infinitive
    return Predicate(
        english=english,
        finite=label((modal, "mF")),
        final=label((infinitive, "v"), (modal, "mF")),
        korean=korean,
        rest=label((infinitive, "v")),
    )


DEGREES = {
    "": ("", "", ""),
    "very": ("very", "sehr", "매우"),
    "too": ("too", "zu", "너무"),
}
TO_BE = {  # by past, plural
    (False, False): ("is", "ist"),
    (False, True): ("are", "sind"),
    (True, False): ("was", "war"),
    (True, True): ("were", "waren"),
}


@cache
def adjective_predicate(
    adjective: Adjective, past: bool, plural: bool, degree: str
) -> Predicate:
    """To be, with an adjective. degree: one of DEGREES, or "more" with than."""
    english, german = TO_BE[past, plural]
    if degree == "more":
        quality, rest = ((adjective.more, "a"),), ((adjective.comparative, "a"),)
        before = [("더", "a")]
    else:
        words = DEGREES[degree]
        quality = (words[0], "g"), (adjective.english, "a")
        rest = (words[1], "g"), (adjective.german, "a")
        before = [(words[2], "g")]
    return Predicate(
        english=label((english, "bF"), *quality),
        finite=label((german, "bF")),
        final=label(*rest, (german, "bF")),
        korean=_korean(before, adjective.endings, "ab", past),
        rest=label(*rest),
    )


@dataclass(eq=False)
class Nominal:
    """A noun phrase in a sentence: whose it is, and what a relative clause adds."""

    phrase: NounPhrase
    number: int  # of the phrase in the sentence
    owner: "Nominal | None" = None
    relative: Translated = ([], [], [])

    def english(self) -> Parts:
        if self.owner:
            owner = self.owner.number, self.owner.phrase.owner
            return [owner, (self.number, self.phrase.owned)]
        return [(self.number, self.phrase.english), *self.relative[0]]

    def german(self, case: str) -> Parts:
        """Without the relative clause, which may stand elsewhere."""
        parts = [(self.number, self.phrase.german[case])]
        if self.owner:
            parts.append((self.owner.number, self.owner.phrase.german["genitive"]))
        return parts

    def korean(self, particle: str) -> Parts:
        parts = [*self.relative[2], (self.number, self.phrase.korean[particle])]
        if self.owner:
            parts.insert(-1, (self.owner.number, self.owner.phrase.korean["of"]))
        return parts


ORDER = """
english   subject verb recipient object than goal manner place time
main      subject finite time place manner recipient object negation goal rest than tail
inverted  finite subject time place manner recipient object negation goal rest than tail
final     subject time place manner recipient object negation goal final than tail
korean    subject time place manner recipient than object goal
"""
_ORDER = {
    name: places.split() for _, (name, places) in rows(ORDER.replace("   ", "  "))
}


class Clause:
    """One clause: for each place of ORDER, what stands there in each language."""

    def __init__(self, number: int, predicate: Predicate, subject: Nominal | None):
        self.number, self.predicate, self.subject = number, predicate, subject
        self.timeless = False  # true of a state, which has no "yesterday"
        self.in_english = {"verb": [(number, predicate.english)]}
        self.in_german = {
            "finite": [(number, predicate.finite)],
            "final": [(number, predicate.final)],
        }
        if predicate.negation:
            self.in_german["negation"] = [(number, predicate.negation)]
        if predicate.rest:
            self.in_german["rest"] = [(number, predicate.rest)]
        self.in_korean: dict[str, Parts] = {}
        if subject:
            self.in_english["subject"] = subject.english()
            german = subject.german("nominative")
            self.in_german["subject"] = german + subject.relative[1]

    def put(self, place: str, number: int, words: Three) -> None:
        english, german, korean = words
        self.in_english[place] = [(number, english)]
        self.in_german[place] = [(number, german)]
        self.in_korean[place] = [(number, korean)]

    def put_noun(self, place: str, noun: Nominal, case: str, particle: str) -> None:
        """In German, the relative clause waits until the verb is complete."""
        self.in_english[place] = noun.english()
        self.in_german[place] = noun.german(case)
        self.in_german["tail"] = noun.relative[1]
        self.in_korean[place] = noun.korean(particle)

    def english(self) -> Parts:
        return _line(self.in_english, "english")

    def german(self, order: str) -> Parts:
        return _line(self.in_german, order)

    def korean(self, ending: str, particle: str = "subject") -> Parts:
        """particle: of the subject; a topic must be known."""
        parts = _line(self.in_korean, "korean")
        if self.subject:
            known = self.subject.phrase.known
            parts = self.subject.korean(particle if known else "subject") + parts
        parts.append((self.number, self.predicate.korean[ending]))
        return parts


def _line(places: dict[str, Parts], order: str) -> Parts:
    parts: Parts = []
    for place in _ORDER[order]:
        if place in places:
            parts += places[place]
    return parts


Links = tuple[tuple[int, int], ...]


class Sentence(NamedTuple):
    """A sentence in one language. Indices count its tokens from 0."""

    text: str
    tokens: tuple[str, ...]  # words and punctuation marks
    parts: tuple[Part, ...]  # the same, phrase by phrase, with labels
    subjects: Links  # numbers of phrases: subject, predicate
    pronouns: Links  # numbers of phrases: pronoun, what it stands for

    def agreement(self) -> Links:
        """(noun, finite verb that agrees with it) for each clause; none in Korean.

        Where two nouns are joined, "and" stands for them. A clause whose subject is
        a personal pronoun is left out.
        """
        return _marked(self, self.subjects, "NF")

    def antecedents(self) -> Links:
        """(pronoun, noun it stands for), relative pronouns too; none in Korean."""
        return _marked(self, self.pronouns, "RN")


class Triple(NamedTuple):
    """One meaning in three languages."""

    construction: str  # one of CONSTRUCTIONS
    english: Sentence
    german: Sentence
    korean: Sentence


def alignment(one: Sentence, other: Sentence) -> Links:
    """(token of one, token of the other) that translate each other, in order.

    one, other: two sentences of a triple. A word without a counterpart is in no pair.
    """
    places: dict[int, list] = {}
    start = 0
    for number, (words, letters) in other.parts:
        places.setdefault(number, []).append((start, letters))
        start += len(words)
    links, start = [], 0
    for number, (words, letters) in one.parts:
        for start_2, letters_2 in places.get(number, ()):
            for i, j in _phrase_links(letters, letters_2):
                links.append((start + i, start_2 + j))
        start += len(words)
    return tuple(sorted(links))


@cache
def _phrase_links(one: tuple[str, ...], other: tuple[str, ...]) -> Links:
    return tuple(
        (i, j)
        for i, letters in enumerate(one)
        for j, letters_2 in enumerate(other)
        if any(letter in letters_2 for letter in letters.rstrip("NFR"))
    )


def _marked(sentence: Sentence, pairs: Links, capitals: str) -> Links:
    """For each pair of phrases, the tokens in them that carry these two capitals."""
    at, start = {}, 0
    for number, (_, letters) in sentence.parts:
        for i, letter in enumerate(letters, start):
            at[number, letter[-1:]] = i
        start += len(letters)
    one, other = capitals
    found = [(at.get((i, one)), at.get((j, other))) for i, j in pairs]
    return tuple(pair for pair in found if None not in pair)


COMMA: Part = (0, ((",",), ("",)))
STOP: Part = (0, ((".",), (".",)))


def _sentence(parts: Parts, subjects: Links, pronouns: Links) -> Sentence:
    tokens: list[str] = []
    for _, (words, _) in parts:
        tokens += words
    tokens[0] = tokens[0][0].upper() + tokens[0][1:]
    text = " ".join(tokens).replace(" ,", ",").replace(" .", ".")
    return Sentence(text, tuple(tokens), tuple(parts), subjects, pronouns)


def _tidy(parts: Parts) -> Parts:
    """Where a comma meets another, or the full stop, one mark is enough."""
    return [
        part
        for part, following in zip(parts, [*parts[1:], None], strict=True)
        if part is not COMMA or (following is not COMMA and following is not STOP)
    ]


PLURALS, DRESSED, OWNED = 0.25, 0.35, 0.1  # shares: plural, with adjective, with owner
ANY = ("the",) * 6 + ("a",) * 3 + ("this", "my", "every")
DEFINITE = ("the", "the", "the", "this", "my")
SUBJECTS = ("adult",) * 5 + ("youth", "child", "child") + ("animal",) * 3 + ("vehicle",)
PERSONS = ("adult", "youth", "child")
UNOWNED = ("adult", "youth", "way", "building", "place", "idea")


def _three(columns: list[str], letters: str) -> Three:
    return tuple(label((text, letters)) for text in columns[:3])


_FREE_MODES = ("", "", "can", "must", "want", "not")
_PREDICATIVE = {kind: [a for a in FITTING[kind] if a.endings] for kind in KINDS}
_COMPARABLE = {kind: [a for a in _PREDICATIVE[kind] if a.more] for kind in KINDS}
_DESCRIBED = [kind for kind in KINDS if _PREDICATIVE[kind] and DONE_TO[kind]]
_COMPARED = [kind for kind in _DESCRIBED if _COMPARABLE[kind]]
_MANNERS = [_three(row, "m") for _, row in rows(MANNERS)]
_PLACES = [(row[:3], row[3].split()) for _, row in rows(PREPOSITIONS)]
_CONJUNCTIONS, _TIMES = (
    [
        [row[:3] for _, row in rows(table) if row[3] in (tense, "any")]
        for tense in ("present", "past")
    ]
    for table in (CONJUNCTIONS, TIMES)
)
_TIMES = [[_three(row, "t") for row in tense] for tense in _TIMES]
_COORDINATORS = (("and", "und", "and"), ("but", "aber", "although"))


class _Chance:
    """Each choice is one number from `random`."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed).random

    def start(self) -> None:
        """Begin a new sentence."""
        self.phrases = 0
        self.used: list[Noun | Frame] = []  # nothing comes twice in a sentence
        self.subjects: list[tuple[int, int]] = []  # as in Sentence
        self.pronouns: list[tuple[int, int]] = []

    def pick(self, items):
        return items[int(self.random() * len(items))]

    def number(self) -> int:
        """The number of one more phrase."""
        self.phrases += 1
        return self.phrases

    def past(self) -> bool:
        return self.random() < 0.6


class _Nouns(_Chance):
    """Draws noun phrases."""

    def noun(self, kinds: Sequence[str]) -> Noun:
        noun = self.pick(OF_KIND[self.pick(kinds)])
        while noun in self.used:
            noun = self.pick(OF_KIND[self.pick(kinds)])
        self.used.append(noun)
        return noun

    def phrase(
        self,
        noun: Noun,
        determiners: Sequence[str],
        plural: bool | None = None,
        adjectives: Sequence[Adjective] | None = None,
    ) -> NounPhrase:
        """The noun with one of the determiners and at times one of the adjectives."""
        if plural is None:
            plural = self.random() < PLURALS
        determiner = self.pick(determiners)
        if {"every": plural, "my": noun.kind in UNOWNED}.get(determiner):
            determiner = "the"
        if adjectives is None:
            adjectives = FITTING[noun.kind]
        dressed = adjectives and self.random() < DRESSED
        adjective = self.pick(adjectives) if dressed else None
        return noun_phrase(noun, determiner, plural, adjective)

    def nominal(
        self,
        kinds: Sequence[str],
        determiners: Sequence[str] = ANY,
        plural: bool | None = None,
        owned: float = OWNED,
        adjectives: Sequence[Adjective] | None = None,
    ) -> Nominal:
        """A noun phrase of its own. owned: how often it belongs to someone."""
        noun, owner = self.noun(kinds), None
        if self.random() < owned and noun.kind not in UNOWNED:
            person = self.noun(("adult",) if noun.kind == "child" else PERSONS)
            holder = self.phrase(person, DEFINITE, plural=False)
            owner, determiners = Nominal(holder, self.number()), ("the",)
        phrase = self.phrase(noun, determiners, plural, adjectives)
        return Nominal(phrase, self.number(), owner)

    def place(self) -> Three:
        preposition, kinds = self.pick(_PLACES)
        phrase = self.phrase(self.noun(kinds), ("the", "the", "a", "this"), False)
        return prepositional_phrase(*preposition, phrase, "dative")


class _Clauses(_Nouns):
    """Draws clauses, and the relative clauses inside them."""

    def frame(
        self, frames: Sequence[Frame], past: bool, plural: bool, mode: str = ""
    ) -> Frame:
        """A verb new to the sentence, that has this mode and tells its tense."""
        while True:
            frame = self.pick(frames)
            unclear = frame.verb.hides_tense and plural and not past and not mode
            fitting = frame.verb.modal or mode in ("", "not")
            if fitting and not unclear and frame not in self.used:
                self.used.append(frame)
                return frame

    def clause(
        self,
        frame: Frame,
        past: bool,
        subject: Nominal,
        mode: str = "",
        without: str = "",
        relative: float = 0.0,
    ) -> Clause:
        """A verb with the nouns it takes and at times an adverbial or two.

        without: "subject" or "object", where a noun outside the clause is that.
        relative: how often the object has a clause of its own.
        """
        verb, number = frame.verb, self.number()
        self.subjects.append((subject.number, number))
        predicate = verb_predicate(verb, past, subject.phrase.column == PLURAL, mode)
        clause = Clause(number, predicate, None if without == "subject" else subject)
        clause.timeless = not verb.modal
        adverbials = mode != "not"
        if frame.recipients:
            recipient = self.nominal(frame.recipients, DEFINITE)
            clause.put_noun("recipient", recipient, "dative", "to")
        if frame.objects and without != "object":
            related = self.random() < relative
            definite = mode == "not" or verb.case == "dative"  # no bare plural here
            determiners = DEFINITE if definite else ANY
            owned = 0.0 if related else OWNED
            noun = self.nominal(frame.objects, determiners, owned=owned)
            if related:  # an adverbial after it would seem to belong to its clause
                self.relative(noun, past)
                adverbials = False
            clause.put_noun("object", noun, verb.case, "object")
        if adverbials and verb.manner and self.random() < 0.25:
            clause.put("manner", self.number(), self.pick(_MANNERS))
        if adverbials and verb.place and self.random() < 0.3:
            clause.put("place", self.number(), self.place())
        return clause

    def relative(self, head: Nominal, past: bool) -> None:
        """Give the noun a clause of which it is the subject or the object."""
        phrase, number = head.phrase, self.number()
        self.pronouns.append((number, head.number))
        if DOING[phrase.kind] and self.random() < 0.5:
            english, case = "who" if phrase.kind in PERSONS else "that", "nominative"
            frame = self.frame(DOING[phrase.kind], past, phrase.column == PLURAL)
            clause = self.clause(frame, past, head, without="subject")
        else:
            frame = self.frame(DONE_TO[phrase.kind], past, False)
            english, case = "that", frame.verb.case
            plural = self.random() < PLURALS and (past or not frame.verb.hides_tense)
            subject = self.nominal(frame.subjects, plural=plural)
            clause = self.clause(frame, past, subject, without="object")
        pronoun = inflect("who", phrase.column, case)
        head.relative = (
            [(number, ((english,), ("rR",))), *clause.english()],
            [COMMA, (number, ((pronoun,), ("rR",))), *clause.german("final"), COMMA],
            clause.korean("relative"),
        )


class _Draw(_Clauses):
    """Draws what the rules put together."""

    def said(
        self, past: bool, mode: str = "", relative: tuple[float, float] = (0.0, 0.0)
    ) -> Clause:
        """A clause. relative: how often its subject and its object have a clause."""
        related = self.random() < relative[0]
        determiners = DEFINITE if mode == "not" or relative[1] else ANY
        subject = self.nominal(SUBJECTS, determiners, owned=0.0 if related else OWNED)
        kind, plural = subject.phrase.kind, subject.phrase.column == PLURAL
        if mode == "want" and kind == "vehicle":
            mode = "must"
        frames = DOING[kind]
        if relative[1] == 1.0:
            frames = [frame for frame in frames if frame.objects]
        frame = self.frame(frames, past, plural, mode)
        if related:
            self.relative(subject, past)
        return self.clause(frame, past, subject, mode, "", relative[1])

    def described(
        self, subject: Nominal, past: bool, degree: str, adjectives: Sequence[Adjective]
    ) -> Clause:
        """A clause that says what the subject is like."""
        number, plural = self.number(), subject.phrase.column == PLURAL
        self.subjects.append((subject.number, number))
        predicate = adjective_predicate(self.pick(adjectives), past, plural, degree)
        return Clause(number, predicate, subject)

    def tied(self, past: bool) -> tuple[Clause, Part, Part, str]:
        """A subordinate clause, its conjunctions, and the Korean ending that is one."""
        english, german, ending = self.pick(_CONJUNCTIONS[past])
        mode = self.pick(_FREE_MODES) if ending in ("because", "although") else ""
        clause = self.said(past, mode)
        return clause, *_conjunctions(clause, english, german), ending

    def dated(self, clause: Clause, past: bool, often: float = 0.4) -> Translated:
        """A main clause, at times with a time, in front or inside."""
        chance = self.random()
        if chance >= often or clause.timeless:
            return _main(clause)
        words, number = self.pick(_TIMES[past]), self.number()
        if chance < often / 2 and not clause.in_german.get("tail"):
            clause.put("time", number, words)
            return _main(clause)
        english, german, korean = ([(number, each)] for each in words)
        return (
            english + clause.english(),
            german + clause.german("inverted"),
            korean + clause.korean("plain", "topic"),
        )


def _conjunctions(clause: Clause, *words: str) -> list[Part]:
    """Words of two languages that tie this clause to another."""
    return [(clause.number, ((word,), ("c",))) for word in words]


def _main(clause: Clause) -> Translated:
    return clause.english(), clause.german("main"), clause.korean("plain", "topic")


CONSTRUCTIONS: dict[str, int] = {}  # how many sentences in a hundred
_RULES: dict[str, Callable[[_Draw], Translated]] = {}


def _rule(share: int) -> Callable:
    """Enters a function into the grammar under its name."""

    def enter(function: Callable[[_Draw], Translated]):
        name = function.__name__.removeprefix("_")
        CONSTRUCTIONS[name], _RULES[name] = share, function
        return function

    return enter


@_rule(14)
def _statement(draw: _Draw) -> Translated:
    past = draw.past()
    return draw.dated(draw.said(past), past)


@_rule(9)
def _modal(draw: _Draw) -> Translated:
    past, mode = draw.past(), draw.pick(("can", "must", "want"))
    return draw.dated(draw.said(past, mode), past)


@_rule(7)
def _negation(draw: _Draw) -> Translated:
    past = draw.past()
    return draw.dated(draw.said(past, "not"), past)


@_rule(5)
def _description(draw: _Draw) -> Translated:
    past, kind, related = draw.past(), draw.pick(_DESCRIBED), draw.random() < 0.5
    subject = draw.nominal([kind], owned=0.0 if related else OWNED, adjectives=())
    if related:
        draw.relative(subject, past)
    degree = draw.pick(("", "very", "too"))
    return _main(draw.described(subject, past, degree, _PREDICATIVE[kind]))


@_rule(4)
def _comparison(draw: _Draw) -> Translated:
    past, kind = draw.past(), draw.pick(_COMPARED)
    one, other = (draw.nominal([kind], DEFINITE, None, 0.0, ()) for _ in range(2))
    clause = draw.described(one, past, "more", _COMPARABLE[kind])
    than = prepositional_phrase("than", "als", "than", other.phrase, "nominative")
    clause.put("than", other.number, than)
    return _main(clause)


@_rule(10)
def _subject_relative(draw: _Draw) -> Translated:
    past, mode = draw.past(), draw.pick(("", "", "", "can", "must", "not"))
    return draw.dated(draw.said(past, mode, (1.0, 0.0)), past, 0.2)


@_rule(8)
def _object_relative(draw: _Draw) -> Translated:
    past, mode = draw.past(), draw.pick(("", "", "", "can", "must", "not"))
    return draw.dated(draw.said(past, mode, (0.0, 1.0)), past, 0.2)


@_rule(6)
def _subordinate_first(draw: _Draw) -> Translated:
    past = draw.past()
    clause, english, german, ending = draw.tied(past)
    main = draw.said(past)
    return (
        [english, *clause.english(), COMMA, *main.english()],
        [german, *clause.german("final"), COMMA, *main.german("inverted")],
        [*clause.korean(ending), *main.korean("plain", "topic")],
    )


@_rule(6)
def _subordinate_last(draw: _Draw) -> Translated:
    past = draw.past()
    main = draw.said(past)
    clause, english, german, ending = draw.tied(past)
    return (
        [*main.english(), english, *clause.english()],
        [*main.german("main"), COMMA, german, *clause.german("final")],
        [*clause.korean(ending), *main.korean("plain", "topic")],
    )


@_rule(6)
def _report(draw: _Draw) -> Translated:
    past, speaker = draw.past(), draw.nominal(PERSONS, DEFINITE)
    frame = draw.frame(REPORTING, past, False)
    main = draw.clause(frame, past, speaker, without="object")
    clause = draw.said(past, draw.pick(_FREE_MODES), (0.1, 0.1))
    that, dass = _conjunctions(clause, "that", "dass")
    *topic, says = main.korean("plain", "topic")
    return (
        [*main.english(), that, *clause.english()],
        [*main.german("main"), COMMA, dass, *clause.german("final")],
        [*topic, *clause.korean("that"), says],
    )


@_rule(4)
def _coordination(draw: _Draw) -> Translated:
    past = draw.past()
    one, other = draw.said(past, "", (0.1, 0.1)), draw.said(past)
    english, german, ending = draw.pick(_COORDINATORS)
    but, aber = _conjunctions(one, english, german)
    comma = [COMMA] if german == "aber" else []
    return (
        [*one.english(), COMMA, but, *other.english()],
        [*one.german("main"), *comma, aber, *other.german("main")],
        [*one.korean(ending, "topic"), *other.korean("plain", "topic")],
    )


@_rule(4)
def _shared_subject(draw: _Draw) -> Translated:
    past = draw.past()
    one = draw.said(past)
    subject = one.subject.phrase
    frame = draw.frame(DOING[subject.kind], past, subject.column == PLURAL)
    other = draw.clause(frame, past, one.subject, without="subject")
    link, und = _conjunctions(one, "and", "und")
    return (
        [*one.english(), link, *other.english()],
        [*one.german("main"), und, *other.german("main")],
        [
            *one.korean("and" if one.timeless else "then", "topic"),
            *other.korean("plain"),
        ],
    )


@_rule(3)
def _two_subjects(draw: _Draw) -> Translated:
    past, kind = draw.past(), draw.pick(SUBJECTS)
    pair = [draw.phrase(draw.noun([kind]), DEFINITE, False) for _ in range(2)]
    subject = Nominal(both(*pair), draw.number())
    frame = draw.frame(DOING[kind], past, True)
    return draw.dated(draw.clause(frame, past, subject), past)


# A verb, of what is not done; the kinds of its two nouns; what fits only the first as
# a reason; what fits only the second.
RIDDLES = """
cross  animal > way           tired sick lazy nervous  wide dangerous dark
eat    animal > food          tired sick lazy nervous  hard bitter salty
fit    container > container  big wide tall            small narrow shallow
"""
NEUTRAL = ("old", "new", "black", "white", "fresh")  # their adjectives: no hint in them

_RIDDLES = [
    (
        verb,
        kinds.split(" > "),
        [[ADJECTIVE[a] for a in group.split()] for group in groups],
    )
    for _, (verb, kinds, *groups) in rows(RIDDLES)
]
_NEUTRAL = {kind: [a for a in FITTING[kind] if a.english in NEUTRAL] for kind in KINDS}
_OF_GENDER = {
    (kind, gender): [noun for noun in OF_KIND[kind] if noun.gender == gender]
    for kind in KINDS
    for gender in range(3)
}
_UNEQUAL = [(one, other) for one in range(3) for other in range(3) if one != other]


@_rule(10)
def _pronoun(draw: _Draw) -> Translated:
    """Two nouns of different genders, and a reason that holds for one of them."""
    past, (name, kinds, reasons) = draw.past(), draw.pick(_RIDDLES)
    nominals = []
    for kind, gender in zip(kinds, draw.pick(_UNEQUAL), strict=True):
        noun = draw.pick(_OF_GENDER[kind, gender])
        phrase = draw.phrase(noun, DEFINITE, False, _NEUTRAL[kind])
        nominals.append(Nominal(phrase, draw.number()))
    (subject, other), meant = nominals, draw.random() < 0.5
    predicate = verb_predicate(VERB[name], past, False, "not")
    clause = Clause(draw.number(), predicate, subject)
    draw.subjects.append((subject.number, clause.number))
    if name == "fit":
        into = prepositional_phrase("into", "in", "into", other.phrase, "accusative")
        clause.put("goal", other.number, into)
    else:
        clause.put_noun("object", other, "accusative", "object")
    predicate = adjective_predicate(draw.pick(reasons[meant]), past, False, "too")
    reason, it = Clause(draw.number(), predicate, None), draw.number()
    draw.pronouns.append((it, nominals[meant].number))
    because, weil = _conjunctions(reason, "because", "weil")
    er = ("er", "sie", "es")[nominals[meant].phrase.column]
    topic, *rest = clause.korean("plain", "topic")
    why = reason.korean("because")
    if meant:  # the noun stands where the reason is told, and only there
        why, rest = other.korean("subject") + why, rest[-1:]
    reason_german = reason.german("final")
    return (
        [*clause.english(), because, (it, (("it",), ("rR",))), *reason.english()],
        [*clause.german("main"), COMMA, weil, (it, ((er,), ("rR",))), *reason_german],
        [topic, *why, *rest],
    )


@_rule(2)
def _flies_verb(draw: _Draw) -> Translated:
    past, noun = draw.random() < 0.2, draw.noun(("flier", "idea"))
    if noun.kind == "idea":
        phrase = noun_phrase(noun, "bare", False, None)
    else:
        phrase = draw.phrase(noun, ANY, False)
    subject, number = Nominal(phrase, draw.number()), draw.number()
    draw.subjects.append((subject.number, number))
    clause = Clause(number, verb_predicate(VERB["fly"], past, False, ""), subject)
    model = draw.phrase(draw.noun(("missile", "flier")), ("a", "the"), False)
    like = prepositional_phrase("like", "wie", "like", model, "nominative")
    clause.put("goal", draw.number(), like)
    return draw.dated(clause, past, 0.2)


@_rule(2)
def _flies_noun(draw: _Draw) -> Translated:
    past, bare = draw.random() < 0.2, ("bare", "bare", "the", "this")
    insects = draw.phrase(draw.noun(["insect"]), bare, True)
    subject, number = Nominal(insects, draw.number()), draw.number()
    draw.subjects.append((subject.number, number))
    clause = Clause(number, verb_predicate(VERB["like"], past, True, ""), subject)
    liked = draw.nominal(["food"], ("a", "a", "the"), False)
    clause.put_noun("object", liked, "accusative", "object")
    return draw.dated(clause, past, 0.2)


def _triple(draw: _Draw, names: list[str]) -> Triple:
    draw.start()
    construction = draw.pick(names)
    english, german, korean = _RULES[construction](draw)
    roles = tuple(draw.subjects), tuple(draw.pronouns)
    return Triple(
        construction,
        _sentence([*english, STOP], *roles),
        _sentence(_tidy([*german, STOP]), *roles),
        _sentence([*korean, STOP], *roles),
    )


def _require_count(name: str, value: int, smallest: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < smallest:
        raise ValueError(f"{name} is {value!r}: it must be an integer from {smallest}")


def generate(
    n: int, seed: int = 0, constructions: Sequence[str] | None = None
) -> Iterator[Triple]:
    """n sentences in three languages, the same for a seed on every machine.

    constructions: names from CONSTRUCTIONS, to have those alone, equally often; None
    for all, as often as CONSTRUCTIONS says. A larger n goes on where a smaller one
    ends. Raises ValueError where n or seed is not an integer from 0, or a name unknown.
    """
    _require_count("n", n, 0)
    _require_count("seed", seed, 0)
    if constructions is None:
        names = [name for name, share in CONSTRUCTIONS.items() for _ in range(share)]
    else:
        names = list(constructions)
    unknown = [name for name in names if name not in CONSTRUCTIONS]
    if unknown or not names:
        known = ", ".join(CONSTRUCTIONS)
        raise ValueError(f"constructions is {constructions!r}: choose from {known}")
    draw = _Draw(seed)
    return (_triple(draw, names) for _ in range(n))


LANGUAGES = ("en", "de", "ko")  # of the files, in the order of a triple


def write_corpus(
    folder: str | Path, n_train: int, n_val: int, n_test: int, seed: int = 0
) -> None:
    """Write train, val and test files in en, de and ko, which `load_pairs` reads.

    n_train, n_val, n_test: sentences. The held-out ones are drawn first, so that they
    stay the same for a larger n_train, and all differ; none of them, in any language,
    is in another split. In training, a sentence may come again. All files appear at
    the end or not at all. Raises ValueError where a number is not an integer from 1,
    or a file of this name is there already.
    """
    splits = {"test": n_test, "val": n_val, "train": n_train}
    for name, n in splits.items():
        _require_count(f"n_{name}", n, 1)
    _require_count("seed", seed, 0)
    folder = Path(folder)
    names = [f"{split}.{language}" for split in splits for language in LANGUAGES]
    for name in names:
        if (folder / name).exists():
            raise ValueError(f"{folder / name} is already there")
    folder.mkdir(parents=True, exist_ok=True)
    triples, held_out = generate(1 << 62, seed), set()
    with tempfile.TemporaryDirectory(dir=folder, prefix=".part-") as scratch:
        for split, n in splits.items():
            paths = [Path(scratch, f"{split}.{language}") for language in LANGUAGES]
            with ExitStack() as stack:
                files = [stack.enter_context(path.open("wb")) for path in paths]
                while n:
                    texts = [sentence.text for sentence in next(triples)[1:]]
                    if held_out.isdisjoint(texts):
                        n -= 1
                        held_out.update(texts if split != "train" else ())
                        for file, text in zip(files, texts, strict=True):
                            file.write(f"{text}\n".encode())
        for name in names:
            os.replace(Path(scratch, name), folder / name)
