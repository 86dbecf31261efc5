"""What a config costs and where it fits: its programs compiled for machines that are not here.

    python -m srum_jax.main --config configs/bagel_7b_srum.py --plan v5e:4x4

Nothing is allocated and no device is touched (`planning/lowering.py`, `planning/topology.py`).
Where a program does not fit, settings that need less are compiled in turn, those first that change
nothing about the result. Sizes of rows and batches that the machine cannot share evenly are raised
beforehand.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib import metadata
from typing import Any, Protocol

import jax
from absl import logging
from etils import epath

import srum_jax
from srum_jax import config, programs
from srum_jax.config import Config, TrainConfig
from srum_jax.core import param_tree, sharding
from srum_jax.core.errors import BadInput, DoesNotFit
from srum_jax.generation import families
from srum_jax.planning import budget, fitting, hlo, lowering, topology
from srum_jax.planning.budget import Assumptions, Chips
from srum_jax.planning.fitting import changed, fitted
from srum_jax.planning.lowering import PROGRAMS, sizes_of
from srum_jax.planning.topology import GIB, Machine, Target

READ = (  # parts of a config that a plan depends on
    *("model", "stages", "mesh", "compute.dtype", "compute.remat", "compute.attention"),
    *("sample", "generate.think", "generate.think_tokens", "evaluate.think_tokens"),
    *("score.judge", "score.readout", "score.proposers", "score.batch"),
    *("score.written.batch", "score.written.max_tokens", "train"),
)


# --------------------------------------------------------------------- a config on a machine


def mesh_of(cfg: Config, machine: Machine) -> jax.sharding.Mesh:
    """The mesh of a run on the whole machine. Raises BadInput for one its chips cannot form."""
    try:
        return sharding.make_mesh(cfg.mesh, machine.devices)
    except ValueError as e:
        raise BadInput(f"{machine.target}: {e}") from e


def host_mesh(cfg: Config, machine: Machine) -> jax.sharding.Mesh:
    """What drawing and scoring run on: each host on its own chips, parameters cut over as few as
    hold them."""
    sizes = sizes_of(cfg)
    weights = families.of(sizes).memory(sizes, cfg.compute.dtype).weights
    return sharding.inference_mesh(machine.host, weights, int(machine.hbm_gib * GIB))


def measured(cfg: Config, machine: Machine, name: str) -> dict[str, Any]:
    """One entry of a plan's "programs": `name` compiled for the machine or, where nothing compiles
    for it, what it keeps there: then whether it `fits` is said as if it needed no temporaries."""
    program, mesh = _program(cfg, machine, name)
    parts = {key: sharding.bytes_per_device(tree) for key, tree in program.parts.items()}
    beside = {key: sharding.bytes_per_device(tree) for key, tree in program.resident.items()}
    kept = sum(parts.values()) + sum(beside.values())
    entry: dict[str, Any] = {"fits": kept <= machine.hbm_gib * GIB, "chips": mesh.size}
    lowered = _lowered(program, mesh) if machine.compiles else None
    if lowered:
        logging.info("plan: compiling %s for %s", name, machine.target)
    found = machine.compile(lowered) if lowered else None
    if found and found.peak is not None:
        peak = found.peak + sum(beside.values())
        entry["fits"] = found.fits and peak <= machine.hbm_gib * GIB
        entry["peak_gib"] = _gib(peak)
        parts["temporaries"] = max(0, found.peak - sum(parts.values()))
    elif found:
        entry["fits"] = found.fits
    else:
        entry["kept_gib"] = _gib(kept)
    entry["parts_gib"] = {key: _gib(size) for key, size in (parts | beside).items() if size}
    if program.flops is not None:
        entry["flops"] = program.flops
    if found and found.text:
        entry["collective_gib"] = {k: _gib(n) for k, n in hlo.collectives(found.text).items()}
    entry |= program.more
    entry["compile_s"] = round(found.seconds, 1) if found else 0.0
    estimated = topology.KINDS[machine.target.kind].margin > 0
    entry["how"] = "estimated" if estimated else "compiled"
    if lowered:
        entry["digest"] = _digest(lowered)
    return entry


def digests(cfg: Config, target: Target, names: Sequence[str]) -> dict[str, str]:
    """{program: "digest" of its entry in the plan of a config for a target}; nothing is compiled.

    Raises BadInput as `plan` does.
    """
    machine = topology.describe(target)
    cfg, _ = fitted(cfg, target)
    return {name: _digest(_lowered(*_program(cfg, machine, name))) for name in names}


def _program(
    cfg: Config, machine: Machine, name: str
) -> tuple[lowering.Program, jax.sharding.Mesh]:
    """(a program of the config, the chips of the machine that run it)."""
    planned = PROGRAMS[name]
    mesh = host_mesh(cfg, machine) if planned.per_host else mesh_of(cfg, machine)
    return planned.make(cfg, sizes_of(cfg), mesh), mesh


def _lowered(program: lowering.Program, mesh: jax.sharding.Mesh) -> jax.stages.Lowered:
    """What a compiler is handed, the same wherever the sources lie: kernels name files and lines
    unless they are told not to."""
    # The mesh is for tracing alone: what is computed at once would go to its chips.
    with _unplaced(), jax.set_mesh(mesh):
        return program.lower()


@contextlib.contextmanager
def _unplaced() -> Iterator[None]:
    before = jax.config.jax_traceback_in_locations_limit
    jax.config.update("jax_traceback_in_locations_limit", 0)
    try:
        yield
    finally:
        jax.config.update("jax_traceback_in_locations_limit", before)


def _digest(lowered: jax.stages.Lowered) -> str:
    return hashlib.sha256(lowered.as_text().encode()).hexdigest()[:16]


def _needs(entry: Mapping[str, Any]) -> float:
    """GiB a chip that a program needs, at least; infinite where its compiler did not say."""
    return entry.get("peak_gib", entry.get("kept_gib", math.inf))


def _gib(size: float) -> float:
    return round(size / GIB, 3)


# ------------------------------------------------------------------------- what would make it fit

Multiples = Mapping[str, int]  # as `config.shares` gives them


@dataclasses.dataclass(frozen=True)
class Change:
    """One thing that may make a program fit: how it is said, and the config after it."""

    words: str
    cfg: Config


class Option(Protocol):
    """A kind of change that needs less memory."""

    def changes(self, cfg: Config, by: Multiples) -> Iterator[Change]:
        """What of it the config does not have already, the smallest step first."""


class Rematerialise:
    """Activations are computed again in the backward pass."""

    def changes(self, cfg: Config, by: Multiples) -> Iterator[Change]:
        if cfg.compute.remat != "full":
            yield Change('compute.remat = "full"', changed(cfg, "compute.remat", "full"))


class MicroBatches:
    """A step's rows in as many parts as the devices can share (gradient accumulation)."""

    def changes(self, cfg: Config, by: Multiples) -> Iterator[Change]:
        count = cfg.train.micro_batches
        most = cfg.train.rows * count // by.get("train.rows", cfg.train.rows)
        if most > count:
            after = changed(cfg, "train.micro_batches", most)
            yield Change(f"train.micro_batches = {most}", after)


@dataclasses.dataclass(frozen=True)
class SmallerBatch:
    """Half the batch of a section, and half of that, while the devices can share it."""

    section: str

    def changes(self, cfg: Config, by: Multiples) -> Iterator[Change]:
        key = f"{self.section}.batch"
        size, smallest = getattr(cfg, self.section).batch, by.get(key, 1)
        while size % (2 * smallest) == 0:
            size //= 2
            yield Change(f"{key} = {size}", changed(cfg, key, size))


class FewerAnswers:
    """As few written answers at a time as the devices can share."""

    def changes(self, cfg: Config, by: Multiples) -> Iterator[Change]:
        key, smallest = "score.written.batch", by.get("score.batch", 1)
        if cfg.score.readout == "written" and cfg.score.written.batch > smallest:
            yield Change(f"{key} = {smallest}", changed(cfg, key, smallest))


@dataclasses.dataclass(frozen=True)
class TrainLess:
    """Fewer leaves are trained; later names of `FEWER` train fewer."""

    trainable: str

    def changes(self, cfg: Config, by: Multiples) -> Iterator[Change]:
        known = typing.get_args(typing.get_type_hints(TrainConfig)["trainable"])
        name, before = self.trainable, cfg.train.trainable
        if name in known and (before not in FEWER or FEWER.index(name) > FEWER.index(before)):
            yield Change(f'train.trainable = "{name}"', changed(cfg, "train.trainable", name))


FEWER = ("all", "gen", "lora")
# (program, whether the result stays the same, option), in the order they are tried. What changes
# nothing stays for the later ones; what changes the recipe is tried alone on top of it.
OPTIONS: tuple[tuple[str, bool, Option], ...] = (
    ("train_step", True, Rematerialise()),
    ("train_step", True, MicroBatches()),
    ("sample", True, SmallerBatch("sample")),
    ("score", True, SmallerBatch("score")),
    ("score", True, FewerAnswers()),
    ("train_step", False, TrainLess("gen")),
    ("train_step", False, TrainLess("lora")),
)


def attempts(cfg: Config, machine: Machine, name: str) -> Iterator[tuple[str, Config, Target]]:
    """(what is changed, config, target) in the order they are tried for the program `name`."""
    said: list[str] = []
    for program, same, option in OPTIONS:
        if program != name:
            continue
        before, made = list(said), None
        for made in option.changes(cfg, config.shares(cfg, *fitting.shapes(cfg, machine.target))):
            yield " and ".join([*before, made.words]), made.cfg, machine.target
        if same and made:
            said, cfg = [*before, made.words], made.cfg
    if -1 not in dataclasses.astuple(cfg.mesh):  # a mesh that says how many chips it has
        said, cfg = [*said, "mesh.fsdp = -1"], changed(cfg, "mesh.fsdp", -1)
    for target in topology.larger(machine.target):
        if PROGRAMS[name].per_host and target.host.chips <= machine.target.host.chips:
            continue  # each host draws and scores by itself: more of them help none
        yield " and ".join([*said, f"{target}, {target.chips} chips"]), cfg, target


def tries(
    cfg: Config,
    machine: Machine,
    name: str,
    entry: Mapping[str, Any],
    describe: Callable[[Target], Machine],
) -> Iterator[dict[str, Any]]:
    """Entries of a plan's "tried" for a program that does not fit as its `entry` says, up to the
    first that does."""
    kind = topology.KINDS[machine.target.kind]
    if kind.raised_gib > kind.hbm_gib and _needs(entry) <= kind.raised_gib:
        peak = {"peak_gib": entry["peak_gib"]} if "peak_gib" in entry else {}
        yield {"program": name, "change": topology.RAISED, "fits": True, **peak}
        return
    for what, after, target in attempts(cfg, machine, name):
        try:
            on = machine if target == machine.target else describe(target)
            entry = measured(fitted(after, target)[0], on, name)
        except ValueError as e:  # such as a rank that is too high for a small model
            logging.info("plan: %s is not possible: %s", what, e)
            continue
        peak = {"peak_gib": entry["peak_gib"]} if "peak_gib" in entry else {}
        yield {"program": name, "change": what, "fits": entry["fits"], **peak}
        if entry["fits"]:
            return


# -------------------------------------------------------------------------------------- the plan


def plan(
    cfg: Config,
    target: Target,
    *,
    describe: Callable[[Target], Machine] | None = None,
    only: Sequence[str] | None = None,
) -> dict[str, Any]:
    """The plan of a config for a target, as the JSON of `--plan_out` holds it.

    `describe` gives the machine of a target (default: `topology.describe`); `only` names programs
    of `lowering.PROGRAMS` (default: those that the config's stages run). Raises BadInput where the
    compiler is missing or the config cannot run on so many chips whatever its sizes.
    """
    describe = describe or topology.describe
    config_hash, machine = key(cfg), describe(target)
    cfg, adjusted = fitted(cfg, target)
    sizes = sizes_of(cfg)
    made = programs.training(cfg, sizes)
    names = lowering.of_stages(cfg) if only is None else only
    if not names:
        raise BadInput(f"stages {cfg.stages} run no program that a plan looks at")
    found = {name: measured(cfg, machine, name) for name in names}
    failing = {name: entry for name, entry in found.items() if not entry["fits"]}
    tried = [
        one for name, entry in failing.items() for one in tries(cfg, machine, name, entry, describe)
    ]
    mesh, lanes = mesh_of(cfg, machine), cfg.train.lanes
    return {
        "schema": 1,
        "target": str(target),
        "chips": target.chips,
        "hbm_gib": machine.hbm_gib,
        "fits": not failing,
        "mesh": {axis: int(size) for axis, size in mesh.shape.items()},
        "row_tokens": lanes.und + lanes.gen,
        "rows": cfg.train.rows,
        "set": adjusted,
        "parameters": {
            "model": param_tree.count(families.of(sizes).specs(sizes)),
            "trained": param_tree.count(made.trained),
        },
        "recipe": {
            "trainable": cfg.train.trainable,
            "reference": made.compared > 0,
            "optimizer": cfg.train.optim.optimizer,
            "remat": cfg.compute.remat,
            "micro_batches": cfg.train.micro_batches,
        },
        "programs": found,
        "tried": tried,
        "config_hash": config_hash,
        "versions": versions(target),
    }


def key(cfg: Config) -> str:
    """The hash of what a plan reads of a config."""
    return config.section_hash(cfg, READ)


def versions(target: Target) -> dict[str, str]:
    """Of what the figures depend on."""
    compiler = {"tpu": "libtpu", "gpu": "jax-cuda12-plugin"}
    names = ["jax", "jaxlib", compiler[topology.KINDS[target.kind].platform]]
    found = {"srum_jax": srum_jax.__version__}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def run(cfg: Config, target: str, out: str | None, assumed: Assumptions) -> None:
    """Plans, prints for people, writes the JSON to `out` if it is given.

    What the run takes is printed first, as it needs no compiler. Raises BadInput as `plan` does,
    DoesNotFit where a program does not fit.
    """
    on = topology.parse(target)
    takes = budget.estimate(fitted(cfg, on)[0], Chips.of(on), assumed)
    print("\n".join([*budget.lines(takes), ""]), flush=True)
    made = plan(cfg, on) | {"budget": takes.json()}
    if out:
        epath.Path(out).write_text(json.dumps(made, indent=1) + "\n")
    print("\n".join(lines(made)))
    if not made["fits"]:
        raise DoesNotFit(advice(made))


def advice(made: Mapping[str, Any]) -> str:
    """What does not fit, and what would make it fit, as a sentence."""
    said = []
    for name, entry in made["programs"].items():
        if not entry["fits"]:
            ways = [one for one in made["tried"] if one["program"] == name and one["fits"]]
            way = f"fits with {ways[0]['change']}" if ways else "fits with nothing that was tried"
            said.append(f"{name} needs more than {made['hbm_gib']} GiB a chip, and {way}")
    return f"{made['target']}: {'; '.join(said)}"


def lines(made: Mapping[str, Any]) -> Iterator[str]:
    """A plan for people."""
    mesh = " x ".join(f"{axis} {size}" for axis, size in made["mesh"].items() if size > 1)
    count, recipe = made["parameters"], made["recipe"]
    chips = f"{_chips(made['chips'])} of {made['hbm_gib']} GiB"
    yield f"{made['target']}: {chips}, mesh {mesh or 'of one'}"
    yield (
        f"model of {count['model'] / 1e9:.3g} billion parameters, {count['trained'] / 1e9:.3g} "
        f"trained (train.trainable = {recipe['trainable']}, {recipe['optimizer']}"
        f"{', with a copy of the starting model' if recipe['reference'] else ''}); "
        f"{made['rows']} rows of {made['row_tokens']} tokens a step"
    )
    for key, value in made["set"].items():
        yield f"  set for this machine: --config.{key}={value}"
    for name, entry in made["programs"].items():
        yield f"{name}: {_verdict(entry)}"
        parts = ", ".join(f"{key} {size:.2f}" for key, size in entry["parts_gib"].items())
        yield f"  memory, GiB: {parts}"
        if "flops" in entry:
            yield f"  {entry['flops'] / 1e12:.4g} TFLOP a call on all these chips"
        if entry.get("collective_gib"):
            sent = ", ".join(f"{key} {size:.2f}" for key, size in entry["collective_gib"].items())
            yield f"  sent by a chip a call, GiB: {sent}"
    for one in made["tried"]:
        peak = f", {one['peak_gib']:.2f} GiB" if "peak_gib" in one else ""
        verdict = "fits" if one["fits"] else "does not fit"
        yield f"{one['program']} with {one['change']}: {verdict}{peak}"
    yield from _limits(made)


def _verdict(entry: Mapping[str, Any]) -> str:
    chips = _chips(entry["chips"])
    if "kept_gib" in entry:
        said = "may fit" if entry["fits"] else "DOES NOT FIT"
        return f"{said}, {entry['kept_gib']:.2f} GiB a chip and its temporaries ({chips})"
    peak = f"{entry['peak_gib']:.2f} GiB" if "peak_gib" in entry else "more"
    said = "fits" if entry["fits"] else "DOES NOT FIT"
    return f"{said}, {peak} a chip ({entry['how']} for {chips})"


def _limits(made: Mapping[str, Any]) -> Iterator[str]:
    """What the figures of a plan for GPUs stand on."""
    kind = topology.KINDS[made["target"].partition(":")[0]]
    if kind.platform != "gpu":
        return
    if kind.compiles:
        yield (
            f"estimated: the compiler's figures raised by {kind.margin:.0%}, not held against such "
            "a machine"
        )
    else:
        yield "estimated: nothing here compiles for this kind; what programs keep is summed"
    yield (
        f"{made['hbm_gib']:g} GiB: the {topology.LEFT:.0%} of the memory that JAX takes by itself; "
        f"with {topology.RAISED} in the environment it takes {kind.raised_gib:g}"
    )


def _chips(count: int) -> str:
    return f"{count} chip" if count == 1 else f"{count} chips"
