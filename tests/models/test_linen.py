"""The linen bridge: the package's own parameters and functions, bit for bit."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import peak_memory
import pytest
from flax import linen as nn
from flax.errors import ScopeParamShapeError
from samples import CFG, edit, jit, pack, questions, weights

from srum_jax.core import param_tree
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel import model_config
from srum_jax.models.bagel.linen import BagelModule

MODEL = BagelModule(CFG)
KEY = functools.partial(jax.random.key, impl="unsafe_rbg")  # compiles in a tenth of the time


@pytest.fixture(scope="module")
def params():
    return weights()


@pytest.fixture(scope="module")
def inputs():
    """(batch, x_t, t) of two rows with every kind of token."""
    batch = pack([[edit(1)], [questions(2)]])
    return batch, batch.latents, jnp.full(batch.noisy.shape, 0.3)


def same(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_apply_is_the_forward(params, inputs, dtype):
    model = BagelModule(CFG, dtype=dtype)
    found = jit(lambda p: model.apply({"params": p}, *inputs, keep="hidden"))(params)
    want = jit(lambda p: bagel.forward(p, CFG, *inputs, dtype=dtype, keep="hidden"))(params)
    assert found[0].dtype == dtype and found[2][0].shape[0] == CFG.llm.layers
    same(found, want)


def test_what_is_read_is_the_same(params):
    rng = np.random.default_rng(0)
    x = np.float32(rng.normal(size=(2, 3, CFG.llm.hidden)))
    slots = np.array([[2, 0], [1, 1]])
    bound = MODEL.bind({"params": params})
    same(bound.velocity(x), bagel.velocity(params, x))
    found = MODEL.apply({"params": params}, x, slots, method="logits")
    same(found, bagel.logits(params, x, slots))


@pytest.mark.slow
def test_gradients_are_the_same(params, inputs):
    def gradient(forward):
        def loss(p):
            und, gen, _ = forward(p)
            return jnp.mean(jnp.square(und)) + jnp.mean(jnp.square(bagel.velocity(p, gen)))

        return jit(jax.grad(loss))(params)

    found = gradient(lambda p: MODEL.apply({"params": p}, *inputs))
    assert any(np.any(x) for x in jax.tree.leaves(found))
    same(found, gradient(lambda p: bagel.forward(p, CFG, *inputs)))


def test_init_is_the_trees_own(inputs):
    """Of every part one leaf by value: a whole initialiser takes long to compile."""
    specs = bagel.specs(CFG)
    found = jax.eval_shape(MODEL.init, KEY(4), *inputs)
    assert set(found) == {"params"} and type(found["params"]) is dict
    assert found["params"] == param_tree.abstract(specs)

    def some(params):
        flat = param_tree.flatten(params)
        return {path.split("/")[0]: leaf for path, leaf in flat.items() if leaf.ndim > 1}

    drawn = jit(lambda key: some(MODEL.init(key, *inputs)["params"]))(KEY(4))
    assert set(drawn) == set(specs) - {"norm"}
    same(drawn, jit(lambda key: some(param_tree.init(specs, key)))(KEY(4)))


def test_two_in_one_module_differ(params):
    class Pair(nn.Module):
        @nn.compact
        def __call__(self, x):
            return [BagelModule(CFG, name=name).velocity(x) for name in ("first", "second")]

    x = jnp.ones((1, 2, CFG.llm.hidden))
    first, second = jit(
        lambda key: [tree["embed"] for tree in Pair().init(key, x)["params"].values()]
    )(KEY(0))
    assert np.any(first != second)
    found = Pair().apply({"params": {"first": params, "second": weights(seed=1)}}, x)
    same(found, [bagel.velocity(p, x) for p in (params, weights(seed=1))])


def test_parameters_of_another_model_are_refused(params, inputs):
    wrong = params | {"lm_head": {"w": params["lm_head"]["w"][:, 1:]}}
    with pytest.raises(ScopeParamShapeError, match="lm_head"):
        jax.eval_shape(lambda: MODEL.apply({"params": wrong}, *inputs))


def test_the_big_preset_initialises_as_shapes():
    cfg = model_config.BAGEL_7B_MOT
    batch = pack([[questions(0)]])
    batch = batch.replace(
        vit_patches=np.zeros((*batch.vit_positions.shape, cfg.vit.patch**2 * 3), np.float32)
    )
    x_t = np.zeros((*batch.latent_positions.shape, cfg.token_dim), np.float32)
    model = BagelModule(cfg, param_dtype=jnp.bfloat16)
    given = (jax.random.key(0), batch, x_t, np.zeros(batch.noisy.shape))
    made, size = peak_memory.grown(lambda: jax.eval_shape(model.init, *given))
    assert made["params"] == param_tree.abstract(bagel.specs(cfg), jnp.bfloat16)
    assert size < 2**29  # the embeddings alone take twice that
