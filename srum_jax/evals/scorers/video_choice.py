"""MVBench and Video-MME: the option that a reply about a clip names, and the accuracies.

Owns the rules of lmms-eval 75571cf (tasks/mvbench/utils.py, tasks/videomme/utils.py).
"""

import dataclasses
import re
from collections.abc import Sequence

from srum_jax.evals.scorers import letters

_LETTER_FIRST = re.compile(r"^([A-E])\.\s*(.+)$", re.IGNORECASE)
_LETTER = re.compile(r"\b([A-E])\b", re.IGNORECASE)
_MARKS = ';/[]"{}()=+\\_-><@`,?!'
_THOUSANDS = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MOST_STOPS = 32  # a flag of `re` is passed upstream where the number of deletions stands

DURATIONS = ("short", "medium", "long")
DOMAINS = (
    *("Knowledge", "Film & Television", "Sports Competition", "Artistic Performance"),
    *("Life Record", "Multilingual"),
)
SUB_CATEGORIES = (
    *("Humanity & History", "Literature & Art", "Biology & Medicine", "Finance & Commerce"),
    *("Astronomy", "Geography", "Law", "Life Tip", "Technology", "Animation"),
    *("Movie & TV Show", "Documentary", "News Report", "Esports", "Basketball", "Football"),
    *("Athletics", "Other Sports", "Stage Play", "Magic Show", "Variety Show", "Acrobatics"),
    *("Handicraft", "Food", "Fashion", "Daily Life", "Travel", "Pet & Animal", "Exercise"),
    "Multilingual",
)
TASKS = (
    *("Temporal Perception", "Spatial Perception", "Attribute Perception", "Action Recognition"),
    *("Object Recognition", "OCR Problems", "Counting Problem", "Temporal Reasoning"),
    *("Spatial Reasoning", "Action Reasoning", "Object Reasoning", "Information Synopsis"),
)


def mvbench_prompt(question: str, candidates: Sequence[str]) -> str:
    """The text that MVBench's clip is followed by, as lmms-eval writes it."""
    options = "".join(
        f"({letter}) {text}\n" for letter, text in letters.lettered(candidates).items()
    )
    return f"Question:{question}\nOption:\n{options}Only give the best option.\n"


def mvbench_answer(reply: str) -> str:
    """A letter of A to E, or the reply in small letters without marks where there is none.

    The letter of "X. text"; else, marks deleted or replaced by spaces, the first letter that stands
    alone, small ones too: of "a red ball" it is A.
    """
    first = _LETTER_FIRST.match(reply.strip())
    if first:
        return first[1].upper()
    reply = _without_marks(reply.replace("\n", " ").replace("\t", " ").strip())
    for mark in "'\")(":
        reply = reply.strip(mark)
    reply = reply.strip().lower()
    alone = _LETTER.search(reply)
    return alone[1].upper() if alone else reply


def _without_marks(reply: str) -> str:
    thousands = bool(_THOUSANDS.search(reply))
    text = reply
    for mark in _MARKS:
        beside_space = f"{mark} " in reply or f" {mark}" in reply
        text = text.replace(mark, "" if thousands or beside_space else " ")
    return _FULL_STOP.sub("", text, count=_MOST_STOPS)


def mvbench_right(reply: str, letter: str) -> bool:
    """Whether a reply names the option of `letter`, the position of the answer."""
    return mvbench_answer(reply) == mvbench_answer(letter)


def mvbench_percent(replies: Sequence[str], right: Sequence[bool]) -> float:
    """A task's accuracy as released, in percent: replies that are empty are left out of the count;
    0 if all are.
    """
    counted = [one for reply, one in zip(replies, right, strict=True) if reply]
    return 100 * sum(counted) / len(counted) if counted else 0.0


def videomme_prompt(question: str, options: Sequence[str]) -> str:
    """The text that a clip of Video-MME is followed by, as lmms-eval writes it: it names subtitles,
    though none are given; `options` begin with their letters, "A. ..."."""
    return "\n".join(
        (
            "Select the best answer to the following multiple-choice question based on the video "
            "and the subtitles. Respond with only the letter (A, B, C, or D) of the correct "
            "option.",
            question,
            *options,
            "",
            "Answer with the option's letter from the given choices directly.",
        )
    )


def videomme_letter(reply: str) -> str:
    """A letter of A to D, or "" where the robust rule finds none."""
    return letters.robust(reply, "ABCD")


@dataclasses.dataclass(frozen=True)
class VideoQuestion:
    """What Video-MME's groups are made of; `right`: whether the reply is."""

    duration: str
    domain: str
    sub_category: str
    task_type: str
    right: bool

    @property
    def key(self) -> str:
        """The text in which lmms-eval looks for the names of groups."""
        return f"{self.duration}_{self.domain}_{self.sub_category}_{self.task_type}"


def videomme_accuracies(questions: Sequence[VideoQuestion]) -> dict[str, float]:
    """{"Overall" or a group's name: percent right}: durations, domains, sub-categories, tasks.

    A question belongs to every group whose name its key contains, so "Multilingual" is domain and
    sub-category in one. Groups without questions are absent; without any question "Overall" is 0.
    """
    groups = dict.fromkeys((*DURATIONS, *DOMAINS, *SUB_CATEGORIES, *TASKS))
    values: dict[str, list[bool]] = {"Overall": [one.right for one in questions]}
    values |= {name: [q.right for q in questions if name in q.key] for name in groups}
    percents = {name: 100 * sum(x) / len(x) for name, x in values.items() if x}
    return {"Overall": 0.0} | percents
