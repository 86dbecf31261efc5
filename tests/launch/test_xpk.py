"""launch/xpk.sh, run whole, and what its image is made of."""

import re
import subprocess

import pytest
from stand_ins import LAUNCH, TRAINING, option

GKE = ["--cluster", "c", "--zone", "z1-a", "--project", "p", "--name", "srum"]
IMAGE = ["--image", "reg.dev/p/srum:1"]
XPK = ["up", *GKE, *IMAGE, "--type", "v5litepod-16", "--yes"]


def test_xpk_builds_pushes_and_creates(world):
    code, _, err = world.run("xpk.sh", *XPK, "--", *TRAINING)
    assert code == 0, err
    build, push, create = world.calls()
    assert build[:2] == ["docker", "build"] and option(build, "--tag") == IMAGE[1]
    assert build[-1] == str(LAUNCH.parent)
    assert push == ["docker", "push", IMAGE[1]]
    assert create[:3] == ["xpk", "workload", "create"]
    assert option(create, "--restart-on-exit-codes") == "75,69"
    assert int(option(create, "--max-restarts")) > 0
    assert option(create, "--docker-image") == IMAGE[1] and option(create, "--num-slices") == "1"
    # One process, which gets the signal, with its arguments as they were given.
    line = option(create, "--command")
    assert line.startswith("exec python -m srum_jax.main ")
    shown = subprocess.check_output(["bash", "-c", line.replace("exec python", r"printf '%s\n'")])
    assert shown.decode().split("\n")[:-1] == ["-m", "srum_jax.main", *TRAINING, "--distributed"]


@pytest.mark.parametrize("fail_at, step", [(1, "build"), (2, "push"), (3, "create the workload")])
def test_a_failed_call_ends_xpk(world, fail_at, step):
    code, _, err = world.run("xpk.sh", *XPK, "--", *TRAINING, FAIL_AT=str(fail_at))
    assert code == 1 and len(world.calls()) == fail_at
    assert f"this failed: {step}" in err and "what to do: " in err
    assert ("delete it: launch/xpk.sh delete --cluster c" in err) == (fail_at == 3)


def test_an_option_may_be_joined_to_its_value(world):
    args = ["--cluster=c", "--zone=z1-a", "--project=p", "--name=srum"]
    assert world.run("xpk.sh", "status", *args)[0] == 0
    (call,) = world.calls()
    assert (option(call, "--cluster"), option(call, "--zone")) == ("c", "z1-a")


@pytest.mark.parametrize(
    "args", [["build", "--yes", *IMAGE], ["create", *XPK[1:], "--", *TRAINING]]
)
def test_a_failed_call_ends_a_step_alone(world, args):
    code, _, err = world.run("xpk.sh", *args, FAIL_AT="1")
    assert code == 1 and "this failed: " + args[0] in err and len(world.calls()) == 1


@pytest.mark.parametrize(
    "command, call",
    [
        (["status"], ["xpk", "workload", "list"]),
        (["logs"], ["kubectl", "logs"]),
        (["delete", "--yes"], ["xpk", "workload", "delete"]),
    ],
)
def test_xpk_looks_and_deletes(world, command, call):
    args = [command[0], *GKE, *command[1:]]
    assert world.run("xpk.sh", *args)[0] == 0
    assert len(world.calls(*call)) == len(world.calls()) == 1
    code, _, err = world.run("xpk.sh", *args, FAIL_AT="1")
    assert code == 1 and "this failed:" in err


@pytest.mark.parametrize(
    "args, told",
    [
        (["fly"], "no command"),
        (["status", "--cluster", "c"], "--zone"),
        (["create", *GKE, "--type", "v4-8", "--", *TRAINING], "--image"),
        (["create", *GKE, *IMAGE, "--", *TRAINING], "--type"),
        (["create", *GKE, *IMAGE, "--type", "v4-8", "--", *TRAINING], "add --yes"),
        (["delete", *GKE], "add --yes"),
        (["build", *IMAGE], "add --yes"),
        (["create", *GKE, *IMAGE, "--type", "v4-8", "--slices", "0", "--yes"], "--slices"),
        (["up", *GKE, *IMAGE, "--type", "v4-8", "--slices", "2", "--yes"], "take a larger --type"),
    ],
)
def test_xpk_refuses(world, args, told):
    code, _, err = world.run("xpk.sh", *args)
    assert code == 2 and told in err and world.calls() == []


def test_the_image_copies_what_is_there():
    """Every COPY of the Dockerfile names something that exists and that is not ignored."""
    text = (LAUNCH / "Dockerfile").read_text()
    copied = [word for line in re.findall(r"^COPY (.+) \S+$", text, re.M) for word in line.split()]
    kept = [
        line[1:]
        for line in (LAUNCH / "Dockerfile.dockerignore").read_text().splitlines()
        if line.startswith("!")
    ]
    assert {"srum_jax", "pyproject.toml", "setup.py"} <= set(copied)
    for path in copied:
        assert (LAUNCH.parent / path).exists(), path
        assert any(path == k or path.startswith(k + "/") for k in kept), path


def test_the_image_of_gpus_runs_as_an_ordinary_user():
    """Each EXTRA that may be asked for is a stage; a TPU's chips are files of root."""
    text = (LAUNCH / "Dockerfile").read_text()
    stages = dict(re.findall(r"^FROM installed AS (\w+)$(.*?)(?=^FROM )", text, re.M | re.S))
    assert stages.keys() == {"tpu", "gpu"} and text.rstrip().endswith("FROM ${EXTRA}")
    users = {name: re.findall(r"^USER (\d+)$", body, re.M) for name, body in stages.items()}
    assert users == {"tpu": [], "gpu": ["1000"]}
