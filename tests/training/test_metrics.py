"""Metrics files: whole rows, each step once, also after a kill."""

import json

import pytest

from srum_jax.training.metrics import Writer, read


def writer(path, start=0):
    return Writer(path, steps=10, start=start, title="toy")


def test_rows_are_written_as_they_come(tmp_path):
    path = tmp_path / "deep" / "metrics.jsonl"
    w = writer(path)
    assert read(path) == []
    w.write({"step": 1, "loss": 2.5})
    assert read(path) == [{"step": 1, "loss": 2.5}]  # before it is closed
    w.write({"step": 2, "loss": 0.1 + 0.2})
    w.close()
    assert read(path)[1]["loss"] == 0.1 + 0.2  # no digit is lost
    assert len(path.read_text().splitlines()) == 2
    assert [p.name for p in path.parent.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_numbers_that_are_none_are_still_json(tmp_path, value):
    w = writer(tmp_path / "m")
    w.write({"step": 1, "loss": value, "other": 1.0})
    w.close()

    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    row = json.loads((tmp_path / "m").read_text(), parse_constant=refuse)
    assert row == {"step": 1, "loss": str(value), "other": 1.0}


def test_resuming_drops_what_comes_after(tmp_path):
    w = writer(tmp_path / "m")
    for step in range(1, 6):
        w.write({"step": step, "loss": 1.0})
    w.close()
    with (tmp_path / "m").open("a") as file:
        file.write('{"step": 6, "lo')
    assert [r["step"] for r in read(tmp_path / "m")] == [1, 2, 3, 4, 5]
    w = writer(tmp_path / "m", start=3)
    w.write({"step": 4, "loss": 2.0})
    w.close()
    assert [(r["step"], r["loss"]) for r in read(tmp_path / "m")] == [
        (1, 1.0),
        (2, 1.0),
        (3, 1.0),
        (4, 2.0),
    ]


def test_the_bar_tells_the_time_left(tmp_path, capsys):
    w = writer(tmp_path / "m", start=4)
    w.write({"step": 5, "loss": 0.123456, "grad_norm": 3.0})
    w.advance(7)
    w.advance(10)
    w.close()
    shown = capsys.readouterr().err
    assert "toy" in shown and "10/10" in shown and "loss=0.1235" in shown
    assert "grad_norm" not in shown
