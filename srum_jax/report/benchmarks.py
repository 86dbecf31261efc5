"""How a benchmark was asked and scored, in words: rules, data, judges, failed replies.

Owns how what `evals/benchmark.py` writes beside the numbers is read and said.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from srum_jax.report import numbers
from srum_jax.report.scales import Interval, Scale

SELF = "self-judge"  # the name of a model that judges itself (`evals/suite_judges.py`)
NOT_PUBLISHED = (
    "The model judged its own replies: these numbers are not to be set beside published numbers."
)
HASH = 16  # characters of a hash that are shown
# Metrics whose names a reader would not guess.
METRICS = {
    "accuracy": "right answers",
    "f1": "F1",
    "yes_ratio": "share of yes",
    "circular": "right in every rotation",
    "vanilla": "right as first asked",
    "bleu_1": "BLEU-1",
    "bleu_2": "BLEU-2",
    "bleu_3": "BLEU-3",
    "bleu_4": "BLEU-4",
    "rouge_l": "ROUGE-L",
    "cider": "CIDEr",
    "anls": "ANLS",
    "soft_tifa_gm": "soft TIFA, geometric mean",
    "soft_tifa_am": "soft TIFA, arithmetic mean",
    "tifa": "TIFA",
    "g_o": "G_O, overall",
    "g_sc": "G_SC, semantics",
    "g_pq": "G_PQ, quality",
}


@dataclasses.dataclass(frozen=True)
class MetricCell:
    """One model's number by the stated policy, and as the official code gives it; None: neither."""

    strict: float | None
    ci95: Interval | None
    released: float | None


@dataclasses.dataclass(frozen=True)
class JudgeRow:
    """What one judge makes of the models: (number, interval) of each, and the difference."""

    name: str
    own: bool
    models: Mapping[str, tuple[float, Interval | None]]
    difference: tuple[float, Interval] | None


@dataclasses.dataclass(frozen=True)
class Details:
    """Beside a benchmark's numbers.

    facts: (name, text) · metric: the one that models are compared by, in words · metrics: by name
    in words the cell of each model · categories: (category, {metric in words: {model: number}}) ·
    judges: where there are several, the first one counts · agreement: sentences · own: whether the
    judge that counts is the model itself.
    """

    facts: tuple[tuple[str, str], ...] = ()
    metric: str = ""
    metrics: Mapping[str, Mapping[str, MetricCell]] = dataclasses.field(default_factory=dict)
    categories: tuple[tuple[str, Mapping[str, Mapping[str, float]]], ...] = ()
    judges: tuple[JudgeRow, ...] = ()
    agreement: tuple[str, ...] = ()
    own: bool = False

    @property
    def more(self) -> bool:
        """Whether there are numbers beside the one that models are compared by."""
        cells = (cell for row in self.metrics.values() for cell in row.values())
        return len(self.metrics) > 1 or any(cell.released is not None for cell in cells)

    @property
    def category_metrics(self) -> tuple[str, ...]:
        """All metrics that some category has; none where that is the one alone that is drawn."""
        names = tuple(dict.fromkeys(name for _, found in self.categories for name in found))
        return () if names == (self.metric,) else names


def details(value: Mapping[str, Any]) -> Details:
    """Of a benchmark's section. Raises KeyError, TypeError or AttributeError where it is none."""
    models = value["models"]
    judge = value.get("judge", {}).get("name") or next(iter(value.get("judges", {})), "")
    return Details(
        facts=tuple(_facts(value, judge)),
        metric=metric_words(value["metric"]),
        metrics=_metrics(models),
        categories=_categories(models),
        judges=tuple(_judge(name, one) for name, one in value.get("judges", {}).items()),
        agreement=tuple(map(_agreement, value.get("agreement", ()))),
        own=judge == SELF,
    )


def metric_words(name: str) -> str:
    """A metric's name as a reader would write it; what follows a known one is of which part."""
    lower = name.lower()
    known = max((k for k in METRICS if f"{lower}_".startswith(f"{k}_")), key=len, default="")
    rest = name[len(known) :].strip("_")
    return ", ".join(filter(None, (METRICS.get(known, ""), numbers.words(rest))))


def judge_words(name: str) -> str:
    """A judge's name; of the model itself, who that is."""
    return "the model itself" if name == SELF else name


def _facts(value: Mapping[str, Any], judge: str):
    if "dialect" in value:
        yield "Official rules", value["dialect"]
    if value.get("policy"):
        yield "Our rules", value["policy"]
    said = [
        f"{name} {numbers.count(one['failed'])} of {numbers.count(one['n'])}"
        for name, one in value["models"].items()
    ]
    yield "Failed replies", ", ".join(said)
    if judge:
        revision = value.get("judge", {}).get("revision", "")
        yield "Judge", " ".join(filter(None, (judge_words(judge), revision and f"({revision})")))
    data = value.get("data", {})
    if data:
        asked = numbers.count(data["n"])
        total = data.get("total", data["n"])
        yield "Asked", asked if total == data["n"] else f"{asked} of {numbers.count(total)}"
        yield "Data", str(data["file"])
        yield "SHA-256 of the data", f"{data['sha256'][:HASH]}…"
        if data.get("variant"):
            yield "Variant", numbers.words(str(data["variant"]))
    if value.get("decoding"):
        yield "Models' words", _decoding(value["decoding"])
    if value.get("drawing"):
        yield "Drawn", _drawing(value["drawing"])
    for name, setting in value.get("settings", {}).items():
        yield numbers.words(name).capitalize(), numbers.words(str(setting))


def _decoding(value: Mapping[str, Any]) -> str:
    """Of what `suite_folder.decoding` says."""
    most = numbers.count(value["max_tokens"])
    return f"{value['tokens']} tokens, {most} at most{_thought(value)}"


def _drawing(value: Mapping[str, Any]) -> str:
    """Of what `suite_folder.drawing` says."""
    said = []
    for kind in ("images", "edits"):
        if sampler := value.get(kind):
            height, width = sampler["size"]
            scale = f"guidance scale {sampler['guidance']:g}"
            said.append(f"{kind} of {width}×{height}, {_stepping(sampler)}, {scale}")
    seeds = ", ".join(map(str, value["seeds"]))
    return f"{'; '.join(said)}; seed {seeds}{_thought(value)}"


def _stepping(sampler: Mapping[str, Any]) -> str:
    """Steps of denoising or, of a model that draws token by token, how a token is chosen."""
    if "steps" in sampler:
        return f"{sampler['steps']} steps"
    among = f"the {numbers.count(k)} likeliest" if (k := sampler["top_k"]) else "all"
    return f"each token of {among} at temperature {sampler['temperature']:g}"


def _thought(value: Mapping[str, Any]) -> str:
    most = value.get("think_tokens", 0)
    return f"; it thinks first, {numbers.count(most)} tokens at most" if most else ""


def _metrics(models: Mapping[str, Any]) -> dict[str, dict[str, MetricCell]]:
    names = dict.fromkeys(
        name for one in models.values() for part in ("strict", "as_released") for name in one[part]
    )
    return {
        metric_words(name): {
            model: MetricCell(
                one["strict"].get(name),
                _interval(one["ci95"].get(name)),
                one["as_released"].get(name),
            )
            for model, one in models.items()
        }
        for name in names
    }


def _categories(models: Mapping[str, Any]) -> tuple:
    first = next(iter(models.values()))
    found = []
    for category, numbers_of in first["by_category"].items():
        row = {
            metric_words(metric): {
                model: one["by_category"][category][metric]
                for model, one in models.items()
                if metric in one["by_category"].get(category, {})
            }
            for metric in numbers_of
            if metric != "n"
        }
        found.append((category, row))
    return tuple(found)


def _judge(name: str, value: Mapping[str, Any]) -> JudgeRow:
    metric, paired = value["metric"], value.get("paired")
    models = {
        model: (one["strict"][metric], _interval(one["ci95"].get(metric)))
        for model, one in value["models"].items()
        if metric in one["strict"]
    }
    difference = (paired["diff"], _interval(paired["ci95"])) if paired else None
    return JudgeRow(judge_words(name), name == SELF, models, difference)


def _agreement(value: Mapping[str, Any]) -> str:
    """Of the fields of `evals.agreement.Agreement`."""
    who, n = " and ".join(map(judge_words, value["judges"])), numbers.count(value["n"])
    if "value" not in value:
        return f"{who}: {value['measure']} is not defined over {n} replies."
    found = f"{value['measure']} {numbers.two_digits(value['value'])}"
    if "interval" in value:
        found += f", 95 % interval {' to '.join(map(numbers.two_digits, value['interval']))}"
    return f"{who}: the same for {numbers.percent(value['exact'])} of {n} replies, {found}."


def _interval(ci95: Sequence[float] | None) -> Interval | None:
    return None if ci95 is None else (float(ci95[0]), float(ci95[1]))


def scale(value: Mapping[str, Any]) -> Scale:
    """In which a section's numbers are."""
    return Scale(float(value.get("worst", 0.0)), float(value.get("best", 1.0)))
