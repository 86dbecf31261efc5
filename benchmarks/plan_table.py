"""Where does BAGEL-7B-MoT fit? Plans of several machines and recipes, and the table of them.

    pip install -e ".[plan-tpu]" and, for the H200 rows, ".[plan-gpu]"
    nice python benchmarks/plan_table.py                  # makes what is missing, then the table
    python benchmarks/plan_table.py --rows v5e-16,v5p-16  # only these
    python benchmarks/plan_table.py --table               # the table alone

Each row is a file docs/plans/<row>.json, the plan as `--plan_out` writes it. It is made again where
the config or a version has changed since. A row takes a few minutes and about 3 GiB of memory; rows
are made one after the other. What was not made is marked so in docs/scale.md.
"""

import argparse
import json
import pathlib
import sys

from ml_collections import ConfigDict

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from configs import bagel_7b_srum  # noqa: E402
from srum_jax import config, plan  # noqa: E402
from srum_jax.core import console, topology  # noqa: E402
from srum_jax.core.errors import BadInput  # noqa: E402

FOLDER, PAGE = ROOT / "docs/plans", ROOT / "docs/scale.md"
BEGIN, END = "<!-- plans: begin -->", "<!-- plans: end -->"

GEN = "generation expert"
KEPT = {"train.anchor": 0.1}
ANCHORED = f"{GEN}, bfloat16 copy of the start"
FULL = {"train.trainable": "all", **KEPT}
CHUNKED = {"compute.attention": "chunked"}  # cuDNN's kernel cannot be cut over cards as it is
BOTH = "both experts, bfloat16 copy of the start"
# row -> (target, recipe, changes of configs/bagel_7b_srum.py, programs)
STEP, INFERENCE = ("train_step",), ("sample", "score")
ROWS = {
    "v5e-16-inference": ("v5e:4x4", "drawing and scoring", {}, INFERENCE),
    "v5e-16-decode": ("v5e:4x4", "the autoencoder's decoder", {}, ("decode",)),
    "v5e-16": ("v5e:4x4", GEN, {}, STEP),
    "v5e-16-anchored": ("v5e:4x4", ANCHORED, KEPT, STEP),
    "v5e-16-full": ("v5e:4x4", BOTH, FULL, STEP),
    "v5e-64-full": ("v5e:8x8", BOTH, FULL, STEP),
    "v6e-16-anchored": ("v6e:4x4", ANCHORED, KEPT, STEP),
    "v6e-16-full": ("v6e:4x4", BOTH, FULL, STEP),
    "v5p-16-anchored": ("v5p:2x2x4", ANCHORED, KEPT, STEP),
    "v5p-16-full": ("v5p:2x2x4", BOTH, FULL, STEP),
    "v4-16-full": ("v4:2x2x4", BOTH, FULL, STEP),
    "h200-8-anchored": ("h200:8", ANCHORED, KEPT | CHUNKED, STEP),
    "h200-8-full": ("h200:8", BOTH, FULL | CHUNKED, STEP),
}


def configured(changes: dict) -> config.Config:
    """configs/bagel_7b_srum.py with other values at dotted keys."""
    values = bagel_7b_srum.get_config()
    values.update_from_flattened_dict(changes)
    assert isinstance(values, ConfigDict)
    return config.load(values)


def read(name: str) -> dict | None:
    """The committed plan of a row, None where there is none."""
    path = FOLDER / f"{name}.json"
    return json.loads(path.read_text()) if path.exists() else None


def current(name: str) -> bool:
    """Whether a row's plan is there and was made of this config with these versions."""
    made, (target, _, changes, _) = read(name), ROWS[name]
    if made is None or made["config_hash"] != plan.key(configured(changes)):
        return False
    return made["versions"] == plan.versions(topology.parse(target))


def make(name: str) -> None:
    """Makes one row."""
    target, recipe, changes, only = ROWS[name]
    made = plan.plan(configured(changes), topology.parse(target), only=only)
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = {"row": name, "what": recipe, "changes": changes, **made}
    (FOLDER / f"{name}.json").write_text(json.dumps(made, indent=1) + "\n")
    print("\n".join(plan.lines(made)), flush=True)


def table() -> str:
    """All rows in Markdown, those that were not made too."""
    head = ["machine", "what", "program", "fits", "peak, GiB", "of which kept", "of", "TFLOP"]
    head += ["sent by a chip, GiB", "how"]
    lines = [f"| {' | '.join(head)} |", "|---|---|---|---|--:|--:|--:|--:|--:|---|"]
    notes = []
    for name, (target, recipe, _, only) in ROWS.items():
        made = read(name)
        if made is None:
            lines.append(f"| {target} | {recipe} | {', '.join(only)} | not made |" + " |" * 6)
            continue
        for program, entry in made["programs"].items():
            kept = sum(v for k, v in entry["parts_gib"].items() if k != "temporaries")
            sent = sum(entry.get("collective_gib", {}).values())
            cells = [
                target,
                recipe,
                f"{program}, {entry['chips']} chips",
                "yes" if entry["fits"] else "**no**",
                f"{entry['peak_gib']:.2f}" if "peak_gib" in entry else "",
                f"{kept:.2f}",
                f"{made['hbm_gib']:g}",
                f"{entry['flops'] / 1e12:,.0f}" if "flops" in entry else "",
                f"{sent:.1f}" if entry.get("collective_gib") else "",
                entry["how"],
            ]
            lines.append(f"| {' | '.join(cells)} |")
        for one in made["tried"]:
            peak = f", {one['peak_gib']:.2f} GiB" if "peak_gib" in one else ""
            says = "fits" if one["fits"] else "does not fit"
            notes.append(
                f"- {target}, {recipe}: {one['program']} with {one['change']} {says}{peak}."
            )
    return "\n".join(
        [*lines, *(["", "Tried where a program did not fit:", "", *notes] if notes else [])]
    )


def rewrite() -> None:
    """The table between its markers in docs/scale.md."""
    before, rest = PAGE.read_text().split(BEGIN)
    after = rest.split(END)[1]
    PAGE.write_text(f"{before}{BEGIN}\n{table()}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", help="names, by commas; default: all")
    parser.add_argument("--table", action="store_true", help="make no row")
    options = parser.parse_args()
    console.log_to_stderr()
    names = options.rows.split(",") if options.rows else list(ROWS)
    unknown = sorted(set(names) - set(ROWS))
    if unknown:
        parser.error(f"no such row: {', '.join(unknown)}; there are {', '.join(ROWS)}")
    for name in [] if options.table else names:
        try:
            if not current(name):
                make(name)
        except BadInput as e:
            print(f"{name}: not made: {e}", file=sys.stderr)
        rewrite()
    rewrite()


if __name__ == "__main__":
    main()
