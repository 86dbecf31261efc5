"""Names of former versions, of config keys above all: read with a warning, for one version.

Config files, the command line and the records of runs may use them; nothing else does.
"""

import reprlib
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

from absl import logging

# Former names of keys, and their names.
RENAMED = {
    "ingest.unit": "ingest.shard_size",
    "generate.unit": "generate.shard_size",
    "score.unit": "score.shard_size",
    "score.least_judges": "score.min_judges",
    "train.least_gain": "train.min_gain",
    "train.least_score": "train.min_score",
    "train.probe": "train.monitor",
    "train.monitor.least_score": "train.monitor.min_score",
    "train.monitor.least_diversity": "train.monitor.min_diversity",
    "train.monitor.least_agreement": "train.monitor.min_agreement",
    "evaluate.several": "evaluate.multi_image_questions",
    "pretrain.several_every": "pretrain.multi_image_every",
    "pretrain.several_lanes": "pretrain.multi_image_lanes",
}
# Former options of `srum generate` and `srum edit`, and their names.
RENAMED_OPTIONS = {"--cfg": "--guidance", "--image_cfg": "--image_guidance"}
# New keys of sections that records of former versions have: without them the defaults held.
ADDED = (
    *("evaluate.suites", "evaluate.first", "generate.order", "generate.think"),
    *("generate.think_tokens", "evaluate.think_tokens", "evaluate.frames", "score.min_coverage"),
    *("train.use", "train.min_gain_quantile", "train.min_score_quantile", "train.dpo_beta"),
    *("train.replay", "train.lanes.vit", "generate.edits", "generate.edit_count"),
    *("train.anchor_to", "train.carry", "generate.steps", "generate.stochastic_steps"),
    "generate.noise",
)
PARITY = 'api.load(…, parity="official")'
# Keys of a model's generation settings that are gone; they are false without that.
OF_PARITY = ("resize_twice", "sample_conditions")
# Former names of what stages record beside the config as read ("inputs"), and their names.
RENAMED_INPUTS = {"probe": "monitor", "prompts": "suite shapes"}

_BASE_LANES = {"und": 168, "gen": 64, "images": 4, "vit": 32, "labels": 40, "regions": 0}
_PAIR_LANES = {"und": 176, "gen": 32, "images": 2, "vit": 128, "labels": 24, "regions": 0}
_LOOP = {"micro_batches": 1, "keep": 2, "max_bad_steps": 3}
_OPTIM = {"b1": 0.9, "weight_decay": 0.0, "clip_norm": 1.0, "schedule": "cosine", "warmup": 100}


def _below(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{section}.{key}": value for key, value in values.items()}


# Keys that are gone, and the value that always holds; recorded with it, they are no change. What
# makes a base is the recipe in `worlds/shapes/pretrain.py` and `autoencoder.py`; what the original
# does otherwise is the parity of a model's generation settings.
REMOVED = {
    "sample.image_alone": True,
    "train.lanes.labels": 0,
    **_below("pretrain.lanes", _BASE_LANES),
    **_below("pretrain.multi_image_lanes", _PAIR_LANES),
    **_below("pretrain", _LOOP | {"ema": 0.998, "text_weight": 0.5, "text_dropout": 0.1}),
    **_below("pretrain", {"timestep_mean": 1.6, "timestep_std": 1.4, "timestep_shift": 1.0}),
    **_below("pretrain", {"generation_images": 40, "edit_images": 20}),
    **_below("pretrain", {"questions": 6, "multi_image_every": 3}),
    **_below("pretrain.optim", _OPTIM | {"optimizer": "muon", "b2": 0.95, "eps": 1e-15}),
    **_below("pretrain.optim", {"learning_rate": 2e-3, "adam_learning_rate": 2e-3}),
    **_below("autoencoder", _LOOP | {"ema": 0.999, "kl_weight": 1e-5}),
    **_below("autoencoder.optim", _OPTIM | {"optimizer": "adamw", "b2": 0.99, "eps": 1e-8}),
    **_below("autoencoder.optim", {"learning_rate": 2e-3, "adam_learning_rate": 4e-4}),
}


def current_name(name: str) -> str:
    """The name of a dotted key today ("train.probe.every" is "train.monitor.every")."""
    found = ""
    for word in name.split("."):
        found = f"{found}.{word}" if found else word
        found = RENAMED.get(found, found)
    return found


def current_options(words: Sequence[str]) -> list[str]:
    """The words of a command line with options under their names of today."""
    found = []
    for word in words:
        name, equals, value = word.partition("=")
        if name in RENAMED_OPTIONS:
            warn(name, RENAMED_OPTIONS[name])
            word = RENAMED_OPTIONS[name] + equals + value
        found.append(word)
    return found


def recorded(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys with values, as a former version wrote them down, under the names of today.

    defaults: of the keys in ADDED that are read today.
    """
    names = {name: current_name(name) for name in values}
    for former, name in names.items():
        if former != name:
            warn(former, name)
    sections = {name.partition(".")[0] for name in values}
    found = {name: x for name, x in defaults.items() if name.partition(".")[0] in sections}
    found |= {names[former]: value for former, value in values.items()}
    return {name: x for name, x in found.items() if name not in REMOVED or REMOVED[name] != x}


def recorded_inputs(values: Mapping[str, Any], today: Container[str]) -> dict[str, Any]:
    """What a stage of a former version recorded of its inputs, under the names of today.

    today: the names that the stage has; one of them is no former name.
    """
    found = {}
    for former, value in values.items():
        name = RENAMED_INPUTS.get(former, former)
        if former in today or name not in today:
            name = former
        if name != former:
            warn(f'the input "{former}"', f'"{name}"')
        found[name] = value
    return found


def current(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`values` with renamed keys under their names of today, where they count before the default.

    Keys that are gone are left out (see `refused`), and so are sections without a key.
    """
    found, former = {}, {}
    for key, value in values.items():
        name = current_name(path + key)
        if isinstance(value, Mapping):
            value = current(value, f"{name}.")
        if name in REMOVED or (isinstance(value, Mapping) and not value):
            continue
        if name == path + key:
            found[key] = value
        else:
            warn(path + key, name)
            former[name.removeprefix(path)] = value
    for key, value in former.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = found[key] | value if both else value
    return found


def refused(values: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """A line for each key in `values` that is gone and has another value than the one that holds;
    with that one it is a warning in the log."""
    for key, value in values.items():
        name = current_name(path + key)
        if isinstance(value, Mapping):
            yield from refused(value, f"{path}{key}.")
        elif name in REMOVED and value == REMOVED[name]:
            logging.warning("%s", gone(name))
        elif name in REMOVED:
            yield f"{path}{key} = {reprlib.repr(value)}: {gone(name)}"


def gone(name: str) -> str:
    """What is said of a key that is gone."""
    where = name.partition(".")[0]
    place = f"; srum_jax/worlds has the recipe of the stage {where}"
    if where in ("train", "sample"):
        place = {"train": "", "sample": f"; {PARITY} has what the original does"}[where]
    return f"{name} is gone: it is always {REMOVED[name]!r}{place}"


def warn(former: str, name: str) -> None:
    """Logs that the key `former` is called `name`."""
    logging.warning("%s is called %s; the former name is read in this version only", former, name)
