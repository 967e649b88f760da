"""Groups of sites against Hugging Face's own modules, their order, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from groups import PLACES, hooked

from lensteer import Affine, Steering
from lensteer.attach import attached
from lensteer.models import lens_model
from lensteer.sites import GROUPS, ordered_points

PROMPT = "Rain fell all night on the hills."


def ids_of(case: Any) -> torch.Tensor:
    return torch.tensor([case.tokenizer(PROMPT)["input_ids"]])


@pytest.mark.parametrize(("tiny", "group"), PLACES, indirect=["tiny"])
def test_a_group_is_the_modules_of_the_paper_in_the_order_in_which_they_run(tiny: Any, group: str) -> None:
    theirs: list[torch.Tensor] = []

    def note(place: str, x: torch.Tensor) -> torch.Tensor:
        theirs.append(x.clone())
        return x

    handles = hooked(tiny.hf, group, range(4), note, tiny.name)
    with torch.no_grad():
        tiny.hf(ids_of(tiny), use_cache=False)
    for handle in handles:
        handle.remove()
    points = ordered_points(tiny.model, group, edit=True)
    for face in (tiny.hf, lens_model(tiny.model)):
        ours: dict[str, torch.Tensor] = {}
        functions = [(point, lambda x, hook, name=point.name, seen=ours: seen.setdefault(name, x)) for point in points]
        with torch.no_grad(), attached(tiny.model, functions):
            face(ids_of(tiny), use_cache=False)
        assert list(ours) == [point.name for point in points]
        for mine, expected in zip(ours.values(), theirs, strict=True):
            torch.testing.assert_close(mine.reshape(expected.shape), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(("tiny", "group"), PLACES, indirect=["tiny"])
def test_edits_at_a_groups_points_change_both_faces_like_plain_hooks_do(tiny: Any, group: str) -> None:
    points = ordered_points(tiny.model, group, [0, 2], edit=True)
    generator = torch.Generator().manual_seed(0)
    edits = []
    for point in points:
        scale, shift = (torch.randn(point.shape, generator=generator) for _ in range(2))
        edits.append(Affine(1 + scale / 4, shift / 4, torch.full(point.shape, -2.0), torch.full(point.shape, 0.9)))
    waiting = iter(edits)

    def change(place: str, x: torch.Tensor) -> torch.Tensor:
        edit = next(waiting)
        scale, shift = edit.scale.flatten(), edit.shift.flatten()
        return torch.where((x > -2) & (x < 0.9), scale * x + shift, x)

    with torch.no_grad():
        clean = tiny.hf(ids_of(tiny), use_cache=False).logits
        handles = hooked(tiny.hf, group, [0, 2], change, tiny.name)
        expected = tiny.hf(ids_of(tiny), use_cache=False).logits
        for handle in handles:
            handle.remove()
        assert (expected - clean).abs().max() > 0.05
        with Steering(zip([point.name for point in points], edits, strict=True)).on(tiny.model):
            for face in (tiny.hf, lens_model(tiny.model)):
                torch.testing.assert_close(face(ids_of(tiny), use_cache=False).logits, expected, atol=1e-4, rtol=1e-4)


def test_sites_of_several_groups_are_put_into_the_order_of_execution(tiny: Any) -> None:
    points = ordered_points(tiny.model, ["residual", "mlp_linears", "norms", "attention", "heads"], [2, 0], edit=True)
    reached: list[str] = []

    def noting(name: str) -> Any:
        return lambda x, hook: (reached.append(name), x)[1]

    with torch.no_grad(), attached(tiny.model, [(point, noting(point.name)) for point in points]):
        tiny.hf(ids_of(tiny), use_cache=False)
    assert reached == [point.name for point in points]
    assert [name for name in reached if ".0." in name] + [name for name in reached if ".2." in name] == reached


def test_post_norms_are_refused_where_a_module_only_has_their_name(tiny: Any) -> None:
    if tiny.name == "gemma2":
        paths = [point.module for point in ordered_points(tiny.model, "post_norms", 1)]
        assert paths == ["model.layers.1.post_attention_layernorm", "model.layers.1.post_feedforward_layernorm"]
        return
    words = r"no 'post_norms' \(no ln1_post.hook_out or ln2_post.hook_out.*groups that it has: attention, mlp, norms"
    with pytest.raises(ValueError, match=words):
        ordered_points(tiny.model, "post_norms")


def test_every_group_is_one_that_some_model_has() -> None:
    assert {group for _, group in PLACES} == set(GROUPS)


def test_shorthand_and_hook_names_are_sites_as_well(llama: Any) -> None:
    found = ordered_points(llama.model, ["ln_final.hook_out", "resid_pre", "blocks.1.attn.hook_z"], [2, 1], edit=True)
    names = ["blocks.1.hook_resid_pre", "blocks.1.attn.hook_z", "blocks.2.hook_resid_pre", "ln_final.hook_out"]
    assert [point.name for point in found] == names
    assert [p.name for p in ordered_points(llama.model, "norms", iter([3]))] == [
        "blocks.3.ln1.hook_out",
        "blocks.3.ln2.hook_out",
    ]


@pytest.mark.parametrize(
    ("sites", "words"),
    [
        (["norms", "norms"], "'blocks.1.ln1.hook_out' is given twice; a map"),
        (["attention", "attn_out"], "hook_attn_out' is given twice .as 'blocks.1.attn.hook_out' as well"),
        (["mlp", "mlp_linears"], "'blocks.1.mlp.hook_out' is given twice"),
        (["heads", "blocks.1.attn.o.hook_in"], r"'blocks.1.attn.o.hook_in' is given twice \(as 'blocks.1.attn.hook_z'"),
        # Other points, the same tensor.
        (["attention", "blocks.1.attn.o.hook_out"], r"o.hook_out' is given twice \(as 'blocks.1.attn.hook_out'"),
        (["mlp", "blocks.1.mlp.out.hook_out"], r"out.hook_out' is given twice \(as 'blocks.1.mlp.hook_out'"),
        (["residual", "blocks.2.hook_resid_pre"], r"resid_pre' is given twice \(as 'blocks.1.hook_resid_post'"),
        ("layernorm", "has no hook point 'blocks.1.hook_layernorm'"),
        ([], "no sites were given"),
        ("neuron", "cannot be edited"),
        ("resid_mid", "cannot be edited"),
    ],
)
def test_sites_that_are_unknown_given_twice_or_cannot_be_edited_are_refused(llama: Any, sites: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ordered_points(llama.model, sites, 1, edit=True)


@pytest.mark.parametrize("layers", [4, [0, -1], []])
def test_layers_that_the_model_does_not_have_are_refused(llama: Any, layers: Any) -> None:
    with pytest.raises(ValueError, match=r"layer.* 0 to 3"):
        ordered_points(llama.model, "norms", layers)


def test_gemmas_attn_out_is_its_post_norm_and_not_the_groups_attention(fresh: Any) -> None:
    model = fresh("gemma2").model
    assert len(ordered_points(model, ["attention", "attn_out"], 0)) == 2
    with pytest.raises(ValueError, match=r"'blocks.0.hook_attn_out' is given twice \(as 'blocks.0.ln1_post.hook_out'"):
        ordered_points(model, ["post_norms", "attn_out"], 0)
