"""Rows for the focus data sets: lensteer's own, files, rows in memory, or the Hugging Face hub.

| source | rows |
|---|---|
| "own" | written for lensteer, in this package; no network |
| "hub" | the public set, through the ``datasets`` library |
| a path | JSON lines, or a table with tabs if it ends in .tsv or .txt |
| a list | of paths, or of rows (dicts) |
| a mapping | "train", "validation", "test" -> any of the last two |

Rows that name their ``split`` are divided by it, others not at all: they come under "all", for the data set to divide.
Every row comes with the words that say where it stands, so that whatever is wrong with it can be named.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from lensteer.data.focus.predictivity import shuffled
from lensteer.data.loaders import json_rows
from lensteer.data.queries import read_jsonl
from lensteer.messages import short

Row: TypeAlias = dict[str, Any]
Located: TypeAlias = tuple[str, Row]
Rows: TypeAlias = str | Path | Sequence[str | Path | Row]
Source: TypeAlias = Rows | Mapping[str, Rows]

PARTS = ("train", "validation", "test")
T = TypeVar("T")


@dataclass(frozen=True)
class HubParts:
    """Where a data set is on the hub: part -> the splits there that it is read from."""

    path: str
    parts: Mapping[str, tuple[str, ...]]
    config: str | None = None
    revision: str | None = None


def read_parts(source: Source, own: str, hub: HubParts) -> dict[str, list[Located]]:
    """The rows of a source by part ("train", "validation", "test"), or all of them under "all".

    Args:
        own: the file of this package that "own" means.
        hub: what "hub" means.

    Raises:
        TypeError: a source of another type.
        ValueError: no rows, an unknown part or split, or a line that cannot be read; names file and line.
        FileNotFoundError: no such file.
        ImportError: the hub without the ``datasets`` library.
        OSError: the hub cannot be reached, or does not have the set.
    """
    if isinstance(source, str) and source == "own":
        return _by_split((f"{own}, line {i}", row) for i, row in enumerate(read_jsonl(own), start=1))
    if isinstance(source, str) and source == "hub":
        return _hub(hub)
    if not isinstance(source, Mapping):
        return _by_split(_rows(source))
    unknown = [part for part in source if part not in PARTS]
    if unknown or not source:
        raise ValueError(f"the source has the parts {list(source)}; they are some of {', '.join(PARTS)}")
    return {part: list(_rows(rows)) for part, rows in source.items()}


def _rows(source: Any) -> Iterator[Located]:
    if isinstance(source, str | Path):
        path = Path(source)
        yield from _table(path) if path.suffix in (".tsv", ".txt") else json_rows(path)
        return
    if not isinstance(source, Sequence):
        raise TypeError(f"source is {short(source)}; it must be 'own', 'hub', a path, a list or a mapping of parts")
    if not source:
        raise ValueError("the source is an empty list; give at least one path or row")
    for number, entry in enumerate(source, start=1):
        if isinstance(entry, Mapping):
            yield f"row {number}", dict(entry)
        elif isinstance(entry, str | Path):
            yield from _rows(entry)
        else:
            raise TypeError(f"entry {number} of the source is {short(entry)}; each is a path or a row (a dict)")


def _table(path: Path) -> Iterator[Located]:
    """Rows of a table with tabs, whose first line names the columns; quotes mean nothing, as in the sets of NLI."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not a file; expected columns with tabs between them")
    with path.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
        empty = True
        for row in reader:
            empty = False
            yield f"{path}, line {reader.line_num}", {name: value for name, value in row.items() if name}
    if empty:
        raise ValueError(f"{path} has no rows below the names of its columns")


def _by_split(rows: Iterable[Located]) -> dict[str, list[Located]]:
    found: dict[str, list[Located]] = {}
    for where, row in rows:
        split = row.get("split", "all")
        if split not in (*PARTS, "all"):
            raise ValueError(f"{where}: unknown split {split!r}; the splits are {', '.join(PARTS)}")
        found.setdefault(split, []).append((where, row))
    if "all" in found and len(found) > 1:
        raise ValueError(f"{found['all'][0][0]}: no split, although other rows have one; name it in all rows or none")
    return found


def _hub(hub: HubParts) -> dict[str, list[Located]]:
    try:
        import datasets
    except ImportError as error:
        raise ImportError(
            "source='hub' needs the `datasets` library: pip install 'lensteer[eval]' ('own' or a path needs none)"
        ) from error

    def rows(split: str) -> Iterator[Located]:
        try:
            loaded = datasets.load_dataset(hub.path, hub.config, split=split, revision=hub.revision)
        except Exception as error:  # the library has many kinds, from no network to a set that moved
            reason = (str(error).splitlines() or [""])[0]
            raise OSError(
                f"the hub data set {hub.path!r} ({type(error).__name__}: {reason}) could not be loaded; source='own' "
                "works without a network, source=PATH reads files with the same fields"
            ) from error
        return ((f"{hub.path}, split {split!r}, row {i}", dict(row)) for i, row in enumerate(loaded))

    return {part: [row for split in splits for row in rows(split)] for part, splits in hub.parts.items()}


def text_of(row: Row, names: Sequence[str], where: str) -> str:
    """The text of the first of these fields that the row has, without blanks at its ends.

    Raises:
        ValueError: it has none of them, or what is there is no text.
    """
    name = next((name for name in names if name in row), None)
    value = row[name] if name else None
    if not isinstance(value, str) or not value.strip():
        needed = " or ".join(map(repr, names))
        raise ValueError(f"{where}: field {needed} is {short(value)}; it must be text (there are {short(list(row))})")
    return value.strip()


def three_parts(
    parts: Mapping[str, Sequence[T]],
    *,
    source: Callable[[T], str],
    group: Callable[[T], str],
    seed: int,
    test: float = 0.2,
    validation: float = 0.2,
) -> dict[str, list[T]]:
    """Training, validation and test, out of the parts that there are; no source is in two of them.

    A source that is in several parts stays in the one that is tested, or else in validation. What is not divided is
    divided by source, every group in the same proportion.

    Args:
        parts: as `read_parts` returns them: "train" and "test", perhaps "validation"; or "all".
        source: of an item, what it was made from; group: such as its label or its genre.
        test: the share of "all" for test; validation: the share for validation of what is then left to train on.

    Raises:
        ValueError: a part without items.
    """
    found: dict[str, list[T]] = {}
    seen: set[str] = set()
    for part in ("test", "validation", "train", "all"):
        found[part] = [item for item in parts.get(part, ()) if source(item) not in seen]
        seen |= {source(item) for item in found[part]}
    if found["all"]:
        found |= divide(found["all"], {"train": 1 - test, "test": test}, source=source, group=group, seed=seed)
    if not found["validation"]:
        shares = {"train": 1 - validation, "validation": validation}
        found |= divide(found["train"], shares, source=source, group=group, seed=seed)
    for part in PARTS:
        if not found[part]:
            raise ValueError(f"the source has no rows for {part!r}; it has {', '.join(parts) or 'none'}, or too few")
    return {part: found[part] for part in PARTS}


def divide(
    items: Sequence[T], shares: Mapping[str, float], *, source: Callable[[T], str], group: Callable[[T], str], seed: int
) -> dict[str, list[T]]:
    """Items shared out over parts, all of one source to one part, every group in the same proportion.

    Args:
        shares: part -> its share; they sum to 1, and are rounded within a group.
        group: of an item, such as its label or its genre; a source belongs to the group of its first item.
    """
    groups: dict[str, list[str]] = {}
    members: dict[str, list[T]] = {}
    for item in items:
        name = source(item)
        if name not in members:
            groups.setdefault(group(item), []).append(name)
        members.setdefault(name, []).append(item)
    parts: dict[str, list[T]] = {part: [] for part in shares}
    for name, sources in groups.items():
        mixed, start, total = shuffled(sources, f"{seed}\ndivide\n{name}"), 0, 0.0
        for part, share in shares.items():
            total += share
            end = round(total * len(mixed))
            parts[part] += [item for chosen in mixed[start:end] for item in members[chosen]]
            start = end
    return parts
