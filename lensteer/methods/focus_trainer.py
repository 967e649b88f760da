"""The Hugging Face `Trainer` of a focus run: our loss, our draws, nothing else changed.

Algorithm 1 draws a focus instruction for every example at every step. So the data of a run are laid out by step: row k
is an example of epoch k // n in that epoch's own order, with a draw of its own, both from the seed alone. The Trainer
reads these rows in order, which makes a resumed run the same run, on any number of devices.

Imported only to train: it needs accelerate, and loads much.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import Trainer, TrainerCallback

from lensteer.data.focus import FocusExample, FocusTask
from lensteer.methods.focus_batches import Encoded, answer_log_probs, answer_logits, can_share, encode
from lensteer.methods.focus_settings import FocusSettings


class Draws(Dataset[Encoded]):
    """Every row of a run in the order in which they are trained on: ``n_rows`` of them, epoch after epoch."""

    def __init__(
        self, model: Any, task: FocusTask, examples: Sequence[FocusExample], settings: FocusSettings, n_rows: int
    ) -> None:
        self._model, self._task, self._examples, self._settings = model, task, examples, settings
        self._n_rows = n_rows
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, row: int) -> Encoded:
        epoch, place = divmod(row, len(self._examples))
        example = self._examples[self._order(epoch)[place]]
        asked = self._settings.drawn(self._task, example, f"epoch {epoch}")
        return encode(self._model, asked, max_length=self._settings.max_length, eos=self._settings.eos)

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self._examples)))
            random.Random(f"{self._settings.seed} order {epoch}").shuffle(order)
            self._orders = {epoch: order}
        return self._orders[epoch]


class Frozen(Dataset[Encoded]):
    """Validation examples, each with one draw for the whole run: its loss is compared from step to step."""

    def __init__(self, model: Any, task: FocusTask, examples: Sequence[FocusExample], settings: FocusSettings) -> None:
        drawn = (settings.drawn(task, example, "validation") for example in examples)
        self._rows = [encode(model, asked, max_length=settings.max_length, eos=settings.eos) for asked in drawn]

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Encoded:
        return self._rows[row]


class FocusTrainer(Trainer):
    """A Trainer whose loss is the mean over examples of −log p(answer), and which reads its data in order."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # The loss is a mean over the rows of a forward pass; all passes have as many, so the Trainer's own division
        # by accumulation steps and devices gives the mean over the batch.
        self.model_accepts_loss_kwargs = False
        self._share = can_share(self.model) and self.args.world_size == 1 and self.args.n_gpu <= 1

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Eq. 3 on one forward pass."""
        log_probs = answer_log_probs(*answer_logits(model, inputs, share=self._share))
        loss = -log_probs.mean()
        return (loss, {"log_probs": log_probs}) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        data: Any = self.train_dataset if train_dataset is None else train_dataset
        return SequentialSampler(data)


class Bar(TrainerCallback):
    """lensteer's progress bar, with the losses beside it."""

    def __init__(self, bar: Any) -> None:
        self._bar = bar

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._bar.update(state.global_step - self._bar.n)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        shown = {"loss": "loss", "eval_loss": "validation"}
        found = {shown[key]: f"{value:.3f}" for key, value in (logs or {}).items() if key in shown}
        if found:
            self._bar.set_postfix(found)


def trained_parameters(model: torch.nn.Module) -> dict[str, Tensor]:
    """The adapter's own tensors, by name."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
