"""Train memory networks on stories; write the record that §1 shows.

    python benchmarks/memory_network.py

One, two and three supporting facts, one, two and three hops, three seeds; the stories
are the same for every number of hops and every seed. Accuracy on held-out stories,
none of which is a training story, after every tenth epoch; the share of each hop's
weight that lies on each sentence of the support; and one story with its hops. Four
minutes a run on one core at most. Writes book/records/memory_network.json (--record).
A command that is broken off goes on where it stopped. --toy tries the whole way with
few stories.
"""

import argparse
import functools
import itertools
from pathlib import Path

import torch
import torch.nn.functional as F
from recording import ROOT, run_all, write_record

from annotated_transformer.memory_network import (
    SENTENCES,
    WORDS,
    MemoryNetwork,
    Story,
    make_stories,
    story_tensors,
)

FACTS, HOPS, SEEDS = (1, 2, 3), (1, 2, 3), (0, 1, 2)
REAL = {"train": 10_000, "held_out": 1000, "epochs": 60, "d_model": 48}
TOY = {"train": 200, "held_out": 50, "epochs": 2, "d_model": 16}
RATE, HALVED_EVERY, BATCH = 0.005, 15, 32  # the rate is halved every 15 epochs
EVERY = 10  # epochs between two looks at the held-out stories


@functools.cache
def stories(facts: int, train: int, held_out: int) -> tuple[list[Story], list[Story]]:
    """Training stories and others."""
    seen = make_stories(train, facts, seed=0)
    return seen, make_stories(held_out, facts, seed=1, without=seen)


@torch.no_grad()
def answers(model: MemoryNetwork, asked: list[Story]) -> tuple[float, torch.Tensor]:
    """Share of right answers, and where each hop looked: (B, K, N)."""
    data = story_tensors(asked)
    logits, hops = model(data.sentences, data.question)
    return (logits.argmax(-1) == data.answer).float().mean().item(), hops


def on_support(asked: list[Story], hops: torch.Tensor) -> list[list[float]]:
    """Mean weight of each hop on the first, second … sentence of the support."""
    n = hops.size(-1)
    at = [[n - len(s.sentences) + i for i in s.support] for s in asked]
    index = torch.tensor(at)[:, None].expand(-1, hops.size(1), -1)  # (B, K, facts)
    means = hops.gather(-1, index).mean(0).tolist()
    return [[round(weight, 3) for weight in hop] for hop in means]


def run(sizes: dict, facts: int, hops: int, seed: int) -> dict:
    """Train one network; what it reaches on stories that it has not seen."""
    seen, unseen = stories(facts, sizes["train"], sizes["held_out"])
    torch.manual_seed(seed)
    model = MemoryNetwork(len(WORDS), sizes["d_model"], SENTENCES[facts][1], hops)
    adam, data = torch.optim.Adam(model.parameters()), story_tensors(seen)
    curve = []
    for epoch in range(1, sizes["epochs"] + 1):
        adam.param_groups[0]["lr"] = RATE * 0.5 ** ((epoch - 1) // HALVED_EVERY)
        total = 0.0
        for rows in torch.randperm(len(seen)).split(BATCH):
            logits, _ = model(data.sentences[rows], data.question[rows])
            loss = F.cross_entropy(logits, data.answer[rows])
            adam.zero_grad()
            loss.backward()
            adam.step()
            total += loss.item() * len(rows)
        if epoch % EVERY == 0 or epoch == sizes["epochs"]:
            right, looked = answers(model, unseen)
            nats = round(total / len(seen), 4)
            curve.append({"epoch": epoch, "loss": nats, "held_out": round(right, 4)})
    story, n = unseen[0], len(unseen[0].sentences)
    shown = story._asdict() | {
        "hops": [[round(p, 3) for p in hop[-n:].tolist()] for hop in looked[0]]
    }
    return {
        "accuracy": curve[-1]["held_out"],
        "train_accuracy": round(answers(model, seen[: len(unseen)])[0], 4),
        "curve": curve,
        "on_support": on_support(unseen, looked),
        "story": shown,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book" / "records" / "memory_network.json"
    )
    arguments = parser.parse_args()
    sizes = TOY if arguments.toy else REAL
    torch.set_num_threads(1)
    cases = [
        {"facts": facts, "hops": hops, "seed": seed}
        for seed, facts, hops in itertools.product(SEEDS, FACTS, HOPS)
    ]
    done = run_all(cases, functools.partial(run, sizes), arguments.record)
    contents = {
        "sizes": sizes,
        "rate": RATE,
        "batch": BATCH,
        "chance": {facts: _guess(facts, sizes) for facts in FACTS},
        "seeds": SEEDS,
        "runs": done,
    }
    write_record(arguments.record, "python benchmarks/memory_network.py", contents)


def _guess(facts: int, sizes: dict) -> float:
    """Share of the held-out stories that the most frequent answer is right about."""
    _, unseen = stories(facts, sizes["train"], sizes["held_out"])
    given = [story.answer for story in unseen]
    return round(max(map(given.count, set(given))) / len(given), 3)


if __name__ == "__main__":
    main()
