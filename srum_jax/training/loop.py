"""The only training loop.

Order within a step: evaluate, save, fetch, step, and only then the previous step's metrics are
read, so the device never waits for the host. What `save` sees is exactly what a resumed run starts
from: the state, the metrics up to it, and the step number that names the next batch.
"""

import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
from absl import logging
from etils import epath

from srum_jax.core.distributed import Agreement
from srum_jax.core.errors import BadInput, Diverged, Preempted
from srum_jax.training import metrics as measures
from srum_jax.training import optim
from srum_jax.training.checkpoint import Checkpoints
from srum_jax.training.metrics import Writer
from srum_jax.training.state import FrozenParams, TrainState
from srum_jax.training.step import program


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


class _Log:
    """Metrics of the newest step: kept while it runs, then checked, and written if it is logged."""

    def __init__(
        self,
        writer: Writer,
        cfg,
        title: str,
        limits: Sequence[MetricLimit],
        work: StepCost | None,
        start: int,
    ):
        self.writer, self.cfg, self.title, self.limits = writer, cfg, title, limits
        self.work, self.last = work, start
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        # Seconds since the last row: waited for data, and spent on something other than steps.
        self.since, self.waited, self.apart = time.monotonic(), 0.0, 0.0

    def put(self, number: int, metrics: dict[str, jax.Array]) -> None:
        """Takes the metrics of step `number` (from 1), which may still be running."""
        self.flush()
        self.pending = (number, metrics)
        self.writer.advance(number)

    def flush(self) -> None:
        """Waits for the newest step. Raises Diverged after too many bad steps, or over a limit."""
        before, self.pending = self.pending, None
        if before is not None:
            self._read(*before)

    def _read(self, number: int, metrics: dict[str, jax.Array]) -> None:
        cfg, bad = self.cfg, int(metrics["skipped_in_row"])
        stuck = bad >= cfg.max_bad_steps
        # Which steps are logged does not depend on where a run was resumed.
        if number % cfg.log_every == 0 or number in (1, cfg.steps) or stuck:
            row = {name: float(value) for name, value in jax.device_get(metrics).items()}
            now = time.monotonic()
            # The optimiser counts the steps that changed something.
            count = number - 1 - int(row["skipped_steps"])
            self.writer.write(
                {
                    "step": number,
                    **row,
                    "learning_rate": optim.learning_rate(cfg.optim, max(0, count), steps=cfg.steps),
                    **self._clocks(number - self.last, now - self.since),
                }
            )
            self.since, self.waited, self.apart, self.last = now, 0.0, 0.0, number
            for limit in self.limits:
                if row[limit.metric] > limit.largest:
                    raise Diverged(
                        f"{self.title}: {limit.metric} = {row[limit.metric]:.3g} at step {number} "
                        f"is above {limit.key} = {limit.largest:g}. {limit.advice}"
                    )
        if stuck:
            raise Diverged(
                f"{self.title}: loss or gradient was not finite in the last {bad} steps up to step "
                f"{number}. Parameters are as they were before those. Lower the learning rate, or "
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
        if self.work:
            row["tokens_per_second"] = round(steps * self.work.tokens / stepping, 1)
            peak = measures.peak_flops(jax.devices()[0].device_kind)
            if peak:
                done = steps * self.work.flops / stepping
                row["flops_utilisation"] = round(done / (peak * jax.device_count()), 4)
        return row


class _Trace:
    """A trace of the steps from `first` on, `count` of them, written into `folder`."""

    def __init__(self, folder, first: int, count: int):
        self.folder, self.first, self.end = folder, first, first + count
        self.running = False

    def before(self, step: int, state: TrainState) -> None:
        """Called before every step, with the state it starts from."""
        if self.running and step == self.end:
            jax.block_until_ready(state)
            self.close()
            logging.info("trace of steps %d to %d: %s", self.first, step - 1, self.folder)
        elif step == self.first < self.end:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self.folder))
            self.running = True

    def close(self) -> None:
        if self.running:
            self.running = False
            jax.profiler.stop_trace()


def run(
    state: TrainState,
    fixed: FrozenParams,
    *,
    loss_fn: Callable,
    tx,
    batches: Callable[[int], Iterator],
    key: jax.Array,
    cfg,
    checkpoints: Checkpoints,
    meta: Mapping,
    metrics_path,
    title: str,
    stop: threading.Event,
    evaluate: Callable[[int, TrainState], Mapping[str, float]] | None = None,
    evaluate_every: int = 0,
    enough: Callable[[int], bool] = lambda step: False,
    limits: Sequence[MetricLimit] = (),
    work: StepCost | None = None,
    reports=None,
) -> tuple[TrainState, dict]:
    """Trains from the newest checkpoint (or `state`, which is used up) to `cfg.steps`.

    Returns (state, summary). batches(start) iterates device batches from step `start` on. cfg is a
    LoopConfig: steps, optim, ema, micro_batches, checkpoint_every, log_every, max_bad_steps.
    `evaluate(step, state)` is asked every `evaluate_every` steps and after the last one; its
    numbers are a row of their own among the metrics. Where `enough(step)` then holds, that step is
    the last; it must say the same of a step whenever it is asked. With `work` the metrics tell
    speeds; `reports` is a LogConfig: what more is written, into the metrics' folder. Raises
    Preempted after a clean save when `stop` is set, on any process and at the same step on all,
    Diverged after max_bad_steps bad steps in a row and at a logged step over one of `limits`,
    BadInput for a checkpoint that is damaged, of another model, or beyond cfg.steps.
    """
    steps = cfg.steps
    state = _newest(state, checkpoints, steps)
    start = int(state.step)
    places = jax.tree.map(lambda x: x.sharding, state) if state.step.committed else None
    jitted = program(loss_fn, tx, ema=cfg.ema, micro_batches=cfg.micro_batches, places=places)
    told = Agreement(stop, state.step.sharding)
    silent, folder = jax.process_index() != 0, epath.Path(metrics_path).parent
    sinks = measures.sinks(reports, folder, title) if reports and not silent else ()
    writer = Writer(metrics_path, steps=steps, start=start, title=title, silent=silent, sinks=sinks)
    trace = _Trace(folder / "profile", *(reports.profile if reports else (0, 0)))
    log, stream = _Log(writer, cfg, title, limits, work, start), batches(start)
    compile_seconds = 0.0
    try:
        for n in range(start, steps + 1):
            last, stopped = n == steps, told()
            trace.before(n, state)
            if evaluate is not None and n > start and (last or n % evaluate_every == 0):
                log.flush()
                called = time.monotonic()
                writer.write({"step": n, **evaluate(n, state)})
                log.apart += time.monotonic() - called
            last = last or enough(n)
            if stopped or (n > start and (last or n % cfg.checkpoint_every == 0)):
                log.flush()
                checkpoints.save(n, state, dict(meta))
            if last:
                break
            if stopped:
                raise Preempted(f"{title}: stopped at step {n} of {steps}, state saved")
            called = time.monotonic()
            batch = next(stream)
            log.waited += time.monotonic() - called
            called = time.monotonic()
            state, metrics = jitted(state, fixed, batch, key)
            if n == start:
                jax.block_until_ready(metrics)
                compile_seconds = time.monotonic() - called
            log.put(n + 1, metrics)
    finally:
        trace.close()
        checkpoints.close()
        writer.close()
    return state, {
        "start": start,
        "steps": n,
        "compile_seconds": round(compile_seconds, 2),
        "skipped_steps": int(state.skipped),
        "programs": jitted._cache_size() if start < steps else 0,
    }


def _newest(state: TrainState, checkpoints: Checkpoints, steps: int) -> TrainState:
    """The state of the newest checkpoint, or `state` where there is none."""
    latest = checkpoints.latest()
    if latest is None:
        return state
    if latest > steps:
        raise BadInput(
            f"{checkpoints.folder}: the run is at step {latest}, beyond the {steps} steps of the "
            "config: raise steps, or use another workdir"
        )
    return checkpoints.restore(latest, state)
