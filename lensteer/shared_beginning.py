"""Prompts that begin with the same tokens, read together: these tokens once, and the rest of every prompt on top.

    [pad][beginning][rest]   ->   [beginning][pad][rest]

A task instruction, a system prompt or a set of examples stands before every question, and is most of what there is to
read. Laid out like this, a batch shares the keys and values of its beginning. Position ids and the attention mask say
where every token is, so the padding between the two parts counts for nothing.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

WORTH = 16  # tokens from which a second forward pass costs less than reading them in every row


def can_share(model: Any) -> bool:
    """Whether padding within a row is of no effect on this model.

    It is not where distances count columns: with attention to a window or to chunks, in state-space layers, and without
    position ids.
    """
    config = model.config.get_text_config().to_dict()
    kinds = {*(config.get("layer_types") or ()), *(config.get("attention_layers") or ())}
    plain = kinds <= {"full_attention", "global"} and not any("mamba" in name for name in config)
    return plain and not _windowed(config) and takes_positions(model)


def _windowed(config: Mapping[str, Any]) -> bool:
    """Whether a setting limits how far a token sees; which one a model has, and under what name, differs."""
    limits = [name for name in config if name.endswith(("window", "window_size")) or "attention_chunk" in name]
    used = config.get("use_sliding_window", True)
    return used and any(config[name] for name in limits if name != "use_sliding_window")


def takes_positions(model: Any) -> bool:
    """Whether a model's forward pass takes position ids."""
    return "position_ids" in inspect.signature(model.forward).parameters


def shared_tokens(ids: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"], *, keep: int = 1) -> int:
    """How many tokens all rows of a left-padded batch begin with, short of the last ``keep`` of the shortest row."""
    most = int(lengths.min()) - keep
    if len(ids) < 2 or most < 1:
        return 0
    column = ids.shape[1] - lengths[:, None] + torch.arange(most, device=ids.device)
    begins = ids.gather(1, column)
    return int((begins == begins[0]).all(0).long().cumprod(0).sum())


def laid_out(
    ids: Int[Tensor, "batch pos"], lengths: Int[Tensor, " batch"], count: int
) -> tuple[Int[Tensor, "batch column"], Int[Tensor, "batch column"], Int[Tensor, "batch column"]]:
    """A left-padded batch with its first ``count`` real tokens at the left edge: ids, mask and position ids."""
    width = int(lengths.max()) - count
    rest = torch.arange(width, device=ids.device)[None] >= width - (lengths[:, None] - count)
    first = int(ids.shape[1] - lengths[0])
    beginning = ids[:1, first : first + count].expand(len(ids), -1)
    mask = torch.cat([torch.ones_like(beginning), rest.long()], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return torch.cat([beginning, ids[:, ids.shape[1] - width :]], 1), mask, positions


def expanded(cache: Any, rows: int) -> Any:
    """The KV cache of one row as that of many; gradients pass."""
    cache.batch_repeat_interleave(rows)
    return cache
