"""Low-rank adapters of BAGEL as PEFT's folders (`models/peft.py`), under its table of names."""

from etils import epath

from srum_jax.core import param_tree
from srum_jax.models import peft
from srum_jax.models.bagel.hf_table import MODEL_FILE, table
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.peft import CONFIG, WEIGHTS, Adapters, Merging

__all__ = ["CONFIG", "WEIGHTS", "Adapters", "Merging", "load", "save"]


def save(
    folder: epath.PathLike,
    cfg: BagelConfig,
    adapters: param_tree.Params,
    *,
    alpha: float,
    base: str = "",
) -> None:
    """Writes a folder that `load`, and PEFT, read; arguments as of `peft.save`."""
    peft.save(folder, table(cfg)[MODEL_FILE], adapters, alpha=alpha, base=base)


def load(folder: epath.PathLike, cfg: BagelConfig) -> Adapters:
    """Reads the adapters in a folder for a model of sizes `cfg`; raises as `peft.load`."""
    return peft.load(folder, table(cfg)[MODEL_FILE])
