"""What the device does next of one kind of work: texts, images, all else."""

import collections
import dataclasses
import functools
import itertools
import logging as std_logging
import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np
from absl import logging

from srum_jax.core.errors import BadInput
from srum_jax.generation import text_generator
from srum_jax.generation.image_request import GeneratedImage
from srum_jax.generation.row_group import RowGroup
from srum_jax.serving.metrics import Metrics
from srum_jax.serving.refusals import Refusal
from srum_jax.serving.work import Done, Running, Shown, Work

_TOGETHER = 16  # calls of one name that are made one


class Lane:
    """Work of one kind: what waits, in order, and the groups of what goes on.

    most: that goes on at once · together: of it in a step · clock: gives seconds · spent: seconds
    of the device, by which lanes take turns; last: of the last turn.
    """

    name = ""

    def __init__(
        self,
        most: int,
        together: int,
        metrics: Metrics,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.most, self.together, self.metrics, self.clock = most, together, metrics, clock
        self.spent = self.last = 0.0
        self.waiting: collections.deque[Work] = collections.deque()
        self.groups: dict[Hashable, RowGroup] = {}
        self.works: dict[Any, Work] = {}  # by what is in the rows of groups
        self._turn = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.waiting or self.works)

    def turn(self) -> None:
        """Takes in some of what waits, if there is room, or does a step of one of the groups."""
        began = self.clock()
        self._drop()
        if self._admit():  # which takes as long as a step
            self._took(began)
            return
        groups = [(key, group) for key, group in self.groups.items() if group.requests]
        self.groups = dict(groups)
        if groups:
            self._turn += 1
            key, group = groups[self._turn % len(groups)]
            rows, filled = len(group.held), len(group.requests)
            lost = functools.partial(self.groups.pop, key)
            self._guarded(group.requests, functools.partial(self.step, group), lost)
            self._count(rows, filled, self.clock() - began)
        self._took(began)

    def _took(self, began: float) -> None:
        self.last = self.clock() - began
        self.spent += self.last

    def key(self, work: Work) -> Hashable:
        """Of the group that a piece of work belongs to."""
        raise NotImplementedError

    def group(self, work: Work, key: Hashable) -> RowGroup:
        """An empty group for it."""
        raise NotImplementedError

    def row(self, work: Work) -> Any:
        """What stands in a row for it."""
        return work.what

    def step(self, group: RowGroup) -> None:
        """A step of a group."""
        raise NotImplementedError

    def end(self, rows: Sequence[Any], results: Sequence[Any]) -> None:
        """Tells the ends of what is in rows."""
        for row, result in zip(rows, results, strict=True):
            self.works.pop(row).tell(result)

    def fail_all(self, error: Exception) -> None:
        """Ends everything."""
        for work in [*self.waiting, *self.works.values()]:
            work.tell(error)
        self.waiting.clear()
        self.works.clear()
        self.groups.clear()

    def _admit(self) -> bool:
        """The first that wait and belong together, if there is room. Whether there were any."""
        while self.waiting and len(self.works) < self.most:
            first = self.waiting[0]
            try:
                key = self.key(first)
            except ValueError as e:
                self.waiting.popleft().tell(e)
                continue
            place, room = self._place(key)
            joined = []
            while self.waiting and len(joined) < room:
                if self._key_or_none(self.waiting[0]) != key:
                    break
                joined.append(self.waiting.popleft())
            group = self.groups.setdefault(place, self.group(first, key))
            rows = {self.row(work): work for work in joined}
            self.works |= rows
            lost = functools.partial(self.groups.pop, place)
            self._guarded(list(rows), functools.partial(_joined, group, list(rows)), lost)
            return True
        return False

    def _place(self, key: Hashable) -> tuple[Hashable, int]:
        """The first group of a key that is not full, and how many it may take."""
        for number in itertools.count():
            going = self.groups.get((key, number))
            room = self.together - (len(going.requests) if going else 0)
            if room > 0:
                return (key, number), min(room, self.most - len(self.works))

    def _key_or_none(self, work: Work) -> Hashable | None:
        try:
            return self.key(work)
        except ValueError:
            return None

    def _drop(self) -> None:
        """Lets go what nobody waits for any more."""
        now = self.clock()
        for work in [w for w in self.waiting if w.cancelled or now > w.deadline]:
            self.waiting.remove(work)
            self._dropped(work)
        for key, group in list(self.groups.items()):
            gone = [row for row in group.requests if self._is_over(self.works[row], now)]
            if gone:
                group.leave(gone)
                for row in gone:
                    self._dropped(self.works.pop(row))
            if not group.requests:
                self.groups.pop(key)

    def _is_over(self, work: Work, now: float) -> bool:
        return work.cancelled or now > work.deadline

    def _dropped(self, work: Work) -> None:
        self.metrics.add("cancelled_total", kind=self.name)
        if not work.cancelled:
            work.tell(Refusal(503, "the request took longer than it may", code="timeout"))

    def _guarded(
        self, rows: Sequence[Any], action: Callable[[], Any], lost: Callable[[], Any]
    ) -> None:
        """Does what a fault of is no end of the server: who was part of it is told, and rows whose
        arrays it may have spoilt are given up."""
        before = set(self.works)
        try:
            action()
        except Exception as e:
            logging.log(std_logging.ERROR, "%s: a step failed", self.name, exc_info=e)
            group = lost()
            members = {*rows, *group.requests} if group is not None else set(rows)
            for row in members & before & set(self.works):
                self.works.pop(row).tell(_fault(e))

    def _count(self, rows: int, filled: int, seconds: float) -> None:
        add = self.metrics.add
        add("steps_total", kind=self.name)
        add("step_seconds_total", seconds, kind=self.name)
        add("rows_total", rows, kind=self.name)
        add("filled_rows_total", filled, kind=self.name)


def _joined(group: RowGroup, rows: Sequence[Any]) -> None:
    group.join(rows)
    group.wait()


def _fault(error: Exception) -> Exception:
    """What is told of a step that failed: what was asked for had been read before."""
    told = _told(error)
    return RuntimeError(str(told)) if type(told) is ValueError else told


def _told(error: Exception) -> Exception:
    if "RESOURCE_EXHAUSTED" in str(error):
        return Refusal(503, "the device's memory is full; ask for less, or later", code="memory")
    return error


class Texts(Lane):
    """Answers: a token of each a step."""

    name = "text"

    def key(self, work: Work) -> Hashable:
        running = work.running
        return running, running.model.family.TextRows.slots_for(running.generator, work.what)

    def group(self, work: Work, key: Hashable) -> RowGroup:
        running = work.running
        return running.model.family.TextRows(running.generator, key[1], self.most)

    def step(self, group: RowGroup) -> None:
        running = self.works[group.requests[0]].running
        ended, results = [], []
        tokens = group.step(running.writing)
        for row, token in tokens:
            work = self.works[row]
            if token.id == text_generator.BROKEN:
                broken = BadInput("the model's numbers for a text are NaN or infinite")
                ended.append(row)
                results.append(broken)
                continue
            finished = token.id == running.model.cfg.eos
            if not finished:
                work.tell(token)
            if finished or group.written(row) == row.max_tokens:
                ended.append(row)
                results.append(Done(finished))
        self.metrics.add("tokens_total", len(tokens))
        group.leave(ended)
        self.end(ended, results)


@dataclasses.dataclass(frozen=True, eq=False)
class _Ready:
    """Latents that are to be a picture; number: of the step that they are shown after, None: the
    image is drawn."""

    job: Any
    latent: np.ndarray
    number: int | None = None


class Images(Lane):
    """Drawings: a step of each a step, of denoising or a token; then pictures of latents.

    What is drawn or to be shown is decoded in turns of their own, which take about as long as a
    step: of several images that are ready together nobody has to wait for all.
    """

    name = "image"

    def __init__(self, *args: Any, **how: Any):
        super().__init__(*args, **how)
        self.ready: collections.deque[_Ready] = collections.deque()  # in the order to be told
        self._step_seconds = self._decode_seconds = 0.0  # of the last step; of an image

    def turn(self) -> None:
        """Decodes some of what is ready, or does what lanes do."""
        if not self.ready:
            super().turn()
            return
        began = self.clock()
        self._drop()
        if self.ready:
            self._decode()
        self.metrics.add("step_seconds_total", self.clock() - began, kind=self.name)
        self._took(began)

    def key(self, work: Work) -> Hashable:
        job = work.what.job
        return work.running, job.kind(work.running.sampler, 0), job if job.alone else None

    def group(self, work: Work, key: Hashable) -> RowGroup:
        return self._rows(work.running, key[1])

    def _rows(self, running: Running, kind: Hashable) -> RowGroup:
        return running.model.family.DrawingRows(running.sampler, kind, self.most)

    def row(self, work: Work) -> Any:
        return work.what.job

    def step(self, group: RowGroup) -> None:
        jobs = group.requests
        running = self.works[jobs[0]].running
        shown = [j for j in jobs if group.number[j] + 1 in self.works[j].what.shown]
        began = self.clock()
        seen = group.step(shown)
        done = [job for job in jobs if group.number[job] == group.steps(job)]
        drawn = group.latents(done)
        group.wait()
        self._step_seconds = self.clock() - began
        self.ready += map(_Ready, shown, seen, [group.number[job] for job in shown])
        self.ready += map(_Ready, done, drawn)
        group.leave(done)
        self._move(running, group)

    def _decode(self) -> None:
        """The first that are ready, of one model, as many as take about as long as a step."""
        room = self._step_seconds / self._decode_seconds if self._decode_seconds else 1
        few, running = [], self.works[self.ready[0].job].running
        while self.ready and len(few) < min(max(int(room), 1), self.together):
            if self.works[self.ready[0].job].running is not running:
                break
            few.append(self.ready.popleft())
        began = self.clock()
        jobs = [one.job for one in few]
        told = functools.partial(self._told, running, few)
        self._guarded(jobs, told, functools.partial(self._left, jobs))
        self._decode_seconds = (self.clock() - began) / len(few)

    def _left(self, jobs: Sequence[Any]) -> None:
        """Takes images out of the groups that still draw them."""
        for group in self.groups.values():
            group.leave([job for job in jobs if job in group.requests])

    def _told(self, running: Running, few: Sequence[_Ready]) -> None:
        """Tells pictures of latents, or what is wrong with them."""
        for one, image in zip(few, self._decoded(running, [r.latent for r in few]), strict=True):
            whole = isinstance(image, np.ndarray)
            if one.number is None:
                done = Done(GeneratedImage(image, one.latent)) if whole else image
                self.end([one.job], [done])
                self.metrics.add("images_total", int(whole))
            elif whole:
                self.works[one.job].tell(Shown(one.number, image))

    def _drop(self) -> None:
        super()._drop()
        now = self.clock()
        for one in self.ready:  # what is drawn is in no group any more
            work = self.works.get(one.job)
            if work and one.number is None and self._is_over(work, now):
                self._dropped(self.works.pop(one.job))
        self.ready = collections.deque(r for r in self.ready if r.job in self.works)

    def fail_all(self, error: Exception) -> None:
        super().fail_all(error)
        self.ready.clear()

    def _decoded(self, running: Running, latents: Sequence[np.ndarray]) -> list[Any]:
        """Images, or what is wrong with one; one that is no number spoils no other."""
        try:
            return running.decoder.decode(latents) if latents else []
        except BadInput as e:
            if len(latents) == 1:
                return [e]
            return [self._decoded(running, [one])[0] for one in latents]

    def _move(self, running: Running, group: RowGroup) -> None:
        """Hands those over whose next step is of another kind."""
        kinds: dict[Hashable, list] = {}
        for job, kind in group.changing().items():
            kinds.setdefault((running, kind, job if job.alone else None), []).append(job)
        for key, jobs in kinds.items():
            place, _ = self._place(key)
            group.moved(jobs, self.groups.setdefault(place, self._rows(running, key[1])))


class Calls(Lane):
    """All else, those of one name together."""

    name = "call"

    def turn(self) -> None:
        """The call that waits longest, with others of its name."""
        began = self.clock()
        self._drop()
        if self.waiting:
            first = self.waiting[0]
            key = first.what.name, first.running
            same = [w for w in self.waiting if (w.what.name, w.running) == key][:_TOGETHER]
            for work in same:
                self.waiting.remove(work)
            self._call(same)
            self._count(len(same), len(same), self.clock() - began)
        self._took(began)

    def _call(self, works: Sequence[Work]) -> None:
        try:
            results = works[0].what.function([work.what.given for work in works])
        except Exception as e:
            if len(works) > 1:  # which of them it was
                for work in works:
                    self._call([work])
                return
            works[0].tell(_told(e))
            return
        for work, result in zip(works, results, strict=True):
            work.tell(Done(result))
