"""The configuration of a run: reading it, what keys say about each other, hashes of its parts.

Keys, types, ranges and defaults are the dataclasses of `srum_jax/configs/base.py`; a config file
changes a few values and the command line a few more (`--config.train.steps=200`). `load` refuses
what is unknown, missing, of another type, out of range or contradictory before anything starts.
"""

import dataclasses
import difflib
import hashlib
import importlib
import itertools
import json
import math
import os
import pathlib
import re
import sys
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import srum_jax.configs
from srum_jax import config_history, config_online
from srum_jax.configs.base import (  # noqa: F401 (this module is their one entry)
    AutoencoderConfig,
    ComputeConfig,
    Config,
    DistributedConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    IngestConfig,
    LogConfig,
    LoopConfig,
    LoraConfig,
    MeshConfig,
    MonitorConfig,
    OptimConfig,
    PackedConfig,
    PretrainConfig,
    SampleConfig,
    ScoreConfig,
    Stage,
    TrainConfig,
)
from srum_jax.core import places, registry
from srum_jax.core.checked import build, key_names, suggest, unknown_key
from srum_jax.core.errors import BadInput, listed, quoted
from srum_jax.core.files import read_json

STAGES: tuple[str, ...] = typing.get_args(Stage)  # in the order a run may name them
MAKING = ("autoencoder", "pretrain")  # of these the ones that make a world's base


def load(values: Mapping[str, Any]) -> Config:
    """Checks `values` (a ConfigDict or nested dict) and freezes them.

    Raises BadInput with one line for every key that is unknown, missing, of the wrong type, out of
    range or in contradiction to another.
    """
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    problems = list(config_history.refused(values))
    cfg = build(Config, config_history.current(values), "", problems)
    if cfg is not None and not problems:
        problems = list(_contradictions(cfg))
    if problems:
        raise BadInput("the config does not hold together:" + listed(problems))
    return cfg


def parse(argv: Sequence[str], flag_values: Any) -> Config:
    """Parses a command line (`argv[0]` is the program) whose `--config` names a file or a config
    of the package.

    `flag_values` is the `absl.flags.FlagValues` that holds the other flags; it is parsed on the
    way. Raises BadInput for flags that are wrong and for a config file that is missing, does not
    run, or holds wrong keys.
    """
    from absl import flags
    from ml_collections import config_flags

    given = config_path(argv)
    path = _file(given)
    argv = [_override(word) for word in _with_path(argv, path)]
    _answer_to_short_name()
    sys.modules.pop("config_config", None)  # the loader would run this file on top of a former one
    config_flags.DEFINE_config_file(
        "config", None, "The run's config file.", flag_values=flag_values, sys_argv=argv
    )
    try:
        rest = flag_values(argv)[1:]
        values = flag_values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise BadInput(f"command line or {given}: {_message(e, path)}") from e
    except Exception as e:  # a config file is a program: whatever it raises is a fault in it
        raise BadInput(f"{given} does not run: {type(e).__name__}: {e}") from e
    if not hasattr(values, "to_dict"):
        raise BadInput(f"{given}: get_config() must return a ConfigDict, got {quoted(values)}")
    if rest:
        raise BadInput(f"not understood on the command line: {' '.join(rest)}")
    return load(values)


RECORD = "config.json"  # of a run, whole, in its work folder


def record(cfg: Config, config_file: str) -> dict[str, Any]:
    """What `RECORD` holds of a run: every value, and where they came from. Keys of judges are
    names of environment variables: nothing secret is in it."""
    names = [field.name for field in dataclasses.fields(cfg)]
    return {"config_file": config_file, "config": section_values(cfg, names)}


def recorded(argv: Sequence[str], flag_values: Any) -> tuple[Config, str]:
    """The config of the run in `--workdir`, and where it came from: for a command line without
    `--config`.

    flag_values: as in `parse`. Raises BadInput where no run left its config there.
    """
    from absl import flags

    try:
        rest = flag_values(list(argv))[1:]
    except flags.Error as e:
        raise BadInput(f"command line: {e}; keys of the config go after --config") from e
    if rest:
        raise BadInput(f"not understood on the command line: {' '.join(rest)}")
    if not flag_values.workdir:
        _file("")
    path = places.place(flag_values.workdir, "--workdir") / RECORD
    if not path.exists():
        raise BadInput(
            f"no config: {path} is not there, so no run began in --workdir; give --config FILE.py, "
            f"or one of the package: {', '.join(packaged())}"
        )
    try:
        found = read_json(path)
        return load(found["config"]), str(found["config_file"])
    except BadInput:  # of a value
        raise
    except (ValueError, TypeError, KeyError) as e:
        raise BadInput(f"{path} is damaged ({e}); give --config, which writes it again") from e


def packaged() -> dict[str, pathlib.Path]:
    """{name: file} of the configs in the package."""
    folder = pathlib.Path(srum_jax.configs.__file__).parent
    return {p.stem: p for p in sorted(folder.glob("*.py")) if not p.stem.startswith("_")}


def config_path(argv: Sequence[str]) -> str:
    """The value of `--config` as it was given ("FILE.py", "FILE.py:argument" or a name of the
    package's); the last one counts. "": none."""
    path = ""
    for word, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name in _CONFIG:
            path = value if equals else following
    return path


_CONFIG = ("--config", "-config")


def _file(given: str) -> str:
    """The file that `given` means, with the argument behind it. Raises BadInput for no file."""
    name, colon, argument = given.partition(":")
    known = packaged()
    if not name:
        names = ", ".join(known)
        raise BadInput(f"no config: give --config FILE.py, or one of the package: {names}")
    if os.path.isfile(name):
        return given
    if name in known:
        return f"{known[name]}{colon}{argument}"
    stem = pathlib.PurePath(name).stem
    if stem in known:
        raise BadInput(f"--config {name}: no such file; the one in the package: --config {stem}")
    hint = "" if name.endswith(".py") else f" and none of the package's: {suggest(name, known)}"
    raise BadInput(f"--config {name}: no such file{hint}")


def _with_path(argv: Sequence[str], path: str) -> Iterator[str]:
    """`argv` with `path` for every value of `--config`."""
    is_value = False
    for word in argv:
        name, equals, _ = word.partition("=")
        if is_value:
            word = path
        elif equals and name in _CONFIG:
            word = f"{name}={path}"
        is_value = word in _CONFIG and not is_value
        yield word


def _override(word: str) -> str:
    """A word of the command line; a `--config.key` under its name of today.

    Raises BadInput for a key that there is not.
    """
    found = re.match(r"(--?config\.)([^=\[]*)", word)
    if not found:
        return word
    former, kind, path = found[2], Config, ""
    name = config_history.current_name(former)
    if name in config_history.REMOVED:
        raise BadInput(f"--config.{former}: {config_history.gone(name)}")
    for key in name.split("."):
        hints = typing.get_type_hints(kind) if dataclasses.is_dataclass(kind) else {}
        if key not in hints:
            names = {known: known.split(".")[-1] for known in key_names(Config)}
            elsewhere = [known for known, last in names.items() if last == key]
            if not elsewhere and not difflib.get_close_matches(key, hints, n=1, cutoff=0.5):
                near = difflib.get_close_matches(key, names.values(), n=1, cutoff=0.75)
                elsewhere = [known for known, last in names.items() if last in near]
            said = unknown_key(path, key, hints, elsewhere)
            raise BadInput(f"--config.{former}: {said}")
        kind, path = hints[key], f"{path}{key}."
    if name != former:
        config_history.warn(former, name)
    return f"{found[1]}{name}{word[found.end() :]}"


def _answer_to_short_name() -> None:
    """Lets config files say `from configs import base`, whatever folder they are in."""
    for name in ("configs", "configs.base"):
        try:
            importlib.import_module(name)
        except ImportError:
            sys.modules[name] = importlib.import_module(f"srum_jax.{name}")


def _message(e: BaseException, path: str) -> str:
    """On one line what was raised first: the flag library wraps exceptions in exceptions, and a
    traceback in the text of one. `path`: "FILE.py:argument", whose line is told."""
    while e.args and isinstance(e.args[0], BaseException):
        e = e.args[0]
    text = str(e.args[0] if e.args else e)
    if "Traceback (most recent call last)" in text:
        file = re.escape(path.partition(":")[0])
        lines = re.findall(rf'File "{file}", line (\d+)', text)
        place = f"line {lines[-1]}: " if lines else ""
        text = place + text.rstrip().splitlines()[-1]
    return " ".join(text.split())


def section_values(cfg: Config, names: Iterable[str]) -> dict[str, Any]:
    """{name: plain JSON value} of dotted parts of the config ("seed", "train.optim")."""
    return {name: _plain(_part(cfg, name)) for name in sorted(names)}


def section_hash(cfg: Config, names: Iterable[str]) -> str:
    """16 hex digits that depend on the values of the named parts alone, not on their order."""
    return hash_json(section_values(cfg, names))


def hash_json(value: Any) -> str:
    """16 hex digits of a JSON value, the same whatever the order of its keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shares(
    cfg: Config, mesh_shape: Mapping[str, int], host_shape: Mapping[str, int] | None = None
) -> dict[str, int]:
    """{key: what its value must be a multiple of}: rows of compiled calls, cut over the devices.

    Steps run on the whole mesh. Sampling, scoring, reading in and evaluation are each host's own,
    on the mesh of its devices: `host_shape`, by default the whole mesh, as on a single host.
    """
    every, own = (shape["data"] * shape["fsdp"] for shape in (mesh_shape, host_shape or mesh_shape))
    found = {key: own for key, stages in _OF_A_HOST.items() if stages & set(cfg.stages)}
    parts = {"train.rows": cfg.train.micro_batches, "pretrain.rows": 1, "autoencoder.batch": 1}
    for key, count in parts.items():
        if key.partition(".")[0] in cfg.stages:
            found[key] = every * count
    return found


_OF_A_HOST = {  # batches that each host works through alone, and the stages that do
    "sample.batch": {"generate", "pretrain", "evaluate", "adjust"},
    "score.batch": {"score", "evaluate", "adjust"},
    "evaluate.batch": {"pretrain", "evaluate", "adjust"},
    "ingest.batch": {"ingest"},
}


def fitting_devices(cfg: Config) -> str:
    """Over how many devices (mesh.data x mesh.fsdp) every batch can be cut, in words; "": any."""
    most = {key: _part(cfg, key) // by for key, by in shares(cfg, {"data": 1, "fsdp": 1}).items()}
    said = {"a host": [most.pop(key) for key in _OF_A_HOST if key in most]}
    said["in all"] = list(most.values())
    return " and ".join(f"{_divisors(math.gcd(*x))} {where}" for where, x in said.items() if x)


def _divisors(number: int) -> str:
    found = [str(n) for n in range(1, number + 1) if number % n == 0]
    return " or ".join(filter(None, (", ".join(found[:-1]), found[-1])))


def check_mesh(
    cfg: Config, mesh_shape: Mapping[str, int], host_shape: Mapping[str, int] | None = None
) -> None:
    """Raises BadInput where a batch cannot be cut evenly over the `data` and `fsdp` devices that
    share it (see `shares`), or a training row over the `context` devices.
    """
    sizes = [(k, _part(cfg, k), by) for k, by in shares(cfg, mesh_shape, host_shape).items()]
    uneven = [f"{key} = {size} by {by}" for key, size, by in sizes if size % by]
    if uneven:
        raise BadInput(
            "mesh.data x mesh.fsdp devices share every batch, a step's in micro_batches parts, and "
            f"these do not divide: {', '.join(uneven)}"
        )
    ways = mesh_shape["context"]
    if ways > 1 and "pretrain" in cfg.stages:
        raise BadInput(f"mesh.context = {ways} cuts long rows, and those of pretrain are short: 1")
    for lane in ("und", "gen") if "train" in cfg.stages else ():
        if (size := getattr(cfg.train.lanes, lane)) % ways:
            raise BadInput(
                f"train.lanes.{lane} = {size} does not divide by mesh.context = {ways}, the "
                "devices that share every row"
            )


def section(cls: type, values: Mapping[str, Any], *, where: str) -> Any:
    """One of the sections' dataclasses from plain values; `where` begins every problem's line.

    Raises BadInput with one line for every key that is unknown, missing, of the wrong type or out
    of range.
    """
    problems: list[str] = []
    made = build(cls, values, "", problems)
    if problems:
        raise BadInput(listed([f"{where}: {p}" for p in problems], 5).strip())
    return made


def _part(cfg: Any, name: str) -> Any:
    for key in name.split("."):
        cfg = getattr(cfg, key)
    return cfg


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def _contradictions(cfg: Config) -> Iterable[str]:
    yield from _run(cfg)
    yield from _data(cfg)
    yield from _score(cfg)
    yield from _ingest(cfg)
    yield from _train(cfg)
    yield from config_online.contradictions(cfg)


def _run(cfg: Config) -> Iterable[str]:
    if list(cfg.stages) != sorted(cfg.stages, key=STAGES.index):
        yield f"stages must be in this order: {', '.join(STAGES)}"
    models = (*registry.WORLDS, *registry.PRESETS)
    if cfg.model not in models:
        yield f"model = {quoted(cfg.model)} is not known: {suggest(cfg.model, models)}"
    elif cfg.model not in registry.WORLDS:
        yield from misplaced(cfg.model, cfg.stages)
        if not cfg.weights:
            yield f'weights must name the folder with the weights of "{cfg.model}"'
    if cfg.rounds > 1 and "export" not in cfg.stages:
        yield f'rounds = {cfg.rounds}: a round starts from what "export" made, which stages lacks'
    if cfg.weights_base and not cfg.weights:
        yield f"weights_base = {quoted(cfg.weights_base)} completes weights, which is empty"
    sizes = dataclasses.asdict(cfg.mesh)
    if list(sizes.values()).count(-1) > 1:
        yield f"mesh may leave one axis to the rest (-1), got {sizes}"


def misplaced(model: str, stages: Iterable[str]) -> Iterator[str]:
    """What is wrong with stages that make a base, where `model` is no world: a line at most."""
    making = [name for name in MAKING if name in stages]
    if making and model not in registry.WORLDS:
        worlds = " or ".join(f'"{world}"' for world in registry.WORLDS)
        yield f'stages {making} make the base of {worlds}, and model is "{model}"'


def _data(cfg: Config) -> Iterable[str]:
    for name in ("generate.prompts", "evaluate.prompts"):
        yield from _prompts(name, _part(cfg, name))
    names = [entry.partition(":")[0] for entry in cfg.evaluate.suites]
    for name in sorted(set(names)):
        if name not in registry.SUITES:
            yield f"evaluate.suites: {quoted(name)} is not known: {suggest(name, registry.SUITES)}"
        elif names.count(name) > 1:
            yield f"evaluate.suites names {quoted(name)} twice"
    if cfg.generate.shard_size % cfg.sample.batch:
        yield (
            f"generate.shard_size = {cfg.generate.shard_size} must be a multiple of sample.batch = "
            f"{cfg.sample.batch}: a shard is made by whole compiled calls"
        )


def _score(cfg: Config) -> Iterable[str]:
    c = cfg.score
    needs = {"sam": "score.sam.weights", "file": "score.boxes"}
    for proposer, key in needs.items():
        if proposer in c.proposers and not _part(cfg, key):
            yield f'{key} is empty: the proposer "{proposer}" reads it'
    if c.min_area >= c.max_area:
        yield f"score.min_area = {c.min_area} must be below score.max_area = {c.max_area}"
    if c.judge != "self":
        for key in ("url", "model"):
            if not getattr(c.external, key):
                yield f'score.external.{key} is empty: score.judge = "{c.judge}" reads it'
    if c.min_judges > (judges := 2 if c.judge == "ensemble" else 1):
        yield f'score.min_judges = {c.min_judges}, but judge "{c.judge}" is {judges}'
    if c.judge == "external" and c.compare:
        yield f"score.compare = {c.compare} compares the model's read-outs: the judge is external"
    logits = c.judge != "external" and c.readout == "logits"
    if c.verify and not logits:
        yield f"score.verify = {c.verify} is read from logits: judge self, read-out logits"
    if cfg.model in registry.WORLDS and logits and c.view != "crop":
        yield f'score.view = "{c.view}": the {cfg.model} base has no words for it; use "crop"'


def _ingest(cfg: Config) -> Iterable[str]:
    c, t = cfg.ingest, cfg.train
    if "ingest" not in cfg.stages:
        return
    kind, _, path = c.source.partition(":")
    if kind not in ("published", "parquet") or not path:
        yield f'ingest.source = {quoted(c.source)} must be "published:FILE.jsonl" or "parquet:GLOB"'
    if "generate" in cfg.stages:
        yield "stages names ingest and generate: training takes its pictures from one of them"
    if cfg.rounds != 1:
        yield f"rounds = {cfg.rounds} with the stage ingest, which has the same data every round"
    if c.images and kind == "parquet":
        yield f"ingest.images = {quoted(c.images)}: the pictures of a Parquet file are inside it"
    neutral = (t.objective, t.select, t.min_gain, t.min_score) == ("sft", "all", 0.0, -1.0)
    if kind == "parquet" and {"train", "score"} & set(cfg.stages) == {"train"} and not neutral:
        yield (
            "captions in Parquet files come without scores: name the stage score, or train by "
            'train.objective = "sft", select = "all", min_gain = 0.0, min_score = -1.0'
        )


def _train(cfg: Config) -> Iterable[str]:
    c, drawn = cfg.train, cfg.generate.candidates
    if c.rows % c.micro_batches:
        yield f"train.rows = {c.rows} must be a multiple of train.micro_batches = {c.micro_batches}"
    if "train" in cfg.stages and "ingest" not in cfg.stages:
        if c.candidates > drawn:
            yield f"train.candidates = {c.candidates} is more than generate.candidates = {drawn}"
        few = "train.candidates" if c.candidates else "generate.candidates"
        comparing = {
            "train.objective": c.objective in ("srum_advantage", "nft", "dpo"),
            "train.select": c.select == "best_of_k",
            "train.min_gain": c.min_gain > 0,
            "train.min_gain_quantile": c.min_gain_quantile > 0,
        }
        reason = next((name for name, compares in comparing.items() if compares), None)
        if reason and (c.candidates or drawn) < 2:
            yield (
                f"{few} = {c.candidates or drawn}: {reason} = {json.dumps(_part(cfg, reason))} "
                "compares the candidates of a prompt, so at least 2"
            )
    for name, off in (("min_score", -1.0), ("min_score_quantile", 0.0)):
        if getattr(c, name) > off and c.select != "best_of_k":
            yield (
                f"train.{name} = {getattr(c, name)} bars the best candidates of train.select = "
                f'"best_of_k", got "{c.select}": set it to {off}, or select best_of_k'
            )
    if c.objective == "srum_paper" and c.lambda_constraint + c.anchor == 0:
        yield (
            "train.lambda_constraint = train.anchor = 0.0: nothing bounds the repulsion of "
            '"srum_paper"; set one above 0'
        )
    if c.trainable == "lora" and c.optim.optimizer == "muon":
        yield (
            'train.trainable = "lora": train.optim.optimizer = "muon" is for whole matrices; use '
            '"adamw"'
        )


def _prompts(name: str, value: str) -> Iterable[str]:
    built_in = [f"{world}:{split}" for world in registry.WORLDS for split in registry.SPLITS]
    if value.startswith("tfds:"):
        return  # `data/tfds_texts.py` reads the rest
    if problem := places.fault(value):
        yield f"{name}: {problem}"
        return
    if ":" in value and "://" not in value and value not in built_in:
        yield f"{name} = {quoted(value)} is not known: {suggest(value, built_in)}"
    elif value not in built_in and not value.endswith((".txt", ".json", ".jsonl", ".csv")):
        yield (
            f"{name} = {quoted(value)} must be {' | '.join(built_in)}, a .txt, .json, .jsonl or "
            ".csv file, or tfds:..."
        )
