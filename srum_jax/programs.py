"""The compiled programs of a run, as its config makes them: what is optimised, and how.

The stages run these programs on their arrays; `planning/plan.py` compiles the same ones for chips
that are not there. So whatever decides what a program computes or holds is decided here, once.
"""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
import optax

from srum_jax.config import Config, TrainConfig
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput
from srum_jax.data import packing
from srum_jax.data.schema import Lanes
from srum_jax.generation import families
from srum_jax.models import attention, lora
from srum_jax.training import optim

Sizes = TypeVar("Sizes")  # of a family's models


@dataclasses.dataclass(frozen=True)
class Trainable:
    """Whether `train` changes a parameter path: one with such a beginning."""

    beginnings: tuple[str, ...]

    @classmethod
    def of(cls, c: TrainConfig, sizes: Sizes) -> "Trainable":
        """What train.trainable "gen" or "all" names in a model of these sizes."""
        return cls(families.of(sizes).DRAWS if c.trainable == "gen" else ("",))

    def __call__(self, path: str) -> bool:
        return path.startswith(self.beginnings)


@dataclasses.dataclass(frozen=True)
class Training:
    """What the stage `train` optimises: a loss, an optimiser over the `trained` leaves, and the
    `frozen` ones beside them. `reference`: the leaves that are copied at the start, as the loss
    reads the starting model; None: it does not. Of adapters none are: without them the frozen
    leaves are the starting model. `first`: those of the first round's start, likewise. `judge`: as
    `reference`, of the starting model as the monitor's judge; None: the model in training judges.
    """

    loss_fn: Callable
    tx: optax.GradientTransformation
    trained: param_tree.Specs
    frozen: param_tree.Specs
    reference: param_tree.Specs | None
    first: param_tree.Specs | None = None
    judge: param_tree.Specs | None = None

    @property
    def compared(self) -> int:
        """How many other models predict in every step."""
        return sum(one is not None for one in (self.reference, self.first))


def planned_steps(cfg: Config) -> int:
    """Steps that the optimiser's schedule spans: a round's, or, where rounds go on from each other,
    those of all."""
    return cfg.train.steps * (cfg.rounds if cfg.train.carry else 1)


@functools.lru_cache(maxsize=4)  # rounds share it, and by it the compiled step
def training(cfg: Config, sizes: Sizes) -> Training:
    """The training of a config for a model of these sizes. Raises BadInput for an objective that
    its family does not have."""
    c, family = cfg.train, families.of(sizes)
    specs, objectives = family.specs(sizes), importlib.import_module(family.OBJECTIVES)
    how = dict(dtype=jnp.dtype(cfg.compute.dtype), remat=cfg.compute.remat)
    loss_fn = objectives.loss(c, sizes, **how)
    if c.trainable == "lora":
        trained = lora.specs(specs, c.lora.rank, lora.Projections(c.lora.experts))
        frozen, copied = specs, {}
        loss_fn = lora.AdaptedLoss(loss_fn, lora_scale(c))
    else:
        trained, frozen = param_tree.split(specs, Trainable.of(c, sizes))
        copied = trained
    rolling = c.anchor if c.anchor_to == "round" else 0.0
    return Training(
        loss_fn=loss_fn,
        tx=optim.make(c.optim, trained, steps=planned_steps(cfg)),
        trained=trained,
        frozen=frozen,
        reference=copied if objectives.needs_reference(c.objective, rolling + c.replay) else None,
        first=copied if c.anchor > rolling else None,
        judge=copied if c.monitor.prompts and not family.APART else None,
    )


def check_thinking(cfg: Config, sizes: Sizes) -> None:
    """Raises BadInput where a model that draws behind prompts alone is to think before it draws."""
    keys = {
        "generate.think": cfg.generate.think,
        "evaluate.think_tokens": cfg.evaluate.think_tokens,
    }
    why = families.of(sizes).ONLY_WORDS
    for key in (key for key, wanted in keys.items() if why and wanted):
        raise BadInput(f"{key}: {why}; leave it out")


def attending(
    cfg: Config, sizes: Sizes, mesh: jax.sharding.Mesh, *, tokens: int, gap: str = ""
) -> Sizes:
    """`sizes` with the attention that training takes on the mesh's devices, for rows of `tokens`.

    `gap`: why some token's keys are not one interval of its row, where that is so. In the stage
    `train` it is not: its samples end in the one image that is noisy. Raises ValueError where the
    config names a back-end that cannot do the run.
    """
    name = attention.choose(
        cfg.compute.attention,
        platform=mesh.devices.flat[0].platform,
        tokens=tokens,
        head_dim=sizes.llm.head_dim,
        dtype=cfg.compute.dtype,
        gap=gap,
    )
    return dataclasses.replace(sizes, attention=name)


def lora_scale(c: TrainConfig) -> float:
    """What the products of adapters count: alpha / rank."""
    return c.lora.alpha / c.lora.rank


def lanes(c: TrainConfig) -> Lanes:
    """Sizes of one packed row of the stage `train`."""
    return Lanes(**{name: getattr(c.lanes, name, 0) for name in packing.LANES})
