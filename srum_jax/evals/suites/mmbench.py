"""MMBench: multiple-choice questions about pictures, each asked in every rotation of its options.

Liu et al., "MMBench: Is Your Multi-modal Model an All-around Player?" (arXiv 2307.06281). A
question is right only if all its rotations are ("circular"); "vanilla" is its own order alone.
`as_released` is VLMEvalKit's matching without a judge, and lmms-eval's mode "static" beside it. The
answers of the test splits are OpenCompass's server's, which takes a spreadsheet.
"""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from typing import Any

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.evals import benchmark, official_files, official_tables, spreadsheet
from srum_jax.evals.benchmark import About, Benchmark, Data, LazySequence
from srum_jax.evals.official_files import Row
from srum_jax.evals.official_tables import Encoded
from srum_jax.evals.scorers import letters, metrics
from srum_jax.evals.scorers import mmbench as rules
from srum_jax.evals.suite import Record, Replies, Requests, Scored, TextRequest

ABOUT = About(
    title="MMBench, questions with rotated options",
    needs="the TSV file of a split (such as MMBench_DEV_EN.tsv; MMBench_TEST_EN.tsv has no "
    "answers), or a folder with it",
    licence="Apache-2.0 (code); the data's own terms",
    dialect="VLMEvalKit, exact matching",
    unit="questions, each in all its rotations",
)
COLUMNS = ("index", "question", "A", "B", "image")
FIRST = ("index", "question", "A", "B", "C", "D")  # columns of the spreadsheet, the others behind
SERVER = "OpenCompass, MMBench's evaluation server"
OPTIONS = "ABCDE"
ASK = "Answer with the option's letter from the given choices directly."
ASK_CHINESE = "请直接回答选项字母。"
MAX_TOKENS = 100
REFERENCE = 64  # characters: a shorter "image" is the index of the row that has it
MISSING = ("", "nan")  # what stands where a row has no such option or hint
POLICY = "a reply that names no single option is wrong, and counted in failed"


@dataclasses.dataclass(frozen=True)
class Question:
    """A row of the file, one rotation of a question."""

    index: int
    category: str
    parent: str
    text: str
    options: Mapping[str, str]
    answer: str | None
    picture: Encoded
    row: Row

    @property
    def id(self) -> str:
        """The index, as a text."""
        return str(self.index)


@dataclasses.dataclass(frozen=True)
class MMBench(Benchmark):
    """questions: those that are asked, with all rotations · server: as `Benchmark.server`."""

    questions: Sequence[Question]
    data: Data
    server: str = ""
    name = "mmbench"
    about = ABOUT

    def requests(self, model: str) -> Requests:
        """Hint, question, options and the request for a letter, as BAGEL's evaluation puts them."""
        return Requests(texts=[_request(q) for q in self.questions])

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """mmbench.tsv: the rows without pictures, and "prediction", as VLMEvalKit reads them; of a
        split without answers <its name>.xlsx, the same as a spreadsheet."""
        rows = [
            {k: v for k, v in q.row.value.items() if k != "image"} | {"prediction": reply}
            for q, reply in zip(self.questions, replies.texts, strict=True)
        ]
        if self.server:
            name = f"{epath.Path(self.data.file).stem}.xlsx"
            files.write_bytes(folder / name, [_spreadsheet(rows)])
            return
        names = dict.fromkeys(name for row in rows for name in row)
        out = io.StringIO()
        writer = csv.DictWriter(out, list(names), delimiter="\t", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        files.write_text(folder / "mmbench.tsv", out.getvalue())


def make(cfg: Config, data: str, language: str) -> MMBench:
    """The questions of the TSV file `data` names. Raises BadInput naming line and column."""
    folder = benchmark.data_folder("mmbench", data)
    path = folder
    if folder.is_dir():
        tables = sorted(folder.glob("*.tsv"))
        if len(tables) != 1:
            what = f"{len(tables)} TSV files; name one" if tables else "no TSV file"
            raise BadInput(f"{folder}: holds {what}")
        path = tables[0]
    questions = read(path)
    first = [q for q in questions if q.index < rules.ROTATION]
    c = cfg.evaluate
    asked = benchmark.sampled(first, [q.category for q in first], c.limit, c.seed)
    numbers = {q.index for q in asked}
    rotations = [q for q in questions if rules.question(q.index) in numbers]
    read_data = Data(str(path), benchmark.sha256(path), len(asked), len(first))
    return MMBench(rotations, read_data, "" if questions[0].answer else SERVER)


def _spreadsheet(rows: Sequence[Mapping[str, str]]) -> bytes:
    names = dict.fromkeys((*FIRST, "prediction", *(name for row in rows for name in row)))
    numbered = [{**row, "index": _whole(row["index"])} for row in rows]
    return spreadsheet.xlsx([n for n in names if any(n in row for row in rows)], numbered)


def read(path: epath.Path) -> list[Question]:
    """The rows of the file. Raises BadInput."""
    rows = _without_blank_answers(official_tables.tsv(path, *COLUMNS))
    indices = [_index(row) for row in rows]
    official_files.distinct(indices, rows, "index")
    by_index = dict(zip(indices, rows, strict=True))
    ask = ASK_CHINESE if "cn" in path.stem.lower().split("_") else ASK
    for index, row in by_index.items():
        if rules.question(index) not in by_index:
            raise BadInput(f"{row.where}: a rotation of {rules.question(index)}, which is no row")
    answered = any("answer" in row.value for row in rows)
    return [_question(index, row, by_index, ask, answered) for index, row in by_index.items()]


def _without_blank_answers(rows: list[Row]) -> list[Row]:
    """The rows; without the field "answer" where none of them has one."""
    if any(row.value.get("answer", "").strip().lower() not in MISSING for row in rows):
        return rows
    return [
        dataclasses.replace(row, value={k: v for k, v in row.value.items() if k != "answer"})
        for row in rows
    ]


def _index(row: Row) -> int:
    value = row.get("index", str)
    try:
        return _whole(value)
    except (ValueError, OverflowError) as e:
        raise BadInput(f'{row.where}: "index" is {quoted(value)}; it must be a number') from e


def _whole(value: str) -> int:
    """A whole number from 0, also as "7.0". Raises ValueError or OverflowError."""
    found = float(value)
    if found != int(found) or found < 0:
        raise ValueError("not a whole number")
    return int(found)


def _question(index: int, row: Row, rows: Mapping[int, Row], ask: str, answered: bool) -> Question:
    options = {
        letter: row.value[letter]
        for letter in OPTIONS
        if row.value.get(letter, "").strip().lower() not in MISSING
    }
    if list(options) != list(OPTIONS[: len(options)]) or len(options) < 2:
        raise BadInput(f"{row.where}: has the options {', '.join(options) or 'none'}")
    hint = row.value.get("hint", "")
    lines = [hint] if hint.strip().lower() not in MISSING else []
    lines += [row.get("question", str), *(f"{k}. {text}" for k, text in options.items()), ask]
    return Question(
        index=index,
        category=row.get("category", str, "all"),
        parent=row.get("l2-category", str, row.get("L2-category", str, "-")),
        text="\n".join(lines),
        options=options,
        answer=row.choice("answer", tuple(options)) if answered else None,
        picture=_picture(row, rows),
        row=row,
    )


def _picture(row: Row, rows: Mapping[int, Row]) -> Encoded:
    text = row.get("image", str)
    if len(text) > REFERENCE:
        return Encoded(text, row.where)
    other = rows.get(int(text)) if text.isdecimal() else None
    whole = other.value.get("image", "") if other else ""
    if len(whole) <= REFERENCE:
        raise BadInput(
            f'{row.where}: "image" is {quoted(text)}: no picture, nor a row that has one'
        )
    return Encoded(whole, other.where)


def _request(q: Question) -> TextRequest:
    pictures = LazySequence((q.picture,), Encoded.load)
    truth = {
        "index": q.index,
        "answer": q.answer,
        "options": dict(q.options),
        "parent": q.parent,
    }
    return TextRequest(q.id, q.category, pictures, q.text, MAX_TOKENS, truth)


def score(records: Sequence[Record]) -> Scored:
    """The share of questions that are right, circular and vanilla."""
    truth = {r.truth["index"]: r.truth for r in records}
    reply = {r.truth["index"]: r.reply for r in records}
    category = {r.truth["index"]: r.category for r in records}
    said = {i: letters.clear(reply[i], truth[i]["options"]) for i in truth}
    right = {i: said[i] == truth[i]["answer"] for i in truth}
    numbers = {"circular": rules.circular(right), "vanilla": rules.vanilla(right)}
    if len(numbers["vanilla"]) == len(right):
        del numbers["circular"]  # without rotations there is no such number
    units = sorted(rules.vanilla(right))
    return Scored(
        n=len(records),
        failed=sum(not one for one in said.values()),
        as_released=_released(truth, reply, list(numbers)),
        strict={name: metrics.mean([of[i] for i in units]) for name, of in numbers.items()},
        units=tuple(map(str, units)),
        by_category=_by_category(numbers, category, truth),
        items=tuple(
            {
                **{"id": r.id, "category": r.category, "right": right[r.truth["index"]]},
                "reason": letters.reason(said[r.truth["index"]], r.truth["answer"]),
            }
            for r in records
        ),
        policy=POLICY,
    )


def _released(
    truth: Mapping[int, Mapping[str, Any]], reply: Mapping[int, str], names: Sequence[str]
) -> dict[str, float]:
    found = {}
    for suffix, rule in (("", letters.vlmevalkit), (" [lmms-eval static]", rules.lmms_static)):
        right = {i: rule(reply[i], t["options"]) == t["answer"] for i, t in truth.items()}
        for name in names:
            of = getattr(rules, name)(right)
            found |= {name + suffix: sum(of.values()) / len(of)} if of else {}
    return found


def _by_category(
    numbers: Mapping[str, Mapping[int, bool]],
    category: Mapping[int, str],
    truth: Mapping[int, Mapping[str, Any]],
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for groups in ({i: t["parent"] for i, t in truth.items()}, category):
        for name, of in numbers.items():
            for group, share in rules.by_group(of, groups).items():
                n = sum(groups[i] == group for i in of)
                found.setdefault(group, {"n": n})[name] = share
    return found
