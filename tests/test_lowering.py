"""A train step of BAGEL-7B-MoT lowers from abstract shapes: nothing of its size is allocated."""

import functools
import resource

import jax
import jax.numpy as jnp
import pytest

import configs.base
from srum_jax import config
from srum_jax.core import params as P
from srum_jax.core import sharding
from srum_jax.data import packing
from srum_jax.data.schema import Lanes
from srum_jax.models import bagel
from srum_jax.models.config import BAGEL_7B_MOT
from srum_jax.objectives import srum
from srum_jax.stages.model import trainable
from srum_jax.training import optim, state, step

ROWS = 8
LANES = Lanes(und=512, gen=8192, vit=0, labels=0, images=2, regions=8)  # two 1024² images a row


def placed(tree, shardings):
    return jax.tree.map(
        lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings
    )


@pytest.mark.parametrize("objective", ["srum_advantage", "srum_release"])
def test_train_step_of_the_7b_preset_lowers(objective):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    values = configs.base.get_config()
    values.train.objective = objective
    cfg = config.load(values).train
    mesh = sharding.make_mesh(config.MeshConfig(data=1, fsdp=-1, tensor=1, context=1))
    specs = bagel.specs(BAGEL_7B_MOT)
    assert P.count(specs) == pytest.approx(14.607e9, rel=0.01)
    accepts = trainable("gen")
    trained, frozen = P.split(specs, accepts)
    masters = placed(P.abstract(trained, jnp.float32), sharding.shardings(trained, mesh))
    fixed = state.Fixed(
        frozen=placed(P.abstract(frozen, jnp.bfloat16), sharding.shardings(frozen, mesh)),
        reference=placed(P.abstract(trained, jnp.bfloat16), sharding.shardings(trained, mesh))
        if objective in srum.NEED_REFERENCE
        else None,
    )
    tx = optim.make(cfg.optim, trained, steps=cfg.steps)
    scalar = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    moments = sharding.optimizer_shardings(tx, masters, sharding.shardings(trained, mesh), mesh)
    start = state.TrainState(
        step=scalar,
        params=masters,
        opt_state=placed(jax.eval_shape(tx.init, masters), moments),
        ema=masters,
        skipped=scalar,
        skipped_in_row=scalar,
    )
    one = packing.pack([[]], LANES, BAGEL_7B_MOT, rewards=True)
    rows = sharding.batch_sharding(mesh)
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((ROWS, *x.shape[1:]), x.dtype, sharding=rows), one
    )
    run = functools.partial(
        step.step,
        loss_fn=srum.make(cfg, BAGEL_7B_MOT, dtype=jnp.bfloat16, remat=True),
        tx=tx,
        ema=cfg.ema,
        micro_batches=1,
    )
    lowered = jax.jit(run, donate_argnums=0).lower(start, fixed, batch, jax.random.key(0))
    text = lowered.as_text()
    assert "stablehlo.while" in text  # layers are scanned, not written out 28 times
    assert len(text) < 3_000_000
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**20
    assert grown < 1.0, f"{grown:.2f} GiB were allocated"
