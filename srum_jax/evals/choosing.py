"""What the stage `adjust` asks, before any model is tried: its section of a config in the form of
the section `evaluate`, and how many models it may try. Plans count by the same two."""

import dataclasses
from typing import Any

from srum_jax.configs.base import AdjustConfig, EvaluateConfig

HELD_BACK = "held_back"  # of adjust.prompts: those that the stage generate held back


def asked(c: AdjustConfig, evaluate: EvaluateConfig, prompts: str) -> EvaluateConfig:
    """`evaluate` with what `adjust` asks, `prompts` those to choose by."""
    same: dict[str, Any] = {
        name: getattr(c, name)
        for name in ("suites", "first", "count", "questions", "multi_image_questions")
    }
    same |= {name: getattr(c, name) for name in ("captions", "edits", "limit", "seed")}
    return dataclasses.replace(evaluate, prompts=prompts, best_of_prompts=1, **same)


def tried(c: AdjustConfig) -> int:
    """Models beside the base that are tried at most."""
    return c.checkpoints * len(c.shares) * max(len(c.guidance), 1)
