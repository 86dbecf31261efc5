"""A step: micro-batches change nothing, bad numbers change nothing, noise goes by step and id."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import toy

from srum_jax.config import MeshConfig
from srum_jax.core import sharding
from srum_jax.training import step as training_step
from srum_jax.training.step import gradients

CFG = toy.loop_config()
STATE, FIXED, TX = toy.start(CFG)


@functools.cache
def stepper(micro_batches=1, loss_fn=toy.loss_fn, tx=TX):
    return jax.jit(
        functools.partial(
            training_step.step, loss_fn=loss_fn, tx=tx, ema=CFG.ema, micro_batches=micro_batches
        )
    )


def close(one, other, tolerance=2e-6):
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), one, other
    )


@functools.cache
def gradient(parts):
    return jax.jit(functools.partial(gradients, toy.loss_fn, micro_batches=parts))


def taken(parts, batch=None, params=STATE.params):
    return gradient(parts)(params, FIXED, batch or toy.batch(0), jax.random.key(3))


@pytest.mark.parametrize("parts", [2, 4])
def test_micro_batches_are_only_a_way_to_save_memory(parts):
    """Their weights are unequal, one may even weigh nothing."""
    loss, means, grads = taken(1)
    assert set(means) == {"square", "size", "noise", "moved"}
    close(taken(parts), (loss, means, grads))
    weights = toy.batch(0)["weight"].reshape(-1, parts).sum(0)
    assert len(set(weights)) == parts  # else the mean of means would do as well
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(grads)) > 0.1
    assert float(loss) == pytest.approx(float(means["square"] + 0.1 * means["size"]), rel=1e-6)


def test_a_micro_batch_without_weight_adds_nothing():
    batch = toy.batch(0)
    batch["weight"] = np.array([0, 1] * 4, np.float32)  # every second row: one of two parts
    close(taken(2, batch), taken(1, batch))


def test_whole_steps_agree_too():
    one, two = STATE, STATE
    for n in range(3):
        one, metrics = stepper(1)(one, FIXED, toy.batch(n), jax.random.key(0))
        two, metrics2 = stepper(4)(two, FIXED, toy.batch(n), jax.random.key(0))
        close(metrics2, metrics, 2e-5)
    close(two, one, 2e-5)
    assert int(one.step) == 3 and float(metrics["moved"]) > 0


def test_gradients_by_finite_differences():
    """Of the whole loss in every trained leaf."""
    _, _, grads = taken(1)

    def value(w):
        return taken(1, params={"out": {**STATE.params["out"], "w": w}})[0]

    w = STATE.params["out"]["w"]
    for at in [(0, 0), (5, 3)]:
        slope = (value(w.at[at].add(1e-2)) - value(w.at[at].add(-1e-2))) / 2e-2
        assert float(slope) == pytest.approx(float(grads["out"]["w"][at]), rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("name", ["x", "y", "weight"])
def test_bad_numbers_leave_everything_as_it_was_and_are_counted(name):
    before, _ = stepper()(STATE, FIXED, toy.batch(0), jax.random.key(0))
    bad = toy.batch(1)
    bad[name] = np.full_like(bad[name], np.nan)
    after, metrics = stepper()(before, FIXED, bad, jax.random.key(0))
    for part in ("params", "opt_state", "ema"):
        toy.assert_same(getattr(after, part), getattr(before, part))
    assert not np.isfinite(metrics["loss"])
    assert int(after.step) == 2  # the next batch is another one
    after, _ = stepper()(after, FIXED, bad, jax.random.key(0))
    assert int(after.skipped) == int(after.skipped_in_row) == 2
    after, metrics = stepper()(after, FIXED, toy.batch(3), jax.random.key(0))
    assert int(after.skipped) == metrics["skipped_steps"] == 2 and int(after.skipped_in_row) == 0
    assert not np.array_equal(after.params["out"]["w"], before.params["out"]["w"])


def test_an_overflowing_gradient_is_bad_too():
    def loss_fn(p, reference, batch, key):
        out = toy.loss_fn(p, reference, batch, key)
        total, weight = out.terms["square"]
        spike = jnp.sqrt(jnp.abs(p["out"]["b"] - p["out"]["b"]).sum())  # 0, with slope inf·0
        return out.replace(terms={**out.terms, "square": (total + spike, weight)})

    after, metrics = stepper(1, loss_fn)(STATE, FIXED, toy.batch(0), jax.random.key(0))
    assert np.isfinite(metrics["loss"]) and not np.isfinite(metrics["grad_norm"])
    assert int(after.skipped) == 1
    toy.assert_same(after.params, STATE.params)


def test_only_trained_leaves_are_trained_but_frozen_ones_count():
    after, metrics = stepper()(STATE, FIXED, toy.batch(0), jax.random.key(0))
    assert set(after.params) == set(after.ema) == {"out"}
    other = FIXED.replace(frozen=jax.tree.map(lambda x: 2 * x, FIXED.frozen))
    _, changed = stepper()(STATE, other, toy.batch(0), jax.random.key(0))
    assert float(changed["loss"]) != float(metrics["loss"])
    assert set(jax.eval_shape(lambda: taken(1))[2]) == {"out"}


def test_noise_depends_on_step_and_id_alone():
    key = jax.random.key(0)
    batch = toy.batch(5)
    turned = jax.tree.map(lambda x: x[::-1], batch)
    _, metrics = stepper()(STATE, FIXED, batch, key)
    _, same = stepper()(STATE, FIXED, turned, key)
    close(same, metrics)
    later = STATE.replace(step=STATE.step + 1)
    _, other = stepper()(later, FIXED, batch, key)
    assert abs(float(other["noise"]) - float(metrics["noise"])) > 1e-3
    _, other = stepper()(STATE, FIXED, {**batch, "ids": batch["ids"] + 1}, key)
    assert abs(float(other["noise"]) - float(metrics["noise"])) > 1e-3
    _, again = stepper()(
        STATE.replace(params=jax.tree.map(jnp.ones_like, STATE.params)), FIXED, batch, key
    )
    assert float(again["noise"]) == float(metrics["noise"])


def test_the_average_is_young_at_first():
    after, _ = stepper()(STATE, FIXED, toy.batch(0), jax.random.key(0))
    share = 1 - 1 / 10  # of the new value at step 0, as ema = 0.9 is longer
    want = jax.tree.map(lambda a, p: a + share * (p - a), STATE.ema, after.params)
    close(after.ema, want)
    old = STATE.replace(step=STATE.step + 1000)
    after, _ = stepper()(old, FIXED, toy.batch(0), jax.random.key(0))
    want = jax.tree.map(lambda a, p: a + 0.1 * (p - a), STATE.ema, after.params)
    close(after.ema, want)


def flops(jitted, *args):
    """Operations that one device takes for a call."""
    return jitted.lower(*args).compile().cost_analysis()["flops"]


def test_many_devices_do_what_one_does():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, context=1), jax.devices())
    state, fixed, tx = toy.start(CFG, mesh)
    for w in (state.params["out"]["w"], state.opt_state[1][0].mu["out"]["w"]):
        assert w.addressable_shards[0].data.shape == (toy.HIDDEN // 2, toy.FEATURES // 2)
    one, key = STATE, jax.random.key(0)
    for n in range(2):
        rows = jax.device_put(toy.batch(n), sharding.batch_sharding(mesh))
        with jax.set_mesh(mesh):
            shared = flops(stepper(2, tx=tx), state, fixed, rows, key)
            state, metrics = stepper(2, tx=tx)(state, fixed, rows, key)
        one, want = stepper(2)(one, FIXED, toy.batch(n), key)
    close(metrics, want, 1e-5)
    # Rows are cut over four devices, products over eight; a whole batch on each would make half.
    assert shared < 0.35 * flops(stepper(2), STATE, FIXED, toy.batch(0), key)
    close(jax.device_get(state), jax.device_get(one), 1e-5)


# ------------------------------------------------------------------------------ what is compiled


def aliased(text):
    """{number of an output: number of the argument whose memory it takes} of a compiled program."""
    pairs = re.findall(r"\{(\d*)\}: \((\d+), \{\}, (?:may|must)-alias\)", text.split("\n", 1)[0])
    return {int(output or 0): int(argument) for output, argument in pairs}


@pytest.mark.parametrize("sizes", [(1, 1, 1), (2, 2, 2)])
def test_the_new_state_takes_the_memory_of_the_old(sizes):
    """Every array of it, in place; nothing else is given away."""
    data, fsdp, tensor = sizes
    devices = jax.devices()[: data * fsdp * tensor]
    mesh = sharding.make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor, context=1), devices)
    state, fixed, tx = toy.start(CFG, mesh)
    jitted = training_step.program(toy.loss_fn, tx, ema=CFG.ema, micro_batches=2)
    rows = jax.device_put(toy.batch(0), sharding.batch_sharding(mesh))
    with jax.set_mesh(mesh):
        compiled = jitted.lower(state, fixed, rows, jax.random.key(0)).compile()
        leaves = jax.tree.leaves(state)
        count = len(leaves)
        assert aliased(compiled.as_text()) == {i: i for i in range(count)}
        held = sum(x.addressable_shards[0].data.nbytes for x in leaves)
        assert compiled.memory_analysis().alias_size_in_bytes == held
        new, _ = jitted(state, fixed, rows, jax.random.key(0))
    assert all(x.is_deleted() for x in leaves) and not fixed.frozen["mix"]["w"].is_deleted()
    for old, x in zip(leaves, jax.tree.leaves(new), strict=True):
        assert old.sharding.is_equivalent_to(x.sharding, x.ndim)


def test_one_program_for_every_step():
    """Whatever the numbers, also bad ones."""
    state, fixed, tx = toy.start(CFG)
    jitted = training_step.program(toy.loss_fn, tx, ema=CFG.ema, micro_batches=1)
    for n in range(12):
        rows = toy.batch(n)
        rows["x"][0, 0] = np.nan if n == 5 else n
        rows["weight"][:] = rows["weight"] * n
        state, metrics = jitted(state, fixed, rows, jax.random.key(0))
    assert int(state.step) == 12 and int(state.skipped) == 1
    assert jitted._cache_size() == 1
