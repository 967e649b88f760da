from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config, LlamaConfig, OPTConfig

from analysis.geometry import cosine_matrix, logit_lens, norm_profile, projections, token_projections

TINY = {"vocab_size": 60, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}


def tiny_model(config):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # gains of 1 and biases of 0 would hide mistakes
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def llama():
    return tiny_model(LlamaConfig(hidden_size=16, intermediate_size=32, num_key_value_heads=2, **TINY))


def gpt2():
    return tiny_model(GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=60, n_positions=32))


def gemma2():
    return tiny_model(Gemma2Config(hidden_size=16, intermediate_size=32, num_key_value_heads=2, head_dim=8, **TINY))


def opt():
    return tiny_model(OPTConfig(hidden_size=16, ffn_dim=32, word_embed_proj_dim=16, pad_token_id=0, **TINY))


def test_cosine_matrix_of_named_vectors():
    matrix = cosine_matrix({"a": torch.tensor([2.0, 0.0]), "b": torch.tensor([1.0, 1.0]), "c": -torch.ones(2)})
    assert list(matrix.index) == list(matrix.columns) == ["a", "b", "c"]
    expected = torch.tensor([[1, 0.5**0.5, -(0.5**0.5)], [0.5**0.5, 1, -1], [-(0.5**0.5), -1, 1]])
    torch.testing.assert_close(torch.tensor(matrix.to_numpy()).float(), expected)


def test_cosine_matrix_between_layers_takes_the_rows_of_a_tensor():
    rows = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    matrix = cosine_matrix(rows)
    assert list(matrix.columns) == [0, 1, 2, 3, 4]
    assert matrix.loc[1, 3] == pytest.approx(torch.cosine_similarity(rows[1], rows[3], dim=0).item(), abs=1e-6)
    assert list(cosine_matrix(rows, labels=list("abcde")).index) == list("abcde")


def test_projections_measure_length_along_the_direction_whatever_its_norm():
    activations = torch.tensor([[[3.0, 4.0], [0.0, -2.0]]])
    torch.testing.assert_close(projections(activations, torch.tensor([0.0, 7.0])), torch.tensor([[4.0, -2.0]]))


@pytest.mark.parametrize("build", [llama, gpt2, gemma2, opt])
def test_the_logit_lens_is_how_the_models_logits_move_along_the_direction(build):
    model = build()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(1))
    table = logit_lens(model, direction, k=60)
    effect = torch.zeros(60)
    effect[table["promoted_id"].tolist()] = torch.tensor(table["promoted_logit"].tolist())
    # Oracle: the model's own head, read at the two ends of the direction, at a size where eps is nothing.
    embedding = model.get_output_embeddings()
    owner = getattr(model.base_model, "decoder", model.base_model)
    norm = next(getattr(owner, n) for n in ("norm", "ln_f", "final_layer_norm") if hasattr(owner, n))
    with torch.no_grad():
        plus, minus = embedding(norm(1e3 * direction[None])), embedding(norm(-1e3 * direction[None]))
    torch.testing.assert_close(effect, ((plus - minus) / 2)[0], atol=1e-4, rtol=1e-4)


def test_the_logit_lens_agrees_with_transformer_lens_where_the_model_has_no_biases():
    from transformer_lens.model_bridge.sources._bridge_builder import build_bridge_from_module
    from transformer_lens.tools.analysis.logit_lens import logit_readout

    model, direction = llama(), torch.randn(16, generator=torch.Generator().manual_seed(1))
    ours = logit_lens(model, direction, k=5)
    bridge = build_bridge_from_module(model, type(model).__name__, hf_config=model.config)
    up, down = (logit_readout(bridge, sign * direction, top_k=5) for sign in (1.0, -1.0))
    assert ours["promoted_id"].tolist() == up.top_ids.tolist()
    assert ours["demoted_id"].tolist() == down.top_ids.tolist()
    assert ours["promoted_logit"].tolist() == pytest.approx(up.values.tolist(), rel=1e-3)


def test_without_the_norm_the_lens_is_the_plain_product_with_the_unembedding():
    model, direction = gpt2(), torch.randn(16, generator=torch.Generator().manual_seed(1))
    logits = model.get_output_embeddings().weight.detach() @ direction
    table = logit_lens(model, direction, k=3, fold_norm=False)
    assert table["promoted_id"].tolist() == logits.topk(3).indices.tolist()
    assert table["demoted_logit"].tolist() == pytest.approx((-(-logits).topk(3).values).tolist())


def test_the_logit_lens_decodes_tokens_one_by_one():
    class Letters:
        def decode(self, ids):
            return "".join(chr(97 + token) for token in ids)

    table = logit_lens(llama(), torch.ones(16), k=2, tokenizer=Letters())
    assert table["promoted"].tolist() == [chr(97 + token) for token in table["promoted_id"]]
    assert logit_lens(llama(), torch.ones(16), k=1)["promoted"].iloc[0].startswith("<")


def test_norm_profile_gives_the_part_of_the_residual_stream():
    profile = norm_profile(torch.tensor([1.0, 6.0]), torch.tensor([10.0, 20.0]))
    assert profile["layer"].tolist() == [0, 1]
    assert profile["ratio"].tolist() == pytest.approx([0.1, 0.3])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: cosine_matrix({"a": torch.ones(2), "b": torch.ones(3)}), "of one width"),
        (lambda: cosine_matrix({"a": torch.ones(2), "b": torch.zeros(2)}), "'b' has norm 0"),
        (lambda: cosine_matrix(torch.tensor([[float("nan"), 1.0]])), "NaN"),
        (lambda: cosine_matrix(torch.ones(3)), r"\[vector, d\], got shape \(3,\)"),
        (lambda: cosine_matrix(torch.ones(3, 2), labels=["a"]), "1 labels for 3 vectors"),
        (lambda: projections(torch.ones(2, 3), torch.ones(4)), r"end in \(3,\), the direction is \(4,\)"),
        (lambda: projections(torch.ones(2, 3), torch.zeros(3)), "norm 0"),
        (lambda: logit_lens(llama(), torch.ones(15)), r"shape \(15,\); the model reads width 16"),
        (lambda: logit_lens(llama(), torch.ones(16), k=61), "k must be between 1 and the vocabulary size 60"),
        (lambda: logit_lens(llama(), torch.zeros(16)), "norm 0"),
        (lambda: norm_profile(torch.ones(2), torch.ones(3)), r"\(2,\) and \(3,\)"),
        (lambda: norm_profile(torch.ones(2), torch.zeros(2)), "must be positive"),
    ],
)
def test_bad_input_gets_one_clear_error(call, message):
    with pytest.raises(ValueError, match=message):
        call()


class WordTokenizer:
    """As much of a tokenizer as a plain prompt needs: one token a word."""

    is_fast, chat_template, bos_token_id, eos_token_id, pad_token_id = True, None, None, 0, 0

    def __call__(self, text, add_special_tokens=True, return_offsets_mapping=False):
        words = text.split(" ")
        ends = [len(" ".join(words[: i + 1])) for i in range(len(words))]
        spans = [(end - len(word), end) for word, end in zip(words, ends, strict=True)]
        return {"input_ids": [3 + len(word) for word in words], "offset_mapping": spans}

    def decode(self, ids):
        return "".join(f"w{token}" for token in ids)


def test_token_projections_line_up_with_the_prompts_tokens():
    from lensteer.models import load_model

    model = llama()
    bridge = load_model(model)
    from lensteer.models import twin_of

    twin_of(bridge).tokenizer = WordTokenizer()
    direction = torch.randn(16, generator=torch.Generator().manual_seed(1))
    table = token_projections(bridge, "a bbb cc", direction, layer=0)
    assert table["token"].tolist() == ["w4", "w6", "w5"]
    with torch.no_grad():
        hidden = model(torch.tensor([[4, 6, 5]]), output_hidden_states=True).hidden_states[1][0]
    expected = hidden @ direction / direction.norm()
    assert table["projection"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)
