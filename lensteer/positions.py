"""Where in the sequence an edit acts: ``at(edit, tokens=…)``.

    at(Add(v), "generated")      at(SetProjection(u, z), slice(-3, None))      at(Add(v), 0)

| tokens | positions that are edited |
|---|---|
| ``"all"`` | every position, padding included (padding is never attended to) |
| ``"prompt"`` / ``"generated"`` | the prompt's tokens / every token after them |
| ``"last"`` | the last token of the prompt |
| an int, a list of ints | token i of the sequence; 0 is the first real token, −1 the last *prompt* token |
| a slice | the same numbering: ``slice(-3, None)`` is the last three prompt tokens and all that follow |

**How it knows.** A hook function sees a tensor, and a tensor does not say which tokens it holds: under a KV cache it
is one column, in a left-padded batch it starts with padding, without a cache it is the whole sequence again. So a
`Clock` watches the model's own forward calls (a forward pre-hook on its base model) and reads the attention mask and
the length of the KV cache. The first call with an empty cache is the prompt; what continues that cache is generated.
``prompt_length=`` says it where that is not so: teacher-forced scoring and decoding without a cache. Models from
`lensteer.load_model` carry a clock; on any other bridge `Steering.on` and `generate` attach one while they run. Where
the tokens cannot be known, an edit made with `at` raises an error rather than guess.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from operator import index as whole
from typing import Any, Literal
from weakref import ref

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from lensteer.hooks import Edit, Strength

Tokens = Literal["all", "prompt", "generated", "last"] | int | slice | Sequence[int]
_WORDS = ("all", "prompt", "generated", "last")
STEPS = slice(-1, None)
"""The last prompt token and every token after it: each position from which a token of the response is predicted."""


@dataclass
class Layout:
    """Which token every column of the current forward pass holds."""

    columns: int
    past: int
    prompt_columns: int | None
    mask: Int[Tensor, "batch past+columns"]
    prompt_length: Int[Tensor, " batch"]
    _known: dict[str, Any] = field(default_factory=dict)

    def select(self, tokens: Tokens) -> bool | Bool[Tensor, "batch pos"]:
        """True where ``tokens`` says so; plain True or False where that holds for the whole pass (no tensor work)."""
        if tokens == "all":
            return True
        if self.prompt_columns is not None:
            in_prompt = self.past + self.columns <= self.prompt_columns
            after = self.past >= self.prompt_columns
            if (in_prompt and tokens == "generated") or (after and tokens in ("prompt", "last")):
                return False
            if after and tokens == "generated":
                return True
        key = repr(tokens)
        if key not in self._known:
            self._known[key] = self._mask_of(tokens)
        return self._known[key]

    def _mask_of(self, tokens: Tokens) -> Bool[Tensor, "batch pos"]:
        real = self.mask[:, -self.columns :].bool()
        position = (self.mask.cumsum(1) - 1)[:, -self.columns :]
        end = self.prompt_length.unsqueeze(1)
        if tokens == "prompt":
            return real & (position < end)
        if tokens == "generated":
            return real & (position >= end)
        if isinstance(tokens, slice):
            start, stop = _from_end(tokens.start, end), _from_end(tokens.stop, end)
            chosen = real if start is None else real & (position >= start)
            return chosen if stop is None else chosen & (position < stop)
        wanted = [-1] if tokens == "last" else [tokens] if isinstance(tokens, int) else list(tokens)
        chosen = torch.zeros_like(real)
        for index in wanted:
            chosen |= position == _from_end(index, end)
        return real & chosen


def _from_end(index: Any, end: Tensor) -> Any:
    return index + end if index is not None and index < 0 else index


@dataclass(frozen=True)
class _Pass:
    """The running forward pass: whose clock says so, its layout or why there is none, and the pass around it."""

    clock: Clock
    layout: Layout | None
    problem: str
    around: _Pass | None


_PASS: ContextVar[_Pass | None] = ContextVar("lensteer_pass", default=None)


@contextmanager
def passes_within() -> Iterator[None]:
    """Forget, on leaving, a pass that Ctrl-C cut short: torch runs no hook after it."""
    token = _PASS.set(None)
    try:
        yield
    finally:
        _PASS.reset(token)


class Clock:
    """Publishes the `Layout` of every forward pass of a model while it is attached.

    Args:
        prompt_length: real prompt tokens of each row (or one number for all); None reads them from the first
            forward pass with an empty cache.
    """

    def __init__(self, prompt_length: int | Int[Tensor, " batch"] | None = None) -> None:
        self._given = prompt_length
        self._prompt_length: Tensor | None = None
        self._prompt_columns: int | None = None
        self._cache: Any = None  # a weak reference to the cache that holds this prompt

    def attach(self, base_model: nn.Module) -> list[Any]:
        """Start watching; returns the torch handles to remove."""
        return [
            base_model.register_forward_pre_hook(self._before, with_kwargs=True),
            base_model.register_forward_hook(self._after, always_call=True),
        ]

    def _before(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        around = _PASS.get()
        while around is not None and around.clock is self:  # left over from a pass that Ctrl-C ended
            around = around.around
        layout = self._layout(args, kwargs)
        if isinstance(layout, Layout):
            _PASS.set(_Pass(self, layout, "", around))
        else:
            _PASS.set(_Pass(self, None, layout, around))

    def _layout(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Layout | str:
        """The layout of a pass, or why it cannot be known."""
        inputs = kwargs.get("input_ids")
        inputs = kwargs.get("inputs_embeds") if inputs is None else inputs
        inputs = args[0] if inputs is None and args else inputs
        if inputs is None:
            return "the model was called without input_ids"
        cache = kwargs.get("past_key_values")
        past = cache.get_seq_length() if cache is not None else 0
        batch, columns = inputs.shape[:2]
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(batch, past + columns, dtype=torch.long, device=inputs.device)
        if not isinstance(mask, Tensor) or mask.shape != (batch, past + columns):
            shape = tuple(mask.shape) if isinstance(mask, Tensor) else type(mask).__name__
            return f"the attention mask is {shape}, not [batch, past + new tokens], {(batch, past + columns)}"
        mask = mask.long()
        if self._given is not None:
            given = torch.as_tensor(self._given, device=inputs.device)
            self._prompt_length = given.expand(batch) if given.ndim == 0 else given
            if len(self._prompt_length) != batch:
                raise ValueError(f"prompt_length has {len(given)} values but the batch has {batch} rows")
        elif past == 0:
            self._prompt_length, self._prompt_columns = mask.sum(1), columns
            self._cache = None if cache is None else ref(cache)
        elif self._cache is None or self._cache() is not cache or self._prompt_length is None:
            return "the pass continues a KV cache whose prompt was not seen; pass steering.on(model, prompt_length=…)"
        assert self._prompt_length is not None
        return Layout(columns, past, self._prompt_columns, mask, self._prompt_length)

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        running = _PASS.get()
        if running is not None and running.clock is self:
            _PASS.set(running.around)
        cache = getattr(output, "past_key_values", None)
        if self._cache is None and cache is not None:  # the model made it
            self._cache = ref(cache)


@dataclass(frozen=True, eq=False)
class At(Edit):
    """An edit at some token positions only: ``where(tokens, edit(x), x)``. Made by `at`."""

    edit: Edit
    tokens: Tokens

    @property
    def strength(self) -> Strength:
        return self.edit.strength

    @property
    def shape(self) -> tuple[int, ...]:
        return self.edit.shape

    @property
    def n_rows(self) -> int | None:
        return self.edit.n_rows

    def at_strength(self, strength: Strength) -> At:
        return self._copy(edit=self.edit.at_strength(strength))

    def rows(self, index: Sequence[int]) -> At:
        return self._copy(edit=self.edit.rows(index))

    def to(self, device: torch.device | str) -> At:
        return self._copy(edit=self.edit.to(device))

    def __call__(self, activation: Tensor, hook: Any = None) -> Tensor:
        running = _PASS.get()
        if running is None:
            raise RuntimeError(
                f"at(…, tokens={self.tokens!r}) needs to know which tokens the model is reading; run it inside "
                "`with steering.on(model):`, through lensteer.generate, or on a model from lensteer.load_model"
            )
        if running.layout is None:
            raise RuntimeError(f"at(…, tokens={self.tokens!r}) cannot tell which tokens these are: {running.problem}")
        layout = running.layout
        chosen = layout.select(self.tokens)
        if chosen is False:
            return activation
        edited = self.edit(activation, hook)
        if chosen is True:
            return edited
        if chosen.shape != activation.shape[:2]:
            raise ValueError(
                f"at(…) needs activations with axes [batch, pos, …]; {getattr(hook, 'name', 'this point')!r} gave "
                f"{tuple(activation.shape)} for a pass of {tuple(chosen.shape)} tokens"
            )
        mask = chosen.to(activation.device).view(*chosen.shape, *[1] * (activation.ndim - 2))
        return torch.where(mask, edited, activation)


def at(edit: Edit, tokens: Tokens = "all") -> Edit:
    """``edit`` at the given token positions only; see the module's table for what ``tokens`` may be.

    Raises:
        ValueError: a word that is not one of the four, no indices, a slice with a step, or an edit that has its
            tokens already.
        TypeError: anything else that is not an index, a slice or a list of indices.
    """
    tokens = _checked(tokens)
    if isinstance(edit, At):
        raise ValueError(f"this edit acts at tokens={edit.tokens!r} already; apply at(…) to the edit inside it")
    return edit if tokens == "all" else At(edit, tokens)


def _checked(tokens: Any) -> Any:
    """``tokens`` with plain ints, so that it can be compared and saved."""
    if isinstance(tokens, str):
        if tokens not in _WORDS:
            raise ValueError(
                f"tokens={tokens!r} is unknown; use one of {_WORDS}, an index, a list of indices or a slice"
            )
        return tokens
    try:
        if isinstance(tokens, slice):
            if tokens.step not in (None, 1):
                raise ValueError(f"tokens={tokens!r}: a slice with a step is not supported; give a list of indices")
            return slice(*(None if bound is None else whole(bound) for bound in (tokens.start, tokens.stop)))
        indices = [whole(i) for i in tokens] if isinstance(tokens, Iterable) else whole(tokens)
    except TypeError as error:
        raise TypeError(
            f"tokens={tokens!r} is not a place; use one of {_WORDS}, an index, a list of indices or a slice"
        ) from error
    if indices == []:
        raise ValueError(f"tokens={tokens!r} names no position; give at least one index")
    return indices
