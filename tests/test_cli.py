"""The command `srum` and the wheel that brings it: everything is in it, from any folder."""

import os
import pathlib
import shutil
import subprocess
import sys
import zipfile

import pytest

import srum_jax
from srum_jax import cli

ROOT = pathlib.Path(__file__).parents[1]


COMMANDS_OF_ARGPARSE = [name for name in cli.COMMANDS if name not in ("run", "plan")]


def without_jax(words):
    """What `srum WORDS` does where neither jax nor flax can be imported."""
    code = "import sys; sys.modules['jax'] = sys.modules['flax'] = None; from srum_jax import cli; "
    code += f"sys.exit(cli.main({words!r}))"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.parametrize(
    "words, told",
    [
        ([], "srum COMMAND"),
        (["--help"], "srum run --config shapes"),
        (["run", "--help"], "srum run --config bagel_7b_srum"),
        (["run"], "srum run --config shapes"),
        (["plan", "--help"], "--plan TYPE:SHAPE"),
        *(([command, "--help"], f"usage: srum {command}") for command in COMMANDS_OF_ARGPARSE),
        (["--version"], srum_jax.__version__),
    ],
)
def test_help_comes_without_jax(words, told):
    done = without_jax(words)
    assert done.returncode == 0 and told in done.stdout, done.stderr


@pytest.mark.parametrize(
    "words, told",
    [
        (["genrate"], '"genrate" is no command: did you mean "generate"?'),
        (["run", "--config=shaeps"], 'did you mean "shapes"?'),
        (["run", "--config=shapes", "--workdir=w", "--config.train.stesp=1"], 'mean "steps"?'),
        (["plan", "--config", "shaeps", "v5e:4x4"], 'did you mean "shapes"?'),
        (["generate", "--prompt", "a red circle"], "-o/--out"),
    ],
)
def test_wrong_words_are_told_without_jax(words, told):
    done = without_jax(words)
    assert done.returncode == 2 and told in done.stderr and not done.stdout, done.stderr


def test_a_plan_takes_its_target_first(monkeypatch):
    from srum_jax import main

    seen = []
    monkeypatch.setattr(main, "main", lambda argv, program: seen.append((argv, program)) or 0)
    assert cli.main(["plan", "v5e:4x4", "--config", "bagel_7b_srum"]) == 0
    assert seen == [(["srum plan", "--config", "bagel_7b_srum", "--plan=v5e:4x4"], "srum plan")]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """(folder the wheel is installed in, environment that finds it first, names of the package's
    files, names in the wheel)."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(folder)]
    source = folder / "source"  # a copy: building writes into the folder it builds
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "srum_jax", source / "srum_jax", ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    names = {str(p.relative_to(source)) for p in (source / "srum_jax").rglob("*") if p.is_file()}
    subprocess.run([*pip, *build, str(source)], check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    target = folder / "site"
    into = ["install", "--no-deps", "--no-index", "--target", str(target), str(wheel)]
    subprocess.run([*pip, *into], check=True, capture_output=True, text=True)
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment["PYTHONPATH"] = str(target)
    return target, environment, names, set(zipfile.ZipFile(wheel).namelist())


def run(installed, folder, *words):
    target, environment, *_ = installed
    command = [sys.executable, str(target / "bin/srum"), *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)


@pytest.mark.slow
def test_the_wheel_holds_every_file_of_the_package(installed):
    *_, names, inside = installed
    assert names - inside == set()
    assert not [name for name in inside if name.startswith(("tests", "configs", "benchmarks"))]


@pytest.mark.slow
def test_the_command_works_in_an_empty_folder(installed, tmp_path):
    shown = run(installed, tmp_path, "--help")
    assert shown.returncode == 0 and "srum run --config shapes" in shown.stdout, shown.stderr
    assert run(installed, tmp_path, "run", "--config", "shapes", "--help").returncode == 0
    (tmp_path / "mine.py").write_text(
        "from configs import base\n\ndef get_config():\n    return base.get_config()\n"
    )
    for given in ("shapes", "mine.py", "bagel_7b_srum"):
        wrong = run(installed, tmp_path, "run", "--config", given, "--stage", "scroe")
        assert wrong.returncode == 2 and 'did you mean "score"?' in wrong.stderr, wrong.stderr
    assert {p.name for p in tmp_path.iterdir()} - {"__pycache__"} == {"mine.py"}


@pytest.mark.slow
def test_the_installed_package_is_the_wheels(installed, tmp_path):
    target, environment, *_ = installed
    code = "import srum_jax, srum_jax.configs.base as b; print(srum_jax.__file__, b.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert all(name.startswith(str(target)) for name in done.stdout.split()), done.stdout


@pytest.mark.slow
def test_it_generates_and_runs_in_an_empty_folder(installed, tmp_path):
    drawn = run(installed, tmp_path, "generate", "--prompt", "a red circle", "-o", "out")
    assert drawn.returncode == 0, drawn.stderr
    assert (tmp_path / "out/0-0.png").exists()
    small = {"generate.count": 8, "generate.candidates": 4, "train.steps": 2}
    more = [f"--config.{key}={value}" for key, value in small.items()]
    stages = ["--stage", "generate", "--workdir", "run"]
    done = run(installed, tmp_path, "run", "--config", "shapes", *stages, *more)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/round0/generate/manifest.json").exists()
