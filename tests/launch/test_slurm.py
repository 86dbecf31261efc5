"""launch/slurm.sh, run whole: submitting, and the job itself."""

import re
import signal

import pytest
from stand_ins import LAUNCH, option

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


@pytest.mark.parametrize(
    "last, requeued", [(75, True), (69, True), (137, True), (2, False), (4, False), (143, False)]
)
def test_a_job_goes_back_into_the_queue_after_75_and_a_loss(world, last, requeued):
    code, out, _ = world.run("slurm.sh", *in_job(world), CODES=str(last), **JOB)
    assert code == (0 if requeued else last), out
    calls = world.calls("scontrol", "requeue")
    assert calls == ([["scontrol", "requeue", "41000"]] if requeued else [])


@pytest.mark.parametrize("last, requeued", [(75, True), (69, False), (137, False)])
def test_a_loss_is_a_reason_a_bounded_number_of_times(world, last, requeued):
    restarted = JOB | {"SLURM_RESTART_COUNT": "20"}
    code, out, _ = world.run("slurm.sh", *in_job(world), CODES=str(last), **restarted)
    assert code == (0 if requeued else last), out
    assert len(world.calls("scontrol", "requeue")) == requeued


@pytest.mark.parametrize(
    "fail_at, code, told",
    [
        (1, 1, "this failed: list the nodes"),
        (2, 1, "ended with exit code 1"),
        (3, 75, "this failed: scontrol requeue 41000"),
    ],
)
def test_a_failed_call_ends_the_job(world, fail_at, code, told):
    ended, out, _ = world.run("slurm.sh", *in_job(world), CODES="75", FAIL_AT=str(fail_at), **JOB)
    assert ended == code and told in out
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
