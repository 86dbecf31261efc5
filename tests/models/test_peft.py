"""Adapters in PEFT's format: its names and shapes, there and back, merged at load as by hand."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import test_api
import tiny
from safetensors.numpy import load_file, save_file

from srum_jax import api
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.models import int8, lora
from srum_jax.models.bagel import hf, peft
from srum_jax.models.bagel import model as bagel
from srum_jax.worlds.shapes import examples

LAYERS = 2
CFG = dataclasses.replace(tiny.MODEL, llm=dataclasses.replace(tiny.MODEL.llm, layers=LAYERS))
RANK, ALPHA = 3, 6.0
# PEFT's documentation: "base_model.model." and the module's name, then lora_A [r, in] and lora_B
# [out, r] of a Linear(in, out). Heads of 8, 2 of queries and 1 of keys; width and MLP of 16.
MODULES = {
    "self_attn.q_proj_moe_gen": (16, 16),
    "self_attn.k_proj_moe_gen": (16, 8),
    "self_attn.v_proj_moe_gen": (16, 8),
    "self_attn.o_proj_moe_gen": (16, 16),
    "mlp_moe_gen.gate_proj": (16, 16),
    "mlp_moe_gen.up_proj": (16, 16),
    "mlp_moe_gen.down_proj": (16, 16),
}
LAYER = "language_model.model.layers.{}."


def factors(experts="gen", seed=0):
    rng = np.random.default_rng(seed)
    specs = lora.specs(bagel.specs(CFG), RANK, lora.Projections(experts))
    return jax.tree.map(
        lambda x: rng.normal(0, 0.3, x.shape).astype(np.float32), param_tree.abstract(specs)
    )


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return test_api.write_model(folder, examples.write_tokenizer(folder / "words"), CFG)


@pytest.fixture
def adapter(tmp_path):
    peft.save(tmp_path / "adapter", CFG, factors(), alpha=ALPHA)
    return tmp_path / "adapter"


def test_names_and_shapes_are_those_of_peft(adapter):
    tensors = load_file(adapter / "adapter_model.safetensors")
    want = {}
    for layer in range(LAYERS):
        for module, (inputs, outputs) in MODULES.items():
            name = f"base_model.model.{LAYER.format(layer)}{module}"
            want[f"{name}.lora_A.weight"] = (RANK, inputs)
            want[f"{name}.lora_B.weight"] = (outputs, RANK)
    assert {name: x.shape for name, x in tensors.items()} == want
    told = json.loads((adapter / "adapter_config.json").read_text())
    assert (told["peft_type"], told["r"], told["lora_alpha"]) == ("LORA", RANK, ALPHA)


@pytest.mark.parametrize("experts", ["gen", "all"])
def test_merged_is_the_matrix_with_the_product_added(tmp_path, experts):
    """In the official layout: W + lora_alpha / r · B·A."""
    made = factors(experts)
    peft.save(tmp_path, CFG, made, alpha=ALPHA)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    rng = np.random.default_rng(1)
    specs = param_tree.flatten(param_tree.abstract(bagel.specs(CFG)))
    flat = {path: rng.normal(size=x.shape).astype(np.float32) for path, x in specs.items()}
    merging = peft.Merging(peft.load(tmp_path, CFG))
    merged = {
        p: np.asarray(x) for path, leaf in flat.items() for p, x in merging(path, leaf).items()
    }
    by_tree = param_tree.flatten(lora.merge(param_tree.unflatten(flat), made, ALPHA / RANK))
    changed = set()
    for entry in hf.table(CFG)[hf.MODEL_FILE]:
        leaf, found = flat[entry.path], merged[entry.path]
        np.testing.assert_array_equal(found, by_tree[entry.path])
        if entry.layer is not None:
            leaf, found = leaf[entry.layer], found[entry.layer]
        want = entry.to_official(leaf)
        name = f"base_model.model.{entry.name.removesuffix('.weight')}"
        if f"{name}.lora_A.weight" in tensors:
            a, b = tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"]
            want = want + ALPHA / RANK * b @ a
            changed.add(entry.path)
        np.testing.assert_allclose(entry.to_official(found), want, atol=1e-5)
    assert len(changed) == {"gen": 7, "all": 14}[experts]


@pytest.mark.parametrize("precision", ["float32", pytest.param("int8", marks=pytest.mark.slow)])
def test_a_model_is_loaded_with_its_adapter(model, adapter, precision):
    plain = api.load(model, precision="float32")
    found = api.load(model, adapter=adapter, precision=precision)
    want = lora.merge(plain.params, factors(), ALPHA / RANK)
    if precision == "int8":
        want = int8.quantize(api.load(model, precision="bfloat16").params, bagel.specs(CFG))
        q = found.params["blocks"]["gen"]["q"]["w"]
        assert q.dtype == np.int8 and (q != want["blocks"]["gen"]["q"]["w"]).any()
        np.testing.assert_array_equal(
            found.params["blocks"]["und"]["q"]["w"], want["blocks"]["und"]["q"]["w"]
        )
        return
    jax.tree.map(np.testing.assert_array_equal, found.params, want)


def test_some_layers_may_have_none(adapter):
    path = adapter / "adapter_model.safetensors"
    tensors = {k: x for k, x in load_file(path).items() if "layers.1." in k and "q_proj" in k}
    save_file({k: x.astype(np.float16) for k, x in tensors.items()}, path)
    found = peft.load(adapter, CFG)
    ((name, (a, b)),) = found.factors.items()
    assert name == "blocks/gen/q/w" and not a[0].any() and not b[0].any() and b[1].any()
    assert a.shape == (LAYERS, 16, RANK) and b.shape == (LAYERS, RANK, 2, 8)


def test_rank_stabilised_adapters_count_by_the_root(adapter):
    change(adapter, use_rslora=True)
    assert peft.load(adapter, CFG).scale == pytest.approx(ALPHA / np.sqrt(RANK))


def change(adapter, **values):
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"peft_type": "IA3"}, "peft_type = 'IA3'; LORA is read"),
        ({"use_dora": True}, "use_dora = True is not read"),
        ({"bias": "all"}, "bias = 'all' is not read"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save = ['lm_head'] is not read"),
        ({"alpha_pattern": {"q_proj": 2}}, "alpha_pattern"),
        ({"r": 2}, "has shape (3, 16), expected (2, 16)"),
        ({"r": "3"}, "r must be a whole number"),
        ({"lora_alpha": None}, "lora_alpha must be a number"),
    ],
)
def test_what_is_another_kind_is_refused(adapter, values, message):
    change(adapter, **values)
    with pytest.raises(BadInput) as caught:
        peft.load(adapter, CFG)
    assert message in str(caught.value) and str(adapter) in str(caught.value)


def test_tensors_that_do_not_fit_are_named(adapter, tmp_path):
    path = adapter / "adapter_model.safetensors"
    whole = load_file(path)
    name = f"base_model.model.{LAYER.format(0)}self_attn.q_proj_moe_gen.lora_A.weight"
    for tensors, message in (
        (whole | {"model.x.lora_A.weight": whole[name]}, "unknown tensor 'model.x.lora_A.weight'"),
        ({k: x for k, x in whole.items() if k != name}, f"{name} is missing"),
        ({}, "no tensors"),
        (whole | {name: whole[name] * np.nan}, "NaN or infinite numbers in 1 of its tensors"),
    ):
        save_file(tensors, path)
        with pytest.raises(ValueError) as caught:
            peft.load(adapter, CFG)
        assert message in str(caught.value)
    with pytest.raises(FileNotFoundError, match="adapter_config.json: no such file"):
        peft.load(tmp_path, CFG)


@pytest.mark.slow
def test_peft_itself_reads_and_writes_them(adapter, tmp_path):
    """PEFT's own class on a module with these names; in the extra `bench`, as it needs PyTorch."""
    torch, library = pytest.importorskip("torch"), pytest.importorskip("peft")

    def tree(names):
        root = torch.nn.Module()
        for name, (inputs, outputs) in names.items():
            at = root
            *parts, last = name.split(".")
            for part in parts:
                if not hasattr(at, part):
                    at.add_module(part, torch.nn.Module())
                at = getattr(at, part)
            at.add_module(last, torch.nn.Linear(inputs, outputs, bias=False))
        return root

    names = {LAYER.format(i) + m: sizes for i in range(LAYERS) for m, sizes in MODULES.items()}
    root = tree(names | {"vit_model.layers.0.self_attn.q_proj": (16, 16)})
    before = {n: m.weight.detach().numpy().copy() for n, m in root.named_modules() if n in names}
    adapted = library.PeftModel.from_pretrained(root, str(adapter))
    adapted.save_pretrained(str(tmp_path / "again"))
    ours, theirs = (
        load_file(p / "adapter_model.safetensors") for p in (adapter, tmp_path / "again")
    )
    assert ours.keys() == theirs.keys()
    for name, x in ours.items():
        np.testing.assert_array_equal(x, theirs[name])
    found = peft.load(tmp_path / "again", CFG)
    merged = dict(adapted.merge_and_unload().named_modules())
    for entry, module in peft._adaptable(CFG):
        if module in names:
            a, b = found.factors[entry.path]
            w = entry.to_ours(before[module])[None]
            mine = lora.merged_matrix(w, a[entry.layer][None], b[entry.layer][None], found.scale)
            want = merged[module].weight.detach().numpy()
            np.testing.assert_allclose(entry.to_official(np.asarray(mine[0])), want, atol=1e-5)
