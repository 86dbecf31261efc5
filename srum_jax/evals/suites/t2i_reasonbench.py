"""T2I-ReasonBench: idioms, textual images, entities and science, drawn by what is meant.

Sun et al., "T2I-ReasonBench" (arXiv 2508.17472). Four times 200 prompts, one image each; a judge
marks the questions that the benchmark has for every prompt with 0, 0.5 or 1. Officially the judge
describes the image in a first turn; here both turns are one question. `as_released` follows
`eval_*.py`, which end at a reply without marks: a dimension with one has no number. (Its entity
script, which ends with a NameError, is taken as it is meant.) `strict` counts such a part 0.
Published numbers are of Qwen2.5-VL-72B.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from srum_jax.config import Config
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn, judge_texts, official_files, official_tables
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.judge_texts import OFFICIAL, JudgeText, Script
from srum_jax.evals.scorers import metrics, reasonbench
from srum_jax.evals.scorers.reasonbench import DIMENSIONS, PARTS, QUALITY
from srum_jax.evals.suite import JudgeRequest, Record, Replies, Requests, Scored

FILES = {  # {dimension: (prompts, and the folder of images; questions)}
    "idiom": ("idiom_interpretation", "evaluation_idiom"),
    "textual_image": ("textual_image_design", "evaluation_textual_image"),
    "entity": ("entity_reasoning", "evaluation_entity"),
    "scientific": ("scientific_reasoning", "evaluation_scientific"),
}
PROMPTS, QUESTIONS = "prompts", "deepseek_evaluation_qs"
ABOUT = About(
    title="T2I-ReasonBench, what is meant",
    needs="a clone of the official repository, or a folder with its prompts/ and "
    "deepseek_evaluation_qs/ (one of the four dimensions is enough)",
    licence="no licence in the official repository: for your own use",
    dialect="official, both turns of the judge in one question",
    unit="images",
    best=100.0,
    judge="words",
)
ID_STEP = 1_000_000  # between the prompts' ids of two dimensions
POLICY = (
    "a part whose reply does not give each question 0, 0.5 or 1 counts 0; accuracy and quality are "
    "means of the dimensions"
)
SCRIPT = Script("evaluation/Qwen2.5-VL/eval_idiom.py", {"qs_reason_question_criteria": "questions"})
QUESTION = re.compile(r"[a-z_]*q[0-9]+")  # the key of a question among its criteria
MEANS = {  # columns of the official results, of the parts in their order
    "idiom": ("score_a_avg", "score_q_avg"),
    "textual_image": ("score_a_avg", "score_q_avg"),
    "entity": ("score_e_avg", "score_d_avg", "score_q_avg"),
    "scientific": ("score_s_avg", "score_d_avg", "score_q_avg"),
}
TOTAL = "reasoning accuracy score: "  # how their last line begins
IMAGE = re.compile(r"([0-9]{4}).*\.(?:png|jpg)")
MISSING = "missing"
FIRST_TURN = "Describe this image."
ASKED = JudgeText(
    "Describe in a few sentences what this image shows. Then answer the questions q1, q2, ... "
    "about it, each with a mark of 1, 0.5 or 0 by its criterion c1, c2, ...\n"
    "Questions and criteria: {questions}\n"
    "End with JSON of this form, one mark a question in their order:\n"
    '{"reason": "why, in a sentence or two", "score": [mark, mark, ...]}'
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt to draw, its number in its file, and {part: questions and criteria}."""

    prompt: Prompt
    number: int
    parts: Mapping[str, Mapping[str, Any]]

    @property
    def file(self) -> str:
        """The image in the official folder."""
        return f"{FILES[self.prompt.category][0]}/{self.number:04d}.png"


@dataclasses.dataclass(frozen=True)
class Reasonbench(Benchmark):
    """items: those whose prompts are drawn · asked: the judge's question."""

    items: Sequence[Item]
    data: Data
    asked: JudgeText
    name = "t2i_reasonbench"

    @property
    def about(self) -> About:
        """Says in the dialect whose words the judge reads."""
        return dataclasses.replace(ABOUT, dialect=f"{ABOUT.dialect}; {self.asked.wording}")

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [item.prompt for item in self.items]

    def requests(self, model: str) -> Requests:
        """One image of each prompt."""
        return drawn.several(self.prompts, 1)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """A question for each part of an image: two or three."""
        asked = [(i, item, part) for i, item in enumerate(self.items) for part in item.parts]
        return LazySequence(asked, _Ask(self.asked, replies).request)

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """`idiom_interpretation/0001.png` and so on."""
        for place, item in enumerate(self.items):
            drawn.write(folder / item.file, replies, place)

    @property
    def dialect_imported(self) -> str:
        """The official judge was asked in two turns, and in its own words."""
        return "official"

    def imported(self, path: epath.Path, requests: Requests) -> list[Record]:
        """The official judge's replies, of `<dimension>/<model>.csv` in the folder `path` or of one
        such file; of the dimensions that have one. An image that they do not speak of is "missing".
        Raises BadInput naming file and line."""
        by_dimension: dict[str, dict[int, Item]] = {}
        for item in self.items:
            by_dimension.setdefault(item.prompt.category, {})[item.number] = item
        found = []
        for dimension, table in results(epath.Path(path), list(by_dimension)).items():
            found += _imported(table, dimension, by_dimension[dimension])
        return found


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Makes a judge's requests about the images of replies."""

    asked: JudgeText
    replies: Replies

    def request(self, one: tuple[int, Item, str]) -> JudgeRequest:
        place, item, part = one
        text = self.asked.filled(questions=str(dict(item.parts[part])))
        return JudgeRequest(
            id=f"{item.prompt.id}-0:{part}",
            category=item.prompt.category,
            images=drawn.of(self.replies, place),
            text=f"{FIRST_TURN}\n{text}" if self.asked.wording == OFFICIAL else text,
            max_tokens=1000,
            truth={"part": part, "questions": _count(item.parts[part])},
        )


def _count(part: Mapping[str, Any]) -> int:
    return sum(QUESTION.fullmatch(key) is not None for key in part)


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> Reasonbench:
    """The prompts and questions of the dimensions that the folder `data` has. Raises BadInput."""
    place = benchmark.data_folder("t2i_reasonbench", data)
    pairs = {
        dimension: (place / PROMPTS / f"{drawn_of}.json", place / QUESTIONS / f"{asked_of}.json")
        for dimension, (drawn_of, asked_of) in FILES.items()
    }
    there = {name: pair for name, pair in pairs.items() if pair[0].is_file()}
    if not there:
        raise BadInput(f"{place}: holds no {' or '.join(str(p) for p, _ in pairs.values())}")
    items = [
        one
        for name, (drawn_of, asked) in there.items()
        for one in read(drawn_of, asked, name, language)
    ]
    c = cfg.evaluate
    asked = benchmark.sampled(items, [one.prompt.category for one in items], c.limit, c.seed)
    digest = benchmark.sha256(*(path for pair in there.values() for path in pair))
    text = judge_texts.find(place, "t2i_reasonbench", ASKED, SCRIPT)
    return Reasonbench(asked, Data(str(place), digest, len(asked), len(items)), text)


def read(
    prompts: epath.Path, questions: epath.Path, dimension: str, language: str = ""
) -> list[Item]:
    """The items of a dimension, of its two files, whose ids must be the same. Raises BadInput."""
    rows, asked = (official_files.json_rows(path) for path in (prompts, questions))
    ids, asked_ids = ([row.get("id", int) for row in some] for some in (rows, asked))
    for numbers, some in ((ids, rows), (asked_ids, asked)):
        official_files.distinct(numbers, some, "id")
    official_files.same_ids(ids, asked_ids, f"{prompts} and {questions}")
    first = DIMENSIONS.index(dimension) * ID_STEP
    by_id = dict(zip(asked_ids, asked, strict=True))
    found = []
    for id, row in zip(ids, rows, strict=True):
        if not 0 < id < ID_STEP:
            raise BadInput(f"{row.where}: 'id' is {id}; it must be from 1 to {ID_STEP - 1}")
        text = row.get("prompt", str)
        prompt = drawn.prompt(language, first + id, text, dimension, row.where)
        parts = {p: _criteria(by_id[id], p) for p in (*PARTS[dimension], QUALITY)}
        found.append(Item(prompt, id, parts))
    return found


def _criteria(row: official_files.Row, part: str) -> dict[str, Any]:
    """{"q1": question, "c1": criterion, ...} of a part. The files name some otherwise ("aq1",
    "sci_q1", "q5" as the first), and write some criteria as objects: they are asked as they are."""
    name = f"{part}_evaluation"
    value: dict[str, Any] = row.get(name, dict)
    texts = [text for key, text in value.items() if QUESTION.fullmatch(key)]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise BadInput(f"{row.where}: '{name}' must hold questions, as texts q1, q2, ...")
    return value


# -------------------------------------------------------------------- the official judge's results


def results(path: epath.Path, dimensions: Sequence[str]) -> dict[str, epath.Path]:
    """{dimension: its official results}; a single file is of the dimension that its folder is named
    after, or of the only one. Raises BadInput where that is not clear."""
    if path.is_file():
        named = path.parent.name if path.parent.name in FILES else ""
        of = [named] if named else dimensions
        if len(of) > 1 or of[0] not in dimensions:
            raise BadInput(
                f"{path}: which dimension? name its folder after it: {' or '.join(dimensions)}"
            )
        return {of[0]: path}
    found = {}
    for name in dimensions:
        tables = sorted((path / name).glob("*.csv"))
        if len(tables) > 1:
            raise BadInput(f"{path / name}: holds {len(tables)} CSV files; leave one, a model's")
        found |= {name: tables[0]} if tables else {}
    if not found:
        raise BadInput(f"{path}: holds no {' or '.join(f'{d}/<model>.csv' for d in dimensions)}")
    return found


def _imported(path: epath.Path, dimension: str, items: Mapping[int, Item]) -> list[Record]:
    """A record of every part of every image."""
    parts = (*PARTS[dimension], QUALITY)
    columns = {part: f"answer_{i}" for i, part in enumerate(parts, 2)}
    means = dict(zip(parts, MEANS[dimension], strict=True))
    said: dict[int, official_files.Row] = {}
    for row in official_tables.comma_separated(
        path, "id", "prompt", *columns.values(), *means.values(), total=TOTAL
    ):
        name = row.get("id", str)
        number = int(match[1]) if (match := IMAGE.fullmatch(name)) else 0
        if number not in items or number in said:
            why = "stands here twice" if number in said else "is none of the images asked for"
            raise BadInput(f"{row.where}: id {quoted(name)} {why}")
        if row.get("prompt", str, "").strip() != items[number].prompt.text.strip():
            raise BadInput(f"{row.where}: the prompt is not that of {dimension} {number}")
        for part in parts:
            _check_mean(row, columns[part], means[part])
        said[number] = row
    return [
        _record(item, part, said.get(number), columns[part])
        for number, item in items.items()
        for part in parts
    ]


def _check_mean(row: official_files.Row, column: str, mean: str) -> None:
    """Raises BadInput where the official mean is not that of the marks in the reply."""
    marks, told = reasonbench.released_marks(row.get(column, str, "")), row.get(mean, str, "")
    try:
        differs = marks is not None and abs(float(told) - sum(marks) / len(marks)) > 1e-6
    except ValueError:
        differs = True
    if differs:
        raise BadInput(f"{row.where}: {mean} is {quoted(told)}, the marks in {column} give another")


def _record(item: Item, part: str, row: official_files.Row | None, column: str) -> Record:
    return Record(
        id=f"{item.prompt.id}-0:{part}",
        category=item.prompt.category,
        asked=str(dict(item.parts[part])),
        reply="" if row is None else row.get(column, str, ""),
        status=MISSING if row is None else OK,
        truth={"part": part, "questions": _count(item.parts[part])},
    )


# ------------------------------------------------------------------------------ what it is worth


@dataclasses.dataclass(frozen=True)
class Image:
    """What an image is worth, in [0, 1]."""

    id: str
    dimension: str
    accuracy: float
    quality: float
    reason: str


def score(records: Sequence[Record]) -> Scored:
    """Accuracy and quality, 0 to 100, each the mean of the dimensions."""
    by_image: dict[str, list[Record]] = {}
    for r in records:
        by_image.setdefault(r.id.partition(":")[0], []).append(r)
    images = [_image(id, some) for id, some in by_image.items()]
    groups = [one.dimension for one in images]
    accuracy, quality = ([getattr(x, n) for x in images] for n in ("accuracy", "quality"))
    return Scored(
        n=len(records),
        failed=sum(_marks(r) is None for r in records),
        as_released=_released(by_image),
        strict={
            "accuracy": metrics.mean_of_groups(accuracy, groups, 100),
            "quality": metrics.mean_of_groups(quality, groups, 100),
        },
        units=tuple(by_image),
        by_category={
            name: {
                "n": groups.count(name),
                "accuracy": _mean(accuracy, groups, name),
                "quality": _mean(quality, groups, name),
            }
            for name in dict.fromkeys(groups)
        },
        items=tuple(
            {"id": x.id, "category": x.dimension, "value": x.accuracy, "reason": x.reason}
            for x in images
        ),
        policy=POLICY,
    )


def _mean(values: Sequence[float], groups: Sequence[str], name: str) -> float:
    some = [v for v, g in zip(values, groups, strict=True) if g == name]
    return 100 * sum(some) / len(some)


def _marks(r: Record) -> list[float] | None:
    return reasonbench.strict_marks(r.reply, r.truth["questions"]) if r.status == OK else None


def _image(id: str, records: Sequence[Record]) -> Image:
    dimension = records[0].category
    marks = {r.truth["part"]: _marks(r) for r in records}
    told = [
        f"{part.replace('_', ' ')} {'no clear marks' if some is None else some}"
        for part, some in marks.items()
    ]
    counted = {part: marks.get(part) or [0.0] for part in (*PARTS[dimension], QUALITY)}
    quality = sum(counted[QUALITY]) / len(counted[QUALITY])
    accuracy = reasonbench.accuracy(counted, dimension)
    return Image(id, dimension, accuracy, quality, "; ".join(told))


def _released(by_image: Mapping[str, Sequence[Record]]) -> dict[str, float]:
    """Accuracy and quality of each dimension without a failure, and of all four, their means. An
    image that was never judged is left out."""
    values: dict[str, list[tuple[float, float] | None]] = {}
    for records in by_image.values():
        dimension = records[0].category
        if all(r.status == MISSING for r in records):
            continue
        marks = {
            r.truth["part"]: reasonbench.released_marks(r.reply) if r.status == OK else None
            for r in records
        }
        whole = None
        if all(marks.get(part) for part in (*PARTS[dimension], QUALITY)):
            quality = sum(marks[QUALITY]) / len(marks[QUALITY])
            whole = reasonbench.accuracy(marks, dimension), quality
        values.setdefault(dimension, []).append(whole)
    found = {}
    for i, name in enumerate(("accuracy", QUALITY)):
        each = {
            f"{dimension} {name}": reasonbench.released_score([pair[i] for pair in some])
            for dimension, some in values.items()
            if None not in some
        }
        mean = {name: sum(each.values()) / len(each)} if len(each) == len(DIMENSIONS) else {}
        found |= mean | each
    return found
