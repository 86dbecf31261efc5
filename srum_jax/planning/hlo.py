"""What an optimised program sends between chips, read from its text; and how that text is read.

The text is XLA's: computations of instructions, one a line. A loop's body counts as often as the
loop turns: where XLA does not say so, its condition's constant divided by its counter's step. TPU
programs spread a collective over several fusions that work meanwhile, some of them in loops inside,
each of which names it: what has the same channel in fusions is one, as often as the outermost runs.
There a fusion "all-reduce-scatter" holds an all-reduce of which every chip keeps its part.
"""

import collections
import dataclasses
import functools
import math
import re
from collections.abc import Mapping

KINDS = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")

_START = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{\s*$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_ARRAY = re.compile(r"\b(pred|bf16|[fsuc]\d+[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|body|branch_computations)=(?:\{([^}]*)\}|%?([\w.\-]+))")
_TURNS = re.compile(r"known_trip_count[^\d]*(\d+)")
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:true|false)_computation=%?([\w.\-]+)")
_INTEGER = re.compile(r"(\d+)\)")
_INDEX = re.compile(r"index=(\d+)")
_NAME = re.compile(r"%([\w.\-]+)")
_CHANNEL = re.compile(r"channel_id=(\d+)")
_GROUPS = re.compile(
    r"replica_groups=(?:\[\d+,(\d+)\]|\{\{([\d,]*)\}"
    r"|mesh\[([^\]]*)\](?:, device_ids=\S+)? \{([^}]*)\})"
)


@dataclasses.dataclass(frozen=True)
class Instruction:
    """A line: `name = type opcode(rest`, rest holding operands and attributes."""

    name: str
    type: str
    opcode: str
    rest: str

    @functools.cached_property
    def operands(self) -> list[str]:
        """Names of the instructions it takes."""
        return _NAME.findall(re.split(r"\)(?:,|$)", self.rest)[0])

    @property
    def index(self) -> int:
        """Which element a get-tuple-element takes, or which argument a parameter is."""
        found = _INDEX.search(self.rest) or _INTEGER.search(self.rest)
        return int(found[1])

    @property
    def called(self) -> list[str]:
        """Names of the computations it runs, the condition of a loop left out."""
        listed = [several or one for several, one in _CALLED.findall(self.rest)]
        names = [name.strip().lstrip("%") for found in listed for name in found.split(",")]
        return names + _BRANCHES.findall(self.rest)

    @property
    def integer(self) -> int | None:
        """The value of a constant that is one whole number, else None."""
        whole = self.opcode == "constant" and re.match(r"[su]32\[\]", self.type)
        found = _INTEGER.match(self.rest) if whole else None
        return int(found[1]) if found else None


@dataclasses.dataclass
class Computation:
    """Its instructions by name, in order, and the last one's, which it returns."""

    instructions: dict[str, Instruction] = dataclasses.field(default_factory=dict)
    root: Instruction | None = None

    def of(self, opcode: str) -> list[Instruction]:
        """Those of an opcode."""
        return [one for one in self.instructions.values() if one.opcode == opcode]

    @property
    def integers(self) -> dict[str, int]:
        """Its constants that are whole numbers, by name."""
        every = self.instructions.items()
        return {name: one.integer for name, one in every if one.integer is not None}


Program = Mapping[str, Computation]


def read(text: str) -> tuple[Program, str]:
    """(computations by name, name of the entry)."""
    known: dict[str, Computation] = {}
    entry, current = "", Computation()
    for line in text.splitlines():
        start = _START.match(line)
        if start:
            current = known[start[1]] = Computation()
            entry = start[1] if line.startswith("ENTRY") else entry
        elif found := _INSTRUCTION.match(line):
            one = Instruction(found[1], *_parts(found[2]))
            current.instructions[one.name] = one
            if line.lstrip().startswith("ROOT"):
                current.root = one
    return known, entry


def turns(loop: Instruction, known: Program) -> int | None:
    """How often a while runs its body, at most; None where that cannot be read."""
    count, name = _TURNS.search(loop.rest), _CONDITION.search(loop.rest)
    if count:
        return int(count[1])
    condition = known.get(name[1]) if name else None
    body = known.get(loop.called[0]) if loop.called else None
    if condition is None or body is None or len(condition.integers) != 1:
        return None
    (limit,), step = condition.integers.values(), 1
    counters = condition.of("get-tuple-element")
    if len(counters) == 1 and body.root and counters[0].index < len(body.root.operands):
        added = body.instructions.get(body.root.operands[counters[0].index])
        if added and added.opcode == "add":
            integers = body.integers
            step = next((integers[name] for name in added.operands if name in integers), 1)
    return -(-limit // max(step, 1))


def turn_of(known: Program, scope: str) -> str:
    """The computation that is one turn of a loop whose own instructions stand under the name
    `scope` (`jax.named_scope`), of loops in one another the outermost: compilers move what does
    not change into inner ones, and give loops of other scopes the same constants. Raises ValueError
    where the program has none, or several."""
    inside = re.compile(rf'op_name="[^"]*/{scope}/(?!while/)')
    every = [loop for one in known.values() for loop in one.of("while")]
    bodies = {name for loop in every for name in loop.called if name in known}
    found = [
        name
        for name in bodies
        if any(
            one.opcode != "constant" and inside.search(one.rest)
            for one in known[name].instructions.values()
        )
    ]
    found = [name for name in found if not any(name in _within(known, one) for one in found)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} loops have instructions under {scope}, not one")
    return found[0]


def _within(known: Program, name: str) -> set[str]:
    """Names of all computations that a computation runs, itself left out."""
    inside: set[str] = set()
    left = [name]
    while left:
        for one in known.get(left.pop(), Computation()).instructions.values():
            new = [called for called in one.called if called not in inside]
            inside.update(new)
            left += new
    return inside - {name}


def collectives(text: str, scope: str = "") -> dict[str, float]:
    """{kind: bytes that a chip sends} of one run of a program on ring-connected chips.

    An all-gather or reduce-scatter of n chips sends (n-1)/n of the whole array, an all-reduce twice
    that. A loop whose turns cannot be read counts once. `scope`: of one turn of the loop that
    `turn_of` finds.
    """
    known, entry = read(text)
    entry = turn_of(known, scope) if scope else entry
    totals: collections.Counter[str] = collections.Counter()
    once: dict[tuple[str, str], float] = {}  # (kind, channel) in fusions -> bytes of all turns

    def visit(name: str, times: int, fused: bool) -> None:
        computation = known.get(name, Computation())
        for one in computation.instructions.values():
            opcode = one.opcode
            kind = opcode.removesuffix("-start").removesuffix("-done")
            if kind in KINDS:
                if opcode.endswith("-start"):  # returns what goes in too: it counts where it ends
                    continue
                channel, size = _sent(kind, one, computation)
                if name.startswith("all-reduce-scatter") and kind == "all-reduce":
                    kind, size = "reduce-scatter", size / 2
                if fused and channel:
                    once[kind, channel] = min(once.get((kind, channel), math.inf), times * size)
                else:
                    totals[kind] += times * size
            elif opcode not in ("async-update", "async-done"):  # they name what was called before
                inside = (turns(one, known) or 1) if opcode == "while" else 1
                for called in one.called:
                    visit(called, times * inside, fused or opcode == "fusion")

    visit(entry, 1, False)
    for (kind, _), size in once.items():
        totals[kind] += size
    return dict(totals)


def _parts(text: str) -> tuple[str, str, str]:
    """(type, opcode, rest) of an instruction after its "="."""
    depth = end = 0
    for end, letter in enumerate(text):  # noqa: B007
        depth += (letter in "([{") - (letter in ")]}")
        if letter == " " and depth == 0:
            break
    opcode, _, rest = text[end + 1 :].partition("(")
    return text[:end], opcode.strip(), rest


def _bytes(result: str) -> float:
    """Of all arrays in a type."""
    return sum(itemsize(kind) * math.prod(shape) for kind, shape in arrays(result))


def arrays(result: str) -> list[tuple[str, list[int]]]:
    """(kind of number, shape) of every array in a type."""
    return [(k, [int(n) for n in s.split(",") if n]) for k, s in _ARRAY.findall(result)]


def itemsize(kind: str) -> float:
    """Bytes of a number, as XLA calls its kind: "bf16", "pred"."""
    return (8 if kind == "pred" else int(re.search(r"\d+", kind)[0])) / 8


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


def _sent(kind: str, done: Instruction, inside: Computation) -> tuple[str, float]:
    """(channel or "", bytes that a chip sends) of a finished collective."""
    rest = done.rest
    if done.opcode.endswith("-done"):
        started = inside.instructions.get(done.operands[-1]) if done.operands else None
        rest = started.rest if started else ""
    channel = _CHANNEL.search(rest)
    size, n = _bytes(done.type), _group(rest)
    if kind != "collective-permute":
        whole = {"reduce-scatter": n * size, "all-reduce": 2 * size}.get(kind, size)
        size = whole * (n - 1) / n
    return channel[1] if channel else "", size
