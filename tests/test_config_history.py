"""Former names and keys of a config: read with a warning, or refused with what holds today."""

import dataclasses
import logging
import re

import pytest
from test_config import parse

from srum_jax import config, config_history
from srum_jax.configs import base
from srum_jax.core.errors import BadInput


def warned(caplog):
    return {r.getMessage().split(";")[0] for r in caplog.records if r.levelno == logging.WARNING}


def test_former_names_are_read_with_a_warning(tmp_path, caplog):
    path = tmp_path / "former.py"
    path.write_text(
        "from srum_jax.configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.generate.unit = 128\n    c.train.probe.every = 7\n"
        "    c.pretrain.several_lanes.und = 176\n    return c\n"
    )
    cfg = parse("--config", str(path), "--config.train.least_score=0.25", "--config.seed=3")
    assert (cfg.generate.shard_size, cfg.train.monitor.every, cfg.train.min_score) == (128, 7, 0.25)
    said = {f"{old} is called {new}" for old, new in config_history.RENAMED.items()}
    gone = "pretrain.multi_image_lanes.und is gone: it is always 176"
    assert len(warned(caplog)) == 4 and warned(caplog) <= said | {gone}
    caplog.clear()
    parse("--config=shapes")
    assert not warned(caplog)


def test_keys_that_are_gone_may_say_what_always_holds(caplog):
    for name, value in config_history.REMOVED.items():
        c = base.get_config()
        *path, key = name.split(".")
        holder = c
        for part in path:
            holder = holder[part]
        holder[key] = value
        assert config.load(c) == config.Config()
        said = f"{name} is gone: it is always {value!r}"
        assert said in caplog.text
        del holder[key]  # a ConfigDict keeps the type of what it holds
        holder[key] = 12345
        with pytest.raises(BadInput, match=re.escape(f"{name} = 12345: {said}")):
            config.load(c)


@pytest.mark.parametrize(
    "line", ["c.pretrain.optim.learning_rate = 1e-3", "c.autoencoder.ema = 0.5", "c.seed = 0"]
)
def test_a_config_file_with_a_key_that_is_gone_hears_what_holds(tmp_path, line):
    path = tmp_path / "old.py"
    path.write_text(
        "from srum_jax.configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        f"    {line}\n    return c\n"
    )
    if line == "c.seed = 0":
        with pytest.raises(BadInput, match="--config.pretrain.ema: pretrain.ema is gone: it is"):
            parse("--config", str(path), "--config.pretrain.ema=0.9")
        return
    with pytest.raises(BadInput, match=r"is gone: it is always .*; srum_jax/worlds has the recipe"):
        parse("--config", str(path))


def test_every_former_name_has_a_key_of_today():
    whole = dataclasses.asdict(config.Config())
    for old, new in config_history.RENAMED.items():
        value = whole
        if not any(name == new or name.startswith(f"{new}.") for name in config_history.REMOVED):
            for key in new.split("."):
                value = value[key]
        assert config_history.current_name(old) == new != old
    assert config_history.current_name("train.probe.every") == "train.monitor.every"
    assert config_history.current_name("train.steps") == "train.steps"
