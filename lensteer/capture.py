"""`capture`: activations at chosen points and tokens, for many prompts, touching only what is asked for.

Prompts are sorted by length and left-padded in batches; the pass runs on the plain face where it can, without the
unembedding, and stops after the last point that is needed. Each point keeps only the chosen tokens, or only running
moments, so memory is points × prompts × width at most and never holds every token unless every token is asked for.
Activations are read where an edit would be written: the last layer before the final norm.
"""

from __future__ import annotations

import hashlib
import html
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lensteer.attach import attached, face_for
from lensteer.models import fingerprint, twin_of
from lensteer.moments import Moments
from lensteer.points import Point, resolve
from lensteer.progress import progress_bar
from lensteer.prompts import Batch, Prompt, Row, batches, rows_hash, tokenize, tokenizer_of
from lensteer.reading import Which, positions_read, reading_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

Reduce = Literal["mean", "moments"] | None


class Activations(Mapping[str, Any]):
    """Hook name -> activations, in the order of the prompts.

    Values are float32 CPU tensors: ``[prompt, *shape]``; ``[prompt, pos, *shape]`` for ``tokens="all"`` (padded on the
    left with zeros, see ``mask``); ``[*shape]`` for ``reduce="mean"``; or `Moments` for ``reduce="moments"``.

    Attributes:
        mask: for ``tokens="all"``, True at real tokens, ``[prompt, pos]``; else None.
        prompts: a hash of the prompts that were read, as tokens and in order; None where nobody said.
    """

    def __init__(
        self, values: Mapping[str, Any], mask: Bool[Tensor, "prompt pos"] | None = None, prompts: str | None = None
    ) -> None:
        self._values = dict(values)
        self.mask = mask
        self.prompts = prompts

    def __getitem__(self, name: str) -> Any:
        if name not in self._values:
            raise KeyError(
                f"no activations of {name!r}; these hold {', '.join(list(self)[:3])}, … ({len(self)} points)"
            )
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def stacked(self) -> Float[Tensor, "point ..."]:
        """All points in one tensor, in order; they must have the same shape (one site over layers)."""
        return torch.stack(list(self._values.values()))

    def __repr__(self) -> str:
        shapes = {str(tuple(getattr(v, "shape", ()))) for v in self._values.values()}
        return f"Activations at {len(self)} points, {', '.join(sorted(shapes))}: {', '.join(list(self)[:3])}" + (
            ", …" if len(self) > 3 else ""
        )

    def _repr_html_(self) -> str:
        cells = ((name, str(tuple(getattr(value, "shape", ())))) for name, value in self._values.items())
        rows = "".join(f"<tr><td>{html.escape(name)}</td><td>{shape}</td></tr>" for name, shape in cells)
        return f"<table><thead><tr><th>hook</th><th>shape</th></tr></thead><tbody>{rows}</tbody></table>"


def capture(
    model: TransformerBridge,
    prompts: Sequence[Prompt | Row],
    sites_or_names: str | Sequence[str],
    *,
    layers: int | Iterable[int] | None = None,
    tokens: Which = "last",
    template: bool = True,
    bos: bool = True,
    reduce: Reduce = None,
    batch_size: int | Literal["auto"] = "auto",
    prompt_format: str = "auto",
    truncate: bool = False,
    resume: str | Path | None = None,
    progress: bool = True,
) -> Activations:
    """Activations of many prompts at some points.

    Args:
        sites_or_names: TransformerLens shorthand (``"resid_post"``, over ``layers``) or full hook names.
        tokens: ``"last"`` token of the rendered prompt, ``"mean"``, ``"max"`` or ``"min"`` of each unit over its
            tokens, ``"all"`` of them, an index (negative from the end), or a function of the `Row` that returns an
            index or indices to average. Padding never counts.
        template: False leaves BOS and chat-template tokens out of the count: "last" is then the prompt's own last
            token, "mean" averages its own tokens, an index counts them.
        bos: False leaves the BOS alone out of the count.
        reduce: None keeps a value for every prompt; ``"mean"`` and ``"moments"`` stream over prompts (and tokens).
        resume: a folder that keeps every finished batch, so that an interrupted capture goes on where it stopped.

    Raises:
        ValueError: unknown point, dead point, prompt too long, or tokens that a prompt does not have.
    """
    if reduce not in (None, "mean", "moments"):
        raise ValueError(f"reduce must be None, 'mean' or 'moments', got {reduce!r}")
    points = list({point.name: point for point in resolve(model, sites_or_names, layers)}.values())
    rows = tokenize(model, prompts, prompt_format=prompt_format, truncate=truncate)
    bos_id = None if bos else tokenizer_of(model).bos_token_id
    chosen = [positions_read(row, tokens, i, template=template, without=bos_id) for i, row in enumerate(rows)]
    store = _Store(resume, model, points, rows, chosen, tokens in ("all", "max", "min") and tokens, reduce)
    kept: list[tuple[Batch, dict[str, Tensor]]] = []
    total: dict[str, Moments] = {}
    with progress_bar(len(rows), "capture", shown=progress) as bar:
        for batch in batches(model, rows, batch_size, purpose="read"):
            values = store.get(batch) or store.put(batch, _read(model, points, batch, chosen, tokens, reduce))
            if reduce is None:
                kept.append((batch, values))
            else:
                for name, value in values.items():
                    part = Moments.unpack(value)
                    total[name] = total[name] + part if name in total else part
            bar.update(len(batch.rows))
    if reduce is not None:
        return Activations({p.name: total[p.name].mean.float() if reduce == "mean" else total[p.name] for p in points})
    mask = _all_tokens(rows, chosen) if tokens == "all" else None
    return Activations(_in_order(points, kept, mask), mask, rows_hash(rows))


def _read(
    model: TransformerBridge,
    points: Sequence[Point],
    batch: Batch,
    chosen: Sequence[list[int]],
    tokens: Which,
    reduce: Reduce,
) -> dict[str, Tensor]:
    """One forward pass, one value per point: what is kept of it."""
    reading = reading_of(batch, chosen, tokens)
    kept: dict[str, Tensor] = {}
    face = face_for(model, points)

    def keep(point: Point) -> Callable[[Tensor, Any], Tensor]:
        def function(x: Tensor, hook: Any) -> Tensor:
            value = reading.of(x.detach(), point.through)
            if reduce is not None:
                value = Moments.of(value[reading.mask.bool().to(x.device)] if tokens == "all" else value).pack()
            kept[point.name] = value
            if len(kept) == len(points):
                raise _Done
            return x

        return function

    whole = any(point.canonical.startswith("unembed") for point in points)
    with torch.inference_mode(), attached(model, [(point, keep(point)) for point in points]), suppress(_Done):
        run(face if whole else face.base_model, batch)
    if len({value.shape for value in kept.values()}) == 1 and len({value.device for value in kept.values()}) == 1:
        together = torch.stack([kept[p.name] for p in points]).cpu()  # one transfer for all points
        return {p.name: together[i] for i, p in enumerate(points)}
    return {p.name: kept[p.name].cpu().clone() for p in points}  # cloned: inference tensors cannot enter autograd


class _Done(Exception):
    """Every point has been read: the rest of the forward pass is not needed."""


def run(module: Any, batch: Batch, **options: Any) -> Any:
    """One forward pass over a batch, with position ids where the model takes them and without a cache by default."""
    if "position_ids" in inspect.signature(module.forward).parameters:
        options["position_ids"] = batch.position_ids
    options.setdefault("use_cache", False)
    return module(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **options)


def _all_tokens(rows: Sequence[Row], chosen: Sequence[list[int]]) -> Bool[Tensor, "prompt pos"]:
    """True at the chosen tokens of every prompt, prompts padded on the left to the longest."""
    width = max(len(row) for row in rows)
    mask = torch.zeros(len(rows), width, dtype=torch.bool)
    for i, (row, own) in enumerate(zip(rows, chosen, strict=True)):
        mask[i, [width - len(row) + j for j in own]] = True
    return mask


def _in_order(
    points: Sequence[Point], kept: Sequence[tuple[Batch, dict[str, Tensor]]], mask: Tensor | None
) -> dict[str, Tensor]:
    """Batches put together in the order of the prompts; every-token values are padded on the left to one width."""
    back = torch.tensor([row for batch, _ in kept for row in batch.rows]).argsort()

    def joined(name: str) -> Tensor:
        parts = [values[name] for _, values in kept]
        if mask is not None:
            missing = [(part, mask.shape[1] - part.shape[1]) for part in parts]
            parts = [torch.cat([part.new_zeros(len(part), gap, *part.shape[2:]), part], 1) for part, gap in missing]
        return torch.cat(parts)[back]

    return {point.name: joined(point.name) for point in points}


class _Store:
    """Finished batches of a capture, on disk, under a key that changes with anything that changes the result.

    Raises:
        ValueError: the model is being steered; what the edits do is not in the key.
    """

    def __init__(self, folder: str | Path | None, model: TransformerBridge, *what: Any) -> None:
        self._folder = None if folder is None else Path(folder)
        self._key = ""
        if folder is not None:
            with twin_of(model).lock:  # another thread's steering ends first
                if twin_of(model).active:
                    raise ValueError("resume= cannot be used while the model is steered; capture without a folder")
            self._key = repr((sorted(fingerprint(model).items()), what))

    def _path(self, batch: Batch) -> Path | None:
        if self._folder is None:
            return None
        return self._folder / (hashlib.sha256(f"{self._key}{batch.rows}".encode()).hexdigest()[:24] + ".safetensors")

    def get(self, batch: Batch) -> dict[str, Tensor] | None:
        from lensteer.storage import load_tensors

        path = self._path(batch)
        return load_tensors(path, "lensteer.capture.v1")[0] if path is not None and path.is_file() else None

    def put(self, batch: Batch, values: dict[str, Tensor]) -> dict[str, Tensor]:
        from lensteer.storage import save_tensors

        path = self._path(batch)
        if path is not None:
            save_tensors(
                path,
                {k: v.contiguous().clone() for k, v in values.items()},
                {"rows": batch.rows},
                "lensteer.capture.v1",
            )
        return values
