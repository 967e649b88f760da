"""`Directions`: one contrastive direction per layer at a site, whatever method found it, and the Steerings it makes.

**Where and how strongly**, the same for every method, so that a table compares like with like:

    x + c·s·u      u: the unit direction of the layer      c: the strength      s: what a strength of 1 means

| unit | s | so that |
|---|---|---|
| ``"difference"`` | ‖mean(x⁺ − x⁻)‖ of the pairs | 1 is CAA's vector; methods with the same pairs push equally far |
| ``"activation"`` | mean ‖x‖ at the layer | c is a share of what is there, on any layer and model |
| ``"absolute"`` | 1 | c counts in the activation's own units |

Strength 0 changes nothing, a negative one steers towards the wrong answers. The default tokens are `STEPS`: the last
prompt token, from which the answer is predicted, and every token after it. Fitted by `lensteer.methods.contrastive`.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.hooks import Add, Strength
from lensteer.points import layer_of
from lensteer.positions import STEPS, Tokens, at
from lensteer.progress import progress_bar
from lensteer.separation import auroc
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd

Unit = Literal["difference", "activation", "absolute"]
# Finds a layer's direction, of any norm, in [pair, d] and [pair, d]; what is smaller than the last is rounding.
Find = Callable[[Tensor, Tensor, float], Tensor]
_ROUNDING = 1e-6  # of the activations' norm: batches of other widths differ by as much
_FORMAT = "lensteer.directions.v1"
_TENSORS = ("direction", "difference_norm", "activation_norm", "auroc", "cosine")


@dataclass(frozen=True, eq=False)
class Directions:
    """What one method found between right and wrong answers, layer by layer.

    Attributes:
        name: for tables.
        method: "act_add", "caa", "repe_centred", "repe_uncentred", "logistic", "focus_mean" or "focus_pca".
        site: where it was read and is added.
        direction: u, of norm 1 over the trailing axes, from wrong to right; all zero at a layer where the two sides do
            not differ.
        difference_norm: ‖mean(x⁺ − x⁻)‖ of the pairs, for every method.
        activation_norm: mean ‖x‖ over both sides.
        auroc: how well ⟨x, u⟩ tells the two sides apart, 0.5 is chance; in-sample, so optimistic on few pairs; NaN for
            a single pair and for the random control.
        cosine: between u and the mean difference: 1 for CAA; near 0 the method found something else.
        hooks: the hook name of each layer's row.
        metadata: model fingerprint, number of pairs, data hash, prompt format, the method's options.
    """

    name: str
    method: str
    site: str
    direction: Float[Tensor, "layer ..."]
    difference_norm: Float[Tensor, " layer"]
    activation_norm: Float[Tensor, " layer"]
    auroc: Float[Tensor, " layer"]
    cosine: Float[Tensor, " layer"]
    hooks: Sequence[str]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def layers(self) -> list[int]:
        """The layer of each row; all of the model's unless the fit was given some."""
        return [_layer(name) for name in self.hooks]

    @property
    def separation(self) -> pd.DataFrame:
        """Separation and norms by layer, as a table."""
        import pandas as pd

        columns = {name: getattr(self, name).numpy() for name in ("auroc", "cosine", "difference_norm")}
        return pd.DataFrame({"layer": self.layers, **columns, "activation_norm": self.activation_norm.numpy()})

    def add(
        self,
        layer: int | Iterable[int],
        strength: Strength,
        *,
        unit: Unit = "difference",
        tokens: Tokens = STEPS,
    ) -> Steering:
        """x + c·s·u at one or several layers.

        Args:
            strength: c; one number, or one value per batch row. Several layers add up: each gets all of it.
            unit: what s is; see the module's table.

        Raises:
            ValueError: a layer that was not read or where the sides do not differ, an unknown unit, a strength that
                is not finite, or a site that can only be read.
        """
        scales = {"difference": self.difference_norm, "activation": self.activation_norm}
        scales["absolute"] = torch.ones_like(self.activation_norm)
        if unit not in scales:
            raise ValueError(f"unit must be one of {tuple(scales)}, got {unit!r}")
        rows = self._rows(layer)
        vectors = [(self._hook(row), self.direction[row] * scales[unit][row]) for row in rows]
        pairs = [(name, at(Add(vector, strength), tokens)) for name, vector in vectors]
        about = {"method": self.method, "name": self.name, "site": self.site, "unit": unit}
        return Steering(pairs, {**self.metadata, **about})

    def random(self, seed: int = 0) -> Directions:
        """The control: random directions; at equal strength every edit pushes as far as the method's own."""
        noise = torch.randn(self.direction.shape, generator=torch.Generator().manual_seed(seed))
        unknown = torch.full_like(self.auroc, float("nan"))
        return replace(
            self,
            name=f"{self.name} (random)",
            direction=unit_rows(noise),
            auroc=unknown,
            cosine=unknown,
            metadata={**self.metadata, "control": f"random direction, seed {seed}"},
        )

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file."""
        from lensteer.storage import save_tensors

        tensors = {name: getattr(self, name) for name in _TENSORS}
        plain = {"name": self.name, "method": self.method, "site": self.site, "hooks": list(self.hooks)}
        return save_tensors(path, tensors, {**plain, "metadata": dict(self.metadata)}, _FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> Directions:
        """Read a file written by `save`.

        Raises:
            ValueError: not such a file, or damaged.
        """
        from lensteer.storage import load_tensors

        tensors, content = load_tensors(path, _FORMAT)
        fields: dict[str, Any] = {**content, **tensors}
        return cls(**fields)

    def _rows(self, layer: int | Iterable[int]) -> list[int]:
        asked = layer if isinstance(layer, Iterable) and not isinstance(layer, str) else [layer]
        try:
            layers = list(dict.fromkeys(index(i) for i in asked))  # numpy's integers too, as tables hold them
        except TypeError:
            raise TypeError(f"layer must be a whole number or several, got {layer!r}") from None
        if not layers:
            raise ValueError("layer names no layer; give at least one")
        known = self.layers
        for i in layers:
            # Not -1: tables use it for "no steering", and as an index it would silently mean the last layer.
            if i not in known:
                shown = f"layers {known[0]} to {known[-1]}" if len(known) == known[-1] - known[0] + 1 else f"{known}"
                raise ValueError(
                    f"layer {i} is out of range: {self.name!r}, fitted on {self.metadata.get('model', 'a model')}, "
                    f"has {shown}"
                )
            if not self.direction[known.index(i)].any():
                raise ValueError(f"{self.name!r} has no direction at layer {i}: the sides of its pairs do not differ")
        return [known.index(i) for i in layers]

    def _hook(self, row: int) -> str:
        """Where it is added: a plain MLP's neurons are read under lensteer's name and written under TransformerLens's.

        Raises:
            ValueError: gated neurons, whose activation has no hook point.
        """
        name = self.hooks[row]
        if not name.endswith("hook_neuron"):
            return name
        if self.metadata.get("gated_mlp") == "True":
            raise ValueError(
                f"{self.site!r} of gated MLPs can only be read: the activation is multiplied by the up branch before "
                "TransformerLens sees it; fit at 'post' or 'mlp_out' instead"
            )
        return name.replace("hook_neuron", "mlp.hook_post")

    def __repr__(self) -> str:
        known = self.auroc[~self.auroc.isnan()]
        spread = (
            f"AUROC {known.min():.2f} to {known.max():.2f} over the layers (in-sample)" if len(known) else "no AUROC"
        )
        return (
            f"Directions {self.name!r} ({self.method}) at {self.site}: {len(self.hooks)} layers of shape "
            f"{list(self.direction.shape[1:])}, from {self.metadata.get('n_pairs', '?')} pairs on "
            f"{self.metadata.get('model', '?')}; {spread}"
        )

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self))}</b>{self.separation.round(3).to_html(index=False)}"


def _layer(hook_name: str) -> int:
    layer = layer_of(hook_name)
    if layer is None:
        raise ValueError(f"{hook_name!r} is in no layer; directions are fitted at sites of the blocks")
    return layer


def unit_rows(vectors: Float[Tensor, "layer ..."]) -> Float[Tensor, "layer ..."]:
    """Each layer's vector at norm 1 over all trailing axes; zero stays zero."""
    norms = vectors.flatten(1).norm(dim=1).view(-1, *[1] * (vectors.ndim - 1))
    return torch.where(norms > 0, vectors / norms.clamp(min=torch.finfo(vectors.dtype).tiny), 0.0)


def fit_directions(
    sides: Sequence[Float[Tensor, "layer pair ..."]],
    site: str,
    method: str,
    find: Find,
    hooks: Sequence[str],
    metadata: Mapping[str, str],
    name: str | None,
    *,
    weights: Float[Tensor, " pair"] | None = None,
    progress: bool = False,
) -> Directions:
    """Every layer's direction by ``find``, and the numbers that are the same for all methods.

    Args:
        weights: how much each pair counts in the mean difference and in the mean norm, on any scale; None is all
            alike. ``find`` and the AUROC get the pairs as they are.

    Raises:
        ValueError: NaN or inf, sides that differ at no layer, or weights that are not one positive number a pair.
    """
    shares = None if weights is None else _shares(weights, len(sides[0][0]))
    layers = [_layer(hook) for hook in hooks]
    bad = [i for i, own in zip(layers, zip(*sides, strict=True), strict=True) if not all(map(_finite, own))]
    if bad:
        raise ValueError(f"the activations at {site!r} hold NaN or inf in layers {bad}")
    rows: list[dict[str, Tensor]] = []
    with progress_bar(len(layers), method, shown=progress, unit="layer") as bar:
        for a, b in zip(*sides, strict=True):
            rows.append(_one_layer(a.flatten(1).double(), b.flatten(1).double(), find, shares))
            bar.update()
    tensors: dict[str, Any] = {key: torch.stack([row[key] for row in rows]).float() for key in _TENSORS}
    if not tensors["direction"].any():
        raise ValueError(f"{method} found no direction at {site!r}: at no layer do the sides of the pairs differ")
    tensors["direction"] = tensors["direction"].unflatten(1, sides[0].shape[2:])
    return Directions(name or f"{method} at {site}", method, site, hooks=tuple(hooks), metadata=metadata, **tensors)


def _shares(weights: Float[Tensor, " pair"], n_pairs: int) -> Float[Tensor, " pair"]:
    """The weights with sum 1."""
    if weights.shape != (n_pairs,) or not _finite(weights) or not bool((weights > 0).all()):
        raise ValueError(f"weights must be {n_pairs} positive numbers, one a pair, got shape {tuple(weights.shape)}")
    return weights.double().cpu() / weights.double().sum().cpu()


def _one_layer(
    a: Float[Tensor, "pair d"], b: Float[Tensor, "pair d"], find: Find, shares: Float[Tensor, " pair"] | None = None
) -> dict[str, Tensor]:
    if shares is None:
        difference, size = (a - b).mean(0), torch.cat([a, b]).norm(dim=1).mean()
    else:
        difference, size = shares @ (a - b), shares @ (a.norm(dim=1) + b.norm(dim=1)) / 2
    small = _ROUNDING * float(size)
    differ = float((a - b).norm(dim=1).max()) > small
    direction = unit_rows(find(a, b, small)[None] if differ else torch.zeros_like(a[:1]))[0]
    return {
        "direction": direction,
        "difference_norm": difference.norm(),
        "activation_norm": size,
        "auroc": auroc(a @ direction, b @ direction) if len(a) > 1 else size.new_tensor(float("nan")),
        "cosine": torch.cosine_similarity(direction, difference, dim=0),
    }


def _finite(values: Tensor) -> bool:
    return bool(torch.isfinite(values).all())
