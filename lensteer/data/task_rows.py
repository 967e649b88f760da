"""The rows of a task: from this package, from JSON lines of one's own, or from the Hugging Face hub.

Every row comes with the words that say where it stands ("file, line 3"), so that whatever is wrong with it can be
named.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from lensteer.data.loaders import json_rows
from lensteer.data.queries import SPLITS, read_jsonl
from lensteer.data.task_table import TASKS, Task
from lensteer.messages import short

Source: TypeAlias = str | Path | Mapping[str, str | Path] | None
Located: TypeAlias = tuple[str, dict[str, Any]]


def task_rows(task: Task, split: str, source: Source) -> Iterator[Located]:
    """The rows of one split, each after the words that say where it is.

    Raises:
        ValueError: a split that this source does not have, or a task without a set of its own.
        TypeError: a source that is no path, such as a list of rows.
        FileNotFoundError: no such file.
        ImportError: the hub without the ``datasets`` library.
        OSError: the hub cannot be reached, or does not have the set.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; the splits are {', '.join(map(repr, SPLITS))}")
    if source is None:
        return _own(task, split)
    if source == "hub":
        return _hub(task, split)
    if isinstance(source, Mapping):
        if split not in source:
            raise ValueError(f"the source has no split {split!r}; it has {', '.join(map(repr, source)) or 'none'}")
        return json_rows(_path(source[split]))
    return _local(_path(source), split)


def has_training_split(task: Task, source: Source) -> bool:
    """Whether few-shot examples can be had without touching the questions that are asked."""
    if source is None:
        return task.own is not None
    if source == "hub":
        return task.hub is not None and "fit" in task.hub.splits
    if isinstance(source, Mapping):
        return "fit" in source
    return any(row.get("split") == "fit" for _, row in json_rows(_path(source)))


def _path(source: Any) -> Path:
    if not isinstance(source, str | Path):
        raise TypeError(
            f"source is {short(source)}; it must be 'hub', the path of a JSON-lines file, or a mapping of splits to "
            "paths (rows that are in memory are written as one JSON object a line)"
        )
    return Path(source)


def _own(task: Task, split: str) -> Iterator[Located]:
    if task.own is None:
        like = [name for name, other in TASKS.items() if other.own and other.layouts == task.layouts]
        instead = f"questions({like[0]!r}) is lensteer's own small set of this kind, " if like else ""
        raise ValueError(
            f"no data of {task.name!r} come with lensteer; {instead}source='hub' loads the public set, and "
            "source=PATH reads JSON lines with its fields"
        )
    rows = read_jsonl(task.own)
    return ((f"{task.own}, line {i}", row) for i, row in enumerate(rows, start=1) if row["split"] == split)


def _local(path: Path, split: str) -> Iterator[Located]:
    """A file whose rows name their splits has those; any other file is, as a whole, the split that was asked for."""
    rows = list(json_rows(path))
    named = {str(row["split"]) for _, row in rows if "split" in row}
    if not named:
        return iter(rows)
    if split not in named:
        raise ValueError(f"{path} has no rows of the split {split!r}; there are {', '.join(sorted(named))}")
    return ((where, row) for where, row in rows if row.get("split") == split)


def _hub(task: Task, split: str) -> Iterator[Located]:
    hub = task.hub
    if hub is None:
        raise ValueError(f"the task {task.name!r} is lensteer's own and not on the hub; leave source out")
    if split not in hub.splits:
        raise ValueError(
            f"{hub.path} has no labelled split {split!r}; there are {', '.join(map(repr, hub.splits))} "
            "(`split_questions` divides one of them)"
        )
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            f"source='hub' needs the `datasets` library: pip install 'lensteer[eval]' ({_offline(task)} without it)"
        ) from error
    theirs = hub.splits[split]
    try:
        rows = datasets.load_dataset(hub.path, hub.config, split=theirs, revision=hub.revision)
    except Exception as error:  # the library has many kinds, from no network to a set that moved
        reason = (str(error).splitlines() or [""])[0]
        raise OSError(
            f"the hub data set {hub.path!r} ({type(error).__name__}: {reason}) could not be loaded; "
            f"{_offline(task)} without a network"
        ) from error
    return ((f"{hub.path}, split {theirs!r}, row {i}", dict(row)) for i, row in enumerate(rows))


def _offline(task: Task) -> str:
    own = next((name for name, other in TASKS.items() if other.own and other.layouts == task.layouts), None)
    alike = f"questions({own!r}) or " if own else ""
    return f"{alike}source=PATH to JSON lines with the same fields works"
