"""`FocusExample`: an input with a core and a spurious feature, and the label that each of them stands for.

One JSON object a line, as `save_examples` writes and `load_examples` reads:

    {"id": …, "dataset": …, "split": …, "fields": {…}, "y": …, "spurious": …, "s": …, "y_s": …, "options": […], …}
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from lensteer.data.loaders import json_rows
from lensteer.messages import short


@dataclass(frozen=True)
class FocusExample:
    """One input.

    Attributes:
        id: unique within a data set; the two versions of one sentence have different ones.
        fields: what is read, by name, such as {"text": "…"} or {"premise": "…", "hypothesis": "…"}.
        y: the label by the core feature: one of the task's labels, or free text.
        spurious: the name of the spurious feature that the input carries ("keyword", "genre", "age").
        s: its value here ("pineapple", "travel", "old").
        y_s: the label that this value stands for, by the mapping that was fixed for training.
        options: of multiple choice, the answers in order.
        dataset, split: for tables.
        source: what the input was made from, where two inputs share it (a sentence with one keyword and with the
            other); splits keep these together. Default: the id.
        rho: the predictivity P(Y = y_s | S = s) of its split as it was built; None where nobody chose one.

    Raises:
        ValueError: an empty id, field, label, feature or value.
    """

    id: str
    fields: Mapping[str, str]
    y: str
    spurious: str
    s: str
    y_s: str
    options: tuple[str, ...] = ()
    dataset: str = ""
    split: str = ""
    source: str = ""
    rho: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "fields", dict(self.fields))
        object.__setattr__(self, "options", tuple(self.options))
        object.__setattr__(self, "source", self.source or self.id)
        for name in ("id", "y", "spurious"):
            _require_text(getattr(self, name), name, self.id)
        if not isinstance(self.s, str) or not self.s.strip() or not isinstance(self.y_s, str) or not self.y_s.strip():
            raise ValueError(
                f"example {self.id!r} has no value of its spurious feature {self.spurious!r} (s={self.s!r}, "
                f"y_s={self.y_s!r}); every example needs both"
            )
        if not self.fields:
            raise ValueError(f"example {self.id!r} has no fields; it needs at least one text to read")
        for name, text in self.fields.items():
            _require_text(text, f"field {name!r}", self.id)

    @property
    def informative(self) -> bool:
        """Whether the two features stand for different labels: only then does the answer show which one decided."""
        return self.y != self.y_s


def _require_text(value: Any, what: str, example: Any) -> None:
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"example {example!r}: {what} must be a text that is not empty, got {value!r}")


def check_examples(examples: Iterable[Any]) -> list[FocusExample]:
    """The examples as a list, checked before any work.

    Raises:
        TypeError: not a list, or an entry that is not a `FocusExample`.
        ValueError: none, or two with one id.
    """
    if isinstance(examples, FocusExample | str | Mapping) or not isinstance(examples, Iterable):
        raise TypeError(f"examples must be a list of FocusExample, such as data.train, got {type(examples).__name__}")
    checked = list(examples)
    if not checked:
        raise ValueError("no examples were given; pass at least one")
    seen = set()
    for i, example in enumerate(checked):
        if not isinstance(example, FocusExample):
            raise TypeError(f"example {i} is {short(example)}; each is lensteer.data.focus.FocusExample(…)")
        if example.id in seen:
            raise ValueError(f"two examples have the id {example.id!r}; ids must be unique")
        seen.add(example.id)
    return checked


def save_examples(examples: Sequence[FocusExample], path: str | Path) -> Path:
    """Write examples as JSON lines, whole or not at all."""
    from lensteer.storage import write_atomically

    lines = (json.dumps(asdict(example), ensure_ascii=False) for example in check_examples(examples))
    return write_atomically(Path(path), ("\n".join(lines) + "\n").encode())


def load_examples(path: str | Path) -> list[FocusExample]:
    """Read what `save_examples` wrote, or a file of the same form; unknown fields are ignored.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no rows, a line that is not JSON, or one that is no example; names file and line.
    """
    known = {field.name for field in fields(FocusExample)}
    found = []
    for where, row in json_rows(Path(path)):
        missing = [name for name in ("id", "fields", "y", "spurious", "s", "y_s") if name not in row]
        if missing or not isinstance(row["fields"], dict):
            raise ValueError(
                f"{where}: an example needs id, fields (an object), y, spurious, s and y_s; lacks {missing}"
            )
        try:
            found.append(FocusExample(**{key: value for key, value in row.items() if key in known}))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{where}: {error}") from error
    return check_examples(found)
