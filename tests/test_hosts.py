"""Several processes are one run: the whole loop on two of them, checkpoints, stopping, failing."""

import ast
import json
import os
import pathlib
import signal
import threading

import fsspec
import hosts
import jsonschema
import numpy as np
import pytest
import tiny
import toy
from safetensors import numpy as safetensors

from srum_jax.config import MeshConfig
from srum_jax.core import digests, sharding
from srum_jax.core.errors import Preempted
from srum_jax.training import metrics

TESTS = pathlib.Path(__file__).parent
MESH = MeshConfig(data=2, fsdp=2, tensor=2, context=1)
PROMPTS = {  # alike, so that their questions take few programs
    "generate": [f"a {color} circle" for color in ("red", "green", "blue", "yellow", "cyan")],
    "evaluate": [f"a {color} square" for color in ("red", "green", "blue", "yellow", "cyan")],
}
QUICK = {
    "generate__count": 5,
    "score__proposers": ("grid",),  # of pictures of random weights nothing stands out
    "evaluate__batch": 8,
    "evaluate__count": 4,
    "evaluate__best_of_prompts": 2,
    "evaluate__questions": 4,
    "evaluate__multi_image_questions": 2,
    "evaluate__captions": 2,
    "evaluate__edits": 1,
    "train__steps": 4,
    "train__rows": 2,
    "train__log_every": 1,
    "train__checkpoint_every": 100,
    "train__lanes__und": 44,
    "train__optim__warmup": 1,
    "compute__remat": "none",
    "export__dtype": "float32",
}
MONITORED = QUICK | {
    "evaluate__batch": 12,
    "evaluate__count": 5,
    "evaluate__best_of_prompts": 3,
    "evaluate__questions": 11,
    "evaluate__multi_image_questions": 6,
    "evaluate__captions": 5,
    "evaluate__edits": 3,
    "train__steps": 24,
    "train__rows": 4,
    "train__monitor__prompts": 2,
    "train__monitor__every": 12,
    "train__monitor__patience": 100,
}


def losses(folder):
    rows = metrics.read(folder / "metrics.jsonl")
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def assert_same_losses(one, other, first=1, last=None):
    one, other = losses(one), losses(other)
    assert sorted(other) == list(range(first, max(other) + 1)) and max(other) == last
    for step, loss in other.items():
        assert loss == pytest.approx(one[step], rel=1e-5), step


def assert_same_monitor_rows(one, two, steps):
    looks = [metrics.read(folder / "round0/train/monitor.jsonl") for folder in (one, two)]
    assert [row["step"] for row in looks[1]] == [row["step"] for row in looks[0]] == steps
    for a, b in zip(*looks, strict=True):
        assert b == {name: pytest.approx(value, rel=1e-3, abs=1e-4) for name, value in a.items()}


def assert_same_runs(one, two, steps):
    """Of two work folders, whatever numbers of hosts made them; the second one's are checked."""
    hosts.assert_same_records(one, two)
    assert_same_losses(*(folder / "round0/train" for folder in (one, two)), last=steps)
    exported = [
        safetensors.load((folder / "round0/export/model/ema.safetensors").read_bytes())
        for folder in (one, two)
    ]
    assert exported[0].keys() == exported[1].keys()
    for name, leaf in exported[0].items():
        np.testing.assert_allclose(exported[1][name], leaf, atol=2e-5, rtol=1e-4, err_msg=name)

    results = [json.loads((folder / "results.json").read_text()) for folder in (one, two)]
    jsonschema.validate(results[1], json.loads((TESTS / "results.schema.json").read_text()))
    assert results[1]["stages"].keys() == results[0]["stages"].keys()
    first, second = (found["rounds"][0] for found in results)
    assert second.keys() == first.keys() >= {"t2i", "qa", "captions", "edits", "scores", "train"}
    for part in ("t2i", "qa", "captions", "edits"):
        assert second[part]["base"] == first[part]["base"], part
        assert second[part]["trained"]["n"] == first[part]["trained"]["n"], part
    assert second["scores"]["status"] == first["scores"]["status"]
    storage, root = fsspec.core.url_to_fs(os.fspath(two))
    left = [name for name in storage.find(root) if name.rpartition("/")[2].startswith(".")]
    assert left == []  # what was half written, or told between hosts


def command(folder, **values):
    """What follows `python` to do the whole loop; a work folder is to be added."""
    weights = tiny.write_model(folder / "model", answers=True)
    for name, prompts in PROMPTS.items():
        values[f"{name}__prompts"] = str(folder / f"{name}.txt")
        (folder / f"{name}.txt").write_text("\n".join(prompts))
    config = hosts.write_config(folder / "config.py", weights, **values)
    return ["-m", "srum_jax.main", "--config", config]


def runner(folder, devices, **values):
    """The function that starts the whole loop in a work folder on some hosts."""
    program = command(folder, **values)

    def run(workdir, processes):
        return hosts.start([*program, "--workdir", workdir], processes=processes, devices=devices)

    return run


def assert_ended(started, two):
    """Alike, and the first one alone names the report."""
    printed, last = hosts.ended(started), f"report: {two / 'report.html'}"
    assert last in printed[0] and last not in printed[1]


@pytest.mark.slow
def test_the_whole_loop_on_two_hosts_is_that_of_one(tmp_path):
    run, one, two = runner(tmp_path, 1, **QUICK), tmp_path / "one", tmp_path / "two"
    hosts.ended(run(one, 1))
    assert_ended(run(two, 2), two)
    assert_same_runs(one, two, QUICK["train__steps"])


@pytest.mark.slow
def test_one_host_of_two_is_told_to_stop_and_the_probed_run_goes_on(tmp_path):
    run, one, two = runner(tmp_path, 2, **MONITORED), tmp_path / "one", tmp_path / "two"
    hosts.ended(run(one, 1))
    started = run(two, 2)
    hosts.wait_for(two / "round0/train/metrics.jsonl", started)
    started[1].send_signal(signal.SIGTERM)  # one host alone is told to stop
    told = hosts.ended(started, code=75)
    saved = [int(p.name) for p in (two / "round0/train/checkpoints").iterdir()]
    assert len(saved) == 1 and saved[0] < MONITORED["train__steps"]
    assert all(f"train: stopped at step {saved[0]} of" in text for text in told)
    assert not (two / "round0/train/manifest.json").exists()

    assert_ended(run(two, 2), two)
    assert_same_runs(one, two, MONITORED["train__steps"])
    assert_same_monitor_rows(one, two, [0, 12, 24])


def assert_every_flipped_bit_is_found(folder):
    """In the newest checkpoint of two processes: some in the numbers of each."""
    newest = max((p for p in folder.iterdir() if p.name.isdecimal()), key=lambda p: int(p.name))
    numbers = sorted(p for p in newest.glob("state/**/d/*") if p.is_file())
    assert len({p.relative_to(newest).parts[1] for p in numbers}) >= 2, numbers
    for i in range(12):
        path = numbers[i % len(numbers)]
        whole = path.read_bytes()
        at = (len(whole) - 1) * i // 11
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << i % 8]) + whole[at + 1 :])
        assert digests.damaged(newest) == [str(path.relative_to(newest))]
        path.write_bytes(whole)
    assert digests.damaged(newest) == []


@pytest.mark.slow
def test_checkpoints_go_to_other_hosts_and_back_and_all_stop_at_one_step(tmp_path):
    mesh = sharding.make_mesh(MESH)
    never = threading.Event()
    toy.run(tmp_path / "whole", never, mesh=mesh)
    told = threading.Event()
    with pytest.raises(Preempted):
        toy.run(tmp_path / "back", told, batches=toy.StoppingBatches(told), mesh=mesh)
    before = losses(tmp_path / "back")
    address = f"127.0.0.1:{hosts.free_port()}"
    program = [TESTS / "two_trainers.py", address]
    started = [
        process
        for number in range(2)
        for process in hosts.start([*program, number, tmp_path], devices=4)
    ]
    hosts.ended(started)
    stopped = [(tmp_path / f"stopped-{number}").read_text() for number in range(2)]
    assert stopped[0] == stopped[1] and "stopped at step" in stopped[0]
    (newest, taken, check), other = (
        ast.literal_eval((tmp_path / f"read-{number}").read_text()) for number in range(2)
    )
    assert (newest, taken, check) == other and taken < newest and check is None
    assert 4 <= len(losses(tmp_path / "forth")) < 8
    assert_every_flipped_bit_is_found(tmp_path / "back" / "checkpoints")
    toy.run(tmp_path / "forth", never, mesh=mesh)
    assert 4 <= len(before) < 8
    for folder in ("forth", "back"):
        assert_same_losses(tmp_path / "whole", tmp_path / folder, last=8)


ENDS = {  # what one host does: (exit codes of both, what it says)
    "check": ({2}, "told"),
    "run": ({2}, "told"),
    "bug": ({1}, "TypeError: told"),
    "kill": ({69, -signal.SIGKILL}, ""),
    "stop": ({75}, "the same command goes on"),
}
QUICK_ENDS = {("run", 1)}


@pytest.mark.parametrize(
    "what, who",
    [
        pytest.param(what, who, marks=[] if (what, who) in QUICK_ENDS else pytest.mark.slow)
        for what in ENDS
        for who in (0, 1)
    ],
)
def test_what_ends_one_host_ends_both_with_its_code(tmp_path, what, who):
    """Within a minute, and without a traceback of the one that waits."""
    codes, said = ENDS[what]
    program = [TESTS / "ending_host.py", what, who, "--config", "shapes", "--stage", "report"]
    program += ["--workdir", tmp_path, "--config.distributed.heartbeat_timeout=10"]
    started = hosts.start(program, processes=2)
    try:
        printed = [process.communicate(timeout=180)[0] for process in started]
    finally:
        hosts.kill(started)
    assert {process.returncode for process in started} == codes, printed
    assert said in printed[who]
