"""The JSON files of sizes: as transformers writes them, with fields left out, and damaged."""

import dataclasses
import json

import hypothesis_cases
import published_configs as published
import pytest
from hypothesis import strategies as st
from tiny import SHAPES

from srum_jax.models.bagel import model_config
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT, RopeScaling

FILES = model_config.to_json(SHAPES)
WHOLE = {name: json.dumps(values) for name, values in FILES.items()}
LLM_FIELDS = {  # ours -> those of Qwen2Config
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
    "ffn": "intermediate_size",
    "vocab": "vocab_size",
    "rms_eps": "rms_norm_eps",
}
VIT_FIELDS = {  # ours -> those of SiglipVisionConfig
    "hidden": "hidden_size",
    "heads": "num_attention_heads",
    "ffn": "intermediate_size",
    "patch": "patch_size",
    "eps": "layer_norm_eps",
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


@pytest.fixture
def folder(tmp_path):
    for name, values in FILES.items():
        (tmp_path / name).write_text(json.dumps(values))
    return tmp_path


def changed(folder, name, **values):
    """The folder with fields of a file changed; None leaves a field out."""
    made = {k: v for k, v in (FILES[name] | values).items() if v is not None}
    (folder / name).write_text(json.dumps(made))
    return folder


def as_transformers_saves(folder, name, config):
    config.save_pretrained(folder)
    (folder / "config.json").rename(folder / name)


def test_the_files_of_transformers_are_read(folder):
    from transformers import Qwen2Config, SiglipVisionConfig

    llm, vit = BAGEL_7B_MOT.llm, BAGEL_7B_MOT.vit
    sizes = dict(
        hidden_size=llm.hidden,
        num_hidden_layers=llm.layers,
        num_attention_heads=llm.heads,
        num_key_value_heads=llm.kv_heads,
        intermediate_size=llm.ffn,
        vocab_size=llm.vocab,
    )
    plain = Qwen2Config(**sizes, rope_parameters={"rope_type": "default", "rope_theta": 1e6})
    as_transformers_saves(folder, "llm_config.json", plain)
    tower = SiglipVisionConfig(
        hidden_size=vit.hidden,
        num_hidden_layers=vit.layers + 1,
        num_attention_heads=vit.heads,
        intermediate_size=vit.ffn,
        patch_size=vit.patch,
        image_size=vit.patch * vit.positions,
    )
    as_transformers_saves(folder, "vit_config.json", tower)
    found = model_config.from_folder(folder)
    assert (found.llm, found.vit, found.max_text) == (llm, vit, 32768)
    yarn = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0}
    yarn["original_max_position_embeddings"] = 1024
    as_transformers_saves(folder, "llm_config.json", Qwen2Config(**sizes, rope_parameters=yarn))
    stretched = dict(rope_theta=5e5, rope_scaling=RopeScaling("yarn", 4.0, 1024))
    assert model_config.from_folder(folder).llm == dataclasses.replace(llm, **stretched)


@pytest.mark.parametrize(
    "llm", [published.QWEN25_7B, published.QWEN25_7B_V4, published.QWEN25_7B_V5]
)
@pytest.mark.parametrize(
    "vit",
    [
        published.SIGLIP_SO400M,
        published.SIGLIP_SO400M_224,
        published.SIGLIP_SO400M_V4,
        published.SIGLIP_SO400M_V5,
    ],
)
def test_published_files_are_read(folder, llm, vit):
    (folder / "llm_config.json").write_text(json.dumps(llm))
    (folder / "vit_config.json").write_text(json.dumps(vit))
    (folder / "ae_config.json").write_text(json.dumps(published.FLUX_AE))
    found, big = model_config.from_folder(folder), BAGEL_7B_MOT
    assert (found.llm, found.vae, found.max_text) == (big.llm, big.vae, 32768)
    side = vit.get("image_size", 224) // 14
    assert found.vit == dataclasses.replace(big.vit, positions=side)


def test_what_is_left_out_is_what_transformers_takes(folder):
    """Field by field, and all of them together."""
    from transformers import Qwen2Config, SiglipVisionConfig

    def left_out(name, given, kind):
        for field in [*given, ""]:
            kept = {k: v for k, v in given.items() if field and k != field}
            (folder / name).write_text(json.dumps(kept))
            yield field, kind(**kept)

    llm, vit = published.QWEN25_7B, published.SIGLIP_SO400M_V4
    for field, theirs in left_out("llm_config.json", llm, Qwen2Config):
        heads = theirs.num_attention_heads
        if theirs.hidden_size % heads or heads % theirs.num_key_value_heads:
            continue  # transformers refuses that later, we now
        found = model_config.from_folder(folder)
        assert found.llm.rope_theta == theirs.rope_parameters["rope_theta"], field
        assert found.max_text == theirs.max_position_embeddings, field
        for ours, name in LLM_FIELDS.items():
            assert getattr(found.llm, ours) == getattr(theirs, name), field
    for field, theirs in left_out("vit_config.json", vit, SiglipVisionConfig):
        found = model_config.from_folder(folder).vit
        assert found.layers == theirs.num_hidden_layers - 1, field
        assert found.positions == theirs.image_size // theirs.patch_size, field
        for ours, name in VIT_FIELDS.items():
            assert getattr(found, ours) == getattr(theirs, name), field


def test_null_and_new_places_of_fields(folder):
    changed(folder, "llm_config.json", rope_theta=None, rope_parameters={"rope_theta": 7})
    assert model_config.from_folder(folder).llm.rope_theta == 7.0
    (folder / "llm_config.json").write_text(
        json.dumps(FILES["llm_config.json"] | {"num_key_value_heads": None})
    )
    assert model_config.from_folder(folder).llm.kv_heads == SHAPES.llm.heads


def test_every_file_that_cannot_be_read_is_told(folder):
    changed(folder, "llm_config.json", hidden_size="wide")
    changed(folder, "ae_config.json", ch=None)
    (folder / "vit_config.json").unlink()
    with pytest.raises(ValueError) as e:
        model_config.from_folder(folder)
    for part in ("'hidden_size' must be int", "vit_config.json is missing", "'ch' is missing"):
        assert part in str(e.value), str(e.value)


@pytest.mark.parametrize(
    "raw, message",
    [
        ("null", "must hold a JSON object, got None"),
        ("[]", "must hold a JSON object"),
        ("", "an empty file"),
        ("[" * 100_000, "not usable JSON: it nests too deeply"),
        (
            '{"hidden_size": 1, "hidden_size": 2}',
            "not usable JSON .'hidden_size' stands there twice",
        ),
        ('{"hidden_size": ' + "1" * 5000 + "}", "not usable JSON"),
        ('{"hidden_size": 12', "not valid JSON"),
        (json.dumps(FILES["llm_config.json"]).encode("utf-16"), "UTF-16 text; save it as UTF-8"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (POINTER, "a Git LFS pointer.*git lfs pull"),
        ("<!DOCTYPE html><html>404</html>", "an HTML page"),
    ],
)
def test_a_file_that_holds_no_object_is_refused_by_name(folder, raw, message):
    raw = raw.encode() if isinstance(raw, str) else raw
    for name in FILES:
        (folder / name).write_bytes(raw)
        with pytest.raises(ValueError, match=f"{name}: {message}") as e:
            model_config.from_folder(folder)
        assert type(e.value) is ValueError and len(str(e.value)) < 300
        changed(folder, name)


def test_a_byte_order_mark_changes_nothing(folder):
    for path in folder.iterdir():
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert model_config.from_folder(folder) == SHAPES


@pytest.mark.parametrize(
    "file, field, value",
    [
        ("llm_config.json", "num_attention_heads", 0),
        ("llm_config.json", "num_key_value_heads", -1),
        ("llm_config.json", "hidden_size", 10**30),
        ("llm_config.json", "num_hidden_layers", 10**6),
        ("llm_config.json", "num_hidden_layers", True),
        ("llm_config.json", "vocab_size", 1e3),
        ("llm_config.json", "rope_theta", float("nan")),
        ("llm_config.json", "rope_theta", float("inf")),
        ("llm_config.json", "rms_norm_eps", 10**400),
        ("llm_config.json", "rope_scaling", {"type": ["yarn"]}),
        ("llm_config.json", "rope_parameters", {"rope_theta": "x"}),
        ("llm_config.json", "hidden_act", "gelu"),
        ("llm_config.json", "use_sliding_window", True),
        ("llm_config.json", "head_dim", 64),
        ("vit_config.json", "patch_size", 0),
        ("vit_config.json", "image_size", 7),
        ("vit_config.json", "num_hidden_layers", 1),
        ("vit_config.json", "hidden_size", 129),
        ("vit_config.json", "num_channels", 1),
        ("ae_config.json", "ch_mult", []),
        ("ae_config.json", "ch_mult", [1, 0.5]),
        ("ae_config.json", "scale_factor", 0),
        ("bagel_config.json", "special_tokens", {}),
        ("bagel_config.json", "special_tokens", FILES["llm_config.json"]),
        ("bagel_config.json", "latent_patch_size", "x" * 10**5),
    ],
)
def test_an_absurd_field_is_refused_by_file_and_name(folder, file, field, value):
    changed(folder, file, **{field: value})
    with pytest.raises(ValueError, match=f"{file}.*{field}") as e:
        model_config.from_folder(folder)
    assert len(str(e.value)) < 300


PLAIN = hypothesis_cases.plain(0, -1, 1, 2**31, 2**63, 10**400, "yarn", "linear", "default")
KEYS = st.sampled_from(["type", "rope_type", "rope_theta", "factor", "truncate", "beta_fast"])
JSON = PLAIN | st.lists(PLAIN, max_size=3) | st.dictionaries(KEYS, PLAIN, max_size=4)
FIELDS = sorted({(name, field) for name, values in FILES.items() for field in values})
MORE = [("llm_config.json", name) for name in ("rope_scaling", "rope_parameters", "head_dim")]


@hypothesis_cases.counts(quick=600)
def test_any_fields_give_sizes_or_a_refusal(cases, folder):
    def check(changes):
        made = {}
        for (name, field), value in changes.items():
            made.setdefault(name, dict(FILES[name]))[field] = value
        for name, values in made.items():
            hypothesis_cases.write(folder / name, json.dumps(values))
        found = hypothesis_cases.value_or_refusal(
            lambda: model_config.from_folder(folder), names=str(folder)
        )
        for name in made:
            hypothesis_cases.write(folder / name, WHOLE[name])
        if found is not None:
            assert found.llm.head_dim >= 1 and found.token_pixels >= 1 and found.max_text >= 1

    keys = st.sampled_from(FIELDS + MORE * 4)
    hypothesis_cases.run(check, cases, changes=st.dictionaries(keys, JSON, min_size=1, max_size=2))


@hypothesis_cases.counts(quick=600)
def test_any_bytes_give_sizes_or_a_refusal(cases, folder):
    name = "llm_config.json"
    whole = json.dumps(FILES[name]).encode()

    def check(cut, junk, to):
        data = whole[: cut % len(whole)] + junk + whole[to % len(whole) :]
        hypothesis_cases.write(folder / name, data)
        hypothesis_cases.value_or_refusal(lambda: model_config.from_folder(folder), names=name)

    places = st.integers(0, 10**4)
    hypothesis_cases.run(check, cases, cut=places, junk=st.binary(max_size=12), to=places)
