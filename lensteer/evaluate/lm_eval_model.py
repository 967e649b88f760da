"""A steered model in lm-evaluation-harness: every task of lm-eval, under any `Steering`.

In Python, with a model that is loaded already:

    lm_eval.simple_evaluate(model=LensteerLM(model, steering), tasks=["hellaswag"])

In the terminal, with lm-eval's own options (``--tasks``, ``--num_fewshot``, ``--apply_chat_template``, …):

    python -m lensteer.evaluate.lm_eval_model --model lensteer --tasks hellaswag --batch_size auto \\
        --model_args model=smollm2-135m-instruct,steering=steering.safetensors,strength=0.5

This module registers the model and hands over to lm-eval's command. Up to 0.4.13 lm-eval has no plugins, so its bare
command does not look for models outside its own package; later versions read the entry-point group ``lm_eval.models``,
where lensteer is listed, and then ``lm_eval --model lensteer …`` is the same.

Text becomes tokens as in lm-eval's own Hugging Face model, so unsteered scores are the same; they are computed by
`lensteer.scoring` and `lensteer.generate`: a context that several continuations share is read once, and edits made
with `at` count the context as the prompt. lm-eval's ``--use_cache`` knows neither the model nor the steering: give each
steering a file of its own.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from lensteer.checkpoints import EMBEDDED
from lensteer.generate import as_steering, generate
from lensteer.hooks import Edit, Strength
from lensteer.messages import needs_extra
from lensteer.models import load_model, tokenizer_of, twin_of
from lensteer.prompts import Row, context_length
from lensteer.scoring import score
from lensteer.steering import Steering

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    raise needs_extra("a model for lm-eval", "lm-eval", error) from error

if TYPE_CHECKING:
    from lm_eval.api.instance import Instance
    from transformer_lens.model_bridge import TransformerBridge

_LOG = logging.getLogger(__name__)
_UNLIMITED = 2048  # what lm-eval assumes of a model that states no context length
_LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
# What tasks may ask for without any effect on how lensteer decodes.
_NEUTRAL = {"num_beams": (1, None), "num_return_sequences": (1, None), "repetition_penalty": (1, None)}


@register_model("lensteer")
class LensteerLM(TemplateLM):
    """A model under a steering, as lm-eval sees it.

    Args:
        model: from `load_model`, or what that takes: a name, hub id, folder or .gguf file; none is the embedded one.
        steering: a Steering, a list of (hook name, edit), or the path of a file from `Steering.save`; None is none.
        strength: if given, every edit is set to this strength; 0 is no steering.
        batch_size: sequences at a time, or ``"auto"``. (lm-eval's command passes 1 unless told ``--batch_size auto``.)
        device, dtype, revision: as in `load_model`, for a model that is not loaded yet. A CUDA device that is not
            there is replaced by the best one, since lm-eval's command asks for CUDA by default.
        max_length: use no more than so many tokens of the model's context.
        max_gen_toks: tokens to generate where a task does not say.
        add_bos_token: put a BOS before every text or not; None is the tokenizer's own habit.
        seed: of sampling, for tasks that ask for it.

    Raises:
        TypeError, ValueError: an unknown argument; a steering that does not fit the model or is for one batch's rows.
        ModelUnavailable: the model cannot be had.
    """

    def __init__(
        self,
        model: TransformerBridge | str | Path = EMBEDDED,
        steering: Iterable[tuple[str, Edit]] | str | Path | None = None,
        *,
        strength: Strength | None = None,
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        dtype: str | None = None,
        revision: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        add_bos_token: bool | None = None,
        seed: int = 0,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            raise TypeError(f"no argument {min(unknown)!r}; there are {[*signature(LensteerLM).parameters][:-1]}")
        if max_batch_size is not None:
            _LOG.warning("max_batch_size has no effect on lensteer; give batch_size a number to bound it")
        self.batch_size = _batch_size(batch_size)
        self.steering = _steering(steering, strength)
        if isinstance(model, str | Path):
            model = load_model(model, device=_device(device), dtype=dtype, revision=revision)
        elif dtype is not None or revision is not None:
            raise ValueError("dtype= and revision= do not apply to a loaded model; give its name, or cast it before")
        self.model = model
        self.tokenizer = tokenizer_of(model)
        self.steering.points(model)  # checks that they fit each other
        limit = context_length(model)
        if max_length is not None and not 1 <= max_length <= limit:
            raise ValueError(f"{max_length=}, but must lie in 1 to {limit}, the context of {twin_of(model).name}")
        self.max_length = max_length or (limit if limit < 1 << 30 else _UNLIMITED)
        self.max_gen_toks = max_gen_toks
        self.add_bos_token = add_bos_token
        self.seed = seed

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of text."""
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands for an empty context: BOS, or the end of text where there is none."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        """Names the tokenizer in lm-eval's cache of requests."""
        return (self.tokenizer.name_or_path or twin_of(self.model).name).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as one text; without a generation prompt the last message is left open to go on."""
        if not getattr(self.tokenizer, "chat_template", None):
            raise ValueError(
                f"{twin_of(self.model).name} has no chat template; leave --apply_chat_template out, or take an "
                "instruction-tuned model"
            )
        text = self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        return str(text)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Token ids; a text that begins with BOS (chat templates write it) gets no second one."""
        if add_special_tokens is None:
            add_special_tokens = self.add_bos_token
            if string.startswith(str(self.tokenizer.decode([self.prefix_token_id]))):
                add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        return list(self.tokenizer.encode(string, **options))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Log-probability of every continuation, and whether greedy decoding would have said it."""
        if not requests:
            return []
        for i, (text, _, continuation) in enumerate(requests):
            if not 0 < len(continuation) <= self.max_length:
                raise ValueError(
                    f"the continuation of request {i} has {len(continuation)} tokens; there must be 1 to "
                    f"{self.max_length} (the model's context): {text!r}"
                )
        # Nothing is predicted from the last token, so it needs no place in the context.
        room = [self.max_length + 1 - len(continuation) for _, _, continuation in requests]
        rows = self._rows([context for _, context, _ in requests], room)
        answers = [continuation for _, _, continuation in requests]
        options: dict[str, Any] = {"batch_size": self.batch_size, "progress": not disable_tqdm}
        scored = score(self.model, rows, answers, self.steering, **options)
        return [
            (float(found.log_probs.double().sum()), found.predicted.tolist() == list(answer))
            for found, answer in zip(scored, answers, strict=True)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows of the model's context that predict every token once."""
        windows: list[tuple[None, list[int], list[int]]] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            pieces = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for piece in pieces:
                windows.append((None, *make_disjoint_window(piece)))
                owners.append(i)
        totals = [0.0] * len(requests)
        scored = self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm)
        for i, (log_prob, _) in zip(owners, scored, strict=True):
            totals[i] += log_prob
        return totals

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Responses, cut before the first of a task's stop strings."""
        groups: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(i)
        settings = {key: self._decoding(requests[group[0]].args[1]) for key, group in groups.items()}
        texts = [""] * len(requests)
        for key, group in groups.items():
            options = settings[key]
            contexts = [self.tok_encode(requests[i].args[0]) for i in group]
            rows = self._rows(contexts, [self.max_length - options["max_new_tokens"]] * len(group))
            options |= {"batch_size": self.batch_size, "progress": not disable_tqdm}
            table = generate(self.model, rows, self.steering, **options)
            for i, text in zip(group, table["response"], strict=True):
                texts[i] = text
        return texts

    def _rows(self, contexts: Sequence[list[int]], room: Sequence[int]) -> list[Row]:
        """Contexts cut from the left to the tokens there is room for; an empty one is the prefix token."""
        cut = sum(len(ids) > most for ids, most in zip(contexts, room, strict=True))
        if cut:
            _LOG.warning("%d of %d contexts do not fit the model; their beginnings are cut off", cut, len(contexts))
        ids = [(ids or [self.prefix_token_id])[-most:] for ids, most in zip(contexts, room, strict=True)]
        return [Row(row, [True] * len(row), "") for row in ids]

    def _decoding(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """What `generate` takes, from a task's ``generation_kwargs``."""
        given = dict(settings)
        until = given.pop("until", None) or []
        stop = [text for text in ([until] if isinstance(until, str) else until) if text]
        lengths = [given.pop(name, None) for name in _LENGTHS]
        new = int(next((length for length in lengths if length is not None), self.max_gen_toks))
        if not 0 < new < self.max_length:
            raise ValueError(
                f"a task asks for {new} new tokens, which leaves no room for its prompt in the model's context of "
                f"{self.max_length}; lower it: --gen_kwargs max_gen_toks=…"
            )
        sample, temperature = given.pop("do_sample", None), given.pop("temperature", None)
        temperature = 0.0 if sample is False else float(sample is True) if temperature is None else float(temperature)
        options = {"max_new_tokens": new, "temperature": temperature, "stop": stop, "seed": self.seed}
        options |= {name: given.pop(name) for name in ("top_k", "top_p") if name in given}
        odd = {name: value for name, value in given.items() if value not in _NEUTRAL.get(name, ())}
        if odd:
            raise ValueError(
                f"a task asks for {odd}, which lensteer.generate does not do; it takes until, max_gen_toks, do_sample, "
                "temperature, top_k and top_p: override with --gen_kwargs, or copy the task without it"
            )
        return options

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside the results: the model and the steering that gave them."""
        return {
            "model_name": twin_of(self.model).name,
            "steering_hash": self.steering.content_hash(),
            "steering_edits": [f"{name}: {type(edit).__name__}" for name, edit in self.steering],
            "steering_strengths": [float(edit.strength) for _, edit in self.steering],
            "steering_metadata": self.steering.metadata,
        }


def _steering(steering: Any, strength: Strength | None) -> Steering:
    """The steering at its strength, the same for every prompt."""
    steering = Steering.load(steering) if isinstance(steering, str | Path) else as_steering(steering)
    steering = steering if strength is None else steering.at_strength(strength)
    if steering.n_rows is not None:
        raise ValueError(
            f"the steering has values for the {steering.n_rows} rows of one batch (per-row strengths, or values read "
            "from given prompts as in frozen SADI), but lm-eval brings prompts of its own; use one number as strength, "
            "and edits that hold for any prompt (for SADI mode='live')"
        )
    return steering


def _batch_size(batch_size: int | str) -> int | Literal["auto"]:
    text = str(batch_size)
    if text.split(":")[0] == "auto":  # lm-eval also has "auto:4"
        return "auto"
    if not text.isdigit() or int(text) < 1:
        raise ValueError(f"batch_size must be 'auto' or a positive integer, got {batch_size!r}")
    return int(text)


def _device(device: str | None) -> str | None:
    if device is not None and str(device).startswith("cuda") and not torch.cuda.is_available():
        _LOG.warning("there is no CUDA here; taking the best device there is instead of %r", device)
        return None
    return device


def main() -> None:
    """lm-eval's own command line, with the model ``lensteer`` registered."""
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
