"""The notebooks of launch/colab: run from a clean kernel, and as they are stored."""

import json
import os
import re
import subprocess
import sys

import notebooks
import pytest
import tiny
import tiny_janus

PATHS = sorted(notebooks.FOLDER.glob("*.ipynb"))
ROOT = notebooks.FOLDER.parents[1]
# The whole loop on random weights, so small that nothing is learned.
SMALL = """\
generate.count=4 generate.candidates=2 generate.shard_size=8 sample.batch=8 sample.steps=2
train.steps=2 train.rows=2 train.min_score=-1.0 train.monitor.prompts=0
evaluate.count=8 evaluate.questions=4 evaluate.multi_image_questions=2 evaluate.captions=2
evaluate.edits=1 evaluate.best_of_prompts=2 evaluate.best_of=2 evaluate.batch=8 score.batch=8
evaluate.suites=('shapes',)"""


def run(name, tmp_path, **settings):
    """What the code cells show after a run in a clean kernel."""
    for package in ("nbclient", "nbformat", "ipykernel"):
        pytest.importorskip(package, reason=f"needs {package}: pip install -e '.[test]'")
    cache = os.path.join(sys.prefix if sys.prefix != sys.base_prefix else tmp_path, "jax_cache")
    env = {
        "XLA_FLAGS": "",  # one device, as a reader has
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": cache,
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    return notebooks.shown(notebooks.execute(name, tmp_path, **env | settings))


def stored(name):
    return json.loads((notebooks.FOLDER / f"{name}.ipynb").read_text())


def pictures(markup):
    return len(re.findall(r"data:image/(?:png|webp)", markup))


# What each shows, `many` drawings of a prompt; one function for a fresh run and the stored file.


def check_draw(shown, many):
    installed, loaded, _, drawn, asked, captioned, edited, changed = shown
    assert installed == "" and loaded.startswith("loaded:")
    assert pictures(drawn) == pictures(captioned) == 2 * many and pictures(edited) == 3
    assert asked.count("<tr>") == 4 and changed.count("<tr>") == 3
    assert "red" in asked


def check_rewards(shown, many):
    extremes, parts, chosen, truth = shown[4:]
    assert pictures(extremes) == 6 and pictures(chosen) == 3 * many
    assert chosen.count("✓ chosen") == 3 and "<rect" in extremes
    assert parts.count("<tr>") == truth.count("<tr>") == 4
    assert re.search(r"whole picture <b>[+−]\d\.\d\d</b>", chosen)


def check_janus(shown, work):
    _, loaded, drawn, asked, log, both, again, table = shown
    assert loaded.startswith("loaded:") and f"report: {work}/report.html" in log
    assert pictures(drawn) == 4 and pictures(both) == 8
    assert asked.count("<tr>") == again.count("<tr>") == 3
    assert table.count("<tr>") == 2 and re.search(r"[+−]\d+\.\d\d to [+−]\d", table)


def check_train(shown, work):
    _, told, log, table, cards, report, plan = shown
    assert str(work) in told and f"report: {work}/report.html" in log
    assert table.count("<tr>") == 4 and "trained" in table
    assert pictures(cards) == 16 and "srcdoc" in report
    assert "--plan v5p:2x2x2" in plan and "launch/tpu_pod.sh delete" in plan


@pytest.mark.slow
def test_draw(tmp_path):
    check_draw(run("draw", tmp_path, SRUM_JAX_MANY="2"), many=2)


@pytest.mark.slow
def test_rewards(tmp_path):
    check_rewards(run("rewards", tmp_path, SRUM_JAX_MANY="2"), many=2)


@pytest.mark.slow
@pytest.mark.parametrize("size", ["small", "1B"])
def test_janus(tmp_path, size):
    """The cells of each size: the shipped base, and for the 1B random weights of small sizes."""
    weights = tiny_janus.save_answering(tmp_path / "model")
    work = tmp_path / "work"
    if size == "small":
        few = "generate.candidates=2 evaluate.count=8 evaluate.questions=4 evaluate.captions=2"
        few += " adjust.count=8 adjust.questions=4 adjust.shares=(1.0,) adjust.guidance=(2.0,)"
        settings = {"SRUM_JAX_MODEL": "shapes_janus"}
    else:
        few = "sample.size=(8,8) train.lanes.gen=16 evaluate.count=4 compute.dtype=float32"
        settings = {"SRUM_JAX_MODEL": str(weights)}
    few += " generate.count=4 train.steps=2 train.min_score=-1.0"
    config = " ".join(f"--config.{one}" for one in few.split())
    settings |= {"SRUM_JAX_WORKDIR": str(work), "SRUM_JAX_CONFIG": config}
    check_janus(run("janus", tmp_path, **settings), work)


@pytest.mark.slow
def test_train(tmp_path):
    weights = tiny.write_model(tmp_path / "model", answers=True)
    config = " ".join(f"--config.{one}" for one in [*SMALL.split(), f"weights={weights}"])
    work = tmp_path / "work"
    shown = run("train", tmp_path, SRUM_JAX_WORKDIR=str(work), SRUM_JAX_CONFIG=config)
    check_train(shown, work)


def test_as_stored_they_show_the_same():
    assert [path.stem for path in PATHS] == ["draw", "janus", "rewards", "train"]
    check_draw(notebooks.shown(stored("draw")), many=4)
    check_janus(notebooks.shown(stored("janus")), "runs/notebook_janus")
    check_rewards(notebooks.shown(stored("rewards")), many=8)
    check_train(notebooks.shown(stored("train")), "runs/notebook")


@pytest.mark.parametrize("name", [path.stem for path in PATHS])
def test_stored_outputs_are_whole_and_tell_nothing_of_a_machine(name):
    notebook = stored(name)
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    assert all(o["output_type"] != "error" for cell in code for o in cell["outputs"])
    text = json.dumps([cell["outputs"] for cell in code])
    assert not re.findall(r"(?<![\w+/=.:<])/(?:home|Users|root|work|tmp|var|opt|mnt|usr)/", text)
    assert "\\r" not in text and len(text) < 500_000


def test_they_begin_with_the_installation():
    first = [stored(path.stem)["cells"][:2] for path in PATHS]
    assert all("".join(title["source"]).startswith("# ") for title, _ in first)
    assert all(cell["source"] == first[0][1]["source"] for _, cell in first)  # the same in all


@pytest.mark.parametrize("place", ["elsewhere", "named", "clone"])
def test_the_installation(tmp_path, place):
    """Where srum_jax cannot be imported (-S: without installed packages)."""
    source = "".join(stored("draw")["cells"][1]["source"])
    told = "import subprocess\nsubprocess.run = lambda command, check: print(*command)\n"
    folder = tmp_path
    if place == "named":
        source = source.replace("https://github.com/OWNER", "https://host/me")
    if place == "clone":
        folder = tmp_path / "launch" / "colab"
        folder.mkdir(parents=True)
        (tmp_path / "srum_jax").mkdir()
        (tmp_path / "srum_jax" / "__init__.py").touch()
    command = [sys.executable, "-S", "-I", "-c", told + source]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    if place == "elsewhere":
        assert done.returncode == 1 and done.stdout == ""
        assert done.stderr.strip() == "Set REPO, at the top of this cell, and run the cell again."
        return
    assert done.returncode == 0, done.stderr
    *cloned, installed = done.stdout.splitlines()
    clone = tmp_path if place == "clone" else tmp_path / "srum_jax_clone"
    assert len(cloned) == (place == "named") and all(
        "https://host/me/srum_jax" in c for c in cloned
    )
    assert re.search(rf"-m pip install --quiet -e {clone}(\[gpu\]|\[tpu\]|)$", installed)
