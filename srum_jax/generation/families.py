"""The families of models, and which one a checkpoint folder belongs to.

A family is a module like `bagel.py`, and a line here. It gives

 · `recognises(folder)`: whether a folder holds such a model;
 · `describe(folder, base)` -> (sizes, tokenizer), without the weights;
 · `weight_bytes(folder, base, precision)`: of all parameters, without them;
 · `examine(folder, base)` -> (sizes or None, stored dtype, everything wrong), without them too;
 · `settings(folder, base)` -> how such a model is used where its folder does not say otherwise;
 · `sizes(cfg)` -> lines about a model; `memory(cfg, precision)` -> bytes that it takes;
 · `locate(folder, base)` -> `Parts`, where what is loaded lies; `save(folder, cfg, …)`
   and `save_adapter(folder, cfg, adapters, alpha=)`;
 · `read_sizes(folder)`, of a folder without a tokenizer, say;
 · `Sizes`, the class of its sizes; `specs(cfg)` of its parameters, `coder_specs(cfg)` of its
   autoencoder's; `cost`, a module that counts operations;
 · `OBJECTIVES`, the name of the module of losses that it learns by; `DRAWS`, beginnings of the
   paths that drawing reads; `APART`: whether answers read none of them; `Prompts`, how it reads a
   prompt before an image that it learns to draw; `ONLY_WORDS`: why it draws behind a prompt and
   nothing else, "" where it draws behind thoughts and pictures too;
 · `ORBAX`: whether `srum_jax.convert` makes Orbax folders of its weights;
 · `LOWERING` and `WORKLOAD`, the names of the modules that make its programs from shapes (sample,
   decode, read, write) and count their operations (drawing, decoding, asking, answering);
 · `load(folder, base, *, mesh, dtype, want, int8_weights)` -> (sizes, parameters, the
   autoencoder's, tokenizer);
 · `SAMPLER`, the fields of `config.SampleConfig` that its sampler reads; `LEADING_BLANK`: whether
   an answer's text begins with blanks that are no part of it;
 · `ImageSampler`, `TextGenerator`, `AnswerScorer`, `ImageEncoder` and `ImageDecoder`, which run
   what was loaded;
 · `TextRows` and `DrawingRows`, which requests join between steps, `Job`, an image for these, and
   `writing_params(generator, sampler)`, what texts' steps read.
"""

import importlib
from types import ModuleType
from typing import Any

from etils import epath

FAMILIES = {  # name -> module; of a folder that none recognises, the first says what it lacks
    "bagel": "srum_jax.generation.bagel",
    "janus": "srum_jax.generation.janus",
}


def of(sizes: Any) -> ModuleType:
    """The family of a model by its sizes."""
    for name in FAMILIES.values():
        family = importlib.import_module(name)
        if isinstance(sizes, family.Sizes):
            return family
    raise TypeError(f"{type(sizes).__name__} is no family's sizes")


def find(folder: epath.PathLike, base: epath.PathLike | None = None) -> ModuleType:
    """The family of a folder, or of the base that has what the folder lacks."""
    places = [epath.Path(one) for one in (folder, base) if one]
    modules = [importlib.import_module(path) for path in FAMILIES.values()]
    return next((m for m in modules if any(map(m.recognises, places))), modules[0])
