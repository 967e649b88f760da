"""Folded models against torch hooks on the plain Hugging Face model, in float64, in memory and loaded from disk."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from folding import IDS, MODULES, NAMES, affine, hooked, logits, points, quiet_fold, random, require_equal

import lensteer as ls
from lensteer import Add, Affine, ScaleElements, SetElements, SetProjection, Steering
from lensteer.export import fold
from lensteer.sites import GROUPS

pytestmark = pytest.mark.usefixtures("exact_gemma_norms", "remote_code")

GROUP_CASES = [(n, g) for n, g in itertools.product(NAMES, GROUPS) if g != "post_norms" or n == "gemma2"]


@pytest.mark.parametrize(("name", "group"), GROUP_CASES)
def test_random_maps_of_every_group_fold(double: Any, tmp_path: Path, name: str, group: str) -> None:
    model, hf = double(name)
    scale = 0.0 if group == "residual" else 0.3  # only shifts fold there
    names = points(model, hf, GROUPS[group])
    steering = Steering((point, affine(model, point, seed, scale)) for seed, point in enumerate(names))
    require_equal(model, hf, steering, tmp_path)


@pytest.mark.parametrize("name", NAMES)
def test_edits_at_all_sites_at_once_fold_in_their_order(double: Any, tmp_path: Path, name: str) -> None:
    model, hf = double(name)
    sites = [site for site in MODULES[hf.config.model_type][2] if not site.startswith("hook_resid")]
    edits: list[tuple[str, Any]] = []
    for seed, point in enumerate([*points(model, hf, sites), "ln_final.hook_out"]):
        edits += [(point, affine(model, point, seed)), (point, affine(model, point, 100 + seed))]
    for seed, point in enumerate(points(model, hf, ["hook_resid_pre", "hook_resid_post"])):
        edits.insert(seed, (point, Add(random((32,), 200 + seed), 0.3)))
    folded = require_equal(model, hf, Steering(edits), tmp_path)
    first, second = edits[-1], edits[-2]
    swapped, _ = quiet_fold(Steering([*edits[:-2], first, second]), model)
    assert (logits(swapped) - logits(folded)).abs().max() > 1e-3


@pytest.mark.parametrize("name", NAMES)
def test_add_folds_at_each_site_by_itself(double: Any, name: str) -> None:
    model, hf = double(name)
    for seed, site in enumerate(MODULES[hf.config.model_type][2]):
        point = f"blocks.{seed % 2}.{site}"
        edit = Add(random(ls.points.resolve(model, point)[0].shape, seed).float(), -0.5)
        with hooked(hf, [(point, edit)]):
            wanted = logits(hf)
        assert (logits(quiet_fold([(point, edit)], model)[0]) - wanted).abs().max() < 1e-10, point


@pytest.mark.parametrize("name", NAMES)
def test_scaled_and_set_elements_fold(double: Any, tmp_path: Path, name: str) -> None:
    model, hf = double(name)
    z, post = random((4, 8), 1), random((64,), 2)
    steering = Steering(
        [
            ("blocks.0.attn.hook_z", ScaleElements(z > 0, -0.6)),
            ("blocks.1.mlp.hook_post", ScaleElements(post > 0, 1.5)),
            ("blocks.2.attn.hook_z", SetElements(z, z < 0, 0.5)),
            ("blocks.2.mlp.hook_post", SetElements(post, post > 0.5)),
            ("blocks.3.attn.hook_out", SetElements(random((32,), 3))),
        ]
    )
    if name == "gemma2":
        steering = steering[:3]  # a value for an MLP of Gemma-2 needs its own code; tested above
    require_equal(model, hf, steering, tmp_path)


@pytest.mark.parametrize("method", ["linear", "mean", "aura"])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_fitted_transports_fold(double: Any, tmp_path: Path, name: str, method: str) -> None:
    model, hf = double(name)
    sites = "mlp" if method == "aura" else "norms"
    maps = ls.transport.fit(
        model, ["cold wet rain", "grey ice", "dull mud"], ["warm sun", "a hot day", "dry sand"], method, sites,
        support=None, progress=False,
    )  # fmt: skip
    require_equal(model, hf, maps.steering(0.8), tmp_path)


def test_a_folded_model_generates_what_the_steered_one_does(double: Any) -> None:
    model, hf = double("llama")
    steering = Steering((p, affine(model, p, s)) for s, p in enumerate(points(model, hf, GROUPS["norms"])))
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "pad_token_id": 0}
    with hooked(hf, steering):
        wanted = hf.generate(IDS, **options)
    assert not torch.equal(wanted, hf.generate(IDS, **options))
    assert torch.equal(fold(steering, model).generate(IDS, **options), wanted)


@pytest.mark.parametrize("name", NAMES)
def test_the_given_model_keeps_every_bit_and_shares_no_tensor(double: Any, name: str) -> None:
    model, hf = double(name)
    before = {key: value.clone() for key, value in hf.state_dict().items()}
    config = hf.config.to_dict()
    steering = Steering((p, affine(model, p, 1)) for p in points(model, hf, ["ln1.hook_out", "attn.hook_z"]))
    folded, _ = quiet_fold(steering, model)
    assert before.keys() == hf.state_dict().keys() and hf.config.to_dict() == config
    assert all(torch.equal(value, before[key]) for key, value in hf.state_dict().items())
    pointers = {tensor.data_ptr() for tensor in (*hf.parameters(), *hf.buffers())}
    assert not pointers & {tensor.data_ptr() for tensor in (*folded.parameters(), *folded.buffers())}


def test_edits_of_strength_0_leave_every_weight(double: Any) -> None:
    model, hf = double("mistral")
    nothing = Steering([("blocks.1.hook_resid_post", SetProjection(random((32,), 0)))]) * 0
    folded, own_code = quiet_fold(nothing, model)
    assert type(folded) is type(hf) and not own_code
    assert all(torch.equal(value, hf.state_dict()[key]) for key, value in folded.state_dict().items())


def test_an_infinite_support_is_none(double: Any, tmp_path: Path) -> None:
    model, hf = double("llama")
    infinite = torch.full((32,), torch.inf, dtype=torch.float64)
    edit = Affine(1 + random((32,), 1), random((32,), 2), -infinite, infinite)
    require_equal(model, hf, [("blocks.1.ln1.hook_out", edit)], tmp_path)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 0.06)])
@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_lower_precision_differs_from_hooks_by_rounding(
    fresh_hf: Any, new_tokenizer: Any, name: str, dtype: torch.dtype, tolerance: float
) -> None:
    hf = fresh_hf(name).to(dtype)
    model = ls.load_model(hf, tokenizer=new_tokenizer())
    steering = Steering((p, affine(model, p, s)) for s, p in enumerate(points(model, hf, GROUPS["norms"])))
    folded = fold(steering, model)
    assert {parameter.dtype for parameter in folded.parameters()} == {dtype}
    plain = logits(hf).double()
    with steering.on(model):
        wanted = logits(hf).double()
    assert (wanted - plain).norm() > 3 * tolerance * wanted.norm()
    assert (logits(folded).double() - wanted).norm() < tolerance * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_a_transport_of_the_default_model_folds_and_loads_plainly(
    dtype: torch.dtype, tolerance: float, tmp_path: Path
) -> None:
    try:
        model = ls.load_model(dtype=dtype, device="cpu")
    except ls.ModelUnavailable as error:
        pytest.skip(f"the default model cannot be had here: {error}")
    sides = ls.data.tone("fit", n=40)
    maps = ls.transport.fit(model, sides.source, sides.target, "linear", "norms", support=None, progress=False)
    steering = maps.steering(1.0)
    fold(steering, model).save_pretrained(tmp_path)
    folded = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=dtype)
    ids = torch.tensor([model.tokenizer("The city lies between a river and the sea, and")["input_ids"]])
    hf = ls.plain_model(model)
    with torch.no_grad():
        plain = hf(ids).logits.float()
        with steering.on(model):
            wanted = hf(ids).logits.float()
        found = folded(ids).logits.float()
    assert (wanted - plain).norm() > 3 * tolerance * wanted.norm()
    assert (found - wanted).norm() < tolerance * wanted.norm()
