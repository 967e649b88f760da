"""Focus vectors: what a focus instruction adds to the residual stream, as one direction per layer.

    v_l = Σ over cells (y, y_s)  1/#cells · mean over the cell's examples and templates of  h_l(P⁺) − h_l(P⁻)

P⁺ and P⁻ are prompts of the same example with templates of the same number, so they differ in the focus block alone:
P⁺ asks for y_s, such as focus(S), and P⁻ for y, such as focus(C). h_l is read at the token that predicts the label: the
last of the prompt, or, where all labels begin with the same tokens, such as a blank before a digit, the last of these,
which are then put after both prompts (`until_labels_part`). **Every cell weighs the same**, however many examples it
has: P⁺ and P⁻ have their model answer y_s and y, and without the weights v_l would hold the direction from the commoner
y to the commoner y_s. `label_leakage` measures what is left of that. Fit on examples of the training split only.

`Directions.add` applies it: on the empty prompt a positive strength steers toward S and a negative one toward C, at the
last prompt token and all after it (`STEPS`), or at every token after the task instruction (`after_instruction`). Tokens
that labels begin with follow the prompt when labels are scored or generated, so both hold for them too.

The instructions are those of focus instruction tuning (Lamb et al., ICML 2025, arXiv 2410.22944); reading vectors from
them is lensteer's own and not in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.answers import answer_ids, require_prefix_free
from lensteer.capture import capture
from lensteer.data import data_hash
from lensteer.data.focus import TRAINING, Asked, FocusExample, FocusTask, Kind, Wording, focus_on, ignore
from lensteer.methods.directions import Directions, fit_directions
from lensteer.methods.focus_pairs import cell_weights, focus_pairs, until_labels_part
from lensteer.models import fingerprint, plain_model
from lensteer.points import hook_names, is_gated, plain_path
from lensteer.prompts import Row, tokenize
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["Method", "after_instruction", "cell_weights", "focus_pairs", "label_leakage", "vectors"]

Method = Literal["mean", "pca"]
_END = "<END OF INSTRUCTION>\n\n"
_STARTS = ("a", "The", "1", '"', "(")  # what a field may begin with, and a tokenizer may draw to what is before it


def vectors(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    *,
    positive: Kind = "focus(S)",
    negative: Kind = "focus(C)",
    method: Method = "mean",
    templates: int | Sequence[int] = 3,
    site: str = "resid_post",
    layers: int | Iterable[int] | None = None,
    wording: Wording = TRAINING,
    name: str | None = None,
    batch_size: int | Literal["auto"] = "auto",
    resume: str | Path | None = None,
    progress: bool = True,
    seed: int = 0,
) -> Directions:
    """Read both prompts of every example and template, and fit one direction per layer, from P⁻ to P⁺.

    Args:
        examples: of the training split, with every cell (y, y_s) among them.
        positive, negative: the kinds of instructions of P⁺ and P⁻; "empty" has no block at all.
        method: "mean", the difference of the module's formula; or "pca", the first principal component of the
            differences about zero, with the same weights, signed along their mean. (About their mean it would leave
            out the very shift that is looked for; see `lensteer.methods.contrastive`.)
        templates: numbers of templates that every example is asked with, or how many each draws for itself.
        site, layers: where it is read, and added later.
        resume: a folder that keeps every finished batch.
        seed: of the draw of templates.

    Returns:
        directions of norm 1. ``difference_norm`` is the norm of v_l and ``activation_norm`` weighs cells alike; the
        AUROC counts pairs as they are. Where labels begin alike, ``metadata["read_at"]`` is what they begin with.

    Raises:
        ValueError: a cell without examples, kinds or templates that `focus_pairs` refuses, an unknown method, examples
            that the task refuses, a site that the model lacks, a prompt that is too long with its label, labels that
            merge with the end of a prompt or begin one another, or sides that differ at no layer.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {get_args(Method)}, got {method!r}")
    pairs = focus_pairs(
        task, examples, positive=positive, negative=negative, templates=templates, wording=wording, seed=seed
    )
    weights = cell_weights(task, [pair[0].example for pair in pairs])
    names = hook_names(model, site, layers)
    texts = {text: i for i, text in enumerate(dict.fromkeys(asked.prompt for pair in pairs for asked in pair))}
    rows, common = _read_rows(model, task, list(texts))
    how: dict[str, Any] = {"batch_size": batch_size, "resume": resume, "progress": progress}
    found = capture(model, rows, names, prompt_format="plain", **how).stacked()
    sides = [found[:, [texts[pair[side].prompt] for pair in pairs]] for side in (0, 1)]
    about = {
        **fingerprint(model),
        **_about(task, pairs, wording, seed),
        **({"read_at": common} if common else {}),
        **{"prompt_format": "plain", "gated_mlp": str(is_gated(model.hook_dict, 0))},
    }
    shares = weights.double() / weights.double().sum()

    def find(a: Float[Tensor, "pair d"], b: Float[Tensor, "pair d"], small: float) -> Float[Tensor, " d"]:
        mean = shares @ (a - b)
        vector = mean if method == "mean" else _first_component(a - b, shares, mean)
        return vector if float(vector.norm()) > small else torch.zeros_like(vector)

    name = name or f"{positive} against {negative} ({task.name})"
    return fit_directions(sides, site, f"focus_{method}", find, names, about, name, weights=weights)


def _read_rows(model: TransformerBridge, task: FocusTask, prompts: Sequence[str]) -> tuple[list[Row], str]:
    """The prompts up to the token that predicts the label, and what stands there beyond the first of them."""
    rows = tokenize(model, prompts, prompt_format="plain")
    ids = [[answer_ids(model, row, label) for label in task.labels] for row in rows]
    for own in ids:
        require_prefix_free(model, task.labels, own)
    read, _ = until_labels_part(model, rows, ids)
    return read, read[0].text[len(rows[0].text) :]


def label_leakage(model: TransformerBridge, directions: Directions, task: FocusTask) -> pd.DataFrame:
    """How much of each direction points from one label to another: what would tell an answer, not a focus.

    The tokens are the first at which two labels differ, after the task's cue. Their difference in the unembedding is
    compared twice, since a norm lies between: as it is, W_U[a] − W_U[b]; and as what moves logit a − logit b in the
    residual stream, with the final norm's gain (and, of a LayerNorm, its centring) folded in.

    Returns:
        one row per layer and pair of labels: layer, label_a, label_b, token_a, token_b, cosine, cosine_folded, and
        expected_random, the mean \\|cosine\\| of a random direction; NaN where a layer has no direction.

    Raises:
        ValueError: a task of free text, labels without a token in which they differ, directions of another model, or
            at a site that is not as wide as the residual stream.
    """
    import pandas as pd

    Steering((), directions.metadata).points(model)  # refuses a model that they were not fitted on
    width = int(model.cfg.d_model)
    if tuple(directions.direction.shape[1:]) != (width,):
        raise ValueError(
            f"the directions at {directions.site!r} have shape {list(directions.direction.shape[1:])}; the unembedding "
            f"reads vectors of width {width}, as 'resid_post', 'attn_out' and 'mlp_out' hold"
        )
    unembed = plain_model(model).get_output_embeddings().weight.detach()
    expected = math.exp(math.lgamma(width / 2) - math.lgamma((width + 1) / 2)) / math.sqrt(math.pi)
    rows = []
    for (a, b), (token_a, token_b) in _label_tokens(model, task).items():
        plain = (unembed[token_a].double() - unembed[token_b].double()).cpu()
        both = (plain, _through_final_norm(model, plain))
        cosines = [torch.cosine_similarity(directions.direction.double(), own, dim=1) for own in both]
        for layer, u, *found in zip(directions.layers, directions.direction, *cosines, strict=True):
            values = [float(cosine) if u.any() else math.nan for cosine in found]
            rows.append((layer, a, b, token_a, token_b, *values, expected))
    columns = "layer label_a label_b token_a token_b cosine cosine_folded expected_random".split()
    return pd.DataFrame(rows, columns=columns).sort_values("layer", kind="stable", ignore_index=True)


def after_instruction(model: TransformerBridge, task: FocusTask) -> slice:
    """``tokens=`` for `Directions.add`: every token after the task-instruction block, generated ones included.

    The block has the same tokens at the beginning of every prompt of the task (the BOS and the blank line after it
    count as its own), so one number says where it ends, with any padding on the left.

    Raises:
        ValueError: a tokenizer that joins the end of the block to what follows, so that prompts of the task differ in
            the number; or one that does not tell which characters a token covers.
    """
    found = set()
    for text in _possible_prompts(task):
        block, end, rest = text.partition(_END)
        (row,) = tokenize(model, [rest], prompt_format=f"{block}{end}{{prompt}}")
        count = row.own.index(True)
        found.add(tuple(row.ids[:count]))
    (length, *others) = {len(ids) for ids in found}
    if len(found) > 1 or not length:
        raise ValueError(
            f"the task instruction of {task.name!r} does not end at the same token in every prompt ({len(found)} "
            f"beginnings, of {sorted([length, *others])} tokens), so no slice can begin after it; steer at STEPS"
        )
    return slice(length, None)


def _possible_prompts(task: FocusTask) -> list[str]:
    """Prompts that go on in every way after the task instruction."""
    instructions = [focus_on(task.core), ignore(task.core)]
    texts = []
    for start in _STARTS:
        example = FocusExample("probe", dict.fromkeys(task.headings, start), "y", task.spurious[0], "s", "y_s")
        texts += [task.prompt(example), *(task.prompt(example, own) for own in instructions)]
    return list(dict.fromkeys(texts))


def _about(task: FocusTask, pairs: Sequence[tuple[Asked, Asked]], wording: Wording, seed: int) -> dict[str, str]:
    """What a fit records of its data."""
    up, down = pairs[0]
    return {
        **{"task": task.name, "core": task.core, "positive": up.kind, "negative": down.kind},
        "spurious": ", ".join(sorted({pair[0].example.spurious for pair in pairs})),
        **{"wording": wording.name, "templates": " ".join(map(str, sorted({pair[0].template for pair in pairs})))},
        **{"template_seed": str(seed), "n_pairs": str(len(pairs))},
        "data_hash": data_hash([asked.prompt for pair in pairs for asked in pair]),
    }


def _first_component(
    differences: Float[Tensor, "pair d"], shares: Float[Tensor, " pair"], mean: Float[Tensor, " d"]
) -> Float[Tensor, " d"]:
    _, sizes, axes = torch.linalg.svd(shares.sqrt()[:, None] * differences, full_matrices=False)
    sign = -1.0 if float(axes[0] @ mean) < 0 else 1.0
    return sign * sizes[0] * axes[0]


def _label_tokens(model: TransformerBridge, task: FocusTask) -> dict[tuple[str, str], tuple[int, int]]:
    """Of every two labels, the first tokens that differ."""
    if not task.labels:
        raise ValueError(f"{task.name!r} has free text for answers; label leakage is between labels")
    (cue,) = tokenize(model, [task.cue], prompt_format="plain")
    ids = {label: answer_ids(model, cue, label) for label in task.labels}
    found = {}
    for a, b in combinations(task.labels, 2):
        place = next((pair for pair in zip(ids[a], ids[b], strict=False) if pair[0] != pair[1]), None)
        if place is None:
            raise ValueError(f"the labels {a!r} and {b!r} have the same tokens as far as the shorter one goes")
        found[a, b] = place
    return found


def _through_final_norm(model: TransformerBridge, vector: Float[Tensor, " d"]) -> Float[Tensor, " d"]:
    """w such that ⟨h, w⟩, over the size of h, is ⟨N(h), vector⟩ up to a constant: N's linear part, transposed."""
    path = plain_path(model, "ln_final")
    if path is None:
        raise ValueError("the model's final norm was not found; load it with lensteer.load_model")
    norm: Any = plain_model(model).get_submodule(path)
    weight = next(norm.parameters())
    # Every axis has the same size, so one factor is common to all; ± takes out the bias.
    axes = torch.eye(len(vector), device=weight.device, dtype=weight.dtype) * len(vector) ** 0.5
    with torch.no_grad():
        rows = (norm(axes) - norm(-axes)).double().cpu() / 2
    return rows @ vector
