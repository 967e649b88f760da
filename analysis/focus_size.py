"""`FocusSize`: how much a comparison of focus instruction tuning with steering does (`analysis.focus_study`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from analysis.focus_sweep import STRENGTHS
from lensteer.methods import transport
from lensteer.methods.directions import Unit
from lensteer.methods.focus_vectors import Method
from lensteer.reading import Which


@dataclass(frozen=True)
class FocusSize:
    """How much a study does.

    Attributes:
        method, site, layers, templates: of the vectors, as in `focus_vectors.vectors`; None is all layers.
        strengths, unit: that are tried of them, toward S as they are and toward C negative.
        tokens: where vectors are added: from the last prompt token on, or after the task instruction.
        heads, head_strengths: K and δ of SADI's heads; no heads leaves them out.
        transports, transport_sites, transport_tokens, transport_strengths: of activation transport, as in
            `act_settings`; no transports leaves them out.
        controls: seeds of random vectors beside the chosen one.
        texts: neutral texts for the choice, and as many others for the report.
    """

    method: Method = "mean"
    site: str = "resid_post"
    layers: tuple[int, ...] | None = None
    templates: int | tuple[int, ...] = 3
    strengths: tuple[float, ...] = STRENGTHS
    unit: Unit = "difference"
    tokens: Literal["steps", "after_instruction"] = "steps"
    heads: tuple[int, ...] = (1, 4, 8)
    head_strengths: tuple[float, ...] = (1.0, 4.0, 9.0)
    transports: tuple[str, ...] = ("linear", "mean")
    transport_sites: str = "attention"
    transport_tokens: Which = "mean"
    transport_strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    controls: int = 3
    texts: int = 16

    def __post_init__(self) -> None:
        for name in ("strengths", "head_strengths", "transport_strengths"):
            values = getattr(self, name)
            if not values or not all(value > 0 for value in values):
                raise ValueError(f"{name} must be positive numbers, one or more, got {values}")
        if self.tokens not in ("steps", "after_instruction"):
            raise ValueError(f"tokens must be 'steps' or 'after_instruction', got {self.tokens!r}")
        if self.controls < 0 or self.texts < 1:
            raise ValueError(f"controls={self.controls} must not be negative, and texts={self.texts} at least 1")
        if unknown := [name for name in self.transports if name not in transport.DEFAULTS]:
            raise ValueError(f"transports {unknown} are unknown; there are {', '.join(transport.DEFAULTS)}")
