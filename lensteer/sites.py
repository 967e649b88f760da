"""Groups of hook points that papers steer together, in the order in which a forward pass reaches them.

| group | hook points of each layer | Hugging Face modules (Llama, Gemma-2, GPT-2) |
|---|---|---|
| ``"attention"`` | ``attn.hook_out`` | output of ``o_proj``, ``c_proj`` |
| ``"mlp"`` | ``mlp.hook_out`` | output of ``down_proj``, ``c_proj`` |
| ``"post_norms"`` | ``ln1_post.hook_out``, ``ln2_post.hook_out`` | Gemma-2's norms after attention and MLP |
| ``"norms"`` | ``ln1.hook_out``, ``ln2.hook_out`` and the post-norms | every ``*layernorm``, ``ln_1``, ``ln_2`` |
| ``"mlp_linears"`` | ``mlp.gate.hook_out``, ``mlp.in.hook_out``, ``mlp.hook_out`` | ``gate``, ``up``, ``down_proj`` |
| ``"residual"`` | ``hook_resid_post`` | output of the layer |
| ``"heads"`` | ``attn.hook_z`` | input of ``o_proj``, by head |

A module's name misleads here: ``post_attention_layernorm`` is a post-norm in Gemma-2 and the MLP's own norm in Llama,
which has no post-norms. Source: Rodriguez et al., ICLR 2025, Section 4 and Appendix C.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from lensteer.models import twin_of
from lensteer.points import Point, firing_order, hook_names, resolve

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

GROUPS: dict[str, tuple[str, ...]] = {
    "attention": ("attn.hook_out",),
    "mlp": ("mlp.hook_out",),
    "post_norms": ("ln1_post.hook_out", "ln2_post.hook_out"),
    "norms": ("ln1.hook_out", "ln1_post.hook_out", "ln2.hook_out", "ln2_post.hook_out"),
    "mlp_linears": ("mlp.gate.hook_out", "mlp.in.hook_out", "mlp.hook_out"),
    "residual": ("hook_resid_post",),
    "heads": ("attn.hook_z",),
}


def ordered_points(
    model: TransformerBridge,
    sites: str | Sequence[str],
    layers: int | Iterable[int] | None = None,
    *,
    edit: bool = False,
) -> list[Point]:
    """The points of groups, sites or hook names, each once, in execution order.

    Args:
        sites: names of `GROUPS`, TransformerLens shorthand, or full hook names.
        edit: check that an edit at each of them reaches the output.

    Raises:
        ValueError: a group that the model has nothing of, a point that is named twice, or as `resolve`.
    """
    asked = [sites] if isinstance(sites, str) else list(sites)
    layers = list(layers) if isinstance(layers, Iterable) else layers
    names = [name for site in asked for name in _expand(model, site, layers)]
    points = resolve(model, names, edit=edit) if names else resolve(model, asked, layers)
    seen: dict[str, str] = {}
    for point in points:
        place = _place(point)
        if place in seen:
            other = "" if seen[place] == point.name else f" (as {seen[place]!r} as well)"
            raise ValueError(f"the site {point.name!r} is given twice{other}; a map is fitted once at each site")
        seen[place] = point.name
    order = firing_order(model)
    return sorted(points, key=lambda point: order[point.canonical])


def _place(point: Point) -> str:
    """One name for points that hold the same tensor: a module's and its last part's output, two blocks' in between."""
    name = re.sub(r"\.(attn|mlp)\.(o|out)\.hook_out$", r".\1.hook_out", point.canonical)
    block = re.fullmatch(r"blocks\.(\d+)\.hook_in", name)
    return f"blocks.{int(block[1]) - 1}.hook_out" if block and int(block[1]) else name


def _expand(model: TransformerBridge, site: str, layers: int | Sequence[int] | None) -> list[str]:
    """Hook names of a group or a site."""
    from transformer_lens.utilities import get_act_name

    if site not in GROUPS:
        close = difflib.get_close_matches(site.lower(), GROUPS, n=1, cutoff=0.7)
        if close and get_act_name(site, 0) not in model.hook_dict:
            raise ValueError(f"{site!r} is no group of sites; did you mean {close[0]!r}? Groups: {', '.join(GROUPS)}")
        return hook_names(model, site, layers)
    blocks = [name.rsplit(".", 1)[0] for name in hook_names(model, "resid_post", layers)]
    names = [f"{block}.{part}" for block in blocks for part in GROUPS[site] if _has(model, f"{block}.{part}")]
    if not names:
        others = [group for group, parts in GROUPS.items() if any(_has(model, f"{blocks[0]}.{p}") for p in parts)]
        raise ValueError(
            f"{twin_of(model).name} has no {site!r} (no {' or '.join(GROUPS[site])} in its layers); "
            f"groups that it has: {', '.join(others)}"
        )
    return names


def _has(model: TransformerBridge, name: str) -> bool:
    return name in model.hook_dict
