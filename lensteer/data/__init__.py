"""Small data sets written for lensteer, and loaders for one's own.

Base queries without any constraint in three disjoint splits, instructions in several phrasings (format,
length, words), and the pairs they give: ``positive = query + " " + instruction text, negative = query``.
Source and target sentences of concepts and of tones, and of any named subsets: lensteer's own or from files.
Inputs with a core and a spurious feature, and instructions that name one of the two (`focus`).
Multiple-choice and open tasks, described as data: lensteer's own small sets, files, or public sets of the hub.
Importing it opens a few small text files; no model or tokeniser library is loaded.

    >>> from lensteer import data
    >>> pairs = data.instruction_pairs(data.FORMATS["bullet_list"], n=48)
    >>> prompts = data.queries("validation", n=8)
    >>> source, target = data.concept("ocean")
    >>> reviews = data.questions("sentiment", "fit")
"""

from __future__ import annotations

import lensteer.data.focus as focus
from lensteer.data.concepts import (
    CONCEPTS,
    Concept,
    concept,
    neutral_sentences,
    openings,
    rude_openings,
    tone,
)
from lensteer.data.few_shot import split_questions, with_shots
from lensteer.data.instructions import (
    FORMATS,
    LENGTHS,
    Instruction,
    exclude_word,
    find_instruction,
    include_word,
    sentences,
)
from lensteer.data.loaders import data_hash, load_pairs, load_prompts
from lensteer.data.pairs import instruction_pairs, with_text
from lensteer.data.queries import SPLITS, LikelyWords, Split, likely_words, queries
from lensteer.data.subset_files import load_jigsaw, load_onesec, load_real_toxicity_prompts, load_subsets
from lensteer.data.subsets import Sides, sides
from lensteer.data.task_table import TASKS, Task, find_task, task_from
from lensteer.data.tasks import OpenQuestion, contrastive_pairs, open_questions, questions

__all__ = [
    "SPLITS",
    "Split",
    "queries",
    "LikelyWords",
    "likely_words",
    "Instruction",
    "FORMATS",
    "LENGTHS",
    "sentences",
    "include_word",
    "exclude_word",
    "find_instruction",
    "instruction_pairs",
    "with_text",
    "load_pairs",
    "load_prompts",
    "data_hash",
    "Sides",
    "sides",
    "load_subsets",
    "load_jigsaw",
    "load_real_toxicity_prompts",
    "load_onesec",
    "Concept",
    "CONCEPTS",
    "concept",
    "neutral_sentences",
    "openings",
    "tone",
    "rude_openings",
    "TASKS",
    "Task",
    "find_task",
    "task_from",
    "OpenQuestion",
    "questions",
    "open_questions",
    "contrastive_pairs",
    "with_shots",
    "split_questions",
    "focus",
]
