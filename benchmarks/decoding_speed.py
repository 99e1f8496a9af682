"""Race this package's translation against Hugging Face's and CTranslate2's.

    python benchmarks/decoding_speed.py

The same weights in every system: this package in float32, in bfloat16 and with 8-bit
integers in its linear layers; MarianMTModel with `generate`, with torch's attention
kernel and without (where transformers is installed); CTranslate2 in float32 and int8
(where it is). Two kinds of work: random weights of one size, whose outputs are all 16
tokens long; and the thousand sentences of Multi30k's test_2016_flickr with a model that
ships with the package, which end where they end. Beams of 1 and 4, without length
penalty, since each system has another.

Each system has a process of its own. First each tries how many sentences to take at a
time, and whether the cores share each group of sentences or have a group each; its best
is what counts. Then the systems take their turns, a pass over all sentences each,
--rounds times. The first translation of a process, model in memory, and a warm one of a
single sentence are timed too. Writes book/records/decoding_speed_cpu.json; about 20
minutes on two cores.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from itertools import product
from pathlib import Path

import torch
from recording import ROOT, origin, save
from torch import Tensor, nn

from annotated_transformer import Transformer, TransformerConfig, Translator
from annotated_transformer.batching import pad
from annotated_transformer.corpora import load_pairs
from annotated_transformer.decoding import beam_search, greedy_search
from annotated_transformer.evaluation import bleu
from annotated_transformer.interop import NEVER, to_ctranslate2
from annotated_transformer.layers import LAYER_NORM_EPS
from annotated_transformer.tokenizer import Tokenizer

SIZE = {"d_model": 256, "n_layers": 3, "d_ff": 1024, "n_heads": 8}
VOCAB_SIZE, LENGTH = 8000, 16
SPLIT, BATCHES, ALONE = "test_2016_flickr", (32, 100, 200), 20
TRIED = 400  # sentences in a pass that only looks for the best setting
JOBS = [f"{work} {beam}" for work in ("fixed", "real") for beam in (1, 4)]
SYSTEMS = {
    "here, float32": None,
    "here, bfloat16": None,
    "here, int8": None,
    "Hugging Face, float32": "transformers",
    "Hugging Face eager, float32": "transformers",
    "Hugging Face eager, bfloat16": "transformers",
    "CTranslate2, float32": "ctranslate2",
    "CTranslate2, int8": "ctranslate2",
}


# Systems: each is made of a folder and translates lists of ids, so many tokens longer


class System:
    """What they share: groups of sentences, one after the other or side by side."""

    device = "cpu"

    def to(self, device: str) -> "System":
        """Move its model."""
        self.device = device
        self.model.to(device)
        return self

    def translate(
        self, ids: list[list[int]], beam: int, extra: int, workers: int, batch: int
    ) -> list[list[int]]:
        """Outputs of all sentences in their order."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]), reverse=True)
        groups = [order[i : i + batch] for i in range(0, len(order), batch)]
        threads = torch.get_num_threads()

        def work(group: list[int]) -> list[list[int]]:
            return self([ids[i] for i in group], beam, extra)

        if workers == 1:
            found = [work(group) for group in groups]
        else:
            share = (threads // workers,)
            with ThreadPoolExecutor(workers, "", torch.set_num_threads, share) as pool:
                found = list(pool.map(work, groups))
            torch.set_num_threads(threads)
        outputs: list[list[int]] = [[] for _ in ids]
        for group, several in zip(groups, found, strict=True):
            for i, output in zip(group, several, strict=True):
                outputs[i] = output
        return outputs


def model_of(source: Path | Transformer) -> Transformer:
    """A model, or the one in a folder."""
    if isinstance(source, Transformer):
        return source
    return Translator.from_pretrained(source).model


class Here(System):
    """This package. kind: of the numbers that it computes with."""

    def __init__(self, source: Path | Transformer, kind: str) -> None:
        self.model = model_of(source)
        self.config = self.model.config
        if kind == "bfloat16":
            self.model.bfloat16()
        elif kind == "int8":
            # torch's own form of this is on its way out
            warnings.simplefilter("ignore")
            self.model = torch.ao.quantization.quantize_dynamic(self.model, {nn.Linear})

    def __call__(self, group: list[list[int]], beam: int, extra: int) -> list:
        config = self.config
        src = pad([[*ids, config.eos_id] for ids in group], config.pad_id)
        src = src.to(self.device)
        if beam == 1:
            return greedy_search(self.model, src, extra)
        options = {"alpha": 0.0, "extra_length": extra}
        found = beam_search(self.model, src, beam, **options)
        return [best.tokens for (best,) in found]


class HuggingFace(System):
    """MarianMTModel, filled with the weights of a model of this package."""

    implementation = "sdpa"

    def __init__(self, source: Path | Transformer, kind: str) -> None:
        from transformers import MarianConfig, MarianMTModel

        model = model_of(source)
        c = self.config = model.config
        stacks = {
            f"{stack}_{name}": value
            for stack in ("encoder", "decoder")
            for name, value in (
                ("layers", c.n_layers),
                ("attention_heads", c.n_heads),
                ("ffn_dim", c.d_ff),
            )
        }
        self.model = MarianMTModel(
            MarianConfig(
                vocab_size=c.vocab_size,
                d_model=c.d_model,
                **stacks,
                activation_function="relu",
                max_position_embeddings=c.max_length,
                pad_token_id=c.pad_id,
                bos_token_id=c.bos_id,
                eos_token_id=c.eos_id,
                forced_eos_token_id=None,
                decoder_start_token_id=c.bos_id,
                scale_embedding=True,
                share_encoder_decoder_embeddings=True,
                tie_word_embeddings=True,
                attn_implementation=self.implementation,
            )
        ).eval()
        with torch.no_grad():
            self.fill(model)
        self.model.to(getattr(torch, kind))

    def fill(self, model: Transformer) -> None:
        marian, c = self.model.model, self.config
        marian.shared.weight.copy_(model.embedding.weight)
        self.model.final_logits_bias[0, [c.pad_id, c.bos_id]] = NEVER
        for theirs, ours in (
            (marian.encoder, model.encoder),
            (marian.decoder, model.decoder),
        ):
            theirs.embed_positions.weight.copy_(model.positions.table)
            for there, here in zip(theirs.layers, ours.layers, strict=True):
                norms = [there.self_attn_layer_norm, there.final_layer_norm]
                self.attention(there.self_attn, here.self_attention.w_qkv.weight)
                there.self_attn.out_proj.weight.copy_(here.self_attention.w_o.weight)
                there.self_attn.out_proj.bias.zero_()
                if hasattr(there, "encoder_attn"):
                    norms.insert(1, there.encoder_attn_layer_norm)
                    cross = here.cross_attention
                    packed = torch.cat([cross.w_q.weight, cross.w_kv.weight])
                    self.attention(there.encoder_attn, packed)
                    there.encoder_attn.out_proj.weight.copy_(cross.w_o.weight)
                    there.encoder_attn.out_proj.bias.zero_()
                for linear, w in (("fc1", "w_1"), ("fc2", "w_2")):
                    state = getattr(here.feed_forward, w).state_dict()
                    getattr(there, linear).load_state_dict(state)
                for norm, residual in zip(norms, here.residuals, strict=True):
                    norm.load_state_dict(residual.norm.state_dict())
                    norm.eps = LAYER_NORM_EPS

    def attention(self, there: nn.Module, packed: Tensor) -> None:
        for name, weight in zip("qkv", packed.chunk(3), strict=True):
            projection = getattr(there, f"{name}_proj")
            projection.weight.copy_(weight)
            projection.bias.zero_()

    @torch.inference_mode()
    def __call__(self, group: list[list[int]], beam: int, extra: int) -> list:
        c = self.config
        src = pad([[*ids, c.eos_id] for ids in group], c.pad_id).to(self.device)
        found = self.model.generate(
            input_ids=src,
            attention_mask=(src != c.pad_id).long(),
            num_beams=beam,
            do_sample=False,
            length_penalty=0.0,
            max_new_tokens=max(map(len, group)) + extra,
        )
        special = c.pad_id, c.bos_id, c.eos_id
        return [[i for i in ids if i not in special] for ids in found.tolist()]


class HuggingFaceEager(HuggingFace):
    """The same without torch's attention kernel."""

    implementation = "eager"


class CTranslate2(System):
    """The converted model; kind: of its matrix products."""

    def __init__(self, folder: Path, kind: str) -> None:
        translator = Translator.from_pretrained(folder)
        self.processor, self.kind = translator.tokenizer.processor, kind
        self.folder, self.loaded = Path(tempfile.mkdtemp()), {}
        quantization = None if kind == "float32" else kind
        to_ctranslate2(translator, self.folder, quantization)

    def with_workers(self, workers: int):
        """The engine, with its cores divided among so many workers."""
        import ctranslate2

        if workers not in self.loaded:
            share = torch.get_num_threads() // workers
            threads = {"inter_threads": workers, "intra_threads": share}
            self.loaded[workers] = ctranslate2.Translator(
                str(self.folder), compute_type=self.kind, **threads
            )
        return self.loaded[workers]

    def translate(
        self, ids: list[list[int]], beam: int, extra: int, workers: int, batch: int
    ) -> list[list[int]]:
        """As `System.translate`; it makes its groups itself."""
        results = self.with_workers(workers).translate_batch(
            [self.processor.id_to_piece(of_one) for of_one in ids],
            beam_size=beam,
            length_penalty=0,
            max_batch_size=batch,
            max_decoding_length=max(map(len, ids)) + extra,
        )
        return [self.processor.piece_to_id(one.hypotheses[0]) for one in results]


CLASSES = {
    "here": Here,
    "Hugging Face": HuggingFace,
    "Hugging Face eager": HuggingFaceEager,
    "CTranslate2": CTranslate2,
}


# One process for each system


def serve(name: str, folder: Path, threads: int) -> None:
    """Answer each line, a kind of work and its options, with outputs and seconds."""
    torch.set_num_threads(threads)
    family, kind = name.split(", ")
    out = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever libraries print goes to standard error
    systems = {work: CLASSES[family](folder / work, kind) for work in ("fixed", "real")}
    data = json.loads((folder / "data.json").read_text(encoding="utf-8"))
    alone = []
    for _ in range(1 + ALONE):
        before = time.perf_counter()
        systems["real"].translate(data["real"]["ids"][:1], 4, 50, 1, 1)
        alone.append(time.perf_counter() - before)
    warm = statistics.median(alone[1:])
    out.write(json.dumps({"first": alone[0], "warm": warm}) + "\n")
    for line in sys.stdin:
        job, n, workers, batch = json.loads(line)
        work, beam = job.split()
        given = data[work]["ids"][:n], int(beam), data[work]["extra"], workers, batch
        started = time.perf_counter()
        outputs = systems[work].translate(*given)
        seconds = time.perf_counter() - started
        out.write(json.dumps({"outputs": outputs, "seconds": seconds}) + "\n")


class Process:
    """The process of one system, asked for one pass at a time."""

    def __init__(self, name: str, folder: Path, threads: int) -> None:
        command = [sys.executable, __file__, "--serve", name, str(folder)]
        command += ["--threads", str(threads)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self.name, self.process = name, subprocess.Popen(command, **pipes)
        self.alone = self.answer()

    def answer(self) -> dict:
        line = self.process.stdout.readline()
        return json.loads(line) if line else sys.exit(f"{self.name} broke off")

    def ask(self, job: str, n: int | None, workers: int, batch: int) -> dict:
        said = json.dumps([job, n, workers, batch])
        print(said, file=self.process.stdin, flush=True)
        return self.answer()

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait()


def prepare(folder: Path, trained: str, n: int) -> dict:
    """Both models, and the ids of the sentences; returns what BLEU needs."""
    lines, references = (side[:n] for side in load_pairs("multi30k", "en", "de", SPLIT))
    translator = Translator.from_pretrained(trained)
    translator.save_pretrained(folder / "real")
    real = {"ids": [translator.tokenizer.encode(line) for line in lines], "extra": 50}
    text = load_pairs("multi30k", "en", "de", "train")
    tokenizer = Tokenizer.train([*text[0], *text[1]], VOCAB_SIZE)
    torch.manual_seed(0)
    model = Transformer(TransformerConfig(VOCAB_SIZE, **SIZE))
    with torch.no_grad():
        model.embedding.weight[tokenizer.eos_id].zero_()  # is never the best
    Translator(model, tokenizer).save_pretrained(folder / "fixed")
    sources = torch.randint(4, VOCAB_SIZE, (n, LENGTH - 1)).tolist()
    data = {"real": real, "fixed": {"ids": sources, "extra": 1}}
    (folder / "data.json").write_text(json.dumps(data), encoding="utf-8")
    return {"tokenizer": translator.tokenizer, "references": references}


def race(processes: list[Process], rounds: int, threads: int) -> dict[str, dict]:
    """For each job and system: its best setting, what it said, and its seconds."""
    settings = list(product(sorted({1, threads}), BATCHES))
    results: dict[str, dict] = {job: {} for job in JOBS}
    for job, process in product(JOBS, processes):
        tried = {one: process.ask(job, TRIED, *one)["seconds"] for one in settings}
        workers, batch = min(tried, key=tried.get)
        results[job][process.name] = {"workers": workers, "batch": batch, "seconds": []}
        print(job, process.name, workers, batch, file=sys.stderr, flush=True)
    for _, job, process in product(range(rounds), JOBS, processes):
        result = results[job][process.name]
        answer = process.ask(job, None, result["workers"], result["batch"])
        result["seconds"].append(round(answer["seconds"], 3))
        result["outputs"] = answer["outputs"]
    return results


def describe(found: dict, same_as: list, job: str, real: dict) -> dict:
    """One system's result at one job, as the record has it."""
    outputs, seconds = found.pop("outputs"), found["seconds"]
    found["rate"] = round(len(outputs) / statistics.median(seconds), 1)
    found["same"] = sum(a == b for a, b in zip(outputs, same_as, strict=True))
    found["tokens"] = sum(map(len, outputs))
    if job.startswith("real"):
        texts = [real["tokenizer"].decode(ids) for ids in outputs]
        found["bleu"] = round(bleu(texts, real["references"]).value, 2)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--model", default="tatoeba-en-de", help="trained, English to German"
    )
    parser.add_argument("--sentences", type=int, default=1000, help="of each kind")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS))
    record_path = ROOT / "book/records/decoding_speed_cpu.json"
    parser.add_argument("--record", type=Path, default=record_path)
    parser.add_argument("--serve", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        name, folder = arguments.serve
        return serve(name, Path(folder), arguments.threads)
    folder = Path(tempfile.mkdtemp())
    real, processes = prepare(folder, arguments.model, arguments.sentences), []
    for name in arguments.systems:
        if SYSTEMS[name] and find_spec(SYSTEMS[name]) is None:
            print(f"{name}: not installed", file=sys.stderr)
        else:
            processes.append(Process(name, folder, arguments.threads))
    results = race(processes, arguments.rounds, arguments.threads)
    reference = {job: next(iter(results[job].values()))["outputs"] for job in JOBS}
    rows = []
    for process in processes:
        alone = {name: round(value, 4) for name, value in process.alone.items()}
        row = {"system": process.name} | alone
        for job in JOBS:
            found = results[job][process.name]
            row[job] = describe(found, reference[job], job, real)
        rows.append(row)
        print(process.name, {job: row[job]["rate"] for job in JOBS})
        process.close()
    packages = {SYSTEMS[process.name] for process in processes} - {None}
    record = {
        **origin("python benchmarks/decoding_speed.py", ["torch", *sorted(packages)]),
        "model": arguments.model,
        "threads": arguments.threads,
        "fixed": {**SIZE, "vocab_size": VOCAB_SIZE, "tokens": LENGTH},
        "split": SPLIT,
        "sentences": arguments.sentences,
        "rows": rows,
    }
    save(arguments.record, record)


if __name__ == "__main__":
    main()
