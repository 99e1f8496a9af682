"""What becomes of the place of an ended hypothesis: §6.1's two ways, side by side.

    python benchmarks/beam_places.py --model runs/en-de

translates val of Multi30k with a beam of 4 and α = 0.6: once as `search` does it,
where an ended hypothesis keeps its place, and once with a beam that is always full of
unfinished ones, as in the code released with the paper. Prints both and writes
book/records/beam_places_multi30k.json. One core takes about a minute.
"""

import argparse
from pathlib import Path
from unittest import mock

import torch
from recording import ROOT, origin, save

from annotated_transformer import Translator, decoding
from annotated_transformer.corpora import load_pairs
from annotated_transformer.evaluation import bleu

BEAM, ALPHA = 4, 0.6
most_probable, retire = decoding._most_probable, decoding._retire


def choose_full(beam, log_probs):
    """The BEAM most probable that go on, and what ends among the BEAM first of all."""
    places, beam.places = beam.places, beam.places * 2
    totals, parents, tokens = most_probable(beam, log_probs)
    beam.places = places
    ends = tokens == EOS
    rank = torch.arange(totals.size(1))
    kept = torch.where(ends, rank < BEAM, (~ends).cumsum(dim=1) <= BEAM)
    return totals.masked_fill(~kept, -torch.inf), parents, tokens


def retire_full(beam, eos_id, alpha):
    """As `_retire`, and the places are free again."""
    places = beam.places
    found = retire(beam, eos_id, alpha)
    beam.places = places
    return found


def measure(translator, lines, references) -> dict:
    """Scores, and how many positions the decoder computed."""
    positions = 0

    def count(layer, arguments):
        nonlocal positions
        positions += arguments[0].shape[:2].numel()

    layer = translator.model.decoder.layers[0]
    hook = layer.register_forward_pre_hook(count)
    found = translator.n_best(lines, 1, 64, BEAM, ALPHA)
    hook.remove()
    return {
        "bleu": round(bleu([best.text for (best,) in found], references).value, 2),
        "score": round(sum(best.score for (best,) in found) / len(found), 4),
        "positions": positions,
        "tokens": sum(len(best.tokens) + best.ended for (best,) in found),
    }


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--model", type=Path, required=True)
parser.add_argument(
    "--record", type=Path, default=ROOT / "book/records/beam_places_multi30k.json"
)
arguments = parser.parse_args()
translator = Translator.from_pretrained(arguments.model)
EOS = translator.tokenizer.eos_id
val = load_pairs("multi30k", "en", "de", "val")
record = {
    **origin(f"python benchmarks/beam_places.py --model {arguments.model}", ["torch"]),
    "threads": torch.get_num_threads(),
    "beam": BEAM,
    "alpha": ALPHA,
    "kept": measure(translator, *val),
}
with mock.patch.multiple(decoding, _most_probable=choose_full, _retire=retire_full):
    record["full"] = measure(translator, *val)
print(record["kept"], record["full"], sep="\n")
save(arguments.record, record)
