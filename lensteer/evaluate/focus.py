"""Focus accuracy: does the answer follow the feature that the focus instruction names?

    accuracy(kind) = share of examples with prediction = y_focus(instruction, s, y)                 (Eq. 5 of the paper)
    prediction     = argmax over labels of sum_t log p(label_t | prompt, label_<t)                  ("exact")

Every example is asked under every kind of instruction; the answer asked for is y, or the label y_s that its spurious
value stands for. Where both are the same label a right answer does not show which feature decided: read the rows that
are `informative`. A choice between labels says nothing about how likely any of them is: `probability_inside` does.

"beam" is the published way to choose, constrained beam search (`label_beams`), and several times slower. The paper
then looks for y_focus as a substring of the response; here the response is one label, and labels are compared.

With ``bias=`` a second model's distribution over the labels is multiplied in (product of experts, section 6 there):

    p(label) ∝ softmax(f(prompt))_label · softmax(f_B(empty prompt))_label              both over the labels alone

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 5 and Eq. 5.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from jaxtyping import Float

from lensteer.data.focus import KINDS, TRAINING, Asked, FocusExample, FocusTask, Kind, Wording
from lensteer.evaluate._inputs import table
from lensteer.evaluate.focus_prompts import focus_prompts
from lensteer.evaluate.focus_scores import (
    checked_steerings,
    choice_scores,
    label_log_probs,
    prior_of,
    product,
    require_choice,
    tokenised,
)

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.evaluate.focus_scores import Steered

__all__ = ["focus_accuracy", "focus_accuracy_grid", "focus_prompts", "label_log_probs"]

_COLUMNS = {
    "example_id": object,
    "source": object,
    "split": object,
    "spurious": object,
    "kind": object,
    "template": int,
    "y": object,
    "s": object,
    "y_s": object,
    "target": object,
    "predicted": object,
    "correct": bool,
    "informative": bool,
    "says_y": bool,
    "says_y_s": bool,
    "probability_inside": float,
    "log_likelihoods": object,
}


def focus_accuracy(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    steering: Steered = None,
    *,
    kinds: Sequence[Kind] = KINDS,
    told: bool = True,
    scoring: Literal["exact", "beam"] = "exact",
    wording: Wording = TRAINING,
    template: int | None = None,
    shots: int = 0,
    demonstrations: Sequence[FocusExample] = (),
    bias: TransformerBridge | Float[Tensor, "example label"] | None = None,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Ask every example under every kind of instruction, with or without steering.

    Each distinct prompt is scored once, however many splits hold it.

    Args:
        steering: strengths and values may hold one row per (example, kind), in the order of the result; make them from
            the prompts of `focus_prompts` with the same arguments. Not with "beam".
        told: False leaves the focus instruction out of the prompt but keeps the kind's target.
        template: which one of the wording; None draws one per input and kind from ``seed``.
        shots: demonstrations before each query, drawn from ``demonstrations`` (training examples); see `focus_prompts`.
        bias: a model whose distribution over the labels is multiplied in; it reads the empty prompt, unsteered and
            without demonstrations. Or its predictions, natural logarithms ``[example, label]`` as `label_log_probs`
            gives them for the empty prompts. Not with "beam".

    Returns:
        one row per (example, kind), all kinds of the first example first: `example_id`, `source` (what it was made
        from; examples of one source do not count as independent), `split`, `spurious` (the feature), `kind`,
        `template`, `y`, `s`, `y_s`, `target` (y_focus); `predicted`, the first label with the largest score, and
        `correct`, that it is the target and no other label has the same score; `informative` (y is not y_s); `says_y`
        and `says_y_s`, `correct` as if these were the target; `probability_inside` (that the response starts with a
        label; of the labels that beam search kept); `log_likelihoods`, a list over ``task.labels``
        (natural logarithm, summed over tokens; -inf where beam search dropped the label; with ``bias`` the logarithm
        of the product, normalised over the labels).

    Raises:
        TypeError: examples or steering of another kind.
        ValueError: a task without labels, labels of which one is the beginning of another, examples that are not the
            task's, a prompt that leaves no room for the answer in the context, too few demonstrations or one that is
            among the examples, a steering with values for another number of prompts, or bad predictions as bias.
    """
    found = focus_accuracy_grid(
        model,
        task,
        examples,
        {"": steering},
        kinds=kinds,
        told=told,
        scoring=scoring,
        wording=wording,
        template=template,
        shots=shots,
        demonstrations=demonstrations,
        bias=bias,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    return found.drop(columns="steering")


def focus_accuracy_grid(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    steerings: Mapping[Any, Steered],
    *,
    kinds: Sequence[Kind] = KINDS,
    told: bool = True,
    scoring: Literal["exact", "beam"] = "exact",
    wording: Wording = TRAINING,
    template: int | None = None,
    shots: int = 0,
    demonstrations: Sequence[FocusExample] = (),
    bias: TransformerBridge | Float[Tensor, "example label"] | None = None,
    batch_size: int | Literal["auto"] = "auto",
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """As `focus_accuracy`, under many steerings (name -> steering, None is no steering).

    With exact scores, those that leave the prompt alone up to its last token (``tokens`` "last", "generated" or
    `STEPS`) share one reading of it, so a grid of them costs little more than one.

    Returns:
        the table of `focus_accuracy` for one steering after the other, and a first column `steering` with its name.

    Raises:
        TypeError, ValueError: as `focus_accuracy`; no steerings, or one where several belong.
    """
    require_choice(task)
    _require_scoring(scoring, bias)
    asked = focus_prompts(
        task,
        examples,
        kinds=kinds,
        told=told,
        wording=wording,
        template=template,
        shots=shots,
        demonstrations=demonstrations,
        seed=seed,
    )
    run: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    tried = checked_steerings(model, steerings, len(asked))
    rows, ids = tokenised(model, task, asked)
    prior = None if bias is None else prior_of(bias, task, asked, **run)
    found = choice_scores(model, rows, ids, list(tried.values()), beams=scoring == "beam", **run)
    lines = [
        {"steering": name, **_line(task, one, values, mixed)}
        for name, scores in zip(tried, found, strict=True)
        for one, values, mixed in zip(asked, scores.tolist(), product(scores, prior).tolist(), strict=True)
    ]
    import pandas as pd

    return table(lines, {"steering": object, **_COLUMNS}, pd.RangeIndex(len(lines)))


def _require_scoring(scoring: str, bias: Any) -> None:
    if scoring not in ("exact", "beam"):
        raise ValueError(f"scoring must be 'exact' or 'beam', got {scoring!r}")
    if bias is not None and scoring == "beam":
        raise ValueError("a product with bias= needs the scores of all labels; use scoring='exact'")


def _line(task: FocusTask, one: Asked, values: list[float], mixed: list[float]) -> dict[str, Any]:
    """A row of the table; NaN, of a steering that overflowed, is never the largest score and no probability."""
    numbers = [-math.inf if math.isnan(value) else value for value in mixed]
    best = [label for label, value in zip(task.labels, numbers, strict=True) if value == max(numbers)]
    said, example = (best[0] if len(best) == 1 else None), one.example
    return {
        **{"example_id": example.id, "source": example.source},
        **{"split": example.split, "spurious": example.spurious},
        **{"kind": one.kind, "template": one.template, "y": example.y, "s": example.s, "y_s": example.y_s},
        **{"target": one.target, "predicted": best[0], "correct": said == one.target},
        **{"informative": example.informative, "says_y": said == example.y, "says_y_s": said == example.y_s},
        # No label is the beginning of another.
        "probability_inside": min(math.fsum(math.exp(p) for p in values if not math.isnan(p)), 1.0),
        "log_likelihoods": mixed,
    }
