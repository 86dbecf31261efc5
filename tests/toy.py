"""A regression of a few numbers in the trainer's form, for tests of the loop and the step."""

import dataclasses
import threading
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath

from srum_jax.configs.base import LoopConfig, OptimConfig
from srum_jax.core import param_tree, sharding
from srum_jax.core.loss import LossOut, ratio
from srum_jax.training import callbacks, loop, metrics, optim
from srum_jax.training.checkpoint import Checkpoints
from srum_jax.training.state import FrozenParams, create

ROWS, FEATURES, HIDDEN = 8, 4, 6
FROZEN = {"mix": param_tree.linear({"embed": FEATURES}, {"mlp": HIDDEN}, bias=False)}
TRAINED = {"out": param_tree.linear({"mlp": HIDDEN}, {"embed": FEATURES}, bias=True)}


def loss_fn(trained_and_frozen, reference, batch, key):
    """Weighted squared error of a noisy input's image; the noise goes by the row's id."""
    p = trained_and_frozen
    noise = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (FEATURES,)))(
        batch["ids"]
    )
    hidden = jnp.tanh((batch["x"] + 0.1 * noise) @ p["mix"]["w"])
    out = hidden @ p["out"]["w"] + p["out"]["b"][None]
    error = jnp.square(out - batch["y"]).sum(-1)
    terms = {
        "square": ratio((batch["weight"] * error).sum(), batch["weight"].sum()),
        "size": ratio(jnp.abs(out).sum(), out.size),
    }
    metrics = {"noise": ratio(jnp.abs(noise).sum(), noise.size)}
    if reference is not None:
        moved = jnp.abs(p["out"]["w"] - reference["out"]["w"]).sum()
        metrics["moved"] = ratio(moved * len(noise), len(noise))
    return LossOut(terms, metrics, (("square", 1.0), ("size", 0.1)))


def batch(step):
    """Batch number `step`; rows differ much in weight."""
    rng = np.random.default_rng(step)
    x = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    weight = np.array([0, 5, 1, 2, 0, 30, 0.5, 1], np.float32)
    ids = np.arange(step * ROWS, (step + 1) * ROWS, dtype=np.uint32)
    return {"x": x, "y": 1 + x[:, ::-1], "weight": weight, "ids": ids}


def batches(start):
    """The endless sequence from `start` on."""
    while True:
        yield batch(start)
        start += 1


@dataclasses.dataclass(frozen=True)
class StoppingBatches:
    """`batches` that ask a run to stop, by `told`, as they hand out that of step 4."""

    told: threading.Event

    def __call__(self, start):
        for step, made in enumerate(batches(start), start):
            if step == 4:
                self.told.set()
            yield made


def on_devices(batch, mesh):
    """Host arrays in their place, as the loop wants them; arrays of devices as they are."""
    if not isinstance(batch["x"], np.ndarray):
        return batch
    at = sharding.batch_sharding(mesh) if mesh else None
    return jax.device_put(batch, at)


@dataclasses.dataclass(frozen=True)
class Evaluator:
    """Functions as the loop asks them."""

    folder: epath.Path
    function: Callable
    ends: Callable = lambda n: False

    def evaluate(self, n, state):
        return self.function(n, state)

    def measured(self, n):
        rows = metrics.read(self.folder / "metrics.jsonl")
        return any(row["step"] == n and "loss" not in row for row in rows)

    def enough(self, n):
        return self.ends(n)


def loop_config(**values):
    """The keys of the loop: 8 steps, every one logged, a checkpoint every second."""
    rate = OptimConfig(
        optimizer="adamw", learning_rate=0.05, warmup=2, schedule="cosine", b2=0.99, eps=1e-8
    )
    small = {"steps": 8, "optim": rate, "ema": 0.9, "checkpoint_every": 2, "log_every": 1}
    return LoopConfig(**(small | values))


def start(cfg, mesh=None):
    """(fresh state, what never changes, optimiser)."""
    tx = optim.make(cfg.optim, TRAINED, steps=cfg.steps)
    trained, frozen = (param_tree.init(s, jax.random.key(0)) for s in (TRAINED, FROZEN))
    reference = jax.tree.map(jnp.copy, trained)
    if mesh:
        frozen = jax.device_put(frozen, sharding.shardings(FROZEN, mesh))
        reference = jax.device_put(reference, sharding.shardings(TRAINED, mesh))
    return create(trained, tx, TRAINED if mesh else None, mesh), FrozenParams(frozen, reference), tx


def run(
    folder,
    stop,
    cfg=None,
    batches=batches,
    loss_fn=loss_fn,
    mesh=None,
    evaluate=None,
    enough=lambda n: False,
    **more,
):
    """The loop on this problem, its files in `folder`: (state, summary)."""
    cfg, folder = cfg or loop_config(), epath.Path(folder)
    state, frozen, tx = start(cfg, mesh)
    checkpoints = Checkpoints(folder / "checkpoints", keep=2)
    state = checkpoints.newest(state, lambda: state, steps=cfg.steps)
    key = jax.random.key(7)
    return loop.run(
        state,
        loop.Step.of(state, frozen, loss_fn=loss_fn, tx=tx, key=key, cfg=cfg),
        (on_devices(batch, mesh) for batch in batches(int(state.step))),
        callbacks.standard(
            cfg,
            folder,
            state,
            title="toy",
            meta={"stage": "toy"},
            checkpoints=checkpoints,
            stop=stop,
            evaluator=evaluate and Evaluator(folder, evaluate, enough),
            **more,
        ),
        steps=cfg.steps,
    )


def assert_same(one, other):
    """Every leaf bit for bit."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(one), jax.tree.leaves(other), strict=True)
    for (path, a), b in pairs:
        np.testing.assert_array_equal(a, b, err_msg=jax.tree_util.keystr(path))
