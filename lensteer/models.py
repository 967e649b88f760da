"""`load_model`: a name, folder, GGUF file or loaded model in; a TransformerBridge with a plain twin out.

One set of weights gets two faces:

- *the lens*, a `TransformerBridge`: every hook point, to look at everything. This is what `load_model` returns.
- *the plain model*, the untouched Hugging Face model: full speed, still saveable, bit-identical to before.

Bridging a model in place would slow it, break ``save_pretrained`` and cannot be undone, so the lens is built on a copy
of the module tree that shares every parameter and buffer. Compatibility mode is never switched on here.
"""

from __future__ import annotations

import copy
import hashlib
import json
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from lensteer.checkpoints import EMBEDDED, ModelUnavailable, folder_for, quiet_transformers
from lensteer.positions import Clock

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class Twin:
    """What lensteer knows about a bridge: its plain face, tokenizer, identity, and the points checked so far."""

    plain: PreTrainedModel | None
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    revision: str | None = None
    lock: Any = field(default_factory=threading.RLock)
    active: list[Any] = field(default_factory=list)
    probing: bool = False
    names: dict[str, str] | None = None
    survey: dict[str, tuple[int, ...]] | None = None
    editable: dict[str, bool] = field(default_factory=dict)
    tokenizer_hash: str | None = None
    source: tuple[Any, ...] | None = None


_TWINS: WeakKeyDictionary[nn.Module, Twin] = WeakKeyDictionary()


def load_model(
    name_or_model: str | Path | PreTrainedModel = EMBEDDED,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | torch.device | Mapping[str, Any] | None = None,
    dtype: torch.dtype | str | None = None,
    revision: str | None = None,
) -> TransformerBridge:
    """Load a causal language model and return it as a TransformerBridge that shares the plain model's weights.

    Args:
        name_or_model: ``"smollm2-135m-instruct"`` (the embedded default), a hub id, a local folder, the path of a
            ``.gguf`` file, or a Hugging Face model that is already loaded.
        tokenizer: for a loaded model; for the others it is read from the same place as the weights.
        device: a device; ``"auto"`` or a device map to spread a large model (needs accelerate). Default: CUDA, MPS
            or CPU, the first that is there. A loaded model stays where it is, and is put into evaluation mode.
        dtype: default float32 on CPU and the checkpoint's own elsewhere. A loaded model keeps its own.
        revision: branch, tag or commit of a hub id.

    Raises:
        ModelUnavailable: the name cannot be had; says why and what would work.
        ValueError: an architecture that TransformerLens gets wrong, a model that was bridged in place, or a device that
            there is not.
    """
    if isinstance(name_or_model, nn.Module):
        hf, config = name_or_model, getattr(name_or_model, "config", None)
        name = getattr(config, "_name_or_path", "") or type(hf).__name__
        if device is not None or dtype is not None:
            raise ValueError("device= and dtype= do not apply to a loaded model; move or cast it before load_model")
    else:
        name = str(name_or_model)
        _refuse_adapter_folder(Path(name))
        hf, tokenizer = _from_pretrained(name, tokenizer, device, dtype, revision)
    _refuse_unsupported(hf, name)
    hf.eval()
    bridge = _bridge_on_shared_weights(hf, tokenizer, name)
    source = None if isinstance(name_or_model, nn.Module) else (name, device, dtype, revision)
    _TWINS[bridge] = Twin(plain=hf, tokenizer=tokenizer, name=name, revision=revision, source=source)
    Clock().attach(lens_model(bridge).base_model)
    return bridge


def twin_of(model: TransformerBridge) -> Twin:
    """What lensteer knows about this bridge; one that it did not load gets an entry without a plain face.

    Raises:
        TypeError: not a TransformerBridge.
    """
    from transformer_lens.model_bridge import TransformerBridge

    if not isinstance(model, TransformerBridge):
        raise TypeError(
            f"expected a TransformerBridge, got {type(model).__name__}; "
            "load_model(hf_model, tokenizer=tokenizer) makes one that shares its weights"
        )
    if model not in _TWINS:
        _TWINS[model] = Twin(None, model.tokenizer, str(getattr(model.cfg, "model_name", "model")))
    return _TWINS[model]


def plain_model(model: TransformerBridge) -> PreTrainedModel:
    """The plain Hugging Face face of a model from `load_model` (the bridged one where there is no other)."""
    return twin_of(model).plain or lens_model(model)


def lens_model(model: TransformerBridge) -> Any:
    """The bridged Hugging Face model inside the lens; what the bridge itself runs."""
    return model.original_model


def tokenizer_of(model: TransformerBridge) -> PreTrainedTokenizerBase:
    """The model's tokenizer.

    Raises:
        ValueError: the model was loaded without one.
    """
    tokenizer = twin_of(model).tokenizer
    if tokenizer is None:
        raise ValueError("this model has no tokenizer; pass one: load_model(hf_model, tokenizer=tokenizer)")
    return tokenizer


def source_of(model: TransformerBridge) -> tuple[Any, ...]:
    """What another process needs to load the same model: (name, device, dtype, revision).

    Raises:
        ValueError: it was made from a model in memory, which no other process can load.
    """
    source = twin_of(model).source
    if source is None:
        raise ValueError(
            f"{twin_of(model).name} was loaded in memory, so workers of other processes cannot load it; use "
            "load_model with a name or folder, or a ThreadPoolExecutor"
        )
    return source


def fingerprint(model: TransformerBridge) -> dict[str, str]:
    """What a saved artefact records of the model it was made on, and is checked against when it is loaded."""
    twin, plain = twin_of(model), plain_model(model)
    if twin.tokenizer_hash is None:
        twin.tokenizer_hash = _tokenizer_hash(twin.tokenizer) if twin.tokenizer else ""
    return {
        "model": twin.name,
        "architecture": type(plain).__name__,
        "revision": str(twin.revision or getattr(plain.config, "_commit_hash", None) or ""),
        "dtype": str(plain.dtype).removeprefix("torch."),
        "d_model": str(model.cfg.d_model),
        "n_layers": str(model.cfg.n_layers),
        "tokenizer": twin.tokenizer_hash,
        "weights": _weights_hash(plain),
    }


def _weights_hash(plain: nn.Module) -> str:
    """A hash of a few numbers of every parameter: training of any kind changes it, moving to a device does not."""
    digest = hashlib.sha256()
    for name, parameter in plain.named_parameters():
        flat = parameter.detach().flatten()
        if flat.device.type != "meta":  # offloaded to disk
            sample = flat[:: max(1, len(flat) // 16)][:16].float().cpu()
            digest.update(name.encode() + sample.numpy().tobytes())
    return digest.hexdigest()[:16]


def _tokenizer_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    text = json.dumps(sorted(tokenizer.get_vocab().items())) + str(getattr(tokenizer, "chat_template", None))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _from_pretrained(
    name: str,
    tokenizer: PreTrainedTokenizerBase | None,
    device: str | torch.device | Mapping[str, Any] | None,
    dtype: torch.dtype | str | None,
    revision: str | None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = folder_for(name)
    spread = device == "auto" or isinstance(device, Mapping)
    if device is None:
        device = _default_device()
    elif not spread:
        _require_device(device)
    on_cpu = not spread and torch.device(device).type == "cpu"  # type: ignore[arg-type]
    options: dict[str, Any] = {"dtype": dtype or (torch.float32 if on_cpu else "auto")}
    if spread:
        options["device_map"] = device
    where: dict[str, Any] = {"revision": revision} if folder is None else {"local_files_only": True}
    try:
        with quiet_transformers():
            options["output_loading_info"] = True
            loaded: Any = AutoModelForCausalLM.from_pretrained(folder or name, **options, **where)
            tokenizer = tokenizer or AutoTokenizer.from_pretrained(folder or name, **where)
    except (OSError, ValueError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__
        raise ModelUnavailable(
            f"cannot load {name!r} ({'folder ' + str(folder) if folder else 'as a hub id'}): {reason}. "
            f"Give a hub id, a local folder, a .gguf file, or {EMBEDDED!r} for the embedded default"
        ) from error
    hf, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:  # transformers fills them with random numbers
        raise ModelUnavailable(
            f"{name!r} has no weights for {len(missing)} parameters ({', '.join(missing[:3])}, …); it is incomplete or "
            "not a causal language model"
        )
    if not spread:
        hf = hf.to(device)
    return hf, tokenizer


def shared_copy(hf: PreTrainedModel) -> PreTrainedModel:
    """A module tree of its own over the same weights, frozen: an adapter put in leaves the original as it is."""
    memo: dict[int, Any] = {id(buffer): buffer for buffer in hf.buffers()}
    memo.update({id(p): nn.Parameter(p.detach(), requires_grad=False) for p in hf.parameters()})
    return copy.deepcopy(hf, memo)


def _refuse_adapter_folder(folder: Path) -> None:
    if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds an adapter, not a model; lensteer.focus.load({str(folder)!r}) merges one that lensteer "
            "trained, and for others PEFT's merge_and_unload() makes a model that load_model takes"
        )


def _require_device(device: Any) -> None:
    """Refuse a device that there is not, before anything is read."""
    try:
        kind = torch.device(device).type
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"device={device!r} is no device; use 'cpu', 'cuda', 'cuda:1', 'mps' or 'auto'") from error
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if not there.get(kind, True):
        raise ValueError(f"device={device!r}: PyTorch sees none here; leave device out, or use 'cpu'")


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _refuse_unsupported(hf: nn.Module, name: str) -> None:
    """Refuse what TransformerLens 4.3 silently gets wrong."""
    config = getattr(hf, "config", None)
    if any("_original_component" in key for key, _ in hf.named_modules()):
        raise ValueError(f"{name!r} was bridged in place before; load the plain model again and pass that")
    if config is None or not hasattr(hf, "get_output_embeddings"):
        raise ValueError(f"{type(hf).__name__} is not a Hugging Face language model")
    if getattr(config, "model_type", "") == "falcon" and getattr(config, "new_decoder_architecture", False):
        raise ValueError(
            f"{name!r} is a Falcon with the new decoder (40B, 180B, 11B), which TransformerLens 4.3 computes wrongly; "
            "Falcon-7B-style models work"
        )
    if hasattr(hf, "peft_config") or any(key.endswith("base_layer") for key, _ in hf.named_modules()):
        raise ValueError(
            f"{name!r} carries an adapter that is not merged, and TransformerLens would read the weights without it; "
            "merge it first: lensteer.focus.load(folder) for one that lensteer trained, model.merge_and_unload() of "
            "PEFT for others"
        )
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{name!r} is an encoder-decoder model; lensteer steers decoder-only language models")


def _bridge_on_shared_weights(hf: Any, tokenizer: Any, name: str) -> TransformerBridge:
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module

    memo: dict[int, Any] = {id(tensor): tensor for tensor in (*hf.parameters(), *hf.buffers())}
    twin = copy.deepcopy(hf, memo).eval()  # new modules, the same tensors
    twin.set_attn_implementation("eager")  # the bridge needs it for attention patterns and does not set it itself
    try:
        bridge = build_bridge_from_module(
            twin, type(hf).__name__, hf_config=twin.config, tokenizer=None, model_name=name, device=hf.device
        )
    except (KeyError, ValueError, AttributeError) as error:
        raise ValueError(f"TransformerLens cannot bridge {type(hf).__name__} ({name!r}): {error}") from error
    if tokenizer is not None:
        # Set directly: the public setter reloads the tokenizer, from the hub even, and changes its special tokens.
        bridge._tokenizer = tokenizer
        first = tokenizer("a").input_ids
        bridge.cfg.tokenizer_prepends_bos = len(first) > 1 and first[0] == tokenizer.bos_token_id
        bridge.cfg.default_prepend_bos = False
    bridge.cfg.dtype = hf.dtype
    return bridge.eval()
