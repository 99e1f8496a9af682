"""Measure whether a converted model translates as the model does.

    python benchmarks/conversion.py --model runs/en-de

translates the 1,000 sentences of test_2016_flickr with the model, with CTranslate2 in
float32 and int8 and with onnxruntime, and counts the translations that are the same.
Beams are compared without a length penalty, since CTranslate2 has another, and with at
least one piece, since it never gives an empty translation. Processor time is taken of
one pass of each, on one thread, in batches of 64. Writes
book/records/conversion_multi30k.json.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path

import ctranslate2
import torch
from recording import ONE_CORE, ROOT, origin, save

from annotated_transformer import Translator
from annotated_transformer.corpora import load_pairs
from annotated_transformer.evaluation import bleu
from annotated_transformer.interop import OnnxTranslator, to_ctranslate2, to_onnx

SPLIT, BATCH, BEAMS = "test_2016_flickr", 64, (1, 4)


def of_ctranslate2(translator, folder, quantization):
    """A function that translates lines with a beam."""
    to_ctranslate2(translator, folder, quantization)
    kind = quantization or "float32"
    other = ctranslate2.Translator(str(folder), compute_type=kind, intra_threads=1)
    tokenizer = translator.tokenizer

    def translate(lines, beam):
        results = other.translate_batch(
            [tokenizer.pieces(line) for line in lines],
            max_batch_size=BATCH,
            beam_size=beam,
            length_penalty=0,
        )
        ids = tokenizer.processor.piece_to_id
        return [tokenizer.decode(ids(one.hypotheses[0])) for one in results]

    return translate


def size(folder: Path) -> int:
    """Bytes of the weights."""
    files = [path for path in folder.iterdir() if path.suffix in (".bin", ".onnx")]
    return sum(path.stat().st_size for path in files)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument(
        "--record", type=Path, default=ROOT / "book/records/conversion_multi30k.json"
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    translator = Translator.from_pretrained(arguments.model)
    lines, references = load_pairs("multi30k", "en", "de", SPLIT)
    scratch = Path(tempfile.mkdtemp())
    to_onnx(translator, scratch / "onnx")
    onnx = OnnxTranslator(scratch / "onnx")
    ways = {
        "here": lambda lines, beam: translator.translate(
            lines, BATCH, beam, alpha=0.0, **({"min_length": 1} if beam > 1 else {})
        ),
        "CTranslate2": of_ctranslate2(translator, scratch / "ct2", None),
        "CTranslate2 int8": of_ctranslate2(translator, scratch / "int8", "int8"),
        "onnxruntime": lambda lines, beam: onnx.translate(lines, BATCH),
    }
    sizes = {
        "here": (arguments.model / "model.safetensors").stat().st_size,
        "CTranslate2": size(scratch / "ct2"),
        "CTranslate2 int8": size(scratch / "int8"),
        "onnxruntime": size(scratch / "onnx"),
    }
    rows, expected = [], {}
    for name, translate in ways.items():
        for beam in BEAMS if name != "onnxruntime" else (1,):
            translate(lines[:BATCH], beam)  # whatever is done only once
            started = time.process_time()
            outputs = translate(lines, beam)
            seconds = time.process_time() - started
            ours = expected.setdefault(beam, outputs)
            differ = [i for i in range(len(lines)) if outputs[i] != ours[i]]
            row = {
                "runtime": name,
                "beam": beam,
                "same": len(lines) - len(differ),
                "bleu": round(bleu(outputs, references).value, 2),
                "cpu_seconds": round(seconds, 2),
                "megabytes": round(sizes[name] / 1e6, 2),
            }
            print(*row.values(), flush=True)
            scored = [
                translator.score([lines[i]] * 2, [ours[i], outputs[i]]) for i in differ
            ]
            row["different"] = [
                {
                    "line": i + 1,
                    "here": ours[i],
                    "there": outputs[i],
                    "log_p": [round(value, 3) for value in pair],
                }
                for i, pair in list(zip(differ, scored, strict=True))[:20]
            ]
            rows.append(row)
    run = json.loads((arguments.model / "record.json").read_text(encoding="utf-8"))
    command = f"python benchmarks/conversion.py --model {arguments.model}"
    packages = "torch", "ctranslate2", "onnx", "onnxruntime", "sacrebleu"
    record = {
        **origin(command, packages, ONE_CORE),
        "model": {"command": run["command"], "parameters": run["parameters"]},
        "sentences": len(lines),
        "split": SPLIT,
        "batch": BATCH,
        "rows": rows,
    }
    save(arguments.record, record)


if __name__ == "__main__":
    main()
