"""The measurements of a GPU, tried at small size: benchmarks/gpu.py."""

import gzip
import json
import os
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from annotated_transformer.corpora import DATA_VARIABLE

ROOT = Path(__file__).resolve().parent.parent
TRIAL = {"part": "attention", "kernel": "fused_attention", "lengths": [16]}


@pytest.fixture(autouse=True, scope="module")
def gpu():
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import gpu

    yield gpu
    sys.path.remove(str(ROOT / "benchmarks"))


@pytest.fixture
def nothing_installed(gpu, monkeypatch):
    monkeypatch.setattr(gpu, "find_spec", lambda package: None)


def test_a_trial_measures_every_part(gpu, nothing_installed, tmp_path, capsys):
    gpu.main([str(tmp_path), "--small", "--device", "cpu"])
    record = json.loads((tmp_path / "gpu_cpu_small.json").read_text(encoding="utf-8"))
    assert record["small"] is True and record["device"].endswith("CPU")
    assert {"python", "torch", "transformers"} <= record["versions"].keys()
    assert {run["part"] for run in record["runs"]} == set(gpu.PARTS)
    for run in record["runs"]:
        if run["part"] == "device":
            assert set(run["tflops"]) == {"float32", "bfloat16"}
            assert min(*run["tflops"].values(), run["copy_gb_per_second"]) > 0
        elif run["part"] == "training":
            assert [row["tokens"] for row in run["rows"]] == run["tokens"]
            wanted = "step_ms", "tflops", "source_per_second", "target_per_second"
            assert all(row[name] > 0 for row in run["rows"] for name in wanted)
        elif run["part"] == "decoding":
            (row,) = run["rows"]
            assert row["tokens_per_second"] == pytest.approx(
                5 * row["sentences_per_second"], rel=0.01
            )
        else:
            assert all(min(row["ms"], row["kept_mib"]) > 0 for row in run["rows"])
    printed = capsys.readouterr().out
    for name in ("base, this package, eager", "big, nn.Transformer, eager", "beam 4"):
        assert name in printed
    assert "decoding, base, Hugging Face, beam 1: transformers is not installed" in (
        printed.splitlines()
    )
    assert ["training, big, Marian, SDPA, eager", "transformers is not installed"] in (
        record["missing"]
    )
    assert "paper_hours" not in record["summary"]["base"], "nothing of a trial"


def test_one_that_breaks_loses_nothing_and_is_tried_again(gpu, tmp_path):
    cases = [TRIAL | {"lengths": [n]} for n in (1, 2, 3)]
    path, asked = tmp_path / "x.json", []

    def run(**case):
        asked.append(case["lengths"])
        if case["lengths"] == [2] and len(asked) < 4:
            raise gpu.Broken("its process ended with -9")
        return {"rows": case["lengths"]}

    later = time.monotonic() + 60
    done, missing = gpu.run_cases(cases, run, path, later)
    assert [each["rows"] for each in done] == [[1], [3]]
    assert missing == [("attention, fused_attention", "its process ended with -9")]
    done, missing = gpu.run_cases(cases, run, path, later)
    assert asked == [[1], [2], [3], [2]], "only what was missing"
    assert [each["rows"] for each in done] == [[1], [2], [3]] and missing == []


def test_a_command_that_is_killed_goes_on(gpu, tmp_path):
    cases, later = gpu.plan(small=True), time.monotonic() + 60
    cases = [case for case in cases if case["part"] == "attention"]

    def killed(**case):
        if case["kernel"] == "fused_attention":
            raise KeyboardInterrupt
        return {"rows": []}

    with pytest.raises(KeyboardInterrupt):
        gpu.run_cases(cases, killed, tmp_path / "x.json", later)
    asked = []

    def run(**case):
        asked.append(case["kernel"])
        return {"rows": []}

    done, _ = gpu.run_cases(cases, run, tmp_path / "x.json", later)
    assert asked == ["fused_attention"] and len(done) == 2


def test_nothing_starts_when_the_time_is_over(gpu, tmp_path):
    def run(**case):
        raise AssertionError("started")

    over = time.monotonic() - 1
    done, missing = gpu.run_cases([TRIAL], run, tmp_path / "x.json", over)
    assert done == []
    assert missing == [("attention, fused_attention", "left for the next command")]


def test_a_process_that_ends_badly_is_said_so(gpu, monkeypatch):
    monkeypatch.setattr(gpu.sys, "executable", "false")
    with pytest.raises(gpu.Broken, match="ended with 1"):
        gpu.measure_apart(TRIAL, "cpu", 60)


def row(tokens, ms, tflops, target):
    return {
        "tokens": tokens,
        "step_ms": ms,
        "tflops": tflops,
        "target_per_second": target,
        "operations": 2e12,
    }


def test_what_the_rows_come_to(gpu):
    def trained(system, *rows, **more):
        case = {"part": "training", "model": "base", "compiled": True, "small": False}
        return case | {"system": system, "rows": list(rows)} | more

    out = {"tokens": 50_000, "out_of_memory": True}
    runs = [
        {"part": "device", "tflops": {"bfloat16": 400.0, "float32": 50.0}},
        trained(
            "this package",
            row(12_500, 15.0, 150.0, 800_000),
            row(25_000, 27.0, 200.0, 900_000),
            out,
            watts=500.0,
        ),
        trained("Marian, SDPA", row(12_500, 30.0, 100.0, 450_000)),
        {
            "part": "decoding",
            "system": "this package",
            "beam": 4,
            "rows": [{"tokens_per_second": 900}, {"tokens_per_second": 600}],
        },
        {
            "part": "decoding",
            "system": "Hugging Face",
            "beam": 4,
            "rows": [{"tokens_per_second": 300}],
        },
    ]
    summary = gpu.summarise(runs)
    key = ["base", "this package", True, 25_000]
    assert [*key, 0.5] in summary["share_of_matrix_rate"]
    assert len(summary["share_of_matrix_rate"]) == 3
    assert summary["base"] == {
        "best_target_per_second": 900_000,
        "paper_hours": 0.75,  # 100,000 steps of 27 ms
        "paper_operations": 2e17,
        "paper_kilowatt_hours": 0.38,  # of 500 W
        "times Marian, SDPA": 2.0,
    }
    assert summary["decoding, beam 4"] == 3.0
    assert "big" not in summary and "decoding, beam 1" not in summary


def test_the_operations_are_six_a_parameter_and_token(gpu):
    size = gpu.MODELS["base"]._replace(vocab_size=1000)
    one = torch.tensor([[5]])
    counted = gpu.describe(gpu.Batch(one, one, one), 0, size)["operations"]
    model = gpu.ours(gpu.SPECIAL, size).model
    matrices = sum(p.numel() for p in model.parameters() if p.dim() == 2)
    pairs = 3 * size.n_layers  # one position looks at one: three attentions a layer
    assert counted == 6 * matrices + 12 * size.d_model * pairs


def test_the_step_is_that_of_training(gpu):
    size = gpu.SMALL["base"]._replace(dropout=0.0)
    data, case = {"special": gpu.SPECIAL, "size": size}, {"compiled": False}
    (batch,) = gpu.batches_of(128, size, 1)
    here = gpu.Update(case, data, "cpu")
    there = gpu.Step(case | {"system": "this package", "bfloat16": True}, data, "cpu")
    tokens = int((batch.labels != 0).sum())
    first, mean = float(here(batch)), float(there(batch))
    assert first == pytest.approx(mean * tokens, rel=1e-4)
    assert float(here(batch)) < first


def test_what_is_kept_for_the_backward_pass(gpu):
    n, kept = 512, {}
    for name, attend in gpu.KERNELS.items():
        parts = [torch.randn(1, 8, n, 64, requires_grad=True) for _ in range(3)]
        kept[name] = gpu.kept(lambda a=attend, p=parts: a(*p))
    inputs = 3 * 8 * n * 64 * 4 / 2**20
    scores = 8 * n * n * 4 / 2**20
    assert kept["the definition"] == pytest.approx(inputs + scores, rel=0.01)
    assert inputs < kept["fused_attention"] < 2 * inputs


def test_the_full_plan_is_the_papers(gpu):
    full = gpu.plan(small=False)
    training = [case for case in full if case["part"] == "training"]
    assert {case["tokens"][-1] for case in training} == {25_000}
    assert {case["compiled"] for case in training} == {True, False}
    (ours, *_) = [case for case in training if case["model"] == "big"]
    assert ours["system"] == "this package" and ours["compiled"]
    sweep = [case["lengths"] for case in full if case["part"] == "attention"]
    assert sweep == [[128, 256, 512, 1024, 2048, 4096, 8192]] * 2
    assert len({json.dumps(case) for case in full}) == len(full)


def test_sentences_are_as_long_as_those_of_wmt14(gpu):
    folder = Path(os.environ.get(DATA_VARIABLE, ""), "wmt_train_slice_10k")
    if DATA_VARIABLE not in os.environ or not folder.is_dir():
        pytest.skip("the slice of WMT14 is not in the data folder")
    words = []
    for language in ("en", "de"):
        with gzip.open(folder / f"train.tok.{language}.gz", "rt") as lines:
            words.append([len(line.split()) for line in lines])
    real = np.array([pair for pair in zip(*words, strict=True) if all(pair)])
    made = gpu.lengths_like_wmt14(10_000, seed=0)
    for sides in (real, made):  # pieces are more than words, the shape is the same
        logs = np.log(sides)
        assert statistics.pstdev(logs[:, 0]) == pytest.approx(0.53, abs=0.02)
        assert np.corrcoef(logs.T)[0, 1] == pytest.approx(0.88, abs=0.02)
    ratio = np.median(made, axis=0) / np.median(real, axis=0)
    assert ((1.1 < ratio) & (ratio < 1.3)).all()
