"""Legacy WISE: the first 1000 prompts, three marks an image, combined into WiScore.

Niu et al., "WISE" (arXiv 2503.07265). A judge marks consistency, realism and aesthetic quality
from 0 to 2; WiScore is .7, .2 and .1 of them, halved. `as_released` follows `WISE_legacy/`, whose
overall weights the categories, and has BAGEL's unweighted one under its own name. Published numbers
are of gpt-4o-2024-05-13, and those of rewritten prompts are another column.
"""

import dataclasses
from collections.abc import Sequence

from srum_jax.config import Config
from srum_jax.evals import benchmark, judge_texts
from srum_jax.evals.benchmark import OK, About
from srum_jax.evals.judge_texts import JudgeText, Script
from srum_jax.evals.scorers import metrics, wise
from srum_jax.evals.suite import Record, Scored
from srum_jax.evals.suites import wise as verified

TOPICS = ("cultural_common_sense", "spatio-temporal_reasoning", "natural_science")
ORIGINAL = tuple(f"{topic}.json" for topic in TOPICS)
REWRITTEN = tuple(f"{topic}_rewrite.json" for topic in TOPICS)
PLACES = ("", "data", "WISE_legacy/data")
ABOUT = About(
    title="Legacy WISE, knowledge behind prompts",
    needs=f"a folder with {', '.join(ORIGINAL)} (one of them is enough), or with "
    f"{', '.join(REWRITTEN)}, or one of these files, or a clone of the official repository, whose "
    "gpt_eval.py then gives the judge's question",
    licence="no licence in the official repository: for your own use",
    dialect="official, the image before the text",
    unit="images",
    judge="words",
)
POLICY = "an image without three clear marks from 0 to 2 counts 0; wiscore weights the categories"
SCRIPTS = tuple(
    Script(path, verified.SCRIPT.places)
    for path in ("gpt_eval.py", "WISE_legacy/gpt_eval.py", "gpt_eval_mp.py")
)
ASKED = JudgeText(
    "An image was drawn for the prompt below; the explanation says what the prompt means.\n\n"
    "Prompt: {prompt}\nExplanation: {explanation}\n\n"
    "Give three marks, each 0, 1 or 2. Be strict: 2 is for what could not be better, and in doubt "
    "take the lower mark.\n"
    "Consistency: does the image show what the prompt means? 0: key parts are missing or wrong; "
    "1: in part; 2: all of it.\n"
    "Realism: 0: impossible or plainly artificial; 1: believable with visible faults; 2: like a "
    "photograph.\n"
    "Aesthetic Quality: 0: unappealing; 1: acceptable; 2: outstanding.\n\n"
    "Reply with three lines and nothing else, such as\n"
    "Consistency: 1\nRealism: 1\nAesthetic Quality: 0",
    "You mark drawn images strictly by the rules that you are given.",
)
LAST_IDS = (("culture", 400), ("space-time", 700), ("science", 1000))  # of the three files


@dataclasses.dataclass(frozen=True)
class WiseLegacy(verified.Wise):
    """Asked and written as WISE_Verified, with other prompts, another question and other scores."""

    name = "wise_legacy"
    official_about = ABOUT
    max_tokens = 2000

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)


def make(cfg: Config, data: str, language: str) -> WiseLegacy:
    """The prompts of the files in the folder `data`, or of one file. Raises BadInput."""
    place = benchmark.data_folder("wise_legacy", data)
    paths = verified.found_files(place, PLACES, ORIGINAL, REWRITTEN)
    items, read_data = verified.sampled(cfg, place, paths, wise.LEGACY, language)
    asked = judge_texts.find(place, "wise_legacy", ASKED, *SCRIPTS)
    return WiseLegacy(items, read_data, asked)


def score(records: Sequence[Record]) -> Scored:
    """WiScore, weighted over the categories and plain, in [0, 1]; means of the marks, 0 to 2."""
    strict = [wise.strict_marks(r.reply) if r.status == OK else None for r in records]
    values = [0.0 if marks is None else wise.wiscore(marks) for marks in strict]
    each = [
        [0.0 if marks is None else marks[i] for marks in strict] for i in range(len(wise.MARKS))
    ]
    marks = dict(zip(wise.MARKS, each, strict=True))
    return Scored(
        n=len(records),
        failed=sum(x is None for x in strict),
        as_released=_released(records),
        strict={
            "wiscore": verified.weighted(values, records, wise.LEGACY),
            "wiscore_plain_mean": metrics.mean(values),
            **{name: metrics.mean(some) for name, some in marks.items()},
        },
        units=tuple(r.id for r in records),
        by_category=verified.by_category(records, {"wiscore": values, **marks}),
        items=tuple(
            {"id": r.id, "category": r.category, "value": value, "reason": _reason(r, found)}
            for r, value, found in zip(records, values, strict, strict=True)
        ),
        policy=POLICY,
    )


def _released(records: Sequence[Record]) -> dict[str, float]:
    marks = [wise.legacy_marks(r.reply) if r.status == OK else {} for r in records]
    lines = [[m[name] for name in wise.MARKS] if len(m) == 3 else None for m in marks]
    found = verified.official_totals(records, lines, wise.LEGACY)
    bagel = wise.bagel_totals([_bagel_row(r) for r in records])
    return found if bagel is None else found | {"bagel_overall": bagel["Overall"]}


def _bagel_row(r: Record) -> tuple[str, str, list[float]]:
    """BAGEL tells time from space by the subcategory, the rest by ids."""
    id = r.truth["prompt_id"]
    file = next(name for name, last in LAST_IDS if id <= last)
    category = r.category
    if file == "space-time":
        category = "TIME" if r.truth["subcategory"] in wise.TIME_SUBCATEGORIES else "SPACE"
    found = wise.bagel_marks(r.reply if r.status == OK else "")
    return file, category, [found[name] for name in wise.MARKS]


def _reason(r: Record, marks: tuple[float, float, float] | None) -> str:
    if marks is None:
        return verified.no_score(r)
    return ", ".join(
        f"{name.replace('_', ' ')} {mark:g}" for name, mark in zip(wise.MARKS, marks, strict=True)
    )
