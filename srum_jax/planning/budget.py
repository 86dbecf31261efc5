"""How long a run takes, what it leaves on disk and what it costs, before anything is rented.

A roofline: a call takes as long as its operations at the chips' peak, or as what it reads from
their memory, whichever is longer, and only a share of either peak is reached (`Assumptions`, a
guess until somebody measures it). Nothing else is counted: compiling, loading and saving, what
chips send each other, the host's own work.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Any

import jax

from srum_jax import disk, programs
from srum_jax.config import Config
from srum_jax.core import time_left
from srum_jax.core.errors import BadInput
from srum_jax.generation import families
from srum_jax.planning import lowering, topology
from srum_jax.planning.topology import ChipKind, Target
from srum_jax.planning.workload import Calls, Workload

HOUR = 3600.0


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is not known beforehand: the share of the chips' peaks that a run reaches, in (0, 1],
    and the price of a chip-hour in any currency; None: not asked about. Raises BadInput."""

    utilisation: float = 0.4
    price: float | None = None

    def __post_init__(self):
        if not 0 < self.utilisation <= 1:
            raise BadInput(
                f"--utilisation {self.utilisation:g} is no share of a peak: give a number above 0 "
                "and up to 1, as 0.4"
            )
        if self.price is not None and not 0 <= self.price < math.inf:
            raise BadInput(f"--price {self.price:g} is no price of a chip-hour")


@dataclasses.dataclass(frozen=True)
class Chips:
    """Chips of a kind (a key of `topology.KINDS`), and how many hosts they belong to."""

    name: str
    count: int
    hosts: int = 1

    @classmethod
    def of(cls, target: Target) -> "Chips":
        """Those of a machine."""
        return cls(target.kind, target.chips, target.chips // target.host.chips)

    @classmethod
    def here(cls) -> "Chips | None":
        """Those that this run has; None where their peaks are not known, as of a CPU."""
        devices = jax.devices()
        name = topology.kind_of(devices[0].device_kind)
        return None if name is None else cls(name, len(devices), jax.process_count())

    @property
    def kind(self) -> ChipKind:
        """What is known of them."""
        return topology.KINDS[self.name]


def seconds(calls: Calls, kind: ChipKind, utilisation: float) -> float:
    """How long like calls take in all."""
    peak = kind.flops * (kind.float32 if calls.dtype == "float32" else 1.0)
    arithmetic = calls.work.flops / (calls.chips * peak)
    memory = calls.work.bytes / (calls.chips * kind.bandwidth)
    return math.ceil(calls.count / calls.beside) * max(arithmetic, memory) / utilisation


@dataclasses.dataclass(frozen=True)
class StageBudget:
    """What is known of a stage, over all rounds.

    calls and seconds: None where they are not counted · disk: bytes it leaves, None where only a
    run can know · missing: parts of it that are not counted, if the rest is.
    """

    stage: str
    calls: tuple[Calls, ...] | None
    seconds: float | None
    disk: int | None
    missing: tuple[str, ...] = ()

    @property
    def flops(self) -> int:
        """Operations in all."""
        return sum(one.count * one.work.flops for one in self.calls or ())


@dataclasses.dataclass(frozen=True)
class Budget:
    """What is known of the stages of a run, in order, on these chips under these assumptions."""

    chips: Chips
    assumed: Assumptions
    stages: tuple[StageBudget, ...]

    @property
    def seconds(self) -> float:
        """Of all stages that are counted."""
        return sum(one.seconds or 0.0 for one in self.stages)

    @property
    def uncounted(self) -> list[str]:
        """Stages that are not counted, and parts of others, as "stage: part"."""
        found = []
        for one in self.stages:
            parts = [f"{one.stage}: {part}" for part in one.missing]
            found += [one.stage] if one.seconds is None else parts
        return found

    def money(self, taken: float) -> float | None:
        """What so many seconds of all chips cost; None without a price."""
        price = self.assumed.price
        return None if price is None else price * self.chips.count * taken / HOUR

    def said(self) -> str:
        """For the start of a run, in a line."""
        each = [f"{one.stage} {time_left.words(one.seconds)}" for one in self.stages if one.seconds]
        parts = [
            f"computing, at {self.assumed.utilisation:.0%} of the peak of {self.chips.count} x "
            f"{self.chips.name}: {', '.join(each) or 'next to nothing'}",
            f"in all {time_left.words(self.seconds)}, "
            f"{self.chips.count * self.seconds / HOUR:,.1f} chip-hours",
        ]
        if (cost := self.money(self.seconds)) is not None:
            parts.append(f"{cost:,.2f} at {self.assumed.price:g} a chip-hour")
        if self.uncounted:
            parts.append(f"not counted: {', '.join(self.uncounted)}")
        return "; ".join(parts)

    def json(self) -> dict[str, Any]:
        """As a plan holds it; what is not known is absent."""
        stages = {one.stage: self._stage_json(one) for one in self.stages}
        return {
            "utilisation": self.assumed.utilisation,
            **_known(price=self.assumed.price),
            "hours": _round(self.seconds / HOUR),
            "chip_hours": _round(self.chips.count * self.seconds / HOUR),
            "disk_gb": _round(sum(one.disk or 0 for one in self.stages) / disk.GB),
            **_known(money=self.money(self.seconds)),
            "stages": stages,
        }

    def _stage_json(self, one: StageBudget) -> dict[str, Any]:
        found: dict[str, Any] = {}
        if one.seconds is not None:
            found["hours"] = _round(one.seconds / HOUR)
            found["flops"] = one.flops
            found |= _known(money=self.money(one.seconds))
            found["programs"] = {
                call.program: {
                    "calls": call.count,
                    "flops": call.work.flops,
                    "hours": _round(
                        seconds(call, self.chips.kind, self.assumed.utilisation) / HOUR
                    ),
                }
                for call in one.calls or ()
            }
        return found | _known(disk_gb=None if one.disk is None else one.disk / disk.GB)


def _round(value: float) -> float:
    return round(value, 4)


def _known(**values: float | None) -> dict[str, float]:
    return {name: _round(value) for name, value in values.items() if value is not None}


def estimate(
    cfg: Config,
    chips: Chips,
    assumed: Assumptions,
    stages: Sequence[str] | None = None,
) -> Budget:
    """The budget of `stages` (default: all of the config's) on these chips.

    Raises ValueError where the model cannot draw what the config asks for.
    """
    work = Workload(cfg, lowering.sizes_of(cfg), chips.count, chips.hosts)
    wanted = cfg.stages if stages is None else stages
    return Budget(chips, assumed, tuple(_stage(work, chips, assumed, s) for s in wanted))


def _stage(work: Workload, chips: Chips, assumed: Assumptions, stage: str) -> StageBudget:
    calls, taken = work.of(stage), None
    if calls is not None:
        taken = sum(seconds(one, chips.kind, assumed.utilisation) for one in calls)
    left, missing = _left(work, stage), work.asked(stage).missing
    return StageBudget(stage, None if calls is None else tuple(calls), taken, left, missing)


def _left(work: Workload, stage: str) -> int | None:
    """Bytes that a stage leaves on disk."""
    cfg, sizes = work.cfg, work.sizes
    match stage:
        case "generate":
            c, size = cfg.generate, (cfg.sample.size, sizes.layout)
            drawn = disk.picture_bytes(*size, latents=disk.candidate_latents(c))
            edits = 2 * c.edit_count * bool(c.edits) * disk.picture_bytes(*size)
            return cfg.rounds * (c.count * c.candidates * drawn + edits)
        case "evaluate" | "adjust" if work.asked(stage).images:
            asked = work.asked(stage)
            each = disk.picture_bytes(cfg.sample.size, sizes.layout)
            return cfg.rounds * (asked.images + asked.edits) * each
        case "train":
            return disk.training_bytes(cfg.train, programs.training(cfg, sizes))
        case "export":
            family = families.of(sizes)
            both = family.specs(sizes), family.coder_specs(sizes)
            return cfg.rounds * disk.weight_bytes(both, cfg.export.dtype)
    return None


# ---------------------------------------------------------------------------------- the table

COLUMNS = ("stage", "calls", "PFLOP", "hours", "disk", "money")


def rows(found: Budget) -> Iterator[tuple[str, ...]]:
    """The cells of a budget's table under COLUMNS, a stage a row, all together last."""
    for one in found.stages:
        each = [f"{call.count:,} {call.program}" for call in one.calls or ()]
        calls = " + ".join([*each, *(f"{part} not counted" for part in one.missing)])
        known = one.seconds is not None
        yield (
            one.stage,
            calls if known else "not counted",
            f"{one.flops / 1e15:,.1f}" if one.calls else "",
            f"{one.seconds / HOUR:,.2f}" if one.calls else "",
            "" if one.disk is None else disk.amount(one.disk),
            _money(found.money(one.seconds)) if one.calls else "",
        )
    yield (
        "in all",
        "",
        f"{sum(one.flops for one in found.stages) / 1e15:,.1f}",
        f"{found.seconds / HOUR:,.2f}",
        disk.amount(sum(one.disk or 0 for one in found.stages)),
        _money(found.money(found.seconds)),
    )


def _money(amount: float | None) -> str:
    return "" if amount is None else f"{amount:,.2f}"


def lines(found: Budget) -> Iterator[str]:
    """A budget for people: the table, and what it assumes."""
    cells = [COLUMNS, *rows(found)]
    if found.assumed.price is None:
        cells = [row[:-1] for row in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        left = [cell.ljust(width) for cell, width in zip(row[:2], widths[:2], strict=True)]
        right = [cell.rjust(width) for cell, width in zip(row[2:], widths[2:], strict=True)]
        yield "  ".join([*left, *right]).rstrip()
    yield (
        f"assumed: {found.assumed.utilisation:.0%} of the peaks of {found.chips.count} x "
        f"{found.chips.name} is reached (--utilisation); computing alone, without compiling, "
        "loading and saving"
    )
