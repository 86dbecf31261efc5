"""Bytes that a compiled program moves between a chip's memory and its units, read from its text.

An instruction reads what it takes and writes what it returns, each whole, padded to the tiles that
a TPU keeps it in. Of an array that is only sliced or looked up in, what is taken counts; of one
that is changed in place, what is put in. What lies on the chip itself (VMEM and the like, a layout
with S(n)) is not moved, and neither is what has another name without a copy. Caches of a chip,
which may keep a small array between two instructions, are not known: figures are from above.
"""

import itertools
import math
import re
from collections.abc import Iterator

from srum_jax.planning import hlo
from srum_jax.planning.hlo import Computation, Instruction, Program

_ARRAY = re.compile(r"(pred|bf16|[fsuc]\d+[a-z0-9]*)\[([\d,]*)\](?:\{([^}]*)\})?")
_ON_CHIP = re.compile(r"S\([1-9]\d*\)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_SAME = ("bitcast", "copy-done", "opt-barrier")  # another name for its operand
_PARTS = ("slice", "dynamic-slice", "gather")  # read what they return
_IN_PLACE = {"dynamic-update-slice": 1, "scatter": 2}  # opcode -> which operand is put in
_FREE = {
    *(*_SAME, "parameter", "constant", "tuple", "get-tuple-element", "after-all"),
    *("partition-id", "replica-id"),
}
_FREE_CALLS = re.compile(r'custom_call_target="(?:ConcatBitcast|AllocateBuffer|ZeroCrop|Sharding)"')


def moved(text: str, scope: str = "") -> float:
    """Bytes of one run of a program or, with `scope`, of one turn of the loop that `hlo.turn_of`
    finds. A loop whose turns cannot be read counts once."""
    known, entry = hlo.read(text)
    return _moved(hlo.turn_of(known, scope) if scope else entry, known)


def _moved(name: str, known: Program) -> float:
    computation = known.get(name, Computation())
    return sum(_of(one, computation, known) for one in computation.instructions.values())


def _of(one: Instruction, inside: Computation, known: Program) -> float:
    """Bytes of one instruction of the computation `inside`."""
    opcode = one.opcode
    if opcode in _FREE or opcode.endswith(("-done", "-update")):
        return 0
    taken = [inside.instructions[name] for name in one.operands if name in inside.instructions]
    match opcode:
        case "while":
            return (hlo.turns(one, known) or 1) * sum(_moved(name, known) for name in one.called)
        case "conditional":
            return max((_moved(name, known) for name in one.called), default=0)
        case "call" | "async-start":
            return sum(_moved(name, known) for name in one.called)
        case "fusion":
            body = known.get(one.called[0], Computation())
            reads = (_read(place, array, body, known) for place, array in enumerate(taken))
            return sum(reads) + _written(one, body, known)
        case "custom-call" if _FREE_CALLS.search(one.rest):
            return 0
        case "copy-start":  # (where to, where from, a flag)
            return _size(taken[0].type) + next(_sizes(one.type))
        case "slice-start" | "dynamic-slice-start":  # (where from, where to, a flag)
            to = list(_sizes(one.type, everywhere=True))[-2]
            return to * _here(taken[0].type) + list(_sizes(one.type))[-2]
    if opcode in _PARTS:
        return _whole(one.type) * (_here(taken[0].type) + _here(one.type))
    if opcode in _IN_PLACE:
        put = taken[_IN_PLACE[opcode]]
        return _size(put.type) + _whole(put.type) * _here(one.type)
    return sum(_size(array.type) for array in taken) + _size(one.type)


def _read(place: int, array: Instruction, body: Computation, known: Program) -> float:
    """Bytes that a fusion reads of its operand number `place`."""
    if not _here(array.type):
        return 0
    found = [one for one in body.of("parameter") if one.index == place]
    part = _used(found[0].name, body, known) if found else None
    whole = _size(array.type)
    return whole if part is None else min(whole, part)


def _used(name: str, body: Computation, known: Program) -> float | None:
    """Bytes that are looked at of an array inside a fusion; None: all of it."""
    if body.root is None or body.root.name == name:
        return None
    total = 0.0
    for user in body.instructions.values():
        for place in (i for i, operand in enumerate(user.operands) if operand == name):
            if user.opcode in _PARTS and place == 0:
                part = _whole(user.type)
            elif user.opcode in _IN_PLACE and place == 0:
                part = 0
            elif user.opcode in (*_SAME, "copy"):  # a copy in other tiles is none inside a fusion
                part = _used(user.name, body, known)
            elif user.opcode == "fusion":
                inner = known.get(user.called[0], Computation())
                taken = [one for one in inner.of("parameter") if one.index == place]
                part = _used(taken[0].name, inner, known) if taken else None
                if inner.root and inner.root.opcode == "copy":  # nothing but that
                    part = _used(user.name, body, known)
            else:
                part = None
            if part is None:
                return None
            total += part
    return total


def _written(fusion: Instruction, body: Computation, known: Program) -> float:
    """Bytes that a fusion writes."""
    if body.root is None:
        return _size(fusion.type)
    names = body.root.operands if body.root.opcode == "tuple" else [body.root.name]
    total = 0.0
    for size, name in itertools.zip_longest(_sizes(fusion.type), names):
        put = _put_in(body.instructions.get(name), body, known) if name else None
        total += (size or 0) if put is None else min(size or 0, put)
    return total


def _put_in(made: Instruction | None, body: Computation, known: Program) -> float | None:
    """Bytes of what a value differs in from the array it is made of in place; None: in all."""
    while made is not None and made.opcode in _SAME:
        made = body.instructions.get(made.operands[0])
    if made is None:
        return None
    if made.opcode == "fusion":
        inner = known.get(made.called[0], Computation())
        return _put_in(inner.root, inner, known)
    if made.opcode in _IN_PLACE:
        put = body.instructions.get(made.operands[_IN_PLACE[made.opcode]])
        return _whole(put.type) if put else None
    return None


# ------------------------------------------------------------------------------------------ sizes


def _size(result: str) -> float:
    """Bytes of a type's arrays in the chip's memory."""
    return sum(_sizes(result))


def _whole(result: str) -> float:
    """The same wherever they lie."""
    return sum(_sizes(result, everywhere=True))


def _here(result: str) -> bool:
    """Whether any of them lies in the chip's memory."""
    return any(not _ON_CHIP.search(layout) for _, _, layout in _ARRAY.findall(result))


def _sizes(result: str, everywhere: bool = False) -> Iterator[float]:
    """Bytes of each array of a type, 0 of those on the chip itself unless `everywhere`."""
    for kind, dimensions, layout in _ARRAY.findall(result):
        shape = [int(n) for n in dimensions.split(",") if n]
        order, _, _ = layout.partition(":")
        minor = [int(n) for n in order.split(",") if n] or list(range(len(shape)))[::-1]
        tile = _TILE.search(layout)
        sides = [int(n) for n in tile[1].split(",")][::-1] if tile else []
        for axis, side in zip(minor, sides, strict=False):
            shape[axis] = -(-shape[axis] // side) * side
        counted = everywhere or not _ON_CHIP.search(layout)
        yield counted * hlo.itemsize(kind) * math.prod(shape)
