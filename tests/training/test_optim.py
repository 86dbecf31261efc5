"""Optimisers: the schedule's values, and what Muon takes for a matrix."""

import dataclasses
import re
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from srum_jax import config
from srum_jax.configs import base
from srum_jax.core import param_tree, sharding
from srum_jax.models.bagel import mot
from srum_jax.models.bagel.model_config import LLMConfig
from srum_jax.training import optim

CFG = dataclasses.replace(
    config.load(base.get_config()).train.optim, optimizer="adamw", learning_rate=4e-4
)
LLM = LLMConfig(hidden=8, layers=3, heads=4, kv_heads=2, ffn=12, vocab=5)
# The blocks of the real model: q [L,D,H,C], o [L,H,C,D], gate [L,D,F], down [L,F,D].
SPECS = {
    **mot.specs(LLM),
    "embed": param_tree.ParamSpec((5, 8), ("vocab", "embed")),
    "lm_head": param_tree.linear({"embed": 8}, {"vocab": 5}, bias=False),
}


@pytest.mark.parametrize(
    "kind, values",
    [
        ("constant", [0.25, 0.5, 0.75, 1, 1, 1, 1, 1]),
        ("linear", [0.25, 0.5, 0.75, 1, 1, 0.75, 0.5, 0.25]),
        ("cosine", [0.25, 0.5, 0.75, 1, 1, 0.855018, 0.505, 0.154982]),
    ],
)
def test_schedules(kind, values):
    """Warm-up counts from 1; what follows starts at the full rate and ends past the last step."""
    rate = optim.schedule(kind, learning_rate=2.0, warmup=4, steps=8)
    np.testing.assert_allclose([rate(i) for i in range(8)], 2 * np.array(values), rtol=1e-5)
    assert float(rate(8)) == pytest.approx({"constant": 2, "linear": 0, "cosine": 0.02}[kind])


def test_warm_up_of_nothing_and_of_everything():
    flat = optim.schedule("linear", learning_rate=2.0, warmup=0, steps=4)
    np.testing.assert_allclose([flat(i) for i in range(4)], [2, 1.5, 1, 0.5])
    short = optim.schedule("linear", learning_rate=2.0, warmup=10, steps=4)
    np.testing.assert_allclose([short(i) for i in range(4)], [0.5, 1, 1.5, 2])
    one = optim.schedule("constant", learning_rate=2.0, warmup=1, steps=4)
    np.testing.assert_allclose([one(i) for i in range(3)], [2, 2, 2])


def test_the_rate_that_is_reported_is_the_one_used():
    cfg = dataclasses.replace(CFG, learning_rate=0.1, warmup=2, schedule="linear", clip_norm=0.0)
    specs = {"w": param_tree.ParamSpec((3,), (None,))}
    tx = optim.make(cfg, specs, steps=6)
    params = {"w": jnp.zeros(3)}
    state = tx.init(params)
    for step in range(6):
        # Adam's first moments of a constant gradient cancel: an update is the rate itself.
        updates, state = tx.update({"w": jnp.ones(3)}, state, params)
        rate = optim.learning_rate(cfg, step, steps=6)
        np.testing.assert_allclose(updates["w"], -rate, rtol=1e-5)
    assert isinstance(rate, float)


def test_what_muon_takes_for_a_matrix():
    found = optim.muon_dimensions(SPECS, param_tree.abstract(SPECS))
    und = found["blocks"]["und"]
    want = {
        "q": ((1,), (2, 3)),
        "k": ((1,), (2, 3)),
        "v": ((1,), (2, 3)),
        "o": ((1, 2), (3,)),
        "gate": ((1,), (2,)),
        "up": ((1,), (2,)),
        "down": ((1,), (2,)),
    }
    for name, (inputs, outputs) in want.items():
        dims = und[name]["w"]
        assert (dims.reduction_axis, dims.output_axis) == (inputs, outputs), name
    assert found["blocks"]["gen"] == und
    rest = {p for p, x in param_tree.flatten(found).items() if x is None}
    assert rest == {
        p for p in param_tree.flatten(SPECS) if not (p.startswith("blocks/") and "/w" in p)
    }
    assert {"embed", "lm_head/w", "norm/und/scale", "blocks/und/q/b"} <= rest


@pytest.fixture(scope="module")
def stepped():
    """Gradients and the first update of Muon on all leaves."""
    cfg = dataclasses.replace(
        CFG,
        optimizer="muon",
        learning_rate=1.0,
        adam_learning_rate=0.01,
        warmup=0,
        schedule="constant",
        clip_norm=0.0,
        weight_decay=0.0,
    )
    tx = optim.make(cfg, SPECS, steps=10)
    params = param_tree.init(SPECS, jax.random.key(0))
    # Of very different sizes, which orthogonalised updates forget.
    grads = jax.tree.map(lambda x: 100 * x, param_tree.init(SPECS, jax.random.key(1)))
    updates, _ = jax.jit(tx.update)(grads, jax.jit(tx.init)(params), params)
    return param_tree.flatten(grads), param_tree.flatten(updates)


def matrices(leaf, inputs):
    """[L, inputs, outputs]."""
    return np.asarray(leaf).reshape(leaf.shape[0], int(np.prod(leaf.shape[1 : 1 + inputs])), -1)


def orthogonalised(x):
    """Five Newton-Schulz steps of one matrix, with the coefficients of Muon's authors."""
    x = x / np.linalg.norm(x)
    for _ in range(5):
        square = x @ x.T
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * square @ square) @ x
    return x


@pytest.mark.slow
@pytest.mark.parametrize("name, inputs", [("q", 1), ("k", 1), ("o", 2), ("gate", 1), ("down", 1)])
def test_every_layer_is_orthogonalised_for_itself(stepped, name, inputs):
    grads, updates = (tree[f"blocks/gen/{name}/w"] for tree in stepped)
    for gradient, update in zip(matrices(grads, inputs), matrices(updates, inputs), strict=True):
        size = 0.2 * np.sqrt(max(gradient.shape))  # so that a number of any update is about 0.2
        wanted = -size * orthogonalised(np.float64(gradient))
        np.testing.assert_allclose(update, wanted, rtol=0, atol=1e-4)


def test_layers_do_not_mix():
    """Another gradient in one layer changes that layer's update alone."""
    cfg = dataclasses.replace(CFG, optimizer="muon", warmup=0, clip_norm=0.0)
    specs = {"blocks": {"o": SPECS["blocks"]["gen"]["o"]}}
    tx = optim.make(cfg, specs, steps=10)
    params = param_tree.init(specs, jax.random.key(0))
    update = jax.jit(lambda g: tx.update(g, tx.init(params), params)[0]["blocks"]["o"]["w"])
    one = update(params)
    other = update(jax.tree.map(lambda x: x.at[1].set(x[1, ::-1] ** 3), params))
    same = [bool(np.allclose(a, b, rtol=1e-5)) for a, b in zip(one, other, strict=True)]
    assert same == [True, False, True]


@pytest.mark.parametrize(
    "data, context, shared",
    [
        (2, 1, 2),
        pytest.param(1, 3, 3, marks=pytest.mark.slow),
        pytest.param(4, 1, 1, marks=pytest.mark.slow),
    ],
)
def test_devices_with_the_same_parameters_share_the_layers(data, context, shared):
    """Six layers: over two devices each orthogonalises three, over four each all of them."""
    layers = mot.specs(dataclasses.replace(LLM, layers=6))["blocks"]["gen"]
    specs = {"blocks": {"gen": {name: layers[name] for name in ("q", "down")}}}
    sizes = types.SimpleNamespace(data=data, fsdp=1, tensor=1, context=context)
    mesh = sharding.make_mesh(sizes, jax.devices()[: data * context])
    tx = optim.make(dataclasses.replace(CFG, optimizer="muon"), specs, steps=4)
    params = param_tree.init(specs, jax.random.key(0))
    alone, _ = jax.jit(tx.update)(params, tx.init(params), params)
    with jax.set_mesh(mesh):
        whole = sharding.replicated(mesh)
        state = tx.init(params)
        run = jax.jit(tx.update, in_shardings=whole, out_shardings=whole)
        found, _ = run(params, state, params)
        compiled = run.lower(params, state, params).compile().as_text()
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)
    products = re.findall(r"= f32\[(\d+),8,8\]\S* dot\(", compiled)
    assert products and set(products) == {str(6 // shared)}


@pytest.mark.slow
def test_the_rest_goes_to_adam(stepped):
    """Whose first update is the gradient's sign, whatever its size."""
    for path in ("embed", "lm_head/w"):
        gradient, update = (tree[path] for tree in stepped)
        # Muon's companion looks ahead in optax: the rate times 1 + b1 (1 - b1) / (1 - b1²).
        size = 0.01 * (1 + 0.9 * 0.1 / (1 - 0.9**2))
        np.testing.assert_allclose(update, -size * np.sign(gradient), rtol=1e-3)


def test_clipping_is_of_the_whole_gradient():
    specs = {name: param_tree.ParamSpec((2,), (None,)) for name in "ab"}
    cfg = dataclasses.replace(CFG, clip_norm=1.0, warmup=0, b1=0.0, b2=0.0, eps=1.0)
    params = {name: jnp.zeros(2) for name in "ab"}
    grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
    tx = optim.make(cfg, specs, steps=10)
    updates, _ = tx.update(grads, tx.init(params), params)
    # Without moments and with eps = 1, Adam's update of g is -rate · g / (|g| + 1).
    np.testing.assert_allclose(updates["a"][0], -CFG.learning_rate * 0.6 / 1.6, rtol=1e-5)
    np.testing.assert_allclose(updates["b"][1], -CFG.learning_rate * 0.8 / 1.8, rtol=1e-5)


def test_weight_decay_shrinks(tmp_path):
    specs = {"w": param_tree.ParamSpec((2,), (None,))}
    cfg = dataclasses.replace(CFG, weight_decay=0.5, warmup=0, schedule="constant")
    tx = optim.make(cfg, specs, steps=10)
    params = {"w": jnp.full(2, 3.0)}
    updates, _ = tx.update({"w": jnp.zeros(2)}, tx.init(params), params)
    np.testing.assert_allclose(updates["w"], -cfg.learning_rate * 0.5 * 3.0, rtol=1e-5)
