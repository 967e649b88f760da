"""What is refused before a focus run begins: examples, lengths, labels, and settings that do not fit the model."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lensteer.answers import answer_ids, require_prefix_free
from lensteer.data.focus import Asked, FocusExample, FocusTask, instruction_of
from lensteer.methods.focus_batches import encode
from lensteer.methods.focus_settings import FocusSettings
from lensteer.models import plain_model, tokenizer_of, twin_of
from lensteer.prompts import tokenize

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_LONGEST = 3  # inputs of each feature that are tried in every wording


def checked_examples(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    validation: Sequence[FocusExample],
    settings: FocusSettings,
    bias: TransformerBridge | None,
) -> tuple[list[FocusExample], list[FocusExample]]:
    """The examples of both sets as lists.

    Raises:
        ValueError, TypeError: as `lensteer.methods.focus_training.train`.
    """
    if (settings.objective == "poe") != (bias is not None):
        raise ValueError(
            f"objective={settings.objective!r} {'needs' if bias is None else 'has no use for'} a biased model, bias="
        )
    if twin_of(model).active:
        raise ValueError("the model is being steered; train outside of the block that steers it")
    _require_first_device(model)
    own = task.require(examples)
    held_out = task.require(validation) if len(validation) else []
    for what in ("source", "id"):
        both = {getattr(example, what) for example in own} & {getattr(example, what) for example in held_out}
        if both:
            raise ValueError(
                f"{len(both)} {what}s stand in the examples and in the validation (first: {sorted(both)[0]!r}); early "
                "stopping needs inputs that training has not seen"
            )
    if task.labels:
        (row,) = tokenize(model, [task.prompt(own[0])], prompt_format="plain", truncate=True)
        require_prefix_free(model, task.labels, [answer_ids(model, row, label) for label in task.labels])
    _require_lengths(model, task, [*own, *held_out], settings)
    return own, held_out


def _require_first_device(model: TransformerBridge) -> None:
    """Refuse another GPU than the first in a single process: the Trainer would move the model there without a word."""
    device = next(plain_model(model).parameters()).device
    if device.type == "cuda" and device.index and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            f"{twin_of(model).name} is on {device}, and training runs on the first GPU that it sees; set "
            f"CUDA_VISIBLE_DEVICES={device.index} and load the model on 'cuda'"
        )


def _require_lengths(
    model: TransformerBridge, task: FocusTask, examples: Sequence[FocusExample], settings: FocusSettings
) -> None:
    """Refuse what may be too long before the first step: the longest inputs in every wording that may be drawn."""
    tokenizer: Any = tokenizer_of(model)
    lengths = [len(ids) for ids in tokenizer([_all_of(task, example) for example in examples])["input_ids"]]
    longest: dict[str, list[FocusExample]] = {}
    for i in sorted(range(len(examples)), key=lambda i: -lengths[i]):
        kept = longest.setdefault(examples[i].spurious, [])
        if len(kept) < _LONGEST:
            kept.append(examples[i])
    for example in (one for kept in longest.values() for one in kept):
        for asked in _everything_asked(task, example, settings):
            encode(model, asked, max_length=settings.max_length, eos=settings.eos)


def _all_of(task: FocusTask, example: FocusExample) -> str:
    return f"{task.prompt(example)} {max(example.y, example.y_s, key=len)}"


def _everything_asked(task: FocusTask, example: FocusExample, settings: FocusSettings) -> Iterator[Asked]:
    """An example under every instruction and wording that its objective may draw, with either answer."""
    empty = task.ask(example, "empty")
    yield from (empty, replace(empty, target=example.y_s))
    if settings.objective != "fit":
        return
    wording = settings.sampler.wording
    for kind in settings.sampler.kinds:
        for template in range(len(wording.templates(instruction_of(kind, task.core, example.spurious)))):
            yield task.ask(example, kind, wording=wording, template=template)
