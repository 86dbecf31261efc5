"""One loss, many meshes: a real training step cut over eight devices equals the one on one."""

import functools
import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AbstractMesh
from samples import CFG, as_advantages, edit, jit, pack, questions, talk, text_to_image, weights

from srum_jax.config import OptimConfig
from srum_jax.core import param_tree, sharding
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import model_config, vae
from srum_jax.objectives import joint, srum, terms
from srum_jax.training import optim
from srum_jax.training import step as training_step
from srum_jax.training.state import FrozenParams, create

SPECS = bagel.specs(CFG)
LAW = dict(timestep_mean=0.0, timestep_std=1.0, timestep_shift=2.0)
ROWS = 8


def mesh_of(*sizes):
    named = types.SimpleNamespace(**dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    return sharding.make_mesh(named, jax.devices()[: math.prod(sizes)])


def trained(path):
    """Everything that draws; the rest is frozen, as in `train` by default."""
    return path.startswith(("blocks/gen", "norm/gen", "time", "vae2llm", "llm2vae"))


@pytest.fixture(scope="module")
def batch():
    rows = []
    for b in range(ROWS):
        kinds = (edit(b, 2 * b, boxes=1), questions(b)), (text_to_image(b, 2 * b + 1), talk(b))
        rows.append(kinds[b % 2])
    return pack(rows, spare=1, rewards=True)


def named(name):
    """(loss, which leaves are trained): pretraining of everything, or the self-reward loss."""
    predict = terms.Predictor(CFG, jnp.float32, "full")
    if name == "joint":
        return joint.JointLoss(types.SimpleNamespace(**LAW), predict, 0.5), lambda _: True
    numbers = dict(
        rewards="both",
        map_sampling="centre",
        advantage_scale=2.0,
        nft_beta=1.0,
        anchor=1.0,
        replay=0.0,
    )
    cfg = types.SimpleNamespace(objective=name, **numbers, **LAW)
    return srum.SrumLoss(cfg, predict), trained


def gradients(name, mesh, batch, micro_batches=1):
    """(loss, means, gradients, operations that one device takes) of a step on `mesh`; the reference
    differs from the parameters."""
    loss, accepts = named(name)
    place = sharding.shardings(SPECS, mesh)
    params, frozen = param_tree.split(jax.device_put(weights(), place), accepts)
    reference, _ = param_tree.split(jax.device_put(weights(seed=1), place), accepts)
    run = functools.partial(training_step.gradients, loss, micro_batches=micro_batches)
    if name in srum.BY_ADVANTAGE:
        batch = as_advantages(batch)
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    given = (params, FrozenParams(frozen, reference), batch, jax.random.key(1))
    compiled = jit(run).lower(*given).compile()
    return *compiled(*given), compiled.cost_analysis()["flops"]


@pytest.fixture(scope="module")
def alone(batch):
    return functools.cache(lambda name: gradients(name, mesh_of(1, 1, 1, 1), batch))


@pytest.mark.slow  # core/test_sharding.py has the quick one
@pytest.mark.parametrize(
    "name, sizes, micro_batches",
    [
        ("joint", (8, 1, 1, 1), 1),
        ("joint", (1, 8, 1, 1), 1),
        ("joint", (2, 2, 2, 1), 1),
        ("joint", (1, 2, 2, 2), 2),
        ("srum_advantage", (2, 2, 2, 1), 1),
    ],
)
def test_loss_and_gradients_are_those_of_one_device(batch, alone, name, sizes, micro_batches):
    loss, means, grads, flops = gradients(name, mesh_of(*sizes), batch, micro_batches)
    want_loss, want_means, want, whole = alone(name)
    if micro_batches == 1:  # a loop's body counts once
        assert flops < 1.25 * whole / 8  # with what every device does itself
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-5)
    for metric, value in want_means.items():
        assert float(means[metric]) == pytest.approx(float(value), rel=1e-5), metric
    largest = max(np.abs(g).max() for g in jax.tree.leaves(want))
    assert largest > 0.01
    for path, gradient in param_tree.flatten(grads).items():
        np.testing.assert_allclose(
            gradient, param_tree.flatten(want)[path], rtol=1e-5, atol=1e-5 * largest, err_msg=path
        )


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_masters_moments_and_average_are_cut_alike(optimizer):
    mesh = mesh_of(2, 2, 2, 1)
    specs, _ = param_tree.split(SPECS, trained)
    tx = optim.make(OptimConfig(optimizer=optimizer), specs, steps=3)
    state = create(param_tree.split(weights(), trained)[0], tx, specs, mesh)
    where = param_tree.flatten(sharding.shardings(specs, mesh))
    for tree in (state.params, state.ema, *moments(state.opt_state)):
        for path, leaf in param_tree.flatten(tree).items():
            if not isinstance(leaf, optax.MaskedNode):
                assert leaf.sharding.is_equivalent_to(where[path], leaf.ndim), path
                if path.startswith("blocks/gen/") and path.endswith("/w"):  # fsdp times tensor
                    assert 4 * leaf.addressable_shards[0].data.size == leaf.size, path
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(state.opt_state)} == {8}


def moments(state):
    """Every tree of the optimiser's state that mirrors the parameters."""
    found = []

    def visit(node):
        if isinstance(node, dict) and "blocks" in node:
            found.append(node)
        elif isinstance(node, dict | tuple):
            for part in node.values() if isinstance(node, dict) else node:
                visit(part)

    visit(state)
    return found


# --------------------------------------------------------------------------------- the big preset


def devices_holding(spec, mesh, where):
    """Over how many devices one array is cut."""
    axes = sharding.resolve(spec.axes, spec.shape, mesh, where=where)
    return math.prod(mesh.shape[axis] for axis in axes if axis is not None)


@pytest.mark.parametrize("sizes", [(1, 16, 1, 1), (1, 64, 1, 1), (1, 4, 4, 1), (2, 8, 2, 1)])
def test_nothing_large_of_the_big_preset_is_held_whole(sizes):
    """float32 masters above 4 MiB are cut over the whole fsdp axis, and fit what one chip has."""
    mesh = AbstractMesh(sizes, sharding.MESH_AXES)
    specs = param_tree.flatten(bagel.specs(model_config.BAGEL_7B_MOT))
    held = {}
    for path, spec in specs.items():
        cut = devices_holding(spec, mesh, path)
        held[path] = 4 * math.prod(spec.shape) / cut
        if 4 * math.prod(spec.shape) > 4 * 2**20:
            assert cut % mesh.shape["fsdp"] == 0, (path, spec.shape)
    everything = 4 * param_tree.count(bagel.specs(model_config.BAGEL_7B_MOT))
    assert sum(held.values()) < 1.03 * everything / (sizes[1] * sizes[2])


def test_heads_that_do_not_divide_are_refused_by_name():
    mesh = AbstractMesh((1, 1, 8, 1), sharding.MESH_AXES)
    with pytest.raises(ValueError, match="'heads' has 28 entries.*mesh.tensor = 8"):
        sharding.shardings(bagel.specs(model_config.BAGEL_7B_MOT), mesh)


def test_the_autoencoder_is_held_whole_on_purpose():
    mesh = AbstractMesh((1, 16, 1, 1), sharding.MESH_AXES)
    specs = vae.specs(model_config.BAGEL_7B_MOT.vae)
    assert {devices_holding(s, mesh, p) for p, s in param_tree.flatten(specs).items()} == {1}
    assert 4 * param_tree.count(specs) < 2**29
