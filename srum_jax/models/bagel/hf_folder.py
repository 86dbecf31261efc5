"""What a checkpoint folder holds: its parts found, its headers opened and held against the table.

The model is, looked for in this order, `ema.safetensors`, `model.safetensors` (what training wrote,
often without the vision tower and the connector) or a sharded `model.safetensors.index.json`. What
a folder lacks may come from a second one, its base. Of weights nothing but headers is read here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import logging
from etils import epath

from srum_jax.core import files
from srum_jax.core.files import read_json
from srum_jax.models import safetensors_index
from srum_jax.models.bagel import model_config
from srum_jax.models.bagel.hf_table import MODEL_FILE, VAE_FILE, computed_tables, table
from srum_jax.models.bagel.model_config import BagelConfig
from srum_jax.models.name_table import misfits, without_prefix
from srum_jax.models.safetensors_index import INDEX_FILE
from srum_jax.models.safetensors_io import StoredTensor

TRAINED_FILE = "model.safetensors"
MODEL_FILES = (MODEL_FILE, TRAINED_FILE, INDEX_FILE)  # in the order they are looked for
SIZES_FILES = ("llm_config.json", "vit_config.json")
WORDS_FILES = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
GENERATION_FILE = "generation_config.json"  # how the model wants to be sampled
GENERATION_KEY = "srum_jax"  # its settings there, beside those of the transformers library
USAGE_FILE = "usage.json"  # the settings alone, as older versions wrote them
TOWERS = {"vit_model.": "the vision tower", "connector.": "the connector"}  # may be in the base

Tensors = dict[str, StoredTensor]
_BASE = "as the base (base=, weights_base in a config, --base of srum_jax.convert)"
_HOW = (
    "a folder in the Hugging Face layout of BAGEL, with llm_config.json, vit_config.json, "
    f"{VAE_FILE} and one of {', '.join(MODEL_FILES)}; what another folder has may come from there: "
    f"name it {_BASE}"
)


@dataclasses.dataclass(frozen=True)
class Parts:
    """Where the parts of a checkpoint lie: in its own folder or, where that lacks one, its base."""

    folder: epath.Path
    base: epath.Path | None
    sizes: epath.Path  # the folder with the JSON files
    model: epath.Path  # one of MODEL_FILES
    vae: epath.Path
    words: epath.Path  # the folder with the tokenizer

    @property
    def folders(self) -> tuple[epath.Path, ...]:
        """The folder and, if there is one, its base."""
        return (self.folder, self.base) if self.base else (self.folder,)

    def beside(self) -> list[epath.Path]:
        """The files that go along with the weights: JSON, tokenizer."""
        names = (*model_config.to_json(model_config.BAGEL_7B_MOT), GENERATION_FILE, USAGE_FILE)
        files = [self.sizes / name for name in names]
        files += [self.words / name for name in WORDS_FILES]
        return [path for path in files if path.exists()]


def locate(folder: epath.PathLike, base: epath.PathLike | None = None) -> Parts:
    """Where each part lies; the model itself is never taken from the base.

    Raises FileNotFoundError naming everything that neither folder has.
    """
    parts = sought(folder, base)
    needed = [*(parts.sizes / name for name in SIZES_FILES), parts.model, parts.vae]
    missing = [f"{path}: missing" for path in needed if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)}; weights must name {_HOW}")
    return parts


def sought(folder: epath.PathLike, base: epath.PathLike | None = None) -> Parts:
    """Where each part lies or, of one that neither folder has, would be looked for."""
    folder, base = epath.Path(folder), epath.Path(base) if base else None
    places = (folder, base) if base else (folder,)
    sizes = next((p for p in places if (p / SIZES_FILES[0]).exists()), folder)
    words = (p for p in places if any((p / name).exists() for name in WORDS_FILES))
    model, autoencoder = _model_file(folder), _vae_file(folder, base)
    return Parts(folder, base, sizes, model, autoencoder, next(words, folder))


def problems(parts: Parts, cfg: BagelConfig | None) -> list[str]:
    """A line for everything wrong with the weights' headers; without `cfg`, which says what must be
    in them, for what is wrong with the files themselves."""
    found: list[str] = []
    if cfg is None:
        for file in (parts.model, parts.vae):
            _open(file, found)
        return found
    model_tensors(parts.folder, parts.base, cfg, found)
    vae_tensors(parts.folder, parts.base, cfg, found)
    return found


def _model_file(folder: epath.Path) -> epath.Path:
    names = (name for name in MODEL_FILES if (folder / name).exists())
    return folder / next(names, MODEL_FILE)


def _vae_file(folder: epath.Path, base: epath.Path | None) -> epath.Path:
    own = folder / VAE_FILE
    return base / VAE_FILE if base and not own.exists() else own


def stored_dtype(parts: Parts, cfg: BagelConfig) -> str:
    """The dtype that keeps every value of a folder's model: "bfloat16" or "float32"."""
    fixed = computed_tables(cfg)
    tensors = model_tensors(parts.folder, parts.base, cfg, [])
    kinds = {tensor.dtype for name, tensor in tensors.items() if name not in fixed}
    return "bfloat16" if kinds == {"BF16"} else "float32"


def model_tensors(
    folder: epath.Path, base: epath.Path | None, cfg: BagelConfig, problems: list[str]
) -> Tensors:
    """The model's tensors; towers that the folder lacks as a whole are those of its base.

    Adds a line to `problems` for everything that does not fit `cfg`.
    """
    entries = table(cfg)[MODEL_FILE]
    file = _model_file(folder)
    tensors = _open(file, problems)
    if tensors is None:
        return {}
    tensors = without_prefix(file, tensors, entries)
    if not any(e.name in tensors for e in entries):
        problems += misfits(file, tensors, entries)
        return {}
    lacking = [t for t in TOWERS if not any(name.startswith(t) for name in tensors)]
    towers = [e for e in entries if e.name.startswith(tuple(lacking))]
    own = [e for e in entries if not e.name.startswith(tuple(lacking))]
    fixed = {name: (side**2, dim) for name, (side, dim) in computed_tables(cfg).items()}
    problems += misfits(file, tensors, own, fixed)
    if lacking and base is None:
        problems += [
            f"{file}: {TOWERS[tower]} is missing ({tower}*, "
            f"{sum(e.name.startswith(tower) for e in towers)} tensors): training wrote the model "
            f"without it; name the folder it was trained from {_BASE}"
            for tower in lacking
        ]
    elif lacking:
        names, theirs = {e.name for e in towers}, _model_file(base)
        others = _open(theirs, problems)
        if others is not None:
            others = without_prefix(theirs, others, entries)
            others = {name: tensor for name, tensor in others.items() if name in names}
            problems += misfits(theirs, others, towers)
            tensors = tensors | others
    return tensors


def vae_tensors(
    folder: epath.Path, base: epath.Path | None, cfg: BagelConfig, problems: list[str]
) -> Tensors:
    """The autoencoder's tensors, of the base where the folder has no such file; as above."""
    file = _vae_file(folder, base)
    tensors = _open(file, problems)
    if tensors is None:
        return {}
    entries = table(cfg)[VAE_FILE]
    tensors = without_prefix(file, tensors, entries)
    problems += misfits(file, tensors, entries)
    return tensors


def generation_settings(folder: epath.Path) -> tuple[str, Any] | None:
    """(where they stand, settings of generation) of a checkpoint folder; None where it has none.

    Raises ValueError for a file that is no JSON.
    """
    path, old = folder / GENERATION_FILE, folder / USAGE_FILE
    values = read_json(path) if path.exists() else {}
    if isinstance(values, dict) and GENERATION_KEY in values:
        return f"{path}, {GENERATION_KEY}", values[GENERATION_KEY]
    if old.exists():
        logging.warning(
            '%s: move its content to the key "%s" of %s, which is read in its place',
            *(old, GENERATION_KEY, GENERATION_FILE),
        )
        return str(old), read_json(old)
    return None


def write_beside(folder: epath.Path, cfg: BagelConfig, copies: Sequence[epath.Path]) -> None:
    """Copies files into an existing folder; JSON files of the sizes not among them are made.

    What stands in an old USAGE_FILE is written to GENERATION_FILE.
    """
    have = {path.name for path in copies}
    for name, content in model_config.to_json(cfg).items():
        if name not in have:
            files.write_json(folder / name, content)
    for path in copies:
        if path.name == USAGE_FILE:
            beside = path.parent / GENERATION_FILE
            others = read_json(beside) if beside in copies else {}
            files.write_json(folder / GENERATION_FILE, {GENERATION_KEY: read_json(path)} | others)
        elif path.resolve() != (folder / path.name).resolve():
            files.write_bytes(folder / path.name, [path.read_bytes()])


def _open(file: epath.Path, problems: list[str]) -> Tensors | None:
    """The tensors of a file, or of all files of an index; None where a header can't be read."""
    if not file.exists():
        how = f"the model is one of {', '.join(MODEL_FILES)}"
        if file.name == VAE_FILE:
            how = f"a folder that has it may be named {_BASE}"
        problems.append(f"{file}: the file is missing; {how}")
        return None
    return safetensors_index.read(file, problems)
