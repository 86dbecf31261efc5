"""A config of your own: copy this file, change what you need, delete the rest.

    cp configs/forkme.py configs/mine.py
    python -m srum_jax.main --config configs/mine.py --workdir runs/mine

Every key, its default and its meaning: configs/base.py. A single value is quicker changed on the
command line: --config.train.steps=200. An unknown key is refused with the closest known one.
"""

from typing import Any

from srum_jax.configs import base


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = base.get_config()

    # The model: a preset and the folder with its weights ("" is the shapes base in the package).
    # c.model = "bagel_7b_mot"
    # c.weights = "/path/to/BAGEL-7B-MoT"
    # A training run's folder holds little more than model.safetensors; the rest is its base's.
    # c.weights = "/path/to/training/checkpoint"
    # c.weights_base = "/path/to/BAGEL-7B-MoT"

    # Your prompts: one a line (.txt), or records with "prompt" (.json, .jsonl, .csv).
    # c.generate.prompts = "prompts.txt"
    # c.generate.count = 100

    # More candidates a prompt cost time and give the self-score more to choose from.
    c.generate.candidates = 8

    # What is learned from the scores; see `TrainConfig` in configs/base.py and research/study.
    c.train.objective = "sft"
    c.train.select = "best_of_k"
    c.train.steps = 600

    return c
