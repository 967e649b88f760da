"""`ElementSize`: how much a study of elements tries, and the check that a model has room for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from lensteer.methods import sadi
from lensteer.methods.sadi import Element
from lensteer.models import twin_of
from lensteer.points import resolve
from lensteer.positions import STEPS, Tokens

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_UNITS = {"head": "heads", "neuron": "neurons", "hidden": "hidden units"}


@dataclass(frozen=True)
class ElementSize:
    """How much a study of elements does, once it has its questions.

    Attributes:
        elements: of SADI; the first is what the controls (random, fixed) are made of.
        ks: numbers of elements, for SADI, its controls and ITI; or element -> its own numbers. ITI steers as many heads
            as there are numbers of "head", or of the first element where "head" has none.
        strengths: of all methods; ITI's α, which counts standard deviations, is 5 times as large.
        layers: of CAA.
        tokens: where all methods act: "last" (the prompt's last token, as SADI does) or `STEPS` (at each new token as
            well). Answers of one token are scored alike by both.
        patched_heads, patched_pairs: how many heads are patched one by one, on how many of the pairs.
        random_seeds: how many random choices of elements are tried.
    """

    elements: tuple[Element, ...] = ("head",)
    ks: tuple[int, ...] | Mapping[Element, tuple[int, ...]] = (1, 4, 16)
    strengths: tuple[float, ...] = (1.0, 4.0)
    layers: tuple[int, ...] = (10, 16, 22)
    tokens: Tokens = "last"
    patched_heads: int = 16
    patched_pairs: int = 16
    random_seeds: int = 1

    def ks_of(self, element: Element) -> tuple[int, ...]:
        """Numbers of elements of a kind; of heads, for ITI, those of the first kind where there are none."""
        if not isinstance(self.ks, Mapping):
            return tuple(self.ks)
        return tuple(self.ks.get(element, self.ks.get(self.elements[0], ()) if element == "head" else ()))

    def require_possible(self, model: TransformerBridge) -> None:
        """Check it against a model, before any work.

        Raises:
            ValueError: unknown elements or none; K, layers or strengths that are out of range or none; other tokens
                than "last" and `STEPS`; too few heads or pairs to patch.
        """
        name, n_layers = twin_of(model).name, int(model.cfg.n_layers)
        named = {*self.elements, *(self.ks if isinstance(self.ks, Mapping) else ())}
        if not self.elements or named - set(get_args(Element)):
            raise ValueError(f"elements must be some of {get_args(Element)}, got {self.elements} and ks={self.ks}")
        for element in dict.fromkeys((*self.elements, "head")):
            ks, count = self.ks_of(element), sum(point.shape[0] for point in resolve(model, sadi.SITES[element][0]))
            if not ks or not all(1 <= k <= count for k in ks):
                raise ValueError(
                    f"ks {ks} of {element!r}{'' if element in self.elements else ', for ITI'}: {name} has {count} "
                    f"{_UNITS[element]}, so K is 1 to {count}; ks={{element: (…)}} gives each kind its own"
                )
        if not self.layers or not all(0 <= layer < n_layers for layer in self.layers):
            raise ValueError(f"layers {self.layers}: {name} has layers 0 to {n_layers - 1}")
        if not self.strengths or not all(0 < strength < float("inf") for strength in self.strengths):
            raise ValueError(f"strengths must be positive numbers, one or more, got {self.strengths}")
        if self.tokens not in ("last", STEPS):
            raise ValueError(f"tokens must be 'last' or STEPS, where frozen SADI acts, got {self.tokens!r}")
        if self.patched_heads < 3 or self.patched_pairs < 1:
            raise ValueError(
                f"patched_heads={self.patched_heads} and patched_pairs={self.patched_pairs}: a comparison needs three "
                "heads and one pair or more"
            )
