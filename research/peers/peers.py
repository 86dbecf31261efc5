"""The numbers of other programs beside ours, for the same replies.

    python research/peers/peers.py OUT [OUT …] --python VENV/bin/python --checkouts DIR

OUT is a results folder of `use evaluate` (or of `invented.py`). Each program that knows its suite
and is there scores the replies in it: lmms-eval, installed in VENV, and the official programs of
the benchmarks, in checkouts that lie in DIR. What was scored is not scored again. `--needs` says
what each program needs. Nothing of these programs is part of this repository.
"""

import argparse
import datetime
import importlib
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import lmms_tasks
import official
import official_judged

from srum_jax.core import files, registry
from srum_jax.core.errors import BadInput
from srum_jax.evals import suite_folder
from srum_jax.evals.suite import Record

TOLERANCE = 1e-9  # relative to the larger number


class Program(Protocol):
    """Another program that scores replies of a suite.

    name: of the program · suite: ours that it stands beside · needs: packages that its interpreter
    must have · digits: to which its numbers are rounded, None: not.
    """

    name: str
    suite: str
    needs: Sequence[str]
    digits: int | None


PROGRAMS: tuple[Any, ...] = (
    *lmms_tasks.TASKS,
    *official.PROGRAMS,
    *official_judged.PROGRAMS,
)


def ours(suite: str, records: Sequence[Record]) -> dict[str, float]:
    """Our numbers by the rules of the released programs."""
    found = dict(importlib.import_module(registry.SUITES[suite]).score(records).as_released)
    return found | (lmms_tasks.sums_of_mme(records) if suite == "mme" else {})


def records_of(out: pathlib.Path) -> tuple[str, list[Record]]:
    """The suite, and the examined model's records by the judge that counts. Raises BadInput, for
    several seeds too: official programs know one."""
    asked, by_model = suite_folder.read(out)
    records = next(iter(by_model.values()))
    if not records or len({r.seed for r in records}) > 1:
        raise BadInput(f"{out}: holds {'several seeds' if records else 'no replies'}")
    return asked.suite, [r for r in records if r.judge == records[0].judge]


def has(python: str, packages: Sequence[str]) -> str:
    """The packages that an interpreter lacks, "" for none."""
    code = (
        "import importlib.util as u, sys; "
        "print(', '.join(p for p in sys.argv[1:] if not u.find_spec(p)))"
    )
    done = subprocess.run(
        [python, "-c", code, *packages], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def scored(
    program: Any, out: pathlib.Path, records: Sequence[Record], options: argparse.Namespace
) -> dict[str, Any]:
    """What a program makes of the replies in `out`; run once for them, then kept. Raises BadInput
    where it fails."""
    work = pathlib.Path(options.out).resolve() / _file_name(program.name) / out.name
    work.mkdir(parents=True, exist_ok=True)
    path, digest = work / "scored.json", files.fingerprint([out / suite_folder.REPLIES])
    if path.is_file() and (there := files.read_object(path)).get("replies") == digest:
        return there
    if isinstance(program, lmms_tasks.LmmsTask):
        found = program.run(records, options.python, work)
    else:
        checkout = pathlib.Path(options.checkouts or ".", program.checkout).resolve()
        found = program.run(out.resolve(), records, checkout, options.python, work)
    found |= {"replies": digest, "date": datetime.date.today().isoformat()}
    files.write_json(path, found)
    return found


def compared(
    program: Any, out: pathlib.Path, records: Sequence[Record], options: argparse.Namespace
) -> dict[str, Any]:
    """Both numbers of every metric that both have."""
    found, own = scored(program, out, records, options), ours(program.suite, records)
    row = {
        "folder": out.name,
        "suite": program.suite,
        "n": len(records),
        "program": program.name,
        **{name: found[name] for name in ("version", "date", "asked") if name in found},
        "digits": program.digits,
    }
    numbers = {
        name: {"ours": own[name], "theirs": theirs}
        for name, theirs in found["numbers"].items()
        if name in own
    }
    return row | {"numbers": numbers}


def _file_name(name: str) -> str:
    return "".join(c if c.isalnum() else "-" for c in name)


def differs(pair: Mapping[str, float], digits: int | None) -> bool:
    """Whether two numbers are not the same, theirs rounded to so many digits after the point."""
    one, other = pair["ours"], pair["theirs"]
    rounding = 0.5 * 10.0**-digits if digits else 0.0
    return abs(one - other) > rounding + TOLERANCE * max(1.0, abs(one), abs(other))


def lines(rows: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """A table in Markdown: a line a metric of a program and a folder."""
    yield "| replies | program | metric | ours | theirs | |"
    yield "|---|---|---|--:|--:|---|"
    for row in rows:
        for name, pair in row["numbers"].items():
            mark = "differs" if differs(pair, row["digits"]) else "same"
            cells = (row["folder"], row["version"], name, f"{pair['ours']:.6g}")
            yield f"| {' | '.join(cells)} | {pair['theirs']:.6g} | {mark} |"
        asked = row.get("asked")
        if asked and asked["same"] < asked["n"]:
            cells = (row["folder"], row["version"], "asked in the same words")
            yield f"| {' | '.join(cells)} | {asked['same']} | {asked['n']} | differs |"


def missing(program: Any, options: Any) -> str:
    """Why a program cannot run, "" if it can."""
    if lacks := has(options.python, program.needs):
        return f"{options.python} lacks {lacks}"
    if isinstance(program, lmms_tasks.LmmsTask):
        return ""
    if not program.file:
        return ""
    if not options.checkouts:
        return f"--checkouts: needs a checkout {program.checkout}"
    path = pathlib.Path(options.checkouts, program.checkout, program.file)
    return "" if path.is_file() else f"{path} is not there"


def parsed(arguments: Sequence[str]) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("folders", nargs="*", metavar="OUT", type=pathlib.Path)
    parser.add_argument("--python", default=sys.executable, help="of the others' environment")
    parser.add_argument("--checkouts", help="folder with the official programs' repositories")
    parser.add_argument("-o", "--out", default="runs/peers", help="folder of results")
    parser.add_argument("--needs", action="store_true", help="say what each program needs")
    options = parser.parse_args(arguments)
    options.python = os.path.abspath(options.python)  # a link of an environment stays one
    return options


def main(arguments: Sequence[str]) -> int:
    """The command: 0, or 2 for what cannot be read or a program that fails."""
    options = parsed(arguments)
    if options.needs:
        for program in PROGRAMS:
            packages = ", ".join(program.needs) or "none"
            print(f"{program.suite}: {program.name}; packages: {packages}; {program.source}")
        return 0
    rows, code = [], 0
    for out in options.folders:
        try:
            suite, records = records_of(out)
        except BadInput as e:
            print(f"error: {e}", file=sys.stderr)
            return BadInput.exit_code
        for program in (one for one in PROGRAMS if one.suite == suite):
            if why := missing(program, options):
                print(f"{out.name}: not run: {program.name}: {why}", file=sys.stderr)
                continue
            try:
                rows.append(compared(program, out, records, options))
            except BadInput as e:
                print(f"{out.name}: {program.name}: {e}", file=sys.stderr)
                code = BadInput.exit_code
    pathlib.Path(options.out).mkdir(parents=True, exist_ok=True)
    files.write_json(pathlib.Path(options.out, "peers.json"), rows)
    print("\n".join(lines(rows)))
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
