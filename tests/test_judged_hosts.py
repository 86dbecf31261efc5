"""Benchmarks, judges and the choice among models on two hosts and in a bucket: as on one host."""

import pathlib
import re
import signal

import campaign
import hosts
import jax
import judged_hosts
import pytest
import test_loop_in_a_bucket
import tiny

from srum_jax import running
from srum_jax.core.errors import BadInput
from srum_jax.evals import official_files
from srum_jax.evals.official_files import Row
from srum_jax.stages import replies
from srum_jax.stages.manifest import Workdir
from srum_jax.worlds.shapes import benchmark_files

WHOLE = ("nothing", 0)  # for `tests/hosts.py`: no folder is called so


@pytest.fixture
def server():
    made = judged_hosts.Judge()
    yield made
    made.close()


@pytest.fixture
def run(tmp_path, server):
    """Starts the stages after a training in a work folder on some hosts."""
    weights = judged_hosts.write_model(tmp_path / "model")
    values = judged_hosts.values(tmp_path, server)
    path = hosts.write_config(tmp_path / "config.py", weights, **values)

    def start(place, processes=1, until=WHOLE):
        work = Workdir(place, config_file=str(path))
        if not work.stage("train").exists():
            judged_hosts.trained(tiny.load_config(weights, **values), work)
        program = [judged_hosts.__file__, *until, "--config", path, "--workdir", work.root]
        program += ["--stage", ",".join(judged_hosts.STAGES[1:])]
        program += ["--config.distributed.heartbeat_timeout=10"]
        return work, hosts.start(program, processes=processes)

    return start


ENDS = {  # by stage: what is being written in the bucket as its process goes
    "evaluate": "evaluate/own_score/trained/judged_stand_in/judged_stand_in-train.array",
    "adjust": "adjust/test/own_score/guidance-2.5/judged_stand_in/judged_stand_in-train.array",
    "export": "export/model/generation_config.json",
    "report": "report.html",
}


@pytest.mark.slow
def test_killed_in_a_bucket_it_ends_as_on_a_disk(bucket, tmp_path, server, monkeypatch):
    """Its data lies there too. Of the judge's first replies one is lost."""
    monkeypatch.setattr(replies, "JUDGED_AT_ONCE", judged_hosts.AT_ONCE)
    values = judged_hosts.values(tmp_path, server, place=bucket / "data")
    cfg = tiny.load_config(judged_hosts.write_model(tmp_path / "model"), **values)
    whole, work = (Workdir(place / "work", config_file="c") for place in (tmp_path, bucket))

    def run(work):
        mesh = tiny.mesh(cfg)
        with jax.set_mesh(mesh):
            for stage in judged_hosts.STAGES[1:]:
                running.stage_module(cfg.model, stage).run(cfg, mesh, work)

    for one in (whole, work):
        judged_hosts.trained(cfg, one)
    run(whole)
    assert server.asked().total() == len(server.asked()) == judged_hosts.JUDGED
    server.http.asked.clear()
    server.failures = 1
    left, before, again = campaign.Run([], work.root), {}, 0
    for stage, where in ENDS.items():
        test_loop_in_a_bucket.killed(monkeypatch, where, lambda: run(work))
        assert not (work.stage(stage) / "manifest.json").exists()
        again += campaign.made_again(before, found := left.whole())
        before = found
    run(work)
    assert again + campaign.made_again(before, left.whole()) == 1  # the shard with the lost reply
    judged_hosts.assert_same_ends(whole, work)
    # Asked again: the lost one and, of each of two kills, the shard that was being written and the
    # one that was asked meanwhile.
    assert server.asked().total() == judged_hosts.JUDGED + 1 + 4 * judged_hosts.AT_ONCE


def test_pictures_in_a_bucket_are_looked_for_by_a_listing(bucket, monkeypatch):
    """Not by a request each."""
    names, looked = [f"{n}.png" for n in range(5)], []
    for name in names:
        (bucket / "val2014" / name).write_bytes(b"a picture")
    is_file = type(bucket).is_file
    monkeypatch.setattr(type(bucket), "is_file", lambda p: looked.append(p) or is_file(p))
    rows = [Row({}, f"line {n}") for n in range(6)]
    found = official_files.pictures(bucket, names, rows[:5], "images", "val2014")
    assert found == [bucket / "val2014" / name for name in names]
    with pytest.raises(BadInput, match="line 5: the picture '5.png' is not there"):
        official_files.pictures(bucket, [*names, "5.png"], rows, "images", "val2014")
    assert looked == [bucket] * 2


@pytest.mark.slow
def test_killed_on_one_host_of_two_it_ends_as_on_one(run, server, tmp_path, bucket):
    """Killed while the second model's pictures are judged; of the first one's some marks are lost,
    which are asked for again, and nothing else is that was written. Undisturbed, in a
    bucket, both hosts together ask what one does, each question once, and choose alike."""
    one, started = run(tmp_path / "one")
    hosts.ended(started)
    whole = server.asked()
    assert whole.total() == len(whole) == judged_hosts.JUDGED

    server.http.asked.clear()
    both, started = run(bucket / "both", 2)
    printed = hosts.ended(started)
    assert server.asked() == whole
    choices = [re.findall(r"adjust: \{.*", text) for text in printed]
    assert choices[0] == choices[1] and len(choices[0]) == 1
    judged_hosts.assert_same_ends(one, both)

    server.http.asked.clear()
    server.failures = 1
    two, started = run(tmp_path / "two", 2, until=("judged_stand_in", 1))
    try:
        hosts.wait_for(pathlib.Path(two.root / hosts.HERE), started)
        started[1].kill()
        codes = {process.wait(hosts.PATIENCE) for process in started}
    finally:
        hosts.kill(started)
    assert codes == {69, -signal.SIGKILL}
    _, started = run(tmp_path / "two", 2)
    printed = hosts.ended(started)
    assert "1 replies were lost; they are asked for again" in printed[0]
    judged_hosts.assert_same_ends(one, two)
    # Asked again: the lost one and, of each host, the shard that was not written.
    assert server.asked().keys() == whole.keys()
    again = (server.asked() - whole).total()
    assert 1 < again <= 1 + 2 * judged_hosts.AT_ONCE


FAULTS = {  # of the second host's data: what both say, with exit code 2
    "a damaged picture": ".jpg: not a readable image",
    "a question less": "different inputs of the stage evaluate (suite pope): start all of them",
}


@pytest.mark.parametrize("fault", FAULTS)
def test_data_that_is_bad_on_one_host_of_two_ends_both(tmp_path, fault):
    """While the other one waits for its replies, or before anybody is asked."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for folder in folders:
        benchmark_files.write("pope", folder / "pope", split="test", count=12)
    pictures, questions = (sorted(folders[1].rglob(f"*.{kind}")) for kind in ("jpg", "json"))
    if fault == "a damaged picture":
        for path in pictures:
            path.write_bytes(path.read_bytes()[:40])
    else:
        questions[0].write_text("".join(questions[0].read_text().splitlines(True)[:-1]))
    values = {"stages": ("evaluate",), "evaluate__suites": ("pope:pope",), "evaluate__batch": 1}
    weights = judged_hosts.write_model(tmp_path / "model")
    path = hosts.write_config(tmp_path / "config.py", weights, **values)
    program = ["-m", "srum_jax.main", "--config", path, "--workdir", tmp_path / "work"]
    program += ["--config.distributed.heartbeat_timeout=10"]
    for text in hosts.ended(hosts.start(program, processes=2, folders=folders), 2):
        assert FAULTS[fault] in text and "Traceback" not in text
    assert not (Workdir(tmp_path / "work").stage("evaluate") / "manifest.json").exists()
