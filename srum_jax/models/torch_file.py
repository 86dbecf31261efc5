"""Tensors in files that `torch.save` wrote, found without torch and without running anything.

Such a file is a zip of a pickled dictionary and one stored (not compressed) member for each array.
The pickle is read by a reader that knows the few names a dictionary of tensors needs, as inert
records, and refuses every other; so no code of a file runs. What is found are places in the file,
which `models/safetensors_io.py` reads as it reads its own.
"""

import collections
import io
import math
import pickle
import zipfile
from typing import Any, NamedTuple

from etils import epath

from srum_jax.core.errors import BadInput, quoted
from srum_jax.models.safetensors_io import StoredTensor

_KINDS = {
    "BFloat16Storage": ("BF16", 2),
    "HalfStorage": ("F16", 2),
    "FloatStorage": ("F32", 4),
    "ByteStorage": ("U8", 1),
    "BoolStorage": ("BOOL", 1),
    "LongStorage": ("I64", 8),
}
_MAX_PICKLE = 64 * 2**20  # bytes; the released model's has 0.2 MB
_HEADER = 30  # bytes of a member's own header before its name


class _Storage(NamedTuple):
    kind: str
    key: str
    count: int


class _View(NamedTuple):
    """A tensor: `shape` elements of a storage from `offset`, `stride` apart."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]


def _view(storage, offset, shape, stride, *ignored) -> _View:
    return _View(storage, offset, tuple(shape), tuple(stride))


class _Reader(pickle.Unpickler):
    """A pickle's reader that makes dictionaries, tuples and views, and calls nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        """What stands for a global. Raises BadInput for one that no tensor needs."""
        if module == "torch" and name in _KINDS:
            return name
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _view
        raise BadInput(f"it asks for {quoted(f'{module}.{name}')}, which no weights need")

    def persistent_load(self, pid: Any) -> _Storage:
        """What stands for an array of the file."""
        match pid:
            case ("storage", str(kind), str(key), str(), int(count)):
                return _Storage(kind, key, count)
        raise BadInput(f"it refers to {quoted(pid)}, which is no array")


def read_header(path: epath.Path, problems: list[str]) -> dict[str, StoredTensor] | None:
    """The tensors of a file; None where it cannot be used.

    Adds a line to `problems` for everything wrong: no zip, members compressed or cut short, a
    pickle that asks for more than tensors, a tensor that is no whole row-major array.
    """
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            return _tensors(path, file, archive, problems)
    except (OSError, ValueError, zipfile.BadZipFile, pickle.UnpicklingError) as e:
        problems.append(f"{path}: not read: {e}; only plain weights of torch.save are")
    except Exception as e:  # a damaged pickle raises whatever its bytes spell
        problems.append(f"{path}: damaged ({type(e).__name__}); copy it again")
    return None


def _tensors(path, file, archive, problems) -> dict[str, StoredTensor]:
    pickles = [name for name in archive.namelist() if name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise BadInput(f"it has {len(pickles)} members data.pkl, not one")
    if archive.getinfo(pickles[0]).file_size > _MAX_PICKLE:
        raise BadInput(f"its data.pkl has over {_MAX_PICKLE // 2**20} MiB")
    root = pickles[0].removesuffix("data.pkl")
    order = f"{root}byteorder"
    if order in archive.namelist() and archive.read(order) != b"little":
        raise BadInput("its arrays are not little endian")
    whole = _Reader(io.BytesIO(archive.read(pickles[0]))).load()
    if not isinstance(whole, dict):
        raise BadInput(f"it holds {quoted(type(whole).__name__)}, no dictionary of tensors")
    found, places = {}, {}
    for name, view in whole.items():
        try:
            if not isinstance(name, str) or not isinstance(view, _View):
                raise BadInput("no tensor")
            found[name] = _stored(path, file, archive, root, view, places)
        except (BadInput, KeyError) as e:
            problems.append(f"{path}: {quoted(name)}: {e}")
    return found


def _stored(path, file, archive, root: str, view: _View, places: dict) -> StoredTensor:
    """Where a tensor's bytes lie. Raises BadInput for what is no whole row-major array."""
    dtype, size = _KINDS[view.storage.kind]
    key = view.storage.key
    if key not in places:
        places[key] = _place(file, archive.getinfo(f"{root}data/{key}"))
    start, length = places[key]
    inner = 1
    for n, stride in zip(reversed(view.shape), reversed(view.stride), strict=True):
        if n != 1 and stride != inner:
            raise BadInput(f"its strides {view.stride} are not those of rows")
        inner *= n
    numbers = (view.offset, *view.shape)
    if any(type(n) is not int or n < 0 for n in numbers):
        raise BadInput(f"its sizes {quoted(numbers)} are not whole numbers")
    if (view.offset + math.prod(view.shape)) * size > length:
        raise BadInput(f"its array has {length} bytes, too few for {view.shape} of {dtype}")
    return StoredTensor(path, dtype, view.shape, start + view.offset * size)


def _place(file, member: zipfile.ZipInfo) -> tuple[int, int]:
    """(first byte in the file, length) of a stored member."""
    if member.compress_type != zipfile.ZIP_STORED:
        raise BadInput("its array is compressed")
    file.seek(member.header_offset)
    header = file.read(_HEADER)
    if len(header) < _HEADER or header[:4] != b"PK\x03\x04":
        raise BadInput("its array has no header; the file is damaged")
    after = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    return member.header_offset + _HEADER + after, member.file_size
