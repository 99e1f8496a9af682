"""The grammar's sentences obey the grammars of the three languages, and the book."""

import hashlib
import itertools
import re
from collections import Counter
from time import process_time

import pytest
import torch

from annotated_transformer.corpora import load_pairs
from annotated_transformer.grammar import (
    CONSTRUCTIONS,
    alignment,
    generate,
    write_corpus,
)
from annotated_transformer.lexicon import (
    ADJECTIVE,
    ALL_ADJECTIVES,
    ALL_FRAMES,
    ALL_NOUNS,
    NOUN,
    VERB,
)

GOLDEN = "9774c14cbb9e63796da10342fa7f475f9d2603837a22f1986c5169a0a08eccb6"
LANGUAGES = ("english", "german", "korean")


@pytest.fixture(scope="module")
def triples():
    return list(generate(6000, seed=11))


@pytest.fixture(scope="module")
def riddles():
    return list(generate(6000, seed=12, constructions=["pronoun"]))


# The same everywhere


def test_a_seed_means_the_same_sentences_on_every_machine():
    digest = hashlib.sha256()
    for triple in generate(1000, seed=0):
        links = alignment(triple.english, triple.german)
        texts = [getattr(triple, language).text for language in LANGUAGES]
        digest.update(f"{triple.construction} {texts} {links}\n".encode())
    assert digest.hexdigest() == GOLDEN


def test_a_larger_number_goes_on_where_a_smaller_one_ends():
    assert list(generate(10, 5)) == list(itertools.islice(generate(1000, 5), 10))
    assert list(generate(10, 5)) != list(generate(10, 6))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": -1}, "n is -1: it must be an integer from 0"),
        ({"n": 2.5}, "n is 2.5: it must be"),
        ({"n": 1, "seed": "0"}, "seed is '0': it must be"),
        ({"n": 1, "constructions": ["poem"]}, "constructions is .*poem.*: choose from"),
        ({"n": 1, "constructions": []}, r"constructions is \[\]: choose from state"),
    ],
)
def test_nonsense_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        generate(**arguments)


# The shape of the text


def test_text_is_the_tokens_put_together(triples):
    for triple in triples:
        for language in LANGUAGES:
            text, tokens = getattr(triple, language)[:2]
            assert re.findall(r"[^\s,.]+|[,.]", text) == list(tokens)
            assert text[0] == text[0].upper() and text.endswith(".")
            assert not re.search(r"\s[,.]|[,.]{2}|\s\s|[-{}|]|\bNone\b", text), text


def test_every_construction_comes_up_as_often_as_it_says(triples):
    counts = Counter(triple.construction for triple in triples)
    assert sum(CONSTRUCTIONS.values()) == 100
    for name, share in CONSTRUCTIONS.items():
        assert counts[name] / len(triples) == pytest.approx(share / 100, abs=0.02)


def test_there_are_words_enough():
    used = {entry for table in (NOUN, VERB, ADJECTIVE) for entry in table}
    assert len(used) >= 150
    seen = {word for t in generate(20_000, 1) for word in t.english.text.split()}
    heads = {entry.split()[0] for entry in used}
    missing = {
        h for h in heads if not any(word.lower().startswith(h[:2]) for word in seen)
    }
    assert not missing


# German agrees. The forms below are typed here anew, not taken from the lexicon.

CASES = "NADG"
THE = {
    "m": "der den dem des",
    "f": "die die der der",
    "n": "das das dem des",
    "p": "die die den der",
}
DIESER = {"m": "er en em es", "f": "e e er er", "n": "es es em es", "p": "e e en er"}
EIN = {"m": "- en em es", "f": "e e er er", "n": "- - em es", "p": "e e en er"}
WEAK = {"m": "e en en en", "f": "e e en en", "n": "e e en en", "p": "en en en en"}
MIXED = {"m": "er en en en", "f": "e e en en", "n": "es es en en", "p": "en en en en"}
STRONG = {"p": "e e en er"}
STEMS = {"müd", "dunkl", "teur", "hoh"}  # where the ending changes the adjective


def forms(stem, table):
    """(form, gender or p, case) for each ending of a table."""
    for gender, endings in table.items():
        for case, ending in zip(CASES, endings.split(), strict=True):
            yield stem + ending.strip("-"), gender, case


READINGS = {}  # of a determiner: {(gender or p, case)} and the adjective's table
for stem, table, adjectives in (
    ("", THE, WEAK),
    ("dies", DIESER, WEAK),
    ("jed", DIESER, WEAK),
    ("ein", EIN, MIXED),
    ("mein", EIN, MIXED),
):
    for form, gender, case in forms(stem, table):
        if not (gender == "p" and stem in ("jed", "ein")):
            READINGS.setdefault(form, ([], adjectives))[0].append((gender, case))
CONTRACTED = {
    "im": [("m", "D"), ("n", "D")],
    "ins": [("n", "A")],
}
NOUN_READINGS = {}
for entry in ALL_NOUNS:
    for gender, words in zip(("mfn"[entry.gender], "p"), entry.german, strict=True):
        for case, form in zip(CASES, words, strict=True):
            NOUN_READINGS.setdefault(form, set()).add((gender, case))
ADJECTIVE_FORMS = {}
for _, entry in ALL_ADJECTIVES:
    for ending in ("e", "en", "er", "es", "em"):
        stem = {"müde": "müd", "dunkel": "dunkl", "teuer": "teur", "hoch": "hoh"}
        ADJECTIVE_FORMS[stem.get(entry.german, entry.german) + ending] = ending


def lowered(tokens):
    return [tokens[0][0].lower() + tokens[0][1:], *tokens[1:]]


def readings(sentence, i):
    """{(gender or p, case)} that the noun at i has with all that stands before it."""
    words = lowered(sentence.tokens)
    found = NOUN_READINGS[sentence.tokens[i]]
    adjective = ADJECTIVE_FORMS.get(words[i - 1]) if i else None
    at = i - 2 if adjective else i - 1
    relative = [pronoun for pronoun, _ in sentence.antecedents()]
    before = words[at] if at >= 0 and at not in relative else ""
    if before in READINGS:
        allowed, table = READINGS[before]
    elif before in CONTRACTED:
        allowed, table = CONTRACTED[before], WEAK
    else:
        allowed, table = [("p", case) for case in CASES], STRONG
        if sentence.tokens[i] == "Zeit":
            allowed, table = READINGS["die"]
    if adjective:
        fitting = {(g, c) for form, g, c in forms("", table) if form == adjective}
        found = found & fitting
    return found & set(allowed)


def nouns(sentence):
    """Where its nouns stand; "Junge Ärzte" begins with an adjective."""
    tokens = sentence.tokens
    found = [i for i, word in enumerate(tokens) if word in NOUN_READINGS]
    young = found[:2] == [0, 1] and tokens[0].lower() in ADJECTIVE_FORMS
    return found[1:] if young else found


def test_german_articles_and_adjectives_agree_with_their_noun(triples):
    checked = 0
    for triple in triples:
        tokens = triple.german.tokens
        for i in nouns(triple.german):
            assert readings(triple.german, i), (tokens[i], triple.german.text)
            checked += 1
    assert checked > 10_000


def test_german_nouns_that_are_not_regular():
    """Nominative, accusative, dative, genitive; then the dative plural."""
    expected = {
        "boy": "Junge Jungen Jungen Jungen Jungen",
        "student": "Student Studenten Studenten Studenten Studenten",
        "farmer": "Bauer Bauern Bauern Bauern Bauern",
        "neighbour": "Nachbar Nachbarn Nachbarn Nachbarn Nachbarn",
        "prince": "Prinz Prinzen Prinzen Prinzen Prinzen",
        "bear": "Bär Bären Bären Bären Bären",
        "lion": "Löwe Löwen Löwen Löwen Löwen",
        "monkey": "Affe Affen Affen Affen Affen",
        "garden": "Garten Garten Garten Gartens Gärten",
        "house": "Haus Haus Haus Hauses Häusern",
        "car": "Auto Auto Auto Autos Autos",
        "woman": "Frau Frau Frau Frau Frauen",
        "teacher": "Lehrer Lehrer Lehrer Lehrers Lehrern",
    }
    for name, forms in expected.items():
        one, many = NOUN[name].german
        assert [*one, many[2]] == forms.split()
    weak = {n.english[0] for n in ALL_NOUNS if n.german[0][1] != n.german[0][0]}
    assert weak == {
        name
        for name, forms in expected.items()
        if len({*forms.split()}) == 2
        and NOUN[name].gender == 0
        and forms.split()[1] == forms.split()[3]
    }


def test_german_subjects_are_nominative_and_verbs_agree(triples):
    singular, plural = set(), set()
    for frame in ALL_FRAMES:
        verb = frame.verb
        for form, more in ((verb.german[0], None), (verb.german[1], "n")):
            singular |= {form, verb.prefix + form}
            many = verb.infinitive if more is None else form + "en"
            many = form + "n" if more and form.endswith("e") else many
            plural |= {many, verb.prefix + many}
    singular |= set("ist war kann konnte muss musste will wollte".split())
    plural |= set("sind waren können konnten müssen mussten wollen wollten".split())
    for triple in triples:
        tokens = lowered(triple.german.tokens)
        assert triple.german.agreement()
        for noun, verb in triple.german.agreement():
            if tokens[noun] == "und":
                assert tokens[verb] in plural
                continue
            found = readings(triple.german, noun)
            relatives = {
                pronoun for pronoun, n in triple.german.antecedents() if n == noun
            }
            if not any(pronoun < verb for pronoun in relatives):  # else of that clause
                found = {(gender, case) for gender, case in found if case == "N"}
            assert found, triple.german.text
            numbers = {gender == "p" for gender, _ in found}
            if numbers == {True}:
                assert tokens[verb] in plural, triple.german.text
            if numbers == {False}:
                assert tokens[verb] in singular, triple.german.text


def test_english_verbs_agree(triples):
    third = {f.verb.english[1].split()[0] for f in ALL_FRAMES}
    third |= {"is", "was", "wants", "doesn't"}
    base = {f.verb.english[0].split()[0] for f in ALL_FRAMES}
    base |= {"are", "were", "want", "don't"}
    plurals = {entry.english[1].split()[-1] for entry in ALL_NOUNS}
    for triple in triples:
        tokens = [token.lower() for token in triple.english.tokens]
        for noun, verb in triple.english.agreement():
            many = tokens[noun] == "and" or tokens[noun] in plurals
            assert tokens[verb] not in (
                third - base if many else base - third - {"read"}
            ), triple


def test_english_always_says_when(triples):
    """Not "they read", today or yesterday: that could be "lesen" or "lasen"."""
    for triple in triples:
        pairs = zip(triple.english.agreement(), triple.german.agreement(), strict=True)
        for (_, verb), (_, finite) in pairs:
            if triple.english.tokens[verb] == "read":
                assert triple.german.tokens[finite] != "lesen", triple.english.text


def test_an_english_sentence_has_one_translation():
    translations = {}
    for triple in itertools.chain(
        generate(20_000, 31), generate(3000, 32, ["pronoun"])
    ):
        texts = triple.german.text, triple.korean.text
        assert translations.setdefault(triple.english.text, texts) == texts


# German word order


CONJUNCTIONS = {"weil", "obwohl", "während", "bevor", "als", "wenn", "dass"}


def test_german_verbs_stand_last_in_subordinate_clauses(triples):
    checked = 0
    for triple in triples:
        if triple.construction in ("comparison", "pronoun"):
            continue
        tokens = lowered(triple.german.tokens)
        for i, word in enumerate(tokens):
            if word in CONJUNCTIONS:
                pairs = [pair for pair in triple.german.agreement() if pair[0] > i]
                first = min(noun for noun, _ in pairs)
                verb = max(v for noun, v in pairs if noun == first)
                assert tokens[verb + 1] in (",", "."), triple
                checked += 1
    assert checked > 800


def test_german_relative_clauses_agree_and_end_with_their_verb(triples):
    pronouns = {
        "m": "der den dem",
        "f": "die die der",
        "n": "das das dem",
        "p": "die die denen",
    }
    checked = 0
    for triple in triples:
        if triple.construction == "pronoun":
            continue
        tokens = triple.german.tokens
        for pronoun, noun in triple.german.antecedents():
            genders = {gender for gender, _ in readings(triple.german, noun)}
            assert any(tokens[pronoun] in pronouns[g].split() for g in genders), triple
            assert tokens[pronoun - 1] == ","
            checked += 1
    assert checked > 1000


def test_the_finite_verb_of_a_german_main_clause_comes_second(triples):
    """Before it stands one constituent: the subject, a time, or a whole clause."""
    times = {"gestern", "letzte", "heute", "jeden", "sonntags", "am", "nachts", "im"}
    for triple in triples:
        tokens = lowered(triple.german.tokens)
        if triple.construction == "subordinate_first":
            comma = [i for i, word in enumerate(tokens) if word == ","]
            verbs = {verb for _, verb in triple.german.agreement()}
            assert any(i + 1 in verbs for i in comma), triple
        elif triple.construction in ("statement", "modal", "negation"):
            (noun, verb), *_ = triple.german.agreement()
            if tokens[0] in times:
                assert verb <= 2 and noun > verb, triple
            else:
                assert noun < verb, triple


# Korean


PARTICLES = {"은": "는", "이": "가", "을": "를", "과": "와"}  # consonant, vowel


def test_korean_particles_fit_the_sound_before_them(triples):
    stems = {entry.korean for entry in ALL_NOUNS}
    stems |= {stem + "들" for stem in stems}
    counts = Counter()
    for triple in triples:
        for token in triple.korean.tokens:
            stem, particle = token[:-1], token[-1]
            if stem in stems and particle in {*PARTICLES, *PARTICLES.values()}:
                closed = (ord(stem[-1]) - ord("가")) % 28 != 0
                assert particle in (PARTICLES if closed else PARTICLES.values()), token
                counts[particle] += 1
    assert min(counts[p] for p in (*PARTICLES, *PARTICLES.values())) > 20, counts


def test_korean_sentences_end_with_a_plain_predicate(triples):
    for triple in triples:
        *_, last, stop = triple.korean.tokens
        assert last.endswith("다") and stop == ".", triple.korean.text
        others = [t for t in triple.korean.tokens[:-2] if t.endswith("다")]
        others = [t for t in others if t != "일요일마다"]
        assert all(token.endswith("보다") for token in others), triple.korean.text
        assert all("가" <= c <= "힣" or c in " ." for c in triple.korean.text)


LIVING = {"adult", "youth", "child", "animal", "insect"}


def test_korean_counts_things_only_where_they_are_pointed_at(triples):
    """이 책들, 내 책들, but 책 for the books and for books; 개들 for dogs always."""
    kinds = {entry.korean: entry.kind for entry in ALL_NOUNS}
    counts = Counter()
    for triple in triples:
        tokens = triple.korean.tokens
        for i, token in enumerate(tokens):
            stem = token.rpartition("들")[0]
            if stem in kinds and kinds[stem] not in LIVING:
                assert {"이", "내"} & {*tokens[max(i - 2, 0) : i]}, triple.korean.text
            if stem in kinds:
                counts[kinds[stem] in LIVING] += 1
    assert min(counts.values()) > 100, counts


def test_nobody_owns_a_river_or_a_king(triples):
    """Nor is there "my boy's": boys and girls would mean one's children there."""
    owned = {"adult", "youth", "way", "building", "place", "idea"}
    nobodys = {
        e.english[plural] for e in ALL_NOUNS if e.kind in owned for plural in (0, 1)
    }
    adjectives = {entry.english for _, entry in ALL_ADJECTIVES}
    for triple in triples:
        tokens = lowered(triple.english.tokens)
        for i, token in enumerate(tokens):
            if token == "my" or token.endswith("'s"):
                thing = tokens[i + 2 if tokens[i + 1] in adjectives else i + 1]
                assert thing not in nobodys, triple.english.text


def test_a_korean_subject_before_a_relative_clause_is_the_topic():
    """소년이 공주가 찾는 …: with two subjects in a row nobody knows who does what."""
    stems = {entry.korean for entry in ALL_NOUNS}
    stems |= {stem + "들" for stem in stems}
    for triple in generate(500, 13, ["object_relative"]):
        tokens = triple.korean.tokens
        topics = [t for t in tokens if t[-1] in "은는" and t[:-1] in stems]
        assert len(topics) == 1, triple.korean.text
        first = next(t for t in tokens if t[:-1] in stems and t[-1] in "은는이가")
        assert first == topics[0], triple.korean.text


def test_korean_verb_forms():
    forms = {frame.verb.english[0]: frame.verb.korean for frame in ALL_FRAMES}
    expected = {
        "open": ("연다", "여는", "연", "열", "열", "열어"),
        "read": ("읽는다", "읽는", "읽은", "읽을", "읽으", "읽어"),
        "cross": ("건넌다", "건너는", "건넌", "건널", "건너", "건너"),
        "carry": ("나른다", "나르는", "나른", "나를", "나르", "날라"),
        "love": ("사랑한다", "사랑하는", "사랑했던", "사랑할", "사랑하", "사랑해"),
    }
    names = (
        "plain",
        "adnominal",
        "retrospective",
        "prospective",
        "conditional",
        "infinitive",
    )
    for verb, words in expected.items():
        assert tuple(forms[verb][name] for name in names) == words


# Alignments and antecedents


def test_alignments_are_in_range_and_the_same_from_either_side(triples):
    for triple in triples[:2000]:
        for one, other in itertools.combinations(LANGUAGES, 2):
            left, right = getattr(triple, one), getattr(triple, other)
            links = alignment(left, right)
            assert links == tuple(sorted(set(links)))
            assert all(i < len(left.tokens) and j < len(right.tokens) for i, j in links)
            assert sorted((j, i) for i, j in links) == list(alignment(right, left))


def test_every_content_word_is_aligned_with_its_entry(triples):
    german = {}
    for entry in ALL_NOUNS:
        for names, words in zip(entry.english, entry.german, strict=True):
            german.setdefault(names.split()[-1], set()).update(words)
    unaligned = {"the", "a", "an", "it", ",", "into", "who", "that"}
    for triple in triples:
        tokens = [token.lower() for token in triple.english.tokens]
        to_german = alignment(triple.english, triple.german)
        to_korean = alignment(triple.english, triple.korean)
        linked = {i for i, _ in to_german}, {i for i, _ in to_korean}
        for i, token in enumerate(tokens):
            if token not in unaligned:
                assert i in linked[0] and i in linked[1], (token, triple)
        for noun, _ in triple.english.agreement():
            if tokens[noun] in german:
                words = {triple.german.tokens[j] for i, j in to_german if i == noun}
                assert words & german[tokens[noun]], triple


def test_what_no_language_has_is_not_aligned(triples):
    for triple in triples[:2000]:
        linked = {i for i, _ in alignment(triple.english, triple.korean)}
        for i, token in enumerate(triple.english.tokens):
            if token in ("who", "it"):
                assert i not in linked


def test_a_pronoun_has_the_gender_of_its_noun(riddles):
    pronouns = {"m": "er", "f": "sie", "n": "es"}
    for triple in riddles:
        (pronoun, noun), *others = triple.german.antecedents()
        assert not others
        entries = [e for e in ALL_NOUNS if triple.german.tokens[noun] in e.german[0]]
        assert triple.german.tokens[pronoun] in {
            pronouns["mfn"[e.gender]] for e in entries
        }
        ((it, animal),) = triple.english.antecedents()
        assert triple.english.tokens[it] == "it"
        assert (animal, noun) in alignment(triple.english, triple.german)


def test_the_animal_and_the_street():
    texts = {t.english.text: t for t in generate(2500, 2, ["pronoun"])}
    for adjective, german, korean in (
        (
            "tired",
            "es zu müde war",
            "동물은 너무 피곤했기 때문에 거리를 건너지 않았다.",
        ),
        ("wide", "sie zu breit war", "동물은 거리가 너무 넓었기 때문에 건너지 않았다."),
    ):
        english = f"The animal didn't cross the street because it was too {adjective}."
        translation = f"Das Tier überquerte die Straße nicht, weil {german}."
        assert texts[english].german.text == translation
        assert texts[english].korean.text == korean


FIRST = set("tired sick lazy nervous big wide tall".split())
SECOND = set("dangerous dark hard bitter salty small narrow shallow".split())


def test_meaning_decides_what_the_pronoun_stands_for(riddles):
    for triple in riddles:
        tokens = triple.english.tokens
        found = [i for i, word in enumerate(tokens) if word.lower() in NOUN]
        assert len(found) == 2, triple
        adjective = tokens[-2]
        if adjective == "wide":  # said of a way, but also of what does not fit
            second = "fit" not in tokens
        else:
            assert adjective in FIRST | SECOND
            second = adjective in SECOND
        assert triple.english.antecedents()[0][1] == found[second], triple


def test_no_word_tells_the_pronoun(riddles):
    """Given a word, no answer is more frequent than one of two."""
    genders = Counter()
    with_word: dict[str, Counter] = {}
    for triple in riddles:
        pronoun = triple.german.tokens[triple.german.antecedents()[0][0]]
        genders[pronoun] += 1
        for word in set(triple.english.tokens):
            with_word.setdefault(word, Counter())[pronoun] += 1
    assert set(genders) == {"er", "sie", "es"}
    assert all(abs(n / len(riddles) - 1 / 3) < 0.03 for n in genders.values())
    for word, counts in with_word.items():
        if counts.total() >= 300:
            share = max(counts.values()) / counts.total()
            assert share < (0.6 if word.lower() in NOUN else 0.41), (word, counts)


def test_a_linear_bag_of_words_is_at_chance(riddles):
    columns = {}
    for triple in riddles:
        for word in triple.english.tokens:
            columns.setdefault(word, len(columns))
    bags = torch.zeros(len(riddles), len(columns))
    for row, triple in enumerate(riddles):
        bags[row, [columns[word] for word in triple.english.tokens]] = 1
    answers = torch.tensor(
        [
            ("er", "sie", "es").index(t.german.tokens[t.german.antecedents()[0][0]])
            for t in riddles
        ]
    )
    weights = torch.zeros(len(columns), 3, requires_grad=True)
    lbfgs = torch.optim.LBFGS([weights], max_iter=60)

    def loss():
        lbfgs.zero_grad()
        logits = bags[:4000] @ weights
        value = torch.nn.functional.cross_entropy(logits, answers[:4000])
        value = value + 1e-3 * weights.square().sum()
        value.backward()
        return value

    lbfgs.step(loss)
    right = ((bags @ weights).argmax(dim=1) == answers)[4000:].float().mean()
    assert 0.45 < right < 0.55


def test_flies_has_two_roles():
    for name, before, after in (
        ("flies_verb", "Time flies like an arrow.", "Die Zeit fliegt wie ein Pfeil."),
        (
            "flies_noun",
            "Fruit flies like a banana.",
            "Fruchtfliegen mögen eine Banane.",
        ),
    ):
        texts = {t.english.text: t for t in generate(3000, 0, [name])}
        assert texts[before].german.text == after
    assert texts[before].korean.text == "초파리는 바나나를 좋아한다."


# Corpus and rate


def test_the_splits_are_files_without_a_sentence_in_common(tmp_path):
    write_corpus(tmp_path / "a", n_train=3000, n_val=200, n_test=200, seed=1)
    splits = {}
    for split, n in (("train", 3000), ("val", 200), ("test", 200)):
        source, target = load_pairs(str(tmp_path / "a"), "en", "de", split)
        _, korean = load_pairs(str(tmp_path / "a"), "en", "ko", split)
        assert len(source) == len(target) == len(korean) == n
        splits[split] = [set(source), set(target), set(korean)]
    for one, other in itertools.combinations(splits.values(), 2):
        assert all(a.isdisjoint(b) for a, b in zip(one, other, strict=True))
    assert len(splits["test"][0]) == 200 and len(splits["val"][0]) == 200
    assert not [path for path in (tmp_path / "a").iterdir() if path.name[0] == "."]

    write_corpus(tmp_path / "b", n_train=10, n_val=200, n_test=200, seed=1)
    for name in ("test.en", "val.ko"):
        files = [(tmp_path / folder / name).read_bytes() for folder in "ab"]
        assert files[0] == files[1]


def test_a_corpus_that_is_there_is_left_alone(tmp_path):
    (tmp_path / "val.de").write_text("Mine.\n")
    with pytest.raises(ValueError, match=r"val\.de is already there"):
        write_corpus(tmp_path, 10, 10, 10)
    assert [path.name for path in tmp_path.iterdir()] == ["val.de"]
    with pytest.raises(ValueError, match="n_val is 0: it must be an integer from 1"):
        write_corpus(tmp_path / "new", 10, 0, 10)
    assert not (tmp_path / "new").exists()


def test_it_is_fast():
    """In processor time, which nobody else on the machine takes; 30,000 if it idles."""
    start = process_time()
    assert sum(1 for _ in generate(20_000, seed=21)) == 20_000
    assert 20_000 / (process_time() - start) > 8000
