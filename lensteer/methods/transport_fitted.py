"""`Transport`: the maps of all sites, and the Steerings they make."""

from __future__ import annotations

import html
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.hooks import Strength
from lensteer.methods.transport_maps import LEVELS, UnitMaps, shown_support
from lensteer.models import fingerprint
from lensteer.points import layer_of
from lensteer.positions import Tokens, at
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Support = tuple[float, float] | None
_FORMAT = "lensteer.transport.v1"


@dataclass(frozen=True, eq=False)
class Transport:
    """One affine map per unit at every fitted site; made by `lensteer.methods.transport.fit`.

    Attributes:
        name: for tables.
        method: "linear", "mean", "gaussian", "aura", "det_zero" or "iti_m".
        maps: hook name -> the maps of its units, in execution order.
        support: percentages of the source inside which values are moved by default; None is everywhere.
        samples: hook name -> the source's and the target's samples, ``[n, *shape]``; empty where they were not kept,
            and after loading.
        metadata: model fingerprint, order, pooling, data hash, the method's options.
    """

    name: str
    method: str
    maps: Mapping[str, UnitMaps]
    support: Support = None
    samples: Mapping[str, tuple[Float[Tensor, "n ..."], Float[Tensor, "n ..."]]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)

    def steering(
        self,
        strength: Strength = 1.0,
        *,
        support: Support | Literal["default"] = "default",
        layers: int | Iterable[int] | None = None,
        heads: int | None = None,
        tokens: Tokens = "all",
    ) -> Steering:
        """(1 − λ)·a + λ·T(a) at every fitted site, or in some layers.

        Args:
            strength: λ; 0 changes nothing, 1 is the whole transport, more extrapolates. One number, or one value per
                batch row; `Steering.at_strength` changes it later.
            support: two percentages of the source, such as (0, 100); None moves every value.
            layers: only these.
            heads: at sites of attention heads, only the K that tell source from target best (ITI's head search).
            tokens: where, see `at`; the papers edit every token of every pass.

        Raises:
            ValueError: an empty support, a strength that is not finite, a layer without a map, heads where there are
                none.
        """
        support = self.support if support == "default" else support
        names = self._in(layers)
        maps = {name: self.maps[name] for name in names}
        if heads is not None:
            maps = self._best_heads(maps, heads)
        edits = [(name, at(own.edit(strength, support), tokens)) for name, own in maps.items()]
        about = {"method": self.method, "name": self.name, "support": shown_support(support)}
        return Steering(edits, {**self.metadata, **about})

    def random(self, seed: int = 0) -> Transport:
        """The control: at each site a shift of random direction, as far as this one moves the source's mean."""
        generator = torch.Generator().manual_seed(seed)
        maps = {}
        for name, own in self.maps.items():
            noise = torch.randn(own.mean_move.shape, generator=generator)
            shift = noise / noise.norm() * own.mean_move.norm()
            # A shift by s leaves E(a + s − b)².
            residual = own.distance + shift * (2 * (own.source_mean - own.target_mean) + shift)
            maps[name] = replace(own, scale=torch.ones_like(own.scale), shift=shift, residual=residual)
        return replace(self, method=f"random ({self.method})", maps=maps, samples={})

    def table(self) -> pd.DataFrame:
        """What the maps do, one row per site.

        Columns: hook, layer; ``units`` and ``fitted`` (those with a map of their own); ``distance``, the squared
        Wasserstein distance between source and target summed over units; ``explained``, the share of it that the maps
        remove; ``shift``, the norm of the mean's move; ``scale`` and
        ``largest_scale``, the median ω and the largest; ``source_std``, ``target_std``, means
        over units.
        """
        import pandas as pd

        rows = []
        for name, own in self.maps.items():
            distance = float(own.distance.sum())
            rows.append(
                {
                    "hook": name,
                    "layer": layer_of(name),
                    "units": own.scale.numel(),
                    "fitted": int(own.fitted.sum()),
                    "distance": distance,
                    "explained": 1 - float(own.residual.sum()) / distance if distance else float("nan"),
                    "shift": float(own.mean_move.norm()),
                    "scale": float(own.scale.median()),
                    "largest_scale": float(own.scale.max()),
                    "source_std": float(own.source_std.mean()),
                    "target_std": float(own.target_std.mean()),
                }
            )
        return pd.DataFrame(rows)

    def __iter__(self) -> NoReturn:
        # What takes a steering would otherwise say that this is no sequence.
        raise TypeError("a Transport is no steering yet; make one: transport.steering(strength)")

    def save(self, path: str | Path) -> Path:
        """Write the maps (not the samples) to one safetensors file."""
        from lensteer.storage import save_tensors

        parts = {f"{i}.{f.name}": getattr(own, f.name) for i, own in enumerate(self.maps.values()) for f in fields(own)}
        content = {"name": self.name, "method": self.method, "hooks": list(self.maps), "support": self.support}
        return save_tensors(path, parts, {**content, "levels": LEVELS, "about": dict(self.metadata)}, _FORMAT)

    @classmethod
    def load(cls, path: str | Path, model: TransformerBridge | None = None) -> Transport:
        """Read a file written by `save`; with ``model`` it is checked against it at once.

        Warns where the model has the same shape but other weights than the one of the fit.

        Raises:
            ValueError: not such a file, truncated, or made on a model that does not fit.
        """
        from lensteer.storage import load_tensors

        tensors, content = load_tensors(path, _FORMAT)
        if tuple(content["levels"]) != LEVELS:
            raise ValueError(f"{path} keeps other quantiles than this version of lensteer; fit the maps again")
        names = [f.name for f in fields(UnitMaps)]
        maps = {
            hook: UnitMaps(**{name: tensors[f"{i}.{name}"] for name in names})
            for i, hook in enumerate(content["hooks"])
        }
        support = None if content["support"] is None else (content["support"][0], content["support"][1])
        loaded = cls(content["name"], content["method"], maps, support, {}, content["about"])
        if model is not None:
            loaded.steering().points(model)
            made, here = loaded.metadata.get("weights"), fingerprint(model)["weights"]
            if made and made != here:
                warnings.warn(
                    f"these maps were fitted on other weights ({loaded.metadata.get('model')}); they fit this model's "
                    "shape, but are not made for it",
                    stacklevel=2,
                )
        return loaded

    def _in(self, layers: int | Iterable[int] | None) -> list[str]:
        """The hook names in some layers."""
        if layers is None:
            return list(self.maps)
        wanted = list(layers) if isinstance(layers, Iterable) else [layers]
        names = [name for name in self.maps if layer_of(name) in wanted]
        missing = set(wanted) - {layer_of(name) for name in names}
        if missing or not names:
            there = sorted({layer for name in self.maps if (layer := layer_of(name)) is not None})
            raise ValueError(f"there are no maps in layers {sorted(missing)}; there are some in {there}")
        return names

    def _best_heads(self, maps: Mapping[str, UnitMaps], count: int) -> dict[str, UnitMaps]:
        """The maps with all heads but the best ``count`` left alone; sites without any are dropped."""
        if any(own.scale.ndim != 2 for own in maps.values()):
            raise ValueError("heads= chooses among attention heads; fit at sites='heads' for that")
        scores = torch.cat([_head_score(own) for own in maps.values()])
        if not 1 <= count <= len(scores):
            raise ValueError(f"heads={count} is out of range: there are {len(scores)} heads")
        chosen = torch.zeros(len(scores), dtype=torch.bool)
        chosen[scores.argsort(descending=True, stable=True)[:count]] = True
        kept = {}
        for (name, own), part in zip(maps.items(), chosen.split([len(m.scale) for m in maps.values()]), strict=True):
            if part.any():
                column = part[:, None]
                scale, shift = torch.where(column, own.scale, 1.0), torch.where(column, own.shift, 0.0)
                kept[name] = replace(own, scale=scale, shift=shift, fitted=own.fitted & column)
        return kept

    def __repr__(self) -> str:
        of = f" on {self.metadata['model']}" if "model" in self.metadata else ""
        layers = {layer_of(name) for name in self.maps}
        where = f"{len(self.maps)} sites in {len(layers)} layers"
        source, target = (self.metadata.get(f"n_{side}", "?") for side in ("source", "target"))
        matched = f" ({self.metadata['coupling']})" if "coupling" in self.metadata else ""
        return f"Transport {self.name!r} ({self.method}): {where}{of}, source n={source}, target n={target}{matched}"

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self))}</b>{self.table().to_html(index=False, float_format='%.4g')}"


def _head_score(own: UnitMaps) -> Float[Tensor, " head"]:
    """How far apart source and target are along each head's mean difference, in standard deviations."""
    difference = own.target_mean - own.source_mean
    spread = (own.source_std.square() + own.target_std.square()) / 2
    return difference.norm(dim=-1) / spread.mean(-1).sqrt().clamp(min=torch.finfo(torch.float32).tiny)
