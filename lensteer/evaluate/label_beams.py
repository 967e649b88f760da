"""Constrained beam search over the labels of a task: the published way to make a model answer with one of them.

    a beam is a path in the trie of the tokenised labels;  score(beam) = sum_t log p(token_t | prompt, beam)

Tokens off the trie have log-probability -inf, and at the end of a label the end-of-text token has 0, so that a finished
beam scores exactly what the label scores (`label_scores`) and ending costs nothing. With as many beams as labels, or
more, nothing is dropped and the choice is the exact one; with fewer, a label may be lost for an unlikely first token.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 5: 4 beams, at most 5 new tokens, a label must occur. There
it may occur anywhere in the response; here the response is the label, which is stricter (transformers no longer has
the constrained search of Anderson et al. 2017).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.evaluate.label_scores import depends_on_rows, distinct, label_ids

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.hooks import Edit
    from lensteer.prompts import Batch, Row
    from lensteer.steering import Steering

_LOST = -1e8  # transformers gives beams that it dropped -1e9


def label_beams(
    model: TransformerBridge,
    prompts: Sequence[str],
    labels: Sequence[str],
    steering: Iterable[tuple[str, Edit]] | None = None,
    *,
    num_beams: int = 4,
    max_new_tokens: int = 5,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> Float[Tensor, "prompt label"]:
    """Log-likelihood of every label that the search kept (natural logarithm), -inf for those that it dropped.

    The largest of a row is the label that the model answers with.

    Args:
        prompts: plain text; the labels follow after a blank.
        steering: one that does the same to every row; its edits see beams as they see any rows.
        max_new_tokens: raised to the tokens of the longest label where that is more.
        batch_size: prompts a batch; each is read once for every beam.

    Raises:
        ValueError: as `label_ids`; less than two beams; a steering with per-row values, which beams do not keep.
    """
    rows, ids = label_ids(model, prompts, labels)
    options: dict[str, Any] = {"num_beams": num_beams, "max_new_tokens": max_new_tokens}
    return beam_scores(model, rows, ids, steering, **options, batch_size=batch_size, progress=progress)


def beam_scores(
    model: TransformerBridge,
    rows: Sequence[Row],
    ids: Sequence[Sequence[Sequence[int]]],
    steering: Iterable[tuple[str, Edit]] | None = None,
    *,
    num_beams: int = 4,
    max_new_tokens: int = 5,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> Float[Tensor, "row label"]:
    """As `label_beams`, for rows and labels that are tokenised already, ``[row][label][token]``."""
    from lensteer.generate import as_steering
    from lensteer.progress import progress_bar
    from lensteer.prompts import input_device, make_batch, pad_id

    steering = as_steering(steering)
    require_beams(steering, num_beams, batch_size)
    steering.points(model)
    first, owners = distinct(rows)
    longest = max(len(tokens) for i in first for tokens in ids[i])
    found = torch.full((len(first), len(ids[0])), -torch.inf, dtype=torch.float64)
    with progress_bar(len(first), "beams", shown=progress) as bar:
        for chosen in _chunks(model, [len(rows[i]) + longest for i in first], num_beams, batch_size):
            own = [first[k] for k in chosen]
            batch = make_batch([rows[i] for i in own], chosen, pad_id(model), input_device(model))
            tries = [ids[i] for i in own]
            sequences, scores = _search(model, batch, tries, steering, num_beams, max(max_new_tokens, longest))
            for k, labels, beams, values in zip(chosen, tries, sequences, scores, strict=True):
                found[k] = _scores_of(labels, beams, values)
            bar.update(len(chosen))
    return found[owners]


def require_beams(steering: Steering, num_beams: int = 4, batch_size: Any = "auto") -> None:
    """Refuse what beam search cannot do, before any work.

    Raises:
        ValueError: a steering with per-row values, less than two beams, or a bad batch size.
    """
    if depends_on_rows(steering):
        raise ValueError(
            f"the steering has values for {steering.n_rows or 'given'} prompts; beam search copies and reorders rows, "
            "which such values do not follow: use exact scores for it (scoring='exact')"
        )
    if num_beams < 2:
        raise ValueError(f"num_beams must be 2 or more, got {num_beams}")
    if batch_size != "auto" and (not isinstance(batch_size, int) or batch_size < 1):
        raise ValueError(f"batch_size must be 'auto' or a positive integer, got {batch_size!r}")


def _chunks(model: TransformerBridge, lengths: list[int], beams: int, batch_size: int | str) -> Iterable[list[int]]:
    """Prompt numbers, batch by batch; an automatic batch counts every beam as a row."""
    from lensteer.prompts import budget, chunks

    most_rows, most_tokens = budget(model, "write")
    return chunks(lengths, batch_size, max(1, most_rows // beams), most_tokens // beams)


def _search(
    model: TransformerBridge,
    batch: Batch,
    labels: Sequence[Sequence[Sequence[int]]],
    steering: Steering,
    num_beams: int,
    max_new_tokens: int,
) -> tuple[list[list[list[int]]], list[list[float]]]:
    """The beams that transformers found for every prompt of a batch, best first, and their scores."""
    from contextlib import ExitStack

    from transformers import GenerationConfig, LogitsProcessorList

    from lensteer.attach import face_for
    from lensteer.models import twin_of
    from lensteer.prompts import pad_id, stop_ids

    width, end = batch.input_ids.shape[1], (stop_ids(model) or [pad_id(model)])[0]
    processor: Any = _OnTrie([_trie(own, end) for own in labels], end, width, num_beams)
    config = GenerationConfig(
        max_new_tokens=max_new_tokens,
        num_beams=num_beams,
        num_return_sequences=num_beams,
        do_sample=False,
        length_penalty=0.0,  # a score is a sum of log-probabilities, not divided by any length
        early_stopping="never",
        repetition_penalty=1.0,
        eos_token_id=end,
        pad_token_id=pad_id(model),
        return_dict_in_generate=True,
        output_scores=True,
    )
    with torch.inference_mode(), ExitStack() as stack:
        stack.enter_context(twin_of(model).lock)
        face = face_for(model, steering.points(model))
        stack.enter_context(steering.on(model))
        # Whatever our configuration leaves open, transformers would fill in from the model's own.
        stack.callback(setattr, face, "generation_config", face.generation_config)
        face.generation_config = GenerationConfig()
        output = face.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=config,
            logits_processor=LogitsProcessorList([processor]),
        )
    sequences = output.sequences[:, width:].unflatten(0, (-1, num_beams))
    return sequences.tolist(), output.sequences_scores.unflatten(0, (-1, num_beams)).tolist()


def _trie(labels: Sequence[Sequence[int]], end: int) -> dict[tuple[int, ...], list[int]]:
    """What may follow each beginning of a label; after a whole label, the end."""
    following: dict[tuple[int, ...], set[int]] = {}
    for label in labels:
        for n, token in enumerate(label):
            following.setdefault(tuple(label[:n]), set()).add(token)
        following[tuple(label)] = {end}
    return {beginning: sorted(tokens) for beginning, tokens in following.items()}


class _OnTrie:
    """A logits processor: keeps the log-probabilities of tokens that continue a label, and ends whole ones for free.

    Args:
        tries: one per prompt; a prompt's beams are neighbours.
        width: columns of the prompts.
    """

    def __init__(self, tries: Sequence[dict[tuple[int, ...], list[int]]], end: int, width: int, num_beams: int) -> None:
        self.tries, self.end, self.width, self.num_beams = tries, end, width, num_beams

    def __call__(self, input_ids: Int[Tensor, "beam pos"], scores: Float[Tensor, "beam vocab"]) -> Tensor:
        kept = torch.full_like(scores, -torch.inf)
        for row, so_far in enumerate(input_ids[:, self.width :].tolist()):
            allowed = self.tries[row // self.num_beams].get(tuple(so_far), [])
            if allowed == [self.end]:
                kept[row, self.end] = 0.0
            elif allowed:
                # NaN, of a steering that overflowed, would win every comparison.
                kept[row, allowed] = scores[row, allowed].nan_to_num(nan=-torch.inf, neginf=-torch.inf)
        return kept


def _scores_of(
    labels: Sequence[Sequence[int]], beams: Sequence[Sequence[int]], values: Sequence[float]
) -> Float[Tensor, " label"]:
    """The scores of the labels that the beams hold; -inf for the others."""
    held = [
        [value for beam, value in zip(beams, values, strict=True) if beam[: len(own)] == own and value > _LOST]
        for own in map(list, labels)
    ]
    return torch.tensor([max(own, default=-torch.inf) for own in held], dtype=torch.float64)
