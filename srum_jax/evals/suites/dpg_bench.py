"""DPG-Bench: dense prompts, four images each, a graph of yes-or-no questions.

Hu et al., "ELLA" (arXiv 2403.05135). The official judge is mPLUG-large: its answers, in the file
`*_detail.txt`, are read back in, and `as_released` is what the official scorer makes of them. The
same questions asked of another judge are a proxy and named so. In `strict` a question whose parent
was answered no counts 0, also where categories are counted, and all four images count there.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence

import numpy as np
from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images
from srum_jax.data.prompts import Prompt
from srum_jax.evals import benchmark, drawn, official_files, official_tables
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.scorers import dpg, metrics, yes_no
from srum_jax.evals.scorers.dpg import Question
from srum_jax.evals.suite import JudgeRequest, Record, Replies, Requests, Scored

ABOUT = About(
    title="DPG-Bench, dense prompts",
    needs="dpg_bench.csv, or a folder with it (dpg_bench/ of the official repository; prompts/ "
    "beside it is drawn where it is there)",
    licence="Apache-2.0 (code and prompts)",
    dialect="official, of mPLUG's answers; another judge's are a proxy",
    unit="prompts",
    best=100.0,
    judge="optional",
)
FILE = "dpg_bench.csv"
COLUMNS = ("item_id", "text", "proposition_id", "dependency", "tuple", "question_natural_language")
IMAGES = 4  # of a prompt, in a grid of 2 by 2
SUFFIX = " Answer yes or no."
DETAIL = "_detail.txt"
POLICY = "a question without an answer counts 0, and one whose parent counts 0 does too"
PROXY_POLICY = f"a proxy: not mPLUG is asked; yes where it is likelier than no; {POLICY}"
_ANSWER = re.compile(
    r"(?P<path>.*), \((?P<x>\d+), (?P<y>\d+), \d+, \d+\), (?P<asked>.*), (?P<said>[^,]*)"
)


@dataclasses.dataclass(frozen=True)
class Item:
    """A prompt to draw, its item_id, and its questions.

    unread: the id of the question that the official reader never sees, the file's first row; 0:
    none.
    """

    prompt: Prompt
    name: str
    questions: tuple[Question, ...]
    unread: int = 0


@dataclasses.dataclass(frozen=True)
class Asked:
    """A question about the image at `place` among the requests, the prompt's `k`-th."""

    place: int
    k: int
    item: Item
    question: Question

    @property
    def id(self) -> str:
        """Of the prompt's image, and of the question."""
        return f"{self.item.prompt.id}-{self.k}:{self.question.id}"

    @property
    def truth(self) -> dict:
        """What scoring needs beside the answer."""
        q = self.question
        of = {"question": q.id, "parents": list(q.parents), "category": q.category}
        return of | {"source": self.item.prompt.category}


@dataclasses.dataclass(frozen=True)
class DpgBench(Benchmark):
    """items: those whose prompts are drawn."""

    items: Sequence[Item]
    data: Data
    name = "dpg_bench"
    about = ABOUT

    @property
    def prompts(self) -> list[Prompt]:
        """What is drawn."""
        return [item.prompt for item in self.items]

    def requests(self, model: str) -> Requests:
        """Four images of each prompt."""
        return drawn.several(self.prompts, IMAGES)

    def asked(self) -> list[Asked]:
        """Every question of every image, in the order of the requests."""
        return [
            Asked(i * IMAGES + k, k, item, question)
            for i, item in enumerate(self.items)
            for k in range(IMAGES)
            for question in item.questions
        ]

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """Every question of every image."""
        return LazySequence(self.asked(), _Ask(replies).request)

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """`images/<item_id>.png`, the four images in a grid; nothing else may lie there."""
        place = folder / "images"
        place.mkdir(parents=True, exist_ok=True)
        for i, item in enumerate(self.items):
            some = [replies.images[i * IMAGES + k]["image"] for k in range(IMAGES)]
            files.write_bytes(place / f"{item.name}.png", [images.encode_png(grid(some))])

    def imported(self, path: epath.Path, requests: Requests) -> list[Record]:
        """mPLUG's answers in `*_detail.txt`, that file or the one in the folder `path`. A question
        that is not answered there is "missing". Raises BadInput naming the line."""
        path = epath.Path(path)
        found = [path] if path.is_file() else sorted(path.glob(f"*{DETAIL}"))
        if len(found) != 1:
            raise BadInput(f"{path}: must hold one *{DETAIL}, has {len(found)}")
        by_name = {item.name: item for item in self.items}
        said = _answers(found[0], by_name)
        return [
            _record(one, said.get((one.item.name, one.k, one.question.text)))
            for one in self.asked()
            if one.question.id != one.item.unread
        ]


@dataclasses.dataclass(frozen=True)
class _Ask:
    """Makes a judge's requests about the images of replies."""

    replies: Replies

    def request(self, one: Asked) -> JudgeRequest:
        return JudgeRequest(
            id=one.id,
            category=one.question.broad,
            images=drawn.of(self.replies, one.place),
            text=one.question.text + SUFFIX,
            max_tokens=4,
            first_token=yes_no.FIRST_TOKENS,
            truth=one.truth,
        )


def grid(four: Sequence[np.ndarray]) -> np.ndarray:
    """Four images uint8 [H,W,3] of one size as [2H,2W,3], the second to the right of the first."""
    return np.concatenate([np.concatenate(four[i : i + 2], axis=1) for i in (0, 2)])


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> DpgBench:
    """The prompts of the file `data`, or of the one in that folder. Raises BadInput."""
    path = official_files.file(benchmark.data_folder("dpg_bench", data), FILE, f"dpg_bench/{FILE}")
    items = read(path, language)
    c = cfg.evaluate
    asked = benchmark.sampled(items, [one.prompt.category for one in items], c.limit, c.seed)
    return DpgBench(asked, Data(str(path), benchmark.sha256(path), len(asked), len(items)))


def _source(name: str) -> str:
    """Of an item: "partiprompts12" came from another collection than "diffusiondb3"."""
    return name.rstrip("0123456789") or "others"


def read(path: epath.Path, language: str = "") -> list[Item]:
    """The items of a file, in the order in which they first stand there. Raises BadInput.

    A proposition that stands twice in an item is the last one, as officially.
    """
    rows: dict[str, list[official_files.Row]] = {}
    first = None
    for row in official_tables.comma_separated(path, *COLUMNS):
        name = row.get("item_id", str)
        if "." in name or official_files.leads_out(name) or "/" in name:
            raise BadInput(f"{row.where}: 'item_id' {quoted(name)} cannot be a file's name")
        first = first or row
        rows.setdefault(name, []).append(row)
    prompts = path.parent / "prompts"
    found = []
    for id, (name, some) in enumerate(rows.items()):
        text = _prompt(prompts / f"{name}.txt", some[0]) if prompts.is_dir() else None
        text = text or some[0].get("text", str)
        questions = {q.id: q for q in map(_question, some)}
        unread = _question(first).id if some[0] is first else 0
        prompt = drawn.prompt(language, id, text, _source(name), some[0].where)
        found.append(Item(prompt, name, tuple(questions.values()), unread))
    return found


def _prompt(path: epath.Path, row: official_files.Row) -> str:
    if not path.is_file():
        raise BadInput(f"{row.where}: its prompt {path} is not there")
    return official_files.text(path).strip()


def _question(row: official_files.Row) -> Question:
    return Question(
        id=_number(row, "proposition_id", row.get("proposition_id", str)),
        parents=tuple(
            _number(row, "dependency", one) for one in row.get("dependency", str).split(",")
        ),
        category=row.get("tuple", str).split("(")[0].strip(),
        text=row.get("question_natural_language", str),
    )


def _number(row: official_files.Row, name: str, text: str) -> int:
    if not re.fullmatch(r"\s*[0-9]{1,9}\s*", text):
        raise BadInput(f"{row.where}: '{name}' is {quoted(text)}; it must hold whole numbers")
    return int(text)


# --------------------------------------------------------------------- the official tool's answers


def _answers(path: epath.Path, by_name: Mapping[str, Item]) -> dict[tuple[str, int, str], str]:
    """{(item, image of its grid, question): answer}."""
    found = {}
    for number, line in enumerate(official_files.text(path).splitlines(), 1):
        match = _ANSWER.fullmatch(line)
        item = match and by_name.get(match["path"].replace("\\", "/").split("/")[-1].split(".")[0])
        if not item or match["asked"] not in {q.text for q in item.questions}:
            raise BadInput(
                f"{path}, line {number}: {quoted(line)} is no answer about an image that is asked "
                "for: PATH/item_id.png, (x0, y0, x1, y1), question, answer"
            )
        k = (int(match["x"]) > 0) + 2 * (int(match["y"]) > 0)
        place = item.name, k, match["asked"]
        if found.setdefault(place, match["said"]) != match["said"]:
            raise BadInput(f"{path}, line {number}: answered otherwise than before: {quoted(line)}")
    return found


def _record(one: Asked, said: str | None) -> Record:
    status = "missing" if said is None else OK
    truth = one.truth | {"official": True}
    q = one.question
    return Record(one.id, q.broad, q.text, said or "", status, truth)


# ------------------------------------------------------------------------------ what it is worth


@dataclasses.dataclass(frozen=True)
class Image:
    """An image with its answers: 1 yes, 0 no, NaN none, by question; `scores`: with parents."""

    records: Sequence[Record]
    yes: Mapping[int, float]
    scores: Mapping[int, float]

    @property
    def mean(self) -> float:
        """Over its questions, in [0, 1]."""
        return sum(self.scores.values()) / len(self.scores)


def score(records: Sequence[Record]) -> Scored:
    """The official numbers of mPLUG's answers, or a proxy; native scale 0 to 100."""
    official = any("official" in r.truth for r in records)
    by_image: dict[str, list[Record]] = {}
    for r in records:
        by_image.setdefault(r.id.partition(":")[0], []).append(r)
    images = {id: _image(some) for id, some in by_image.items()}
    prompts: dict[str, list[Image]] = {}
    for id, one in images.items():
        prompts.setdefault(id.partition("-")[0], []).append(one)
    values = [sum(one.mean for one in some) / len(some) for some in prompts.values()]
    mark = "" if official else "proxy_"
    return Scored(
        n=len(records),
        failed=sum(math.isnan(x) for one in images.values() for x in one.yes.values()),
        as_released=_released(list(prompts.values())) if official else {},
        strict={f"{mark}dpg": metrics.mean(values, 100)},
        units=tuple(prompts),
        by_category=_by_category(list(images.values()), f"{mark}score"),
        items=tuple(
            {
                "id": id,
                "category": one.records[0].truth["source"],
                "value": one.mean,
                "reason": _reason(one),
            }
            for id, one in images.items()
        ),
        policy=POLICY if official else PROXY_POLICY,
    )


def _image(records: Sequence[Record]) -> Image:
    yes = {r.truth["question"]: _yes(r) for r in records}
    there = [
        dataclasses.replace(q, parents=tuple(i for i in q.parents if i in yes))
        for q in map(_asked_in, records)
    ]
    counted = {id: 0.0 if math.isnan(x) else x for id, x in yes.items()}
    return Image(records, yes, dpg.with_parents(there, counted))


def _yes(r: Record) -> float:
    if "official" in r.truth:
        return float(r.reply == "yes") if r.status == OK else math.nan
    share = yes_no.yes_share(r)
    return share if math.isnan(share) else float(share > 0.5)


def _asked_in(r: Record) -> Question:
    t = r.truth
    return Question(t["question"], tuple(t["parents"]), t["category"], r.asked)


def _released(prompts: Sequence[Sequence[Image]]) -> dict[str, float]:
    """As it is printed; a prompt that is not answered in full is left out."""
    whole = [
        dpg.Answered(tuple(map(_asked_in, some[0].records)), tuple(one.yes for one in some))
        for some in prompts
        if not any(math.isnan(x) for one in some for x in one.yes.values())
    ]
    return dpg.released(whole)


def _by_category(images: Sequence[Image], name: str) -> dict[str, dict[str, float]]:
    values: dict[str, list[float]] = {}
    for one in images:
        for r in one.records:
            values.setdefault(r.category, []).append(one.scores[r.truth["question"]])
    return {c: {"n": len(x), name: 100 * sum(x) / len(x)} for c, x in values.items()}


def _reason(image: Image) -> str:
    """The questions that were not answered yes."""
    told = []
    for r in image.records:
        yes = image.yes[r.truth["question"]]
        if yes != 1:
            asked = r.asked.removesuffix(SUFFIX)
            told.append(f"{asked} {'no answer' if math.isnan(yes) else 'no'}")
    return "; ".join(told)
