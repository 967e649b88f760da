"""Steerings as llama.cpp's control vectors, and back.

    llama-cli -m model.gguf --control-vector steering.gguf

A control vector is a GGUF file with one float32 tensor ``direction.N`` per layer, N from 1. llama.cpp adds it to the
output of block N, counted from 0, at every position: TransformerLens's ``blocks.N.hook_resid_post``. The output of
block 0 cannot be reached. So what fits is one number times one vector, added to the residual stream between blocks.

Source: llama.cpp's ``common_control_vector_load_one`` (``common/common.cpp``) and ``llama_adapter_cvec``
(``src/llama-adapter.cpp``); repeng writes and reads the same files.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from lensteer.generate import as_steering
from lensteer.hooks import Add, Affine, Edit
from lensteer.models import plain_model, twin_of
from lensteer.points import Point
from lensteer.positions import At
from lensteer.steering import Steering
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_ARCHITECTURE = "controlvector"
_HINT, _COUNT, _ABOUT = (f"{_ARCHITECTURE}.{key}" for key in ("model_hint", "layer_count", "lensteer"))
# Where llama.cpp's name for an architecture is not Hugging Face's model type, but for its punctuation.
_NAMES = {"mistral": "llama", "mixtral": "llama", "gemma3_text": "gemma3", "phi": "phi2", "cohere": "command-r"}


def to_gguf(steering: Iterable[tuple[str, Edit]], model: TransformerBridge, path: str | Path) -> Path:
    """Write a steering as a control vector for llama.cpp.

    Fits: `Add` with one strength, and `Affine` that only shifts (scale 1, no support), at all positions, at
    ``resid_post`` of layers from 1 or ``resid_pre`` of layers from 2, which is the same place. Several at one layer
    become their sum; strengths are multiplied in, so ``--control-vector`` applies the steering as it is. Edits of
    strength 0 do nothing and are left out. The file holds every layer that llama.cpp can steer, zeros where nothing is
    added.

    Returns:
        the path.

    Raises:
        ValueError: an edit that the format cannot hold; names it, says why and what would work. Nothing is written.
    """
    steering = as_steering(steering)
    n_layers, width = int(model.cfg.n_layers), int(model.cfg.d_model)
    directions = {layer: torch.zeros(width) for layer in range(1, n_layers)}
    for number, (point, (name, edit)) in enumerate(zip(steering.points(model), steering, strict=True)):
        if not isinstance(edit.strength, Tensor) and edit.strength == 0:
            continue
        problem = _unlike(edit) or _elsewhere(point, n_layers)
        if problem:
            kind = type(edit.edit if isinstance(edit, At) else edit).__name__
            raise ValueError(f"edit {number}, {kind} at {name!r}, does not fit a control vector: {problem}")
        directions[_block(point)] += _added(edit)
    return write_atomically(Path(path), _gguf(directions, _hint(model), steering.metadata))


def from_gguf(path: str | Path, model: TransformerBridge | None = None) -> Steering:
    """Read a control vector as a `Steering`: one `Add` at strength 1 for each direction that is not zero.

    Files of `to_gguf`, repeng and llama.cpp's cvector-generator. Direction N acts where llama.cpp adds it, at the
    output of block N. (cvector-generator numbers what it measures at the output of block N as N + 1.)

    Args:
        model: check the file against this model at once. Without it the file is taken as it is, and as in llama.cpp a
            layer that it lacks is not steered.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a GGUF file or a damaged one, not a control vector, a direction that cannot be used (layer 0,
            twice, not float32, not finite), or one made for another model: its architecture, width or layers.
    """
    path = Path(path)
    fields, tensors = _contents(path)
    if fields.get("general.architecture") != _ARCHITECTURE:
        raise ValueError(
            f"{path} is a GGUF file of architecture {fields.get('general.architecture')!r}, not a control vector; "
            "a model is loaded with load_model"
        )
    directions = _directions(path, tensors)
    if model is not None:
        _require_same_model(path, fields.get(_HINT), directions, model)
    metadata = _about(path, fields.get(_ABOUT)) or {"method": "control vector", "name": path.stem}
    pairs = ((f"blocks.{n}.hook_resid_post", Add(v)) for n, v in sorted(directions.items()) if v.any())
    steering = Steering(pairs, metadata)
    if model is not None:
        steering.points(model)
    return steering


def _about(path: Path, text: str | None) -> dict[str, str]:
    """The steering's metadata, where lensteer wrote the file."""
    try:
        found = json.loads(text or "{}")
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: the field {_ABOUT!r} is not JSON ({error.msg}); the file is damaged") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path}: the field {_ABOUT!r} holds a {type(found).__name__}, expected an object")
    return found


def _unlike(edit: Edit) -> str:
    """Why an edit is not one vector added at every position; empty where it is."""
    if isinstance(edit, At):
        return f"it acts at tokens={edit.tokens!r}, and llama.cpp adds at every position; use the edit without at(…)"
    if edit.n_rows is not None:
        return f"it has values for {edit.n_rows} rows, and the file holds one vector; use at_strength(number)"
    if isinstance(edit, Affine):
        if bool((edit.scale != 1).any()):
            return "it scales, and llama.cpp only adds; use a shift alone (scale 1), or to_hook_file"
        ends = (edit.low, -torch.inf), (edit.high, torch.inf)
        if any(end is not None and bool((end != infinite).any()) for end, infinite in ends):
            return "it has a support, and llama.cpp adds everywhere; use it without low and high, or to_hook_file"
        return ""
    return "" if isinstance(edit, Add) else "llama.cpp only adds a vector; use Add, or write it with to_hook_file"


def _added(edit: Edit) -> Float[Tensor, " d_model"]:
    """What an edit that fits adds."""
    assert isinstance(edit, Add | Affine)
    vector = edit.vector if isinstance(edit, Add) else edit.shift
    return (edit.strength * vector).detach().float().cpu()


def _block(point: Point) -> int:
    """The block whose output a point is: −1 is the embedding, −2 a point that is no block's output."""
    found = re.fullmatch(r"blocks\.(\d+)\.hook_(in|out)", point.canonical)
    return -2 if found is None else int(found[1]) - (found[2] == "in")


def _elsewhere(point: Point, n_layers: int) -> str:
    """Why a point is no place where llama.cpp adds; empty where it is."""
    if _block(point) >= 1:
        return ""
    if _block(point) == -2:
        return f"llama.cpp adds between blocks; use resid_post of layers 1 to {n_layers - 1}, or to_hook_file"
    return (
        "llama.cpp adds to the outputs of blocks from 1 on, and this comes before; use resid_post of layers 1 to "
        f"{n_layers - 1}, or to_hook_file"
    )


def _hint(model: TransformerBridge) -> str:
    """llama.cpp's name for the model's architecture."""
    import gguf

    kind = str(plain_model(model).config.model_type)
    known = set(gguf.MODEL_ARCH_NAMES.values())
    spellings = (kind, _NAMES.get(kind, ""), kind.replace("_", ""), kind.replace("_", "-"))
    return next((name for name in spellings if name in known), kind)


def _gguf(directions: dict[int, Float[Tensor, " d_model"]], hint: str, metadata: dict[str, str]) -> bytes:
    from gguf import GGUFWriter

    with TemporaryDirectory() as folder:
        file = Path(folder) / "vector.gguf"
        writer = GGUFWriter(file, _ARCHITECTURE)
        writer.add_string(_HINT, hint)
        writer.add_uint32(_COUNT, len(directions))
        writer.add_string(_ABOUT, json.dumps(metadata))
        for layer, vector in directions.items():
            writer.add_tensor(f"direction.{layer}", vector.numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return file.read_bytes()


def _contents(path: Path) -> tuple[dict[str, Any], list[Any]]:
    """The fields that matter here as text or numbers, and all tensors."""
    from gguf import GGUFReader

    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        reader = GGUFReader(path)
        fields = {
            name: f.contents() for name, f in reader.fields.items() if name.startswith((_ARCHITECTURE, "general."))
        }
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(
            f"{path} cannot be read as GGUF; it is damaged, truncated or another format: {error}"
        ) from error
    return fields, reader.tensors


def _directions(path: Path, tensors: Iterable[Any]) -> dict[int, Float[Tensor, " d_model"]]:
    """Layer -> vector, by llama.cpp's rules."""
    directions: dict[int, Tensor] = {}
    for tensor in tensors:
        found = re.fullmatch(r"direction\.(\d+)", tensor.name)
        if found is None:
            raise ValueError(f"{path} holds the tensor {tensor.name!r}; a control vector has only direction.1, …")
        layer = int(found[1])
        if layer == 0:
            raise ValueError(f"{path} holds {tensor.name!r}, but llama.cpp cannot steer layer 0; number from 1")
        if layer in directions:
            raise ValueError(f"{path} holds two directions for layer {layer}; a control vector has one for each")
        if tensor.tensor_type.name != "F32" or tensor.data.ndim != 1:
            shape = list(tensor.data.shape)
            raise ValueError(
                f"{tensor.name!r} in {path} is {tensor.tensor_type.name} of shape {shape}; llama.cpp reads F32 vectors"
            )
        vector = torch.tensor(tensor.data)  # a copy: the reader's is a view of the file
        if not vector.isfinite().all():
            raise ValueError(f"{tensor.name!r} in {path} holds NaN or inf; the file is damaged")
        directions[layer] = vector
    if not directions:
        raise ValueError(f"{path} holds no direction.N; it steers nothing")
    return directions


def _require_same_model(
    path: Path, hint: str | None, directions: dict[int, Float[Tensor, " d_model"]], model: TransformerBridge
) -> None:
    name, kind = twin_of(model).name, str(plain_model(model).config.model_type)
    if hint and hint not in (kind, _hint(model)):
        raise ValueError(
            f"{path} was made for the architecture {hint!r}, and {name} is {_hint(model)!r}; if you know that it fits, "
            "read it without model="
        )
    width = int(model.cfg.d_model)
    widths = sorted({len(vector) for vector in directions.values()})
    if widths != [width]:
        raise ValueError(f"{path} has directions of width {', '.join(map(str, widths))}, and {name} has {width}")
    possible = set(range(1, int(model.cfg.n_layers)))
    extra, missing = sorted(directions.keys() - possible), sorted(possible - directions.keys())
    if extra:
        raise ValueError(
            f"{path} has directions for layers {_ranges(extra)}, and {name} can be steered at 1 to {max(possible)}; it "
            "was made for a deeper model"
        )
    if missing:
        raise ValueError(
            f"{path} has no directions for layers {_ranges(missing)} of {name}: it was made for a smaller model, or "
            "for some layers only; if that is meant, read it without model="
        )


def _ranges(numbers: list[int]) -> str:
    """1, 2, 3, 7 as '1 to 3, 7'."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)
