"""The tables of plans: what is made, what is outdated, and the page that says so."""

import importlib.util
import pathlib
import sys
import types

import jsonschema
import pytest
import tiny
from compilers import SCHEMA, Compilers

from srum_jax.core import registry
from srum_jax.planning import lowering, topology

sys.path.append(str(pathlib.Path(__file__).parents[2] / "benchmarks"))
import plan_table  # noqa: E402

STEP, INFERENCE = ("train_step",), ("sample_int8", "write_int8")
ROWS = {
    "one": plan_table.Row("step", "v5e:2x4", "expert", {}, STEP),
    "two": plan_table.Row("step", "v6e:2x4", "both", {"train.trainable": "all"}, STEP),
    "single": plan_table.Row("int8", "v5e:1x1", "32x32", {}, INFERENCE),
}


@pytest.fixture
def table(monkeypatch, tmp_path):
    """`plan_table.main` with arguments, on `ROWS` of a small model in a folder: gives the page."""
    sizes = tiny.sizes_folder(tmp_path / "sizes")
    monkeypatch.setattr(registry, "base_folder", {"shapes": sizes}.__getitem__)
    page = tmp_path / "page.md"
    page.write_text(f"before\n{plan_table.BEGIN}\nold\n{plan_table.END}\nafter\n")
    for name, value in {
        "FOLDER": tmp_path / "plans",
        "PAGE": page,
        "ROWS": ROWS,
        "WEAK": ["one", "two"],
        "ROADS": ("v5e:2x4",),
        "configured": lambda *_: tiny.load_config(""),
    }.items():
        monkeypatch.setattr(plan_table, name, value)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["plan_table.py", *arguments])
        plan_table.main()
        return page.read_text()

    return run


@pytest.fixture
def compilers(monkeypatch):
    made = Compilers(lambda *_: 9.0)
    monkeypatch.setattr(topology, "describe", made.describe)
    return made


@pytest.fixture
def text(monkeypatch):
    """A list whose last element is what every program is lowered to."""
    texts = ["a program"]

    def lower(program):
        return types.SimpleNamespace(out_info=(), as_text=lambda: texts[-1])

    monkeypatch.setattr(lowering.Program, "lower", lower)
    return texts


def test_the_page_is_made_of_the_committed_rows():
    made = {path.stem for path in plan_table.FOLDER.glob("*.json")}
    assert made <= set(plan_table.ROWS)
    for name in made:
        row = plan_table.read(name)
        jsonschema.validate(row, SCHEMA)
        unknown = {p for p, entry in row["programs"].items() if "digest" not in entry}
        marked = set(row.get("outdated", []))  # with a compiler all programs are
        known = unknown <= marked or marked & {"versions"}
        assert known, f"{name}: plan_table.py --check"
    shown = plan_table.PAGE.read_text().split(plan_table.BEGIN)[1].split(plan_table.END)[0]
    assert shown.strip() == plan_table.page(), "python benchmarks/plan_table.py --table"


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed")
@pytest.mark.parametrize("name", ["v5e-16-lora-8k", "v5e-1-int8-ask", "v5e-1-int8-draw"])
def test_committed_rows_are_of_these_programs_or_marked(name):
    """Of each kind of program the smallest; none is compiled."""
    made = plan_table.read(name)
    found = plan_table.outdated(name, made)
    assert found == made.get("outdated", []), "python benchmarks/plan_table.py --check"


def test_rows_are_made_once_and_missing_ones_marked(table, compilers, text):
    for _ in range(2):
        page = table("--rows", "one,single")
        assert compilers.count == 3
    assert page.startswith("before") and page.endswith("after\n") and "old" not in page
    assert "| v5e:2x4 | expert | yes | 9.00 |" in page and "†" not in page
    assert "Not made: v6e:2x4 (both)." in page and "Not made: v6e:2x4." in page
    assert "| v5e:1x1 | 32x32 | sample, 4 images a call | yes | 9.00 |" in page
    assert "| 8 | fsdp 8 | 16 | 9.00 | 9.00 |" in page  # the first is its own ideal


def test_a_row_of_another_program_is_marked_and_made_again(table, compilers, text, capsys):
    table("--rows", "one,single")
    text.append("another program")
    page = table("--check")
    assert "outdated: one (train_step); single (sample_int8, write_int8)" in capsys.readouterr().err
    assert "| v5e:2x4 † | expert | yes |" in page and "| 8 † | fsdp 8 |" in page
    assert "| v5e:1x1 † | 32x32 |" in page and "† compiled from these programs as" in page
    assert page == table("--table") and compilers.count == 3  # nothing was made
    page = table("--rows", "one")
    assert compilers.count == 4 and "| v5e:2x4 | expert |" in page and "| v5e:1x1 † |" in page
    text.pop()
    table("--check")
    assert "outdated: one (train_step)\n" in capsys.readouterr().err


@pytest.mark.parametrize(
    "what, change",
    [
        ("versions", lambda row: row | {"versions": row["versions"] | {"jax": "0.1"}}),
        ("train_step", lambda row: row | {"programs": {"train_step": {}}}),  # of before digests
    ],
)
def test_what_else_makes_a_row_outdated(table, compilers, text, what, change):
    table("--rows", "one")
    row = plan_table.read("one")
    assert plan_table.outdated("one", row | {"config_hash": "0" * 16}) == []  # changes no program
    assert plan_table.outdated("one", change(row)) == [what]


def test_every_row_is_a_config_that_holds_together():
    for name, row in plan_table.ROWS.items():
        cfg = plan_table.configured(row.changes, row.config)
        target = topology.parse(row.target)
        assert set(row.programs) <= set(lowering.PROGRAMS), name
        assert name.rsplit("-")[1] == str(target.chips), name
        assert row.table != "step" or row.changes["train.anchor"] == 0.1
        drawn = ((384, 384),) if row.table == "janus" else ((1024, 1024), (512, 512))
        assert cfg.sample.size in drawn
    assert set(plan_table.WEAK) <= set(plan_table.ROWS)
