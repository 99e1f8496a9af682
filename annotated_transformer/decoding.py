"""From a trained model to a translation (§6.1)."""

import torch
from torch import Tensor

from .attention import padding_mask
from .layers import DecoderCache
from .model import Transformer


@torch.inference_mode()
def greedy_search(
    model: Transformer, src: Tensor, extra_length: int = 50
) -> list[list[int]]:
    """The most probable next token at every step, until eos or input length + extra_length (§6.1).

    src: (B, S) int64, each row ending with eos, filled up with pad_id. Returns B lists of ids,
    without bos and eos. A sentence that has ended leaves the batch.
    """
    model.eval()
    config = model.config
    src_mask = padding_mask(src, config.pad_id)
    limit = src_mask.sum(dim=-1).flatten() - 1 + extra_length  # (B,), eos is not input
    memory = model.encode(src, src_mask)
    cache = DecoderCache(config.n_layers)
    outputs: list[list[int]] = [[] for _ in range(src.size(0))]
    rows = torch.arange(src.size(0), device=src.device)  # sentences still in the batch
    tokens = torch.full_like(rows, config.bos_id)
    step = 0
    while len(rows):
        hidden = model.decode(tokens[:, None], memory, src_mask, cache=cache)
        tokens = model.logits(hidden[:, -1]).argmax(dim=-1)
        step += 1
        for row, token in zip(rows.tolist(), tokens.tolist()):
            if token != config.eos_id:
                outputs[row].append(token)
        keep = ((tokens != config.eos_id) & (step < limit[rows])).nonzero().flatten()
        if len(keep) < len(rows):
            rows, tokens = rows[keep], tokens[keep]
            memory, src_mask = memory[keep], src_mask[keep]
            cache.select(keep)
    return outputs
