"""MME: two questions an image, yes or no, in 14 categories of perception and cognition.

Owns how three programs read the replies ("lmms-eval", "bagel", "vlmevalkit") and what they make of
them: a category's score is the percentage of right answers plus that of images with both right, at
most 200.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from srum_jax.evals.scorers import yes_no
from srum_jax.evals.scorers.metrics import added

PERCEPTION = (
    *("existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark"),
    *("artwork", "OCR"),
)
COGNITION = (
    *("commonsense_reasoning", "numerical_calculation", "text_translation", "code_reasoning"),
)
CATEGORIES = (*PERCEPTION, *COGNITION)
OTHER = "other"
_CHINESE = {"不是": "No", "是": "Yes", "否": "No"}  # in this order: one is part of another
_IDEOGRAPHS = re.compile("[\u4e00-\u9fa5]")


@dataclasses.dataclass(frozen=True)
class Answer:
    """A reply to one of an image's two questions; `image` is unique in its category, `label` is
    "yes" or "no"."""

    category: str
    image: str
    label: str
    reply: str


def lmms_eval(reply: str) -> str:
    """ "yes", "no" or "other" (lmms-eval `parse_pred_ans`): the one letter y or n, else what the
    first four characters contain, so that "Nobody" is a no."""
    text = reply.lower().strip().replace(".", "")
    return {"y": "yes", "n": "no"}.get(text) or _of_beginning(text)


def bagel(reply: str) -> str:
    """ "yes", "no" or "other" of what `bagel_written` makes of a reply (BAGEL `calculation.py`)."""
    return _of_beginning(bagel_written(reply))


def bagel_written(reply: str) -> str:
    """The reply as BAGEL writes it down: one line, lower-case, Chinese yes and no and English true
    and false as yes and no, other ideographs left out."""
    text = reply.replace("\n", "")
    for word, english in _CHINESE.items():
        text = text.replace(word, english)
    text = text.lower().replace("true", "yes").replace("false", "no")
    return _IDEOGRAPHS.sub("", text)


def _of_beginning(text: str) -> str:
    return next((word for word in ("yes", "no") if word in text[:4]), OTHER)


def lmms_eval_scores(answers: Sequence[Answer]) -> dict[str, float]:
    """The score of each category in 0..200: of each image its share of right ones and 1 if both
    are, and of that the mean over images.

    Raises:
      ValueError: an image with other than two answers.
    """
    rights = _rights(answers, [lmms_eval(a.reply) == a.label for a in answers])
    return {
        name: added(100 * (sum(both) / 2 + all(both)) for both in images.values()) / len(images)
        for name, images in rights.items()
    }


def vlmevalkit_scores(answers: Sequence[Answer]) -> dict[str, float]:
    """The score of each category in 0..200; a reply that is neither yes nor no is wrong.

    Raises:
      ValueError: an image with other than two answers.
    """
    rights = _rights(answers, [yes_no.vlmevalkit(a.reply).lower() == a.label for a in answers])
    return {name: _score(images.values()) for name, images in rights.items()}


def strict_scores(answers: Sequence[Answer]) -> dict[str, float]:
    """The score of each category in 0..200 of what the replies said (`yes_no.clear`).

    Raises:
      ValueError: an image with other than two answers.
    """
    rights = _rights(answers, [yes_no.clear(a.reply) == a.label for a in answers])
    return {name: _score(images.values()) for name, images in rights.items()}


def bagel_scores(answers: Sequence[Answer]) -> dict[str, float]:
    """The score of each category in 0..200 as BAGEL's program reads its own file.

    A reply with a tab breaks its line, which then counts in no answer but in its image. A category
    all of whose lines are broken is absent.

    Raises:
      ValueError: an image with other than two answers.
    """
    readable = ["\t" not in a.reply for a in answers]
    right = [
        there and bagel(a.reply) == a.label for there, a in zip(readable, answers, strict=True)
    ]
    images, lines = _rights(answers, right), _rights(answers, readable)
    scores = {}
    for name, both in images.items():
        counted = sum(map(sum, lines[name].values()))
        if counted:
            accuracy = sum(map(sum, both.values())) / counted
            scores[name] = accuracy * 100 + sum(map(all, both.values())) / len(both) * 100
    return scores


def _rights(
    answers: Sequence[Answer], right: Sequence[bool]
) -> dict[str, dict[str, tuple[bool, ...]]]:
    """{category: {image: whether its two answers are right}}, in order of appearance."""
    images: dict[str, dict[str, tuple[bool, ...]]] = {}
    for a, good in zip(answers, right, strict=True):
        part = images.setdefault(a.category, {})
        part[a.image] = (*part.get(a.image, ()), good)
    for category, part in images.items():
        for image, both in part.items():
            if len(both) != 2:
                raise ValueError(f"mme: {category}/{image} has {len(both)} answers, not 2")
    return images


def _score(images: Iterable[tuple[bool, ...]]) -> float:
    pairs = list(images)
    accuracy = sum(map(sum, pairs)) / (2 * len(pairs))
    return accuracy * 100 + sum(map(all, pairs)) / len(pairs) * 100


def total(scores: Mapping[str, float], categories: Sequence[str]) -> float:
    """The sum over `categories`, PERCEPTION (at most 2000) or COGNITION (at most 800); those
    without a score add nothing, as in lmms-eval."""
    return float(added(scores[name] for name in categories if name in scores))


def bagel_message(scores: Mapping[str, float]) -> str:
    """What BAGEL's program prints; it needs all 14 categories.

    Raises:
      ValueError: a category has no score.
    """
    missing = [name for name in CATEGORIES if name not in scores]
    if missing:
        raise ValueError(f"mme: no score of {', '.join(missing)}")
    out = ""
    for title, categories in (("Perception", PERCEPTION), ("Cognition", COGNITION)):
        lines = "".join(f"\t {name} score: {scores[name]}\n" for name in categories)
        sums = total(scores, categories)
        out += f"=========== {title} ===========\ntotal score: {sums} \n\n{lines}\n\n"
    return out
