"""The model that is served: a world's, a folder's, or what a run has trained so far."""

import dataclasses
import re
from typing import Any

from etils import epath

from srum_jax import api, config
from srum_jax.config import Config, TrainConfig
from srum_jax.core import digests, files, places, registry
from srum_jax.core.errors import BadInput
from srum_jax.stages import loading
from srum_jax.stages.loading import LoadedModel
from srum_jax.stages.manifest import Manifest, Workdir
from srum_jax.training import checkpoint


@dataclasses.dataclass(frozen=True)
class Found:
    """The newest model of a run: its folder, the round, and how it lies there: as an exported
    "model", as the "params" that a round trained, or as the checkpoint of a "step"."""

    path: epath.Path
    round: int
    kind: str
    step: int | None = None


def newest(run: epath.Path) -> Found | None:
    """What a run's folder has to serve, the latest first; None where it has none, or is no run's.

    Raises OSError where the folder cannot be read.
    """
    rounds = (re.fullmatch(r"round(\d+)", p.name) for p in run.iterdir()) if run.is_dir() else ()
    for number in sorted((int(one[1]) for one in rounds if one), reverse=True):
        work = Workdir(run, number)
        exported, trained = work.stage("export"), work.stage("train")
        if (exported / "manifest.json").exists():
            made = exported / Manifest.read(exported).outputs["model"]
            return Found(made, number, "model")
        if (trained / "manifest.json").exists():
            return Found(trained / "params", number, "params")
        saved = trained / "checkpoints"
        if whole := [n for n in checkpoint.steps(saved) if digests.exist(saved / str(n))]:
            return Found(saved / str(whole[-1]), number, "step", whole[-1])
    return None


def at_step(run: epath.Path, step: int) -> Found:
    """The checkpoint of a step, of the latest round that has it. Raises BadInput where none has."""
    saved = {}
    for folder in run.glob("round*/train/checkpoints"):
        number = int(folder.parent.parent.name.removeprefix("round"))
        saved[number] = checkpoint.steps(folder)
    for number in sorted(saved, reverse=True):
        if step in saved[number]:
            path = Workdir(run, number).stage("train") / "checkpoints" / str(step)
            return Found(path, number, "step", step)
    there = "; ".join(f"round {n}: {', '.join(map(str, x))}" for n, x in sorted(saved.items()) if x)
    raise BadInput(f"--step {step}: {run} has no such checkpoint ({there or 'it has none'})")


def opened(given: str, step: int | None = None, **how: Any) -> tuple[api.Model, Found | None]:
    """(the model, what of a run it is): given and how as `api.load` takes them, or a run's folder;
    step: which checkpoint of it, None: the newest model.

    Raises as `api.load`, and BadInput for a run that has no model yet, or whose files are damaged.
    """
    run = None if given in registry.WORLDS else places.place(given, "the model")
    if run is None or not run.is_dir() or not _is_run(run):
        if step is not None:
            raise BadInput(f"--step: {given} is no run's folder")
        return api.load(given, **how), None
    found = newest(run) if step is None else at_step(run, step)
    if found is None:
        raise BadInput(f"{run}: this run has no checkpoint yet; it is served once it has one")
    return trained(run, found, **how), found


def trained(run: epath.Path, found: Found, **how: Any) -> api.Model:
    """The model that `newest` found. Raises as `opened`."""
    if found.kind == "model":
        return api.load(found.path, **how)
    told = _sections(Workdir(run, found.round).stage("train"))
    if how.get("precision") == "int8":
        raise BadInput("int8 weights take no trained parameters: serve the run's export")
    base = _started_from(run, found.round, told)
    model = api.load(base, **how)
    where = f"{run}, train"
    cfg = Config(train=config.section(TrainConfig, told["train"], where=where))
    loaded = LoadedModel(model.cfg, model.params, None, model.tokenizer, family=model.family)
    like = loading.trained_places(loaded, cfg, model.mesh)
    read = checkpoint.load_averaged if found.kind == "step" else checkpoint.load_params
    made = loading.with_made(loaded, cfg, read(found.path, like))
    return dataclasses.replace(model, params=made.params)


def _is_run(folder: epath.Path) -> bool:
    return any(re.fullmatch(r"round\d+", p.name) for p in folder.iterdir())


def _sections(stage: epath.Path) -> dict[str, Any]:
    """What of the config a stage was started with. Raises BadInput where nothing says so."""
    found = files.kept(stage / "started.json")
    told = found.get("sections") if found else None
    if not isinstance(told, dict) or "train" not in told:
        raise BadInput(f"{stage}/started.json does not say how the model was trained")
    return told


def _started_from(run: epath.Path, number: int, told: dict[str, Any]) -> str:
    """The folder that a round's training started from."""
    if number:
        stage = Workdir(run, number - 1).stage("export")
    elif (stage := Workdir(run).stage("pretrain")).joinpath("manifest.json").exists():
        pass
    else:
        return told.get("weights") or told.get("model")
    return str(stage / Manifest.read(stage).outputs["model"])
