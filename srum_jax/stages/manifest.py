"""What a stage leaves behind: its folder, its manifest, its lines in results.json.

A manifest is written last, so its presence says the stage is finished. `started.json` is written
first and says for which config and inputs the half-done files in the folder were made. results.json
repeats what the manifests of all rounds say, so it can be made again from them.
"""

import contextlib
import dataclasses
import itertools
import os
import platform
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

import srum_jax
from srum_jax import config_history
from srum_jax.config import STAGES, Config, hash_json, section_hash, section_values
from srum_jax.core import digests, files, memory
from srum_jax.core.distributed import barrier, check_same
from srum_jax.core.errors import BadInput
from srum_jax.core.files import read_object, write_json
from srum_jax.data import shards

RESULTS_SCHEMA = 1
PUBLISHED = "published"  # the proposer of regions that came with their scores
ALL_SECTIONS = tuple(f.name for f in dataclasses.fields(Config))


@dataclasses.dataclass(frozen=True)
class Workdir:
    """The folder of a run in one of its rounds.

    `allow_config_change`: a stage whose config or inputs changed goes on with the files it has
    instead of refusing. `config_file`: where the config came from, for results.json.
    """

    root: epath.Path
    round: int = 0
    allow_config_change: bool = False
    config_file: str = ""

    def __post_init__(self):
        object.__setattr__(self, "root", epath.Path(self.root))

    def stage(self, name: str) -> epath.Path:
        """The folder of a stage of this round (it may not exist yet)."""
        return self.root / f"round{self.round}" / name

    @property
    def results(self) -> epath.Path:
        """The run's results, rewritten at the end of each stage."""
        return self.root / "results.json"

    @property
    def report(self) -> epath.Path:
        """The page that the stage `report` writes."""
        return self.root / "report.html"


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What the body of a stage says about its work; times and rates are measured around it."""

    outputs: Mapping[str, str]  # name -> path relative to the stage's folder
    counts: Mapping[str, int]
    items: int  # what the rate counts: images, steps, questions
    compile_seconds: float = 0.0
    device_seconds: float | None = None  # in which devices had work; None: not measured
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)  # see `Manifest`


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A finished stage.

    sections: the config parts it read, by dotted name · results: its parts of the round in
    results.json, each added to what earlier stages have under that name.
    """

    stage: str
    config_hash: str
    sections: Mapping[str, Any]
    inputs: Mapping[str, str]  # name -> hash
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    counts: Mapping[str, int]
    # results.json's "stages" entry, and how many "starts" it took. Seconds are of all of them but
    # those that were killed, the rest is of the last one.
    timing: Mapping[str, float]
    allowed_changes: tuple[str, ...] = ()  # config changes let through while it was made
    results: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def hash(self) -> str:
        """What a later stage records as the hash of this input."""
        return hash_json([self.stage, self.config_hash, dict(self.inputs), self.allowed_changes])

    @classmethod
    def read(cls, folder: epath.PathLike) -> "Manifest":
        """The manifest in a stage's folder.

        Raises FileNotFoundError or ValueError naming the file, the field and what to do.
        """
        path = epath.Path(folder) / "manifest.json"
        if not path.exists():
            raise FileNotFoundError(
                f"{path}: missing, so this stage is not finished; run it first "
                f"(--stage {path.parent.name})"
            )
        again = f"run the stage again (--stage {path.parent.name})"
        try:
            values = read_object(path)
        except ValueError as e:
            raise ValueError(f"{e}; {again}") from e
        fields = [field.name for field in dataclasses.fields(cls)]
        wrong = [f"unknown {name}" for name in values if name not in fields]
        for name in fields:
            kind = _KINDS.get(name, dict)
            if name in values and not isinstance(values[name], kind):
                wrong.append(f"{name} must be a JSON {kind.__name__}")
            elif name not in values and name not in ("allowed_changes", "results"):
                wrong.append(f"{name} is missing")
        if wrong:
            raise ValueError(f"{path}: {', '.join(wrong)}; {again}")
        return cls(**{**values, "allowed_changes": tuple(values.get("allowed_changes", ()))})


_KINDS = {"stage": str, "config_hash": str, "allowed_changes": list}  # all others: objects


@dataclasses.dataclass(frozen=True)
class TrainingData:
    """Where a round's candidates and their scores lie, as shards, and what names their content.

    `scores` None: nobody judged them. `proposer` names the regions that count; `inputs` are the
    hashes of the stages that made them.
    """

    candidates: epath.Path
    scores: epath.Path | None
    proposer: str
    inputs: Mapping[str, str]


def candidates_of(cfg: Config, work: Workdir) -> epath.Path:
    """The folder of the stage a round's candidates come from: `ingest` if the run has it."""
    return work.stage("ingest" if "ingest" in cfg.stages else "generate")


def training_data(cfg: Config, work: Workdir) -> TrainingData:
    """A round's candidates and their scores.

    Scores are those of the stage `score`; of ingested data, if the run has no such stage, those
    that came with it. Raises FileNotFoundError where a stage is not finished.
    """
    drawn = candidates_of(cfg, work)
    made = Manifest.read(drawn)
    inputs = {"candidates": made.hash}
    if "ingest" in cfg.stages and "score" not in cfg.stages:
        scores = drawn / made.outputs["scores"] if "scores" in made.outputs else None
        return TrainingData(drawn, scores, PUBLISHED, inputs)
    scores = work.stage("score")
    inputs["scores"] = Manifest.read(scores).hash
    return TrainingData(drawn, scores, cfg.score.proposers[0], inputs)


def run_stage(
    name: str,
    cfg: Config,
    work: Workdir,
    *,
    sections: tuple[str, ...],
    inputs: Mapping[str, str],
    body: Callable[[epath.Path], Outcome],
) -> Manifest:
    """Runs `body(folder)` unless the stage is finished, and records what it did.

    `sections` are the dotted config parts the stage reads, `inputs` the hash of everything else it
    reads. Finished with both unchanged: skipped. Half done, or an output missing or cut: `body` is
    called again and goes on with the files it finds. Changed: BadInput saying what changed, unless
    `work.allow_config_change`. Files of which nobody can say for what they were made are moved
    aside, and the stage begins anew. Inputs that differ between processes: BadInput in all of them.
    """
    folder = work.stage(name)
    current = {"sections": section_values(cfg, sections), "inputs": dict(inputs)}
    for part, value in sorted(inputs.items()):
        check_same(value, f"inputs of the stage {name} ({part})")
    manifest = _finished(folder)
    before = dataclasses.asdict(manifest) if manifest else _started(folder)
    changes = _differences(before, current) if before else []
    allowed = tuple(before["allowed_changes"]) if before else ()
    if changes and not work.allow_config_change:
        raise BadInput(
            f"{folder} was made with another config:\n  "
            + "\n  ".join(changes)
            + "\nGive another --workdir, put the old values back, or go on with the files that are "
            "there by --allow_config_change."
        )
    if manifest and not changes and _all_there(folder, manifest):
        logging.info("%s: skipped, finished", name)
        if jax.process_index() == 0 and files.kept(work.results) is None:
            write_results(cfg, work)
        return manifest
    allowed, (starts, spent) = allowed + tuple(changes), _earlier_starts(folder)
    told = {**current, "allowed_changes": allowed, "starts": starts + 1, "seconds": spent}
    barrier(f"{name}: looked at")  # before the first process changes what the others read
    if jax.process_index() == 0:
        if before is None:
            _set_aside(folder)
        files.remove_partial(folder)
        write_json(folder / "started.json", told)
        (folder / "manifest.json").unlink(missing_ok=True)
    barrier(f"{name}: starts")
    start = time.monotonic()
    try:
        outcome = body(folder)
    except BaseException:
        if jax.process_index() == 0:
            with contextlib.suppress(Exception):  # what ended it may forbid this too: a full disk
                told["seconds"] = round(spent + time.monotonic() - start, 3)
                write_json(folder / "started.json", told)
        raise
    barrier(f"{name}: ends")
    timing = _timing(spent, time.monotonic() - start, outcome) | {"starts": starts + 1}
    manifest = Manifest(
        stage=name,
        config_hash=section_hash(cfg, sections),
        outputs=dict(outcome.outputs),
        versions=versions(),
        counts=dict(outcome.counts),
        timing=timing,
        allowed_changes=allowed,
        results=dict(outcome.results),
        **current,
    )
    if jax.process_index() == 0:
        write_json(folder / "manifest.json", dataclasses.asdict(manifest))
        write_results(cfg, work)
    barrier(f"{name}: recorded")
    idle = f", devices without work {timing['device_idle']:.0%}" if "device_idle" in timing else ""
    logging.info("%s: finished in %.1f s%s", name, timing["seconds"], idle)
    return manifest


def takes(work: Workdir, name: str) -> float | None:
    """Seconds that a stage takes in this round, by the last round before that did it in one go.

    0 where it is finished; None where no round tells.
    """
    if (work.stage(name) / "manifest.json").exists():
        return 0.0
    if (work.stage(name) / "started.json").exists():
        return None  # a part of it is done
    for number in reversed(range(work.round)):
        try:
            timing = Manifest.read(dataclasses.replace(work, round=number).stage(name)).timing
        except (ValueError, OSError):
            continue
        if timing.get("starts") == 1:
            return timing["seconds"]
    return None


def _earlier_starts(folder: epath.Path) -> tuple[int, float]:
    """How many runs have worked on a stage, and seconds of those that were not killed."""
    path = folder / "started.json"
    try:
        found = files.read_json(path) if path.exists() else {"starts": 0}
        return int(found.get("starts", 1)), float(found.get("seconds", 0))
    except (ValueError, TypeError, AttributeError):  # cut by a loss of power
        return 1, 0.0


def _finished(folder: epath.Path) -> Manifest | None:
    """The manifest of a finished stage; None, with a warning, for one that is damaged."""
    try:
        return Manifest.read(folder)
    except FileNotFoundError:
        return None
    except ValueError as e:
        logging.warning("%s: its files are looked through", e)
        return None


def _all_there(folder: epath.Path, manifest: Manifest) -> bool:
    """Whether every output is there, and whole as far as lengths, shards' ends and JSON's grammar
    tell."""
    places = [folder / path for path in manifest.outputs.values()]
    if not all(place.exists() for place in places):
        return False
    if any(place.suffix == ".json" and files.kept(place, object) is None for place in places):
        return False
    for place in places:
        if lost := digests.lost(place):
            logging.warning("%s: damaged, %s; made again", place, ", ".join(lost[:3]))
            return False
    return all(map(shards.is_whole, places))


def _started(folder: epath.Path) -> dict[str, Any] | None:
    """For what the half-done files in `folder` were made; None where that is not known, or where
    there are none yet."""
    path = folder / "started.json"
    if not folder.exists() or {p.name for p in folder.iterdir()} == {path.name}:
        return None  # it failed before it made anything: the config may have been put right
    found = files.kept(path)
    parts = {"sections": dict, "inputs": dict, "allowed_changes": list}
    if found and all(isinstance(found.get(name), kind) for name, kind in parts.items()):
        return found
    return None


def _set_aside(folder: epath.Path) -> None:
    """Moves files of which nobody can say for what config they were made to a folder beside."""
    found = {p.name for p in folder.iterdir()} if folder.exists() else set()
    if all(name.startswith(".") or name == "started.json" for name in found):
        return
    (folder / "manifest.json").unlink(missing_ok=True)
    places = (folder.parent / f"{folder.name}-aside-{i}" for i in itertools.count(1))
    aside = next(place for place in places if not place.exists())
    logging.warning(
        "%s has no started.json that says for what its files were made: they are moved to %s, and "
        "the stage begins anew",
        *(folder, aside),
    )
    files.move_folder(folder, aside)


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every config value and input that differs."""
    after = _leaves(new["sections"])
    added = section_values(Config(), [name for name in config_history.ADDED if name in after])
    before = config_history.recorded(_leaves(old["sections"]), added)
    lines = [
        f"config {key}: was {before.get(key, 'not read')!r}, is {after.get(key, 'not read')!r}"
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key)
    ]
    now = new["inputs"]
    was = config_history.recorded_inputs(old["inputs"], now)
    return lines + [
        f"input {name}: its content changed"
        for name in sorted(was.keys() | now.keys())
        if was.get(name) != now.get(name)
    ]


def _leaves(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    out = {}
    for key, value in values.items():
        out |= (
            _leaves(value, f"{prefix}{key}.")
            if isinstance(value, Mapping)
            else {prefix + key: value}
        )
    return out


def _timing(earlier: float, seconds: float, outcome: Outcome) -> dict[str, float]:
    """Of a stage's last start, which took `seconds`, and of those before it."""
    total, idle = earlier + seconds, {}
    if outcome.device_seconds is not None:
        busy = outcome.device_seconds / max(seconds, 1e-9)
        idle["device_idle"] = round(max(0.0, 1 - busy), 4)
    return {
        "seconds": round(total, 3),
        "compile_seconds": round(outcome.compile_seconds, 3),
        "items": outcome.items,
        "items_per_second": round(outcome.items / max(total, 1e-9), 4),
        "peak_rss_mb": round(memory.peak() / 2**20, 1),
        **idle,
    }


def versions() -> dict[str, str]:
    """Versions that a result depends on."""
    return {
        "srum_jax": srum_jax.__version__,
        "jax": jax.__version__,
        "python": ".".join(platform.python_version_tuple()[:2]),
    }


def device_name() -> str:
    """Kind and number of devices, as in "TPU v5e x16"; of a CPU, the number of cores."""
    devices = jax.devices()
    if devices[0].platform == "cpu":
        cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return f"cpu x{cores if isinstance(cores, int) else len(cores)}"
    return f"{devices[0].device_kind} x{len(devices)}"


def _run_info(cfg: Config, work: Workdir) -> dict[str, Any]:
    """The "run" part of results.json."""
    return {
        "config": work.config_file,
        "config_hash": section_hash(cfg, ALL_SECTIONS),
        "seed": cfg.seed,
        **versions(),
        "device": device_name(),
    }


def write_results(cfg: Config, work: Workdir) -> None:
    """results.json anew from the manifests of all rounds.

    What an older one has beside that stays: manifests did not always have results.
    """
    results = {"schema": RESULTS_SCHEMA, "run": {}, "rounds": [], "stages": {}}
    results |= files.kept(work.results) or {}
    if results["schema"] != RESULTS_SCHEMA:
        raise ValueError(
            f'{work.results}: field "schema" is not {RESULTS_SCHEMA}; move the file away'
        )
    rounds = {entry["round"]: entry for entry in results["rounds"]}
    for number in itertools.count():
        of_round = dataclasses.replace(work, round=number)
        if number > work.round and not of_round.stage("").exists():
            break
        for name in STAGES:
            if manifest := _finished(of_round.stage(name)):
                results["stages"][name] = dict(manifest.timing)
                _add(rounds.setdefault(number, {"round": number}), manifest.results)
    results["run"] = _run_info(cfg, work)
    results["rounds"] = [rounds[number] for number in sorted(rounds)]
    write_json(work.results, results)


def _add(entry: dict[str, Any], parts: Mapping[str, Any]) -> None:
    """Adds a stage's parts to a round's entry; parts of one name become one."""
    for name, part in parts.items():
        old = entry.get(name)
        both = isinstance(part, Mapping) and isinstance(old, Mapping)
        entry[name] = {**old, **part} if both else part
