"""Verdicts and scores in, sections of `results.json` out.

Owns the shape of what the evaluation reports (docs: the results contract). Pure functions over
arrays: which benchmark gave the verdicts is not known here. Proportions are in [0, 1], counts are
plain ints, and what was not measured is absent: no key is ever null, and none is 0 for "unknown".
"""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from srum_jax.evals import stats
from srum_jax.evals.suite import Verdict


def accuracy_section(correct: np.ndarray, categories: Sequence[str] | None = None) -> dict:
    """One model: how many are right, with a Wilson interval, in all and by category.

    Args:
      correct: bool [N], or [P, S] for S samples of each prompt (n is then P*S; the interval takes
        samples as independent, which is the contract for one model).
      categories: one name per row of `correct`; None leaves `by_category` out.

    Returns:
      {"n", "correct", "accuracy", "ci95": [lo, hi], "by_category": {name: {"n", "correct",
      "accuracy", "ci95"}}}, categories in order of first appearance.

    Raises:
      ValueError: nothing to count, not bool, or categories of another length.
    """
    correct = _verdicts(correct, "correct")
    section = _proportion(correct)
    if categories is not None:
        names = np.asarray(categories, dtype=object)
        if len(names) != len(correct):
            raise ValueError(
                f"accuracy_section: {len(correct)} verdicts but {len(names)} categories"
            )
        section["by_category"] = {
            str(name): _proportion(correct[names == name]) for name in dict.fromkeys(names)
        }
    return section


def paired_section(base: np.ndarray, trained: np.ndarray) -> dict:
    """Trained against base on the same prompts and seeds.

    Args:
      base, trained: bool, both [P] or both [P, S], row by row the same prompt, column by column
        the same sampling seed.

    Returns:
      {"n": pairs, "prompts": P, "base_only", "trained_only", "diff" in [-1, 1], "ci95": [lo, hi]}.

    Raises:
      ValueError: shapes differ, nothing to compare, or not bool.
    """
    base, trained = _verdicts(base, "base"), _verdicts(trained, "trained")
    if base.shape != trained.shape:
        raise ValueError(f"paired_section: base is {base.shape}, trained {trained.shape}")
    diff, (lo, hi) = stats.paired_bootstrap(base, trained)
    return {
        "n": int(base.size),
        "prompts": len(base),
        "base_only": int((base & ~trained).sum()),
        "trained_only": int((trained & ~base).sum()),
        "diff": diff,
        "ci95": [lo, hi],
    }


def best_of_k_section(
    correct: np.ndarray,
    self_scores: np.ndarray,
    categories: Sequence[str] | None = None,
) -> dict:
    """What choosing one of K candidates gives: by the model's own score, blindly, and at best.

    `random` takes candidate 0: candidates are drawn independently, so the first is a random one,
    and its counts are whole. The exact expectation of a blind choice (the mean over all K) stands
    beside it as `expected_accuracy`, and `gain` compares the own choice with that expectation.

    Args:
      correct: bool [P, K].
      self_scores: float [P, K]; NaN (no score) is never preferred. Ties, and rows without any
        score, take the lowest k.
      categories: one name per prompt, or None.

    Returns:
      {"k", "self": accuracy_section, "random": accuracy_section + "expected_accuracy",
      "oracle": accuracy_section (right if any candidate is), "gain": {"diff", "ci95"}}.

    Raises:
      ValueError: not [P, K], shapes differ, nothing to count, or not bool.
    """
    correct = _verdicts(correct, "correct")
    self_scores = np.asarray(self_scores, np.float64)
    if correct.ndim != 2 or correct.shape != self_scores.shape:
        raise ValueError(
            f"best_of_k_section: need two [P, K] arrays, got verdicts {correct.shape} and scores "
            f"{self_scores.shape}"
        )
    best = np.argmax(np.where(np.isnan(self_scores), -np.inf, self_scores), axis=1)
    chosen = np.take_along_axis(correct, best[:, None], axis=1)[:, 0]
    diff, (lo, hi) = stats.paired_bootstrap(correct, chosen)
    return {
        "k": int(correct.shape[1]),
        "self": accuracy_section(chosen, categories),
        "random": {
            **accuracy_section(correct[:, 0], categories),
            "expected_accuracy": float(correct.mean()),
        },
        "oracle": accuracy_section(correct.any(axis=1), categories),
        "gain": {"diff": diff, "ci95": [lo, hi]},
    }


def by_model(
    categories: Sequence[str],
    base: np.ndarray,
    trained: np.ndarray | None = None,
) -> dict:
    """The same items put to both models.

    Args:
      categories: [N] names.
      base, trained: bool [N]; `trained` None (not measured) leaves its parts out.

    Returns:
      {"base": accuracy_section, "trained": accuracy_section, "paired": paired_section}.

    Raises:
      ValueError: lengths differ, nothing to count, or not bool.
    """
    section = {"base": accuracy_section(base, categories)}
    if trained is not None:
        section["trained"] = accuracy_section(trained, categories)
        section["paired"] = paired_section(base, trained)
    return section


def section(title: str, verdicts: Mapping[str, Sequence[Verdict]]) -> dict:
    """A suite's section of what was asked of "base" and perhaps of "trained".

    Args:
      verdicts: by model, on the same requests in the same order.

    Returns:
      {"title", "models": {name: accuracy_section by category}, "paired": {"metric": "accuracy",
      **paired_section}}; "paired" is absent for one model. Empty if nothing was asked.

    Raises:
      ValueError: the models were not asked the same.
    """
    asked = {tuple((v.id, v.category) for v in found) for found in verdicts.values()}
    if asked == {()}:
        return {}
    if len(asked) > 1:
        raise ValueError(f"{title}: {' and '.join(verdicts)} were not asked the same")
    models = by_model(
        [category for _, category in next(iter(asked))],
        **{name: np.array([v.right for v in found], bool) for name, found in verdicts.items()},
    )
    paired = models.pop("paired", None)
    more = {"paired": {"metric": "accuracy", **paired}} if paired else {}
    return {"title": title, "models": models, **more}


@dataclasses.dataclass(frozen=True)
class ScoredItems:
    """What the judge said of R regions (or images), and the truth.

    scores: float [R] in [-1, 1], NaN unless the status is "ok".
    labels: bool [R], True where the verifier finds it right.
    status: [R] of "ok", "unparsed", ...
    """

    scores: np.ndarray
    labels: np.ndarray
    status: Sequence[str]


def scores_section(
    regions: Mapping[str, ScoredItems],
    proposer: str,
    images: ScoredItems | None = None,
    prompts: Sequence | None = None,
) -> dict:
    """How well the model's own scores tell right from wrong.

    Args:
      regions: by proposer's name.
      proposer: the one whose scores the run trains on; it fills `region_auc` and `region_n`.
      images: whole-image scores, or None if not measured.
      prompts: one id per image; gives the AUC among candidates of one prompt.

    Returns:
      {"proposer", "status": {name: n} (regions of `proposer`), "region_auc", "region_n",
      "by_proposer": {name: {"region_auc", "region_n", "status"}}, "image_auc", "image_n",
      "image_auc_within_prompt", "image_status": {name: n}}. An AUC is absent where there were not
      both right and wrong ones with a score.

    Raises:
      ValueError: `proposer` is not among `regions`, or lengths differ.
    """
    if proposer not in regions:
        raise ValueError(f"scores_section: no regions of {proposer!r}, only {sorted(regions)}")
    by_proposer = {}
    for name, judged in regions.items():
        by_proposer[name] = _auc_fields(judged, "region")
        by_proposer[name]["status"] = _counts(judged.status)
    section = {"proposer": proposer, **by_proposer[proposer], "by_proposer": by_proposer}
    if images is not None:
        section |= _auc_fields(images, "image")
        section["image_status"] = _counts(images.status)
        if prompts is not None:
            within = stats.auc(images.scores, images.labels, prompts).value
            if within is not None:
                section["image_auc_within_prompt"] = within
    return section


def _auc_fields(judged: ScoredItems, what: str) -> dict:
    if len(judged.status) != len(judged.scores):
        raise ValueError(
            f"scores_section: {len(judged.scores)} {what} scores but {len(judged.status)} statuses"
        )
    found = stats.auc(judged.scores, judged.labels)
    fields = {f"{what}_auc": found.value, f"{what}_n": found.n or None}
    return {key: value for key, value in fields.items() if value is not None}


def _counts(names: Sequence[str]) -> dict[str, int]:
    return dict(sorted(collections.Counter(map(str, names)).items()))


def _verdicts(x: np.ndarray, name: str) -> np.ndarray:
    x = np.asarray(x)
    if x.dtype != bool or x.ndim not in (1, 2) or x.size == 0:
        raise ValueError(
            f"{name}: need at least one verdict as bool [N] or [P, S], got {x.dtype} {x.shape}"
        )
    return x


def _proportion(correct: np.ndarray) -> dict:
    right, n = int(correct.sum()), int(correct.size)
    return {"n": n, "correct": right, "accuracy": right / n, "ci95": list(stats.wilson(right, n))}
