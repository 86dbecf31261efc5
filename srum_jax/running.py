"""One run: processes become one, everything is checked, stages run in order in every round."""

import contextlib
import dataclasses
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from srum_jax import config
from srum_jax.core import (
    console,
    distributed,
    host_watch,
    lock,
    preemption,
    registry,
    sharding,
    time_left,
)
from srum_jax.core.errors import BadInput, Damaged, FileLost
from srum_jax.core.files import write_json
from srum_jax.core.time_left import TimeLeft
from srum_jax.planning import budget, fitting, topology
from srum_jax.planning.budget import Assumptions, Budget, Chips
from srum_jax.planning.fitting import MeshShapes
from srum_jax.stages import manifest, preflight
from srum_jax.stages.manifest import Workdir

# Every stage of any model, and the module whose check(cfg, work, found) and
# run(cfg, mesh, work) -> Manifest it is. Those that make a base are its world's own.
STAGES = {
    "ingest": "srum_jax.stages.ingest",
    "generate": "srum_jax.stages.generate",
    "score": "srum_jax.stages.score",
    "train": "srum_jax.stages.train",
    "evaluate": "srum_jax.stages.evaluate",
    "adjust": "srum_jax.stages.adjust",
    "export": "srum_jax.stages.export",
    "report": "srum_jax.stages.report",
}


@dataclasses.dataclass(frozen=True)
class Run:
    """What a command line asks for.

    stages: in order · config_file: where the config came from, for results.json · assumed: what
    its time and cost are estimated by.
    """

    cfg: config.Config
    stages: Sequence[str]
    workdir: str
    allow_config_change: bool = False
    config_file: str = ""
    assumed: Assumptions = Assumptions()

    def round(self, number: int) -> Workdir:
        """The run's folder in one of its rounds."""
        return Workdir(self.workdir, number, self.allow_config_change, config_file=self.config_file)

    def left(self, number: int, place: int) -> TimeLeft:
        """What is known of the time left where stage `place` of a round begins."""
        ahead = [
            (name, manifest.takes(self.round(one), name))
            for one in range(number, self.cfg.rounds)
            for name in self.stages[place if one == number else 0 :]
        ]
        return TimeLeft(*ahead[0], later=tuple(ahead[1:]))

    def check(self, shapes: MeshShapes | None = None) -> preflight.Checks:
        """Looks at everything that can be known before the first hour is spent.

        shapes: of the mesh and of one host's, which rows are held against; None: not known, and a
        note says which numbers of devices fit. Touches no device. Raises BadInput with all
        problems.
        """
        modules = {name: stage_module(self.cfg.model, name) for name in self.stages}
        found = preflight.collect(self.cfg, self.round(0), modules)
        with found.noting():
            if shapes is not None:
                config.check_mesh(self.cfg, *shapes)
            elif fitting := config.fitting_devices(self.cfg):
                found.notes.append(
                    f"devices that rows can be cut over, mesh.data x mesh.fsdp: {fitting}; which "
                    "there are is looked at when the run starts, or here with --plan TYPE:SHAPE"
                )
        found.refuse()
        return found

    def checked(self, machine: str | None) -> list[str]:
        """What `check` has to say, on a machine "TYPE:SHAPE" where one is named, and what the run
        takes there. Raises BadInput with all problems."""
        if not machine:
            return self.check().said
        target = topology.parse(machine)
        said = self.check(fitting.shapes(self.cfg, target)).said
        return [*said, self.expected(Chips.of(target)).said()]

    def expected(self, chips: Chips) -> Budget:
        """What the stages that are not finished take on these chips, each from its beginning."""
        rounds = [self.round(number) for number in range(self.cfg.rounds)]
        left = [
            name for name in self.stages if not all(preflight.finished(one, name) for one in rounds)
        ]
        return budget.estimate(self.cfg, chips, self.assumed, left)


def stage_module(model: str, stage: str) -> types.ModuleType:
    """The module that is a stage; of one that makes a base, the one that its world names.

    Raises BadInput where the world has no such stage.
    """
    table = registry.load(registry.WORLDS, model).STAGES if stage in config.MAKING else STAGES
    return registry.load(table, stage)


def start(run: Run, processes: Mapping[str, Any] | None) -> str | None:
    """Runs the stages of `run` on a mesh of all devices.

    processes: coordinator, processes and process of `distributed.join`, None each where the
    environment says it; None: this process is alone. Returns the path of the report where that
    stage is among them, in the first process.
    """
    if processes is not None:
        distributed.join(run.cfg.distributed, **processes)
    else:
        distributed.warn_of_tasks()
    console.cache_compiled_programs()
    _split_cpu(run.cfg.compute.cpu_devices)
    preemption.install(on_cut=host_watch.cut)
    distributed.check_same(f"{run.cfg} {run.stages}", "configs or stages")
    mesh = sharding.make_mesh(run.cfg.mesh)
    if jax.process_count() > 1 and (alone := set(config.MAKING) & set(run.stages)):
        raise BadInput(f"{' and '.join(sorted(alone))} run in one process: give --stage the others")
    for line in run.check((mesh.shape, sharding.row_mesh(mesh).shape)).said:
        logging.info(line)
    if (chips := Chips.here()) is not None:
        logging.info(run.expected(chips).said())
    with _one_run(run.workdir), _letting_go(run.round(0).root):
        if jax.process_index() == 0:
            path = run.round(0).root / config.RECORD
            write_json(path, config.record(run.cfg, run.config_file))
        for number in range(run.cfg.rounds):
            for i, name in enumerate(run.stages):
                left = run.left(number, i)
                logging.info(
                    "round %d of %d, stage %d of %d: %s; left in all: %s",
                    *(number + 1, run.cfg.rounds, i + 1, len(run.stages), name, left.said()),
                )
                with jax.set_mesh(mesh), time_left.running(left):
                    stage_module(run.cfg.model, name).run(run.cfg, mesh, run.round(number))
    host_watch.finished()
    first, last = jax.process_index() == 0, run.round(run.cfg.rounds - 1)
    logging.info("results: %s", last.results)
    if "export" in run.stages:
        logging.info("the model: %s", last.stage("export") / "model")
    return str(run.round(0).report) if "report" in run.stages and first else None


@contextlib.contextmanager
def _one_run(workdir: str) -> Iterator[None]:
    """The work folder is this run's; of several processes the first one holds it for all.

    Raises BadInput, in every process, where another run has it.
    """
    with contextlib.ExitStack() as holding:
        problem = ""
        if jax.process_index() == 0:
            try:
                holding.enter_context(lock.held(workdir))
            except (BadInput, OSError) as e:
                if jax.process_count() == 1:
                    raise
                problem = str(e)
        if problem := distributed.from_first(problem, "the work folder"):
            raise BadInput(problem)
        yield


@contextlib.contextmanager
def _letting_go(root: epath.Path) -> Iterator[None]:
    """What is found damaged in the work folder `root` goes, so that the run makes it again.

    Raises FileLost then: stages that are finished look for what is missing when they start.
    """
    try:
        yield
    except Damaged as e:
        path = epath.Path(e.path)
        if root not in path.parents:
            raise
        logging.warning("%s; it is removed", e)
        with contextlib.suppress(FileNotFoundError):  # each process that found it removes it
            path.rmtree() if path.is_dir() else path.unlink()
        raise FileLost(f"{path} was damaged: the same command makes it again") from e


def _split_cpu(count: int) -> None:
    if not count:
        return
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:  # called from a program that has used its devices already
        logging.info("devices are in use: compute.cpu_devices = %d has no effect", count)
