"""The notebooks of launch/colab, run from a clean kernel, and what they show."""

import json
import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "launch" / "colab").glob("*.ipynb"))
# The whole loop, so small that nothing is learned.
SMALL = """\
generate.count=16 generate.candidates=2 train.steps=4 train.rows=2 train.least_score=-1.0
train.probe.prompts=0 evaluate.count=8 evaluate.questions=8 evaluate.several=4 evaluate.captions=4
evaluate.edits=4 evaluate.best_of_prompts=4 evaluate.best_of=2"""


def run(name, tmp_path, **settings):
    """The outputs of a notebook's code cells, one string a cell: text and markup."""
    reason = "needs nbclient and ipykernel: pip install -e '.[test]'"
    nbclient = pytest.importorskip("nbclient", reason=reason)
    nbformat = pytest.importorskip("nbformat", reason=reason)
    pytest.importorskip("ipykernel", reason=reason)
    notebook = nbformat.read(ROOT / "launch" / "colab" / f"{name}.ipynb", as_version=4)
    cache = os.path.join(sys.prefix if sys.prefix != sys.base_prefix else tmp_path, "jax_cache")
    env = {
        **os.environ,
        "XLA_FLAGS": "",  # one device, as a reader has
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": cache,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # programs that run once: compiling counts
        "XDG_CACHE_HOME": cache,
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        **settings,
    }
    client = nbclient.NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )
    client.execute(env=env)
    shown = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            outputs = [output.get("data", output) for output in cell.outputs]
            shown.append("".join(o.get("text/html") or o.get("text") or "" for o in outputs))
            plain = [o["text/plain"] for o in outputs if "text/html" not in o and "text/plain" in o]
            assert not plain, f"{name}: a bare value is shown: {plain}"
    return shown


def pictures(markup):
    return len(re.findall(r"data:image/(?:png|webp)", markup))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_stored_without_outputs_and_begin_with_the_installation(path):
    notebook = json.loads(path.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert path.stat().st_size < 20_000
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert all(not c["outputs"] and c["execution_count"] is None for c in code)
    assert notebook["cells"][0]["cell_type"] == "markdown"
    assert "".join(notebook["cells"][0]["source"]).startswith("# ")
    first = json.loads(NOTEBOOKS[0].read_text())["cells"][1]["source"]
    assert code[0]["source"] == first  # the same cell in all
    assert 'if importlib.util.find_spec("srum_jax") is None:' in "".join(first)


def test_there_are_three():
    assert [path.stem for path in NOTEBOOKS] == ["draw", "rewards", "train"]


def test_draw(tmp_path):
    installed, loaded, _, drawn, asked, captioned, edited, changed = run(
        "draw", tmp_path, SRUM_JAX_MANY="2"
    )
    assert installed == "" and loaded.startswith("loaded:")
    assert pictures(drawn) == pictures(captioned) == 4 and pictures(edited) == 3
    assert asked.count("<tr>") == 4 and changed.count("<tr>") == 3
    assert "red" in asked


def test_rewards(tmp_path):
    shown = run("rewards", tmp_path, SRUM_JAX_MANY="2")
    extremes, parts, chosen, truth = shown[4:]
    assert pictures(extremes) == pictures(chosen) == 6
    assert chosen.count("✓ chosen") == 3 and "<rect" in extremes
    assert parts.count("<tr>") == truth.count("<tr>") == 4
    assert re.search(r"whole picture <b>[+−]\d\.\d\d</b>", chosen)


@pytest.mark.slow
def test_train(tmp_path):
    work = tmp_path / "work"
    config = " ".join(f"--config.{one}" for one in SMALL.split())
    shown = run("train", tmp_path, SRUM_JAX_WORKDIR=str(work), SRUM_JAX_CONFIG=config)
    _, told, log, table, cards, report, plan = shown
    assert str(work) in told and f"report: {work / 'report.html'}" in log
    assert table.count("<tr>") == 4 and "trained" in table
    assert pictures(cards) == 16 and "srcdoc" in report
    assert "--plan v5p:2x2x2" in plan and "launch/tpu_pod.sh delete" in plan
