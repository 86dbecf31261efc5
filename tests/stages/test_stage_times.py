"""What a stage took: over all its starts, and as the time left of a run is told from it."""

import dataclasses

import pytest

from srum_jax import config, running
from srum_jax.configs import base
from srum_jax.core.files import read_json, write_json
from srum_jax.stages.manifest import Manifest, Outcome, Workdir, run_stage, takes


def finishing(folder):
    (folder / "half.txt").write_text("x")
    return Outcome({"half": "half.txt"}, {"images": 3}, items=3)


def failing(folder):
    finishing(folder)
    raise RuntimeError("killed")


def run(work, body=finishing):
    cfg = config.load(base.get_config())
    return run_stage("train", cfg, work, sections=("train",), inputs={}, body=body)


@pytest.fixture
def work(tmp_path):
    return Workdir(tmp_path / "run", config_file="configs/shapes.py")


def test_what_a_stage_took_is_known_where_one_start_made_it_all(work):
    then = dataclasses.replace(work, round=1)
    assert takes(then, "train") is None
    made = run(work)
    assert made.timing["starts"] == 1
    assert takes(work, "train") == 0.0  # finished
    assert takes(then, "train") == made.timing["seconds"]
    with pytest.raises(RuntimeError, match="killed"):
        run(then, failing)
    assert takes(then, "train") is None  # a part of it is done
    assert run(then).timing["starts"] == 2
    for number in (2, 3):  # the last round that says it
        later = dataclasses.replace(work, round=number)
        assert takes(later, "train") == made.timing["seconds"]


def test_seconds_and_the_rate_are_of_all_starts(work):
    path = work.stage("train") / "started.json"
    with pytest.raises(RuntimeError, match="killed"):
        run(work, failing)
    told = read_json(path)
    assert told["seconds"] >= 0
    write_json(path, told | {"seconds": 1000.0})
    with pytest.raises(RuntimeError, match="killed"):
        run(work, failing)
    assert 1000 <= read_json(path)["seconds"] < 1100
    timing = run(work).timing
    assert timing["starts"] == 3 and 1000 <= timing["seconds"] < 1100
    assert timing["items_per_second"] == pytest.approx(3 / timing["seconds"], abs=1e-4)


def test_a_run_says_what_is_left_as_far_as_an_earlier_round_tells(work):
    c = base.get_config()
    c.rounds, c.stages = 3, ("train", "export")
    going = running.Run(config.load(c), ("train", "export"), str(work.root))
    assert going.left(0, 0).said() == "not known yet"
    run(work)
    path = work.stage("train") / "manifest.json"
    manifest = Manifest.read(path.parent)
    timing = {**manifest.timing, "seconds": 1800.0}
    write_json(path, dataclasses.asdict(dataclasses.replace(manifest, timing=timing)))
    assert going.left(0, 1).stage == "export"
    assert going.left(0, 1).said() == "about 1 h 00 min, and export not known yet"
    assert going.left(1, 1).said() == "about 30 min, and export not known yet"
