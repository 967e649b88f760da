"""What a focus run leaves on disk: the adapter, and beside it `focus.json` with all that determines the run.

folder/adapter_model.safetensors, adapter_config.json     PEFT's own files
folder/focus.json                                         task, settings, model, data hashes, history; written last
folder/README.md                                          a model card
folder/checkpoints/                                       while it trains: what an interrupted run goes on from
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lensteer.data import data_hash
from lensteer.data.focus import FocusExample, FocusSampler, FocusTask, Wording
from lensteer.methods.focus_card import card
from lensteer.methods.focus_settings import FocusSettings
from lensteer.models import fingerprint
from lensteer.storage import write_atomically

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge

RUN_FILE = "focus.json"  # beside the adapter: what it was made of


@dataclass(frozen=True)
class FocusAdapter:
    """A trained adapter.

    Attributes:
        folder: the adapter's files (PEFT's own), `focus.json` with task and settings, and a model card.
        base: the fingerprint of the model that it was trained on.
        history: one row per logged step: `step`, `loss` (of training, mean since the last row) and `validation_loss`.
        best_step: the step whose adapter this is; None where there was no validation.
        seconds: training took, evaluations included; of all parts of a resumed run the last.
        inputs: digests of what was trained and validated on; see `trained_on`.
    """

    folder: Path
    base: Mapping[str, str]
    task: FocusTask
    settings: FocusSettings
    history: pd.DataFrame
    best_step: int | None
    seconds: float
    inputs: frozenset[str] = frozenset()

    def trained_on(self, examples: Sequence[FocusExample]) -> list[FocusExample]:
        """Those of the examples whose very input was trained or validated on, whatever their ids and splits.

        Focus accuracy on them says nothing of new inputs. Inputs of one source in other words are not found.
        """
        return [example for example in examples if _digest(example) in self.inputs]

    def __repr__(self) -> str:
        last = self.history["validation_loss"].min() if "validation_loss" in self.history else math.nan
        at = f"best at step {self.best_step}, validation loss {last:.3f}" if self.best_step else "no validation"
        return (
            f"FocusAdapter {self.settings.objective!r} on {self.task.name!r} in {self.folder} ({at}; "
            f"{self.seconds:.0f} s)"
        )


def _digest(example: FocusExample) -> str:
    return data_hash([example.fields])[:12]


def halve(path: Path) -> None:
    """Write the tensors of a safetensors file in float16."""
    from safetensors.torch import load_file, save

    # PEFT reads the metadata that it writes.
    tensors = {name: tensor.half().contiguous() for name, tensor in load_file(path).items()}
    write_atomically(path, save(tensors, {"format": "pt"}))


def read_adapter(folder: str | Path) -> FocusAdapter:
    """What `train` wrote.

    Raises:
        FileNotFoundError: no finished run in this folder.
        ValueError: a damaged one.
    """
    import pandas as pd

    path = Path(folder) / RUN_FILE
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no finished focus adapter: there is no {RUN_FILE} in it")
    run = _read(path)
    facts = {"best_step": run["best_step"], "seconds": run["seconds"], "history": pd.DataFrame(run["history"])}
    facts["inputs"] = frozenset(run.get("inputs", "").split())
    return FocusAdapter(Path(folder), run["model"], task_from(run["task"]), settings_from(run["settings"]), **facts)


def _read(path: Path) -> dict[str, Any]:
    """A run file, whole, and beside it PEFT's two: a copy may have ended early, and PEFT would look for them online."""
    from safetensors import SafetensorError, safe_open

    weights, config = path.parent / "adapter_model.safetensors", path.parent / "adapter_config.json"
    failed = path
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        [run[name] for name in ("model", "task", "settings", "history", "best_step", "seconds")]
        failed = config
        json.loads(config.read_text(encoding="utf-8"))["peft_type"]
        failed = weights
        with safe_open(weights, framework="pt"):
            return run
    except (ValueError, TypeError, KeyError, SafetensorError, OSError) as error:
        raise ValueError(f"{failed} cannot be read ({error}); copy the folder again, or train it anew") from error


def task_from(plain: dict[str, Any]) -> FocusTask:
    """The task that a run file describes."""
    return FocusTask(**{**plain, "labels": tuple(plain["labels"])})


def settings_from(plain: dict[str, Any]) -> FocusSettings:
    """The settings that a run file describes."""
    own = dict(plain)
    sampler = dict(own["sampler"])
    own["sampler"] = FocusSampler(tuple(sampler["kinds"]), sampler["p_empty"], Wording(**sampler["wording"]))
    own["targets"] = None if own["targets"] is None else tuple(own["targets"])
    return FocusSettings(**own)


def about_run(
    model: TransformerBridge,
    task: FocusTask,
    examples: Sequence[FocusExample],
    validation: Sequence[FocusExample],
    settings: FocusSettings,
    bias: TransformerBridge | None,
) -> dict[str, Any]:
    """What determines a run; a folder that holds another one is refused."""
    from importlib.metadata import version

    data = {"examples": data_hash(examples), "validation": data_hash(validation)}
    counts = {"n_examples": len(examples), "n_validation": len(validation)}
    versions = {name: version(name) for name in ("torch", "transformers", "peft", "lensteer")}
    about = {"model": fingerprint(model), "task": asdict(task), "settings": asdict(settings)}
    inputs = " ".join(sorted({_digest(example) for example in (*examples, *validation)}))
    data["bias"] = "" if bias is None else fingerprint(bias)["weights"]
    return json.loads(json.dumps({**about, "data": data, **counts, "inputs": inputs, "versions": versions}))


def is_finished(folder: Path, about: dict[str, Any]) -> bool:
    """Whether the folder holds this very run, done.

    Raises:
        ValueError: it holds another run, done or begun.
    """
    for path in (folder / RUN_FILE, folder / "checkpoints" / RUN_FILE):
        if path.is_file():
            held = _read(path) if path.parent == folder else json.loads(path.read_text(encoding="utf-8"))
            # As objects, so that a field which came with a later version counts as its default.
            same = {"task": task_from(held["task"]) == task_from(about["task"])}
            same["settings"] = settings_from(held["settings"]) == settings_from(about["settings"])
            other = [key for key in ("model", "data") if held.get(key) != about[key]]
            other += [key for key, equal in same.items() if not equal]
            if other:
                told = ", ".join(_told(key, held, about) for key in other)
                raise ValueError(
                    f"{folder} holds another run, which differs in {told}; give another folder, or delete this one"
                )
    return (folder / RUN_FILE).is_file()


def _told(key: str, held: dict[str, Any], about: dict[str, Any]) -> str:
    """What differs, with the values where these are settings."""
    if key != "settings":
        return key
    there, here = asdict(settings_from(held[key])), asdict(settings_from(about[key]))
    values = [f"{name} ({there[name]!r} there, {here[name]!r} here)" for name in here if there[name] != here[name]]
    return ", ".join(value if len(value) < 200 else value.split(" ")[0] for value in values)


def history_of(log: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    names = {"loss": "loss", "eval_loss": "validation_loss"}
    rows: dict[int, dict[str, Any]] = {}
    for entry in log:
        found = {names[key]: value for key, value in entry.items() if key in names}
        if found:
            rows.setdefault(int(entry["step"]), {"step": int(entry["step"])}).update(found)
    return [rows[step] for step in sorted(rows)]


def write_run(folder: Path, about: dict[str, Any], history: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    run = {**about, "history": history, **facts}
    write_atomically(folder / "README.md", card(run).encode())
    # Last: where it is, the run is finished.
    write_atomically(folder / RUN_FILE, json.dumps(run, indent=1).encode())
    # Other processes may be done with the checkpoints a little later on a shared file system.
    shutil.rmtree(folder / "checkpoints", ignore_errors=True)
