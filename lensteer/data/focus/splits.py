"""`FocusData`: a task with its training, validation and test examples, and a report of what they are like.

No source of an example (a sentence, a premise) is in two of training, validation and test. `FocusData.report` measures
what the method asks of training data: P(Y = y_s | S = s) = 1/N for every s, balanced labels, and features that tell
nothing of each other. How splits of a chosen predictivity are made: `lensteer.data.focus.predictivity`.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Definition 2 and section 4.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from lensteer.data.focus.examples import FocusExample
from lensteer.data.focus.independence import dependence
from lensteer.data.focus.task import FocusTask

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class FocusData:
    """A task with its examples.

    Attributes:
        train, validation: the same predictivity in both; no source of one is in the other, nor in a test split.
        tests: split -> examples; "iid", "high", "low", "flipped", likewise "shifted_iid" … where there are values that
            training never shows; "seen" and "unseen" features for BBQ. What an example was made from may be in several.

    Raises:
        ValueError: a split without examples, an example that does not fit the task, an id that is there twice, or a
            source that two of training, validation and test share.
    """

    task: FocusTask
    train: list[FocusExample]
    validation: list[FocusExample]
    tests: Mapping[str, list[FocusExample]]

    def __post_init__(self) -> None:
        for split, examples in self.splits().items():
            if not examples:
                raise ValueError(f"the split {split!r} of {self.task.name!r} has no examples")
        tests = [example for examples in self.tests.values() for example in examples]
        self.task.require([*self.train, *self.validation, *tests])
        parts = {"train": self.train, "validation": self.validation, "test": tests}
        found: dict[str, str] = {}
        for part, examples in parts.items():
            for source in dict.fromkeys(example.source for example in examples):
                if source in found:
                    raise ValueError(f"the source {source!r} is in {found[source]} and in {part}; keep it in one")
                found[source] = part

    def splits(self) -> dict[str, list[FocusExample]]:
        """Every split by its name, "train" and "validation" first."""
        return {"train": self.train, "validation": self.validation, **self.tests}

    def report(self) -> pd.DataFrame:
        """One row per split: what was made, measured on the examples.

        Columns: split, n; rho, the share with y = y_s; ``rho of {s}`` for every value (for every feature where the task
        has several, NaN where a split has none of it); ``share of {label}`` of the labels y; and what (Y, S) and
        (Y_S, C) tell of each other: ``bits``, ``V`` (Cramér's) and ``p`` (chi-square), see `independence`. The last two
        groups are missing where answers are free text.
        """
        import pandas as pd

        names = sorted({_group(self.task, example) for examples in self.splits().values() for example in examples})
        return pd.DataFrame([_measured(self.task, split, names, rows) for split, rows in self.splits().items()])

    def __repr__(self) -> str:
        sizes = ", ".join(f"{split} {len(examples)}" for split, examples in self.splits().items())
        return f"FocusData({self.task.name!r}: {sizes})"


def _group(task: FocusTask, example: FocusExample) -> str:
    return example.s if len(task.spurious) == 1 else example.spurious


def _measured(task: FocusTask, split: str, names: Sequence[str], examples: Sequence[FocusExample]) -> dict[str, object]:
    row: dict[str, object] = {"split": split, "n": len(examples), "rho": rho_of(examples)}
    for name in names:
        group = [example for example in examples if _group(task, example) == name]
        row[f"rho of {name}"] = rho_of(group) if group else float("nan")
    if task.labels:
        counts = Counter(example.y for example in examples)
        row |= {f"share of {label}": counts[label] / len(examples) for label in task.labels}
        y = [example.y for example in examples]
        # C determines y and nothing else of it matters here, so y stands for C; S is a value of a named feature.
        pairs = {
            "(Y, S)": dependence(y, [(example.spurious, example.s) for example in examples]),
            "(Y_S, C)": dependence([example.y_s for example in examples], y),
        }
        for name, found in pairs.items():
            row |= {f"bits {name}": found.bits, f"V {name}": found.cramers_v, f"p {name}": found.p}
    return row


def rho_of(examples: Sequence[FocusExample]) -> float:
    """P(Y = y_s), measured: also what answering y to every focus(S) scores."""
    return sum(example.y == example.y_s for example in examples) / len(examples)
