"""Sites and hook names: which activations a model has, their shape, and where they live on its plain face.

Names are TransformerLens's own (``blocks.3.hook_resid_post``) and shorthand is its ``get_act_name`` (``resid_post``,
``z``, ``mlp_out``, ``post``, …). What TransformerLens lacks is added here: a site is expanded over layers, and before
any work it is checked that a name exists, that it fires on this model, and that an edit there reaches the output.

One site is lensteer's own, to read: ``neuron``, the activation of each MLP neuron before anything gates it. On a plain
MLP that is ``mlp.hook_post``; a gated MLP has no hook point there, and ``mlp.hook_pre`` is read through its activation
function.

The checks are measured, not listed: one short forward pass through the lens records which points fire and their shapes
(kept for the life of the model), and one more per kind of point shows that an edit moves the logits.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from lensteer.models import Twin, lens_model, twin_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# Points that are a module's input or output, and so exist on the plain model as well.
_PLAIN = re.compile(
    r"^blocks\.\d+\.(hook_(in|out)|attn\.hook_out|attn\.o\.hook_(in|out)|mlp\.hook_(in|out)"
    r"|mlp\.(in|gate|out)\.hook_(in|out)|ln(1|2|1_post|2_post)\.hook_(in|out))$|^(ln_final\.hook_(in|out)|unembed\.hook_in)$"
)
_PROBE_TOKENS = 13  # not a number of attention heads, so that an axis of this length is the tokens
_SITES = ("resid_pre", "resid_post", "attn_out", "z", "mlp_out", "post", "pre", "neuron", "q", "k", "v")
_LYING = {
    "hook_resid_mid": "an edit there reaches the MLP but not the residual stream it is named after; use 'attn_out'",
    "hook_neuron": "it is lensteer's own name, to read neurons by; scale them at 'post'",
}


@dataclass(frozen=True)
class Point:
    """A hook point of one model.

    Attributes:
        name: as it was asked for, e.g. ``blocks.3.attn.hook_z``.
        canonical: the bridge's own name for it, e.g. ``blocks.3.attn.o.hook_in``.
        shape: trailing axes of its activations, after [batch, pos]: ``(d_model,)``, ``(head, d_head)``, …
        module: path of the plain module whose input or output it is; None where only the lens has it.
        side: ``"in"`` or ``"out"`` of that module.
        through: what the hook's tensor is passed through to give the activation; None where it is the activation.
    """

    name: str
    canonical: str
    shape: tuple[int, ...]
    module: str | None
    side: str
    through: Callable[[Tensor], Tensor] | None = field(default=None, repr=False)  # no address in a resume key


def hook_names(model: TransformerBridge, site: str, layers: int | Iterable[int] | None = None) -> list[str]:
    """Hook names of a site over layers (all of them by default).

    Args:
        site: TransformerLens shorthand such as ``"resid_post"``, or a full hook name, which is returned as it is.

    Raises:
        ValueError: an unknown site or a layer out of range; names the model and what would work.
    """
    from transformer_lens.utilities import get_act_name

    if site in _names(model):
        return [site]
    if "." in site or site.startswith("hook_"):
        _require_known(model, site, [site])
    n_layers = int(model.cfg.n_layers)
    wanted = range(n_layers) if layers is None else list(layers) if isinstance(layers, Iterable) else [layers]
    if len(wanted) == 0:
        raise ValueError(f"no layers were given for {site!r}; name some of 0 to {n_layers - 1}, or leave layers out")
    for layer in wanted:
        if not 0 <= layer < n_layers:
            raise ValueError(
                f"layer {layer} is out of range: {twin_of(model).name} has {n_layers} layers, 0 to {n_layers - 1}"
            )
    names = list(dict.fromkeys(get_act_name(site, layer) for layer in wanted))
    _require_known(model, site, names)
    return names


def resolve(
    model: TransformerBridge,
    sites_or_names: str | Sequence[str],
    layers: int | Iterable[int] | None = None,
    *,
    edit: bool = False,
) -> list[Point]:
    """The points of some sites or hook names, checked: they exist, they fire, and (with ``edit``) an edit there counts.

    Raises:
        ValueError: unknown, dead, or for editing a point that does not do what its name says.
    """
    sites = [sites_or_names] if isinstance(sites_or_names, str) else list(sites_or_names)
    if not sites:
        raise ValueError("no sites were given; name at least one, for instance 'resid_post'")
    layers = list(layers) if isinstance(layers, Iterable) else layers
    points = [_point(model, name) for site in sites for name in hook_names(model, site, layers)]
    if edit:
        for point in points:
            _require_editable(model, point)
    return points


def _require_known(model: TransformerBridge, site: str, names: Sequence[str]) -> None:
    known = _names(model)
    missing = [name for name in names if name not in known]
    if missing:
        available = [s for s in _SITES if _first(known, s)]
        close = difflib.get_close_matches(missing[0], known, n=3)
        raise ValueError(
            f"{twin_of(model).name} has no hook point {missing[0]!r} (asked for as {site!r}). Sites that it has: "
            f"{', '.join(available)}, in layers 0 to {int(model.cfg.n_layers) - 1}"
            + (f"; close names: {', '.join(close)}" if close else "")
        )


def _names(model: TransformerBridge) -> dict[str, str]:
    """Every hook name and alias with its canonical name (looked up often, and slow to put together)."""
    twin = twin_of(model)
    if twin.names is None:
        names = {name: str(hook.name) for name, hook in model.hook_dict.items()}
        for layer in range(int(model.cfg.n_layers)):
            inside = "hook_pre" if is_gated(names, layer) else "hook_post"
            if f"blocks.{layer}.mlp.{inside}" in names:
                names[f"blocks.{layer}.hook_neuron"] = names[f"blocks.{layer}.mlp.{inside}"]
        twin.names = names
    return twin.names


def layer_of(hook_name: str) -> int | None:
    """The layer that a hook name is in; None for a point outside the blocks."""
    found = re.match(r"blocks\.(\d+)\.", hook_name)
    return int(found[1]) if found else None


def is_gated(names: Iterable[str], layer: int) -> bool:
    """Whether the MLP of a layer multiplies its neurons' activations by a second branch."""
    return f"blocks.{layer}.mlp.hook_pre_linear" in names


def _first(known: dict[str, str], site: str) -> bool:
    from transformer_lens.utilities import get_act_name

    return get_act_name(site, 0) in known


def _point(model: TransformerBridge, name: str) -> Point:
    canonical = _names(model)[name]
    shapes = _survey(model)
    if canonical not in shapes:
        twin_of(model).survey = None  # one of TransformerLens's setters may have woken it up since
        shapes = _survey(model)
    if canonical not in shapes:
        raise ValueError(
            f"{name!r} exists on {twin_of(model).name} but never fires, so there is nothing to read or edit; "
            f"points that fire in the same block: {', '.join(_alive_beside(shapes, canonical))}"
        )
    if shapes[canonical][1:2] != (_PROBE_TOKENS,):
        raise ValueError(
            f"{name!r} on {twin_of(model).name} has no axes [batch, pos, …] (for {_PROBE_TOKENS} tokens its shape is "
            f"{shapes[canonical]}), so it cannot be captured or edited by token; see model.run_with_cache"
        )
    shape = shapes[canonical][2:]
    _require_honest_width(model, name, shape)
    module, side = _plain_module(model, canonical)
    gated = name.endswith("hook_neuron") and is_gated(_names(model), int(canonical.split(".")[1]))
    return Point(name, canonical, shape, module, side, _activation(model, canonical) if gated else None)


def _activation(model: TransformerBridge, canonical: str) -> Callable[[Tensor], Tensor]:
    """The activation function of a gated MLP: the module's own, so that no name has to be interpreted."""
    block = model.blocks[int(canonical.split(".")[1])]
    for name in ("act_fn", "activation_fn", "act"):
        function = getattr(block.mlp.original_component, name, None)
        if callable(function):
            return function
    raise ValueError(f"the activation function of the gated MLP of {twin_of(model).name} was not found; use 'post'")


def _alive_beside(shapes: dict[str, tuple[int, ...]], canonical: str) -> list[str]:
    prefix = canonical.rsplit(".", 1)[0].split(".attn")[0].split(".mlp")[0]
    return [name for name in shapes if name.startswith(prefix + ".")][:8]


def _survey(model: TransformerBridge) -> dict[str, tuple[int, ...]]:
    """Shape of every point that fires, from one short forward pass."""
    twin = twin_of(model)
    if twin.survey is None:
        shapes: dict[str, tuple[int, ...]] = {}

        def note(tensor: Any, hook: Any) -> None:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():  # token ids are not activations
                shapes[hook.name] = tuple(tensor.shape)

        with _probing(twin), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # points behind a setter are skipped with a warning each
            with model.hooks(fwd_hooks=[(lambda name: True, note)]):
                _probe(model)
        twin.survey = shapes
    return twin.survey


@contextmanager
def _probing(twin: Twin) -> Iterator[None]:
    """The lens to itself: no other thread's edits, and this thread's own asleep."""
    with twin.lock:
        before, twin.probing = twin.probing, True
        try:
            yield
        finally:
            twin.probing = before


def _probe(model: TransformerBridge) -> Tensor:
    lens = lens_model(model)
    embeddings = lens.get_input_embeddings().weight
    ids = (torch.arange(3, 3 + _PROBE_TOKENS) % len(embeddings)).to(embeddings.device).unsqueeze(0)
    with torch.no_grad():
        return lens(input_ids=ids, use_cache=False).logits


def _plain_module(model: TransformerBridge, canonical: str) -> tuple[str | None, str]:
    """Path of the plain model's module that a point is the input or output of, and which of the two."""
    component, _, hook = canonical.rpartition(".")
    module = plain_path(model, component) if _PLAIN.match(canonical) else None
    return (None, "") if module is None else (module, hook.removeprefix("hook_"))


def plain_path(model: TransformerBridge, path: str) -> str | None:
    """Path on the plain model of a bridge's component such as ``blocks.0.attn.o``; None where it has none there.

    The components carry their Hugging Face names.
    """
    plain, parts = twin_of(model).plain, []
    component: Any = model
    try:
        for key in path.split("."):
            component = component[int(key)] if key.isdigit() else getattr(component, key)
            if getattr(component, "name", None):
                parts.append(component.name)
        module = ".".join(parts)
        if plain is not None and plain.get_submodule(module) is not None:
            return module
    except AttributeError:
        pass
    return None


def _require_honest_width(model: TransformerBridge, name: str, shape: tuple[int, ...]) -> None:
    d_mlp = getattr(model.cfg, "d_mlp", None)
    if name.endswith(("hook_post", "hook_neuron")) and d_mlp and shape != (d_mlp,):
        raise ValueError(
            f"{name!r} on {twin_of(model).name} has width {shape}, not the {d_mlp} neurons its name promises "
            "(a mixture of experts); use 'mlp_out'"
        )


def _require_editable(model: TransformerBridge, point: Point) -> None:
    last = point.name.rsplit(".", 1)[-1]
    twin = twin_of(model)
    if last in _LYING:
        raise ValueError(f"{point.name!r} cannot be edited on {twin.name}: {_LYING[last]}")
    kind = re.sub(r"^blocks\.\d+", "blocks.*", point.canonical)
    if kind not in twin.editable:
        twin.editable[kind] = _edit_counts(model, point)
    if not twin.editable[kind]:
        raise ValueError(f"an edit at {point.name!r} does not change what {twin.name} puts out; use another point")


def _edit_counts(model: TransformerBridge, point: Point) -> bool:
    # Random, not constant: LayerNorm removes a constant shift completely.
    generator = torch.Generator().manual_seed(0)

    def shake(tensor: Tensor, hook: Any) -> Tensor:
        noise = torch.randn(tensor.shape, generator=generator).to(tensor.device, tensor.dtype)
        return tensor + noise * (tensor.abs().mean() + 1)

    with _probing(twin_of(model)):
        clean = _probe(model)
        with model.hooks(fwd_hooks=[(point.name, shake)]):
            return not torch.equal(clean, _probe(model))


def firing_order(model: TransformerBridge) -> dict[str, int]:
    """Canonical hook name -> its place in the order in which one forward pass reaches the points."""
    return {name: place for place, name in enumerate(_survey(model))}
