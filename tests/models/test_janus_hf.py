"""Janus's weights: both layouts read and written, and what is refused."""

import dataclasses
import json
import math
import pathlib
import zipfile

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file
from torch_writer import Call, Global, torch_save

from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.models import torch_file
from srum_jax.models.janus import hf, model, model_config, original, vq

GOLDENS = pathlib.Path(__file__).parents[1] / "goldens"
FOLDER = GOLDENS / "janusA"
CFG = model_config.from_folder(FOLDER)
RELEASED = json.loads((GOLDENS / "janus_tensors.json").read_text())
COUNTS = {"Janus-Pro-1B": 2_076_636_811, "Janus-Pro-7B": 7_407_773_323}


@pytest.fixture(scope="module")
def weights():
    return hf.load(FOLDER, CFG)


def equal(tree, other):
    mine, theirs = param_tree.flatten(tree), param_tree.flatten(other)
    assert mine.keys() == theirs.keys()
    for path, leaf in mine.items():
        np.testing.assert_array_equal(leaf, theirs[path], err_msg=path)


@pytest.mark.parametrize("name", RELEASED)
def test_names_and_shapes_are_those_of_the_released_models(name):
    """A bijection, of specs alone."""
    cfg = model_config.PRESETS[name.lower().replace("-", "_")]
    entries = [e for part in hf.table(cfg).values() for e in part]
    assert {e.name: list(e.shape) for e in entries} == RELEASED[name]
    assert len(entries) == len(RELEASED[name])
    assert sum(math.prod(e.shape) for e in entries) == COUNTS[name]
    leaves = [param_tree.flatten(s) for s in (model.specs(cfg), vq.specs(cfg.vq))]
    assert sum(param_tree.count(tree) for tree in leaves) == COUNTS[name]


@pytest.mark.parametrize("name", RELEASED)
def test_sizes_survive_the_config_that_is_written(name, tmp_path):
    cfg = model_config.PRESETS[name.lower().replace("-", "_")]
    (tmp_path / "config.json").write_text(json.dumps(model_config.to_json(cfg)))
    again = model_config.from_folder(tmp_path)
    assert again == dataclasses.replace(cfg, start_of_image=0)


ORIGINAL_7B = {  # the fields of the released file that say anything
    "model_type": "multi_modality",
    "language_config": {
        "max_position_embeddings": 16384,
        "model_type": "llama",
        "num_hidden_layers": 30,
        "vocab_size": 102400,
    },
    "aligner_config": {
        "cls": "MlpProjector",
        "params": {"depth": 2, "input_dim": 1024, "n_embed": 4096, "projector_type": "mlp_gelu"},
    },
    "gen_vision_config": {"cls": "VQ-16", "params": {"image_token_size": 16384, "n_embed": 8}},
    "gen_head_config": {
        "cls": "vision_head",
        "params": {"image_token_embed": 4096, "image_token_size": 16384, "n_embed": 4096},
    },
}


def test_what_the_original_config_leaves_out_is_supplied(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(ORIGINAL_7B))
    cfg = model_config.from_folder(tmp_path)
    assert cfg.image_token == 0  # which 1B and 7B have different ones of: the tokenizer tells it
    want = dataclasses.replace(model_config.JANUS_PRO_7B, bos=0, eos=0, pad=0, start_of_image=0)
    assert dataclasses.replace(cfg, image_token=want.image_token) == want


@pytest.mark.parametrize(
    ("where", "value", "told"),
    [
        (("model_type",), "llava", "model_type"),
        (("text_config", "hidden_size"), 0, "text_config.hidden_size"),
        (("text_config", "rope_parameters"), {"rope_type": "yarn"}, "rope_type"),
        (("text_config",), 3, "text_config"),
        (("vision_config", "use_qk_norm"), True, "vision_config.use_qk_norm"),
        (("vision_config", "num_image_tokens"), 15, "num_image_tokens"),
        (("vision_config", "projection_dim"), 32, "projection_dim"),
        (("vq_config", "channel_multiplier"), [], "channel_multiplier"),
        (("text_config", "num_key_value_heads"), 3, "kv heads"),
    ],
)
def test_a_config_that_is_none_is_named(where, value, told, tmp_path):
    whole = json.loads((FOLDER / "config.json").read_text())
    at = whole
    for name in where[:-1]:
        at = at[name]
    at[where[-1]] = value
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(BadInput, match=told) as e:
        model_config.from_folder(tmp_path)
    assert str(tmp_path / "config.json") in str(e.value)


@pytest.mark.parametrize("limit", [10**9, 200_000])
def test_an_export_is_the_file_it_came_from(limit, weights, tmp_path):
    hf.save(tmp_path, CFG, *weights, source=FOLDER, limit=limit)
    want = load_file(FOLDER / "model.safetensors")
    found = {}
    for file in tmp_path.glob("*.safetensors"):
        found |= load_file(file)
    assert found.keys() == want.keys()
    assert all((found[n].view(np.uint16) == want[n].view(np.uint16)).all() for n in want)
    for tree, other in zip(
        hf.load(tmp_path, model_config.from_folder(tmp_path)), weights, strict=True
    ):
        equal(tree, other)


def test_names_of_older_versions_are_read(weights, tmp_path):
    """Without what stands before all of them, and without a head: then the embedding is it."""
    from safetensors.numpy import save_file

    tensors = load_file(FOLDER / "model.safetensors")
    del tensors["lm_head.weight"]
    save_file(
        {n.removeprefix("model."): x for n, x in tensors.items()}, tmp_path / "model.safetensors"
    )
    params, _ = hf.load(tmp_path, CFG)
    np.testing.assert_array_equal(params["lm_head"]["w"], weights[0]["embed"].T)
    equal(params["blocks"], weights[0]["blocks"])


# --------------------------------------------------------------------- the original's own files


@pytest.fixture(scope="module")
def original_tensors(weights):
    """The golden weights under the original's names, and what the original has besides."""
    entries = original.ordered([e for part in hf.table(CFG).values() for e in part])
    stored = load_file(FOLDER / "model.safetensors")
    kinds = original.kinds(entries, "BF16")
    values = original.fused(entries, (stored[e.name] for e in entries))
    found = {n: x for (n, shape, _), x in zip(kinds, values, strict=True) if x.shape == shape}
    assert len(found) == len(kinds)
    half = np.ones((3, 2), ml_dtypes.bfloat16)
    return found | {
        original.POOLING + "latent": half,
        "gen_vision_model.quantize.codebook_used": half,
    }


def test_original_names_are_the_known_ones(original_tensors):
    assert original_tensors["vision_model.vision_tower.blocks.1.attn.qkv.weight"].shape == (96, 32)
    assert original_tensors["vision_model.vision_tower.pos_embed"].shape == (1, 16, 32)
    for name in (
        "language_model.model.layers.0.self_attn.q_proj.weight",
        "language_model.lm_head.weight",
        "aligner.layers.2.bias",
        "gen_aligner.layers.0.weight",
        "gen_embed.weight",
        "gen_head.output_mlp_projector.weight",
        "gen_vision_model.encoder.conv_blocks.2.attn.0.q.weight",
        "gen_vision_model.encoder.conv_blocks.0.downsample.conv.bias",
        "gen_vision_model.decoder.conv_blocks.0.res.1.conv1.weight",
        "gen_vision_model.decoder.mid.1.proj_out.weight",
        "gen_vision_model.quant_conv.weight",
        "vision_model.vision_tower.blocks.0.norm2.bias",
        "vision_model.vision_tower.norm.weight",
    ):
        assert name in original_tensors


@pytest.mark.parametrize("parts", [1, 2])
def test_the_original_layout_is_read_without_torch(parts, original_tensors, weights, tmp_path):
    names = list(original_tensors)
    if parts == 1:
        torch_save(tmp_path / "pytorch_model.bin", original_tensors)
    else:
        places = {}
        for i in range(parts):
            file = f"pytorch_model-0000{i + 1}-of-00002.bin"
            mine = {n: original_tensors[n] for n in names[i::parts]}
            torch_save(tmp_path / file, mine)
            places |= dict.fromkeys(mine, file)
        index = tmp_path / "pytorch_model.bin.index.json"
        index.write_text(json.dumps({"weight_map": places}))
    for tree, want in zip(hf.load(tmp_path, CFG), weights, strict=True):
        equal(tree, want)


def test_the_original_layout_is_written_with_what_only_its_source_has(
    original_tensors, weights, tmp_path
):
    with pytest.raises(ValueError, match="attn_pool"):
        hf.save(tmp_path / "out", CFG, *weights, layout="multi_modality")
    assert not (tmp_path / "out").exists()
    torch_save(tmp_path / "pytorch_model.bin", original_tensors)
    hf.save(tmp_path / "out", CFG, *weights, layout="multi_modality", source=tmp_path)
    found = load_file(tmp_path / "out/model.safetensors")
    assert found.keys() == original_tensors.keys() - {"gen_vision_model.quantize.codebook_used"}
    for name, array in found.items():
        np.testing.assert_array_equal(array, original_tensors[name], err_msg=name)
    for tree, want in zip(hf.load(tmp_path / "out", CFG), weights, strict=True):
        equal(tree, want)


RAN = []


def ran(*arguments):
    RAN.append(arguments)


@pytest.mark.parametrize(
    ("more", "told"),
    [
        ({"x": Call(Global("os", "system"), ("true",))}, "os.system"),
        ({"x": Call(Global("builtins", "eval"), ("1",))}, "builtins.eval"),
        ({"x": Call(Global("test_janus_hf", "ran"), (1,))}, "test_janus_hf.ran"),
        ({"x": Call(Global("torch", "load"), ("y",))}, "torch.load"),
        ({"x": 3}, "no tensor"),
    ],
)
def test_a_file_that_asks_for_more_than_tensors_is_refused(more, told, tmp_path):
    file = tmp_path / "pytorch_model.bin"
    torch_save(file, {"a": np.ones((2, 3), ml_dtypes.bfloat16)}, more=more)
    with pytest.raises(ValueError, match=told) as e:
        hf.load(tmp_path, CFG)
    assert str(file) in str(e.value) and not RAN


def test_files_that_are_none_are_told(tmp_path):
    good = np.arange(6, dtype=np.float32).astype(ml_dtypes.bfloat16).reshape(2, 3)

    def problems(path):
        found = []
        torch_file.read_header(path, found)
        return "\n".join(found)

    torch_save(tmp_path / "deflated", {"a": good}, compression=zipfile.ZIP_DEFLATED)
    assert "compressed" in problems(tmp_path / "deflated")
    torch_save(tmp_path / "turned", {"a": good.T})
    assert "strides" in problems(tmp_path / "turned")
    torch_save(tmp_path / "whole", {"a": good})
    assert problems(tmp_path / "whole") == ""
    data = (tmp_path / "whole").read_bytes()
    (tmp_path / "short").write_bytes(data[: len(data) // 2])
    assert "short" in problems(tmp_path / "short")
    rng = np.random.default_rng(0)
    for i in range(40):  # no damage ends in anything but a line about it
        torn = bytearray(data)
        for at in rng.integers(len(torn), size=6):
            torn[at] = rng.integers(256)
        path = tmp_path / f"torn{i}"
        path.write_bytes(bytes(torn))
        problems(path)
