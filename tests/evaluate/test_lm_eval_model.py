"""A steered model in lm-eval, against lm-eval's own model, lensteer's own scores and plain torch hooks."""

from __future__ import annotations

import json
import logging
import runpy
import subprocess
import sys
import tomllib
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import oracles
import pytest
import torch

pytest.importorskip("lm_eval", reason='lm-eval is not installed (the extra "eval")')

from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from lensteer import STEPS, Add, SetElements, SetProjection, Steering, at, generate
from lensteer.checkpoints import EMBEDDED
from lensteer.evaluate.lm_eval_model import LensteerLM, main
from lensteer.prompts import tokenize
from lensteer.scoring import score

LONG = "Once upon a time there was a model that read far more than it could keep in mind. " * 3
PAIRS = [
    ("The sky is", " blue"),
    ("The sky is", " green as grass"),
    ("Rain falls ", "on us"),  # the space belongs to the continuation
    ("", "No context"),
    ("Ünï", "cödé"),
    ("The sky is", " blue"),  # asked twice
    (LONG, " The end"),
]
QUESTIONS = [
    {"question": "What colour is the sky?", "choices": ["blue", "a loud red", "no"], "answer": 0},
    {"question": "What falls?", "choices": ["rain", "up", "the roof of all"], "answer": 1},
    {"question": "Who reads?", "choices": ["we", "you two", "they"], "answer": 2},
]
NAME = "tiny_questions"


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def ask(kind: str, arguments: list[tuple[Any, ...]]) -> list[Instance]:
    return [Instance(kind, {}, argument, i) for i, argument in enumerate(arguments)]


def plain_lm(case: Any, **options: Any) -> HFLM:
    return HFLM(pretrained=case.hf, tokenizer=case.tokenizer, **{"batch_size": 2, **options})


def steered(scope: Any = "all") -> Steering:
    return Steering(
        [
            ("blocks.1.hook_resid_post", at(Add(random(32), 3.0), scope)),
            ("blocks.2.attn.hook_z", at(SetProjection(random(4, 8), 5.0), scope)),
        ]
    )


def changes(scope: Any = "all") -> list[oracles.Change]:
    return [
        oracles.Change("resid_post", 1, oracles.add(random(32), 3.0), scope),
        oracles.Change("z", 2, oracles.set_projection(random(4, 8), 5.0, 1.0), scope),
    ]


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    """A folder with a multiple-choice and a generation task on local questions."""
    folder = tmp_path / "tasks"
    folder.mkdir()
    data = folder / "questions.jsonl"
    data.write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(tmp_path / "cache")},
        "test_split": "test",
        "doc_to_text": "{{question}}",
    }
    choice = {
        "task": NAME,
        "output_type": "multiple_choice",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "answer",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    written = {
        "task": f"{NAME}_written",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[answer]}}",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": 4},
        "metric_list": [{"metric": "exact_match"}],
    }
    for task in (choice, written):
        text = json.dumps({**common, **task})  # JSON is YAML
        (folder / f"{task['task']}.yaml").write_text(text, encoding="utf-8")
    return folder


def evaluate(lm: Any, folder: Path, task: str = NAME, **options: Any) -> dict[str, Any]:
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    return simple_evaluate(model=lm, tasks=[task], task_manager=manager, bootstrap_iters=0, **options)


def answers(results: dict[str, Any], task: str = NAME) -> list[list[tuple[float, bool]]]:
    """The option log-likelihoods of every question, in order."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [[(float(log_prob), str(greedy) == "True") for log_prob, greedy in s["filtered_resps"]] for s in samples]


def test_unsteered_log_likelihoods_equal_those_of_lm_evals_own_model(tiny, caplog) -> None:
    wanted = plain_lm(tiny).loglikelihood(ask("loglikelihood", PAIRS))
    with caplog.at_level(logging.WARNING):
        found = LensteerLM(tiny.model).loglikelihood(ask("loglikelihood", PAIRS))
    assert [log_prob for log_prob, _ in found] == pytest.approx([log_prob for log_prob, _ in wanted], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in wanted]
    assert "1 of 7 contexts do not fit the model; their beginnings are cut off" in caplog.text


def test_rolling_log_likelihoods_equal_those_of_lm_evals_own_model(tiny) -> None:
    texts = [("Short.",), (LONG,), ("",), (LONG[:127],), (LONG[:128],), (LONG[:129],)]
    wanted = plain_lm(tiny).loglikelihood_rolling(ask("loglikelihood_rolling", texts))
    found = LensteerLM(tiny.model).loglikelihood_rolling(ask("loglikelihood_rolling", texts))
    assert found == pytest.approx(wanted, abs=1e-3, rel=1e-6)


@pytest.mark.parametrize("scope", ["all", "last", "prompt", "generated", STEPS], ids=str)
def test_steered_log_likelihoods_equal_plain_hooks_with_the_context_as_the_prompt(tiny, scope: Any) -> None:
    lm = LensteerLM(tiny.model, steered(scope))
    pairs = PAIRS[:-1]
    found = lm.loglikelihood(ask("loglikelihood", pairs), disable_tqdm=True)
    for (context, continuation), (log_prob, _) in zip(pairs, found, strict=True):
        if context:
            before, response = lm._encode_pair(context, continuation)
        else:
            before, response = [lm.prefix_token_id], lm.tok_encode(continuation, add_special_tokens=False)
        wanted = oracles.response_log_probs(tiny.hf, before, response, changes(scope))
        assert log_prob == pytest.approx(float(wanted.sum()), abs=2e-4 * len(response))


def test_greedy_is_true_where_decoding_would_have_said_the_continuation(llama) -> None:
    lm = LensteerLM(llama.model, steered(STEPS))
    said = generate(llama.model, ["The sky is"], steered(STEPS), max_new_tokens=3, prompt_format="plain")
    context, right = lm.tok_encode("The sky is"), said["token_ids"][0]
    wrong = [*right[:-1], right[-1] - 1]
    found = lm._loglikelihood_tokens([(None, context, right), (None, context, wrong), (None, context, right[:1])])
    assert [greedy for _, greedy in found] == [True, False, True]


def test_a_context_that_options_share_is_read_once(llama, forwards) -> None:
    lm = LensteerLM(llama.model, steered())
    with forwards(llama) as calls:
        lm.loglikelihood(ask("loglikelihood", [("The sky is", f" {colour}") for colour in ("blue", "red", "grey")]))
    assert [shape[0] for shape in calls] == [1, 3]  # one context, then its three continuations


def test_a_task_gives_lensteers_own_scores(llama, tasks: Path) -> None:
    results = evaluate(LensteerLM(llama.model, steered(STEPS)), tasks)
    prompts = [q["question"] for q in QUESTIONS for _ in q["choices"]]
    options = [f" {choice}" for q in QUESTIONS for choice in q["choices"]]
    own = score(llama.model, prompts, options, steered(STEPS), prompt_format="plain", progress=False)
    sums = torch.tensor([float(scored.log_probs.sum()) for scored in own]).view(3, 3)
    assert [[log_prob for log_prob, _ in row] for row in answers(results)] == [
        pytest.approx(row.tolist(), abs=1e-4) for row in sums
    ]
    targets = torch.tensor([q["answer"] for q in QUESTIONS])
    lengths = torch.tensor([[len(choice) for choice in q["choices"]] for q in QUESTIONS])
    scores = results["results"][NAME]
    assert scores["acc,none"] == pytest.approx(float((sums.argmax(1) == targets).float().mean()))
    assert scores["acc_norm,none"] == pytest.approx(float(((sums / lengths).argmax(1) == targets).float().mean()))


@pytest.mark.parametrize("chat", [False, True])
def test_an_unsteered_task_equals_lm_evals_own_model_with_and_without_chat_template(llama, tasks: Path, chat) -> None:
    mine = evaluate(LensteerLM(llama.model), tasks, apply_chat_template=chat)
    theirs = evaluate(plain_lm(llama), tasks, apply_chat_template=chat)
    for row, wanted in zip(answers(mine), answers(theirs), strict=True):
        assert [log_prob for log_prob, _ in row] == pytest.approx([log_prob for log_prob, _ in wanted], abs=1e-4)
    for metric in ("acc,none", "acc_norm,none"):
        assert mine["results"][NAME][metric] == theirs["results"][NAME][metric]
    context = mine["samples"][NAME][0]["arguments"][0][0]
    assert context.startswith("<bos><|start|>user") == chat
    assert LensteerLM(llama.model).tok_encode(context).count(1) == 1  # no second BOS


def test_strength_0_is_no_steering_and_strength_sets_every_edit(llama) -> None:
    requests = ask("loglikelihood", PAIRS)
    plain = LensteerLM(llama.model).loglikelihood(requests)
    assert LensteerLM(llama.model, steered(), strength=0).loglikelihood(requests) == plain
    weak = LensteerLM(llama.model, steered(), strength=0.5)
    assert [edit.strength for _, edit in weak.steering] == [0.5, 0.5]
    assert weak.loglikelihood(requests) == LensteerLM(llama.model, steered().at_strength(0.5)).loglikelihood(requests)


def test_generation_equals_generate(llama) -> None:
    lm = LensteerLM(llama.model, steered(STEPS))
    contexts = ["The sky is", "Rain", "The sky is", LONG]
    settings = [
        {"until": ["\n\n"], "max_gen_toks": 6},
        {"until": "a", "max_new_tokens": 9},
        {"until": ["", "e", "o"], "do_sample": False, "temperature": 0.7, "max_gen_toks": 12},
        {"do_sample": True, "temperature": 0.8, "top_p": 0.9, "max_gen_toks": 5},
    ]
    wanted_settings: list[dict[str, Any]] = [
        {"stop": ["\n\n"], "max_new_tokens": 6},
        {"stop": ["a"], "max_new_tokens": 9},
        {"stop": ["e", "o"], "max_new_tokens": 12},
        {"temperature": 0.8, "top_p": 0.9, "max_new_tokens": 5},
    ]
    found = lm.generate_until(ask("generate_until", list(zip(contexts, settings, strict=True))))
    for context, options, text in zip(contexts, wanted_settings, found, strict=True):
        row = tokenize(llama.model, ["x"])[0]
        ids = llama.tokenizer(context)["input_ids"][-(128 - options["max_new_tokens"]) :]
        row = type(row)(ids, [True] * len(ids), "")
        assert text == generate(llama.model, [row], steered(STEPS), progress=False, **options)["response"][0]


def test_unsteered_generation_equals_that_of_lm_evals_own_model(tiny) -> None:
    requests = ask("generate_until", [(c, {"until": ["\n"], "max_gen_toks": 6}) for c in ("The sky is", "Rain", LONG)])
    assert LensteerLM(tiny.model).generate_until(requests) == plain_lm(tiny, batch_size=1).generate_until(requests)


def test_a_generation_task_runs(llama, tasks: Path) -> None:
    task = f"{NAME}_written"
    results = evaluate(LensteerLM(llama.model, steered()), tasks, task)
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    prompts = [q["question"] for q in QUESTIONS]
    wanted = generate(
        llama.model, prompts, steered(), max_new_tokens=4, stop=["\n"], prompt_format="plain", progress=False
    )
    assert [sample["filtered_resps"][0] for sample in samples] == list(wanted["response"])


@pytest.fixture
def folder(llama, tmp_path: Path) -> Path:
    llama.hf.save_pretrained(tmp_path / "model")
    llama.tokenizer.save_pretrained(tmp_path / "model")
    steered().save(tmp_path / "steering.safetensors")
    return tmp_path


def command(folder: Path, tasks: Path) -> list[str]:
    arguments = f"model={folder / 'model'},steering={folder / 'steering.safetensors'},strength=0.5"
    options = {"--model": "lensteer", "--model_args": arguments, "--include_path": str(tasks), "--tasks": NAME}
    options |= {"--batch_size": "auto", "--output_path": str(folder / "results")}
    return [word for option in options.items() for word in option]


def assert_written(case: Any, folder: Path, tasks: Path) -> None:
    """The command's results are those of the same evaluation in Python."""
    (written,) = (folder / "results").glob("**/results_*.json")
    results = json.loads(written.read_text())
    wanted = evaluate(LensteerLM(case.model, steered().at_strength(0.5)), tasks)
    for metric in ("acc,none", "acc_norm,none"):
        assert results["results"][NAME][metric] == wanted["results"][NAME][metric]
    assert results["config"]["steering_hash"] == steered().at_strength(0.5).content_hash()
    assert results["config"]["steering_strengths"] == [0.5, 0.5]


def test_the_command_of_lm_eval_runs_it_by_name(llama, folder: Path, tasks: Path, monkeypatch, capsys) -> None:
    # Reading lm-eval's own thousands of tasks takes long, and none of them is asked for.
    monkeypatch.setattr("lm_eval.tasks.TaskManager", partial(TaskManager, include_defaults=False))
    monkeypatch.setattr(sys, "argv", ["lm_eval", *command(folder, tasks)])
    main()
    assert f"|{NAME}" in capsys.readouterr().out
    assert_written(llama, folder, tasks)


@pytest.mark.slow
def test_the_command_runs_in_a_process_of_its_own(llama, folder: Path, tasks: Path) -> None:
    words = [sys.executable, "-m", "lensteer.evaluate.lm_eval_model", *command(folder, tasks)]
    run = subprocess.run(words, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    assert f"|{NAME}" in run.stdout
    assert_written(llama, folder, tasks)


def test_lm_eval_knows_the_model_and_makes_it_from_its_arguments(folder: Path) -> None:
    assert get_model("lensteer") is LensteerLM
    text = f"model={folder / 'model'},steering={folder / 'steering.safetensors'},max_length=64"
    lm = LensteerLM.create_from_arg_string(text, {"batch_size": "auto:4", "device": "cuda:0", "max_batch_size": None})
    assert (lm.batch_size, lm.max_length, len(lm.steering)) == ("auto", 64, 2)
    assert lm.tokenizer_name.endswith("model")
    assert json.dumps(lm.get_model_info())


def test_a_steering_alone_is_one_of_the_embedded_model(
    llama: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(f"{LensteerLM.__module__}.load_model", lambda name, **how: asked.append(name) or llama.model)
    lm = LensteerLM.create_from_arg_string(f"steering={folder / 'steering.safetensors'}")
    assert asked == [EMBEDDED] and lm.model is llama.model and len(lm.steering) == 2


def test_the_entry_point_that_later_versions_of_lm_eval_read_names_the_class() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["entry-points"]["lm_eval.models"]["lensteer"].partition(":")
    assert getattr(import_module(module), name) is LensteerLM


def test_a_steering_for_the_rows_of_one_batch_is_refused(llama) -> None:
    frozen = Steering([("blocks.1.hook_resid_post", SetElements(random(3, 32), per_row=True))])
    for steering in (frozen, steered().at_strength([1.0, 2.0])):
        with pytest.raises(ValueError, match=r"values for the [23] rows of one batch.*mode='live'"):
            LensteerLM(llama.model, steering)


def test_bad_arguments_are_refused_before_any_work(llama, gpt2, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.safetensors"):
        LensteerLM("no/such/model", tmp_path / "no.safetensors")
    with pytest.raises(ValueError, match="batch_size must be 'auto' or a positive integer, got 'many'"):
        LensteerLM(llama.model, batch_size="many")
    with pytest.raises(ValueError, match="max_length=129, but must lie in 1 to 128"):
        LensteerLM(llama.model, max_length=129)
    with pytest.raises(ValueError, match="do not apply to a loaded model"):
        LensteerLM(llama.model, dtype="float32")
    with pytest.raises(ValueError, match=r"no hook point 'blocks.9"):
        LensteerLM(llama.model, [("blocks.9.hook_resid_post", Add(random(32)))])
    with pytest.raises(TypeError, match="expected a TransformerBridge"):
        LensteerLM(llama.hf)
    with pytest.raises(TypeError, match=r"no argument 'stering'; there are \['model', 'steering', .*, 'seed'\]$"):
        LensteerLM.create_from_arg_string("model=no/such/model,stering=x", {"batch_size": 1})
    with pytest.raises(TypeError, match=r"strength must be a number.*'abc'"):
        LensteerLM(llama.model, steered(), strength="abc")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no chat template; leave --apply_chat_template out"):
        LensteerLM(gpt2.model).apply_chat_template([{"role": "user", "content": "Hi"}])


def test_requests_that_cannot_be_answered_are_named(llama) -> None:
    lm = LensteerLM(llama.model)
    with pytest.raises(ValueError, match=r"continuation of request 1 has 0 tokens.*'The sky is', ''"):
        lm.loglikelihood(ask("loglikelihood", [("The sky is", " blue"), ("The sky is", "")]))
    with pytest.raises(ValueError, match=r"continuation of request 0 has 246 tokens; there must be 1 to 128"):
        lm.loglikelihood(ask("loglikelihood", [("The sky is", LONG)]))
    with pytest.raises(ValueError, match=r"asks for 128 new tokens.*max_gen_toks"):
        lm.generate_until(ask("generate_until", [("The sky is", {"max_gen_toks": 128})]))
    with pytest.raises(ValueError, match=r"\{'num_beams': 4\}, which lensteer.generate does not do"):
        lm.generate_until(ask("generate_until", [("The sky is", {"max_gen_toks": 8, "num_beams": 4})]))
    assert lm.loglikelihood([]) == lm.loglikelihood_rolling([]) == lm.generate_until([]) == []


def test_without_lm_eval_the_error_names_the_extra(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    with pytest.raises(ImportError, match=r'pip install "lensteer\[eval\]"'):
        runpy.run_path(import_module(LensteerLM.__module__).__file__)
