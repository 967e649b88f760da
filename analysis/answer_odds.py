"""The log-odds of a right against a wrong answer, as often as wanted on one reading of the prompt.

    metric = log p(right) − log p(wrong)   of the first answer token at which the two differ, given all before it

The two logits at one position share their normaliser, so the metric is the difference of the logits. Where answers
begin with the same tokens, these are read as well, and the metric is that of the first token after them.

The place that patching reads and changes is the last prompt token. Nothing before it depends on it, so the tokens
before are read once, without gradients, and their keys and values are kept: `Tail.log_odds` runs the last token alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.answers import answer_ids, check_answer_pairs
from lensteer.attach import HookFunction, attached
from lensteer.capture import run
from lensteer.models import lens_model, twin_of
from lensteer.points import Point
from lensteer.prompts import Batch, Row, batches, tokenize
from lensteer.scoring import fresh_cache, keep_last

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Item(NamedTuple):
    """One pair: its prompt, the tokens that both answers begin with, and the two tokens at which they part."""

    prompt: Row
    shared: list[int]
    right: int
    wrong: int


@dataclass(frozen=True, eq=False)
class Tail:
    """A batch from the last prompt token on; what lies before is in the cache.

    Attributes:
        batch: the tokens that are still to be run; its ``rows`` are the numbers of the pairs.
        before: keys and values of the tokens before, or None where all tokens are in ``batch``.
        column: of every row, where in ``batch`` the last prompt token is.
        right, wrong: the tokens whose logits are compared.
    """

    model: TransformerBridge
    face: Any
    batch: Batch
    before: Any
    column: Int[Tensor, " row"]
    right: Int[Tensor, " row"]
    wrong: Int[Tensor, " row"]

    def log_odds(self, functions: Sequence[tuple[Point, HookFunction]] = ()) -> Float[Tensor, " row"]:
        """The metric, with functions at points; they see the tensor of ``batch`` alone."""
        options: dict[str, Any] = {}
        if self.before is not None:  # a pass appends to its cache
            options = {"past_key_values": fresh_cache(self.before), "use_cache": True}
        with attached(self.model, functions):
            logits = run(self.face, self.batch, **options, **keep_last(self.face, 1)).logits[:, -1].float()
        chosen = logits.gather(1, torch.stack([self.right, self.wrong], 1).to(logits.device))
        return chosen[:, 0] - chosen[:, 1]

    def place(self, x: Float[Tensor, "row pos ..."]) -> tuple[Int[Tensor, " row"], Int[Tensor, " row"]]:
        """Indices of the last prompt token of every row of a tensor that a function sees."""
        return torch.arange(len(x), device=x.device), self.column.to(x.device)


def items(model: TransformerBridge, pairs: Sequence[Any], prompt_format: str) -> list[Item]:
    """Tokenised pairs.

    Raises:
        ValueError: bad pairs (see `check_answer_pairs`), a text that is too long, or answers that do not differ in any
            token that both have.
    """
    checked = check_answer_pairs(pairs)
    rows = tokenize(model, [pair.prompt for pair in checked], prompt_format=prompt_format)
    found = []
    for i, (row, pair) in enumerate(zip(rows, checked, strict=True)):
        right, wrong = (answer_ids(model, row, answer) for answer in (pair.right, pair.wrong))
        place = next((n for n, (a, b) in enumerate(zip(right, wrong, strict=False)) if a != b), None)
        if place is None:
            raise ValueError(
                f"the answers {pair.right!r} and {pair.wrong!r} of pair {i} have the same tokens as far as the shorter "
                "one goes, so there is no token whose odds could be compared; give answers that differ before one ends"
            )
        found.append(Item(row, right[:place], right[place], wrong[place]))
    return found


def tails(
    model: TransformerBridge,
    asked: Sequence[Item],
    points: Sequence[Point],
    batch_size: int | Literal["auto"],
    *,
    share_prompt: bool = True,
) -> Iterator[Tail]:
    """Batches of pairs, read up to the last prompt token.

    Args:
        points: what functions will be run at; decides which face of the model runs.
        share_prompt: False reads nothing ahead: every `log_odds` is a pass over all tokens.

    Raises:
        ValueError: the model is being steered.
    """
    twin = twin_of(model)
    with twin.lock:  # another thread's steering ends first
        if twin.active:
            raise ValueError("the model is being steered; measure log-odds outside of the block that steers it")
    face: Any = twin.plain
    if face is None or any(point.module is None for point in points):
        face = lens_model(model)
    rows = [Row(i.prompt.ids + i.shared, i.prompt.own + [True] * len(i.shared), i.prompt.text) for i in asked]
    for batch in batches(model, rows, batch_size, purpose="read"):
        own = [asked[i] for i in batch.rows]
        shared = torch.tensor([len(item.shared) for item in own])
        # Every row needs a token before the cut, and as little as possible comes after it.
        cut = batch.input_ids.shape[1] - 1 - int(shared.max())
        if not share_prompt or not bool(batch.attention_mask[:, :cut].any(1).all()):
            cut = 0
        before = None
        if cut:
            ids, mask, places = (tensor[:, :cut] for tensor in batch[:3])
            early = Batch(ids, mask, places, batch.rows)
            with twin.lock, torch.no_grad():
                before = run(face, early, use_cache=True, **keep_last(face, 1)).past_key_values
        part = Batch(batch.input_ids[:, cut:], batch.attention_mask, batch.position_ids[:, cut:], batch.rows)
        column = part.input_ids.shape[1] - 1 - shared
        right, wrong = (torch.tensor([item[side] for item in own]) for side in (2, 3))
        yield Tail(model, face, part, before, column, right, wrong)
