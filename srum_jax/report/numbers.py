"""How numbers and names are written in the report: the filters of its templates."""

import math
from collections.abc import Sequence

NO_BREAK = "\u00a0"
THIN = "\u202f"


def percent(p: float) -> str:
    """A proportion, as in "40.0 %"."""
    return f"{100 * p:.1f}{NO_BREAK}%"


def percent_range(ci95: Sequence[float]) -> str:
    """The two ends of an interval of a proportion, as in "35.1–45.0"."""
    return f"{100 * ci95[0]:.1f}\u2013{100 * ci95[1]:.1f}"


def points(difference: float) -> str:
    """A difference of proportions in percentage points, always with its sign."""
    text = minus(f"{100 * difference:+.1f}")
    return "0.0" if text[1:] == "0.0" else text


def points_range(ci95: Sequence[float]) -> str:
    """The two ends of an interval of a difference, as in "−2.0 to +4.5"."""
    return f"{points(ci95[0])} to {points(ci95[1])}"


def signed(score: float) -> str:
    """A score with its sign and two digits."""
    return minus(f"{score:+.2f}")


def two_digits(x: float) -> str:
    """Empty for what is not finite."""
    return minus(f"{x:.2f}") if math.isfinite(x) else ""


def three_digits(x: float) -> str:
    """Three digits after the point."""
    return f"{x:.3f}"


def count(n: float) -> str:
    """A whole number with thin spaces between its thousands."""
    return f"{n:,.0f}".replace(",", THIN)


def short(x: float) -> str:
    """Three significant digits, for axes and small facts."""
    return minus(f"{x:.3g}")


def four(x: float) -> str:
    """Four significant digits, without an exponent."""
    return minus(f"{x:.0f}" if abs(x) >= 10_000 else f"{x:.4g}")


def duration(seconds: float) -> str:
    """Seconds in words, as a reader would say them."""
    if seconds < 120:
        return f"{seconds:.1f}{NO_BREAK}s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def megabytes(mb: float) -> str:
    """A size in whole megabytes."""
    return f"{count(mb)}{NO_BREAK}MB"


WORDS = {"attr": "attributes", "yesno": "yes or no", "qa": "questions", "t2i": "drawing"}


def words(name: str) -> str:
    """A name of the program's, such as a kind of question, as a reader would write it."""
    return " ".join(WORDS.get(part, part) for part in name.split("_"))


PROPOSERS = {
    "components": "objects found by their outline",
    "grid": "cells of a grid",
    "sam": "Segment Anything",
}


def proposer_words(name: str) -> str:
    """Who found a region, as a reader would write it."""
    return PROPOSERS.get(name, words(name))


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:].rstrip('.')}." if text else ""


def status_counts(status: dict[str, int]) -> str:
    """As in "ok 190, unparsed 10"."""
    return ", ".join(f"{words(name)} {count(n)}" for name, n in status.items())


def minus(text: str) -> str:
    """With the sign that is as wide as a plus."""
    return text.replace("-", "\u2212")


FILTERS = {
    f.__name__: f
    for f in (
        percent,
        percent_range,
        points,
        points_range,
        signed,
        two_digits,
        three_digits,
        count,
        short,
        four,
        duration,
        megabytes,
        words,
        proposer_words,
        sentence,
        status_counts,
    )
}
