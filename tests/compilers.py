"""Stands in for the compilers that plans ask, and the schema of what a plan says."""

import dataclasses
import json
import pathlib

import jax

from srum_jax.planning import topology
from srum_jax.planning.topology import Compiled, Machine, Target

SCHEMA = json.loads((pathlib.Path(__file__).parent / "plan.schema.json").read_text())
PROGRAM = """HloModule jit_step, is_scheduled=true

ENTRY %main (p: f32[256]) -> f32[2048] {
  %p = f32[256]{0} parameter(0)
  ROOT %gather = f32[2048]{0} all-gather(%p), replica_groups=[1,8]<=[8], dimensions={0}
}
"""


class Compilers:
    """Stands in for all compilers: `peaks(target, n)` gives the GiB of the n-th program."""

    def __init__(self, peaks):
        self.peaks, self.count, self.seen = peaks, 0, []

    def describe(self, target: Target) -> Machine:
        devices = jax.devices()[: target.chips]
        assert len(devices) == min(target.chips, 8)  # of larger machines some stand for all
        return StandIn(target, devices, devices[:4], self)

    def compile(self, target, lowered):
        assert lowered.out_info is not None
        self.count += 1
        self.seen.append(str(target))
        peak = self.peaks(target, self.count)
        if peak is None or peak > topology.KINDS[target.kind].hbm_gib:
            size = None if peak is None else int(peak * topology.GIB)
            return Compiled(False, size, "", 0.1, "RESOURCE_EXHAUSTED")
        return Compiled(True, int(peak * topology.GIB), PROGRAM, 0.1)


@dataclasses.dataclass(frozen=True)
class StandIn(Machine):
    """A machine whose programs the stand-in of all compilers compiles."""

    compilers: Compilers

    def compile(self, lowered):
        return self.compilers.compile(self.target, lowered)
