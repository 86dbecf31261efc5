"""The thread that owns the device: step by step, as `turns.py` says, and what comes in between."""

import threading
import time
from collections.abc import Sequence

import jax
from absl import logging

from srum_jax.serving.lanes import Calls, Images, Texts
from srum_jax.serving.limits import Limits
from srum_jax.serving.metrics import Metrics
from srum_jax.serving.refusals import Refusal
from srum_jax.serving.turns import Turns
from srum_jax.serving.work import Work


class Engine:
    """Work comes in by `submit`, from any thread, and is told of as `Work.tell` says."""

    def __init__(self, limits: Limits, metrics: Metrics):
        self.limits, self.metrics = limits, metrics
        self.lanes = {
            "text": Texts(limits.texts, limits.texts, metrics),
            "image": Images(limits.images, limits.together, metrics),
            "call": Calls(limits.texts, limits.texts, metrics),
        }
        self._turns = Turns(self.lanes)
        self._gauge()
        self._wake = threading.Condition()
        self._new: list[Work] = []
        self._ended = False
        self._thread = threading.Thread(target=self._run, name="device", daemon=True)

    def start(self) -> None:
        """Begins to work."""
        self._thread.start()

    def stop(self) -> None:
        """Ends after the step that runs; what is not done is refused."""
        with self._wake:
            self._ended = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join(timeout=60)

    def submit(self, works: Sequence[Work]) -> None:
        """Takes in work, all or nothing. Raises Refusal 429 if too much waits, 503 at the end."""
        with self._wake:
            if self._ended:
                raise Refusal(503, "the server ends", code="ending")
            waiting = self.waiting
            if waiting + len(works) > self.limits.queue:
                self.metrics.add("refused_total", len(works))
                told = f"{waiting} pieces of work wait for the device; try again later"
                raise Refusal(429, told, code="queue_full", retry_after=self.retry_after())
            self._new += works
            self._wake.notify()

    @property
    def waiting(self) -> int:
        """How much waits."""
        return len(self._new) + sum(len(lane.waiting) for lane in self.lanes.values())

    def retry_after(self) -> int:
        """Seconds after which there may be room: what waits, by what was done a second so far."""
        done = self.metrics.value("images_total")
        spent = self.metrics.value("step_seconds_total", kind="image")
        each = spent / done if done else 0.5
        return max(1, min(60, round(each * len(self.lanes["image"].waiting) + 0.5)))

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._new or self._ended or self._turns.busy()):
                    self._wake.wait()
                new, self._new = self._new, []
                if self._ended:
                    for work in new:
                        work.tell(_ends())
                    break
            for work in new:
                self._turns.take(work)
            self._step()
        for lane in self.lanes.values():
            lane.fail_all(_ends())

    def _step(self) -> None:
        lane = self._turns.next()
        if lane is None:
            return
        mesh = next(iter((*lane.works.values(), *lane.waiting))).running.model.mesh
        try:
            with jax.set_mesh(mesh):
                lane.turn()
        except Exception as e:  # a fault of ours: those who wait are told, the thread goes on
            logging.exception("the device's thread: %s", lane.name)
            lane.fail_all(e)
            time.sleep(0.05)
        self._gauge()

    def _gauge(self) -> None:
        for one in self.lanes.values():
            self.metrics.set("waiting", len(one.waiting), kind=one.name)
            self.metrics.set("running", len(one.works), kind=one.name)


def _ends() -> Refusal:
    return Refusal(503, "the server ends", code="ending")
