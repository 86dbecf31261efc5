"""The script for a GPU: its steps run in turn within their time, and what was found stays."""

import json
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # scripts: they import one another by plain names

import gpu  # noqa: E402


def scripts(folder, monkeypatch, *bodies):
    """Steps named 0, 1, … that run these texts of Python."""
    monkeypatch.setattr(gpu, "HERE", folder)
    steps = []
    for number, body in enumerate(bodies):
        (folder / f"{number}.py").write_text("import json, pathlib, sys, time\n" + body)
        steps.append(gpu.Step(str(number), f"{number}.py", (), (), 1))
    return steps


WRITES = "pathlib.Path(sys.argv[-1]).write_text(json.dumps({'one': 1}))\n"


def test_a_step_that_hangs_is_ended_and_what_it_wrote_stays(tmp_path, monkeypatch):
    fine, slow, failing = scripts(
        tmp_path, monkeypatch, WRITES, WRITES + "time.sleep(60)", "sys.exit(3)"
    )
    assert gpu.run(fine, tmp_path, 30, False)["why"] == ""
    ended = gpu.run(slow, tmp_path, 2, False)
    assert ended["why"] == "took more than 2 s" and ended["seconds"] < 30
    assert ended["found"] == {"one": 1}
    (tmp_path / "2.json").write_text("{}")  # of a run before
    assert gpu.run(failing, tmp_path, 30, False) == {
        "seconds": pytest.approx(0, abs=30),
        "why": "ended with 3",
        "found": None,
    }


def test_the_share_of_the_peak_and_the_better_pytorch_are_judged():
    def sides(**seconds):
        return {name: {"seconds": taken} for name, taken in seconds.items()}

    found = dict(flops=600, peak=1000, sides=sides(ours=[9.0, 1.0, 1.0], eager=[2.0], other=[1.5]))
    assert gpu.verdicts(found) == [
        "60 % of the measured peak: reached",
        "1.50 × the better PyTorch: reached",
    ]
    slower = dict(found, flops=400, sides=sides(ours=[1.0], eager=[1.2]))
    assert [said.split(": ")[1] for said in gpu.verdicts(slower)] == ["not reached"] * 2


@pytest.mark.slow
def test_every_step_runs_at_toy_size(tmp_path):
    gpu.main(["--folder", str(tmp_path), "--quick"])
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert list(found) == ["train", "draw", "write"]
    assert all(one["found"] and not one["why"] for one in found.values())
