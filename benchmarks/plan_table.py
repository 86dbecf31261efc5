"""Where do BAGEL-7B-MoT and Janus-Pro fit? Plans of machines and recipes, and the tables of them.

    pip install -e ".[plan-tpu]" and, for the H200 rows, ".[plan-gpu]"
    nice python benchmarks/plan_table.py                      # makes what is missing or outdated
    python benchmarks/plan_table.py --rows v5e-16-default-8k  # only these, by commas
    python benchmarks/plan_table.py --check                   # marks what is outdated, makes none
    python benchmarks/plan_table.py --table                   # the page alone

Each row is a file docs/plans/<row>.json, the plan as `--plan_out` writes it. A row is outdated
where a version, or a program as it is lowered now, is another than it was made of; `--check` lowers
every program, a few seconds each, and the page marks such rows. To make one takes two to five
minutes of one core and 3 GiB of memory for TPUs, less than one for H200s; rows are made one after
the other. What was not made is said in docs/scale.md.
"""

import argparse
import dataclasses
import importlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from srum_jax import config
from srum_jax.core import console
from srum_jax.core.errors import BadInput
from srum_jax.planning import budget, fitting, plan, topology
from srum_jax.planning.budget import Assumptions, Chips

ROOT = pathlib.Path(__file__).parents[1]
FOLDER, PAGE = ROOT / "docs/plans", ROOT / "docs/scale.md"
BEGIN, END = "<!-- plans: begin -->", "<!-- plans: end -->"


@dataclasses.dataclass(frozen=True)
class Row:
    """A plan to make: the table it stands in, target, what it is of, changes of the config of the
    package that is named, programs."""

    table: str  # step | stages | int8 | weak | janus
    target: str
    what: str
    changes: Mapping[str, Any]
    programs: Sequence[str]
    config: str = "bagel_7b_srum"


RECIPES = {
    "default": {"train.trainable": "gen", "train.anchor": 0.1},
    "full": {"train.trainable": "all", "train.anchor": 0.1},
    "lora": {"train.trainable": "lora", "train.anchor": 0.1},
}
# Rows of 8k tokens are the config's: two images of 1024x1024. Longer ones hold more of them.
LENGTHS = {
    "8k": {},
    "16k": {"train.lanes.und": 512, "train.lanes.gen": 16384, "train.lanes.images": 4},
    "128k": {"train.lanes.und": 4096, "train.lanes.gen": 131072, "train.lanes.images": 32},
}
# Recipes where somebody would take them: adapters on few chips, everything from where it fits.
STEPS = {
    "v5e-16": ("v5e:4x4", ("default-8k", "full-8k", "lora-8k")),
    "v5e-32": ("v5e:4x8", ("full-8k",)),
    "v6e-16": ("v6e:4x4", ("default-8k", "full-8k")),
    "v5p-16": ("v5p:2x2x4", ("default-8k",)),
    "v4-16": ("v4:2x2x4", ("default-8k",)),
    "h200-8": ("h200:8", ("default-8k", "full-8k", "lora-8k", "default-16k", "full-16k")),
}
HOSTS = {"v5e-4": "v5e:2x2", "v6e-4": "v6e:2x2", "h200-8": "h200:8"}
JANUS = {  # size -> one chip, or the fewest, that its config is planned for
    "1b": {"v5e-1": "v5e:1x1", "v6e-1": "v6e:1x1", "h200-1": "h200:1"},
    "7b": {"v5e-4": "v5e:2x2", "v6e-1": "v6e:1x1", "v5p-1": "v5p:1x1x1", "h200-1": "h200:1"},
}
SINGLE = {"v5e-1": "v5e:1x1", "v6e-1": "v6e:1x1", "h200-1": "h200:1"}
MAKING = {"stages": ("generate", "score")}
ONE = {**MAKING, "sample.batch": 1, "score.batch": 1, "score.written.batch": 1}
HALF = {"sample.size": (512, 512)}
ROADS = ("h200:8", "h100:8", "a100:8", "v5e:4x4", "v6e:4x4", "v5p:2x2x4", "v4:2x2x4")
WEAK = [f"v5e-{chips}-default-8k" for chips in (16, 64, 256)]


def _rows() -> Iterator[tuple[str, Row]]:
    def step(machine, target, recipe, length, table="step", **more):
        changes = {**RECIPES[recipe], **LENGTHS[length], **more}
        row = Row(table, target, f"{recipe} {length}", changes, ("train_step",))
        return f"{machine}-{recipe}-{length}", row

    for machine, (target, steps) in STEPS.items():
        for recipe, length in (name.split("-") for name in steps):
            yield step(machine, target, recipe, length)
    long = {"mesh.fsdp": 16, "mesh.context": 4}
    yield step("v5p-64", "v5p:4x4x4", "default", "128k", **long)
    yield step("v5e-64", "v5e:8x8", "default", "8k", table="weak")
    # 1152 features of the vision tower divide by 128, not by 256.
    yield step("v5e-256", "v5e:16x16", "default", "8k", table="weak", **{"mesh.data": 2})
    for machine, target in HOSTS.items():
        programs = ("sample", "decode", "score")
        yield f"{machine}-inference", Row("stages", target, "1024x1024", MAKING, programs)
    ask, draw = ("read_int8", "write_int8"), ("sample_int8", "decode_int8")
    for machine, target in SINGLE.items():
        yield f"{machine}-int8-ask", Row("int8", target, "1024x1024", ONE, ask)
        yield f"{machine}-int8-draw", Row("int8", target, "1024x1024", ONE, draw)
    yield "v5e-1-int8-draw-512", Row("int8", SINGLE["v5e-1"], "512x512", ONE | HALF, draw)
    every = ("train_step", "sample", "decode", "score")
    for size, machines in JANUS.items():
        for machine, target in machines.items():
            row = Row("janus", target, size.upper(), {}, every, f"janus_pro_{size}")
            yield f"{machine}-janus-{size}", row


ROWS = dict(_rows())


def configured(changes: Mapping[str, Any], name: str = "bagel_7b_srum") -> config.Config:
    """The config `name` of the package with other values at dotted keys."""
    values = importlib.import_module(f"srum_jax.configs.{name}").get_config()
    values.update_from_flattened_dict(dict(changes))
    assert isinstance(values, ConfigDict)
    return config.load(values)


def read(name: str) -> dict | None:
    """The committed plan of a row, None where there is none."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def write(name: str, made: Mapping[str, Any]) -> None:
    """The plan of a row into its file."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")


def outdated(name: str, made: Mapping[str, Any]) -> list[str]:
    """What is other now than a row was made of: "versions" (of a compiler that is not installed
    here, any will do), or names of programs. A program is what its compiler is handed, so a key of
    the config that changes no program outdates nothing.

    Raises BadInput where programs cannot be lowered, as their compiler is not installed.
    """
    row = ROWS[name]
    cfg = configured(row.changes, row.config)
    target = topology.parse(row.target)
    if not plan.versions(target).items() <= made["versions"].items():
        return ["versions"]
    then = {program: made["programs"][program].get("digest") for program in row.programs}
    if not all(then.values()):
        return [program for program, digest in then.items() if digest is None]
    now = plan.digests(cfg, target, row.programs)
    return [program for program in row.programs if then[program] != now[program]]


def mark(name: str) -> bool:
    """Writes into the file of a row what of it is outdated; whether it is there and nothing is."""
    made = read(name)
    if made is None:
        return False
    found = outdated(name, made)
    if found != made.get("outdated", []):
        write(name, made | {"outdated": found})
    return not found


def make(name: str) -> None:
    """Makes one row."""
    row = ROWS[name]
    target = topology.parse(row.target)
    made = plan.plan(configured(row.changes, row.config), target, only=row.programs)
    write(name, {"row": name, "what": row.what, "changes": row.changes, **made})
    print("\n".join(plan.lines(made)), flush=True)


# ---------------------------------------------------------------------------------- the page


NUMBERS = {"rows", "peak, GiB", "ideal", "kept, GiB", "usable, GiB", "TFLOP", "sent a chip, GiB"}
NUMBERS |= {"PFLOP", "hours", "disk", "in all, h", "chip-hours"}
NUMBERS |= {f"{stage}, h" for stage in config.STAGES}


def _table(head: Sequence[str], lines: Sequence[Sequence[str]], missing: Sequence[str]) -> str:
    """Markdown, numbers to the right, and what is not in it."""
    sides = ["--:" if name in NUMBERS else "---" for name in head]
    parts = [f"| {' | '.join(row)} |" for row in (head, *lines)]
    parts.insert(1, f"|{'|'.join(sides)}|")
    if missing:
        parts += ["", f"Not made: {'; '.join(missing)}."]
    return "\n".join(parts)


def _of(*tables: str) -> tuple[list[tuple[Row, dict]], list[str]]:
    """(rows of tables with their plans, names of those that were not made)."""
    rows = [(row, read(name)) for name, row in ROWS.items() if row.table in tables]
    missing: dict[str, list[str]] = {}
    for row, made in rows:
        if made is None:
            programs = [program.removesuffix("_int8") for program in row.programs]
            label = row.what if "step" in tables else f"{', '.join(programs)} {row.what}"
            missing.setdefault(row.target, []).append(label)
    said = [f"{target} ({', '.join(labels)})" for target, labels in missing.items()]
    return [(row, made) for row, made in rows if made is not None], said


def _marked(words: str, made: Mapping[str, Any]) -> str:
    """A row's name, with a mark if it is outdated."""
    return f"{words} †" if made.get("outdated") else words


def _kept(entry: Mapping[str, Any]) -> float:
    return math.fsum(size for part, size in entry["parts_gib"].items() if part != "temporaries")


def _sent(entry: Mapping[str, Any]) -> float:
    return math.fsum(entry["collective_gib"].values())


MEMORY = ["fits", "peak, GiB", "kept, GiB", "usable, GiB", "TFLOP", "sent a chip, GiB"]


def _memory(made: Mapping[str, Any], entry: Mapping[str, Any]) -> list[str]:
    return [
        "yes" if entry["fits"] else "**no**",
        f"{entry['peak_gib']:.2f}" if "peak_gib" in entry else "",
        f"{_kept(entry):.2f}",
        f"{made['hbm_gib']:g}",
        f"{entry['flops'] / 1e12:,.0f}" if "flops" in entry else "",
        f"{_sent(entry):,.1f}" if entry.get("collective_gib") else "",
    ]


def steps() -> str:
    """The table of training steps."""
    head = ["machine", "recipe, row", *MEMORY, "attention", "how"]
    rows, missing = _of("step")
    lines = []
    for row, made in rows:
        entry = made["programs"]["train_step"]
        cells = [_marked(row.target, made), row.what, *_memory(made, entry)]
        lines.append([*cells, entry["attention"], entry["how"]])
    return _table(head, lines, missing)


def inference(table: str, what: str = "images") -> str:
    """The table of the programs of "stages", "int8" or "janus", and the name of its rows."""
    rows, missing = _of(table)
    lines = []
    for row, made in rows:
        for program, entry in made["programs"].items():
            call = {name: entry[name] for name in ("images", "answers") if name in entry}
            said = ", ".join(f"{n} {name if n > 1 else name[:-1]}" for name, n in call.items())
            said = f"{said} a call" if said else f"{made['rows']} rows"
            said = f"{program.removesuffix('_int8')}, {said}"
            name = _marked(row.target, made)
            lines.append([name, row.what, said, *_memory(made, entry), entry["how"]])
    return _table(["machine", what, "program", *MEMORY, "how"], lines, missing)


def weak() -> str:
    """The table of machines that grow with their rows, beside what would be ideal."""
    head = ["chips", "mesh", "rows", "peak, GiB", "ideal", "sent a chip, GiB", "ideal"]
    plans = {name: read(name) for name in WEAK}
    lines, first = [], None
    for made in filter(None, plans.values()):
        entry, chips = made["programs"]["train_step"], made["chips"]
        if first is None:
            first = {"chips": chips, "kept": _kept(entry), "sent": _sent(entry)}
            first["temporaries"] = entry["parts_gib"]["temporaries"]
        fewer = first["chips"]
        memory = first["kept"] * fewer / chips + first["temporaries"]
        sent = first["sent"] * ((chips - 1) / chips) / ((fewer - 1) / fewer)
        mesh = " x ".join(f"{axis} {n}" for axis, n in made["mesh"].items() if n > 1)
        cells = [f"{entry['peak_gib']:.2f}", f"{memory:.2f}", f"{_sent(entry):.1f}", f"{sent:.1f}"]
        lines.append([_marked(str(chips), made), mesh, str(made["rows"]), *cells])
    return _table(head, lines, [ROWS[name].target for name, made in plans.items() if not made])


def _taken(target: str) -> budget.Budget:
    """What the config itself takes on a machine, with what is assumed where nothing is said."""
    on = topology.parse(target)
    return budget.estimate(fitting.fitted(configured({}), on)[0], Chips.of(on), Assumptions())


def road() -> str:
    """The table of the whole run, a stage a line, on the first machine."""
    return _table(budget.COLUMNS[:-1], [row[:-1] for row in budget.rows(_taken(ROADS[0]))], ())


def roads() -> str:
    """The table of the hours of the whole run on several machines."""
    found = {target: _taken(target) for target in ROADS}
    stages = [one.stage for one in found[ROADS[0]].stages if one.calls]
    head = ["machine", *(f"{stage}, h" for stage in stages), "in all, h", "chip-hours"]
    lines = []
    for target, one in found.items():
        hours = {s.stage: s.seconds / budget.HOUR for s in one.stages if s.calls}
        total = one.seconds / budget.HOUR
        cells = [f"{hours[stage]:.1f}" for stage in stages]
        lines.append([target, *cells, f"{total:.1f}", f"{total * one.chips.count:,.0f}"])
    return _table(head, lines, ())


def notes() -> str:
    """What was tried where a program did not fit."""
    said = []
    for name, row in ROWS.items():
        for one in (read(name) or {"tried": []})["tried"]:
            peak = f", {one['peak_gib']:.2f} GiB" if "peak_gib" in one else ""
            says = "fits" if one["fits"] else "does not fit"
            program = one["program"].removesuffix("_int8")
            said.append(f"- {row.target}, {row.what}: {program} with {one['change']} {says}{peak}.")
    return "\n".join(said) or "Nothing: every program that was looked at fits."


def page() -> str:
    """All tables, rows that were not made or are outdated too."""
    parts = {
        f"The whole road on {ROADS[0]}": road(),
        "The whole road on other machines": roads(),
        "Training steps": steps(),
        "More chips, more rows": weak(),
        "Drawing, decoding and scoring": inference("stages"),
        "On one chip, with int8 weights": inference("int8"),
        "Janus-Pro, adapters on one chip or few": inference("janus", "size"),
        "Tried where a program did not fit": notes(),
    }
    old = any((read(name) or {}).get("outdated") for name in ROWS)
    head = ["† compiled from these programs as they were before later changes.", ""] if old else []
    return "\n".join(head) + "\n\n".join(f"### {title}\n\n{text}" for title, text in parts.items())


def rewrite() -> None:
    """The tables between their markers in docs/scale.md."""
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{page()}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="names, by commas; default: all")
    parser.add_argument("--check", action="store_true", help="make no row, mark what is outdated")
    parser.add_argument("--table", action="store_true", help="make and mark no row")
    options = parser.parse_args()
    console.log_to_stderr()
    names = options.rows.split(",") if options.rows else list(ROWS)
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    for name in [] if options.table else names:
        try:
            if not mark(name) and not options.check:
                make(name)
                rewrite()
        except BadInput as e:
            print(f"{name}: neither checked nor made: {e}", file=sys.stderr)
    rewrite()
    found = {name: (read(name) or {}).get("outdated", []) for name in ROWS}
    old = [f"{name} ({', '.join(what)})" for name, what in found.items() if what]
    if old:
        print(f"outdated: {'; '.join(old)}", file=sys.stderr)


if __name__ == "__main__":
    main()
