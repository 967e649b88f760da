"""From text to token rows and left-padded batches: the only place in lensteer that tokenises.

A prompt is a string or a list of chat messages. It is rendered by the tokenizer's own chat template (instruct models)
or a plain format (base models) and tokenised once, without a second BOS. Every row knows which of its tokens are the
prompt's own words and which belong to the template, so that either can be left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from jaxtyping import Int
from torch import Tensor

from lensteer.models import plain_model, tokenizer_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedTokenizerBase

Messages = Sequence[Mapping[str, str]]
Prompt = str | Messages
FORMATS = {"plain": "{prompt}", "qa": "Q: {prompt}\nA:"}
# Rows and tokens of an "auto" batch, by purpose and whether it runs on a CPU.
_BUDGET = {
    ("read", True): (32, 512),
    ("write", True): (64, 8192),
    ("read", False): (256, 32768),
    ("write", False): (256, 65536),
}
# Not printable, so no prompt contains it; marks where a prompt's own text goes in a rendered template.
_MARK = "\ue000prompt\ue000"


class Pair(NamedTuple):
    """A contrastive pair: the same request with (positive) and without (negative) what is to be found."""

    positive: Prompt
    negative: Prompt


@dataclass(frozen=True)
class Row:
    """One tokenised prompt.

    Attributes:
        ids: token ids, BOS and template included.
        own: for each token, True where it is the prompt's own text and False where it is template or BOS.
        text: the rendered text that was tokenised.
    """

    ids: list[int]
    own: list[bool]
    text: str

    def __len__(self) -> int:
        return len(self.ids)


class Batch(NamedTuple):
    """A left-padded batch, and which prompts its rows are."""

    input_ids: Int[Tensor, "batch pos"]
    attention_mask: Int[Tensor, "batch pos"]
    position_ids: Int[Tensor, "batch pos"]
    rows: list[int]


def tokenize(
    model: TransformerBridge,
    prompts: Sequence[Prompt | Row],
    *,
    prompt_format: str = "auto",
    truncate: bool = False,
    room: int = 0,
) -> list[Row]:
    """Render and tokenise prompts for a model; rows that are tokenised already pass through.

    Args:
        prompt_format: ``"auto"`` (chat where the tokenizer has a template, else plain), ``"chat"``, ``"plain"``,
            ``"qa"`` ("Q: …" newline "A:", the papers' format for base models), or a string with ``{prompt}`` in it.
        truncate: keep the last tokens (and the BOS) of a prompt that is too long, instead of refusing it.
        room: tokens to leave free for the response.

    Raises:
        ValueError: no prompts, an unknown format, or a prompt longer than the model's context.
        TypeError: prompts that are not strings or message lists.
    """
    if isinstance(prompts, str):
        raise TypeError("prompts must be a list; for one prompt write [prompt]")
    if len(prompts) == 0:
        raise ValueError("no prompts were given; pass at least one")
    tokenizer = tokenizer_of(model)
    limit = context_length(model) - room
    rows = []
    for index, prompt in enumerate(prompts):
        row = prompt if isinstance(prompt, Row) else _tokenize_one(tokenizer, prompt, prompt_format)
        if not row.ids:
            raise ValueError(f"prompt {index} has no tokens; an empty prompt cannot be run")
        if len(row) > limit:
            if not truncate or limit <= 0:
                raise ValueError(
                    f"prompt {index} has {len(row)} tokens, but the model's context of {context_length(model)} leaves "
                    f"{limit} for it ({room} are kept for the response); shorten it, or keep its end with truncate=True"
                )
            row = _end_of(row, limit, tokenizer.bos_token_id)
        rows.append(row)
    return rows


def rows_hash(rows: Sequence[Row]) -> str:
    """A hash of prompts as they were tokenised, in order: another order or another format has another one."""
    return hashlib.sha256(repr([row.ids for row in rows]).encode()).hexdigest()[:32]


def _end_of(row: Row, length: int, bos: int | None) -> Row:
    start = len(row) - length
    if row.ids[0] == bos:
        return Row([row.ids[0], *row.ids[start + 1 :]], [row.own[0], *row.own[start + 1 :]], row.text)
    return Row(row.ids[start:], row.own[start:], row.text)


def resolve_format(tokenizer: PreTrainedTokenizerBase, prompt_format: str) -> str:
    """``"chat"``, or the plain format string that ``prompt_format`` stands for."""
    has_template = bool(getattr(tokenizer, "chat_template", None))
    if prompt_format == "auto":
        prompt_format = "chat" if has_template else "plain"
    if prompt_format == "chat":
        if not has_template:
            raise ValueError("prompt_format='chat' needs a tokenizer with a chat template; use 'plain' or 'qa'")
        return "chat"
    text = FORMATS.get(prompt_format, prompt_format)
    if "{prompt}" not in text:
        raise ValueError(
            f"prompt_format={prompt_format!r} is unknown; use 'auto', 'chat', {', '.join(map(repr, FORMATS))}, "
            "or a string that contains {prompt}"
        )
    return text


def _tokenize_one(tokenizer: PreTrainedTokenizerBase, prompt: Prompt, prompt_format: str) -> Row:
    kind = resolve_format(tokenizer, prompt_format)
    messages: list[dict[str, str]] = []
    if isinstance(prompt, str):
        own = prompt
        messages = [{"role": "user", "content": prompt}]
    else:
        messages = [dict(m) for m in prompt if isinstance(m, Mapping)] if isinstance(prompt, Sequence) else []
        if not messages or len(messages) < len(prompt) or any("content" not in message for message in messages):
            raise TypeError(f"a prompt is a string or a list of {{'role', 'content'}} messages, got {prompt!r}")
        own = messages[-1]["content"]
    if kind == "chat":
        text = _render(tokenizer, messages)
        template = _render(tokenizer, [*messages[:-1], {**messages[-1], "content": _MARK}])
    else:
        if len(messages) > 1:
            raise ValueError(
                f"a conversation of {len(messages)} messages needs a chat template, and this tokenizer or "
                f"prompt_format={prompt_format!r} has none; write it as one string"
            )
        text, template = kind.replace("{prompt}", own), kind.replace("{prompt}", _MARK)
    bos = getattr(tokenizer, "bos_token", None)
    special = kind != "chat" and not (bos and text.startswith(bos))
    encoded = tokenizer(text, add_special_tokens=special, return_offsets_mapping=tokenizer.is_fast)
    ids = list(encoded["input_ids"])
    return Row(ids, _own_tokens(encoded, len(ids), text, template), text)


def _render(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, str]]) -> str:
    # The rendered text is tokenised with add_special_tokens=False: the template already writes any BOS it wants.
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _own_tokens(encoded: Any, length: int, text: str, template: str) -> list[bool]:
    """Which tokens overlap the prompt's own characters; all of them where the tokenizer gives no offsets."""
    before, mark, after = template.partition(_MARK)
    offsets = encoded.get("offset_mapping")
    if offsets is None or not mark or not (text.startswith(before) and text.endswith(after)):
        return [True] * length
    start, stop = len(before), len(text) - len(after)
    return [begin < stop and end > start and end > begin for begin, end in offsets]


def context_length(model: TransformerBridge) -> int:
    """The longest sequence the model accepts, in tokens (very large for models without a limit)."""
    config = plain_model(model).config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "n_ctx", "seq_length"):
        if isinstance(getattr(config, name, None), int):
            return int(getattr(config, name))
    return 1 << 30


def stop_ids(model: TransformerBridge) -> list[int]:
    """Every token that ends a response: the generation config's, the tokenizer's EOS, the template's end of turn."""
    tokenizer, plain = tokenizer_of(model), plain_model(model)
    listed = getattr(plain.generation_config, "eos_token_id", None)
    ids = set(listed if isinstance(listed, list) else [listed]) | {
        tokenizer.eos_token_id,
        _end_of_turn(tokenizer),
    }
    return sorted(i for i in ids if i is not None)


def _end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes right after an assistant's text."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    turn = [{"role": "user", "content": "a"}, {"role": "assistant", "content": _MARK}]
    after = str(tokenizer.apply_chat_template(turn, tokenize=False)).partition(_MARK)[2]
    ids = tokenizer(after.lstrip(), add_special_tokens=False)["input_ids"]
    return ids[0] if ids and ids[0] in tokenizer.all_special_ids else None


def batches(
    model: TransformerBridge,
    rows: Sequence[Row],
    batch_size: int | str = "auto",
    *,
    purpose: Literal["read", "write"] = "read",
    extra: int = 0,
) -> Iterator[Batch]:
    """Left-padded batches in order of length, so that little is spent on padding.

    Args:
        batch_size: rows a batch, or ``"auto"``: as many as keep rows times longest row within a token budget, which
            is small for reading on a CPU (a long batch is no faster a token there) and large for decoding.
        extra: tokens that will be generated for each row, counted in the budget.
    """
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be 'auto' or a positive integer, got {batch_size!r}")
    device, pad = input_device(model), pad_id(model)
    for chosen in chunks([len(row) + extra for row in rows], batch_size, *budget(model, purpose)):
        yield make_batch([rows[i] for i in chosen], chosen, pad, device)


def budget(model: TransformerBridge, purpose: Literal["read", "write"]) -> tuple[int, int]:
    """Rows and tokens of an ``"auto"`` batch where the model is."""
    return _BUDGET[purpose, input_device(model).type == "cpu"]


def input_device(model: TransformerBridge) -> torch.device:
    """Where token ids go: the device of the input embeddings, also when the model is spread over several."""
    weight: Tensor = plain_model(model).get_input_embeddings().weight  # type: ignore[assignment]
    return weight.device


def make_batch(rows: Sequence[Row], numbers: list[int], pad: int, device: torch.device | str) -> Batch:
    """One left-padded batch; the mask comes from the lengths, never from comparing ids with the padding id."""
    width = max(len(row) for row in rows)
    ids = torch.full((len(rows), width), pad, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, width - len(row) :] = torch.tensor(row.ids)
        mask[i, width - len(row) :] = 1
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    return Batch(ids.to(device), mask.to(device), positions.to(device), numbers)


def pad_id(model: TransformerBridge) -> int:
    """A token to pad with: the tokenizer's own, else EOS, else 0 (padding is masked, so any will do)."""
    tokenizer = tokenizer_of(model)
    return next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)


def chunks(lengths: Sequence[int], batch_size: int | str, most_rows: int, most_tokens: int) -> Iterator[list[int]]:
    """Row numbers in order of length, cut into batches of a given size, or of most rows and tokens for ``"auto"``."""
    chunk: list[int] = []
    for i in sorted(range(len(lengths)), key=lengths.__getitem__):
        # Lengths ascend: i is the longest.
        full = len(chunk) >= most_rows or (len(chunk) + 1) * lengths[i] > most_tokens
        if chunk and (len(chunk) >= batch_size if isinstance(batch_size, int) else full):
            yield chunk
            chunk = []
        chunk.append(i)
    if chunk:
        yield chunk
