"""Joining the processes of a run: what is refused, and that one process needs nobody."""

import threading
import types

import jax
import pytest

from srum_jax.core import distributed, host_watch, sharding
from srum_jax.core.errors import BadInput, Stopped

LIMITS = types.SimpleNamespace(init_timeout=7, heartbeat_timeout=8, shutdown_timeout=9)


@pytest.fixture
def joined(monkeypatch):
    """The calls that would start JAX's service; `fail` is raised by them. Nothing looks at the
    other processes: that would end this one, with all tests, where a test's command fails."""
    calls = types.SimpleNamespace(seen=[], fail=None)

    def initialize(*args, **kwargs):
        calls.seen.append((args, kwargs))
        if calls.fail:
            raise calls.fail

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    monkeypatch.setattr(host_watch, "start", lambda lost_after: None)
    return calls


def test_named_processes_are_not_looked_for(joined):
    distributed.join(LIMITS, coordinator="host-0:1234", processes=4, process=3)
    distributed.join(LIMITS)
    (named, how), (unnamed, found) = joined.seen
    assert named == ("host-0:1234", 4, 3) and how["cluster_detection_method"] == "deactivate"
    assert unnamed == (None, None, None) and found["cluster_detection_method"] is None
    assert how["heartbeat_timeout_seconds"] == 8 and how["shutdown_timeout_seconds"] == 9
    assert how["initialization_timeout"] > 7  # our own message comes first
    late = [t for t in threading.enumerate() if isinstance(t, threading.Timer)]
    assert all(timer.finished.is_set() for timer in late)  # nothing ends this process later


@pytest.mark.parametrize(
    "named, message",
    [
        (dict(coordinator="a:1"), "--processes and --process missing"),
        (dict(processes=2, process=0), "--coordinator missing"),
        (dict(coordinator="a", processes=2, process=0), "a must be HOST:PORT"),
        (dict(coordinator="a:b", processes=2, process=0), "a:b must be HOST:PORT"),
        (dict(coordinator="http://a:1", processes=2, process=0), "http://a:1 must be HOST:PORT"),
        (dict(coordinator="a:1", processes=2, process=2), "--process 2 must be one of 0 … "),
        (dict(coordinator="a:1", processes=2, process=-1), "--process -1 must be one of"),
    ],
)
def test_half_named_processes_are_refused(joined, named, message):
    with pytest.raises(BadInput, match=message):
        distributed.join(LIMITS, **named)
    assert joined.seen == []


def test_where_nothing_names_the_processes_all_ways_are_told(joined):
    joined.fail = ValueError("coordinator_address should be defined.")
    with pytest.raises(BadInput) as e:
        distributed.join(LIMITS)
    for word in ("coordinator_address", "TPU pod", "srun", "JobSet", "--coordinator HOST:PORT"):
        assert word in str(e.value)


def test_one_process_agrees_with_itself():
    event = threading.Event()
    told = distributed.StopAgreement(event, at=None)
    assert told() is False
    event.set()
    assert told() is True
    assert distributed.all_gather(5, "here") == [5]
    assert distributed.any_process(True, "here") and not distributed.any_process(False, "here")
    distributed.barrier("here")
    distributed.check_same("text", "configs")


def test_what_others_say_counts(monkeypatch):
    monkeypatch.setattr(distributed, "all_gather", lambda number, label: [0, number])
    assert distributed.any_process(True, "here")
    with pytest.raises(Stopped, match="here: another process of this run is elsewhere"):
        distributed.barrier("here")
    with pytest.raises(BadInput, match="different configs: start all of them alike"):
        distributed.check_same("text", "configs")


def test_host_arrays_are_put_and_fetched_whole():
    mesh = sharding.make_mesh(types.SimpleNamespace(data=2, fsdp=4, tensor=1, context=1))
    at = sharding.batch_sharding(mesh)
    tree = {"x": jax.numpy.arange(16.0).reshape(8, 2)}
    placed = sharding.put(tree, at)
    assert placed["x"].sharding == at
    assert (sharding.fetch(placed["x"]) == tree["x"]).all()


@pytest.mark.parametrize("count, said", [("2", True), ("1", False), ("", False)])
def test_one_of_several_tasks_alone_is_told(count, said, monkeypatch, caplog):
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", count)
    distributed.warn_of_tasks()
    assert ("--distributed makes one run" in caplog.text) == said
