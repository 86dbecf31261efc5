"""What is added to the package by one module and one line here: worlds, suites, sizes of models.

Owns the names and where their modules lie, as strings: nothing is imported before `load` is called,
so what stands low in the package can name what stands high. The side that judges and trains loads
languages alone; it may ask for a world's name or its folder of weights.

A world is a package with `prompts(split, count, first)`, `write_benchmark(suite, folder)`,
which writes its questions in a benchmark's official form, `STAGES` with the modules of the stages
that make its base, and, beside its modules, a folder `base` with that small model: its name is a
`model` of the config; where that model edits, also with `edits(split, count)`. A preset is the
sizes of a model whose weights do not ship: an entry of `PRESETS` in its module, for plans without
its folder. A suite is a module with `make(cfg, data, language)`, which gives an
`evals.suite.Suite`; that of a benchmark has an `ABOUT` too (`evals/benchmark.py`). A language is a
module with `normalise(text, kind)`, which puts plain English into the words of a world's models.
"""

import importlib
import types
from collections.abc import Mapping

from etils import epath

import srum_jax
from srum_jax.core.checked import suggest
from srum_jax.core.errors import BadInput

WORLDS = {
    "shapes": "srum_jax.worlds.shapes",
    "shapes64": "srum_jax.worlds.shapes.large",
    "shapes_janus": "srum_jax.worlds.shapes.janus",
}
PRESETS = {
    "bagel_7b_mot": "srum_jax.models.bagel.model_config",
    "janus_pro_1b": "srum_jax.models.janus.model_config",
    "janus_pro_7b": "srum_jax.models.janus.model_config",
}
SUITES = {
    "shapes": "srum_jax.worlds.shapes.suite",
    "own_score": "srum_jax.evals.suites.own_score",
    "vqav2": "srum_jax.evals.suites.vqav2",
    "okvqa": "srum_jax.evals.suites.okvqa",
    "textvqa": "srum_jax.evals.suites.textvqa",
    "gqa": "srum_jax.evals.suites.gqa",
    "docvqa": "srum_jax.evals.suites.docvqa",
    "chartqa": "srum_jax.evals.suites.chartqa",
    "pope": "srum_jax.evals.suites.pope",
    "mme": "srum_jax.evals.suites.mme",
    "geneval": "srum_jax.evals.suites.geneval",
    "geneval2": "srum_jax.evals.suites.geneval2",
    "t2i_compbench": "srum_jax.evals.suites.t2i_compbench",
    "srum_compbench": "srum_jax.evals.suites.srum_compbench",
    "wise": "srum_jax.evals.suites.wise",
    "wise_legacy": "srum_jax.evals.suites.wise_legacy",
    "t2i_reasonbench": "srum_jax.evals.suites.t2i_reasonbench",
    "dpg_bench": "srum_jax.evals.suites.dpg_bench",
    "mmbench": "srum_jax.evals.suites.mmbench",
    "mmmu": "srum_jax.evals.suites.mmmu",
    "mvbench": "srum_jax.evals.suites.mvbench",
    "videomme": "srum_jax.evals.suites.videomme",
    "coco_captions": "srum_jax.evals.suites.coco_captions",
    "gedit": "srum_jax.evals.suites.gedit",
    "imgedit": "srum_jax.evals.suites.imgedit",
}
LANGUAGES = {"shapes": "srum_jax.worlds.shapes.english"}
SPLITS = ("train", "validation", "test")  # of every world's prompts


def load(table: Mapping[str, str], name: str) -> types.ModuleType:
    """The module that `table` has under `name`. Raises BadInput naming the closest known name."""
    if name not in table:
        raise BadInput(f'"{name}" is not known: {suggest(name, table)}')
    return importlib.import_module(table[name])


def base_folder(world: str) -> epath.Path:
    """The folder of the small model that ships with a world; the world is not imported."""
    inside = WORLDS[world].split(".")[1:]
    return epath.resource_path(srum_jax).joinpath(*inside, "base")
