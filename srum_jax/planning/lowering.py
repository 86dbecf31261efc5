"""The programs of a run from shapes alone: the train step, the sampler, the decoder, the scorer.

Each is the one that the stages run (`programs.py`, `generation/`), with arguments that have a
shape, a type and a place on a mesh and no content: ready to be lowered for any machine and counted.
"""

import dataclasses
import importlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from srum_jax import programs
from srum_jax.config import Config
from srum_jax.core import registry, sharding
from srum_jax.data import packing
from srum_jax.generation import (
    answer_scorer,
    context,
    denoising,
    families,
    guidance,
    image_codec,
    text_generator,
)
from srum_jax.generation.base import FEWEST
from srum_jax.generation.context import bucket
from srum_jax.models import int8
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.objectives import srum
from srum_jax.planning import topology, workload
from srum_jax.planning.workload import QUESTIONS
from srum_jax.training import state as states
from srum_jax.training import step
from srum_jax.training.state import FrozenParams


@dataclasses.dataclass(frozen=True)
class Program:
    """A program to compile: a jitted function with its arguments, and what else lies on a chip.

    parts: {name: arguments that take memory}, as shapes with their places · resident: the same of
    arrays that are there and are no arguments · flops: of one call on all chips, None where they
    are not counted · more: further figures for the plan · static: keyword arguments.
    """

    function: Any
    arguments: tuple[Any, ...]
    parts: Mapping[str, Any]
    resident: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    flops: int | None = None
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    static: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def lower(self) -> jax.stages.Lowered:
        """The program for the devices that its arguments lie on."""
        return self.function.lower(*self.arguments, **self.static)


def sizes_of(cfg: Config) -> Any:
    """Sizes of the config's model: of its folder if that is here, otherwise of its world's base or
    of its preset. Raises BadInput for a model that cannot draw as the config says."""
    sizes = _sizes_of(cfg)
    programs.check_thinking(cfg, sizes)
    return sizes


def _sizes_of(cfg: Config) -> Any:
    for folder in filter(None, (cfg.weights, cfg.weights_base)):
        family = families.find(folder)
        if family.recognises(folder):
            return family.read_sizes(folder)
    if cfg.model in registry.WORLDS:
        folder = registry.base_folder(cfg.model)
        return families.find(folder).read_sizes(folder)
    return registry.load(registry.PRESETS, cfg.model).PRESETS[cfg.model]


def train_step(cfg: Config, sizes: Any, mesh: jax.sharding.Mesh) -> Program:
    """The step of the stage `train`, on the packed batch it makes."""
    c, dtype = cfg.train, jnp.dtype(cfg.compute.dtype)
    tokens = c.lanes.und + c.lanes.gen
    sizes = programs.attending(cfg, sizes, mesh, tokens=tokens)
    made = programs.training(cfg, sizes)
    state = states.placed(made.tx, made.trained, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    fixed = FrozenParams(
        sharding.placed_params(made.frozen, dtype, mesh),
        reference=made.reference and sharding.placed_params(made.reference, dtype, mesh),
        first=made.first and sharding.placed_params(made.first, dtype, mesh),
    )
    lanes = programs.lanes(c)
    row = packing.pack(
        [[]],
        lanes,
        sizes.layout,
        rewards=True,
        advantages=c.objective in srum.BY_ADVANTAGE,
        coverage=c.map_sampling if cfg.score.proposers[0] == "sam" else None,
        targets="ingest" in cfg.stages,
        transitions=c.objective in srum.STEPWISE,
    )
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct((c.rows, *x.shape[1:]), x.dtype), row)
    batch = sharding.placed(wide, sharding.batch_sharding(mesh))
    run = step.program(
        made.loss_fn, made.tx, ema=c.ema, micro_batches=c.micro_batches, shardings=shardings
    )
    flops, needed = workload.step(cfg, sizes, made)
    key = jax.eval_shape(lambda: jax.random.key(0))
    return Program(
        function=run,
        arguments=(state, fixed, batch, key),
        parts={
            "params": fixed.frozen,
            "masters": state.params,
            "moments": state.opt_state,
            "ema": state.ema,
            "ref": (fixed.reference, fixed.first),
            "batch": batch,
        },
        resident=_of_the_monitor(cfg, sizes, mesh, made),
        flops=flops,
        more={"model_flops": needed, "attention": sizes.attention},
    )


def _of_the_monitor(
    cfg: Config, sizes: Any, mesh: jax.sharding.Mesh, made: programs.Training
) -> dict[str, Any]:
    """What stays beside the steps for the monitor, which samples and judges between them: a decoder
    and, where the loss keeps no copy of the starting model that judges, one of its own."""
    if not cfg.train.monitor.prompts:
        return {}
    found = {"autoencoder": autoencoder(sizes, mesh)}
    if made.judge and made.reference is None:
        dtype = jnp.dtype(cfg.compute.dtype)
        found["judge"] = sharding.placed_params(made.judge, dtype, mesh)
    return found


def model(cfg: Config, sizes: Any, mesh: jax.sharding.Mesh, kept: str) -> tuple[Any, Any]:
    """(the model's parameters in compute.dtype, or its matrices as `kept` says; the
    autoencoder's)."""
    specs = families.of(sizes).specs(sizes)
    dtype = jnp.dtype(cfg.compute.dtype)
    if kept == "int8":
        specs, dtype = int8.specs(specs, dtype), None  # each leaf has its own
    return sharding.placed_params(specs, dtype, mesh), autoencoder(sizes, mesh)


def autoencoder(sizes: Any, mesh: jax.sharding.Mesh) -> Any:
    """The parameters of a model's autoencoder, float32."""
    return sharding.placed_params(families.of(sizes).coder_specs(sizes), jnp.float32, mesh)


def sample(cfg: Config, sizes: BagelConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The sampler of the stage `generate`: one call of sample.batch images, behind plans where
    they are thought about."""
    c, rows, dtype = cfg.sample, cfg.sample.batch, jnp.dtype(cfg.compute.dtype)
    params, autoencoder = model(cfg, sizes, mesh, kept)
    at = sharding.batch_sharding(mesh)
    read = workload.to_draw(sizes, workload.thought(cfg))
    size = image_codec.latent_grid(c.size, sizes.layout)
    packed, grid = (
        context.pack([read] * rows, rows, sizes.layout),
        denoising.empty_grid([size], rows, sizes.layout),
    )
    tokens = context.capacity(packed) + grid.valid.shape[1]
    sizes = programs.attending(cfg, sizes, mesh, tokens=tokens)
    alone = context.slots([read[:1]]) if len(read) > 1 else 0  # the request to think
    on = dataclasses.replace(guidance.Guidance.of(c), slots=(alone, 0))
    packed, seeds, grid = sharding.placed((packed, np.zeros(rows, np.uint32), grid), at)
    how = dict(cfg=sizes, guidance=on, image_by_cond=on.image, dtype=dtype)
    lengths = np.zeros((2, 2, rows), np.int32)
    work = workload.sampling(
        sizes,
        c,
        texts=packed.und.segment.shape[1],
        slots=context.capacity(packed),
        tokens=grid.valid.shape[1],
    )
    return Program(
        function=denoising.generate_latents,
        arguments=(
            *(params, packed, lengths, None, seeds, grid),
            guidance.SamplingParams.of(c),
        ),
        static=how,
        parts={"params": params},
        resident={"autoencoder": autoencoder},
        flops=work.flops,
        more={"images": rows, "steps": c.steps, "attention": sizes.attention},
    )


def decode(cfg: Config, sizes: BagelConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The autoencoder's decoder on an image a device, as the sampler's latents go through it."""
    params, autoencoder = model(cfg, sizes, mesh, kept)
    grid = image_codec.latent_grid(cfg.sample.size, sizes.layout)
    images = sharding.row_ways(mesh)
    tokens = jax.ShapeDtypeStruct(
        (images, *grid, sizes.token_dim), jnp.float32, sharding=sharding.batch_sharding(mesh)
    )
    return Program(
        function=image_codec.decode_latents,
        arguments=(autoencoder, tokens),
        static={"cfg": sizes},
        parts={"autoencoder": autoencoder},
        resident={"params": params},
        flops=images * workload.decoding(sizes, cfg.sample.size).flops,
        more={"images": images},
    )


def read(cfg: Config, sizes: BagelConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The reader of soft answers about score.batch whole images."""
    rows, dtype = cfg.score.batch, jnp.dtype(cfg.compute.dtype)
    params, _ = model(cfg, sizes, mesh, kept)
    example, work = workload.asked(sizes, cfg.sample.size)
    lanes = answer_scorer.lanes([example])
    packed = packing.pack([[example]] * rows, lanes, sizes.layout)
    wanted = np.zeros((*packed.label_slots.shape, FEWEST), np.int32)
    given = sharding.placed((packed, wanted), sharding.batch_sharding(mesh))
    return Program(
        function=answer_scorer.first_tokens,
        arguments=(params, *given),
        static={"cfg": sizes, "dtype": dtype},
        parts={"params": params},
        flops=workload.reading(sizes, work, rows).flops,
        more={"images": rows, "questions": QUESTIONS},
    )


def write(cfg: Config, sizes: BagelConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The writer of score.written.batch answers about whole images."""
    c, read = cfg.score.written, workload.written_context(sizes, cfg.sample.size)
    return _writer(cfg, sizes, mesh, read, c.batch, c.max_tokens, kept)


def think(cfg: Config, sizes: BagelConfig, mesh: jax.sharding.Mesh, kept: str = "") -> Program:
    """The writer of plans of sample.batch prompts, before their images are drawn."""
    most = workload.thought(cfg)
    return _writer(
        cfg, sizes, mesh, workload.to_draw(sizes, most)[:2], cfg.sample.batch, most, kept
    )


def _writer(
    cfg: Config,
    sizes: BagelConfig,
    mesh: jax.sharding.Mesh,
    read: context.Context,
    batch: int,
    most: int,
    kept: str,
) -> Program:
    """A call that writes at most `most` tokens behind each of `batch` contexts like `read`."""
    params, _ = model(cfg, sizes, mesh, kept)
    at, limit = sharding.batch_sharding(mesh), bucket(most)
    rows = context.rows_for(batch, batch, sharding.row_ways(mesh))
    packed = sharding.placed(context.pack([read] * rows, rows, sizes.layout), at)
    kinds = (np.uint32, np.float32, np.int32)
    per_row = sharding.placed([np.zeros(rows, kind) for kind in kinds], at)
    how = dict(cfg=sizes, max_tokens=limit, stop="each", dtype=jnp.dtype(cfg.compute.dtype))
    kind = topology.kind_of(mesh.devices.flat[0].device_kind)  # None: nothing is compiled for it
    room = kind and int(topology.KINDS[kind].hbm_gib * 2**30)
    how["stacked"] = bool(room) and text_generator.stays_stacked(params, room)
    work = workload.writing(sizes, *workload.behind(sizes, read, limit), rows, limit)
    return Program(
        function=text_generator.generate_text,
        arguments=(params, packed, *per_row),
        static=how,
        parts={"params": params},
        flops=work.flops,
        more={"answers": rows, "tokens": limit},
    )


@dataclasses.dataclass(frozen=True)
class OfFamily:
    """The program `name` of a model, as its family runs it; kept: "int8", or as the config says."""

    name: str
    kept: str = ""

    def __call__(self, cfg: Config, sizes: Any, mesh: jax.sharding.Mesh) -> Program:
        make = getattr(importlib.import_module(families.of(sizes).LOWERING), self.name)
        return make(cfg, sizes, mesh, self.kept)


def score(cfg: Config, sizes: Any, mesh: jax.sharding.Mesh) -> Program:
    """How the stage `score` asks the model: by soft answers, or in words."""
    return OfFamily("write" if cfg.score.readout == "written" else "read")(cfg, sizes, mesh)


@dataclasses.dataclass(frozen=True)
class Plannable:
    """A program that can be planned: what makes it, the stages that run it, and where.

    make: the program on a mesh of the machine, or of one of its hosts if it is `per_host`: then
    every host runs its own, on its own chips.
    """

    make: Callable[[Config, Any, jax.sharding.Mesh], Program]
    stages: tuple[str, ...] = ()
    per_host: bool = True


# "_int8": weights as `api.load(precision="int8")` keeps them, for small hardware.
PROGRAMS = {
    "train_step": Plannable(train_step, ("train",), per_host=False),
    "think": Plannable(OfFamily("think"), ("generate", "evaluate", "adjust")),
    "sample": Plannable(OfFamily("sample"), ("generate", "evaluate", "adjust")),
    "decode": Plannable(OfFamily("decode"), ("generate", "evaluate", "adjust")),
    "score": Plannable(score, ("score",)),
    "sample_int8": Plannable(OfFamily("sample", "int8")),
    "decode_int8": Plannable(OfFamily("decode", "int8")),
    "read_int8": Plannable(OfFamily("read", "int8")),
    "write_int8": Plannable(OfFamily("write", "int8")),
}


def of_stages(cfg: Config) -> list[str]:
    """Names of the programs that the config's stages run."""
    names = [name for name, p in PROGRAMS.items() if set(p.stages) & set(cfg.stages)]
    left = {"score"} if cfg.score.judge == "external" else set()
    left |= set() if workload.thought(cfg) else {"think"}
    return [name for name in names if name not in left]
