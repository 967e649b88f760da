"""`stagewise`: what every point sees once all edits before it are in force, in one forward pass over the data.

A map that is fitted on activations that have already passed the maps before it needs, done plainly, one run from the
input for each point. Here every batch runs once: it stops inside the model at the first point, waits there until all
batches have arrived and the edit there has been decided, takes the edit, and goes on to the next point. Batches that
wait are greenlets, suspended inside their own forward pass; one runs at a time, so nothing is shared or locked.

Memory: a waiting batch holds what its forward pass needs to go on, which at a point between modules is the residual
stream and the module's output, and inside a module that module's own inner activations as well.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lensteer.attach import attached, face_for
from lensteer.capture import run
from lensteer.hooks import Edit
from lensteer.models import plain_model, twin_of
from lensteer.points import Point, firing_order
from lensteer.progress import progress_bar
from lensteer.prompts import Batch, Row, batches
from lensteer.reading import Which, reading_of

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge

# What is read at a point, one entry a row (or a token), and the row that each entry comes from.
Decide = Callable[[Point, Float[Tensor, "sample ..."], Int[Tensor, " sample"]], Edit | None]


def stagewise(
    model: TransformerBridge,
    points: Sequence[Point],
    rows: Sequence[Row],
    chosen: Sequence[list[int]],
    tokens: Which,
    decide: Decide,
    *,
    batch_size: int | str = "auto",
    memory_gb: float | None = None,
    progress: bool = True,
) -> None:
    """Run all rows through all points, one after the other.

    Args:
        points: in execution order.
        chosen: the token positions that are read of each row, from `positions_read`.
        tokens: "mean", "max", "min", "last", "all", … as in `capture`.
        decide: called once for each point with what is read there, in the order of the rows (for ``tokens="all"`` one
            entry per token), and the row of each entry; its edit is applied before the rows go on.
        memory_gb: how much the waiting batches may take; None is half of what the device has free.

    Raises:
        ValueError: the model is being steered, points out of order, or more memory needed than there may be; before
            any work.
    """
    with twin_of(model).lock:  # another thread's steering ends first
        if twin_of(model).active:
            raise ValueError("the model is being steered; a causal fit interleaves its passes, so steer it afterwards")
        _require_order(model, points)
        jobs = list(batches(model, rows, batch_size))
        _require_memory(model, points, jobs, memory_gb)
        _run(model, points, jobs, chosen, tokens, decide, progress)


def _run(
    model: TransformerBridge,
    points: Sequence[Point],
    jobs: Sequence[Batch],
    chosen: Sequence[list[int]],
    tokens: Which,
    decide: Decide,
    progress: bool,
) -> None:
    """All batches to the first point, a decision, all batches to the next."""
    owners = torch.cat([_owners(batch, chosen, tokens) for batch in jobs])
    order = owners.argsort(stable=True)
    bar = progress_bar(len(points) * len(jobs), "fit maps", shown=progress, unit="batch")
    functions = [(point, _wait(point)) for point in points]
    with (
        bar,
        torch.inference_mode(),
        attached(model, functions),
        _suspended(model, points, jobs, chosen, tokens) as passes,
    ):
        edit: Edit | None = None
        for point in points:
            read = []
            for suspended in passes:
                reached, value = suspended.switch(edit)
                if reached != point.name:
                    raise ValueError(f"{point.name!r} was expected next, but the model reached {reached!r}")
                read.append(value)
                bar.update()
            values = torch.cat(read)
            with torch.inference_mode(False):  # what is kept of it may enter autograd
                edit = decide(point, values[order.to(values.device)].clone(), owners[order])


def _wait(point: Point) -> Callable[[Tensor, Any], Tensor]:
    """The hook of a point: hand over what is read there, wait for the edit, apply it."""
    import greenlet

    def function(x: Tensor, hook: Any) -> Tensor:
        current: Any = greenlet.getcurrent()
        edit: Edit | None = current.parent.switch((point.name, current.reading(x)))
        return x if edit is None else edit.to(x.device)(x, hook)

    return function


@contextmanager
def _suspended(
    model: TransformerBridge, points: Sequence[Point], jobs: Sequence[Batch], chosen: Sequence[list[int]], tokens: Which
) -> Iterator[list[Any]]:
    """One forward pass per batch, not started yet; whatever still waits in the end is taken down."""
    import greenlet

    face = face_for(model, points)

    def forward(batch: Batch) -> Callable[[Any], tuple[None, None]]:
        def whole(_: Any) -> tuple[None, None]:
            run(face.base_model, batch)
            return None, None  # it ended without another point on its way

        return whole

    passes: list[Any] = []
    for batch in jobs:
        suspended: Any = greenlet.greenlet(forward(batch))
        reading = reading_of(batch, chosen, tokens)
        suspended.reading = lambda x, reading=reading: _kept(reading.of(x), reading.mask, tokens)
        passes.append(suspended)
    try:
        yield passes
    finally:
        for suspended in passes:
            if suspended:
                suspended.throw()  # unwinds the forward pass


def _kept(value: Tensor, mask: Tensor, tokens: Which) -> Tensor:
    return value[mask.bool().to(value.device)] if tokens == "all" else value


def _owners(batch: Batch, chosen: Sequence[list[int]], tokens: Which) -> Int[Tensor, " sample"]:
    """Which row each sample of a batch comes from."""
    rows = torch.tensor(batch.rows)
    return rows.repeat_interleave(torch.tensor([len(chosen[i]) for i in batch.rows])) if tokens == "all" else rows


def _require_order(model: TransformerBridge, points: Sequence[Point]) -> None:
    places = [firing_order(model)[point.canonical] for point in points]
    for one, other, first, second in zip(points, points[1:], places, places[1:], strict=False):
        if first >= second:
            raise ValueError(
                f"{one.name!r} is not before {other.name!r} in a forward pass; give each point once, in order"
            )


def _require_memory(
    model: TransformerBridge, points: Sequence[Point], jobs: Sequence[Batch], memory_gb: float | None
) -> None:
    if memory_gb is not None and not memory_gb > 0:
        raise ValueError(
            f"memory_gb must be a positive number of GiB, or None for half of what is free, got {memory_gb}"
        )
    needed = waiting_bytes(model, points, jobs)
    devices = {parameter.device for parameter in plain_model(model).parameters()}
    allowed = min(map(_free_bytes, devices)) / 2 if memory_gb is None else memory_gb * 2**30
    if needed > allowed:
        raise ValueError(
            f"the hidden states of {sum(batch.input_ids.numel() for batch in jobs)} tokens that wait at each site take "
            f"about {needed / 2**30:.3g} GiB, more than the {allowed / 2**30:.3g} GiB allowed; give fewer or shorter "
            "prompts, a larger memory_gb=, or fit in simultaneous order, which does not keep them"
        )


def waiting_bytes(model: TransformerBridge, points: Sequence[Point], jobs: Sequence[Batch]) -> int:
    """An estimate of what the waiting batches hold.

    For each token: four streams of the residual's width (embedding, residual, a module's input and output), two of the
    widest point's (the inner activations of a module that is waited in), and its row of the attention mask.
    """
    widest = max(int(torch.Size(point.shape).numel()) for point in points)
    width = 4 * int(model.cfg.d_model) + 2 * widest
    numbers = sum(batch.input_ids.numel() * (width + batch.input_ids.shape[1]) for batch in jobs)
    return numbers * plain_model(model).dtype.itemsize


def _free_bytes(device: torch.device) -> float:
    """What a device can still give; without end where nobody says."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(
            device
        )  # PyTorch's own, to be used again
        return float(torch.cuda.mem_get_info(device)[0] + kept)
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return next(float(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):  # not on every system
        return float("inf")
