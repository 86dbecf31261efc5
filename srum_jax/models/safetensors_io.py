"""The safetensors file format: headers read and checked, tensors read in blocks, files written.

A file is 8 bytes of header length (little endian), a JSON header {name: {"dtype", "shape",
"data_offsets"}}, and the tensors, row-major, one behind the other. Reading goes by seek and read,
never by mapping a file: so it works for buckets and what is resident is what was asked for.

The format's own library (0.8.0; `tests/models/test_safetensors.py` holds what is said here) tells
only the first thing that is wrong with a header, and of a file cut short neither tensor nor byte;
takes a header that names a tensor twice; opens no address of a bucket; maps the file, so that one
that shrinks meanwhile kills the process; and writes from a whole dictionary of tensors in memory.
Here a file is checked for everything wrong with it at once, and written tensor by tensor, as they
come from the devices.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import listed, quoted

DTYPES = {  # names of the format that are read and written here, smallest steps first
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F16": np.dtype(np.float16),
    "F32": np.dtype(np.float32),
}
_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 8),
}
_MAX_HEADER = 100_000_000  # bytes; the limit of the format's own library
_MAX_AXES = 64  # of a tensor: as many as NumPy has
_BLOCK = 2**23  # bytes read at a time
_TILE = 64  # columns of a transposed array copied at a time


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file: the format's name of its dtype, its shape, its first byte there."""

    path: epath.Path
    dtype: str
    shape: tuple[int, ...]
    start: int


def read_header(path: epath.Path, problems: list[str]) -> dict[str, StoredTensor] | None:
    """The tensors of a file; None where the header as a whole cannot be used.

    Adds a line to `problems` for everything wrong: no or an oversized header, not JSON, malformed
    entries, offsets that overlap, leave gaps or point past the end, a file cut short.
    """
    try:
        size, entries = _header(path)
    except (OSError, ValueError) as e:
        problems.append(f"{path}: not a readable safetensors file ({e})")
        return None
    data = files.length(path) - size
    found, spans = {}, []
    for name, entry in entries.items():
        try:
            start, end, tensor = _entry(path, size, entry)
        except (KeyError, TypeError, ValueError) as e:
            what = f"field {e} is missing" if isinstance(e, KeyError) else e
            where = f"{path}: the header's entry of {quoted(name)}"
            problems.append(f"{where} is malformed ({what})")
        else:
            found[name] = tensor
            spans.append((start, end, name))
    spans.sort()
    last = (0, 0, "the header")
    for span in spans:
        if span[0] < last[1]:
            problems.append(f"{path}: {span[2]} overlaps {last[2]}: {span[:2]} and {last[:2]}")
        elif span[0] > last[1] and len(found) == len(entries):
            problems.append(f"{path}: {span[0] - last[1]} bytes before {span[2]} belong to nothing")
        last = max(last, span, key=lambda s: s[1])
    if last[1] > data:
        problems.append(
            f"{path}: cut short: {last[2]} ends at byte {last[1]} of the data, the file has "
            f"{data}; copy it again"
        )
    elif last[1] < data and len(found) == len(entries):
        problems.append(f"{path}: {data - last[1]} bytes at the end belong to no tensor")
    return found


def _header(path: epath.Path) -> tuple[int, dict[str, Any]]:
    """(position of the first byte of data, the header's entries)."""
    length = files.length(path)
    with path.open("rb") as file:
        start = file.read(512)
        size = int.from_bytes(start[:8], "little")
        if length < 8 or size > min(_MAX_HEADER, length - 8):
            raise ValueError(
                files.mistaken(start)
                or f"its first 8 bytes announce a header of {size} bytes, the file has {length} "
                f"and {_MAX_HEADER} are the limit"
            )
        file.seek(8)
        entries = files.parse_json(file.read(size), "the header")
    if not isinstance(entries, dict):
        raise ValueError("the header is not a JSON object")
    entries.pop("__metadata__", None)
    return 8 + size, entries


def _entry(path: epath.Path, first: int, entry: Any) -> tuple[int, int, StoredTensor]:
    """(start, end) in the data, and the tensor; raises where the header's entry is wrong."""
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    for numbers in (shape, offsets):
        if not isinstance(numbers, list) or any(type(n) is not int or n < 0 for n in numbers):
            raise ValueError(f"{quoted(numbers)} must be a list of whole numbers")
    start, end = offsets
    if not isinstance(dtype, str) or dtype not in _BYTES:
        raise ValueError(f"dtype {quoted(dtype)} is unknown")
    if len(shape) > _MAX_AXES or max([end, *shape]) >= 2**63:
        raise ValueError(f"{quoted(shape)} at {quoted(offsets)} is larger than any file")
    if end - start != math.prod(shape) * _BYTES[dtype]:
        raise ValueError(f"{dtype} {tuple(shape)} does not fill the bytes {start} to {end}")
    return start, end, StoredTensor(path, dtype, tuple(shape), first + start)


def rows(
    file: BinaryIO, tensor: StoredTensor, start: int, stop: int, *, multiple: int = 1
) -> Iterator[tuple[int, np.ndarray]]:
    """Yields (first row, block) of the rows [start, stop) of a tensor, [n, …] in its own dtype.

    Blocks have at most 8 MiB but at least `multiple` rows, and start at multiples of it beyond
    `start`. `file` is the open tensor.path. Raises ValueError where the file ends early.
    """
    dtype = DTYPES[tensor.dtype]
    row = math.prod(tensor.shape[1:]) * dtype.itemsize
    step = max(_BLOCK // max(row * multiple, 1), 1) * multiple
    file.seek(tensor.start + start * row)
    for first in range(start, stop, step):
        count = min(step, stop - first)
        data = file.read(count * row)
        if len(data) < count * row:
            raise ValueError(f"{tensor.path}: ended while it was read; copy it again")
        yield first, np.frombuffer(data, dtype).reshape(count, *tensor.shape[1:])


def finite(values: np.ndarray) -> bool:
    """Whether none of the values, of a dtype in `DTYPES`, is NaN or infinite.

    Of 16-bit values by their exponents, which is three times as fast as NumPy's own.
    """
    if values.itemsize > 2 or not values.size:
        return bool(np.isfinite(values).all())
    infinity = int(np.array(np.inf, values.dtype).view(np.uint16))
    return int((values.view(np.uint16) & np.uint16(0x7FFF)).max()) < infinity


def check_finite(path: epath.PathLike, broken: Collection[str]) -> None:
    """ValueError naming the tensors of `broken`, whose values are not `finite`, if any."""
    if broken:
        raise ValueError(
            f"{path}: NaN or infinite numbers in {len(broken)} of its tensors:"
            f"{listed(sorted(broken), 10)}\nNothing right can come of them: copy the file again; "
            "what overflowed when it was written as float16 must be written as bfloat16"
        )


def assign(out: np.ndarray, values: np.ndarray) -> None:
    """out[...] = values, cast to out's dtype, for arrays of the same shape.

    Several times faster than NumPy's own for what is transposed and for bfloat16: transposed values
    are taken in tiles that stay in the processor's cache, bits are moved as whole numbers.
    """
    step = out.shape[-1] if values.strides[-1] == values.itemsize else _TILE
    for first in range(0, out.shape[-1], step):
        _move(out[..., first : first + step], values[..., first : first + step])


def _move(out: np.ndarray, values: np.ndarray) -> None:
    if out.dtype == values.dtype:
        kind = f"u{out.itemsize}"
        out.view(kind)[...] = values.view(kind)
    elif (values.dtype, out.dtype) == (DTYPES["BF16"], DTYPES["F32"]):
        np.left_shift(values.view(np.uint16), 16, out=out.view(np.uint32), dtype=np.uint32)
    else:
        out[...] = values.astype(out.dtype)


def size(name: str, shape: tuple[int, ...], dtype: str) -> int:
    """Bytes that a tensor takes in a file, with an upper bound of its part of the header."""
    return math.prod(shape) * DTYPES[dtype].itemsize + 6 * len(name) + 160


def write(
    path: epath.Path,
    kinds: Sequence[tuple[str, tuple[int, ...], str]],
    tensors: Iterable[np.ndarray],
) -> None:
    """Writes a file tensor by tensor; it appears under its name when it is whole.

    `kinds` are (name, shape, dtype as in `DTYPES`) of all tensors, known before the first value
    is; `tensors` yields them in that order, in any dtype and memory layout.
    """
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, shape, dtype in kinds:
        start, end = end, end + math.prod(shape) * _BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def chunks():
        yield len(text).to_bytes(8, "little") + text
        for (name, shape, dtype), tensor in zip(kinds, tensors, strict=True):
            assert tensor.shape == tuple(shape), f"{name}: {tensor.shape}, announced {shape}"
            yield from _bytes(tensor, DTYPES[dtype])

    files.write_bytes(path, chunks())


def _bytes(tensor: np.ndarray, dtype: np.dtype) -> Iterator[memoryview]:
    """The row-major bytes of a tensor in blocks: a transposed one is not copied as a whole."""
    row = math.prod(tensor.shape[1:]) * dtype.itemsize
    step = max(_BLOCK // max(row, 1), 1)
    for first in range(0, len(tensor), step):
        part = tensor[first : first + step]
        block = np.empty(part.shape, dtype)
        assign(block, part)
        yield memoryview(block.reshape(-1).view(np.uint8))
