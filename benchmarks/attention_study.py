"""What the heads of a model of the embedded corpus look at, and what they cause.

    python benchmarks/attention_study.py

trains the model of notebooks/5_2_a_run_on_the_embedded_corpus.ipynb, English to German,
with three seeds, and asks each of them:

- translations: whether riddles (*… because it was too wide*) whose second noun never
  was a second noun in a riddle of the training side come out right, as a whole and in
  their pronouns; pronouns: the same where the words before it are given;
- looks: where each head looks from *it*, or from the pronoun being chosen;
- flips: what a cut or moved link, a head or a layer does to the pronoun;
- alignment: the alignment error rate of each head, of means, and of a diagonal;
- flies: how well a linear probe tells verb from noun, layer by layer;
- pruning: what is left as heads are taken out.

Writes book/records/attention_study.json (--record) and the model of the first seed
with its card (--model, a folder; that which ships is
annotated_transformer/models/grammar-en-de). Small numbers try it out: --drawn 3000
--sentences 20 --seeds 0.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import NamedTuple

import torch
from recording import ROOT, run_all, write_record
from torch import Tensor

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.batching import Batch, TokenBatches, make_batch
from annotated_transformer.decoding import attention_maps, replaced_attention
from annotated_transformer.grammar import (
    CONSTRUCTIONS,
    RIDDLES,
    Triple,
    alignment,
    generate,
)
from annotated_transformer.interpretation import (
    alignment_error_rate,
    all_heads,
    at,
    cut_heads,
    cut_links,
    diagonal_links,
    encoder_states,
    head_importance,
    linear_probe,
    move_links,
    pruning_curve,
    strongest_links,
    without_heads,
)
from annotated_transformer.lexicon import NOUN, OF_KIND
from annotated_transformer.tokenizer import Tokenizer
from annotated_transformer.training import TrainingConfig, train
from annotated_transformer.translator import average_weights
from annotated_transformer.visualization import given_words, join

DRAWN = 136_000  # sentences of the training side, as in §5.2
SENTENCES = 1000  # of each kind that a model is asked about
AVERAGED = 10  # states
FIFTH = 5  # of the nouns of a kind, every fifth is held out as second noun
BATCH = 100  # sentences
KINDS = "encoder", "decoder", "cross"
ANSWERS = "er", "sie", "es"
FLIES = ["flies_verb", "flies_noun"]

# The kinds of second nouns in the riddles: what is crossed, eaten, fitted into.
SECOND = {row.split()[3] for row in RIDDLES.strip().splitlines()}
HELD_OUT = {noun.english[0] for kind in SECOND for noun in OF_KIND[kind][::FIFTH]}


def nouns_of(triple: Triple) -> list[int]:
    """Where the two nouns of a riddle stand among its English words."""
    words = triple.english.tokens
    return [i for i, word in enumerate(words) if word.lower() in NOUN]


def is_new(triple: Triple) -> bool:
    """Whether a riddle's second noun is one that is held out there."""
    return triple.english.tokens[nouns_of(triple)[-1]].lower() in HELD_OUT


def distinct(
    n: int,
    seed: int,
    constructions: list[str] | None = None,
    fits: Callable[[Triple], bool] = lambda triple: True,
) -> list[Triple]:
    """The first n triples of a seed that fit and whose English sentences differ."""
    found: dict[str, Triple] = {}
    for triple in generate(1 << 62, seed, constructions):
        if fits(triple):
            found.setdefault(triple.english.text, triple)
        if len(found) == n:
            return list(found.values())
    raise AssertionError  # the grammar does not end


class Asked(NamedTuple):
    """What a model is asked about; none of it is in its training sentences."""

    test: list[Triple]
    validation: list[Triple]
    riddles: list[Triple]
    flies: list[Triple]  # to judge the probe
    flies_fit: list[Triple]  # to fit it


def says_flies(triple: Triple) -> bool:
    return "flies" in triple.english.tokens


def asked_about(n: int) -> Asked:
    flies = distinct(2 * n, 1004, FLIES, says_flies)
    return Asked(
        distinct(n, 1001),
        distinct(100, 1002),
        distinct(n, 1003, ["pronoun"], is_new),
        flies[:n],
        flies[n:],
    )


def trained(seed: int, drawn: int, asked: Asked) -> tuple[Translator, dict]:
    """A model by the recipe of §5.2, and what its training says of itself."""
    shares = [name for name, share in CONSTRUCTIONS.items() for _ in range(share)]
    shares += 5 * ["pronoun"]
    out = {triple.english.text for some in asked for triple in some}
    pairs = [
        (triple.english.text, triple.german.text)
        for triple in generate(drawn, seed, shares)
        if triple.english.text not in out
        and not (triple.construction == "pronoun" and is_new(triple))
    ]
    lines = [text for pair in pairs[:20_000] for text in pair]
    tokenizer = Tokenizer.train(lines, 2000)
    torch.manual_seed(seed)
    config = TransformerConfig.tiny(
        tokenizer.vocab_size, n_layers=2, n_heads=8, d_ff=256, dropout=0.0
    )
    model = Transformer(config)
    settings = TrainingConfig(
        max_tokens=400, epochs=1, warmup=1000, validate_every=100, seed=seed
    )
    special = config.pad_id, config.bos_id, config.eos_id
    encode = tokenizer.encode
    ids = list(zip(*map(encode, zip(*pairs, strict=True)), strict=True))
    watched = [
        (encode(t.english.text), encode(t.german.text)) for t in asked.validation
    ]
    states, records = [], []
    for record in train(
        model,
        TokenBatches(ids, settings.max_tokens, *special, seed=seed),
        list(TokenBatches(watched, 4096, *special)),
        settings,
    ):
        records.append(record)
        state = {name: w.clone() for name, w in model.state_dict().items()}
        states = [*states[1 - AVERAGED :], state]
    model.load_state_dict(average_weights(states))
    about = {
        "pairs": len(pairs),
        "steps": records[-1]["step"],
        "validation_loss": round(records[-1]["validation_loss"], 4),
    }
    return Translator(model.eval(), tokenizer), about


class Group:
    """Some sentences as a batch, with the places of their words among the pieces."""

    def __init__(self, translator: Translator, triples: list[Triple]) -> None:
        self.triples, tokenizer = triples, translator.tokenizer
        config, eos = translator.model.config, "</s>"
        ids, self.source, self.target = [], [], []
        for triple in triples:
            pair = triple.english, triple.german
            ids.append(tuple(tokenizer.encode(sentence.text) for sentence in pair))
            for sentence, found in zip(pair, (self.source, self.target), strict=True):
                pieces = [*tokenizer.pieces(sentence.text), eos]
                found.append(given_words(pieces, sentence.tokens).owner)
        self.outputs = [target for _, target in ids]
        self.batch: Batch = make_batch(ids, config.pad_id, config.bos_id, config.eos_id)


def groups(translator: Translator, triples: list[Triple]) -> Iterable[Group]:
    for start in range(0, len(triples), BATCH):
        yield Group(translator, triples[start : start + BATCH])


def pieces_of(owners: list[int], word: int) -> list[int]:
    return [i for i, owner in enumerate(owners) if owner == word]


class Riddle(NamedTuple):
    """One kind of attention in a group of riddles: rows and columns, as masks."""

    rows: Tensor  # (B, T): "it" in the encoder, elsewhere the pronoun being chosen
    meant: Tensor  # (B, S): the noun it stands for
    other: Tensor  # (B, S): the other noun


class Riddles:
    """A group of riddles: where the nouns are, and which pronoun would be whose."""

    def __init__(self, translator: Translator, group: Group) -> None:
        self.model, self.batch = translator.model, group.batch
        ids = [translator.tokenizer.encode(answer) for answer in ANSWERS]
        if any(len(one) != 1 for one in ids):
            raise SystemExit(f"{', '.join(ANSWERS)} are not one piece each: {ids}")
        self.answers = torch.tensor([one for (one,) in ids])
        self.places: dict[str, Riddle] = {}
        self.due, self.right, self.wrong = [], [], []
        places: dict[str, list] = {kind: [] for kind in KINDS}
        for triple, source, target in zip(
            group.triples, group.source, group.target, strict=True
        ):
            ((it, meant),) = triple.english.antecedents()
            ((pronoun, meant_german),) = triple.german.antecedents()
            (other,) = (i for i in nouns_of(triple) if i != meant)
            links = dict(alignment(triple.english, triple.german))
            due = pieces_of(target, pronoun)[:1]
            nouns = [pieces_of(source, word) for word in (meant, other)]
            # The decoder has read a word one position after it was chosen.
            read = [
                [i + 1 for i in pieces_of(target, word)]
                for word in (meant_german, links[other])
            ]
            places["encoder"].append((pieces_of(source, it), *nouns))
            places["cross"].append((due, *nouns))
            places["decoder"].append((due, *read))
            self.due += due
            words = triple.english.tokens
            self.right.append(NOUN[words[meant].lower()].gender)
            self.wrong.append(NOUN[words[other].lower()].gender)
        s, t = self.batch.src.size(1), self.batch.tgt.size(1)
        for kind, (n_rows, n_columns) in {
            "encoder": (s, s),
            "decoder": (t, t),
            "cross": (t, s),
        }.items():
            rows, meant, other = zip(*places[kind], strict=True)
            self.places[kind] = Riddle(
                at(rows, n_rows), at(meant, n_columns), at(other, n_columns)
            )

    @torch.no_grad()
    def answer(self, context: AbstractContextManager[None]) -> tuple[Tensor, Tensor]:
        """Which pronoun is the most probable, and whether nothing else is more; (B,)"""
        with context:
            logits = self.model(self.batch.src, self.batch.tgt)  # (B, T, V)
        logits = logits[torch.arange(len(logits)), self.due]  # (B, V)
        answers = logits[:, self.answers]  # (B, 3)
        return answers.argmax(-1), answers.amax(-1) == logits.amax(-1)


def looks(found: list[Riddles], group_maps: list) -> dict:
    """For each head, shares of riddles: strongest link the noun, the other, more weight
    on the noun than on the other."""
    counts: dict[tuple, list[float]] = {}
    total = 0
    for riddles, maps in zip(found, group_maps, strict=True):
        total += len(maps)
        for kind, place in riddles.places.items():
            for b, of_one in enumerate(maps):
                weights = getattr(of_one, kind)  # (N, H, T, S)
                n, size = weights.shape[-2:]
                row = weights[:, :, place.rows[b, :n]].mean(dim=2)  # (N, H, S)
                meant, other = place.meant[b, :size], place.other[b, :size]
                one, two = row[..., meant].sum(-1), row[..., other].sum(-1)
                best = row.argmax(-1)  # (N, H)
                shares = torch.stack(
                    [meant[best].double(), other[best].double(), (one > two).double()]
                )
                counts[kind] = counts.get(kind, 0) + shares  # (3, N, H)
    return {
        kind: [
            [[round(x, 4) for x in row] for row in of] for of in (c / total).tolist()
        ]
        for kind, c in counts.items()
    }


def flips(translator: Translator, found: list[Riddles]) -> dict:
    """What interventions do to the pronoun: [changed, the other's, no pronoun]."""
    model = translator.model
    n_layers, n_heads = model.config.n_layers, model.config.n_heads
    before = [riddles.answer(nullcontext()) for riddles in found]

    def effect(context: Callable[[Riddles], AbstractContextManager[None]]) -> list:
        totals, n = [0, 0, 0], 0
        for riddles, (answer, _) in zip(found, before, strict=True):
            now, is_pronoun = riddles.answer(context(riddles))
            wrong = torch.tensor(riddles.wrong)
            events = now != answer, (now != answer) & (now == wrong), ~is_pronoun
            totals = [a + int(b.sum()) for a, b in zip(totals, events, strict=True)]
            n += len(now)
        return [round(total / n, 4) for total in totals]

    def link(kind: str, layers: Iterable[int], heads: list[int] | None, move: bool):
        def context(riddles: Riddles) -> AbstractContextManager[None]:
            rows, meant, other = riddles.places[kind]
            function = cut_links(rows, meant, heads)
            if move:
                function = move_links(rows, meant, other, heads)
            places = {(kind, layer): function for layer in layers}
            return replaced_attention(model, places)

        return context

    result: dict[str, dict] = {}
    for kind in KINDS:
        every = [[layer] for layer in range(n_layers)]
        table = result[kind] = {"head": [], "cut": [], "moved": []}
        for layer in range(n_layers):
            for head in range(n_heads):
                one = [(kind, layer, head)]
                table["head"].append(effect(lambda _, h=one: without_heads(model, h)))
                table["cut"].append(effect(link(kind, [layer], [head], move=False)))
                table["moved"].append(effect(link(kind, [layer], [head], move=True)))
        for layers in [*every, list(range(n_layers))]:
            name = f"layers {'+'.join(str(layer + 1) for layer in layers)}"
            gone = {(kind, layer): cut_heads() for layer in layers}
            table[name] = {
                "head": effect(lambda _, g=gone: replaced_attention(model, g)),
                "cut": effect(link(kind, layers, None, move=False)),
                "moved": effect(link(kind, layers, None, move=True)),
            }
    return result


def pronouns(found: list[Riddles]) -> float:
    """The share of riddles in which the right pronoun is the most probable piece."""
    right = n = 0
    for riddles in found:
        answer, is_pronoun = riddles.answer(nullcontext())
        right += int((is_pronoun & (answer == torch.tensor(riddles.right))).sum())
        n += len(answer)
    return round(right / n, 4)


def translations(translator: Translator, triples: list[Triple]) -> dict:
    """Greedy translations of riddles: all letters right; all pronouns right."""
    found = translator.translate(triple.english.text for triple in triples)
    meant = [triple.german.text for triple in triples]

    def said(text: str) -> list[str]:
        return [word for word in text.lower().split() if word in ANSWERS]

    pairs = list(zip(found, meant, strict=True))
    return {
        "asked": len(pairs),
        "exact": round(sum(a == b for a, b in pairs) / len(pairs), 4),
        "right": round(sum(said(a) == said(b) for a, b in pairs) / len(pairs), 4),
    }


def alignments(translator: Translator, triples: list[Triple]) -> dict:
    """Alignment error rates: heads, means of layers, mean of all, diagonal."""
    gold, diagonal, found = [], [], {}
    for group in groups(translator, triples):
        maps = attention_maps(translator.model, group.batch.src, group.outputs)
        for one, source, target, triple in zip(
            maps, group.source, group.target, group.triples, strict=True
        ):
            n_source, n_target = len(triple.english.tokens), len(triple.german.tokens)
            gold.append(alignment(triple.english, triple.german))
            diagonal.append(diagonal_links(n_source, n_target))
            cross = join(one.cross, target, source)[:, :, :n_target]  # without eos
            n_layers, n_heads, *_ = cross.shape
            maps_by_name = {
                (layer, head): cross[layer, head]
                for layer in range(n_layers)
                for head in range(n_heads)
            }
            maps_by_name |= {("mean", n): cross[n].mean(0) for n in range(n_layers)}
            maps_by_name["mean"] = cross.mean(dim=(0, 1))
            for name, weights in maps_by_name.items():
                links = strongest_links(weights, n_source)
                found.setdefault(name, []).append(links)
    rates = {
        name: round(alignment_error_rate(links, gold), 4)
        for name, links in found.items()
    }
    return {
        "heads": [[rates[n, h] for h in range(n_heads)] for n in range(n_layers)],
        "layers": [rates["mean", n] for n in range(n_layers)],
        "mean": rates["mean"],
        "diagonal": round(alignment_error_rate(diagonal, gold), 4),
    }


def flies_states(translator: Translator, triples: list[Triple]) -> tuple[list, Tensor]:
    """The vectors at *flies*: embedding alone, with position, layer by layer."""
    model, tokenizer = translator.model, translator.tokenizer
    states, alone, readings = [], [], []
    for triple in triples:
        pieces = [*tokenizer.pieces(triple.english.text), "</s>"]
        owners = given_words(pieces, triple.english.tokens).owner
        last = pieces_of(owners, triple.english.tokens.index("flies"))[-1]
        src = torch.tensor([[*tokenizer.encode(triple.english.text), 2]])
        states.append(encoder_states(model, src)[:, 0, last])  # (N + 1, D)
        with torch.no_grad():
            alone.append(model.embedding(src[0, last]))
        readings.append(int(triple.construction == "flies_noun"))
    return [torch.stack(alone), *torch.stack(states, dim=1)], torch.tensor(readings)


def probes(translator: Translator, asked: Asked, seed: int) -> dict:
    """Accuracy of a linear probe at *flies*, in this model and in an untrained one."""
    torch.manual_seed(seed)
    untrained = Transformer(translator.model.config).eval()
    result = {}
    for name, one in (
        ("trained", translator),
        ("untrained", Translator(untrained, translator.tokenizer)),
    ):
        (fit, y), (judge, z) = (
            flies_states(one, some) for some in (asked.flies_fit, asked.flies)
        )
        result[name] = [
            round(linear_probe((a, y), (b, z)), 4)
            for a, b in zip(fit, judge, strict=True)
        ]
    share = float(z.double().mean())
    return result | {"majority": round(max(share, 1 - share), 4)}


def pruning(translator: Translator, asked: Asked, seed: int) -> dict:
    """Exact matches as heads are taken out, by importance and by lot."""
    model = translator.model
    half = len(asked.test) // 2
    chosen, judged = (
        list(groups(translator, some))
        for some in (asked.test[:half][: 2 * BATCH], asked.test[half:][: 2 * BATCH])
    )

    @torch.no_grad()
    def minus_loss(model: Transformer) -> float:
        total = n = 0
        for group in chosen:
            log_p = model(group.batch.src, group.batch.tgt).log_softmax(-1)
            labels = group.batch.labels
            there = labels != model.config.pad_id
            total += log_p.gather(-1, labels[..., None])[..., 0][there].sum().item()
            n += int(there.sum())
        return total / n

    @torch.no_grad()
    def exact(model: Transformer) -> float:
        right = n = 0
        for group in judged:
            best = model(group.batch.src, group.batch.tgt).argmax(-1)
            there = group.batch.labels != model.config.pad_id
            right += int(((best == group.batch.labels) | ~there).all(-1).sum())
            n += len(best)
        return right / n

    lost = head_importance(model, minus_loss)
    order = sorted(lost, key=lost.get)
    heads = all_heads(model)
    by_lot = [random.Random(f"{seed} {k}").sample(heads, len(heads)) for k in range(3)]
    return {
        "order": [[*head, round(lost[head], 5)] for head in order],
        "by_importance": [round(x, 4) for x in pruning_curve(model, exact, order)],
        "by_lot": [
            [round(x, 4) for x in pruning_curve(model, exact, one)] for one in by_lot
        ],
    }


def study(seed: int, drawn: int, sentences: int, model: str | None) -> dict:
    """All measurements on one trained model, which is saved where a folder is named."""
    asked = asked_about(sentences)
    translator, about = trained(seed, drawn, asked)
    if model is not None:
        translator.save_pretrained(model, torch.float16)
    some = list(groups(translator, asked.riddles))
    found = [Riddles(translator, group) for group in some]
    maps = [
        attention_maps(translator.model, group.batch.src, group.outputs)
        for group in some
    ]
    return about | {
        "translations": translations(translator, asked.riddles),
        "pronouns": pronouns(found),
        "looks": looks(found, maps),
        "flips": flips(translator, found),
        "alignment": alignments(translator, asked.test),
        "flies": probes(translator, asked, seed),
        "pruning": pruning(translator, asked, seed),
    }


CARD = """# grammar-en-de

| | |
|---|---|
| translates | en → de |
| data | sentences of `annotated_transformer.grammar`, made by this package |
| pairs | {pairs:,}, each seen once; {steps:,} steps |
| shape | 2 + 2 layers, 128 wide, 8 heads, feed-forward 256 |
| weights | mean of the last {averaged} validations |
| command | `{command} --model FOLDER` |
| commit | {commit} |
| seed | {seed} |
| device | {device} |
| time | {minutes:.0f} minutes of one processor, its study included |
| date | {date} |

## What it is right about

{asked:,} sentences with *it* whose second noun never was a second noun in training:
{right:.1%} of the pronouns, {exact:.1%} of the whole translations, as they are written
in the grammar.

## Limits

It knows the words and the constructions of one small grammar, and nothing of English or
German beyond it. It is there to be looked into.

The weights are stored in float16 and computed with in float32.
"""


def write_card(folder: Path, record: Path) -> None:
    """The model card, and what the model translates, from the record of the study."""
    about = json.loads(record.read_text(encoding="utf-8"))
    run = about["runs"][0]
    said = {key: about[key] for key in ("command", "commit", "device", "date")}
    said |= {key: run[key] for key in ("pairs", "steps", "seed")}
    said |= {key: run["translations"][key] for key in ("asked", "right", "exact")}
    minutes = run["cpu_seconds"] / 60
    text = CARD.format(**said, averaged=AVERAGED, minutes=minutes)
    (folder / "README.md").write_text(text, encoding="utf-8")
    languages = json.dumps({"source": "en", "target": "de"})
    (folder / "record.json").write_text(languages + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    record = ROOT / "book" / "records" / "attention_study.json"
    parser.add_argument("--record", type=Path, default=record)
    parser.add_argument("--model", help="folder for the model of the first seed")
    parser.add_argument("--drawn", type=int, default=DRAWN, help="training sentences")
    parser.add_argument("--sentences", type=int, default=SENTENCES, help="to ask about")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    cases = [
        {
            "seed": seed,
            "drawn": arguments.drawn,
            "sentences": arguments.sentences,
            "model": arguments.model if seed == arguments.seeds[0] else None,
        }
        for seed in arguments.seeds
    ]
    runs = run_all(cases, study, arguments.record.resolve())
    contents = {"held_out": sorted(HELD_OUT), "runs": runs}
    command = "python benchmarks/attention_study.py"
    write_record(arguments.record.resolve(), command, contents)
    if arguments.model is not None:
        write_card(Path(arguments.model), arguments.record)


if __name__ == "__main__":
    main()
