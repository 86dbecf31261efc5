"""GenEval2: soft-TIFA, TIFA and VQAScore from a judge's first-token probabilities.

Owns which first words count as an answer, and the means over questions, prompts, skills and numbers
of atoms. Source: facebookresearch/GenEval2 at a6e82d2, `evaluation.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

WORDS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
YES = ("Yes", "yes", " yes", " Yes")
SKILLS = ("object", "attribute", "count", "position", "verb")
IN_ONE_WORD = " Answer in one word."


@dataclasses.dataclass(frozen=True)
class Prompt:
    """A prompt's scores, [n] over its questions: soft scores (the probability of the answer), TIFA
    scores (0 or 1), and the skill that each question tests."""

    atoms: int
    soft: tuple[float, ...]
    hard: tuple[int, ...]
    skills: tuple[str, ...]


def digit(word: str) -> str:
    """ "one" .. "ten" as digits; anything else is "other", as in the official table."""
    return str(WORDS.index(word) + 1) if word in WORDS else "other"


def accepted(answer: str) -> tuple[str, ...]:
    """The replies that count as `answer`: "Yes", or a count as a word.

    The official code sums the probability of the first token of each, so that two with the same
    first token count twice, and a score may exceed 1.
    """
    if answer == "Yes":
        return YES
    number = digit(answer)
    capital = answer.capitalize()
    return answer, capital, f" {answer}", f" {capital}", number, f" {number}"


def first_token(text: str) -> str:
    """The first token of an accepted reply in the Qwen tokenizers, in which each digit is a token
    and so is a space before it: of " 4" the space, of "10" the 1. Words are one token, with the
    space before them."""
    return text[0] if text.strip().isdigit() else text


def soft_score(answer: str, p: Mapping[str, float]) -> float:
    """The summed probability of the accepted replies; `p` is {reply: probability of its first
    token}, and one that is not in it has none."""
    return float(sum(p.get(reply, 0.0) for reply in accepted(answer)))


def tifa(answer: str, likeliest: str) -> int:
    """1 if the likeliest first token, in lower case, is an accepted reply, else 0."""
    return int(likeliest.lower() in accepted(answer))


def arithmetic(scores: Sequence[float]) -> float:
    """The mean of a prompt's soft scores; NaN of none."""
    return float(np.mean(scores)) if len(scores) else float("nan")


def geometric(scores: Sequence[float]) -> float:
    """The geometric mean of a prompt's soft scores: 0 if any is 0, NaN of none."""
    if not len(scores):
        return float("nan")
    with np.errstate(divide="ignore"):
        return float(np.exp(np.mean(np.log(np.asarray(scores, np.float64)))))


def soft_tifa_am(prompts: Sequence[Prompt]) -> float:
    """100 times the mean over prompts of the arithmetic means."""
    return 100 * arithmetic([arithmetic(one.soft) for one in prompts])


def soft_tifa_gm(prompts: Sequence[Prompt]) -> float:
    """100 times the mean over prompts of the geometric means: the published headline."""
    return 100 * arithmetic([geometric(one.soft) for one in prompts])


def total_tifa(prompts: Sequence[Prompt]) -> float:
    """100 times the mean over prompts of their share of right questions."""
    return 100 * arithmetic([arithmetic(one.hard) for one in prompts])


def per_skill(prompts: Sequence[Prompt]) -> dict[str, float]:
    """{skill: 100 times the mean soft score of its questions}, of the skills that are there."""
    scores: dict[str, list[float]] = {}
    for one in prompts:
        for skill, score in zip(one.skills, one.soft, strict=True):
            scores.setdefault(skill, []).append(score)
    return {skill: 100 * arithmetic(scores[skill]) for skill in sorted(scores, key=_skill_order)}


def _skill_order(skill: str) -> tuple[int, str]:
    return (SKILLS.index(skill) if skill in SKILLS else len(SKILLS), skill)


def per_atomicity(prompts: Sequence[Prompt]) -> dict[int, dict[str, float]]:
    """{number of atoms: {"correct": summed geometric means, "total": prompts, "accuracy": 100 times
    their quotient}}, by the number."""
    means: dict[int, list[float]] = {}
    for one in prompts:
        means.setdefault(one.atoms, []).append(geometric(one.soft))
    return {
        atoms: {
            "correct": float(sum(means[atoms])),
            "total": len(means[atoms]),
            "accuracy": 100 * float(sum(means[atoms])) / len(means[atoms]),
        }
        for atoms in sorted(means)
    }


def vqascore(p: Mapping[str, float]) -> float:
    """VQAScore of one image: the probability of yes to `vqascore_question`."""
    return soft_score("Yes", p)


def vqascore_question(prompt: str) -> str:
    """What VQAScore asks of an image."""
    return f'Does this image show "{prompt}"? Answer the question with Yes or No.'
