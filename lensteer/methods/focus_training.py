"""`train`: a LoRA adapter that makes a model follow focus instructions (FIT), and the baselines it is compared with.

    min_θ  E_(x, y)  E_(I_focus ~ p)  −log p_θ( y_focus(I_focus, s, y) | I, I_focus, x )                      (Eq. 3)

The model that is given stays as it is: the adapter is trained on a module tree of its own that shares the weights. What
comes out is a folder with the adapter, the task and the settings; `lensteer.methods.focus_merging.load` turns it into a
model for the lens. A run that was interrupted goes on at its last evaluation when it is started again.

Several GPUs: `accelerate launch` on a script that calls this; ``batch_size`` is that of all devices together.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Eq. 3 and Algorithm 1.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from lensteer.checkpoints import quiet_transformers
from lensteer.data.focus import FocusExample, FocusTask, instruction_of
from lensteer.messages import needs_extra
from lensteer.methods.focus_batches import collate, encode
from lensteer.methods.focus_runs import (
    RUN_FILE,
    FocusAdapter,
    about_run,
    history_of,
    is_finished,
    read_adapter,
    write_run,
)
from lensteer.methods.focus_settings import FocusSettings
from lensteer.models import plain_model, shared_copy, twin_of
from lensteer.progress import progress_bar
from lensteer.prompts import pad_id
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


def train(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    validation: Sequence[FocusExample],
    folder: str | Path,
    settings: FocusSettings | None = None,
    *,
    progress: bool = True,
) -> FocusAdapter:
    """Train an adapter, or take up an interrupted run in the same folder; a finished one is read, not run again.

    Args:
        validation: examples for early stopping; may be empty, then the last step's adapter is kept.
        folder: for the adapter, and under it the checkpoints while it trains.

    Raises:
        ImportError: without the extra `train` (peft, accelerate).
        ValueError: examples that do not fit the task, that stand in both sets, or that are too long; a folder that
            holds another run; a model that is being steered or has no modules of the names in ``settings.targets``.
        TypeError: not a TransformerBridge, or examples that are no list.

    All of these come before any training.
    """
    settings, folder = settings or FocusSettings(), Path(folder)
    peft = require_peft()
    checked = _checked(model, task, examples, validation)
    _require_lengths(model, task, [*checked[0], *checked[1]], settings)
    about = about_run(model, task, *checked, settings)
    if is_finished(folder, about):
        return read_adapter(folder)
    with _own_randomness(settings.seed), quiet_training():
        adapted = peft.get_peft_model(shared_copy(plain_model(model)), _lora(peft, model, settings))
        adapted.peft_config["default"].base_model_name_or_path = twin_of(model).name  # not a folder of this machine
        trainer, bar = _trainer(model, adapted, task, checked, settings, folder, progress)
        write_atomically(folder / "checkpoints" / RUN_FILE, json.dumps(about, indent=1).encode())
        with bar:
            result = trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))
    if trainer.is_world_process_zero():
        with quiet_training():
            adapted.save_pretrained(str(folder))
        history = history_of(trainer.state.log_history)
        facts = {"best_step": getattr(trainer.state, "best_global_step", None) if checked[1] else None}
        facts["seconds"] = float(result.metrics.get("train_runtime", math.nan))
        write_run(folder, about, history, facts)
    return read_adapter(folder)


def _checked(
    model: TransformerBridge, task: FocusTask, examples: Sequence[FocusExample], validation: Sequence[FocusExample]
) -> tuple[list[FocusExample], list[FocusExample]]:
    if twin_of(model).active:
        raise ValueError("the model is being steered; train outside of the block that steers it")
    own = task.require(examples)
    held_out = task.require(validation) if len(validation) else []
    both = {example.source for example in own} & {example.source for example in held_out}
    if both:
        raise ValueError(
            f"{len(both)} sources stand in the examples and in the validation (first: {sorted(both)[0]!r}); early "
            "stopping needs inputs that training has not seen"
        )
    return own, held_out


def _require_lengths(
    model: TransformerBridge, task: FocusTask, examples: Sequence[FocusExample], settings: FocusSettings
) -> None:
    """Refuse what may be too long before the first step: the longest inputs in every wording that may be drawn."""
    limit = settings.max_length
    fixed = replace(settings, objective="sft_y")
    sized = [(len(encode(model, fixed.drawn(task, x, ""), max_length=limit, eos=settings.eos)), x) for x in examples]
    longest = [example for _, example in sorted(sized, key=lambda pair: -pair[0])[:3]]
    if settings.objective != "fit":
        return
    for example in longest:
        for kind in settings.sampler.kinds:
            wording = settings.sampler.wording
            count = len(wording.templates(instruction_of(kind, task.core, example.spurious)))
            for template in range(max(count, 1)):
                asked = task.ask(example, kind, wording=wording, template=template)
                encode(model, asked, max_length=limit, eos=settings.eos)


def _lora(peft: Any, model: TransformerBridge, settings: FocusSettings) -> Any:
    plain = plain_model(model)
    ends = {name.rsplit(".", 1)[-1] for name, _ in plain.named_modules()}
    targets = list(settings.targets) if settings.targets else None
    if targets is None and {"q_proj", "v_proj"} <= ends:
        targets = ["q_proj", "v_proj"]
    unknown = [name for name in targets or () if name not in ends]
    if unknown:
        linear = sorted({n.rsplit(".", 1)[-1] for n, m in plain.named_modules() if isinstance(m, torch.nn.Linear)})
        raise ValueError(f"{twin_of(model).name} has no modules named {unknown}; its linear ones are {linear}")
    return peft.LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=targets,  # None: PEFT's own table of fused projections, by architecture
        task_type="CAUSAL_LM",
    )


def _trainer(
    model: TransformerBridge,
    adapted: Any,
    task: FocusTask,
    checked: tuple[list[FocusExample], list[FocusExample]],
    settings: FocusSettings,
    folder: Path,
    progress: bool,
) -> tuple[Any, Any]:
    from transformers import EarlyStoppingCallback
    from transformers.trainer_callback import PrinterCallback, ProgressCallback

    from lensteer.methods.focus_trainer import Bar, Draws, FocusTrainer, Frozen

    examples, validation = checked
    steps = settings.steps or max(1, settings.epochs * len(examples) // settings.batch_size)
    pad = pad_id(model)
    trainer = FocusTrainer(
        model=adapted,
        args=_arguments(adapted, settings, steps, folder / "checkpoints", bool(validation)),
        train_dataset=Draws(model, task, examples, settings, steps * settings.batch_size),
        eval_dataset=Frozen(model, task, validation, settings) if validation else None,
        data_collator=lambda rows: collate(rows, pad),
        callbacks=[EarlyStoppingCallback(early_stopping_patience=settings.patience)] if validation else [],
    )
    for callback in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(callback)
    bar = progress_bar(steps, settings.objective, shown=progress, unit="step")
    trainer.add_callback(Bar(bar))
    return trainer, bar


def _arguments(adapted: Any, settings: FocusSettings, steps: int, folder: Path, validates: bool) -> Any:
    from transformers import TrainingArguments

    device = next(adapted.parameters()).device
    devices = int(os.environ.get("WORLD_SIZE", "1"))
    micro = settings.micro_batch_size or max(1, settings.batch_size // devices)
    passes, left = divmod(settings.batch_size, micro * devices)
    if left or not passes:
        raise ValueError(
            f"batch_size={settings.batch_size} must be a multiple of micro_batch_size={micro} times {devices} device(s)"
        )
    half = settings.precision == "bfloat16" or (
        settings.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    when = {"eval_strategy": "steps", "load_best_model_at_end": True} if validates else {}
    return TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=passes,
        learning_rate=settings.learning_rate,
        warmup_steps=math.ceil(settings.warmup * steps),
        lr_scheduler_type="linear",
        weight_decay=settings.weight_decay,
        bf16=half,
        use_cpu=device.type == "cpu",
        seed=settings.seed,
        data_seed=settings.seed,
        eval_steps=settings.evaluate_every,
        save_strategy="steps",
        save_steps=settings.evaluate_every,
        save_total_limit=2,
        logging_steps=max(1, settings.evaluate_every // 5),
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        label_names=["labels"],
        metric_for_best_model="eval_loss",
        greater_is_better=False,
        dataloader_pin_memory=device.type == "cuda",
        **when,  # type: ignore[arg-type]
    )


def _last_checkpoint(folder: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    # A checkpoint without its state was cut off while it was written.
    for path in folder.glob("checkpoint-*"):
        if not (path / "trainer_state.json").is_file():
            shutil.rmtree(path)
    return get_last_checkpoint(str(folder))


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds PyTorch, and gives the caller's random numbers back afterwards."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield


@contextmanager
def quiet_training() -> Iterator[None]:
    """No word from Trainer and PEFT about what is as it should be."""
    import logging

    logger = logging.getLogger("transformers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), quiet_transformers():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def require_peft() -> Any:
    """The module peft.

    Raises:
        ImportError: without the extra `train`.
    """
    try:
        import accelerate  # noqa: F401 (the Trainer needs it)
        import peft
    except ImportError as error:
        raise needs_extra("focus instruction tuning", "peft and accelerate", error, "train") from error
    return peft
