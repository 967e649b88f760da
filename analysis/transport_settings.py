"""`transport_settings`: what a sweep of transports tries, each method at every support and strength, with controls."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pandas as pd

from analysis.sweep import Candidate, Check, baseline
from lensteer.messages import short
from lensteer.methods.transport import Support, Transport
from lensteer.methods.transport_maps import require_support
from lensteer.points import layer_of

SUPPORTS: tuple[Support, ...] = ((40, 60), (30, 70), (20, 80), (10, 90), (5, 95), (1, 99), (0, 100), None)
"""The intervals of the paper's support ablation, from narrow to everywhere."""
STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0, 1.5)


def support_label(support: Support) -> str:
    """How a support is called in tables: "5-95", or "everywhere"."""
    return "everywhere" if support is None else f"{support[0]:g}-{support[1]:g}"


@dataclass(frozen=True)
class TransportSetting:
    """One candidate of a sweep, and what its table says of it.

    Attributes:
        method: name of the transport.
        support: `support_label`, or "none" without steering.
        seed: of a random control, else -1.
        candidate: what is run.
    """

    method: str
    support: str
    seed: int
    candidate: Candidate


def transport_settings(
    transports: Transport | Mapping[str, Transport],
    strengths: Sequence[float],
    supports: Sequence[Support | str],
    controls: int,
    seed: int,
) -> list[TransportSetting]:
    """No steering, then every transport and its controls at every support and strength; arguments of `strength_sweep`.

    Raises:
        ValueError: no transports, no strength besides 0, no support or an unknown one, a number of controls below 0.
    """
    named = {transports.method: transports} if isinstance(transports, Transport) else dict(transports)
    if not named:
        raise ValueError("no transports were given; fit one, or give names -> transports")
    require_grid(strengths, supports, controls)
    values = list(dict.fromkeys(float(strength) for strength in strengths if strength != 0))
    settings = []
    for name, transport in named.items():
        settings.append(TransportSetting(name, "none", -1, baseline(name)))
        runs = [("steered", -1, transport)]
        runs += [("random", i, transport.random(i)) for i in range(seed, seed + controls)]
        for condition, number, own in runs:
            settings += _grid(name, condition, number, own, values, supports)
    return settings


def require_grid(strengths: Sequence[float], supports: Sequence[Support | str], controls: int) -> None:
    """Refuse strengths, supports and controls that no sweep can be made of, before anything is fitted.

    Raises:
        ValueError: as `transport_settings`.
    """
    if not any(strengths) or not all(map(math.isfinite, strengths)):
        raise ValueError(f"strengths={tuple(strengths)}: give finite ones, some besides 0, such as {STRENGTHS}")
    if isinstance(supports, str) or not len(supports):
        raise ValueError(f"supports must be a list such as ['default', (0, 100), None], got {supports!r}")
    for support in supports:
        if isinstance(support, str) and support != "default":
            raise ValueError(f"support {support!r} is unknown; use 'default', two percentages (0, 100), or None")
        if support is not None and not isinstance(support, str):
            require_support(support)
    if controls < 0:
        raise ValueError(f"controls={controls}: a number of random controls, 0 or more")


def require_check(check: Check) -> None:
    """Call a check on two responses, so that what it lacks or returns wrongly is found before anything is fitted.

    Raises:
        TypeError: not a function, or not one number for each response.
    """
    wanted = "check must be a function from a list of responses to a success for each, such as [1.0, 0.0]"
    if not callable(check):
        raise TypeError(f"{wanted}; got {short(check)}")
    verdict = check(["A response.", "Another one, which is longer."])
    try:
        column = verdict["success"] if isinstance(verdict, pd.DataFrame) and "success" in verdict else verdict
        count = len([float(score) for score in column])
    except (TypeError, ValueError):
        count = -1
    if count != 2:
        raise TypeError(f"{wanted}; for two responses it returned {short(verdict)}")


def require_sides(sides: object) -> None:
    """Refuse what is not a source and a target.

    Raises:
        TypeError: a name or anything else without sides, or a side that is one text.
    """
    if isinstance(sides, str):
        raise TypeError(f"sides must be lists of texts; data.concept({sides!r}) gives those of a concept of that name")
    given = [getattr(sides, side, None) for side in ("source", "target")]
    if any(own is None or isinstance(own, str) for own in given):
        raise TypeError(f"sides must be data.Sides(source, target), two lists of texts; got {short(sides)}")


def _grid(
    name: str,
    condition: str,
    seed: int,
    transport: Transport,
    strengths: Sequence[float],
    supports: Sequence[Support | str],
) -> Iterator[TransportSetting]:
    """One transport at every support and strength; strengths share their tensors, so that batches can."""
    wanted: dict[str, Support] = {}
    for support in supports:
        own = transport.support if isinstance(support, str) else support
        wanted.setdefault(support_label(own), own)
    layer = min((layer for hook in transport.maps if (layer := layer_of(hook)) is not None), default=0)
    for label, support in wanted.items():
        whole = transport.steering(1.0, support=support)
        for strength in strengths:
            yield TransportSetting(
                name, label, seed, Candidate(name, condition, layer, strength, whole.at_strength(strength))
            )
