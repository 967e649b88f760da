"""Files of steerings: bit-exact round trips, and what is said about files and folders that cannot be used."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lensteer import STEPS, Add, ScaleElements, SetElements, SetProjection, Steering, at
from lensteer.positions import At
from lensteer.storage import load_tensors, save_tensors, write_atomically

POST = "blocks.{}.hook_resid_post"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def fields(edit: Any) -> dict[str, Any]:
    inner = edit.edit if isinstance(edit, At) else edit
    tokens = edit.tokens if isinstance(edit, At) else "all"
    return {"kind": type(inner).__name__, "tokens": tokens, **vars(inner)}


def assert_identical(first: Steering, second: Steering) -> None:
    assert [name for name, _ in first] == [name for name, _ in second]
    assert first.metadata == second.metadata
    for (_, a), (_, b) in zip(first, second, strict=True):
        mine, theirs = fields(a), fields(b)
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == theirs[key].dtype
                assert torch.equal(value, theirs[key])
            else:
                assert value == theirs[key]
                assert type(value) is type(theirs[key])
    assert first.content_hash() == second.content_hash()


@pytest.mark.parametrize(
    "edit",
    [
        Add(random(32), 2.5),
        Add(random(32).bfloat16(), -0.1),
        Add(random(32).double(), torch.tensor([0.0, 1.5, -2.0])),
        Add(random(4, 8), 1.0),
        SetProjection(random(32), 7.25, 0.5),
        SetProjection(random(4096, seed=1) * 30, -3.0),
        SetProjection(random(576, seed=2).half(), 0.1, torch.tensor([1.0, 0.25])),
        ScaleElements(random(4, 8) > 0, 4.0),
        ScaleElements(random(32) > 0, torch.tensor([0.0, -1.0])),
        ScaleElements((random(32) > 0).expand(4, 32), 1.0),  # not contiguous
        SetElements(random(32), strength=0.3),
        SetElements(random(4, 8).bfloat16(), random(4, 8) > 0),
        SetElements(random(3, 4, 8), random(4, 8) > 0, torch.tensor([0.0, 1.0, 0.5]), per_row=True),
        SetElements(random(2, 32), per_row=True),
    ],
)
@pytest.mark.parametrize(
    "tokens", ["all", "generated", 0, -3, [0, -1], slice(-3, None), slice(None, 4), STEPS], ids=str
)
def test_what_is_loaded_is_bit_for_bit_what_was_saved(tmp_path, edit: Any, tokens: Any) -> None:
    steering = Steering([(POST.format(1), at(edit, tokens))], {"method": "test", "seed": "3"})
    path = steering.save(tmp_path / "folder" / "steering.safetensors")
    assert path == tmp_path / "folder" / "steering.safetensors"
    loaded = Steering.load(path)
    assert_identical(steering, loaded)
    assert_identical(Steering.load(loaded.save(tmp_path / "again.safetensors")), steering)


def test_several_edits_are_saved_in_order_also_where_they_share_memory(tmp_path) -> None:
    matrix, vector = random(4, 32), random(32)
    pairs = [(POST.format(i), Add(matrix[i])) for i in (3, 1)]
    pairs += [(POST.format(2), Add(vector, 1.0)), (POST.format(2), at(Add(vector, 2.0), "last"))]
    pairs += [(POST.format(2), SetProjection(vector / vector.norm(), 2.0)), (POST.format(0), Add(random(32, 4)[:, 1]))]
    steering = Steering(pairs)
    assert_identical(Steering.load(steering.save(tmp_path / "s.safetensors")), steering)
    assert_identical(Steering.load(Steering().save(tmp_path / "none.safetensors")), Steering())


def test_numbers_of_numpy_and_vectors_that_were_trained_can_be_saved(tmp_path) -> None:
    vector = random(32).requires_grad_()
    steering = Steering([(POST.format(1), Add(vector, np.float32(2.5))), (POST.format(1), Add(vector, np.int64(3)))])
    loaded = Steering.load(steering.save(tmp_path / "s.safetensors"))
    assert [edit.strength for _, edit in loaded] == [2.5, 3.0]
    assert torch.equal(loaded[0][1].vector, vector.detach())  # type: ignore[attr-defined]


def test_a_loaded_steering_does_what_the_saved_one_did(llama, tmp_path) -> None:
    from lensteer import generate

    steering = Steering([(POST.format(1), at(Add(random(32), 4.0), slice(-2, None)))]).made_on(llama.model)
    loaded = Steering.load(steering.save(tmp_path / "s.safetensors"), llama.model)
    options = {"max_new_tokens": 5, "progress": False}
    first, second = (generate(llama.model, ["Why", "A"], s, **options) for s in (steering, loaded))
    assert first["token_ids"].tolist() == second["token_ids"].tolist()


def test_a_file_says_what_it_is_to_anyone_who_opens_it(llama, tmp_path) -> None:
    from safetensors import safe_open

    steering = Steering([(POST.format(1), Add(random(32), 4.0))], {"method": "test"}).made_on(llama.model, seed="7")
    with safe_open(steering.save(tmp_path / "s.safetensors"), framework="pt") as file:
        metadata = file.metadata()
        assert file.get_slice("0.vector").get_shape() == [32]
    content, versions = json.loads(metadata["content"]), json.loads(metadata["versions"])
    about = {"method", "model", "architecture", "revision", "dtype", "tokenizer", "weights", "seed"}
    assert about <= content["about"].keys()
    assert content["edits"] == [{"hook": POST.format(1), "edit": "Add", "tokens": "all", "strength": 4.0}]
    assert versions.keys() == {"lensteer", "torch", "transformers", "transformer-lens"}


# ---- files that cannot be used


@pytest.fixture
def file(llama, tmp_path) -> Path:
    return Steering([(POST.format(1), Add(random(32), 4.0))]).made_on(llama.model).save(tmp_path / "s.safetensors")


@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_a_truncated_file_is_named_and_called_damaged(file: Path, keep: int) -> None:
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(ValueError, match=rf"{file} cannot be read as safetensors; it is damaged, truncated"):
        Steering.load(file)


def test_a_file_of_another_kind_is_named_with_what_it_is(tmp_path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "weights.safetensors"
    save_file({"a": random(3)}, path)
    with pytest.raises(ValueError, match=r"weights.safetensors is not a lensteer.steering.v1 file.*'not stated'"):
        Steering.load(path)
    save_tensors(path, {"a": random(3)}, {}, "lensteer.other.v1")
    with pytest.raises(ValueError, match=r"its format is 'lensteer.other.v1'"):
        Steering.load(path)
    path.write_text("a page of text " * 50)
    with pytest.raises(ValueError, match="cannot be read as safetensors"):
        Steering.load(path)
    with pytest.raises(FileNotFoundError, match=r"no file at .*nothing.safetensors"):
        Steering.load(tmp_path / "nothing.safetensors")


def test_an_edit_of_a_later_version_is_named(file: Path) -> None:
    tensors, content = load_tensors(file, "lensteer.steering.v1")
    content["edits"][0]["edit"] = "Rotate"
    save_tensors(file, tensors, content, "lensteer.steering.v1")
    with pytest.raises(ValueError, match="holds an edit 'Rotate' that this version does not know; update lensteer"):
        Steering.load(file)


def test_a_file_with_nan_in_it_is_refused(file: Path) -> None:
    tensors, content = load_tensors(file, "lensteer.steering.v1")
    tensors["0.vector"][3] = float("nan")
    save_tensors(file, tensors, content, "lensteer.steering.v1")
    with pytest.raises(ValueError, match="vector holds NaN or inf in 1 of 32"):
        Steering.load(file)


def test_a_file_for_another_model_is_refused_on_loading(file: Path, gpt2, llama, tmp_path) -> None:
    Steering.load(file, llama.model)
    with pytest.raises(ValueError, match=r"made on LlamaForCausalLM.*does not fit GPT2LMHeadModel"):
        Steering.load(file, gpt2.model)
    wide = Steering([(POST.format(1), Add(random(48)))]).save(tmp_path / "wide.safetensors")
    with pytest.raises(ValueError, match=r"shape \(48,\).*has \(32,\)"):
        Steering.load(wide, llama.model)


# ---- folders that cannot be used


def test_a_file_is_there_whole_or_not_at_all(file: Path, monkeypatch) -> None:
    before = file.read_bytes()

    def full(*args: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match=rf"cannot write {file}: No space left on device; free some space") as caught:
        Steering([(POST.format(2), Add(random(32)))]).save(file)
    assert caught.value.errno == errno.ENOSPC
    assert file.read_bytes() == before
    assert os.listdir(file.parent) == [file.name]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_write_that_is_interrupted_leaves_no_file_behind(tmp_path, monkeypatch, error: type[BaseException]) -> None:
    def stop(*args: Any) -> None:
        raise error

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(error):
        write_atomically(tmp_path / "file", b"data")
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_written_is_named(tmp_path) -> None:
    (tmp_path / "file").write_text("in the way")
    path = tmp_path / "file" / "s.safetensors"
    with pytest.raises(OSError, match=rf"cannot write {path}.*choose another folder"):
        Steering([(POST.format(1), Add(random(32)))]).save(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_named(tmp_path) -> None:
    tmp_path.chmod(0o555)
    with pytest.raises(OSError, match=r"cannot write .*Permission denied"):
        write_atomically(tmp_path / "file", b"data")


def test_a_file_has_the_permissions_that_the_user_gives_to_new_files(tmp_path) -> None:
    before = os.umask(0o027)
    try:
        path = write_atomically(tmp_path / "file", b"data")
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
