"""launch/tpu_pod.sh, run whole: the calls of gcloud, and what they run on the hosts."""

import os
import pathlib
import shutil
import signal
import time

import pytest
from stand_ins import TRAINING, option, write_program

SLICE = ["--name", "srum", "--zone", "z1-a"]
UP = ["up", *SLICE, "--type", "v5litepod-16", "--repo", "https://host/r", "--poll", "0", "--yes"]
NEW = ",WAITING_FOR_RESOURCES,PROVISIONING,ACTIVE"


def verbs(world):
    return [call[4] for call in world.calls("gcloud")]


def test_up_creates_waits_installs_and_starts(world):
    code, _, err = world.run("tpu_pod.sh", *UP, "--spot", "--", *TRAINING, STATES=NEW)
    assert code == 0, err
    assert verbs(world) == ["list", "create", "list", "list", "list", "ssh", "ssh"]
    (create,) = world.calls("gcloud", "compute", "tpus", "queued-resources", "create")
    assert create[5] == option(create, "--node-id") == "srum"
    assert option(create, "--zone") == "z1-a"
    assert option(create, "--accelerator-type") == "v5litepod-16"
    assert option(create, "--runtime-version") == "v2-alpha-tpuv5-lite"
    assert option(create, "--valid-until-duration") == "120m"  # it does not wait for ever
    assert "--spot" in create
    for call in world.calls("gcloud", "compute", "tpus", "queued-resources", "ssh"):
        assert option(call, "--worker") == option(call, "--node") == "all"


@pytest.mark.parametrize("fail_at", range(1, 8))
def test_a_failed_call_ends_up_and_says_what_to_do_and_what_is_left(world, fail_at):
    code, _, err = world.run("tpu_pod.sh", *UP, "--", *TRAINING, STATES=NEW, FAIL_AT=str(fail_at))
    assert code == 1
    assert len(world.calls()) == fail_at, "it went on"
    step = ["look up", "request", "look up", "look up", "look up", "install", "start"][fail_at - 1]
    assert f"error: this failed: {step}" in err and "what to do: " in err
    hint = "delete it: launch/tpu_pod.sh delete --name srum --zone z1-a"
    assert (hint in err) == (fail_at > 1)  # before the second call nothing was asked for


def test_up_goes_on_with_what_is_there(world):
    assert world.run("tpu_pod.sh", *UP, "--", *TRAINING)[0] == 0
    assert verbs(world) == ["list", "ssh", "ssh"]
    assert world.run("tpu_pod.sh", *UP, "--", *TRAINING, STATES="PROVISIONING,ACTIVE")[0] == 0
    assert verbs(world) == ["list", "list", "ssh", "ssh"]


@pytest.mark.parametrize("state", ["FAILED", "SUSPENDED"])
def test_a_slice_that_was_taken_away_is_not_used(world, state):
    code, _, err = world.run("tpu_pod.sh", *UP, "--", *TRAINING, STATES=state)
    assert code == 1 and "--recreate" in err and verbs(world) == ["list"]
    states = f"{state},{state},,WAITING_FOR_RESOURCES,ACTIVE"
    code, _, err = world.run("tpu_pod.sh", *UP, "--recreate", "--", *TRAINING, STATES=states)
    assert code == 0, err
    assert verbs(world) == [
        "list",
        "list",
        "delete",
        "list",
        "create",
        "list",
        "list",
        "ssh",
        "ssh",
    ]


@pytest.mark.parametrize("fail_at", range(1, 10))
def test_a_failed_call_ends_creating_anew(world, fail_at):
    states = "FAILED,FAILED,,WAITING_FOR_RESOURCES,ACTIVE"
    args = [*UP, "--recreate", "--", *TRAINING]
    code, _, err = world.run("tpu_pod.sh", *args, STATES=states, FAIL_AT=str(fail_at))
    assert code == 1 and len(world.calls()) == fail_at and "this failed: " in err


@pytest.mark.parametrize(
    "args, fail_at, step",
    [
        (["create", "--type", "v4-8", "--yes"], 2, "request"),
        (["install", "--repo", "https://host/r"], 1, "install"),
        (["start", "--", *TRAINING], 1, "start"),
        (["status"], 1, "look up"),
        (["status"], 2, "ask all hosts"),
        (["logs"], 1, "show the log"),
        (["stop"], 1, "stop"),
    ],
)
def test_a_failed_call_ends_every_command(world, args, fail_at, step):
    args = [args[0], *SLICE, *args[1:]]
    states = "" if args[0] == "create" else "ACTIVE"
    code, _, err = world.run("tpu_pod.sh", *args, STATES=states, FAIL_AT=str(fail_at))
    assert code == 1 and len(world.calls()) == fail_at
    assert f"this failed: {step}" in err and "what to do: " in err
    money = args[0] not in ("status", "logs")  # what only looks leaves nothing behind
    assert ("cost money" in err) == money


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_says_what_is_left(world, number, code):
    args = [*UP, "--poll", "1", "--", *TRAINING]
    waiting = world.start("tpu_pod.sh", *args, STATES=",WAITING_FOR_RESOURCES")
    while "WAITING_FOR_RESOURCES" not in world.read("err"):
        assert waiting.poll() is None, world.read("err")
        time.sleep(0.02)
    waiting.send_signal(number)
    assert waiting.wait(timeout=10) == code
    assert "delete it: launch/tpu_pod.sh delete --name srum --zone z1-a" in world.read("err")


@pytest.mark.parametrize("end", ["FAILED", "SUSPENDED", "DELETING"])
def test_a_request_that_fails_ends_the_wait(world, end):
    code, _, err = world.run("tpu_pod.sh", *UP, "--", *TRAINING, STATES=f",PROVISIONING,{end}")
    assert code == 1 and f"which is {end}" in err and "delete it:" in err
    assert verbs(world) == ["list", "create", "list", "list", "describe"]


def test_the_wait_has_an_end(world):
    states = ",WAITING_FOR_RESOURCES"
    code, _, err = world.run("tpu_pod.sh", *UP, "--wait", "0", "--", *TRAINING, STATES=states)
    assert code == 1 and "0 minutes are over" in err and "delete it:" in err
    assert verbs(world) == ["list", "create", "list"]


@pytest.mark.parametrize("command", ["up", "create", "delete"])
def test_nothing_is_created_or_deleted_without_a_yes(world, command):
    args = [command, *UP[1:-1], *(["--", *TRAINING] if command == "up" else [])]
    code, _, err = world.run("tpu_pod.sh", *args, STATES="ACTIVE" if command == "delete" else "")
    assert code == 2 and "nothing was done; add --yes" in err
    assert verbs(world) == ["list"]


@pytest.mark.parametrize("fail_at, step", [(1, "look up"), (2, "delete"), (3, "look up")])
def test_delete_tells_when_it_fails(world, fail_at, step):
    args = ["delete", *SLICE, "--yes"]
    code, _, err = world.run("tpu_pod.sh", *args, STATES="ACTIVE,", FAIL_AT=str(fail_at))
    assert code == 1 and f"this failed: {step}" in err and len(world.calls()) == fail_at


def test_delete_takes_nodes_along_and_looks_whether_they_are_gone(world):
    assert world.run("tpu_pod.sh", "delete", *SLICE, "--yes", STATES="ACTIVE,")[0] == 0
    (call,) = world.calls("gcloud", "compute", "tpus", "queued-resources", "delete")
    assert call[5] == "srum" and "--force" in call
    code, _, err = world.run("tpu_pod.sh", "delete", *SLICE, "--yes", STATES="ACTIVE,DELETING")
    assert code == 1 and "still DELETING" in err
    assert world.run("tpu_pod.sh", "delete", *SLICE, "--yes", STATES="")[0] == 0
    assert verbs(world) == ["list"]


@pytest.mark.parametrize(
    "args, told",
    [
        ([], ""),
        (["fly"], "no command"),
        (["status", "--name", "Srum", "--zone", "z"], "--name"),
        (["status", "--name", "srum"], "--zone"),
        (["status", "--name"], "--name needs a value"),
        (["status", *SLICE, "--wurst"], "--wurst"),
        (["status", *SLICE, "--", "--config", "x"], "takes no training arguments"),
        (["create", *SLICE, "--yes"], "--type"),
        (["create", *SLICE, "--type", "tpu9-4", "--yes"], "--runtime"),
        (["create", *SLICE, "--type", "v4-8", "--wait", "long"], "--wait"),
        (["start", *SLICE], "no config"),
        (["start", *SLICE, "--", "--config=c.py"], "no work folder"),
        (["start", *SLICE, "--", "--config=c.py", "--workdir=runs/x"], "same folder"),
    ],
)
def test_bad_input_ends_before_any_call(world, args, told):
    code, _, err = world.run("tpu_pod.sh", *args)
    assert code == 2 and told in err and world.calls() == []


def test_without_gcloud_it_says_where_to_get_it(world):
    tools = world.folder / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "cat", "env"):
        (tools / name).symlink_to(shutil.which(name))
    code, _, err = world.run("tpu_pod.sh", "status", *SLICE, PATH=str(tools))
    assert code == 2 and "no gcloud" in err


# What the hosts would do, done in world.home.


@pytest.fixture
def hosts(world):
    if shutil.which("setsid") is None or not pathlib.Path("/proc/self/cmdline").exists():
        pytest.skip("plays a Linux host: needs setsid and /proc")
    world.env["REMOTE"] = str(world.home)
    code, _, err = world.run("tpu_pod.sh", "install", *SLICE, "--repo", "https://host/r")
    assert code == 0, err
    yield world
    pid = world.home / "srum_jax_logs" / "pid"
    if pid.exists():
        try:
            os.killpg(int(pid.read_text()), signal.SIGKILL)
        except ProcessLookupError:
            pass


def log_after(world, words):
    log = world.home / "srum_jax_logs" / "train.log"
    for _ in range(500):
        if log.exists() and words in log.read_text():
            return log.read_text()
        time.sleep(0.02)
    raise AssertionError(log.read_text() if log.exists() else "no log")


def test_hosts_run_the_training_again_after_75(hosts):
    assert hosts.run("tpu_pod.sh", "status", *SLICE)[1].strip().endswith("nothing was started")
    code, _, err = hosts.run("tpu_pod.sh", "start", *SLICE, "--", *TRAINING, CODES="75 75 0")
    assert code == 0, err
    log_after(hosts, "ended with exit code 0 after 2 restarts")
    assert hosts.runs() == [["-m", "srum_jax.main", *TRAINING, "--distributed"]] * 3
    for _ in range(20):  # it ends a moment after it says so
        _, out, _ = hosts.run("tpu_pod.sh", "status", *SLICE)
        if "not running" in out:
            break
    assert "not running" in out and "exit code 0 after 2 restarts" in out
    _, out, _ = hosts.run("tpu_pod.sh", "logs", *SLICE, "--lines", "1", "--worker", "3")
    assert "ended with exit code 0" in out and out.count("\n") == 1
    assert option(hosts.calls("gcloud")[-1], "--worker") == "3"


def test_a_host_that_cannot_install_ends_it(world):
    write_program(world.home / "bin" / "git", "#!/bin/sh\necho no such branch >&2\nexit 128\n")
    args = ["up", *UP[1:], "--", *TRAINING]
    code, _, err = world.run("tpu_pod.sh", *args, REMOTE=str(world.home))
    assert code == 1 and verbs(world) == ["list", "ssh"]
    assert "no such branch" in err and "this failed: install" in err and "delete it:" in err


def test_hosts_save_when_stopped(hosts):
    start = ["start", *SLICE, "--", *TRAINING]
    assert hosts.run("tpu_pod.sh", *start, CODES="wait 0")[0] == 0
    hosts.until_ready()
    assert "running" in hosts.run("tpu_pod.sh", "status", *SLICE)[1]
    code, _, err = hosts.run("tpu_pod.sh", *start)
    assert code == 1 and "runs already" in err and "this failed: start" in err
    code, out, _ = hosts.run("tpu_pod.sh", "stop", *SLICE)
    assert code == 0 and "stopped" in out
    assert "ended with exit code 75 after 0 restarts" in log_after(hosts, "ended")
    assert len(hosts.runs()) == 1
    assert "was not running" in hosts.run("tpu_pod.sh", "stop", *SLICE)[1]


def test_hosts_are_told_twice(hosts):
    assert hosts.run("tpu_pod.sh", "start", *SLICE, "--", *TRAINING, CODES="deaf")[0] == 0
    hosts.until_ready()
    code, out, err = hosts.run("tpu_pod.sh", "stop", *SLICE, "--patience", "1")
    assert code == 0 and "second signal" in err and "stopped" in out
