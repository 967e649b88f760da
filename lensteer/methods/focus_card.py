"""The model card of a focus adapter: what it does, what it was trained on and how, and what it is not good for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from lensteer.methods.focus_settings import FocusSettings


def card(run: Mapping[str, Any]) -> str:
    """A README in the form that model hubs read, from the content of `focus.json`."""
    task, settings, model = run["task"], run["settings"], run["model"]
    spurious = [name for name in task["slots"] if name != task["core"]]
    lines = [
        "---",
        "library_name: peft",
        f"base_model: {model['model']}",
        "tags: [lora, focus-instruction-tuning, lensteer]",
        "---",
        "",
        f"# {settings['objective']} adapter for {task['name']} on {model['model']}",
        "",
        _PURPOSE[settings["objective"]].format(core=task["core"], spurious=", ".join(spurious)),
        "",
        f"- task: {task['instruction']}",
        f"- answers: {', '.join(task['labels']) or 'free text'}",
        f"- core feature: {task['core']}; spurious: {', '.join(spurious)}",
        *[f"- {name} stands for: {_meaning(own)}" for name, own in task["meanings"].items()],
        f"- trained on {run['n_examples']} examples, chosen on {run['n_validation']} others "
        f"(SHA-256 {run['data']['examples'][:12]}, {run['data']['validation'][:12]})",
        f"- LoRA of rank {settings['lora_rank']}, alpha {settings['lora_alpha']}, dropout {settings['lora_dropout']}",
        f"- learning rate {settings['learning_rate']}, batches of {settings['batch_size']}, seed {settings['seed']}",
        f"- best step {run['best_step']}; {run['seconds']:.0f} s, of its last part where it was interrupted",
        f"- versions: {', '.join(f'{name} {value}' for name, value in run['versions'].items())}",
        "",
        "## Made by",
        "```python",
        "# task, examples and validation: those named above",
        f"settings = ls.focus.FocusSettings({_changed(settings)})",
        "ls.focus.train(model, task, examples, validation, folder, settings)",
        "```",
        "",
        "## Use",
        "```python",
        "import lensteer as ls",
        'model = ls.focus.load("this folder")  # merged, as a TransformerBridge',
        "```",
        "",
        "## Limits",
        "It follows the two features that it was trained on, in prompts of the form that it was trained on. It says "
        "nothing about other features, and its labels are the ones listed above. The base model's licence and limits "
        "hold for it as well.",
        "",
        "Method: Lamb et al., Focus On This, Not That! Steering LLMs with Adaptive Feature Specification, ICML 2025.",
        "",
    ]
    return "\n".join(lines)


_PURPOSE = {
    "fit": "Answers by the feature that a focus instruction names: {core}, or {spurious}.",
    "sft_y": "A baseline: fine-tuned on the labels of {core} alone, without focus instructions.",
    "sft_focus": "A baseline: the labels of focus instruction tuning, without the instructions ({core}, {spurious}).",
    "poe": "A baseline: fine-tuned on the labels of {core} in a product of experts with a model biased by {spurious}.",
    "sft_spurious": "A bias model: fine-tuned to answer by {spurious} instead of {core}.",
}


def _changed(settings: Mapping[str, Any]) -> str:
    """The settings that are not the defaults, as arguments."""
    usual = asdict(FocusSettings())
    names = [name for name in usual if name in settings and name != "sampler" and settings[name] != usual[name]]
    return ", ".join(f"{name}={settings[name]!r}" for name in names)


def _meaning(values: Mapping[str, str]) -> str:
    return ", ".join(f"{value} for {label}" for value, label in values.items())
