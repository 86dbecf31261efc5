"""Long rows cut over the mesh axis "context": the same loss and gradients, and really cut."""

import dataclasses
import functools
import math
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from samples import CFG, edit, jit, latent, picture, questions, talk, text, text_to_image, weights

from srum_jax.core import param_tree, sharding
from srum_jax.data import packing
from srum_jax.data.schema import Example, Lanes
from srum_jax.models import attention
from srum_jax.models.attention import chunked, splash
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import mot
from srum_jax.objectives import joint, terms
from srum_jax.planning import hlo
from srum_jax.training import step as training_step
from srum_jax.training.state import FrozenParams

LAW = dict(timestep_mean=0.0, timestep_std=1.0, timestep_shift=2.0)
LANES = Lanes(und=64, gen=24, vit=16, labels=16, images=4, regions=1)

# Eight CPU devices on few busy cores may miss each other in a collective, which ends the process.
MANY = pytest.mark.slow
EIGHT = [(1, 2, 1, 4), (1, 1, 2, 4)]


def mesh_of(*sizes):
    named = types.SimpleNamespace(**dict(zip(sharding.MESH_AXES, sizes, strict=True)))
    return sharding.make_mesh(named, jax.devices()[: math.prod(sizes)])


def packed(lanes=LANES):
    rows = [[edit(b, 2 * b), text_to_image(b, 2 * b + 1), questions(b), talk(b)] for b in range(4)]
    return packing.pack(rows, lanes, CFG.layout)


def step(name, mesh, batch, micro_batches=1):
    """(the gradients of a training step as a program, its arguments on `mesh`)."""
    cfg = dataclasses.replace(CFG, attention=name)
    predict = terms.Predictor(cfg, jnp.float32, "full")
    loss = joint.JointLoss(types.SimpleNamespace(**LAW), predict, text_weight=0.5)
    run = functools.partial(training_step.gradients, loss, micro_batches=micro_batches)
    params = jax.device_put(weights(), sharding.shardings(bagel.specs(CFG), mesh))
    batch = jax.device_put(batch, sharding.batch_sharding(mesh))
    return jit(run), (params, FrozenParams({}, None), batch, jax.random.key(1))


def gradients(name, mesh, batch, micro_batches=1):
    """(loss, gradients of every parameter) of a training step on `mesh`."""
    with jax.set_mesh(mesh):
        run, given = step(name, mesh, batch, micro_batches)
        loss, _, grads = run(*given)
    return float(loss), grads


@pytest.fixture(scope="module")
def alone():
    return gradients("dense", mesh_of(1, 1, 1, 1), packed())


@pytest.mark.parametrize(
    "name, sizes, micro_batches",
    [
        pytest.param("dense", (1, 1, 1, 2), 1, marks=pytest.mark.slow),
        pytest.param("chunked", (1, 2, 1, 1), 1, marks=pytest.mark.slow),
        pytest.param("chunked", (1, 1, 2, 1), 1, marks=pytest.mark.slow),
        pytest.param("dense", (1, 1, 1, 8), 1, marks=MANY),
        pytest.param("dense", (1, 2, 2, 2), 2, marks=MANY),
        pytest.param("chunked", (2, 1, 1, 4), 1, marks=MANY),
    ],
)
def test_loss_and_gradients_are_those_of_one_device(alone, monkeypatch, name, sizes, micro_batches):
    monkeypatch.setattr(chunked, "_QUERIES", 20)
    monkeypatch.setattr(chunked, "_KEYS", 24)
    loss, grads = gradients(name, mesh_of(*sizes), packed(), micro_batches)
    want_loss, want = alone
    assert loss == pytest.approx(want_loss, rel=1e-5)
    largest = max(np.abs(g).max() for g in jax.tree.leaves(want))
    for path, gradient in param_tree.flatten(grads).items():
        np.testing.assert_allclose(
            gradient, param_tree.flatten(want)[path], rtol=1e-5, atol=1e-5 * largest, err_msg=path
        )


def rows(seed=0):
    """Rows of several samples of one interval each, in lanes that divide by 4."""

    def sample(b):
        rng = np.random.default_rng((seed, b))
        clean = latent(rng, 3, 3, noisy=False)
        return Example((picture(rng, 2, 3), clean, text(rng, 20 + b), latent(rng, 6, 8)))

    return packing.pack([[sample(b), talk(b), sample(b + 9)] for b in range(2)], LONG, CFG.layout)


LONG = Lanes(und=120, gen=128, vit=16, labels=8, images=4, regions=0)


def through(name, mesh, heads=4, kv_heads=2):
    """(output, gradients, where the output lies) of one attention on rows cut over the mesh."""
    batch = rows()
    lanes = (batch.und, batch.gen)
    rng = np.random.default_rng(0)

    def values(heads):
        shapes = [(*lane.segment.shape, heads, 8) for lane in lanes]
        return tuple(rng.normal(size=s).astype(np.float32) for s in shapes)

    given = [values(n) for n in (heads, kv_heads, kv_heads)], values(heads)

    @jit
    def run(lanes, qkv, pull):
        o, back = jax.vjp(attention.over(lanes, name), *qkv)
        return o, back(pull)

    with jax.set_mesh(mesh):
        at = NamedSharding(mesh, PartitionSpec(sharding.ROWS, "context"))
        lanes, (qkv, pull) = jax.device_put((lanes, given), at)
        return run(lanes, qkv, pull)


@pytest.fixture
def interpreted(monkeypatch):
    """A kernel runs without its machine."""
    monkeypatch.setattr(splash, "_INTERPRET", True)


@pytest.mark.parametrize(
    "name",
    [
        "dense",
        pytest.param("chunked", marks=pytest.mark.slow),
        pytest.param("splash", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("sizes", [(1, 1, 1, 2), *(pytest.param(s, marks=MANY) for s in EIGHT)])
def test_each_back_end_is_the_same_on_a_part_of_the_queries(interpreted, name, sizes):
    """Grouped keys, interval tables of a part of a row, rows that are cut and rows that are not."""
    want = through("dense", mesh_of(1, 1, 1, 1))
    found = through(name, mesh_of(*sizes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)
    for o in found[0]:
        assert o.sharding.shard_shape(o.shape)[1] == o.shape[1] // sizes[3]


@pytest.mark.parametrize("name", ["dense", "chunked", "splash"])
@pytest.mark.parametrize("sizes", [(1, 2, 1, 1), pytest.param((1, 2, 2, 1), marks=MANY)])
def test_each_device_runs_its_own_rows_and_heads(interpreted, name, sizes):
    """Without context; the compiler cannot cut a kernel by itself."""
    want = through("dense", mesh_of(1, 1, 1, 1))
    found = through(name, mesh_of(*sizes))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, atol=3e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dense", "chunked"])
def test_weights_are_gathered_and_activations_are_not_summed(name):
    """A step sends what its weights and gradients weigh, whatever the length of its rows."""
    mesh = mesh_of(1, 2, 1, 1)
    with jax.set_mesh(mesh):
        run, given = step(name, mesh, packed())
        sent = hlo.collectives(run.lower(*given).compile().as_text())
    weight = sum(x.nbytes for x in jax.tree.leaves(given[0]))
    assert weight < sum(sent.values()) < 3 * weight, sent


def test_writing_a_token_does_not_gather_weights():
    """Products of a token a row are summed: its features are less than a matrix."""
    mesh, rows, c = mesh_of(1, 2, 1, 1), 2, CFG.llm
    blocks = {"blocks": weights()["blocks"], "norm": weights()["norm"]}
    where = sharding.shardings({k: bagel.specs(CFG)[k] for k in blocks}, mesh)
    past = jnp.zeros((c.layers, rows, 8, c.kv_heads, c.head_dim))
    read = mot.WritingCache.of(mot.Cache(past, past, jnp.full(rows, 5), jnp.full(rows, 5)))
    step = jit(functools.partial(mot.next_token, cfg=c))
    with jax.set_mesh(mesh):
        params = jax.device_put(blocks, where)
        cache = jax.device_put(read, sharding.replicated(mesh))
        made = step.lower(params, x=jnp.ones((rows, 1, c.hidden)), cache=cache).compile()
    sent = hlo.collectives(made.as_text())
    weight = sum(x.nbytes for x in jax.tree.leaves(blocks["blocks"]["und"]))
    assert sum(sent.values()) < weight / 2, sent


@pytest.mark.parametrize("name", ["dense", "chunked"])
def test_an_image_gathers_the_weights_of_its_own_expert_alone(name):
    """The other expert has two marks of a row to do, and its weights stay where they are."""
    mesh, rows, c = mesh_of(1, 2, 1, 1), 2, CFG.llm
    blocks = {"blocks": weights()["blocks"], "norm": weights()["norm"]}
    where = sharding.shardings({k: bagel.specs(CFG)[k] for k in blocks}, mesh)
    rng = np.random.default_rng(0)
    marks, cells = (rng.normal(size=(2 * rows, n, c.hidden)).astype(np.float32) for n in (2, 64))

    def cache(slots):
        shape = (c.layers, rows, slots, c.kv_heads, c.head_dim)
        k, v = (rng.normal(size=shape).astype(np.float32) for _ in "kv")
        return mot.Cache(k, v, np.array([slots, slots // 2], np.int32), np.array([3, 1], np.int32))

    caches = [cache(8), cache(0)]

    @jit
    def run(params, marks, cells, caches):
        return mot.stack_behind(params, c, marks, cells, caches, backend=name)

    want = run(blocks, marks, cells, caches)
    with jax.set_mesh(mesh):
        params = jax.device_put(blocks, where)
        at = sharding.batch_sharding(mesh)
        given = jax.device_put((marks, cells), at)
        made = run.lower(params, *given, caches).compile()
        found = made(params, *given, caches)
    for a, b in zip(found, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
    sent = hlo.collectives(made.as_text())
    weight = sum(x.nbytes for x in jax.tree.leaves(blocks["blocks"]["gen"])) / 2
    assert weight < sent["all-gather"] < 1.3 * weight, (sent, weight)


@MANY
def test_activations_are_cut_and_keys_alone_are_gathered():
    """Between layers each device holds its part of both lanes; the program gathers keys."""
    mesh = mesh_of(1, 2, 1, 4)
    batch = packed()
    t = np.full(batch.noisy.shape, 0.4, np.float32)
    with jax.set_mesh(mesh):
        params = jax.device_put(weights(), sharding.replicated(mesh))
        batch = jax.device_put(batch, sharding.batch_sharding(mesh))

        @jit
        def hidden(params, batch):
            _, _, kept = bagel.forward(
                params, CFG, batch, batch.latents, t, keep="hidden", remat="none"
            )
            return kept

        made = hidden.lower(params, batch).compile()
        for lane in made(params, batch):
            assert lane.sharding.shard_shape(lane.shape) == (
                lane.shape[0],
                lane.shape[1] // 2,
                lane.shape[2] // 4,
                lane.shape[3],
            )
    gathered = re.findall(r"= f32\[([0-9,]+)\]\S* all-gather", made.as_text())
    lengths = {str(n) for n in (LANES.und, LANES.gen)}
    of_lanes = {shape for shape in gathered if lengths & set(shape.split(",")[1:2])}
    heads = f"{CFG.llm.kv_heads},{CFG.llm.head_dim}"
    assert of_lanes == {f"2,{n},{heads}" for n in lengths}


@MANY
def test_rows_that_do_not_divide_are_whole():
    """Short rows of inference on a mesh made for training."""
    lanes = dataclasses.replace(LANES, und=63)
    batch = packed(lanes)
    t = np.full(batch.noisy.shape, 0.4, np.float32)

    @jit
    def run(params, batch):
        return bagel.forward(params, CFG, batch, batch.latents, t, remat="none")[:2]

    want = run(weights(), batch)
    mesh = mesh_of(1, 2, 1, 4)
    with jax.set_mesh(mesh):
        found = run(
            jax.device_put(weights(), sharding.replicated(mesh)),
            jax.device_put(batch, sharding.batch_sharding(mesh)),
        )
    for a, b, lane in zip(found, want, (batch.und, batch.gen), strict=True):
        np.testing.assert_allclose(a[lane.segment > 0], b[lane.segment > 0], atol=1e-4)
