"""`train`: a LoRA adapter that makes a model follow focus instructions (FIT), and the baselines it is compared with.

    min_θ  E_(x, y)  E_(I_focus ~ p)  −log p_θ( y_focus(I_focus, s, y) | I, I_focus, x )                      (Eq. 3)

The model that is given stays as it is: the adapter is trained on a module tree of its own that shares the weights. What
comes out is a folder with the adapter, the task and the settings; `lensteer.methods.focus_merging.load` turns it into a
model for the lens. A run that was interrupted goes on at its last evaluation when it is started again.

Several GPUs: `accelerate launch` on a script that calls this, where each process loads the model on its own device
(``device=f"cuda:{os.environ['LOCAL_RANK']}"``); ``batch_size`` is that of all devices together.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Eq. 3 and Algorithm 1.
"""

from __future__ import annotations

import json
import math
import os
import random
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from lensteer.checkpoints import quiet_transformers
from lensteer.data.focus import FocusExample, FocusTask
from lensteer.messages import needs_extra
from lensteer.methods.focus_checks import checked_examples
from lensteer.methods.focus_experts import LabelTokens, expert_log_probs, label_tokens
from lensteer.methods.focus_runs import (
    RUN_FILE,
    FocusAdapter,
    about_run,
    halve,
    history_of,
    is_finished,
    read_adapter,
    write_run,
)
from lensteer.methods.focus_settings import FocusSettings
from lensteer.models import plain_model, shared_copy, twin_of
from lensteer.progress import progress_bar
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
    bias: TransformerBridge | None = None,
    progress: bool = True,
) -> FocusAdapter:
    """Train an adapter, or take up an interrupted run in the same folder; a finished one is read, not run again.

    Args:
        validation: examples for early stopping; may be empty, then the last step's adapter is kept.
        folder: for the adapter, and under it the checkpoints while it trains. It may be moved between two parts of a
            run.
        bias: for the objective "poe", the biased model of the product of experts; for no other.

    Raises:
        ImportError: without the extra `train` (peft, accelerate).
        ValueError: examples that do not fit the task, that stand in both sets, or that are too long; a label that is
            the beginning of another; a folder that holds another run; a model that is being steered or has no modules
            of the names in ``settings.targets``.
        TypeError: not a TransformerBridge, or examples that are no list.

    All of these come before any training.
    """
    settings, folder = settings or FocusSettings(), Path(folder).resolve()
    if not isinstance(settings, FocusSettings):
        raise TypeError(f"settings must be FocusSettings(…), got {settings!r}")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; name a folder for the adapter")
    peft = require_peft()
    checked = checked_examples(model, task, examples, validation, settings, bias)
    about = about_run(model, task, *checked, settings, bias)
    if is_finished(folder, about):
        return read_adapter(folder)
    experts, tokens = _experts(model, bias, task, checked, progress)
    with _own_randomness(settings.seed), quiet_training():
        adapted = peft.get_peft_model(shared_copy(plain_model(model)), _lora(peft, model, settings))
        adapted.peft_config["default"].base_model_name_or_path = twin_of(model).name  # not a folder of this machine
        shown = progress and _is_first_process()
        bar = progress_bar(settings.steps_for(len(checked[0])), settings.objective, shown=shown, unit="step")
        from lensteer.methods.focus_trainer import make_trainer  # it loads much

        checkpoint = _last_checkpoint(folder / "checkpoints")
        left = replace(settings, steps=_stopped_at(checkpoint, settings.patience) or settings.steps)
        trainer = make_trainer(model, adapted, task, checked, left, folder, bar, experts, tokens)
        write_atomically(folder / "checkpoints" / RUN_FILE, json.dumps(about, indent=1).encode())
        with bar:
            result = trainer.train(resume_from_checkpoint=checkpoint)
    trainer.accelerator.wait_for_everyone()  # the others may still read the best checkpoint
    if trainer.is_world_process_zero():
        with quiet_training():
            adapted.save_pretrained(str(folder))
        if settings.half:
            halve(folder / "adapter_model.safetensors")
        history = history_of(trainer.state.log_history)
        facts = {"best_step": getattr(trainer.state, "best_global_step", None) if checked[1] else None}
        facts["seconds"] = float(result.metrics.get("train_runtime", math.nan))
        write_run(folder, about, history, facts)
    trainer.accelerator.wait_for_everyone()
    return read_adapter(folder)


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


def _experts(
    model: TransformerBridge,
    bias: TransformerBridge | None,
    task: FocusTask,
    checked: tuple[list[FocusExample], list[FocusExample]],
    progress: bool,
) -> tuple[dict[str, Any], LabelTokens | None]:
    """What the biased model thinks of every example, and what tells the labels apart; nothing without one."""
    if bias is None:
        return {}, None
    examples = [*checked[0], *checked[1]]
    tokens = label_tokens(model, task, examples[0])
    log_probs = expert_log_probs(bias, task, examples, progress=progress)
    return dict(zip((example.id for example in examples), log_probs, strict=True)), tokens


def _last_checkpoint(folder: Path) -> str | None:
    """The checkpoint to go on from, where there is one that is whole; its record of the best one may be of a folder
    that has moved since.

    Raises:
        ValueError: the best checkpoint so far is gone.
    """
    whole = {
        int(path.name.rsplit("-", 1)[1]): path
        for path in folder.glob("checkpoint-*")
        if (path / "trainer_state.json").is_file()  # written last
    }
    if not whole:
        return None
    last = whole[max(whole)]
    state = json.loads((last / "trainer_state.json").read_text(encoding="utf-8"))
    best = state.get("best_model_checkpoint")
    if best is not None and Path(best) != folder / Path(best).name:
        state["best_model_checkpoint"] = str(folder / Path(best).name)
        if _is_first_process():
            write_atomically(last / "trainer_state.json", json.dumps(state, indent=2).encode())
    if best is not None and not (folder / Path(best).name).is_dir():
        raise ValueError(
            f"{folder} lacks {Path(best).name}, the best checkpoint of the run so far; delete {folder.parent} and "
            "train again"
        )
    return str(last)


def _stopped_at(checkpoint: str | None, patience: int) -> int | None:
    """The step at which early stopping had ended an interrupted run; the Trainer would train on from there."""
    if checkpoint is None:
        return None
    state = json.loads((Path(checkpoint) / "trainer_state.json").read_text(encoding="utf-8"))
    stopper = state.get("stateful_callbacks", {}).get("EarlyStoppingCallback", {})
    used = stopper.get("attributes", {}).get("early_stopping_patience_counter", 0)
    return int(state["global_step"]) if used >= patience else None


def _is_first_process() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _own_randomness(seed: int) -> Iterator[None]:
    """Seeds PyTorch, and gives the caller's random numbers back afterwards; the Trainer seeds all three."""
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002 (what the Trainer sets)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


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
