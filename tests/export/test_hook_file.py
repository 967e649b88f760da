"""The standalone hook file: without lensteer it steers the plain model as lensteer does, and it reads well."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lensteer import Add, Affine, ScaleElements, SetElements, SetProjection, Steering, at
from lensteer.export import to_hook_file

ROOT = Path(__file__).parents[2]
RESID = "blocks.1.hook_resid_post"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STEERINGS: dict[str, list[tuple[str, Any]]] = {
    "add": [(RESID, Add(random(32), 3.0))],
    "add_to_heads_and_to_an_input": [
        ("blocks.0.hook_resid_pre", Add(random(32, seed=1).double(), -2.0)),
        ("blocks.1.attn.hook_z", Add(random(4, 8), 2.0)),
    ],
    "set_projection": [
        (RESID, SetProjection(random(32), 4.123456789012345)),
        (RESID, SetProjection(random(32, seed=1), strength=0.7, along=random(32, seed=2))),
        ("blocks.2.attn.hook_z", SetProjection(random(4, 8), 3.0)),
    ],
    "scale_elements": [
        ("blocks.1.mlp.hook_post", ScaleElements(random(64) > 0, 1.5)),
        ("blocks.2.attn.hook_z", ScaleElements(torch.tensor([True, False, False, True])[:, None].expand(4, 8), -1.0)),
    ],
    "set_elements": [
        ("blocks.1.hook_attn_out", SetElements(random(32))),
        ("blocks.2.hook_mlp_out", SetElements(3 * random(32), random(32, seed=1) > 0, 0.4)),
    ],
    "affine": [
        ("blocks.1.ln1.hook_out", Affine(1 + random(32), random(32, seed=1), strength=0.6)),
        ("blocks.2.hook_mlp_out", Affine(random(32), random(32, seed=1), -random(32).abs(), random(32, seed=2).abs())),
    ],
    "everything_at_one_place": [
        (RESID, Add(random(32), 3.0)),
        (RESID, ScaleElements(random(32) > 0, 0.5)),
        (RESID, SetProjection(random(32), 2.0)),
        (RESID, Affine(random(32), random(32, seed=1))),
    ],
}
CASES = ("llama", "gpt2", "gemma2", "neox")
# Left-padded, so that it matters what padding is and that the cache starts with it.
IDS = torch.tensor([[0, 0, 0, 40, 77, 81, 90], [1, 50, 60, 33, 99, 21, 14]])
MASK = (torch.arange(7) >= torch.tensor([[3], [0]])).long()
ALONE = """
import json, sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lensteer", "transformer_lens", "analysis"):
            raise ImportError(f"{name} is not to be used here")

sys.meta_path.insert(0, Blocker())
import importlib
import torch
from transformers import AutoModelForCausalLM

work = json.load(open("work.json"))
ids, mask = torch.tensor(work["ids"]), torch.tensor(work["mask"])
found = {}
for case, names in work["cases"].items():
    sys.path.insert(0, case)
    model = AutoModelForCausalLM.from_pretrained(f"{case}/model").eval()
    with torch.no_grad():
        found[case, "plain"] = model(ids, attention_mask=mask).logits
        for name in names:
            sys.modules.pop(name, None)
            importlib.invalidate_caches()
            with importlib.import_module(name).steer(model) as steered:
                logits = steered(ids, attention_mask=mask).logits
                tokens = steered.generate(ids, attention_mask=mask, max_new_tokens=8, do_sample=False, pad_token_id=0)
            found[case, name] = (logits, tokens, model(ids, attention_mask=mask).logits)
    sys.path.pop(0)
torch.save(found, "found.pt")
"""


@pytest.fixture(scope="module")
def models(fresh: Any) -> dict[str, Any]:
    return {name: fresh(name) for name in CASES}


@pytest.fixture(scope="module")
def alone(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[Any, Any]:
    """What a process without lensteer gets from the files: logits, greedy tokens, and logits after the block."""
    folder = tmp_path_factory.mktemp("alone")
    for case, model in models.items():
        model.hf.save_pretrained(folder / case / "model")
        for name, pairs in STEERINGS.items():
            to_hook_file(pairs, model.model, folder / case / f"{name}.py")
    work = {"cases": {case: list(STEERINGS) for case in CASES}, "ids": IDS.tolist(), "mask": MASK.tolist()}
    (folder / "work.json").write_text(json.dumps(work))
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return torch.load(folder / "found.pt")


@pytest.mark.parametrize("name", list(STEERINGS))
@pytest.mark.parametrize("case", CASES)
def test_without_lensteer_the_file_gives_lensteers_logits_and_tokens(
    models: dict[str, Any], alone: dict[Any, Any], case: str, name: str
) -> None:
    model, hf = models[case].model, models[case].hf
    logits, tokens, after = alone[case, name]
    with torch.no_grad(), Steering(STEERINGS[name]).on(model):
        wanted = hf(IDS, attention_mask=MASK).logits
        greedy = hf.generate(IDS, attention_mask=MASK, max_new_tokens=8, do_sample=False, pad_token_id=0)
    real = MASK.bool()
    assert (wanted - alone[case, "plain"])[real].abs().max() > 0.1
    torch.testing.assert_close(logits[real], wanted[real], atol=1e-4, rtol=1e-4)
    assert tokens.tolist() == greedy.tolist()
    assert torch.equal(after, alone[case, "plain"])  # nothing stays behind


@pytest.mark.parametrize("name", list(STEERINGS))
def test_the_file_is_as_a_person_would_have_left_it(models: dict[str, Any], tmp_path: Path, name: str) -> None:
    for case in CASES:
        to_hook_file(STEERINGS[name], models[case].model, tmp_path / f"{case}.py")
    for arguments in (["check"], ["format", "--check"]):
        command = [sys.executable, "-m", "ruff", *arguments, "--config", str(ROOT / "pyproject.toml"), str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout
    assert all(len(path.read_text().splitlines()) < 140 for path in tmp_path.glob("*.py"))


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", list(STEERINGS))
def test_the_same_file_has_hooks_for_transformer_lens(models: dict[str, Any], tmp_path: Path, name: str) -> None:
    model, steering = models["llama"].model, Steering(STEERINGS[name])
    hooks = load(to_hook_file(steering, model, tmp_path / "steering.py")).fwd_hooks()
    with torch.no_grad():
        wanted = model.run_with_hooks(IDS[1:], fwd_hooks=steering)
        torch.testing.assert_close(model.run_with_hooks(IDS[1:], fwd_hooks=hooks), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", list(STEERINGS))
def test_in_half_precision_the_functions_give_what_the_edits_give(
    models: dict[str, Any], tmp_path: Path, name: str, dtype: torch.dtype
) -> None:
    hooks = load(to_hook_file(STEERINGS[name], models["llama"].model, tmp_path / "steering.py")).fwd_hooks()
    for (_, edit), (_, function) in zip(STEERINGS[name], hooks, strict=True):
        x = random(2, 5, *edit.shape, seed=9).to(dtype)
        found, wanted = function(x, hook=None), edit(x)
        assert found.dtype == dtype
        rounding = 2 * torch.finfo(dtype).eps
        torch.testing.assert_close(found, wanted, atol=rounding, rtol=rounding)


def test_an_error_in_the_block_and_a_missing_module_leave_no_hook_behind(
    models: dict[str, Any], tmp_path: Path
) -> None:
    pairs = STEERINGS["set_projection"]
    steer = load(to_hook_file(pairs, models["llama"].model, tmp_path / "steering.py")).steer

    def hooks(module: Any) -> int:
        return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())

    hf = models["llama"].hf
    before = hooks(hf)
    with pytest.raises(RuntimeError, match="mine"), steer(hf):
        assert hooks(hf) == before + len(pairs)
        raise RuntimeError("mine")
    assert hooks(hf) == before
    other = models["gpt2"].hf
    before = hooks(other)
    with pytest.raises(AttributeError, match="model"), steer(other):
        pass
    assert hooks(other) == before


def test_the_tensors_beside_the_file_are_the_steering_as_lensteer_saves_it(llama: Any, tmp_path: Path) -> None:
    steering = Steering(STEERINGS["affine"]).made_on(llama.model, method='mean "shift"""', name="calm\\x")
    nothing = Steering([(RESID, SetProjection(random(32)))]) * 0
    path = to_hook_file(nothing + steering, llama.model, tmp_path / "new" / "steering.py")
    again = Steering.load(tmp_path / "new" / "steering.hooks.safetensors", llama.model)
    assert again.content_hash() == steering.content_hash()
    assert again.metadata == steering.metadata
    assert [row[0] for row in load(path).EDITS] == [name for name, _ in steering]
    assert "calm" in load(path).__doc__


ADD = Add(random(32), 2.0)
REFUSED: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "positions": (
        [(RESID, ADD), (RESID, at(ADD, "generated"))],
        r"edit 1, Add at 'blocks.1.hook_resid_post'.*tokens='generated'.*KV cache.*without at",
    ),
    "per-row strengths": ([(RESID, ADD.at_strength([1.0, 2.0]))], "values for 2 rows of one batch; use one strength"),
    "frozen values": ([(RESID, ScaleElements(random(32) > 0, frozen=random(3, 32)))], "ScaleElements.*for 3 rows"),
    "values per row": ([(RESID, SetElements(random(3, 32), per_row=True))], "SetElements.*for 3 rows"),
    "a point of the lens": ([("blocks.1.attn.hook_q", Add(random(4, 8)))], "neither input nor output of a module"),
    "nothing": (list(Steering([(RESID, ADD)]) * 0), "does nothing"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_file_cannot_hold_is_refused_and_nothing_is_written(llama: Any, tmp_path: Path, name: str) -> None:
    pairs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        to_hook_file(pairs, llama.model, tmp_path / "steering.py")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["steering.txt", "my-steering.py", "class.py", "2.py"])
def test_a_name_that_python_cannot_import_is_refused(llama: Any, tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="cannot be imported; give a name"):
        to_hook_file([(RESID, ADD)], llama.model, tmp_path / name)


def test_another_file_beside_it_stays_and_an_earlier_hook_file_is_replaced(llama: Any, tmp_path: Path) -> None:
    maps, beside = tmp_path / "ocean.safetensors", tmp_path / "ocean.hooks.safetensors"
    maps.write_bytes(b"saved maps")
    for strength in (2.0, 3.0):
        to_hook_file([(RESID, Add(random(32), strength))], llama.model, tmp_path / "ocean.py")
        assert [edit.strength for _, edit in Steering.load(beside)] == [strength]
    assert maps.read_bytes() == b"saved maps"
    beside.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"ocean\.hooks\.safetensors is there and is no steering; move it"):
        to_hook_file([(RESID, ADD)], llama.model, tmp_path / "ocean.py")
    assert beside.read_bytes() == b"mine"
