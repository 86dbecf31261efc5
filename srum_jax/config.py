"""The configuration of a run: reading it, every check, hashes of its parts.

The values live in `configs/base.py`, once, each with a comment; a config file changes a few of them
and the command line a few more (`--config.train.steps=200`). The keys and their types are the
dataclasses of `config_sections.py`; `load` refuses what is unknown, missing, of another type or
contradictory before anything starts.
"""

import dataclasses
import difflib
import hashlib
import itertools
import json
import os
import pathlib
import sys
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

from srum_jax.config_sections import (  # noqa: F401 (this module is their one entry)
    STAGES,
    AutoencoderConfig,
    ComputeConfig,
    Config,
    DistributedConfig,
    EvaluateConfig,
    ExportConfig,
    GenerateConfig,
    IngestConfig,
    LanesConfig,
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
from srum_jax.core.errors import BadInput


def load(values: Mapping[str, Any]) -> Config:
    """Checks `values` (a ConfigDict or nested dict) and freezes them.

    Raises BadInput with one line for every key that is unknown, missing, of the wrong type or in
    contradiction to another.
    """
    if hasattr(values, "to_dict"):
        values = values.to_dict()
    problems: list[str] = []
    cfg = _build(Config, values, "", problems)
    if not problems:
        problems = list(_contradictions(cfg))
    if problems:
        raise BadInput("the config does not hold together:\n  " + "\n  ".join(problems))
    return cfg


def parse(argv: Sequence[str], flag_values: Any) -> Config:
    """Parses a command line (`argv[0]` is the program) whose `--config` names a file.

    `flag_values` is the `absl.flags.FlagValues` that holds the other flags; it is parsed on the
    way. Raises BadInput for flags that are wrong and for a config file that is missing, does not
    run, or holds wrong keys.
    """
    from absl import flags
    from ml_collections import config_flags

    argv = list(argv)
    path = _config_path(argv)
    if not path:
        raise BadInput("no config: give --config FILE.py, for example --config configs/shapes.py")
    if not os.path.isfile(path.split(":")[0]):
        raise BadInput(f"--config {path.split(':')[0]}: no such file")
    sys.path.append(str(pathlib.Path(__file__).parents[1]))  # `from configs import base`, anywhere
    sys.modules.pop("config_config", None)  # the loader would run this file on top of a former one
    config_flags.DEFINE_config_file(
        "config", None, "The run's config file.", flag_values=flag_values, sys_argv=argv
    )
    try:
        rest = flag_values(argv)[1:]
        values = flag_values.config
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError) as e:
        raise BadInput(f"command line or {path}: {_message(e)}") from e
    except Exception as e:  # a config file is a program: whatever it raises is a fault in it
        raise BadInput(f"{path} does not run: {type(e).__name__}: {e}") from e
    if not hasattr(values, "to_dict"):
        raise BadInput(f"{path}: get_config() must return a ConfigDict, got {values!r}")
    if rest:
        raise BadInput(f"not understood on the command line: {' '.join(rest)}")
    return load(values)


def _message(e: BaseException) -> str:
    """On one line what was raised first; the flag library wraps exceptions in exceptions."""
    while e.args and isinstance(e.args[0], BaseException):
        e = e.args[0]
    return " ".join(str(e.args[0] if e.args else e).split())


def _config_path(argv: list[str]) -> str:
    """The value of `--config` ("FILE.py" or "FILE.py:argument"); the last one counts."""
    path = ""
    for word, following in itertools.zip_longest(argv[1:], argv[2:], fillvalue=""):
        name, equals, value = word.partition("=")
        if name in ("--config", "-config"):
            path = value if equals else following
    return path


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

    Steps run on the whole mesh. Drawing, scoring, reading in and evaluation are each host's own, on
    the mesh of its devices: `host_shape`, by default the whole mesh, as on a single host.
    """
    every, own = (shape["data"] * shape["fsdp"] for shape in (mesh_shape, host_shape or mesh_shape))
    users = {
        "sample.batch": {"generate", "pretrain", "evaluate"},
        "score.batch": {"score", "evaluate"},
        "evaluate.batch": {"pretrain", "evaluate"},
        "ingest.batch": {"ingest"},
    }
    found = {key: own for key, stages in users.items() if stages & set(cfg.stages)}
    for name, rows in LOOPS.items():
        if name in cfg.stages:
            found[f"{name}.{rows}"] = every * getattr(cfg, name).micro_batches
    return found


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
    ways, packed = mesh_shape["context"], [name for name in PACKED if name in cfg.stages]
    for name, lane in itertools.product(packed, ("und", "gen", "vit")):
        if (size := getattr(getattr(cfg, name).lanes, lane)) % ways:
            raise BadInput(
                f"{name}.lanes.{lane} = {size} does not divide by mesh.context = {ways}, the "
                "devices that share every row"
            )


def section(cls: type, values: Mapping[str, Any], *, where: str) -> Any:
    """One of the sections' dataclasses from plain values; `where` begins every problem's line.

    Raises BadInput with one line for every key that is unknown, missing, of the wrong type or, in
    a `SampleConfig`, out of range.
    """
    problems: list[str] = []
    made = _build(cls, values, "", problems)
    if made is not None and cls is SampleConfig:
        holder = types.SimpleNamespace(sample=made)
        names = [[n for n in group if n.startswith("sample.")] for group in GROUPS]
        problems = [*_outside(holder, *names), *_sample(made)]
    if problems:
        raise BadInput("\n  ".join(f"{where}: {p}" for p in problems))
    return made


def _part(cfg: Any, name: str) -> Any:
    for key in name.split("."):
        cfg = getattr(cfg, key)
    return cfg


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return [_plain(v) for v in value] if isinstance(value, tuple) else value


def suggest(name: Any, known: Iterable[str]) -> str:
    """A sentence that names the closest of `known`, or all of them."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    return f'did you mean "{close[0]}"?' if close else f"known: {', '.join(known)}"


def _build(cls: type, values: Any, path: str, problems: list[str]) -> Any:
    """An instance of `cls`, or None with a line in `problems` for each wrong key below `path`."""
    if not isinstance(values, Mapping):
        problems.append(f"{path.rstrip('.')} must be a section with keys, got {values!r}")
        return None
    hints = typing.get_type_hints(cls)
    before = len(problems)
    for key in values:
        if key not in hints:
            problems.append(f'unknown key "{path}{key}": {suggest(key, hints)}')
    fields = {}
    for key, kind in hints.items():
        if key not in values:
            problems.append(f"{path}{key} is missing")
        elif dataclasses.is_dataclass(kind):
            fields[key] = _build(kind, values[key], f"{path}{key}.", problems)
        else:
            fields[key] = _value(kind, values[key], path + key, problems)
    return cls(**fields) if len(problems) == before else None


def _value(kind: Any, value: Any, path: str, problems: list[str]) -> Any:
    """`value` as `kind` (int, float, bool, str, Literal or a tuple of them)."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Literal:
        if value not in args:
            problems.append(f"{path} = {value!r} is not known: {suggest(value, args)}")
    elif origin is tuple:
        several = args[-1] is Ellipsis
        if not isinstance(value, (tuple, list)) or not (several or len(value) == len(args)):
            count = "any number of" if several else len(args)
            problems.append(f"{path} must be a tuple of {count} values, got {value!r}")
            return None
        kinds = args[:1] * len(value) if several else args
        return tuple(
            _value(k, v, f"{path}[{i}]", problems)
            for i, (k, v) in enumerate(zip(kinds, value, strict=True))
        )
    elif kind is float and type(value) is int:
        return float(value)
    elif type(value) is not kind:
        problems.append(f"{path} must be {kind.__name__}, got {value!r}")
    elif kind is float and value - value != 0:
        problems.append(f"{path} must be a finite number, got {value!r}")
    return value


PACKED = ("train", "pretrain")
LOOPS = {"train": "rows", "pretrain": "rows", "autoencoder": "batch"}  # what a step is cut into


def _keys(own: str, loop: str = "", packed: str = "") -> list[str]:
    """Dotted names: `own` as they are, `loop` of all of `LOOPS`, `packed` of all of `PACKED`."""
    inside = [(section, key) for section in LOOPS for key in loop.split()]
    inside += [(section, key) for section in PACKED for key in packed.split()]
    return own.split() + [f"{section}.{key}" for section, key in inside]


POSITIVE = _keys(
    """rounds distributed.init_timeout distributed.heartbeat_timeout distributed.shutdown_timeout
    sample.steps sample.shift sample.batch sample.size ingest.batch ingest.shard_size
    generate.count generate.candidates generate.shard_size score.grid score.batch score.shard_size
    score.min_judges score.regions score.sam.points score.sam.batch score.written.max_tokens
    score.written.attempts score.written.temperature score.written.batch score.external.timeout
    score.external.attempts score.external.concurrency
    evaluate.count evaluate.questions evaluate.multi_image_questions evaluate.captions
    evaluate.edits evaluate.best_of_prompts evaluate.batch autoencoder.batch
    pretrain.generation_images pretrain.edit_images pretrain.questions pretrain.multi_image_every
    pretrain.latents pretrain.edits pretrain.evaluate_every train.nft_beta
    train.monitor.every train.monitor.patience train.lora.rank train.lora.alpha""",
    loop="""steps micro_batches optim.learning_rate optim.adam_learning_rate optim.eps
    checkpoint_every keep log_every max_bad_steps""",
    packed="rows lanes.und lanes.gen lanes.images timestep_std timestep_shift",
)
NOT_NEGATIVE = _keys(
    """seed sample.guidance sample.image_guidance ingest.rejects generate.rejects
    generate.guidance score.margin score.crop score.compare train.candidates
    train.min_gain train.lambda_constraint train.repulsion_cap train.advantage_scale train.anchor
    train.max_drift train.monitor.prompts train.monitor.questions train.monitor.min_score
    evaluate.seed autoencoder.kl_weight pretrain.text_weight log.profile""",
    loop="optim.warmup optim.weight_decay optim.clip_norm",
    packed="lanes.vit lanes.labels lanes.regions",
)
FRACTIONS = _keys(
    """sample.renorm_min score.verify score.min_area score.max_area score.overlap
    score.sam.min_iou score.sam.min_stability train.monitor.min_diversity
    train.monitor.min_agreement""",
    loop="optim.b1 optim.b2 ema",
    packed="text_dropout",
)
GROUPS = (POSITIVE, NOT_NEGATIVE, FRACTIONS)


def _contradictions(cfg: Config) -> Iterable[str]:
    yield from _outside(cfg, *GROUPS)
    yield from _run(cfg)
    yield from _data(cfg)
    yield from _score(cfg)
    yield from _ingest(cfg)
    yield from _train(cfg)
    for name, rows in LOOPS.items():
        yield from _loop(name, getattr(cfg, name), rows)


def _outside(cfg: Any, positive, not_negative, fractions) -> Iterable[str]:
    """A line for each of the named keys whose value is out of range."""

    def wrong(names: list[str], allowed) -> Iterable[tuple[str, Any]]:
        for name in names:
            value = _part(cfg, name)
            if not all(allowed(v) for v in (value if isinstance(value, tuple) else (value,))):
                yield name, value

    for name, value in wrong(positive, lambda v: v > 0):
        yield f"{name} must be above 0, got {value}"
    for name, value in wrong(not_negative, lambda v: v >= 0):
        yield f"{name} must not be negative, got {value}"
    for name, value in wrong(fractions, lambda v: 0 <= v <= 1):
        yield f"{name} must lie in [0, 1], got {value}"


def _run(cfg: Config) -> Iterable[str]:
    if not cfg.stages:
        yield "stages is empty: name at least one"
    if list(cfg.stages) != sorted(set(cfg.stages), key=STAGES.index):
        yield f"stages must be distinct and in this order: {', '.join(STAGES)}"
    making = [name for name in ("autoencoder", "pretrain") if name in cfg.stages]
    if making and cfg.model != "shapes":
        yield f'stages {making} make the base of "shapes", and model is "{cfg.model}"'
    if not cfg.weights and cfg.model != "shapes":
        yield f'weights must name the folder with the weights of "{cfg.model}"'
    if cfg.weights_base and not cfg.weights:
        yield f"weights_base = {cfg.weights_base!r} completes the folder in weights, which is empty"
    if len(set(cfg.log.writers)) != len(cfg.log.writers):
        yield f"log.writers must be distinct, got {cfg.log.writers}"
    sizes = dataclasses.asdict(cfg.mesh)
    for axis, size in sizes.items():
        if size < 1 and size != -1:
            yield f"mesh.{axis} must be a number of devices or -1 (the rest), got {size}"
    if list(sizes.values()).count(-1) > 1:
        yield f"mesh may leave one axis to the rest (-1), got {sizes}"


def _sample(sample: SampleConfig) -> Iterable[str]:
    low, high = sample.guidance_interval
    if not 0 <= low <= high <= 1:
        yield f"sample.guidance_interval must be low <= high in [0, 1], got {(low, high)}"


def _data(cfg: Config) -> Iterable[str]:
    yield from _sample(cfg.sample)
    for name in ("generate.prompts", "evaluate.prompts"):
        yield from _prompts(name, _part(cfg, name))
    if cfg.generate.shard_size % cfg.sample.batch:
        yield (
            f"generate.shard_size = {cfg.generate.shard_size} must be a multiple of sample.batch = "
            f"{cfg.sample.batch}: a shard is made by whole compiled calls"
        )
    for key in ("generation_images", "edit_images"):
        count, rows = getattr(cfg.pretrain, key), cfg.pretrain.rows
        if rows > 0 and count % rows:
            yield f"pretrain.{key} = {count} must be a multiple of pretrain.rows = {rows}"
    if cfg.evaluate.best_of < 2:
        yield f"evaluate.best_of must be at least 2, got {cfg.evaluate.best_of}"


def _score(cfg: Config) -> Iterable[str]:
    c = cfg.score
    if len(set(c.proposers)) != len(c.proposers) or not c.proposers:
        yield f"score.proposers must be distinct and at least one, got {c.proposers}"
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
    judges = 2 if c.judge == "ensemble" else 1
    if c.min_judges > judges:
        yield f'score.min_judges = {c.min_judges}, but judge "{c.judge}" is {judges}'
    if c.judge == "external" and c.compare:
        yield f"score.compare = {c.compare} compares the model's read-outs: the judge is external"
    logits = c.judge != "external" and c.readout == "logits"
    if c.verify and not logits:
        yield f"score.verify = {c.verify} is read from logits: judge self, read-out logits"
    if cfg.model == "shapes" and logits and c.view != "crop":
        yield f'score.view = "{c.view}": the shapes base has no words for it; use "crop"'


def _ingest(cfg: Config) -> Iterable[str]:
    c, t = cfg.ingest, cfg.train
    if "ingest" not in cfg.stages:
        return
    kind, _, path = c.source.partition(":")
    if kind not in ("published", "parquet") or not path:
        yield f'ingest.source = {c.source!r} must be "published:FILE.jsonl" or "parquet:GLOB"'
    if "generate" in cfg.stages:
        yield "stages names ingest and generate: training takes its pictures from one of them"
    if cfg.rounds != 1:
        yield f"rounds = {cfg.rounds} with the stage ingest, which has the same data every round"
    if c.images and kind == "parquet":
        yield f"ingest.images = {c.images!r}: the pictures of a Parquet file are inside it"
    neutral = (t.objective, t.select, t.min_gain, t.min_score) == ("sft", "all", 0.0, -1.0)
    if kind == "parquet" and {"train", "score"} & set(cfg.stages) == {"train"} and not neutral:
        yield (
            "captions in Parquet files come without scores: name the stage score, or train by "
            'train.objective = "sft", select = "all", min_gain = 0.0, min_score = -1.0'
        )


def _train(cfg: Config) -> Iterable[str]:
    c, drawn = cfg.train, cfg.generate.candidates
    if "train" in cfg.stages and "ingest" not in cfg.stages:
        if c.candidates > drawn:
            yield f"train.candidates = {c.candidates} is more than generate.candidates = {drawn}"
        few = "train.candidates" if c.candidates else "generate.candidates"
        comparing = {
            "train.objective": c.objective in ("srum_advantage", "nft"),
            "train.select": c.select == "best_of_k",
            "train.min_gain": c.min_gain > 0,
        }
        reason = next((name for name, compares in comparing.items() if compares), None)
        if reason and (c.candidates or drawn) < 2:
            yield (
                f"{few} = {c.candidates or drawn}: {reason} = {json.dumps(_part(cfg, reason))} "
                "compares the candidates of a prompt, so at least 2"
            )
    if not -1 <= c.min_score <= 1:
        yield f"train.min_score must lie in [-1, 1], as scores do, got {c.min_score}"
    elif c.min_score > -1 and c.select != "best_of_k":
        yield (
            f"train.min_score = {c.min_score} bars the best candidates of train.select = "
            f'"best_of_k", got "{c.select}": set it to -1.0, or select best_of_k'
        )
    if c.min_gain >= 2:
        yield f"train.min_gain must be below 2, the range of scores, got {c.min_gain}"
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
    if c.monitor.candidates < 2:
        yield (
            f"train.monitor.candidates = {c.monitor.candidates} must be at least 2: diversity is "
            "the difference of a prompt's images"
        )


def _prompts(name: str, value: str) -> Iterable[str]:
    built_in = [f"shapes:{split}" for split in ("train", "validation", "test")]
    if value.startswith("tfds:"):
        return  # `data/tfds_texts.py` reads the rest
    if ":" in value and "://" not in value and value not in built_in:
        yield f"{name} = {value!r} is not known: {suggest(value, built_in)}"
    elif value not in built_in and not value.endswith((".txt", ".json", ".jsonl", ".csv")):
        yield (
            f"{name} = {value!r} must be {' | '.join(built_in)}, a .txt, .json, .jsonl or .csv "
            "file, or tfds:..."
        )


def _loop(name: str, loop: LoopConfig, rows: str) -> Iterable[str]:
    if loop.micro_batches > 0 and getattr(loop, rows) % loop.micro_batches:
        yield (
            f"{name}.{rows} = {getattr(loop, rows)} must be a multiple of {name}.micro_batches = "
            f"{loop.micro_batches}"
        )
    if loop.optim.b1 == 1 or loop.optim.b2 == 1:
        yield f"{name}.optim.b1 and b2 must be below 1"
