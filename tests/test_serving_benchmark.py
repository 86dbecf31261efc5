"""The benchmark of serving: what its figures are of, and that one request at a time is that."""

import asyncio
import importlib.util
import pathlib

import pytest

PATH = pathlib.Path(__file__).parents[1] / "benchmarks" / "serving.py"
spec = importlib.util.spec_from_file_location("serving_benchmark", PATH)
serving = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serving)


def replies():
    return [
        *(serving.Reply("answer", 0.0, 0.01 * i, 0.02 * i, 1) for i in range(1, 5)),
        *(serving.Reply("caption", 0.0, 0.1, 0.3, 7) for _ in range(2)),
        serving.Reply("drawing", 0.0, 0.5, 0.5, 2),
    ]


def test_figures_are_counted_and_percentiles():
    found = serving.measured(replies(), 2.0)
    assert found["requests_per_second"] == 3.5
    assert (found["tokens_per_second"], found["images_per_second"]) == (9.0, 1.0)
    assert found["answer"]["n"] == 4 and found["answer"]["p50"] == pytest.approx(50)
    assert found["answer"]["first_p50"] == pytest.approx(25)
    assert found["caption"]["p99"] == pytest.approx(300)


def test_the_table_has_a_row_a_server_and_the_ratio():
    few = serving.measured(replies(), 4.0)
    both = {"serial": few, "batched": serving.measured(replies(), 2.0)}
    head, line, serial, batched = serving.table({"load": {"16": both}}).splitlines()
    cells = [[x.strip() for x in row.strip("|").split("|")] for row in (serial, batched)]
    assert [row[:3] for row in cells] == [["16", "serial", "1.8"], ["16", "batched", "3.5"]]
    assert [row[-1] for row in cells] == ["1.0", "2.0"]
    assert head.count("|") == line.count("|") == serial.count("|")


def test_one_at_a_time_is_one_at_a_time():
    inside, most = 0, 0

    async def app(scope, receive, send):
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await asyncio.sleep(0.001)
        inside -= 1

    async def several(served):
        await asyncio.gather(*(served({}, None, None) for _ in range(5)))

    asyncio.run(several(serving.OneAtATime(app)))
    assert most == 1
    asyncio.run(several(app))
    assert most == 5
