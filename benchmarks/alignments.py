"""Attention of a recurrent model against the gold alignments of the grammar (§2).

    python benchmarks/alignments.py

A recurrent model with attention of the size `tiny` is trained on the embedded corpus,
English to German: 800 steps of 750 tokens, half of Eq. 3 with a warm-up of 200, three
seeds. Then 1,000 sentences of its test split are read with their reference, and each
German word is linked to the English one with the largest weight: the alignment error
rate, and that of a diagonal. Of seed 0 also the weights themselves, for the short
sentence whose gold alignment crosses itself most.

About two minutes a run on one core. Writes book/records/alignments.json (--record). A
command that is broken off goes on where it stopped. --toy tries the whole way.
"""

import argparse
from itertools import combinations, islice
from pathlib import Path

import torch
from attention_study import alignments, groups
from recording import ROOT, run_all, write_record
from short_training import Data, score, training

from annotated_transformer import Translator
from annotated_transformer.baselines import MODELS
from annotated_transformer.cli import EMBEDDED
from annotated_transformer.decoding import attention_maps
from annotated_transformer.grammar import Triple, alignment, generate
from annotated_transformer.visualization import join

KIND, SEEDS = "recurrent-attention", (0, 1, 2)
RATE = 0.5  # that multiplies the learning rate of Eq. 3
REAL = {"vocab_size": 4000, "max_tokens": 750, "warmup": 200}
REAL |= {"steps": 800, "sentences": 1000}
TOY = {"vocab_size": 600, "max_tokens": 300, "warmup": 2, "steps": 3, "sentences": 20}
SHORT = 8, 11  # words of the sentence that is shown


def test_triples(data: Data, n: int) -> list[Triple]:
    """The first n sentences of the embedded test split, with their alignments."""
    held_out = set(zip(*data.test, strict=True))
    drawn = generate(1 << 62, EMBEDDED.get("seed", 0))
    return list(
        islice((t for t in drawn if (t.english.text, t.german.text) in held_out), n)
    )


def crossings(triple: Triple) -> int:
    """The pairs of links that cross, of a sentence that is short on both sides."""
    if not all(SHORT[0] <= len(s.tokens) <= SHORT[1] for s in triple[1:3]):
        return -1
    pairs = combinations(alignment(triple.english, triple.german), 2)
    return sum((a - c) * (b - d) < 0 for (a, b), (c, d) in pairs)


def shown(translator: Translator, triple: Triple) -> dict:
    """Where a model of one head looks as it writes the words of a sentence."""
    (group,) = groups(translator, [triple])
    (maps,) = attention_maps(translator.model, group.batch.src, group.outputs)
    weights = join(maps.cross[0, 0], group.target[0], group.source[0])
    return {
        "english": triple.english.tokens,
        "german": triple.german.tokens,
        "gold": alignment(triple.english, triple.german),
        "weights": [[round(w, 3) for w in row] for row in weights.tolist()],
    }


def run(data: Data, sizes: dict, seed: int) -> dict:
    """Train one model; what its attention is worth as an alignment."""
    torch.manual_seed(seed)
    model = MODELS[KIND](MODELS[KIND].config_type.tiny(sizes["vocab_size"]))
    for _ in training(model, data, sizes, RATE, seed, sizes["steps"]):
        pass
    translator = Translator(model.eval(), data.tokenizer)
    triples = test_triples(data, sizes["sentences"])
    rates = alignments(translator, triples)
    result = {"error_rate": rates["mean"], "diagonal": rates["diagonal"]}
    result |= score(model, data, beam_size=1)
    if seed == 0:
        result["shown"] = shown(translator, max(triples, key=crossings))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--toy", action="store_true")
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book" / "records" / "alignments.json"
    )
    arguments = parser.parse_args()
    toy = arguments.toy
    sizes, seeds = (TOY, SEEDS[:1]) if toy else (REAL, SEEDS)
    torch.set_num_threads(1)
    data = Data("embedded", sizes)
    cases = [{"seed": seed} for seed in seeds]
    contents = {
        "kind": KIND,
        "seeds": seeds,
        "sizes": sizes,
        "rate": RATE,
        "runs": run_all(
            cases, lambda **case: run(data, sizes, **case), arguments.record
        ),
    }
    command = "python benchmarks/alignments.py"
    packages = "sentencepiece", "sacrebleu"
    write_record(arguments.record, command, contents, packages)


if __name__ == "__main__":
    main()
