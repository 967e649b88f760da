"""A focus task under many steerings, kept on disk as it is finished: answers to its examples, and neutral texts.

    log_odds        log p(y_s) − log p(y)      given the prompt; of labels of one token, the difference of their logits
    text_perplexity mean over neutral texts of exp(mean token loss), under the steering

Examples are taken in chunks of similar length. All steerings of a chunk share one reading of its prompts where they act
at the last prompt token or later, and every finished (chunk, steering) is kept under a hash of what determines it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from analysis.transport_sweep import content_key, kept
from lensteer import evaluate
from lensteer.data.focus import TRAINING, FocusExample, FocusTask, Kind, Wording
from lensteer.evaluate.focus import focus_accuracy_grid, focus_prompts
from lensteer.models import twin_of
from lensteer.positions import At
from lensteer.progress import progress_bar
from lensteer.steering import Steering
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

_VERSION = "v2"
_COLUMNS = "example_id source split spurious kind template y s y_s target predicted informative says_y says_y_s".split()


@dataclass(frozen=True)
class FocusRun:
    """How focus tasks are run; one of it serves a whole study.

    Attributes:
        cache: a folder that keeps what is finished; None keeps nothing.
        wording, seed: of the instructions' templates, as in `focus_accuracy`.
        chunk_size: examples that are done, and kept, at a time.
        batch_size: sequences in one forward pass.
        max_tokens: that are read of each neutral text.
    """

    cache: Path | None = None
    wording: Wording = TRAINING
    seed: int = 0
    chunk_size: int = 32
    batch_size: int | Literal["auto"] = "auto"
    max_tokens: int = 50
    progress: bool = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "cache", None if self.cache is None else Path(self.cache))
        if self.chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1, got {self.chunk_size}")


def answers(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    steerings: Mapping[Any, Steering],
    run: FocusRun,
    *,
    kinds: Sequence[Kind] = ("empty",),
) -> pd.DataFrame:
    """What the model answers to every example under every kind of instruction and every steering.

    Returns:
        one row per steering, example and kind: steering (its name), example_id, source, split, spurious, kind,
        template, y, s, y_s, target, predicted, informative, says_y, says_y_s, probability_inside, and log_odds.

    Raises:
        ValueError: a model that is being steered (with a cache), or as `focus_accuracy_grid`; before the first chunk.
        OSError: a cache folder that cannot be written.
    """
    import pandas as pd

    checked = task.require(examples)
    _require_ready(model, run)
    for steering in steerings.values():
        steering.points(model)
    order = sorted(range(len(checked)), key=lambda i: _size(checked[i]))
    done = _kept(run.cache)
    found: list[dict[str, Any]] = []
    with progress_bar(len(checked), "focus", shown=run.progress, unit="example") as bar:
        for start in range(0, len(order), run.chunk_size):
            chunk = [checked[i] for i in order[start : start + run.chunk_size]]
            found += _chunk(model, task, chunk, steerings, run, kinds, done)
            bar.update(len(chunk))
    # Names may be tuples, which pandas would take for several columns.
    place = {name: i for i, name in enumerate(steerings)}
    number = {example.id: i for i, example in enumerate(checked)}
    found.sort(key=lambda row: (place[row["steering"]], number[row["example_id"]]))
    return pd.DataFrame(found)


def text_perplexities(
    model: TransformerBridge, texts: Sequence[str], steerings: Mapping[Any, Steering], run: FocusRun
) -> dict[Any, float]:
    """Mean perplexity of neutral texts under every steering; inf where a steering breaks the model.

    An edit whose tokens count from the beginning of a prompt acts at every token here, as it would on a longer text.

    Raises:
        ValueError: a text that is empty or too short, or a model that is being steered (with a cache).
    """
    if isinstance(texts, str) or not len(texts) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"texts must be a list of texts that are not empty, got {texts!r}")
    _require_ready(model, run)
    known: dict[str, float] = {}
    named: dict[Any, float] = {}
    with progress_bar(len(steerings), "perplexity of texts", shown=run.progress, unit="setting") as bar:
        for name, steering in steerings.items():
            own = _on_texts(steering)
            key = content_key(model, own, "texts", run.max_tokens, list(texts))
            if key not in known:
                values = kept(run.cache, key, partial(_perplexities, model, list(texts), own, run))
                known[key] = float(np.asarray(values, dtype=float).mean())
            named[name] = known[key]
            bar.update(1)
    return named


def _size(example: FocusExample) -> tuple[int, str]:
    """Neighbours are of one length; one input in several splits is one neighbour of itself, and read once."""
    return sum(map(len, example.fields.values())), repr(sorted(example.fields.items()))


def _require_ready(model: TransformerBridge, run: FocusRun) -> None:
    if run.cache is None:
        return
    if twin_of(model).active:
        raise ValueError("the model is being steered, which no cache key knows of; run it outside of that block")
    write_atomically(run.cache / ".writable", b"").unlink(missing_ok=True)


def _chunk(
    model: TransformerBridge,
    task: FocusTask,
    chunk: Sequence[FocusExample],
    steerings: Mapping[Any, Steering],
    run: FocusRun,
    kinds: Sequence[Kind],
    done: dict[str, list[dict[str, Any]]],
) -> list[dict[str, Any]]:
    """The rows of some examples; what is not in ``done`` is run, kept and put there."""
    how: dict[str, Any] = {"kinds": kinds, "wording": run.wording, "seed": run.seed}
    asked = focus_prompts(task, chunk, **how)
    what = [(one.prompt, one.kind, one.template, one.target, one.example) for one in asked]
    keys = {name: content_key(model, own, "focus", _VERSION, task.labels, what) for name, own in steerings.items()}
    missing = {key: steerings[name] for name, key in keys.items() if key not in done}
    if missing:
        options: dict[str, Any] = {"batch_size": run.batch_size, "progress": False}
        table = focus_accuracy_grid(model, task, chunk, missing, **how, **options)
        new = {str(key): _plain(task, own) for key, own in table.groupby("steering", sort=False)}
        if run.cache is not None:
            lines = "".join(json.dumps({"key": key, "rows": rows}) + "\n" for key, rows in new.items())
            name = hashlib.sha256(lines.encode()).hexdigest()[:24]
            write_atomically(run.cache / f"focus-{name}.jsonl", lines.encode())
        done.update(new)
    return [{"steering": name, **row} for name, key in keys.items() for row in done[key]]


def _plain(task: FocusTask, table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of `focus_accuracy_grid` as JSON can hold them."""
    place = {label: i for i, label in enumerate(task.labels)}
    rows = []
    for record in table.to_dict("records"):
        values = record["log_likelihoods"]
        odds = float(values[place[record["y_s"]]] - values[place[record["y"]]])
        own = {name: value.item() if hasattr(value := record[name], "item") else value for name in _COLUMNS}
        rows.append({**own, "probability_inside": float(record["probability_inside"]), "log_odds": odds})
    return rows


def _kept(folder: Path | None) -> dict[str, list[dict[str, Any]]]:
    """What earlier runs finished. A line that cannot be read (cut off, damaged) is passed over, and so runs again."""
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("focus-*.jsonl")) if folder is not None and folder.is_dir() else ():
        for line in path.read_bytes().splitlines():
            with suppress(ValueError, KeyError, TypeError):  # not UTF-8, not JSON, or something else
                record = json.loads(line)
                found[record["key"]] = record["rows"]
    return found


def _on_texts(steering: Steering) -> Steering:
    """The same edits; those whose tokens count from the beginning of a prompt at every token."""
    return Steering(
        (name, edit.edit if isinstance(edit, At) and _from_start(edit) else edit) for name, edit in steering
    )


def _from_start(edit: At) -> bool:
    return isinstance(edit.tokens, slice) and (edit.tokens.start or 0) > 0


def _perplexities(model: TransformerBridge, texts: list[str], steering: Steering, run: FocusRun) -> list[float]:
    options: dict[str, Any] = {"max_tokens": run.max_tokens, "batch_size": run.batch_size, "progress": False}
    values = evaluate.text_perplexity(model, texts, steering, **options)["perplexity"]
    if values.isna().any():
        number = int(values.isna().to_numpy().argmax())
        raise ValueError(f"text {number} has no perplexity, it is too short: {texts[number]!r}")
    return [float(value) for value in values]
