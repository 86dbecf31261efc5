"""Loss and gradients do not depend on the mesh; everything lies where the axis table says."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import samples
from srum_jax import config
from srum_jax.core import params as P
from srum_jax.core import sharding
from srum_jax.models import bagel
from srum_jax.models.config import BAGEL_7B_MOT
from srum_jax.objectives import srum, terms
from srum_jax.stages.model import trainable
from srum_jax.training import optim, state, step

TRAIN = types.SimpleNamespace(
    objective="srum_release", timestep_mean=0.0, timestep_std=1.0, timestep_shift=1.0,
    lambda_constraint=0.5,
)
OPTIM = types.SimpleNamespace(
    optimizer="muon", schedule="constant", learning_rate=1e-3, adam_learning_rate=1e-3, warmup=0,
    weight_decay=0.0, b1=0.9, b2=0.95, eps=1e-8, clip_norm=1.0,
)


def batch():
    rows = [[samples.text_to_image(i, noise_id=i, boxes=2), samples.talk(i)] for i in range(8)]
    return samples.pack(rows, spare=1, rewards=True)


def loss_fn(params, reference, batch, key):
    """The release loss, and cross-entropy so that the und side has gradients of its own."""
    base = srum.make(TRAIN, samples.CFG, dtype=jnp.float32, remat=True)
    out = base(params, reference, batch, key)
    und, _, _ = bagel.forward(
        params, samples.CFG, batch, batch.latents, jnp.zeros(batch.noisy.shape)
    )
    ce, _ = terms.cross_entropy(params, und, batch)
    return out.replace(
        terms={**out.terms, "ce": ce}, coefficients=(*out.coefficients, ("ce", 1.0))
    )


def on(mesh):
    """(loss, gradients) with parameters and rows laid over `mesh`."""
    specs = bagel.specs(samples.CFG)
    params = jax.device_put(samples.weights(), sharding.shardings(specs, mesh))
    rows = jax.device_put(batch(), sharding.batch_sharding(mesh))
    run = functools.partial(step.gradients, loss_fn, micro_batches=1)
    loss, _, grads = jax.jit(run)(params, state.Fixed({}, None), rows, jax.random.key(3))
    return float(loss), jax.device_get(grads)


@functools.cache
def alone():
    return on(sharding.make_mesh(config.MeshConfig(1, 1, 1, 1), jax.devices()[:1]))


@pytest.mark.parametrize("sizes", [(8, 1, 1, 1), (1, 8, 1, 1), (2, 2, 2, 1)])
def test_loss_and_gradients_are_equal_on_every_mesh(sizes):
    loss, grads = on(sharding.make_mesh(config.MeshConfig(*sizes)))
    want_loss, want = alone()
    assert loss == pytest.approx(want_loss, rel=1e-5)
    for path, expected in P.flatten(want).items():
        found = P.flatten(grads)[path]
        worst = np.abs(found - expected).max()
        assert worst <= 1e-5 * max(1.0, np.abs(expected).max()), (path, worst)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_lie_beside_their_parameters(name):
    mesh = sharding.make_mesh(config.MeshConfig(2, 2, 2, 1))
    specs = bagel.specs(samples.CFG)
    tx = optim.make(
        types.SimpleNamespace(**{**vars(OPTIM), "optimizer": name}), specs, steps=4
    )
    made = state.create(samples.weights(), tx, specs, mesh)
    where = P.flatten(sharding.shardings(specs, mesh))["blocks/und/q/w"]
    assert not where.is_fully_replicated
    beside = [
        leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(made.opt_state)
        if jax.tree_util.keystr(path).endswith("['blocks']['und']['q']['w']")
    ]
    assert beside
    for leaf in beside:
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)


def test_nothing_large_of_the_7b_preset_is_replicated():
    mesh = sharding.make_mesh(config.MeshConfig(1, 8, 1, 1))
    for path, spec in P.flatten(bagel.specs(BAGEL_7B_MOT)).items():
        at = sharding.resolve(spec.axes, spec.shape, mesh, where=path)
        size = 4 * math.prod(spec.shape)
        if size > 4 * 2**20:
            assert any(axis is not None for axis in at), (path, size)


def test_trained_leaves_are_the_generation_side():
    trained, frozen = P.split(bagel.specs(BAGEL_7B_MOT), trainable("gen"))
    heads = {path.split("/")[0] for path in P.flatten(trained)}
    assert heads == {"blocks", "norm", "time", "vae2llm", "llm2vae"}
    assert all("/und/" not in path for path in P.flatten(trained))
    assert {"embed", "lm_head", "vit", "connector"} <= set(frozen)
