"""`FocusSampler`: p(I_focus), which focus instruction an example is given at a step of training.

    P(empty) = 0.05,   the other kinds share 0.95 equally,   templates of a family are equally likely

With the five other kinds of the paper each has 0.19, so the answer asked for is y with 0.62 and y_s with 0.38. A draw
depends on nothing but its key and the example, so it is new at every step and yet the same on a resumed run.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 3.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from lensteer.data.focus.examples import FocusExample
from lensteer.data.focus.instructions import KINDS, Kind, check_kinds, instruction_of
from lensteer.data.focus.task import Asked, FocusTask
from lensteer.data.focus.wording import TRAINING, Wording


@dataclass(frozen=True)
class FocusSampler:
    """p(I_focus): the empty instruction with a fixed probability, the other kinds equally likely (section 3 there).

    Attributes:
        kinds: what is drawn. The paper does not say whether ignore(C) was; by default it is not.
        p_empty: 0.05 in the paper. The others share the rest.
        wording: whose templates are drawn, equally likely within a family.

    Raises:
        ValueError: a probability outside [0, 1], a positive one where "empty" is not among the kinds, or one below 1
            where it is alone.
    """

    kinds: tuple[Kind, ...] = KINDS
    p_empty: float = 0.05
    wording: Wording = TRAINING

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", check_kinds(self.kinds))
        others = [kind for kind in self.kinds if kind != "empty"]
        if not 0 <= self.p_empty <= 1 or (others == [] and self.p_empty != 1):
            raise ValueError(f"p_empty={self.p_empty!r} must be between 0 and 1, and 1 where only 'empty' is drawn")
        if self.p_empty > 0 and "empty" not in self.kinds:
            raise ValueError(f"p_empty={self.p_empty} but 'empty' is not among the kinds {self.kinds}; set it to 0")

    def probabilities(self) -> dict[Kind, float]:
        """Kind -> its probability."""
        others = sum(kind != "empty" for kind in self.kinds)
        return {kind: self.p_empty if kind == "empty" else (1 - self.p_empty) / others for kind in self.kinds}

    def draw(self, task: FocusTask, example: FocusExample, key: object) -> Asked:
        """One draw for an example; equal keys give equal draws, in every process.

        Args:
            key: what the draw depends on besides the example, such as the seed and the number of the epoch.
        """
        chance = random.Random(f"{key}\n{example.id}")  # a string seeds the same in every process
        kinds, weights = zip(*self.probabilities().items(), strict=True)
        kind = chance.choices(kinds, weights)[0]
        count = len(self.wording.templates(instruction_of(kind, task.core, example.spurious)))
        return task.ask(example, kind, wording=self.wording, template=chance.randrange(count) if count else 0)
