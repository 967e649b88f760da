"""`transport_study`: activation transport between two sets of texts, the whole honest procedure in one call.

fit each method -> sweep its strengths and supports on validation prompts -> choose under a budget -> confirm on test
prompts and other neutral texts, beside no steering and random shifts as large -> say what the support left alone.

Everything lands in one folder: the maps, the chosen steerings and every response. Run again on the same folder, it
continues where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from analysis.confirmation import normalised_prompt, require_disjoint_prompts
from analysis.study import file_name
from analysis.sweep import Check
from analysis.transport_choice import TransportBudget, choose_strength, confirm_strength
from analysis.transport_settings import (
    TransportSetting,
    require_check,
    require_grid,
    require_sides,
    transport_settings,
)
from analysis.transport_support import untouched
from analysis.transport_sweep import content_key, kept, sweep_settings
from lensteer import data
from lensteer.data import Sides
from lensteer.methods import transport
from lensteer.methods.transport import Support, Transport
from lensteer.models import twin_of
from lensteer.sites import ordered_points
from lensteer.steering import Steering
from lensteer.storage import load_tensors, save_tensors

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_FORMAT = "lensteer.transport_samples.v1"


@dataclass(frozen=True)
class TransportSize:
    """How much a study of transports does.

    Attributes:
        methods: of `lensteer.methods.transport.fit`; one may be given as a string.
        sites, layers: where maps are fitted.
        support: while the maps are fitted, and where ``supports`` says "default".
        strengths, supports: what is tried on the validation prompts; each on its own strength.
        validation, test: numbers of prompts.
        texts: neutral texts of each split, whose perplexity is the damage.
        controls: random shifts beside each chosen setting on the test prompts.
    """

    methods: tuple[str, ...] = ("linear", "mean")
    sites: str | tuple[str, ...] = "attention"
    layers: tuple[int, ...] | None = None
    support: Support | Literal["default"] = "default"
    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0)
    supports: tuple[Support | str, ...] = ("default",)
    validation: int = 6
    test: int = 12
    texts: int = 8
    controls: int = 1
    max_new_tokens: int = 24

    def __post_init__(self) -> None:
        if isinstance(self.methods, str):
            object.__setattr__(self, "methods", (self.methods,))


@dataclass(frozen=True, repr=False)
class TransportStudy:
    """What a study of transports found.

    Attributes:
        transports: by method, with their samples.
        validation, test: every response with its scores.
        candidates: every setting on the validation prompts, the chosen ones marked.
        confirmed: the chosen settings on the test prompts, and their controls.
        untouched: of each chosen setting and site, the share of the test prompts' values outside the support.
        chosen: method -> the chosen steering; a method for which no steering won is left out.
    """

    name: str
    transports: dict[str, Transport]
    validation: pd.DataFrame
    test: pd.DataFrame
    candidates: pd.DataFrame
    confirmed: pd.DataFrame
    untouched: pd.DataFrame
    chosen: dict[str, Steering]
    size: TransportSize
    budget: TransportBudget
    files: tuple[Path, ...]

    @property
    def results(self) -> pd.DataFrame:
        """Every response of both splits in one table."""
        return pd.concat([self.validation, self.test], ignore_index=True)

    def report(self, path: str | Path) -> Path:
        """Write one HTML file that shows the study; `analysis.report.Report` says what may go wrong."""
        from analysis.transport_report import transport_report  # which shows studies, and so imports this module

        return transport_report(self).save(path)

    def __repr__(self) -> str:
        won = self.candidates[self.candidates["chosen"] & (self.candidates["condition"] == "steered")]
        at = {row.method: f"λ = {row.strength:g}, support {row.support}" for row in won.itertuples()}
        methods = "; ".join(f"{method}: {at.get(method, 'none chosen')}" for method in self.transports)
        return f"TransportStudy({self.name!r}, {methods}; {self.size.validation} + {self.size.test} prompts)"


def transport_study(
    model: TransformerBridge,
    sides: Sides,
    folder: str | Path,
    *,
    name: str,
    check: Check,
    prompts: Sequence[str] | None = None,
    texts: Sequence[str] | None = None,
    size: TransportSize | None = None,
    budget: TransportBudget | None = None,
    seed: int = 0,
    progress: bool = True,
    say: Callable[[str], Any] = lambda message: None,
) -> TransportStudy:
    """Fit, sweep, choose and confirm.

    Args:
        sides: texts that show the behaviour to leave (source) and the one to reach (target).
        folder: maps, steerings and finished batches are kept here.
        name: of what is steered to, for files and tables.
        check: responses -> success of each; called once on two made-up responses before any work.
        prompts: beginnings to continue, the first ones for validation, the next for the test. Default: `data.openings`.
        texts: neutral texts, shared out in the same way. Default: `data.neutral_sentences` that are on neither side.
        say: is told what starts, for a terminal.

    Raises:
        TypeError: sides that are no two lists of texts, or a check that gives no success for each response.
        ValueError: too few prompts or texts, texts or prompts in two of fit, validation and test, an unknown method or
            site, strengths or supports that `strength_sweep` refuses, or a model that is being steered.

    All of these come before any work. Where no steering is chosen, a warning says which bound was in the way.
    """
    size, budget, folder = size or TransportSize(), budget or TransportBudget(), Path(folder)
    cache, where = folder / "cache", folder / "transport"
    require_sides(sides)
    _require_possible(model, size, check)
    fitted_on = [*sides.source, *sides.target]
    neutral = [text for text in data.neutral_sentences() if text not in fitted_on] if texts is None else texts
    asked = _splits("prompts", data.openings() if prompts is None else prompts, (size.validation, size.test), fitted_on)
    read = _splits("texts", neutral, (size.texts, size.texts), fitted_on)
    say(f"{name}: fitting {len(size.methods)} transports on {len(sides.source)} and {len(sides.target)} texts")
    fitted = {method: _fit(model, sides, method, name, size, cache, progress) for method in size.methods}
    files = [own.save(where / f"{file_name(name)}-{method}.safetensors") for method, own in fitted.items()]
    options: dict[str, Any] = {"max_new_tokens": size.max_new_tokens, "seed": seed, "cache": cache}
    options["progress"] = progress
    settings = transport_settings(fitted, size.strengths, size.supports, 0, seed)
    say(f"{name}: sweeping {len(settings)} settings on {size.validation} validation prompts")
    validation = sweep_settings(model, settings, asked[0], check, texts=read[0], **options).assign(split="validation")
    candidates = choose_strength(validation, budget=budget, seed=seed)
    chosen = {row.method: row for row in candidates[candidates["chosen"]].itertuples() if row.condition == "steered"}
    steerings = {method: _steering(settings, row) for method, row in chosen.items()}
    say(f"{name}: confirming the choices on {size.test} test prompts")
    settings = [own for method in fitted for own in _confirmed(fitted[method], method, chosen, settings, size, seed)]
    test = sweep_settings(model, settings, asked[1], check, texts=read[1], **options).assign(split="test")
    confirmed = confirm_strength(validation, test, budget=budget, seed=seed)
    left = _left_alone(model, steerings, asked[1], cache)
    for method in fitted:
        path = where / f"{file_name(name)}-{method}-chosen.safetensors"
        path.unlink(missing_ok=True)  # an earlier run in this folder may have chosen otherwise
        files += [steerings[method].save(path)] if method in steerings else []
    found = (validation, test, candidates, confirmed, left, steerings)
    return TransportStudy(name, fitted, *found, size, budget, tuple(files))


def _require_possible(model: TransformerBridge, size: TransportSize, check: Check) -> None:
    if twin_of(model).active:
        raise ValueError("the model is being steered; study it outside of the block that steers it")
    if not size.methods or not set(size.methods) <= transport.DEFAULTS.keys():
        raise ValueError(f"methods must be some of {', '.join(transport.DEFAULTS)}, got {size.methods}")
    require_grid(size.strengths, size.supports, size.controls)
    ordered_points(model, _sites(size), size.layers, edit=True)
    require_check(check)


def _splits(
    what: str, given: Sequence[str], counts: tuple[int, int], fitted_on: Sequence[str]
) -> tuple[list[str], list[str]]:
    """The first texts for validation and the next for the test, none of them used twice or to fit."""
    first, second = counts
    if min(counts) < 1 or len(given) < first + second:
        raise ValueError(f"{first} and {second} {what} were asked for; there are {len(given)} to share out")
    splits = list(given[:first]), list(given[first : first + second])
    tables = [pd.DataFrame({"prompt": split}) for split in splits]
    require_disjoint_prompts(tables[0], tables[1], (f"validation {what}", f"test {what}"))
    seen = {normalised_prompt(text) for text in fitted_on}
    if again := [text for split in splits for text in split if normalised_prompt(text) in seen]:
        raise ValueError(f"{len(again)} of the {what} are among the texts to fit on (first: {again[0]!r})")
    return splits


def _sites(size: TransportSize) -> str | list[str]:
    return size.sites if isinstance(size.sites, str) else list(size.sites)


def _fit(
    model: TransformerBridge,
    sides: Sides,
    method: str,
    name: str,
    size: TransportSize,
    cache: Path,
    progress: bool,
) -> Transport:
    """The maps of one method and the samples they were fitted on; a folder that holds both gives them."""
    key = content_key(
        model,
        Steering(),
        "fit",
        data.data_hash([sides.source, sides.target]),
        method,
        name,
        size.sites,
        size.layers,
        size.support,
    )
    maps, samples = cache / f"maps-{key}.safetensors", cache / f"samples-{key}.safetensors"
    if maps.is_file() and samples.is_file():
        tensors, _ = load_tensors(samples, _FORMAT)
        fitted = Transport.load(maps, model)
        pairs = {hook: (tensors[f"{i}.source"], tensors[f"{i}.target"]) for i, hook in enumerate(fitted.maps)}
        return replace(fitted, samples=pairs)
    about: dict[str, Any] = {"layers": size.layers, "support": size.support, "name": name, "progress": progress}
    fitted = transport.fit(model, sides.source, sides.target, method, _sites(size), **about)
    fitted.save(maps)
    numbered = [(i, fitted.samples[hook]) for i, hook in enumerate(fitted.maps)]
    parts = {f"{i}.{side}": own for i, pair in numbered for side, own in zip(("source", "target"), pair, strict=True)}
    save_tensors(samples, {key: own.contiguous() for key, own in parts.items()}, {}, _FORMAT)
    return fitted


def _steering(settings: Sequence[TransportSetting], row: Any) -> Steering:
    """What was run for a row of the candidates."""
    wanted = (row.method, row.support, row.strength)
    return next(s.candidate.steering for s in settings if (s.method, s.support, s.candidate.strength) == wanted)


def _confirmed(
    fitted: Transport,
    method: str,
    chosen: dict[str, Any],
    settings: Sequence[TransportSetting],
    size: TransportSize,
    seed: int,
) -> list[TransportSetting]:
    """What is run on the test prompts: no steering, and the chosen setting with its controls."""
    if method not in chosen:
        return [setting for setting in settings if setting.method == method and setting.candidate.condition == "none"]
    row = chosen[method]
    again = transport_settings({method: fitted}, [row.strength], size.supports, size.controls, seed)
    return [setting for setting in again if setting.support in ("none", row.support)]


def _left_alone(
    model: TransformerBridge, steerings: dict[str, Steering], prompts: Sequence[str], cache: Path
) -> pd.DataFrame:
    tables = []
    for method, steering in steerings.items():
        key = content_key(model, steering, "untouched by site", list(prompts))

        def read(own: Steering = steering) -> list[Any]:
            return untouched(model, own, prompts, progress=False).to_dict("records")

        tables.append(pd.DataFrame(kept(cache, key, read)).assign(method=method))
    columns = ["method", "hook", "layer", "values", "untouched", "below", "above"]
    return pd.concat(tables)[columns].reset_index(drop=True) if tables else pd.DataFrame(columns=columns)
