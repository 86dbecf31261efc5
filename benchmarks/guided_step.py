"""What a guided step of drawing moves, from programs compiled for machines that are not here.

    pip install -e ".[plan-tpu]" && pip install -e ".[plan-gpu]"
    python benchmarks/guided_step.py h200:1 h200:8 v5e:2x2 v5p:2x2x4
    python benchmarks/guided_step.py --program sample_int8 --batch 1 v6e:1x1

The sampler of `configs/bagel_7b_srum.py`, compiled for a host of each machine as `srum plan` does;
a row of a Markdown table each. Minutes of processor time a TPU.
"""

import argparse
import dataclasses

import jax

from srum_jax import config
from srum_jax.configs import bagel_7b_srum
from srum_jax.planning import hlo, lowering, plan, topology, traffic

GIB, STEP = 2**30, "guided_step"


def row(machine: str, program: str, batch: int) -> str:
    """The table's row of a machine, of `batch` images a call."""
    cfg = config.load(bagel_7b_srum.get_config())
    cfg = dataclasses.replace(cfg, sample=dataclasses.replace(cfg.sample, batch=batch))
    on = topology.describe(topology.parse(machine))
    mesh = plan.host_mesh(cfg, on)
    made = lowering.PROGRAMS[program].make(cfg, lowering.sizes_of(cfg), mesh)
    with jax.set_mesh(mesh):
        lowered = made.lower()
    found = on.compile(lowered)
    name = f"| {machine} | {program} | {made.more['attention']} | {mesh.size} | {batch} |"
    if not found.text:
        return f"{name} refused: {found.why.splitlines()[0]} | | |"
    sent = sum(hlo.collectives(found.text, STEP).values()) / GIB
    moved = traffic.moved(found.text, STEP) / GIB
    return f"{name} {moved:,.0f} | {sent:,.2f} | {found.peak / GIB:.1f} |"


def main() -> None:
    """Prints the table."""
    flags = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    flags.add_argument("machines", nargs="+", help="TYPE:SHAPE as of srum plan")
    flags.add_argument("--program", default="sample", choices=("sample", "sample_int8"))
    flags.add_argument("--batch", type=int, default=8, help="images of a call")
    given = flags.parse_args()
    print("| machine | program | attention | chips | images | moved, GiB | sent, GiB | peak, GiB |")
    print("|---|---|---|--:|--:|--:|--:|--:|")
    for machine in given.machines:
        print(row(machine, given.program, given.batch), flush=True)


if __name__ == "__main__":
    main()
