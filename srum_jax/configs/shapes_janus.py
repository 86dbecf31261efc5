"""The demo for a model that draws token by token: the small Janus draws, judges itself, and learns.

As `shapes.py`, but for what this family has: it learns by the cross-entropy of codes, draws and
answers by one language model (the monitor watches its answers, evaluation asks them again), reads
one picture at a time, and cannot edit. Its drawings teach guidance too, so the stage `adjust` tries
smaller scales, and every result must beat the control, which is the same run with
`--config.train.select=all --config.train.min_score=-1.0 --config.train.candidates=1`: its own
drawings, chosen by nobody, teach guidance alone.
"""

from typing import Any

from srum_jax.configs import shapes


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = shapes.get_config()
    c.model = "shapes_janus"
    c.sample.guidance = 2.0
    c.sample.temperature = 0.7
    c.train.trainable = "gen"  # what drawing reads; the head of words and the eye stay
    # A few passes at a small rate: codes are soon learned by heart (docs/objectives.md).
    c.train.steps = 40
    c.train.checkpoint_every = 40
    c.train.optim.learning_rate = c.train.optim.adam_learning_rate = 3e-4
    # One drawing of 8x8 codes a row, beside its prompt in the template.
    c.train.rows = 32
    c.train.lanes.und = 24
    c.train.lanes.gen = 64
    c.train.lanes.images = 1
    c.evaluate.edits = 0
    c.adjust.edits = 0
    c.adjust.floors = ("qa:-1",)
    c.adjust.guidance = (1.0, 2.0, 3.0)
    return c
