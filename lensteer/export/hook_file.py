"""A steering as a Python file of its own, for those who have the model but not lensteer.

    from steering import steer

    with steer(model):  # the plain Hugging Face model
        model.generate(**inputs)

The file needs torch and safetensors, and says what it does: the formulas of the edits that this steering has, one row
for each edit, and torch forward hooks. Its tensors lie beside it, for steering.py in steering.hooks.safetensors, which
`Steering.load` reads.
"""

from __future__ import annotations

import keyword
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from lensteer.export import hook_file_parts as parts
from lensteer.generate import as_steering
from lensteer.hooks import Edit
from lensteer.messages import short
from lensteer.models import plain_model, twin_of
from lensteer.points import Point
from lensteer.positions import At
from lensteer.steering import Steering
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

_WIDTH = 120  # columns of a line


def to_hook_file(steering: Iterable[tuple[str, Edit]], model: TransformerBridge, path: str | Path) -> Path:
    """Write a steering as a standalone Python file, and its tensors beside it as ``.hooks.safetensors``.

    Fits: every edit at all positions, the same for every row of a batch, at the input or the output of a module of the
    plain model (residual stream, attention and MLP, heads, neurons, norms). Edits of strength 0 do nothing and are left
    out.

    The file has ``steer(model)``, a context manager for the plain Hugging Face model, and ``fwd_hooks()``, the same
    edits for ``run_with_hooks`` of TransformerLens.

    Args:
        path: ends in ``.py``, with a name that Python can import. Its tensors go to the same name with
            ``.hooks.safetensors``; an earlier hook file there is replaced.

    Returns:
        the path.

    Raises:
        ValueError: an edit that the file cannot hold; names it, says why and what would work. A steering without
            effect, a path that cannot be imported, or one whose ``.hooks.safetensors`` is there and is no steering.
            Nothing is written.
    """
    path = Path(path)
    beside = tensors_beside(path)
    steering = as_steering(steering)
    kept: list[tuple[Point, str, Edit]] = []
    for number, (point, (name, edit)) in enumerate(zip(steering.points(model), steering, strict=True)):
        if not isinstance(edit.strength, Tensor) and edit.strength == 0:
            continue
        if problem := _unlike(edit, point):
            kind = type(edit.edit if isinstance(edit, At) else edit).__name__
            raise ValueError(f"edit {number}, {kind} at {name!r}, does not fit a hook file: {problem}")
        kept.append((point, name, edit))
    if not kept:
        raise ValueError("the steering does nothing (no edits, or all of strength 0), so there is nothing to write")
    text = _source(path, kept, _about(steering, model))
    Steering(((name, edit) for _, name, edit in kept), steering.metadata).save(beside)
    return write_atomically(path, text.encode())


def tensors_beside(path: Path) -> Path:
    """Where the tensors of a hook file go; an earlier hook file's may be replaced, nothing else.

    Raises:
        ValueError: a path that Python cannot import, or one that has another file there.
    """
    if path.suffix != ".py" or not path.stem.isidentifier() or keyword.iskeyword(path.stem):
        raise ValueError(f"{path} cannot be imported; give a name of letters, digits and _ that ends in .py")
    beside = path.with_suffix(".hooks.safetensors")
    if beside.exists():
        try:
            Steering.load(beside)
        except (ValueError, OSError) as error:
            raise ValueError(f"{beside} is there and is no steering; move it, or give another name: {error}") from error
    return beside


def _unlike(edit: Edit, point: Point) -> str:
    """Why an edit cannot be written as a function of one activation at a module; empty where it can."""
    if isinstance(edit, At):
        return (
            f"it acts at tokens={edit.tokens!r}, and a hook cannot see which tokens an activation holds (KV cache, "
            "padding); use the edit without at(…), or lensteer itself"
        )
    if edit.n_rows is not None:
        return f"it has values for {edit.n_rows} rows of one batch; use one strength, and values that are not per row"
    if point.module is None:
        return "that point is neither input nor output of a module of the plain model; use resid_post, attn_out or z"
    return ""


def _about(steering: Steering, model: TransformerBridge) -> str:
    """What is steered, and what the steering says of itself, safe inside a docstring."""
    made = [short(steering.metadata[key]) for key in ("method", "name") if steering.metadata.get(key)]
    text = f"Steers {short(twin_of(model).name)} ({type(plain_model(model)).__name__})"
    return (text + (f": {', '.join(made)}" if made else "") + ".").replace('"', "'")


def _source(path: Path, kept: list[tuple[Point, str, Edit]], about: str) -> str:
    from lensteer import __version__

    functions = {type(edit): parts.EDITS[type(edit)] for _, _, edit in kept}
    sides = {point.side: parts.SIDES[point.side] for point, _, _ in kept}
    formulas = "\n\n".join(text for _, text in functions.values())
    rows = [
        _row(name, str(point.module), sides[point.side][0], functions[type(edit)][0], edit)
        for point, name, edit in kept
    ]
    return parts.FILE.format(
        about=textwrap.fill(about, _WIDTH - 3),  # the first line has quotes before it
        stem=path.stem,
        version=__version__,
        torch="import torch\n" if "torch." in formulas else "",
        formulas=formulas,
        sides="\n\n".join(text for _, text in sides.values()),
        rows="".join(rows),
    )


def _row(hook: str, module: str, side: str, function: str, edit: Edit) -> str:
    """One edit as a tuple, on one line where it fits."""
    numbers = {key: float(value) for key, value in vars(edit).items() if key in ("strength", "value")}
    shown = ", ".join(f'"{key}": {value!r}' for key, value in numbers.items())
    cells = [f'"{hook}"', f'"{module}"', side, function, f"{{{shown}}}"]
    line = f"    ({', '.join(cells)}),\n"
    return line if len(line) <= _WIDTH + 1 else "    (\n" + "".join(f"        {cell},\n" for cell in cells) + "    ),\n"
