"""Teacher-forced log-probabilities of responses given their prompts, with or without steering.

Each distinct prompt is read once; its keys and values are handed to all of its responses, which are then read in one
pass each. An edit that acts on prompt or generated tokens only sees the same split as in decoding, so the scores equal
those of step-by-step decoding under the same steering. Steerings that leave the prompt alone up to its last token
share one reading of what lies before it: a grid of them costs little more than one.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.attach import face_for
from lensteer.capture import run
from lensteer.generate import as_steering, require_prompts
from lensteer.hooks import Edit
from lensteer.models import plain_model, tokenizer_of, twin_of
from lensteer.positions import STEPS, At
from lensteer.progress import progress_bar
from lensteer.prompts import Batch, Prompt, Row, batches, budget, chunks, context_length, tokenize
from lensteer.shared_beginning import WORTH, can_share, expanded, laid_out, shared_tokens
from lensteer.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Scored:
    """What the model thinks of one response.

    Attributes:
        log_probs: natural-log probability of every response token given the prompt and the tokens before it.
        predicted: the token that the model finds most likely at each of these places, over the whole vocabulary.
    """

    log_probs: Float[Tensor, " token"]
    predicted: Int[Tensor, " token"]


def log_probs(
    model: TransformerBridge,
    prompts: Sequence[Prompt],
    responses: Sequence[str] | Sequence[Sequence[int]],
    steering: Iterable[tuple[str, Edit]] | None = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "auto",
    progress: bool = True,
) -> list[Float[Tensor, " token"]]:
    """Natural-log probability of every response token given its prompt and the tokens before it.

    Args:
        responses: text, tokenised without special tokens, or token ids as `generate` returns them (exact).
        steering: strengths may hold one value per prompt.

    Returns:
        one float32 CPU tensor per prompt; empty for an empty response.

    Raises:
        ValueError: numbers of prompts and responses that differ, or a sequence longer than the context.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "prompt_format": prompt_format, "progress": progress}
    return [scored.log_probs for scored in score(model, prompts, responses, steering, **options)]


def score(
    model: TransformerBridge,
    prompts: Sequence[Prompt | Row],
    responses: Sequence[str] | Sequence[Sequence[int]],
    steering: Iterable[tuple[str, Edit]] | None = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "auto",
    progress: bool = True,
) -> list[Scored]:
    """Log-probabilities as `log_probs`, and what the model would have said instead; arguments and errors as there."""
    if isinstance(responses, str):
        raise TypeError("responses must be a list; for one response write [response]")
    if len(prompts) != len(responses):
        raise ValueError(
            f"{len(prompts)} prompts but {len(responses)} responses; there must be one response per prompt"
        )
    steering = as_steering(steering)
    answers = [_token_ids(model, response, i) for i, response in enumerate(responses)]
    asked = tokenize(model, prompts, prompt_format=prompt_format)
    _require_context(model, asked, [[answer] for answer in answers])
    require_prompts(steering, asked)
    owners: dict[tuple[int, ...], list[int]] = {}
    for i, row in enumerate(asked):
        owners.setdefault(tuple(row.ids), []).append(i)
    scores: dict[int, Scored] = {}
    with progress_bar(len(asked), "score", shown=progress) as bar:
        if steering.n_rows is None and len(owners) < len(asked):
            groups = list(owners.values())
            distinct, shared = [asked[group[0]] for group in groups], [[answers[i] for i in g] for g in groups]
            for _, group, number, scored in _with_shared_prompts(model, distinct, shared, [steering], batch_size):
                scores[groups[group][number]] = scored
                bar.update()
        else:
            for i, scored in _in_one_pass(model, asked, answers, steering, batch_size):
                scores[i] = scored
                bar.update()
    return [scores[i] for i in range(len(asked))]


def score_options(
    model: TransformerBridge,
    prompts: Sequence[Prompt | Row],
    options: Sequence[Sequence[Sequence[int]]],
    steerings: Sequence[Iterable[tuple[str, Edit]] | None] = (None,),
    *,
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "auto",
    progress: bool = True,
) -> list[list[list[Scored]]]:
    """Every option (token ids) of every prompt under every steering; a prompt is read once for all of its options.

    Args:
        steerings: None is no steering. Per-row strengths and values have one row per prompt, and hold for all of its
            options.

    Returns:
        ``[steering][prompt][option]``.

    Raises:
        ValueError: as `log_probs`; no steerings.
    """
    if len(prompts) != len(options) or not steerings:
        raise ValueError(
            f"{len(prompts)} prompts, {len(options)} lists of options and {len(steerings)} steerings; there must be a "
            "list of options for every prompt, and a steering (None is no steering)"
        )
    tried = [as_steering(steering) for steering in steerings]
    asked = tokenize(model, prompts, prompt_format=prompt_format)
    answers = [[_token_ids(model, option, i) for option in own] for i, own in enumerate(options)]
    _require_context(model, asked, answers)
    for steering in tried:
        steering.points(model)
        require_prompts(steering, asked)
    scores: list[list[list[Any]]] = [[[None] * len(own) for own in answers] for _ in tried]
    with progress_bar(len(tried) * sum(map(len, answers)), "score", shown=progress) as bar:
        for number, prompt, option, scored in _with_shared_prompts(model, asked, answers, tried, batch_size):
            scores[number][prompt][option] = scored
            bar.update()
    return scores


def _token_ids(model: TransformerBridge, response: Any, number: int) -> list[int]:
    if isinstance(response, str):
        return list(tokenizer_of(model)(response, add_special_tokens=False)["input_ids"])
    size = len(plain_model(model).get_input_embeddings().weight)  # type: ignore[arg-type]
    if any(isinstance(i, str) for i in response):
        raise TypeError(f"response {number} is {response!r}; a response is a text or a list of token ids")
    ids = [int(i) for i in response]
    wrong = [i for i in ids if not 0 <= i < size]
    if wrong:
        raise ValueError(f"response {number} holds token {wrong[0]}, but the model's vocabulary has {size} tokens")
    return ids


def _require_context(model: TransformerBridge, asked: Sequence[Row], answers: Sequence[Sequence[list[int]]]) -> None:
    limit = context_length(model)
    for i, (row, own) in enumerate(zip(asked, answers, strict=True)):
        longest = max(map(len, own), default=0)
        if len(row) + max(longest - 1, 0) > limit:  # nothing is predicted from the last token: it is not read
            raise ValueError(
                f"prompt {i} and its response have {len(row)} + {longest} tokens, more than the model's context of "
                f"{limit}; shorten one of them"
            )


def _in_one_pass(
    model: TransformerBridge,
    asked: Sequence[Row],
    answers: Sequence[list[int]],
    steering: Steering,
    batch_size: int | Literal["auto"],
) -> Iterator[tuple[int, Scored]]:
    """Prompt and response together, less its last token; left padding puts every response at the right edge."""
    rows = [Row(r.ids + a[:-1], r.own + [False] * len(a[:-1]), r.text) for r, a in zip(asked, answers, strict=True)]
    face = face_for(model, steering.points(model))
    for batch in batches(model, rows, batch_size, purpose="read"):
        longest = max(len(answers[i]) for i in batch.rows)
        lengths = torch.tensor([len(asked[i]) for i in batch.rows], device=batch.input_ids.device)
        with torch.inference_mode(), steering.rows(batch.rows).on(model, prompt_length=lengths):
            logits = run(face, batch, **keep_last(face, max(longest, 1))).logits
        tokens = torch.zeros(len(batch.rows), longest, dtype=torch.long)
        for line, i in zip(tokens, batch.rows, strict=True):
            line[longest - len(answers[i]) :] = torch.tensor(answers[i], dtype=torch.long)
        # The logits before a token are those that predict it.
        scored = _score(logits[:, logits.shape[1] - longest :], tokens)
        for line, best, i in zip(*scored, batch.rows, strict=True):
            start = longest - len(answers[i])
            yield i, Scored(line[start:].clone(), best[start:].clone())


def _with_shared_prompts(
    model: TransformerBridge,
    asked: Sequence[Row],
    answers: Sequence[Sequence[Sequence[int]]],
    steerings: Sequence[Steering],
    batch_size: int | Literal["auto"],
) -> Iterator[tuple[int, int, int, Scored]]:
    """Each prompt once, then its responses on top of copies of its KV cache; yields (steering, prompt, response, …)."""
    late = [_acts_late(steering) for steering in steerings]
    face = face_for(model, ())
    share = any(late) and can_share(face) and not twin_of(model).active
    for batch in batches(model, asked, batch_size, purpose="read"):
        before, lengths = None, batch.attention_mask.sum(1)
        count = shared_tokens(batch.input_ids, lengths, keep=2) if share else 0
        if count >= WORTH:
            batch = Batch(*laid_out(batch.input_ids, lengths, count), batch.rows)
        if (sum(late) > 1 or count >= WORTH) and int(lengths.min()) > 1:
            before = _read_early(model, face, batch, lengths, count if count >= WORTH else 0)
        for number, steering in enumerate(steerings):
            start = fresh_cache(before) if late[number] and before is not None else None
            for row, i, scored in _responses(model, batch, answers, steering, start, batch_size):
                yield number, row, i, scored


def _read_early(model: TransformerBridge, face: Any, batch: Batch, lengths: Tensor, count: int) -> Any:
    """The KV cache of the prompts without their last token; the first ``count`` tokens are the same in all of them."""
    ids, mask, positions, rows = batch
    options: dict[str, Any] = {"use_cache": True, **keep_last(face, 1)}
    with torch.inference_mode():
        if count:
            first = Batch(ids[:1, :count], mask[:1, :count], positions[:1, :count], rows[:1])
            with Steering().on(model, prompt_length=lengths[:1]):
                options["past_key_values"] = expanded(run(face, first, **options).past_key_values, len(rows))
        early = Batch(ids[:, count:-1], mask[:, :-1], positions[:, count:-1], rows)
        # A steering that is open around this call must not take the last token but one for the prompt's last.
        with Steering().on(model, prompt_length=lengths):
            return run(face, early, **options).past_key_values


def _acts_late(steering: Steering) -> bool:
    """Whether every edit leaves the prompt's tokens before the last alone."""
    late = ("last", "generated", STEPS)
    return all(isinstance(edit, At) and edit.tokens in late for _, edit in steering)


def _responses(
    model: TransformerBridge,
    batch: Batch,
    answers: Sequence[Sequence[Sequence[int]]],
    steering: Steering,
    before: Any,
    batch_size: int | Literal["auto"],
) -> Iterator[tuple[int, int, Scored]]:
    """All responses to a batch of prompts; ``before`` is the KV cache of the prompts without their last token."""
    face, lengths = face_for(model, steering.points(model)), batch.attention_mask.sum(1)
    part, options = batch, {"use_cache": True, **keep_last(face, 1)}
    if before is not None:
        part = Batch(batch.input_ids[:, -1:], batch.attention_mask, batch.position_ids[:, -1:], batch.rows)
        options["past_key_values"] = before
    with torch.inference_mode(), steering.rows(batch.rows).on(model, prompt_length=lengths):
        output = run(face, part, **options)
    logits = output.logits[:, -1].float()
    first, best = logits.log_softmax(-1).cpu(), logits.argmax(-1, keepdim=True).cpu()
    members = [(k, i, list(answer)) for k, row in enumerate(batch.rows) for i, answer in enumerate(answers[row])]
    # Rows are bounded because each has a copy of its prompt's cache, tokens because each has logits of the vocabulary.
    most = max(1, min(64, budget(model, "write")[1] // batch.input_ids.shape[1]))
    for numbers in chunks([len(answer) for _, _, answer in members], batch_size, most, budget(model, "read")[1]):
        chunk = [members[number] for number in numbers]
        own = steering.rows([batch.rows[k] for k, _, _ in chunk])
        with torch.inference_mode(), own.on(model, prompt_length=lengths[[k for k, _, _ in chunk]]):
            rest = _continue(face, batch, output.past_key_values, chunk)
        for (k, i, answer), line, said in zip(chunk, *rest, strict=True):
            more = max(len(answer) - 1, 0)
            predicted = torch.cat([best[k], said[:more]])[: len(answer)]
            yield batch.rows[k], i, Scored(torch.cat([first[k, answer[:1]], line[:more]]), predicted)


def _continue(
    face: Any, batch: Batch, cache: Any, chunk: Sequence[tuple[int, int, list[int]]]
) -> tuple[Float[Tensor, "row token"], Int[Tensor, "row token"]]:
    """Scores of the second and later response tokens, right-padded, on CPU."""
    longest = max(len(answer) for _, _, answer in chunk)
    if longest < 2:
        return torch.zeros(len(chunk), 0), torch.zeros(len(chunk), 0, dtype=torch.long)
    owner = torch.tensor([k for k, _, _ in chunk], device=batch.input_ids.device)
    ids = torch.zeros(len(chunk), longest, dtype=torch.long)
    for line, (_, _, answer) in zip(ids, chunk, strict=True):
        line[: len(answer)] = torch.tensor(answer, dtype=torch.long)
    ids = ids.to(batch.input_ids.device)
    own = fresh_cache(cache)
    own.batch_select_indices(owner.cpu())  # layers may be spread over several devices
    mask = torch.cat([batch.attention_mask[owner], torch.ones_like(ids[:, :-1])], 1)
    # Padding on the right is of no effect, but its positions must exist in the model's context.
    read = torch.tensor([[max(len(answer) - 1, 0)] for _, _, answer in chunk], device=owner.device)
    ends = batch.attention_mask[owner].sum(1, keepdim=True) + read - 1
    positions = torch.minimum(mask.cumsum(1) - 1, ends)[:, -(longest - 1) :]
    part = Batch(ids[:, :-1], mask, positions, [])
    logits = run(face, part, use_cache=True, past_key_values=own).logits
    return _score(logits, ids[:, 1:])


def fresh_cache(cache: Any) -> Any:
    """A KV cache that grows without changing this one; keys and values are shared where growing makes new tensors."""
    from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

    if type(cache) is not DynamicCache or not all(
        type(layer) in (DynamicLayer, DynamicSlidingWindowLayer) for layer in cache.layers
    ):
        return copy.deepcopy(cache)  # other layers may write in place
    own = copy.copy(cache)
    own.layers = [copy.copy(layer) for layer in cache.layers]
    return own


def _score(
    logits: Float[Tensor, "batch pos vocab"], tokens: Int[Tensor, "batch pos"]
) -> tuple[Float[Tensor, "batch pos"], Int[Tensor, "batch pos"]]:
    """Log-probabilities of the tokens, and the most likely token at each place, on CPU."""
    wide = logits.float()
    chosen = wide.gather(-1, tokens.to(wide.device).unsqueeze(-1)).squeeze(-1)
    return (chosen - wide.logsumexp(-1)).cpu(), wide.argmax(-1).cpu()


def keep_last(face: Any, count: int) -> dict[str, int]:
    """Unembed the last ``count`` positions only, where the model can."""
    return {"logits_to_keep": count} if "logits_to_keep" in inspect.signature(face.forward).parameters else {}
