"""`SADI`: the mean difference of every element at every layer, and the Steerings that scale the largest.

Fitted by `lensteer.methods.sadi`; see there for the formulas and their source.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensteer.capture import Activations, capture
from lensteer.hooks import Add, Edit, ScaleElements
from lensteer.models import twin_of
from lensteer.moments import Moments
from lensteer.positions import Tokens, at
from lensteer.prompts import Prompt, Row
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

Element = Literal["head", "neuron", "hidden"]
RankBy = Literal["signed", "abs", "signed_min"]
_FORMAT = "lensteer.sadi.v1"
# Where an element is scaled: scaling a gated neuron's activation by s scales its product with the up branch by s.
_HOOK = {
    "z": "blocks.{}.attn.hook_z",
    "neuron": "blocks.{}.mlp.hook_post",
    "mlp_out": "blocks.{}.hook_mlp_out",
    "resid_post": "blocks.{}.hook_resid_post",
}


@dataclass(frozen=True, eq=False)
class SADI:
    """The elements of one kind, at every layer.

    Attributes:
        element: "head", "neuron" or "hidden".
        site: where they were read: z, neuron, mlp_out or resid_post.
        positive, negative: moments over the right and over the wrong answers, ``[layer, *shape]``.
        ranking: scores to rank by instead of the mean difference, ``[layer, element]``; see `ranked_by`.
        metadata: model fingerprint, number of pairs, data hash, prompt format.
    """

    element: Element
    site: str
    positive: Moments
    negative: Moments
    ranking: Float[Tensor, "layer element"] | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        bad = (~torch.isfinite(self.difference)).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(f"the activations at {self.site!r} hold NaN or inf in layers {bad}")

    @property
    def difference(self) -> Float[Tensor, "layer ..."]:
        """D at full width: ``[layer, head, d_head]`` for heads, ``[layer, d_mlp]``, ``[layer, d_model]``."""
        return self.positive.mean - self.negative.mean

    @property
    def scores(self) -> Float[Tensor, "layer element"]:
        """What elements are ranked by: the signed mean difference, of a head the mean over its coordinates."""
        if self.ranking is not None:
            return self.ranking
        return self.difference.mean(-1) if self.element == "head" else self.difference

    def top(self, k: int, rank_by: RankBy = "signed") -> Int[Tensor, "k 2"]:
        """(layer, element) of the K that come first over all layers, best first; the K sets are nested.

        Args:
            rank_by: "signed" takes the largest D (released code), "abs" the largest \\|D\\|, "signed_min" the smallest
                D. Ties go to the lower layer, then the lower element.

        Raises:
            ValueError: K negative or larger than the elements there are, or an unknown ``rank_by``.
        """
        keys = {"signed": self.scores, "abs": self.scores.abs(), "signed_min": -self.scores}
        if rank_by not in keys:
            raise ValueError(f"rank_by must be one of {tuple(keys)}, got {rank_by!r}")
        layers, width = self.scores.shape
        if not isinstance(k, Integral) or isinstance(k, bool) or not 0 <= k <= layers * width:
            raise ValueError(
                f"K={k!r}: there are {layers} layers of {width} {self.element} elements, so K is a whole number "
                f"from 0 to {layers * width}"
            )
        order = keys[rank_by].flatten().argsort(descending=True, stable=True)[: int(k)]
        return torch.stack([order // width, order % width], 1)

    def mask(self, k: int, rank_by: RankBy = "signed") -> Bool[Tensor, "layer element"]:
        """M: True at the K elements of `top`."""
        mask = torch.zeros(self.scores.shape, dtype=torch.bool)
        layers, elements = self.top(k, rank_by).unbind(1)
        mask[layers, elements] = True
        return mask

    def table(self, k: int = 10, rank_by: RankBy = "signed") -> pd.DataFrame:
        """The K elements, best first: rank, layer, element, score."""
        import pandas as pd

        top = self.top(k, rank_by)
        score = self.scores[top[:, 0], top[:, 1]]
        columns = {"layer": top[:, 0], "element": top[:, 1], "score": score}
        return pd.DataFrame({"rank": range(1, k + 1), **{name: value.numpy() for name, value in columns.items()}})

    def steering(
        self,
        k: int,
        strength: float,
        *,
        mode: Literal["frozen", "live"] = "frozen",
        rank_by: RankBy = "signed",
        tokens: Tokens = "last",
        clean: Activations | None = None,
    ) -> Steering:
        """A' = A + δ·(A ⊙ M) for the K first elements; K = 0 or δ = 0 is no steering at all.

        Args:
            strength: δ, positive; the released code's s is 1 + δ.
            mode: "frozen" overwrites with what the prompts have by themselves, "live" scales in place.
            tokens: "last" is the last prompt token. "live" takes any; "frozen" also `STEPS`, which scales live at
                each new token after the frozen last prompt token.
            clean: for "frozen", what `read` found in the prompts; the steering is for these prompts, in this order.

        Raises:
            ValueError: K out of range, a negative strength, or a frozen steering without ``clean``, with what another
                fit has read, or at other tokens.
        """
        _require_strength(strength)
        if mode not in ("frozen", "live"):
            raise ValueError(f"mode must be 'frozen' or 'live', got {mode!r}")
        mask = self.mask(k, rank_by)
        live = list(self._scaled(mask, strength, tokens))
        about = {**self.metadata, "name": f"{self.element} K={k}", "mode": mode, "rank_by": rank_by}
        if k == 0 or strength == 0:
            return Steering((), about)
        if mode == "live":
            return Steering(live, about)
        if clean is None:
            raise ValueError(
                "mode='frozen' needs what the prompts have by themselves: pass clean=fitted.read(model, prompts), or "
                "use mode='live'"
            )
        if not isinstance(clean, Activations):
            raise TypeError(f"clean must be what read(model, prompts) gives, got {type(clean).__name__}")
        if tokens not in ("last", slice(-1, None)):
            raise ValueError(f"a frozen steering acts at tokens='last' or STEPS, not {tokens!r}; use mode='live'")
        if clean.prompts is not None:
            about["prompts"] = clean.prompts
        if self._is_gated:  # frozen before the gate; the up branch is live, so the product is scaled where it is made
            return Steering([*self._frozen(clean, torch.zeros_like(mask), strength), *live], about)
        later = self._scaled(mask, strength, "generated") if tokens != "last" else ()
        return Steering([*self._frozen(clean, mask, strength), *later], about)

    def read(
        self,
        model: TransformerBridge,
        prompts: Sequence[Prompt | Row],
        *,
        prompt_format: str | None = None,
        batch_size: int | Literal["auto"] = "auto",
        resume: str | Path | None = None,
        progress: bool = True,
    ) -> Activations:
        """What prompts have at their last token in every layer, unsteered: the first pass of ``mode="frozen"``.

        One reading serves every K and strength.

        Args:
            prompt_format: how the prompts are rendered; None is as in the fit. It must be as where they are run:
                `multiple_choice` renders "plain" by default, `generate` "auto", which is "chat" for chat models.
            resume: a folder that keeps every finished batch.

        Raises:
            ValueError: a model of another shape or one that is being steered, or prompts that `tokenize` refuses.
        """
        Steering((), self.metadata).points(model)  # refuses a model that it was not fitted on
        if twin_of(model).active:
            raise ValueError("the model is being steered, so its prompts cannot be read clean; read them outside")
        prompt_format = prompt_format or self.metadata.get("prompt_format", "plain")
        options: dict[str, Any] = {"prompt_format": prompt_format, "batch_size": batch_size, "progress": progress}
        return capture(model, prompts, self._frozen_names, resume=resume, **options)

    def fixed(self, k: int, strength: float, *, rank_by: RankBy = "signed", tokens: Tokens = "last") -> Steering:
        """The ablation that does not adapt to the input: A' = A + δ·(D ⊙ M).

        Raises:
            ValueError: as `steering`; gated neurons, where adding to the activation has no hook point.
        """
        if self._is_gated:
            raise ValueError(
                "fixed steering of gated neurons has no hook point: the activation is multiplied by the up branch "
                "before TransformerLens sees it; use element 'head' or 'hidden'"
            )
        _require_strength(strength)
        mask = self._wide(self.mask(k, rank_by))
        edits = [
            (_HOOK[self.site].format(i), at(Add((self.difference[i] * mask[i]).float(), strength), tokens))
            for i in range(len(mask))
            if mask[i].any()
        ]
        return Steering(edits, {**self.metadata, "name": f"fixed {self.element} K={k}"})

    def random(self, seed: int = 0) -> SADI:
        """The control: elements drawn uniformly, the same number and strength."""
        noise = torch.rand(self.scores.shape, generator=torch.Generator().manual_seed(seed))
        return self.ranked_by(noise, f"random, seed {seed}")

    def ranked_by(self, scores: Float[Tensor, "layer element"], name: str = "given scores") -> SADI:
        """The same elements in the order of other scores, of any criterion (see ``analysis.key_elements``).

        Raises:
            ValueError: another shape, or NaN.
        """
        scores = torch.as_tensor(scores)
        if scores.shape != self.scores.shape or scores.isnan().any():
            raise ValueError(
                f"scores must be [layer, {self.element}] = {tuple(self.scores.shape)} without NaN, got "
                f"{tuple(scores.shape)}"
            )
        return replace(self, ranking=scores.double(), metadata={**self.metadata, "ranked_by": name})

    @property
    def _is_gated(self) -> bool:
        return self.element == "neuron" and self.metadata.get("gated_mlp") == "True"

    def _wide(self, mask: Bool[Tensor, "layer element"]) -> Bool[Tensor, "layer ..."]:
        """The mask at the width of the activation: a head is all of its coordinates."""
        return mask.unsqueeze(-1).expand_as(self.difference) if self.element == "head" else mask

    def _scaled(
        self, mask: Bool[Tensor, "layer element"], strength: float, tokens: Tokens
    ) -> Iterator[tuple[str, Edit]]:
        for i, own in enumerate(self._wide(mask)):
            if own.any():
                yield _HOOK[self.site].format(i), at(ScaleElements(own.clone(), strength), tokens)

    def _frozen(
        self, clean: Activations, mask: Bool[Tensor, "layer element"], strength: float
    ) -> Iterator[tuple[str, Edit]]:
        """The component of every layer as the prompts have it, scaled on the mask; all settings share its tensors."""
        shape = tuple(self.difference.shape[1:])
        for name, own in zip(self._frozen_names, self._wide(mask), strict=True):
            found = clean.get(name)
            if not isinstance(found, Tensor) or tuple(found.shape[1:]) != shape:
                raise ValueError(
                    f"clean holds no activations of {name!r} with axes [prompt, *{shape}]; pass what "
                    "read(model, prompts) of this very fit gives"
                )
            yield name, at(ScaleElements(own.clone(), strength, frozen=found), "last")

    @property
    def _frozen_names(self) -> list[str]:
        hook = "blocks.{}.mlp.hook_pre" if self._is_gated else _HOOK[self.site]
        return [hook.format(i) for i in range(len(self.scores))]

    def save(self, path: str | Path) -> Path:
        """Write everything to one safetensors file."""
        from lensteer.storage import save_tensors

        tensors = {"positive": self.positive.pack(), "negative": self.negative.pack()}
        if self.ranking is not None:
            tensors["ranking"] = self.ranking
        content = {"element": self.element, "site": self.site, "metadata": dict(self.metadata)}
        return save_tensors(path, tensors, content, _FORMAT)

    @classmethod
    def load(cls, path: str | Path) -> SADI:
        """Read a file written by `save`.

        Raises:
            ValueError: not such a file, or damaged.
        """
        from lensteer.storage import load_tensors

        tensors, content = load_tensors(path, _FORMAT)
        positive, negative = (Moments.unpack(tensors[side]) for side in ("positive", "negative"))
        return cls(positive=positive, negative=negative, ranking=tensors.get("ranking"), **content)

    def _repr_html_(self) -> str:
        return f"<b>{html.escape(repr(self))}</b>{self.table(min(8, self.scores.numel())).to_html(index=False)}"

    def __repr__(self) -> str:
        layers, width = self.scores.shape
        best = ", ".join(f"{layer}.{element}" for layer, element in self.top(min(5, layers * width)).tolist())
        source = f"{self.metadata.get('n_pairs', '?')} pairs on {self.metadata.get('model', '?')}"
        return (
            f"SADI, {self.element} elements at {self.site}: {layers} layers x {width}, from {source}; "
            f"first (layer.element): {best}"
        )


def _require_strength(strength: Any) -> None:
    is_number = isinstance(strength, Real) and not isinstance(strength, bool)
    if not is_number or not 0 <= float(strength) < float("inf"):
        raise ValueError(
            f"strength={strength!r}: it is δ in A + δ·A, one number, and must not be negative (the released code's "
            "s is 1 + δ); to switch elements off, use ScaleElements(mask, -1.0)"
        )
