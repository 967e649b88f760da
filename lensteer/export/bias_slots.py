"""A model class that has room for folded biases, and the model of that class.

Three ways, the first that has room is taken: (a) the model's own class, with its configuration's switches for biases
turned on; (b) Llama's, for a Mistral or Qwen2 without a sliding window, which differ from it in the class alone; (c) a
class of `lensteer.export.folded_modeling`, whose file is saved with the weights. Which biases a class has is not
listed but read off an empty model.
"""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

_SWITCHES = ("attention_bias", "mlp_bias")


def rebuilt(plain: PreTrainedModel, changed: Mapping[str, Tensor]) -> PreTrainedModel:
    """A new model with some parameters changed or added; the others are copied, no tensor is shared.

    Raises:
        ValueError: no class has room for the added ones, or the model's modules are not those of its class.
    """
    own = dict(plain.named_parameters(remove_duplicate=False))
    added = [name for name in changed if name not in own]
    for cls, config in _candidates(plain, [name.removesuffix(".bias") for name in added]):
        if {_embedding_name(plain), _unembedding_name(plain)} & changed.keys():
            config.tie_word_embeddings = False
        with torch.device("meta"):
            model = cls(config)
        places = dict(model.named_parameters(remove_duplicate=False))
        if not {*own, *added} - places.keys() and all(name.endswith(".bias") for name in places.keys() - own.keys()):
            return _filled(model, plain, {**own, **changed})
        if not added:
            raise ValueError(
                f"this {type(plain).__name__} has other modules than its class makes (adapters?); merge them first"
            )
    raise ValueError(
        f"{type(plain).__name__} has no place for a bias at {added[0].removesuffix('.bias')}, and lensteer has no "
        "version of that class that has; fold edits that only scale, or shifts of the outputs of layers with a bias"
    )


def _candidates(plain: PreTrainedModel, added: list[str]) -> Iterator[tuple[Any, PretrainedConfig]]:
    """Classes and configurations to try, the simplest first."""
    if not added:
        yield type(plain), copy.deepcopy(plain.config)
        return
    yield from _switched(type(plain), plain.config)
    if like_llama(plain):
        from transformers import LlamaForCausalLM

        yield from _switched(LlamaForCausalLM, as_llama(plain.config))
    folded = _folded(plain, added)
    if folded is not None:
        yield folded


def _switched(cls: Any, config: PretrainedConfig) -> Iterator[tuple[Any, PretrainedConfig]]:
    """The class with one of its switches for biases on, then with all."""
    off = [switch for switch in _SWITCHES if getattr(config, switch, None) is False]
    for count in range(len(off) + 1):
        for chosen in itertools.combinations(off, count):
            changed = copy.deepcopy(config)
            for switch in chosen:
                setattr(changed, switch, True)
            yield cls, changed


def like_llama(plain: PreTrainedModel) -> bool:
    """Whether a model computes what a Llama with the same weights does."""
    config = plain.config
    if type(plain).__name__ == "MistralForCausalLM":
        return getattr(config, "sliding_window", None) is None
    if type(plain).__name__ == "Qwen2ForCausalLM":
        return set(config.layer_types) == {"full_attention"}
    return False


def as_llama(config: PretrainedConfig) -> PretrainedConfig:
    """The configuration of a Llama of the same shape."""
    from transformers import LlamaConfig

    known = LlamaConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    llama = LlamaConfig(**{key: value for key, value in config.to_dict().items() if key in known})
    return _identified(llama, config)


def _folded(plain: PreTrainedModel, added: list[str]) -> tuple[Any, PretrainedConfig] | None:
    from lensteer.export.folded_modeling import MODELS

    cls = MODELS.get(type(plain).__name__)
    if cls is None:
        return None
    before = list(getattr(plain.config, "folded_biases", ()))  # a folded model is folded again
    values = {k: v for k, v in plain.config.to_dict().items() if k not in ("model_type", "auto_map", "architectures")}
    config = _identified(cls.config_class(**{**values, "folded_biases": [*before, *added]}), plain.config)
    warnings.warn(
        f"{type(plain).__name__} has no biases at {len(added)} modules that need one now ({added[0]}, …), so the saved "
        "model brings its own code; load it with trust_remote_code=True",
        stacklevel=5,
    )
    return cls, config


def _identified(config: PretrainedConfig, like: PretrainedConfig) -> PretrainedConfig:
    """With the name and the attention implementation of another configuration, which are no values of its own."""
    config._name_or_path = like._name_or_path
    config._attn_implementation = like._attn_implementation
    return config


def _filled(model: Any, plain: PreTrainedModel, values: Mapping[str, Tensor]) -> PreTrainedModel:
    """An empty model with values put in: parameters by name, zero where there are none, and the buffers of another."""
    own = dict(plain.named_parameters(remove_duplicate=False))
    for name in dict(model.named_parameters(remove_duplicate=False)):
        module, leaf = _owner(model, name)
        sibling = own.get(name, own.get(f"{name.rpartition('.')[0]}.weight"))
        assert sibling is not None
        value = values[name] if name in values else torch.zeros(getattr(module, leaf).shape)
        value = value.detach().to(sibling.device, sibling.dtype, copy=True).contiguous()
        module._parameters[leaf] = nn.Parameter(value, requires_grad=sibling.requires_grad)
    for name, buffer in plain.named_buffers(remove_duplicate=False):
        module, leaf = _owner(model, name)
        module._buffers[leaf] = buffer.clone()
    model.tie_weights()
    model.generation_config = copy.deepcopy(plain.generation_config)
    return model.train(plain.training)


def _owner(model: nn.Module, name: str) -> tuple[nn.Module, str]:
    path, _, leaf = name.rpartition(".")
    return model.get_submodule(path), leaf


def _embedding_name(plain: PreTrainedModel) -> str:
    return _name_of(plain, plain.get_input_embeddings())


def _unembedding_name(plain: PreTrainedModel) -> str:
    return _name_of(plain, plain.get_output_embeddings())


def _name_of(plain: nn.Module, wanted: nn.Module | None) -> str:
    return next((f"{name}.weight" for name, module in plain.named_modules() if module is wanted), "")
