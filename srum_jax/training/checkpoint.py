"""Checkpoints: the only file that knows Orbax.

A checkpoint bundles the state and a JSON `meta` (what run it belongs to). The data state is the
step itself. Saves are atomic: a killed save leaves the one before. Beside what a save wrote lie
digests of its files, made in the background when all is written (`core/digests.py`), so whatever a
disk lost or changed is found before it is restored, on any number of processes.
"""

import contextlib
import os
import re
import threading
from collections.abc import Callable
from typing import Any

import jax
import orbax.checkpoint as ocp
from absl import logging
from etils import epath

from srum_jax.core import digests, files, storage
from srum_jax.core.distributed import any_process, barrier
from srum_jax.core.errors import (
    OF_PLACES,
    BadInput,
    Damaged,
    Stopped,
    exit_code,
    in_a_line,
)


def check_place(folder: epath.PathLike) -> None:
    """Raises BadInput for a place where Orbax keeps no arrays: of buckets it knows gs:// alone."""
    if files.is_remote(folder) and not os.fspath(folder).startswith("gs://"):
        raise BadInput(f"{folder}: arrays are saved on a disk or in a gs:// bucket, nowhere else")


class Checkpoints:
    """The checkpoints of one run folder: save, and restore the newest that is whole."""

    def __init__(self, folder, *, keep: int):
        check_place(folder)
        self.folder = epath.Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.manager = ocp.CheckpointManager(
            files.absolute(self.folder),
            options=ocp.CheckpointManagerOptions(
                max_to_keep=keep, cleanup_tmp_directories=True, enable_async_checkpointing=True
            ),
        )
        self.finishing: threading.Thread | None = None
        self.failed: Exception | None = None

    def latest(self) -> int | None:
        """The newest finished step, or None."""
        return self.manager.latest_step()

    def save(self, step: int, state: Any, meta: dict) -> None:
        """Saves in the background; `close` or the next save waits for it.

        Raises as `check` does, for this save and the one before.
        """
        self._wait()
        if self.latest() == step:
            return
        try:
            self.manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
                ),
            )
        except Exception as e:  # of the storage: each has its own
            raise self._failure(step, e) from e
        self.finishing = threading.Thread(target=self._finish, args=(step,), daemon=True)
        self.finishing.start()

    def _finish(self, step: int) -> None:
        try:
            self.manager.wait_until_finished()
            if jax.process_index() == 0:
                digests.write(self.folder / str(step))
        except Exception as e:  # told by `check`, in the thread of the run
            self.failed = self._failure(step, e)

    def _failure(self, step: int, error: Exception) -> Stopped:
        return storage_failure(error, f"{self.folder}: the checkpoint of step {step}")

    def _wait(self) -> None:
        if self.finishing is not None:
            self.finishing.join()
            self.finishing = None
        self.check()

    def check(self) -> None:
        """Raises Stopped or BadInput, naming the step, where a save in the background failed."""
        if self.failed is not None:
            raise self.failed

    def meta(self, step: int) -> dict:
        """The JSON saved with a step."""
        args = ocp.args.Composite(meta=ocp.args.JsonRestore())
        return self.manager.restore(step, args=args)["meta"]

    def restore(self, step: int, like: Any) -> Any:
        """The state of `step` with the structure and shardings of `like` (abstract or real).

        Raises Damaged if its files are not as they were written, BadInput if it does not have that
        structure.
        """
        where = self.folder / str(step)
        _check_files(where)
        try:
            return _read(where / "state", like)
        except _Unreadable as e:
            if not digests.exist(where):  # saved when the power went, a moment before it had them
                raise Damaged(where, f"it can't be read and has no digests: {e}") from e
            raise BadInput(
                f"{where}: the checkpoint can't be read as this run's state ({e}). It is of "
                "another model, optimiser or version: remove that folder, or use another workdir."
            ) from e

    def newest(self, like: Any, fresh: Callable[[], Any], *, steps: int) -> Any:
        """The state of the newest whole checkpoint, laid out as `like`; `fresh()` if there is none.

        `like` may be abstract: a resumed run then holds one state, as a fresh one does. A warning
        names what is damaged, which is removed: those steps are taken again. Raises BadInput for
        one that is whole and can't be read, as of another model, and for one beyond the run's
        `steps`; nothing is removed then.
        """
        latest = self.latest()
        if latest is None:
            return fresh()
        if latest > steps:
            raise BadInput(
                f"{self.folder}: the run is at step {latest}, beyond the {steps} steps of the "
                "config: raise steps, or use another workdir"
            )
        state, damaged = None, []
        for step in sorted(self.manager.all_steps(), reverse=True):
            try:
                state = self.restore(step, like)
            except Damaged as e:
                logging.warning("%s", e)
                damaged.append(step)
                continue
            logging.info("goes on from the checkpoint of step %d", step)
            break
        else:
            logging.warning("%s: no checkpoint is whole; the run begins again", self.folder)
        for step in damaged:
            self.manager.delete(step)
        return fresh() if state is None else state

    def close(self) -> None:
        """Waits for the running save; raises as `check` does."""
        try:
            self._wait()
        except Stopped:
            with contextlib.suppress(Exception):  # the same once more, at length
                self.manager.close()
            raise
        self.manager.close()


def storage_failure(error: Exception, what: str) -> Stopped:
    """What is raised where storage failed to take `what`: BadInput if a person has to mend it."""
    if failed := storage.failure(error, what):
        return failed
    said = re.search(r"os_error_code='?(\d+)", str(error))  # as tensorstore tells the system's
    bad = said is not None and int(said[1]) in OF_PLACES
    bad = bad or isinstance(error, OSError) and exit_code(error) == BadInput.exit_code
    return (BadInput if bad else Stopped)(f"{what} could not be written ({in_a_line(error)})")


def _check_files(folder: epath.Path) -> None:
    """Raises Damaged, in every process, where files are not as they were; each reads its part."""
    try:
        if not digests.exist(folder):
            logging.info("%s: has no digests, so its files are not checked", folder)
        wrong = digests.damaged(folder, part=jax.process_index(), parts=jax.process_count())
    except OSError as e:
        if failed := storage.failure(e, str(folder)):
            raise failed from e
        wrong = [str(e)]  # what a disk cannot give any more
    if any_process(bool(wrong), f"{folder}: checked"):
        names = ", ".join(wrong[:3]) or "files that another process looked at"
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise Damaged(folder, f"not as they were written: {names}{more}")


def load_averaged(folder: epath.PathLike, like: Any) -> Any:
    """The averaged parameters of the checkpoint in `folder`, laid out as `like`; nothing else of
    its state is read.

    Raises as `load_params`.
    """
    folder = epath.Path(folder)
    _check_files(folder)
    try:
        return _read(folder / "state", {"ema": like}, part=True)["ema"]
    except _Unreadable as e:
        raise BadInput(f"{folder}: holds no averaged parameters of this model ({e})") from e


def steps(folder: epath.PathLike) -> list[int]:
    """The steps of the finished checkpoints in the folder of `Checkpoints`, ascending."""
    folder = epath.Path(folder)
    names = [path.name for path in folder.iterdir()] if folder.exists() else []
    return sorted(int(name) for name in names if name.isdigit())


class _Unreadable(Exception):
    """Saved arrays that cannot be read as what is wanted; the message is one line."""


def _read(folder: epath.Path, like: Any, *, part: bool = False) -> Any:
    """The saved tree with the structure and shardings of `like`, in every process or in none.

    part: `like` has some of its leaves alone. Raises _Unreadable in all of them where one cannot
    read its part. By Orbax's handler: in its checkpointers those that have read their part wait for
    the others at once.
    """
    target = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
    tree, why = None, ""
    try:
        kind = ocp.PyTreeCheckpointHandler if part else ocp.StandardCheckpointHandler
        with contextlib.closing(kind()) as handler:
            args = ocp.args.StandardRestore(target)
            if part:
                how = ocp.checkpoint_utils.construct_restore_args(target)
                args = ocp.args.PyTreeRestore(target, how, partial_restore=True)
            tree = handler.restore(files.absolute(folder), args=args)
    except (ValueError, KeyError, FileNotFoundError) as e:
        if failed := storage.failure(e, str(folder)):
            raise failed from e
        why = in_a_line(e)
    if any_process(bool(why), f"{folder}: read"):
        raise _Unreadable(why or "another process can't read its part")
    return tree


def save_params(folder: epath.PathLike, params: Any) -> None:
    """Writes a parameter tree alone (what a stage hands to the next), replacing an older one.

    Raises Stopped or BadInput where it cannot be written.
    """
    check_place(folder)
    folder = epath.Path(folder)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(files.absolute(folder), params, force=True)
        if jax.process_index() == 0:
            digests.write(folder)
    except Exception as e:  # of the storage: each has its own
        raise storage_failure(e, str(folder)) from e
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
            raise storage.failure(e, str(folder)) or BadInput(
                f"{folder}: not a saved parameter tree ({e})"
            ) from e
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def load_params(folder: epath.PathLike, like: Any) -> Any:
    """Reads what `save_params` wrote into the structure and shardings of `like`.

    Raises BadInput if it is missing or of another structure, as Damaged if a file changed.
    """
    folder = epath.Path(folder)
    if not folder.exists():
        raise BadInput(f"{folder} is missing: run the train stage first")
    _check_files(folder)
    try:
        return _read(folder, like)
    except _Unreadable as e:
        raise BadInput(f"{folder}: not the parameters of this model ({e})") from e
