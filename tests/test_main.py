"""The command line: stages in order, exit codes, messages, the last line on stdout."""

import json
import signal
import subprocess
import sys
import types

import jax
import pytest

from srum_jax import main, running
from srum_jax.configs import shapes
from srum_jax.core import console, errors, lock, preemption
from srum_jax.planning import budget
from srum_jax.worlds import shapes as shapes_world


@pytest.fixture
def stages(monkeypatch, tmp_path):
    """Stand-ins for all stages, which note their calls; `fail[name]` is raised by that stage."""
    calls, fail = [], {}

    def stand_in(name):
        def run(cfg, mesh, work):
            calls.append((work.round, name))
            if name in fail:
                raise fail[name]

        return types.SimpleNamespace(run=run, check=lambda cfg, work, found: None)

    for name, module in (shapes_world.STAGES | running.STAGES).items():
        monkeypatch.setitem(sys.modules, module, stand_in(name))
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)
    before = {number: signal.getsignal(number) for number in preemption.SIGNALS}
    yield types.SimpleNamespace(calls=calls, fail=fail, root=tmp_path / "run")
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.set_wakeup_fd(-1)
    preemption.stop.clear()


def go(stages, *more):
    rows = [f"--config.{s}=64" for s in ("evaluate.batch", "train.rows")]
    config = ["main", "--config", shapes.__file__, *rows]
    return main.main([*config, "--workdir", str(stages.root), *more])


def test_runs_all_stages_and_says_where_everything_lies(stages, capsys):
    assert go(stages) == 0
    names = ["generate", "score", "train", "evaluate", "adjust", "export", "report"]
    assert stages.calls == [(0, name) for name in names]
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == f"report: {stages.root / 'report.html'}"
    assert f"the model: {stages.root / 'round0/export/model'}" in err
    assert f"results: {stages.root / 'results.json'}" in err


def test_chosen_stages_run_in_pipeline_order_in_every_round(stages, capsys):
    assert go(stages, "--stage", "export,train", "--config.rounds=2") == 0
    assert stages.calls == [(r, s) for r in (0, 1) for s in ("train", "export")]
    assert "report:" not in capsys.readouterr().out


def test_on_known_chips_a_run_says_first_what_it_takes_and_on_others_guesses_nothing(
    stages, capsys, monkeypatch
):
    chips = ("--stage", "generate,train", "--price=3", "--utilisation=0.25")
    assert go(stages, *chips) == 0
    assert "of the peak of" not in capsys.readouterr().err
    monkeypatch.setattr(budget.Chips, "here", lambda: budget.Chips("v5e", 4))
    assert go(stages, *chips) == 0
    err = capsys.readouterr().err
    assert "computing, at 25% of the peak of 4 x v5e: generate " in err
    assert " at 3 a chip-hour" in err and "score" not in err.partition("of the peak of")[2][:200]
    assert err.index("of the peak of") < err.index("round 1 of 1")


@pytest.mark.parametrize(
    "error, code",
    [
        (errors.BadInput("told"), 2),
        (ValueError("told"), 2),
        (FileNotFoundError("told"), 2),
        (errors.DoesNotFit("told"), 3),
        (errors.Diverged("told"), 4),
        (errors.HostLost("told"), 69),
        (errors.StorageLost("told"), 69),
    ],
)
def test_errors_become_exit_codes(stages, capsys, error, code):
    stages.fail["score"] = error
    assert go(stages) == code
    out, err = capsys.readouterr()
    assert "error: told" in err and "Traceback" not in err and "report:" not in out
    assert stages.calls[-1] == (0, "score")


def test_a_storage_that_gives_no_answer_is_told_in_a_line(stages, capsys):
    from gcsfs.retry import HttpError

    stages.fail["score"] = HttpError({"code": 503, "message": "<p>a page</p>\n" * 100})
    assert go(stages) == errors.StorageLost.exit_code == 69
    err = capsys.readouterr().err
    line = "error: a bucket: the storage gives no answer (error 503): the same command goes on (--"
    assert line in err and "page" not in err and "Traceback" not in err


def test_a_second_run_in_a_work_folder_is_refused(stages, capsys):
    with lock.held(stages.root):
        assert go(stages) == 2
    assert f"error: {stages.root} is in use by process" in capsys.readouterr().err
    assert stages.calls == []
    stages.fail["score"] = TypeError("a bug")
    with pytest.raises(TypeError):
        go(stages)
    left = [path.name for path in stages.root.iterdir()]
    assert left == ["config.json"]  # a run that failed holds nothing


@pytest.mark.parametrize("name", ["file/run", "gone/run", "a" * 300])
def test_a_work_folder_that_cannot_be_made_is_told_shortly(stages, tmp_path, capsys, name):
    (tmp_path / "file").touch()
    (tmp_path / "gone").symlink_to("/nowhere/scratch")
    stages.root = tmp_path / name
    assert go(stages) == 2 and stages.calls == []
    err = capsys.readouterr().err
    assert err.count("error: ") == 1 and name[:20] in err and "Traceback" not in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "gone"]


def test_faults_of_the_program_are_not_called_bad_input(stages):
    stages.fail["score"] = TypeError("a bug")
    with pytest.raises(TypeError):
        go(stages)


@pytest.mark.parametrize(
    "args, message",
    [
        (["--stage", "scroe"], '--stage "scroe" is not known: did you mean "score"?'),
        (["--config.train.rows=12"], "train.rows = 12 by 8"),
        (["--config.mesh.data=3"], "do not fit 8 devices"),
        (["--workdir="], "no work folder"),
        (["--workdir", __file__], "is a file; name a folder"),
        (["--config", "nowhere.py"], "--config nowhere.py: no such file"),
    ],
)
def test_bad_command_lines_end_with_2_before_any_stage(stages, capsys, args, message):
    assert go(stages, *args) == 2
    assert message in capsys.readouterr().err
    assert stages.calls == []


def test_the_folder_alone_is_enough_to_go_on(stages, monkeypatch, capsys):
    assert go(stages, "--config.train.steps=7", "--config.seed=3") == 0
    held = json.loads((stages.root / "config.json").read_text())
    assert held["config"]["train"]["steps"] == 7 and held["config_file"] == shapes.__file__
    seen = []
    run = types.SimpleNamespace(
        run=lambda cfg, mesh, work: seen.append((cfg, work.config_file)),
        check=lambda cfg, work, found: None,
    )
    monkeypatch.setitem(sys.modules, running.STAGES["train"], run)
    stages.calls.clear()
    assert main.main(["main", "--workdir", str(stages.root)]) == 0
    ((cfg, config_file),) = seen
    assert (cfg.train.steps, cfg.train.rows, cfg.seed) == (7, 64, 3)
    assert config_file == shapes.__file__ and len(stages.calls) == len(cfg.stages) - 1
    assert main.main(["main", "--workdir", str(stages.root / "elsewhere")]) == 2
    assert "config.json is not there" in capsys.readouterr().err
    for left in ("", "{", "[]", "{}"):
        (stages.root / "config.json").write_text(left)
        assert main.main(["main", "--workdir", str(stages.root)]) == 2
        assert "give --config, which writes it again" in capsys.readouterr().err
    assert go(stages, "--config.train.steps=7", "--config.seed=3") == 0
    assert json.loads((stages.root / "config.json").read_text()) == held


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_asks_for_a_stop(stages, number):
    signal.signal(number, signal.SIG_DFL)  # a job in the background ignores some
    assert go(stages) == 0
    assert not preemption.stop.is_set()
    signal.raise_signal(number)
    assert preemption.stop.wait(10)


def test_a_clean_stop_is_not_called_an_error(stages, capsys):
    stages.fail["score"] = errors.Preempted("score: stopped, finished shards are kept")
    assert go(stages) == 75
    said = capsys.readouterr().err
    assert "score: stopped, finished shards are kept: the same command goes on from there" in said
    assert "error" not in said and "--debug" not in said


def test_a_mesh_is_set_while_stages_run(stages, monkeypatch):
    seen = []
    run = types.SimpleNamespace(
        run=lambda cfg, mesh, work: seen.append((jax.sharding.get_abstract_mesh(), mesh)),
        check=lambda cfg, work, found: None,
    )
    monkeypatch.setitem(sys.modules, running.STAGES["report"], run)
    assert go(stages, "--stage=report") == 0
    assert seen[0][0].shape == seen[0][1].shape == dict(data=8, fsdp=1, tensor=1, context=1)


def test_as_a_program():
    def program(*args):
        command = [sys.executable, "-m", "srum_jax.main", *args]
        return subprocess.run(command, capture_output=True, text=True)

    shown = program("--help")
    assert shown.returncode == 0 and "--config shapes --workdir runs/shapes" in shown.stdout
    refused = program("--config", "nowhere.py", "--workdir", "w")
    assert refused.returncode == 2 and refused.stdout == ""
    assert "error: --config nowhere.py: no such file" in refused.stderr
    assert "Traceback" not in refused.stderr  # nor when the process ends


@pytest.mark.parametrize(
    "words",
    [
        ["--help"],
        ["--config=shapes", "--workdir=w", "--config.train.stesp=3"],
        ["--config=shapes", "--workdir=w", "--config.train.steps=-3"],
        ["--config=shapes", "--workdir=w", "--stage=scroe"],
        ["--config=shapes"],
    ],
)
def test_help_and_errors_in_the_arguments_need_no_jax(words):
    code = "import sys; sys.modules['jax'] = None; from srum_jax import main; "
    code += f"sys.exit(main.main({['main', *words]!r}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == (0 if words == ["--help"] else 2), done.stderr
