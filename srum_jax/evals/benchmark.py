"""A suite over a benchmark's official data files: what all of them share.

Owns what a benchmark says of itself, how its items are sampled, how replies become records and
records a section of results. A benchmark is one module of `evals/suites/` with

  ABOUT                     an `About`
  score(records) -> Scored  a pure function of the records of one model (and one judge)
  make(cfg, data, language) the `Benchmark`, its official files read; BadInput names file and line

and one line in `core/registry.py`. Scores are a function of records alone, so that they can be made
again without the data and without a model.
"""

import collections
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar

import numpy as np
from etils import epath

from srum_jax.core import places, registry
from srum_jax.core.errors import BadInput
from srum_jax.evals import agreement, benchmark_items, stats
from srum_jax.evals.scorers import metrics
from srum_jax.evals.suite import (
    Findings,
    Metric,
    ModelOutputs,
    Record,
    Replies,
    Requests,
    Scored,
    Suite,
)

Item = TypeVar("Item")
REFERENCES = ("base", "against")  # models that others are compared with
LISTED = 1000  # items that are kept to look at; all are in replies.jsonl
TOLD = ("title", "dialect", "unit", "best")  # of a benchmark, in every section
EMPTY, UNFINISHED, OK = "empty", "unfinished thought", "ok"  # of a reply


@dataclasses.dataclass(frozen=True)
class About:
    """What a benchmark says of itself.

    title: its name · needs: what its data must hold · licence: a note on code and data · dialect:
    whose rules `as_released` follows · unit: what n counts · best: the highest value of the metric
    that models are compared by · judge: the judge it needs: "" none, "optional" (without one it
    draws and waits for the official tool's results), "words", or "first token" (of which a judge
    must give probabilities).
    """

    title: str
    needs: str
    licence: str
    dialect: str
    unit: str = "questions"
    best: float = 1.0
    judge: Literal["", "optional", "words", "first token"] = ""


@dataclasses.dataclass(frozen=True)
class Data:
    """The official files that were read: their path, a hash of their content, how many items are
    asked of how many, and which variant of the prompts they hold ("" where there is one)."""

    file: str
    sha256: str
    n: int
    total: int
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class LazySequence(collections.abc.Sequence):
    """`make` of each item, when it is looked at: pictures of files, for instance, as those of all
    requests would fill the memory."""

    items: Sequence[Any]
    make: Callable[[Any], Any]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self.make(item) for item in self.items[index]]
        return self.make(self.items[index])

    def __iter__(self) -> Iterator[Any]:
        return map(self.make, self.items)


class Benchmark(Suite):
    """A suite whose requests come from official files; `score` is its module's function.

    about, data: what is said of it and what was read · settings: of its own beside those of the
    run (frames of a clip, options of a prompt), told in results · think_named: whether the official
    program's results say by their names that the model thought first · server: who has the answers
    of a split that is published without them, "" where they are in the files. Without them there is
    no score: `official` writes what is to be submitted.
    """

    about: About
    data: Data
    settings: Mapping[str, Any] = {}
    think_named = False
    server: str = ""

    @property
    def judged(self) -> bool:
        """Whether a judge may be asked."""
        return bool(self.about.judge)

    @property
    def digest(self) -> str:
        """Of the files, and of what is asked of them."""
        return f"{self.data.sha256[:16]} {self.data.n} {self.data.variant}"

    def score(self, records: Sequence[Record]) -> Scored:
        """What the records of one model, by one judge, are worth. A pure function."""
        raise NotImplementedError

    def official(self, folder: epath.Path, requests: Requests, replies: Replies) -> None:
        """Writes what the official scorer reads into `folder`, which is there and may hold an
        earlier try's files."""
        raise NotImplementedError

    def imported(self, path: epath.Path, requests: Requests) -> list[Record]:
        """Records of the official tool's results file. Raises BadInput naming file and line."""
        raise BadInput(f"{self.name} has no results file to import: it scores replies itself")

    @property
    def dialect_imported(self) -> str:
        """Whose rules hold where the official tool's results are read."""
        return self.about.dialect

    def records(self, requests: Requests, replies: Replies) -> list[Record]:
        """Every reply with what scoring needs: a judge's where there is one, else the model's."""
        if replies.judged:
            asked = self.judge_requests(requests, replies)
            return [
                Record(
                    *(r.id, r.category, r.text, said.text, said.status, r.truth, dict(said.p)),
                    judge=judge,
                    file=r.file,
                )
                for judge, all_said in replies.judged.items()
                for r, said in zip(asked, all_said, strict=True)
            ]
        thoughts = replies.thoughts.get("texts") or [""] * len(replies.texts)
        answered = zip(requests.answers, replies.answers, [""] * len(replies.answers), strict=True)
        written = zip(requests.texts, replies.texts, thoughts, strict=True)
        return [
            Record(
                id=request.id,
                category=request.category,
                asked=getattr(request, "instruction", None) or request.question,
                reply=said,
                status=UNFINISHED if thought is None else OK if said.strip() else EMPTY,
                truth=request.truth,
                thought=thought or "",
            )
            for request, said, thought in (*answered, *written)
        ]

    def verdicts(self, requests: Requests, replies: Replies) -> list[Record]:
        """The records: what they are worth is found where all models' are there."""
        return self.records(requests, replies)

    @property
    def measured_by(self) -> dict[str, tuple[str, ...]]:
        """One metric, under the benchmark's own name; none where the answers are a server's."""
        return {} if self.server else {self.name: ()}

    def metrics(self, outputs: ModelOutputs) -> dict[str, Metric]:
        """The metric that models are compared by, of the first judge, as a share of its best."""
        if self.server or not outputs.verdicts:
            return {}
        first = next(
            iter(self.score(benchmark_items.first_judge(outputs.verdicts)).strict.values()), None
        )
        return {self.name: metrics.scaled(first, 1 / self.about.best)} if first else {}

    def findings(self, outputs: Mapping[str, ModelOutputs]) -> Findings:
        """The section, and items to look at."""
        records = {name: one.verdicts for name, one in outputs.items()}
        if self.server or not any(records.values()):
            return Findings({})
        found = section(self.score, Told.of(self), records)
        rows = benchmark_items.rows(self.score, outputs)
        return Findings(
            found,
            details={"items": {self.name: rows[:LISTED]}} if rows else {},
            examples=benchmark_items.shown(self.name, rows, outputs),
        )


# ----------------------------------------------------------------------------------- what is asked


def sampled(
    items: Sequence[Item], categories: Sequence[Hashable], limit: int, seed: int
) -> list[Item]:
    """`limit` of the items, evenly over their categories, in the order of the file; 0: all.

    Every category gives as many as the others while it has some. The choice is a function of the
    seed and the items' places.
    """
    if not limit or limit >= len(items):
        return list(items)
    order = np.random.default_rng(seed).permutation(len(items))
    turns: collections.Counter = collections.Counter()
    places = {name: i for i, name in enumerate(dict.fromkeys(categories))}
    ranked = []
    for i in order:
        ranked.append((turns[categories[i]], places[categories[i]], int(i)))
        turns[categories[i]] += 1
    return [items[i] for i in sorted(i for *_, i in sorted(ranked)[:limit])]


def data_folder(suite: str, data: str) -> epath.Path:
    """Where a benchmark's official files lie: the path that a person gave, or, for a world's name,
    a folder into which that world writes its own in the benchmark's form.

    Raises BadInput for a path that names nothing.
    """
    if not data:
        raise BadInput(f'evaluate.suites: say where its files lie: "{suite}:PATH"')
    if data not in registry.WORLDS:
        path = places.place(data, f"the data of {suite}")
        if not path.exists():
            raise BadInput(f"the data of {suite}: {path}: no such file or folder")
        return path
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    folder = pathlib.Path(cache, "srum_jax", "benchmarks", data, suite)
    registry.load(registry.WORLDS, data).write_benchmark(suite, folder)
    return epath.Path(folder)


def sha256(*paths: epath.PathLike) -> str:
    """Of the content of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with epath.Path(path).open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return digest.hexdigest()


# ------------------------------------------------------------------------------- what it is worth


@dataclasses.dataclass(frozen=True)
class Told:
    """What a section says of a benchmark beside its numbers; JSON, as `scores.json` has it.

    about, data: fields of `About` and `Data` · settings: of the benchmark's own (`Benchmark`), and
    its "server", where the answers are that one's.
    """

    about: Mapping[str, Any]
    data: Mapping[str, Any]
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @classmethod
    def of(cls, suite: Benchmark) -> "Told":
        """Of a benchmark whose files were read."""
        settings = {**suite.settings, **({"server": suite.server} if suite.server else {})}
        return cls(dataclasses.asdict(suite.about), dataclasses.asdict(suite.data), settings)

    @property
    def server(self) -> str:
        """As `Benchmark.server`."""
        return str(self.settings.get("server", ""))


Score = Callable[[Sequence[Record]], Scored]  # of a benchmark's module


def section(score: Score, told: Told, records: Mapping[str, Sequence[Record]]) -> dict[str, Any]:
    """What `results.json` and `scores.json` say: every model's numbers with intervals, and the
    models' difference. With several judges the first counts, and "judges" has what each gives.

    records: by model, of all judges.
    """
    judges = dict.fromkeys(r.judge for several in records.values() for r in several)
    by_judge = {
        judge: compared(
            {
                name: of_seeds(score, [r for r in several if r.judge == judge])
                for name, several in records.items()
            }
        )
        for judge in judges
    }
    found = {name: told.about[name] for name in TOLD}
    found["data"] = {name: value for name, value in told.data.items() if value != ""}
    if told.settings:
        found["settings"] = dict(told.settings)
    found |= next(iter(by_judge.values()), {})
    if judge := next(iter(judges), ""):
        found["judge"] = {"name": judge}
    if len(by_judge) > 1:
        found |= {"judges": by_judge, "agreement": agreements(score, records)}
    return found


def of_seeds(score: Score, records: Sequence[Record]) -> Scored:
    """What records are worth; of several seeds the mean, unit by unit: an interval over prompts
    then holds what the noise changes in them. Official numbers are means over the seeds."""
    seeds = sorted({r.seed for r in records})
    several = {seed: score([r for r in records if r.seed == seed]) for seed in seeds}
    if len(several) <= 1:
        return score(records)
    first, *others = several.values()
    if any(one.units != first.units for one in others):
        raise ValueError(f"seeds {seeds} were not asked the same")
    strict = {
        name: Metric(np.mean([s.strict[name].columns for s in several.values()], axis=0), one.value)
        for name, one in first.strict.items()
    }
    return dataclasses.replace(
        first,
        n=sum(one.n for one in several.values()),
        failed=sum(one.failed for one in several.values()),
        as_released=_means([one.as_released for one in several.values()]),
        strict=strict,
        by_category={
            name: _means([one.by_category.get(name, {}) for one in several.values()])
            for name in first.by_category
        },
        items=tuple(
            {**item, "id": f"{item['id']}, seed {seed}"}
            for seed, one in several.items()
            for item in one.items
        ),
        seeds={
            str(seed): _defined({name: metric.number for name, metric in one.strict.items()})
            for seed, one in several.items()
        },
    )


def _means(several: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """The mean of each number that all have."""
    return {
        name: float(np.mean([one[name] for one in several]))
        for name in several[0]
        if all(name in one for one in several)
    }


def agreements(score: Score, records: Mapping[str, Sequence[Record]]) -> list[dict[str, Any]]:
    """How far the judge that counts agrees with each other one, over the items of all models."""
    worth: dict[str, dict[tuple[str, str], float]] = {}
    for name, several in records.items():
        for judge in dict.fromkeys(r.judge for r in several):
            items = of_seeds(score, [r for r in several if r.judge == judge]).items
            worth.setdefault(judge, {}).update(
                {(name, x["id"]): benchmark_items.worth(x) for x in items}
            )
    first, *others = worth
    found = []
    for other in others:
        keys = [key for key in worth[first] if key in worth[other]]
        one = agreement.agreement(*([worth[who][key] for key in keys] for who in (first, other)))
        numbers = {k: v for k, v in dataclasses.asdict(one).items() if v is not None}
        found.append({"judges": [first, other], **numbers})
    return found


def compared(scored: Mapping[str, Scored]) -> dict[str, Any]:
    """{"metric", "policy", "models", "paired"} of models that were asked the same.

    The difference is that of the other model and the REFERENCE, the same units of both. Raises
    ValueError where they were not asked the same.
    """
    first, *others = scored.values()
    if any(one.units != first.units for one in others):
        raise ValueError(f"{' and '.join(scored)} were not asked the same")
    metric = next(iter(first.strict), "")
    found: dict[str, Any] = {
        "metric": metric,
        "policy": first.policy,
        "models": {name: model_numbers(one) for name, one in scored.items()},
    }
    reference = next((name for name in scored if name in REFERENCES), "")
    examined = next((name for name in scored if name not in REFERENCES), "")
    if reference and examined and metric in scored[examined].strict:
        difference = paired(*(scored[name].strict[metric] for name in (reference, examined)))
        if difference:
            of = {"metric": metric, "of": [examined, reference], "n": len(first.units)}
            found["paired"] = of | difference
    return {key: value for key, value in found.items() if value != ""}


def model_numbers(scored: Scored) -> dict[str, Any]:
    """One model's part of a section; a number that is not defined is absent."""
    strict = {name: metric.number for name, metric in scored.strict.items()}
    intervals = {name: interval(metric) for name, metric in scored.strict.items()}
    return {
        "n": scored.n,
        "failed": scored.failed,
        "as_released": _defined(scored.as_released),
        "strict": _defined(strict),
        "ci95": {name: list(one) for name, one in intervals.items() if one},
        "by_category": {name: _defined(one) for name, one in scored.by_category.items()},
        **({"seeds": dict(scored.seeds)} if scored.seeds else {}),
    }


def interval(metric: Metric) -> tuple[float, float] | None:
    """The metric's 95 % interval; None where it is not defined.

    Of a share it is Wilson's, which knows that all of ten is not all; of anything else the
    bootstrap's, the units drawn anew.
    """
    if not len(metric.columns):
        return None
    if isinstance(metric.value, metrics.Ratio) and _is_share(metric.columns):
        right, n = metric.columns.sum(axis=0)
        lo, hi = stats.wilson(int(right), int(n))
        return metric.value.scale * lo, metric.value.scale * hi
    return stats.percentiles(metric.value(stats.resampled_sums(metric.columns)))


def _is_share(columns: np.ndarray) -> bool:
    """Whether every unit counts once or not at all, and is right or wrong."""
    of_two = columns.shape[1] == 2 and np.isin(columns, (0, 1)).all()
    return bool(of_two and (columns[:, 0] <= columns[:, 1]).all() and columns[:, 1].any())


def paired(first: Metric, second: Metric) -> dict[str, Any]:
    """{"diff": second minus first, "ci95"}, the same units of both drawn; {} if not defined."""
    if not len(first.columns):
        return {}
    width = first.columns.shape[1]
    sums = stats.resampled_sums(np.concatenate([first.columns, second.columns], axis=1))
    diff = second.number - first.number
    found = stats.percentiles(second.value(sums[:, width:]) - first.value(sums[:, :width]))
    return {"diff": diff, "ci95": list(found)} if found and not np.isnan(diff) else {}


def _defined(numbers: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in numbers.items() if value == value and value is not None}
