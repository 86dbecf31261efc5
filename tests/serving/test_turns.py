"""Turns of texts and drawings by a stand-in clock: nothing here is timed."""

import random
import types

import numpy as np
import pytest

from srum_jax.generation.row_group import RowGroup
from srum_jax.generation.text_rows import TextRequest, Token
from srum_jax.serving.lanes import Images, Texts
from srum_jax.serving.metrics import Metrics
from srum_jax.serving.running import _OF_A_STEP
from srum_jax.serving.turns import Turns
from srum_jax.serving.work import Done, Drawing, Running, Work

# Milliseconds of the shapes base on two cores: of a call, and of each row in it.
READ, TOKEN, START, STEP, DECODE = (2.2, 0.8), (0.3, 0.02), (0.5, 0.4), (0.3, 0.53), (0.2, 1.1)
END, STEPS = 0, 16


class Clock:
    """Seconds that go on when somebody waits for what the device was asked."""

    now = asked = 0.0

    def __call__(self):
        return self.now

    def ask(self, cost, rows):
        """A call of so many rows, which returns at once."""
        self.asked += (cost[0] + cost[1] * rows) / 1000

    def wait(self):
        """Until the device has done all that it was asked."""
        self.now, self.asked = self.now + self.asked, 0.0


class Rows(RowGroup):
    """Requests in rows without arrays."""

    def __init__(self, clock):
        super().__init__(range(1, 100))
        self.clock, self.number = clock, {}

    def join(self, requests):
        self.held += requests
        self.number |= dict.fromkeys(requests, 0)
        self.clock.ask(self.reads, len(requests))

    def wait(self):
        self.clock.wait()

    def leave(self, requests):
        self.held = [one for one in self.held if one not in requests]

    def stepped(self):
        self.clock.ask(self.costs, len(self.held))
        for one in self.held:
            self.number[one] += 1


class TextRows(Rows):
    """Texts that end after `max_tokens` tokens."""

    reads, costs = READ, TOKEN
    slots_for = staticmethod(lambda generator, request: 64)

    def __init__(self, generator, slots, most):
        super().__init__(generator)

    def written(self, request):
        return self.number[request]

    def step(self, writing):
        self.stepped()
        self.clock.wait()
        return [(one, Token(1)) for one in self.held]


class DrawingRows(Rows):
    """Images of so many steps."""

    reads, costs = START, STEP
    kind = "drawing"

    def __init__(self, sampler, kind, most):
        super().__init__(sampler)

    def steps(self, job):
        return STEPS

    def step(self, shown=()):
        self.stepped()
        return [np.zeros(1)] * len(shown)

    def latents(self, jobs):
        if jobs:
            self.clock.wait()
        return [np.zeros(1)] * len(jobs)

    def changing(self):
        return {}


class Job:
    """An image to draw."""

    alone = False

    def kind(self, sampler, step):
        return "drawing"


class Server:
    """Lanes and turns as the engine has them, with its clients, by a clock of their own."""

    def __init__(self, together=_OF_A_STEP):
        self.clock = clock = Clock()
        family = types.SimpleNamespace(TextRows=TextRows, DrawingRows=DrawingRows)
        model = types.SimpleNamespace(family=family, cfg=types.SimpleNamespace(eos=END))
        decoder = types.SimpleNamespace(decode=self.decoded)
        self.running = Running(model, clock, None, clock, decoder)
        metrics = Metrics()
        self.lanes = {
            "text": Texts(16, 16, metrics, clock),
            "image": Images(16, together, metrics, clock),
        }
        self.turns, self.came, self.last = Turns(self.lanes), [], 0.0

    def decoded(self, latents):
        self.clock.ask(DECODE, len(latents))
        self.clock.wait()
        return [np.zeros((1, 1, 3), np.uint8) for _ in latents]

    def submit(self, what, ended, came=None):
        """Work that came in, now or before; ended: called with the seconds until its end."""
        began = self.clock.now if came is None else came

        def tell(event):
            if isinstance(event, Done):
                ended(self.clock.now - began)
            elif isinstance(event, Exception):
                raise event

        self.turns.take(Work(what, self.running, tell, float("inf")))

    def draw(self, told=lambda seconds: None):
        """A client that draws, again and again."""

        def again(seconds):
            told(seconds)
            self.draw(told)

        self.submit(Drawing(Job()), again)

    def ask(self, tokens, told, pause=lambda: 0.0, came=None):
        """A client that asks, waits for the answer, pauses and asks again."""

        def again(seconds):
            told(seconds)
            came = self.clock.now + pause()
            self.came.append((came, lambda: self.ask(tokens, told, pause, came)))

        self.submit(TextRequest((), tokens), again, came)

    def run(self, seconds):
        """Turns until the clock says so; what comes in meanwhile is taken between two."""
        end = self.clock.now + seconds
        while self.clock.now < end:
            due = [ask for at, ask in self.came if at <= self.clock.now]
            self.came = [one for one in self.came if one[0] > self.clock.now]
            for ask in due:
                ask()
            if lane := self.turns.next():
                lane.turn()
            else:
                self.clock.now = min(at for at, _ in self.came)


def answers(server, drawing, seconds=5.0, tokens=2):
    """Seconds of each short answer to a client that pauses, beside clients that draw."""
    chance, found = random.Random(0), []
    for _ in range(drawing):
        server.draw()
    server.ask(tokens, found.append, lambda: chance.expovariate(100))
    server.run(seconds)
    return found


def p95(found):
    return np.percentile(found, 95)


def test_a_short_answer_hardly_waits_for_drawings():
    alone = answers(Server(), 0)
    beside = answers(Server(), 16)
    assert len(beside) > 100
    assert p95(beside) <= 2 * p95(alone)
    # and many at a step, as accelerators draw them, would be too long for it
    assert p95(answers(Server(together=16), 16)) > 3 * p95(alone)


def test_neither_kind_starves():
    """Of the seconds each kind has half, when there is more of both than can be done."""
    server = Server()
    for _ in range(16):
        server.draw()
        server.ask(40, lambda seconds: None)
    server.run(3)
    shares = [lane.spent for lane in server.lanes.values()]
    assert min(shares) > 0.45 * sum(shares)


def test_an_answer_after_a_pause_has_no_claim_on_the_past():
    server, drawn = Server(), []
    for _ in range(16):
        server.draw(lambda seconds: drawn.append(server.clock.now))
    server.run(5)
    before = len(drawn)
    for _ in range(16):
        server.ask(400, lambda seconds: None)
    server.run(1)
    assert len(drawn) - before > 0.3 * before / 5


def test_images_that_are_ready_together_are_told_one_after_the_other():
    server, longest = Server(), 0.0
    for _ in range(16):
        server.draw()
    server.run(1)
    for _ in range(500):
        began = server.clock.now
        server.turns.next().turn()
        longest = max(longest, server.clock.now - began)
    step = (STEP[0] + STEP[1] * _OF_A_STEP) / 1000
    assert longest <= 1.1 * step


@pytest.mark.parametrize("cancelled", [False, True])
def test_what_is_shown_comes_before_what_is_drawn(cancelled):
    server, told = Server(), []
    shown = frozenset({4, 8, 15})
    work = Work(Drawing(Job(), shown), server.running, told.append, float("inf"))
    server.turns.take(work)
    lane = server.lanes["image"]
    while lane.busy:
        work.cancelled = cancelled and len(told) == 2
        server.turns.next().turn()
    numbers = [getattr(one, "number", "drawn") for one in told]
    assert numbers == ([4, 8] if cancelled else [4, 8, 15, "drawn"])
    assert not lane.ready
