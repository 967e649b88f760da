"""`fold`: a steering multiplied into the weights, so that a plain Hugging Face model steers itself.

Every edit that is y = w·x + c for every unit by itself, at all positions of all rows, is a change of weights of the
layer that makes the activation or reads it. The folded model costs nothing at inference, and other programs run it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensteer.attach import face_for
from lensteer.export.bias_slots import rebuilt
from lensteer.export.linear_maps import UnitMap, unit_map, unlike_a_map
from lensteer.export.places import Place, place_of
from lensteer.export.weights import Weights, gain_offset, is_linear
from lensteer.generate import as_steering
from lensteer.hooks import Edit
from lensteer.models import twin_of
from lensteer.points import Point, firing_order
from lensteer.positions import At
from lensteer.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

# Relative error of the logits over which a folded model is not handed out: rounding is far below, a mistake above.
_TOLERANCE = {torch.float64: 1e-5, torch.float32: 1e-3}
_HALF_TOLERANCE = 0.3


def fold(steering: Iterable[tuple[str, Edit]], model: TransformerBridge) -> PreTrainedModel:
    """A new plain Hugging Face model whose weights include a steering; the given one keeps its own.

    `folded.save_pretrained(folder)` and ``AutoModelForCausalLM.from_pretrained(folder)`` give the logits of the hooked
    model up to rounding. Before it is returned, the model is compared with the hooked one on a few tokens.

    Folds: `Add`, `Affine` without a support, `ScaleElements`, `SetElements`; at the outputs of attention, of MLPs, of
    norms, of ``gate``, ``in``, ``q``, ``k`` and ``v``, at ``z`` and at ``post``. On the residual stream only what
    shifts. Edits of strength 0 do nothing and are left out.

    Where a shift needs a bias that the model lacks:

    - Llama (SmolLM2): its configuration has switches for biases of attention and MLP; they are turned on.
    - Mistral and Qwen2 without a sliding window become ``LlamaForCausalLM``, which computes the same.
    - Gemma-2's ``q``, ``k``, ``v`` and ``o`` (and so its ``ln1``) have a switch. Its post-norms, MLP and residual
      stream have none, nor has a Mistral or Qwen2 with a sliding window, nor the unembedding of any model: these are
      saved with a small modelling file and load with ``trust_remote_code=True``; a warning says so.
    - GPT-2 and GPT-NeoX have biases already.

    Raises:
        ValueError: an edit that no weights can do, a point that no linear layer or norm makes or reads, quantised
            weights, a model without a plain face or in several places; says which edit, why, and what would work.

    Source: the maps of Rodriguez et al. (ICLR 2025) are affine and so fold into weights, as the authors note; for the
    rest, W·x + b followed or preceded by w, c, see `lensteer.export.weights`.
    """
    steering = as_steering(steering)
    plain = twin_of(model).plain
    if plain is None:
        raise ValueError(f"{twin_of(model).name} has no plain face to fold into; bring it by lensteer.load_model")
    with twin_of(model).lock:  # another thread's steering ends first
        _require_whole(plain, bool(twin_of(model).active))
        points = steering.points(model)
        maps, places = _gathered(steering, points, model)
        folded = rebuilt(plain, _fold_all(Weights(plain), maps, places, firing_order(model)))
        _require_same_logits(folded, steering, points, model)
    return folded


def _gathered(
    steering: Steering, points: list[Point], model: TransformerBridge
) -> tuple[dict[str, UnitMap], dict[str, Place]]:
    """The map of every point, edits at one point run after each other, and where it is folded."""
    plain = twin_of(model).plain
    assert plain is not None
    maps: dict[str, UnitMap] = {}
    places: dict[str, Place] = {}
    for number, (point, (name, edit)) in enumerate(zip(points, steering, strict=True)):
        if not isinstance(edit.strength, Tensor) and edit.strength == 0:
            continue
        place, problem = place_of(model, point.canonical), unlike_a_map(edit)
        if not problem:
            units = unit_map(edit, torch.promote_types(plain.dtype, torch.float32))
            problem = _unfit(plain, point, place, units)
        if problem or place is None:
            kind = type(edit.edit if isinstance(edit, At) else edit).__name__
            raise ValueError(f"edit {number}, {kind} at {name!r}, cannot be folded into weights: {problem}")
        there = maps.get(point.canonical)
        maps[point.canonical] = units if there is None else there.then(units)
        places[point.canonical] = place
    return maps, places


def _unfit(plain: PreTrainedModel, point: Point, place: Place | None, units: UnitMap) -> str:
    """Why a map cannot be folded at a place; empty where it can."""
    if place is None:
        if point.canonical.endswith((".q.hook_out", ".k.hook_out", ".v.hook_out")):
            return "q, k and v are one fused module in this model; use ln1.hook_out, or z"
        return (
            "no linear layer or norm makes or reads that activation; use attn_out, mlp_out, z, post, a norm's "
            "hook_out, or a shift at resid_post"
        )
    if place.stream and units.scales:
        return "only shifts fold on the residual stream, which no single layer makes; use Add, or attn_out and mlp_out"
    for path in (place.made_by, *place.read_by):
        module = plain.get_submodule(path) if path else None
        if module is None or is_linear(module) or (path == place.made_by and _is_table_or_norm(module)):
            continue
        return (
            f"{path} is a {type(module).__name__}, whose weights are quantised or not a plain matrix or norm; load "
            "the model unquantised, without adapters"
        )
    return ""


def _is_table_or_norm(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding) or gain_offset(module) is not None


def _has_bias(module: torch.nn.Module) -> bool:
    return getattr(module, "bias", None) is not None


def _fold_all(
    weights: Weights, maps: dict[str, UnitMap], places: dict[str, Place], order: dict[str, int]
) -> dict[str, Tensor]:
    """What changes. Maps are folded nearest to their layer first: outputs as they come, inputs in reverse."""
    sequence = sorted(maps, key=lambda name: order[name])
    for name in sequence:
        _fold_made(weights, places[name], maps[name])
    for name in reversed(sequence):
        for path in places[name].read_by:
            weights.before_linear(path, _left_for_readers(weights, places[name], maps[name]))
    return weights.changed


def _fold_made(weights: Weights, place: Place, units: UnitMap) -> None:
    """Fold what the layer that makes an activation can take."""
    if not place.made_by:
        return
    module = weights.plain.get_submodule(place.made_by)
    if isinstance(module, torch.nn.Embedding):
        weights.shift_rows(place.made_by, units.shift)
    elif is_linear(module):
        weights.after_linear(place.made_by, units)
    else:
        weights.gain(place.made_by, units.scale)
        if _has_bias(module) or not place.read_by:
            weights.bias(place.made_by, units)


def _left_for_readers(weights: Weights, place: Place, units: UnitMap) -> UnitMap:
    """What the layers that read an activation take: all where none makes it, a norm's shift where it has no bias."""
    if not place.made_by:
        return units
    shift = units.shift * (not _has_bias(weights.plain.get_submodule(place.made_by)))
    return UnitMap(torch.ones_like(units.scale), shift)


def _require_whole(plain: PreTrainedModel, steered: bool) -> None:
    devices = {str(parameter.device) for parameter in plain.parameters()}
    if len(devices) > 1 or "meta" in devices:
        raise ValueError(f"the model is spread over {', '.join(sorted(devices))}; load it on one device to fold")
    if steered:
        raise ValueError("the model is being steered at the moment; fold after that block has ended")


@torch.no_grad()
def _require_same_logits(
    folded: PreTrainedModel, steering: Steering, points: list[Point], model: TransformerBridge
) -> None:
    """Refuse a folded model that is not the hooked one: families that were never tried may add what nothing shows."""
    embeddings: Any = folded.get_input_embeddings()
    count = len(embeddings.weight)
    # From all over the vocabulary: on its first tokens, often unused ones, half precision is chaotic by itself.
    ids = (torch.arange(1, 14) * (count // 14)).unsqueeze(0).to(folded.device)
    with steering.on(model):
        wanted = face_for(model, points)(input_ids=ids, use_cache=False).logits.float()
    found = folded(input_ids=ids, use_cache=False).logits.float()
    error = float(((found - wanted).norm(dim=-1) / wanted.norm(dim=-1)).median())
    if not error <= _TOLERANCE.get(folded.dtype, _HALF_TOLERANCE):
        raise ValueError(
            f"folded into weights, this steering gives other logits on {type(folded).__name__} (relative error "
            f"{error:.2g}): the model does something between these points and its layers; use other points, or hooks"
        )
