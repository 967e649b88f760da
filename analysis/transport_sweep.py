"""`strength_sweep`, `support_sweep`: activation transports over strengths and supports, effect beside damage.

    success                           what a check says of each response                        one per prompt
    perplexity, degenerate, repeated  of each response, under the unsteered model               one per prompt
    text_rise                         mean over neutral texts of PPL(steered) − PPL(unsteered)  one per setting

PPL of a text is exp of its mean token loss under the model as it is steered (Rodriguez et al., ICLR 2025, Section 4.1:
"PPL Wikipedia", whose increase they keep below 1). `analysis.transport_choice` summarises, chooses and confirms.

    results = strength_sweep(model, {"linear": linear, "mean": mean}, prompts, check, texts=texts, cache="sweeps")
    candidates = choose_strength(results)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from analysis.statistics import paired_bootstrap
from analysis.sweep import Check, sweep
from analysis.transport_settings import STRENGTHS, SUPPORTS, TransportSetting, transport_settings
from analysis.transport_support import untouched
from lensteer import evaluate
from lensteer.methods.transport import Support, Transport
from lensteer.models import fingerprint
from lensteer.progress import progress_bar
from lensteer.prompts import Prompt
from lensteer.steering import Steering
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


def strength_sweep(
    model: TransformerBridge,
    transports: Transport | Mapping[str, Transport],
    prompts: Sequence[Prompt],
    check: Check,
    *,
    strengths: Sequence[float] = STRENGTHS,
    supports: Sequence[Support | str] = ("default",),
    controls: int = 1,
    texts: Sequence[str] = (),
    max_tokens: int = 50,
    seed: int = 0,
    prompt_format: str = "plain",
    cache: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """Every transport at every support and strength on every prompt, beside no steering and random controls.

    Args:
        transports: one, or names -> transports; one alone is called by its method.
        check: responses -> success of each (0/1 or graded), as in `sweep`.
        strengths: λ; 0 need not be among them, since no steering is always run.
        supports: percentages of the source, None for everywhere, "default" for each transport's own.
        controls: random shifts (`Transport.random`) beside each transport: as far a move of each site's mean, in a
            direction that means nothing.
        texts: neutral texts whose perplexity is measured under every steering; none leaves that out.
        max_tokens: of each text.
        seed: of the controls and of the intervals.
        prompt_format: "plain" continues the prompts; as in `sweep`.
        cache: a folder that keeps finished batches and perplexities.
        options: of `sweep`: ``max_new_tokens=``, ``batch_size=``, ``executor=``, ``stop=``.

    Returns:
        One row per method, condition ("none", "steered", "random"), support, strength, seed (of a control, else −1)
        and prompt: what `sweep` gives, with layer the first one that is edited; and, the same on all rows of a
        setting, text_perplexity (mean over texts; with _median, _q25, _q75) and text_rise (with _low, _high:
        bootstrap over texts, in pairs).

    Raises:
        ValueError: no transports, no strength besides 0, an unknown or empty support, a number of controls that is
            negative, texts that are not texts, or as `sweep`; all before the first batch.
    """
    settings = transport_settings(transports, strengths, supports, controls, seed)
    on_texts: dict[str, Any] = {"texts": texts, "max_tokens": max_tokens, "seed": seed}
    about: dict[str, Any] = {"prompt_format": prompt_format, "cache": cache, "progress": progress}
    return sweep_settings(model, settings, prompts, check, **on_texts, **about, **options)


def sweep_settings(
    model: TransformerBridge,
    settings: Sequence[TransportSetting],
    prompts: Sequence[Prompt],
    check: Check,
    *,
    texts: Sequence[str] = (),
    max_tokens: int = 50,
    seed: int = 0,
    prompt_format: str = "plain",
    cache: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """`strength_sweep` of chosen settings, such as those of `transport_settings`; arguments and table as there.

    Raises:
        ValueError: no settings, the first of which must be no steering; texts that are not texts; or as `sweep`.
    """
    if not settings or settings[0].candidate.condition != "none":
        raise ValueError("the first of the settings must be no steering, which the others are compared with")
    if isinstance(texts, str) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("texts must be a list of texts that are not empty")
    candidates = [setting.candidate for setting in settings]
    checks = dict.fromkeys((setting.method for setting in settings), check)
    options.update(checks=checks, prompt_format=prompt_format, cache=cache, progress=progress)
    table = sweep(model, candidates, prompts, **options).rename(columns={"instruction": "method"})
    number = [i for i in range(len(settings)) for _ in prompts]
    table.insert(2, "support", [settings[i].support for i in number])
    table.insert(5, "seed", [settings[i].seed for i in number])
    if len(texts):
        found = _on_texts(model, settings, list(texts), max_tokens, cache, seed, progress)
        for column in found[0]:
            table[column] = [found[i][column] for i in number]
    return table


def support_sweep(
    model: TransformerBridge,
    transports: Transport | Mapping[str, Transport],
    prompts: Sequence[Prompt],
    check: Check,
    *,
    strengths: Sequence[float] = (1.0,),
    supports: Sequence[Support | str] = SUPPORTS,
    controls: int = 0,
    seed: int = 0,
    prompt_format: str = "plain",
    cache: str | Path | None = None,
    progress: bool = True,
    **options: Any,
) -> pd.DataFrame:
    """The same over supports, from narrow to everywhere, with what each of them leaves alone.

    Returns:
        What `strength_sweep` does, and ``untouched``: the share of (token, unit) values of the prompts that lie
        outside the support when they arrive there, over all sites; NaN without steering.

    Raises:
        ValueError: as `strength_sweep`.
    """
    about: dict[str, Any] = {"prompt_format": prompt_format, "cache": cache, "progress": progress}
    again: dict[str, Any] = {"strengths": strengths, "supports": supports, "controls": controls, "seed": seed}
    table = strength_sweep(model, transports, prompts, check, **again, **about, **options)
    settings, prompts = transport_settings(transports, strengths, supports, controls, seed), list(prompts)
    shares = []
    with progress_bar(len(settings), "support", shown=progress, unit="setting") as bar:
        for setting in settings:
            steering = setting.candidate.steering
            key = content_key(model, steering, "untouched", prompt_format, prompts)
            shares.append(kept(cache, key, partial(_share_outside, model, steering, prompts, prompt_format))[0])
            bar.update(1)
    return table.assign(untouched=np.repeat(shares, len(prompts)))


def _share_outside(
    model: TransformerBridge, steering: Steering, prompts: list[Prompt], prompt_format: str
) -> list[float]:
    if not len(steering):
        return [float("nan")]
    table = untouched(model, steering, prompts, prompt_format=prompt_format, progress=False)
    return [float(table["untouched"] @ table["values"] / table["values"].sum())]


def _on_texts(
    model: TransformerBridge,
    settings: Sequence[TransportSetting],
    texts: list[str],
    max_tokens: int,
    cache: str | Path | None,
    seed: int,
    progress: bool,
) -> list[dict[str, float]]:
    """The perplexity of neutral texts under every setting, and its rise over no steering."""
    found: dict[str, Float[np.ndarray, " text"]] = {}
    keys = [content_key(model, setting.candidate.steering, "texts", max_tokens, texts) for setting in settings]
    with progress_bar(len(keys), "perplexity of texts", shown=progress, unit="setting") as bar:
        for key, setting in zip(keys, settings, strict=True):
            steering = setting.candidate.steering
            if key not in found:  # no steering is there once for each method
                values = kept(cache, key, partial(_perplexities, model, texts, steering, max_tokens))
                found[key] = np.nan_to_num(np.asarray(values, dtype=float), nan=np.inf)
            bar.update(1)
    unsteered = found[keys[0]]
    if not np.isfinite(unsteered).all():
        number = int((~np.isfinite(unsteered)).argmax())
        raise ValueError(f"text {number} has no perplexity without steering, it is too short: {texts[number]!r}")
    return [_text_columns(found[key], unsteered, seed) for key in keys]


def _perplexities(model: TransformerBridge, texts: list[str], steering: Steering, max_tokens: int) -> list[float]:
    table = evaluate.text_perplexity(model, texts, steering, max_tokens=max_tokens, progress=False)
    return [float(value) for value in table["perplexity"]]


def _text_columns(
    values: Float[np.ndarray, " text"], unsteered: Float[np.ndarray, " text"], seed: int
) -> dict[str, float]:
    # A model that breaks has no finite perplexity, and its rise no interval.
    finite = bool(np.isfinite(values).all())
    rise = paired_bootstrap(values, unsteered, seed=seed) if finite else (np.inf,) * 3
    q25, median, q75 = np.quantile(values, [0.25, 0.5, 0.75], method="linear" if finite else "nearest")
    return {
        "text_perplexity": float(values.mean()),
        "text_perplexity_median": float(median),
        "text_perplexity_q25": float(q25),
        "text_perplexity_q75": float(q75),
        "text_rise": rise[0],
        "text_rise_low": rise[1],
        "text_rise_high": rise[2],
    }


def content_key(model: TransformerBridge, steering: Steering, *what: Any) -> str:
    """A name for what these determine."""
    facts = json.dumps([sorted(fingerprint(model).items()), steering.content_hash(), repr(what)])
    return hashlib.sha256(facts.encode()).hexdigest()[:32]


def kept(cache: str | Path | None, key: str, compute: Callable[[], list[Any]]) -> list[Any]:
    """What a folder holds under a key; it is computed and written if it does not."""
    if cache is None:
        return compute()
    path = Path(cache) / f"{key}.json"
    if path.is_file():
        found: list[Any] = json.loads(path.read_text())
        return found
    values = compute()
    write_atomically(path, json.dumps(values).encode())
    return values
