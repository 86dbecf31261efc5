"""Weights in one safetensors file, or in several under an index: all their tensors by name."""

from collections.abc import Set

from etils import epath

from srum_jax.core.errors import quoted
from srum_jax.core.files import read_json
from srum_jax.models import safetensors_io
from srum_jax.models.safetensors_io import StoredTensor

INDEX_FILE = "model.safetensors.index.json"


def read(file: epath.Path, problems: list[str]) -> dict[str, StoredTensor] | None:
    """The tensors of a file, or of all files of an index; None where a header can't be read.

    Adds a line to `problems` for everything wrong with the headers and the index.
    """
    if file.name != INDEX_FILE:
        return safetensors_io.read_header(file, problems)
    try:
        places = read_json(file)["weight_map"]
        wrong = {quoted(part) for part in places.values() if not _plain(part)}
    except ValueError as e:
        problems.append(f"{e}: not an index of safetensors files")
        return None
    except (KeyError, TypeError, AttributeError):
        problems.append(f"{file}: not an index of safetensors files: it has no weight_map of names")
        return None
    problems += [f"{file}: {part} is not the name of a file beside it" for part in sorted(wrong)]
    headers: dict[str, dict[str, StoredTensor] | None] = {}
    for part in sorted({part for part in places.values() if _plain(part)}):
        headers[part] = None
        if (file.parent / part).exists():
            headers[part] = safetensors_io.read_header(file.parent / part, problems)
        else:
            problems.append(f"{file.parent / part}: the file is missing, {INDEX_FILE} lists it")
    if wrong or None in headers.values():
        return None
    for part, tensors in headers.items():
        here = {name for name, place in places.items() if place == part}
        problems += _misplaced(file.parent / part, here - tensors.keys(), "missing here and listed")
        problems += _misplaced(file.parent / part, tensors.keys() - here, "here and not listed so")
    return {n: headers[part][n] for n, part in places.items() if n in headers[part]}


def _misplaced(part: epath.Path, names: Set[str], what: str) -> list[str]:
    """A line about the tensors in which a file differs from what the index says of it."""
    if not names:
        return []
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return [f"{part}: {quoted(min(names))}{more} is {what} in {INDEX_FILE}; copy both again"]


def _plain(part: object) -> bool:
    """Whether an index names a file of its own folder."""
    outside = {"/", "\\", "\0", ":"}
    return isinstance(part, str) and part.endswith(".safetensors") and not outside & set(part)
