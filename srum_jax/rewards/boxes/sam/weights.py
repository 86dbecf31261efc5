"""Weights of Segment Anything from a Hugging Face folder: `config.json` and `model.safetensors`.

Owns the table of names (those of transformers' `SamModel.state_dict()`) and the strict reading:
every tensor of the model must be there in its shape, and no other.
"""

import numpy as np
from etils import epath

from srum_jax.core import param_tree
from srum_jax.core.errors import listed
from srum_jax.models import safetensors_io
from srum_jax.models.name_table import TableEntry, entries, misfits, without_prefix
from srum_jax.rewards.boxes.sam import model as sam_model
from srum_jax.rewards.boxes.sam import sizes as sam_sizes
from srum_jax.rewards.boxes.sam.sizes import SamSizes

WEIGHTS_FILE = "model.safetensors"
# One matrix under two names: files have both, or one of them for both.
_IMAGE = "shared_image_embedding.positional_embedding"
_PROMPT = "prompt_encoder.shared_embedding.positional_embedding"
_TIED = {_IMAGE: _PROMPT, _PROMPT: _IMAGE}

_LINEAR = "o i -> i o"
_KERNEL = "o i h w -> h w i o"
_UP = "i o h w -> i h w o"

Rules = dict[str, tuple[str, str]]  # our path -> (official name, {} for the layer; pattern)


def _rule(ours: str, official: str, weight: str = "o -> o", bias: str = "o -> o") -> Rules:
    """Rules of a linear map, a convolution or a norm, whichever leaves it has."""
    return {
        f"{ours}/w": (f"{official}.weight", weight),
        f"{ours}/b": (f"{official}.bias", bias),
        f"{ours}/scale": (f"{official}.weight", weight),
        f"{ours}/bias": (f"{official}.bias", bias),
    }


def _vision_rules(cfg: SamSizes) -> Rules:
    theirs = "vision_encoder"
    rules = {"vision/positions": (f"{theirs}.pos_embed", "n h w d -> n h w d")}
    rules |= _rule("vision/patch", f"{theirs}.patch_embed.projection", _KERNEL)
    for i in (1, 2):
        rules |= _rule(f"vision/neck/conv{i}", f"{theirs}.neck.conv{i}", _KERNEL)
        rules |= _rule(f"vision/neck/ln{i}", f"{theirs}.neck.layer_norm{i}")
    for run in range(len(cfg.vision.runs)):
        block, layer = f"vision/blocks/{run}", f"{theirs}.layers.{{}}"
        heads = ("(t m c) d -> d t m c", "(t m c) -> t m c")
        rules |= _rule(f"{block}/qkv", f"{layer}.attn.qkv", *heads)
        rules |= _rule(f"{block}/o", f"{layer}.attn.proj", "d (m c) -> m c d")
        rules[f"{block}/rows"] = (f"{layer}.attn.rel_pos_h", "l c -> l c")
        rules[f"{block}/columns"] = (f"{layer}.attn.rel_pos_w", "l c -> l c")
        for i in (1, 2):
            rules |= _rule(f"{block}/ln{i}", f"{layer}.layer_norm{i}")
            rules |= _rule(f"{block}/fc{i}", f"{layer}.mlp.lin{i}", _LINEAR)
    return rules


def _prompt_rules() -> Rules:
    theirs = "prompt_encoder"
    rules = {
        "fourier/image": (_IMAGE, "n f -> n f"),
        "fourier/prompt": (_PROMPT, "n f -> n f"),
        "prompt/points": (f"{theirs}.point_embed.{{}}.weight", "n d -> n d"),
        "prompt/no_point": (f"{theirs}.not_a_point_embed.weight", "n d -> n d"),
        "prompt/no_mask": (f"{theirs}.no_mask_embed.weight", "n d -> n d"),
    }
    for i in (1, 2, 3):
        rules |= _rule(f"prompt/mask/conv{i}", f"{theirs}.mask_embed.conv{i}", _KERNEL)
        rules |= _rule(f"prompt/mask/ln{i}", f"{theirs}.mask_embed.layer_norm{i}")
    return rules


def _decoder_rules(cfg: SamSizes) -> Rules:
    theirs, transformer = "mask_decoder", "mask_decoder.transformer"
    rules = {
        "decoder/iou_token": (f"{theirs}.iou_token.weight", "n d -> n d"),
        "decoder/mask_tokens": (f"{theirs}.mask_tokens.weight", "n d -> n d"),
        **_rule("decoder/final/ln", f"{transformer}.layer_norm_final_attn"),
        **_rule("decoder/up1", f"{theirs}.upscale_conv1", _UP),
        **_rule("decoder/up_norm", f"{theirs}.upscale_layer_norm"),
        **_rule("decoder/up2", f"{theirs}.upscale_conv2", _UP),
    }
    attentions = {"decoder/final/to_image": f"{transformer}.final_attn_token_to_image"}
    for i in range(cfg.decoder.layers):
        ours, layer = f"decoder/layers/{i}", f"{transformer}.layers.{i}"
        attentions[f"{ours}/self"] = f"{layer}.self_attn"
        attentions[f"{ours}/to_image"] = f"{layer}.cross_attn_token_to_image"
        attentions[f"{ours}/to_tokens"] = f"{layer}.cross_attn_image_to_token"
        for j in (1, 2):
            rules |= _rule(f"{ours}/fc{j}", f"{layer}.mlp.lin{j}", _LINEAR)
        for j in (1, 2, 3, 4):
            rules |= _rule(f"{ours}/ln{j}", f"{layer}.layer_norm{j}")
    for ours, official in attentions.items():
        for name in ("q", "k", "v"):
            rules |= _rule(f"{ours}/{name}", f"{official}.{name}_proj", _LINEAR)
        rules |= _rule(f"{ours}/o", f"{official}.out_proj", _LINEAR)
    heads = {"mask_heads": ("output_hypernetworks_mlps.{}", 3)}
    heads["iou_head"] = ("iou_prediction_head", cfg.decoder.iou_depth)
    for name, (official, depth) in heads.items():
        middle = [f"layers.{i}" for i in range(depth - 2)]
        for i, layer in enumerate(["proj_in", *middle, "proj_out"]):
            rules |= _rule(f"decoder/{name}/{i}", f"{theirs}.{official}.{layer}", _LINEAR)
    return rules


def table(cfg: SamSizes) -> list[TableEntry]:
    """An entry per official tensor, those of a stacked leaf behind each other."""
    rules = _vision_rules(cfg) | _prompt_rules() | _decoder_rules(cfg)
    starts, first = {}, 0
    for run, (_, count) in enumerate(cfg.vision.runs):
        starts[f"vision/blocks/{run}/"], first = first, first + count
    made = []
    for path, spec in param_tree.flatten(sam_model.specs(cfg)).items():
        start = next((n for prefix, n in starts.items() if path.startswith(prefix)), 0)
        made += entries(path, *rules[path], spec, start)
    return made


def check(folder: epath.PathLike) -> None:
    """Raises as `load` does for a folder that cannot be used; reads no weights."""
    _headers(epath.Path(folder))


def load(folder: epath.PathLike) -> tuple[SamSizes, param_tree.Params]:
    """(sizes, parameters float32 as NumPy arrays) of a folder, local or in a bucket.

    Raises FileNotFoundError or ValueError naming the file and every missing, unknown, misshapen or
    unreadable tensor, and those with NaN or infinite numbers.
    """
    path = epath.Path(folder) / WEIGHTS_FILE
    cfg, names, tensors = _headers(epath.Path(folder))
    shapes = {p: spec.shape for p, spec in param_tree.flatten(sam_model.specs(cfg)).items()}
    leaves = {p: np.empty(shape, np.float32) for p, shape in shapes.items()}
    broken = set()
    with path.open("rb") as file:
        for entry in names:
            tensor, leaf = tensors[entry.name], leaves[entry.path]
            blocks = safetensors_io.rows(file, tensor, 0, tensor.shape[0])
            whole = np.concatenate([block for _, block in blocks])
            if not safetensors_io.finite(whole):
                broken.add(entry.name)
            target = leaf if entry.layer is None else leaf[entry.layer]
            safetensors_io.assign(target, entry.to_ours(whole))
    safetensors_io.check_finite(path, broken)
    return cfg, param_tree.unflatten(leaves)


def _headers(
    folder: epath.Path,
) -> tuple[SamSizes, list[TableEntry], dict[str, safetensors_io.StoredTensor]]:
    """(sizes, table of names, tensors by name) of a folder whose files fit each other."""
    cfg, path = sam_sizes.read(folder), folder / WEIGHTS_FILE
    if not path.exists():
        raise FileNotFoundError(f"{path}: missing; beside {sam_sizes.CONFIG_FILE} lie the weights")
    problems, names = [], table(cfg)
    tensors = without_prefix(path, safetensors_io.read_header(path, problems) or {}, names)
    if not problems:
        tensors = {**{name: tensors[n] for name, n in _TIED.items() if n in tensors}, **tensors}
        problems = misfits(path, tensors, names)
    if problems:
        raise ValueError(f"{path} does not fit {sam_sizes.CONFIG_FILE}:{listed(problems)}")
    return cfg, names, tensors
