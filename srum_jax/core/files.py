"""JSON files that are whole or absent, in local folders and buckets."""

import json
import os
from typing import Any

from etils import epath


def _plain(x: Any) -> Any:
    """NumPy and JAX scalars and arrays as Python numbers and lists."""
    if hasattr(x, "tolist"):
        return x.tolist()
    raise TypeError(f"{type(x).__name__} {x!r} cannot be written as JSON")


def write_json(path: epath.PathLike, value: Any) -> None:
    """Writes `value` under a temporary name and renames, so that a reader sees old or new.

    Raises ValueError for NaN and infinities: what was not measured is left out of a file.
    """
    path = epath.Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(value, indent=1, allow_nan=False, default=_plain)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.write_text(text + "\n")
    temporary.replace(path)


def read_json(path: epath.PathLike) -> Any:
    """The content of a JSON file. Raises FileNotFoundError or ValueError naming the file."""
    path = epath.Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as e:
        raise ValueError(f"{path}: not valid JSON ({e})") from e
