"""Product of experts (PoE): a model trained beside a biased one, so that it need not learn what that one knows.

    p(label) ∝ p_θ(label | x) · p_B(label | x),   log p(y) is trained, p_B stays as it is; p_θ alone answers afterwards

Both are over the task's labels only, after the empty prompt, by one token of each: the first at which all labels
differ. Many tokenizers write " 1" and " 2" as a blank and a digit; the blank is then read as part of the prompt. The
biased model p_B is one that was trained with the objective "sft_spurious".

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), the comparison with debiasing on BBQ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.answers import answer_ids
from lensteer.data.focus import FocusExample, FocusTask
from lensteer.prompts import tokenize
from lensteer.scoring import score_options

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class LabelTokens(NamedTuple):
    """How a task's labels are told apart by one token each.

    Attributes:
        before: the tokens that all of them begin with.
        own: the token of each after these.
    """

    before: list[int]
    own: list[int]


def label_tokens(model: TransformerBridge, task: FocusTask, example: FocusExample) -> LabelTokens:
    """The tokens that tell the labels apart, as they stand after a prompt of the task.

    Raises:
        ValueError: a task without labels, or labels that do not all differ at one and the same token.
    """
    if not task.labels:
        raise ValueError(f"{task.name!r} has free answers; a product of experts is over labels")
    (row,) = tokenize(model, [task.prompt(example)], prompt_format="plain")
    ids = [answer_ids(model, row, label) for label in task.labels]
    same = 0
    while all(len(own) > same + 1 and own[same] == ids[0][same] for own in ids):
        same += 1
    own = [label[same] for label in ids]
    if len(set(own)) < len(own):
        raise ValueError(
            f"the labels {task.labels} do not all differ at their first different token; a product of experts tells "
            "them by it: name them in other words"
        )
    return LabelTokens(ids[0][:same], own)


def expert_log_probs(
    model: TransformerBridge, task: FocusTask, examples: Sequence[FocusExample], *, progress: bool = True
) -> Float[Tensor, "example label"]:
    """log p_B of every label of every example, normalised over the labels.

    Raises:
        ValueError: as `label_tokens`, or a prompt that is too long.
    """
    tokens = label_tokens(model, task, examples[0])
    ids = [[*tokens.before, token] for token in tokens.own]
    prompts = [task.prompt(example) for example in examples]
    (scored,) = score_options(model, prompts, [ids] * len(prompts), prompt_format="plain", progress=progress)
    found = torch.tensor([[float(option.log_probs[-1]) for option in own] for own in scored])
    return found.log_softmax(-1)


def product_log_probs(
    logits: Float[Tensor, "batch vocab"],
    labels: Int[Tensor, " label"],
    experts: Float[Tensor, "batch label"],
) -> Float[Tensor, "batch label"]:
    """log p of every label under the product: the logits of the labels and the other expert, normalised together."""
    return (logits[:, labels].log_softmax(-1) + experts).log_softmax(-1)
