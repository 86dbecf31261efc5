"""Stand-ins for gcloud, xpk, docker, kubectl and Slurm's programs, for tests of the launchers.

A stand-in notes how it was called and can be told to fail at its n-th call. What gcloud would run
on the hosts of a slice is run here, in a home folder of its own, with stand-ins for git, uv and the
training.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

LAUNCH = pathlib.Path(__file__).parents[1] / "launch"
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
        # A shell cannot trap what was ignored when it began, as in a job put in the background.
        if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.default_int_handler)
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


def option(call, name):
    return call[call.index(name) + 1]
