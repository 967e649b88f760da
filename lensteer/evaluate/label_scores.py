"""How likely is each label of a task after a prompt? The exact score, and the token ids that any score of labels needs.

    score(label) = sum_t log p(label_t | prompt, label_<t)

Label and prompt are tokenised together (`lensteer.answers.answer_ids`) and the prompt is plain text. A choice between
labels makes sense only where no label is the beginning of another: then "the response starts with this label" excludes
all others, and beam search knows where a label ends. Equal prompts are scored once.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from jaxtyping import Float
from torch import Tensor

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

    from lensteer.prompts import Row
    from lensteer.steering import Steering


def label_ids(
    model: TransformerBridge, prompts: Sequence[str], labels: Sequence[str], names: Sequence[str] | None = None
) -> tuple[list[Row], list[list[list[int]]]]:
    """The tokenised prompts, and the token ids of every label after its prompt: ``[prompt][label][token]``.

    Args:
        names: what errors call the prompts; by default their numbers.

    Raises:
        ValueError: no prompts or labels, a prompt that leaves no room for a label in the model's context, a label that
            merges with the end of a prompt, or one that is the beginning of another.
    """
    from lensteer.prompts import tokenize

    if isinstance(labels, str) or len(labels) < 2:
        raise ValueError(f"a choice needs two labels or more, got {labels!r}")
    first: dict[str, int] = {}
    for i, prompt in enumerate(prompts):
        first.setdefault(prompt, i)
    called = [f"prompt {i}" for i in range(len(prompts))] if names is None else list(names)
    # Cut here, so that it is refused below by its name.
    rows = tokenize(model, list(first), prompt_format="plain", truncate=True)
    found: dict[str, tuple[Row, list[list[int]]]] = {}
    for (prompt, i), row in zip(first.items(), rows, strict=True):
        found[prompt] = (row, _ids_after(model, row, labels, called[i]))
    return [found[prompt][0] for prompt in prompts], [found[prompt][1] for prompt in prompts]


def _ids_after(model: TransformerBridge, row: Row, labels: Sequence[str], name: str) -> list[list[int]]:
    from lensteer.answers import answer_ids, require_prefix_free
    from lensteer.models import tokenizer_of
    from lensteer.prompts import context_length

    limit = context_length(model)
    if len(row) >= limit:
        count = len(tokenizer_of(model)(row.text)["input_ids"])
        raise ValueError(
            f"{name} has {count} tokens before its answer, which leaves no room for it in the model's context of "
            f"{limit}; give shorter texts or fewer demonstrations (it is never cut: its end is the cue for the answer)"
        )
    try:
        ids = [answer_ids(model, row, label) for label in labels]
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error
    require_prefix_free(model, labels, ids)
    return ids


def distinct(rows: Sequence[Row]) -> tuple[list[int], list[int]]:
    """The first row of each kind, by its tokens, and for every row which of those it equals."""
    numbers: dict[tuple[int, ...], int] = {}
    first: list[int] = []
    owners = []
    for i, row in enumerate(rows):
        key = tuple(row.ids)
        if key not in numbers:
            numbers[key] = len(first)
            first.append(i)
        owners.append(numbers[key])
    return first, owners


def label_scores(
    model: TransformerBridge,
    rows: Sequence[Row],
    ids: Sequence[Sequence[Sequence[int]]],
    steerings: Sequence[Steering],
    *,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> list[Float[Tensor, "row label"]]:
    """The exact score of every label of every row (natural logarithm, float64 on CPU), one tensor per steering.

    Args:
        rows, ids: as `label_ids` gives them. Every row has the same number of labels.
        steerings: those that leave the prompt alone up to its last token share one reading of it. Per-row strengths
            and values have one row for each of ``rows``; then equal rows are scored one by one.

    Raises:
        ValueError: as `lensteer.scoring.score_options`.
    """
    import torch

    from lensteer.scoring import score_options

    first, owners = list(range(len(rows))), list(range(len(rows)))
    if not any(depends_on_rows(steering) for steering in steerings):
        first, owners = distinct(rows)
    scored = score_options(
        model,
        [rows[i] for i in first],
        [ids[i] for i in first],
        steerings,
        batch_size=batch_size,
        prompt_format="plain",
        progress=progress,
    )
    sums = [[[float(label.log_probs.double().sum()) for label in labels] for labels in one] for one in scored]
    return [torch.tensor(one, dtype=torch.float64)[owners] for one in sums]


def depends_on_rows(steering: Steering) -> bool:
    """Whether a steering is for these very rows in this order: per-row values, or read in given prompts."""
    return steering.n_rows is not None or "prompts" in steering.metadata
