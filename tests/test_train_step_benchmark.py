"""The benchmark of a training step: what is counted, that it runs, that both sides agree."""

import dataclasses
import json
import pathlib
import sys

import jax
import numpy as np
import pytest

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # scripts: they import one another by plain names

import train_step  # noqa: E402
from test_scoring import products  # noqa: E402

from srum_jax.objectives import terms  # noqa: E402

WORK = train_step.WORK["quick"]


@pytest.mark.slow
def test_the_flops_counted_are_those_of_the_forward_pass():
    work = dataclasses.replace(WORK, llm=dataclasses.replace(WORK.llm, layers=3))
    batch, drawn = train_step.batch(work), train_step.draws(work, 0)

    def forward(params):
        return terms.Predictor(work.cfg, "float32", work.remat)(params, batch, drawn).velocity

    traced = products(jax.make_jaxpr(forward)(train_step.weights(work)).jaxpr)
    angles = work.tokens * work.llm.head_dim  # RoPE's are a product of matrices in the trace
    assert train_step.flops(work) == 3 * (traced - angles)


def test_every_row_is_full():
    batch = train_step.batch(WORK)
    assert (np.asarray(batch.und.segment) == 1).all() and (np.asarray(batch.gen.segment) == 1).all()
    assert batch.und.segment.size + batch.gen.segment.size == WORK.tokens


def test_sides_that_compute_different_things_are_refused():
    one = train_step.Measured([(1.0, 2.0)], [1.0], [1.0], 1, 1.0)
    found = {"ours": one, "PyTorch eager": dataclasses.replace(one, checked=[(1.0, 2.0001)])}
    assert train_step.compare(WORK, found) == pytest.approx(5e-5)
    for wrong in (2.01, float("nan")):
        found["PyTorch eager"] = dataclasses.replace(one, checked=[(1.0, wrong)])
        with pytest.raises(SystemExit, match="do not compute the same"):
            train_step.compare(WORK, found)


@pytest.mark.slow
def test_the_script_runs(tmp_path, capsys):
    file = tmp_path / "train_step.json"
    train_step.main(["--quick", "--repeats", "2", "--sides", "ours", "--json", str(file)])
    said, made = capsys.readouterr().out, json.loads(file.read_text())
    assert "| ours |" in said and "not measured" in said
    ours = made["sides"]["ours"]
    assert len(ours["seconds"]) == 2 and min(ours["seconds"]) > 0 and ours["memory"] > 0
    losses = [loss for loss, _ in ours["checked"]]
    assert len(losses) == train_step.CHECKED and len(set(losses)) == len(losses)
    assert made["peak"] >= ours["peak"] > 0


@pytest.mark.parametrize("dtype, remat", [("float32", "none"), ("bfloat16", "full")])
def test_pytorch_computes_the_same(dtype, remat):
    pytest.importorskip("torch")
    work = dataclasses.replace(WORK, dtype=dtype, remat=remat)
    start = train_step.weights(work)
    calls = train_step.ours(work, start), train_step.theirs(work, start, compiled=False)
    ours, theirs = ([call() for _ in range(train_step.CHECKED)] for call in calls)
    np.testing.assert_allclose(theirs, ours, rtol={"float32": 1e-5, "bfloat16": 3e-2}[dtype])
