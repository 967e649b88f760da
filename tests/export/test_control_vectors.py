"""Control vectors: what llama.cpp would add is what lensteer adds, files of others are read, the rest is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import oracles
import pytest
import torch

from lensteer import Add, Affine, ScaleElements, SetProjection, Steering, at
from lensteer.export import from_gguf, to_gguf

RESID = "blocks.2.hook_resid_post"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


ADD = Add(random(32), 2.0)
INFINITE = torch.full((32,), torch.inf)
STEERINGS: dict[str, list[tuple[str, Any]]] = {
    "one layer": [(RESID, Add(random(32), 3.0))],
    "the last layer and the first that can be reached": [
        ("blocks.3.hook_resid_post", Add(random(32), -2.0)),
        ("blocks.1.hook_resid_post", Add(random(32, seed=1), 0.5)),
    ],
    "the input of the next layer": [("blocks.2.hook_resid_pre", Add(random(32), 3.0))],
    "several at one place": [
        ("blocks.1.hook_resid_post", Add(random(32), 3.0)),
        ("blocks.2.hook_resid_pre", Add(random(32, seed=1), -1.5)),
        ("blocks.1.hook_out", Add(random(32, seed=2), 0.25)),
    ],
    "maps that only shift": [
        ("blocks.1.hook_resid_post", Affine(torch.ones(32), random(32), strength=0.5)),
        (RESID, Affine(torch.ones(32), random(32, seed=1), -INFINITE, INFINITE)),
    ],
}


def raw(path: Path) -> dict[str, np.ndarray]:
    return {tensor.name: np.array(tensor.data) for tensor in gguf.GGUFReader(path).tensors}


def logits_as_in_llama_cpp(case: Any, path: Path, ids: list[int]) -> torch.Tensor:
    """direction.N is added to the output of block N of the plain model."""

    def adding(vector: np.ndarray) -> Callable[[torch.Tensor], torch.Tensor]:
        return lambda x: x + torch.tensor(vector)

    handles = [
        oracles.hook(case.hf, "resid_post", int(name.split(".")[1]), adding(vector))
        for name, vector in raw(path).items()
    ]
    try:
        with torch.no_grad():
            return case.hf(torch.tensor([ids])).logits
    finally:
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize("name", list(STEERINGS))
def test_adding_every_direction_to_the_output_of_its_block_gives_the_steered_logits(
    tiny: Any, tmp_path: Path, name: str
) -> None:
    steering = Steering(STEERINGS[name])
    ids = tiny.tokenizer("Rain falls on the roof")["input_ids"]
    path = to_gguf(steering, tiny.model, tmp_path / "vector.gguf")
    back = from_gguf(path, tiny.model)
    with torch.no_grad():
        plain = tiny.hf(torch.tensor([ids])).logits
        with steering.on(tiny.model):
            wanted = tiny.hf(torch.tensor([ids])).logits
        with back.on(tiny.model):
            again = tiny.hf(torch.tensor([ids])).logits
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(logits_as_in_llama_cpp(tiny, path, ids), wanted, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(again, wanted, atol=1e-4, rtol=1e-4)


def test_the_file_holds_every_layer_but_the_first_as_float32(llama: Any, tmp_path: Path) -> None:
    path = to_gguf([(RESID, Add(random(32).double(), 3.0))], llama.model, tmp_path / "new" / "vector.gguf")
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 3
    assert {t.tensor_type.name for t in reader.tensors} == {"F32"}
    tensors = raw(path)
    assert list(tensors) == ["direction.1", "direction.2", "direction.3"]
    np.testing.assert_array_equal(tensors["direction.2"], (3.0 * random(32).double()).float().numpy())
    assert not tensors["direction.1"].any() and not tensors["direction.3"].any()


@pytest.mark.parametrize("name, hint", [("mistral", "llama"), ("neox", "gptneox"), ("gemma2", "gemma2")])
def test_the_model_hint_is_llama_cpps_name_for_the_architecture(
    fresh: Any, tmp_path: Path, name: str, hint: str
) -> None:
    model = fresh(name).model
    path = to_gguf(STEERINGS["one layer"], model, tmp_path / "vector.gguf")
    assert gguf.GGUFReader(path).fields["controlvector.model_hint"].contents() == hint
    from_gguf(path, model)


def test_a_round_trip_is_exact_and_keeps_what_the_steering_says_of_itself(llama: Any, tmp_path: Path) -> None:
    steering = Steering([(RESID, Add(3 * random(32)))]).made_on(llama.model, method="mean é", name="calm")
    back = from_gguf(to_gguf(steering, llama.model, tmp_path / "a.gguf"), llama.model)
    assert back.metadata == steering.metadata
    assert back.content_hash() == steering.content_hash()
    to_gguf(back, llama.model, tmp_path / "b.gguf")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_edits_of_strength_0_are_left_out(llama: Any, tmp_path: Path) -> None:
    nothing = Steering([(RESID, SetProjection(random(32), 4.0)), ("blocks.2.attn.hook_z", Add(random(4, 8)))]) * 0
    path = to_gguf(nothing, llama.model, tmp_path / "vector.gguf")
    assert not any(vector.any() for vector in raw(path).values())
    assert len(from_gguf(path, llama.model)) == 0


REFUSED: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "positions": (
        [(RESID, ADD), (RESID, at(ADD, "last"))],
        r"edit 1, Add at 'blocks.2.hook_resid_post'.*tokens='last'.*without at",
    ),
    "per-row strengths": ([(RESID, ADD.at_strength([1.0, 2.0]))], r"values for 2 rows.*at_strength\(number\)"),
    "a projection": ([(RESID, SetProjection(random(32)))], "SetProjection.*only adds a vector; use Add.*to_hook_file"),
    "scaled elements": ([(RESID, ScaleElements(random(32) > 0))], "ScaleElements.*only adds a vector"),
    "a map that scales": ([(RESID, Affine(1 + 1e-6 * random(32), random(32)))], "it scales.*scale 1"),
    "half a support": ([(RESID, Affine(torch.ones(32), random(32), -INFINITE, random(32)))], "it has a support"),
    "an empty support": ([(RESID, Affine(torch.ones(32), random(32), INFINITE, INFINITE))], "it has a support"),
    "block 0": (
        [("blocks.0.hook_resid_post", ADD)],
        "from 1 on, and this comes before; use resid_post of layers 1 to 3",
    ),
    "the input of block 1": ([("blocks.1.hook_resid_pre", ADD)], "from 1 on, and this comes before"),
    "the embedding": ([("blocks.0.hook_resid_pre", ADD)], "from 1 on, and this comes before"),
    "attention": ([("blocks.2.hook_attn_out", ADD)], "adds between blocks; use resid_post of layers 1 to 3"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_a_control_vector_cannot_hold_is_refused_and_nothing_is_written(
    llama: Any, tmp_path: Path, name: str
) -> None:
    pairs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        to_gguf(pairs, llama.model, tmp_path / "vector.gguf")
    assert not list(tmp_path.iterdir())


# --- files of others -----------------------------------------------------------------------------------------------


def write(path: Path, tensors: dict[str, np.ndarray], hint: str | None = "llama", kind: str = "controlvector") -> Path:
    """As cvector-generator and repeng do."""
    writer = gguf.GGUFWriter(path, kind)
    if hint:
        writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(tensors))
    for name, tensor in tensors.items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def vectors(*layers: int, width: int = 32) -> dict[str, np.ndarray]:
    return {f"direction.{layer}": random(width, seed=layer).numpy() for layer in layers}


def test_a_file_of_others_becomes_one_add_a_layer_whatever_their_order(llama: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "happy.gguf", vectors(3, 1, 2), hint=None)
    steering = from_gguf(path, llama.model)
    assert [name for name, _ in steering] == [f"blocks.{layer}.hook_resid_post" for layer in (1, 2, 3)]
    for layer, (_, edit) in enumerate(steering, start=1):
        assert isinstance(edit, Add) and edit.strength == 1
        assert torch.equal(edit.vector, random(32, seed=layer))
    assert steering.metadata == {"method": "control vector", "name": "happy"}


def test_without_a_model_a_file_with_gaps_is_taken_as_it_is(tmp_path: Path) -> None:
    steering = from_gguf(write(tmp_path / "sparse.gguf", vectors(2, 17), hint="anything"))
    assert [name for name, _ in steering] == ["blocks.2.hook_resid_post", "blocks.17.hook_resid_post"]


UNFIT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda p: p.write_text("not a GGUF file at all"), "cannot be read as GGUF.*magic"),
    "nothing": (lambda p: p.write_bytes(b""), "cannot be read as GGUF"),
    "half a file": (
        lambda p: p.write_bytes(write(p, vectors(1, 2, 3)).read_bytes()[:-200]),
        "cannot be read as GGUF; it is damaged, truncated",
    ),
    "half a header": (lambda p: p.write_bytes(write(p, vectors(1, 2, 3)).read_bytes()[:90]), "cannot be read as GGUF"),
    "a model": (lambda p: write(p, vectors(1), kind="llama"), "architecture 'llama', not a control vector.*load_model"),
    "other tensors": (lambda p: write(p, {"blk.0.weight": random(32).numpy()}), "'blk.0.weight'.*only direction.1"),
    "no tensors": (lambda p: write(p, {}), "no direction.N"),
    "layer 0": (lambda p: write(p, vectors(0, 1, 2, 3)), "'direction.0', but llama.cpp cannot steer layer 0"),
    "a layer twice": (
        lambda p: write(p, {**vectors(1, 2, 3), "direction.02": random(32).numpy()}),
        "two directions for layer 2",
    ),
    "half precision": (
        lambda p: write(p, {"direction.1": random(32).numpy().astype(np.float16)}),
        r"'direction.1' .* is F16 of shape \[32\]",
    ),
    "a matrix": (lambda p: write(p, {"direction.1": random(32, 2).numpy()}), r"is F32 of shape \[32, 2\]"),
    "not a number": (
        lambda p: write(p, {"direction.1": random(32).log().numpy()}),
        "'direction.1' .* holds NaN or inf",
    ),
    "another architecture": (lambda p: write(p, vectors(1, 2, 3), hint="qwen2"), "'qwen2'.*'llama'.*without model="),
    "another width": (lambda p: write(p, vectors(1, 2, 3, width=48)), "width 48, and .* has 32"),
    "two widths": (lambda p: write(p, vectors(1, 2) | vectors(3, width=48)), "width 32, 48, and .* has 32"),
    "a deeper model": (lambda p: write(p, vectors(*range(1, 7), 9)), "layers 4 to 6, 9, and .* at 1 to 3.*deeper"),
    "a smaller model": (lambda p: write(p, vectors(1)), "no directions for layers 2 to 3 of .*without model="),
}


@pytest.mark.parametrize("name", list(UNFIT))
def test_a_file_that_does_not_fit_is_refused(llama: Any, tmp_path: Path, name: str) -> None:
    make, message = UNFIT[name]
    make(tmp_path / "vector.gguf")
    with pytest.raises(ValueError, match=message) as caught:
        from_gguf(tmp_path / "vector.gguf", llama.model)
    assert "vector.gguf" in str(caught.value)


def test_a_file_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file at .*nowhere.gguf"):
        from_gguf(tmp_path / "nowhere.gguf")


# --- repeng --------------------------------------------------------------------------------------------------------


@pytest.fixture
def repeng(monkeypatch: pytest.MonkeyPatch) -> Any:
    """repeng 0.4.0 on numpy 2, of which it uses one name that has gone."""
    monkeypatch.setattr(np, "float_", np.float64, raising=False)
    return pytest.importorskip("repeng", reason="repeng is not installed (make test installs it)")


@pytest.mark.filterwarnings("error:.*(missing architecture|control vector)")
def test_repeng_reads_the_file_and_steers_its_own_model_the_same(
    repeng: Any, fresh: Any, fresh_hf: Any, tmp_path: Path
) -> None:
    case = fresh("llama")
    steering = (
        Steering(STEERINGS["several at one place"]) + STEERINGS["the last layer and the first that can be reached"]
    )
    vector = repeng.ControlVector.import_gguf(to_gguf(steering, case.model, tmp_path / "vector.gguf"))
    assert vector.model_type == "llama"
    assert list(vector.directions) == [1, 2, 3]
    ids = torch.tensor([case.tokenizer("Rain falls on the roof")["input_ids"]])
    theirs = repeng.ControlModel(fresh_hf("llama"), [1, 2, 3])
    theirs.set_control(vector)
    with torch.no_grad(), steering.on(case.model):
        torch.testing.assert_close(theirs(ids).logits, case.hf(ids).logits, atol=1e-4, rtol=1e-4)


def test_what_repeng_writes_is_read_and_written_again_unchanged(repeng: Any, llama: Any, tmp_path: Path) -> None:
    made = repeng.ControlVector("llama", {layer: random(32, seed=layer).numpy() for layer in (3, 2, 1)})
    made.export_gguf(tmp_path / "theirs.gguf")
    steering = from_gguf(tmp_path / "theirs.gguf", llama.model)
    assert repeng.ControlVector.import_gguf(to_gguf(steering, llama.model, tmp_path / "ours.gguf")) == made
