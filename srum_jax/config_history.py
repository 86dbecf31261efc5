"""Names of former versions, of config keys above all: read with a warning, for one version.

Config files, the command line and the records of runs may use them; nothing else does.
"""

from collections.abc import Mapping
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
# Former names of what stages record beside the config as read ("inputs"), and their names.
RENAMED_INPUTS = {"probe": "monitor"}
# Keys that are gone, and the value that always holds; recorded with it, they are no change.
REMOVED = {
    "train.lanes.vit": 0,
    "train.lanes.labels": 0,
    "pretrain.lanes.regions": 0,
    "pretrain.multi_image_lanes.regions": 0,
}


def current_name(name: str) -> str:
    """The name of a dotted key today ("train.probe.every" is "train.monitor.every")."""
    found = ""
    for word in name.split("."):
        found = f"{found}.{word}" if found else word
        found = RENAMED.get(found, found)
    return found


def recorded(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys with values, as a former version wrote them down, under the names of today."""
    named = {current_name(name): value for name, value in values.items()}
    return {name: x for name, x in named.items() if name not in REMOVED or REMOVED[name] != x}


def recorded_inputs(values: Mapping[str, Any]) -> dict[str, Any]:
    """What a stage of a former version recorded of its inputs, under the names of today."""
    return {RENAMED_INPUTS.get(name, name): value for name, value in values.items()}


def current(values: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """`values` with renamed keys under their names of today, where they count before the default.

    An empty section under a former name (see `base.get_config`) is left out, and so is a key that
    is gone, with the value that holds without it.
    """
    found, former = {}, {}
    for key, value in values.items():
        name = current_name(path + key)
        if isinstance(value, Mapping):
            value = current(value, f"{name}.")
        if name in REMOVED and value == REMOVED[name]:
            logging.warning("%s is gone: it is always %r", name, value)
        elif name == path + key:
            found[key] = value
        elif value != {}:
            warn(path + key, name)
            former[name.removeprefix(path)] = value
    for key, value in former.items():
        both = isinstance(value, Mapping) and isinstance(found.get(key), Mapping)
        found[key] = found[key] | value if both else value
    return found


def warn(former: str, name: str) -> None:
    """Logs that the key `former` is called `name`."""
    logging.warning("%s is called %s; the former name is read in this version only", former, name)
