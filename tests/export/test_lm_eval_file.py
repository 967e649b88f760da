"""The file for lm-eval's own steered model: its logits are lensteer's, and what does not fit is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lensteer import STEPS, Add, ScaleElements, SetElements, SetProjection, Steering, at
from lensteer.export import to_lm_eval

RESID = "blocks.1.hook_resid_post"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


STEERINGS = {
    "add": [(RESID, Add(random(32), 3.0))],
    "set_projection": [(RESID, SetProjection(random(32), 4.0))],
    "ablate at every site": [
        ("blocks.0.hook_attn_out", SetProjection(random(32))),
        ("blocks.2.hook_mlp_out", SetProjection(random(32, seed=1))),
    ],
    "mixed": [
        ("blocks.0.hook_mlp_out", Add(random(32, seed=2), -2.0)),
        ("blocks.2.hook_attn_out", Add(random(32, seed=3), 0.5)),
        ("blocks.3.hook_resid_post", SetProjection(random(32, seed=4), -3.0)),
    ],
    "adds at one point": [
        (RESID, Add(random(32), 3.0)),
        ("blocks.1.hook_out", Add(random(32, seed=1), -1.5)),  # the same point by its other name
    ],
}


def steered_logits(case: Any, folder: Path, file: Path, ids: torch.Tensor) -> torch.Tensor:
    """What lm-eval's steered model puts out, loaded from disk."""
    pytest.importorskip("lm_eval", reason='lm-eval is not installed (the extra "eval")')
    from lm_eval.models.hf_steered import SteeredModel

    case.hf.save_pretrained(folder / "model")
    case.tokenizer.save_pretrained(folder / "model")
    lm = SteeredModel(pretrained=str(folder / "model"), steer_path=str(file), device="cpu")
    return lm._model_call(ids)


@pytest.mark.parametrize("name", list(STEERINGS))
def test_lm_evals_steered_model_gives_the_logits_of_the_hooked_model(tiny, tmp_path: Path, name: str) -> None:
    steering = Steering(STEERINGS[name])
    ids = torch.tensor([tiny.tokenizer("Rain falls on the roof")["input_ids"]])
    found = steered_logits(tiny, tmp_path, to_lm_eval(steering, tiny.model, tmp_path / "steering.pt"), ids)
    with torch.no_grad():
        plain = tiny.hf(ids).logits
        with steering.on(tiny.model):
            wanted = tiny.hf(ids).logits
    assert (wanted - plain).abs().max() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_edits_of_strength_0_are_left_out(llama, tmp_path: Path) -> None:
    nothing = Steering([(RESID, SetProjection(random(32), 4.0)), ("blocks.2.attn.hook_z", Add(random(4, 8)))]) * 0
    assert torch.load(to_lm_eval(nothing, llama.model, tmp_path / "a.pt")) == {}
    (entry,) = torch.load(to_lm_eval(STEERINGS["add"] + list(nothing), llama.model, tmp_path / "b.pth")).values()
    assert (entry["action"], entry["steering_coefficient"], entry["head_index"], entry["bias"]) == (
        "add",
        1,
        None,
        None,
    )
    torch.testing.assert_close(entry["steering_vector"], 3 * random(32))


ADD, SET = Add(random(32), 2.0), SetProjection(random(32), 1.0)
REFUSED: dict[str, tuple[list[tuple[str, Any]], str]] = {
    "positions": (
        [(RESID, at(ADD, STEPS))],
        r"edit 0, Add at 'blocks.1.hook_resid_post'.*tokens=slice\(-1, None, None\)",
    ),
    "per-row strengths": ([(RESID, ADD.at_strength([1.0, 2.0]))], r"values for 2 rows.*at_strength\(number\)"),
    "half a projection": ([(RESID, SET.at_strength(0.5))], r"strength is 0.5.*at_strength\(1\)"),
    "another direction": ([(RESID, SetProjection(random(32), along=random(32, seed=1)))], "one direction"),
    "scaled elements": ([(RESID, ScaleElements(random(32) > 0))], "ScaleElements.*only adds a vector or sets a proj"),
    "set elements": ([(RESID, SetElements(random(32)))], "SetElements.*only adds a vector or sets a projection"),
    "an input": ([(RESID, ADD), ("blocks.2.attn.hook_z", Add(random(4, 8)))], "edit 1, Add at 'blocks.2.attn.hook_z'"),
    "the input of a block": ([("blocks.2.hook_resid_pre", ADD)], "use blocks.1.hook_resid_post, resid_post, attn_out"),
    "two edits": ([(RESID, ADD), (RESID, SET)], "edit 1, SetProjection.*another edit acts at that point already"),
    "two projections": ([(RESID, SET), (RESID, SET)], "only Adds can be summed"),
}


@pytest.mark.parametrize("name", list(REFUSED))
def test_what_the_format_cannot_hold_is_refused_and_nothing_is_written(llama, tmp_path: Path, name: str) -> None:
    pairs, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        to_lm_eval(pairs, llama.model, tmp_path / "steering.pt")
    assert not list(tmp_path.iterdir())


def test_a_path_that_lm_eval_would_not_read_is_refused(llama, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"must end in .pt or .pth"):
        to_lm_eval(STEERINGS["add"], llama.model, tmp_path / "steering.safetensors")


def test_a_steering_that_does_not_fit_the_model_is_refused(llama, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no hook point 'blocks.9.hook_resid_post'"):
        to_lm_eval([("blocks.9.hook_resid_post", ADD)], llama.model, tmp_path / "steering.pt")
