"""How a checkpoint is best used: its own file, read with every fault named; defaults without."""

import dataclasses
import json

import pytest
from etils import epath

import srum_jax
from srum_jax.config import SampleConfig, ScoreConfig
from srum_jax.core.errors import BadInput
from srum_jax.generation import generation_config
from srum_jax.models.bagel import model_config

FILE = "generation_config.json"


def folder(tmp_path, values):
    text = values if isinstance(values, str) else json.dumps({"srum_jax": values})
    (tmp_path / FILE).write_text(text)
    return tmp_path


def test_without_a_file_the_demos_settings_hold(tmp_path):
    found = generation_config.from_folder(tmp_path)
    assert found == generation_config.GenerationConfig()
    assert found.generate.size == (1024, 1024) and found.generate.steps == 50
    assert (found.generate.guidance, found.generate.image_guidance) == (4.0, 1.0)
    assert found.edit.image_guidance == 2.0 and found.edit.guidance_interval == (0.0, 1.0)
    assert not found.official


def test_a_file_changes_what_it_names(tmp_path):
    values = {"window": 100, "caption": "what is there ?", "parity": "official"}
    found = generation_config.from_folder(folder(tmp_path, values))
    assert found == dataclasses.replace(generation_config.GenerationConfig(), **values)
    found = generation_config.from_folder(folder(tmp_path, {"edit": {"steps": 7}}))
    assert found.edit == dataclasses.replace(generation_config.GenerationConfig().edit, steps=7)
    assert found.generate == generation_config.GenerationConfig().generate


def test_scoring_starts_from_how_a_worlds_pictures_are_scored(tmp_path):
    assert generation_config.from_folder(tmp_path).score.proposers == ("grid",)
    found = generation_config.from_folder(folder(tmp_path, {"language": "shapes"}))
    assert found.score == ScoreConfig(proposers=("components",))
    values = {"language": "shapes", "score": {"proposers": ["grid"], "margin": 3}}
    found = generation_config.from_folder(folder(tmp_path, values))
    assert found.score == ScoreConfig(proposers=("grid",), margin=3)


def test_editing_starts_from_how_the_model_draws(tmp_path):
    values = {"generate": {"size": [32, 64], "steps": 4, "shift": 2}, "edit": {"steps": 9}}
    found = generation_config.from_folder(folder(tmp_path, values))
    assert found.generate.size == (32, 64) and type(found.generate.shift) is float
    assert found.edit == dataclasses.replace(found.generate, steps=9)


@pytest.mark.parametrize(
    "values, message",
    [
        ({"windows": 3}, 'unknown key "windows": did you mean "window"?'),
        ({"batch": 2.0}, "batch must be int, got 2.0"),
        ({"window": True}, "window must be int, got True"),
        ({"window": "100"}, "window must be int, got '100'"),
        ({"window": 0}, "window must be at least 1, got 0"),
        ({"max_tokens": -1}, "max_tokens must be at least 1, got -1"),
        ({"caption": None}, "caption must be str, got None"),
        ({"parity": "offical"}, 'parity = \'offical\' is not known: "official", or ""'),
        ({"resize_twice": True}, 'resize_twice is gone: api.load(…, parity="official") has it'),
        ({"edit": {"image_alone": False}}, "sample.image_alone is gone: it is always True"),
        ({"frame": "at {minutes}"}, "frame = 'at {minutes}' may hold {seconds} and {number}"),
        ({"frame": "at {}"}, "frame = 'at {}'"),
        ({"frame": "at {seconds"}, "frame = 'at {seconds'"),
        ({"frame": "at {seconds.start}"}, "frame = 'at {seconds.start}'"),
        ({"frame": "at {seconds[0]}"}, "frame = 'at {seconds[0]}'"),
        ({"frame": "at {seconds:d}"}, "frame = 'at {seconds:d}'"),
        ({"generate": 3}, "generate: must hold keys, got 3"),
        ({"edit": []}, "edit: must hold keys, got []"),
        ({"edit": {"step": 3}}, 'edit: unknown key "step": did you mean "steps"?'),
        ({"edit": {"steps": "3"}}, "edit: steps must be int, got '3'"),
        ({"edit": {"steps": 0}}, "edit: steps must be above 0, got 0"),
        ({"score": {"margins": 3}}, 'score: unknown key "margins": did you mean "margin"?'),
        ({"generate": {"size": [8]}}, "generate: size must be a tuple of 2 values"),
        ({"generate": {"guidance": -1}}, "generate: guidance must not be negative"),
        ({"generate": {"renorm": "gobal"}}, 'did you mean "global"?'),
        ({"generate": {"guidance_interval": [0.5, 0.2]}}, "guidance_interval must be low <= high"),
        ('{"srum_jax": {"generate": {"shift": NaN}}}', "shift must be a finite number"),
        ([1], "must hold an object, got [1]"),
        ("{", "not valid JSON"),
    ],
)
def test_wrong_files_are_told(tmp_path, values, message):
    with pytest.raises(ValueError) as e:
        generation_config.from_folder(folder(tmp_path, values))
    assert message in str(e.value) and str(tmp_path / FILE) in str(e.value)


def test_some_settings_can_be_changed():
    start = generation_config.GenerationConfig()
    found = generation_config.updated(start, {"window": 9, "edit": {"steps": 3}}, where="options")
    assert found == dataclasses.replace(
        start, window=9, edit=dataclasses.replace(start.edit, steps=3)
    )
    for values, message in (
        ({"windwo": 9}, 'options: unknown key "windwo": did you mean "window"'),
        ({"window": "9"}, "options: window must be int, got '9'"),
        ({"window": 0}, "options: window must be at least 1"),
        ({"edit": {"steps": 0}}, "options, edit: steps must be above 0"),
    ):
        with pytest.raises(BadInput, match=message):
            generation_config.updated(start, values, where="options")


def test_settings_can_be_changed_for_one_call():
    generate = generation_config.GenerationConfig().generate
    found = generation_config.changed(generate, {"size": (64, 32), "steps": 3}, where="generate")
    assert found == dataclasses.replace(generate, size=(64, 32), steps=3)
    assert isinstance(found, SampleConfig)
    with pytest.raises(BadInput, match="generate: batch must be above 0, got 0"):
        generation_config.changed(generate, {"batch": 0}, where="generate")


def test_the_shapes_base_says_how_it_is_used():
    base = epath.resource_path(srum_jax) / "worlds/shapes/base"
    found, cfg = generation_config.from_folder(base), model_config.from_folder(base)
    pixels = cfg.token_pixels
    for settings in (found.generate, found.edit):
        assert all(s % pixels == 0 and s <= pixels * cfg.max_latent for s in settings.size)
    assert found.window <= cfg.max_text and found.max_tokens < found.window


def test_what_others_write_there_is_passed_over(tmp_path):
    """transformers keeps its own keys in the file."""
    others = {"do_sample": True, "top_k": 20, "transformers_version": "4.49.0"}
    (tmp_path / FILE).write_text(json.dumps(others))
    assert generation_config.from_folder(tmp_path) == generation_config.GenerationConfig()
    (tmp_path / FILE).write_text(json.dumps(others | {"srum_jax": {"window": 100}}))
    assert generation_config.from_folder(tmp_path).window == 100


def test_the_old_file_is_read_with_a_warning(tmp_path, caplog):
    (tmp_path / "usage.json").write_text('{"window": 99}')
    (tmp_path / FILE).write_text('{"top_k": 20}')
    with caplog.at_level("WARNING", logger="absl"):
        assert generation_config.from_folder(tmp_path).window == 99
    assert 'usage.json: move its content to the key "srum_jax" of generation_conf' in caplog.text
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        assert generation_config.from_folder(folder(tmp_path, {"window": 100})).window == 100
    assert not caplog.text
    (tmp_path / "usage.json").write_text('{"windw": 99}')
    (tmp_path / FILE).unlink()
    with pytest.raises(BadInput, match='usage.json: unknown key "windw"'):
        generation_config.from_folder(tmp_path)


def test_a_base_says_it_where_the_folder_does_not(tmp_path):
    mine, base = tmp_path / "mine", tmp_path / "base"
    for one in (mine, base):
        one.mkdir()
    folder(base, {"window": 7})
    assert generation_config.from_folder(mine, base).window == 7
    folder(mine, {"batch": 3})
    assert (
        generation_config.from_folder(mine, base).window
        == generation_config.GenerationConfig().window
    )


def test_an_edit_keeps_its_own_guidance_where_it_has_one(tmp_path):
    folder = tmp_path / "a"
    folder.mkdir()
    start = generation_config.from_folder(folder)
    assert generation_config.guide(folder, 3.0) and not generation_config.guide(folder, 3.0)
    found = generation_config.from_folder(folder)
    assert found.generate == dataclasses.replace(start.generate, guidance=3.0)
    assert found.edit == start.edit and found.edit != found.generate
    other = tmp_path / "b"
    other.mkdir()
    values = {"top_k": 3, "srum_jax": {"generate": {"size": [32, 32]}, "max_tokens": 9}}
    (other / "generation_config.json").write_text(json.dumps(values))
    assert generation_config.guide(other, 1.5)
    found = generation_config.from_folder(other)
    assert found.edit == found.generate and found.generate.guidance == 1.5
    assert found.max_tokens == 9 and found.generate.size == (32, 32)
    assert json.loads((other / "generation_config.json").read_text())["top_k"] == 3
