"""`Steering`: a list of (hook name, hook function) pairs that adds up, scales, saves, loads and explains itself.

A Steering *is* a TransformerLens ``fwd_hooks`` list:

    model.run_with_hooks(tokens, fwd_hooks=steering)
    with model.hooks(fwd_hooks=steering): ...
    with steering.on(model): ...                 # both faces of the model, with the clock that `at` needs
    generate(model, prompts, steering)

``a + b`` runs a's edits, then b's. ``steering.at_strength(0.5)`` sets every strength; ``steering * 0.5`` scales them.
"""

from __future__ import annotations

import hashlib
import html
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from lensteer.attach import attached
from lensteer.hooks import Edit, Strength
from lensteer.models import fingerprint, lens_model, plain_model, twin_of
from lensteer.points import Point, resolve
from lensteer.positions import At, Clock, passes_within

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge


class Steering(Sequence[tuple[str, Edit]]):
    """A sequence of ``(hook_name, edit)`` pairs, run in order.

    Args:
        pairs: hook names and edits.
        metadata: strings that say where it came from (method, model, data hash, …); saved along with it.
    """

    def __init__(self, pairs: Iterable[tuple[str, Edit]] = (), metadata: Mapping[str, str] | None = None) -> None:
        self._pairs = tuple((str(name), edit) for name, edit in pairs)
        for name, edit in self._pairs:
            if not isinstance(edit, Edit):
                raise TypeError(
                    f"the function at {name!r} is a {type(edit).__name__}; a Steering holds edits (Add, SetProjection, "
                    "at(…)), which can be saved and scaled. Run plain functions with model.hooks(fwd_hooks=[…])"
                )
        self.metadata = {key: str(value) for key, value in (metadata or {}).items()}

    @overload
    def __getitem__(self, index: int) -> tuple[str, Edit]: ...
    @overload
    def __getitem__(self, index: slice) -> Steering: ...
    def __getitem__(self, index: int | slice) -> tuple[str, Edit] | Steering:
        if isinstance(index, slice):
            return Steering(self._pairs[index], self.metadata)
        return self._pairs[index]

    def __len__(self) -> int:
        return len(self._pairs)

    def __add__(self, other: Iterable[tuple[str, Edit]]) -> Steering:
        theirs = getattr(other, "metadata", {})
        merged = {**theirs, **self.metadata}
        for key in self.metadata.keys() & theirs.keys():
            if self.metadata[key] != theirs[key]:
                merged[key] = f"{self.metadata[key]} + {theirs[key]}"
        return Steering((*self._pairs, *other), merged)

    def __mul__(self, factor: float) -> Steering:
        return self._each(lambda edit: edit.at_strength(edit.strength * factor))

    __rmul__ = __mul__

    def at_strength(self, strength: Strength) -> Steering:
        """The same steering with every edit at this strength: one number, or one value per batch row."""
        return self._each(lambda edit: edit.at_strength(strength))

    def rows(self, index: Sequence[int]) -> Steering:
        """The steering for some rows of a batch: per-row strengths and values are indexed, the rest stays."""
        picked = self._each(lambda edit: edit.rows(index))
        picked.metadata.pop("prompts", None)  # which prompts these are, the caller knows
        return picked

    @property
    def n_rows(self) -> int | None:
        """Rows that its per-row strengths or values are for; None where it does the same to every row.

        Raises:
            ValueError: edits that disagree.
        """
        lengths = {edit.n_rows for _, edit in self if edit.n_rows is not None}
        if len(lengths) > 1:
            raise ValueError(f"the edits of one steering have values for different numbers of rows: {sorted(lengths)}")
        return lengths.pop() if lengths else None

    def _each(self, change: Callable[[Edit], Edit]) -> Steering:
        return Steering(((name, change(edit)) for name, edit in self), self.metadata)

    def points(self, model: TransformerBridge) -> list[Point]:
        """Its points on a model, checked before any work.

        Raises:
            ValueError: a hook point that the model lacks or that cannot be edited, an edit of another width, or a
                steering that was made on another architecture.
        """
        made_for, here = self.metadata.get("architecture"), type(plain_model(model)).__name__
        if made_for and here not in made_for.split(" + "):
            raise ValueError(
                f"this steering was made on {self.metadata.get('model', 'a model')} ({made_for}) and does not fit "
                f"{twin_of(model).name} ({here}); fit it again on this model"
            )
        here_size = (str(model.cfg.n_layers), str(model.cfg.d_model))
        made_size = (self.metadata.get("n_layers", here_size[0]), self.metadata.get("d_model", here_size[1]))
        if made_size != here_size and " + " not in "".join(made_size):
            raise ValueError(
                f"this steering was made on {self.metadata.get('model', 'a model')} ({made_size[0]} layers of width "
                f"{made_size[1]}) and does not fit {twin_of(model).name} ({here_size[0]} of {here_size[1]})"
            )
        points = [resolve(model, name, edit=True)[0] for name, _ in self]
        for point, (name, edit) in zip(points, self, strict=True):
            if point.shape != edit.shape:
                raise ValueError(
                    f"the edit at {name!r} has shape {edit.shape}, but {twin_of(model).name} has {point.shape} there; "
                    "this steering was made for a model of another width"
                )
        return points

    @contextmanager
    def on(self, model: TransformerBridge, *, prompt_length: int | Tensor | None = None) -> Iterator[TransformerBridge]:
        """Steer every forward pass of the model, lens and plain face, until the block ends.

        The model is locked for other threads meanwhile. However the block ends, no hook is left behind.

        Args:
            prompt_length: tokens of each row's prompt, where the first forward pass is not the prompt alone
                (teacher forcing, decoding without a cache); needed only for edits made with `at`.
        """
        points = self.points(model)
        twin = twin_of(model)
        functions = [(p, edit.to(_device_at(model, p))) for p, (_, edit) in zip(points, self, strict=True)]
        with twin.lock, passes_within(), ExitStack() as stack:
            if prompt_length is not None or any(isinstance(edit, At) for _, edit in self):
                for face in (twin.plain, lens_model(model)):
                    for handle in Clock(prompt_length).attach(face.base_model) if face is not None else ():
                        stack.callback(handle.remove)
            stack.enter_context(attached(model, functions))
            twin.active.extend(points)
            stack.callback(lambda: twin.active.__delitem__(slice(len(twin.active) - len(points), None)))
            yield model

    def content_hash(self) -> str:
        """A hash of what it does: hook names, kinds of edits, tensors and numbers, not of its metadata."""
        digest = hashlib.sha256()
        for name, edit in self:
            digest.update(f"{name} {_describe(edit)}".encode())
            for _, tensor in edit.tensors() if not isinstance(edit, At) else edit.edit.tensors():
                digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()[:32]

    def save(self, path: str | Path) -> Path:
        """Write one safetensors file: the tensors, and as metadata what is needed to rebuild and check it."""
        from lensteer.storage import save_steering

        return save_steering(self, path)

    @classmethod
    def load(cls, path: str | Path, model: TransformerBridge | None = None) -> Steering:
        """Read a file written by `save`; with ``model`` it is checked against it at once.

        Raises:
            ValueError: not such a file, truncated, or made for a model that does not fit.
        """
        from lensteer.storage import load_steering

        steering = load_steering(path)
        if model is not None:
            steering.points(model)
        return steering

    def made_on(self, model: TransformerBridge, **metadata: str) -> Steering:
        """The same steering with the model's fingerprint and more metadata recorded."""
        return Steering(self, {**self.metadata, **fingerprint(model), **metadata})

    def __repr__(self) -> str:
        if not self:
            return "Steering: no edits"
        source = ", ".join(self.metadata[key] for key in ("method", "name", "model") if self.metadata.get(key))
        lines = [f"Steering of {len(self)} edit{'s' * (len(self) != 1)}" + (f" ({source})" if source else "")]
        return "\n  ".join(lines + ["  ".join(cells) for cells in self._cells()])

    def _repr_html_(self) -> str:
        head = "".join(
            f"<th style='text-align:left'>{title}</th>" for title in ("hook", "edit", "strength", "norm", "tokens")
        )
        body = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
            for cells in self._cells()
        )
        facts = " · ".join(f"{html.escape(key)} {html.escape(value)}" for key, value in self.metadata.items() if value)
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table><small>{facts}</small>"

    def _cells(self) -> Iterator[tuple[str, ...]]:
        for name, edit in self:
            inner, tokens = (edit.edit, edit.tokens) if isinstance(edit, At) else (edit, "all")
            sizes = ((key, tensor) for key, tensor in inner.tensors() if key not in ("strength", "low", "high"))
            norms = [f"{int(t.sum())} of {t.numel()}" if key == "mask" else f"{t.norm():.4g}" for key, t in sizes]
            s = edit.strength
            strength = f"{len(s)} rows, {s.min():.4g} to {s.max():.4g}" if isinstance(s, Tensor) else f"{s:.4g}"
            yield name, f"{type(inner).__name__}{list(inner.shape)}", strength, "/".join(norms), str(tokens)


def _describe(edit: Edit) -> str:
    if isinstance(edit, At):
        return f"at {edit.tokens!r} {_describe(edit.edit)}"
    values = {key: list(v.shape) if isinstance(v, Tensor) else v for key, v in vars(edit).items()}
    return f"{type(edit).__name__} {values}"


def per_row(steerings: Sequence[Iterable[tuple[str, Edit]]]) -> Steering:
    """One Steering for a batch whose row i is steered by ``steerings[i]``: many candidates in one forward pass.

    Edits that differ only in strength (the same tensors at the same hook) become one edit with per-row strengths;
    a row that lacks an edit has strength zero there.

    Raises:
        ValueError: a steering that has per-row strengths or values already.
    """
    columns: list[tuple[tuple[Any, ...], str, Edit, Tensor]] = []
    for row, steering in enumerate(steerings):
        place = 0  # columns are run in order, and so are this row's edits: each comes after the one before it
        for name, edit in steering:
            if edit.n_rows is not None:
                raise ValueError(f"steering {row} has per-row values at {name!r}; per_row wants one for all rows")
            key = (name, *_identity(edit))
            same = (i for i in range(place, len(columns)) if columns[i][0] == key)
            found = next(same, None)
            if found is None:
                found = place
                columns.insert(place, (key, name, edit, torch.zeros(len(steerings))))
            columns[found][3][row] = float(edit.strength)
            place = found + 1
    return Steering((name, edit.at_strength(strengths)) for _, name, edit, strengths in columns)


def _identity(edit: Edit) -> tuple[Any, ...]:
    """What makes two edits the same up to strength: their type, their very tensors, their other fields."""
    if isinstance(edit, At):
        return ("at", repr(edit.tokens), *_identity(edit.edit))
    values = (value for key, value in vars(edit).items() if key != "strength")
    return (type(edit), *((v.data_ptr(), v.dtype, v.stride()) if isinstance(v, Tensor) else v for v in values))


def _device_at(model: TransformerBridge, point: Point) -> torch.device:
    """Where the activations of a point are: the device of its module's weights (models may be spread over several)."""
    root = plain_model(model)
    module = root.get_submodule(point.module) if point.module else root
    weight = next(module.parameters(), None)
    return weight.device if weight is not None else root.device
