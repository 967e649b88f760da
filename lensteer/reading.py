"""Which tokens of a prompt are read, and what is kept of a batch: one token, a pool of several, or all of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.prompts import Batch, Row

Which = Literal["last", "mean", "max", "min", "all"] | int | Callable[[Row], int | Sequence[int]]
_EVERY = ("mean", "max", "min", "all")


def positions_read(
    row: Row, tokens: Which, number: int, *, template: bool = True, without: int | None = None
) -> list[int]:
    """The token positions of a row that are read.

    Args:
        number: of the prompt, for the error.
        template: whether tokens that are not the prompt's own count.
        without: a token id that does not count at the start of the prompt (its BOS).

    Raises:
        ValueError: a word that is not one of the five, or a token that the prompt does not have.
    """
    pool = list(range(len(row))) if template else [i for i, own in enumerate(row.own) if own]
    if without is not None and pool[:1] == [0] and row.ids[0] == without:
        pool = pool[1:]
    if callable(tokens):
        answer = tokens(row)
        wanted = [answer] if isinstance(answer, int) else [int(i) for i in answer]
    elif tokens in _EVERY:
        wanted = list(range(len(pool)))
    elif tokens == "last":
        wanted = [-1]
    elif isinstance(tokens, int):
        wanted = [tokens]
    else:
        raise ValueError(
            f"tokens must be 'last', 'mean', 'max', 'min', 'all', an index or a function of the row, got {tokens!r}"
        )
    if callable(tokens):
        pool = list(range(len(row)))
    if not pool or not wanted or not all(-len(pool) <= i < len(pool) for i in wanted):
        raise ValueError(
            f"prompt {number} has {len(pool)} tokens to choose from, so tokens={tokens!r} cannot be read: {row.text!r}"
        )
    return [pool[i] for i in wanted]


@dataclass(frozen=True)
class Reading:
    """What to keep of a batch: a column, a weighted mean or an extreme of every row, else every token."""

    column: Tensor | None
    weight: Tensor | None
    mask: Tensor
    extreme: Literal["max", "min"] | None = None

    def of(
        self, x: Float[Tensor, "batch pos ..."], through: Callable[[Tensor], Tensor] | None = None
    ) -> Float[Tensor, "batch ..."]:
        """What is kept of a point's tensor, in float32; `through` (in the tensor's own dtype) is applied first."""
        if self.column is not None:
            x = x[torch.arange(len(x), device=x.device), self.column.to(x.device)]
            return (x if through is None else through(x)).float()  # of one token each, not of all
        x = x if through is None else through(x)
        mask = self.mask.to(x.device).view(*self.mask.shape, *[1] * (x.ndim - 2)).bool()
        if self.extreme is None:
            # Some models put NaN at padding, which a weight of zero would not remove.
            x = x.float().masked_fill(~mask, 0.0)
            return x if self.weight is None else torch.einsum("bp,bp...->b...", self.weight.to(x.device), x)
        if self.extreme == "max":
            return x.masked_fill(~mask, -torch.inf).amax(1).float()
        return x.masked_fill(~mask, torch.inf).amin(1).float()


def reading_of(batch: Batch, chosen: Sequence[list[int]], tokens: Which) -> Reading:
    """The reading of a batch whose prompt i is read at ``chosen[i]``, the positions of `positions_read`."""
    width = batch.input_ids.shape[1]
    lengths = batch.attention_mask.sum(1).tolist()
    columns = [[width - length + i for i in chosen[row]] for row, length in zip(batch.rows, lengths, strict=True)]
    mask = torch.zeros(len(columns), width)
    for i, own in enumerate(columns):
        mask[i, own] = 1.0
    device = batch.input_ids.device
    if tokens == "all":
        return Reading(None, None, mask.to(device))
    if all(len(own) == 1 for own in columns):
        return Reading(torch.tensor([own[0] for own in columns], device=device), None, mask.to(device))
    if tokens in ("max", "min"):
        return Reading(None, None, mask.to(device), tokens)
    return Reading(None, (mask / mask.sum(1, keepdim=True)).to(device), mask.to(device))
