"""Training on tiny models: exact resumption, objectives, early stopping, and what is refused before any step."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_case
from focus_cases import TASK, examples, roomy
from safetensors.torch import load_file

import lensteer as ls
import lensteer.methods.focus_trainer as trainer_module
import lensteer.methods.focus_training as training_module
from lensteer.data import data_hash
from lensteer.data.focus import KINDS, FocusExample
from lensteer.methods.focus import EXAMPLE, FocusSettings, read_adapter, train
from lensteer.methods.focus_batches import answer_log_probs, answer_logits, collate, encode

pytest.importorskip("peft")
SMALL = FocusSettings(steps=6, batch_size=4, evaluate_every=2, learning_rate=1e-2, precision="float32")


@pytest.fixture(scope="module")
def case() -> Any:
    return make_case("llama", **roomy("llama"))


def adapter_of(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")


def run(case: Any, folder: Path, settings: FocusSettings = SMALL, validation: int = 4) -> Any:
    held_out = examples(validation, start=16) if validation else []
    return train(case.model, TASK, examples(16), held_out, folder, settings, progress=False)


def test_training_lowers_the_loss_and_leaves_the_model_that_was_given_as_it_was(case: Any, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in case.hf.state_dict().items()}
    needed = [p.requires_grad for p in case.hf.parameters()]
    found = run(case, tmp_path, replace(SMALL, steps=12))
    assert found.history["validation_loss"].dropna().iloc[-1] < found.history["validation_loss"].dropna().iloc[0]
    assert all(torch.equal(before[name], p) for name, p in case.hf.state_dict().items())
    assert [p.requires_grad for p in case.hf.parameters()] == needed
    assert not any("lora" in name for name, _ in case.hf.named_modules())


@pytest.fixture
def interrupted(case: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``interrupted(folder, settings, step)``: a run that Ctrl-C ends within a step."""
    real = trainer_module.FocusTrainer.compute_loss

    def runs(folder: Path, settings: FocusSettings, step: int) -> None:
        calls = []

        def stops(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            calls.append(model.training)
            if sum(calls) == step:
                raise KeyboardInterrupt
            return real(self, model, *args, **kwargs)

        monkeypatch.setattr(trainer_module.FocusTrainer, "compute_loss", stops)
        with pytest.raises(KeyboardInterrupt):
            run(case, folder, settings)
        monkeypatch.setattr(trainer_module.FocusTrainer, "compute_loss", real)
        assert not (folder / "focus.json").exists()

    return runs


def require_equal(one: Any, other: Any) -> None:
    first, second = adapter_of(one.folder), adapter_of(other.folder)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    for column in ("step", "loss", "validation_loss"):
        assert one.history[column].dropna().tolist() == other.history[column].dropna().tolist()
    assert one.best_step == other.best_step


def test_a_run_that_was_interrupted_ends_as_one_that_was_not(case: Any, tmp_path: Path, interrupted: Any) -> None:
    whole = run(case, tmp_path / "whole")
    interrupted(tmp_path / "parts", SMALL, 6)
    require_equal(run(case, tmp_path / "parts"), whole)


def test_losses_of_a_resumed_run_are_the_same_whatever_the_interval_of_evaluations(
    case: Any, tmp_path: Path, interrupted: Any
) -> None:
    odd = replace(SMALL, steps=14, evaluate_every=11)
    whole = run(case, tmp_path / "whole", odd)
    interrupted(tmp_path / "parts", odd, 13)
    require_equal(run(case, tmp_path / "parts", odd), whole)


def test_bfloat16_is_the_same_training_but_for_rounding(case: Any, tmp_path: Path, interrupted: Any) -> None:
    exact = replace(SMALL, lora_dropout=0.0)
    rounded = replace(exact, precision="bfloat16")
    whole = run(case, tmp_path / "rounded", rounded)
    for column in ("loss", "validation_loss"):
        wanted = run(case, tmp_path / "exact", exact).history[column].dropna()
        np.testing.assert_allclose(whole.history[column].dropna(), wanted, rtol=0.03)
    assert not whole.history.equals(run(case, tmp_path / "exact", exact).history)
    assert all(tensor.dtype == torch.float32 for tensor in adapter_of(whole.folder).values())
    interrupted(tmp_path / "parts", rounded, 5)
    require_equal(run(case, tmp_path / "parts", rounded), whole)


def test_the_validation_loss_is_a_mean_over_examples_whatever_the_last_batch_holds(case: Any, tmp_path: Path) -> None:
    once = replace(SMALL, steps=1, evaluate_every=1, learning_rate=1e-9)
    found = run(case, tmp_path, once, validation=5).history["validation_loss"].dropna().item()
    asked = [once.drawn(TASK, x, "validation") for x in examples(5, start=16)]
    rows = [encode(case.model, one, max_length=500, eos=True) for one in asked]
    with torch.no_grad():
        alone = [-float(answer_log_probs(*answer_logits(case.hf, collate([row], 0)))) for row in rows]
    assert found == pytest.approx(np.mean(alone), rel=1e-5)
    assert found != pytest.approx((np.mean(alone[:4]) + alone[4]) / 2, rel=1e-4)


def test_another_gpu_than_the_first_is_refused(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    second = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda", 1))]))
    monkeypatch.setattr("lensteer.methods.focus_checks.plain_model", lambda model: second)
    with pytest.raises(ValueError, match=r"is on cuda:1, .* set CUDA_VISIBLE_DEVICES=1"):
        run(case, tmp_path)


def test_patience_goes_on_where_it_was_after_an_interruption(case: Any, tmp_path: Path, interrupted: Any) -> None:
    wild = replace(SMALL, learning_rate=3.0, steps=40, evaluate_every=1, patience=3)
    whole = run(case, tmp_path / "whole", wild)
    last = int(whole.history["step"].max())
    assert last == whole.best_step + 3 < 40
    interrupted(tmp_path / "parts", wild, last)
    require_equal(run(case, tmp_path / "parts", wild), whole)


def test_a_run_that_early_stopping_ended_is_over_even_if_its_files_were_not_written(
    case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wild = replace(SMALL, learning_rate=3.0, steps=40, evaluate_every=2, patience=2)
    whole = run(case, tmp_path / "whole", wild)
    assert int(whole.history["step"].max()) < 40

    def full(*given: Any) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched, pytest.raises(OSError, match="no space left"):
        patched.setattr(training_module, "write_run", full)
        run(case, tmp_path / "parts", wild)
    require_equal(run(case, tmp_path / "parts", wild), whole)


def test_a_folder_may_be_moved_between_two_parts_of_a_run(case: Any, tmp_path: Path, interrupted: Any) -> None:
    wild = replace(SMALL, learning_rate=3.0, steps=40, evaluate_every=1, patience=3)
    whole = run(case, tmp_path / "whole", wild)
    interrupted(tmp_path / "parts", wild, int(whole.history["step"].max()))
    (tmp_path / "parts").rename(tmp_path / "moved")
    require_equal(run(case, tmp_path / "moved", wild), whole)


def test_a_run_whose_best_checkpoint_is_gone_is_not_taken_up(case: Any, tmp_path: Path, interrupted: Any) -> None:
    wild = replace(SMALL, learning_rate=3.0, steps=40, evaluate_every=1, patience=3)
    interrupted(tmp_path, wild, 4)
    states = [json.loads(path.read_text()) for path in tmp_path.glob("checkpoints/*/trainer_state.json")]
    best = Path(max(states, key=lambda state: state["global_step"])["best_model_checkpoint"])
    shutil.rmtree(best)
    with pytest.raises(ValueError, match=f"lacks {best.name}, the best checkpoint"):
        run(case, tmp_path, wild)


def test_a_finished_run_is_read_and_not_run_again(case: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = run(case, tmp_path)
    monkeypatch.setattr(trainer_module.FocusTrainer, "train", lambda *_, **__: pytest.fail("it was run again"))
    assert repr(run(case, tmp_path)) == repr(first)
    assert read_adapter(tmp_path).settings == SMALL
    assert read_adapter(tmp_path).task == TASK


def test_an_adapter_knows_its_inputs_under_any_name(case: Any, tmp_path: Path) -> None:
    found = run(case, tmp_path)
    assert found.trained_on(examples(40)) == examples(20)  # 16 to train on, 4 for validation
    renamed = replace(examples(1)[0], id="other", source="other", split="flipped")
    assert read_adapter(tmp_path).trained_on([renamed, *examples(1, start=30)]) == [renamed]


def test_the_packaged_adapter_is_of_the_data_and_the_task_that_are_packaged_with_it() -> None:
    found, data = read_adapter(EXAMPLE), ls.data.focus.sentiment()
    run_file = json.loads((EXAMPLE / "focus.json").read_text(encoding="utf-8"))
    assert found.task == data.task
    assert run_file["data"]["examples"] == data_hash(data.train)
    assert run_file["data"]["validation"] == data_hash(data.validation)
    assert found.trained_on(data.train) == data.train and found.trained_on(data.validation) == data.validation
    assert not found.trained_on([example for split in data.tests.values() for example in split])
    assert found.settings == FocusSettings(
        steps=150, learning_rate=2e-3, evaluate_every=25, precision="bfloat16", half=True
    )


def test_equal_seeds_give_equal_adapters_and_the_callers_random_numbers_are_left_alone(
    case: Any, tmp_path: Path
) -> None:
    def numbers() -> list[float]:
        return [float(torch.rand(1)), random.random(), float(np.random.rand())]  # noqa: NPY002

    def seed() -> None:
        torch.manual_seed(5)
        random.seed(5)
        np.random.seed(5)  # noqa: NPY002

    seed()
    wanted = numbers()
    seed()
    one = adapter_of(run(case, tmp_path / "a").folder)
    assert numbers() == wanted
    two, other = (adapter_of(run(case, tmp_path / n, replace(SMALL, seed=s)).folder) for n, s in (("b", 0), ("c", 1)))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_micro_batches_give_the_step_of_the_whole_batch(case: Any, tmp_path: Path) -> None:
    exact = replace(SMALL, lora_dropout=0.0, steps=4)
    runs = [run(case, tmp_path / str(size), replace(exact, micro_batch_size=size)) for size in (4, 1)]
    whole, parts = (adapter_of(one.folder) for one in runs)
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-4, rtol=1e-2)
    for column in ("loss", "validation_loss"):  # Adam hides a wrong scale of the loss, these do not
        first, second = (one.history[column].dropna().to_numpy() for one in runs)
        np.testing.assert_allclose(first, second, rtol=1e-3)


def test_the_first_training_loss_is_that_of_the_drawn_examples(case: Any, tmp_path: Path) -> None:
    found = run(case, tmp_path, replace(SMALL, steps=1, batch_size=16, evaluate_every=1, lora_dropout=0.0))
    asked = [SMALL.drawn(TASK, x, "epoch 0") for x in examples(16)]
    rows = [encode(case.model, one, max_length=500, eos=True) for one in asked]
    with torch.no_grad():
        wanted = -answer_log_probs(*answer_logits(case.hf, collate(rows, 0))).mean()
    assert found.history["loss"].iloc[0] == pytest.approx(float(wanted), rel=1e-4)


def test_the_adapter_of_the_lowest_validation_loss_is_kept_and_training_stops_when_patience_ends(
    case: Any, tmp_path: Path
) -> None:
    wild = replace(SMALL, learning_rate=3.0, steps=40, evaluate_every=1, patience=2)
    found = run(case, tmp_path, wild)
    losses = found.history.dropna(subset=["validation_loss"]).set_index("step")["validation_loss"]
    assert found.best_step == losses.idxmin()
    assert losses.index[-1] == found.best_step + 2 < 40
    frozen = [wild.drawn(TASK, x, "validation") for x in examples(4, start=16)]
    rows = [encode(case.model, one, max_length=500, eos=True) for one in frozen]
    from lensteer.methods.focus import merge

    with torch.no_grad():
        again = -answer_log_probs(*answer_logits(merge(case.model, found), collate(rows, 0))).mean()
    assert float(again) == pytest.approx(losses.min(), rel=1e-3)


def test_a_half_precision_adapter_is_the_rounded_one(case: Any, tmp_path: Path) -> None:
    whole = adapter_of(run(case, tmp_path / "whole").folder)
    half = adapter_of(run(case, tmp_path / "half", replace(SMALL, half=True)).folder)
    assert whole.keys() == half.keys()
    assert all(torch.equal(half[name], whole[name].half()) for name in whole)


def test_without_validation_the_last_step_is_kept(case: Any, tmp_path: Path) -> None:
    found = run(case, tmp_path, validation=0)
    assert found.best_step is None
    assert "validation_loss" not in found.history


@pytest.mark.parametrize("objective", ["sft_y", "sft_focus", "sft_spurious"])
def test_every_objective_trains_from_the_same_switch(case: Any, tmp_path: Path, objective: Any) -> None:
    found = run(case, tmp_path, replace(SMALL, objective=objective, steps=2))
    assert json.loads((found.folder / "focus.json").read_text())["settings"]["objective"] == objective
    assert (found.folder / "README.md").read_text().startswith("---")


def test_a_product_of_experts_trains_log_p_of_the_right_label_under_the_product(case: Any, tmp_path: Path) -> None:
    bias = make_case("llama", seed=1, **roomy("llama"))
    settings = replace(SMALL, objective="poe", steps=1, batch_size=16, evaluate_every=1, lora_dropout=0.0)
    task = replace(TASK, cue="Out:\n")  # after a line break a label begins with its own letter, not with a blank
    found = train(case.model, task, examples(16), [], tmp_path, settings, bias=bias.model, progress=False)
    total = 0.0
    first = [case.tokenizer(label[0], add_special_tokens=False)["input_ids"][0] for label in task.labels]
    for example in examples(16):
        ids = torch.tensor([case.tokenizer(task.prompt(example))["input_ids"]])
        with torch.no_grad():
            mine, theirs = (hf(ids).logits[0, -1].double()[first].softmax(-1) for hf in (case.hf, bias.hf))
        product = mine * theirs / (mine * theirs).sum()
        total -= float(product[task.labels.index(example.y)].log())
    assert found.history["loss"].iloc[0] == pytest.approx(total / 16, rel=1e-4)


def test_a_biased_model_belongs_to_the_product_of_experts_alone(case: Any, tmp_path: Path) -> None:
    for objective, bias, message in (("poe", None, "needs a biased model"), ("fit", case.model, "has no use for")):
        with pytest.raises(ValueError, match=message):
            settings = replace(SMALL, objective=objective)  # type: ignore[arg-type]
            train(case.model, TASK, examples(4), [], tmp_path, settings, bias=bias)


def test_labels_that_begin_alike_are_told_apart_where_they_differ(case: Any, tmp_path: Path) -> None:
    """After "Out:" both begin with a blank, one token for this tokenizer, as digits do for many others."""
    bias = make_case("llama", seed=1, **roomy("llama"))
    settings = replace(SMALL, objective="poe", steps=1, batch_size=16, evaluate_every=1, lora_dropout=0.0)
    found = train(case.model, TASK, examples(16), [], tmp_path, settings, bias=bias.model, progress=False)
    total = 0.0
    first = [case.tokenizer(label[0], add_special_tokens=False)["input_ids"][0] for label in TASK.labels]
    for example in examples(16):
        ids = torch.tensor([case.tokenizer(TASK.prompt(example) + " ")["input_ids"]])
        with torch.no_grad():
            mine, theirs = (hf(ids).logits[0, -1].double()[first].softmax(-1) for hf in (case.hf, bias.hf))
        product = mine * theirs / (mine * theirs).sum()
        total -= float(product[TASK.labels.index(example.y)].log())
    assert found.history["loss"].iloc[0] == pytest.approx(total / 16, rel=1e-4)


def test_labels_that_part_at_different_tokens_cannot_be_told_apart_by_one(case: Any, tmp_path: Path) -> None:
    task = replace(TASK, labels=("no", "yes", "yet"))
    with pytest.raises(ValueError, match="do not all differ at their first different token"):
        train(case.model, task, examples(4), [], tmp_path, replace(SMALL, objective="poe"), bias=case.model)


@pytest.mark.parametrize("name", ["gpt2", "neox", "gemma2", "qwen2", "mistral"])
def test_other_architectures_train_on_the_projections_that_they_have(name: str, tmp_path: Path) -> None:
    case = make_case(name, **roomy(name))
    found = run(case, tmp_path, replace(SMALL, steps=2))
    targets = json.loads((found.folder / "adapter_config.json").read_text())["target_modules"]
    fused = {"gpt2": {"c_attn"}, "neox": {"query_key_value"}}
    assert set(targets) == fused.get(name, {"q_proj", "v_proj"})


def test_a_run_file_without_a_later_setting_counts_as_its_default(case: Any, tmp_path: Path) -> None:
    run(case, tmp_path)
    held = json.loads((tmp_path / "focus.json").read_text())
    del held["settings"]["half"]
    (tmp_path / "focus.json").write_text(json.dumps(held))
    assert run(case, tmp_path).settings == SMALL


def test_a_folder_of_another_run_is_refused(case: Any, tmp_path: Path) -> None:
    run(case, tmp_path)
    with pytest.raises(ValueError, match=r"holds another run, which differs in seed \(0 there, 3 here\); give another"):
        run(case, tmp_path, replace(SMALL, seed=3))
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="file is a file; name a folder"):
        run(case, tmp_path / "file")
    with pytest.raises(TypeError, match=r"settings must be FocusSettings\(…\), got {'steps': 1}"):
        run(case, tmp_path / "new", {"steps": 1})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["focus.json", "adapter_config.json", "adapter_model.safetensors"])
def test_a_damaged_adapter_is_refused_by_the_name_of_its_file(case: Any, tmp_path: Path, name: str) -> None:
    run(case, tmp_path)
    for damaged in ((tmp_path / name).read_bytes()[:40], b"{}", None):
        (tmp_path / name).unlink() if damaged is None else (tmp_path / name).write_bytes(damaged)
        with pytest.raises((ValueError, FileNotFoundError), match=name):
            read_adapter(tmp_path)
    with pytest.raises(TypeError, match=r"such as data.train, got FocusData"):
        TASK.require(ls.data.focus.sentiment())


def test_a_short_run_logs_its_losses_too(case: Any, tmp_path: Path) -> None:
    found = run(case, tmp_path, replace(SMALL, steps=2, evaluate_every=100))
    assert found.history["loss"].notna().tolist() == [True, True]


def test_what_cannot_be_trained_is_refused_before_any_step(case: Any, tmp_path: Path) -> None:
    long = FocusExample("long", {"text": "x" * 600}, "no", "word", "red", "no")
    wrong = FocusExample("wrong", {"text": "x"}, "maybe", "word", "red", "no")
    short = examples(1)[0]
    # As long as the others, but in the words of an instruction longer than they.
    wordy = [replace(short, id="w", spurious="words", s="any", y_s="yes")]
    asked = [
        TASK.ask(x, kind, template=i) for x in examples(4) for kind in KINDS for i in range(kind != "empty" and 10)
    ]
    enough = max(len(one.prompt) for one in asked) + 10  # bytes are tokens
    bad = [
        ([*examples(4), long], [], SMALL, "example 'long' as 'empty' has"),
        ([*examples(4), wrong], [], SMALL, "example 'wrong' has the label 'maybe'"),
        (examples(4), examples(2), SMALL, "2 sources stand in the examples and in the validation"),
        ([], [], SMALL, "no examples"),
        (examples(4), [], replace(SMALL, targets=("query",)), "no modules named"),
        (examples(4), [], replace(SMALL, micro_batch_size=3), "must be a multiple of micro_batch_size=3"),
        ([*examples(4), *wordy], [], replace(SMALL, max_length=enough), "example 'w'"),
    ]
    task = replace(TASK, slots={**TASK.slots, "words": "the words " * 12})
    for own, held_out, settings, message in bad:
        with pytest.raises(ValueError, match=message):
            train(case.model, task, own, held_out, tmp_path / "none", settings, progress=False)
        assert not (tmp_path / "none" / "adapter_model.safetensors").exists()
    with pytest.raises(ValueError, match="the label 'no' is the beginning of 'nope'"):
        task = replace(TASK, labels=("no", "nope", "yes"))
        train(case.model, task, examples(4), [], tmp_path / "none", SMALL, progress=False)
    with pytest.raises(TypeError, match="expected a TransformerBridge"):
        train(case.hf, TASK, examples(4), [], tmp_path / "none", SMALL)


SCRIPT = """
import os, sys
from pathlib import Path
sys.path[:0] = [{tests!r}]
from conftest import make_case
from focus_cases import TASK, examples, roomy
from lensteer.methods.focus import FocusSettings, train
case = make_case("llama", **roomy("llama"))
settings = FocusSettings(steps=6, batch_size=4, evaluate_every=2, learning_rate=1e-2, lora_dropout=0.0)
train(case.model, TASK, examples(16), examples(5, start=16), sys.argv[1], settings, progress=False)
"""


@pytest.mark.slow
def test_two_processes_train_the_adapter_that_one_trains(case: Any, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT.format(tests=str(Path(__file__).resolve().parents[1])))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--standalone", str(script)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(tmp_path / "two")], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    settings = replace(SMALL, lora_dropout=0.0)
    one = train(case.model, TASK, examples(16), examples(5, start=16), tmp_path / "one", settings, progress=False)
    two = read_adapter(tmp_path / "two")
    first, second = adapter_of(one.folder), adapter_of(two.folder)
    for name in first:
        torch.testing.assert_close(first[name], second[name], atol=1e-4, rtol=1e-2)
    losses = [own.history["validation_loss"].dropna().to_numpy() for own in (one, two)]
    np.testing.assert_allclose(*losses, rtol=1e-4)
    assert one.best_step == two.best_step
