"""`InstructionVectors`: one instruction at every layer, and the Steerings that it makes.

Fitted by `lensteer.methods.instruction.fit`; see there for the formulas and their source.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.hooks import Add, SetProjection, Strength
from lensteer.models import fingerprint
from lensteer.positions import Tokens, at
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Unit = Literal["absolute", "residual", "difference"]
_FORMAT = "lensteer.instruction.v1"


@dataclass(frozen=True, eq=False)
class InstructionVectors:
    """What one instruction looks like at every layer.

    Attributes:
        name: of the instruction.
        direction: u, unit rows.
        projection: z̄, mean projection of the with-instruction activations on u.
        projection_without: the same of the activations without the instruction.
        difference_norm: ‖m‖ = projection − projection_without.
        residual_norm: mean ‖x‖ without the instruction.
        auroc: how well ⟨·, u⟩ tells the two classes apart, 0.5 is chance; in-sample, so optimistic on few pairs.
        effect_size: difference of the mean projections over their pooled standard deviation (Cohen's d); NaN for a
            single pair.
        split_half_cosine: mean cosine between the directions of two random halves of the pairs; 1 is stable, NaN for
            a single pair.
        push: unit rows that edits move along instead of u; only in the control that `random` makes.
        metadata: model fingerprint, number of pairs, data hash, prompt format, seed.
    """

    name: str
    direction: Float[Tensor, "layer d_model"]
    projection: Float[Tensor, " layer"]
    projection_without: Float[Tensor, " layer"]
    difference_norm: Float[Tensor, " layer"]
    residual_norm: Float[Tensor, " layer"]
    auroc: Float[Tensor, " layer"]
    effect_size: Float[Tensor, " layer"]
    split_half_cosine: Float[Tensor, " layer"]
    metadata: Mapping[str, str] = field(default_factory=dict)
    push: Float[Tensor, "layer d_model"] | None = None

    @property
    def n_layers(self) -> int:
        return len(self.direction)

    @property
    def separation(self) -> pd.DataFrame:
        """Class separation and norms by layer, as a table."""
        import pandas as pd

        columns = ("auroc", "effect_size", "split_half_cosine", "difference_norm", "residual_norm", "projection")
        table = {column: getattr(self, column).numpy() for column in columns}
        return pd.DataFrame({"layer": range(self.n_layers), **table})

    def add(
        self,
        layer: int | Iterable[int],
        strength: Strength,
        *,
        unit: Unit = "absolute",
        tokens: Tokens = "all",
    ) -> Steering:
        """x + c·u at one or several layers: the operator for length and words.

        Args:
            strength: c; negative to exclude. One number, or one value per batch row.
            unit: what 1 means: one unit of the residual stream, its mean norm at the layer, or ‖m‖ there.
        """
        scales = {"absolute": torch.ones_like(self.residual_norm), "residual": self.residual_norm}
        scales["difference"] = self.difference_norm
        if unit not in scales:
            raise ValueError(f"unit must be one of {tuple(scales)}, got {unit!r}")
        push = self.direction if self.push is None else self.push
        edits = {i: Add(push[i] * scales[unit][i], strength) for i in self._layers(layer)}
        return self._steering(edits, tokens, operator="add", unit=unit)

    def set_projection(
        self,
        layer: int | Iterable[int],
        strength: Strength = 1.0,
        *,
        tokens: Tokens = "all",
        value: float | None = None,
    ) -> Steering:
        """x + s·(z̄ − ⟨x, u⟩)·u at one or several layers: the operator for formats.

        Args:
            strength: s, the share of the way to z̄; 1 is the paper's.
            value: another target than z̄, in residual units; 0 ablates the direction.
        """
        targets = self.projection if value is None else torch.full_like(self.projection, value)
        edits = {
            i: SetProjection(
                self.direction[i], float(targets[i]), strength, along=None if self.push is None else self.push[i]
            )
            for i in self._layers(layer)
        }
        return self._steering(edits, tokens, operator="set_projection")

    def random(self, seed: int = 0) -> InstructionVectors:
        """The control: every edit pushes as far as it would, position by position, but along a random direction."""
        generator = torch.Generator().manual_seed(seed)
        noise = torch.randn(self.direction.shape, generator=generator)
        return replace(
            self,
            name=f"{self.name} (random)",
            push=noise / noise.norm(dim=1, keepdim=True),
            metadata={**self.metadata, "control": f"random direction, seed {seed}"},
        )

    def for_model(self, model: TransformerBridge) -> InstructionVectors:
        """The same vectors and targets for another model of the same shape (an instruct model's for its base model).

        Raises:
            ValueError: another number of layers or another width.
        """
        here, shape = fingerprint(model), tuple(self.direction.shape)
        if (int(here["n_layers"]), int(here["d_model"])) != shape:
            raise ValueError(
                f"{self.name!r} has {shape[0]} layers of width {shape[1]}; {here['model']} has {here['n_layers']} of "
                f"{here['d_model']}. Vectors carry over only between models of the same shape"
            )
        source = self.metadata.get("model", "?")
        return replace(self, metadata={**self.metadata, **here, "transferred_from": source})

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file."""
        from lensteer.storage import save_tensors

        tensors = {name: value.contiguous() for name, value in vars(self).items() if isinstance(value, Tensor)}
        return save_tensors(path, tensors, {"name": self.name, "metadata": dict(self.metadata)}, _FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> InstructionVectors:
        """Read a file written by `save`.

        Raises:
            ValueError: not such a file, or damaged.
        """
        from lensteer.storage import load_tensors

        tensors, content = load_tensors(path, _FORMAT)
        return cls(name=content["name"], metadata=content["metadata"], **tensors)

    def _layers(self, layer: int | Iterable[int]) -> list[int]:
        asked = layer if isinstance(layer, Iterable) and not isinstance(layer, str) else [layer]
        try:
            layers = [index(i) for i in asked]  # numpy's integers too: a layer often comes out of a table
        except TypeError:
            raise TypeError(f"layer must be a whole number or several, got {layer!r}") from None
        if not layers:
            raise ValueError("layer names no layer; give at least one")
        for i in layers:
            # Not -1: tables use it for "no steering", and as an index it would silently mean the last layer.
            if not 0 <= i < self.n_layers:
                raise ValueError(
                    f"layer {i} is out of range: {self.name!r}, fitted on {self.metadata.get('model', 'a model')}, "
                    f"has layers 0 to {self.n_layers - 1}"
                )
        return layers

    def _steering(self, edits: Mapping[int, Any], tokens: Tokens, **about: str) -> Steering:
        pairs = [(f"blocks.{i}.hook_resid_post", at(edit, tokens)) for i, edit in edits.items()]
        return Steering(pairs, {"method": "instruction", "name": self.name, **self.metadata, **about})

    def __repr__(self) -> str:
        low, high = float(self.auroc.min()), float(self.auroc.max())
        return (
            f"InstructionVectors {self.name!r}: {self.n_layers} layers of width {self.direction.shape[1]}, from "
            f"{self.metadata.get('n_pairs', '?')} pairs on {self.metadata.get('model', '?')}; "
            f"AUROC {low:.2f} to {high:.2f} over the layers (in-sample; where to steer is for a sweep to say)"
        )

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self))}</b>{self.separation.round(3).to_html(index=False)}"
