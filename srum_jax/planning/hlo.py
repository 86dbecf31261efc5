"""What an optimised program sends between chips, read from its text.

The text is XLA's: computations of instructions, one a line. A loop's body counts as often as the
loop turns: where XLA does not say so, its condition's constant divided by its counter's step. TPU
programs spread a collective over several fusions that work meanwhile, some of them in loops inside,
each of which names it: what has the same channel in fusions is one, as often as the outermost runs.
There a fusion "all-reduce-scatter" holds an all-reduce of which every chip keeps its part.
"""

import collections
import dataclasses
import math
import re

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_START = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_TURNS = re.compile(r"known_trip_count[^\d]*(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_INTEGER = re.compile(r"^[su]32\[\]\S* constant\((\d+)\)")
_INDEX = re.compile(r"index=(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}"
    r"|mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\})"
)


@dataclasses.dataclass
class _Computation:
    """Its collectives as (channel or "", kind, bytes); what it calls, how often (or the name of the
    condition that says so), and whether as a fusion. For a loop's counter: integer constants by
    name, indices of what it takes out of its argument, sums by name, what it returns."""

    sends: list[tuple[str, str, float]] = dataclasses.field(default_factory=list)
    calls: list[tuple[str, int | str, bool]] = dataclasses.field(default_factory=list)
    constants: dict[str, int] = dataclasses.field(default_factory=dict)
    indices: list[int] = dataclasses.field(default_factory=list)
    sums: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    root: list[str] = dataclasses.field(default_factory=list)


def collectives(text: str) -> dict[str, float]:
    """{kind: bytes that a chip sends} of one run of a program on ring-connected chips.

    An all-gather or reduce-scatter of n chips sends (n-1)/n of the whole array, an all-reduce twice
    that. A loop whose turns cannot be read counts once.
    """
    known, entry = _read(text)
    totals: collections.Counter[str] = collections.Counter()
    once: dict[tuple[str, str], float] = {}  # (kind, channel) in fusions -> bytes of all turns

    def visit(name: str, times: int, fused: bool) -> None:
        found = known.get(name, _Computation())
        for channel, kind, size in found.sends:
            if name.startswith("all-reduce-scatter") and kind == "all-reduce":
                kind, size = "reduce-scatter", size / 2
            if fused and channel:
                once[kind, channel] = min(once.get((kind, channel), math.inf), times * size)
            else:
                totals[kind] += times * size
        for called, turns, fusion in found.calls:
            if isinstance(turns, str):
                turns = _turns(known.get(turns, _Computation()), known.get(called, _Computation()))
            visit(called, times * turns, fused or fusion)

    visit(entry, 1, False)
    for (kind, _), size in once.items():
        totals[kind] += size
    return dict(totals)


def _turns(condition: _Computation, body: _Computation) -> int:
    """Of a loop that counts from 0 up to a constant, 1 where that cannot be read."""
    if len(condition.constants) != 1:
        return 1
    (limit,), step = condition.constants.values(), 1
    if len(condition.indices) == 1 and condition.indices[0] < len(body.root):
        added = body.sums.get(body.root[condition.indices[0]], [])
        step = next((body.constants[name] for name in added if name in body.constants), 1)
    return -(-limit // max(step, 1))


def _read(text: str) -> tuple[dict[str, _Computation], str]:
    """(computations by name, name of the entry)."""
    known: dict[str, _Computation] = {}
    started: dict[str, str] = {}  # instruction of the computation at hand -> its operands and rest
    entry, current = "", _Computation()
    for line in text.splitlines():
        start = _START.match(line)
        if start:
            current, started = _Computation(), {}
            known[start[1]] = current
            entry = start[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            _add(current, started, found[1], found[2])
            if line.lstrip().startswith("ROOT"):
                current.root = _operands(_parts(found[2])[2])
    return known, entry


def _add(into: _Computation, started: dict[str, str], name: str, text: str) -> None:
    integer = _INTEGER.match(text)
    if integer:
        into.constants[name] = int(integer[1])
        return
    result, opcode, rest = _parts(text)
    if opcode == "get-tuple-element":
        into.indices.append(int(_INDEX.search(rest)[1]))
        return
    if opcode == "add":
        into.sums[name] = _operands(rest)
        return
    kind = opcode.removesuffix("-start").removesuffix("-done")
    if kind in KINDS:
        if opcode.endswith("-start"):  # returns what goes in too: it counts where it is done
            started[name] = rest
            return
        if opcode.endswith("-done"):
            rest = started.get(rest.partition(")")[0].split("%")[-1], "")
        channel = _CHANNEL.search(rest)
        into.sends.append((channel[1] if channel else "", kind, _sent(kind, result, rest)))
        return  # what it applies is the sum of two numbers
    if opcode in ("async-update", "async-done"):
        return  # name the computation that was called at the start
    turns: int | str = 1
    if opcode == "while":
        count, condition = _TURNS.search(rest), _CONDITION.search(rest)
        turns = int(count[1]) if count else condition[1] if condition else 1
    for several, one in _CALLED.findall(rest):
        for called in (several or one).split(","):
            into.calls.append((called.strip().lstrip("%"), turns, opcode == "fusion"))


def _parts(text: str) -> tuple[str, str, str]:
    """(type, opcode, rest) of an instruction after its "="."""
    depth = end = 0
    for end, letter in enumerate(text):  # noqa: B007
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            break
    opcode, _, rest = text[end + 1 :].partition("(")
    return text[:end], opcode.strip(), rest


def _operands(rest: str) -> list[str]:
    """Names of the operands of an instruction, from what follows its opcode and bracket."""
    return _NAME.findall(re.split(r"\)(?:,|$)", rest)[0])


def _bytes(result: str) -> float:
    """Of all arrays in a type."""
    total = 0.0
    for kind, shape in _ARRAY.findall(result):
        bits = 8 if kind == "pred" else int(re.search(r"\d+", kind)[0])
        total += math.prod(int(n) for n in shape.split(",") if n) * bits / 8
    return total


def _group(rest: str) -> int:
    """How many chips take part in a collective."""
    found = _GROUPS.search(rest)
    if not found:
        return 2
    if found[1]:
        return int(found[1])
    if found[3]:
        axes = dict(axis.replace("'", "").split("=") for axis in found[3].split(","))
        return math.prod(int(axes[name.strip(" '")]) for name in found[4].split(","))
    return found[2].count(",") + 1


def _sent(kind: str, result: str, rest: str) -> float:
    """Bytes that a chip sends for a finished collective of type `result`."""
    size, n = _bytes(result), _group(rest)
    if kind == "collective-permute":
        return size
    whole = {"reduce-scatter": n * size, "all-reduce": 2 * size}.get(kind, size)
    return whole * (n - 1) / n
