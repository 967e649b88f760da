"""Scores of the labels of a focus task for everything that is asked, and their product with a second model's.

    log p(label | labels) = log softmax over labels of sum_t log p(label_t | prompt, label_<t)
    product of experts:     p ∝ softmax(f(prompt)) · softmax(f_B(empty prompt)), both over the labels alone

The second model f_B is one that was trained on the labels y_s. The paper multiplies the distributions at the first
token of the answer; for labels of one token, as there, this is the same.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 6 (debiasing by product of experts).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.data.focus import Asked, FocusTask

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.hooks import Edit
    from lensteer.prompts import Row
    from lensteer.steering import Steering

    Steered = Iterable[tuple[str, Edit]] | None


def label_log_probs(
    model: TransformerBridge,
    task: FocusTask,
    asked: Sequence[Asked],
    steering: Steered = None,
    *,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> Float[Tensor, "asked label"]:
    """Natural-log probabilities over the labels alone, normalised, of everything asked (float64 on CPU).

    Args:
        asked: as `focus_prompts` or ``task.ask`` gives them.
        steering: strengths and values may hold one row per asked.

    Raises:
        ValueError: as `focus_accuracy`; nothing asked.
    """
    require_choice(task)
    (checked,) = checked_steerings(model, {"": steering}, len(asked)).values()
    rows, ids = tokenised(model, task, asked)
    return choice_scores(model, rows, ids, [checked], batch_size=batch_size, progress=progress)[0].log_softmax(-1)


def require_choice(task: FocusTask) -> None:
    """Refuse a task whose answers are free text.

    Raises:
        TypeError: not a FocusTask. ValueError: no labels.
    """
    if not isinstance(task, FocusTask):
        raise TypeError(f"task must be a lensteer.data.focus.FocusTask, got {type(task).__name__}")
    if not task.labels:
        raise ValueError(
            f"the answers of {task.name!r} are free text, so there are no labels to choose from; generate responses "
            "and let a model judge them (lensteer.evaluate.judge)"
        )


def checked_steerings(model: TransformerBridge, steerings: Any, count: int) -> dict[Any, Steering]:
    """Name -> Steering, checked before any work.

    Raises:
        TypeError: not a mapping, or something that is no steering.
        ValueError: none, one for another number of prompts than ``count``, or one that does not fit the model.
    """
    from lensteer.generate import as_steering
    from lensteer.steering import Steering

    if not isinstance(steerings, Mapping):
        raise TypeError(
            f"steerings must be a mapping, name -> steering, got {type(steerings).__name__}; for a single one use "
            "focus_accuracy"
        )
    if not steerings:
        raise ValueError("no steerings were given; pass at least one (None is no steering)")
    tried = {}
    for name, steering in steerings.items():
        if isinstance(steering, list | tuple) and any(isinstance(one, Steering) for one in steering):
            raise TypeError("a list of Steerings is no steering; take one of them, or all with focus_accuracy_grid")
        tried[name] = as_steering(steering)
        if tried[name].n_rows not in (None, count):
            raise ValueError(
                f"the steering{f' {name!r}' if name != '' else ''} has values for {tried[name].n_rows} prompts, but "
                f"{count} are asked (examples times kinds); make it from focus_prompts with the same arguments"
            )
        tried[name].points(model)
    return tried


def tokenised(
    model: TransformerBridge, task: FocusTask, asked: Sequence[Asked]
) -> tuple[list[Row], list[list[list[int]]]]:
    """Rows and label tokens of everything asked; errors as `label_ids`, with the names of the examples."""
    from lensteer.evaluate.label_scores import label_ids

    names = [f"example {one.example.id!r} ({one.kind})" for one in asked]
    return label_ids(model, [one.prompt for one in asked], task.labels, names)


def choice_scores(
    model: TransformerBridge,
    rows: Sequence[Row],
    ids: Sequence[Sequence[Sequence[int]]],
    steerings: Sequence[Steering],
    *,
    beams: bool = False,
    **run: Any,
) -> list[Float[Tensor, "row label"]]:
    """Log-likelihoods of the labels, exact or by beam search, one tensor per steering."""
    from lensteer.evaluate.label_beams import beam_scores, require_beams
    from lensteer.evaluate.label_scores import label_scores

    if not beams:
        return label_scores(model, rows, ids, steerings, **run)
    for steering in steerings:
        require_beams(steering)
    return [beam_scores(model, rows, ids, steering, **run) for steering in steerings]


def prior_of(bias: Any, task: FocusTask, asked: Sequence[Asked], **run: Any) -> Float[Tensor, "asked label"]:
    """log softmax(f_B) over the labels, one row for each asked.

    Args:
        bias: a model, which reads the empty prompt of each example; or predictions ``[example, label]``, natural
            logarithms, in the order of the examples.

    Raises:
        ValueError: predictions of another shape, or that are not finite; or as `label_log_probs`.
    """
    keys = [(one.example.split, one.example.id) for one in asked]  # two splits may share an id
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys))}
    owners = [numbers[key] for key in keys]
    if not isinstance(bias, torch.nn.Module):
        given = torch.as_tensor(bias, dtype=torch.float64)
        if given.shape != (len(numbers), len(task.labels)) or not given.isfinite().all():
            raise ValueError(
                f"bias holds predictions of shape {tuple(given.shape)}, {int((~given.isfinite()).sum())} of them not "
                f"finite; it needs log-probabilities [example, label], {(len(numbers), len(task.labels))}"
            )
        return given.log_softmax(-1)[owners]
    examples = {key: one.example for key, one in zip(keys, asked, strict=True)}
    empty = [task.ask(example, "empty") for example in examples.values()]
    model: Any = bias
    return label_log_probs(model, task, empty, **run)[owners]


def product(
    scores: Float[Tensor, "asked label"], prior: Float[Tensor, "asked label"] | None
) -> Float[Tensor, "asked label"]:
    """log of softmax(f) · softmax(f_B), normalised; the scores themselves where there is no f_B."""
    return scores if prior is None else (scores.log_softmax(-1) + prior).log_softmax(-1)
