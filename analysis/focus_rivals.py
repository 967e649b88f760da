"""What a focus vector is compared with: SADI's heads and activation transport, fitted to do the same on empty prompts.

    SADI    pairs over the empty prompt of informative examples: right = y_s, wrong = y    live, at `STEPS`
    AcT     maps from prompts with focus(C) to prompts with focus(S)                       as published: all tokens

Toward C both go the other way: SADI scales the elements whose difference is most negative, which are those that pairs
with right = y would rank first, and AcT maps focus(S) to focus(C). Neither weighs the cells (y, y_s): give it balanced
examples. The comparison is lensteer's own; the methods are `lensteer.methods.sadi` and `lensteer.methods.transport`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from analysis.choice_settings import Setting, grid
from analysis.focus_sweep import Toward
from analysis.transport_sweep import content_key
from lensteer.answers import AnswerPair
from lensteer.data.focus import TRAINING, FocusExample, FocusTask, Wording
from lensteer.methods import sadi, transport
from lensteer.methods.focus_pairs import focus_pairs
from lensteer.methods.transport import Transport
from lensteer.positions import STEPS
from lensteer.reading import Which
from lensteer.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_BACK: dict[Toward, Literal["signed", "signed_min"]] = {"S": "signed", "C": "signed_min"}


def sadi_settings(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    *,
    ks: Iterable[int],
    strengths: Iterable[float],
    resume: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> dict[Toward, list[Setting]]:
    """SADI's heads toward S and toward C, every K with every strength δ.

    Args:
        examples: of the training split; the informative ones are used.
        resume: a folder that keeps every finished batch.

    Raises:
        ValueError: no informative examples, or as `sadi.fit`, `SADI.steering` and `grid`.
    """
    pairs = [AnswerPair(task.prompt(e), e.y_s, e.y) for e in task.require(examples) if e.informative]
    fitted = sadi.fit(model, pairs, "head", batch_size=batch_size, resume=resume, progress=progress)

    def make(k: int, strength: float, toward: Toward) -> Steering:
        return fitted.steering(k, strength, mode="live", rank_by=_BACK[toward], tokens=STEPS)

    ks, strengths = list(ks), list(strengths)
    return {
        toward: grid("SADI heads", partial(make, toward=toward), ks=ks, strengths=strengths) for toward in ("S", "C")
    }


def act_settings(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    method: str,
    *,
    strengths: Iterable[float],
    sites: str = "attention",
    tokens: Which = "mean",
    templates: int | Sequence[int] = 1,
    wording: Wording = TRAINING,
    seed: int = 0,
    cache: str | Path | None = None,
    batch_size: int | Literal["auto"] = "auto",
    progress: bool = True,
) -> dict[Toward, list[Setting]]:
    """Activation transport toward S and toward C at every strength λ.

    Args:
        examples: of the training split.
        method: of `transport.fit`: "linear", "mean" and so on.
        sites: where maps are fitted.
        tokens: how the tokens of a prompt become one sample; "mean" as published.
        templates, seed: as in `focus_pairs`.
        cache: a folder that keeps the maps.

    Raises:
        ValueError: as `focus_pairs`, `transport.fit` and `Transport.steering`.
    """
    pairs = focus_pairs(task, examples, templates=templates, wording=wording, seed=seed)
    sides = {"S": [up.prompt for up, _ in pairs], "C": [down.prompt for _, down in pairs]}
    sizes = [float(strength) for strength in strengths]
    how: dict[str, Any] = {"tokens": tokens, "batch_size": batch_size, "progress": progress}

    def settings(toward: Toward, source: list[str], target: list[str]) -> list[Setting]:
        name = f"{task.name} toward {toward}"
        fitted = _maps(model, source, target, method, sites, name, cache, how)
        return [Setting(f"AcT {method}", strength=own, steering=fitted.steering(own)) for own in sizes]

    return {"S": settings("S", sides["C"], sides["S"]), "C": settings("C", sides["S"], sides["C"])}


def _maps(
    model: TransformerBridge,
    source: list[str],
    target: list[str],
    method: str,
    sites: str,
    name: str,
    cache: str | Path | None,
    how: dict[str, Any],
) -> Transport:
    """The maps, from the folder if it holds them."""
    if cache is None:
        return transport.fit(model, source, target, method, sites, name=name, keep_samples=False, **how)
    key = content_key(model, Steering(), "focus maps", method, sites, name, str(how["tokens"]), source, target)
    path = Path(cache) / f"maps-{key}.safetensors"
    if path.is_file():
        return Transport.load(path, model)
    fitted = transport.fit(model, source, target, method, sites, name=name, keep_samples=False, **how)
    fitted.save(path)
    return fitted
