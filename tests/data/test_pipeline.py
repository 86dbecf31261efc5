"""The order of training: a function of seed and row number, the same from wherever it is read."""

import itertools

import jax
import numpy as np
import pytest

from srum_jax.config import MeshConfig
from srum_jax.core import sharding
from srum_jax.data import pipeline
from srum_jax.data.pipeline import EpochRows
from srum_jax.data.schema import Lanes

LANES = Lanes(und=60, gen=64, vit=0, labels=0, images=4, regions=3)


def sizes(count, seed=0, und=(10, 15), gen=16):
    """Of `count` text-to-image samples whose prompts differ in length."""
    rng = np.random.default_rng(seed)
    rows = [[rng.integers(*und), gen, 0, 0, 1, rng.integers(0, 4)] for _ in range(count)]
    return np.array(rows)


def epochs(order, rows):
    """{epoch: the examples of its rows, in order} of the first `rows` rows."""
    found = {}
    for i in range(rows):
        epoch, members = order(i)
        found.setdefault(epoch, []).extend(members)
    return found


def test_every_example_once_an_epoch():
    order = EpochRows(sizes(50), LANES, seed=3)
    found = epochs(order, 60)
    assert sorted(found) == list(range(len(found))) and len(found) >= 4
    *whole, last = found.values()
    assert all(sorted(members) == list(range(50)) for members in whole)
    assert len(set(last)) == len(last)
    assert whole[0] != whole[1]  # another order every epoch
    limits = np.array([LANES.und, LANES.gen, LANES.images])
    for i in range(60):
        total = sizes(50)[order(i)[1]].sum(axis=0)[[0, 1, 4]]
        assert (total <= limits).all()


def test_the_order_is_a_function():
    rows = [EpochRows(sizes(50), LANES, seed=3)(i) for i in range(40)]
    order = EpochRows(sizes(50), LANES, seed=3)
    assert [order(i) for i in reversed(range(40))] == rows[::-1]  # from any row on
    assert [order(i) for i in range(40)] == rows
    other = EpochRows(sizes(50), LANES, seed=4)
    assert [other(i) for i in range(40)] != rows


def test_wide_lanes_are_used_as_they_are_with_their_cost_and_the_sizes_to_use():
    wide = Lanes(und=200, gen=160, vit=0, labels=0, images=4, regions=3)
    order = EpochRows(sizes(50), wide, seed=0)
    held = sum(sizes(50)[row].sum(axis=0)[:2].sum() for row in order.first[:-1])
    assert order.padding == pytest.approx(1 - held / (len(order.first[:-1]) * 360))
    assert f"{order.padding:.0%} of every step's tokens are padding" in order.advice
    assert "up to 4 samples" in order.advice and "train.lanes" in order.advice
    und, gen = (
        int(part.split("=")[1].split()[0].strip(","))
        for part in order.advice.split("set ")[1].split(" in ")[0].split(", ")
    )
    assert gen == 64 and 40 <= und <= 56
    better = EpochRows(sizes(50), Lanes(und, gen, 0, 0, 4, 3), seed=0)
    assert min(better.fill.values()) > 0.8 and not better.advice
    assert [better(i) for i in range(10)] == [order(i) for i in range(10)]


def test_a_small_lane_may_be_nearly_empty_beside_a_full_large_one():
    """Prompts of a few words beside images of 4096 tokens: the text lane fits the longest."""
    lanes = Lanes(und=256, gen=8192, vit=0, labels=0, images=2, regions=16)
    order = EpochRows(sizes(50, und=(9, 24), gen=4096), lanes, seed=0)
    assert order.fill["und"] < 0.2 and order.fill["gen"] == 1.0
    assert order.padding < 0.03 and not order.advice


def test_fill_is_of_the_lanes_not_of_the_left_over_row():
    nine = EpochRows(sizes(9), LANES, seed=0)  # rows of 4, 4 and 1
    assert nine.fill["gen"] == 1.0
    five = EpochRows(sizes(5), LANES, seed=0)
    assert five.fill["gen"] == 1.0
    # A single row is as full as there are samples: there is nothing to set.
    assert EpochRows(sizes(1), LANES, seed=0).fill["gen"] == 0.25


def test_impossible_sets_are_refused():
    with pytest.raises(ValueError, match="no examples"):
        EpochRows(np.zeros((0, 6), int), LANES, seed=0)
    with pytest.raises(ValueError, match="example 0 does not fit one row: gen needs 65"):
        EpochRows(sizes(3, gen=65), LANES, seed=0)


@pytest.fixture(scope="module")
def at():
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, context=1), jax.devices())
    return sharding.batch_sharding(mesh)


def make(step):
    rows = np.arange(step * 8, step * 8 + 8)
    return {"rows": rows, "wide": np.outer(rows, [1.0, 10.0]).astype(np.float32), "none": None}


def test_batches_from_the_middle_are_the_tail(at):
    whole = list(pipeline.batches(make, at, start=0, stop=7))
    assert len(whole) == 7
    for step, batch in enumerate(whole):
        np.testing.assert_array_equal(batch["rows"], make(step)["rows"])
        assert batch["rows"].sharding == batch["wide"].sharding == at and batch["none"] is None
    tail = list(pipeline.batches(make, at, start=4, stop=7))
    assert [b["wide"].tolist() for b in tail] == [b["wide"].tolist() for b in whole[4:]]
    assert list(pipeline.batches(make, at, start=7, stop=7)) == []


def test_batches_are_made_ahead_but_not_far(at):
    made = []

    def counting(step):
        made.append(step)
        return make(step)

    stream = pipeline.batches(counting, at, start=0, stop=100)
    assert made == []  # not before it is wanted
    list(itertools.islice(stream, 3))
    assert made[:3] == [0, 1, 2] and len(made) <= 3 + 4
    stream.close()


def test_a_fault_in_making_a_batch_reaches_the_loop(at):
    def broken(step):
        if step == 1:
            raise ValueError("candidate 7 is damaged")
        return make(step)

    stream = pipeline.batches(broken, at, start=0, stop=3)
    next(stream)
    with pytest.raises(ValueError, match="candidate 7 is damaged"):
        next(stream)


class OnOneHost:
    """A sharding as the host sees it that has some of its devices."""

    def __init__(self, sharding, numbers):
        self.sharding, self.numbers = sharding, numbers

    def addressable_devices_indices_map(self, shape):
        found = self.sharding.devices_indices_map(shape)
        return {device: cut for device, cut in found.items() if device.id in self.numbers}


def test_a_host_makes_the_rows_of_its_devices_only(at):
    assert pipeline.local_rows(3, 8, at) == list(range(24, 32))
    halves = [OnOneHost(at, range(4)), OnOneHost(at, range(4, 8))]
    assert [pipeline.local_rows(3, 8, half) for half in halves] == [
        list(range(24, 28)),
        list(range(28, 32)),
    ]
    # Devices that share rows with another host's, and rows that do not follow each other.
    assert pipeline.local_rows(1, 8, OnOneHost(at, [0, 6])) == [8, 9, 14, 15]
    assert pipeline.local_rows(1, 8, OnOneHost(at, [1, 7])) == [8, 9, 14, 15]
    with pytest.raises(ValueError):
        pipeline.local_rows(0, 6, at)
