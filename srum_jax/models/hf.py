"""Checkpoint folders in the Hugging Face layout of BAGEL, read and written through one table.

A folder holds `llm_config.json`, `vit_config.json`, `ema.safetensors` (the model),
`ae.safetensors` (the autoencoder) and tokenizer files. The table pairs each of our leaves with its
official tensor name and an einops pattern official -> ours; the way back is the pattern reversed.
Stacked leaves take one tensor a layer. The two sin-cos position tables are computed, not learned:
their shape is checked on the way in, they are written anew on the way out.
"""

import dataclasses
import itertools
import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from einops import rearrange
from etils import epath
from safetensors import SafetensorError, safe_open

from srum_jax.core import params as P
from srum_jax.models import bagel, config, vae
from srum_jax.models.config import BagelConfig
from srum_jax.models.layers import sincos_2d

MODEL_FILE = "ema.safetensors"
VAE_FILE = "ae.safetensors"
DTYPES = {
    "bfloat16": ("BF16", np.dtype(ml_dtypes.bfloat16)),
    "float32": ("F32", np.dtype(np.float32)),
}
_READABLE = ("BF16", "F16", "F32")

_LLM = "language_model.model."
_LAYER = _LLM + "layers.{}."
_VIT = "vit_model.vision_model."
_VIT_LAYER = _VIT + "encoder.layers.{}."

# Our path -> (official name, pattern). {} is the layer.
_TOP = {
    "embed": (_LLM + "embed_tokens.weight", "v d -> v d"),
    "lm_head/w": ("language_model.lm_head.weight", "v d -> d v"),
    "time/fc1/w": ("time_embedder.mlp.0.weight", "o i -> i o"),
    "time/fc1/b": ("time_embedder.mlp.0.bias", "o -> o"),
    "time/fc2/w": ("time_embedder.mlp.2.weight", "o i -> i o"),
    "time/fc2/b": ("time_embedder.mlp.2.bias", "o -> o"),
    "vae2llm/w": ("vae2llm.weight", "o i -> i o"),
    "vae2llm/b": ("vae2llm.bias", "o -> o"),
    "llm2vae/w": ("llm2vae.weight", "o i -> i o"),
    "llm2vae/b": ("llm2vae.bias", "o -> o"),
    "connector/fc1/w": ("connector.fc1.weight", "o i -> i o"),
    "connector/fc1/b": ("connector.fc1.bias", "o -> o"),
    "connector/fc2/w": ("connector.fc2.weight", "o i -> i o"),
    "connector/fc2/b": ("connector.fc2.bias", "o -> o"),
    "vit/patch/w": (_VIT + "embeddings.patch_embedding.weight", "o i -> i o"),
    "vit/patch/b": (_VIT + "embeddings.patch_embedding.bias", "o -> o"),
    "vit/positions": (_VIT + "embeddings.position_embedding.weight", "n d -> n d"),
    "vit/post_norm/scale": (_VIT + "post_layernorm.weight", "d -> d"),
    "vit/post_norm/bias": (_VIT + "post_layernorm.bias", "d -> d"),
}
# Below "blocks/<expert>/"; <moe> is "" for und and "_moe_gen" for gen.
_BLOCK = {
    "ln1/scale": ("input_layernorm<moe>.weight", "d -> d"),
    "ln2/scale": ("post_attention_layernorm<moe>.weight", "d -> d"),
    "q/w": ("self_attn.q_proj<moe>.weight", "(h c) d -> d h c"),
    "q/b": ("self_attn.q_proj<moe>.bias", "(h c) -> h c"),
    "k/w": ("self_attn.k_proj<moe>.weight", "(h c) d -> d h c"),
    "k/b": ("self_attn.k_proj<moe>.bias", "(h c) -> h c"),
    "v/w": ("self_attn.v_proj<moe>.weight", "(h c) d -> d h c"),
    "v/b": ("self_attn.v_proj<moe>.bias", "(h c) -> h c"),
    "o/w": ("self_attn.o_proj<moe>.weight", "d (h c) -> h c d"),
    "q_norm/scale": ("self_attn.q_norm<moe>.weight", "c -> c"),
    "k_norm/scale": ("self_attn.k_norm<moe>.weight", "c -> c"),
    "gate/w": ("mlp<moe>.gate_proj.weight", "f d -> d f"),
    "up/w": ("mlp<moe>.up_proj.weight", "f d -> d f"),
    "down/w": ("mlp<moe>.down_proj.weight", "d f -> f d"),
}
# Below "vit/blocks/".
_VIT_BLOCK = {
    "ln1/scale": ("layer_norm1.weight", "d -> d"),
    "ln1/bias": ("layer_norm1.bias", "d -> d"),
    "q/w": ("self_attn.q_proj.weight", "(h c) d -> d h c"),
    "q/b": ("self_attn.q_proj.bias", "(h c) -> h c"),
    "k/w": ("self_attn.k_proj.weight", "(h c) d -> d h c"),
    "k/b": ("self_attn.k_proj.bias", "(h c) -> h c"),
    "v/w": ("self_attn.v_proj.weight", "(h c) d -> d h c"),
    "v/b": ("self_attn.v_proj.bias", "(h c) -> h c"),
    "o/w": ("self_attn.out_proj.weight", "d (h c) -> h c d"),
    "o/b": ("self_attn.out_proj.bias", "d -> d"),
    "ln2/scale": ("layer_norm2.weight", "d -> d"),
    "ln2/bias": ("layer_norm2.bias", "d -> d"),
    "fc1/w": ("mlp.fc1.weight", "f d -> d f"),
    "fc1/b": ("mlp.fc1.bias", "f -> f"),
    "fc2/w": ("mlp.fc2.weight", "d f -> f d"),
    "fc2/b": ("mlp.fc2.bias", "d -> d"),
}


@dataclasses.dataclass(frozen=True)
class Entry:
    """One official tensor: its name, where it goes (path, layer or None), pattern official -> ours.

    `sizes` are the lengths of the axes on our side; they give the official shape.
    """

    name: str
    path: str
    layer: int | None
    pattern: str
    sizes: tuple[tuple[str, int], ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The official shape."""
        sizes, left = dict(self.sizes), self.pattern.split("->")[0]
        groups = left.replace("(", " ( ").replace(")", " ) ").split()
        shape, inside = [], None
        for word in groups:
            if word == "(":
                inside = 1
            elif word == ")":
                shape.append(inside)
                inside = None
            elif inside is not None:
                inside *= sizes[word]
            else:
                shape.append(sizes[word])
        return tuple(shape)

    def to_ours(self, tensor: np.ndarray) -> np.ndarray:
        return rearrange(tensor, self.pattern, **dict(self.sizes))

    def to_official(self, leaf: np.ndarray) -> np.ndarray:
        ours, official = reversed(self.pattern.split("->"))
        return rearrange(leaf, f"{ours} -> {official}", **dict(self.sizes))


def _entries(path: str, name: str, pattern: str, spec: P.ParamSpec) -> Iterator[Entry]:
    stacked = "{}" in name
    axes = pattern.split("->")[1].split()
    sizes = tuple(zip(axes, spec.shape[1:] if stacked else spec.shape, strict=True))
    for layer in range(spec.shape[0]) if stacked else (None,):
        yield Entry(name.format(layer), path, layer, pattern, sizes)


def _model_rules() -> dict[str, tuple[str, str]]:
    """Our path -> (official name, pattern) for a whole model."""
    rules = dict(_TOP)
    for expert, moe in (("und", ""), ("gen", "_moe_gen")):
        rules[f"norm/{expert}/scale"] = (f"{_LLM}norm{moe}.weight", "d -> d")
        for path, (name, pattern) in _BLOCK.items():
            rules[f"blocks/{expert}/{path}"] = (_LAYER + name.replace("<moe>", moe), pattern)
    for path, (name, pattern) in _VIT_BLOCK.items():
        rules[f"vit/blocks/{path}"] = (_VIT_LAYER + name, pattern)
    return rules


def _vae_rule(path: str, spec: P.ParamSpec) -> tuple[str, str]:
    """The autoencoder's tree has the official structure: only leaf names and kernels differ."""
    head, leaf = path.rsplit("/", 1)
    suffix = {"w": "weight", "scale": "weight", "b": "bias", "bias": "bias"}[leaf]
    pattern = "o i h w -> h w i o" if len(spec.shape) == 4 else "o -> o"
    return f"{head.replace('/', '.')}.{suffix}", pattern


def table(cfg: BagelConfig) -> dict[str, list[Entry]]:
    """File name -> its entries, for every leaf of the spec trees; nothing is allocated."""
    model = P.flatten(bagel.specs(cfg))
    autoencoder = P.flatten(vae.specs(cfg.vae))
    rules = _model_rules()
    return {
        MODEL_FILE: [e for path, s in model.items() for e in _entries(path, *rules[path], s)],
        VAE_FILE: [
            e for path, s in autoencoder.items() for e in _entries(path, *_vae_rule(path, s), s)
        ],
    }


def computed_tables(cfg: BagelConfig) -> dict[str, tuple[int, int]]:
    """Official names of the fixed position tables -> (side, features): shape [side², features]."""
    return {
        "latent_pos_embed.pos_embed": (cfg.max_latent, cfg.llm.hidden),
        "vit_pos_embed.pos_embed": (cfg.max_vit, cfg.llm.hidden),
    }


def load(
    folder,
    cfg: BagelConfig,
    dtype=np.float32,
    want: Sequence[str] = ("model", "vae"),
) -> tuple[P.Params | None, P.Params | None]:
    """Reads a checkpoint folder of a local file system.

    Returns (model parameters in `dtype`, autoencoder parameters in float32), nested dicts of NumPy
    arrays; what `want` does not name is None. Tensors are read one at a time.
    Raises ValueError naming the file and every missing, unknown, misshapen or unreadable tensor.
    """
    unknown = set(want) - {"model", "vae"}
    if unknown:
        raise ValueError(f"want may name 'model' and 'vae', not {sorted(unknown)}")
    folder, entries, problems = epath.Path(folder), table(cfg), []
    tables = {name: (side**2, dim) for name, (side, dim) in computed_tables(cfg).items()}
    params = vae_params = None
    if "model" in want:
        params = _read(folder / MODEL_FILE, entries[MODEL_FILE], tables, dtype, problems)
    if "vae" in want:
        vae_params = _read(folder / VAE_FILE, entries[VAE_FILE], {}, np.float32, problems)
    if problems:
        shown = problems[:40]
        if len(problems) > len(shown):
            shown.append(f"… and {len(problems) - len(shown)} more")
        raise ValueError(
            f"{folder}: the checkpoint does not fit its own JSON files:\n  "
            + "\n  ".join(shown)
            + "\nCheck that weights and JSON files belong together and were copied whole."
        )
    return params, vae_params


def _read(path, entries, optional: Mapping[str, tuple], dtype, problems: list[str]):
    """One file's parameter tree; None, and lines added to `problems`, if anything is wrong."""
    if not path.exists():
        problems.append(f"{path}: the file is missing")
        return None
    try:
        with safe_open(os.fspath(path), framework="numpy") as file:
            found = _compare(path, file, entries, optional)
            if found:
                problems.extend(found)
                return None
            return _collect(file, entries, dtype)
    except (SafetensorError, OSError) as e:
        problems.append(f"{path}: not a readable safetensors file ({e})")
        return None


def _compare(path, file, entries, optional) -> list[str]:
    want = {e.name: e.shape for e in entries}
    have = set(file.keys())
    found = [f"{path}: tensor {n} {s} is missing" for n, s in want.items() if n not in have]
    for name in sorted(have):
        expected = want.get(name, optional.get(name))
        if expected is None:
            found.append(f"{path}: unknown tensor {name}")
            continue
        part = file.get_slice(name)
        if tuple(part.get_shape()) != expected:
            found.append(f"{path}: {name} has shape {tuple(part.get_shape())}, expected {expected}")
        if part.get_dtype() not in _READABLE:
            found.append(f"{path}: {name} is {part.get_dtype()}, expected one of {_READABLE}")
    return found


def _collect(file, entries, dtype) -> P.Params:
    layers = {e.path: e.layer + 1 for e in entries if e.layer is not None}  # in order: the last
    flat: dict[str, np.ndarray] = {}
    for e in entries:
        leaf = e.to_ours(file.get_tensor(e.name))
        if e.layer is None:
            flat[e.path] = np.array(leaf, dtype, order="C")
        else:
            if e.path not in flat:
                flat[e.path] = np.empty((layers[e.path], *leaf.shape), dtype)
            flat[e.path][e.layer] = leaf
    return P.unflatten(flat)


def save(
    folder,
    cfg: BagelConfig,
    params: P.Params,
    vae_params: P.Params,
    dtype: str = "bfloat16",
    *,
    tokenizer_files: Sequence = (),
    notes: str = "",
) -> None:
    """Writes a folder that `load`, and the official loader, read.

    params and vae_params: host or addressable device arrays. The model is stored in `dtype`
    ("bfloat16" or "float32"), the autoencoder and the position tables in float32. Also written:
    the JSON files, copies of `tokenizer_files` (paths), README.md with `notes` (Markdown).
    Each file appears whole, under a temporary name first, the model last. Raises ValueError if
    the parameters do not fit `cfg`, FileNotFoundError for a missing tokenizer file; either before
    anything is written.
    """
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r} is not one of {sorted(DTYPES)}")
    P.check(params, bagel.specs(cfg), where="export, model")
    P.check(vae_params, vae.specs(cfg.vae), where="export, autoencoder")
    sources = [epath.Path(f) for f in tokenizer_files]
    for source in sources:
        if not source.exists():
            raise FileNotFoundError(f"tokenizer file {source} is missing")
    folder, entries = epath.Path(folder), table(cfg)
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in config.to_json(cfg).items():
        _write_bytes(folder / name, [(json.dumps(content, indent=1) + "\n").encode()])
    for source in sources:
        if source.resolve() != (folder / source.name).resolve():
            _write_bytes(folder / source.name, [source.read_bytes()])
    _write_bytes(folder / "README.md", [_card(cfg, dtype, notes).encode()])
    _write_tensors(folder / VAE_FILE, vae_params, entries[VAE_FILE], "float32", {})
    _write_tensors(folder / MODEL_FILE, params, entries[MODEL_FILE], dtype, computed_tables(cfg))


def _write_tensors(path, params, entries, dtype: str, tables) -> None:
    """A safetensors file written tensor by tensor, so that no second copy of a model is in memory.

    The format is 8 bytes of header length, a JSON header, the data. The float32 tables come first:
    every tensor then starts at a multiple of its item size.
    """
    kinds = [(name, (side**2, dim), "float32") for name, (side, dim) in tables.items()]
    kinds += [(e.name, e.shape, dtype) for e in entries]
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, kind in kinds:
        code, numpy_dtype = DTYPES[kind]
        start, end = end, end + math.prod(shape) * numpy_dtype.itemsize
        header[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks():
        yield len(text).to_bytes(8, "little") + text
        for side, dim in tables.values():
            yield np.asarray(sincos_2d(jnp.arange(side**2), side, dim)).tobytes()
        leaves = P.flatten(params)
        for leaf_path, group in itertools.groupby(entries, key=lambda e: e.path):
            leaf = np.asarray(leaves[leaf_path])
            for e in group:
                tensor = e.to_official(leaf if e.layer is None else leaf[e.layer])
                yield tensor.astype(DTYPES[dtype][1]).tobytes()

    _write_bytes(path, chunks())


def _write_bytes(path, chunks: Iterable[bytes]) -> None:
    temporary = path.parent / f"{path.name}.partial"
    with temporary.open("wb") as file:
        for chunk in chunks:
            file.write(chunk)
    temporary.replace(path)


def _card(cfg: BagelConfig, dtype: str, notes: str) -> str:
    """The model card, README.md."""
    sizes = {
        "model": P.count(bagel.specs(cfg)),
        "autoencoder": P.count(vae.specs(cfg.vae)),
    }
    return (
        f"""# A BAGEL checkpoint

A unified multimodal model (Mixture-of-Transformers, BAGEL architecture) that understands and draws
pictures, in the layout of BAGEL-7B-MoT; written by srum_jax.

| part | file | parameters | stored as |
|---|---|---|---|
| model | `{MODEL_FILE}` | {sizes["model"]:,} | {dtype} |
| autoencoder | `{VAE_FILE}` | {sizes["autoencoder"]:,} | float32 |

{cfg.llm.layers} layers of {cfg.llm.hidden} features, a vocabulary of {cfg.llm.vocab}; a latent
token covers {cfg.token_pixels} x {cfg.token_pixels} pixels. All sizes are in the JSON files.

{notes.strip()}
""".rstrip()
        + "\n"
    )
