"""Guidance chosen inside the interval, and intervals over few seeds.

A model's own best guidance scale is chosen on one half of the prompts and measured on the other,
and the other way round, so that no prompt chooses for itself; a bootstrap that makes the choice
again in every draw has the choice's own noise in its interval. Pure functions. Axes: S seeds, G
scales from the lowest, P prompts, D draws.
"""

import numpy as np
from scipy import stats


def halves(count: int) -> np.ndarray:
    """0 or 1 of each of `count` prompts, as many of either (to within one): int [count].

    By a fixed shuffle: categories come in turn, so that every other prompt would be half of them.
    """
    return np.random.default_rng(0x68616C66).permutation(count) % 2


def crossed(grid: np.ndarray) -> np.ndarray:
    """Verdicts [S,P] out of grid [S,G,P]: each prompt's at the scale with most right on the other
    half, of equals the lowest."""
    half = halves(grid.shape[2])
    found = np.empty(grid.shape[::2])
    for side in (0, 1):
        best = grid[:, :, half != side].mean(2).argmax(1)
        found[:, half == side] = grid[np.arange(len(grid)), best][:, half == side]
    return found


def cross_fitted(
    grid: np.ndarray, part: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """(share right of a part of the prompts for each seed [S], its bootstrap distribution [S,D]).

    grid: verdicts [S,G,P] · part: bool [P], what is measured; all prompts choose · weights: [P,D],
    how often each prompt is drawn, over P. Choices are made again in every draw.
    """
    half, seeds = halves(grid.shape[2]), np.arange(len(grid))[:, None]
    total, drawn = 0.0, 0.0
    count = (part[:, None] * weights).sum(0)
    for side in (0, 1):
        chooses, measured = half != side, (half == side) & part
        by_draw = (grid[:, :, chooses] @ weights[chooses]).argmax(1)  # [S,D]
        sums = grid[:, :, measured] @ weights[measured]
        drawn = drawn + sums[seeds, by_draw, np.arange(weights.shape[1])]
        best = grid[:, :, chooses].mean(2).argmax(1)
        total = total + grid[:, :, measured].sum(2)[seeds[:, 0], best]
    return total / part.sum(), drawn / np.maximum(count, 1e-9)


def over_seeds(seeds: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The distribution [D] of the mean over seeds, of each seed's [S,D]; weights [S,D] draw seeds.

    Deviations between seeds are scaled by sqrt(S / (S - 1)), without which a few seeds seem to
    differ too little. One seed stands for itself alone.
    """
    found = seeds.mean(0)
    if len(seeds) > 1:
        apart = (seeds - found) * np.sqrt(len(seeds) / (len(seeds) - 1))
        found = found + (apart * weights).sum(0)
    return found


def t_interval(each: np.ndarray) -> tuple[float, float] | None:
    """Student's 95 % interval of the mean of one number a seed [S]; None of a single seed."""
    if len(each) < 2:
        return None
    error = each.std(ddof=1) / np.sqrt(len(each))
    reach = float(stats.t.ppf(0.975, len(each) - 1) * error)
    return float(each.mean()) - reach, float(each.mean()) + reach
