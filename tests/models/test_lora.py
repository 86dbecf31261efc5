"""Adapters: nothing at first, a low-rank change of the matrix afterwards, whichever way it runs."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from samples import CFG, PLAIN, edit, jit, pack, text_to_image, weights

from srum_jax.config import OptimConfig
from srum_jax.core import param_tree, sharding
from srum_jax.models import lora
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import model_config, mot
from srum_jax.objectives import srum, terms
from srum_jax.training import optim
from srum_jax.training import step as training_step
from srum_jax.training.state import FrozenParams, create

SPECS = bagel.specs(CFG)
RANK, SCALE = 3, 2.0
ADAPTERS = lora.specs(SPECS, RANK, lora.Projections("all"))
NAMES = ("q", "k", "v", "o", "gate", "up", "down")


def factors(seed=0, specs=ADAPTERS):
    """Adapters that change something: b is drawn too."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda s: np.float32(rng.normal(0, 0.3, s.shape)), specs, is_leaf=param_tree.is_spec
    )


@pytest.fixture(scope="module")
def batch():
    rows = [[text_to_image(1, 0, boxes=2)], [edit(2, 1, boxes=1)]]
    return pack(rows, spare=1, rewards=True)


# As bfloat16 says, not with more bits where a fusion happens to keep them.
EXACT = PLAIN | {"xla_allow_excess_precision": False}


@functools.partial(jax.jit, static_argnames=("dtype", "keep"), compiler_options=EXACT)
def forward(params, batch, dtype=jnp.float32, keep="hidden"):
    t = jnp.full(batch.noisy.shape, 0.3)
    found = bagel.forward(params, CFG, batch, batch.latents, t, dtype=dtype, keep=keep)
    return found, bagel.velocity(params, found[1])


def test_what_is_adapted():
    found = param_tree.flatten(lora.specs(SPECS, RANK, lora.Projections("gen")))
    want = {f"blocks/gen/{name}/lora/{which}" for name in NAMES for which in "ab"}
    assert set(found) == want
    assert set(param_tree.flatten(ADAPTERS)) == want | {p.replace("gen", "und") for p in want}
    a, b = found["blocks/gen/o/lora/a"], found["blocks/gen/o/lora/b"]
    assert (a.shape, b.shape) == ((2, 4, 4, RANK), (2, RANK, 16))
    assert (a.axes, b.axes) == (("layers", "heads", "head_dim", None), ("layers", None, "embed"))
    made = param_tree.init(ADAPTERS, jax.random.key(0))["blocks"]["gen"]["down"]["lora"]
    assert not made["b"].any() and made["a"].dtype == made["b"].dtype == jnp.float32
    assert float(jnp.std(made["a"])) == pytest.approx(24**-0.5, rel=0.2)
    with pytest.raises(ValueError, match="blocks/gen/k/w: adapters of rank 8 for a matrix of rank"):
        lora.specs(SPECS, 8, lora.Projections("gen"))


def test_one_percent_of_the_big_experts_and_cut_as_it_is():
    specs = bagel.specs(model_config.BAGEL_7B_MOT)
    small = lora.specs(specs, 16, lora.Projections("gen"))
    hidden, kv, ffn = 3584, 512, 18944
    sides = 2 * (hidden + hidden) + 2 * (hidden + kv) + 3 * (hidden + ffn)  # q, o; k, v; the MLP
    assert param_tree.count(small) == 28 * 16 * sides
    assert param_tree.count(small) < 0.01 * param_tree.count(specs["blocks"]["gen"])
    mesh = jax.sharding.AbstractMesh((1, 4, 4, 1), sharding.MESH_AXES)
    where = param_tree.flatten(sharding.shardings(small, mesh))
    for path, spec in param_tree.flatten(small).items():
        assert "fsdp" in where[path].spec or "tensor" in where[path].spec, (path, spec.axes)


@pytest.mark.parametrize("dtype", [jnp.float32, pytest.param(jnp.bfloat16, marks=pytest.mark.slow)])
def test_fresh_adapters_change_no_bit(batch, dtype):
    fresh = param_tree.init(ADAPTERS, jax.random.key(1))
    base = forward(weights(), batch, dtype=dtype)
    found = forward(param_tree.merge(lora.scaled(fresh, SCALE), weights()), batch, dtype=dtype)
    jax.tree.map(np.testing.assert_array_equal, found, base)
    merged = param_tree.flatten(lora.merge(weights(), fresh, SCALE))
    for path, leaf in param_tree.flatten(weights()).items():
        np.testing.assert_array_equal(merged[path], leaf, err_msg=path)


def dense(adapters, scale):
    """w + scale · a·b of every adapted matrix, by NumPy in float64."""
    flat = param_tree.flatten(weights())
    for path in [p for p in flat if lora.Projections("all")(p)]:
        w, made = flat[path], param_tree.flatten(adapters)
        a, b = (np.float64(made[f"{path[:-1]}lora/{which}"]) for which in "ab")
        layers = [
            np.tensordot(x, y, axes=1).reshape(w.shape[1:]) for x, y in zip(a, b, strict=True)
        ]
        flat[path] = np.float32(w + scale * np.stack(layers))
    return param_tree.unflatten(flat)


def test_applied_and_merged_are_one_model(batch):
    made = factors()
    merged = lora.merge(weights(), made, SCALE)
    for path, leaf in param_tree.flatten(dense(made, SCALE)).items():
        np.testing.assert_allclose(param_tree.flatten(merged)[path], leaf, rtol=1e-5, atol=1e-6)
    want = forward(merged, batch)
    found = forward(param_tree.merge(lora.scaled(made, SCALE), weights()), batch)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        # Sums in another order are off by roundings of their largest terms: hidden states reach 16.
        largest = 2e-6 * np.abs(y).max()
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=max(1e-5, largest))
    moved = np.abs(want[1] - forward(weights(), batch)[1]).max()
    assert moved > 0.1  # adapters do something
    apart = mot.unstacked(param_tree.merge(lora.scaled(made, SCALE), weights()), CFG.llm)
    _, velocity = forward(apart, batch, keep="none")
    np.testing.assert_allclose(velocity, want[1], rtol=1e-5, atol=1e-5)
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), weights())
    merged = param_tree.flatten(lora.merge(half, made, SCALE))
    assert {x.dtype for x in merged.values()} == {jnp.dtype(jnp.bfloat16)}


def test_an_adapter_of_nothing_is_refused():
    with pytest.raises(ValueError, match="x/lora/a: the model has no x/w that this adapts"):
        lora.merge(weights(), {"x": {"lora": {"a": np.ones((1, 2, 1)), "b": None}}}, 1.0)


LAW = dict(timestep_mean=0.0, timestep_std=1.0, timestep_shift=2.0)


def objective(**values):
    numbers = dict(
        objective="srum_paper",
        rewards="both",
        map_sampling="centre",
        anchor=1.0,
        replay=0.0,
        lambda_constraint=0.5,
        repulsion_cap=1.0,
    )
    cfg = types.SimpleNamespace(**(numbers | LAW | values))
    return srum.SrumLoss(cfg, terms.Predictor(CFG, jnp.float32, "full"))


def gradients(loss, trained, fixed, batch, parts=1):
    run = functools.partial(training_step.gradients, loss, micro_batches=parts)
    return jit(run)(trained, fixed, batch, jax.random.key(1))


@pytest.mark.slow
def test_gradients_are_those_of_the_low_rank_matrix(batch):
    """By the chain rule from the gradient of the whole matrix; the reference is the bare base."""
    made, base = factors(), weights()
    adapted = lora.AdaptedLoss(objective(), SCALE)
    loss, means, grads = gradients(adapted, made, FrozenParams(base, {}), batch)

    accepts = lora.Projections("all")
    whole, frozen = param_tree.split(dense(made, SCALE), accepts)
    reference, _ = param_tree.split(base, accepts)
    want_loss, want_means, want = gradients(
        objective(), whole, FrozenParams(frozen, reference), batch
    )
    assert float(loss) == pytest.approx(float(want_loss), rel=1e-5)
    assert float(means["drift"]) == pytest.approx(float(want_means["drift"]), rel=1e-4)
    assert float(means["drift"]) > 0.01
    want, made, grads = (
        param_tree.flatten(want),
        param_tree.flatten(made),
        param_tree.flatten(grads),
    )
    largest = 0
    for path, g in want.items():
        where = path.removesuffix("w") + "lora"
        a, b = made[f"{where}/a"], made[f"{where}/b"]
        size = a.shape[-1], int(np.prod(b.shape[2:]))
        a2, b2 = a.reshape(len(a), -1, size[0]), b.reshape(len(b), *size)
        g2 = np.asarray(g).reshape(len(a), a2.shape[1], size[1])
        to_a = SCALE * np.einsum("lio,lro->lir", g2, b2).reshape(a.shape)
        to_b = SCALE * np.einsum("lir,lio->lro", a2, g2).reshape(b.shape)
        for which, value in (("a", to_a), ("b", to_b)):
            tolerance = 2e-5 * max(1, np.abs(value).max())
            np.testing.assert_allclose(grads[f"{where}/{which}"], value, rtol=2e-4, atol=tolerance)
            largest = max(largest, np.abs(value).max())
    assert largest > 0.1


def test_at_the_start_nothing_has_drifted(batch):
    fresh = param_tree.init(ADAPTERS, jax.random.key(1))
    _, means, grads = gradients(
        lora.AdaptedLoss(objective(), SCALE), fresh, FrozenParams(weights(), {}), batch
    )
    assert float(means["drift"]) == 0
    flat = param_tree.flatten(grads)
    assert not any(np.any(g) for path, g in flat.items() if path.endswith("/a"))  # b is zero
    assert all(np.any(g) for path, g in flat.items() if path.endswith("gate/lora/b"))


@pytest.mark.slow
def test_a_step_on_many_devices_is_that_of_one(batch):
    cfg = OptimConfig(optimizer="adamw", warmup=1, schedule="constant", eps=1e-8)
    tx = optim.make(cfg, ADAPTERS, steps=3)
    sizes = types.SimpleNamespace(data=1, fsdp=2, tensor=2, context=1)
    mesh = sharding.make_mesh(sizes, jax.devices()[:4])
    run = jit(
        functools.partial(
            training_step.step,
            loss_fn=lora.AdaptedLoss(objective(), SCALE),
            tx=tx,
            ema=0.9,
            micro_batches=1,
        )
    )
    one = create(factors(), tx)
    one, want = run(one, FrozenParams(weights(), {}), batch, jax.random.key(1))
    state = create(factors(), tx, ADAPTERS, mesh)
    base = jax.device_put(weights(), sharding.shardings(SPECS, mesh))
    rows = jax.device_put(batch, sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        state, found = run(state, FrozenParams(base, {}), rows, jax.random.key(1))
    for name, value in want.items():
        assert float(found[name]) == pytest.approx(float(value), rel=1e-4), name
    cut = state.params["blocks"]["gen"]["q"]["lora"]
    own = {name: leaf.addressable_shards[0].data.shape for name, leaf in cut.items()}
    assert own == {"a": (2, 8, RANK), "b": (2, RANK, 2, 4)}  # of 16 features and 4 heads
    assert state.opt_state[1][0].mu["blocks"]["gen"]["q"]["lora"]["a"].sharding == cut["a"].sharding
    for path, leaf in param_tree.flatten(state.params).items():
        np.testing.assert_allclose(leaf, param_tree.flatten(one.params)[path], rtol=1e-4, atol=2e-5)
    merged = lora.merge(base, state.params, SCALE)["blocks"]["gen"]["q"]["w"]
    want = lora.merge(weights(), jax.device_get(one.params), SCALE)["blocks"]["gen"]["q"]["w"]
    np.testing.assert_allclose(merged, want, rtol=1e-4, atol=1e-4)
