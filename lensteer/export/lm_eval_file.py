"""A steering as the file of lm-eval's own steered model, for those who have lm-eval but not lensteer.

    lm_eval --model steered --model_args pretrained=…,steer_path=steering.pt --tasks …

Its format is small: at the output of a module, at every position, one vector is added or one projection is set. What
does not fit is refused; `lensteer.evaluate.lm_eval_model` runs any steering in lm-eval.
"""

from __future__ import annotations

import io
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensteer.generate import as_steering
from lensteer.hooks import Add, Edit, SetProjection
from lensteer.models import plain_model
from lensteer.points import Point
from lensteer.positions import At
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def to_lm_eval(steering: Iterable[tuple[str, Edit]], model: TransformerBridge, path: str | Path) -> Path:
    """Write a steering as the file that lm-eval's ``--model steered`` reads.

    Fits: `Add`, and `SetProjection` at strength 1, at the output of a module (``resid_post``, ``attn_out``,
    ``mlp_out``), at all positions. Several `Add` at one point become their sum. Edits of strength 0 do nothing and are
    left out.

    Args:
        path: ends in ``.pt`` or ``.pth``.

    Returns:
        the path.

    Raises:
        ValueError: an edit that the format cannot hold; names it, says why and what would work. Nothing is written.

    Source: the format is that of ``lm_eval.models.hf_steered`` (lm-eval 0.4.13): ``{module: {"steering_vector",
    "steering_coefficient", "action": "add" | "clamp", "head_index", "bias"}}``, modules named within ``base_model``.
    """
    path = Path(path)
    if path.suffix not in (".pt", ".pth"):
        raise ValueError(f"{path} must end in .pt or .pth, or lm-eval will not read it")
    steering = as_steering(steering)
    modules: dict[str, list[Edit]] = {}
    for number, (point, (name, edit)) in enumerate(zip(steering.points(model), steering, strict=True)):
        if not isinstance(edit.strength, Tensor) and edit.strength == 0:
            continue
        module = _output_of(model, point)
        problem = _unlike(edit) or _elsewhere(point, module) or _beside(edit, modules.get(module, []))
        if problem:
            kind = type(edit.edit if isinstance(edit, At) else edit).__name__
            raise ValueError(
                f"edit {number}, {kind} at {name!r}, does not fit lm-eval's steered file: {problem}. Any steering runs "
                "in lm-eval as its model 'lensteer', see lensteer.evaluate.lm_eval_model"
            )
        modules.setdefault(module, []).append(edit)
    buffer = io.BytesIO()
    torch.save({module: _entry(edits) for module, edits in modules.items()}, buffer)
    return write_atomically(path, buffer.getvalue())


def _output_of(model: TransformerBridge, point: Point) -> str:
    """The name within ``base_model`` of the module whose output a point is; empty where there is none."""
    if point.module is None or point.side != "out":
        return ""
    plain = plain_model(model)
    target = plain.get_submodule(point.module)
    return next((name for name, module in plain.base_model.named_modules() if module is target), "")


def _unlike(edit: Edit) -> str:
    """Why an edit is none of the two that the format knows; empty where it is."""
    if isinstance(edit, At):
        return f"it acts at tokens={edit.tokens!r}, and the format edits every position; use the edit without at(…)"
    if edit.n_rows is not None:
        return f"it has values for {edit.n_rows} rows, and the format holds one number; use at_strength(number)"
    if isinstance(edit, SetProjection):
        if edit.along is not None:
            return "it moves along another direction than it measures; the format has one direction"
        if edit.strength != 1:
            return f"its strength is {edit.strength}, and the format sets a projection fully; use at_strength(1)"
        return ""
    return (
        "" if isinstance(edit, Add) else "the format only adds a vector or sets a projection; use Add or SetProjection"
    )


def _elsewhere(point: Point, module: str) -> str:
    """Why a point is not the output of a module; empty where it is."""
    if module:
        return ""
    parts = point.canonical.split(".")
    before = f" blocks.{int(parts[1]) - 1}.hook_resid_post," if parts[2:] == ["hook_in"] and parts[1] != "0" else ""
    return (
        "the format edits outputs of modules, and that point is none on the plain model; use"
        f"{before} resid_post, attn_out or mlp_out"
    )


def _beside(edit: Edit, others: list[Edit]) -> str:
    """Why an edit cannot join those at the same module; empty where it can."""
    if all(isinstance(one, Add) for one in (edit, *others)) or not others:
        return ""
    return "another edit acts at that point already, and the format holds one (only Adds can be summed)"


def _entry(edits: list[Edit]) -> dict[str, Any]:
    """One module's entry: a single edit, or several Adds as their sum."""
    first = edits[0]
    if isinstance(first, SetProjection):
        action, vector, coefficient = "clamp", first.direction, first.value
    else:
        # At coefficient 1, so that the sum is rounded to the model's precision once, as here.
        action, coefficient = "add", 1.0
        vector = torch.stack([edit.strength * edit.vector.float() for edit in edits if isinstance(edit, Add)]).sum(0)
    return {
        "steering_vector": vector.detach().cpu().flatten().clone(),
        "steering_coefficient": float(coefficient),
        "action": action,
        "head_index": None,
        "bias": None,
    }
