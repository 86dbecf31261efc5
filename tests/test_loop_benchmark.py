"""The benchmark of the loop: what a turn is, that it runs, that both sides compute the same."""

import json
import pathlib
import sys

import numpy as np
import pytest
import tiny

ROOT = pathlib.Path(__file__).parents[1]
sys.path.append(str(ROOT / "benchmarks"))  # scripts: they import one another by plain names

import loop  # noqa: E402

from srum_jax.data.schema import Regions  # noqa: E402
from srum_jax.rewards import written  # noqa: E402

SIZES = dict(size=(32, 32), images=2, rows=2, steps=2, think=2)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return loop.Work(str(tiny.write_model(tmp_path_factory.mktemp("tiny") / "model")), **SIZES)


def test_a_turn_scores_the_quarters_and_trains_on_every_image_once():
    work = loop.Work("", (32, 48), images=6, rows=2)
    covered = np.zeros(work.size, int)
    for x0, y0, x1, y1 in work.boxes.astype(int):
        covered[y0:y1, x0:x1] += 1
    assert (covered == 1).all() and len(work.boxes) == 4
    assert [n for part in work.parts for n in range(6)[part]] == list(range(6))


def test_answers_are_as_long_as_their_form_and_the_thinking_before():
    short, long = (loop.Work("", (32, 32), think=n).answers for n in (0, 250))
    assert {kind: n - short[kind] for kind, n in long.items()} == dict.fromkeys(short, 250)
    assert 4 * short["whole"] < short["regions"] < 5 * short["whole"]
    assert set(short) == set(written.TEMPLATES)


def test_ratios_are_of_medians_and_say_who_is_faster():
    turns = {
        "ours": [dict(generate=1.0, score=n, train=1.0) for n in (9.0, 2.0, 1.0)],
        loop.RELEASED: [dict(generate=2.0, score=26.0, train=1.0)],
    }
    turns = {side: [{"seconds": one} for one in taken] for side, taken in turns.items()}
    seconds = loop.medians(turns, "seconds")
    assert seconds["ours"] == dict(generate=1.0, score=2.0, train=1.0, all=4.0)
    head, _, *rows = loop.table("seconds", seconds).splitlines()
    assert head.endswith("| PyTorch as released / ours |")
    ratios = [row.split("|")[-2].strip() for row in rows]
    assert ratios == ["2.00×", "13.00×", "1.00×", "7.25×"]


def test_pytorch_draws_and_learns_the_same(work):
    pytest.importorskip("torch")
    ours, theirs = loop.Ours(work, in_words=False), loop.Theirs(work, together=1)
    drawn, rng = ours.generate(), np.random.default_rng(0)
    same = theirs.generate(ours.noise())
    assert np.abs(same.images.astype(int) - drawn.images).max() <= loop.LEVELS
    np.testing.assert_allclose(same.latents, drawn.latents, atol=1e-3)
    scored = [
        Regions(work.boxes, rng.uniform(-1, 1, 4).astype(np.float32), float(rng.uniform(-1, 1)))
        for _ in drawn.images
    ]
    draws = ours.draws(drawn, scored)
    found = theirs.train(drawn, scored, draws)
    np.testing.assert_allclose(found, ours.train(drawn, scored), rtol=1e-5)


@pytest.mark.slow
def test_the_script_runs(work, tmp_path, capsys):
    file, sizes = tmp_path / "loop.json", [f"--{k}={v}" for k, v in SIZES.items() if k != "size"]
    sides = "--sides=ours;ours, written"
    loop.main([f"--model={work.folder}", *sizes, sides, "--repeats=2", f"--json={file}"])
    said, made = capsys.readouterr().out, json.loads(file.read_text())
    assert "| generate |" in said and "as released" not in said.split("| seconds |")[1]
    assert list(made["turns"]) == ["ours", "ours, written"]
    for turns in made["turns"].values():
        assert len(turns) == 2
        for one in turns:
            assert set(one) == set(loop.CLOCKS)
            assert all(min(parts.values()) > 0 for parts in one.values())
