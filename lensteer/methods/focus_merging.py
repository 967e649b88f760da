"""A trained adapter folded into the weights, and the model that comes out, in the lens.

    W ← W + (alpha / r) · B A,   in float32, then back in the model's dtype

TransformerLens must never be given an unmerged adapter: it would read the weights under it. So `load` merges, and
checks on the task's own prompts that the lens computes what the merged model computes, and not what the base does.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lensteer.capture import run
from lensteer.data.focus import FocusExample, FocusTask
from lensteer.methods.focus_runs import FocusAdapter, read_adapter
from lensteer.methods.focus_training import quiet_training, require_peft
from lensteer.models import fingerprint, lens_model, load_model, plain_model, shared_copy, tokenizer_of, twin_of
from lensteer.prompts import batches, tokenize

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-8}  # of log-probabilities; half precision: 0.2


def merge(model: TransformerBridge, adapter: FocusAdapter | str | Path) -> PreTrainedModel:
    """The plain base model with an adapter in its weights; the given model stays as it is.

    Only the weights that the adapter changes are copied, the others are shared.

    Raises:
        ImportError: without the extra `train`.
        FileNotFoundError: no adapter in the folder.
        ValueError: an adapter of another model, or a damaged one.
    """
    peft, folder = require_peft(), _folder(adapter)
    _require_base(model, folder)
    with quiet_training():
        adapted = peft.PeftModel.from_pretrained(shared_copy(plain_model(model)), str(folder))
        dtypes = {}
        for name, layer in _adapted_layers(adapted):
            own = layer.get_base_layer()
            dtypes[name] = own.weight.dtype
            own.weight = nn.Parameter(own.weight.detach().float().clone(), requires_grad=False)
            layer.float()
        merged = adapted.merge_and_unload()
    for name, dtype in dtypes.items():
        module = merged.get_submodule(name.removeprefix("base_model.model."))
        module.to(dtype)
    merged.config.name_or_path = f"{twin_of(model).name}+{folder.name}"
    return merged.eval()


def load(
    adapter: FocusAdapter | str | Path, model: TransformerBridge | None = None, **options: Any
) -> TransformerBridge:
    """A trained adapter, merged, as a model for the lens.

    Args:
        model: the base; None loads the one that the adapter names.
        options: for `load_model` of the base, such as ``device=``.

    Raises:
        RuntimeError: the lens does not compute what the merged model does, or computes what the base does: never
            seen, and never to be passed over.
        ImportError, FileNotFoundError, ValueError: as `merge`.
    """
    trained = read_adapter(_folder(adapter))
    base = model
    if base is None:
        base = load_model(trained.base["model"], **{"revision": trained.base["revision"] or None, **options})
    lens = load_model(merge(base, trained), tokenizer=tokenizer_of(base))
    check_merged(lens, base, trained.task)
    return lens


def save_merged(lens: TransformerBridge, folder: str | Path) -> Path:
    """Write a merged model and its tokenizer as an ordinary Hugging Face folder, for any program that reads these."""
    plain_model(lens).save_pretrained(str(folder))
    tokenizer_of(lens).save_pretrained(str(folder))
    return Path(folder)


def check_merged(lens: TransformerBridge, base: TransformerBridge, task: FocusTask) -> None:
    """Check on prompts of the task that lens and merged model agree, and that both differ from the base.

    Where the two differ by little, in half precision say, agreement alone proves nothing, so the lens is also asked
    for its weights: it must hold all of the merged model's.

    Raises:
        RuntimeError: as `load`.
    """
    held = {p.data_ptr() for p in lens_model(lens).parameters()}
    if missing := [name for name, p in plain_model(lens).named_parameters() if p.data_ptr() not in held]:
        raise RuntimeError(f"the lens lacks weights of the merged model: {', '.join(missing[:3])}")
    fields = dict.fromkeys(task.headings, "The weather is fine.")
    label = task.labels[0] if task.labels else "yes"
    example = FocusExample("check", fields, label, task.spurious[0], "any", label, ("1", "2", "3"))
    prompts = [task.prompt(example), task.ask(example, "focus(S)").prompt]
    merged, shown, plain = (
        _log_probs(face, lens, prompts) for face in (plain_model(lens), lens_model(lens), plain_model(base))
    )
    allowed = _TOLERANCE.get(plain_model(lens).dtype, 0.2)
    if (worst := float((merged - shown).abs().max())) > allowed:
        raise RuntimeError(f"the lens differs from the merged model by {worst:.3g} nats, more than {allowed:g}")
    for name, face in (("merged model", merged), ("lens", shown)):
        if (moved := float((face - plain).abs().max())) <= 1e-6:
            raise RuntimeError(f"the {name} differs from the base by {moved:.3g} nats only: the adapter is not in it")


def _log_probs(face: Any, model: TransformerBridge, prompts: list[str]) -> Float[Tensor, "prompt vocab"]:
    found = []
    for batch in batches(model, tokenize(model, prompts, prompt_format="plain"), 1):
        with torch.inference_mode():
            found.append(run(face, batch).logits[:, -1].float().log_softmax(-1))
    return torch.cat(found)


def _adapted_layers(adapted: nn.Module) -> list[tuple[str, Any]]:
    return [
        (name, module)
        for name, module in adapted.named_modules()
        if hasattr(module, "get_base_layer") and hasattr(module, "lora_A")
    ]


def _folder(adapter: FocusAdapter | str | Path) -> Path:
    if not isinstance(adapter, FocusAdapter | str | Path):
        raise TypeError(f"adapter must be a folder or a FocusAdapter, got {adapter!r}")
    folder = adapter.folder if isinstance(adapter, FocusAdapter) else Path(adapter)
    if not (folder / "adapter_config.json").is_file():
        raise FileNotFoundError(f"{folder} holds no adapter: there is no adapter_config.json in it")
    return folder


def _require_base(model: TransformerBridge, folder: Path) -> None:
    """Refuse another model than the one that the adapter was trained on, and one that has it already."""
    made_on, here = read_adapter(folder).base, fingerprint(model)
    # In another dtype the same weights are other numbers; then the name has to do.
    identity = "weights" if made_on["dtype"] == here["dtype"] else "model"
    keys = ("architecture", "n_layers", "d_model", "tokenizer", identity)
    if differ := [key for key in keys if made_on[key] != here[key]]:
        told = ", ".join(f"{key} {made_on[key]} there and {here[key]} here" for key in differ)
        raise ValueError(
            f"the adapter in {folder} was trained on {made_on['model']}, which {here['model']} is not: {told}"
        )
