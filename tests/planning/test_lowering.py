"""Programs of BAGEL-7B-MoT lower from shapes alone: nothing is allocated or compiled; digests."""

import dataclasses
import functools
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import peak_memory
import pytest
from jax.experimental.pallas import pallas_call

from srum_jax.config import OptimConfig
from srum_jax.core import param_tree, sharding
from srum_jax.data import packing
from srum_jax.data.schema import Lanes
from srum_jax.generation import context, denoising, generation_config, guidance, text_generator
from srum_jax.models import int8
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import model_config, mot
from srum_jax.objectives import srum, terms
from srum_jax.planning import lowering, plan
from srum_jax.training import optim
from srum_jax.training import step as training_step
from srum_jax.training.state import FrozenParams, TrainState

CFG = model_config.BAGEL_7B_MOT
LANES = Lanes(und=4096, gen=4096, vit=1024, labels=0, images=4, regions=8)  # one row
SMALL = 2**29  # bytes; the embeddings alone take twice that in bfloat16


def trained(path):
    return path.startswith(("blocks/gen", "norm/gen", "time", "vae2llm", "llm2vae"))


def arguments(mesh, tx, specs, rows, reference, advantages):
    """(state, fixed, batch, key) of a step, as shapes with their places."""
    masters = sharding.placed_params(specs, jnp.float32, mesh)
    everywhere = sharding.replicated(mesh)
    one = jax.ShapeDtypeStruct((), jnp.int32, sharding=everywhere)
    places = sharding.optimizer_shardings(tx, masters, sharding.shardings(specs, mesh), mesh)
    moments = sharding.placed(jax.eval_shape(tx.init, masters), places)
    state = TrainState(
        step=one, params=masters, opt_state=moments, ema=masters, skipped=one, skipped_in_row=one
    )
    _, frozen = param_tree.split(bagel.specs(CFG), trained)
    start = sharding.placed_params(specs, jnp.bfloat16, mesh) if reference else None
    fixed = FrozenParams(sharding.placed_params(frozen, jnp.bfloat16, mesh), start)
    rows = packing.pack([[]] * rows, LANES, CFG.layout, rewards=True, advantages=advantages)
    batch = sharding.placed(rows, sharding.batch_sharding(mesh))
    key = jax.eval_shape(lambda: jax.random.key(0))
    return state, fixed, batch, key


@pytest.mark.parametrize(
    "objective, sizes",
    [
        pytest.param("srum_advantage", (1, 8, 1, 1), marks=pytest.mark.slow),
        ("srum_release", (1, 2, 4, 1)),
    ],
)
def test_a_train_step_of_the_big_preset_lowers(objective, sizes):
    cfg = types.SimpleNamespace(
        objective=objective,
        timestep_mean=0.0,
        timestep_std=1.0,
        timestep_shift=4.0,
        lambda_constraint=0.5,
        advantage_scale=2.0,
        rewards="both",
        map_sampling="centre",
        anchor=float(objective != "srum_release"),
        replay=0.0,
    )
    mesh = sharding.make_mesh(
        types.SimpleNamespace(**dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    )
    specs, _ = param_tree.split(bagel.specs(CFG), trained)
    tx = optim.make(OptimConfig(optimizer="adamw"), specs, steps=100)
    loss = srum.SrumLoss(cfg, terms.Predictor(CFG, jnp.bfloat16, "full"))
    step = functools.partial(training_step.step, loss_fn=loss, tx=tx, ema=0.99, micro_batches=1)
    reference = srum.needs_reference(objective, cfg.anchor)
    how = dict(reference=reference, advantages=objective in srum.BY_ADVANTAGE)

    def lower():
        given = arguments(mesh, tx, specs, rows=sizes[0] * sizes[1], **how)
        return jax.jit(step, donate_argnums=0).lower(*given)

    lowered, size = peak_memory.grown(lower)
    text = lowered.as_text()
    assert size < SMALL

    state, metrics = lowered.out_info
    assert param_tree.count(specs) == sum(x.size for x in jax.tree.leaves(state.params)) > 6e9
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    assert metrics["loss"].shape == () and metrics["loss"].dtype == jnp.float32

    # Layers are scanned, forward and backward; the program does not grow with their number.
    whiles = text.count("stablehlo.while")
    assert whiles >= (3 if reference else 2)
    assert len(text) < 5e6
    # No parameter became part of the program.
    literals = re.findall(r"stablehlo.constant dense<[^>]{200,}> : tensor<([0-9x]+)x", text)
    assert not literals, literals
    # The experts' matrices enter cut over the mesh, and compute in bfloat16.
    layers, hidden, ffn = CFG.llm.layers, CFG.llm.hidden, CFG.llm.ffn
    assert f"tensor<{layers}x{hidden}x{ffn}xf32>" in text
    assert re.search(rf"dot_general.*tensor<\d+x{hidden}xbf16>, tensor<{hidden}x{ffn}xbf16>", text)


@pytest.mark.slow
@pytest.mark.parametrize("kept_as", ["bfloat16", "int8"])
def test_drawing_and_writing_with_the_big_preset_lower(kept_as):
    mesh = sharding.make_mesh(
        types.SimpleNamespace(**dict(zip(sharding.MESH_AXES, (2, 1, 4, 1), strict=True)))
    )
    specs = bagel.specs(CFG)
    if kept_as == "int8":
        specs = int8.specs(specs, jnp.bfloat16)
    params = jax.tree.map(
        lambda s, at: jax.ShapeDtypeStruct(
            s.shape, jnp.bfloat16 if kept_as == "bfloat16" else s.dtype, sharding=at
        ),
        specs,
        sharding.shardings(specs, mesh),
        is_leaf=param_tree.is_spec,
    )
    assert mot.unstacked(params, CFG.llm) is params  # 28 layers are scanned
    at = sharding.batch_sharding(mesh)

    def shapes(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), tree)

    packed = shapes(context.pack([()] * 2, 2, CFG.layout))
    grid = shapes(denoising.empty_grid([(64, 64)] * 2, 2, CFG.layout))
    settings = generation_config.GenerationConfig().generate
    on = guidance.Guidance.of(settings)
    assert on.text and not on.image and [guided for guided, *_ in on.runs] == [True, False]

    def draw(params, packed, grid, sampling):
        how = dict(cfg=CFG, dtype=jnp.bfloat16)
        cond = context.prefill(params, packed, slots=context.capacity(packed), **how)
        zero = jnp.zeros_like(cond.length)
        caches = guidance.GuidanceCaches(cond, context.shortened(cond, zero, zero))
        return denoising.sample_latents(params, caches, grid, sampling, guidance=on, **how)

    def write(params, packed, seeds, temperature, limit):
        how = dict(cfg=CFG, dtype=jnp.bfloat16)
        cache = context.prefill(params, packed, slots=context.capacity(packed, 513), **how)
        return text_generator.decode(
            params, cache, seeds, temperature, limit, max_tokens=512, **how
        )

    per_row = [shapes(np.zeros(2, kind)) for kind in (np.uint32, np.float32, np.int32)]
    for run, given, out in (
        (draw, (packed, grid, guidance.SamplingParams.of(settings)), (2, 4096, CFG.token_dim)),
        (write, (packed, *per_row), (2, 512)),
    ):
        lowered, size = peak_memory.grown(functools.partial(jax.jit(run).lower, params, *given))
        assert size < SMALL
        assert jax.tree.leaves(lowered.out_info)[0].shape == out
        program = lowered.as_text()
        assert len(program) < 2e6
        literals = re.findall(r"stablehlo.constant dense<[^>]{500,}> : tensor<([0-9x]+)x", program)
        assert not literals, literals


KERNEL = """
def kernel(x, out):
    out[...] = x[...] * {factor}
"""


@dataclasses.dataclass(frozen=True)
class OnTpu:
    """A program with a kernel for TPUs, of a file with `blank` lines before it."""

    blank: int
    factor: int = 2

    def lower(self, x):
        code = "\n" * self.blank + KERNEL.format(factor=self.factor)
        names = {}
        exec(compile(code, f"{self.blank}.py", "exec"), names)
        double = pallas_call(names["kernel"], out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))
        return jax.jit(double).trace(x).lower(lowering_platforms=("tpu",))


def test_a_digest_sees_what_a_program_computes_and_not_where_it_stands():
    one = types.SimpleNamespace(data=1, fsdp=1, tensor=1, context=1)
    mesh = sharding.make_mesh(one, jax.devices()[:1])
    x = jax.ShapeDtypeStruct((8, 128), jnp.float32)

    def digest(*what):
        return plan._digest(plan._lowered(lowering.Program(OnTpu(*what), (x,), {}), mesh))

    assert digest(0) == digest(3) != digest(0, 3)
