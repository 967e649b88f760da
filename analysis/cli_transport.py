"""The commands ``lensteer transport`` (fit and save) and ``lensteer export`` (hand a steering to other programs)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from analysis.terminal import layers_in, load, say, show

_WAYS = ("folded", "gguf", "hooks", "lm-eval")


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
        str, typer.Option(help="attention, mlp, norms, post_norms, residual …, or a hook name.")
    ] = "norms",
    layers: Annotated[str, typer.Option(help="As 10:30:2 or 8,12,16. Default: all.")] = "",
    support: Annotated[str, typer.Option(help="As 0-100, or everywhere. Default: the method's own.")] = "default",
    order: Annotated[str, typer.Option(help="causal or simultaneous. Default: the method's own.")] = "",
    steering: Annotated[Path | None, typer.Option(help="Also write a steering, for `lensteer generate`.")] = None,
    strength: Annotated[float, typer.Option(help="λ of that steering.")] = 1.0,
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

    name, sides = _sides(concept, subsets, source, target, n, seed)
    bounds = _support(support)
    lens = load(model, device)
    chosen = layers_in(layers, int(lens.cfg.n_layers)) if layers else None
    how: Any = {"layers": chosen, "support": bounds, "order": order or None, "name": name}
    fitted = fit(lens, sides.source, sides.target, method, sites, **how)
    show(fitted.table(), repr(fitted))
    say(f"wrote {fitted.save(out)}")
    if steering is not None:
        say(f"wrote {fitted.steering(strength).save(steering)}")


def export(
    steering: Annotated[Path, typer.Argument(help="A saved steering.")],
    path: Annotated[Path, typer.Argument(help="Folder of the folded model, or the file to write.")],
    to: Annotated[str, typer.Option(help="folded (weights), gguf (llama.cpp), hooks (a Python file) or lm-eval.")],
    strength: Annotated[float | None, typer.Option(help="Overrides that of the steering.")] = None,
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
    from lensteer.steering import Steering

    if to not in _WAYS:
        raise typer.BadParameter(f"--to must be one of {', '.join(_WAYS)}, got {to!r}")
    chosen = Steering.load(steering)
    if strength is not None:
        chosen = chosen.at_strength(strength)
    lens = load(model, device)
    chosen.points(lens)
    if to == "folded":
        ways.fold(chosen, lens).save_pretrained(path)
        tokenizer_of(lens).save_pretrained(path)
    else:
        write = {"gguf": ways.to_gguf, "hooks": ways.to_hook_file, "lm-eval": ways.to_lm_eval}[to]
        write(chosen, lens, path)
    say(f"wrote {path}")


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
        ValueError: another ending, or rows that are not texts.
        FileNotFoundError: no such file.
    """
    import json

    if path.suffix not in (".txt", ".json", ".jsonl"):
        raise ValueError(f"texts are a .txt, .json or .jsonl file, not {path.name!r}")
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path}")
    written = path.read_text(encoding="utf-8")
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
    return texts


def _support(text: str) -> Any:
    if text in ("default", "everywhere"):
        return text if text == "default" else None
    low, _, high = text.partition("-")
    try:
        return float(low), float(high)
    except ValueError:
        raise ValueError(f"support {text!r} cannot be read; write 0-100, 5-95, or everywhere") from None
