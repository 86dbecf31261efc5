"""Calls one ahead of their results, and the clock of what devices do meanwhile."""

import jax.numpy as jnp
import numpy as np
import pytest
from slow_device import SlowDevice

from srum_jax.core import device_clock, in_flight
from srum_jax.core.device_clock import DeviceClock
from srum_jax.core.errors import Preempted


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_things_come_in_order_one_after_it_was_asked_for(count):
    asked = []

    def things():
        for i in range(count):
            asked.append(i)
            yield i

    for given, thing in enumerate(in_flight.ahead(things())):
        assert thing == given
        assert len(asked) == min(count, given + 1 + in_flight.AHEAD)  # and never more
    assert len(asked) == count


def test_a_call_is_sent_before_the_results_of_the_last_are_fetched():
    """Each ends only once the next is sent; who fetched it before would wait for ever."""
    device = SlowDevice()

    def calls():
        for n in range(4):
            made = device.call(n, np.full(2, n))
            if n:
                device.gates[n - 1].set()
            yield n, {"twice": [made, made]}
        device.gates[3].set()

    for n, made in in_flight.fetched(calls()):
        np.testing.assert_array_equal(made["twice"], np.full((2, 2), n))
        assert len(device.sent) <= n + 1 + in_flight.AHEAD
    assert n == 3 and not device.late


def test_what_sends_no_more_calls_ends_with_its_error():
    def calls():
        yield 0, jnp.ones(1)
        raise ValueError("no room")

    with pytest.raises(ValueError, match="no room"):
        list(in_flight.fetched(calls()))


def test_a_wish_to_stop_waits_for_what_was_sent():
    given = []

    def calls():
        yield from (("a", jnp.zeros(1)), ("b", jnp.ones(1)))
        raise Preempted("stopped")

    with pytest.raises(Preempted):
        given.extend(key for key, _ in in_flight.fetched(calls()))
    assert given == ["a", "b"]


def test_devices_work_while_a_call_is_sent_and_not_done():
    clock = DeviceClock()
    for sent, ready in ((0.0, 2.0), (1.0, 3.0), (1.5, 3.5), (5.0, 6.0)):
        clock.worked(sent, ready)
    assert clock.seconds == 4.5  # from 0 to 3.5 and from 5 to 6
    clock.end(wait=True)


def test_the_clock_hears_of_calls_inside_alone():
    device = SlowDevice()
    with device_clock.measuring() as clock:
        for n in range(2):
            device.gates[n].set()
            list(in_flight.fetched([(n, device.call(n, np.zeros(1)))]))
    heard = clock.seconds
    assert heard > 0
    device.gates[2].set()
    list(in_flight.fetched([(2, device.call(2, np.zeros(1)))]))
    assert clock.seconds == heard


def test_work_that_fails_does_not_wait_for_the_device():
    device = SlowDevice()
    with pytest.raises(ValueError, match="stopped"), device_clock.measuring():
        device_clock.sent(device.call(0, np.zeros(1)))
        raise ValueError("stopped")
    assert not device.late
    device.gates[0].set()
