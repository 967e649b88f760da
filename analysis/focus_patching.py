"""Where in the network the focus is decided: patching from the prompt that asks for y_s into the one that asks for y.

    patched(l)   the run on P⁻ whose activation at layer l, at the token that predicts the label, is set to that of P⁺
    flips        share of examples that answer y_s when patched, and not on P⁻
    log_odds     log p(y_s) − log p(y)
    restored     (mean log_odds(patched) − mean log_odds(P⁻)) / (mean log_odds(P⁺) − mean log_odds(P⁻))

P⁺ and P⁻ are the same example in templates of the same number, such as focus(S) and focus(C); only informative examples
count, y ≠ y_s. Restored is 0 where the layer holds nothing of the difference yet, or no longer, and 1 where it holds it
all: at the last layer's output exactly, if labels go on with one token each (what follows it is read from P⁻).

The token that predicts the label is the last of the prompt. Where all labels begin with the same tokens, such as a
blank before a digit, these are put after both prompts, the last of them is patched, and labels are scored from there
(`lensteer.methods.focus_pairs.until_labels_part`). What lies before it is read once and shared by all layers, so a
layer costs one token.

Lensteer's own; patching is from Vig et al. (2020) and Meng et al. (2022), the instructions from Lamb et al. (ICML 2025,
arXiv 2410.22944).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from torch import Tensor

from analysis.focus_choice import interval
from analysis.statistics import resampled_means
from lensteer.capture import capture
from lensteer.data.focus import TRAINING, Asked, FocusExample, FocusTask, Kind, Wording
from lensteer.evaluate.focus_scores import choice_scores, require_choice, tokenised
from lensteer.hooks import SetElements
from lensteer.methods.focus_pairs import focus_pairs, until_labels_part
from lensteer.models import twin_of
from lensteer.points import hook_names, layer_of, resolve
from lensteer.positions import at
from lensteer.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def focus_patching(
    model: TransformerBridge,
    task: FocusTask,
    examples: Iterable[FocusExample],
    *,
    positive: Kind = "focus(S)",
    negative: Kind = "focus(C)",
    templates: int | Sequence[int] = 1,
    sites: str | Sequence[str] = "resid_post",
    layers: int | Iterable[int] | None = None,
    wording: Wording = TRAINING,
    batch_size: int | Literal["auto"] = "auto",
    level: float = 0.95,
    n_resamples: int = 2000,
    seed: int = 0,
    progress: bool = True,
) -> pd.DataFrame:
    """Patch one layer after the other and see whether the answer follows.

    Args:
        examples: those that are not informative are left out.
        positive, negative, templates: of P⁺ and P⁻, as in `focus_pairs`; templates of an example are averaged.
        sites: what is patched, whole: "resid_post"; "attn_out" and "mlp_out" are what a layer adds by each.
        level, n_resamples: of the bootstrap over sources of examples.
        seed: of the draw of templates and of the bootstrap.

    Returns:
        one row per site and layer: site, layer, n (examples); flips, says_y_s (share that answers y_s), log_odds and
        restored, each with _low and _high; and, the same on all rows, flips_positive, says_y_s_positive,
        says_y_s_negative, log_odds_positive and log_odds_negative: the two runs without a patch. Restored is NaN
        where these two do not differ.

    Raises:
        ValueError: no informative examples, a task of free text, a site that the model lacks or that cannot be edited,
            one given twice, a model that is being steered, or as `focus_pairs` and `focus_accuracy`.
    """
    require_choice(task)
    if twin_of(model).active:
        raise ValueError("the model is being steered; patch it outside of the block that steers it")
    names = _names(model, sites, layers)
    checked = task.require(examples)
    sure = [example for example in checked if example.informative]
    if not sure:
        raise ValueError(f"y and y_s differ in none of {len(checked)} examples, so no answer can show a flip")
    how: dict[str, Any] = {"templates": templates, "wording": wording, "seed": seed}
    up, down = zip(*focus_pairs(task, sure, positive=positive, negative=negative, **how), strict=True)
    run: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    sides = (until_labels_part(model, *tokenised(model, task, side)) for side in (down, up))
    (rows, ids), (rows_up, ids_up) = sides
    values = capture(model, rows_up, list(dict.fromkeys(name for _, name in names)), **run)
    patches = [Steering([(name, at(SetElements(values[name], per_row=True), "last"))]) for _, name in names]
    below, *patched = (_run(task, down, own) for own in choice_scores(model, rows, ids, [Steering(), *patches], **run))
    (above,) = (_run(task, up, own) for own in choice_scores(model, rows_up, ids_up, [Steering()], **run))
    count, sources = len(up) // len(sure), [example.source for example in sure]
    options = {"sources": sources, "level": level, "n_resamples": n_resamples, "seed": seed}
    ends = {
        **{"flips_positive": float((above.says & ~below.says).mean()), "says_y_s_positive": float(above.says.mean())},
        **{"says_y_s_negative": float(below.says.mean())},
        **{"log_odds_positive": float(above.odds.mean()), "log_odds_negative": float(below.odds.mean())},
    }
    lines = [
        {
            "site": site,
            "layer": layer_of(name),
            "n": len(sure),
            **_line(own, below, above, count, options),
            **ends,
        }
        for (site, name), own in zip(names, patched, strict=True)
    ]
    return pd.DataFrame(lines)


class _Run(NamedTuple):
    """Of every pair: log-odds of y_s against y, and whether y_s alone has the largest score."""

    odds: Float[np.ndarray, " pair"]
    says: Bool[np.ndarray, " pair"]


def _names(
    model: TransformerBridge, sites: str | Sequence[str], layers: int | Iterable[int] | None
) -> list[tuple[str, str]]:
    """(site, hook name) of all that is patched."""
    asked = [sites] if isinstance(sites, str) else list(sites)
    if not asked or len(set(asked)) < len(asked):
        raise ValueError(f"sites must be one or several, each once, such as 'resid_post'; got {asked}")
    layers = list(layers) if isinstance(layers, Iterable) else layers
    names = [(site, name) for site in asked for name in hook_names(model, site, layers)]
    resolve(model, [name for _, name in names], edit=True)
    return names


def _run(task: FocusTask, asked: Sequence[Asked], scores: Float[Tensor, "pair label"]) -> _Run:
    values, place = scores.numpy(), {label: i for i, label in enumerate(task.labels)}
    row = np.arange(len(values))
    y, y_s = (np.array([place[getattr(one.example, name)] for one in asked]) for name in ("y", "y_s"))
    best = values == values.max(1, keepdims=True)
    return _Run(values[row, y_s] - values[row, y], best[row, y_s] & (best.sum(1) == 1))


def _line(own: _Run, below: _Run, above: _Run, count: int, options: dict[str, Any]) -> dict[str, float]:
    """One layer's numbers; the ``count`` templates of an example, which follow each other, are averaged."""

    def each(values: Float[np.ndarray, " pair"]) -> Float[np.ndarray, " example"]:
        return values.reshape(-1, count).mean(1)

    return {
        **interval("flips", each(own.says & ~below.says), **options),
        **interval("says_y_s", each(own.says), **options),
        **interval("log_odds", each(own.odds), **options),
        **_restored(np.stack([each(run.odds) for run in (own, below, above)]), **options),
    }


def _restored(
    odds: Float[np.ndarray, "run example"], *, sources: list[str], level: float, n_resamples: int, seed: int
) -> dict[str, float]:
    """A ratio of mean differences, with its bootstrap interval over sources; NaN where it is not defined."""
    drawn = np.concatenate([odds.mean(1)[None], resampled_means(odds, n_resamples, seed, groups=sources)])
    patched, below, above = drawn.T
    with np.errstate(divide="ignore", invalid="ignore"):
        share = (patched - below) / (above - below)
    names = ("restored", "restored_low", "restored_high")
    if not np.isfinite(share).all():
        return dict.fromkeys(names, np.nan)
    low, high = np.quantile(share[1:], [(1 - level) / 2, (1 + level) / 2])
    return dict(zip(names, (float(share[0]), float(low), float(high)), strict=True))
