"""GEdit-Bench: edits that users asked for, in English and in Chinese, marked by a judge.

Liu et al., "Step1X-Edit" (arXiv 2504.17761). A judge is asked twice about an edit: about both
pictures, whether what was asked for is there and nothing else changed (semantic consistency, SC),
and about the edited one alone, whether it looks natural and clean (perceptual quality, PQ). The
lower of two marks counts, the overall mark is the root of SC times PQ, and a language's result is
the plain mean over eleven groups. `as_released` leaves out what the official program never scores,
as that does with pictures that are missing; `strict` counts it 0. The judge's questions are our own
words unless the data folder holds `judge_prompts.json`.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from etils import epath

from srum_jax.config import Config
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.evals import benchmark, edited, official_files, official_tables
from srum_jax.evals.benchmark import OK, About, Benchmark, Data, LazySequence
from srum_jax.evals.edited import Edit, Pair
from srum_jax.evals.official_files import Row
from srum_jax.evals.scorers import gedit, metrics
from srum_jax.evals.suite import JudgeRequest, Metric, Record, Replies, Requests, Scored

ABOUT = About(
    title="GEdit-Bench, edits that users asked for",
    needs="a folder with the data set's Parquet files (in it or in data/), or with metadata.jsonl "
    "of the same fields and the pictures that it names; judge_prompts.json in it, an object of the "
    'texts "SC" (with <instruction>) and "PQ", replaces our wording of what a judge is asked',
    licence="Apache-2.0 (code); the data set's own terms for pictures",
    dialect="VIEScore as Step1X-Edit has it, means over groups",
    unit="edits",
    best=gedit.HIGHEST,
    judge="words",
)
LINES, PROMPTS = "metadata.jsonl", "judge_prompts.json"
COLUMNS = ("task_type", "key", "instruction", "instruction_language", "Intersection_exist")
GIVEN, BEFORE = "input_image_raw", "input_image"  # to the model; what the judge compares with
ASPECTS = ("SC", "PQ")
MAX_TOKENS = 512
OWN_WORDING = {
    "SC": (
        "You mark how well a picture was edited. The first picture is the original, the second one "
        "is what an editor made of it. The editor was told: <instruction>\n"
        "Give two marks from 0 to 10. The first: how much of what was asked for is done, 0 if "
        "nothing, 10 if all of it. The second: how well everything else was left as it was, 0 if "
        "the second picture is a different one, 10 if only what was asked for has changed.\n"
        'Reply with a JSON object alone: {"score": [first mark, second mark], "reasoning": "why, '
        'in a sentence or two"}'
    ),
    "PQ": (
        "You mark how well a picture is made, whatever it shows. It was made by a program.\n"
        "Give two marks from 0 to 10. The first: how natural it looks, 0 if light, shadows, sizes "
        "and distances are wrong all over, 10 if nothing looks wrong. The second: how clean it is, "
        "0 if it is full of faults such as distorted parts, blur, seams, wrong faces or hands, 10 "
        "if there is none.\n"
        'Reply with a JSON object alone: {"score": [first mark, second mark], "reasoning": "why, '
        'in a sentence or two"}'
    ),
}
POLICY = (
    "an edit counts 0 unless both replies give two marks from 0 to 10; groups that nothing was "
    "asked of are left out of the mean"
)


@dataclasses.dataclass(frozen=True)
class Question:
    """One of the two questions about an edit."""

    id: str
    pair: Pair
    aspect: str


@dataclasses.dataclass(frozen=True)
class Gedit(Benchmark):
    """edits: those that are made · texts: what a judge is asked, by aspect · seed: of the noise."""

    edits: Sequence[Edit]
    texts: Mapping[str, str]
    data: Data
    about: About
    seed: int
    name = "gedit"

    def requests(self, model: str) -> Requests:
        """Every edit once."""
        return edited.requests(self.edits, self.seed)

    def judge_requests(self, requests: Requests, replies: Replies) -> Sequence[JudgeRequest]:
        """Both questions about every edit."""
        asked = [
            Question(f"{pair.edit.id}:{aspect}", pair, aspect)
            for pair in edited.pairs(self.edits, replies)
            for aspect in ASPECTS
        ]
        return LazySequence(asked, self._request)

    def _request(self, q: Question) -> JudgeRequest:
        edit = q.pair.edit
        return JudgeRequest(
            id=q.id,
            category=edit.category,
            images=q.pair.both() if q.aspect == "SC" else q.pair.only_after(),
            text=self.texts[q.aspect].replace("<instruction>", edit.instruction),
            max_tokens=MAX_TOKENS,
            truth={
                "edit": edit.id,
                "aspect": q.aspect,
                "language": edit.language,
                "intersection": edit.flag,
            },
        )

    def score(self, records: Sequence[Record]) -> Scored:
        """See `score`."""
        return score(records)

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """fullset/<task type>/<language>/<key>.png, and <key>_SRCIMG.png, the picture before."""
        for pair in edited.pairs(self.edits, replies):
            edit = pair.edit
            place = folder / "fullset" / edit.category / edit.language
            edited.write(place / f"{edit.key}.png", replies.edits[pair.place])
            edited.write(place / f"{edit.key}_SRCIMG.png", pair.before())


# -------------------------------------------------------------------------------------- reading


def make(cfg: Config, data: str, language: str) -> Gedit:
    """The edits of the folder `data`. Raises BadInput naming file, row and field."""
    folder = benchmark.data_folder("gedit", data)
    paths = _files(folder)
    edits = read(paths, language)
    c = cfg.evaluate
    groups = [(edit.category, edit.language) for edit in edits]
    asked = benchmark.sampled(edits, groups, c.limit, c.seed)
    texts, wording = judge_texts(folder)
    about = dataclasses.replace(ABOUT, dialect=f"{ABOUT.dialect}; judge asked in {wording}")
    digest = benchmark.sha256(*paths)
    return Gedit(
        asked, texts, Data(str(folder), digest, len(asked), len(edits), wording), about, c.seed
    )


def _files(folder: epath.Path) -> list[epath.Path]:
    if folder.is_file():
        return [folder]
    for place in (folder, folder / "data"):
        if found := sorted(place.glob("*.parquet")) if place.is_dir() else []:
            return [epath.Path(one) for one in found]
    return [official_files.file(folder, LINES)]


def judge_texts(folder: epath.Path) -> tuple[Mapping[str, str], str]:
    """What a judge is asked, and whose words these are: those of `judge_prompts.json` in the
    folder, or our own. Raises BadInput."""
    path = (folder.parent if folder.is_file() else folder) / PROMPTS
    if not path.is_file():
        return OWN_WORDING, "our own words"
    row = Row(files.read_object(path), str(path))
    texts = {aspect: row.get(aspect, str) for aspect in ASPECTS}
    if "<instruction>" not in texts["SC"]:
        raise BadInput(f'{path}: "SC" holds no <instruction>, in whose place the instruction comes')
    return texts, f"the words of {PROMPTS} {benchmark.sha256(path)[:8]}"


def read(paths: Sequence[epath.Path], language: str = "") -> list[Edit]:
    """The edits of Parquet files or of one with JSON lines; language: that the model reads.

    Raises BadInput.
    """
    rows, edits = [], []
    for path in paths:
        if path.suffix == ".parquet":
            some = official_tables.parquet(path, *COLUMNS)
            pictures = [_cells(path, place) for place in range(len(some))]
        else:
            some = official_files.json_lines(path)
            pictures = _pictures(path, some)
        rows += some
        edits += [_edit(row, *two, language) for row, two in zip(some, pictures, strict=True)]
    official_files.distinct([edit.id for edit in edits], rows, "the edit")
    return edits


def _cells(path: epath.Path, place: int) -> tuple[edited.Picture, edited.Picture]:
    given, before = (official_tables.Cell(path, place, column) for column in (GIVEN, BEFORE))
    return given, before


def _pictures(path: epath.Path, rows: Sequence[Row]) -> list[tuple[edited.File, edited.File]]:
    """The picture that a model is given and the one before; one name may stand for both."""
    before = [row.get(BEFORE, str) for row in rows]
    given = [row.get(GIVEN, str, name) for row, name in zip(rows, before, strict=True)]
    several = (official_files.pictures(path, names, rows, "images") for names in (given, before))
    return [(edited.File(a), edited.File(b)) for a, b in zip(*several, strict=True)]


def _edit(row: Row, given: edited.Picture, before: edited.Picture, language: str) -> Edit:
    group = row.choice("task_type", gedit.GROUPS)
    spoken = row.choice("instruction_language", gedit.LANGUAGES)
    key = row.get("key", str)
    if official_files.leads_out(key) or "/" in key:
        raise BadInput(f'{row.where}: "key" is no name of a file: {key!r}')
    return Edit(
        id=f"{spoken}-{group}-{key}",
        category=group,
        key=key,
        instruction=edited.readable(language, row.get("instruction", str), row.where),
        source=given,
        before=before,
        language=spoken,
        flag=row.get("Intersection_exist", bool),
    )


# ------------------------------------------------------------------------------ what it is worth


@dataclasses.dataclass(frozen=True)
class Marked:
    """An edit with both replies about it, "" for one that is missing, and its marks."""

    id: str
    group: str
    language: str
    intersection: bool
    replies: tuple[str, str]
    lost: str = ""  # why a reply is missing

    @property
    def released(self) -> gedit.Marks:
        """By the official code."""
        return gedit.Marks(status=self.lost) if self.lost else gedit.viescore(*self.replies)

    @property
    def strict(self) -> gedit.Marks:
        """By a strict reader."""
        return gedit.Marks(status=self.lost) if self.lost else gedit.strict_marks(*self.replies)


def score(records: Sequence[Record]) -> Scored:
    """Means of marks over groups for each language, and over the edits that all models of the
    paper made ("intersection"); all from 0 to 10."""
    edits = _edits(records)
    released, strict = ([getattr(e, name) for e in edits] for name in ("released", "strict"))
    spoken = [name for name in gedit.LANGUAGES if any(e.language == name for e in edits)]
    metrics_by_name: dict[str, Metric] = {}
    for field in ("overall", "semantics", "quality"):
        for name in spoken:
            metrics_by_name[f"{field}_{name}"] = _of_language(edits, strict, name, field)
    return Scored(
        n=len(edits),
        failed=sum(marks.status != gedit.OK for marks in strict),
        as_released=_as_released(edits, released, spoken),
        strict=metrics_by_name,
        units=tuple(e.id for e in edits),
        by_category=_by_group(edits, strict),
        items=tuple(
            {"id": e.id, "category": e.group, "value": _or_zero(m.overall), "reason": _reason(e, m)}
            for e, m in zip(edits, strict, strict=True)
        ),
        policy=POLICY,
    )


def _edits(records: Sequence[Record]) -> list[Marked]:
    about: dict[str, dict[str, Record]] = {}
    for r in records:
        match r.truth:
            case {
                "edit": str(id),
                "aspect": "SC" | "PQ" as aspect,
                "language": _,
                "intersection": _,
            }:
                about.setdefault(id, {})[aspect] = r
            case _:
                raise BadInput(f"{r.id} is not about an edit of GEdit: {quoted(r.truth)}")
    found = []
    for id, both in about.items():
        some = [both.get(aspect) for aspect in ASPECTS]
        lost = [
            f"no reply about {aspect}: {r.status if r else 'not asked'}"
            for aspect, r in zip(ASPECTS, some, strict=True)
            if r is None or r.status != OK
        ]
        one = next(iter(both.values()))
        said = tuple(r.reply if r else "" for r in some)
        language, intersection = one.truth["language"], one.truth["intersection"]
        found.append(Marked(id, one.category, language, intersection, said, "; ".join(lost)))
    return found


def _of_language(
    edits: Sequence[Marked], marks: Sequence[gedit.Marks], language: str, field: str
) -> Metric:
    values = [
        _or_zero(getattr(m, field)) if e.language == language else math.nan
        for e, m in zip(edits, marks, strict=True)
    ]
    return metrics.mean_of_groups(values, [e.group for e in edits])


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value


def _as_released(
    edits: Sequence[Marked], released: Sequence[gedit.Marks], languages: Sequence[str]
) -> dict[str, float]:
    """G_SC, G_PQ and G_O of each language, of all edits and of the intersection, lmms-eval's mean
    over edits, and how many edits are scored: the others are left out."""
    found = {}
    for language in languages:
        scored = [
            (e, m)
            for e, m in zip(edits, released, strict=True)
            if e.language == language and m.status == gedit.OK
        ]
        shared = [(e, m) for e, m in scored if e.intersection]
        for suffix, some in (("", scored), ("_intersection", shared)):
            means = gedit.group_means([m for _, m in some], [e.group for e, _ in some])
            for name, field in (("G_SC", "semantics"), ("G_PQ", "quality"), ("G_O", "overall")):
                found[f"{name}_{language}{suffix}"] = means[field][f"avg_{field}"]
        found[f"sample_mean_{language}"] = gedit.sample_mean([m for _, m in scored])
        found[f"scored_{language}"] = len(scored)
    return found


def _by_group(
    edits: Sequence[Marked], strict: Sequence[gedit.Marks]
) -> dict[str, dict[str, float]]:
    found: dict[str, dict[str, float]] = {}
    for group in gedit.GROUPS:
        values: dict[str, list[float]] = {}
        for e, m in zip(edits, strict, strict=True):
            if e.group == group:
                values.setdefault(e.language, []).append(_or_zero(m.overall))
        if values:
            found[group] = {"n": sum(map(len, values.values()))}
            found[group] |= {f"overall_{name}": sum(v) / len(v) for name, v in values.items()}
    return found


def _reason(edit: Marked, marks: gedit.Marks) -> str:
    if marks.status != gedit.OK:
        return marks.status
    said = gedit.parse(edit.replies[0])
    why = said.get("reasoning", "") if isinstance(said, dict) else ""
    return f"SC {marks.semantics:g}, PQ {marks.quality:g} of 10. {why}".strip()
