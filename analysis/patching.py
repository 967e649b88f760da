"""Which elements carry the answer: attribution patching for all of them at once, activation patching one by one.

    metric       log p(right) − log p(wrong) of the first answer token at which the two differ, given the prompt
    effect       mean over questions of metric(element set to its reference) − metric             one pass an element
    attribution  mean over questions of Σ_d (reference − a)_d · ∂metric/∂a_d        one forward and one backward pass

Both act at the last prompt token, the position that predicts the answer and where SADI acts; a head is patched as a
whole. Attribution is the effect to first order: exact for small changes, and `compare` says how good it is for these.

Where the two answers begin with the same tokens, the metric is read after these: what the last layer holds at the last
prompt token cannot reach it, and has no effect.

The reference is what an element is set to: "mean", its mean over the prompts; "zero"; or given values, such as those
of counterpart prompts. With "zero", minus the attribution is d metric / dδ of scaling the element by 1 + δ.

Sources: Nanda, "Attribution patching" (2023); Syed, Rager and Conmy, "Attribution patching outperforms automated
circuit discovery" (arXiv 2310.10348); for activation patching Vig et al. (2020) and Meng et al. (2022).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from analysis.answer_odds import items, tails
from analysis.key_elements import rank_correlation
from analysis.patched_elements import Pass, Place, Sums, place_of, reference_values
from analysis.statistics import correlation
from lensteer.capture import capture
from lensteer.messages import short
from lensteer.methods.sadi import SITES, Element
from lensteer.progress import progress_bar

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["Comparison", "activation_patching", "attribution_patching", "attribution_patching_all", "compare"]

Reference = Literal["mean", "zero"] | Float[Tensor, "layer *pair_and_shape"]
HiddenSite = Literal["mlp_out", "resid_post"]


def attribution_patching(
    model: TransformerBridge,
    pairs: Sequence[Any],
    element: Element = "head",
    *,
    reference: Reference = "mean",
    hidden_site: HiddenSite = "mlp_out",
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "plain",
    progress: bool = True,
) -> Float[Tensor, "layer element"]:
    """The attribution of every element of one kind; positive where the reference would help the right answer.

    Args:
        pairs: `AnswerPair`s, or pairs of chats that end with the assistant's answer.
        reference: "mean", "zero", or values ``[layer, *shape]`` or, for each pair its own, ``[layer, pair, *shape]``;
            the shape of heads is ``[head, d_head]``.
        hidden_site: where "hidden" elements are: the MLP's output, or the layer's.
        prompt_format: as in `tokenize`; "plain" is raw text, without a chat template.

    Returns:
        float64, in nats.

    Raises:
        ValueError: an unknown element or reference, bad pairs, answers that do not differ in a token, a text that is
            too long, a site that the architecture lacks, or a model that is being steered.
    """
    options: dict[str, Any] = {"hidden_site": hidden_site, "batch_size": batch_size, "progress": progress}
    references: Any = reference if isinstance(reference, str) else {element: reference}
    return attribution_patching_all(
        model, pairs, [element], reference=references, prompt_format=prompt_format, **options
    )[element]


def attribution_patching_all(
    model: TransformerBridge,
    pairs: Sequence[Any],
    elements: Sequence[Element] = ("head", "neuron", "hidden"),
    *,
    reference: Literal["mean", "zero"] | Mapping[str, Tensor] = "mean",
    hidden_site: HiddenSite = "mlp_out",
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "plain",
    progress: bool = True,
) -> dict[Element, Float[Tensor, "layer element"]]:
    """Several kinds of elements from the same forward and backward passes.

    Args:
        reference: "mean", "zero", or the values of every kind; other arguments and errors as `attribution_patching`.
    """
    if not elements:
        raise ValueError(f"no elements were given; name some of {tuple(SITES)}")
    places = {element: place_of(model, element, hidden_site) for element in elements}
    asked = items(model, pairs, prompt_format)
    given = {element: reference_values(reference, element, place, len(asked)) for element, place in places.items()}
    points = [point for place in places.values() for point in place.points]
    with progress_bar(len(asked), "attribution", shown=progress) as bar, torch.inference_mode(False):
        sums = {element: Sums(place, given[element]) for element, place in places.items()}
        for tail in tails(model, asked, points, batch_size):
            passes = {element: Pass(place, tail) for element, place in places.items()}
            with torch.enable_grad():
                odds = tail.log_odds([pair for one in passes.values() for pair in one.functions()])
                probes = [probe for one in passes.values() for probe in one.probes.values()]
                gradients = iter(torch.autograd.grad(odds.sum(), probes))
            for element, one in passes.items():
                for layer, values, gradient in one.values([next(gradients) for _ in one.probes]):
                    sums[element].add(layer, values, gradient, tail.batch.rows)
            bar.update(len(tail.batch.rows))
    return {element: own.attribution() for element, own in sums.items()}


def activation_patching(
    model: TransformerBridge,
    pairs: Sequence[Any],
    element: Element = "head",
    elements: Sequence[tuple[int, int]] | None = None,
    *,
    sample: int = 100,
    seed: int = 0,
    reference: Reference = "mean",
    hidden_site: HiddenSite = "mlp_out",
    share_prompt: bool = True,
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "plain",
    progress: bool = True,
) -> pd.DataFrame:
    """The true effect of patching each of some elements, by brute force: one forward pass an element and batch.

    Args:
        elements: (layer, element) of those to patch; None draws ``sample`` of them evenly (all, if there are fewer).
        share_prompt: run only the last token for each element, on one reading of what lies before it; False is the
            plain way, a pass over the whole prompt for each.

    Returns:
        layer, element, effect: the mean change of the metric in nats, in the order given.

    Raises:
        ValueError: as `attribution_patching`; elements that the model does not have, or none.
    """
    place = place_of(model, element, hidden_site)
    chosen = _chosen(place, elements, sample, seed)
    asked = items(model, pairs, prompt_format)
    given = reference_values(reference, element, place, len(asked))
    options: dict[str, Any] = {"batch_size": batch_size, "progress": progress}
    if given is None:
        names = [point.name for point in place.read]
        given = capture(model, [i.prompt for i in asked], names, reduce="mean", **options).stacked().unsqueeze(1)
    effects = torch.zeros(len(chosen), dtype=torch.float64)
    with progress_bar(len(chosen) * len(asked), "patching", shown=progress, unit="run") as bar, torch.no_grad():
        for tail in tails(model, asked, place.points, batch_size, share_prompt=share_prompt):
            clean = Pass(place, tail)
            before = tail.log_odds(clean.readers())
            rows = tail.batch.rows if given.shape[1] > 1 else [0] * len(tail.batch.rows)
            for number, (layer, index) in enumerate(chosen):
                patch = clean.patch(layer, index, given[layer, rows, index])
                effects[number] += (tail.log_odds([patch]) - before).double().sum().cpu()
                bar.update(len(tail.batch.rows))
    table = pd.DataFrame(chosen, columns=["layer", "element"])
    return table.assign(effect=(effects / len(asked)).numpy())


class Comparison(NamedTuple):
    """How well the linear approximation does.

    Attributes:
        rank_correlation: Spearman's, between attribution and effect.
        correlation: Pearson's.
        table: layer, element, attribution, effect.
    """

    rank_correlation: float
    correlation: float
    table: pd.DataFrame


def compare(attribution: Float[Tensor, "layer element"], patched: pd.DataFrame) -> Comparison:
    """Attribution beside the effects of `activation_patching`, for the elements that were patched.

    Both must come from the same pairs, reference and kind of element.

    Raises:
        ValueError: columns that are missing, fewer than three elements, or elements that the scores do not have.
    """
    missing = {"layer", "element", "effect"} - set(patched.columns)
    if missing or len(patched) < 3:
        raise ValueError(
            f"a comparison needs three elements or more with layer, element and effect; got {len(patched)} rows with "
            f"columns {list(patched.columns)}"
        )
    where = patched[["layer", "element"]].to_numpy()
    if (where < 0).any() or (where >= list(attribution.shape)).any():
        raise ValueError(
            f"the scores are [layer, element] = {tuple(attribution.shape)}, but the table goes up to layer "
            f"{where[:, 0].max()} and element {where[:, 1].max()}; are they of the same kind of element?"
        )
    layer, index = torch.from_numpy(where.copy()).unbind(1)
    table = patched[["layer", "element"]].reset_index(drop=True)
    table["attribution"] = attribution.detach().double().cpu()[layer, index].numpy()
    table["effect"] = patched["effect"].to_numpy()
    a, b = (table[name].to_numpy() for name in ("attribution", "effect"))
    return Comparison(rank_correlation(torch.tensor(a), torch.tensor(b)), correlation(a, b), table)


def _chosen(place: Place, elements: Any, sample: int, seed: int) -> list[tuple[int, int]]:
    layers, width = place.shape[:2]
    if elements is None:
        if sample < 1:
            raise ValueError(f"sample must be at least 1, got {sample}")
        drawn = torch.randperm(layers * width, generator=torch.Generator().manual_seed(seed))[:sample].sort().values
        return [(i // width, i % width) for i in drawn.tolist()]
    try:
        chosen = [(int(layer), int(index)) for layer, index in elements]
    except (TypeError, ValueError):  # [1, 2], a table, or the number of them
        chosen = []
    wrong = [pair for pair in chosen if not (0 <= pair[0] < layers and 0 <= pair[1] < width)]
    if wrong or not chosen:
        raise ValueError(
            f"elements are (layer, element) from (0, 0) to {(layers - 1, width - 1)}, one or more; got "
            f"{short(wrong[0] if wrong else elements)}"
        )
    return chosen
