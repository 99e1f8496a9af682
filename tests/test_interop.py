"""Conversion: the same translations in CTranslate2 and onnxruntime."""

import importlib
import json

import ctranslate2
import pytest
import torch

from annotated_transformer import Transformer, TransformerConfig, Translator, cli
from annotated_transformer.interop import OnnxTranslator, to_ctranslate2, to_onnx
from annotated_transformer.tokenizer import Tokenizer

LINES = [
    "A dog runs through the grass.",
    "Two men sit on a bench and talk.",
    "A child looks at a red balloon!",
    "Nobody is here.",
    "Ein Hund rennt durch das Gras.",
    "Zwei Männer sitzen auf einer Bank.",
    "Über",
]


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(LINES, 300)


def make(tokenizer, **changes):
    torch.manual_seed(0)
    sizes = {"d_model": 16, "n_layers": 2, "n_heads": 2, "d_ff": 32, "max_length": 120}
    config = TransformerConfig(tokenizer.vocab_size, **{**sizes, **changes})
    model = Transformer(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)  # outputs that depend on the input
        # Left to itself, such a model would choose what must never be chosen.
        model.embedding.weight[[config.pad_id, config.bos_id]] *= 3
    return Translator(model, tokenizer)


SHAPES = {
    "the paper's": {},
    "pre-norm": {"norm": "pre"},
    "learned positions": {"positions": "learned"},
    "pre-norm, learned, one head": {
        "norm": "pre",
        "positions": "learned",
        "n_heads": 1,
    },
}


@pytest.mark.parametrize("shape", SHAPES)
def test_ctranslate2_gives_the_same(tokenizer, tmp_path, shape):
    translator = make(tokenizer, **SHAPES[shape])
    to_ctranslate2(translator, tmp_path)
    other = ctranslate2.Translator(str(tmp_path), intra_threads=1)
    sources = [tokenizer.pieces(line) for line in LINES]
    found = translator.n_best(LINES, beam_size=1)
    expected = [tokenizer.processor.id_to_piece(best.tokens) for (best,) in found]
    results = other.translate_batch(
        sources, beam_size=1, max_decoding_length=40, min_decoding_length=0
    )
    assert [one.hypotheses[0] for one in results] == [some[:40] for some in expected]
    assert len({tuple(some) for some in expected}) > 4
    targets = [tokenizer.pieces(line) for line in reversed(LINES)]
    scores = other.score_batch(sources, targets)
    expected = among_what_may_be_chosen(translator, LINES, LINES[::-1])
    assert [sum(one.log_probs) for one in scores] == pytest.approx(expected, abs=2e-3)


def among_what_may_be_chosen(translator, lines, outputs):
    """log p of each output where padding and bos have probability zero."""
    encode, log_probs = translator.tokenizer.encode, []
    for line, output in zip(lines, outputs, strict=True):
        src, tgt = (
            torch.tensor([[*encode(line), 2]]),
            torch.tensor([[1, *encode(output)]]),
        )
        with torch.no_grad():
            logits = translator.model(src, tgt)[0]  # (T, V)
        logits[:, [0, 1]] = -torch.inf
        labels = [*encode(output), 2]
        log_p = logits.log_softmax(dim=-1)[range(len(labels)), labels]
        log_probs.append(log_p.sum().item())
    return log_probs


def test_ctranslate2_refuses_what_it_does_not_have(tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"d_k is 6: CTranslate2 takes .* \(8\) only"):
        to_ctranslate2(make(tokenizer, d_k=6), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("quantization", [None, "int8", "float16"])
def test_converting_leaves_the_model_as_it_was(tokenizer, tmp_path, quantization):
    translator = make(tokenizer)
    before = {n: value.clone() for n, value in translator.model.state_dict().items()}
    to_ctranslate2(translator, tmp_path, quantization)
    for name, value in translator.model.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("quantization, least", [("float16", 7), ("int8", 3)])
def test_ctranslate2_in_fewer_bits(tokenizer, tmp_path, quantization, least):
    """Smaller, and close: half precision changes hardly anything, 8 bits a little."""
    translator = make(tokenizer, d_model=64, d_ff=128)
    sizes, outputs = [], []
    for kind in (None, quantization):
        to_ctranslate2(translator, tmp_path / str(kind), kind)
        sizes.append((tmp_path / str(kind) / "model.bin").stat().st_size)
        other = ctranslate2.Translator(
            str(tmp_path / str(kind)), compute_type="float32"
        )
        sources = [tokenizer.pieces(line) for line in LINES]
        results = other.translate_batch(sources, max_decoding_length=40)
        outputs.append([one.hypotheses[0][0] for one in results])
    assert sizes[1] < 0.7 * sizes[0]
    assert sum(a == b for a, b in zip(*outputs, strict=True)) >= least


@pytest.mark.parametrize(
    "changes", [{}, {"norm": "pre", "positions": "learned"}, {"d_k": 6, "d_v": 4}]
)
def test_onnx_gives_the_same(tokenizer, tmp_path, changes):
    translator = make(tokenizer, **changes)
    to_onnx(translator, tmp_path)
    other = OnnxTranslator(tmp_path)
    lines = [*LINES, "", LINES[0], " "]
    expected = translator.translate(lines)
    assert len(set(expected)) > 4
    for batch_size in (1, 3, 64):
        assert other.translate(lines, batch_size) == expected
    assert other.translate([]) == []


def test_onnx_takes_and_refuses_what_the_translator_does(tokenizer, tmp_path):
    translator = make(tokenizer)
    translator.model.train()
    to_onnx(translator, tmp_path)
    assert translator.model.training
    other, sources = OnnxTranslator(tmp_path), []
    search = other.search
    other.search = lambda group: sources.extend(group) or search(group)
    ends = [f"{line}\r\n" for line in LINES]
    assert other.translate(ends) == translator.translate(ends)
    assert sorted(sources) == sorted(map(tokenizer.encode, LINES))
    long = [LINES[0], "a " * 80]
    for each in (translator, other):
        with pytest.raises(TypeError, match="hand over a list"):
            each.translate("Hi")
        with pytest.raises(ValueError, match="line 2: .* more than the 70 the model"):
            each.translate(long)
        with pytest.raises(ValueError, match="batch_size is 0"):
            each.translate(LINES, 0)


@pytest.mark.parametrize("convert", [to_onnx, to_ctranslate2])
def test_an_ensemble_is_not_converted_in_part(tokenizer, tmp_path, convert):
    both = Translator(make(tokenizer).model, tokenizer, [make(tokenizer).model])
    with pytest.raises(ValueError, match="an ensemble is several models"):
        convert(both, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_the_first_logits_of_onnx(tokenizer, tmp_path):
    translator = make(tokenizer)
    to_onnx(translator, tmp_path)
    other, seen = OnnxTranslator(tmp_path), []
    run = other.decoder.run
    other.decoder = type(
        "Spy",
        (),
        {
            "get_inputs": other.decoder.get_inputs,
            "run": lambda _, names, fed: seen.append(run(names, fed)) or seen[-1],
        },
    )()
    (ids,) = other.search([tokenizer.encode(LINES[1])])
    src = torch.tensor([[*tokenizer.encode(LINES[1]), 2]])
    with torch.no_grad():
        logits = translator.model(src, torch.tensor([[1, *ids]]))[0]  # (T, V)
    assert len(seen) >= len(ids)
    for step, (said, *_) in enumerate(seen):
        said = torch.from_numpy(said[0])
        assert (said[:2] < -5000).all()
        assert torch.allclose(said[2:], logits[step, 2:], atol=1e-3)


@pytest.mark.parametrize("package", ["ctranslate2", "onnx", "onnxruntime"])
def test_what_is_not_installed_is_said_with_the_way_to_get_it(
    tokenizer, tmp_path, monkeypatch, package
):
    found = importlib.import_module

    def missing(name):
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return found(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    use = {
        "ctranslate2": lambda: to_ctranslate2(make(tokenizer), tmp_path / "out"),
        "onnx": lambda: to_onnx(make(tokenizer), tmp_path / "out"),
        "onnxruntime": lambda: OnnxTranslator(tmp_path / "out"),
    }
    with pytest.raises(
        RuntimeError, match=rf"{package}\S* is not .*transformer\[serve"
    ):
        use[package]()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("to", ["ctranslate2", "onnx"])
def test_the_command_converts(tokenizer, tmp_path, to, capfd):
    make(tokenizer).save_pretrained(tmp_path / "model")
    out = tmp_path / "out"
    command = ["convert", "--model", str(tmp_path / "model"), "--to", to]
    assert cli.main([*command, "--out", str(out)]) == 0
    there = {path.name: path.read_bytes() for path in out.iterdir()}
    weights = {"ctranslate2": {"model.bin"}, "onnx": {"encoder.onnx", "decoder.onnx"}}
    assert there.keys() >= {"tokenizer.model", "config.json"} | weights[to]
    assert json.loads(there["config.json"])
    capfd.readouterr()
    assert cli.main([*command, "--out", str(out)]) == 1
    assert f"{out} is not empty: choose another --out" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == there


def test_the_command_refuses(tokenizer, tmp_path, capfd):
    make(tokenizer).save_pretrained(tmp_path / "model")
    out = ["--out", str(tmp_path / "out")]
    model = ["convert", "--model", str(tmp_path / "model"), *out]
    for arguments, code, message in (
        ([*model, "--to", "tflite"], 2, "invalid choice: 'tflite'"),
        ([*model, "--to", "onnx", "--quantization", "int8"], 1, "is for ctranslate2"),
        (
            ["convert", "--model", "none", *out, "--to", "onnx"],
            1,
            "none: no such folder",
        ),
    ):
        assert cli.main(arguments) == code
        err = capfd.readouterr().err
        assert err.startswith("annotated-transformer: ") and err.count("\n") == 1
        assert message in err and not (tmp_path / "out").exists()
