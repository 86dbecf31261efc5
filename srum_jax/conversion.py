"""A model from one form into another: Hugging Face folders and Orbax parameter trees.

An Orbax folder holds `params/` (a tree with "model" and "vae") with `digests.json`, and beside it
the JSON files and tokenizer files of the Hugging Face folder it was made from.

A folder that is being made holds PARTIAL: one that a killed command left is known by it and made
again.
"""

import contextlib
import os
import time
from collections.abc import Iterator
from types import ModuleType

import jax
import jax.numpy as jnp
from etils import epath

from srum_jax.core import files, lock, param_tree, places, sharding
from srum_jax.core.errors import listed
from srum_jax.generation import families
from srum_jax.models.bagel import hf, hf_folder, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.training import checkpoint

PARAMS = "params"
PARTIAL = ".partial"  # who makes the folder and, on a disk, what of it is there


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
    left = {p.name for p in folder.iterdir()} if folder.is_dir() else set()
    if folder.exists() and not folder.is_dir() or left and PARTIAL not in left:
        raise FileExistsError(f"{folder}: exists and is not an empty folder; name another one")
    is_tree = (origin / PARAMS).exists()
    to = to or ("hf" if is_tree else "orbax")
    if is_tree and to == "orbax":
        raise ValueError(f"{origin} is an Orbax folder already; --to hf is what is left")
    if layout and to == "orbax":
        raise ValueError("--layout is of Hugging Face files; it says nothing with --to orbax")
    if is_tree or to == "orbax":
        checkpoint.check_place(origin if is_tree else folder)
    family = families.find(origin, base)
    if not is_tree and not family.ORBAX:
        return _between_layouts(family, origin, folder, base, to, dtype, layout)
    read = _from_tree if is_tree else _from_hf
    with _made_whole(folder) as made:  # first: a place that cannot be written is found early
        parts, cfg, params, vae_params, dtype = read(origin, base, dtype)
        if to == "hf":
            hf.save(
                made,
                cfg,
                params,
                vae_params,
                dtype,
                layout=layout or "official",
                source=parts,
                notes=f"## How it was made\n\n- `python -m srum_jax.convert`, values as {dtype}",
            )
        else:
            hf_folder.write_beside(made, cfg, parts.beside())
            checkpoint.save_params(made / PARAMS, {"model": params, "vae": vae_params})
    count = param_tree.count(bagel.specs(cfg)) + param_tree.count(vae.specs(cfg.vae))
    return f"{folder}: {count:,} parameters, the model's as {dtype}, in the form {to!r}"


def _between_layouts(
    family: ModuleType,
    origin: epath.Path,
    folder: epath.Path,
    base: str | None,
    to: str,
    dtype: str | None,
    layout: str | None,
) -> str:
    """A model of a family that no Orbax folder of ours holds, from one layout into another."""
    if to != "hf":
        raise ValueError(f"{origin}: of this model --to hf is made, with --layout; Orbax is not")
    _, stored, problems = family.examine(origin, base)
    if problems:
        raise ValueError(f"{origin}:{listed(problems)}")
    dtype, here = dtype or stored, sharding.inference_mesh(jax.devices("cpu")[:1], 0)
    with _made_whole(folder) as made:
        how = dict(mesh=here, dtype=jnp.dtype(dtype))
        cfg, params, coder, _ = family.load(origin, base, **how)
        notes = f"## How it was made\n\n- `python -m srum_jax.convert`, values as {dtype}"
        more = dict(layout=layout or "official", source=family.locate(origin, base), notes=notes)
        family.save(made, cfg, params, coder, dtype, **more)
    count = param_tree.count(family.specs(cfg)) + param_tree.count(family.coder_specs(cfg))
    return f"{folder}: {count:,} parameters, the model's as {dtype}, in the form {to!r}"


@contextlib.contextmanager
def _made_whole(folder: epath.Path) -> Iterator[epath.Path]:
    """Where to write what gets into `folder` when the block ends well; else nothing is left of it.

    In a bucket, which moves by copying, that is `folder` itself: its objects are whole.
    """
    there, partial = folder.exists(), folder / PARTIAL
    made = folder if files.is_remote(folder) else partial
    try:
        with lock.held(partial):
            _empty(made)  # of what a killed command left
            try:
                yield made
            except BaseException:  # a full disk, Ctrl-C: a part is not to be taken for a model
                _empty_for_good(made)
                raise
            for path in _content(partial):
                if (folder / path.name).is_dir():
                    (folder / path.name).rmtree()
                files.move(path, folder / path.name)
    finally:
        if not files.is_remote(folder):
            with contextlib.suppress(OSError):  # where another command works there
                os.rmdir(partial)
                if not there:
                    os.rmdir(folder)  # unless it holds the model


def _content(folder: epath.Path) -> list[epath.Path]:
    return [p for p in folder.iterdir() if p.name not in (lock.FILE, PARTIAL)]


def _empty(folder: epath.Path) -> None:
    for path in _content(folder):
        path.rmtree() if path.is_dir() else path.unlink()


def _empty_for_good(folder: epath.Path) -> None:
    """After a failure: threads of Orbax and TensorStore may go on writing for a moment."""
    for _ in range(20):
        with contextlib.suppress(OSError):  # something came while it was emptied
            _empty(folder)
        time.sleep(0.1)
        if not _content(folder):
            return


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
