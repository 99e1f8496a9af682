# Written in notebooks/1_introduction.ipynb; edit it there.
"""Stories with questions, and the end-to-end memory network that answers (§2)."""

import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "PEOPLE",
    "PLACES",
    "THINGS",
    "OTHER_WORDS",
    "WORDS",
    "SENTENCES",
    "Story",
    "make_story",
    "make_stories",
    "StoryTensors",
    "story_tensors",
    "word_weights",
    "MemoryNetwork",
]


PEOPLE = "john", "mary", "sandra", "daniel"
PLACES = "kitchen", "garden", "office", "hallway", "bedroom", "bathroom"
THINGS = "milk", "apple", "football"
OTHER_WORDS = "a before dropped has is the to took was went where who".split()
WORDS = ["", *sorted([*PEOPLE, *PLACES, *THINGS, *OTHER_WORDS])]  # "": padding, 0
SENTENCES = {1: (2, 10), 2: (4, 16), 3: (6, 24)}  # in a story, by its facts


class Story(NamedTuple):
    """What happened, a question, its answer, and what the answer follows from."""

    sentences: list[str]
    question: str
    answer: str  # one word
    support: list[int]  # the sentences that are needed, from 0, in their order


@dataclass
class _World:
    """Who is where, who has what, and from which sentences that is known."""

    sentences: list[str] = field(default_factory=list)
    place: dict[str, tuple[str, int]] = field(default_factory=dict)  # of a person
    before: dict[str, tuple[str, int]] = field(default_factory=dict)  # one place ago
    taken: dict[str, tuple[str, int]] = field(default_factory=dict)  # by whom
    lies: dict[str, tuple[str, list[int]]] = field(default_factory=dict)  # where

    def go_on(self, rng: random.Random) -> None:
        """Something happens: one sentence more."""
        now, person = len(self.sentences), rng.choice(PEOPLE)
        here, _ = self.place.get(person, (None, 0))
        has = [thing for thing, (who, _) in self.taken.items() if who == person]
        free = [
            thing
            for thing in THINGS
            if thing not in self.taken
            and self.lies.get(thing, (here, []))[0] == here is not None
        ]
        what = rng.choice(["go", "go", "take", "take", "drop"])
        if what == "take" and free:
            thing = rng.choice(free)
            self.taken[thing] = person, now
            self.lies.pop(thing, None)
            self.sentences.append(f"{person} took the {thing}")
        elif what == "drop" and has:
            thing = rng.choice(has)
            del self.taken[thing]
            self.lies[thing] = here, sorted([self.place[person][1], now])
            self.sentences.append(f"{person} dropped the {thing}")
        else:
            there = rng.choice([place for place in PLACES if place != here])
            if here is not None:
                self.before[person] = self.place[person]
            self.place[person] = there, now
            self.sentences.append(f"{person} went to the {there}")

    def questions(self, facts: int) -> list[tuple[str, str, list[int]]]:
        """What can be asked that takes so many facts: question, answer, support."""
        found = []
        if facts == 1:
            for person, (place, now) in self.place.items():
                found.append((f"where is {person}", place, [now]))
            for thing, (person, now) in self.taken.items():
                found.append((f"who has the {thing}", person, [now]))
        if facts == 2:
            for thing, (place, support) in self.lies.items():
                found.append((f"where is the {thing}", place, support))
        for thing, (person, now) in self.taken.items():
            place, arrived = self.place[person]
            if facts == 2:
                support = sorted([now, arrived])
                found.append((f"where is the {thing}", place, support))
            if facts == 3 and arrived > now:  # carried from one place to another
                old, left = self.before[person]
                question = f"where was the {thing} before the {place}"
                found.append((question, old, sorted([now, arrived, left])))
        return found


def make_story(facts: int, rng: random.Random) -> Story:
    """A story whose question takes 1, 2 or 3 of its sentences to answer.

    1: where is a person, who has a thing; 2: where is a thing; 3: where was a thing
    before the place it is in. Raises ValueError for another number.
    """
    if facts not in SENTENCES:
        raise ValueError(f"facts is {facts}: it must be 1, 2 or 3")
    shortest, longest = SENTENCES[facts]
    while True:
        world, length = _World(), rng.randint(shortest, longest)
        while len(world.sentences) < length:
            world.go_on(rng)
        if found := world.questions(facts):
            question, answer, support = rng.choice(found)
            return Story(world.sentences, question, answer, support)


def make_stories(
    n: int, facts: int, seed: int, without: Collection[Story] = ()
) -> list[Story]:
    """n stories, no two of them alike, and none like one of the others."""
    rng, stories = random.Random(f"{facts} {seed}"), []
    seen = {_key(story) for story in without}
    while len(stories) < n:
        story = make_story(facts, rng)
        if _key(story) not in seen:
            seen.add(_key(story))
            stories.append(story)
    return stories


def _key(story: Story) -> tuple:
    return (*story.sentences, story.question)


class StoryTensors(NamedTuple):
    """Stories as numbers of words; 0 is padding."""

    sentences: Tensor  # (B, N, L) int64, the last sentence of each story in row N - 1
    question: Tensor  # (B, L) int64
    answer: Tensor  # (B,) int64


def story_tensors(stories: Sequence[Story]) -> StoryTensors:
    """Stories side by side: as many rows as the longest of them has sentences."""
    ids = {word: number for number, word in enumerate(WORDS)}
    rows = max(len(story.sentences) for story in stories)
    texts = [text for s in stories for text in (*s.sentences, s.question)]
    width = max(len(text.split()) for text in texts)

    def numbers(text: str) -> list[int]:
        words = [ids[word] for word in text.split()]
        return words + [0] * (width - len(words))

    return StoryTensors(
        torch.tensor(
            [
                [numbers("")] * (rows - len(s.sentences)) + [*map(numbers, s.sentences)]
                for s in stories
            ]
        ),
        torch.tensor([numbers(s.question) for s in stories]),
        torch.tensor([ids[s.answer] for s in stories]),
    )


def word_weights(tokens: Tensor, d_model: int) -> Tensor:
    """l_kj = (1 - j/J) - (k/D)(1 - 2j/J), what makes a sum of words know their order.

    tokens: (…, L) int64, 0 is padding; J is the number of words in a row, j and k are
    counted from 1. Returns (…, L, D), zeros at padding.
    """
    real = tokens != 0  # (…, L)
    share = real.cumsum(-1) / real.sum(-1, keepdim=True).clamp(min=1)  # j / J
    k = torch.arange(1, d_model + 1, device=tokens.device) / d_model  # (D,)
    weights = (1 - share)[..., None] - k * (1 - 2 * share)[..., None]
    return weights * real[..., None]


class MemoryNetwork(nn.Module):
    """Look at the memory, add what is there to the question, look again.

    Sukhbaatar et al. (2015), with position encoding, temporal encoding and adjacent
    sharing: A of a hop is C of the hop before, B is the first A, the softmax the last
    C. vocab_size: V. d_model: D. n_memories: sentences of the longest story. n_hops:
    K, looks at the memory.
    """

    def __init__(
        self, vocab_size: int, d_model: int, n_memories: int, n_hops: int
    ) -> None:
        super().__init__()
        tables = range(n_hops + 1)
        self.n_memories = n_memories
        self.words = nn.ModuleList(
            nn.Embedding(vocab_size, d_model, padding_idx=0) for _ in tables
        )
        self.times = nn.ModuleList(nn.Embedding(n_memories, d_model) for _ in tables)
        for table in (*self.words, *self.times):
            nn.init.normal_(table.weight, std=0.1)
            if table.padding_idx is not None:
                nn.init.zeros_(table.weight[table.padding_idx])

    def remember(self, hop: int, sentences: Tensor, weights: Tensor) -> Tensor:
        """The memories of a hop, (B, N, D). weights: (B, N, L, D), of the words."""
        ages = torch.arange(sentences.size(1) - 1, -1, -1, device=sentences.device)
        return (self.words[hop](sentences) * weights).sum(2) + self.times[hop](ages)

    def forward(self, sentences: Tensor, question: Tensor) -> tuple[Tensor, Tensor]:
        """sentences: (B, N, L), question: (B, L), int64, as in `StoryTensors`.

        Returns logits of the answer, (B, V), and where each hop looked, (B, K, N); in
        a story of padding alone, nowhere. Raises ValueError for more than n_memories
        sentences.
        """
        if sentences.size(1) > self.n_memories:
            raise ValueError(
                f"{sentences.size(1)} sentences: the memory holds {self.n_memories}"
            )
        d_model = self.words[0].embedding_dim
        weights = word_weights(sentences, d_model)  # (B, N, L, D)
        there = sentences.ne(0).any(-1)  # (B, N)
        asked = word_weights(question, d_model)  # (B, L, D)
        u = (self.words[0](question) * asked).sum(1)  # (B, D)
        key, hops = self.remember(0, sentences, weights), []  # (B, N, D)
        for hop in range(1, len(self.words)):
            value = self.remember(hop, sentences, weights)
            scores = (key @ u[..., None])[..., 0]  # (B, N)
            scores = scores.masked_fill(~there, torch.finfo(scores.dtype).min)
            p = scores.softmax(dim=-1) * there
            u = u + (p[:, None] @ value)[:, 0]  # (B, D)
            hops.append(p)
            key = value
        return u @ self.words[-1].weight.t(), torch.stack(hops, 1)
