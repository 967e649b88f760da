"""`ITI`: what every attention head knows of right and wrong, and the Steerings that the best of them make.

Fitted by `lensteer.methods.iti`; see there for the formulas and their source.
"""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from operator import index
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.hooks import Add, Strength
from lensteer.positions import STEPS, Tokens, at
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd

Kind = Literal["mass_mean", "probe", "random"]
_FORMAT = "lensteer.iti.v1"


@dataclass(frozen=True, eq=False)
class ITI:
    """Every head of the layers that were read.

    Attributes:
        kind: of direction: "mass_mean", "probe" or "random".
        direction: θ, norm 1 for every head, from wrong to right; zero for a head whose classes do not differ.
        sigma: σ, standard deviation of ⟨z, θ⟩.
        accuracy: of the head's probe on questions that it did not see; what heads are ranked by.
        layers: the layer of each row.
        ranking: scores to rank by instead of the accuracy; only in the control that `random` makes.
        metadata: model fingerprint, data hash, prompt format, how the questions were split, and ``majority``, the
            accuracy of always answering the larger class.
    """

    kind: Kind
    direction: Float[Tensor, "layer head d_head"]
    sigma: Float[Tensor, "layer head"]
    accuracy: Float[Tensor, "layer head"]
    layers: Sequence[int]
    ranking: Float[Tensor, "layer head"] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def top(self, k: int) -> Int[Tensor, "k 2"]:
        """(layer, head) of the K best heads, best first; ties go to the lower layer, then the lower head.

        Raises:
            ValueError: K is no whole number from 0 to the number of heads.
        """
        row, head = self._first(k)
        return torch.stack([torch.tensor(list(self.layers), dtype=torch.long)[row], head], 1)

    def table(self, k: int) -> pd.DataFrame:
        """The K heads, best first: rank, layer, head, accuracy of the probe, sigma."""
        import pandas as pd

        layer, head = self.top(k).T.numpy()
        columns = {name: getattr(self, name)[self._first(k)].numpy() for name in ("accuracy", "sigma")}
        return pd.DataFrame({"rank": range(1, len(layer) + 1), "layer": layer, "head": head, **columns})

    def steering(self, k: int, strength: Strength, *, tokens: Tokens = STEPS) -> Steering:
        """z + α·σ·θ at the K best heads; K = 0 is no steering at all.

        Args:
            strength: α, in standard deviations of the head's own projection; negative steers towards wrong answers.
                One number, or one value per batch row.
            tokens: the paper edits the last position at each step, which is `STEPS`.

        Raises:
            ValueError: K out of range, or a strength that is not finite.
        """
        row, head = self._first(k)
        chosen = torch.zeros(self.accuracy.shape)
        chosen[row, head] = 1.0
        vectors = (chosen * self.sigma).unsqueeze(-1) * self.direction
        edits = [Add(vector, strength) for vector in vectors]  # all of them, so that K = 0 checks the strength as well
        pairs = [
            (f"blocks.{layer}.attn.hook_z", at(edit, tokens))
            for layer, edit, own in zip(self.layers, edits, chosen, strict=True)
            if own.any()
        ]
        control = f", {self.metadata['control']}" if "control" in self.metadata else ""
        return Steering(pairs, {**self.metadata, "name": f"{self.kind} K={index(k)}{control}"})

    def random(self, seed: int = 0) -> ITI:
        """The control: heads drawn uniformly, each along its own direction by its own σ."""
        noise = torch.rand(self.accuracy.shape, generator=torch.Generator().manual_seed(seed))
        return replace(self, ranking=noise, metadata={**self.metadata, "control": f"random heads, seed {seed}"})

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file."""
        from lensteer.storage import save_tensors

        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        plain = {"kind": self.kind, "layers": list(self.layers), "metadata": dict(self.metadata)}
        return save_tensors(path, tensors, plain, _FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> ITI:
        """Read a file written by `save`.

        Raises:
            ValueError: not such a file, or damaged.
        """
        from lensteer.storage import load_tensors

        tensors, content = load_tensors(path, _FORMAT)
        fields: dict[str, Any] = {**content, **tensors}
        return cls(**fields)

    def _first(self, k: Any) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """Rows and heads of the K first."""
        n_layers, n_heads = self.accuracy.shape
        try:
            count = -1 if isinstance(k, bool) else index(k)  # numpy's integers too, as tables hold them
        except TypeError:
            count = -1
        if not 0 <= count <= n_layers * n_heads:
            raise ValueError(
                f"K={k!r}: there are {n_layers} layers of {n_heads} heads, so K is a whole number from 0 to "
                f"{n_layers * n_heads}"
            )
        scores = self.accuracy if self.ranking is None else self.ranking
        order = scores.flatten().argsort(descending=True, stable=True)[:count]
        return order // n_heads, order % n_heads

    def __repr__(self) -> str:
        n_layers, n_heads = self.accuracy.shape
        best = ", ".join(f"{layer}.{head}" for layer, head in self.top(min(5, n_layers * n_heads)).tolist())
        facts = self.metadata
        return (
            f"ITI ({self.kind}{', ' + facts['control'] if 'control' in facts else ''}): {n_layers} layers x {n_heads} "
            f"heads, from {facts.get('n_texts', '?')} answers to {facts.get('n_questions', '?')} questions on "
            f"{facts.get('model', '?')}; first (layer.head): {best}; probe accuracy up to "
            f"{float(self.accuracy.max()):.2f} on questions held out, majority {facts.get('majority', '?')}"
        )

    def _repr_html_(self) -> str:
        shown = self.table(min(10, self.accuracy.numel())).round(3).to_html(index=False)
        return f"<b>{html.escape(repr(self))}</b>{shown}"
