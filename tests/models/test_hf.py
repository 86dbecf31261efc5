"""Loading and saving: round trips, shards straight from the bytes they need, peak memory."""

import json
import os
import pathlib
import re
import shlex
import socket
import subprocess
import sys
import types

import jax
import ml_dtypes
import numpy as np
import peak_memory
import pytest
import samples
from jax.sharding import NamedSharding, PartitionSpec
from safetensors import safe_open
from safetensors.numpy import load_file

import srum_jax
from srum_jax import use_options
from srum_jax.core import param_tree, sharding
from srum_jax.models import safetensors_io, tensor_trees
from srum_jax.models.bagel import hf, hf_folder, model_card, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.stages import loading

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
SHAPES = pathlib.Path(srum_jax.__file__).parent / "worlds/shapes/base"
SPECS = (bagel.specs(samples.CFG), vae.specs(samples.CFG.vae))


@pytest.mark.parametrize("name", ["caseA", "caseB"])
def test_load_then_save_gives_back_the_official_file(name, tmp_path):
    cfg = model_config.from_folder(GOLDENS / name)
    params, vae_params = hf.load(GOLDENS / name, cfg)
    param_tree.check(params, bagel.specs(cfg), where="test")
    param_tree.check(vae_params, vae.specs(cfg.vae), where="test")
    hf.save(tmp_path / "out", cfg, params, vae_params, notes="Made by a test.")
    assert model_config.from_folder(tmp_path / "out") == cfg
    for file in (hf.MODEL_FILE, hf.VAE_FILE):
        want, have = load_file(GOLDENS / name / file), load_file(tmp_path / "out" / file)
        assert set(want) == set(have)
        for tensor in want:
            np.testing.assert_array_equal(
                have[tensor].astype(np.float32), want[tensor].astype(np.float32), tensor
            )
    assert "Made by a test." in (tmp_path / "out" / "README.md").read_text()
    assert not list((tmp_path / "out").glob("*.partial"))


def test_save_takes_device_arrays_and_stores_the_dtype_asked_for(tmp_path):
    cfg = model_config.from_folder(GOLDENS / "caseA")
    params, vae_params = jax.device_put(hf.load(GOLDENS / "caseA", cfg))
    words = tmp_path / "tokenizer.json"
    words.write_text("{}")
    hf.save(tmp_path / "m", cfg, params, vae_params, "float32", tokenizer_files=[words])
    assert (tmp_path / "m" / "tokenizer.json").read_text() == "{}"
    back, none = hf.load(tmp_path / "m", cfg, want=("model",))
    assert none is None
    for path, leaf in param_tree.flatten(back).items():
        np.testing.assert_array_equal(leaf, np.asarray(param_tree.flatten(params)[path]), path)
    half, _ = hf.load(tmp_path / "m", cfg, dtype=ml_dtypes.bfloat16, want=("model",))
    assert half["embed"].dtype == ml_dtypes.bfloat16
    hf.save(tmp_path / "m", cfg, half, vae_params)  # over the old one
    with safe_open(tmp_path / "m" / hf.MODEL_FILE, framework="numpy") as file:
        assert file.get_slice("vae2llm.weight").get_dtype() == "BF16"
        assert file.get_slice("latent_pos_embed.pos_embed").get_dtype() == "F32"


@pytest.fixture(scope="module")
def weights():
    """(model, autoencoder) of the two-layer sample model; no two numbers are equal."""
    rng = np.random.default_rng(0)

    def draw(specs):
        return jax.tree.map(
            lambda s: rng.normal(size=s.shape).astype(np.float32), specs, is_leaf=param_tree.is_spec
        )

    return tuple(draw(specs) for specs in SPECS)


@pytest.fixture(scope="module")
def folder(weights, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "model"
    hf.save(folder, samples.CFG, *weights, "float32")
    return folder


@pytest.fixture
def reads(monkeypatch):
    """[bytes] of every block that is read from a file."""
    seen, rows = [], safetensors_io.rows

    def spy(*args, **kwargs):
        for first, block in rows(*args, **kwargs):
            seen.append(block.nbytes)
            yield first, block

    monkeypatch.setattr(safetensors_io, "rows", spy)
    return seen


def mesh(**sizes):
    return sharding.make_mesh(
        types.SimpleNamespace(**{"data": 1, "fsdp": 1, "tensor": 1, "context": 1} | sizes)
    )


def equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for path, leaf in param_tree.flatten(tree).items():
        np.testing.assert_array_equal(leaf, param_tree.flatten(other)[path], err_msg=path)


@pytest.mark.parametrize("sizes", [{"fsdp": 8}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_shards_are_the_parts_of_the_whole(sizes, folder, weights, monkeypatch):
    monkeypatch.setattr(safetensors_io, "_BLOCK", 200)  # many blocks a tensor
    at = tuple(sharding.shardings(specs, mesh(**sizes)) for specs in SPECS)
    trees = hf.load(folder, samples.CFG, shardings=at)
    for tree, where, want in zip(trees, at, weights, strict=True):
        equal(tree, want)
        assert all(jax.tree.leaves(jax.tree.map(lambda x, s: x.sharding == s, tree, where)))


def test_any_cut_of_any_leaf_is_read_right(folder, weights):
    """Cuts that no table of axes asks for: head dimensions, layers, uneven ends."""
    rng = np.random.default_rng(0)
    for file, tree in zip(hf.table(samples.CFG), weights, strict=True):
        header = safetensors_io.read_header(hf.locate(folder).folder / file, [])
        leaves = {}
        for entry in hf.table(samples.CFG)[file]:
            leaves.setdefault(entry.path, []).append(entry)
        for path, leaf in param_tree.flatten(tree).items():
            starts = [int(rng.integers(n)) for n in leaf.shape]
            ends = [int(rng.integers(a, n)) + 1 for a, n in zip(starts, leaf.shape, strict=True)]
            bounds = tuple(zip(starts, ends, strict=True))
            part = tensor_trees._part(header, leaves[path], bounds, np.dtype(np.float32), set())
            want = leaf[tuple(slice(*b) for b in bounds)]
            np.testing.assert_array_equal(part, want, err_msg=f"{path} {bounds}")


def test_a_replicated_leaf_is_read_once_and_a_cut_one_in_parts(folder, reads):
    everywhere = sharding.replicated(mesh(data=8))
    at = tuple(jax.tree.map(lambda _: everywhere, s, is_leaf=param_tree.is_spec) for s in SPECS)
    hf.load(folder, samples.CFG, shardings=at)
    whole = 4 * sum(param_tree.count(specs) for specs in SPECS)
    assert sum(reads) == whole
    reads.clear()
    # Rows of official tensors: every byte is some device's alone.
    rows = NamedSharding(mesh(tensor=8), PartitionSpec("tensor"))
    at = jax.tree.map(lambda _: everywhere, SPECS[0], is_leaf=param_tree.is_spec) | {"embed": rows}
    params, none = hf.load(folder, samples.CFG, shardings=(at, None), want=("model",))
    assert none is None and params["embed"].sharding == rows
    assert sum(reads) == 4 * param_tree.count(SPECS[0])
    assert 4 * samples.CFG.llm.vocab * samples.CFG.llm.hidden // 8 in reads


def test_leaves_are_converted_as_they_come(folder, weights):
    seen = []

    def convert(path, leaf):
        seen.append(path)
        small = {"embed/half": leaf.astype(ml_dtypes.bfloat16), "embed/size": leaf.size}
        return small if path == "embed" else {path: leaf}

    params, coder = hf.load(folder, samples.CFG, convert=convert)
    assert seen == list(param_tree.flatten(SPECS[0]))
    assert params["embed"]["half"].dtype == ml_dtypes.bfloat16
    assert params["embed"]["size"] == weights[0]["embed"].size
    equal(coder, weights[1])
    equal(params["blocks"], weights[0]["blocks"])


def test_an_error_while_reading_ends_the_load(folder, monkeypatch):
    def fails(*args, **kwargs):
        raise ValueError("ended while it was read")

    monkeypatch.setattr(safetensors_io, "rows", fails)
    with pytest.raises(ValueError, match="ended while it was read"):
        hf.load(folder, samples.CFG)


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("layout", ["official", "sharded"])
def test_export_import_export_gives_the_same_bytes(layout, dtype, folder, weights, tmp_path):
    """From host arrays and back from sharded ones, with the files that go along."""
    beside = ("vocab.json", "merges.txt", "generation_config.json")
    (tmp_path / "from").mkdir()
    for name, content in model_config.to_json(samples.CFG).items():
        (tmp_path / "from" / name).write_text(json.dumps(content | {"of": "another exporter"}))
    for name in (*beside, hf.MODEL_FILE, hf.VAE_FILE):
        (tmp_path / "from" / name).write_text(f"{name}, to the byte")
    first, second = tmp_path / "first", tmp_path / "second"
    how = {"layout": layout, "notes": "Made by a test.", "limit": 20_000}
    source = hf.locate(tmp_path / "from")
    hf.save(first, samples.CFG, *weights, dtype, source=source, **how)
    at = tuple(sharding.shardings(specs, mesh(fsdp=4, tensor=2)) for specs in SPECS)
    trees = hf.load(first, samples.CFG, dtype=np.dtype(dtype), shardings=at)
    hf.save(second, samples.CFG, *trees, dtype, source=hf.locate(first), **how)
    names = sorted(p.name for p in first.iterdir())
    assert names == sorted(p.name for p in second.iterdir())
    for name in names:
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    for name in (*beside, *model_config.to_json(samples.CFG)):
        assert (first / name).read_bytes() == (tmp_path / "from" / name).read_bytes(), name
    files = [p for p in first.glob("model-*.safetensors")]
    if layout == "official":
        assert not files and hf.MODEL_FILE in names
    else:
        index = json.loads((first / hf_folder.INDEX_FILE).read_text())
        parts = {p.name: load_file(p) for p in files}
        assert len(parts) > 3 and hf.MODEL_FILE not in names
        assert set(parts) == set(index["weight_map"].values())
        assert sorted(parts)[0] == f"model-00001-of-{len(parts):05d}.safetensors"
        tensors = [x for part in parts.values() for x in part.values()]
        assert index["metadata"]["total_size"] == sum(x.nbytes for x in tensors)
        assert all(p.stat().st_size <= 20_000 or len(parts[p.name]) == 1 for p in files)


def test_settings_of_an_older_version_are_exported_under_their_new_name(weights, tmp_path):
    (tmp_path / "from").mkdir()
    for name, content in model_config.to_json(samples.CFG).items():
        (tmp_path / "from" / name).write_text(json.dumps(content))
    for name in ("vocab.json", "merges.txt", hf.MODEL_FILE, hf.VAE_FILE):
        (tmp_path / "from" / name).write_text("")
    (tmp_path / "from" / "usage.json").write_text('{"window": 99}')
    for others in ({}, {"top_k": 20}, {"top_k": 20, "srum_jax": {"window": 7}}):
        if others:
            (tmp_path / "from" / "generation_config.json").write_text(json.dumps(others))
        made = tmp_path / str(len(others))
        hf.save(made, samples.CFG, *weights, "float32", source=hf.locate(tmp_path / "from"))
        found = json.loads((made / "generation_config.json").read_text())
        assert found == {"srum_jax": {"window": 99}} | others
        assert not (made / "usage.json").exists()


def test_layouts_do_not_mix(folder, weights, tmp_path):
    out = tmp_path / "out"
    hf.save(out, samples.CFG, *weights, layout="sharded", limit=20_000)
    many = len(list(out.glob("model-*.safetensors")))
    hf.save(out, samples.CFG, *weights, layout="sharded", limit=50_000)  # over the old files
    assert len(list(out.glob("model-*.safetensors"))) > many
    half = hf.load(out, samples.CFG, dtype=ml_dtypes.bfloat16)
    equal(half[0], jax.tree.map(lambda x: x.astype(ml_dtypes.bfloat16), weights[0]))
    with pytest.raises(ValueError, match="index.json: a model in another layout"):
        hf.save(out, samples.CFG, *weights)
    with pytest.raises(ValueError, match="layout 'one' is not one of"):
        hf.save(out, samples.CFG, *weights, layout="one")


def test_the_card_says_how_to_load_it(weights, tmp_path):
    how = {"vae_file": hf.VAE_FILE, "dtype": "bfloat16", "notes": "n"}
    big = model_card.text(model_config.BAGEL_7B_MOT, model_file=hf.MODEL_FILE, **how)
    small = model_card.text(samples.CFG, model_file=hf.MODEL_FILE, **how)
    for card in (big, small):
        assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: srum_jax\n")
        assert "api.load" in card and "\n\n\n" not in card
        (line,) = re.findall("`(srum generate .*)`", card)
        asked = use_options.parser("srum").parse_args(shlex.split(line)[1:])
        loading.prompt_reader(hf.locate(SHAPES)).check(asked.prompt)  # whose words are few
    assert "base_model: ByteDance-Seed/BAGEL-7B-MoT" in big and "14,607," not in small
    assert "base_model" not in small and "cannot load it" in small


def within(measured, share):
    """Whether what loading needs beside the arrays is two shards of a leaf and `share` bytes."""
    return measured["load"] - measured["arrays"] <= 2 * measured["shard"] + share


@pytest.mark.slow
def test_loading_needs_no_second_copy(tmp_path):
    found = peak_memory.measure(tmp_path / "m", layers=4, hidden=512)
    assert found["arrays"] > 90e6
    assert within(found, 32e6), found


@pytest.mark.slow
def test_loading_4_gb_needs_no_second_copy(tmp_path):
    found = peak_memory.measure(tmp_path / "m", layers=16, hidden=2048, saves=True)
    assert found["arrays"] > 4e9
    assert within(found, 3e8), found
    assert found["save"] < found["arrays"] / 8, found


@pytest.mark.slow
def test_two_processes_load_their_shards_and_save_the_same_bytes(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    program = pathlib.Path(__file__).parents[1] / "two_processes.py"
    command = [sys.executable, program, address]
    started = [
        subprocess.Popen(
            [*command, str(i), folder, tmp_path / "out"],
            env=os.environ | {"PYTHONPATH": str(program.parents[1])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(2)
    ]
    whole = (folder / hf.MODEL_FILE).stat().st_size + (folder / hf.VAE_FILE).stat().st_size
    for process in started:
        out, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert int(out.split()[-1]) < whole
    for path in folder.iterdir():
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_refused_save_writes_nothing(tmp_path):
    cfg = model_config.from_folder(GOLDENS / "caseA")
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
