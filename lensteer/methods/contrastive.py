"""Contrastive directions: ActAdd, CAA, RepE and a logistic probe, at any site, from the same activations.

Over pairs of a right (x⁺) and a wrong (x⁻) answer, read at the last token, each layer by itself:

| method | direction u (of norm 1) |
|---|---|
| `act_add` | x⁺ − x⁻ of one pair of prompts |
| `caa` | mean(x⁺ − x⁻) |
| `repe`, uncentred | first right singular vector of the differences x⁺ − x⁻ |
| `repe`, centred | first principal component of the differences: their mean is subtracted first |
| `logistic` | weights of a logistic regression of right against wrong on x |

`Directions.add` turns any of them into a Steering; what its strength means is said there, once for all.

**Centred or not.** Uncentred, u is the axis along which the differences are *largest*: their common shift and their
spread together, so it is close to CAA's where the pairs agree. Centred, u is the axis along which the differences
*vary most from pair to pair*: what they have in common, CAA's direction, is what was subtracted, and u need not tell
right from wrong at all. The released RepE code centres, but puts the two sides of each pair of its data in random
order, which makes the mean of the differences nearly zero and centring nearly idle; on pairs in a fixed order, as here,
"uncentred" is what comes to the same. It is the default.

Sources: Turner et al. 2023 (ActAdd, arXiv 2308.10248); Rimsky et al. 2024 (CAA, arXiv 2312.06681); Zou et al. 2023
(RepE, arXiv 2310.01405).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lensteer.capture import capture
from lensteer.contrast import Contrast, contrast, require_contrast
from lensteer.data import data_hash
from lensteer.hooks import Add, Strength
from lensteer.messages import needs_extra
from lensteer.methods.directions import Directions, Find, Unit, fit_directions
from lensteer.models import fingerprint, tokenizer_of
from lensteer.points import hook_names, is_gated
from lensteer.positions import at
from lensteer.prompts import Prompt, Row, tokenize
from lensteer.steering import Steering

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["METHODS", "Directions", "Unit", "act_add", "act_add_aligned", "caa", "fit", "logistic", "one_pair", "repe"]


def caa(seen: Contrast, site: str = "resid_post", *, name: str | None = None) -> Directions:
    """The mean difference (CAA): strength 1 adds exactly mean(x⁺ − x⁻).

    Raises:
        TypeError: not a Contrast, such as a model.
        ValueError: a site that was not read, NaN or inf, or sides that differ at no layer.
    """
    return _from_contrast(seen, site, "caa", lambda a, b, small: _at_least((a - b).mean(0), small), name)


def repe(seen: Contrast, site: str = "resid_post", *, centred: bool = False, name: str | None = None) -> Directions:
    """The first principal component of the pair differences (RepE), signed so that right answers project higher.

    Args:
        centred: whether the mean difference is subtracted first; see the module for what each measures.

    Raises:
        ValueError: as `caa`; a single pair, centred.
    """
    require_contrast(seen)
    if centred and len(seen.pairs) < 2:
        raise ValueError("centred=True needs two pairs or more: one difference minus its own mean is zero")

    def find(a: Tensor, b: Tensor, small: float) -> Tensor:
        differences = a - b
        spread = differences - differences.mean(0) if centred else differences
        _, sizes, axes = torch.linalg.svd(spread, full_matrices=False)
        root_mean_square = sizes[0] / len(differences) ** 0.5
        sign = -1.0 if float(axes[0] @ differences.mean(0)) < 0 else 1.0
        return _at_least(sign * root_mean_square * axes[0], small)

    return _from_contrast(seen, site, "repe_centred" if centred else "repe_uncentred", find, name)


def logistic(
    seen: Contrast,
    site: str = "resid_post",
    *,
    c: float = 1.0,
    standardise: bool = True,
    max_iter: int = 1000,
    name: str | None = None,
    progress: bool = True,
) -> Directions:
    """The weights of scikit-learn's logistic regression of right against wrong, as a direction of activation space.

    A probe finds what tells the classes apart given everything else, which need not be what the model moves by.

    Args:
        c: inverse strength of its L2 penalty.
        standardise: give every coordinate unit variance inside, so that the penalty treats them alike; the weights
            are divided by the deviations again, so that ⟨x, u⟩ ranks texts as the probe does.

    Raises:
        ValueError: as `caa`, or a ``c`` that is not positive.
        ImportError: without the extra `eval`.
    """
    if not 0 < c < float("inf"):
        raise ValueError(f"c={c!r}: the inverse strength of the penalty must be positive and finite")
    model, scaler = _sklearn()

    def find(a: Tensor, b: Tensor, small: float) -> Tensor:
        x = torch.cat([a, b]).numpy()
        labels = [1] * len(a) + [0] * len(b)
        scale = scaler(with_std=standardise).fit(x)
        probe = model(C=c, max_iter=max_iter).fit(scale.transform(x), labels)
        return torch.from_numpy(probe.coef_[0] / (scale.scale_ if standardise else 1.0))

    facts = {"c": f"{c:g}", "standardise": str(standardise)}
    return _from_contrast(seen, site, "logistic", find, name, progress=progress, **facts)


def one_pair(seen: Contrast, site: str = "resid_post", *, pair: int = 0, name: str | None = None) -> Directions:
    """ActAdd on one pair of a Contrast: its difference alone, at the last answer token.

    Raises:
        ValueError: no such pair, or as `caa`.
    """
    require_contrast(seen)
    if not 0 <= pair < len(seen.pairs):
        raise ValueError(f"pair={pair!r} is out of range: there are pairs 0 to {len(seen.pairs) - 1}")
    sides = [side[:, pair : pair + 1] for side in seen.activations(site)]
    facts = {"n_pairs": "1", "data_hash": data_hash([seen.pairs[pair]])}
    return fit_directions(sides, site, "act_add", _difference, seen.names[site], {**seen.metadata, **facts}, name)


METHODS: dict[str, Callable[..., Directions]] = {
    "act_add": one_pair,
    "caa": caa,
    "repe_uncentred": partial(repe, centred=False),
    "repe_centred": partial(repe, centred=True),
    "logistic": logistic,
}
"""Name of a method -> its fitter, called as ``fitter(contrast, site)``."""


def fit(
    model: TransformerBridge,
    pairs: Sequence[Any],
    method: str = "caa",
    site: str = "resid_post",
    *,
    layers: int | Iterable[int] | None = None,
    prompt_format: str = "plain",
    batch_size: int | Literal["auto"] = "auto",
    resume: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> Directions:
    """Read the pairs and fit one method; for several methods, read once with `contrast` and call their fitters.

    Args:
        pairs: `AnswerPair`s, or pairs of chats that end with the assistant's answer.
        method: a name in `METHODS`.
        options: of the method, such as ``c=`` for "logistic".

    Raises:
        ValueError: an unknown method, or as `contrast` and the method's fitter.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {tuple(METHODS)}, got {method!r}")
    how: dict[str, Any] = {"batch_size": batch_size, "resume": resume, "progress": progress}
    return METHODS[method](
        contrast(model, pairs, site, layers=layers, prompt_format=prompt_format, **how), site, **options
    )


def act_add(
    model: TransformerBridge,
    positive: Prompt,
    negative: Prompt,
    site: str = "resid_pre",
    *,
    layers: int | Iterable[int] | None = None,
    prompt_format: str = "plain",
    name: str | None = None,
) -> Directions:
    """ActAdd from two prompts of any kind ("Love", "Hate"): the difference at their last tokens.

    The paper keeps the difference at every position of the two prompts; `act_add_aligned` does that.

    Raises:
        ValueError: equal or empty prompts.
    """
    _require_two(positive, negative)
    names = hook_names(model, site, layers)
    x = capture(model, [positive, negative], names, prompt_format=prompt_format, progress=False).stacked()
    facts = {"prompt_format": prompt_format, "n_pairs": "1", "data_hash": data_hash([(positive, negative)])}
    about = {**fingerprint(model), **facts, "gated_mlp": str(is_gated(model.hook_dict, 0))}
    return fit_directions([x[:, :1], x[:, 1:]], site, "act_add", _difference, names, about, name)


def act_add_aligned(
    model: TransformerBridge,
    positive: Prompt,
    negative: Prompt,
    layer: int,
    strength: Strength = 1.0,
    *,
    site: str = "resid_pre",
    prompt_format: str = "plain",
) -> Steering:
    """ActAdd as published: the two prompts' difference at each position, added to the same positions of the input.

    The shorter prompt is padded with blanks at its end. The positions count from the first token, so the input should
    be at least as long as the prompts; otherwise its first generated tokens are edited as well.

    Args:
        strength: c; 1 adds the difference itself.

    Raises:
        ValueError: equal or empty prompts, or a tokenizer without a token for a blank where one is needed.
    """
    _require_two(positive, negative)
    (hook,) = hook_names(model, site, layer)
    rows = tokenize(model, [positive, negative], prompt_format=prompt_format)
    longest = max(map(len, rows))
    blank = tokenizer_of(model)(" ", add_special_tokens=False)["input_ids"][-1:]
    if not blank and len(rows[0]) != len(rows[1]):
        raise ValueError(f"the prompts have {len(rows[0])} and {len(rows[1])} tokens and this tokenizer has no blank")
    missing = [longest - len(row) for row in rows]
    padded = [
        Row(row.ids + blank * n, row.own + [True] * n, row.text + " " * n) for row, n in zip(rows, missing, strict=True)
    ]
    x = capture(model, padded, hook, tokens="all", progress=False)[hook]
    vectors = enumerate(x[0] - x[1])  # at a BOS that both have, nothing
    edits = [(hook, at(Add(vector, strength), position)) for position, vector in vectors if vector.any()]
    about = {"method": "act_add", "name": f"{positive!r} − {negative!r}", "site": site, "unit": "absolute"}
    return Steering(edits, {**fingerprint(model), **about, "prompt_format": prompt_format})


def _require_two(positive: Prompt, negative: Prompt) -> None:
    if not positive or not negative or positive == negative:
        raise ValueError(f"ActAdd needs two prompts that differ, neither empty; got {positive!r} and {negative!r}")


def _difference(a: Tensor, b: Tensor, small: float) -> Tensor:
    return _at_least((a - b)[0], small)


def _at_least(vector: Tensor, small: float) -> Tensor:
    """The vector, or zero where it is nothing but rounding."""
    return vector if float(vector.norm()) > small else torch.zeros_like(vector)


def _sklearn() -> tuple[Any, Any]:
    try:
        from sklearn.linear_model import LogisticRegression
        from sklearn.preprocessing import StandardScaler
    except ImportError as error:
        raise needs_extra("a probe", "scikit-learn", error) from error
    return LogisticRegression, StandardScaler


def _from_contrast(
    seen: Contrast, site: str, method: str, find: Find, name: str | None, *, progress: bool = False, **facts: str
) -> Directions:
    require_contrast(seen)
    sides, metadata = seen.activations(site), {**seen.metadata, **facts}
    return fit_directions(sides, site, method, find, seen.names[site], metadata, name, progress=progress)
