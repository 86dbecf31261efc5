"""Janus-Pro-1B teaches itself to draw, on one chip of 16 GB: adapters, eight drawings a step.

    python -m srum_jax.main --config configs/janus_pro_1b.py --workdir runs/janus

The weights (deepseek-community/Janus-Pro-1B, or the original's folder), files of prompts and POPE's
files are not part of this repository; their places are given below or as overrides. The model draws
576 tokens one after another and learns by their cross-entropy (objectives/autoregressive.py).

One language model draws and answers, so what is trained to draw may forget how to answer. The
starting model judges throughout, the training monitor asks whether answers stay, and evaluation
puts POPE's questions to the model before and after. Without its files:

    --config.evaluate.suites="('own_score',)"

Every result must beat the same run with train.objective = "sft", which teaches guidance alone; for
that the trained model wants a smaller scale of it than the base (docs/objectives.md, "Guided
twice"), which `adjust` looks for. The recipe has not been run on these weights.
"""

from typing import Any

from srum_jax.configs import base


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = base.get_config()
    c.model = "janus_pro_1b"
    c.weights = "weights/Janus-Pro-1B"
    c.stages = ("generate", "score", "train", "evaluate", "adjust", "export", "report")
    c.compute.dtype = "bfloat16"

    # As the original draws: guidance 5, every token at temperature 1.
    c.sample.size = (384, 384)
    c.sample.guidance = 5.0
    c.sample.batch = 16

    c.generate.prompts = "data/t2i_compbench_train.json"
    c.generate.count = 2000
    c.generate.candidates = 8
    c.generate.shard_size = 64

    c.score.proposers = ("grid",)
    c.score.margin = 16
    c.score.batch = 8

    # One drawing of 24x24 tokens a row, beside a prompt in its template.
    c.train.objective = "srum_release"
    c.train.select = "best_of_k"
    c.train.rows = 8
    c.train.lanes.und = 128
    c.train.lanes.gen = 576
    c.train.lanes.images = 1
    c.train.trainable = "lora"
    c.train.lora.rank = 16
    c.train.lora.alpha = 32.0
    c.train.optim.optimizer = "adamw"
    c.train.optim.learning_rate = 1e-4
    c.train.optim.warmup = 20
    c.train.text_dropout = 0.1

    c.evaluate.suites = ("own_score", "pope:data/pope")
    c.evaluate.limit = 600  # of POPE's 9000 questions
    c.evaluate.batch = 8
    c.evaluate.prompts = "data/t2i_compbench_val.json"
    c.evaluate.count = 300
    # How much of the training is exported, and with which guidance scale, by the base's own score.
    c.adjust.suites = ("own_score",)
    c.adjust.target = "own_score"
    c.adjust.floors = ()
    c.adjust.prompts = c.evaluate.get_oneway_ref("prompts")  # whatever file is named,
    c.adjust.first = c.evaluate.get_oneway_ref("count")  # those that come after
    c.adjust.count = 150
    c.adjust.shares = (0.5, 1.0)
    c.adjust.guidance = (1.0, 2.0, 3.0, 5.0)
    c.export.dtype = "bfloat16"
    return c
