"""What a decision rule hands on: one ``Choice`` per instruction, and the table of candidates behind them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pandas as pd

from analysis.tables import UNSTEERED_LAYER


@dataclass(frozen=True)
class Choice:
    """The chosen setting for one instruction; layer −1 and strength 0 mean no steering.

    ``success`` and its bootstrap ``interval`` are those of the chosen candidate on the ``n`` validation rows,
    ``unsteered`` the success without steering on the same prompts. All are NaN where there were no rows.
    """

    instruction: str
    layer: int
    strength: float
    success: float
    interval: tuple[float, float]
    unsteered: float
    n: int

    @property
    def steered(self) -> bool:
        """Whether the rule chose to steer at all."""
        return self.layer != UNSTEERED_LAYER


@dataclass(frozen=True)
class Selection:
    """The choices, one per instruction, and ``candidates``: the table that the rule decided on.

    Iterates over the choices; ``selection["bullets"]`` is the one of that instruction.
    """

    choices: tuple[Choice, ...]
    candidates: pd.DataFrame

    def __iter__(self) -> Iterator[Choice]:
        return iter(self.choices)

    def __len__(self) -> int:
        return len(self.choices)

    def __getitem__(self, instruction: str) -> Choice:
        for choice in self.choices:
            if choice.instruction == instruction:
                return choice
        raise ValueError(f"no choice for {instruction!r}; there are {[c.instruction for c in self.choices]}")

    def table(self) -> pd.DataFrame:
        """The choices as a DataFrame, one row per instruction."""
        rows = [asdict(choice) for choice in self.choices]
        for row in rows:
            row["success_low"], row["success_high"] = row.pop("interval")
        columns = [
            "instruction",
            "layer",
            "strength",
            "success",
            "success_low",
            "success_high",
            "unsteered",
            "n",
        ]
        return pd.DataFrame(rows, columns=columns)
