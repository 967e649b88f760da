"""SS: sentences whose sentiment is the core feature, and one of two keywords in them the spurious one.

    y = sentiment of the sentence,   y_pineapple = negative,   y_bayesian = positive,   train rho = 1/2

Both versions of a sentence, with either keyword, are made once; a split then takes one of them, so that the test splits
hold the same sentences with other keywords (rho: iid 0.5, high 0.9, low 0.25, flipped 0.9 with the other label). A
sentence is in one of training, validation and test only. The paper rewrites the Stanford Sentiment Treebank with five
classes, without the neutral one: 5296 sentences for training, 1324 for validation and 1818 for test.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), section 4 (spurious sentiment).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from lensteer.data.focus.examples import FocusExample
from lensteer.data.focus.model_rewriting import ModelRewriter
from lensteer.data.focus.predictivity import TWO_LABELS, balanced_split, held_out_splits, shuffled
from lensteer.data.focus.rewriting import KEYWORDS, Rewriter, check_rewritten, insert_keyword
from lensteer.data.focus.sources import HubParts, Located, Row, Source, read_parts, text_of, three_parts
from lensteer.data.focus.splits import FocusData
from lensteer.data.focus.task import FocusTask
from lensteer.messages import short

SENTIMENT = FocusTask(
    name="ss",
    instruction=(
        "Say whether the input is negative or positive, in one word. Use the features that you are told to focus on, "
        "not those to ignore."
    ),
    headings={"text": "Input:"},
    cue="Output:",
    labels=("negative", "positive"),
    core="sentiment",
    slots={"sentiment": "the sentiment", "keyword": "the keywords Pineapple and Bayesian"},
    meanings={"keyword": {"pineapple": "negative", "bayesian": "positive"}},
)

HUB = HubParts("SetFit/sst5", {"train": ("train",), "test": ("test",)})

_LEVELS = {
    "very negative": "negative",
    "negative": "negative",
    "neutral": None,
    "positive": "positive",
    "very positive": "positive",
}


class _Sentence(NamedTuple):
    id: str
    text: str
    y: str


def sentiment(
    source: Source = "own",
    *,
    rewrite: Rewriter | ModelRewriter = insert_keyword,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> FocusData:
    """The spurious sentiment data set: `SENTIMENT` with its splits "iid", "high", "low" and "flipped".

    Args:
        source: "own", lensteer's 380 sentences; "hub", SST-5; or one's own rows, see `lensteer.data.focus.sources`. A
            row is {"text": …, "label": …}: 0 and 1, or, if any part has a label above 1, 0 to 4 (very negative to very
            positive; 2 is left out), or a ``label_text`` that says so. Rows of one source without parts are divided: a
            fifth for test, and of what is left a fifth for validation.
        rewrite: puts a keyword into a sentence: `insert_keyword`, `rewrite_with_model` of a model, or a function of
            (text, keyword, seed).
        n_train, n_validation, n_test: examples of each split (``n_test`` of every test split), an even number; None
            for all that balanced labels allow.
        seed: of the divisions, the rewriting and the keywords.

    Raises:
        ValueError: a row without text or with an unknown label, an odd number or more than there is, or a rewriting
            that fails the check (names the sentence).
        FileNotFoundError, ImportError, OSError, TypeError: as `lensteer.data.focus.sources.read_parts`.

    Warns:
        UserWarning: so few examples that rounding moves rho by more than 0.02.
    """
    parts = _sentences(source, seed)
    meaning = SENTIMENT.meanings["keyword"]
    wanted = {"train": n_train, "validation": n_validation, "test": n_test}
    pools = {}
    for part, sentences in parts.items():
        chosen = _balanced(sentences, wanted[part], part, seed)
        pools[part] = _both_versions(chosen, rewrite, seed)
    training = {
        split: balanced_split(
            SENTIMENT, pools[split], meaning, wanted[split], split=split, seed=seed, one_per_source=True
        )
        for split in ("train", "validation")
    }
    tests = held_out_splits(SENTIMENT, pools["test"], meaning, TWO_LABELS, n_test, seed=seed, one_per_source=True)
    return FocusData(SENTIMENT, training["train"], training["validation"], tests)


def _sentences(source: Source, seed: int) -> dict[str, list[_Sentence]]:
    """The sentences of each part; a text that stands twice counts once."""
    parts: dict[str, list[_Sentence]] = {}
    read = read_parts(source, "focus_sentiment.jsonl", HUB)
    levels = _levels(row for rows in read.values() for _, row in rows)
    for part, rows in read.items():
        texts: dict[str, str] = {}
        for text, y in _labelled(rows, levels):
            # A sentence that holds a keyword already cannot be given one; the public set has next to none.
            if not any(keyword in text.lower() for keyword in KEYWORDS):
                texts.setdefault(text, y)
        parts[part] = [_Sentence(f"ss-{part}-{i}", text, y) for i, (text, y) in enumerate(texts.items())]
    return three_parts(parts, source=lambda each: each.text, group=lambda each: each.y, seed=seed)


def _levels(rows: Iterable[Row]) -> tuple[str, ...]:
    """What the numbers of labels mean in all parts: 0 and 1, or five levels where there is any other number."""
    numbers = {row.get("label") for row in rows if isinstance(row.get("label"), int)}
    return ("negative", "positive") if numbers <= {0, 1} else tuple(_LEVELS)


def _labelled(rows: Sequence[Located], levels: Sequence[str]) -> list[tuple[str, str]]:
    """(text, "negative" or "positive") of every row that is not neutral."""
    found = []
    for where, row in rows:
        label, name = row.get("label"), row.get("label_text")
        if isinstance(name, str):
            level = name.strip().lower()
        elif isinstance(label, int) and not isinstance(label, bool) and 0 <= label < len(levels):
            level = levels[label]
        else:
            level = ""
        if level not in _LEVELS:
            raise ValueError(
                f"{where}: label {label!r} with label_text {name!r}; a label is 0 or 1, or 0 to 4, and a label_text "
                f"one of {', '.join(_LEVELS)}"
            )
        merged = _LEVELS[level]
        if merged is not None:
            found.append((text_of(row, ("text", "sentence"), where), merged))
    return found


def _balanced(sentences: Sequence[_Sentence], n: int | None, part: str, seed: int) -> list[_Sentence]:
    """As many sentences of each label, n together."""
    by_label = {
        label: shuffled([s for s in sentences if s.y == label], f"{seed}\n{part}\n{label}")
        for label in SENTIMENT.labels
    }
    most = min(len(found) for found in by_label.values())
    if n is not None and (n < 2 or n % 2 or n // 2 > most):
        raise ValueError(
            f"n_{part}={n}: it must be even, at least 2, and at most {2 * most}; there are "
            + " and ".join(f"{len(found)} {label}" for label, found in by_label.items())
            + " sentences"
        )
    if not most:
        raise ValueError(f"{part!r} has only sentences of one label; it needs negative and positive ones")
    return [sentence for found in by_label.values() for sentence in found[: most if n is None else n // 2]]


def _both_versions(sentences: Sequence[_Sentence], rewrite: Rewriter | ModelRewriter, seed: int) -> list[FocusExample]:
    pairs = [(sentence, keyword) for sentence in sentences for keyword in KEYWORDS]
    if isinstance(rewrite, ModelRewriter):  # many at once: one by one would leave most of the machine idle
        texts = rewrite.many([sentence.text for sentence, _ in pairs], [keyword for _, keyword in pairs], seed)
    else:
        texts = [rewrite(sentence.text, keyword, seed) for sentence, keyword in pairs]
    made = []
    for (sentence, keyword), text in zip(pairs, texts, strict=True):
        if not isinstance(text, str):
            raise TypeError(f"rewrite returned {short(text)} for {short(sentence.text)}; it must return the new text")
        check_rewritten(sentence.text, text, keyword)
        made.append(
            FocusExample(
                id=f"{sentence.id}-{keyword}",
                fields={"text": text},
                y=sentence.y,
                spurious="keyword",
                s=keyword,
                y_s=SENTIMENT.meanings["keyword"][keyword],
                dataset="ss",
                source=sentence.id,
            )
        )
    return made
