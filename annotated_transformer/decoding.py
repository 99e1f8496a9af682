# Written in notebooks/6_1_machine_translation.ipynb; edit it there.
"""From a trained model to a translation: greedy search (§6.1)."""

import torch
from torch import Tensor

from .attention import padding_mask
from .layers import DecoderCache
from .model import Transformer

__all__ = ["greedy_search"]


@torch.inference_mode()
def greedy_search(
    model: Transformer, src: Tensor, extra_length: int = 50
) -> list[list[int]]:
    """The most probable next token at every step, until eos (§6.1).

    src: (B, S) int64, each row ending with eos, filled up with pad_id. extra_length: a
    translation that has not ended stops at the length of its input plus this many
    tokens, neither eos counted. Returns B lists of ids, without bos and eos.
    A sentence that has ended leaves the batch. Padding and bos are never chosen.
    Raises ValueError where extra_length is below 1, and where it and a sentence are
    more than the model's max_length.
    """
    config = model.config
    if extra_length < 1:
        raise ValueError(f"extra_length is {extra_length}: it must be at least 1")
    if not len(src):
        return []
    src_mask = padding_mask(src, config.pad_id)  # (B, 1, 1, S)
    limit = src_mask.sum(dim=-1).flatten() - 1 + extra_length  # (B,), without eos
    if limit.max() > config.max_length:
        raise ValueError(
            f"{limit.max() - extra_length} input tokens and {extra_length} more "
            f"are above the model's max_length of {config.max_length}"
        )
    training = model.training
    model.eval()
    memory = model.encode(src, src_mask)  # (B, S, D), once
    cache = DecoderCache(config.n_layers)
    outputs: list[list[int]] = [[] for _ in src]
    rows = torch.arange(len(src), device=src.device)  # sentences still in the batch
    tokens = torch.full_like(rows, config.bos_id)
    step = 0
    while len(rows):
        hidden = model.decode(tokens[:, None], memory, src_mask, cache=cache)
        logits = model.logits(hidden[:, -1])  # (rows, V)
        logits[:, [config.pad_id, config.bos_id]] = -torch.inf
        tokens = logits.argmax(dim=-1)  # (rows,)
        step += 1
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            if token != config.eos_id:
                outputs[row].append(token)
        keep = ((tokens != config.eos_id) & (step < limit[rows])).nonzero().flatten()
        if len(keep) < len(rows):
            rows, tokens = rows[keep], tokens[keep]
            memory, src_mask = memory[keep], src_mask[keep]
            cache.select(keep)
    model.train(training)
    return outputs
