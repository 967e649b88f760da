"""`FocusSettings`: how a model is trained to follow focus instructions, every choice that the paper leaves open named.

| objective | prompt | answer | in the paper |
|---|---|---|---|
| ``"fit"`` | with the focus instruction | y_focus | FIT |
| ``"sft_y"`` | empty instruction | y | SFT(y) |
| ``"sft_focus"`` | the instruction is left out | y_focus of the same draws | SFT(y_focus) |
| ``"sft_spurious"`` | empty instruction | y_s | the bias model of PoE |
| ``"poe"`` | empty instruction | y, beside the bias model (`lensteer.methods.focus_experts`) | PoE |

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 3, Algorithm 1 and appendix; LoRA of rank 16 with alpha 32 on
query and value, P(empty) and a patience of 4 evaluations are theirs. They do not print the learning rate, batch size,
epochs, schedule, interval of evaluations, longest sequence or precision: those defaults are lensteer's.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal, get_args

from lensteer.data.focus import Asked, FocusExample, FocusSampler, FocusTask

Objective = Literal["fit", "sft_y", "sft_focus", "sft_spurious", "poe"]
OBJECTIVES: tuple[Objective, ...] = get_args(Objective)


@dataclass(frozen=True)
class FocusSettings:
    """Settings of a training run.

    Attributes:
        objective: what is trained; see the module's table.
        sampler: which instruction an example is given at a step.
        steps: optimiser steps; None for ``epochs`` passes over the examples.
        epochs: at most so many.
        learning_rate: at its highest; it rises over the first ``warmup`` (a share of the steps), then falls linearly.
        batch_size: examples a step, over all devices together.
        micro_batch_size: examples a forward pass on one device; None for as many as a step has there.
        lora_rank, lora_alpha, lora_dropout: of the adapter.
        targets: modules that it adapts, by the end of their names; None for query and value projections, and where a
            model fuses these with others, for the fused one.
        evaluate_every: steps between two evaluations, each of which keeps a checkpoint.
        patience: evaluations without a lower validation loss after which training stops.
        max_length: tokens of a prompt with its answer; a longer one is refused, never cut.
        eos: whether the end-of-sequence token belongs to the answer.
        precision: "float32" computes in the model's own dtype; "bfloat16" in bfloat16, with the adapter in float32;
            "auto" is bfloat16 on a GPU that has it.
        half: whether the adapter is written in float16, half as large; it is trained in float32 either way.
        seed: of the adapter's first values, the order of examples, the draws and dropout.

    Raises:
        ValueError: a value out of range; names it.
        TypeError: a value of another kind, such as a text where a number belongs.
    """

    objective: Objective = "fit"
    sampler: FocusSampler = field(default_factory=FocusSampler)
    steps: int | None = None
    epochs: int = 10
    learning_rate: float = 1e-4
    warmup: float = 0.03
    weight_decay: float = 0.0
    batch_size: int = 16
    micro_batch_size: int | None = None
    lora_rank: int = 16
    lora_alpha: int = 32
    lora_dropout: float = 0.05
    targets: tuple[str, ...] | None = None
    evaluate_every: int = 100
    patience: int = 4
    max_length: int = 512
    eos: bool = True
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    half: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective must be one of {', '.join(OBJECTIVES)}, got {self.objective!r}")
        if self.precision not in ("auto", "float32", "bfloat16"):
            raise ValueError(f"precision must be 'auto', 'float32' or 'bfloat16', got {self.precision!r}")
        counts = ("steps", "epochs", "batch_size", "micro_batch_size", "lora_rank", "evaluate_every", "patience")
        for name in (*counts, "max_length"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise ValueError(f"{name} must be a whole number of 1 or more, got {value!r}")
        if isinstance(self.targets, str):
            raise TypeError(f"targets must be several names, got the text {self.targets!r}; put it in a tuple")
        if not isinstance(self.seed, int) or isinstance(self.seed, bool) or self.seed < 0:
            raise ValueError(f"seed must be a whole number of 0 or more, got {self.seed!r}")
        for name, kind in (("eos", bool), ("half", bool), ("sampler", FocusSampler)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(f"{name} must be a {kind.__name__}, got {getattr(self, name)!r}")
        for name in ("learning_rate", "lora_alpha", "warmup", "lora_dropout", "weight_decay"):
            if isinstance(getattr(self, name), bool) or not isinstance(getattr(self, name), int | float):
                raise TypeError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not 0 <= self.weight_decay < float("inf"):
            raise ValueError(f"weight_decay must not be negative, got {self.weight_decay!r}")
        for name in ("learning_rate", "lora_alpha"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)!r}")
        for name in ("warmup", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 0 and below 1, got {getattr(self, name)!r}")

    def steps_for(self, n_examples: int) -> int:
        """Optimiser steps of a run over so many examples."""
        return self.steps or max(1, self.epochs * n_examples // self.batch_size)

    def drawn(self, task: FocusTask, example: FocusExample, key: object) -> Asked:
        """What an example is asked under this objective; equal keys give equal draws."""
        if self.objective in ("sft_y", "sft_spurious", "poe"):
            asked = task.ask(example, "empty")
            return replace(asked, target=example.y_s) if self.objective == "sft_spurious" else asked
        asked = self.sampler.draw(task, example, f"{self.seed} {key}")
        if self.objective == "sft_focus":
            return replace(asked, prompt=task.prompt(example))
        return asked
