"""The Hugging Face table: a bijection at 7B size, round trips, every way a folder can be wrong."""

import json
import pathlib
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from srum_jax.core import params as P
from srum_jax.models import bagel, config, hf, vae

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"


def test_table_is_a_bijection_onto_the_official_tensors():
    cfg = config.BAGEL_7B_MOT
    official = json.loads((GOLDENS / "bagel_tensors.json").read_text())
    table = hf.table(cfg)
    for file, fixed in ((hf.MODEL_FILE, hf.computed_tables(cfg)), (hf.VAE_FILE, {})):
        ours = {e.name: list(e.shape) for e in table[file]}
        assert len(ours) == len(table[file]), "an official tensor has two places"
        ours |= {name: [side**2, dim] for name, (side, dim) in fixed.items()}
        assert ours == official[file]
    assert len(official[hf.MODEL_FILE]) == 1223 and len(official[hf.VAE_FILE]) == 244


@pytest.mark.parametrize("cfg", [config.BAGEL_7B_MOT, config.SHAPES])
def test_table_fills_every_element_of_every_leaf_once(cfg):
    for file, specs in ((hf.MODEL_FILE, bagel.specs(cfg)), (hf.VAE_FILE, vae.specs(cfg.vae))):
        places = [(e.path, e.layer) for e in hf.table(cfg)[file]]
        wanted = []
        for path, spec in P.flatten(specs).items():
            stacked = spec.axes[0] == "layers"
            wanted += [(path, i) for i in range(spec.shape[0])] if stacked else [(path, None)]
        assert sorted(places, key=str) == sorted(wanted, key=str)
        numbers = sum(int(np.prod(e.shape)) for e in hf.table(cfg)[file])
        assert numbers == P.count(specs)


@pytest.mark.parametrize("name", ["caseA", "caseB"])
def test_load_then_save_gives_back_the_official_file(name, tmp_path):
    cfg = config.from_folder(GOLDENS / name)
    params, vae_params = hf.load(GOLDENS / name, cfg)
    P.check(params, bagel.specs(cfg), where="test")
    P.check(vae_params, vae.specs(cfg.vae), where="test")
    hf.save(tmp_path / "out", cfg, params, vae_params, notes="Made by a test.")
    assert config.from_folder(tmp_path / "out") == cfg
    for file in (hf.MODEL_FILE, hf.VAE_FILE):
        want, have = load_file(GOLDENS / name / file), load_file(tmp_path / "out" / file)
        assert set(want) == set(have)
        for tensor in want:
            if tensor in hf.computed_tables(cfg):  # float32 angles against float64 ones
                np.testing.assert_allclose(have[tensor], want[tensor], atol=2e-6)
            else:
                np.testing.assert_array_equal(
                    have[tensor].astype(np.float32), want[tensor].astype(np.float32), tensor
                )
    assert "Made by a test." in (tmp_path / "out" / "README.md").read_text()
    assert not list((tmp_path / "out").glob("*.partial"))


def test_save_takes_device_arrays_and_stores_the_dtype_asked_for(tmp_path):
    cfg = config.from_folder(GOLDENS / "caseA")
    params = P.init(bagel.specs(cfg), jax.random.key(0))
    vae_params = P.init(vae.specs(cfg.vae), jax.random.key(1))
    words = tmp_path / "tokenizer.json"
    words.write_text("{}")
    hf.save(tmp_path / "m", cfg, params, vae_params, "float32", tokenizer_files=[words])
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    back, none = hf.load(tmp_path / "m", cfg, want=("model",))
    assert none is None
    for path, leaf in P.flatten(back).items():
        np.testing.assert_array_equal(leaf, np.asarray(P.flatten(params)[path]), path)
    half, _ = hf.load(tmp_path / "m", cfg, dtype=ml_dtypes.bfloat16, want=("model",))
    assert half["embed"].dtype == ml_dtypes.bfloat16
    hf.save(tmp_path / "m", cfg, half, vae_params)  # over the old one
    with safe_open(tmp_path / "m" / hf.MODEL_FILE, framework="numpy") as file:
        assert file.get_slice("vae2llm.weight").get_dtype() == "BF16"
        assert file.get_slice("latent_pos_embed.pos_embed").get_dtype() == "F32"


@pytest.fixture
def folder(tmp_path):
    shutil.copytree(GOLDENS / "caseA", tmp_path / "case")
    return tmp_path / "case"


def test_all_problems_of_both_files_are_told_at_once(folder):
    cfg = config.from_folder(folder)
    tensors = load_file(folder / hf.MODEL_FILE)
    del tensors["vae2llm.bias"]
    tensors["something.else"] = np.zeros(3, np.float32)
    tensors["llm2vae.bias"] = np.zeros(64, np.int32)
    tensors["vit_pos_embed.pos_embed"] = np.zeros((9, 64), np.float32)
    save_file(tensors, folder / hf.MODEL_FILE)
    (folder / hf.VAE_FILE).write_bytes(b"not a checkpoint at all")
    with pytest.raises(ValueError) as e:
        hf.load(folder, cfg)
    message = str(e.value)
    for part in (
        "ema.safetensors: tensor vae2llm.bias (64,) is missing",
        "unknown tensor something.else",
        "llm2vae.bias is I32",
        "vit_pos_embed.pos_embed has shape (9, 64), expected (64, 64)",
        "ae.safetensors: not a readable safetensors file",
    ):
        assert part in message, part


def test_missing_file_and_wrong_size_are_named(folder):
    cfg = config.from_folder(folder)
    (folder / hf.VAE_FILE).unlink()
    with pytest.raises(ValueError, match="ae.safetensors: the file is missing"):
        hf.load(folder, cfg)
    other = config.from_folder(GOLDENS / "caseB")
    with pytest.raises(ValueError, match=r"has shape .*expected"):
        hf.load(folder, other, want=("model",))
    with pytest.raises(ValueError, match="want may name"):
        hf.load(folder, cfg, want=("models",))


def test_a_refused_save_writes_nothing(tmp_path):
    cfg = config.from_folder(GOLDENS / "caseA")
    params, vae_params = hf.load(GOLDENS / "caseA", cfg)
    out = tmp_path / "out"
    broken = {k: v for k, v in params.items() if k != "embed"}
    with pytest.raises(ValueError, match="missing embed"):
        hf.save(out, cfg, broken, vae_params)
    with pytest.raises(ValueError, match="float64"):
        hf.save(out, cfg, params, vae_params, "float64")
    with pytest.raises(FileNotFoundError, match="vocab.json"):
        hf.save(out, cfg, params, vae_params, tokenizer_files=[tmp_path / "vocab.json"])
    assert not out.exists()
