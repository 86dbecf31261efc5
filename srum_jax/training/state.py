"""The state of a training run: what a checkpoint holds and a step replaces."""

import functools

import jax
import jax.numpy as jnp
import optax
from flax import struct

from srum_jax.core import sharding
from srum_jax.core.param_tree import Params, Specs, abstract


@struct.dataclass
class TrainState:
    """step int32 · params: trained leaves, float32 masters · opt_state · ema: their average

    skipped int32: steps whose loss or gradient was not finite, so changed nothing ·
    skipped_in_row int32: how many of those came last, without a good one between.
    """

    step: jax.Array
    params: Params
    opt_state: optax.OptState
    ema: Params
    skipped: jax.Array
    skipped_in_row: jax.Array


def fresh(params: Params, tx: optax.GradientTransformation) -> TrainState:
    """The state before the first step, as a function of arrays alone."""
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=tx.init(params),
        ema=jax.tree.map(jnp.copy, params),
        skipped=jnp.zeros((), jnp.int32),
        skipped_in_row=jnp.zeros((), jnp.int32),
    )


def create(
    params: Params,
    tx: optax.GradientTransformation,
    specs: Specs | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> TrainState:
    """A fresh state; the average starts at the parameters.

    With `specs` of the trained leaves and a mesh, everything lies where the axis table says,
    moments beside their parameters.
    """

    def build(params):
        return fresh(params, tx)

    if mesh is None:
        return jax.jit(build)(params)
    layout = shardings(tx, specs, mesh)
    return jax.jit(build, out_shardings=layout)(jax.device_put(params, layout.params))


def placed(tx: optax.GradientTransformation, specs: Specs, mesh: jax.sharding.Mesh) -> TrainState:
    """A state over `specs` as shapes in their places: what a checkpoint is restored into, and a
    plan counts. Nothing is allocated."""
    shapes = jax.eval_shape(functools.partial(fresh, tx=tx), abstract(specs, jnp.float32))
    return sharding.placed(shapes, shardings(tx, specs, mesh))


def shardings(
    tx: optax.GradientTransformation, specs: Specs, mesh: jax.sharding.Mesh
) -> TrainState:
    """The layout of a state over `specs`: a NamedSharding in the place of every array."""
    params, whole = sharding.shardings(specs, mesh), sharding.replicated(mesh)
    return TrainState(
        step=whole,
        params=params,
        opt_state=sharding.optimizer_shardings(tx, abstract(specs), params, mesh),
        ema=params,
        skipped=whole,
        skipped_in_row=whole,
    )


@struct.dataclass
class FrozenParams:
    """What a step reads and never changes: frozen leaves, and the trained leaves at the start.

    `reference`: of this round, None for objectives that compare with nothing · `first`: of the
    first round, None for those that do not compare with that one.
    """

    frozen: Params
    reference: Params | None
    first: Params | None = None
