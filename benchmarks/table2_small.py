"""Train five kinds of model on the same data at two equal budgets: Table 2 in small.

    python benchmarks/table2_small.py --corpus multi30k
    python benchmarks/table2_small.py --corpus embedded

English to German. Recurrent, recurrent with attention, ConvS2S, ByteNet and the
Transformer in their size `tiny`, whose parameters differ by 2 % with 4,000 pieces. The
budgets are what the Transformer spends on STEPS steps: its operations, and its seconds
on one core of this machine. A model's steps at either budget follow from what a step
costs it, which is measured first, all of them alone on the machine. Its learning rate
is the best of GRID on the validation set (loss, after the operations of 300 steps of
the Transformer, seed 0). Then it is trained for three seeds, once for both budgets: the
schedule has no end that it would have to know. The validation loss is taken on the way,
and the test set is translated with a beam of 4 and scored, whole and by the length of
the source.

Writes book/records/table2_small_CORPUS.json (--record). A command that is broken off
goes on where it stopped. --toy tries the whole way with next to no data and steps.
"""

import argparse
import math
import warnings
from pathlib import Path

import torch
from recording import ROOT, run_all, write_record
from short_training import LANGUAGES, TEST, Data, score, training
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from annotated_transformer.baselines import MODELS
from annotated_transformer.training import evaluate_loss

SEEDS = 0, 1, 2
GRID = 0.125, 0.25, 0.5, 1.0, 2.0, 4.0  # that multiply the learning rate of Eq. 3
GRID_STEPS = 300  # of the Transformer, or what others get for its operations
LOOKS = 8  # at the validation loss, within the budget of operations
# steps: the Transformer's; timed: batches that the cost of a step is measured on
REAL = {
    "multi30k": {"steps": 1800, "max_tokens": 1500},
    "embedded": {"steps": 2000, "max_tokens": 750},
}
COMMON = {"warmup": 200, "grid_steps": GRID_STEPS, "vocab_size": 4000, "timed": 40}
TOY = {"steps": 2, "warmup": 2, "vocab_size": 600, "max_tokens": 300, "timed": 2}
TOY |= {"grid_steps": 1}
BEAM, ALPHA = 4, 0.6


def make(kind: str, vocab_size: int, seed: int) -> nn.Module:
    """A model of the size `tiny`, its weights from the seed."""
    torch.manual_seed(seed)
    return MODELS[kind](MODELS[kind].config_type.tiny(vocab_size))


def operations(model: nn.Module, batch) -> int:
    """Multiplications and additions of a step, forwards and backwards.

    Without oneDNN, which would run an LSTM as one operation that nobody counts. The
    pre-softmax product is inside the loss: three products of its size are added.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TF32, which is not used
        off = torch.backends.mkldnn.flags(enabled=False)
        with off, FlopCounterMode(display=False) as counter:
            hidden = model.hidden(batch.src, batch.tgt)
            hidden.sum().backward()
    tokens = int((batch.labels != model.config.pad_id).sum())
    c = model.config
    return counter.get_total_flops() + 6 * tokens * c.d_model * c.vocab_size


def cost(data: Data, sizes: dict, kind: str) -> dict:
    """What a step costs: operations and seconds, of the same batches for each kind."""
    model = make(kind, sizes["vocab_size"], 0)
    batches = data.batches(0)
    groups = batches.groups(0)
    some = groups[:: max(1, len(groups) // sizes["timed"])][: sizes["timed"]]
    counted = [operations(model, batches.make(group)) for group in some]
    steps = list(training(model, data, sizes, 1.0, 0, sizes["timed"] + 3))
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "config": model.config.to_dict(),
        "operations_a_step": round(sum(counted) / len(counted)),
        "seconds_a_step": (steps[-1][1] - steps[2][1]) / (len(steps) - 3),
    }


def try_rate(data: Data, sizes: dict, kind: str, rate: float, steps: int) -> dict:
    """The validation loss after a short training; None where it is no number."""
    model = make(kind, sizes["vocab_size"], 0)
    for _ in training(model, data, sizes, rate, 0, steps):
        pass
    loss = evaluate_loss(model, data.validation)
    return {"validation_loss": round(loss, 4) if math.isfinite(loss) else None}


def final(
    data: Data, sizes: dict, kind: str, rate: float, seed: int, steps: dict
) -> dict:
    """Train once, and score where each of the two budgets is spent."""
    model, results, curve = make(kind, sizes["vocab_size"], seed), {}, []
    looks = {round(steps["operations"] * i / LOOKS) for i in range(1, LOOKS + 1)}
    for step, seconds in training(model, data, sizes, rate, seed, max(steps.values())):
        if step in looks:
            curve.append([step, round(evaluate_loss(model, data.validation), 4)])
        for budget in [name for name, end in steps.items() if end == step]:
            loss = evaluate_loss(model, data.validation)
            found = {"steps": step, "seconds": round(seconds, 1)}
            found |= {
                "validation_loss": round(loss, 4),
                **score(model, data, beam_size=BEAM, alpha=ALPHA),
            }
            results[budget] = found
            model.train()
    return {"budgets": results, "curve": curve}  # step, validation loss in nats


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", choices=TEST, required=True)
    parser.add_argument("--toy", action="store_true")
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    corpus, toy = arguments.corpus, arguments.toy
    name = f"table2_small_{corpus}.json"
    record = arguments.record or ROOT / "book" / "records" / name
    sizes, seeds = (TOY, SEEDS[:1]) if toy else (REAL[corpus] | COMMON, SEEDS)
    torch.set_num_threads(1)
    data = Data(corpus, sizes, toy)
    kinds = list(MODELS)

    cases = [{"part": "cost", "kind": kind} for kind in kinds]
    costs = run_all(cases, lambda part, kind: cost(data, sizes, kind), record)
    of_kind = {each["kind"]: each for each in costs}
    reference = of_kind["transformer"]

    def steps_for(kind: str, unit: str, steps: int) -> int:
        share = reference[unit] / of_kind[kind][unit]
        return max(1, round(steps * share))

    def steps_of(kind: str) -> dict[str, int]:
        return {
            budget: steps_for(kind, f"{budget}_a_step", sizes["steps"])
            for budget in ("operations", "seconds")
        }

    cases = [
        {"part": "grid", "kind": kind, "rate": rate}
        | {"steps": steps_for(kind, "operations_a_step", sizes["grid_steps"])}
        for kind in kinds
        for rate in GRID
    ]
    grid = run_all(cases, lambda part, **case: try_rate(data, sizes, **case), record)

    def best(kind: str) -> float:
        tried = [e for e in grid if e["kind"] == kind and e["validation_loss"]]
        return min(tried, key=lambda each: each["validation_loss"])["rate"]

    cases = [
        {"part": "final", "kind": kind, "rate": best(kind), "seed": seed}
        | {"steps": steps_of(kind)}
        for seed in seeds
        for kind in kinds
    ]
    finals = run_all(cases, lambda part, **case: final(data, sizes, **case), record)
    contents = {
        "corpus": corpus,
        "languages": LANGUAGES,
        "test": TEST[corpus],
        "seeds": seeds,
        "sizes": sizes,
        "grid": GRID,
        "beam": BEAM,
        "alpha": ALPHA,
        "runs": [*costs, *grid, *finals],
    }
    command = f"python benchmarks/table2_small.py --corpus {corpus}"
    write_record(record, command, contents, ("sacrebleu", "sentencepiece"))


if __name__ == "__main__":
    main()
