"""The Hugging Face `Trainer` of a focus run: our loss, our draws, nothing else changed.

Algorithm 1 draws a focus instruction for every example at every step. So the data of a run are laid out by step: row k
is an example of epoch k // n in that epoch's own order, with a draw of its own, both from the seed alone. The Trainer
reads these rows in order, which makes a resumed run the same run, and one on several devices the same but for dropout.

Imported only to train: it needs accelerate, and loads much.
"""

from __future__ import annotations

import math
import os
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, Sampler, SequentialSampler
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from lensteer.data.focus import FocusExample, FocusTask
from lensteer.methods.focus_batches import (
    IGNORED,
    Encoded,
    answer_log_probs,
    answer_logits,
    can_share_beginnings,
    collate,
    encode,
)
from lensteer.methods.focus_experts import LabelTokens, product_log_probs
from lensteer.methods.focus_settings import FocusSettings
from lensteer.prompts import pad_id

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Experts = dict[str, Tensor]  # id of an example -> the other expert's log-probability of every label


class Draws(Dataset[Encoded]):
    """Every row of a run in the order in which they are trained on: ``n_rows`` of them, epoch after epoch."""

    def __init__(
        self,
        model: Any,
        task: FocusTask,
        examples: Sequence[FocusExample],
        settings: FocusSettings,
        experts: Experts,
        n_rows: int,
    ) -> None:
        self._model, self._task, self._examples, self._settings = model, task, examples, settings
        self._experts, self._n_rows = experts, n_rows
        self._orders: dict[int, list[int]] = {}

    def __len__(self) -> int:
        return self._n_rows

    def __getitem__(self, row: int) -> Encoded:
        epoch, place = divmod(row, len(self._examples))
        example = self._examples[self._order(epoch)[place]]
        asked = self._settings.drawn(self._task, example, f"epoch {epoch}")
        encoded = encode(self._model, asked, max_length=self._settings.max_length, eos=self._settings.eos)
        return replace(encoded, experts=self._experts.get(example.id))

    def _order(self, epoch: int) -> list[int]:
        if epoch not in self._orders:
            order = list(range(len(self._examples)))
            random.Random(f"{self._settings.seed} order {epoch}").shuffle(order)
            self._orders = {epoch: order}
        return self._orders[epoch]


class Frozen(Dataset[Encoded]):
    """Validation examples, each with one draw for the whole run: its loss is compared from step to step."""

    def __init__(
        self, model: Any, task: FocusTask, examples: Sequence[FocusExample], settings: FocusSettings, experts: Experts
    ) -> None:
        self._rows = []
        for example in examples:
            asked = settings.drawn(task, example, "validation")
            row = encode(model, asked, max_length=settings.max_length, eos=settings.eos)
            self._rows.append(replace(row, experts=experts.get(example.id)))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> Encoded:
        return self._rows[row]


class FocusTrainer(Trainer):
    """A Trainer whose loss is the mean over examples of −log p(answer), and which reads its data in order."""

    def __init__(self, *args: Any, label_tokens: LabelTokens | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._label_tokens = label_tokens
        # The loss is a mean over the rows of a forward pass; all passes have as many, so the Trainer's own division
        # by accumulation steps and devices gives the mean over the batch.
        self.model_accepts_loss_kwargs = False
        self._share = can_share_beginnings(self.model) and self.args.world_size == 1 and self.args.n_gpu <= 1

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Eq. 3 on one forward pass; for a product of experts, the same of the labels under the product."""
        logits, tokens = answer_logits(model, inputs, share=self._share)
        if self._label_tokens is not None:
            before, own = self._label_tokens
            labels = torch.tensor(own, device=logits.device)
            starts = (tokens != IGNORED).long().argmax(1, keepdim=True) + len(before)
            first = logits.gather(1, starts[..., None].expand(-1, -1, logits.shape[-1]))[:, 0]
            right = (tokens.gather(1, starts) == labels).long().argmax(1, keepdim=True)
            log_probs = product_log_probs(first, labels, inputs["experts"]).gather(1, right)[:, 0]
        else:
            log_probs = answer_log_probs(logits, tokens)
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


def make_trainer(
    model: TransformerBridge,
    adapted: Any,
    task: FocusTask,
    checked: tuple[list[FocusExample], list[FocusExample]],
    settings: FocusSettings,
    folder: Path,
    bar: Any,
    experts: dict[str, Any],
    label_tokens: LabelTokens | None,
) -> Any:
    """The Trainer of a run, silent but for the bar.

    Raises:
        ValueError: a batch size that the devices cannot share out.
    """
    examples, validation = checked
    steps, pad = settings.steps_for(len(examples)), pad_id(model)
    trainer = FocusTrainer(
        model=adapted,
        args=_arguments(adapted, settings, steps, folder / "checkpoints", bool(validation)),
        train_dataset=Draws(model, task, examples, settings, experts, steps * settings.batch_size),
        eval_dataset=Frozen(model, task, validation, settings, experts) if validation else None,
        data_collator=lambda rows: collate(rows, pad),
        callbacks=[EarlyStoppingCallback(settings.patience)] if validation else [],
        label_tokens=label_tokens,
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    trainer.add_callback(Bar(bar))
    return trainer


def _arguments(adapted: Any, settings: FocusSettings, steps: int, folder: Path, validates: bool) -> Any:
    device = next(adapted.parameters()).device
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    micro = settings.micro_batch_size or max(1, settings.batch_size // devices)
    passes, left = divmod(settings.batch_size, micro * devices)
    if left or not passes:
        raise ValueError(
            f"batch_size={settings.batch_size} must be a multiple of micro_batch_size={micro} times {devices} device(s)"
        )
    when = {"eval_strategy": "steps", "load_best_model_at_end": True} if validates else {}
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        # Several devices fill the last batch with rows that it had before, which a mean over a batch would count.
        per_device_eval_batch_size=micro if devices == 1 else 1,
        gradient_accumulation_steps=passes,
        learning_rate=settings.learning_rate,
        warmup_steps=min(math.ceil(settings.warmup * steps), steps - 1),
        lr_scheduler_type="linear",
        weight_decay=settings.weight_decay,
        bf16=computed_in(settings, device) == "bfloat16",
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.evaluate_every,
        save_total_limit=2,
        restore_callback_states_from_checkpoint=True,  # how often patience was tried
        logging_steps=_logged_every(settings.evaluate_every, steps),
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        ddp_find_unused_parameters=False,
        dataloader_pin_memory=device.type == "cuda",
        **when,  # type: ignore[arg-type]
    )
    if devices == 1:
        arguments._n_gpu = min(arguments.n_gpu, 1)  # else the Trainer would give each visible GPU a batch of its own
    return arguments


def _logged_every(evaluate_every: int, steps: int) -> int:
    """Steps between two logged losses: a divisor, as a checkpoint does not keep what was summed since the last one."""
    most = max(1, min(evaluate_every, steps) // 5)
    return next(interval for interval in range(most, 0, -1) if evaluate_every % interval == 0)


def computed_in(settings: FocusSettings, device: torch.device) -> str:
    """What "auto" precision is on a device."""
    if settings.precision != "auto":
        return settings.precision
    return "bfloat16" if device.type == "cuda" and torch.cuda.is_bf16_supported() else "float32"
