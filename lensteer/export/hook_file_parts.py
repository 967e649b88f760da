"""The text that `to_hook_file` puts together: the frame of the file, a function for each kind of edit and of hook."""

from __future__ import annotations

from lensteer.hooks import Add, Affine, Edit, ScaleElements, SetElements, SetProjection

FILE = '''"""{about}

    from {stem} import steer

    with steer(model):  # the plain Hugging Face model
        model.generate(**inputs)

Needs torch and safetensors, and {stem}.hooks.safetensors beside this file. Written by lensteer {version}.
"""

from contextlib import contextmanager
from functools import partial
from pathlib import Path

{torch}from safetensors.torch import load_file


{formulas}

{sides}

# Hook point of TransformerLens, module of the Hugging Face model, its side, what is done there, with which numbers.
EDITS = [
{rows}]
# "0.vector" is the vector of the first row, and so on.
TENSORS = load_file(Path(__file__).with_suffix(".hooks.safetensors"))


def tensors(row):
    """The tensors of one row by name, as [d_model], [head, d_head], …"""
    return {{key.partition(".")[2]: value for key, value in TENSORS.items() if key.startswith(f"{{row}}.")}}


@contextmanager
def steer(model):
    """Steer every forward pass of a Hugging Face model, at every position, until the block ends."""
    handles = []
    try:
        for row, (_, name, side, edit, numbers) in enumerate(EDITS):
            module = model.get_submodule(name)
            device = next(module.parameters(), model).device
            # Flat, because a module of the Hugging Face model has the heads side by side.
            own = {{key: value.flatten().to(device) for key, value in tensors(row).items()}}
            handles.append(side(module, partial(edit, **own, **numbers)))
        yield model
    finally:
        for handle in handles:
            handle.remove()


def fwd_hooks(device="cpu"):
    """The same edits for TransformerLens: model.run_with_hooks(tokens, fwd_hooks=fwd_hooks())."""
    hooks = []
    for row, (point, _, _, edit, numbers) in enumerate(EDITS):
        own = {{key: value.to(device) for key, value in tensors(row).items()}}
        change = partial(edit, **own, **numbers)
        hooks.append((point, lambda x, hook, change=change: change(x)))
    return hooks
'''

# kind of edit: (name of the function, its text). The parameters are the fields of the edit.
EDITS: dict[type[Edit], tuple[str, str]] = {
    Add: (
        "add",
        '''def add(x, vector, strength):
    """x + strength·vector"""
    return x + (strength * vector).to(x.dtype)
''',
    ),
    SetProjection: (
        "set_projection",
        '''def set_projection(x, direction, value, strength, along=None):
    """x + strength·(value − ⟨x, direction⟩)·direction, or ·along; both have norm 1"""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    axes = tuple(range(-direction.ndim, 0))
    change = strength * (value - (wide * direction).sum(axes, keepdim=True))
    return x + (change * (direction if along is None else along)).to(x.dtype)
''',
    ),
    ScaleElements: (
        "scale_elements",
        '''def scale_elements(x, mask, strength):
    """x·(1 + strength) where the mask is True, x elsewhere"""
    return torch.where(mask, x * (1 + strength), x)
''',
    ),
    SetElements: (
        "set_elements",
        '''def set_elements(x, values, strength, mask=None):
    """x + strength·(values − x) where the mask is True (everywhere without one), x elsewhere"""
    moved = torch.lerp(x, values.to(x.dtype), strength)
    return moved if mask is None else torch.where(mask, moved, x)
''',
    ),
    Affine: (
        "affine",
        '''def affine(x, scale, shift, strength, low=None, high=None):
    """(1 − strength)·x + strength·(scale·x + shift) where low < x < high (everywhere without them), x elsewhere"""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    moved = ((1 - strength) * wide + strength * (scale * wide + shift)).to(x.dtype)
    return moved if low is None else torch.where((low < wide) & (wide < high), moved, x)
''',
    ),
}

# side of the module: (name of the function, its text)
SIDES: dict[str, tuple[str, str]] = {
    "out": (
        "on_output",
        '''def on_output(module, change):
    """Change what a module puts out; the activation is the first where there are several."""

    def hook(module, args, output):
        return (change(output[0]), *output[1:]) if isinstance(output, tuple) else change(output)

    return module.register_forward_hook(hook)
''',
    ),
    "in": (
        "on_input",
        '''def on_input(module, change):
    """Change what a module is given."""

    def hook(module, args, kwargs):
        if args:
            return (change(args[0]), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": change(kwargs["hidden_states"])}

    return module.register_forward_pre_hook(hook, with_kwargs=True)
''',
    ),
}
