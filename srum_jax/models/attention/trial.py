"""A kernel against dense attention on the device at hand, before a run takes it unasked.

No kernel was run on its chip by those who wrote this; a few hundred random tokens say whether it
does there what it does in tests.
"""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging

from srum_jax.core import sharding
from srum_jax.data.schema import CAUSAL, FULL, Tokens
from srum_jax.models.attention import dense, lanes
from srum_jax.models.attention.keys import Keys

_NEW, _PAST = 258, 130  # tokens: more than a block of a kernel, and no multiple of one
_MOST = 0.02  # relative error; bfloat16 rounds by 0.002, a wrong key changes far more


@functools.cache
def passes(name: str, heads: int, kv_heads: int, head_dim: int, dtype: str) -> bool:
    """Whether the back-end `name` equals dense attention here: under a mask, and behind a cache.

    Tried once a process. What is found is logged where it is not so.
    """
    single = types.SimpleNamespace(**dict.fromkeys(sharding.MESH_AXES, 1))
    try:
        with jax.set_mesh(sharding.make_mesh(single, jax.local_devices()[:1])):
            worst = max(_errors(name, heads, kv_heads, head_dim, dtype))
    except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError, ValueError) as e:
        logging.warning("attention: %s does not run here, another is taken: %s", name, e)
        return False
    if not worst < _MOST:
        logging.warning("attention: %s is wrong here by %.2g, another is taken", name, worst)
        return False
    return True


def _errors(name: str, heads: int, kv_heads: int, head_dim: int, dtype: str) -> list[float]:
    rng, backend = np.random.default_rng(0), lanes.named(name)

    def draw(count, heads):
        return jnp.asarray(rng.normal(size=(2, count, heads, head_dim)), dtype)

    q = dense.scaled(3 * draw(_NEW, heads), dtype)
    k, v, past_k, past_v = (draw(count, kv_heads) for count in (_NEW, _NEW, _PAST, _PAST))
    used = np.arange(_PAST)[None] < np.array([[_PAST], [57]])
    past_v = jnp.where(used[:, :, None, None], past_v, 1e3)  # a free slot that is read is noticed
    pieces = [Keys(k, v), Keys(past_k, past_v, jnp.asarray(used))]

    place = np.broadcast_to(np.arange(_NEW, dtype=np.int32), (2, _NEW))
    text = place < 100  # and a picture behind it
    mode = np.where(text, CAUSAL, FULL).astype(np.int32)
    segment, split = np.ones_like(place), np.where(text, 0, 1).astype(np.int32)
    tokens = Tokens(segment, split, mode, np.minimum(place, 100), place)

    def behind(by, q, k, v, pieces, tokens):
        return by.read(q, pieces)

    def under_a_mask(by, q, k, v, pieces, tokens):
        return by.run(q, k, v, by.prepare(tokens, tokens))

    def relative(way):
        run = jax.jit(way, static_argnums=0)
        a, b = (np.asarray(run(by, q, k, v, pieces, tokens), np.float32) for by in (backend, dense))
        return float(np.linalg.norm(a - b) / np.linalg.norm(b))

    return [relative(way) for way in (behind, under_a_mask)]
