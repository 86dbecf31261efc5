"""Machines that are not here: their names, sizes, peaks, and what their compilers say."""

import ast
import pathlib

import pytest

from srum_jax.core.errors import BadInput
from srum_jax.planning import topology
from srum_jax.planning.topology import Target

ROOT = pathlib.Path(__file__).parents[2]


@pytest.mark.parametrize(
    "text, chips",
    [("v5e:4x4", 16), ("v5p:2x2x4", 16), ("v6e:16x16", 256), ("v4:2x2x1", 4), ("h200:8", 8)],
)
def test_targets_are_read(text, chips):
    target = topology.parse(text)
    assert str(target) == text and target.chips == chips


@pytest.mark.parametrize(
    "text", ["v5e", "v5e:", "v5e:4x4x4", "v5p:4x4", "v9:2x2", "h200:2x4", "h200:12", "v5e:3x3", ""]
)
def test_other_targets_are_refused_with_what_is_known(text):
    with pytest.raises(BadInput, match="for example|one of"):
        topology.parse(text)
    with pytest.raises(BadInput):
        topology.parse("v5e:0x4")


def test_a_host_is_the_machine_itself_where_that_is_smaller():
    hosts = {"v5e:1x1": "v5e:1x1", "v5e:4x4": "v5e:2x2", "v5p:2x2x4": "v5p:2x2x1"}
    hosts |= {"h200:4": "h200:4", "h200:16": "h200:8"}
    for text, host in hosts.items():
        assert str(topology.parse(text).host) == host


def test_larger_machines_come_in_order():
    after = topology.larger(Target("v5e", "4x4"))
    assert [str(t) for t in after] == ["v5e:4x8", "v5e:8x8", "v5e:8x16", "v5e:16x16"]
    assert topology.larger(Target("h200", "8")) == []
    for name, kind in topology.KINDS.items():
        chips = [Target(name, shape).chips for shape in kind.sizes]
        assert chips == sorted(set(chips)), name


@pytest.mark.parametrize(
    "target, extra", [("v5e:2x2", "plan-tpu"), ("h200:8", "plan-gpu")], ids=["tpu", "gpu"]
)
def test_a_missing_compiler_is_named_with_its_extra(monkeypatch, target, extra):
    monkeypatch.setattr(topology, "_importable", lambda module: False)
    with pytest.raises(BadInput, match=rf'pip install -e "\.\[{extra}\]"'):
        topology.describe(topology.parse(target))


@pytest.mark.parametrize(
    "message, gib",
    [
        ("Ran out of memory on HBM, the total memory required for HLO temporaries (16.62G) "
         "exceeds available HBM (15.75G).", 16.62),
        ("Ran out of memory in memory space hbm. Used 512.5M of 15.75G hbm. Exceeded", 0.5005),
        ("something else", None),
    ],
)  # fmt: skip
def test_what_a_refusal_says_is_read(message, gib):
    found = topology.needed(message)
    assert found is None if gib is None else found / topology.GIB == pytest.approx(gib, rel=1e-3)


def test_private_interfaces_of_jax_are_in_one_file_each_and_imported_when_needed():
    users: dict[str, set[str]] = {}
    for path in (ROOT / "srum_jax").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                if name.startswith(("jax._src", "jax.lib", "jax.experimental.topologies")):
                    users.setdefault(name, set()).add(path.name)
                    assert node.col_offset > 0, f"{path}: {name} is imported with the module"
    assert "topology.py" in users["jax.experimental.topologies"]
    assert all(len(files) == 1 for files in users.values()), users


def test_every_kind_has_its_peaks():
    for name, kind in topology.KINDS.items():
        assert 1e12 < kind.flops < 2e15 and 1e11 < kind.bandwidth < 1e13, name
        assert 0.1 <= kind.float32 <= 1 and kind.devices and kind.hbm_gib <= kind.raised_gib, name
        # Operations for each byte: from an L4's 403 and a v5e's 240 to what is bound by arithmetic.
        assert 20 < kind.flops / kind.bandwidth < 1000, name
