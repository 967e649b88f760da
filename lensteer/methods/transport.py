"""Activation transport (AcT): per-unit maps that carry a source's activations to a target's.

    T(a) = ω·a + β          fitted unit by unit on pooled activations of both sides (`transport_maps`)
    (1 − λ)·a + λ·T(a)      where a lies inside the source's support, at every token of every site

The source shows the behaviour to leave, the target the one to reach. In **causal** order every map is fitted on
activations, source and target, that already passed the maps before it; one forward pass over the data serves all sites
(`lensteer.stagewise`). In **simultaneous** order all maps are fitted on the model as it is.

| method | sites | tokens are pooled by | order | support | from |
|---|---|---|---|---|---|
| ``"linear"`` (Linear-AcT) | norms | mean | causal | (0, 100) | Eq. 4 |
| ``"mean"`` (Mean-AcT) | norms | mean | causal | everywhere | Eq. 5 with ω = 1 |
| ``"gaussian"`` | norms | mean | causal | everywhere | optimal between Gaussians |
| ``"aura"`` (AURA) | mlp_linears | max | simultaneous | everywhere | Suau et al. 2024 |
| ``"det_zero"`` (Det-zero) | mlp_linears | max | simultaneous | everywhere | Suau et al. 2022 |
| ``"iti_m"`` (ITI-m) | heads | last | simultaneous | everywhere | Li et al. 2023, Table 1 |

These are the defaults of the released code. The paper bounds the support, (0, 100), for both AcT methods where a
behaviour is to be left (toxicity), and not where one is to be induced (concepts, styles): ``support=None``.

Source: Rodriguez, Blaas, Klein, Zappella, Apostoloff, Cuturi, Suau, "Controlling Language and Diffusion Models by
Transporting Activations", ICLR 2025 (arXiv 2410.23054).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.capture import capture
from lensteer.data import data_hash
from lensteer.hooks import Edit
from lensteer.hooks.base import checked_strength
from lensteer.messages import short
from lensteer.methods.transport_fitted import Support, Transport
from lensteer.methods.transport_maps import (
    UnitMaps,
    fit_units,
    require_method,
    require_options,
    require_support,
    shown_support,
)
from lensteer.models import fingerprint, tokenizer_of
from lensteer.points import Point
from lensteer.prompts import Prompt, Row, tokenize
from lensteer.reading import Which, positions_read
from lensteer.sites import ordered_points
from lensteer.stagewise import stagewise

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["DEFAULTS", "Support", "Transport", "fit", "from_activations"]

Order = Literal["causal", "simultaneous"]


class Defaults(NamedTuple):
    """How a method is fitted and applied where nobody says otherwise."""

    sites: str
    tokens: Which
    order: Order
    support: Support


DEFAULTS: dict[str, Defaults] = {
    "linear": Defaults("norms", "mean", "causal", (0.0, 100.0)),
    "mean": Defaults("norms", "mean", "causal", None),
    "gaussian": Defaults("norms", "mean", "causal", None),
    "aura": Defaults("mlp_linears", "max", "simultaneous", None),
    "det_zero": Defaults("mlp_linears", "max", "simultaneous", None),
    "iti_m": Defaults("heads", "last", "simultaneous", None),
}


def fit(
    model: TransformerBridge,
    source: Sequence[Prompt],
    target: Sequence[Prompt],
    method: str = "linear",
    sites: str | Sequence[str] | None = None,
    *,
    layers: int | Iterable[int] | None = None,
    order: Order | None = None,
    tokens: Which | None = None,
    template: bool = True,
    bos: bool = True,
    support: Support | Literal["default"] = "default",
    strength: float = 1.0,
    name: str = "transport",
    prompt_format: str = "plain",
    truncate: bool = False,
    max_tokens: int | None = None,
    batch_size: int | Literal["auto"] = "auto",
    memory_gb: float | None = None,
    keep_samples: bool = True,
    resume: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Transport:
    """Fit one map per unit at some sites, from texts that show a behaviour (source) to texts that do not (target).

    Args:
        sites: a group ("norms", "post_norms", "attention", "mlp", "mlp_linears", "residual", "heads", see
            `lensteer.sites`), TransformerLens shorthand, hook names, or a list of them. None is the method's own.
        order: "causal" or "simultaneous"; None is the method's own.
        tokens: how the tokens of a text become one sample: "mean", "max", "min", "last", an index, a function of the
            `Row`; "all" takes every token as a sample. None is the method's own.
        template, bos: whether the chat template's tokens and the BOS count; padding never does.
        support: percentages of the source between which a value is moved, None for everywhere; in causal order also
            for the maps that are in force while the later ones are fitted.
        strength: λ of these maps, in causal order; the maps serve any strength afterwards.
        prompt_format: as in `capture`; "plain" by default, as the texts are sentences and not requests.
        truncate: keep the end of a text that is longer than the model's context, instead of refusing it.
        max_tokens: keep the beginning of longer texts, this many tokens (128 as released); None is all of them.
        memory_gb: what the batches that wait in causal order may take, see `stagewise`.
        keep_samples: keep what was read, one number per unit and sample, for figures (`Transport.samples`).
        resume: a folder that keeps finished batches of a simultaneous fit; a causal one is a single pass.
        options: of the method, see `fit_units`.

    Raises:
        ValueError: fewer than two samples of a side, NaN or inf in an activation (says of which text, and where), a
            site given twice, an empty support, an unknown method, order or site, a text that is too long.
        TypeError: texts that are not prompts, or an option that the method does not have.
    """
    require_method(method)
    usual = DEFAULTS[method]
    order, tokens = order or usual.order, usual.tokens if tokens is None else tokens
    sites = usual.sites if sites is None else sites
    support = usual.support if support == "default" else support
    _check(order, support, strength, resume, source, target)
    if max_tokens is not None and max_tokens < 1:
        raise ValueError(f"max_tokens must be at least 1, or None for whole texts, got {max_tokens}")
    require_options(method, options)
    points = ordered_points(model, sites, layers, edit=True)
    how_read: dict[str, Any] = {"prompt_format": prompt_format, "truncate": truncate}
    rows = [
        *_tokenized(model, "source", source, max_tokens, **how_read),
        *_tokenized(model, "target", target, max_tokens, **how_read),
    ]
    about = {
        **fingerprint(model),
        **{"method": method, "name": name, "order": order, "tokens": _shown(tokens), "prompt_format": prompt_format},
        **{"template": str(template), "bos": str(bos), "n_source": str(len(source)), "n_target": str(len(target))},
        **{"data_hash": data_hash([list(source), list(target)]), "max_tokens": str(max_tokens or "")},
        **{key: str(value) for key, value in options.items()},
    }
    if order == "causal":
        about["fit_strength"] = f"{strength:g}"
        about["fit_support"] = shown_support(support)
    reading: dict[str, Any] = {"tokens": tokens, "template": template, "bos": bos}

    def units(point: Point, values: Tensor, owners: Tensor) -> UnitMaps:
        pair = _sides(point, values, owners, len(source))
        about.update(_coupled(*pair))
        if keep_samples:
            samples[point.name] = pair
        return fit_units(*pair, method, **options)

    samples: dict[str, tuple[Tensor, Tensor]] = {}
    how: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    if order == "simultaneous":
        maps = _simultaneous(model, points, rows, units, reading, resume=resume, **how)
    else:
        maps = _causal(model, points, rows, units, reading, strength, support, memory_gb=memory_gb, **how)
    if not any(own.fitted.any() for own in maps.values()):
        warnings.warn("no unit differs enough for a map of its own; do source and target differ?", stacklevel=2)
    return Transport(name, method, maps, support, samples, about)


def _simultaneous(
    model: TransformerBridge,
    points: Sequence[Point],
    rows: Sequence[Row],
    units: Callable[[Point, Tensor, Tensor], UnitMaps],
    reading: Mapping[str, Any],
    **how: Any,
) -> dict[str, UnitMaps]:
    """All sites read in one pass of the model as it is, then fitted."""
    found = capture(model, rows, [point.name for point in points], **reading, **how)
    owners = torch.arange(len(rows)) if found.mask is None else found.mask.nonzero()[:, 0]
    values = {point: found[point.name] if found.mask is None else found[point.name][found.mask] for point in points}
    return {point.name: units(point, own, owners) for point, own in values.items()}


def _causal(
    model: TransformerBridge,
    points: Sequence[Point],
    rows: Sequence[Row],
    units: Callable[[Point, Tensor, Tensor], UnitMaps],
    reading: Mapping[str, Any],
    strength: float,
    support: Support,
    **how: Any,
) -> dict[str, UnitMaps]:
    """Every site fitted on what has passed the maps before it, in one pass."""
    bos_id = None if reading["bos"] else tokenizer_of(model).bos_token_id
    where: dict[str, Any] = {"template": reading["template"], "without": bos_id}
    chosen = [positions_read(row, reading["tokens"], i, **where) for i, row in enumerate(rows)]
    maps: dict[str, UnitMaps] = {}

    def decide(point: Point, values: Tensor, owners: Tensor) -> Edit:
        maps[point.name] = units(point, values.cpu(), owners)
        return maps[point.name].edit(strength, support)

    stagewise(model, points, rows, chosen, reading["tokens"], decide, **how)
    return maps


def _sides(point: Point, values: Tensor, owners: Tensor, n_source: int) -> tuple[Tensor, Tensor]:
    """What was read of the source's and of the target's texts.

    Raises:
        ValueError: NaN or inf; says of which text.
    """
    finite = torch.isfinite(values.flatten(1)).all(1)
    if not finite.all():
        row = int(owners[~finite][0])
        side, number = ("source", row) if row < n_source else ("target", row - n_source)
        raise ValueError(
            f"the activations of {side} text {number} hold NaN or inf at {point.name!r} "
            f"({int((~finite).sum())} of {len(values)} samples do); run the model in another dtype, or leave that text "
            "or site out"
        )
    return values[owners < n_source], values[owners >= n_source]


def _coupled(source: Tensor, target: Tensor) -> dict[str, str]:
    """What the metadata say of samples that do not pair off."""
    if len(source) == len(target):
        return {}
    return {"coupling": f"{len(source)} and {len(target)} samples: quantiles matched by the exact coupling"}


def _tokenized(
    model: TransformerBridge, side: str, texts: Sequence[Prompt], max_tokens: int | None, **how: Any
) -> list[Row]:
    """The texts of a side, at most their first ``max_tokens``; an error says which side its text is of."""
    try:
        rows = tokenize(model, texts, **how)
    except (TypeError, ValueError) as error:
        raise type(error)(f"of the {side}, {error}") from error
    return [Row(row.ids[:max_tokens], row.own[:max_tokens], row.text) for row in rows]


def _check(order: str, support: Support, strength: float, resume: Any, source: Any, target: Any) -> None:
    if order not in get_args(Order):
        raise ValueError(f"order must be one of {get_args(Order)}, got {order!r}")
    if resume is not None and order == "causal":
        raise ValueError("resume= keeps the batches of a simultaneous fit; a causal fit is a single pass")
    if support is not None:
        require_support(support)
    if isinstance(checked_strength(strength), Tensor):
        raise ValueError("maps are fitted at one strength; strengths per row are for the steering afterwards")
    for side, texts in (("source", source), ("target", target)):
        if isinstance(texts, str) or not isinstance(texts, Sequence):
            raise TypeError(f"the {side} must be a list of texts, got {short(texts)}; list(…) makes one")
        if len(texts) < 2:
            raise ValueError(f"the {side} has {len(texts)} texts; a map needs at least two of each side")


def _shown(tokens: Which) -> str:
    return getattr(tokens, "__name__", "a function") if callable(tokens) else str(tokens)


def from_activations(
    source: Mapping[str, Float[Tensor, "n ..."]],
    target: Mapping[str, Float[Tensor, "n ..."]],
    method: str = "linear",
    *,
    support: Support | Literal["default"] = "default",
    name: str = "transport",
    metadata: Mapping[str, str] | None = None,
    **options: Any,
) -> Transport:
    """Fit on activations that were captured before: hook name -> one row a sample, as `capture` returns them.

    Raises:
        ValueError: no hook names, different ones on the two sides, tokens with padding, or as `fit_units`.
    """
    require_method(method)
    require_options(method, options)
    support = DEFAULTS[method].support if support == "default" else support
    if support is not None:
        require_support(support)
    for side, activations in (("source", source), ("target", target)):
        if getattr(activations, "mask", None) is not None:
            raise ValueError(
                f"the {side} holds every token of padded prompts; pool them, or give the tokens as samples: "
                "{name: value[activations.mask] for name, value in activations.items()}"
            )
    if not source or list(source) != list(target):
        raise ValueError(
            f"source and target must hold the same hook names, in one order; got {list(source)} and {list(target)}"
        )
    maps = {key: fit_units(source[key], target[key], method, **options) for key in source}
    samples = {key: (source[key], target[key]) for key in source}
    n_source, n_target = (str(len(side)) for side in next(iter(samples.values())))
    counts = {"n_source": n_source, "n_target": n_target}
    found = {key: value for pair in samples.values() for key, value in _coupled(*pair).items()}
    facts = {"method": method, "name": name, "order": "simultaneous", **counts, **found, **(metadata or {})}
    return Transport(name, method, maps, support, samples, facts)
