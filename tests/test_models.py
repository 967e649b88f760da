"""Two faces of one set of weights: the plain model untouched, the lens equal to it, and what is refused."""

from __future__ import annotations

import copy
import gc
import json
import os
import socket
import weakref
from typing import Any

import oracles
import pytest
import torch
import transformers

import lensteer
from lensteer import Add, ModelUnavailable, Steering, at, checkpoints, load_model, plain_model
from lensteer.models import fingerprint, source_of, tokenizer_of, twin_of

IDS = torch.tensor([[5, 70, 33, 250, 9, 40]])
PROMPTS = ["The sky", "A longer prompt, of more than eight tokens"]


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        output = model(IDS)
    return output if isinstance(output, torch.Tensor) else output.logits


def use(model: Any) -> None:
    """A bit of everything."""
    steering = Steering([("blocks.1.hook_resid_post", at(Add(random(32), 3.0), "generated"))])
    lensteer.capture(model, PROMPTS, ["resid_post", "q"], progress=False)
    lensteer.generate(model, [*PROMPTS, PROMPTS[0]], steering, max_new_tokens=3, progress=False)
    lensteer.generate(model, PROMPTS, max_new_tokens=3, use_cache=False, progress=False)
    lensteer.log_probs(model, PROMPTS, ["yes", "no"], steering, progress=False)
    model.run_with_hooks(IDS, fwd_hooks=steering)


def test_the_lens_and_the_plain_model_compute_the_same(tiny) -> None:
    torch.testing.assert_close(logits(tiny.model), logits(tiny.hf), atol=1e-4, rtol=1e-4)


def test_the_real_models_faces_compute_the_same(smollm2) -> None:
    lens, plain = logits(smollm2.model).log_softmax(-1), logits(smollm2.hf).log_softmax(-1)
    torch.testing.assert_close(lens, plain, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "mistral", "qwen2", "neox"])
def test_the_plain_model_is_bit_identical_after_loading_and_use(fresh_hf, new_tokenizer, name: str, tmp_path) -> None:
    hf = fresh_hf(name)
    before, state, hooks = logits(hf), copy.deepcopy(hf.state_dict()), oracles.hooks_on(hf)
    modules = [(key, type(module)) for key, module in hf.named_modules()]
    config, attention = hf.config.to_json_string(), hf.config._attn_implementation
    generation = hf.generation_config.to_json_string()
    model = load_model(hf, tokenizer=new_tokenizer())
    use(model)
    assert plain_model(model) is hf
    assert torch.equal(logits(hf), before)
    assert all(torch.equal(state[key], value) for key, value in hf.state_dict().items())
    assert [(key, type(module)) for key, module in hf.named_modules()] == modules
    assert (hf.config.to_json_string(), hf.config._attn_implementation) == (config, attention)
    assert hf.generation_config.to_json_string() == generation
    assert oracles.hooks_on(hf) == hooks == {}
    hf.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation=attention)
    assert torch.equal(logits(again), before)


def test_the_real_plain_model_can_be_saved_and_read_back(smollm2, tmp_path) -> None:
    smollm2.hf.save_pretrained(tmp_path)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(logits(again), logits(smollm2.hf))


def test_both_faces_share_every_weight(tiny) -> None:
    def storages(model: Any) -> set[int]:
        return {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}

    mine, theirs = storages(tiny.hf), storages(tiny.model)
    assert mine <= theirs
    # TransformerLens splits NeoX's fused attention weights into copies.
    assert theirs == mine or tiny.name == "neox"


def test_a_weight_changed_on_one_face_changes_the_other(fresh) -> None:
    case = fresh("llama")
    before = logits(case.model)
    with torch.no_grad():
        case.hf.model.layers[1].mlp.down_proj.weight.add_(0.5)
    assert not torch.allclose(logits(case.model), before, atol=0.1)
    torch.testing.assert_close(logits(case.model), logits(case.hf), atol=1e-4, rtol=1e-4)


def test_the_tokenizer_is_kept_as_it_is(tiny) -> None:
    assert tiny.model.tokenizer is tiny.tokenizer is tokenizer_of(tiny.model)
    assert tiny.model.cfg.tokenizer_prepends_bos == (tiny.tokenizer("a").input_ids[0] == 1)
    assert tiny.model.cfg.default_prepend_bos is False


def test_nothing_is_folded_or_centred(tiny) -> None:
    assert not tiny.model.compatibility_mode
    assert tiny.model.cfg.dtype == torch.float32


def test_a_model_in_training_mode_is_put_into_evaluation_mode(fresh_hf, new_tokenizer) -> None:
    """Else its dropout would make the plain face random."""
    hf = fresh_hf("gpt2").train()
    model = load_model(hf, tokenizer=new_tokenizer())
    assert not hf.training
    assert torch.equal(logits(hf), logits(hf))
    torch.testing.assert_close(logits(model), logits(hf), atol=1e-4, rtol=1e-4)


def test_a_half_precision_model_takes_a_single_precision_vector(fresh_hf, new_tokenizer) -> None:
    for dtype in (torch.bfloat16, torch.float16):
        hf = fresh_hf("llama").to(dtype)
        model = load_model(hf, tokenizer=new_tokenizer())
        assert (model.cfg.dtype, fingerprint(model)["dtype"]) == (dtype, str(dtype)[6:])
        found = lensteer.capture(model, PROMPTS, ["resid_post", "z"], layers=2, progress=False)
        assert {value.dtype for value in found.values()} == {torch.float32}
        steering = Steering([("blocks.1.hook_resid_post", Add(random(32), 4.0))])
        steered = lensteer.generate(model, PROMPTS, steering, max_new_tokens=4, progress=False)
        plain = lensteer.generate(model, PROMPTS, max_new_tokens=4, progress=False)
        assert steered["token_ids"].tolist() != plain["token_ids"].tolist()
        with torch.no_grad(), steering.on(model):
            assert model(IDS).dtype == dtype
        assert lensteer.log_probs(model, PROMPTS, ["a", "bc"], steering, progress=False)[1].dtype == torch.float32


def test_gradients_reach_a_steering_vector_through_either_face(tiny) -> None:
    direction = random(32)

    def loss(face: Any, vector: torch.Tensor) -> torch.Tensor:
        with Steering([("blocks.1.hook_resid_post", Add(vector, 1.5))]).on(tiny.model):
            output = face(IDS)
        return (output if isinstance(output, torch.Tensor) else output.logits)[0, -1].log_softmax(-1)[17]

    for face in (tiny.model, tiny.hf):
        vector = random(32, seed=1).requires_grad_()
        loss(face, vector).backward()
        with torch.no_grad():
            step = 1e-2 * direction
            slope = (loss(face, vector + step) - loss(face, vector - step)) / 2e-2
        assert vector.grad is not None
        torch.testing.assert_close(vector.grad @ direction, slope, atol=2e-2, rtol=2e-2)


def test_a_model_that_nobody_holds_is_freed(fresh) -> None:
    case = fresh("llama")
    use(case.model)
    bridge, hf = weakref.ref(case.model), weakref.ref(case.hf)
    del case
    gc.collect()
    assert bridge() is None
    assert hf() is None


# ---- identity


def test_a_fingerprint_says_what_a_model_is(llama) -> None:
    found = fingerprint(llama.model)
    assert {
        "architecture": "LlamaForCausalLM",
        "dtype": "float32",
        "d_model": "32",
        "n_layers": "4",
    }.items() <= found.items()
    assert all(isinstance(value, str) for value in found.values())
    assert json.loads(json.dumps(found)) == found


def test_a_fingerprint_changes_with_the_weights_and_the_tokenizer_and_with_nothing_else(
    fresh_hf, new_tokenizer
) -> None:
    hf = fresh_hf("llama")
    first = fingerprint(load_model(hf, tokenizer=new_tokenizer()))
    assert fingerprint(load_model(copy.deepcopy(hf), tokenizer=new_tokenizer())) == first
    other = fingerprint(load_model(hf, tokenizer=new_tokenizer(chat="{{ messages }}")))
    assert {key for key in first if other[key] != first[key]} == {"tokenizer"}
    model = load_model(hf, tokenizer=new_tokenizer())
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(1e-3)
    trained = fingerprint(model)
    assert {key for key in first if trained[key] != first[key]} == {"weights"}


def test_a_model_from_memory_cannot_be_loaded_elsewhere_and_says_so(llama) -> None:
    with pytest.raises(ValueError, match=r"LlamaForCausalLM was loaded in memory.*load_model with a name or folder"):
        source_of(llama.model)


# ---- names and folders


@pytest.fixture
def folder(llama, tmp_path) -> Any:
    llama.hf.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_network(monkeypatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_a_folder_gives_the_model_that_was_saved_there(llama, folder, no_network) -> None:
    model = load_model(folder)
    torch.testing.assert_close(logits(model), logits(llama.model), atol=1e-5, rtol=1e-5)
    assert source_of(model) == (str(folder), None, None, None)
    assert tokenizer_of(model)("Hello").input_ids == llama.tokenizer("Hello").input_ids
    half = load_model(str(folder), dtype=torch.bfloat16, device="cpu", tokenizer=llama.tokenizer)
    assert plain_model(half).dtype == torch.bfloat16
    assert tokenizer_of(half) is llama.tokenizer


def test_the_default_model_loads_again_without_network_or_conversion(smollm2, no_network, monkeypatch) -> None:
    monkeypatch.setattr(checkpoints, "_make_embedded", lambda out: pytest.fail("it was made again"))
    with torch.no_grad():
        assert torch.equal(logits(load_model()), logits(smollm2.model))


def damaged(folder: Any, how: str) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    if how == "truncated weights":
        weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2])
    elif how == "damaged weights":
        weights.write_bytes(b"x" * 1000)
    elif how == "no weights":
        weights.unlink()
    elif how == "broken config":
        config.write_text("{")
    elif how == "unknown architecture":
        config.write_text('{"model_type": "nosuch"}')
    elif how == "no config":
        config.unlink()


@pytest.mark.parametrize(
    "how",
    ["truncated weights", "damaged weights", "no weights", "broken config", "unknown architecture", "no config"],
)
def test_a_damaged_folder_is_named_with_the_reason_and_the_alternatives(folder, how: str) -> None:
    damaged(folder, how)
    with pytest.raises(ModelUnavailable, match=rf"cannot load '{folder}'.*a hub id, a local folder, a .gguf file, or"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nobody/nothing", r"cannot load 'nobody/nothing' \(as a hub id\).*'smollm2-135m-instruct' for the embedded"),
        ("smolm2-135m", r"cannot load 'smolm2-135m' \(as a hub id\)"),
        ("not a name", r"cannot load 'not a name'"),
        ("./no/such/folder", r"no folder at no/such/folder.*hub id"),
        ("/no/such/folder", r"no folder at /no/such/folder.*hub id"),
        ("nothing.gguf", r"no GGUF file at nothing.gguf.*hub id"),
    ],
)
def test_a_name_that_cannot_be_had_is_an_error_with_the_alternatives(name: str, words: str) -> None:
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    with pytest.raises(ModelUnavailable, match=words):
        load_model(name)


# ---- refusals


def tiny_of(kind: str, config: str, **shape: Any) -> Any:
    return getattr(transformers, kind)(getattr(transformers, config)(**shape))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda case: torch.nn.Linear(2, 2), r"Linear is not a Hugging Face language model"),
        (lambda case: case.model, r"was bridged in place before; load the plain model again"),
        (lambda case: case.model.original_model, r"was bridged in place before"),
        (lambda case: case.hf.model, r"cannot bridge LlamaModel"),
        (
            lambda case: tiny_of(
                "FalconForCausalLM",
                "FalconConfig",
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                vocab_size=50,
                new_decoder_architecture=True,
            ),
            r"Falcon with the new decoder.*Falcon-7B-style models work",
        ),
        (
            lambda case: tiny_of(
                "T5ForConditionalGeneration",
                "T5Config",
                d_model=16,
                d_ff=16,
                d_kv=8,
                num_layers=1,
                num_heads=2,
                vocab_size=50,
            ),
            r"encoder-decoder.*decoder-only",
        ),
    ],
)
def test_what_cannot_be_bridged_right_is_refused(llama, make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        load_model(make(llama))


def test_a_device_that_there_is_not_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cud' is no device; use 'cpu', 'cuda'"):
        load_model(device="cud")
    with pytest.raises(ValueError, match="device='cuda:1': PyTorch sees none here"):
        load_model(device="cuda:1")


@pytest.mark.parametrize("options", [{"device": "cpu"}, {"dtype": torch.bfloat16}])
def test_device_and_dtype_do_not_apply_to_a_loaded_model(llama, options: Any) -> None:
    with pytest.raises(ValueError, match="do not apply to a loaded model; move or cast it before"):
        load_model(llama.hf, **options)


def test_only_a_bridge_has_two_faces(llama) -> None:
    with pytest.raises(TypeError, match=r"TransformerBridge, got LlamaForCausalLM; load_model\(hf_model"):
        twin_of(llama.hf)


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_numbers(llama, tmp_path):
    from safetensors.torch import load_file, save_file

    llama.hf.save_pretrained(tmp_path)
    llama.tokenizer.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ModelUnavailable, match=r"no weights for 1 parameters \(model.layers.1.mlp.up_proj.weight"):
        load_model(tmp_path)
