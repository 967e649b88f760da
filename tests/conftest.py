"""Tiny random models of six architectures with a tokenizer made in memory, and the real default model.

Weights are random and large enough that an edit changes greedy tokens; biases and norms are random too, so that no
symmetry hides a mistake (a uniform vector, for one, has no effect at all before a LayerNorm).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here needs a network; a typo must not look for one

if TYPE_CHECKING:
    from transformer_lens.model_bridge import TransformerBridge
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SPECIAL = ["<pad>", "<bos>", "<eos>", "<|start|>", "<|end|>", "<unused>"]
VOCABULARY = len(SPECIAL) + 256
CHAT = (
    "{% for m in messages %}{{ '<|start|>' + m['role'] + ' ' + m['content'] + '<|end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>bot ' }}{% endif %}"
)
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,  # tied random embeddings repeat their last token for ever
}
GROUPED = {**SHAPE, "num_key_value_heads": 2}
# name: (config class, its arguments, arguments of the tokenizer)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "gpt2": (
        "GPT2Config",
        # Its own names: n_positions and the like are not read from the general ones.
        {
            **{"vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 64, "n_positions": 128},
            **{"bos_token_id": 2, "eos_token_id": 2, "tie_word_embeddings": False},
        },
        {"bos": False, "chat": None, "pad": "<eos>"},
    ),
    "llama": ("LlamaConfig", GROUPED, {"bos": True, "chat": "{{ bos_token }}" + CHAT}),
    # Most test prompts are longer than this window of 8 tokens.
    "gemma2": (
        "Gemma2Config",
        {**GROUPED, "head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8},
        {"bos": True, "chat": "{{ bos_token }}" + CHAT},
    ),
    "mistral": ("MistralConfig", {**GROUPED, "sliding_window": None}, {"bos": True, "chat": None}),
    "qwen2": ("Qwen2Config", GROUPED, {"bos": False, "chat": CHAT}),
    "neox": ("GPTNeoXConfig", SHAPE, {"bos": False, "chat": None}),
}


@dataclass(frozen=True, eq=False)
class Case:
    """One model to test: its architecture's name, the bridge, the plain model and the tokenizer."""

    name: str
    model: TransformerBridge
    hf: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase


def make_tokenizer(*, bos: bool = False, chat: str | None = None, pad: str = "<pad>") -> PreTrainedTokenizerBase:
    """One token per byte: ids 0 to 5 are special, byte b is 6 + its place in the alphabet.

    Args:
        bos: put a BOS before every text that is tokenised with special tokens, as Llama's and Gemma's do.
    """
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *alphabet])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    if bos:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", 1)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token=pad,
        additional_special_tokens=["<|start|>", "<|end|>"],
        chat_template=chat,
    )


def make_hf(name: str, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A tiny model with random weights, as a user would have it: plain and in evaluation mode."""
    import torch
    import transformers

    kind, arguments, _ = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**{**arguments, **changes})
    hf = transformers.AutoModelForCausalLM.from_config(config).eval()
    generator = torch.Generator().manual_seed(1000 * seed + list(ARCHITECTURES).index(name))

    def noise(parameter: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)

    with torch.no_grad():
        for key, parameter in hf.named_parameters():
            if parameter.ndim == 2:
                embeds = any(word in key for word in ("embed_tokens", "embed_in", "wte", "wpe"))
                parameter.copy_(noise(parameter, 0.5 if embeds else 1.4 / 32**0.5))
            elif key.endswith("bias"):
                parameter.copy_(noise(parameter, 0.2))
            else:  # the gain of a norm; Gemma's is 1 + weight
                parameter.copy_(float(name != "gemma2") + noise(parameter, 0.3))
    return hf


def make_case(name: str, seed: int = 0, **changes: Any) -> Case:
    from lensteer import load_model

    hf = make_hf(name, seed, **changes)
    tokenizer = make_tokenizer(**ARCHITECTURES[name][2])
    return Case(name, load_model(hf, tokenizer=tokenizer), hf, tokenizer)


@pytest.fixture(scope="session")
def fresh() -> Any:
    """``fresh("llama", seed=1, n_layers…)``: a new tiny model that a test may change."""
    return make_case


@pytest.fixture(scope="session")
def fresh_hf() -> Any:
    """A new tiny plain model that lensteer has not seen."""
    return make_hf


@pytest.fixture(scope="session")
def new_tokenizer() -> Any:
    """A new tokenizer made in memory."""
    return make_tokenizer


def _once(cases: dict[str, Case], name: str) -> Case:
    if name not in cases:
        cases[name] = make_case(name)
    return cases[name]


@pytest.fixture(scope="session")
def cases() -> dict[str, Case]:
    return {}


@pytest.fixture(scope="session", params=list(ARCHITECTURES))
def tiny(request: pytest.FixtureRequest, cases: dict[str, Case]) -> Case:
    """Each of the six tiny models."""
    return _once(cases, request.param)


@pytest.fixture(scope="session")
def llama(cases: dict[str, Case]) -> Case:
    """One tiny model, with a chat template and an automatic BOS, for what does not depend on the architecture."""
    return _once(cases, "llama")


@pytest.fixture(scope="session")
def gpt2(cases: dict[str, Case]) -> Case:
    """One tiny base model: no chat template, no BOS, padding id equal to the end-of-text id."""
    return _once(cases, "gpt2")


@pytest.fixture(scope="session")
def smollm2() -> Case:
    """The embedded default model."""
    import lensteer

    try:
        model = lensteer.load_model()
    except lensteer.ModelUnavailable as error:
        pytest.skip(f"the default model cannot be had here: {error}")
    return Case("smollm2", model, lensteer.plain_model(model), model.tokenizer)


@pytest.fixture(scope="session")
def forwards() -> Any:
    """``with forwards(case) as calls``: the batch shape of every forward pass that either face makes meanwhile."""

    @contextmanager
    def counting(case: Case) -> Iterator[list[tuple[int, ...]]]:
        calls: list[tuple[int, ...]] = []

        def note(module: Any, args: Any, kwargs: Any) -> None:
            calls.append(tuple(kwargs.get("input_ids", args[0] if args else None).shape))

        faces = {id(face): face for face in (case.hf, case.model.original_model)}.values()
        handles = [face.base_model.register_forward_pre_hook(note, with_kwargs=True) for face in faces]
        try:
            yield calls
        finally:
            for handle in handles:
                handle.remove()

    return counting
