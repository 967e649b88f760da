"""One safetensors file per Steering: tensors, and metadata that rebuilds the edits and says where they came from.

Written to a temporary file and renamed, so a full disk or a kill leaves no half-written file under the final name.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

from torch import Tensor

from lensteer.hooks import Add, Affine, Edit, ScaleElements, SetElements, SetProjection
from lensteer.positions import At, at
from lensteer.steering import Steering

_KINDS: tuple[type[Edit], ...] = (Add, Affine, SetProjection, ScaleElements, SetElements)
_EDITS = {kind.__name__: kind for kind in _KINDS}
_FORMAT = "lensteer.steering.v1"


def save_steering(steering: Steering, path: str | Path) -> Path:
    """Write a steering to ``path``; tensors shared between edits are stored once per edit."""
    tensors: dict[str, Tensor] = {}
    edits = []
    for i, (name, edit) in enumerate(steering):
        inner, tokens = (edit.edit, edit.tokens) if isinstance(edit, At) else (edit, "all")
        tensors.update({f"{i}.{key}": value.detach().cpu() for key, value in inner.tensors()})
        plain = {key: value for key, value in vars(inner).items() if not isinstance(value, Tensor)}
        edits.append({"hook": name, "edit": type(inner).__name__, "tokens": _tokens_out(tokens), **plain})
    return save_tensors(path, tensors, {"edits": edits, "about": steering.metadata}, _FORMAT)


def load_steering(path: str | Path) -> Steering:
    """Read what `save_steering` wrote."""
    tensors, content = load_tensors(path, _FORMAT)
    pairs = []
    for i, entry in enumerate(content["edits"]):
        name, kind, tokens = entry.pop("hook"), entry.pop("edit"), _tokens_in(entry.pop("tokens"))
        if kind not in _EDITS:
            raise ValueError(f"{path} holds an edit {kind!r} that this version does not know; update lensteer")
        own = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.split(".", 1)[0] == str(i)}
        pairs.append((name, at(_EDITS[kind](**entry, **own), tokens)))
    return Steering(pairs, content["about"])


def save_tensors(path: str | Path, tensors: Mapping[str, Tensor], content: Mapping[str, Any], kind: str) -> Path:
    """Atomic safetensors file with JSON content in its metadata.

    Raises:
        OSError: the folder cannot be written or the disk is full; names the path.
    """
    from safetensors.torch import save

    from lensteer import __version__

    path = Path(path)
    versions = {name: version(name) for name in ("torch", "transformers", "transformer-lens")}
    versions["lensteer"] = __version__
    # Cloned: safetensors refuses tensors that share memory. Numbers may be NumPy's.
    own = {key: value.contiguous().clone() for key, value in tensors.items()}
    text = json.dumps(content, default=float)
    data = save(own, {"format": kind, "content": text, "versions": json.dumps(versions)})
    return write_atomically(path, data)


def write_atomically(path: Path, data: bytes) -> Path:
    """Write a file under a temporary name beside ``path`` and rename it, so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}-{uuid4().hex}")  # opened plainly: with the user's usual permissions
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise OSError(
            error.errno, f"cannot write {path}: {error.strerror or error}; free some space or choose another folder"
        ) from error
    return path


def load_tensors(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and JSON content of a file from `save_tensors`.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not safetensors, truncated, or a file of another kind.
    """
    from safetensors import SafetensorError, safe_open

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a mapping)
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} cannot be read as safetensors; it is damaged, truncated or another format: {error}"
        ) from error
    if metadata.get("format") != kind:
        raise ValueError(f"{path} is not a {kind} file (its format is {metadata.get('format', 'not stated')!r})")
    return tensors, json.loads(metadata["content"])


def _tokens_out(tokens: Any) -> Any:
    return {"slice": [tokens.start, tokens.stop]} if isinstance(tokens, slice) else tokens


def _tokens_in(tokens: Any) -> Any:
    return slice(*tokens["slice"]) if isinstance(tokens, dict) else tokens
