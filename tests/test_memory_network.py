"""The stories are right, and the memory network is that of its equations."""

import pytest
import torch

from annotated_transformer.memory_network import (
    PEOPLE,
    PLACES,
    SENTENCES,
    THINGS,
    WORDS,
    MemoryNetwork,
    Story,
    make_stories,
    make_story,
    story_tensors,
    word_weights,
)


def answer(sentences, question):
    """Replay a story and answer; None where it does not say. Knows nothing else."""
    place, owner, history = {}, {}, {thing: [] for thing in THINGS}
    for sentence in sentences:
        person, verb, *_, what = sentence.split()
        if verb == "went":
            place[person] = what
        elif verb == "took":
            owner[what] = person
        else:
            owner.pop(what, None)
            history[what].append(place.get(person))
        for thing, holder in owner.items():
            if history[thing][-1:] != [place.get(holder)]:
                history[thing].append(place.get(holder))
    match question.split():
        case ["where", "is", person] if person in PEOPLE:
            return place.get(person)
        case ["who", "has", "the", thing]:
            return owner.get(thing)
        case ["where", "is", "the", thing]:
            return history[thing][-1]
        case ["where", "was", "the", thing, "before", "the", last]:
            assert history[thing][-1] == last
            return history[thing][-2]


@pytest.mark.parametrize("facts", [1, 2, 3])
def test_the_answer_follows_from_the_story_and_from_its_support(facts):
    for story in make_stories(1500, facts, seed=0):
        assert answer(story.sentences, story.question) == story.answer
        assert story.support == sorted(set(story.support))
        assert len(story.support) == facts
        enough = [story.sentences[i] for i in story.support]
        assert answer(enough, story.question) == story.answer


@pytest.mark.parametrize("facts", [1, 2, 3])
def test_a_story_is_possible(facts):
    """Nobody goes where they are, takes what is not there or drops what they lack."""
    for story in make_stories(300, facts, seed=1):
        place, owner, lies = {}, {}, {}
        for sentence in story.sentences:
            person, verb, *_, what = sentence.split()
            if verb == "went":
                assert place.get(person) != what
                place[person] = what
            elif verb == "took":
                assert person in place and what not in owner
                assert lies.pop(what, place[person]) == place[person]
                owner[what] = person
            else:
                assert owner.pop(what) == person
                lies[what] = place[person]
        assert SENTENCES[facts][0] <= len(story.sentences) <= SENTENCES[facts][1]


def test_held_out_stories_are_new_and_a_seed_is_a_seed():
    seen = make_stories(200, 1, seed=0)
    assert seen == make_stories(200, 1, seed=0) != make_stories(200, 1, seed=2)
    unseen = make_stories(200, 1, seed=0, without=seen)  # the same lots, other stories
    texts = {(*s.sentences, s.question) for s in seen + unseen}
    assert len(texts) == 400


def test_every_answer_and_every_kind_of_question_occurs():
    stories = make_stories(400, 1, seed=0)
    assert {story.answer for story in stories} == {*PEOPLE, *PLACES}
    with pytest.raises(ValueError, match="facts is 4: it must be 1, 2 or 3"):
        make_story(4, None)


def test_words_become_numbers_with_the_last_sentence_last():
    stories = [
        Story(["mary went to the garden"], "where is mary", "garden", [0]),
        Story(["john took the milk", "john dropped the milk"], "who", "john", [1]),
    ]
    tensors = story_tensors(stories)
    texts = [
        [" ".join(WORDS[i] for i in row if i) for row in story]
        for story in tensors.sentences.tolist()
    ]
    assert texts == [["", stories[0].sentences[0]], stories[1].sentences]
    assert [WORDS[i] for i in tensors.answer.tolist()] == ["garden", "john"]
    assert [WORDS[i] for i in tensors.question[0].tolist() if i] == [
        *stories[0].question.split()
    ]


def test_the_weights_of_words_by_hand():
    """J = 2 words, D = 4: l_kj = (1 - j/2) - (k/4)(1 - j), and nothing at padding."""
    weights = word_weights(torch.tensor([7, 3, 0]), 4)
    first = [0.5, 0.5, 0.5, 0.5]  # j = 1: 1/2 - 0
    second = [0.25, 0.5, 0.75, 1.0]  # j = 2: 0 + k/4
    expected = torch.tensor([first, second, [0.0] * 4])
    assert torch.allclose(weights, expected)
    assert word_weights(torch.tensor([0, 0]), 4).eq(0).all()


def network(n_hops=3, seed=0):
    torch.manual_seed(seed)
    model = MemoryNetwork(len(WORDS), 6, 16, n_hops)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_three_hops_by_hand():
    """u ← u + Σ p c with loops over hops, memories and words."""
    model, (story,) = network(), make_stories(1, 2, seed=3)
    tensors = story_tensors([story])
    n, words, times = len(story.sentences), model.words, model.times

    def vector(table, row):
        total = torch.zeros(6)
        count = int((row != 0).sum())
        for j, word in enumerate(row[:count].tolist(), start=1):
            for k in range(1, 7):
                share = (1 - j / count) - k / 6 * (1 - 2 * j / count)
                total[k - 1] += share * table.weight[word, k - 1]
        return total

    with torch.no_grad():
        u = vector(words[0], tensors.question[0])
        for hop in range(3):
            rows = list(enumerate(tensors.sentences[0]))
            m = [vector(words[hop], r) + times[hop].weight[n - 1 - i] for i, r in rows]
            c = [
                vector(words[hop + 1], r) + times[hop + 1].weight[n - 1 - i]
                for i, r in rows
            ]
            p = torch.stack([u @ each for each in m]).softmax(0)
            u = u + sum(share * each for share, each in zip(p, c, strict=True))
        logits, hops = model(tensors.sentences, tensors.question)
    assert torch.allclose(hops[0, -1], p, atol=1e-4)
    assert torch.allclose(logits[0], words[3].weight @ u, atol=1e-4)


def test_batched_as_alone_and_padding_is_never_looked_at():
    model, stories = network(), make_stories(12, 2, seed=0)
    together = story_tensors(stories)
    logits, hops = model(together.sentences, together.question)
    assert logits.shape == (12, len(WORDS)) and hops.shape[:2] == (12, 3)
    assert torch.allclose(hops.sum(-1), torch.ones(12, 3))
    empty = together.sentences.eq(0).all(-1)  # (B, N)
    assert empty.any()
    assert hops.transpose(0, 1)[:, empty].eq(0).all()
    for i, story in enumerate(stories):
        alone = story_tensors([story])
        answer, where = model(alone.sentences, alone.question)
        assert torch.allclose(answer[0], logits[i], atol=1e-4)
        assert torch.allclose(where[0], hops[i, :, ~empty[i]], atol=1e-5)


def test_a_story_without_sentences_is_looked_at_nowhere():
    model = network()
    data = story_tensors(make_stories(2, 2, seed=0))
    data.sentences[1] = 0
    logits, hops = model(data.sentences, data.question)
    assert hops[1].eq(0).all() and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad.isfinite().all() for p in model.parameters())


def test_more_sentences_than_memories_are_refused():
    model = MemoryNetwork(len(WORDS), 8, n_memories=5, n_hops=1)
    with pytest.raises(ValueError, match="6 sentences: the memory holds 5"):
        model(torch.ones(1, 6, 4).long(), torch.ones(1, 4).long())


def test_the_gradient_reaches_every_table_and_no_padding():
    model = MemoryNetwork(len(WORDS), 6, 16, 2)
    tensors = story_tensors(make_stories(64, 2, seed=0))
    logits, _ = model(tensors.sentences, tensors.question)
    torch.nn.functional.cross_entropy(logits, tensors.answer).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad.abs().sum() > 0, name
    for table in model.words[:-1]:  # the last is the softmax too
        assert table.weight.grad[0].eq(0).all()


def test_the_order_of_sentences_and_of_words_is_seen():
    model, (story,) = network(), make_stories(1, 1, seed=5)
    tensors = story_tensors([story])
    logits, _ = model(tensors.sentences, tensors.question)
    swapped = tensors.sentences.clone()
    swapped[..., :2] = swapped[..., :2].flip(-1)  # "went mary to the …"
    for changed in (tensors.sentences.flip(1), swapped):
        other, _ = model(changed, tensors.question)
        assert not torch.allclose(other, logits, atol=1e-3)
