"""Scores of responses and of questions: each function returns a DataFrame with one row for each that it is given.

| module | question it answers |
|---|---|
| `ifeval` | does the response obey a verifiable instruction (IFEval, strict and loose)? |
| `length` | how many words, sentences, characters, tokens; is that at most / at least / exactly n? |
| `words` | does it contain, or avoid, the given words? |
| `formats` | does it take a form (bullets, case, JSON), also when it was cut off? |
| `repetition` | does it repeat itself? |
| `fluency` | how probable is it under the unsteered model or a judge? |
| `text_perplexity` | how probable are given texts under the model, steered or not? |
| `self_bleu` | how much do the texts of one set resemble each other? |
| `open_answers` | is it the right answer to an open question? |
| `toxicity` | is it toxic, by a packaged classifier, one from the hub, or a judge? |
| `concepts` | is it about a concept, by its words or by a judge? |
| `judge` | what does a model answer to a yes-or-no question about each text? |
| `multiple_choice` | which option of a question does the model, steered or not, find most likely? |
| `focus` | does the answer follow the feature that a focus instruction names? |
| `label_beams` | which label does constrained beam search choose? |
| `truthfulqa` | does it find true answers more likely than false ones (MC1, MC2, MC3)? |
| `folds` | questions divided so that none is scored that was fitted on |
| `lm_eval_model` | all tasks of lm-eval: `LensteerLM`, a steered model as an lm-eval model |

A `success` column says whether the response does what was asked; every score of success should be read beside
one of damage (`repetitions`, `perplexity`, `probability_inside`). Importing this package loads neither pandas nor
lm-eval.
"""

from __future__ import annotations

from typing import Any

from lensteer.evaluate.concepts import concept_judge, concept_presence
from lensteer.evaluate.fluency import degenerate, perplexity, response_perplexity
from lensteer.evaluate.focus import focus_accuracy, focus_accuracy_grid, focus_prompts, label_log_probs
from lensteer.evaluate.folds import Fold, folds
from lensteer.evaluate.formats import bullets, json_format, letter_case, lines_matching
from lensteer.evaluate.ifeval import ifeval, instruction_ids
from lensteer.evaluate.judge import judge
from lensteer.evaluate.label_beams import label_beams
from lensteer.evaluate.length import lengths, meets_length, split_sentences
from lensteer.evaluate.multiple_choice import multiple_choice, multiple_choice_grid, require_single_token
from lensteer.evaluate.open_answers import exact_match
from lensteer.evaluate.repetition import repetitions
from lensteer.evaluate.self_bleu import self_bleu
from lensteer.evaluate.text_perplexity import text_perplexity
from lensteer.evaluate.toxicity import hub_classifier, packaged_classifier, toxicity, toxicity_judge, toxicity_rate
from lensteer.evaluate.truthfulqa import truthfulqa, truthfulqa_scores
from lensteer.evaluate.words import excludes_words, includes_words

__all__ = [
    "ifeval",
    "instruction_ids",
    "lengths",
    "meets_length",
    "split_sentences",
    "includes_words",
    "excludes_words",
    "bullets",
    "letter_case",
    "json_format",
    "lines_matching",
    "repetitions",
    "perplexity",
    "response_perplexity",
    "text_perplexity",
    "degenerate",
    "self_bleu",
    "exact_match",
    "toxicity",
    "toxicity_rate",
    "packaged_classifier",
    "hub_classifier",
    "toxicity_judge",
    "concept_presence",
    "concept_judge",
    "judge",
    "multiple_choice",
    "multiple_choice_grid",
    "require_single_token",
    "focus_accuracy",
    "focus_accuracy_grid",
    "focus_prompts",
    "label_log_probs",
    "label_beams",
    "truthfulqa",
    "truthfulqa_scores",
    "Fold",
    "folds",
]


def __getattr__(name: str) -> Any:
    if name == "LensteerLM":  # its module needs lm-eval
        from lensteer.evaluate.lm_eval_model import LensteerLM

        return LensteerLM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
