"""WISE_Verified and legacy WISE: scores out of a judge's replies, and their weighted means.

Owns the rules of PKU-YuanGroup/WISE (`vllm_eval.py`, `calculate_verified.py`, `WISE_legacy/`) and
of BAGEL's copy of the legacy scorer (`eval/gen/wise`), and how a careful reader differs from them.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence

from srum_jax.evals.scorers.metrics import added
from srum_jax.evals.scorers.statements import stated

CATEGORIES = ("CULTURE", "TIME", "SPACE", "BIOLOGY", "PHYSICS", "CHEMISTRY")
MARKS = ("consistency", "realism", "aesthetic_quality")  # of a legacy reply, 0 to 2 each
MARK_WEIGHTS = (0.7, 0.2, 0.1)
NO_MARK = 9.9  # BAGEL's copy writes it for a mark that it does not find
TIME_SUBCATEGORIES = ("Longitudinal time", "Horizontal time")  # BAGEL's rule; all else is space

_THINKING = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_THINKING_END = re.compile(r"</think>\s*")
_SCORE = re.compile(r"score\*{0,2}\s*(?::\s*)?([01])\b", re.IGNORECASE)
_NAMES = r"(consistency|realism|aesthetic quality)\*{0,2}\s*"
_LEGACY = re.compile(_NAMES + r"(?::\s*)?(\d)", re.IGNORECASE)
_BAGEL = re.compile(_NAMES + r"(?:[:：]\s*)?(\d)", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Version:
    """One of the two benchmarks: the last prompt id of each category, and its weight."""

    last: tuple[int, ...]
    weights: tuple[float, ...]

    def category(self, prompt_id: int) -> str | None:
        """The category of a prompt id; None outside 1 to 1000."""
        if prompt_id < 1:
            return None
        return next(
            (c for c, last in zip(CATEGORIES, self.last, strict=True) if prompt_id <= last), None
        )


VERIFIED = Version((400, 520, 640, 760, 880, 1000), (0.4, *[0.12] * 5))
LEGACY = Version((400, 567, 700, 800, 900, 1000), (0.4, 0.167, 0.133, 0.1, 0.1, 0.1))


@dataclasses.dataclass(frozen=True)
class Totals:
    """What the official aggregation finds.

    categories: {category: (mean, n)} of the lines that count · overall: weighted mean in [0, 1];
    None where it is refused · missing: prompt ids that no line has · skipped: prompt ids whose line
    has no score that counts.
    """

    categories: Mapping[str, tuple[float, int]]
    overall: float | None
    missing: tuple[int, ...]
    skipped: tuple[int, ...]

    @property
    def row(self) -> str:
        """The last line that the official scripts print: category means, then overall."""
        shown = [f"{self.categories[name][0]:.2f}" for name in CATEGORIES]
        return f"{shown[0]}\t\t" + "\t".join(shown[1:]) + f"\t\t{self.overall:.2f}"


def without_thinking(reply: str) -> str:
    """A reply less what is in think tags, stripped; the official runner does so before parsing."""
    return _THINKING_END.sub("", _THINKING.sub("", reply)).strip()


def _bare(reply: str, digits: str) -> list[float]:
    """Those of the lines that are nothing but one of `digits`."""
    lines = (line.strip() for line in reply.split("\n"))
    return [float(line) for line in lines if len(line) == 1 and line in digits]


def verified_score(reply: str) -> float | None:
    """0.0 or 1.0 as the official parser reads a verified reply; None: not found.

    Source: `vllm_eval.extract_scores`.
    """
    match = _SCORE.search(reply)
    if match:
        return float(match.group(1))
    bare = _bare(reply, "01")
    return bare[0] if len(bare) == 1 else None


def strict_verified_score(reply: str) -> float | None:
    """0.0 or 1.0 where a reply says one of them and nothing else; else None."""
    found = stated(without_thinking(reply), "score", 0, 1, bare=True)
    return found if found in (0, 1) else None


def legacy_marks(reply: str) -> dict[str, float]:
    """The marks that the official legacy parser finds, {mark: 0.0 to 9.0}; some may be absent.

    Source: `WISE_legacy/gpt_eval.extract_scores`.
    """
    found = _marks(_LEGACY, reply)
    bare = _bare(reply, "012")
    return found or (dict(zip(MARKS, bare[:3], strict=True)) if len(bare) >= 3 else {})


def bagel_marks(reply: str) -> dict[str, float]:
    """The three marks as BAGEL's copy reads them, 9.9 for one that it does not find.

    Source: BAGEL `eval/gen/wise/gpt_eval_mp.extract_scores`.
    """
    return dict.fromkeys(MARKS, NO_MARK) | _marks(_BAGEL, reply)


def _marks(pattern: re.Pattern, reply: str) -> dict[str, float]:
    return {name.lower().replace(" ", "_"): float(n) for name, n in pattern.findall(reply)}


def strict_marks(reply: str) -> tuple[float, float, float] | None:
    """Consistency, realism and aesthetic quality, whole numbers from 0 to 2, where a reply is clear
    about all three; three lines of bare digits are too. Else None."""
    lines = [line.strip() for line in reply.strip().split("\n") if line.strip()]
    if len(lines) == 3 and all(line in ("0", "1", "2") for line in lines):
        found = [float(line) for line in lines]
    else:
        found = [stated(reply, name.replace("_", " "), 0, 2) for name in MARKS]
    return None if any(x not in (0, 1, 2) for x in found) else tuple(found)


def wiscore(marks: Sequence[float]) -> float:
    """The legacy WiScore in [0, 1] of consistency, realism and aesthetic quality."""
    return (0.7 * marks[0] + 0.2 * marks[1] + 0.1 * marks[2]) / 2


def totals(lines: Sequence[tuple[int, object]], version: Version) -> Totals:
    """What the official aggregation makes of (prompt id, score) lines.

    VERIFIED takes a score of 0 or 1, LEGACY three marks [C, R, A] of numbers. A line whose score is
    something else is skipped, but its id counts as present; an absent id of 1 to 1000 refuses
    overall, and so does a category without any line that counts.

    Source: `calculate_verified.py`, `WISE_legacy/Calculate.py`.
    """
    values: dict[str, list[float]] = {}
    skipped = []
    for prompt_id, score in lines:
        value = _binary(score) if version is VERIFIED else _weighted(score)
        category = version.category(prompt_id)
        if value is None or category is None:
            skipped.append(prompt_id)
        else:
            values.setdefault(category, []).append(value)
    means = {
        c: (sum(values[c]) / len(values[c]), len(values[c])) for c in CATEGORIES if c in values
    }
    missing = tuple(sorted(set(range(1, 1001)) - {prompt_id for prompt_id, _ in lines}))
    whole = not missing and len(means) == len(CATEGORIES)
    weighted = (
        added(w * mean for w, (mean, _) in zip(version.weights, means.values(), strict=True))
        if whole
        else None
    )
    return Totals(means, weighted, missing, tuple(skipped))


def _binary(score: object) -> float | None:
    return float(score) if isinstance(score, int | float) and score in (0, 1) else None


def _weighted(marks: object) -> float | None:
    there = isinstance(marks, Sequence) and len(marks) == 3
    return wiscore(marks) if there and all(isinstance(x, int | float) for x in marks) else None


def bagel_totals(rows: Sequence[tuple[str, str, Sequence[float]]]) -> dict[str, float] | None:
    """{"Cultural", "Time", ..., "Overall"} as BAGEL's copy prints them; overall is the plain mean.

    Args:
      rows: (file, category, marks) of each line; file "culture", "space-time" or "science";
        category one of CATEGORIES.

    Returns:
      None where it ends without numbers: a mark of 9.9 or too few lines leave out a whole file.

    Source: BAGEL `eval/gen/wise/cal_score.py`.
    """
    for file, least in (("culture", 400), ("space-time", 300), ("science", 300)):
        marks = [m for name, _, m in rows if name == file]
        if len(marks) < least or any(NO_MARK in m for m in marks):
            return None
    found = {}
    for category in CATEGORIES:
        sums = [0.7 * m[0] + 0.2 * m[1] + 0.1 * m[2] for _, name, m in rows if name == category]
        if not sums:
            return None
        shown = "Cultural" if category == "CULTURE" else category.capitalize()
        found[shown] = sum(sums) / (len(sums) * 2)
    return found | {"Overall": added(found.values()) / len(found)}


def bagel_text(found: Mapping[str, float]) -> str:
    """The file that BAGEL's copy writes: names, then numbers with two decimals."""
    return (
        "".join(f"{k} " for k in found) + "\n" + "".join(f"{v:.2f} " for v in found.values()) + "\n"
    )
