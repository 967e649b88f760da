"""SADI: scale a few heads, neurons or hidden units, by as much as the present input has in them.

Over pairs of a right and a wrong answer to a question, read at the last answer token, all layers together:

    D = mean(A⁺ − A⁻)          M = 1 on the K largest elements of D, over layers and elements jointly
    A' = A + δ·(A ⊙ M)         A of the present input: D says where, A says in which direction and how far

A head's D is the mean over its d_head coordinates; a head is scaled as a whole. The strength here is δ everywhere: 0
changes nothing, 4 means five times as much. The released code, and the best values of the paper, count s = 1 + δ.

Two ways to steer, both at the last prompt token (``tokens=STEPS``: at each new token as well):

- ``mode="frozen"``, the paper's Algorithm 1 and the released code: read the prompt once, clean, scale the mask, and
  run again with the component of *every* layer overwritten by it. Its values belong to its prompts. (At
  ``hidden_site="resid_post"`` the last layer overwrites what the mask did below it; use "live" there.)
- ``mode="live"``: scale in place in one pass. An upstream change then reaches the elements downstream as well.

Source: Wang, Yang, Peng, "Semantics-Adaptive Activation Intervention for LLMs via Dynamic Steering Vectors", ICLR 2025
(arXiv 2410.12299), and its released code, which reads "hidden" at the MLP's output (the paper: the layer's output).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lensteer.contrast import Contrast, contrast, require_contrast
from lensteer.methods.sadi_elements import SADI, Element

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["PAPER_GRID", "SADI", "SITES", "Element", "fit", "fit_all", "from_contrast", "site_of"]

SITES: dict[str, tuple[str, ...]] = {
    "head": ("z",),
    "neuron": ("neuron",),
    "hidden": ("mlp_out", "resid_post"),
}
"""Where an element can be read; the first is the default."""
PAPER_GRID: dict[str, tuple[tuple[int, ...], tuple[float, ...]]] = {
    "head": ((1, 2, 4, 6, 8, 10), tuple(float(s - 1) for s in range(5, 81, 5))),
    "neuron": ((3, 5, 10, 30, 50, 100, 200, 300, 400, 500), tuple(float(s - 1) for s in (10, 20, 30, 50, 70, 90))),
    "hidden": ((1, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20), tuple(float(s - 1) for s in range(5, 81, 5))),
}
"""The released search grid: K, and strengths δ."""


def fit(
    model: TransformerBridge,
    pairs: Sequence[Any],
    element: Element = "head",
    *,
    hidden_site: Literal["mlp_out", "resid_post"] = "mlp_out",
    prompt_format: str = "plain",
    batch_size: int | Literal["auto"] = "auto",
    resume: str | Path | None = None,
    progress: bool = True,
) -> SADI:
    """Find one kind of element in one streamed pass over the pairs.

    Args:
        pairs: `AnswerPair`s; `answer_pairs` makes them from questions.
        element: "head" (z), "neuron" (activation before the up branch, if there is one) or "hidden".
        hidden_site: where "hidden" is read and scaled: the MLP's output (released code) or the layer's (paper).
        prompt_format: "plain" is the paper's raw text, also for chat models; "chat" renders the template.
        resume: a folder in which an interrupted fit keeps its finished batches.

    Raises:
        ValueError: bad pairs, a text longer than the context, or a site that this architecture lacks.
    """
    options: dict[str, Any] = {"batch_size": batch_size, "resume": resume, "progress": progress}
    return fit_all(model, pairs, [element], hidden_site=hidden_site, prompt_format=prompt_format, **options)[element]


def fit_all(
    model: TransformerBridge,
    pairs: Sequence[Any],
    elements: Sequence[Element] = ("head", "neuron", "hidden"),
    *,
    hidden_site: Literal["mlp_out", "resid_post"] = "mlp_out",
    prompt_format: str = "plain",
    batch_size: int | Literal["auto"] = "auto",
    resume: str | Path | None = None,
    progress: bool = True,
) -> dict[str, SADI]:
    """Find several kinds of elements in one pass; arguments and errors as in `fit`."""
    sites = {element: site_of(element, hidden_site) for element in elements}
    if not sites:
        raise ValueError(f"no elements were given; name some of {tuple(SITES)}")
    options: dict[str, Any] = {"batch_size": batch_size, "resume": resume, "progress": progress}
    seen = contrast(model, pairs, list(sites.values()), reduce="moments", prompt_format=prompt_format, **options)
    return {element: from_contrast(seen, element, site) for element, site in sites.items()}


def from_contrast(seen: Contrast, element: Element = "head", site: str | None = None) -> SADI:
    """Fit on activations that were read before; ``site`` as in `SITES`, its default if None.

    Raises:
        ValueError: an unknown element, a site that is not one of its own or was not read, a contrast of some layers
            only or in another order, or NaN or inf in the activations.
    """
    require_contrast(seen)
    site = site or site_of(element, "mlp_out")
    if site not in SITES.get(element, ()):
        raise ValueError(f"site {site!r} is none of {element!r}; the sites of each element are {SITES}")
    seen.require_all_layers(site)
    positive, negative = seen.moments(site)
    return SADI(element, site, positive, negative, metadata={**seen.metadata, "method": "sadi"})


def site_of(element: str, hidden_site: str) -> str:
    """Where elements of a kind are read.

    Raises:
        ValueError: an unknown element or ``hidden_site``.
    """
    if element not in SITES:
        raise ValueError(f"element must be one of {tuple(SITES)}, got {element!r}")
    if hidden_site not in SITES["hidden"]:
        raise ValueError(f"hidden_site must be one of {SITES['hidden']}, got {hidden_site!r}")
    return hidden_site if element == "hidden" else SITES[element][0]
