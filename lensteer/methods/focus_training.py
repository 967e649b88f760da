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
from lensteer.methods.focus_batches import encode
from lensteer.methods.focus_experts import expert_log_probs, first_tokens
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
        folder: for the adapter, and under it the checkpoints while it trains.
        bias: for the objective "poe", the biased model of the product of experts; for no other.

    Raises:
        ImportError: without the extra `train` (peft, accelerate).
        ValueError: examples that do not fit the task, that stand in both sets, or that are too long; a folder that
            holds another run; a model that is being steered or has no modules of the names in ``settings.targets``.
        TypeError: not a TransformerBridge, or examples that are no list.

    All of these come before any training.
    """
    settings, folder = settings or FocusSettings(), Path(folder)
    peft = require_peft()
    checked = _checked(model, task, examples, validation, settings, bias)
    _require_lengths(model, task, [*checked[0], *checked[1]], settings)
    about = about_run(model, task, *checked, settings, bias)
    if is_finished(folder, about):
        return read_adapter(folder)
    experts, label_tokens = _experts(model, bias, task, checked, progress)
    with _own_randomness(settings.seed), quiet_training():
        adapted = peft.get_peft_model(shared_copy(plain_model(model)), _lora(peft, model, settings))
        adapted.peft_config["default"].base_model_name_or_path = twin_of(model).name  # not a folder of this machine
        bar = progress_bar(settings.steps_for(len(checked[0])), settings.objective, shown=progress, unit="step")
        from lensteer.methods.focus_trainer import make_trainer  # it loads much

        trainer = make_trainer(model, adapted, task, checked, settings, folder, bar, experts, label_tokens)
        write_atomically(folder / "checkpoints" / RUN_FILE, json.dumps(about, indent=1).encode())
        with bar:
            result = trainer.train(resume_from_checkpoint=_last_checkpoint(folder / "checkpoints"))
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


def _checked(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    validation: Sequence[FocusExample],
    settings: FocusSettings,
    bias: TransformerBridge | None,
) -> tuple[list[FocusExample], list[FocusExample]]:
    if (settings.objective == "poe") != (bias is not None):
        raise ValueError(
            f"objective={settings.objective!r} {'needs' if bias is None else 'has no use for'} a biased model, bias="
        )
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


def _experts(
    model: TransformerBridge,
    bias: TransformerBridge | None,
    task: FocusTask,
    checked: tuple[list[FocusExample], list[FocusExample]],
    progress: bool,
) -> tuple[dict[str, Any], list[int]]:
    """What the biased model thinks of every example, and the labels' first tokens; nothing without one."""
    if bias is None:
        return {}, []
    examples = [*checked[0], *checked[1]]
    tokens = first_tokens(model, task, examples[0])
    log_probs = expert_log_probs(bias, task, examples, progress=progress)
    return dict(zip((example.id for example in examples), log_probs, strict=True)), tokens


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
