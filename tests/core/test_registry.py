"""Worlds and suites by name: nothing is imported early, and a new one is a module and a line."""

import importlib
import subprocess
import sys

import pytest

from srum_jax import running
from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.data import prompts

WORLD = '''
"""A world of two prompts."""


def prompts(split, count, first=0):
    return tuple((f"{split} {i}", "number") for i in range(2))[:count]
'''


def test_a_new_world_is_one_module_and_one_line(tmp_path, monkeypatch):
    (tmp_path / "little_world.py").write_text(WORLD)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.WORLDS, "little", "little_world")
    found = prompts.load("little:test")
    assert [(p.id, p.text, p.category) for p in found] == [
        (0, "test 0", "number"),
        (1, "test 1", "number"),
    ]
    assert found[1].where == "little:test, prompt 1"
    assert [p.text for p in prompts.load("little:train", 1)] == ["train 0"]


def test_a_world_names_the_stages_that_make_its_base(tmp_path, monkeypatch):
    (tmp_path / "made_world.py").write_text('STAGES = {"pretrain": "made_world"}')
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(registry.WORLDS, "made", "made_world")
    assert running.stage_module("made", "pretrain").__name__ == "made_world"
    assert running.stage_module("made", "score").__name__ == "srum_jax.stages.score"
    with pytest.raises(BadInput, match='"autoencoder" is not known: known: pretrain'):
        running.stage_module("made", "autoencoder")


def test_names_alone_import_nothing():
    code = (
        "import sys; from srum_jax.core import registry; print(registry.base_folder('shapes'));"
        "assert not any(name.startswith('srum_jax.worlds') for name in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_world_has_a_base_and_prompts():
    for name in registry.WORLDS:
        assert (registry.base_folder(name) / "tokenizer.json").exists()
        assert any(registry.base_folder(name).glob("*.safetensors"))
        for split in registry.SPLITS:
            assert len(prompts.load(f"{name}:{split}", 2)) == 2


def test_every_world_has_the_config_that_makes_its_base():
    for name in registry.WORLDS:
        module = importlib.import_module(f"srum_jax.configs.{name}_pretrain")
        made = module.get_config()
        assert made.model == name and "pretrain" in made.stages
        assert f"--config configs/{name}_pretrain.py --workdir" in module.__doc__


def test_unknown_names_are_refused():
    with pytest.raises(BadInput, match='"shape" is not known: did you mean "shapes"'):
        registry.load(registry.WORLDS, "shape")
    with pytest.raises(BadInput, match="known: shapes"):
        registry.load(registry.SUITES, "no such suite")
