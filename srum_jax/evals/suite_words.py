"""A benchmark's scores in words, for a terminal and for the first lines of a report."""

from collections.abc import Mapping
from typing import Any


def summary(scores: Mapping[str, Any]) -> str:
    """What `scores.json` says: each model's number with its interval, how many replies failed, the
    official number beside it, and the difference of the two models."""
    if "models" not in scores:
        said = f"{scores['suite']}: no scores yet. {scores.get('not_scored', '')}".strip()
        counts = (f"{name}: {one['n']} replies" for name, one in scores.get("replied", {}).items())
        failed = (f", {one['failed']} of them empty" for one in scores.get("replied", {}).values())
        return "\n  ".join([said, *map("".join, zip(counts, failed, strict=True))])
    metric = scores.get("metric", "")
    lines = [f"{scores['title']}: {metric} of {scores['data']['n']} {scores['unit']}"]
    lines += [f"  {model_line(name, one, metric)}" for name, one in scores["models"].items()]
    said = {**scores.get("decoding", {}), **scores.get("drawing", {})}
    if tokens := said.get("think_tokens"):
        lines.append(f"  each picture or answer behind a thought of up to {tokens} tokens")
    if paired := scores.get("paired"):
        lines.append(f"  {difference_line(paired)}")
    if judge := scores.get("judge"):
        lines.append(f"  judged by {judge['name']}")
    for judge, one in scores.get("judges", {}).items():
        numbers = ", ".join(
            f"{name} {number(part['strict'].get(metric))}" for name, part in one["models"].items()
        )
        lines.append(f"  by {judge}: {numbers}")
    lines.append(f"  released rules: {scores['dialect']}; strict: {scores.get('policy', '')}")
    return "\n".join(lines)


def model_line(name: str, one: Mapping[str, Any], metric: str) -> str:
    """A model's number, its interval, its failures and its official numbers."""
    said = f"{name}: {number(one['strict'].get(metric))}"
    if metric in one["ci95"]:
        said += " ({} to {})".format(*map(number, one["ci95"][metric]))
    if one["failed"]:
        said += f", {one['failed']} of {one['n']} replies failed"
    released = ", ".join(f"{key} {number(value)}" for key, value in one["as_released"].items())
    return f"{said}; as released: {released}" if released else said


def difference_line(paired: Mapping[str, Any]) -> str:
    """One model against the other, and whether the interval leaves out 0."""
    low, high = paired["ci95"]
    clear = "" if low > 0 or high < 0 else "; no clear difference"
    examined, reference = paired["of"]
    diff = f"{paired['diff']:+.4g} ({low:+.4g} to {high:+.4g})"
    return f"{examined} - {reference}: {diff}{clear}"


def number(value: float | None) -> str:
    """Four digits; a dash for what is not defined."""
    return "–" if value is None else f"{value:.4g}"
