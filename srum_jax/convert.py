"""One command between the forms a model comes in: Hugging Face folders and Orbax parameter trees.

An Orbax folder holds `params/` (a tree with "model" and "vae") with `digests.json`, and beside it
the JSON files and tokenizer files of the Hugging Face folder it was made from.
"""

import argparse
import sys
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from etils import epath

from srum_jax.core import param_tree, sharding
from srum_jax.core.errors import BadInput, Stopped
from srum_jax.models.bagel import hf, hf_folder, model_config, vae
from srum_jax.models.bagel import model as bagel
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.training import checkpoint

PARAMS = "params"

DESCRIPTION = """\
Converts a model between a folder in the Hugging Face layout of BAGEL and an Orbax parameter tree.

SOURCE may be
  a Hugging Face folder    ema.safetensors, model.safetensors or a sharded index, with its JSON
  an Orbax folder          params/, written by this command
  a run's train folder     round<R>/train of a run: the parameters it trained; the others, the JSON
                           files and the tokenizer come from --base, the weights it started from
"""
EXAMPLES = """\
examples
  %(prog)s BAGEL-7B-MoT bagel-orbax
  %(prog)s bagel-orbax BAGEL-again
  %(prog)s BAGEL-7B-MoT bagel-shards --to hf --layout sharded
  %(prog)s results/0000300 SRUM-BAGEL --to hf --dtype bfloat16 --base BAGEL-7B-MoT
  %(prog)s runs/mine/round0/train MINE --base BAGEL-7B-MoT

The whole model is held in the memory of this machine; accelerators are not used. Without --dtype
the values stay as they are. Exit codes: 0 ok, 2 bad input.
"""


def parser(program: str = "python -m srum_jax.convert") -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        program,
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("source", metavar="SOURCE", help="folder to read")
    made.add_argument("target", metavar="TARGET", help="folder to write: new or empty")
    made.add_argument("--to", choices=("hf", "orbax"), help="default: the form SOURCE is not")
    made.add_argument("--base", metavar="DIR", help="Hugging Face folder with what SOURCE lacks")
    made.add_argument("--dtype", choices=sorted(hf.DTYPES), help="of the model's values")
    made.add_argument(
        "--layout", choices=hf.LAYOUTS, help="of the Hugging Face files; default: official"
    )
    return made


def main(argv: Sequence[str], *, program: str = "python -m srum_jax.convert") -> int:
    """Runs a command line (without the program's name) and returns its exit code; in the help the
    program is called `program`."""
    options = parser(program).parse_args(argv)
    try:
        print(convert(**vars(options)))
    except (Stopped, ValueError, FileNotFoundError, FileExistsError, PermissionError) as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code if isinstance(e, Stopped) else BadInput.exit_code
    return 0


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
    origin, folder = epath.Path(source), epath.Path(target)
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
        folder.mkdir(parents=True, exist_ok=True)
        hf_folder.write_beside(folder, cfg, parts.beside())
        checkpoint.save_params(folder / PARAMS, {"model": params, "vae": vae_params})
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


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    sys.exit(main(sys.argv[1:]))
