"""The lean floor of extraction: plain torch forward hooks and nothing else. Imports only torch, so that it runs in both
environments, lensteer's and the peers'."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class _Done(Exception):
    """The last layer has been read."""


def mean_difference(
    hf: Any, tokenizer: Any, positive: Sequence[str], negative: Sequence[str], size: int = 16
) -> Tensor:
    """mean over positive − mean over negative of every block's output at the last token: ``[layer, d_model]``."""
    rows = tokenizer([*positive, *negative]).input_ids
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    blocks = hf.model.layers
    found = torch.empty(len(blocks), len(rows), hf.config.hidden_size)
    with torch.inference_mode():
        for start in range(0, len(order), size):
            _read(hf.model, blocks, rows, order[start : start + size], found)
    return found[:, : len(positive)].mean(1) - found[:, len(positive) :].mean(1)


def _read(base: Any, blocks: Any, rows: list[list[int]], chosen: list[int], found: Tensor) -> None:
    """One left-padded batch through the blocks, the last column of each kept."""
    width = max(len(rows[i]) for i in chosen)
    ids = torch.zeros(len(chosen), width, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, i in enumerate(chosen):
        ids[row, width - len(rows[i]) :] = torch.tensor(rows[i])
        mask[row, width - len(rows[i]) :] = 1
    index = torch.tensor(chosen)

    def keep(layer: int) -> Any:
        def hook(module: Any, args: Any, output: Any) -> None:
            found[layer, index] = (output[0] if isinstance(output, tuple) else output)[:, -1]
            if layer == len(blocks) - 1:
                raise _Done

        return hook

    handles = [block.register_forward_hook(keep(layer)) for layer, block in enumerate(blocks)]
    try:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        base(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=False)
    except _Done:
        pass
    finally:
        for handle in handles:
            handle.remove()
