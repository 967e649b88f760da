"""What the tasks are: the descriptions in ``tasks.toml``, read once and checked.

A description says where a task's rows come from, how a row becomes a prompt with options, and which option is right;
``lensteer.data.tasks`` does what it says. A new task is a new table in that file, or a `Task` of one's own.
"""

from __future__ import annotations

import string
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Literal

from lensteer.data.queries import SPLITS

Kind = Literal["labels", "fields", "field", "wrong", "answers"]
_KINDS = ("labels", "fields", "field", "wrong", "answers")


@dataclass(frozen=True)
class Hub:
    """A data set on the Hugging Face hub, and which of its splits are "fit", "validation" and "test" here."""

    path: str
    splits: Mapping[str, str]
    config: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class Task:
    """The description of one task; the comment at the head of ``tasks.toml`` says what each entry means.

    Attributes:
        layouts: prompt templates by name; the first is the default.
        kind: where the options come from, and ``options`` the labels or field names of that kind.
        gold: fields that may name the right option; ``values`` what a value there means; ``first`` the number that
            the first option has there.
        right: fields of right answers by layout, beside the ``options`` of wrong ones; ``labelled`` a field that holds
            both instead, as choices and their labels 1 and 0.
        opposite: the wrong labels of each label, for contrastive pairs.

    Raises:
        ValueError: an entry that does not fit the others; the message names the task.
    """

    name: str
    about: str
    layouts: Mapping[str, str]
    kind: Kind
    options: tuple[str, ...]
    gold: tuple[str, ...] = ()
    values: Mapping[str, str] = field(default_factory=dict)
    first: int = 0
    right: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    labelled: Mapping[str, str] = field(default_factory=dict)
    group: str | None = None
    words: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    ends: Mapping[str, str] = field(default_factory=dict)
    opposite: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    primer: tuple[Mapping[str, str], ...] = ()
    same_group: bool = False
    own: str | None = None
    hub: Hub | None = None

    def __post_init__(self) -> None:
        shown = f"the task {self.name!r}"
        if self.kind not in _KINDS or not self.options:
            raise ValueError(f"{shown} needs options of one kind: {', '.join(_KINDS)}")
        if not self.layouts:
            raise ValueError(f"{shown} needs a layout")
        if self.kind == "wrong" and set(self.right) != set(self.layouts):
            raise ValueError(f"{shown} has layouts {list(self.layouts)}, but right answers for {list(self.right)}")
        if self.kind in ("labels", "fields", "field") and not self.gold:
            raise ValueError(f"{shown} does not say which field holds the right answer")
        if self.kind == "labels":
            strange = {*self.values.values(), *self.opposite, *(w for ws in self.opposite.values() for w in ws)}
            if strange - set(self.options):
                raise ValueError(f"{shown} names {sorted(strange - set(self.options))}, which are not labels of it")
            if self.opposite and set(self.opposite) != set(self.options):
                raise ValueError(f"{shown} must say what is opposite to every label or to none")
            if any(label in wrong for label, wrong in self.opposite.items()):
                raise ValueError(f"{shown} has a label that is opposite to itself")

    @property
    def is_open(self) -> bool:
        """Whether there is nothing to choose from: answers are free text."""
        return self.kind == "answers"

    def layout(self, name: str | None) -> str:
        """The name of a layout, checked; the first one where None.

        Raises:
            ValueError: the task has no such layout.
        """
        if name is None:
            return next(iter(self.layouts))
        if name not in self.layouts:
            raise ValueError(
                f"the task {self.name!r} has no layout {name!r}; there is {', '.join(map(repr, self.layouts))}"
            )
        return name

    def placeholders(self, layout: str) -> tuple[str, ...]:
        """The names in braces of a layout's prompt, in their order."""
        return tuple(name for _, name, _, _ in string.Formatter().parse(self.layouts[layout]) if name)


def find_task(task: str | Task) -> Task:
    """A task by its name; a `Task` comes back as it is.

    Raises:
        ValueError: no such task; the message lists what there is, and what is spelled much alike.
    """
    if isinstance(task, Task):
        return task
    if task not in TASKS:
        close = get_close_matches(str(task).lower(), TASKS, n=1)
        meant = f"; did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown task {task!r}{meant} (there are {', '.join(TASKS)})")
    return TASKS[task]


@cache
def _read() -> Mapping[str, Task]:
    tables = tomllib.loads(files("lensteer.data").joinpath("tasks.toml").read_text(encoding="utf-8"))
    return MappingProxyType({name: task_from(name, table, tables) for name, table in tables.items()})


def task_from(name: str, table: Mapping[str, Any], others: Mapping[str, Any] | None = None) -> Task:
    """A task from a table as in ``tasks.toml``.

    Args:
        others: the tables that ``like`` may name.

    Raises:
        ValueError: an unknown entry, an unknown ``like``, or what `Task` refuses.
    """
    entries = dict(table)
    like = entries.pop("like", None)
    if like is not None:
        if like not in (others or {}):
            raise ValueError(f"the task {name!r} is like {like!r}, which is no task")
        # A set of one's own is another set than the one that it is like: what is on the hub is not inherited.
        entries = {**{k: v for k, v in (others or {})[like].items() if k not in ("hub", "own")}, **entries}
    known = {
        "about",
        "options",
        "gold",
        "group",
        "layouts",
        "words",
        "ends",
        "opposite",
        "primer",
        "same_group",
        "right",
        "labelled",
        "own",
        "hub",
    }
    if entries.keys() - known:
        raise ValueError(f"the task {name!r} has unknown entries {sorted(entries.keys() - known)}")
    kinds = entries.get("options", {})
    if len(kinds) != 1:
        raise ValueError(f"the task {name!r} needs options of one kind: {', '.join(_KINDS)}")
    ((kind, options),) = kinds.items()
    gold, hub = entries.get("gold", {}), entries.get("hub")
    if hub and hub.get("splits", {}).keys() - set(SPLITS):
        raise ValueError(f"the task {name!r} has hub splits {list(hub['splits'])}; they are among {', '.join(SPLITS)}")
    return Task(
        name=name,
        about=entries.get("about", ""),
        layouts={key: text.strip("\n") for key, text in entries.get("layouts", {}).items()},
        kind=kind,
        options=_tuple(options),
        gold=_tuple(gold.get("field", ())),
        values={key.lower(): label for key, label in gold.get("values", {}).items()},
        first=gold.get("first", 0),
        right={key: _tuple(names) for key, names in entries.get("right", {}).items()},
        labelled=entries.get("labelled", {}),
        group=entries.get("group"),
        words=entries.get("words", {}),
        ends=entries.get("ends", {}),
        opposite={label: _tuple(wrong) for label, wrong in entries.get("opposite", {}).items()},
        primer=tuple(entries.get("primer", ())),
        same_group=entries.get("same_group", False),
        own=entries.get("own"),
        hub=Hub(**hub) if hub else None,
    )


def _tuple(value: Any) -> tuple[str, ...]:
    return (value,) if isinstance(value, str) else tuple(value)


TASKS: Mapping[str, Task] = _read()
