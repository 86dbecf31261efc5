"""What can be known before the first hour: problems, all at once, and what will be written.

Owns what a stage's `check(cfg, work, found)` adds to, and how the checks of a run are put together.
A check reads small files and a few pictures, and asks the judge's server; it uses no device and
changes nothing.
"""

import contextlib
import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping, Sequence
from types import ModuleType

from srum_jax import disk
from srum_jax.config import Config
from srum_jax.core import storage
from srum_jax.core.errors import BadInput, StorageLost
from srum_jax.data.schema import LayoutSizes
from srum_jax.models.bagel import hf
from srum_jax.stages import loading
from srum_jax.stages.manifest import Manifest, Workdir
from srum_jax.training import checkpoint, metrics


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a stage will write: in words, and bytes, about."""

    stage: str
    what: str
    bytes: int

    def __str__(self) -> str:
        return f"{self.stage}: {self.what}, about {disk.amount(self.bytes)}"


@dataclasses.dataclass
class Checks:
    """What the checks of a run have found so far.

    stages: those that are going to run · notes: what else is worth knowing, a line each.
    """

    stages: Sequence[str]
    problems: list[str] = dataclasses.field(default_factory=list)
    costs: list[Cost] = dataclasses.field(default_factory=list)
    notes: list[str] = dataclasses.field(default_factory=list)

    @contextlib.contextmanager
    def noting(self) -> Iterator[None]:
        """What is raised inside about files or values is one problem more."""
        try:
            yield
        except (ValueError, OSError) as e:
            if isinstance(failed := storage.failure(e), StorageLost):
                raise failed from e
            e = failed or e
            if str(e) not in self.problems:  # two stages may read one file
                self.problems.append(str(e))

    def needs(self, work: Workdir, stage: str) -> None:
        """Notes where `stage` is neither finished nor going to run."""
        if stage not in self.stages:
            with self.noting():
                Manifest.read(work.stage(stage))

    def made_later(self, work: Workdir, stage: str) -> bool:
        """Whether `stage` is going to run before its files can be read."""
        return stage in self.stages and not finished(work, stage)

    def refuse(self) -> None:
        """Raises BadInput with every problem, if there are any."""
        if self.problems:
            count = len(self.problems)
            many = f"{count} problems" if count > 1 else "a problem"
            lines = "\n".join(self.problems).replace("\n", "\n  ")
            raise BadInput(f"{many} found before anything is run:\n  {lines}")

    @property
    def bytes(self) -> int:
        """What all stages will write, about."""
        return sum(cost.bytes for cost in self.costs)

    @property
    def said(self) -> list[str]:
        """What will be written, a line a stage, and notes."""
        return [*map(str, self.costs), *self.notes]


def finished(work: Workdir, stage: str) -> bool:
    """Whether the stage has left its manifest in this round."""
    return (work.stage(stage) / "manifest.json").exists()


def collect(cfg: Config, work: Workdir, modules: Mapping[str, ModuleType]) -> Checks:
    """Asks the modules of the stages that are going to run; finished ones are left out.

    modules: by the stage's name, in order. Stages that make what another one reads are looked at as
    `Checks.made_later` says.
    """
    found = Checks(tuple(modules))
    for name, module in modules.items():
        rounds = (dataclasses.replace(work, round=number) for number in range(cfg.rounds))
        if not all(finished(one, name) for one in rounds) or name == "report":
            module.check(cfg, work, found)
    if cfg.rounds > 1:
        found.needs(work, "export")  # the next round starts from it
    with found.noting():
        found.notes.append(_room(work, found.bytes))
    return found


def check_training(cfg: Config, work: Workdir, found: Checks) -> None:
    """Of every stage that trains: a place for its checkpoints, and the packages and keys of
    `log.writers`."""
    with found.noting():
        checkpoint.check_place(work.root)
    for writer in cfg.log.writers:
        with found.noting():
            metrics.SINKS[writer].available()


def weights(cfg: Config, work: Workdir, found: Checks) -> hf.Parts | None:
    """Where the first round's weights lie; None where the run makes them first or they are missing,
    which is noted."""
    if found.made_later(work, "pretrain"):
        return None
    with found.noting():
        return loading.source(cfg, work)
    return None


def layout(parts: hf.Parts) -> LayoutSizes:
    """The sizes of tokens of the model in a folder."""
    return loading.described(parts)[0].layout


def _room(work: Workdir, needed: int) -> str:
    """Says what will be written in all, and what the place has room for.

    Raises BadInput where a local work folder cannot be written, or its disk is too full.
    """
    total = f"to be written in all: about {disk.amount(needed)}"
    if "://" in str(work.root):
        return f"{total}, to {work.root}; a bucket does not say how much it may still take"
    place = pathlib.Path(os.path.abspath(work.root))
    while not place.exists():
        place = place.parent
    if not os.access(place, os.W_OK):
        raise BadInput(f"--workdir {work.root}: {place} cannot be written; name another folder")
    free = shutil.disk_usage(place).free
    if free < needed:
        raise BadInput(
            f"--workdir {work.root}: about {disk.amount(needed)} will be written and "
            f"{disk.amount(free)} are free; name a folder on a larger disk"
        )
    return f"{total}; {disk.amount(free)} are free"
