"""Train small models with other ε_ls and P_drop, and write the records of §5.4.

    python benchmarks/regularization.py smoothing
    python benchmarks/regularization.py dropout

English to German of Multi30k, a joint vocabulary of 1,000 pieces, three seeds.
`smoothing`: ε_ls 0, 0.1 and 0.2 on 6,000 pairs, with the paper's dropout: perplexity,
accuracy, BLEU, logits and calibration on the validation set and on pairs that were
trained on. `dropout`: 0, 0.1 and 0.3 on 500 pairs, without smoothing: the loss on both
sets as training goes on. The initial weights and the batches of a seed are the same in
every run of a part. Eight minutes on one core, and three; a command that is broken off
goes on where it stopped. Writes book/records/smoothing.json or dropout.json (--record).
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from recording import ROOT, length_batches, run_all, write_record
from torch import Tensor

from annotated_transformer import Transformer, TransformerConfig
from annotated_transformer.batching import Batch, pad
from annotated_transformer.corpora import load_pairs
from annotated_transformer.decoding import greedy_search
from annotated_transformer.evaluation import bleu
from annotated_transformer.loss import label_smoothed_cross_entropy
from annotated_transformer.schedule import learning_rate
from annotated_transformer.tokenizer import Tokenizer

SEEDS = 0, 1, 2
VOCAB_SIZE, PEAK, WARMUP = 1000, 4e-3, 200
SHAPE = {"d_model": 64, "n_layers": 2, "n_heads": 4, "d_ff": 256, "max_length": 256}
PARTS = {  # pairs, tokens in a batch on either side, steps, settings (ε_ls, P_drop)
    "smoothing": (6000, 1000, 800, ((0.0, 0.1), (0.1, 0.1), (0.2, 0.1))),
    "dropout": (500, 500, 400, ((0.0, 0.0), (0.0, 0.1), (0.0, 0.3))),
}
LOOK_EVERY, BINS = 50, 10  # steps; bins of confidence, equally wide
SEEN_AGAIN = 500  # training pairs that are looked at without dropout


@torch.no_grad()
def answers(model: Transformer, batches: list[Batch]) -> tuple[Tensor, Tensor]:
    """Logits (tokens, V) and right tokens (tokens,) of all batches, no dropout."""
    model.eval()
    logits, labels = [], []
    for batch in batches:
        real = batch.labels != model.config.pad_id
        logits.append(model(batch.src, batch.tgt)[real])
        labels.append(batch.labels[real])
    model.train()
    return torch.cat(logits), torch.cat(labels)


def loss_of(model: Transformer, batches: list[Batch]) -> float:
    """Mean cross-entropy in nats a token, without smoothing or dropout."""
    return F.cross_entropy(*answers(model, batches)).item()


def describe(logits: Tensor, labels: Tensor) -> dict:
    """Loss, accuracy, margins, norms and calibration of these answers."""
    right = logits.gather(-1, labels[:, None]).squeeze(-1)
    others = logits.scatter(-1, labels[:, None], -torch.inf)
    margin = right - others.max(dim=-1).values  # over the best wrong answer
    gap = right - (logits.sum(dim=-1) - right) / (logits.size(-1) - 1)
    confidence, answer = logits.softmax(dim=-1).max(dim=-1)
    correct = (answer == labels).float()
    place = (confidence * BINS).long().clamp(max=BINS - 1)
    bins = []
    for number in range(BINS):
        inside = place == number
        count = int(inside.sum())
        means = [round(x[inside].mean().item(), 4) for x in (confidence, correct)]
        bins.append([count, *(means if count else (None, None))])
    error = sum(n * abs(c - a) for n, c, a in bins if n) / len(labels)
    temperatures = [0.5 + 0.05 * i for i in range(31)]
    tempered = [F.cross_entropy(logits / t, labels).item() for t in temperatures]
    best = min(range(len(tempered)), key=tempered.__getitem__)
    decile = margin.quantile(torch.tensor([0.1, 0.5, 0.9])).tolist()
    centred = logits - logits.mean(dim=-1, keepdim=True)
    return {
        "tokens": len(labels),
        "loss": round(F.cross_entropy(logits, labels).item(), 4),
        "accuracy": round(correct.mean().item(), 4),
        "confidence": round(confidence.mean().item(), 4),
        "calibration_error": round(error, 4),
        "bins": bins,  # of confidence: tokens, mean confidence, accuracy
        "margin_deciles": [round(value, 3) for value in decile],  # 1st, 5th, 9th
        "gap": round(gap.mean().item(), 3),  # right logit over the mean of the others
        "norm": round(centred.norm(dim=-1).mean().item(), 3),
        "temperature": round(temperatures[best], 2),
        "tempered_loss": round(tempered[best], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=tuple(PARTS))
    parser.add_argument("--record", type=Path)
    arguments = parser.parse_args()
    part = arguments.part
    record = arguments.record or ROOT / "book" / "records" / f"{part}.json"
    n_pairs, max_tokens, n_steps, settings = PARTS[part]
    torch.set_num_threads(1)
    english, german = load_pairs("multi30k", "en", "de", "train")
    largest = max(pairs for pairs, *_ in PARTS.values())
    tokenizer = Tokenizer.train(english[:largest] + german[:largest], VOCAB_SIZE)

    def encode(english: list[str], german: list[str]) -> list:
        lines = zip(english, german, strict=True)
        return [(tokenizer.encode(en), tokenizer.encode(de)) for en, de in lines]

    trained_on = encode(english[:largest], german[:largest])
    sources, references = load_pairs("multi30k", "en", "de", "val")
    held_out = encode(sources, references)
    validation = length_batches(held_out, 1000, 0)
    again = length_batches(trained_on[:SEEN_AGAIN], 1000, 0)

    def translate(model: Transformer) -> list[str]:
        eos_id = model.config.eos_id
        lines = []
        for start in range(0, len(held_out), 256):
            rows = [src + [eos_id] for src, _ in held_out[start : start + 256]]
            lines += greedy_search(model, pad(rows, model.config.pad_id))
        return [tokenizer.decode(line) for line in lines]

    def run(part: str, smoothing: float, dropout: float, seed: int) -> dict:
        torch.manual_seed(seed)
        model = Transformer(TransformerConfig(VOCAB_SIZE, dropout=dropout, **SHAPE))
        adam = torch.optim.Adam(
            model.parameters(), betas=(0.9, 0.98), eps=1e-9, fused=True
        )
        scale = PEAK / learning_rate(WARMUP, SHAPE["d_model"], WARMUP)
        order, curve = [], []
        for step in range(1, n_steps + 1):
            if not order:
                epoch_seed = 1000 * seed + step  # another order in each epoch
                order = length_batches(trained_on[:n_pairs], max_tokens, epoch_seed)
            batch = order.pop()
            rate = scale * learning_rate(step, SHAPE["d_model"], WARMUP)
            adam.param_groups[0]["lr"] = rate
            logits = model(batch.src, batch.tgt)
            total = label_smoothed_cross_entropy(logits, batch.labels, smoothing, 0)
            loss = total / (batch.labels != 0).sum()
            adam.zero_grad()
            loss.backward()
            adam.step()
            if part == "dropout" and step % LOOK_EVERY == 0:
                losses = loss_of(model, again), loss_of(model, validation)
                curve.append([step, *(round(value, 4) for value in losses)])
        result = {
            "curve": curve,  # step, loss on trained pairs, on the validation set
            "validation": describe(*answers(model, validation)),
            "trained_on": describe(*answers(model, again)),
        }
        if part == "smoothing":
            score = bleu(translate(model), references)
            result |= {"bleu": round(score.value, 2), "signature": score.signature}
        return result

    cases = [
        {"part": part, "smoothing": smoothing, "dropout": dropout, "seed": seed}
        for smoothing, dropout in settings
        for seed in SEEDS
    ]
    contents = {
        "seeds": SEEDS,
        "vocab_size": VOCAB_SIZE,
        "peak": PEAK,
        "warmup": WARMUP,
        "shape": SHAPE,
        "pairs": n_pairs,
        "max_tokens": max_tokens,
        "steps": n_steps,
        "runs": run_all(cases, run, record),
    }
    command = f"python benchmarks/regularization.py {part}"
    write_record(record, command, contents, ("sentencepiece", "sacrebleu"))


if __name__ == "__main__":
    main()
