"""SHANS: pairs of sentences that share words; their relation is the core feature, how they share them the spurious one.

    train, iid … flipped:    y_lexical_overlap = entailment,   y_constituent = contradiction
    shifted_iid … flipped:   y_subsequence = entailment

| heuristic | the hypothesis is |
|---|---|
| lexical_overlap | made of words of the premise |
| subsequence | a contiguous part of the premise |
| constituent | a clause of the premise |

Each holds for pairs that follow and for pairs that do not ("The doctor paid the actor." and "The actor paid the
doctor."). rho is 0.5 for training and iid, 0.9 for high and flipped, 0.25 for low. HANS calls what does not follow
non-entailment; here, as in the paper, it is "contradiction". The paper does not print sizes or a prompt.

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), appendix (SHANS), out of HANS (McCoy et al., ACL 2019).
"""

from __future__ import annotations

from lensteer.data.focus.hans_grammar import hans_rows
from lensteer.data.focus.nli import pair_examples
from lensteer.data.focus.predictivity import TWO_LABELS, balanced_split, held_out_splits
from lensteer.data.focus.sources import HubParts, Source, read_parts, three_parts
from lensteer.data.focus.splits import FocusData
from lensteer.data.focus.task import FocusTask

SEEN = {"lexical_overlap": "entailment", "constituent": "contradiction"}
UNSEEN_HEURISTIC = {"subsequence": "entailment"}

HANS = FocusTask(
    name="shans",
    instruction=(
        "Say whether the hypothesis is entailment or contradiction given the premise, in one word. Use the features "
        "that you are told to focus on, not those to ignore."
    ),
    headings={"premise": "Premise:", "hypothesis": "Hypothesis:"},
    cue="Output:",
    labels=("entailment", "contradiction"),
    core="relation",
    slots={
        "relation": "the NLI relationship between premise and hypothesis",
        "heuristic": "the kind of overlap between the texts",
    },
    meanings={"heuristic": SEEN | UNSEEN_HEURISTIC},
)

# The hub keeps a converted copy of sets that were once loaded by a script.
HUB = HubParts("jhu-cogsci/hans", {"train": ("train",), "test": ("validation",)}, revision="refs/convert/parquet")
_OWN = {"train": 480, "validation": 120, "test": 200}


def hans(
    source: Source = "own",
    *,
    n_train: int | None = None,
    n_validation: int | None = None,
    n_test: int | None = None,
    seed: int = 0,
) -> FocusData:
    """The SHANS data set: `HANS` with the splits "iid", "high", "low", "flipped" and the same with "shifted_".

    The shifted splits hold one heuristic, so their labels are balanced only where rho is 1/2.

    Args:
        source: "own", pairs that lensteer makes by a small grammar of its own; "hub", HANS; or one's own rows, such as
            the tables of HANS, see `lensteer.data.focus.sources`. A row has "gold_label" (or "label"), "heuristic",
            and "sentence1" and "sentence2" (or "premise" and "hypothesis"). Rows without parts are divided by premise,
            a fifth for test and of the rest a fifth for validation.
        n_train, n_validation, n_test: pairs of each split (``n_test`` of every test split), an even number. None means
            480, 120 and 200 of lensteer's own, else all that there is.
        seed: of the pairs, the divisions and the draws.

    Raises:
        ValueError: a row without text, heuristic or label, or too few rows for a split; says how many are missing.
        FileNotFoundError, ImportError, OSError, TypeError: as `lensteer.data.focus.sources.read_parts`.
    """
    own = isinstance(source, str) and source == "own"
    given = {"train": n_train, "validation": n_validation, "test": n_test}
    n = {part: _OWN[part] if own and count is None else count for part, count in given.items()}
    if own:  # as many of each cell as a split could ask for
        made = {part: hans_rows(count or 0, f"{seed}\n{part}") for part, count in n.items()}
        rows = {part: [(f"pair {i}", row) for i, row in enumerate(found)] for part, found in made.items()}
    else:
        rows = read_parts(source, "", HUB)
    examples = {part: pair_examples(found, HANS, "heuristic", ("heuristic",), part) for part, found in rows.items()}
    parts = three_parts(examples, source=lambda e: e.source, group=lambda e: f"{e.s} {e.y}", seed=seed)
    seen = {part: [e for e in found if e.s in SEEN] for part, found in parts.items()}
    train, validation = (
        balanced_split(HANS, seen[part], SEEN, n[part], split=part, seed=seed) for part in ("train", "validation")
    )
    tests = held_out_splits(HANS, seen["test"], SEEN, TWO_LABELS, n["test"], seed=seed)
    shifted = [example for example in parts["test"] if example.s in UNSEEN_HEURISTIC]
    if shifted:
        tests |= held_out_splits(HANS, shifted, UNSEEN_HEURISTIC, TWO_LABELS, n["test"], prefix="shifted_", seed=seed)
    return FocusData(HANS, train, validation, tests)
