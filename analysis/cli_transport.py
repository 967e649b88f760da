"""The commands ``lensteer transport`` (fit and save) and ``lensteer export`` (hand a steering to other programs)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.terminal import layers_in, load, say, show, steering_in

# way -> endings of the file it writes; none for a folder
_WAYS = {"folded": (), "gguf": (".gguf",), "hooks": (".py",), "lm-eval": (".pt", ".pth")}


def transport(
    out: Annotated[Path, typer.Option(help="Where to write the maps (.safetensors).")],
    source: Annotated[
        str, typer.Option(help="Texts to leave: .txt (one a line), .json (a list), .jsonl (field text or prompt).")
    ] = "",
    target: Annotated[str, typer.Option(help="Texts to reach, likewise.")] = "",
    subsets: Annotated[
        Path | None, typer.Option(help="JSON {name: [texts]}; then --source and --target are names in it.")
    ] = None,
    concept: Annotated[str | None, typer.Option(help="Or a built-in concept: ocean, winter …")] = None,
    n: Annotated[int | None, typer.Option(help="Texts a side. Default: all.", min=2)] = None,
    method: Annotated[str, typer.Option(help="linear, mean, gaussian, aura, det_zero or iti_m.")] = "linear",
    sites: Annotated[
        str, typer.Option(help="attention, mlp, norms, post_norms, residual …, or hook names, as norms,mlp.")
    ] = "norms",
    layers: Annotated[str, typer.Option(help="As 10:30:2 or 8,12,16. Default: all.")] = "",
    support: Annotated[str, typer.Option(help="As 0-100, or everywhere. Default: the method's own.")] = "default",
    order: Annotated[str, typer.Option(help="causal or simultaneous. Default: the method's own.")] = "",
    steering: Annotated[Path | None, typer.Option(help="Also write a steering, for `lensteer generate`.")] = None,
    strength: Annotated[float | None, typer.Option(help="λ of that steering. Default: 1.")] = None,
    model: Annotated[str, typer.Option(help="Embedded default, hub id, local folder or .gguf file.")] = (
        "smollm2-135m-instruct"
    ),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps, auto (spread). Default: the best there is.")
    ] = None,
    seed: int = 0,
) -> None:
    """Fit activation transport from one set of texts to another, save it, and print what the maps do at each site."""
    from lensteer.methods.transport import fit

    _check_files(out, steering, strength)
    bounds = _support(support)
    _check_how(method, order)
    name, sides = _sides(concept, subsets, source, target, n, seed)
    lens = load(model, device)
    chosen = layers_in(layers, int(lens.cfg.n_layers)) if layers else None
    how: Any = {"layers": chosen, "support": bounds, "order": order or None, "name": name}
    fitted = fit(lens, sides.source, sides.target, method, _sites(sites), **how)
    show(fitted.table(), repr(fitted))
    say(f"wrote {fitted.save(out)}")
    if steering is not None:
        say(f"wrote {fitted.steering(1.0 if strength is None else strength).save(steering)}")


def export(
    steering: Annotated[Path, typer.Argument(help="A saved steering, or maps from `transport`.")],
    path: Annotated[Path, typer.Argument(help="Folder of the folded model, or the file to write.")],
    to: Annotated[str, typer.Option(help="folded (weights), gguf (llama.cpp), hooks (a Python file) or lm-eval.")],
    strength: Annotated[float | None, typer.Option(help="Overrides that of the steering; 1 for maps.")] = None,
    support: Annotated[str, typer.Option(help="Of maps, as 0-100, or everywhere. Default: their own.")] = "default",
    model: Annotated[str, typer.Option(help="Embedded default, hub id, local folder or .gguf file.")] = (
        "smollm2-135m-instruct"
    ),
    device: Annotated[
        str | None, typer.Option(help="cpu, cuda, mps, auto (spread). Default: the best there is.")
    ] = None,
) -> None:
    """Hand a steering to other programs: folded into weights, or as a file that they read."""
    from lensteer import export as ways
    from lensteer.models import tokenizer_of

    if to not in _WAYS:
        raise typer.BadParameter(f"--to must be one of {', '.join(_WAYS)}, got {to!r}")
    _check_place(to, path)
    chosen = steering_in(steering, strength, _support(support))
    lens = load(model, device)
    chosen.points(lens)
    if to == "folded":
        ways.fold(chosen, lens).save_pretrained(path)
        tokenizer_of(lens).save_pretrained(path)
    else:
        write = {"gguf": ways.to_gguf, "hooks": ways.to_hook_file, "lm-eval": ways.to_lm_eval}[to]
        write(chosen, lens, path)
    say(f"wrote {path}")


def _check_files(out: Path, steering: Path | None, strength: float | None) -> None:
    """Refuse files that would not be found again, or that would replace each other."""
    from lensteer.hooks.base import checked_strength

    for option, path in (("--out", out), ("--steering", steering)):
        if path is not None and path.suffix != ".safetensors":
            raise typer.BadParameter(f"{option} must end in .safetensors, got {path.name!r}")
    if steering is None and strength is not None:
        raise typer.BadParameter("--strength is of the steering that --steering FILE writes; the maps have none")
    if steering is not None and steering.resolve() == out.resolve():
        raise typer.BadParameter(f"--out and --steering are both {out}; the maps and the steering need a file each")
    checked_strength(1.0 if strength is None else strength)


def _check_how(method: str, order: str) -> None:
    from typing import get_args

    from lensteer.methods.transport import Order
    from lensteer.methods.transport_maps import require_method

    require_method(method)
    if order and order not in get_args(Order):
        raise ValueError(f"order must be one of {get_args(Order)}, got {order!r}")


def _check_place(to: str, path: Path) -> None:
    """Refuse a path that this export cannot write, or that holds something else."""
    from lensteer.export.hook_file import tensors_beside

    endings = _WAYS[to]
    if not endings and path.is_file():
        raise typer.BadParameter(f"--to folded writes a model folder, and {path} is a file; give a new folder")
    if not endings and path.is_dir() and any(path.iterdir()):
        raise typer.BadParameter(f"{path} holds files already; give a new or an empty folder for the model")
    if endings and (path.suffix not in endings or path.is_dir()):
        raise typer.BadParameter(f"--to {to} writes a file that ends in {' or '.join(endings)}, not {path}")
    if to == "hooks":
        tensors_beside(path)


def _sites(text: str) -> str | list[str]:
    sites = [part.strip() for part in text.split(",")]
    return sites[0] if len(sites) == 1 else sites


def _sides(
    concept: str | None, subsets: Path | None, source: str, target: str, n: int | None, seed: int
) -> tuple[str, Any]:
    """A name, and the texts of both sides."""
    from lensteer import data

    if concept is not None:
        if source or target or subsets:
            raise typer.BadParameter("give either --concept NAME or --source and --target")
        return concept, data.concept(concept, n, seed)
    if not source or not target:
        raise typer.BadParameter("give --concept NAME, or both --source and --target")
    if subsets is not None:
        return f"{source} to {target}", data.sides(data.load_subsets(subsets), source, target, n, seed)
    texts = {"source": _texts(Path(source)), "target": _texts(Path(target))}
    if n is None:
        return f"{Path(source).stem} to {Path(target).stem}", data.Sides(texts["source"], texts["target"])
    return f"{Path(source).stem} to {Path(target).stem}", data.sides(texts, "source", "target", n, seed)


def _texts(path: Path) -> list[str]:
    """Texts of a .txt, .json or .jsonl file.

    Raises:
        ValueError: another ending, not UTF-8, rows that are not texts, or fewer than two.
        FileNotFoundError: no such file.
    """
    import json

    if path.suffix not in (".txt", ".json", ".jsonl"):
        raise ValueError(f"texts are a .txt, .json or .jsonl file, not {path.name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    try:
        written = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); save it as UTF-8 text") from error
    if not written.strip():
        raise ValueError(f"{path} is empty; it must hold at least two texts")
    try:
        if path.suffix == ".json":
            rows = json.loads(written)
        else:
            lines = [line for line in written.splitlines() if line.strip()]
            rows = lines if path.suffix == ".txt" else [json.loads(line) for line in lines]
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    texts: list[Any] = [row.get("text", row.get("prompt")) if isinstance(row, dict) else row for row in rows]
    if not isinstance(rows, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{path} must hold texts: a list of strings, or rows with a field text or prompt")
    if len(texts) < 2:
        raise ValueError(f"{path} holds one text; a map needs at least two of each side")
    return texts


def _support(text: str) -> Any:
    from lensteer.methods.transport_maps import require_support

    if text in ("default", "everywhere"):
        return text if text == "default" else None
    low, _, high = text.partition("-")
    try:
        bounds = float(low), float(high)
    except ValueError:
        raise ValueError(f"support {text!r} cannot be read; write 0-100, 5-95, or everywhere") from None
    require_support(bounds)
    return bounds
