"""What a step of focus training computes: prompts and answers as tokens, and the loss of Eq. 3.

    loss = (1/B) Σ_b −log p(y_focus^b | I, I_focus^b, x_b),    log p summed over the tokens of the answer

Only answer tokens carry loss; with ``eos`` the end of the answer is one of them. Rows are padded on the left, so the
answers stand at the right edge and only their columns are unembedded.

All prompts of a task begin with the same task instruction. Where it is safe, these tokens are read once per batch and
their keys and values shared by all rows: the same loss and gradients (dropout draws one mask for the shared tokens) for
about half the work on short inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.answers import answer_ids
from lensteer.data.focus import Asked
from lensteer.models import tokenizer_of
from lensteer.prompts import context_length, tokenize
from lensteer.scoring import fresh_cache, keep_last

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

IGNORED = -100  # what a label of no token is, by convention


@dataclass(frozen=True)
class Encoded:
    """A prompt and its answer as token ids; the answer is what carries loss."""

    prompt: list[int]
    answer: list[int]

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def encode(model: TransformerBridge, asked: Asked, *, max_length: int, eos: bool) -> Encoded:
    """Token ids of a prompt and of the answer that is asked for.

    Args:
        max_length: of both together; nothing is ever cut, since a cut at the end would lose the answer cue.
        eos: whether the answer ends with the tokenizer's end-of-sequence token.

    Raises:
        ValueError: more tokens than ``max_length`` or the model's context, or a tokenizer without that token.
    """
    tokenizer, limit = tokenizer_of(model), min(max_length, context_length(model))
    length = len(tokenizer(asked.prompt)["input_ids"])
    if length < limit:
        (row,) = tokenize(model, [asked.prompt], prompt_format="plain")
        answer = answer_ids(model, row, asked.target)
        if eos and tokenizer.eos_token_id is None:
            raise ValueError("this tokenizer has no end-of-sequence token; train with eos=False")
        answer = [*answer, tokenizer.eos_token_id] if eos else answer
        if length + len(answer) <= limit:
            return Encoded(row.ids, answer)
    raise ValueError(
        f"example {asked.example.id!r} as {asked.kind!r} has {length} tokens before its answer, which leaves no room "
        f"for it in max_length={max_length} and the model's context of {context_length(model)}; a cut would lose the "
        "answer cue: raise max_length or leave the example out"
    )


def collate(rows: Sequence[Encoded], pad: int) -> dict[str, Int[Tensor, "batch pos"]]:
    """A left-padded batch with labels at the answer tokens and nowhere else.

    The mask comes from the lengths, never from comparing ids with the padding id, which may be the end token's.
    """
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row.prompt + row.answer)
        mask[i, width - len(row) :] = 1
        labels[i, width - len(row.answer) :] = torch.tensor(row.answer)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def shared_tokens(
    ids: Int[Tensor, "batch pos"], mask: Int[Tensor, "batch pos"], labels: Int[Tensor, "batch pos"]
) -> int:
    """How many tokens all rows of a left-padded batch begin with, short of the last one of the shortest prompt."""
    if len(ids) < 2:
        return 0
    starts = (mask == 0).sum(1)
    most = int(((mask == 1) & (labels == IGNORED)).sum(1).min()) - 1
    column = starts[:, None] + torch.arange(max(most, 0), device=ids.device)
    begins = ids.gather(1, column)
    same = (begins == begins[0]).all(0)
    return int(same.long().cumprod(0).sum())


def answer_logits(
    model: Any, batch: dict[str, Tensor], *, share: bool = False
) -> tuple[Float[Tensor, "batch answer vocab"], Int[Tensor, "batch answer"]]:
    """Logits that predict the answer tokens (float32), and these tokens, at the right edge of the batch.

    Args:
        model: a Hugging Face causal language model, with or without an adapter.
        share: read the tokens that all rows begin with once; for models without a sliding window.
    """
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    longest = int((labels != IGNORED).sum(1).max())
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    options: dict[str, Any] = keep_last(_inner(model), longest + 1)
    count = shared_tokens(ids, mask, labels) if share else 0
    if count > 1:
        first = int((mask[0] == 0).sum())
        shared = ids[:1, first : first + count]
        cache = model(input_ids=shared, use_cache=True, **keep_last(_inner(model), 1)).past_key_values
        own = fresh_cache(cache)
        own.batch_repeat_interleave(len(ids))
        # What is left of every row, padded on the left anew.
        rest = mask.clone()
        starts = (mask == 0).sum(1)
        rest[torch.arange(ids.shape[1], device=ids.device)[None] < (starts + count)[:, None]] = 0
        width = int(rest.sum(1).max())
        ids, positions, rest = ids[:, -width:], positions[:, -width:], rest[:, -width:]
        mask = torch.cat([rest.new_ones(len(ids), count), rest], 1)
        options.update(past_key_values=own, use_cache=True)
    else:
        options.update(use_cache=False)
    if takes_positions(model):
        options["position_ids"] = positions
    logits = model(input_ids=ids, attention_mask=mask, **options).logits
    return logits[:, -longest - 1 : -1].float(), labels[:, -longest:]


def answer_log_probs(
    logits: Float[Tensor, "batch answer vocab"], tokens: Int[Tensor, "batch answer"]
) -> Float[Tensor, " batch"]:
    """log p of every answer: the sum over its tokens."""
    there = tokens != IGNORED
    chosen = logits.log_softmax(-1).gather(-1, tokens.masked_fill(~there, 0).unsqueeze(-1)).squeeze(-1)
    return chosen.masked_fill(~there, 0.0).sum(1)


def takes_positions(model: Any) -> bool:
    """Whether a model's forward pass takes position ids."""
    import inspect

    return "position_ids" in inspect.signature(_inner(model).forward).parameters


def can_share(model: Any) -> bool:
    """Whether keys and values of a shared beginning are right for this model: not with a sliding window, whose
    distance counts columns and would count the padding between the two parts."""
    config = _inner(model).config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    windowed = getattr(config, "sliding_window", None) is not None and getattr(config, "use_sliding_window", True)
    return not windowed and kinds <= {"full_attention"}


def _inner(model: Any) -> Any:
    """The language model inside wrappers for adapters and for several devices."""
    while hasattr(model, "module"):  # DistributedDataParallel
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
