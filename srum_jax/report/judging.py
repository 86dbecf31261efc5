"""The model as its own judge: how well its scores tell right from wrong.

Owns how the "scores" of a round of results.json and calibration.json are shown.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from srum_jax.report import charts
from srum_jax.report.numbers import proposer_words


@dataclasses.dataclass(frozen=True)
class Scored:
    """A line of the table: what was scored, its AUC (None: not both right and wrong ones), how
    many, and how often each status occurred."""

    name: str
    auc: float | None
    n: int | None
    status: Mapping[str, int]


@dataclasses.dataclass(frozen=True)
class QuestionSummary:
    """Answers to one kind of question; mean: probability of what the prompt says."""

    kind: str
    asked: int
    mean: float | None
    failed: int


@dataclasses.dataclass(frozen=True)
class Judging:
    """comparison: of two ways of scoring, {"with", "candidates", "both", …}, or {}; coverage: where
    some answers could not be read {"mean", "least"}."""

    scored: tuple[Scored, ...] = ()
    histograms: tuple[charts.Histogram, ...] = ()
    questions: tuple[QuestionSummary, ...] = ()
    comparison: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    failures: tuple[tuple[str, int, Mapping[str, int]], ...] = ()
    coverage: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __bool__(self) -> bool:
        return any((self.scored, self.histograms, self.questions, self.comparison, self.failures))

    @property
    def image_auc(self) -> float | None:
        """Of whole pictures; None where the checker was not asked."""
        return next((s.auc for s in self.scored if s.name == "whole pictures"), None)


def judging(scores: Mapping[str, Any], found: Mapping[str, Any]) -> Judging:
    """scores: of results.json, what the checker says of the scores; found: calibration.json, what
    can be said without one. Either may be empty."""
    questions = tuple(
        QuestionSummary(
            kind,
            sum(seen["status"].values()),
            seen.get("mean"),
            sum(seen["status"].values()) - seen["status"].get("ok", 0),
        )
        for kind, seen in found.get("questions", {}).items()
    )
    return Judging(
        scored=_scored(scores),
        histograms=_histograms(scores, found),
        questions=questions,
        comparison=found.get("comparison", {}),
        failures=_failures(found),
        coverage=found.get("coverage", {}),
    )


def _scored(scores: Mapping[str, Any]) -> tuple[Scored, ...]:
    main = scores.get("proposer")
    by_proposer = scores.get("by_proposer") or ({main: scores} if main is not None else {})
    lines = []
    for name, found in by_proposer.items():
        used = " (used)" if name == main and len(by_proposer) > 1 else ""
        status = found.get("status", {})
        auc, n = found.get("region_auc"), found.get("region_n")
        lines.append(Scored(f"regions, {proposer_words(name)}{used}", auc, n, status))
    if "image_auc" in scores or "image_n" in scores:
        status = scores.get("image_status", {})
        auc, n = scores.get("image_auc"), scores.get("image_n")
        lines.append(Scored("whole pictures", auc, n, status))
    if "image_auc_within_prompt" in scores:
        auc, n = scores["image_auc_within_prompt"], scores.get("image_n")
        lines.append(Scored("whole pictures of one prompt", auc, n, {}))
    return tuple(lines)


def _histograms(
    scores: Mapping[str, Any], found: Mapping[str, Any]
) -> tuple[charts.Histogram, ...]:
    """Of whole pictures and of regions: by what the checker says where it was asked, otherwise all
    together."""
    regions = found.get("regions", {})
    main = regions.get(scores.get("proposer", next(iter(regions), "")))
    parts = []
    for key, title, plain in (
        ("image_histogram", "Whole pictures", found.get("images")),
        ("region_histogram", "Regions", main),
    ):
        if key in scores:
            series = [(kind, kind, scores[key][kind]) for kind in ("wrong", "right")]
        elif plain:
            series = [("all", "scored", plain["histogram"])]
        else:
            continue
        parts.append(charts.histogram(title, series))
    return tuple(parts)


def _failures(found: Mapping[str, Any]) -> tuple[tuple[str, int, Mapping[str, int]], ...]:
    """(what is scored, how many, {status: how many without a score}), where any have none."""
    counted = [("whole pictures", found.get("images", {}))]
    counted += [
        (f"regions, {proposer_words(name)}", seen)
        for name, seen in found.get("regions", {}).items()
    ]
    lines = []
    for name, seen in counted:
        status = seen.get("status", {})
        failed = {key: n for key, n in status.items() if key != "ok"}
        if failed:
            lines.append((name, sum(status.values()), failed))
    return tuple(lines)
