"""What happens between the steps of the training loop: evaluating, saving, metrics, traces.

`standard` gives the callbacks of a run in the order in which the loop asks them.
"""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import NoReturn, Protocol

import jax
from absl import logging
from etils import epath

from srum_jax.config import LogConfig, LoopConfig
from srum_jax.core.distributed import StopAgreement, agreeing
from srum_jax.core.errors import Diverged, Preempted
from srum_jax.training import metrics as measures
from srum_jax.training import optim
from srum_jax.training.checkpoint import Checkpoints
from srum_jax.training.metrics import Sink, Writer
from srum_jax.training.state import TrainState


class Callback(Protocol):
    """What is done beside the steps; a callback overrides what it needs."""

    def before_step(self, n: int, state: TrainState, last: bool) -> bool:
        """Called where `n` steps were taken and `state` is what came out; True ends the run there.

        `last`: the run ends there anyway. Not called again after that.
        """
        return False

    def after_step(self, n: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        """Called after step number `n` (from 1), which may still be running.

        metrics: float32 scalars · waited: seconds until its batch was there.
        """

    def close(self) -> None:
        """Called once, whatever ended the run."""


class Evaluator(Protocol):
    """What is measured of a model in training, outside its steps."""

    def evaluate(self, n: int, state: TrainState) -> Mapping[str, float]:
        """Numbers for the metrics, of the state after `n` steps."""

    def measured(self, n: int) -> bool:
        """Whether a former run has evaluated the state after `n` steps."""

    def enough(self, n: int) -> bool:
        """Whether the run is to end after `n` steps; the same answer whenever it is asked."""


@dataclasses.dataclass(frozen=True)
class MetricLimit:
    """The largest value a logged metric may have; `key` is its name in the config.

    `advice` is the sentence that tells what to change.
    """

    metric: str
    largest: float
    key: str
    advice: str


@dataclasses.dataclass(frozen=True)
class StepCost:
    """What a step does on average: tokens it reads, operations that its mathematics needs."""

    tokens: float
    flops: float


class MetricsLog(Callback):
    """Metrics of the newest step: kept while it runs, then checked, and written if it is logged.

    cfg is a LoopConfig: steps, optim, log_every, max_bad_steps. Raises Diverged after
    max_bad_steps bad steps in a row, and at a logged step over one of `limits`.
    """

    def __init__(
        self,
        writer: Writer,
        cfg: LoopConfig,
        title: str,
        *,
        start: int,
        limits: Sequence[MetricLimit] = (),
        cost: StepCost | None = None,
        schedule: tuple[int, int] | None = None,
    ):
        self.writer, self.cfg, self.title, self.limits = writer, cfg, title, limits
        self.taken, self.planned = schedule or (0, cfg.steps)
        self.cost, self.last = cost, start
        self.pending: tuple[int, Mapping[str, jax.Array]] | None = None
        # Seconds since the last row: waited for data, and spent on something other than steps.
        self.since, self.waited, self.apart = time.monotonic(), 0.0, 0.0

    def after_step(self, n: int, metrics: Mapping[str, jax.Array], waited: float) -> None:
        self.waited += waited
        self.flush()
        self.pending = (n, metrics)
        self.writer.advance(n)

    def flush(self) -> None:
        """Waits for the newest step, and reads it."""
        before, self.pending = self.pending, None
        if before is not None:
            self._read(*before)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """What is done inside is no part of the steps: it does not count in their speed."""
        self.flush()
        called = time.monotonic()
        yield
        self.apart += time.monotonic() - called

    def close(self) -> None:
        self.writer.close()

    def _read(self, n: int, metrics: Mapping[str, jax.Array]) -> None:
        cfg, bad = self.cfg, int(jax.device_get(metrics["skipped_in_row"]))
        stuck = bad >= cfg.max_bad_steps
        # Which steps are logged does not depend on where a run was resumed.
        if n % cfg.log_every == 0 or n in (1, cfg.steps) or stuck:
            row = {name: float(value) for name, value in jax.device_get(metrics).items()}
            now = time.monotonic()
            # The optimiser counts the steps that changed something.
            count = self.taken + n - 1 - int(row["skipped_steps"])
            rate = optim.learning_rate(cfg.optim, max(0, count), steps=self.planned)
            self.writer.write(
                {
                    "step": n,
                    **row,
                    "learning_rate": rate,
                    **self._clocks(n - self.last, now - self.since),
                }
            )
            self.since, self.waited, self.apart, self.last = now, 0.0, 0.0, n
            for limit in self.limits:
                if row[limit.metric] > limit.largest:
                    raise Diverged(
                        f"{self.title}: {limit.metric} = {row[limit.metric]:.3g} at step {n} "
                        f"is above {limit.key} = {limit.largest:g}. {limit.advice}"
                    )
        if stuck:
            raise Diverged(
                f"{self.title}: loss or gradient was not finite in the last {bad} steps up to step "
                f"{n}. Parameters are as they were before those. Lower the learning rate, or "
                "look at the data of those steps."
            )

    def _clocks(self, steps: int, seconds: float) -> dict[str, float]:
        """`metrics.CLOCKS` of the last `steps` steps; what is not known is left out."""
        stepping = max(seconds - self.apart, 1e-9)
        row = {
            "seconds": round(seconds, 3),
            "data_wait_seconds": round(self.waited, 3),
            "data_wait_share": round(self.waited / stepping, 4),
            "peak_memory_gib": round(measures.peak_memory_gib(), 3),
        }
        if self.cost:
            row["tokens_per_second"] = round(steps * self.cost.tokens / stepping, 1)
            peak = measures.peak_flops(jax.devices()[0].device_kind)
            if peak:
                done = steps * self.cost.flops / stepping
                row["flops_utilisation"] = round(done / (peak * jax.device_count()), 4)
        return row


@dataclasses.dataclass(frozen=True)
class Evaluation(Callback):
    """Evaluates every `every` steps and at the end, a row of the metrics each, and ends the run
    where the evaluator has enough.

    Asked to stop meanwhile it has the state saved, and the next run evaluates it. Raises Preempted.
    """

    evaluator: Evaluator
    every: int
    start: int
    log: MetricsLog
    saving: "Checkpointing"

    def before_step(self, n: int, state: TrainState, last: bool) -> bool:
        due = n > 0 and (last or n % self.every == 0)
        if due and (n > self.start or not self.evaluator.measured(n)):
            try:
                with self.log.paused(), agreeing():
                    found = self.evaluator.evaluate(n, state)
            except Preempted:
                self.saving.save_and_stop(n, state)
            self.log.writer.write({"step": n, **found})
        return self.evaluator.enough(n)


@dataclasses.dataclass(frozen=True)
class Checkpointing(Callback):
    """Saves the state every `every` steps, at the end, and when the run is asked to stop.

    Raises Preempted after a clean save when `stop` is set, on any process and at the same step on
    all.
    """

    checkpoints: Checkpoints
    every: int
    meta: Mapping[str, object]
    start: int
    steps: int
    title: str
    stop: StopAgreement
    log: MetricsLog

    def before_step(self, n: int, state: TrainState, last: bool) -> bool:
        self.checkpoints.check()
        stopped = self.stop()
        if stopped and not last:
            self.save_and_stop(n, state)
        if stopped or (n > self.start and (last or n % self.every == 0)):
            self._save(n, state)
        return False

    def save_and_stop(self, n: int, state: TrainState) -> NoReturn:
        """Saves the state after `n` steps and raises Preempted."""
        self._save(n, state)
        raise Preempted(f"{self.title}: stopped at step {n} of {self.steps}, state saved")

    def _save(self, n: int, state: TrainState) -> None:
        self.log.flush()  # a state after too many bad steps is not saved
        self.log.writer.sync()  # a run that goes on from this state has the rows before it
        self.checkpoints.save(n, state, dict(self.meta))

    def close(self) -> None:
        self.checkpoints.close()


class Trace(Callback):
    """A profile of the steps from `first` on, `count` of them, written into `folder`."""

    def __init__(self, folder: epath.Path, first: int, count: int):
        self.folder, self.first, self.end = folder, first, first + count
        self.running = False

    def before_step(self, n: int, state: TrainState, last: bool) -> bool:
        if self.running and n == self.end:
            jax.block_until_ready(state)
            self.close()
            logging.info("trace of steps %d to %d: %s", self.first, n - 1, self.folder)
        elif n == self.first < self.end:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self.running = True
        return False

    def close(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


def standard(
    cfg: LoopConfig,
    folder: epath.PathLike,
    state: TrainState,
    *,
    title: str,
    meta: Mapping[str, object],
    checkpoints: Checkpoints,
    stop: threading.Event,
    log: LogConfig | None = None,
    limits: Sequence[MetricLimit] = (),
    cost: StepCost | None = None,
    evaluator: Evaluator | None = None,
    evaluate_every: int = 0,
    schedule: tuple[int, int] | None = None,
    sinks: Sequence[Sink] = (),
) -> tuple[Callback, ...]:
    """The callbacks of a stage's run from `state` on: trace, evaluate, save, write metrics.

    cfg is a LoopConfig; `folder` the stage's, for metrics.jsonl and traces; `log` a LogConfig:
    what more is written. With `cost` the metrics tell speeds. schedule: steps that the optimiser's
    has behind it where the run begins, and in all (default: none, and the run's). sinks: what else
    reads the rows that are logged.
    """
    folder, start = epath.Path(folder), int(state.step)
    silent = jax.process_index() != 0
    if log and not silent:
        sinks = (*sinks, *measures.sinks(log, folder, title))
    path = folder / "metrics.jsonl"
    writer = Writer(path, steps=cfg.steps, start=start, title=title, silent=silent, sinks=sinks)
    how = dict(limits=limits, cost=cost, schedule=schedule)
    metrics = MetricsLog(writer, cfg, title, start=start, **how)
    saving = Checkpointing(
        checkpoints=checkpoints,
        every=cfg.checkpoint_every,
        meta=meta,
        start=start,
        steps=cfg.steps,
        title=title,
        stop=StopAgreement(stop, state.step.sharding),
        log=metrics,
    )
    trace = Trace(folder / "profile", *(log.profile if log else (0, 0)))
    if evaluator is None:
        return (trace, saving, metrics)
    return (trace, Evaluation(evaluator, evaluate_every, start, metrics, saving), saving, metrics)
