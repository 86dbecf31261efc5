"""MMBench: a question is asked in every rotation of its options, and right if all are right.

Owns what makes questions of rotations: rotation k of question i has the index i + k * 10^6.
"""

from collections.abc import Hashable, Mapping

from srum_jax.evals.scorers import letters

ROTATION = 10**6


def question(index: int) -> int:
    """The number of the question that a row belongs to."""
    return index % ROTATION


def lmms_static(reply: str, options: Mapping[str, str]) -> str:
    """The letter that lmms-eval's mode "static" takes, or "": its match, else the robust rule.

    Source: lmms-eval 75571cf, tasks/mmbench/mmbench_evals.py, eval_sub_data.
    """
    return letters.lmms_eval(reply, options) or letters.robust(
        reply, sorted(letters.first_four(options))
    )


def circular(right: Mapping[int, bool]) -> dict[int, bool]:
    """{question: whether all its rows are right} of {index: whether the row is right}.

    A question without its first row is left out, as upstream does.
    """
    all_right: dict[int, bool] = {}
    for index, one in right.items():
        all_right[question(index)] = all_right.get(question(index), True) and bool(one)
    return {i: all_right[i] for i in sorted(all_right) if i in right}


def vanilla(right: Mapping[int, bool]) -> dict[int, bool]:
    """{question: whether its first row is right}: the options in their own order alone."""
    return {index: bool(right[index]) for index in sorted(right) if index < ROTATION}


def by_group(right: Mapping[int, bool], groups: Mapping[int, Hashable]) -> dict[Hashable, float]:
    """{group: share of its questions that are right}, of {question: right}, {question: group}."""
    of: dict[Hashable, list[bool]] = {}
    for number, one in right.items():
        of.setdefault(groups[number], []).append(one)
    return {group: sum(values) / len(values) for group, values in of.items()}
