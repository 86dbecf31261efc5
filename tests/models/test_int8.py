"""int8 weights: the rounding's bound, the model on them, their shardings, and their bytes."""

import math
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, edit, jit, pack, questions, talk, weights

from srum_jax.core import param_tree, sharding
from srum_jax.models import int8, layers
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import model_config

SPECS = bagel.specs(CFG)


@pytest.fixture(scope="module")
def params():
    return weights()


@pytest.fixture(scope="module")
def small(params):
    return int8.quantize(params, SPECS)


def matrix(*shape, seed=0):
    """Normal numbers whose last axis spans six orders of magnitude, its first entry all zero."""
    w = np.random.default_rng(seed).normal(size=shape) * np.logspace(-3, 3, shape[-1])
    w[..., 0] = 0
    return np.float32(w)


def back(values, scale, spec):
    """The numbers that int8 values stand for."""
    return np.float32(values) * np.expand_dims(scale, spec.fan_in)


SPLIT = param_tree.linear({"embed": 24}, {"heads": 2, "head_dim": 8}, bias=False)["w"]
MERGE = param_tree.linear({"heads": 2, "head_dim": 8}, {"embed": 24}, bias=False)["w"]
STACKED = param_tree.linear({"embed": 24}, {"mlp": 16}, bias=False, stack=3)["w"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("spec", [SPLIT, MERGE, STACKED])
def test_the_error_is_half_a_step_of_each_channel(spec, dtype):
    w = jnp.asarray(matrix(*spec.shape), dtype)
    found = int8.quantize_leaf("blocks/und/q/w", spec, w)
    assert list(found) == ["blocks/und/q/w", "blocks/und/q/scale"]
    values, scale = map(np.asarray, found.values())
    assert values.dtype == np.int8 and scale.dtype == np.float32
    assert scale.shape == tuple(n for i, n in enumerate(spec.shape) if i not in spec.fan_in)
    w, step = np.asarray(w, np.float32), np.expand_dims(scale, spec.fan_in)
    assert (np.abs(w - back(values, scale, spec)) <= step * 0.5001).all()
    # The step is as fine as the channel's own largest number allows.
    largest = np.abs(values).max(axis=spec.fan_in)
    np.testing.assert_array_equal(largest[..., 1:], 127)
    assert not largest[..., 0].any() and (scale > 0).all() and np.isfinite(scale).all()


def test_a_layer_is_rounded_for_itself():
    w = matrix(*STACKED.shape) * np.float32([[[1]], [[100]], [[0.01]]])
    together = int8.quantize_leaf("lm_head/w", STACKED, w)
    one = param_tree.linear({"embed": 24}, {"mlp": 16}, bias=False)["w"]
    for layer in range(3):
        alone = int8.quantize_leaf("lm_head/w", one, w[layer])
        for path in alone:
            np.testing.assert_array_equal(together[path][layer], alone[path])


@pytest.mark.parametrize("spec, apply", [(SPLIT, layers.linear), (MERGE, layers.merge_heads)])
def test_maps_stay_within_the_bound(spec, apply):
    rng = np.random.default_rng(1)
    inputs = tuple(spec.shape[i] for i in spec.fan_in)
    x = np.float32(rng.normal(size=(2, 5, *inputs)))
    w = matrix(*spec.shape, seed=2)
    b = np.float32(rng.normal(size=spec.shape[len(inputs) :]))
    values, scale = int8.quantize_leaf("lm_head/w", spec, w).values()
    whole, found = apply(x, {"w": w, "b": b}), apply(x, {"w": values, "scale": scale, "b": b})
    total = np.abs(x).sum(axis=tuple(range(2, x.ndim))).reshape((2, 5) + (1,) * b.ndim)
    bound = total * np.asarray(scale) / 2 + 1e-5 * np.abs(whole) + 1e-6
    assert found.shape == whole.shape and found.dtype == np.float32
    assert (np.abs(found - whole) <= bound).all()
    np.testing.assert_allclose(
        found, apply(x, {"w": back(values, scale, spec), "b": b}), rtol=1e-4, atol=1e-5
    )


def test_chosen_are_the_large_matrices_alone():
    left, sizes = set(), {}
    for path, spec in param_tree.flatten(bagel.specs(model_config.BAGEL_7B_MOT)).items():
        sizes[int8.chosen(path)] = sizes.get(int8.chosen(path), 0) + math.prod(spec.shape)
        if len(spec.shape) - ("layers" in spec.axes) > 1 and not int8.chosen(path):
            left.add(path)
        if int8.chosen(path):
            assert spec.fan_in, path
    biases = {f"blocks/{e}/{n}/b" for e in ("und", "gen") for n in "qkv"}  # split heads
    biases |= {f"vit/blocks/{n}/b" for n in "qkv"}
    outside = {"embed", "vit/positions", "vit/patch/w", "vae2llm/w", "llm2vae/w"}
    assert left == biases | outside | {"time/fc1/w", "time/fc2/w"}
    assert sizes[True] / (sizes[True] + sizes[False]) > 0.95


def test_the_forward_is_that_of_the_numbers_that_int8_stands_for(small):
    batch = pack([[talk(4), edit(2)], [questions(3)]])
    t = jnp.full(batch.noisy.shape, 0.4)

    @jit
    def run(params):
        und, gen, _ = bagel.forward(params, CFG, batch, batch.latents, t)
        return gen, bagel.logits(params, und, batch.label_slots)

    flat = param_tree.flatten(small)
    rounded = param_tree.unflatten(
        {
            path: back(flat[path], flat[path[:-1] + "scale"], spec)
            if int8.chosen(path)
            else flat[path]
            for path, spec in param_tree.flatten(SPECS).items()
        }
    )
    for found, same in zip(run(small), run(rounded), strict=True):
        np.testing.assert_allclose(found, same, atol=2e-5 * np.abs(same).max())


def test_leaf_by_leaf_as_a_loader_does(params, small):
    flat, convert = {}, int8.Quantizer(SPECS)
    for path, leaf in param_tree.flatten(params).items():
        flat.update(convert(path, leaf))
    found = param_tree.unflatten(flat)
    jax.tree.map(np.testing.assert_array_equal, found, small)
    param_tree.check(found, int8.specs(SPECS), where="test")
    dtypes = jax.tree.map(lambda x: x.dtype, param_tree.abstract(int8.specs(SPECS)))
    assert jax.tree.map(lambda x: x.dtype, found) == dtypes


def test_what_is_int8_already_is_refused(small):
    with pytest.raises(ValueError, match="int8: parameters do not fit.*\n.*unexpected"):
        int8.quantize(small, SPECS)


def test_int8_is_not_trained(small):
    with pytest.raises(TypeError, match="int8"):
        jax.grad(lambda p: p["lm_head"]["scale"].sum())(small)


def test_shards_stay_shards(params, small):
    """Rounded where they lie, or put on the mesh afterwards: the same numbers and places."""
    sizes = dict(zip(sharding.MESH_AXES, (2, 2, 2, 1), strict=True))
    mesh = sharding.make_mesh(types.SimpleNamespace(**sizes))

    def part(tree):
        return {name: tree[name] for name in ("lm_head", "connector", "vit", "norm")} | {
            "blocks": {"gen": tree["blocks"]["gen"]}
        }

    specs = part(SPECS)
    places = sharding.shardings(int8.specs(specs), mesh)
    cut = jax.device_put(part(params), sharding.shardings(specs, mesh))
    made = jit(lambda p: int8.quantize(p, specs), out_shardings=places)(cut)
    put = jax.device_put(part(small), places)
    jax.tree.map(np.testing.assert_array_equal, made, put)
    jax.tree.map(np.testing.assert_array_equal, put, part(small))
    up = made["blocks"]["gen"]["up"]
    assert up["w"].dtype == put["blocks"]["gen"]["up"]["w"].dtype == jnp.int8
    depth, inputs, outputs = up["w"].shape
    assert up["w"].addressable_shards[0].data.shape == (depth, inputs // 2, outputs // 2)
    assert up["scale"].addressable_shards[0].data.shape == (depth, outputs // 2)
    # One leaf, with nothing said of the result.
    up = part(SPECS)["blocks"]["gen"]["up"]["w"], cut["blocks"]["gen"]["up"]["w"]
    values, _ = int8.quantize_leaf("blocks/gen/up/w", *up).values()
    assert values.sharding == up[1].sharding


def test_bytes_of_the_big_preset():
    """14.58e9 parameters: 29.15 GB in bfloat16, 15.15 GB so. Nothing is allocated."""
    specs = bagel.specs(model_config.BAGEL_7B_MOT)

    def gigabytes(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree)) / 1e9

    planned = param_tree.abstract(int8.specs(specs, jnp.bfloat16))
    made = jax.eval_shape(
        lambda p: int8.quantize(p, specs), param_tree.abstract(specs, jnp.bfloat16)
    )
    assert planned == made
    assert gigabytes(param_tree.abstract(specs, jnp.bfloat16)) == pytest.approx(29.15, abs=0.01)
    assert gigabytes(made) == pytest.approx(15.15, abs=0.01)
    assert gigabytes(made) < 1.05 * param_tree.count(specs) / 1e9
