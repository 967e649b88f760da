"""`generate`: batched, cached, left-padded generation under a Steering; one row of a DataFrame per prompt.

Runs the plain model's own ``generate`` wherever every edit has a place on it, which costs what the bare model costs.
Rows that share a prompt share its computation below the first edited layer (`lensteer.prefix`), so many candidates
for one prompt cost little more than one. Sampling draws from a stream of random numbers of each prompt's own, so the
text of a prompt does not depend on what else is in the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from lensteer.attach import face_for
from lensteer.hooks import Edit
from lensteer.models import tokenizer_of, twin_of
from lensteer.prefix import shared_prefix
from lensteer.progress import progress_bar
from lensteer.prompts import (
    Batch,
    Prompt,
    Row,
    batches,
    input_device,
    make_batch,
    pad_id,
    rows_hash,
    stop_ids,
    tokenize,
)
from lensteer.sampling import sampler
from lensteer.steering import Steering

if TYPE_CHECKING:
    import pandas as pd
    from transformer_lens.model_bridge import TransformerBridge


@dataclass(frozen=True)
class Decoding:
    """How to decode: greedy at temperature 0, else sampled; and what ends a response."""

    max_new_tokens: int
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0
    stop: tuple[str, ...] = ()
    use_cache: bool = True
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens must be at least 1, got {self.max_new_tokens}")
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature must be 0 (greedy) or positive, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be a positive integer, or None for every token, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must lie in (0, 1], or be None for every token, got {self.top_p}")
        if not 0 < self.repetition_penalty < float("inf"):
            raise ValueError(f"repetition_penalty must be positive, 1 for none, got {self.repetition_penalty}")
        if not all(self.stop):
            raise ValueError(f"stop={self.stop!r} holds an empty string, which would end every response at once")


def generate(
    model: TransformerBridge,
    prompts: Sequence[Prompt | Row],
    steering: Iterable[tuple[str, Edit]] | None = None,
    *,
    max_new_tokens: int = 64,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    repetition_penalty: float = 1.0,
    seed: int = 0,
    stop: Sequence[str] = (),
    batch_size: int | Literal["auto"] = "auto",
    use_cache: bool = True,
    prompt_format: str = "auto",
    truncate: bool = False,
    progress: bool = True,
) -> pd.DataFrame:
    """Generate a response to every prompt.

    Args:
        steering: any sequence of (hook name, edit); strengths may hold one value per prompt.
        max_new_tokens: token budget of each response.
        temperature: 0 is greedy; above, sampled (``top_k``, ``top_p``, ``seed``).
        repetition_penalty: divides the logits of tokens of prompt and response that are positive, and multiplies the
            others; 1 is none. The transport paper samples at temperature 1, top_p 0.3 and penalty 1.2.
        stop: strings that end a response, besides the model's own end-of-turn tokens; they are cut off the text (not
            off the token ids, where a string need not begin at a token).
        use_cache: False recomputes the whole sequence for every token (the same tokens, slower).

    Returns:
        prompt, response, token_ids (without the stop token), n_tokens, finish_reason ("stop" or "length"), in the
        order of the prompts.

    Raises:
        ValueError: bad steering, prompts that do not fit the context with their budget, strengths of the wrong length.
    """
    import pandas as pd

    steering = as_steering(steering)
    decoding = Decoding(
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        seed,
        tuple([stop] if isinstance(stop, str) else stop),
        use_cache,
        repetition_penalty,
    )
    rows = tokenize(model, prompts, prompt_format=prompt_format, truncate=truncate, room=max_new_tokens)
    steering.points(model)
    require_prompts(steering, rows)
    results: dict[int, dict[str, Any]] = {}
    with progress_bar(len(rows), "generate", shown=progress) as bar:
        for batch in batches(model, rows, batch_size, purpose="write", extra=max_new_tokens):
            own = steering.rows(batch.rows)
            generated = _generate_batch(model, batch, own, decoding)
            for number, ids in zip(batch.rows, generated.tolist(), strict=True):
                results[number] = {"prompt": prompts[number], **finish(model, ids, decoding)}
            bar.update(len(batch.rows))
    return pd.DataFrame([results[i] for i in range(len(rows))])


def stream(
    model: TransformerBridge,
    prompt: Prompt,
    steering: Iterable[tuple[str, Edit]] | None = None,
    *,
    max_new_tokens: int = 256,
    temperature: float = 0.0,
    top_k: int | None = None,
    top_p: float | None = None,
    seed: int = 0,
    prompt_format: str = "auto",
) -> Iterator[str]:
    """Pieces of one response as they are generated: ``for piece in stream(…): print(piece, end="")``.

    Leaving the loop early stops the generation.

    Raises:
        RuntimeError: inside an open ``with steering.on(model)``, which would keep the generating thread out.
    """
    from threading import Event, Thread

    from transformers import StoppingCriteria, TextIteratorStreamer

    if twin_of(model).lock._is_owned():
        raise RuntimeError("stream inside `with steering.on(model):` cannot run; pass the steering to stream instead")
    steering = as_steering(steering)
    decoding = Decoding(max_new_tokens, temperature, top_k, top_p, seed)
    rows = tokenize(model, [prompt], prompt_format=prompt_format, room=max_new_tokens)
    steering.points(model)
    require_prompts(steering, rows)
    batch = make_batch(rows, [0], pad_id(model), input_device(model))
    streamer = TextIteratorStreamer(tokenizer_of(model), skip_prompt=True, skip_special_tokens=True)
    closed, failure = Event(), []

    class Closed(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            return torch.full((len(input_ids),), closed.is_set(), device=input_ids.device)

    def work() -> None:
        try:
            _generate_batch(model, batch, steering, decoding, streamer=streamer, stopping_criteria=[Closed()])
        except BaseException as error:
            failure.append(error)
            streamer.end()

    thread = Thread(target=work, daemon=True)
    thread.start()
    try:
        yield from (piece for piece in streamer if piece)
    finally:
        closed.set()
        thread.join()
    if failure:
        raise failure[0]


def as_steering(steering: Iterable[tuple[str, Edit]] | None) -> Steering:
    """A Steering from what users pass: one already, a list of (hook name, edit) pairs, or None."""
    if steering is not None and not isinstance(steering, Iterable):
        raise TypeError(
            f"steering must be a Steering or a list of (hook name, edit), got {type(steering).__name__}; "
            "fitted vectors make one: vectors.set_projection(layer) or vectors.add(layer, strength)"
        )
    return steering if isinstance(steering, Steering) else Steering(steering or ())


def require_rows(steering: Steering, count: int) -> None:
    """Refuse strengths and values for another number of prompts."""
    if steering.n_rows not in (None, count):
        raise ValueError(f"the steering has values for {steering.n_rows} prompts, but {count} prompts were given")


def require_prompts(steering: Steering, rows: Sequence[Row]) -> None:
    """Refuse values for another number of prompts, and what was read in other prompts than these (frozen SADI)."""
    require_rows(steering, len(rows))
    read = steering.metadata.get("prompts")
    if read and " + " not in read and read != rows_hash(rows):
        raise ValueError(
            "the steering holds what other prompts have by themselves, or these in another order or prompt format; "
            "make it from these: clean=fitted.read(model, prompts, prompt_format=…), as where they are run"
        )


def _generate_batch(
    model: TransformerBridge, batch: Batch, steering: Steering, decoding: Decoding, **options: Any
) -> Tensor:
    """Generated token ids, ``[batch, new]``, rows that ended early padded."""
    from transformers import GenerationConfig

    config = GenerationConfig(
        max_new_tokens=decoding.max_new_tokens,
        do_sample=False,
        num_beams=1,
        repetition_penalty=1.0,
        use_cache=decoding.use_cache,
        eos_token_id=stop_ids(model),
        pad_token_id=pad_id(model),
        stop_strings=list(decoding.stop) or None,
    )
    prompt_length = None if decoding.use_cache else batch.attention_mask.sum(1)
    with torch.inference_mode(), ExitStack() as stack:
        stack.enter_context(twin_of(model).lock)
        face = face_for(model, steering.points(model))
        prefix = shared_prefix(model, face, batch, steering) if decoding.use_cache else nullcontext()
        stack.enter_context(steering.on(model, prompt_length=prompt_length))
        stack.enter_context(prefix)
        # Whatever our configuration leaves open, transformers would fill in from the model's own (bans on repetition…).
        stack.callback(setattr, face, "generation_config", face.generation_config)
        face.generation_config = GenerationConfig()
        output = face.generate(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            generation_config=config,
            logits_processor=sampler(decoding, batch.rows, batch.attention_mask),
            tokenizer=tokenizer_of(model) if decoding.stop else None,
            **options,
        )
    return output[:, batch.input_ids.shape[1] :].cpu()


def finish(model: TransformerBridge, ids: list[int], decoding: Decoding) -> dict[str, Any]:
    """Cut one row of generated ids at its end, decode it, and say why it ended."""
    ends, decode = set(stop_ids(model)), tokenizer_of(model).decode
    length = next((i for i, token in enumerate(ids) if token in ends), len(ids))
    stopped = length < len(ids)
    text = str(decode(ids[:length], skip_special_tokens=True))
    if any(stop in text for stop in decoding.stop):
        # What follows the token that completes the string is padding.
        grown = (str(decode(ids[:n], skip_special_tokens=True)) for n in range(length + 1))
        length, text = next((n, t) for n, t in enumerate(grown) if any(stop in t for stop in decoding.stop))
        text, stopped = text[: min(text.find(stop) for stop in decoding.stop if stop in text)], True
    return {
        "response": text,
        "token_ids": ids[:length],
        "n_tokens": length,
        "finish_reason": "stop" if stopped else "length",
    }
