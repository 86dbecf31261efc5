"""Checkpoints: the only file that knows Orbax.

A checkpoint bundles the state and a JSON `meta` (what run it belongs to, and a digest of every
leaf, so a flipped bit is found on restore). The data state is the step itself. Saves are atomic:
a killed save leaves the one before.
"""

import zlib
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from srum_jax.core import files
from srum_jax.core.distributed import barrier
from srum_jax.core.errors import BadInput

DIGESTS = "digests.json"  # beside a tree that `save_params` wrote


def _paths(tree) -> dict[str, object]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def digests(tree: Any) -> dict[str, int]:
    """CRC-32 of every fully addressable leaf's bytes, by path."""
    return {
        path: zlib.crc32(np.ascontiguousarray(jax.device_get(x)).tobytes())
        for path, x in _paths(tree).items()
        if getattr(x, "is_fully_addressable", True)
    }


def _wrong(tree, saved: dict[str, int]) -> list[str]:
    """Paths of the leaves whose bytes differ from the saved digests."""
    return [path for path, digest in digests(tree).items() if saved.get(path, digest) != digest]


class Checkpoints:
    """The checkpoints of one run folder: save, and restore the newest."""

    def __init__(self, folder, *, keep: int):
        self.folder = epath.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(
            files.absolute(self.folder),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
        )

    def latest(self) -> int | None:
        """The newest finished step, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Saves in the background; `close` or the next save waits for it."""
        if self.latest() == step:
            return
        meta = {**meta, "digests": digests(state)}
        self.manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )

    def meta(self, step: int) -> dict:
        """The JSON saved with a step."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self.manager.restore(step, args=args)["meta"]

    def restore(self, step: int, like: Any) -> Any:
        """The state of `step` with the structure and shardings of `like` (abstract or real).

        Raises BadInput if it does not have that structure, or a leaf's bytes differ from the
        saved digest.
        """
        where = self.folder / str(step)
        target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        args = ocp.args.Composite(state=ocp.args.StandardRestore(target))
        try:
            state = self.manager.restore(step, args=args)["state"]
            saved = self.meta(step)["digests"]
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise BadInput(
                f"{where}: the checkpoint can't be read as this run's state ({e}). It is of "
                "another model, optimiser or version, or damaged: remove that folder, or use "
                "another workdir."
            ) from e
        if wrong := _wrong(state, saved):
            raise BadInput(
                f"{where}: damaged, the bytes of {wrong[0]} (and {len(wrong) - 1} more) differ "
                "from what was saved. Remove that step's folder to continue from the one before."
            )
        return state

    def newest(self, like: Any, fresh: Callable[[], Any], *, steps: int) -> Any:
        """The state of the newest checkpoint, laid out as `like`, or `fresh()` where there is none.

        `like` may be abstract: a resumed run then holds one state, as a fresh one does.
        Raises BadInput where it is damaged, of another model, or beyond the run's `steps`.
        """
        latest = self.latest()
        if latest is None:
            return fresh()
        if latest > steps:
            raise BadInput(
                f"{self.folder}: the run is at step {latest}, beyond the {steps} steps of the "
                "config: raise steps, or use another workdir"
            )
        return self.restore(latest, like)

    def close(self) -> None:
        """Waits for the running save."""
        self.manager.wait_until_finished()
        self.manager.close()


def save_params(folder: epath.PathLike, params: Any) -> None:
    """Writes a parameter tree alone (what a stage hands to the next), replacing an older one."""
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(files.absolute(folder), params, force=True)
    if jax.process_index() == 0:
        files.write_json(epath.Path(folder).parent / DIGESTS, digests(params))
    barrier("parameters: saved")


def saved_shapes(folder: epath.PathLike) -> Any:
    """The tree of `jax.ShapeDtypeStruct` of what `save_params` wrote; nothing else is read.

    Raises BadInput if the folder is no such tree.
    """
    folder = epath.Path(folder)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            tree = checkpointer.metadata(files.absolute(folder)).item_metadata.tree
        except (AttributeError, ValueError, FileNotFoundError) as e:
            raise BadInput(f"{folder}: not a saved parameter tree ({e})") from e
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def load_params(folder: epath.PathLike, like: Any) -> Any:
    """Reads what `save_params` wrote into the structure and shardings of `like`.

    Raises BadInput if it is missing, of another structure or damaged.
    """
    folder = epath.Path(folder)
    if not folder.exists():
        raise BadInput(f"{folder} is missing: run the train stage first")
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    with ocp.StandardCheckpointer() as checkpointer:
        try:
            params = checkpointer.restore(files.absolute(folder), target)
            saved = files.read_json(folder.parent / DIGESTS)
        except (ValueError, KeyError, FileNotFoundError) as e:
            raise BadInput(f"{folder}: not the parameters of this model ({e})") from e
    if wrong := _wrong(params, saved):
        raise BadInput(f"{folder}: damaged, the bytes of {wrong[0]} differ from what was saved")
    return params
