"""`choice_sweep`: a grid of steerings on multiple-choice questions -> one tidy DataFrame.

    def settings(questions):
        clean = heads.read(model, [q.prompt for q in questions], prompt_format="plain")
        return [
            unsteered(),
            *grid("SADI head", lambda k, s: heads.steering(k, s, clean=clean), ks=[1, 4, 8], strengths=[4.0, 9.0]),
            *grid("ITI", lambda k, s: iti.steering(k, s), ks=[4, 8], strengths=[5.0, 15.0]),
            *grid("CAA", lambda i, s: caa.add(i, s, tokens=STEPS), layers=[10, 14], strengths=[1.0, 2.0]),
        ]

    results = choice_sweep(model, settings, validation, cache="sweeps")
    choose_setting(results)

The questions are taken in chunks of similar length. All settings of a chunk share one reading of its prompts where
they act at the last prompt token or later, and every finished chunk is kept on disk under a hash of everything that
determines it, so a sweep that was killed goes on where it stopped. A steering with values for every question (frozen
SADI) is made for one chunk at a time by a function, as above: a grid of them for all questions would fill the memory.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis.choice_settings import LABEL, Setting, Settings, checked_settings, grid, unsteered
from lensteer.answers import Question
from lensteer.data import data_hash
from lensteer.evaluate.multiple_choice import check_questions, multiple_choice_grid, option_ids
from lensteer.generate import as_steering
from lensteer.models import fingerprint, twin_of
from lensteer.progress import progress_bar
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

__all__ = ["Setting", "Settings", "choice_sweep", "grid", "unsteered"]

_SCORES = ("correct", "correct_normalised", "exact", "probability_inside", "said_inside", "log_odds")
_VERSION = "v1"


def choice_sweep(
    model: TransformerBridge,
    settings: Settings,
    questions: Sequence[Question],
    *,
    prompt_format: str = "plain",
    length: Literal["tokens", "characters"] = "tokens",
    batch_size: int | Literal["auto"] = "auto",
    chunk_size: int = 32,
    cache: str | Path | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Answer every question under every setting.

    Args:
        settings: a list, or a function that makes them for some of the questions, in their order. A function is
            called once a chunk (also for one that the cache holds), and must give the same settings every time.
        prompt_format, length: as in `multiple_choice_grid`.
        batch_size: sequences in one forward pass.
        chunk_size: questions that are done, and kept, at a time.
        cache: a folder; a finished chunk is kept there, and never run again for the same questions and settings.

    Returns:
        One row per setting and question: method, k, layer, strength, seed, question_id (its place in ``questions``),
        prompt, group, correct, correct_normalised, exact, probability_inside, said_inside, and log_odds, the best
        right option's log-likelihood less the best wrong one's (NaN where all are right).

    Raises:
        TypeError: something else than a list of `Setting`.
        ValueError: no settings or no questions; two settings of one name (method, k, layer, strength, seed); a
            steering that does not fit the model, or has rows for another number of questions; a function that gives
            other settings for other questions; a model that is being steered (with a cache).
        OSError: a cache folder that cannot be written; before the first chunk.
    """
    import pandas as pd

    questions = check_questions(questions)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}")
    if not callable(settings):
        settings = checked_settings(model, settings, len(questions))
    if cache is not None and twin_of(model).active:
        raise ValueError(
            "the model is being steered, which no cache key knows of; sweep without cache=, or add that steering to "
            "the settings"
        )
    folder = None if cache is None else Path(cache)
    if folder is not None:
        write_atomically(folder / ".writable", b"").unlink(missing_ok=True)
    # All are tokenised first: a question that is too long is found now, not in the last chunk. Neighbours in length
    # go together, so that little of a batch is padding.
    sizes = [len(row) for row in option_ids(model, questions, prompt_format=prompt_format)[0]]
    order = sorted(range(len(questions)), key=sizes.__getitem__)
    options = {"prompt_format": prompt_format, "length": length}
    run = _Chunks(model, folder, {**options, "batch_size": batch_size}, json.dumps(options))
    found: dict[tuple[Any, ...], dict[int, dict[str, Any]]] = {}
    with progress_bar(len(questions), "choice sweep", shown=progress, unit="question") as bar:
        for start in range(0, len(order), chunk_size):
            index = order[start : start + chunk_size]
            chunk = [questions[i] for i in index]
            tried = _for_chunk(model, settings, chunk, index)
            if found and list(found) != [setting.label for setting in tried]:
                raise ValueError(
                    f"the function that makes the settings gave {len(found)} for the first questions, but {len(tried)} "
                    "others, or in another order, for the next; it must always give the same"
                )
            for setting, outcomes in zip(tried, run(tried, chunk), strict=True):
                found.setdefault(setting.label, {}).update(zip(index, outcomes, strict=True))
            bar.update(len(chunk))
    return pd.DataFrame(
        {**dict(zip(LABEL, label, strict=True)), "question_id": i, "prompt": question.prompt, "group": question.group}
        | rows[i]
        for label, rows in found.items()
        for i, question in enumerate(questions)
    )


def _for_chunk(
    model: TransformerBridge, settings: Settings, chunk: list[Question], index: Sequence[int]
) -> list[Setting]:
    if callable(settings):
        return checked_settings(model, settings(chunk), len(chunk))
    own = [as_steering(setting.steering) for setting in settings]
    return [
        replace(setting, steering=steering if steering.n_rows is None else steering.rows(index))
        for setting, steering in zip(settings, own, strict=True)
    ]


class _Chunks:
    """Runs one chunk of questions after the other; what a folder holds, or is the same twice, is not run again."""

    def __init__(self, model: TransformerBridge, folder: Path | None, options: dict[str, Any], about: str) -> None:
        self._model, self._folder, self._options = model, folder, options
        self._where = json.dumps([sorted(fingerprint(model).items()), about, _VERSION])
        self._kept = _kept(folder)

    def __call__(self, tried: Sequence[Setting], chunk: Sequence[Question]) -> list[list[dict[str, Any]]]:
        asked = data_hash([[question.prompt, question.options, question.right] for question in chunk])
        hashes = [as_steering(setting.steering).content_hash() for setting in tried]
        keys = [hashlib.sha256(f"{self._where} {asked} {own}".encode()).hexdigest()[:32] for own in hashes]
        known = {key: self._kept[key] for key in keys if len(self._kept.get(key, ())) == len(chunk)}
        missing = {key: setting.steering for key, setting in zip(keys, tried, strict=True) if key not in known}
        if missing:
            table = multiple_choice_grid(self._model, chunk, missing, **self._options, progress=False)
            new = {str(key): _outcomes(rows, chunk) for key, rows in table.groupby("steering", sort=False)}
            if self._folder is not None:
                lines = "".join(json.dumps({"key": key, "rows": rows}) + "\n" for key, rows in new.items())
                name = hashlib.sha256(lines.encode()).hexdigest()[:24]
                write_atomically(self._folder / f"choices-{name}.jsonl", lines.encode())
            known.update(new)
        return [known[key] for key in keys]


def _outcomes(rows: pd.DataFrame, chunk: Sequence[Question]) -> list[dict[str, Any]]:
    """One setting's rows of `multiple_choice_grid`, as plain records in the order of the questions."""
    records = rows.sort_values("question_id").to_dict("records")
    return [
        {name: _plain(record.get(name)) for name in _SCORES[:-1]}
        | {"log_odds": _log_odds(record["log_likelihoods"], question.right)}
        for record, question in zip(records, chunk, strict=True)
    ]


def _log_odds(log_likelihoods: Sequence[float], right: Sequence[int]) -> float:
    values = np.asarray(log_likelihoods, dtype=float)
    is_right = np.isin(np.arange(len(values)), right)
    return float(values[is_right].max() - values[~is_right].max()) if not is_right.all() else math.nan


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


def _kept(folder: Path | None) -> dict[str, list[dict[str, Any]]]:
    """What earlier sweeps finished. A line that cannot be read (cut off, damaged) is passed over, and so runs again."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("choices-*.jsonl")) if folder is not None and folder.is_dir() else ():
        for line in path.read_bytes().splitlines():
            record: Any = None
            with suppress(ValueError):  # not UTF-8, or not JSON
                record = json.loads(line)
            if _is_record(record):
                found[record["key"]] = record["rows"]
    return found


def _is_record(record: Any) -> bool:
    if not isinstance(record, Mapping) or not isinstance(record.get("rows"), list) or "key" not in record:
        return False
    return all(isinstance(row, Mapping) and row.keys() == set(_SCORES) for row in record["rows"])
