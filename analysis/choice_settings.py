"""What a multiple-choice sweep tries: `Setting`s, one by one or as grids over K or layer and strength."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from operator import index
from typing import TYPE_CHECKING, Any

from analysis.choice_selection import SETTING, UNSTEERED
from lensteer.answers import Question
from lensteer.generate import as_steering, require_rows
from lensteer.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

LABEL = (*SETTING, "seed")


@dataclass(frozen=True)
class Setting:
    """One thing to try.

    Attributes:
        method: the name under which its settings compete; "none" without steering.
        k: number of steered elements; 0 if none are chosen.
        layer: the steered layer; −1 if there is not one.
        strength: 0 for no steering.
        steering: what to run; one with values for every row has a row for every question.
        seed: of a control that draws at random; settings that differ in it only are averaged when one is chosen.
    """

    method: str
    k: int = 0
    layer: int = -1
    strength: float = 0.0
    steering: Steering = field(default_factory=Steering)
    seed: int = 0

    @property
    def label(self) -> tuple[str, int, int, float, int]:
        """What names it in a table: method, k, layer, strength, seed."""
        return (self.method, self.k, self.layer, self.strength, self.seed)


Settings = Sequence[Setting] | Callable[[Sequence[Question]], Sequence[Setting]]


def unsteered() -> Setting:
    """The model as it is: what every choice is measured against."""
    return Setting(UNSTEERED)


def grid(
    method: str,
    make: Callable[[int, float], Steering],
    *,
    strengths: float | Iterable[float],
    ks: int | Iterable[int] | None = None,
    layers: int | Iterable[int] | None = None,
    seed: int = 0,
) -> list[Setting]:
    """Every K (or every layer) with every strength.

    Args:
        make: steering of (K or layer, strength).
        strengths: one or several.
        ks, layers: one of the two, with one value or several.

    Raises:
        TypeError: values that are not numbers.
        ValueError: both or neither of ``ks`` and ``layers``; an empty grid; a K below 1, a layer below 0, a strength
            that is 0 or not finite (no steering is `unsteered`); the method name "none".
    """
    if (ks is None) == (layers is None):
        raise ValueError(f"a grid of {method!r} is over ks= or over layers=, one of the two")
    if method == UNSTEERED:
        raise ValueError("the name 'none' is for the model without steering: unsteered()")
    over_k = layers is None
    places = _numbers(method, *(("ks", ks) if over_k else ("layers", layers)), index)
    values = _numbers(method, "strengths", strengths, float)
    if not places or not values:
        raise ValueError(f"a grid of {method!r} needs values, got {places} and strengths {values}")
    for place in places:
        if place < over_k:
            raise ValueError(f"{'K' if over_k else 'layer'}={place} in the grid of {method!r} is too small")
    for value in values:
        if value == 0 or not math.isfinite(value):
            raise ValueError(f"strength {value:g} in the grid of {method!r}; no steering is a setting of its own")
    return [
        Setting(method, place if over_k else 0, -1 if over_k else place, value, make(place, value), seed)
        for place in places
        for value in values
    ]


def _numbers(method: str, name: str, given: Any, kind: Callable[[Any], Any]) -> list[Any]:
    """One number or several, as a list."""
    try:
        return [kind(value) for value in (given if isinstance(given, Iterable) else [given])]
    except (TypeError, ValueError):
        numbers = "whole numbers" if kind is index else "numbers"
        raise TypeError(f"{name}={given!r} in the grid of {method!r} must be a list of {numbers}, or one") from None


def checked_settings(model: TransformerBridge, settings: Sequence[Setting], n_questions: int) -> list[Setting]:
    """The settings as a list, checked before any work.

    Raises:
        TypeError: something else than a list of `Setting`.
        ValueError: none; two of one name; a steering that does not fit the model or that number of questions.
    """
    if not isinstance(settings, Iterable) or isinstance(settings, Mapping | Steering | str):
        raise TypeError(f"settings must be a list such as [unsteered(), *grid(…)], got {type(settings).__name__}")
    settings = list(settings)
    for i, setting in enumerate(settings):
        if not isinstance(setting, Setting):
            hint = (
                "a grid is a list itself: put a star before it, [unsteered(), *grid(…)]"
                if isinstance(setting, list) and all(isinstance(one, Setting) for one in setting)
                else "give a steering a name: Setting('CAA', layer=10, strength=1.0, steering=steering)"
            )
            raise TypeError(f"setting {i} is of type {type(setting).__name__}, not Setting; {hint}")
    if not settings:
        raise ValueError("no settings were given; a sweep needs at least one, such as unsteered()")
    names = [setting.label for setting in settings]
    for name in names:
        if names.count(name) > 1:
            shown = ", ".join(f"{key}={value!r}" for key, value in zip(LABEL, name, strict=True))
            raise ValueError(f"{names.count(name)} settings have the same name ({shown}); give them other ones")
    for setting in settings:
        steering = as_steering(setting.steering)
        steering.points(model)
        require_rows(steering, n_questions)
    return settings
