"""Metrics files: whole rows, each step once, also after a kill."""

import json
import typing

import pytest

from srum_jax.config import LogConfig
from srum_jax.core import memory
from srum_jax.training import metrics
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


@pytest.mark.parametrize(
    "kind, peak",
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L4", 121e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v5", 459e12),
        ("TPU v6 lite", 918e12),
        ("cpu", None),
        ("Tesla T4", None),
    ],
)
def test_peaks_by_the_name_of_the_device(kind, peak):
    assert metrics.peak_flops(kind) == peak


def test_memory_is_the_fullest_devices(monkeypatch):
    """Or, where these do not say, as on CPUs, the process's."""
    monkeypatch.setattr(memory, "peak", lambda: 5 * 2**30)
    assert metrics.peak_memory_gib() == 5

    class Device:
        def __init__(self, used):
            self.used = used

        def memory_stats(self):
            return {"peak_bytes_in_use": self.used}

    monkeypatch.setattr(metrics.jax, "local_devices", lambda: [Device(2**30), Device(3 * 2**30)])
    assert metrics.peak_memory_gib() == 3


def test_every_writer_of_the_config_is_there():
    (kind, _) = typing.get_args(typing.get_type_hints(LogConfig)["writers"])
    assert set(typing.get_args(kind)) == set(metrics.SINKS)


def test_a_damaged_row_is_named_and_left_out(tmp_path, caplog):
    """The last one may be torn without a word: a run was killed while it wrote."""
    path = tmp_path / "m"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert read(path) == [{"step": 1}, {"step": 2}] and not caplog.text
    for damaged in ('{"st', "7", '{"loss": 1}', '{"step": null}'):
        path.write_text(f'{{"step": 1}}\n{damaged}\n{{"step": 3}}\n')
        caplog.clear()
        assert read(path) == [{"step": 1}, {"step": 3}]
        assert f"{path}, line 2: damaged, left out" in caplog.text


def test_the_time_left_is_measured_after_the_first_step_whose_time_is_compiling(
    tmp_path, monkeypatch
):
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    w = metrics.Writer(tmp_path / "metrics.jsonl", steps=100, start=20, title="train")
    now[0] = 500.0
    w.advance(21)
    assert "21/100" in str(w.bar) and "<?" in str(w.bar)  # not 500 s a step
    for step in range(22, 32):
        now[0] += 2.0
        w.advance(step)
    assert "31/100 [00:20<02:18" in str(w.bar)
    w.close()
