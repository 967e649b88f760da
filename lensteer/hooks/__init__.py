"""The edits: small frozen objects that *are* TransformerLens hook functions.

Each edit is called as ``edit(activation, hook)`` and returns a new tensor of the same shape, dtype and device.
It holds no reference to a model, and this package imports nothing else of lensteer, so it works in anybody's
``model.run_with_hooks(fwd_hooks=[(name, edit)])``.

| edit | effect on an activation x |
|---|---|
| ``Add(v, s)`` | ``x + s·v`` |
| ``SetProjection(u, z, s)`` | ``x + s·(z − ⟨x, u⟩)·u``: at strength 1 the projection on u becomes z |
| ``ScaleElements(M, δ)`` | ``x·(1 + δ·M)``: the elements of the mask times 1 + δ; with ``frozen=a``, ``a·(1 + δ·M)`` |
| ``SetElements(a, M, s)`` | ``x + s·(a − x)`` on the mask: at strength 1 exactly a |
| ``Affine(ω, β, low, high, λ)`` | ``(1 − λ)·x + λ·(ω·x + β)`` where low < x < high, unit by unit |
| ``at(edit, tokens)`` | the edit at some token positions only, x elsewhere (see `lensteer.positions`) |

Tensors match the *trailing* axes of the activation: ``[d_model]`` on residual points, ``[head, d_head]`` on z,
``[d_mlp]`` on neurons. ``strength`` is one number, or a tensor with one value per batch row; 0 changes nothing.
"""

from __future__ import annotations

from .affine import Affine
from .base import Edit, Strength
from .directions import Add, SetProjection
from .elements import ScaleElements, SetElements

__all__ = ["Add", "Affine", "Edit", "ScaleElements", "SetElements", "SetProjection", "Strength"]
