"""Training from first values: the worlds' bases and autoencoders.

Owns what their stages share: the state, newest or fresh, the step, and the run with its callbacks.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from etils import epath

from srum_jax.config import Config, LoopConfig
from srum_jax.core import param_tree, preemption, sharding
from srum_jax.data import pipeline
from srum_jax.stages.manifest import Outcome
from srum_jax.training import callbacks, loop, optim
from srum_jax.training.checkpoint import Checkpoints
from srum_jax.training.state import FrozenParams, TrainState, create, placed


@dataclasses.dataclass(frozen=True)
class FromScratch:
    """A run of the stage `title`.

    cfg: of the whole run, its seed and its log · recipe: steps, optimiser, checkpoints · specs: of
    the parameters that are trained · loss_fn: of a batch, as `training/loop.py` takes one · first:
    their values where there is no checkpoint; None: random ones · frozen: parameters beside them
    that stay.
    """

    title: str
    cfg: Config
    recipe: LoopConfig
    specs: param_tree.Specs
    loss_fn: Callable
    first: param_tree.Params | None = None
    frozen: param_tree.Params = dataclasses.field(default_factory=dict)

    def run(
        self,
        mesh: jax.sharding.Mesh,
        folder: epath.Path,
        make: Callable[[int], Any],
        *,
        evaluator: callbacks.Evaluator | None = None,
        evaluate_every: int = 0,
    ) -> tuple[TrainState, Outcome]:
        """(the state after all steps, the stage's outcome); goes on from the newest checkpoint in
        `folder`. make: the batch of a step, this host's rows."""
        c, key = self.recipe, jax.random.key(self.cfg.seed)
        tx = optim.make(c.optim, self.specs, steps=c.steps)
        checkpoints = Checkpoints(folder / "checkpoints", keep=c.keep)

        def fresh() -> TrainState:
            params = self.first or param_tree.init(self.specs, key)
            return create(params, tx, self.specs, mesh)

        state = checkpoints.newest(placed(tx, self.specs, mesh), fresh, steps=c.steps)
        fixed = FrozenParams(sharding.put(self.frozen, sharding.replicated(mesh)), None)
        step = loop.Step.of(state, fixed, loss_fn=self.loss_fn, tx=tx, key=key, cfg=c)
        at = sharding.batch_sharding(mesh)
        state, summary = loop.run(
            state,
            step,
            pipeline.batches(make, at, start=int(state.step), stop=c.steps),
            callbacks.standard(
                c,
                folder,
                state,
                title=self.title,
                meta={"stage": self.title},
                checkpoints=checkpoints,
                stop=preemption.stop,
                log=self.cfg.log,
                evaluator=evaluator,
                evaluate_every=evaluate_every,
            ),
            steps=c.steps,
        )
        return state, Outcome(
            outputs={"model": "model", "metrics": "metrics.jsonl"},
            counts={"steps": c.steps, "skipped_steps": summary.skipped_steps},
            items=c.steps,
            compile_seconds=summary.compile_seconds,
        )
