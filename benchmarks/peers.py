"""The peers' side of the extraction benchmark; runs in .venv-peers and imports nothing of lensteer.

Reads JSON lines, answers with JSON lines: first the texts and the model's folder, then which peer to run. Each peer
goes from strings to mean difference vectors of all layers through its own public functions:

- steering-vectors: ``train_steering_vector``, at its default batch size of 1 and at 16;
- repeng: ``batched_get_hiddens`` at its default batch size of 32, then the mean difference (its own estimators are
  PCAs, which would only add to the time);
- the lean floor once more, to show what the other version of transformers is worth.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

# Answers go to the real standard output; whatever a library prints goes to standard error.
_ANSWERS = os.fdopen(os.dup(1), "w", buffering=1)
os.dup2(2, 1)

import torch  # noqa: E402
from lean import mean_difference  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast  # noqa: E402

CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
SV, RE = "steering-vectors", "repeng"


def load(folder: Path) -> tuple[Any, Any]:
    """The model and tokenizer from a folder that transformers 5 wrote, two of whose keys version 4 does not know.

    It would pass over ``rope_parameters`` in silence and compute with another rotary base; and it has no tokenizer
    class of that name, so the tokenizer comes from its file.
    """
    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    config.rope_theta = json.loads((folder / "config.json").read_text())["rope_parameters"]["rope_theta"]
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32, local_files_only=True)
    written = json.loads((folder / "tokenizer_config.json").read_text())
    special = {key: written[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token") if written.get(key)}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"), **special)
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return model.eval(), tokenizer


def contenders(model: Any, tokenizer: Any, pairs: Sequence[tuple[str, str]]) -> dict[str, Callable[[], Tensor]]:
    """Name -> function that runs once and returns vectors ``[layer, d_model]``."""
    from repeng.extract import batched_get_hiddens
    from steering_vectors import train_steering_vector

    layers = list(range(model.config.num_hidden_layers))

    def steering_vectors(batch_size: int) -> Tensor:
        trained = train_steering_vector(model, tokenizer, pairs, batch_size=batch_size)
        return torch.stack([trained.layer_activations[layer] for layer in layers])

    def repeng(batch_size: int) -> Tensor:
        texts = [text for pair in pairs for text in pair]
        hidden = batched_get_hiddens(model, tokenizer, texts, layers, batch_size)
        return torch.stack([torch.from_numpy(hidden[i][::2].mean(0) - hidden[i][1::2].mean(0)) for i in layers])

    positive, negative = [p for p, _ in pairs], [n for _, n in pairs]
    return {
        f"{SV}, batch 1": lambda: steering_vectors(1),
        f"{SV}, batch 16": lambda: steering_vectors(16),
        f"{RE}, batch 32": lambda: repeng(32),
        "lean floor, older transformers": lambda: mean_difference(model, tokenizer, positive, negative),
    }


def main() -> None:
    task = json.loads(sys.stdin.readline())
    torch.set_num_threads(task["threads"])
    now = CLOCKS[task["clock"]]
    model, tokenizer = load(Path(task["folder"]))
    functions = contenders(model, tokenizer, [tuple(pair) for pair in task["pairs"]])
    answer: dict[str, Any] = {
        "names": list(functions),
        "versions": {name: version(name) for name in (SV, RE, "transformers", "torch")},
    }
    _ANSWERS.write(json.dumps(answer) + "\n")
    for line in sys.stdin:
        asked = json.loads(line)
        start = now()
        vector = functions[asked["run"]]()
        answer = {"seconds": now() - start}
        if asked.get("vector"):
            answer["vector"] = vector.tolist()
        _ANSWERS.write(json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
