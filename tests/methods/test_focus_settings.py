"""What an example is asked under each objective, and settings that are refused."""

from __future__ import annotations

from typing import Any

import pytest
from focus_cases import TASK, examples

from lensteer.data.focus import CORE_KINDS, FocusSampler
from lensteer.methods.focus_settings import OBJECTIVES, FocusSettings


def test_sft_y_asks_for_y_and_the_bias_model_for_y_s_both_without_an_instruction() -> None:
    for example in examples(8):
        for objective, target in (("sft_y", example.y), ("sft_spurious", example.y_s)):
            asked = FocusSettings(objective=objective).drawn(TASK, example, 0)  # type: ignore[arg-type]
            assert (asked.prompt, asked.target) == (TASK.prompt(example), target)


def test_sft_focus_has_the_draws_and_answers_of_fit_without_the_instruction() -> None:
    fit, without = FocusSettings(objective="fit"), FocusSettings(objective="sft_focus")
    for example in examples(40):
        told, silent = fit.drawn(TASK, example, 3), without.drawn(TASK, example, 3)
        assert (told.kind, told.target) == (silent.kind, silent.target)
        assert silent.prompt == TASK.prompt(example)
        assert told.target == (example.y if told.kind in CORE_KINDS else example.y_s)


def test_draws_change_with_the_seed_and_with_the_epoch() -> None:
    def drawn(seed: int, epoch: int) -> list[str]:
        return [FocusSettings(seed=seed).drawn(TASK, x, f"epoch {epoch}").prompt for x in examples(20)]

    assert drawn(0, 0) == drawn(0, 0)
    assert drawn(0, 0) != drawn(0, 1)
    assert drawn(0, 0) != drawn(1, 0)


def test_there_is_one_switch_for_the_objectives() -> None:
    assert OBJECTIVES == ("fit", "sft_y", "sft_focus", "sft_spurious", "poe")
    assert [FocusSettings(objective=name).objective for name in OBJECTIVES] == list(OBJECTIVES)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objective": "dpo"}, "objective must be one of fit, sft_y"),
        ({"steps": 0}, "steps must be a whole number of 1 or more, got 0"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
        ({"learning_rate": -1.0}, "learning_rate must be positive"),
        ({"steps": True}, "steps must be a whole number"),
        ({"weight_decay": -1.0}, "weight_decay must not be negative, got -1.0"),
        ({"lora_dropout": 1.0}, "lora_dropout must be at least 0 and below 1"),
        ({"precision": "int8"}, "precision must be"),
        ({"seed": -1}, "seed must be a whole number of 0 or more, got -1"),
        ({"seed": 1.5}, "seed must be a whole number"),
    ],
)
def test_settings_out_of_range_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FocusSettings(**change)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rate": "1e-3"}, "learning_rate must be a number, got '1e-3'"),
        ({"targets": "q_proj"}, "targets must be several names, got the text 'q_proj'"),
        ({"eos": "no"}, "eos must be a bool, got 'no'"),
        ({"sampler": 0.05}, "sampler must be a FocusSampler, got 0.05"),
    ],
)
def test_values_of_another_kind_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(TypeError, match=message):
        FocusSettings(**change)


def test_the_sampler_is_part_of_the_settings() -> None:
    settings = FocusSettings(sampler=FocusSampler(kinds=("focus(S)",), p_empty=0.0))
    assert {settings.drawn(TASK, x, 0).kind for x in examples(20)} == {"focus(S)"}
