"""Which prompts a later round draws: more of the categories in which the model is weak and sure.

Owns the two pure functions: from the scores of a round to shares of categories, and from shares to
prompts. The model is weak where its own scores are low, and sure where they tell the candidates of
one prompt apart: there it knows what it cannot do yet. No verifier is asked.
"""

import collections
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from srum_jax.data.prompts import Prompt
from srum_jax.rewards import judge


def categories(
    drawn: Iterable[Mapping[str, Any]], scored: Iterable[Mapping[str, Any]]
) -> dict[str, dict[str, float]]:
    """{category: {"prompts", "own_score", "spread", "weight"}} of a round.

    drawn and scored: summaries of candidates and their score records, one to one. own_score: mean
    in [-1, 1] · spread: mean over prompts of the standard deviation of the scores of one prompt ·
    weight: (1 - own_score) / 2 times spread. Of images without a score nothing is known.
    """
    scores: dict[str, dict[int, list[float]]] = {}
    for record, result in zip(drawn, scored, strict=True):
        if result["image_status"] == judge.OK:
            of_prompt = scores.setdefault(record["category"], {})
            of_prompt.setdefault(record["prompt_id"], []).append(float(result["image_score"]))
    found = {}
    for name, by_prompt in scores.items():
        mean = float(np.mean([x for several in by_prompt.values() for x in several]))
        spread = float(np.mean([np.std(several) for several in by_prompt.values()]))
        weight = (1 - mean) / 2 * spread
        found[name] = {
            "prompts": len(by_prompt),
            "own_score": mean,
            "spread": spread,
            "weight": weight,
        }
    return found


def shares(given: Sequence[Prompt], weights: Mapping[str, float], focus: float) -> dict[str, float]:
    """{category: share of the prompts}: of a share `focus` by weight, of the rest as in `given`.

    weights: those of `categories`; a category that it lacks has their mean.
    """
    counts = collections.Counter(prompt.category for prompt in given)
    mean = float(np.mean(list(weights.values()))) if weights else 0.0
    wanted = {name: weights.get(name, mean) for name in counts}
    total = sum(wanted.values())
    if not total:
        focus = 0.0
    return {
        name: (1 - focus) * count / len(given) + (focus * wanted[name] / total if total else 0.0)
        for name, count in counts.items()
    }


def select(
    prompts: Sequence[Prompt], shares: Mapping[str, float], count: int, drawn: Collection[int]
) -> tuple[Prompt, ...]:
    """`count` of the prompts, in their order, of each category its share: first those whose id is
    not among `drawn`, then those again.

    What a category has too few of goes to the others, the larger share first.
    """
    queues: dict[str, list[Prompt]] = {name: [] for name in shares}
    for prompt in sorted(prompts, key=lambda one: one.id in drawn):
        if prompt.category in queues:
            queues[prompt.category].append(prompt)
    exact = {name: count * share for name, share in shares.items()}
    taken = {name: min(int(exact[name]), len(queues[name])) for name in shares}
    left = min(count, sum(map(len, queues.values()))) - sum(taken.values())
    # The largest remainders first; then whoever has some left.
    turns = sorted(shares, key=lambda name: (-(exact[name] - int(exact[name])), -shares[name]))
    while left:
        for name in turns:
            if left and taken[name] < len(queues[name]):
                taken[name], left = taken[name] + 1, left - 1
    wanted = {prompt.id for name in shares for prompt in queues[name][: taken[name]]}
    return tuple(prompt for prompt in prompts if prompt.id in wanted)
