"""A model from one form into another: Hugging Face folders and Orbax parameter trees.

An Orbax folder holds `params/` (a tree with "model" and "vae") with `digests.json`, and beside it
the JSON files and tokenizer files of the Hugging Face folder it was made from.
"""

import jax
import jax.numpy as jnp
from etils import epath

from srum_jax.core import param_tree, places, sharding
from srum_jax.models.bagel import hf, hf_folder, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.training import checkpoint

PARAMS = "params"


def convert(
    source: str,
    target: str,
    *,
    to: str | None = None,
    base: str | None = None,
    dtype: str | None = None,
    layout: str | None = None,
) -> str:
    """Does what the command line says; returns a line about what was made.

    Raises ValueError (also as BadInput), FileNotFoundError or FileExistsError before anything is
    written.
    """
    origin, folder = places.place(source, "SOURCE"), places.place(target, "TARGET")
    if not origin.is_dir():
        raise FileNotFoundError(f"{origin}: no such folder")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise FileExistsError(f"{folder}: exists and is not an empty folder; name another one")
    is_tree = (origin / PARAMS).exists()
    to = to or ("hf" if is_tree else "orbax")
    if is_tree and to == "orbax":
        raise ValueError(f"{origin} is an Orbax folder already; --to hf is what is left")
    if layout and to == "orbax":
        raise ValueError("--layout is of Hugging Face files; it says nothing with --to orbax")
    read = _from_tree if is_tree else _from_hf
    folder.mkdir(parents=True, exist_ok=True)  # a place that cannot be written is found early
    try:
        parts, cfg, params, vae_params, dtype = read(origin, base, dtype)
        if to == "hf":
            hf.save(
                folder,
                cfg,
                params,
                vae_params,
                dtype,
                layout=layout or "official",
                source=parts,
                notes=f"## How it was made\n\n- `python -m srum_jax.convert`, values as {dtype}",
            )
        else:
            hf_folder.write_beside(folder, cfg, parts.beside())
            checkpoint.save_params(folder / PARAMS, {"model": params, "vae": vae_params})
    except BaseException:  # a full disk, Ctrl-C: a part of a model is not to be taken for one
        folder.rmtree()
        raise
    count = param_tree.count(bagel.specs(cfg)) + param_tree.count(vae.specs(cfg.vae))
    return f"{folder}: {count:,} parameters, the model's as {dtype}, in the form {to!r}"


Read = tuple[hf.Parts, BagelConfig, param_tree.Params, param_tree.Params, str]


def _from_hf(folder: epath.Path, base: str | None, dtype: str | None) -> Read:
    parts = hf.locate(folder, base)
    cfg = model_config.from_folder(parts.sizes)
    dtype = dtype or hf_folder.stored_dtype(parts, cfg)
    return parts, cfg, *hf.load(folder, cfg, dtype=jnp.dtype(dtype), base=base), dtype


def _from_tree(folder: epath.Path, base: str | None, dtype: str | None) -> Read:
    """An Orbax folder of ours, or a train stage's with the base of the run."""
    shapes = checkpoint.saved_shapes(folder / PARAMS)
    here = jax.sharding.SingleDeviceSharding(jax.devices("cpu")[0])
    like = sharding.placed(shapes, here)
    if set(shapes) == {"model", "vae"}:
        cfg = model_config.from_folder(folder)
        halves = all(leaf.dtype == jnp.bfloat16 for leaf in jax.tree.leaves(shapes["model"]))
        trees = checkpoint.load_params(folder / PARAMS, like)
        parts = hf.Parts(folder, None, folder, folder / PARAMS, folder / PARAMS, folder)
        dtype = dtype or ("bfloat16" if halves else "float32")
        return parts, cfg, trees["model"], trees["vae"], dtype
    if base is None:
        raise ValueError(
            f"{folder / PARAMS} holds the parameters that a run trained ({', '.join(shapes)}); "
            "name the weights it started from by --base"
        )
    parts, cfg, params, vae_params, dtype = _from_hf(epath.Path(base), None, dtype)
    param_tree.check(
        param_tree.merge(shapes, params), bagel.specs(cfg), where=f"{folder / PARAMS} over {base}"
    )
    trained = checkpoint.load_params(folder / PARAMS, like)
    return parts, cfg, param_tree.merge(trained, params), vae_params, dtype
