"""A folder of a benchmark's results: what was asked, what was said, what that is worth.

Owns its files. `settings.json`: the benchmark, its data, the judges, the models.
`generations.jsonl`: what each model was asked, and where its picture lies. `replies.jsonl`: the raw
words of models or judges, a `Record` a line. `official/`: what the official scorer reads.
`scores.json` is made from the settings and the replies alone, and may be made again without data,
model or judge.
"""

import dataclasses
import datetime
import json
import urllib.parse
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from etils import epath

from srum_jax.config import SampleConfig
from srum_jax.core import files
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import images, records
from srum_jax.evals import benchmark, benchmark_items
from srum_jax.evals.benchmark import Benchmark, Score, Told
from srum_jax.evals.suite import ModelOutputs, Record, Replies, Requests
from srum_jax.evals.suite_judges import SuiteJudge

SCHEMA = 1
SETTINGS, GENERATIONS = "settings.json", "generations.jsonl"
REPLIES, SCORES, OFFICIAL = "replies.jsonl", "scores.json", "official"


@dataclasses.dataclass(frozen=True)
class Asked:
    """How a benchmark was asked; JSON.

    suite: its name · told: what it says of itself · judges: {name: its revision and decoding}, the
    first one counts · models: {"model" or "against": which, of which revision} · drawing: settings
    of the sampler and seeds, where something is drawn · decoding: how the models' own words are
    found, where they answer · not_scored: why there are no scores, "" where there are · replies:
    how many lines `replies.jsonl` has of each model, once it is written.
    """

    suite: str
    told: Told
    judges: Mapping[str, Mapping[str, Any]]
    models: Mapping[str, Mapping[str, Any]]
    drawing: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    decoding: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    not_scored: str = ""
    replies: Mapping[str, int] = dataclasses.field(default_factory=dict)

    @classmethod
    def from_json(cls, value: Mapping[str, Any], where: str) -> "Asked":
        """Raises BadInput for what is no such thing."""
        try:
            found = cls(**{**value, "told": Told(**value["told"])})
            mappings = (found.told.about, found.told.data, found.told.settings, found.judges)
            mappings += (found.models, found.drawing, found.decoding, found.replies)
            typed = all(isinstance(one, dict) for one in (*mappings, *found.judges.values()))
            if not (typed and isinstance(found.suite, str)):
                raise TypeError("a field of another type")
            told = {**found.told.data, **found.told.about}
            if missing := [name for name in (*benchmark.TOLD, "n") if name not in told]:
                raise KeyError(*missing)
        except (TypeError, KeyError, AttributeError) as e:
            raise BadInput(f"{where}: not the settings of an evaluation ({e!r})") from e
        return found


def drawing(
    requests: Requests,
    drawn: SampleConfig,
    edited: SampleConfig,
    read: Sequence[str],
    seeds: Sequence[int],
    think_tokens: int = 0,
) -> dict[str, Any]:
    """What results say of the drawing: the sampler's settings of images and of edits, of which the
    model's family reads the fields `read` (its SAMPLER), the seeds, and, of a model that thinks
    first, its longest thought; {} where nothing is drawn."""
    found: dict[str, Any] = {}
    for name, settings in (("images", drawn), ("edits", edited)):
        if getattr(requests, name):
            values = {k: getattr(settings, k) for k in read if k != "batch"}  # changes nothing
            found[name] = {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    return {"seeds": list(seeds), **found, **_thinking(think_tokens)} if found else {}


def decoding(requests: Requests, think_tokens: int = 0) -> dict[str, Any]:
    """What results say of the model's own words; {} where it says none."""
    if not requests.texts:
        return {}
    most = max(r.max_tokens for r in requests.texts)
    return {"tokens": "the likeliest", "max_tokens": most, **_thinking(think_tokens)}


def _thinking(think_tokens: int) -> dict[str, int]:
    return {"think_tokens": think_tokens} if think_tokens else {}


def judges_told(
    panel: Iterable[SuiteJudge],
    before: Mapping[str, Mapping[str, Any]],
    outputs: Iterable[ModelOutputs],
) -> dict[str, dict[str, Any]]:
    """{judge: {"revision", "decoding", "date": of the first replies}}.

    before: the same of an earlier try, whose replies are kept · outputs: with all replies, of
    whichever host and try; "decoding" has "served", as what servers named the models that gave
    them.
    """
    served: dict[str, set[str]] = {}
    for one in outputs:
        for judge, said in one.replies.judged.items():
            served.setdefault(judge, set()).update(reply.served for reply in said)
    found = {one.name: {"revision": one.revision, "decoding": dict(one.decoding)} for one in panel}
    today = datetime.datetime.now(datetime.UTC).date().isoformat()
    for name, one in found.items():
        one["date"] = before.get(name, {}).get("date", today)
        if names := sorted(served.get(name, set()) - {""}):
            one["decoding"]["served"] = names
    return found


def same(folder: epath.Path, asked: Asked) -> Mapping[str, Mapping[str, Any]]:
    """Keeps how a folder's benchmark is asked, or refuses to mix it with what is there; returns the
    judges so far. Others may come later. Raises BadInput naming what differs.
    """
    path, wanted = folder / SETTINGS, json.loads(json.dumps(dataclasses.asdict(asked)))
    if path.is_file():
        there = files.read_object(path)
        for name in ("suite", "told", "models", "drawing", "decoding"):
            if there.get(name) != wanted[name]:
                raise BadInput(
                    f"{folder} holds an evaluation with {name} {quoted(there.get(name))}, not "
                    f"{quoted(wanted[name])}: name another folder with -o"
                )
        return there.get("judges") or {}
    files.write_json(path, wanted)
    return {}


def with_pictures_of(folder: epath.Path, imported: Asked) -> Asked:
    """How results were imported, with how the pictures in `folder` were drawn, where that drew them
    and asked nobody. Raises BadInput where it holds something else."""
    if not (folder / SETTINGS).is_file():
        return imported
    there = Asked.from_json(files.read_object(folder / SETTINGS), str(folder / SETTINGS))
    if _asked_of(there) != _asked_of(imported):
        raise BadInput(f"{folder} holds an evaluation of other data: name another folder with -o")
    if others := [name for name in there.judges if name not in imported.judges]:
        raise BadInput(f"{folder} holds what {others[0]} said: name another folder with -o")
    drew = {k: v for k, v in there.models.items() if k in imported.models}
    models = {k: {**drew.get(k, {}), **v} for k, v in imported.models.items()}
    alone = len(there.drawing.get("seeds", ())) == 1  # of several, one was imported
    drawing = there.drawing if drew and alone else {}
    return dataclasses.replace(imported, models=models, drawing=drawing)


def _asked_of(asked: Asked) -> tuple[str, dict[str, Any]]:
    """The benchmark and its data, wherever they lie."""
    return asked.suite, {k: v for k, v in asked.told.data.items() if k != "file"}


def write(
    folder: epath.Path,
    suite: Benchmark,
    outputs: Mapping[str, Mapping[int, ModelOutputs]],
    asked: Asked,
) -> dict[str, Any]:
    """Writes everything from what models and judges replied; returns the scores.

    outputs: by model and seed; its `verdicts` are records, as `Benchmark.verdicts` gives them.
    """
    folder.mkdir(parents=True, exist_ok=True)
    each = [
        (model, Seeded(model, seed, len(several) > 1), one)
        for model, several in outputs.items()
        for seed, one in several.items()
    ]
    write_lines(
        folder / GENERATIONS, (row for _, *one in each for row in generations(*one, folder))
    )
    by_model: dict[str, list[Record]] = {model: [] for model in outputs}
    for model, seeded, one in each:
        place = folder / OFFICIAL / seeded.official(suite.name)
        place.mkdir(parents=True, exist_ok=True)
        suite.official(place, one.requests, one.replies)
        by_model[model] += with_files(seeded, one)
    write_replies(folder, by_model, asked)
    return rescored(folder, suite.score)


@dataclasses.dataclass(frozen=True)
class Seeded:
    """A model and the seed of its noise; `several`: whether there are others."""

    model: str
    seed: int
    several: bool

    @property
    def folder(self) -> str:
        """Of its pictures and replies."""
        return f"{self.model}-seed-{self.seed}" if self.several else self.model

    def official(self, suite: str) -> str:
        """The folder under `official/`: of the one that is examined the suite's name."""
        name = suite if self.model == "model" else f"{suite}-{self.model}"
        return f"{name}-seed-{self.seed}" if self.several else name

    def picture(self, id: str) -> str:
        """Where the picture of a request lies, relative to the folder of results."""
        return f"pictures/{self.folder}/{urllib.parse.quote(id, safe='')}.png"


def with_files(seeded: Seeded, outputs: ModelOutputs) -> list[Record]:
    """A model's records; those that a judge said of one picture name its file."""
    places = benchmark_items.request_places(outputs.requests)
    found = []
    for one in outputs.verdicts:
        id = one.id if one.id in places else one.id.partition(":")[0]
        if one.judge and places.get(id, ("",))[0] in ("images", "edits"):
            one = dataclasses.replace(one, file=seeded.picture(id))
        found.append(dataclasses.replace(one, seed=seeded.seed) if seeded.several else one)
    return found


def write_replies(
    folder: epath.Path, by_model: Mapping[str, Sequence[Record]], asked: Asked
) -> None:
    """Writes the records of each model and how they came about."""
    write_lines(folder / REPLIES, reply_rows(by_model))
    counted = dataclasses.replace(asked, replies={k: len(some) for k, some in by_model.items()})
    files.write_json(folder / SETTINGS, dataclasses.asdict(counted))


def rescored(folder: epath.Path, score: Score) -> dict[str, Any]:
    """Makes `scores.json` from the settings and the replies of a folder, and returns it.

    Raises BadInput naming file and line for a folder that has none, or damaged ones.
    """
    asked, by_model = read(folder)
    found = {"schema": SCHEMA, "suite": asked.suite}
    about = {"judge": judge_of(asked), "which": dict(asked.models)}
    about |= {"drawing": dict(asked.drawing), "decoding": dict(asked.decoding)}
    if any(by_model.values()) and not asked.told.server:
        try:
            found |= benchmark.section(score, asked.told, by_model)
        # What others wrote into the files.
        except (LookupError, TypeError, AttributeError, ArithmeticError, ValueError) as e:
            raise BadInput(f"{folder / REPLIES}: cannot be scored ({e!r})") from e
    else:
        found |= {"data": dict(asked.told.data), "not_scored": asked.not_scored}
        if any(by_model.values()):
            found["replied"] = {name: replied(some) for name, some in by_model.items()}
    found |= {name: value for name, value in about.items() if value}
    files.write_json(folder / SCORES, found)
    return found


def replied(records: Sequence[Record]) -> dict[str, int]:
    """{"n", "failed"} of replies that nobody here can score: how many, and how many are empty."""
    return {"n": len(records), "failed": sum(r.status != benchmark.OK for r in records)}


def read(folder: epath.Path) -> tuple[Asked, dict[str, list[Record]]]:
    """How a folder's benchmark was asked, and the records of each model. Raises BadInput."""
    folder = epath.Path(folder)
    if not (folder / SETTINGS).is_file():
        raise BadInput(f"{folder}: holds no {SETTINGS}: it is no folder of `evaluate`")
    if not (folder / REPLIES).is_file():
        raise BadInput(
            f"{folder}: holds no {REPLIES}: that evaluation has not ended; give its command again"
        )
    path = folder / SETTINGS
    asked = Asked.from_json(files.read_object(path), str(path))
    by_model: dict[str, list[Record]] = {name: [] for name in asked.models}
    seen: set[tuple[str, str, str, int]] = set()
    for row in records.JsonLines(folder / REPLIES):
        where, value = f"{folder / REPLIES}, line {row.line}", row.value
        try:
            name = value.pop("model")
            one = Record(**value)
            texts = one.id, one.category, one.asked, one.reply, one.status, one.judge, one.file
            typed = all(isinstance(text, str) for text in (*texts, one.thought, *one.p))
            numbers = all(isinstance(share, int | float) for share in one.p.values())
            if not (typed and numbers and type(one.seed) is int):
                raise TypeError("a field of another type")
            by_model[name].append(one)
        except (AttributeError, TypeError, KeyError) as e:
            raise BadInput(f"{where}: not a reply of this evaluation: {quoted(row.text)}") from e
        if (name, one.judge, one.id, one.seed) in seen:
            raise BadInput(f"{where}: the reply to {quoted(one.id)} stands there twice")
        seen.add((name, one.judge, one.id, one.seed))
    for name, count in asked.replies.items():
        if name not in by_model or len(by_model[name]) != count:
            raise BadInput(
                f"{folder / REPLIES}: holds {len(by_model.get(name, ()))} replies of "
                f"{quoted(name)}, and {count} were written: give the evaluation's command again"
            )
    return asked, by_model


def reply_rows(by_model: Mapping[str, Iterable[Record]]) -> Iterator[dict[str, Any]]:
    """A line of `replies.jsonl` a record; what has its default is left out."""
    defaults = {f.name: f.default for f in dataclasses.fields(Record)} | {"p": {}}
    for name, several in by_model.items():
        for one in several:
            values = dataclasses.asdict(one)
            yield {"model": name} | {k: v for k, v in values.items() if v != defaults[k]}


def judge_of(asked: Asked) -> dict[str, Any]:
    """The judge that counts: {"name", "revision", …}; {} without one."""
    for name, one in asked.judges.items():
        return {"name": name, **one}
    return {}


def generations(
    seeded: Seeded, outputs: ModelOutputs, folder: epath.Path
) -> Iterator[dict[str, Any]]:
    """A line of `generations.jsonl` a request; pictures are written under `pictures/`."""
    said, requests, model = outputs.replies, outputs.requests, {"model": seeded.model}
    for i, (request, drawn) in enumerate(zip(requests.images, said.images, strict=True)):
        path = _picture(folder / seeded.picture(request.id), drawn["image"], folder)
        row = {"id": request.id, "category": request.prompt.category, "asked": request.prompt.text}
        row |= {"k": request.k, "seed": int(drawn["seed"]), "file": path}
        yield {**model, **row, **_thought(said, "images", i)}
    for i, (request, edited) in enumerate(zip(requests.edits, said.edits, strict=True)):
        path = _picture(folder / seeded.picture(request.id), edited, folder)
        row = {"id": request.id, "category": request.category, "asked": request.instruction}
        yield {**model, **row, "seed": request.seed, "file": path, **_thought(said, "edits", i)}
    for one in outputs.verdicts if requests.texts or requests.answers else ():
        yield {**model, "id": one.id, "category": one.category, "asked": one.asked}


def _thought(said: Replies, kind: str, place: int) -> dict[str, str]:
    """What the model thought before a picture, where it thinks first."""
    return {"thought": said.thoughts[kind][place]} if kind in said.thoughts else {}


def _picture(path: epath.Path, pixels: Any, folder: epath.Path) -> str:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_bytes(path, [images.encode_png(pixels)])
    return str(path.relative_to(folder))


def write_lines(path: epath.Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """A JSON object a line; the file is whole or absent."""
    files.write_bytes(path, ((json.dumps(r, ensure_ascii=False) + "\n").encode() for r in rows))
