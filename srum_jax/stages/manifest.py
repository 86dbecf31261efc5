"""What a stage leaves behind: its folder, its manifest, its lines in results.json.

A manifest is written last, so its presence says the stage is finished. `started.json` is written
first and says for which config and inputs the half-done files in the folder were made.
"""

import dataclasses
import os
import platform
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import logging
from etils import epath

import srum_jax
from srum_jax import config_history
from srum_jax.config import Config, hash_json, section_hash, section_values
from srum_jax.core import digests
from srum_jax.core.distributed import barrier
from srum_jax.core.errors import BadInput
from srum_jax.core.files import read_json, write_json
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


@dataclasses.dataclass(frozen=True)
class Manifest:
    """A finished stage. `sections` are the config parts it read, by dotted name."""

    stage: str
    config_hash: str
    sections: Mapping[str, Any]
    inputs: Mapping[str, str]  # name -> hash
    outputs: Mapping[str, str]
    versions: Mapping[str, str]
    counts: Mapping[str, int]
    # Of the run that finished it, and how many "starts" it took; results.json's "stages" entry.
    timing: Mapping[str, float]
    allowed_changes: tuple[str, ...] = ()  # config changes let through while it was made

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
        values = read_json(path)
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(values, dict) or set(values) != names:
            have = set(values) if isinstance(values, dict) else set()
            raise ValueError(
                f"{path}: missing {sorted(names - have)}, unknown {sorted(have - names)}; delete "
                "it and run the stage again"
            )
        return cls(**{**values, "allowed_changes": tuple(values["allowed_changes"])})


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
    `work.allow_config_change`.
    """
    folder = work.stage(name)
    current = {"sections": section_values(cfg, sections), "inputs": dict(inputs)}
    manifest = _finished(folder)
    changes, allowed = _changes_since(folder, manifest, current)
    if changes and not work.allow_config_change:
        raise BadInput(
            f"{folder} was made with another config:\n  "
            + "\n  ".join(changes)
            + "\nGive another --workdir, put the old values back, or go on with the files that are "
            "there by --allow_config_change."
        )
    if manifest and not changes and _all_there(folder, manifest):
        logging.info("%s: skipped, finished", name)
        return manifest
    allowed, starts = allowed + tuple(changes), _starts(folder)
    barrier(f"{name}: looked at")  # before the first process changes what the others read
    if jax.process_index() == 0:
        told = {**current, "allowed_changes": allowed, "starts": starts}
        write_json(folder / "started.json", told)
        (folder / "manifest.json").unlink(missing_ok=True)
    barrier(f"{name}: starts")
    start = time.monotonic()
    outcome = body(folder)
    barrier(f"{name}: ends")
    timing = _timing(time.monotonic() - start, outcome) | {"starts": starts}
    manifest = Manifest(
        stage=name,
        config_hash=section_hash(cfg, sections),
        outputs=dict(outcome.outputs),
        versions=versions(),
        counts=dict(outcome.counts),
        timing=timing,
        allowed_changes=allowed,
        **current,
    )
    if jax.process_index() == 0:
        write_json(folder / "manifest.json", dataclasses.asdict(manifest))
        run = _run_info(cfg, work)
        update_results(work, lambda r: (r.update(run=run), r["stages"].update({name: timing})))
    barrier(f"{name}: recorded")
    logging.info("%s: finished in %.1f s", name, timing["seconds"])
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


def _starts(folder: epath.Path) -> int:
    """How many runs have worked on a stage, with the one that begins."""
    path = folder / "started.json"
    try:
        return 1 + int(read_json(path).get("starts", 1)) if path.exists() else 1
    except (ValueError, TypeError, AttributeError):  # cut by a loss of power
        return 2


def _finished(folder: epath.Path) -> Manifest | None:
    """The manifest of a finished stage; None, with a warning, for one that a loss of power cut."""
    path = folder / "manifest.json"
    if not path.exists():
        return None
    try:
        read_json(path)
    except ValueError as e:
        logging.warning("%s; the stage is looked through again", e)
        return None
    return Manifest.read(folder)


def _all_there(folder: epath.Path, manifest: Manifest) -> bool:
    """Whether every output is there, and whole as far as lengths and the ends of shards tell."""
    places = [folder / path for path in manifest.outputs.values()]
    if not all(place.exists() for place in places):
        return False
    for place in places:
        if lost := digests.lost(place):
            logging.warning("%s: damaged, %s; made again", place, ", ".join(lost[:3]))
            return False
    return all(map(shards.is_whole, places))


def _changes_since(
    folder: epath.Path, manifest: Manifest | None, current: Mapping[str, Any]
) -> tuple[list[str], tuple[str, ...]]:
    """What differs between the files in `folder` and `current`, and what was allowed before."""
    if manifest:
        old = {"sections": manifest.sections, "inputs": manifest.inputs}
        return _differences(old, current), manifest.allowed_changes
    found = {p.name for p in folder.iterdir()} if folder.exists() else set()
    if "started.json" not in found:
        # For what config they were made nobody knows, so they must not be gone on from.
        if left := sorted(name for name in found if not name.startswith(".")):
            raise BadInput(
                f"{folder} holds {', '.join(left[:3])}{', …' * (len(left) > 3)} but no "
                "started.json: it was emptied while a run still wrote there, or is no folder of a "
                "run. Remove it, or use another --workdir"
            )
        return [], ()
    if found == {"started.json"}:
        return [], ()  # it failed before it made anything
    old = read_json(folder / "started.json")
    try:
        return _differences(old, current), tuple(old["allowed_changes"])
    except (KeyError, TypeError, AttributeError) as e:
        raise ValueError(f"{folder / 'started.json'}: damaged ({e!r}); delete {folder}") from e


def _differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line for every config value and input that differs."""
    defaults = section_values(Config(), config_history.ADDED)
    before = config_history.recorded(_leaves(old["sections"]), defaults)
    after = _leaves(new["sections"])
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


def _timing(seconds: float, outcome: Outcome) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return {
        "seconds": round(seconds, 3),
        "compile_seconds": round(outcome.compile_seconds, 3),
        "items": outcome.items,
        "items_per_second": round(outcome.items / max(seconds, 1e-9), 4),
        "peak_rss_mb": round(peak / 2 ** (20 if sys.platform == "darwin" else 10), 1),
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


def update_results(work: Workdir, change: Callable[[dict[str, Any]], Any]) -> None:
    """Lets `change` edit the content of results.json in place and writes it back atomically.

    What was not measured is absent: NaN raises ValueError.
    """
    results = {"schema": RESULTS_SCHEMA, "run": {}, "rounds": [], "stages": {}}
    if work.results.exists():
        results = read_json(work.results)
        if not isinstance(results, dict) or results.get("schema") != RESULTS_SCHEMA:
            raise ValueError(
                f'{work.results}: field "schema" is not {RESULTS_SCHEMA}; move the file away'
            )
    change(results)
    write_json(work.results, results)


def update_round(work: Workdir, **parts: Any) -> None:
    """Sets parts ("t2i", "suites", "train", …) of this round's entry in results.json."""

    def change(results: dict[str, Any]) -> None:
        rounds = {entry["round"]: entry for entry in results["rounds"]}
        rounds.setdefault(work.round, {"round": work.round}).update(parts)
        results["rounds"] = [rounds[r] for r in sorted(rounds)]

    update_results(work, change)
