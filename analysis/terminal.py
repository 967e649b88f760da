"""What the commands of the terminal share: loading a model, one-line messages, tables, lists of layers."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

Model = Annotated[str, typer.Option(help="Embedded default, hub id, local folder or .gguf file.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, mps, auto (spread). Default: the best there is.")]
DEFAULT = "smollm2-135m-instruct"


def load(name: str, device: str | None) -> Any:
    """The model of ``--model`` and ``--device``; says whether it is to be fetched first."""
    import logging

    from lensteer.checkpoints import is_ready
    from lensteer.models import load_model

    logging.getLogger("transformers").setLevel(logging.ERROR)
    ready = is_ready(name)
    say(f"loading {name}" if ready else f"fetching and converting {name}, once; it takes half a minute or so")
    return load_model(name, device=device)


def steering_in(path: Path, strength: float | None = None, support: Any = "default") -> Any:
    """A saved steering, or that of saved maps, at this strength (its own where None; 1 for maps).

    Raises:
        ValueError: not such a file, a strength that is not finite, or a support for what is no maps.
        FileNotFoundError: no such file.
    """
    from lensteer.methods.transport import Transport
    from lensteer.steering import Steering

    if _format(path).startswith("lensteer.transport."):
        return Transport.load(path).steering(1.0 if strength is None else strength, support=support)
    if support != "default":
        raise ValueError(f"--support is for maps from `lensteer transport --out`; {path} is none")
    saved = Steering.load(path)
    return saved if strength is None else saved.at_strength(strength)


def _format(path: Path) -> str:
    """What a file of ours says that it is; empty for any other."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return str((file.metadata() or {}).get("format", ""))
    except (SafetensorError, OSError):
        return ""


def say(message: str) -> None:
    """One line of what happens."""
    typer.secho(message, dim=True)


def show(table: Any, title: str) -> None:
    """A DataFrame as a table that fits the terminal."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    style = {"box": box.SIMPLE_HEAD, "padding": (0, 2, 0, 0), "pad_edge": False, "title_justify": "left"}
    # Text, not str: what a model wrote may look like rich's markup, "[/b]" say.
    grid = Table(title=Text(title) if title else None, header_style="bold", **style)  # type: ignore[arg-type]
    if "layer" in table and (table["layer"] == -1).any():
        table = table.assign(layer=table["layer"].map(lambda layer: "none" if layer == -1 else layer))
    rows = [
        [f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row]
        for row in table.itertuples(index=False)
    ]
    for place, column in enumerate(table.columns):
        header, widest = str(column).replace("_", " "), max((len(row[place]) for row in rows), default=0)
        # A header may break between words, so that no number or hook name is cut.
        needed = max(widest, *map(len, header.split(" ")))
        least = needed if widest <= 40 else None
        wraps = widest > 40 or needed < len(header)
        grid.add_column(Text(header), overflow="fold", no_wrap=not wraps, min_width=least)
    for row in rows:
        grid.add_row(*map(Text, row))
    # A log file has no width of its own; 80 columns would cut the table.
    Console(width=None if sys.stdout.isatty() else 120).print(grid)


def layers_in(text: str, n_layers: int) -> list[int]:
    """The layers of ``10:30:2`` or ``8,12,16``; every second one of the upper half for nothing."""
    if not text:
        return list(range(n_layers // 2, n_layers, 2))
    try:
        parts = [int(part) for part in text.split(":" if ":" in text else ",")]
        layers = list(range(*parts)) if ":" in text else parts
    except (ValueError, TypeError):
        layers = []
    if not layers:
        raise ValueError(f"layers {text!r} cannot be read, or name none; write 10:30:2 or 8,12,16")
    return layers
