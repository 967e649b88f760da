"""How focus instructions are put into words: ten templates for each of the three families, and a second set.

``{focused}`` and ``{ignored}`` stand for the slot texts of the two features. In the combined family half of the
templates name the focus first and half what is to be ignored, as in the paper (Figure 9). The words are lensteer's own.
`UNSEEN` holds ten more of each family that share no sentence with `TRAINING`; it is for asking whether a model follows
instructions in words that it was not trained on (section 6.3 of the paper).

Source: Lamb et al., ICML 2025 (arXiv 2410.22944), Figure 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lensteer.data.focus.instructions import FocusInstruction

_FAMILIES = {"focus": ("{focused}",), "ignore": ("{ignored}",), "both": ("{focused}", "{ignored}")}


@dataclass(frozen=True)
class Wording:
    """Templates for the three families of instructions.

    Attributes:
        name: for tables and metadata.
        focus, ignore, both: templates with ``{focused}``, with ``{ignored}``, and with both.

    Raises:
        ValueError: a family without templates, or a template whose slots are not those of its family.
    """

    name: str
    focus: tuple[str, ...]
    ignore: tuple[str, ...]
    both: tuple[str, ...]

    def __post_init__(self) -> None:
        for family, slots in _FAMILIES.items():
            templates = getattr(self, family)
            if isinstance(templates, str) or not templates:
                raise ValueError(f"the wording {self.name!r} needs a list of templates for {family!r}")
            object.__setattr__(self, family, tuple(templates))
            for template in templates:
                found = tuple(slot for slot in _FAMILIES["both"] if slot in template)
                if found != slots:
                    raise ValueError(
                        f"a template of the family {family!r} must hold {' and '.join(slots)} and no other slot; got "
                        f"{template!r}"
                    )

    def templates(self, instruction: FocusInstruction) -> tuple[str, ...]:
        """The templates of an instruction's family; none for the empty one."""
        if not instruction.features:
            return ()
        if instruction.focused is None:
            return self.ignore
        return self.focus if instruction.ignored is None else self.both

    def text(self, instruction: FocusInstruction, slots: Mapping[str, str], template: int = 0) -> str:
        """The instruction in words; "" for the empty one.

        Args:
            slots: feature -> what the prompt calls it.
            template: which of the family's templates.

        Raises:
            ValueError: a feature without a slot text, or no such template.
        """
        templates = self.templates(instruction)
        if not templates:
            return ""
        for name in instruction.features:
            if name not in slots:
                raise ValueError(f"unknown feature {name!r} in {instruction!r}; the features are {', '.join(slots)}")
        if not 0 <= template < len(templates):
            raise ValueError(f"template {template} of {instruction!r}: {self.name!r} has 0 to {len(templates) - 1}")
        words = templates[template]
        for slot, feature in (("{focused}", instruction.focused), ("{ignored}", instruction.ignored)):
            words = words.replace(slot, slots[feature]) if feature is not None else words
        return words


TRAINING = Wording(
    "training",
    focus=(
        "Attend to {focused} and to nothing else.",
        "Put all of your reasoning into {focused}.",
        "Let {focused} be the deciding factor.",
        "Base your judgement on {focused} alone.",
        "For your prediction, look only at {focused}.",
        "Use {focused} as the main evidence.",
        "Give {focused} your full attention and set other aspects aside.",
        "Reach your answer through {focused} exclusively.",
        "Take {focused} into account and drop everything else.",
        "Make {focused} the sole ground of your decision.",
    ),
    ignore=(
        "Keep {ignored} out of your reasoning altogether.",
        "Do not let {ignored} influence the prediction.",
        "Regard {ignored} as irrelevant to the decision.",
        "Leave {ignored} aside in your evaluation.",
        "Allow {ignored} no part in your judgement.",
        "See to it that {ignored} cannot change the answer.",
        "Make sure that your decision does not depend on {ignored}.",
        "Stop {ignored} from entering your reasoning.",
        "Cancel whatever effect {ignored} has on the prediction.",
        "It is essential that {ignored} does not sway the decision.",
    ),
    both=(
        "Concentrate on {focused}. Give {ignored} no weight when you decide.",
        "Predict from {focused} alone. Leave out {ignored}.",
        "Turn all of your attention to {focused}. Keep {ignored} away from the prediction.",
        "Reason with {focused} only. Drop {ignored} when you decide.",
        "Put {focused} first. Take no notice of {ignored}.",
        "Leave {ignored} out of the decision. Concentrate on {focused} alone.",
        "Let {ignored} have no influence. Centre the prediction on {focused}.",
        "Set {ignored} aside entirely. Build your analysis on {focused} only.",
        "Exclude {ignored} from the prediction. Move your focus to {focused}.",
        "Give {ignored} no attention. Depend on {focused} only.",
    ),
)
"""The thirty templates that training draws from."""

UNSEEN = Wording(
    "unseen",
    focus=(
        "The only thing that matters here is {focused}.",
        "What counts is {focused}, so answer accordingly.",
        "Ask yourself what {focused} says, then answer.",
        "Your answer has to follow from {focused}.",
        "Nothing besides {focused} should settle the matter.",
        "Restrict yourself to {focused} in working out the label.",
        "Go by {focused} when you choose.",
        "Think about {focused} and pick the label on that basis.",
        "Choose according to {focused}, whatever else you see.",
        "Read with an eye for {focused} and label by it.",
    ),
    ignore=(
        "Pretend that you cannot see {ignored}.",
        "Whatever {ignored} suggests, it is beside the point.",
        "Be blind to {ignored} in choosing the label.",
        "The answer would be the same without {ignored}.",
        "Do not go by {ignored}.",
        "Pay no heed to {ignored}.",
        "You should be unmoved by {ignored}.",
        "Treat {ignored} as noise.",
        "Nothing may hinge on {ignored}.",
        "Answer as though {ignored} were absent.",
    ),
    both=(
        "Go by {focused}, not by {ignored}.",
        "What counts is {focused}; {ignored} is noise.",
        "Choose according to {focused}, and be blind to {ignored}.",
        "Your answer has to follow from {focused} and owe nothing to {ignored}.",
        "Think about {focused}; pretend that you cannot see {ignored}.",
        "Treat {ignored} as noise and label by {focused}.",
        "Be unmoved by {ignored}: only {focused} matters.",
        "Whatever {ignored} suggests, go by {focused}.",
        "Nothing may hinge on {ignored}; everything hinges on {focused}.",
        "Pay no heed to {ignored}, and restrict yourself to {focused}.",
    ),
)
"""Ten more templates of each family, for the test of unseen wording."""
