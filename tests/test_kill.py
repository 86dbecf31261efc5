"""Killed in the middle of a shard and started again, the records are those of an undisturbed
run."""

import shutil

import hosts
import pytest
import tiny

STAGES = ["--stage", "generate,score"]
SMALL = {  # 3 shards a stage
    "generate__count": 6,
    "score__proposers": ("grid",),
    "evaluate__batch": 12,  # divides over two
}


class Runs:
    """Work folders of one config, each made by one or several real processes."""

    def __init__(self, root):
        self.root = root
        weights = tiny.write_model(root / "model", answers=True)
        self.config = hosts.write_config(root / "config.py", weights, **SMALL)

    def args(self, name):
        return ["--config", self.config, "--workdir", self.root / name, *STAGES]

    def go(self, name, processes=1):
        """Runs to the end and returns the folder."""
        program = ["-m", "srum_jax.main", *self.args(name)]
        hosts.ended(hosts.start(program, processes=processes))
        return self.root / name

    def kill(self, name, stage, after, processes=1):
        """Kills every process when `after` shards of `stage` are there and one is half written."""
        program = [hosts.__file__, stage, after, *self.args(name)]
        started = hosts.start(program, processes=processes)
        mark = self.root / name / hosts.HERE
        try:
            hosts.wait_for(mark, started)
        finally:
            hosts.kill(started)
        mark.unlink()
        folder = self.root / name / "round0" / stage
        assert not (folder / "manifest.json").exists()
        assert list(folder.glob(".shard-*/*")), "nothing was half written"
        return len(list(folder.glob("*.array_record-*")))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs):
    return runs.go("whole")


@pytest.fixture(scope="module")
def killed(runs):
    """A work folder with one of three shards drawn."""
    assert runs.kill("killed", "generate", 1) == 1
    return runs.root / "killed"


@pytest.mark.slow
def test_killed_while_drawing_and_while_scoring(runs, whole, killed):
    shutil.copytree(killed, runs.root / "one")
    assert runs.kill("one", "score", 1) == 1
    hosts.assert_same_records(whole, runs.go("one"), exactly=True)
    assert not list((runs.root / "one").rglob(".*"))


@pytest.mark.slow
def test_killed_on_one_host_and_started_again_on_two(runs, whole, killed):
    shutil.copytree(killed, runs.root / "two")
    hosts.assert_same_records(whole, runs.go("two", processes=2))


@pytest.mark.slow
def test_killed_on_two_hosts_and_started_again_on_two_and_on_one(runs, whole):
    # The first host stands before its first shard; the second makes its own and waits.
    assert runs.kill("more", "generate", 0, processes=2) <= 1
    assert runs.kill("more", "score", 1, processes=2) in (1, 2)
    hosts.assert_same_records(whole, runs.go("more"))
