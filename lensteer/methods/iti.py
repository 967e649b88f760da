"""Inference-time intervention (ITI): shift the attention heads whose output best tells right answers from wrong ones.

z(l, h) is a head's output before the output projection, read at the last token of question + answer:

    probe      logistic regression of right against wrong on z(l, h), for every head by itself
    ranking    accuracy of the probe on questions that it did not see; the K best heads are steered
    θ(l, h)    "mass_mean": mean(z | right) − mean(z | wrong) · "probe": the probe's weights · "random"; norm 1
    σ(l, h)    standard deviation of ⟨z, θ⟩
    edit       z(l, h) + α·σ·θ   at the last position of each step

A text that occurs in several pairs counts once: the data are distinct (question, answer, label) rows. They are split by
question, so the answers to one question are never on both sides. θ and σ come from all rows, both labels, training and
validation questions together; σ from other activations where they are given (the released code reads each answer
followed by another question). "probe" is the weights of the probe that was fitted to the training questions alone, as
released.

Source: Li, Patel, Viégas, Pfister, Wattenberg, "Inference-Time Intervention: Eliciting Truthful Answers from a Language
Model", NeurIPS 2023 (arXiv 2306.03341); its defaults are K = 48 heads and α = 15.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.answers import check_answer_pairs
from lensteer.contrast import Contrast, contrast, require_contrast
from lensteer.messages import needs_extra
from lensteer.methods.iti_heads import ITI, Kind
from lensteer.points import hook_names
from lensteer.progress import progress_bar

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["ITI", "Kind", "Probes", "answers_once", "fit", "from_contrast", "probe_heads", "split_by_question"]

_MAX_ITER = 1000  # as released, and with scikit-learn's default penalty


class Probes(NamedTuple):
    """What `probe_heads` found, averaged over the splits.

    Attributes:
        accuracy: on the validation rows.
        weights: of the probes.
        unconverged: probes that stopped at their last iteration.
    """

    accuracy: Float[Tensor, "layer head"]
    weights: Float[Tensor, "layer head d_head"]
    unconverged: int


def fit(
    model: TransformerBridge,
    pairs: Sequence[Any],
    *,
    direction: Kind = "mass_mean",
    validation: float = 0.2,
    splits: int = 1,
    seed: int = 0,
    tuning: Mapping[str, Tensor] | None = None,
    n_jobs: int = 1,
    layers: int | Iterable[int] | None = None,
    prompt_format: str = "plain",
    batch_size: int | Literal["auto"] = "auto",
    resume: str | Path | None = None,
    progress: bool = True,
) -> ITI:
    """Read the pairs and probe every head.

    Args:
        pairs: `AnswerPair`s; ``answer_pairs(questions, wrong="all")`` gives every answer, as the paper's data.
        direction: "mass_mean", "probe" or "random".
        validation: share of the questions that the probes do not see.
        splits: random splits to average the accuracy over; more make the ranking steadier on few questions.
        seed: of the splits and of random directions.
        tuning: activations to take σ from, as ``capture(model, prompts, "z")`` returns them; None is the pairs' own.
        n_jobs: processes for the probes, as in joblib.
        resume: a folder in which an interrupted reading keeps its finished batches.

    Raises:
        ValueError: bad pairs, fewer than two questions, a split without a side, or as `contrast`.
        ImportError: without the extra `eval`.
    """
    _check(direction, validation, splits)
    pairs = check_answer_pairs(pairs)
    _require_split(len({repr(pair.prompt) for pair in pairs}), validation)
    layers = list(layers) if isinstance(layers, Iterable) else layers
    if tuning is not None:
        _require_tuning(tuning, hook_names(model, "z", layers))
    how: dict[str, Any] = {"batch_size": batch_size, "resume": resume, "progress": progress}
    seen = contrast(model, pairs, "z", layers=layers, prompt_format=prompt_format, **how)
    options: dict[str, Any] = {"validation": validation, "splits": splits, "seed": seed, "tuning": tuning}
    return from_contrast(seen, direction=direction, n_jobs=n_jobs, progress=progress, **options)


def from_contrast(
    seen: Contrast,
    *,
    direction: Kind = "mass_mean",
    validation: float = 0.2,
    splits: int = 1,
    seed: int = 0,
    tuning: Mapping[str, Tensor] | None = None,
    n_jobs: int = 1,
    progress: bool = True,
) -> ITI:
    """Fit on activations that were read before, "z" among them; arguments as in `fit`.

    Raises:
        TypeError: not a Contrast.
        ValueError: as `fit`; z was not read, only its moments were kept, or it holds NaN or inf.
    """
    require_contrast(seen)
    _check(direction, validation, splits)
    names = list(seen.names.get("z", ()))
    if tuning is not None:
        _require_tuning(tuning, names)
    z, labels, questions = answers_once(seen)
    layers = [int(name.split(".")[1]) for name in names]
    bad = [layer for layer, own in zip(layers, z, strict=True) if not torch.isfinite(own).all()]
    if bad:
        raise ValueError(f"the activations at 'z' hold NaN or inf in layers {bad}")
    parts = split_by_question(questions, validation=validation, splits=splits, seed=seed)
    probes = probe_heads(z, labels, parts, n_jobs=n_jobs, progress=progress)
    right = torch.as_tensor(labels).bool()
    if direction == "mass_mean":
        raw = torch.stack([own[right].double().mean(0) - own[~right].double().mean(0) for own in z])
    elif direction == "probe":
        raw = probes.weights
    else:
        raw = torch.randn(probes.weights.shape, generator=torch.Generator().manual_seed(seed)).double()
    theta = raw / raw.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(raw.dtype).tiny)
    texts = list(z) if tuning is None else [tuning[name] for name in names]
    along = [torch.einsum("nhd,hd->nh", own.double(), t) for own, t in zip(texts, theta, strict=True)]
    sigma = torch.stack([own.std(0, correction=0) for own in along])
    majority = np.mean([max(share := labels[held].mean(), 1 - share) for _, held in parts])
    about = {
        **seen.metadata,
        "method": "iti",
        "n_texts": str(len(labels)),
        "n_questions": str(len(np.unique(questions))),
        "validation": f"{validation:g} of the questions, {splits} splits, seed {seed}",
        "majority": f"{majority:.3f}",
        "sigma_from": "the pairs" if tuning is None else f"{len(texts[0])} other texts",
    }
    return ITI(direction, theta.float(), sigma.float(), probes.accuracy.float(), layers, metadata=about)


def answers_once(
    seen: Contrast, site: str = "z"
) -> tuple[Float[Tensor, "layer text ..."], Int[np.ndarray, " text"], Int[np.ndarray, " text"]]:
    """Activations, labels (1 is right) and question numbers of the distinct answers in the pairs.

    Raises:
        ValueError: the site was not read, or only its moments were kept.
    """
    sides = seen.activations(site)
    questions: dict[str, int] = {}
    first: dict[tuple[int, str, int], int] = {}  # (question, answer, label) -> pair
    for i, pair in enumerate(seen.pairs):
        number = questions.setdefault(repr(pair.prompt), len(questions))
        for label, answer in ((1, pair.right), (0, pair.wrong)):
            first.setdefault((number, answer.strip(), label), i)
    chosen = [[i for (_, _, label), i in first.items() if label == side] for side in (1, 0)]
    z = torch.cat([own[:, i] for own, i in zip(sides, chosen, strict=True)], 1)
    labels = np.repeat([1, 0], [len(i) for i in chosen])
    groups = np.array([number for side in (1, 0) for (number, _, label) in first if label == side])
    return z, labels, groups


def split_by_question(
    questions: Int[np.ndarray, " text"], *, validation: float = 0.2, splits: int = 1, seed: int = 0
) -> list[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held"]]]:
    """Random (training rows, validation rows), all answers to a question on the same side.

    Raises:
        ValueError: too few questions for both sides.
        ImportError: without the extra `eval`.
    """
    try:
        from sklearn.model_selection import GroupShuffleSplit
    except ImportError as error:
        raise needs_extra("fitting ITI", "scikit-learn", error) from error
    _require_split(len(np.unique(questions)), validation)
    splitter = GroupShuffleSplit(n_splits=splits, test_size=validation, random_state=seed)
    return list(splitter.split(questions, groups=questions))


def probe_heads(
    z: Float[Tensor, "layer text head d_head"],
    labels: Int[np.ndarray, " text"],
    parts: Sequence[tuple[Int[np.ndarray, " train"], Int[np.ndarray, " held"]]],
    *,
    n_jobs: int = 1,
    progress: bool = True,
) -> Probes:
    """scikit-learn's logistic regression on every head, trained and measured on each (training, validation) rows.

    Raises:
        ImportError: without the extra `eval`.
    """
    try:
        from joblib import Parallel, delayed
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise needs_extra("fitting ITI", "scikit-learn", error) from error

    probe = LogisticRegression(max_iter=_MAX_ITER)
    work = (delayed(_probe_layer)(probe, own.double().numpy(), labels, parts) for own in z)
    found = []
    with progress_bar(len(z), "probe heads", shown=progress, unit="layer") as bar:
        for layer in Parallel(n_jobs=n_jobs, return_as="generator")(work):
            found.append(layer)
            bar.update()
    accuracy, weights, unconverged = zip(*found, strict=True)
    failed, total = sum(unconverged), z.shape[0] * z.shape[2] * len(parts)
    if failed:
        warnings.warn(f"{failed} of {total} probes did not converge in {_MAX_ITER} iterations", stacklevel=2)
    return Probes(torch.from_numpy(np.stack(accuracy)), torch.from_numpy(np.stack(weights)), failed)


def _probe_layer(
    probe: Any, z: np.ndarray, labels: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]]
) -> tuple[np.ndarray, np.ndarray, int]:
    """Accuracy [head] and weights [head, d_head] of one layer, and how many probes did not converge."""
    accuracy, weights, unconverged = np.zeros(z.shape[1]), np.zeros(z.shape[1:]), 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # counted, and said once for all heads
        for head in range(z.shape[1]):
            for train, held in parts:
                probe.fit(z[train, head], labels[train])
                accuracy[head] += probe.score(z[held, head], labels[held]) / len(parts)
                weights[head] += probe.coef_[0] / len(parts)
                unconverged += int(probe.n_iter_[0] >= _MAX_ITER)
    return accuracy, weights, unconverged


def _check(direction: str, validation: float, splits: int) -> None:
    if direction not in get_args(Kind):
        raise ValueError(f"direction must be one of {get_args(Kind)}, got {direction!r}")
    if not 0 < validation < 1:
        raise ValueError(f"validation={validation!r}: the share of questions to hold out is between 0 and 1")
    if not isinstance(splits, int) or splits < 1:
        raise ValueError(f"splits={splits!r}: the number of random splits is a whole number from 1")


def _require_split(count: int, validation: float) -> None:
    if count - math.ceil(validation * count) < 1:
        raise ValueError(
            f"{count} question{'s' * (count != 1)} cannot be split with a share of {validation:g} for validation; the "
            "probes need at least one question to train on and one that they do not see (50 or more to be of use)"
        )


def _require_tuning(tuning: Mapping[str, Tensor], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in tuning]
    if missing:
        raise ValueError(
            f"tuning lacks {missing[0]!r} and {len(missing) - 1} more; give capture(model, prompts, 'z') of the same "
            "layers"
        )
