"""What the stage `adjust` chose in a round, for the stages that go by it.

Owns how its choice is read from its manifest: which leaves are exported, how strongly the next
round's candidates and evaluation are guided, and which of its prompts are drawn. Nothing of what
was examined is read, and without that stage everything is as the config says.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from srum_jax.config import Config
from srum_jax.stages.manifest import Manifest, Workdir


def of_round(cfg: Config, work: Workdir) -> Mapping[str, Any] | None:
    """ "adjust" of this round in results.json; None where the run has no such stage.

    Raises FileNotFoundError or ValueError where it is not finished, or its manifest is damaged.
    """
    if "adjust" not in cfg.stages:
        return None
    return Manifest.read(work.stage("adjust")).results["adjust"]


def before(cfg: Config, work: Workdir) -> Mapping[str, Any] | None:
    """The same of the round before; None in the first one."""
    return of_round(cfg, dataclasses.replace(work, round=work.round - 1)) if work.round else None


def exported(cfg: Config, work: Workdir) -> str | None:
    """The stage whose leaves this round exports: "train", or "adjust"; None: the base stays."""
    if "train" not in cfg.stages:
        return None
    found = of_round(cfg, work)
    if found is None:
        return "train"
    return "adjust" if found["chosen"]["share"] else None


def in_use(cfg: Config, work: Workdir) -> Config:
    """`cfg` whose `sample` has the guidance that this round starts with: the one that the round
    before chose, else its own."""
    found = before(cfg, work)
    if found is None:
        return cfg
    sample = dataclasses.replace(cfg.sample, guidance=found["chosen"]["guidance"])
    return dataclasses.replace(cfg, sample=sample)


def inputs(cfg: Config, work: Workdir) -> dict[str, str]:
    """What a stage that goes by the round before records of it."""
    if "adjust" not in cfg.stages or not work.round:
        return {}
    stage = dataclasses.replace(work, round=work.round - 1).stage("adjust")
    return {"adjusted": Manifest.read(stage).hash}


def focuses(cfg: Config) -> bool:
    """Whether later rounds draw more prompts of some categories."""
    later = cfg.rounds > 1 and cfg.adjust.focus > 0
    return later and {"adjust", "generate", "score"} <= set(cfg.stages)


def focus(cfg: Config, work: Workdir) -> Mapping[str, float]:
    """{category: share of this round's prompts}; empty where they are the next of the list."""
    found = before(cfg, work) if focuses(cfg) else None
    return found["next"]["prompts"] if found else {}
