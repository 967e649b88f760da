"""The score of every element by one criterion; defined, and put to use, in `analysis.key_elements`.

Everything works layer by layer in float64, so that memory is that of one layer beside the activations. Thresholds of
single units are fitted for all units of a layer at once; only a head's logistic regression is a loop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from lensteer.contrast import Contrast, require_contrast
from lensteer.messages import needs_extra
from lensteer.methods.sadi import SITES
from lensteer.progress import progress_bar
from lensteer.separation import auroc, effect_size, require_finite

Class = Float[Tensor, "pair element"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Activations of right and of wrong answers at one site, and which question each pair asks.

    Attributes:
        positive, negative: ``[layer, pair, element]``, of heads ``[layer, pair, head, d_head]``.
        questions: number of the question of every pair; pairs over one prompt share it.
    """

    positive: Float[Tensor, "layer pair ..."]
    negative: Float[Tensor, "layer pair ..."]
    questions: Int[Tensor, " pair"]

    @property
    def shape(self) -> tuple[int, int]:
        """Layers, and elements of a layer."""
        return self.positive.shape[0], self.positive.shape[2]

    @property
    def n_questions(self) -> int:
        """Questions that the pairs ask; several pairs may ask one."""
        return len(self.questions.unique())

    def take(self, pairs: Bool[Tensor, " pair"]) -> Sample:
        """Some of the pairs; the questions are numbered anew."""
        numbers = self.questions[pairs].unique(return_inverse=True)[1]
        return Sample(self.positive[:, pairs], self.negative[:, pairs], numbers)

    def folds(self, count: int, seed: int) -> Int[Tensor, " pair"]:
        """The fold of every pair; a question is in one fold, and folds differ by one question at most.

        Raises:
            ValueError: fewer than two folds, or fewer questions than folds.
        """
        n = self.n_questions
        if not 2 <= count <= n:
            raise ValueError(
                f"folds={count}: a probe is tested on questions that it was not fitted on, so it needs two folds or "
                f"more and a question for each; there are {n} questions"
            )
        place = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
        return place[self.questions] % count


def sample_of(seen: Contrast, element: str, site: str | None) -> Sample:
    """What was read of one kind of element.

    Raises:
        TypeError: not a Contrast.
        ValueError: an unknown element, a site that is not its own or was not read, some layers only or in another
            order, moments only, or NaN or inf.
    """
    require_contrast(seen)
    if element not in SITES:
        raise ValueError(f"element must be one of {tuple(SITES)}, got {element!r}")
    site = SITES[element][0] if site is None else site
    if site not in SITES[element]:
        raise ValueError(f"site of {element!r} elements must be one of {SITES[element]}, got {site!r}")
    seen.require_all_layers(site)
    positive, negative = seen.activations(site)
    for values in (positive, negative):
        require_finite(values, f"the activations at {site!r}")
    numbers: dict[str, int] = {}
    questions = [numbers.setdefault(repr(pair.prompt), len(numbers)) for pair in seen.pairs]
    return Sample(positive, negative, torch.tensor(questions))


def checked_names(names: str | Sequence[str]) -> list[str]:
    """Names of criteria as a list; a single one may be given as text.

    Raises:
        ValueError: an unknown criterion, or none.
    """
    asked = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in asked if name not in CRITERIA]
    if unknown or not asked:
        raise ValueError(f"names must be some of {CRITERIA}, got {unknown or asked!r}")
    return asked


def score_all(
    sample: Sample, names: Sequence[str], *, folds: int, seed: int, progress: bool, about: str = ""
) -> dict[str, Float[Tensor, "layer element"]]:
    """Criterion -> score of every element.

    Raises:
        ValueError: fewer questions than folds.
    """
    fold = sample.folds(folds, seed) if "probe" in names else None
    if fold is not None and sample.positive.ndim == 4:
        _require_sklearn()
    layers = []
    with progress_bar(sample.shape[0], f"criteria {about}".strip(), shown=progress, unit="layer") as bar:
        for positive, negative in zip(sample.positive, sample.negative, strict=True):
            layers.append(_score_layer(positive.double(), negative.double(), names, fold))
            bar.update()
    return {name: torch.stack([own[name] for own in layers]) for name in names}


def _score_layer(
    positive: Float[Tensor, "pair ..."],
    negative: Float[Tensor, "pair ..."],
    names: Sequence[str],
    fold: Int[Tensor, " pair"] | None,
) -> dict[str, Float[Tensor, " element"]]:
    is_head = positive.ndim == 3
    units = (positive.mean(-1), negative.mean(-1)) if is_head else (positive, negative)
    scores = {name: _UNIT[name](*units) for name in names if name in _UNIT}
    if fold is not None:
        scores["probe"] = _head_probe(positive, negative, fold) if is_head else _unit_probe(*units, fold)
    return scores


def _signed(positive: Class, negative: Class) -> Float[Tensor, " element"]:
    return positive.mean(0) - negative.mean(0)


_UNIT: dict[str, Callable[[Class, Class], Float[Tensor, " element"]]] = {
    "signed": _signed,
    "abs": lambda positive, negative: _signed(positive, negative).abs(),
    "effect_size": effect_size,
    "abs_effect_size": lambda positive, negative: effect_size(positive, negative).abs(),
    "auroc": auroc,
    "abs_auroc": lambda positive, negative: (auroc(positive, negative) - 0.5).abs(),
}
CRITERIA = (*_UNIT, "probe")
"""Every criterion that can be asked for."""


def _unit_probe(positive: Class, negative: Class, fold: Int[Tensor, " pair"]) -> Float[Tensor, " element"]:
    """Held-out accuracy of the nearest class mean, for every unit; a value on the threshold counts half."""
    right = torch.zeros(positive.shape[1], dtype=torch.float64)
    for number in fold.unique():
        train, test = fold != number, fold == number
        high, low = positive[train].mean(0), negative[train].mean(0)
        side = (high - low).sign()
        for values, sign in ((positive, side), (negative, -side)):
            margin = (values[test] - (high + low) / 2) * sign
            right += (margin > 0).sum(0) + 0.5 * (margin == 0).sum(0)
    return right / (2 * len(positive))


def _head_probe(
    positive: Float[Tensor, "pair head d"], negative: Float[Tensor, "pair head d"], fold: Int[Tensor, " pair"]
) -> Float[Tensor, " head"]:
    """Held-out accuracy of a logistic regression on the vector of each head."""
    model = _require_sklearn()
    truth = torch.cat([torch.ones(len(positive)), torch.zeros(len(negative))]).numpy()
    values, both = torch.cat([positive, negative]), torch.cat([fold, fold])
    right = torch.zeros(positive.shape[1], dtype=torch.float64)
    for number in fold.unique():
        train, test = both != number, both == number
        mean, spread = values[train].mean(0), values[train].std(0, correction=0)
        scaled = (values - mean) / torch.where(spread > 0, spread, 1.0)
        for head in range(positive.shape[1]):
            own = scaled[:, head]
            fitted = model(max_iter=1000).fit(own[train].numpy(), truth[train.numpy()])
            right[head] += int((fitted.predict(own[test].numpy()) == truth[test.numpy()]).sum())
    return right / len(values)


def _require_sklearn() -> Any:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise needs_extra("a probe of heads", "scikit-learn", error) from error
    return LogisticRegression
