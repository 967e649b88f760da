"""`contrast`: the activations of right and of wrong answers, at the last token of each, for several sites in one pass.

Every contrastive method fits on the same thing, so it is read once and handed to all of them:

    seen = contrast(model, pairs, ["z", "neuron", "mlp_out", "resid_post"])
    sadi.from_contrast(seen, "head"), contrastive.caa(seen), iti.from_contrast(seen)
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.answers import AnswerPair, answered_rows, check_answer_pairs
from lensteer.capture import Activations, capture
from lensteer.data import data_hash
from lensteer.models import fingerprint
from lensteer.moments import Moments
from lensteer.points import hook_names, is_gated, layer_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True, eq=False)
class Contrast:
    """What the model has at some sites when it has read a right and a wrong answer.

    Attributes:
        positive, negative: hook name -> ``[pair, *shape]`` of the right and the wrong answers, or `Moments` of them.
        names: site -> its hook names, layer by layer.
        pairs: row i of the activations is pair i.
        metadata: model fingerprint, prompt format, number of pairs, a hash of them, whether the MLPs are gated.
    """

    positive: Activations
    negative: Activations
    names: Mapping[str, Sequence[str]]
    pairs: Sequence[AnswerPair]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def activations(self, site: str) -> tuple[Float[Tensor, "layer pair ..."], Float[Tensor, "layer pair ..."]]:
        """The right and the wrong answers' activations at a site.

        Raises:
            ValueError: a site that was not read, or moments only.
        """
        sides = []
        for side in (self.positive, self.negative):
            values = [side[name] for name in self._names(site)]
            if isinstance(values[0], Moments):
                raise ValueError(f"only the moments of {site!r} were kept; read it again with reduce=None")
            sides.append(torch.stack(values))
        return sides[0], sides[1]

    def moments(self, site: str) -> tuple[Moments, Moments]:
        """Moments over the right and over the wrong answers, ``[layer, *shape]`` each.

        Raises:
            ValueError: a site that was not read.
        """
        sides = []
        for side in (self.positive, self.negative):
            values = [side[name] for name in self._names(site)]
            own = [value if isinstance(value, Moments) else Moments.of(value) for value in values]
            sides.append(Moments.unpack(torch.stack([value.pack() for value in own], 1)))
        return sides[0], sides[1]

    def require_all_layers(self, site: str) -> None:
        """Refuse some of the layers, or another order: row i of the activations must be layer i.

        Raises:
            ValueError: a site that was not read, or that does not hold the layers 0, 1, … up to the last.
        """
        names = self._names(site)
        found = [name if (layer := layer_of(name)) is None else layer for name in names]
        n_layers = int(self.metadata.get("n_layers", len(names)))
        if found != list(range(n_layers)):
            kind = "in another order" if len(names) == n_layers else "only"
            raise ValueError(
                f"the contrast holds {len(names)} of {n_layers} layers of {site!r} {kind}: {found}; elements rank over "
                "all layers together, and a layer is told by its row: read all layers, in order (leave layers= out)"
            )

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} ({len(names)} layers)" for site, names in self.names.items())
        moments = any(isinstance(value, Moments) for value in self.positive.values())
        of = f" on {self.metadata['model']}" if "model" in self.metadata else ""
        return f"Contrast: {'moments' if moments else 'activations'} of {len(self.pairs)} pairs{of} at {sites}"

    def _names(self, site: str) -> Sequence[str]:
        if site not in self.names:
            raise ValueError(f"site {site!r} was not read; there are {list(self.names)}")
        return self.names[site]


def require_contrast(seen: Any) -> None:
    """Refuse a model or pairs where a fitter takes what was read of them.

    Raises:
        TypeError: not a `Contrast`.
    """
    if not isinstance(seen, Contrast):
        raise TypeError(
            f"expected a Contrast, got {type(seen).__name__}; read the pairs first: contrast(model, pairs, site), or "
            "let fit do both, such as contrastive.fit(model, pairs, 'caa') or iti.fit(model, pairs)"
        )


def contrast(
    model: TransformerBridge,
    pairs: Sequence[Any],
    sites: str | Sequence[str],
    *,
    layers: int | Iterable[int] | None = None,
    reduce: Literal["moments"] | None = None,
    prompt_format: str = "plain",
    batch_size: int | Literal["auto"] = "auto",
    resume: str | Path | None = None,
    progress: bool = True,
) -> Contrast:
    """Read both answers of every pair, in one pass for all sites; the last token of prompt + answer is kept.

    Args:
        pairs: `AnswerPair`s, or pairs of chats that end with the assistant's answer.
        sites: TransformerLens shorthand, and "neuron" (see `lensteer.points`).
        reduce: "moments" streams: memory does not grow with the number of pairs.
        prompt_format: as in `tokenize`; "plain" is the papers' raw text, without a chat template.
        resume: a folder that keeps every finished batch.

    Raises:
        ValueError: bad pairs (see `check_answer_pairs`), a site that the model lacks, or a text that is too long.
    """
    if reduce not in (None, "moments"):
        raise ValueError(f"reduce must be None or 'moments', got {reduce!r}")
    checked = check_answer_pairs(pairs)
    asked = [sites] if isinstance(sites, str) else list(sites)
    layers = list(layers) if isinstance(layers, Iterable) else layers  # used once for every site
    names = {site: hook_names(model, site, layers) for site in asked}
    rows = [
        answered_rows(model, [p.prompt for p in checked], answers, prompt_format=prompt_format)
        for answers in ([p.right for p in checked], [p.wrong for p in checked])
    ]
    every = [name for own in names.values() for name in own]
    options: dict[str, Any] = {"batch_size": batch_size, "resume": resume, "progress": progress}
    if reduce is None:
        distinct = {tuple(row.ids): row for side in rows for row in side}
        where = {ids: i for i, ids in enumerate(distinct)}
        found = capture(model, list(distinct.values()), every, **options)
        index = [torch.tensor([where[tuple(row.ids)] for row in side]) for side in rows]
        positive, negative = (Activations({name: found[name][own] for name in every}) for own in index)
    else:
        positive, negative = (capture(model, side, every, reduce=reduce, **options) for side in rows)
    facts = {"prompt_format": prompt_format, "n_pairs": str(len(checked)), "data_hash": data_hash(checked)}
    facts["gated_mlp"] = str(is_gated(model.hook_dict, 0))
    return Contrast(positive, negative, names, checked, {**fingerprint(model), **facts})
