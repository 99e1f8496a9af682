# Written in notebooks/beyond_other_runtimes.ipynb; edit it there.
"""A trained model for other runtimes: CTranslate2, and ONNX (beyond the paper)."""

import importlib
import json
import re
import warnings
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from .attention import padding_mask
from .decoding import evaluating
from .layers import LAYER_NORM_EPS, DecoderCache
from .model import (
    Transformer,
    TransformerConfig,
)
from .tokenizer import Tokenizer
from .translator import (
    CONFIG,
    EXTRA_LENGTH,
    TOKENIZER,
    Translator,
    in_groups,
    text_lines,
    too_long,
)

__all__ = ["to_ctranslate2", "to_onnx", "OnnxTranslator"]


NEVER = -1e4  # added to a logit that is never to be chosen; half precision holds it


def _optional(name: str) -> ModuleType:
    """A package that not everyone has. Raises RuntimeError, saying how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise RuntimeError(
            f"{name} is not installed: pip install 'annotated-transformer[serve]'"
        ) from None


def _transformer(translator: Translator) -> Transformer:
    """Its model. Raises ValueError where there are more, or it is of another kind."""
    if translator.others:
        raise ValueError("an ensemble is several models: convert each by itself")
    if not isinstance(translator.model, Transformer):
        kind = translator.model.config.kind
        raise ValueError(f"a {kind} model: other runtimes take a transformer only")
    return translator.model


def _numpy(x: Tensor) -> np.ndarray:
    """A copy: CTranslate2 computes its 8-bit weights in the place of those it gets."""
    return x.detach().cpu().float().numpy().copy()


def _fill_norm(place, norm: nn.LayerNorm) -> None:
    place.gamma, place.beta = _numpy(norm.weight), _numpy(norm.bias)


def _fill_layer(place, layer: nn.Module) -> None:
    """Put the weights of an encoder or a decoder layer in their place."""
    norms = [residual.norm for residual in layer.residuals]
    own = layer.self_attention
    filled = [(place.self_attention, (own.w_qkv, own.w_o), norms[0])]
    if cross := getattr(layer, "cross_attention", None):
        filled.append((place.attention, (cross.w_q, cross.w_kv, cross.w_o), norms[1]))
    for attention, projections, norm in filled:
        for linear, projection in zip(attention.linear, projections, strict=True):
            linear.weight = _numpy(projection.weight)
        _fill_norm(attention.layer_norm, norm)
    network = layer.feed_forward
    for linear, ours in (
        (place.ffn.linear_0, network.w_1),
        (place.ffn.linear_1, network.w_2),
    ):
        linear.weight, linear.bias = _numpy(ours.weight), _numpy(ours.bias)
    _fill_norm(place.ffn.layer_norm, norms[-1])


def _specification(model: Transformer):
    """A model as CTranslate2 has it. Raises ValueError for one that it has not."""
    config, specs = model.config, _optional("ctranslate2.specs")
    width = config.d_model // config.n_heads
    for name in ("d_k", "d_v"):
        value = getattr(config, name)
        if value not in (None, width):
            raise ValueError(
                f"{name} is {value}: CTranslate2 takes d_model / n_heads ({width}) only"
            )
    pre_norm = config.norm == "pre"
    sizes = config.n_layers, config.n_heads
    spec = specs.TransformerSpec.from_config(*sizes, pre_norm=pre_norm)
    stacks = (spec.encoder, model.encoder), (spec.decoder, model.decoder)
    for place, stack in stacks:
        for empty, layer in zip(place.layer, stack.layers, strict=True):
            _fill_layer(empty, layer)
        place.position_encodings.encodings = _numpy(model.positions.table)
        if pre_norm:
            _fill_norm(place.layer_norm, stack.final_norm)
    weight = _numpy(model.embedding.weight)  # (V, D)
    spec.encoder.embeddings[0].weight = weight
    spec.decoder.embeddings.weight = spec.decoder.projection.weight = weight
    never = np.zeros(config.vocab_size, dtype=np.float32)
    never[[config.pad_id, config.bos_id]] = NEVER
    spec.decoder.projection.bias = never
    return spec


def to_ctranslate2(
    translator: Translator, directory: str | Path, quantization: str | None = None
) -> None:
    """Write a model for CTranslate2, and the tokenizer beside it.

    quantization: "int8", "float16" or another type of CTranslate2's; None: float32.
    Translate with `ctranslate2.Translator(directory).translate_batch(pieces)`, pieces
    being `Tokenizer.pieces` of each sentence. Its length_penalty is not the paper's.
    Raises ValueError for a shape that CTranslate2 does not have, RuntimeError where it
    is not installed.
    """
    spec = _specification(_transformer(translator))
    processor = translator.tokenizer.processor
    pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
    spec.register_source_vocabulary(pieces)
    spec.register_target_vocabulary(pieces)
    spec.config.bos_token = spec.config.decoder_start_token = pieces[Tokenizer.bos_id]
    spec.config.eos_token = pieces[Tokenizer.eos_id]
    spec.config.unk_token = pieces[Tokenizer.unk_id]
    spec.config.add_source_eos = True
    spec.config.layer_norm_epsilon = LAYER_NORM_EPS
    spec.validate()
    spec.optimize(quantization=quantization)
    Path(directory).mkdir(parents=True, exist_ok=True)
    spec.save(str(directory))
    translator.tokenizer.save(Path(directory, TOKENIZER))


class _Encoding(nn.Module):
    """Sources → their mask, and keys and values of the memory in each layer."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model

    def forward(self, src: Tensor) -> tuple[Tensor, ...]:
        model = self.model
        mask = padding_mask(src, model.config.pad_id)  # (B, 1, 1, S)
        x = model.embedding(src) + model.positions.table[: src.size(1)]
        memory = model.encoder(x, mask)  # (B, S, D)
        found = [mask]
        for layer in model.decoder.layers:
            attention = layer.cross_attention
            parts = attention.w_kv(memory).split(attention.widths, dim=-1)
            found += map(attention.split_heads, parts)  # each (B, H, S, d)
        return tuple(found)


class _Step(nn.Module):
    """A token of each sentence and what is cached → logits and the longer cache."""

    def __init__(self, model: Transformer) -> None:
        super().__init__()
        self.model = model
        never = torch.zeros(model.config.vocab_size)
        never[[model.config.pad_id, model.config.bos_id]] = NEVER
        self.register_buffer("never", never)

    def forward(self, token: Tensor, mask: Tensor, *cached: Tensor) -> tuple:
        model, n = self.model, self.model.config.n_layers
        cache, past = DecoderCache(n), cached[0].size(2)
        for layer, (own, cross) in enumerate(cache.layers):
            own.key, own.value = cached[2 * layer : 2 * layer + 2]
            cross.key, cross.value = cached[2 * (n + layer) : 2 * (n + layer) + 2]
        x = model.embedding(token) + model.positions.table[past : past + 1]
        hidden = model.decoder(x, x, mask, None, cache)  # (B, 1, D); no memory is read
        logits = model.logits(hidden[:, 0]) + self.never  # (B, V)
        longer = [part for own, _ in cache.layers for part in (own.key, own.value)]
        return logits, *longer


@torch.no_grad()
def to_onnx(translator: Translator, directory: str | Path) -> None:
    """Write encoder.onnx and decoder.onnx, with configuration and tokenizer.

    `OnnxTranslator` shows how the two are used. Raises ValueError for a model that is
    no `Transformer`, RuntimeError where onnx is not installed.
    """
    _optional("onnx")
    directory, model = Path(directory), _transformer(translator)
    directory.mkdir(parents=True, exist_ok=True)
    n = model.config.n_layers
    past, memory, longer = (
        [f"{kind}_{part}_{i}" for i in range(n) for part in ("key", "value")]
        for kind in ("past", "memory", "longer")
    )
    src = torch.full((2, 3), model.config.eos_id, device=model.embedding.weight.device)
    mask, *found = _Encoding(model)(src)
    cached = [torch.zeros_like(part[:, :, :2]) for part in found]
    sizes = {"mask": {0: "B", 3: "S"}, **{name: {0: "B", 2: "S"} for name in memory}}
    token = {"token": {0: "B"}, "logits": {0: "B"}}
    token |= {name: {0: "B", 2: "T"} for name in past}
    token |= {name: {0: "B", 2: "T + 1"} for name in longer}
    for name, module, example, inputs, outputs, dynamic in (
        ("encoder", _Encoding(model), (src,), ["source"], ["mask", *memory], sizes),
        (
            "decoder",
            _Step(model).to(src.device),
            (src[:, :1], mask, *cached, *found),
            ["token", "mask", *past, *memory],
            ["logits", *longer],
            sizes | token,
        ),
    ):
        with evaluating([model]), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of an exporter that will be replaced
            torch.onnx.export(
                module.eval(),
                example,
                str(directory / f"{name}.onnx"),
                input_names=inputs,
                output_names=outputs,
                dynamic_axes={"source": {0: "B", 1: "S"}, **dynamic},
                opset_version=17,
                dynamo=False,
            )
    config = json.dumps(model.config.to_dict(), indent=2) + "\n"
    (directory / CONFIG).write_text(config, encoding="utf-8")
    translator.tokenizer.save(directory / TOKENIZER)


class OnnxTranslator:
    """Greedy translation with what `to_onnx` wrote, by onnxruntime and numpy.

    threads: of each session. Raises RuntimeError where onnxruntime is not installed.
    """

    def __init__(self, directory: str | Path, threads: int = 1) -> None:
        runtime, directory = _optional("onnxruntime"), Path(directory)
        options = runtime.SessionOptions()
        options.intra_op_num_threads = threads
        self.encoder, self.decoder = (
            runtime.InferenceSession(
                str(directory / f"{name}.onnx"),
                options,
                providers=["CPUExecutionProvider"],
            )
            for name in ("encoder", "decoder")
        )
        values = json.loads((directory / CONFIG).read_text(encoding="utf-8"))
        self.config = TransformerConfig.from_dict(values)
        self.tokenizer = Tokenizer.load(directory / TOKENIZER)

    def translate(self, lines: Iterable[str], batch_size: int = 64) -> list[str]:
        """As `Translator.translate` does it greedily, with its errors."""
        lines, longest = list(text_lines(lines)), self.config.max_length - EXTRA_LENGTH
        encoded = [self.tokenizer.encode(line) for line in lines]
        for number, ids in enumerate(encoded, start=1):
            if len(ids) > longest:
                raise ValueError(f"line {number}: {too_long(ids, longest)}")
        order = [i for i, line in enumerate(lines) if line.strip()]
        order.sort(key=lambda i: len(encoded[i]), reverse=True)
        outputs = [""] * len(lines)
        for group in in_groups(order, batch_size):
            found = self.search([encoded[i] for i in group])
            for i, ids in zip(group, found, strict=True):
                outputs[i] = re.sub(r"[\r\n]+", " ", self.tokenizer.decode(ids))
        return outputs

    def search(self, sources: list[list[int]]) -> list[list[int]]:
        """The pieces of a translation of each source, the longest source first."""
        config, n = self.config, len(sources)
        src = np.full((n, len(sources[0]) + 1), config.pad_id)  # (B, S)
        for row, ids in zip(src, sources, strict=True):
            row[: len(ids) + 1] = [*ids, config.eos_id]
        names = [one.name for one in self.encoder.get_outputs()]
        fed = dict(zip(names, self.encoder.run(None, {"source": src}), strict=True))
        past = [one for one in self.decoder.get_inputs() if one.name[:4] == "past"]
        for one in past:
            empty = n, one.shape[1], 0, one.shape[3]
            fed[one.name] = np.zeros(empty, dtype=np.float32)
        fed["token"] = np.full((n, 1), config.bos_id)
        rows, outputs = np.arange(n), [[] for _ in sources]
        limit = np.array([len(ids) + EXTRA_LENGTH for ids in sources])
        step = 0
        while len(rows):
            logits, *longer = self.decoder.run(None, fed)  # (rows, V)
            fed |= {one.name: value for one, value in zip(past, longer, strict=True)}
            tokens, step = logits.argmax(axis=-1), step + 1
            for row, token in zip(rows, tokens, strict=True):
                if token != config.eos_id:
                    outputs[row].append(int(token))
            going = (tokens != config.eos_id) & (step < limit[rows])
            fed["token"], rows = tokens[:, None], rows[going]
            if not going.all():
                fed = {name: value[going] for name, value in fed.items()}
        return outputs
