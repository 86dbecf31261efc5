"""Janus-Pro-7B as `janus_pro_1b.py`: for chips of 32 GB and more, or several (mesh.fsdp = -1).

python -m srum_jax.main --config configs/janus_pro_7b.py --workdir runs/janus7b
"""

from typing import Any

from srum_jax.configs import janus_pro_1b


def get_config() -> Any:
    """The config of this run, a ConfigDict."""
    c = janus_pro_1b.get_config()
    c.model = "janus_pro_7b"
    c.weights = "weights/Janus-Pro-7B"
    c.sample.batch = 8
    return c
