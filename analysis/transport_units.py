"""`unit_table`, `top_units`, `unit_samples`: single units of a transport, and how far their maps move or miss them.

    cost       c = mean_i (b_(i) − ω·a_(i) − β)² / (|m_b − m_a| + s_b + s_a)
    root_cost  √ of the numerator over the same denominator
    moved      √W₂²(source, target) / (s_a + s_b)

c is the "normalised cost" by which the paper picks the units that it draws (Rodriguez et al., ICLR 2025, appendix):
what an affine map leaves of the distance between target and transported source, against how far apart and how wide the
two are. The formula was read from an extracted text, in which a root over the numerator cannot be excluded: as printed,
c has the unit of the activation and favours units of large scale; with the root it has none. Both are here.
``moved`` does not ask how well the map fits, only how far the unit is to go.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pandas as pd
import torch

from lensteer.points import layer_of

if TYPE_CHECKING:
    from lensteer.methods.transport import Transport

COSTS = ("cost", "root_cost", "moved")


def unit_table(transport: Transport) -> pd.DataFrame:
    """One row per unit of every site.

    Returns:
        hook, layer (−1 outside of the layers), kind (`kind_of_site`), unit (its number in the flattened site), fitted,
        scale, shift, source_mean, source_std, target_mean, target_std, and the three costs; a cost is 0 for a unit
        whose source and target are the same constant.
    """
    tables = []
    for hook, maps in transport.maps.items():
        layer = layer_of(hook)
        names = ("fitted", "scale", "shift", "source_mean", "source_std", "target_mean", "target_std")
        own = {name: getattr(maps, name).flatten() for name in names}
        spread = own["source_std"] + own["target_std"]
        width = (own["target_mean"] - own["source_mean"]).abs() + spread
        residual, distance = (value.flatten().clamp(min=0) for value in (maps.residual, maps.distance))
        costs = {
            "cost": residual / width,
            "root_cost": residual.sqrt() / width,
            # Two different constants have no width to compare their distance with.
            "moved": distance.sqrt() / torch.where(spread > 0, spread, width),
        }
        costs = {name: torch.where(width > 0, value, 0.0) for name, value in costs.items()}
        place = {"hook": hook, "layer": -1 if layer is None else layer, "kind": kind_of_site(hook)}
        values = {name: value.detach().cpu().numpy() for name, value in {**own, **costs}.items()}
        tables.append(pd.DataFrame({**place, "unit": range(len(spread)), **values}))
    return pd.concat(tables, ignore_index=True)


def top_units(transport: Transport, n: int = 6, *, by: str = "cost") -> pd.DataFrame:
    """The ``n`` units of the largest cost, largest first; the columns of `unit_table`.

    Raises:
        ValueError: an unknown cost, or ``n`` out of range.
    """
    if by not in COSTS:
        raise ValueError(f"by must be one of {COSTS}, got {by!r}")
    table = unit_table(transport)
    if not 1 <= n <= len(table):
        raise ValueError(f"n={n}: there are {len(table)} units")
    return table.sort_values(by, ascending=False, kind="stable").head(n).reset_index(drop=True)


def unit_samples(transport: Transport, units: pd.DataFrame) -> pd.DataFrame:
    """Source, target and transported source of some units, a row each sample.

    Args:
        units: columns hook and unit, such as `top_units` gives.

    Returns:
        hook, unit, side ("source", "target", "transported"), value.

    Raises:
        ValueError: a transport without samples (loaded from a file, or fitted with keep_samples=False), or a hook or
            unit that it does not have.
    """
    lines = []
    for hook, unit in units[["hook", "unit"]].itertuples(index=False):
        if hook not in transport.samples:
            raise ValueError(
                f"this transport holds no samples of {hook!r}; they are kept by fit(…, keep_samples=True) and not saved"
            )
        maps, (source, target) = transport.maps[hook], transport.samples[hook]
        if not 0 <= unit < maps.scale.numel():
            raise ValueError(f"unit {unit} is out of range: {hook!r} has {maps.scale.numel()} units")
        before, after = (samples.flatten(1)[:, unit] for samples in (source, target))
        moved = maps.scale.flatten()[unit] * before + maps.shift.flatten()[unit]
        sides = {"source": before, "target": after, "transported": moved}
        for side, values in sides.items():
            lines.append(pd.DataFrame({"hook": hook, "unit": unit, "side": side, "value": values.cpu().numpy()}))
    return pd.concat(lines, ignore_index=True)


def kind_of_site(hook: str) -> str:
    """A hook name without its layer: "ln1.hook_out" of "blocks.3.ln1.hook_out"."""
    return re.sub(r"^blocks\.\d+\.", "", hook)
