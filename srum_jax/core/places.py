"""What a path that a person gives may name: a place on this machine or in a bucket."""

import importlib.util
import os
import re

from etils import epath

from srum_jax.core import hub, registry
from srum_jax.core.errors import BadInput, quoted

BUCKETS = {"gs": "gcsfs", "s3": "s3fs"}  # schemes that can be read and written, by which package
_FETCHED = {
    "hf": 'fetch it first ("hf download …") and name the folder',
    "http": "fetch it first and name the file",
    "https": "fetch it first and name the file",
    "file": "leave out file://",
}


def place(given: epath.PathLike, what: str) -> epath.Path:
    """The path that `given` names, "~" read as the home folder; `what` begins a problem's line.

    Raises BadInput for what is no path, for an empty one, for an address that is no bucket, and for
    a bucket whose package is not installed.
    """
    if not isinstance(given, (str, os.PathLike)):
        raise BadInput(f"{what} is a path, got {quoted(given)}")
    text = os.fspath(given)
    if problem := fault(text):
        raise BadInput(f"{what}: {problem}")
    package = BUCKETS.get(_scheme(text))
    if package and importlib.util.find_spec(package) is None:
        raise BadInput(f"{what}: {text}: buckets need {package}: pip install {package}")
    return epath.Path(text).expanduser()


def model_folders(
    model: epath.PathLike, base: epath.PathLike | None = None
) -> tuple[epath.Path, epath.Path | None]:
    """The folder of a model, and the one with what it lacks: of a world its packaged base, of
    "org/name" or "org/name@revision" what the Hugging Face Hub has, where no folder is called so.

    Raises BadInput as `place` and `hub.folder` do, and where there is no such folder.
    """
    return model_folder(model), None if base is None else model_folder(base)


def model_folder(given: epath.PathLike, what: str = "the model") -> epath.Path:
    """One of `model_folders`; `what` begins a problem's line."""
    if isinstance(given, str) and given in registry.WORLDS:
        return registry.base_folder(given)
    folder = place(given, what)
    if folder.is_dir():
        return folder
    if hub.is_name(os.fspath(given)):
        return hub.folder(os.fspath(given))
    raise BadInput(f"{given}: no such folder; give one, or one of {', '.join(registry.WORLDS)}")


def fault(text: str) -> str | None:
    """What is wrong with `text` as a path, or None."""
    if not text.strip():
        return "an empty path"
    scheme = _scheme(text)
    if not scheme or scheme in BUCKETS:
        return None
    hint = _FETCHED.get(scheme.lower(), f"buckets begin with {':// or '.join(BUCKETS)}://")
    return f"{quoted(text)} is an address, no path; {hint}"


def _scheme(text: str) -> str:
    found = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    return found[1] if found else ""
