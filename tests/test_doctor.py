"""`srum doctor`: what a folder is and needs, everything wrong with it, one token and one step."""

import json

import jax
import numpy as np
import published_configs
import pytest
import tiny
from safetensors.numpy import load_file, save_file

from srum_jax import doctor
from srum_jax.core import console, param_tree, sharding
from srum_jax.models import int8
from srum_jax.models.bagel import cost, hf, model_config
from srum_jax.models.bagel import model as bagel


@pytest.fixture
def folder(tmp_path):
    return tiny.write_model(tmp_path / "model")


@pytest.fixture
def run(monkeypatch, capsys):
    """run(*arguments) -> (exit code, stdout, stderr)."""
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)

    def run(*arguments):
        code = doctor.main(list(map(str, arguments)))
        return code, *capsys.readouterr()

    return run


def changed(path, **values):
    """A JSON file with fields changed, or taken out where None."""
    fields = json.loads(path.read_text()) | values
    path.write_text(json.dumps({k: v for k, v in fields.items() if v is not None}))


def test_the_packaged_base_is_whole(run):
    code, out, err = run("shapes", "--headers")
    assert (code, err) == (0, "")
    for part in (
        "a model of the family bagel",
        "4 layers of width 128, 4 heads (2 of keys), MLP 352, 96 words, 512 positions",
        "bfloat16: weights 4.8 MiB",
        "cache 1.0 KiB a token",
        "held by v4:1x1x1, v5e:1x1,",
        "every tensor is there, in its shape; bfloat16 holds every value",
    ):
        assert part in out, out
    assert "one token" not in out


def test_half_precision_is_no_bfloat16(run, folder):
    """Of numbers in float16 bfloat16 would lose some."""
    tensors = load_file(folder / hf.MODEL_FILE)
    save_file({name: x.astype(np.float16) for name, x in tensors.items()}, folder / hf.MODEL_FILE)
    code, out, _ = run(folder, "--headers")
    assert code == 0 and "in its shape; float32 holds every value" in out


def test_it_writes_a_token_and_takes_a_step(run, folder):
    code, out, err = run(folder)
    assert code == 0, err
    assert "loaded in float32: every number finite" in out
    assert "one token: finite" in out and "one step of drawing 64×64: finite" in out


def test_everything_wrong_is_told_at_once(run, folder):
    """Of the JSON files, the words, the settings and both files of weights."""
    changed(folder / "llm_config.json", hidden_size="wide")
    changed(folder / "vit_config.json", patch_size=0)
    (folder / "generation_config.json").write_text('{"srum_jax": {"langage": "shapes"}}')
    (folder / "tokenizer.json").write_text("[]")
    weights = (folder / hf.MODEL_FILE).read_bytes()
    (folder / hf.MODEL_FILE).write_bytes(weights[:-7])
    (folder / hf.VAE_FILE).unlink()
    code, out, err = run(folder)
    assert code == 2 and "6 problems" in err, err
    for part in (
        "llm_config.json: field 'hidden_size' must be int",
        "vit_config.json: field 'patch_size' cannot be 0",
        "tokenizer.json",
        "ema.safetensors: cut short",
        "ae.safetensors: the file is missing",
        "langage",
    ):
        assert part in err, err
    assert "family bagel" in out and "loaded" not in out


def test_tensors_are_held_against_the_sizes(run, folder):
    tensors = load_file(folder / hf.MODEL_FILE)
    del tensors["llm2vae.bias"]
    tensors["vae2llm.bias"] = tensors["vae2llm.bias"][:-1]
    save_file(tensors, folder / hf.MODEL_FILE)
    code, out, err = run(folder)
    assert code == 2 and "2 problems" in err, err
    assert "llm2vae.bias (32,) is missing" in err and "vae2llm.bias has shape (15,)" in err, err
    assert "layers of width 16" in out


def test_a_number_that_is_none_is_told(run, folder):
    tensors = load_file(folder / hf.MODEL_FILE)
    tensors["llm2vae.bias"][3] = np.nan
    save_file(tensors, folder / hf.MODEL_FILE)
    code, out, err = run(folder)
    assert code == 2 and "NaN or infinite" in err and "llm2vae.bias" in err
    assert "every tensor is there" in out and "one token" not in out


def test_what_has_no_room_for_its_layers_apart_is_tried(run, folder, monkeypatch):
    need = cost.memory(tiny.MODEL, "float32")
    monkeypatch.setattr(sharding, "memory", lambda device: need.weights + need.writing // 2)
    code, out, _ = run(folder)
    assert code == 0 and "one token: finite" in out and "not tried" not in out


def test_what_does_not_fit_is_not_tried(run, folder, monkeypatch):
    monkeypatch.setattr(sharding, "memory", lambda device: 2**15)
    code, out, _ = run(folder)
    assert code == 0 and "not tried: its weights take" in out and "32.0 KiB" in out


def test_a_folder_of_something_else(run, tmp_path):
    """Of another model: that it is none of ours, and what one of ours would have."""
    (tmp_path / "config.json").write_text(json.dumps(published_configs.QWEN25_7B))
    code, out, err = run(tmp_path)
    assert code == 2 and "no model that is known" in out
    for name in ("llm_config.json", "vit_config.json", "ema.safetensors", "ae.safetensors"):
        assert name in err, err
    assert "tokenizer.json: no such file" in err


@pytest.mark.parametrize("given", ["nowhere", "hf://somebody/model", ""])
def test_no_folder(run, given):
    code, out, err = run(given)
    assert code == 2 and not out and err.count("\n") == 1, err


def test_bytes_are_those_of_the_weights():
    model, coder = tiny.weights()
    specs = bagel.specs(tiny.MODEL)
    half = jax.tree.map(lambda x: x.astype(jax.numpy.bfloat16), model)
    found = {"float32": model, "bfloat16": half, "int8": int8.quantize(half, specs)}
    for precision, tree in found.items():
        wanted = sum(x.nbytes for x in jax.tree.leaves((tree, coder)))
        need, copied = cost.memory(tiny.MODEL, precision), jax.tree.leaves(tree["blocks"]["und"])
        assert need.weights == wanted, precision
        assert need.writing == sum(x.nbytes for x in copied), precision


def test_what_bagel_7b_needs(run, tmp_path):
    """Without weights: its sizes, its bytes, its chips, and that the weights are missing."""
    tiny.sizes_folder(tmp_path / "bagel", model_config.BAGEL_7B_MOT)
    code, out, err = run(tmp_path / "bagel")
    assert code == 2 and "ema.safetensors: the file is missing" in err, err
    assert "bfloat16: weights 27.5 GiB, 12.2 GiB more while it writes where there is room, " in out
    assert "cache 56.0 KiB a token" in out, out
    assert "v4:2x2x1, v5e:2x2, v5p:1x1x1, v6e:2x2, h200:1" in out, out
    assert "int8: weights 14.4 GiB" in out and "v4:1x1x1, v5e:2x2, v5p:1x1x1, v6e:1x1" in out, out
    count = param_tree.count(bagel.specs(model_config.BAGEL_7B_MOT))
    assert cost.memory(model_config.BAGEL_7B_MOT, "bfloat16").weights > 2 * count
