"""The benchmark of growth runs: every stage of it, on a few small records."""

import pathlib
import sys

sys.path.append(str(pathlib.Path(__file__).parents[1] / "benchmarks"))

import growth  # noqa: E402


def test_every_stage_runs(tmp_path):
    workload = growth.Workload(tmp_path, count=70, size=32)
    worked = {stage: workload.work(stage)() for stage in ("plan", *growth.STAGES)}
    assert set(worked.values()) == {70}, worked
