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
from lensteer.scoring import keep_last
from lensteer.shared_beginning import WORTH, can_share, expanded, laid_out, shared_tokens, takes_positions

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

IGNORED = -100  # what a label of no token is, by convention


@dataclass(frozen=True)
class Encoded:
    """A prompt and its answer as token ids; the answer is what carries loss.

    Attributes:
        experts: for a product of experts, the other one's log-probability of every label.
    """

    prompt: list[int]
    answer: list[int]
    experts: Float[Tensor, " label"] | None = None

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


def collate(rows: Sequence[Encoded], pad: int) -> dict[str, Tensor]:
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
    experts = [row.experts for row in rows if row.experts is not None]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels} | (
        {"experts": torch.stack(experts)} if experts else {}
    )


def answer_logits(
    model: Any, batch: dict[str, Tensor], *, share: bool = False
) -> tuple[Float[Tensor, "batch answer vocab"], Int[Tensor, "batch answer"]]:
    """Logits that predict the answer tokens (float32), and these tokens, at the right edge of the batch.

    Args:
        model: a Hugging Face causal language model, with or without an adapter.
        share: read the tokens that all rows begin with once; for models without a sliding window.
    """
    ids, mask, labels = batch["input_ids"], batch["attention_mask"], batch["labels"]
    inner, answers = _inner(model), (labels != IGNORED).sum(1)
    longest, lengths = int(answers.max()), mask.sum(1)
    options: dict[str, Any] = {**keep_last(inner, longest + 1), "use_cache": False}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    count = shared_tokens(ids, lengths, keep=longest + 1) if share else 0
    if count >= WORTH:
        ids, mask, positions = laid_out(ids, lengths, count)
        cache = model(input_ids=ids[:1, :count], use_cache=True, **keep_last(inner, 1)).past_key_values
        options.update(past_key_values=expanded(cache, len(ids)), use_cache=True)
        ids, positions = ids[:, count:], positions[:, count:]
    if takes_positions(inner):
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


def can_share_beginnings(model: Any) -> bool:
    """Whether a beginning that all rows share may be read once; see `lensteer.shared_beginning`."""
    return can_share(_inner(model))


def _inner(model: Any) -> Any:
    """The language model inside wrappers for adapters and for several devices."""
    while hasattr(model, "module"):  # DistributedDataParallel
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model
