"""Merged adapters in the lens: equal to plain Hugging Face, different from the base, and never unmerged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import ARCHITECTURES, make_case
from focus_cases import TASK, examples, roomy

import lensteer
from lensteer.methods.focus import FocusSettings, check_merged, load, merge, save_merged, train
from lensteer.models import shared_copy, twin_of

peft = pytest.importorskip("peft")
SMALL = FocusSettings(steps=3, batch_size=4, evaluate_every=3, learning_rate=2e-2)


@pytest.fixture(scope="module", params=list(ARCHITECTURES))
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    case = make_case(request.param, **roomy(request.param))
    folder = tmp_path_factory.mktemp(request.param)
    return case, train(case.model, TASK, examples(16), [], folder, SMALL, progress=False)


def logits(model: Any, ids: Any) -> torch.Tensor:
    with torch.inference_mode():
        output = model(ids)
    return (output if isinstance(output, torch.Tensor) else output.logits).float()


def test_the_lens_equals_the_merged_model_and_peft_and_differs_from_the_base(trained: Any) -> None:
    case, adapter = trained
    lens = load(adapter, case.model)
    ids = torch.tensor([case.tokenizer(TASK.prompt(examples(1)[0]))["input_ids"]])
    merged = logits(lensteer.plain_model(lens), ids)
    unmerged = peft.PeftModel.from_pretrained(shared_copy(case.hf), str(adapter.folder)).eval()
    scale = float(merged.abs().max())
    assert float((logits(lens.original_model, ids) - merged).abs().max()) <= 2e-6 * max(scale, 1.0)
    assert float((logits(unmerged, ids) - merged).abs().max()) <= 1e-5 * max(scale, 1.0)
    assert float((logits(case.hf, ids) - merged).abs().max()) > 1e-2


def test_merging_copies_what_it_changes_and_leaves_the_base_alone(trained: Any) -> None:
    case, adapter = trained
    before = {name: p.clone() for name, p in case.hf.state_dict().items()}
    merged = merge(case.model, adapter)
    assert all(torch.equal(before[name], p) for name, p in case.hf.state_dict().items())
    changed = {name for name, p in merged.state_dict().items() if not torch.equal(before[name], p)}
    assert changed
    assert all(any(word in name for word in ("q_proj", "v_proj", "c_attn", "query_key_value")) for name in changed)
    own, base = dict(merged.named_parameters()), dict(case.hf.named_parameters())
    assert all(own[name].data_ptr() == base[name].data_ptr() for name in own if name not in changed)


def test_a_saved_merged_model_loads_as_an_ordinary_folder(trained: Any, tmp_path: Path) -> None:
    case, adapter = trained
    lens = load(adapter, case.model)
    again = lensteer.load_model(save_merged(lens, tmp_path), device="cpu")
    ids = torch.tensor([case.tokenizer("In: good red")["input_ids"]])
    torch.testing.assert_close(
        logits(again.original_model, ids), logits(lens.original_model, ids), atol=1e-5, rtol=1e-5
    )


def test_an_unmerged_adapter_is_refused_as_a_model(trained: Any) -> None:
    case, adapter = trained
    unmerged = peft.PeftModel.from_pretrained(shared_copy(case.hf), str(adapter.folder))
    virtual = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    prompted = peft.get_peft_model(shared_copy(case.hf), virtual)
    for model in (unmerged, unmerged.get_base_model(), prompted):
        with pytest.raises(ValueError, match="carries an adapter that is not merged"):
            lensteer.load_model(model, tokenizer=case.tokenizer)


def test_an_adapter_folder_is_refused_as_a_model_by_name(trained: Any) -> None:
    _, adapter = trained
    with pytest.raises((ValueError, lensteer.ModelUnavailable), match="adapter"):
        lensteer.load_model(adapter.folder)


def test_a_merged_model_that_is_the_base_is_refused(trained: Any) -> None:
    case, _ = trained
    with pytest.raises(RuntimeError, match="the adapter is not in it"):
        check_merged(case.model, case.model, TASK)


def test_an_adapter_of_another_model_is_refused(trained: Any) -> None:
    case, adapter = trained
    other = make_case("qwen2" if case.name != "qwen2" else "llama", **roomy("llama"))
    with pytest.raises(ValueError, match="is not: architecture"):
        merge(other.model, adapter)
    same_shape = make_case(case.name, seed=1, **roomy(case.name))
    with pytest.raises(ValueError, match="is not: weights"):
        merge(same_shape.model, adapter)


def test_an_adapter_is_not_merged_twice(trained: Any) -> None:
    case, adapter = trained
    with pytest.raises(ValueError, match="is not: weights"):
        load(adapter, load(adapter, case.model))


def test_a_lens_on_the_weights_of_the_base_is_refused(trained: Any) -> None:
    case, adapter = trained
    lens = lensteer.load_model(shared_copy(case.hf), tokenizer=case.tokenizer)
    twin_of(lens).plain = merge(case.model, adapter)
    with pytest.raises(RuntimeError, match="the lens lacks weights of the merged model"):
        check_merged(lens, case.model, TASK)


def test_a_folder_without_an_adapter_is_refused(tmp_path: Path, llama: Any) -> None:
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        load(tmp_path, llama.model)


def test_an_adapter_of_a_half_precision_model_is_merged_in_float32(
    tmp_path: Path, fresh_hf: Any, new_tokenizer: Any
) -> None:
    hf = fresh_hf("llama", max_position_embeddings=512).to(torch.bfloat16)
    model = lensteer.load_model(hf, tokenizer=new_tokenizer(bos=True))
    adapter = train(model, TASK, examples(8), [], tmp_path, SMALL, progress=False)
    merged = merge(model, adapter)
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "adapter_model.safetensors")
    name = next(key for key in weights if "layers.1.self_attn.v_proj.lora_A" in key)
    a, b = weights[name].float(), weights[name.replace("lora_A", "lora_B")].float()
    base = hf.model.layers[1].self_attn.v_proj.weight.float()
    wanted = (base + SMALL.lora_alpha / SMALL.lora_rank * b @ a).to(torch.bfloat16)
    assert torch.equal(merged.model.layers[1].self_attn.v_proj.weight, wanted)
