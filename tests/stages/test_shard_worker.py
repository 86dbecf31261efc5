"""Shards: whose they are, going on, and stopping between two of them."""

import threading

import jax
import numpy as np
import pytest

from srum_jax.core import distributed, preemption
from srum_jax.core.errors import Preempted
from srum_jax.data import shards
from srum_jax.stages import shard_worker

SIZES = [2, 2, 2, 1]


@pytest.fixture
def make(monkeypatch):
    """A maker of records that notes its calls; `make.then` is called after each."""
    preemption.stop.clear()

    def make(first, count):
        make.calls.append(first)
        made = [
            {
                "id": str(i),
                "prompt_id": i,
                "k": 0,
                "regions": [],
                "image_score": np.float32(i),
                "image_status": "ok",
            }
            for i in range(first, first + count)
        ]
        make.then()
        return made

    make.calls, make.then = [], lambda: None
    yield make
    preemption.stop.clear()


def run(folder, make, encode=dict):
    features, each = shards.score_features(), shard_worker.one_by_one(make)
    shard_worker.make_all(folder, "scores", features, SIZES, each, title="score", encode=encode)


def test_told_to_stop_it_stops_between_units_and_goes_on_later(tmp_path, make):
    make.then = lambda: len(make.calls) == 2 and preemption.stop.set()
    with pytest.raises(Preempted, match="score: stopped, finished shards are kept"):
        run(tmp_path, make)
    assert make.calls == [0, 2] and len(list(tmp_path.glob("*.array_record*"))) == 2
    preemption.stop.clear()
    (tmp_path / ".shard-abc").mkdir()  # of a process that was killed
    make.calls.clear()
    run(tmp_path, make)
    assert make.calls == [4, 6]
    assert [record["id"] for record in shards.read(tmp_path)] == [str(i) for i in range(7)]
    assert not list(tmp_path.glob(".*"))


def test_shards_are_encoded_and_written_in_order_while_the_next_are_made(
    tmp_path, make, monkeypatch
):
    made_next, written = threading.Event(), []
    write = shards.write_shard

    def kept(folder, name, features, records, index, total):
        written.append((index, len(make.calls), [r["id"] for r in records]))
        return write(folder, name, features, records, index, total)

    def encode(record):
        assert threading.current_thread() is not threading.main_thread()
        assert made_next.wait(20)  # of the first shard: until the second one is made
        return {**record, "id": f"{record['id']}!"}

    monkeypatch.setattr(shards, "write_shard", kept)
    make.then = lambda: len(make.calls) == 2 and made_next.set()
    run(tmp_path, make, encode)
    assert [(index, ids) for index, _, ids in written] == [
        (0, ["0!", "1!"]),
        (1, ["2!", "3!"]),
        (2, ["4!", "5!"]),
        (3, ["6!"]),
    ]
    # No more shards wait than are let: those made are one ahead, and the one in the making.
    assert all(made <= index + 1 + shard_worker.WAITING for index, made, _ in written)
    assert [record["id"] for record in shards.read(tmp_path)] == [f"{i}!" for i in range(7)]


def test_a_fault_of_a_shard_ends_the_work_and_leaves_those_before(tmp_path, make):
    def encode(record):
        if record["id"] == "2":
            raise ValueError("no such picture")
        return record

    with pytest.raises(ValueError, match="no such picture"):
        run(tmp_path, make, encode)
    assert shards.shards_left(tmp_path, "scores", [2] * 4, (0, 1, 3)) == [1, 3]
    assert make.calls != [0, 2, 4, 6]


def test_told_after_the_last_unit_it_finishes(tmp_path, make):
    make.then = lambda: len(make.calls) == 4 and preemption.stop.set()
    run(tmp_path, make)
    assert len(shards.read(tmp_path)) == 7


def test_a_host_makes_its_share_and_stops_for_another(tmp_path, make, monkeypatch):
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    said = []

    def all_gather(number, label):
        said.append(number)
        return [number, number]

    monkeypatch.setattr(distributed, "all_gather", all_gather)
    make.then = preemption.stop.set  # the host watch does, where another one was asked to
    with pytest.raises(Preempted):
        run(tmp_path, make)
    assert make.calls == [2] and said[-1] == 1
    make.then = lambda: None
    preemption.stop.clear()
    run(tmp_path, make)
    assert make.calls == [2, 6] and len(list(tmp_path.glob("*.array_record*"))) == 2


def test_told_in_the_middle_of_a_shard_it_drops_that_shard(tmp_path, make):
    def stopped_between_two_calls():
        if len(make.calls) == 2:
            preemption.stop.set()
            preemption.check()

    make.then = stopped_between_two_calls
    with pytest.raises(Preempted, match="score: stopped, finished shards are kept"):
        run(tmp_path, make)
    assert len(list(tmp_path.glob("*.array_record*"))) == 1
    preemption.stop.clear()
    run(tmp_path, make)
    assert make.calls == [0, 2, 2, 4, 6] and len(shards.read(tmp_path)) == 7
