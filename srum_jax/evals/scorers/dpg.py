"""DPG-Bench: yes or no to a graph of questions, image, prompt and category scores.

Owns the rules of the official scorer (TencentQQGYLab/ELLA, `dpg_bench/compute_dpg_bench.py`):
a question whose parent was answered no counts 0, and the quirks: the first row of the file is
never read, an image that asks for a question that is not there is left out, and categories are
counted from the raw answers about the last image of a grid alone.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence

import numpy as np


@dataclasses.dataclass(frozen=True)
class Question:
    """A yes-or-no question about an image.

    id: the proposition's number · parents: numbers of the questions that it depends on · category:
    the finer one, "entity - whole" · text: as it is asked.
    """

    id: int
    parents: tuple[int, ...]
    category: str
    text: str

    @property
    def broad(self) -> str:
        """The broad category, "entity"."""
        return self.category.split("-")[0].strip()


def with_parents(questions: Sequence[Question], yes: Mapping[int, float]) -> dict[int, float]:
    """Scores by question id: 0 where a parent counts 0, else what `yes` says.

    In the order of the questions, so that a no goes on to grandchildren that come later.

    Raises:
      KeyError: a parent is none of the questions; the official scorer leaves such an image out.
    """
    scores = {q.id: float(yes[q.id]) for q in questions}
    for q in questions:
        if any(scores[parent] == 0 for parent in q.parents if parent != 0):
            scores[q.id] = 0.0
    return scores


def image_score(questions: Sequence[Question], yes: Mapping[int, float]) -> float:
    """Mean over the questions of an image, in [0, 1]. Raises KeyError as `with_parents`."""
    scores = with_parents(questions, yes)
    return sum(scores.values()) / len(scores)


@dataclasses.dataclass(frozen=True)
class Answered:
    """A prompt with the answers about each image of its grid: {question id: 1.0 yes, 0.0 no}."""

    questions: tuple[Question, ...]
    images: tuple[Mapping[int, float], ...]


def released(prompts: Iterable[Answered]) -> dict[str, float]:
    """What the official scorer prints: {"DPG-Bench": ..., broad and finer categories}, 0 to 100.

    A prompt whose questions lack a parent is left out. NaN where nothing is left.
    """
    whole, categories = [], {}
    for prompt in prompts:
        try:
            images = [image_score(prompt.questions, yes) for yes in prompt.images]
        except KeyError:
            continue
        whole.append(sum(images) / len(images))
        for q in prompt.questions:
            raw = float(prompt.images[-1][q.id])
            for name in dict.fromkeys((q.broad, q.category)):
                categories.setdefault(name, []).append(raw)
    found = {name: float(np.mean(values)) * 100 for name, values in sorted(categories.items())}
    return {"DPG-Bench": float(np.mean(whole)) * 100 if whole else float("nan"), **found}
