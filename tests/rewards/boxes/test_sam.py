"""Segment Anything: sizes from the JSON, strict loading, and what the golden case cannot show."""

import dataclasses
import json
import pathlib
import re
import shutil
import types

import hypothesis_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from srum_jax.core import param_tree, sharding
from srum_jax.rewards.boxes.sam import model as sam_model
from srum_jax.rewards.boxes.sam import sizes as sam_sizes
from srum_jax.rewards.boxes.sam import vision as sam_vision
from srum_jax.rewards.boxes.sam import weights as sam_weights
from srum_jax.rewards.boxes.sam.sizes import DecoderConfig, PromptConfig, SamSizes, VisionConfig

GOLDEN = pathlib.Path(__file__).parents[2] / "goldens" / "samA"
VISION = VisionConfig(
    hidden=16, layers=2, heads=2, ffn=24, image=24, patch=4, out=8, window=2, frequencies=4
)
CFG = SamSizes(
    dataclasses.replace(VISION, global_layers=(1,)),
    PromptConfig(hidden=8, image=24, grid=6, mask_channels=4),
    DecoderConfig(hidden=8, layers=1, heads=2, ffn=12, iou_hidden=6),
)
IMAGE = "shared_image_embedding.positional_embedding"
PROMPT = "prompt_encoder.shared_embedding.positional_embedding"


@pytest.fixture(scope="module")
def params():
    rng = np.random.default_rng(0)
    draw = lambda spec: rng.normal(0.0, 0.3, spec.shape).astype(np.float32)  # noqa: E731
    return jax.tree.map(draw, sam_model.specs(CFG), is_leaf=param_tree.is_spec)


def _folder(tmp_path, content):
    hypothesis_cases.write(tmp_path / "config.json", json.dumps(content))
    return tmp_path


@pytest.mark.parametrize(
    "vision, count",  # of transformers' SamModel of these sizes
    [
        ({}, 93_735_728),
        (
            {
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "global_attn_indexes": [5, 11, 17, 23],
                "mlp_dim": 4096,
            },
            312_343_088,
        ),
        (
            {
                "hidden_size": 1280,
                "num_hidden_layers": 32,
                "num_attention_heads": 16,
                "global_attn_indexes": [7, 15, 23, 31],
                "mlp_dim": None,
                "mlp_ratio": 4,
                "an_unknown_key": [],
            },
            641_090_864,
        ),
    ],
    ids=["ViT-B", "ViT-L", "ViT-H"],
)
def test_released_sizes_come_from_what_their_files_say(tmp_path, vision, count):
    cfg = sam_sizes.read(_folder(tmp_path, {"model_type": "sam", "vision_config": vision}))
    second = 2 * cfg.vision.frequencies  # the matrix that a checkpoint has under two names
    assert param_tree.count(sam_model.specs(cfg)) - second == count
    assert cfg.vision.runs == ((14, cfg.vision.layers // 4 - 1), (0, 1)) * 4
    if not vision:
        assert cfg == SamSizes()
    names = [e.name for e in sam_weights.table(cfg)]
    assert len(set(names)) == len(names)
    assert f"vision_encoder.layers.{cfg.vision.layers - 1}.attn.rel_pos_w" in names


@pytest.mark.parametrize(
    "content, message",
    [
        ({"model_type": "sam2"}, "model_type is 'sam2'"),
        ([], "model_type is None"),
        ({"vision_config": 3}, "vision_config must be an object"),
        ({"vision_config": {"image_size": [64, 64]}}, r"vision_config\.image_size must be int"),
        ({"vision_config": {"use_rel_pos": 1}}, "use_rel_pos must be bool"),
        ({"vision_config": {"global_attn_indexes": ["1"]}}, "must be a list of int"),
        ({"vision_config": {"num_attention_heads": 7}}, "not a multiple of 7 heads"),
        ({"vision_config": {"num_hidden_layers": 0}}, "num_hidden_layers cannot be 0"),
        ({"vision_config": {"hidden_act": "mish"}}, "hidden_act 'mish' is none of"),
        ({"vision_config": {"image_size": 512}}, "image_embedding_size 64 is not"),
        ({"vision_config": {"hidden_size": 10**4000}}, "hidden_size cannot be 1000"),
        ({"vision_config": {"mlp_ratio": float("inf")}}, "mlp_ratio cannot be inf"),
        ({"vision_config": {"layer_norm_eps": float("nan")}}, "layer_norm_eps cannot be nan"),
        ({"vision_config": {"patch_size": 0}}, "patch_size cannot be 0"),
        ({"prompt_encoder_config": {"hidden_size": 128}}, "must be equal"),
        ({"prompt_encoder_config": {"num_point_embeddings": 2}}, "points and boxes need 4"),
        ({"mask_decoder_config": {"attention_downsample_rate": 64}}, "multiple of 8 heads"),
    ],
)
def test_a_bad_file_of_sizes_names_file_and_field(tmp_path, content, message):
    if isinstance(content, dict):
        content = {"model_type": "sam", **content}
    with pytest.raises(ValueError, match=message) as e:
        sam_sizes.read(_folder(tmp_path, content))
    assert "config.json" in str(e.value)


PLAIN = hypothesis_cases.plain(0, -1, 1, 4, 256, 2**31, -(2**63), 10**4000, "relu", "k" * 5000)
JSON = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(st.text(max_size=3), PLAIN, max_size=2)
SECTIONS = [f"{name}_config" for name in ("vision", "prompt_encoder", "mask_decoder")]
FIELDS = sorted(
    set(re.findall(r'[vpd]\("(\w+)"', pathlib.Path(sam_sizes.__file__).read_text()))
)  # every one that is read


@hypothesis_cases.counts(quick=600)
def test_any_fields_give_sizes_or_a_refusal(cases, tmp_path):
    assert {"hidden_size", "mlp_ratio", "image_embedding_size", "iou_head_depth"} < set(FIELDS)

    def check(changes, whole):
        content = {"model_type": "sam"}
        for (section, field), value in changes.items():
            content.setdefault(section, {})[field] = value
        folder = _folder(tmp_path, content | whole)
        found = hypothesis_cases.value_or_refusal(
            lambda: sam_sizes.read(folder), names="config.json"
        )
        if found is not None:
            assert found.vision.ffn >= 1 and found.vision.grid >= 1
            assert all(0 <= part.eps <= 1 for part in (found.vision, found.prompt, found.decoder))

    keys = st.tuples(st.sampled_from(SECTIONS), st.sampled_from(FIELDS))
    whole = st.just({}) | st.dictionaries(st.sampled_from([*SECTIONS, "model_type"]), JSON)
    changes = st.dictionaries(keys, JSON, max_size=2)
    hypothesis_cases.run(check, cases, changes=changes, whole=whole)


def test_load_gives_the_files_numbers_in_our_layout():
    cfg, params = sam_weights.load(GOLDEN)
    param_tree.check(params, sam_model.specs(cfg), where="test")
    official = load_file(GOLDEN / "model.safetensors")
    leaves = param_tree.flatten(params)
    seen = set()
    for entry in sam_weights.table(cfg):
        leaf = leaves[entry.path]
        assert leaf.dtype == np.float32
        ours = entry.to_official(leaf if entry.layer is None else leaf[entry.layer])
        np.testing.assert_array_equal(ours, official[entry.name].astype(np.float32), entry.name)
        seen.add(entry.name)
    assert seen == official.keys()


def _changed(tmp_path, change):
    tensors = load_file(GOLDEN / "model.safetensors")
    change(tensors)
    save_file(tensors, tmp_path / "model.safetensors")
    shutil.copy(GOLDEN / "config.json", tmp_path)
    return tmp_path


@pytest.mark.parametrize("name, other", [(IMAGE, PROMPT), (PROMPT, IMAGE)])
def test_the_matrix_of_places_may_have_either_name_or_both(tmp_path, name, other):
    _, want = sam_weights.load(GOLDEN)
    cfg, have = sam_weights.load(_changed(tmp_path, lambda t: t.pop(name)))
    jax.tree.map(np.testing.assert_array_equal, have, want)
    _, untied = sam_weights.load(_changed(tmp_path, lambda t: t.update({name: t[name] * 2})))
    which = {IMAGE: "image", PROMPT: "prompt"}
    np.testing.assert_array_equal(
        untied["fourier"][which[name]], 2 * untied["fourier"][which[other]]
    )


def test_load_names_every_tensor_that_does_not_fit(tmp_path):
    def change(tensors):
        del tensors["mask_decoder.iou_token.weight"]
        tensors["vision_encoder.pos_embed"] = tensors["vision_encoder.pos_embed"][:, :4]
        tensors["vision_encoder.layers.3.attn.qkv.bias"] = np.zeros(96, np.float32)
        tensors["mask_decoder.mask_tokens.weight"] = np.zeros((4, 32), np.int32)
        del tensors[IMAGE], tensors[PROMPT]

    with pytest.raises(ValueError) as e:
        sam_weights.load(_changed(tmp_path, change))
    for part in (
        "model.safetensors",
        "tensor mask_decoder.iou_token.weight (1, 32) is missing",
        "vision_encoder.pos_embed has shape (1, 4, 8, 32), expected (1, 8, 8, 32)",
        "unknown tensor vision_encoder.layers.3.attn.qkv.bias",
        "mask_decoder.mask_tokens.weight is I32",
        f"tensor {IMAGE} (2, 16) is missing",
        f"tensor {PROMPT} (2, 16) is missing",
    ):
        assert part in str(e.value), part


def test_load_names_a_file_that_is_missing_or_cut_short(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        sam_weights.load(tmp_path)
    shutil.copy(GOLDEN / "config.json", tmp_path)
    with pytest.raises(FileNotFoundError, match="model.safetensors"):
        sam_weights.load(tmp_path)
    data = (GOLDEN / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(data[:-100])
    with pytest.raises(ValueError, match=r"model\.safetensors: cut short"):
        sam_weights.load(tmp_path)


def test_every_axis_is_in_the_table_of_shardings():
    sizes = types.SimpleNamespace(data=1, fsdp=2, tensor=2, context=-1)
    assert sharding.shardings(sam_model.specs(CFG), sharding.make_mesh(sizes))


def test_windows_see_only_themselves_and_global_layers_everything(params):
    """Windows of 4 patches on a grid of 6: the second row and column of windows are padded."""
    pixels = np.random.default_rng(0).normal(size=(2, 24, 24, 3)).astype(np.float32)
    pixels[1] = pixels[0]
    pixels[1, 1, 1] += 1.0  # patch (0, 0)
    cfg = dataclasses.replace(CFG.vision, window=4)
    tables = dict.fromkeys(("rows", "columns"), np.ones((1, 2 * 4 - 1, 8), np.float32))
    blocks = params["vision"]["blocks"]
    p = {**params["vision"], "blocks": {**blocks, "0": {**blocks["0"], **tables}}}
    _, hidden = jax.jit(sam_vision.layers, static_argnums=1)(p, cfg, pixels)
    moved = np.abs(hidden[:, 1] - hidden[:, 0]).max(axis=-1) > 0  # [3, 6, 6]
    assert moved[0].sum() == 1
    assert moved[1, :4, :4].all() and moved[1].sum() == 16
    assert moved[2].all()


def test_attention_in_parts_equals_attention_at_once(params, monkeypatch):
    p = jax.tree.map(lambda leaf: leaf[0], params["vision"]["blocks"]["1"])
    x = jax.random.normal(jax.random.key(2), (2, 6, 6, 16))
    whole = jax.jit(lambda x, p: sam_vision._attention(x, p))(x, p)
    monkeypatch.setattr(sam_vision, "_SCORES", 2 * 2 * 6 * 36 * 2)  # two rows of queries

    def again(x, p):  # a function of its own: jit would take the trace of the one above
        return sam_vision._attention(x, p)

    assert "length=3" in str(jax.make_jaxpr(again)(x, p))
    np.testing.assert_allclose(jax.jit(again)(x, p), whole, atol=1e-5)


def test_pixels_of_another_shape_are_refused(params):
    with pytest.raises(ValueError, match=r"\[1, 16, 24, 3\]; this model reads \[N, 24, 24, 3\]"):
        sam_model.encode(params, CFG, jnp.zeros((1, 16, 24, 3)))


def test_ignored_points_are_zeros_and_labels_default_to_foreground(params):
    points = jnp.array([[[[3.0, 5.0], [9.0, 1.0]]]])
    tokens = sam_model.prompt_tokens(
        params, CFG, points=points, labels=jnp.array([[[sam_model.FOREGROUND, sam_model.IGNORED]]])
    )
    assert tokens.shape == (1, 1, 3, 8)
    assert not tokens[0, 0, 1].any()
    np.testing.assert_array_equal(tokens[0, 0, 2], params["prompt"]["no_point"][0])
    default = sam_model.prompt_tokens(params, CFG, points=points)
    np.testing.assert_array_equal(default[0, 0, 0], tokens[0, 0, 0])
    with_box = sam_model.prompt_tokens(params, CFG, points=points, boxes=jnp.ones((1, 1, 4)))
    assert with_box.shape == (1, 1, 4, 8)  # no token in the place of a box


def test_each_prompt_may_have_its_own_mask(params):
    key = jax.random.key(3)
    embeddings = jax.random.normal(key, (1, 6, 6, 8))
    points = jnp.array([[[[3.0, 5.0]], [[20.0, 11.0]]]])
    masks = jax.random.normal(key, (1, 2, 24, 24))

    @jax.jit
    def run(points, masks):
        tokens = sam_model.prompt_tokens(params, CFG, points=points)
        return sam_model.decode(
            params, CFG, embeddings, tokens, sam_model.prompt_masks(params, CFG, masks)
        )

    logits, iou = run(points, masks)
    assert logits.shape == (1, 2, 3, 24, 24) and iou.shape == (1, 2, 3)
    for i in range(2):
        one = run(points[:, i : i + 1], masks[:, i : i + 1])
        np.testing.assert_allclose(one[0][:, 0], logits[:, i], atol=1e-5)
        np.testing.assert_allclose(one[1][:, 0], iou[:, i], atol=1e-5)


def test_without_prompts_masks_alone_speak(params):
    embeddings = jnp.ones((2, 6, 6, 8))

    @jax.jit
    def run(masks):
        tokens, dense = (
            sam_model.prompt_tokens(params, CFG),
            sam_model.prompt_masks(params, CFG, masks),
        )
        return sam_model.decode(params, CFG, embeddings, tokens, dense, multimask=False)

    logits, iou = run(jnp.ones((2, 1, 24, 24)))
    assert logits.shape == (2, 1, 1, 24, 24) and iou.shape == (2, 1, 1)
