"""`use evaluate`: one benchmark of the field put to one model or two.

Owns the command: what is checked before a model is opened, what is told of the cost, the models in
turn, the judges, and the folder of results (`evals/suite_folder.py`). The same command goes on from
what is there.
"""

import argparse
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from absl import logging
from etils import epath

from srum_jax.core import files, places, registry
from srum_jax.core.errors import BadInput

MODEL, AGAINST = "model", "against"
KEPT = "kept"  # folder, in OUT, of what models and judges replied so far
NOT_SCORED = (
    "pictures are in official/{suite}: run the official program on them and give its results by "
    "--import, or name a judge"
)
SUBMITTED = "this split has no answers: what is in official/{suite} is to be submitted to {server}"
A_PART = "; it holds {n} of {total} questions, and servers want all: leave out --limit"
JUDGES = {
    "": "none",
    "optional": "none, the official program's results are read by --import; or a judge as a proxy",
    "words": "one that writes: self or external",
    "first token": "one that tells first-token probabilities: self, or external with logprobs",
}


def run(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is to be printed: "text" for people, the other fields for programs."""
    if options.suite == "list":
        yield from listing()
    elif options.rescore:
        yield rescored(options)
    elif options.imported:
        yield imported(options)
    else:
        yield evaluated(options)


def listing() -> Iterator[dict[str, Any]]:
    """Every benchmark: what its data must hold, the judge it needs, its licence."""
    for name in registry.SUITES:
        about = getattr(registry.load(registry.SUITES, name), "ABOUT", None)
        if about:
            lines = (
                f"{name}: {about.title}",
                f"data: {about.needs}",
                f"judge: {JUDGES[about.judge]}",
            )
            text = "\n  ".join([*lines, f"licence: {about.licence}"])
            yield _result({"suite": name} | dataclasses.asdict(about), text)


def rescored(options: argparse.Namespace) -> dict[str, Any]:
    """The scores of a folder, made again from its replies. Raises BadInput for another folder."""
    from srum_jax.evals import suite_folder

    folder = epath.Path(places.place(options.rescore, "--rescore"))
    asked, _ = suite_folder.read(folder)
    return _said(suite_folder.rescored(folder, module(asked.suite).score), folder)


def imported(options: argparse.Namespace) -> dict[str, Any]:
    """Scores from the official program's own results, of `official/` in the folder or elsewhere."""
    from srum_jax.core import lock
    from srum_jax.evals import suite_folder
    from srum_jax.evals.suite_folder import Asked

    folder = epath.Path(places.place(options.out, "-o"))
    suite = made(options)
    if options.think and not suite.think_named:
        raise BadInput(f"--think: nothing in {suite.name}'s results says whether the model thought")
    given = {MODEL: options.imported} | (
        {AGAINST: options.import_against} if options.import_against else {}
    )
    records, told = {}, {}
    for name, path in given.items():
        path = places.place(path, "--import")
        if not path.exists():
            raise BadInput(f"--import {path}: no such file or folder")
        records[name] = suite.imported(path, suite.requests(name))
        told[name] = {"results": str(path), "results_digest": files.fingerprint(_results_in(path))}
    name = "the official program"
    records = {
        key: [dataclasses.replace(r, judge=name) for r in several]
        for key, several in records.items()
    }
    said = suite_folder.Told.of(suite)
    said = dataclasses.replace(said, about={**said.about, "dialect": suite.dialect_imported})
    asked = Asked(options.suite, said, {name: {}}, told)
    folder.mkdir(parents=True, exist_ok=True)
    with lock.held(folder):
        asked = suite_folder.with_pictures_of(folder, asked)
        suite_folder.write_replies(folder, records, asked)
        return _said(suite_folder.rescored(folder, suite.score), folder)


def _results_in(path: epath.Path) -> list[epath.Path]:
    """The JSON files of a folder of results; of a file itself."""
    if path.is_file():
        return [path]
    inside = [one for folder in path.iterdir() if folder.is_dir() for one in _results_in(folder)]
    return sorted([*path.glob("*.json"), *path.glob("*.jsonl"), *inside])


def evaluated(options: argparse.Namespace) -> dict[str, Any]:
    """Asks what is missing and writes OUT. Raises BadInput naming what cannot be used."""
    from srum_jax.core import lock
    from srum_jax.evals import suite_folder

    folder = epath.Path(places.place(options.out, "-o"))
    suite, models = made(options), described(options)
    requests, settings = suite.requests(MODEL), models[MODEL][1].generation_config
    if options.frames and "frames" not in suite.settings:
        raise BadInput(f"--frames: {suite.name} asks about no clips")
    think_tokens = thinking(options, models)
    if options.seeds > 1 and not (requests.images or requests.edits):
        raise BadInput(f"--seeds: {suite.name} draws nothing: its answers are the same")
    drawn = sampler_settings(options, models[MODEL][1])
    asked = suite_folder.Asked(
        suite=options.suite,
        told=suite_folder.Told.of(suite),
        judges={},
        models=models_told(options, models, requests),
        drawing=suite_folder.drawing(
            *(requests, drawn, editing(drawn, settings), models[MODEL][1].family.SAMPLER),
            *(seeds(options), think_tokens),
        ),
        decoding=suite_folder.decoding(requests, think_tokens),
        not_scored=not_scored(suite),
    )
    judges = judge_names(options, suite)
    tell_cost(suite, judges, len(models), options.seeds, think_tokens)
    folder.mkdir(parents=True, exist_ok=True)
    with lock.held(folder):
        before = suite_folder.same(folder, asked)
        outputs, panel = replied(options, suite, folder / KEPT, models, judges)
        every = [one for by_seed in outputs.values() for one in by_seed.values()]
        told = suite_folder.judges_told(panel, before, every)
        asked = dataclasses.replace(asked, judges=told)
        return _said(suite_folder.write(folder, suite, outputs, asked), folder)


def not_scored(suite: Any) -> str:
    """What is to be done where there are no scores."""
    if not suite.server:
        return NOT_SCORED.format(suite=suite.name)
    part = A_PART if suite.data.n < suite.data.total else ""
    told = dict(suite=suite.name, server=suite.server, n=suite.data.n, total=suite.data.total)
    return (SUBMITTED + part).format(**told)


def module(name: str) -> Any:
    """The benchmark's module. Raises BadInput for what is no benchmark."""
    found = registry.load(registry.SUITES, name)
    if not hasattr(found, "ABOUT"):
        raise BadInput(f'"{name}" is measured in a run: srum run --config {name}')
    return found


def made(options: argparse.Namespace) -> Any:
    """The benchmark, its official files read, prompts in the language of the model that will read
    them; no model does where the results of another program are read."""
    from srum_jax import description

    language = ""
    if not options.imported:
        language = description.generation_settings(options.model, options.base).language
    return module(options.suite).make(config(options), options.data or "", language)


def described(options: argparse.Namespace) -> dict[str, tuple[str, Any]]:
    """{"model", "against": (what was named, what its folder says)}, before any weights."""
    from srum_jax import description

    names = {MODEL: options.model} | ({AGAINST: options.against} if options.against else {})
    told = {} if options.window is None else {"window": options.window}
    return {
        name: (path, description.describe(path, options.base, _adapter(options, name), **told))
        for name, path in names.items()
    }


def _adapter(options: argparse.Namespace, name: str) -> str | None:
    return options.adapter if name == MODEL else None


def config(options: argparse.Namespace, model: Any = None) -> Any:
    """The run's config that stages read: what is asked, and how `model` (`api.Model`) draws."""
    from srum_jax.config import ComputeConfig, Config, EvaluateConfig
    from srum_jax.generation.generation_config import GenerationConfig

    told = GenerationConfig() if model is None else model.generation_config
    evaluate = EvaluateConfig(
        seed=options.seed,
        limit=options.limit or 0,
        frames=options.frames or 0,
        think_tokens=told.think_tokens if options.think else 0,
    )
    cfg = Config(evaluate=evaluate)
    if options.judge_url:
        named = dict(model=options.judge_model or "", key_env=options.judge_key_env or "")
        at = dataclasses.replace(cfg.score.external, url=options.judge_url, **named)
        cfg = dataclasses.replace(cfg, score=dataclasses.replace(cfg.score, external=at))
    if model is None:
        return cfg
    sample = sampler_settings(options, model)
    return dataclasses.replace(
        cfg,
        sample=dataclasses.replace(sample, batch=rows(sample.batch, model)),
        evaluate=dataclasses.replace(evaluate, batch=rows(options.batch or told.batch, model)),
        compute=ComputeConfig(dtype=str(model.dtype.__name__)),
    )


def rows(wanted: int, model: Any) -> int:
    """Rows of a call: at least `wanted`, and as many on each copy of the weights."""
    from srum_jax.core import sharding

    ways = sharding.row_ways(model.mesh)
    return -(-wanted // ways) * ways


def sampler_settings(options: argparse.Namespace, model: Any) -> Any:
    """How pictures are drawn: the model's own settings with what was said on the command line."""
    from srum_jax import inputs, use_options

    said, own = use_options.sampler_options(options), model.generation_config.generate
    return inputs.sampling(None, own, said, "evaluate", model.family.SAMPLER)


def models_told(
    options: argparse.Namespace, models: Mapping[str, tuple[str, Any]], requests: Any
) -> dict[str, dict[str, Any]]:
    """{model: its name, digest, precision}, and, where a second model's folder says to draw
    otherwise than the first one's, how it draws: that is said in the log, too."""
    import jax

    from srum_jax import devices
    from srum_jax.evals import suite_folder

    found, first = {}, None
    for name, (path, about) in models.items():
        how = devices.of_weights(jax.local_devices(), options.precision)
        found[name] = {"name": path, "digest": about.digest, "precision": how}
        settings, drawn = about.generation_config, sampler_settings(options, about)
        think_tokens = settings.think_tokens if options.think else 0
        edited = editing(drawn, settings)
        how = drawn, edited, about.family.SAMPLER, seeds(options), think_tokens
        drawing = suite_folder.drawing(requests, *how)
        first = drawing if first is None else first
        if drawing != first:
            found[name]["drawing"] = drawing
            logging.warning(
                "%s draws with other settings than %s, as their folders say; give them on the "
                "command line to draw alike",
                *(path, models[MODEL][0]),
            )
    return found


def thinking(options: argparse.Namespace, models: Mapping[str, tuple[str, Any]]) -> int:
    """Tokens of a thought at most, as the examined model's folder says; 0 without --think. Raises
    BadInput for a model that cannot think."""
    if not options.think:
        return 0
    from srum_jax.stages import thinking as stage

    for name, (path, about) in models.items():
        stage.check(about.family, about.tokenizer, f"--think, --{name} {path}")
    return models[MODEL][1].generation_config.think_tokens


def editing(settings: Any, told: Any) -> Any:
    """How edits are drawn, as `stages/loading.py` has it."""
    from srum_jax.config import Config
    from srum_jax.stages import loading

    return loading.editing(told, dataclasses.replace(Config(), sample=settings))


def seeds(options: argparse.Namespace) -> list[int]:
    """Of the noise."""
    return list(range(options.seed, options.seed + options.seeds))


def judge_names(options: argparse.Namespace, suite: Any) -> list[str]:
    """The judges that are asked, the first of which counts. Raises BadInput for a judge that the
    benchmark has no use for, or that nobody can reach."""
    from srum_jax.rewards import external
    from srum_jax.stages import judges

    if not suite.judged:
        if options.judge and options.judge != ["none"]:
            raise BadInput(f"--judge: {suite.name} needs none: replies are compared with answers")
        return []
    names = list(dict.fromkeys(options.judge or ["self"]))
    if "none" in names:
        if len(names) > 1 or suite.about.judge != "optional":
            raise BadInput(
                f"--judge none: {suite.name} is scored by a judge; name self or external"
            )
        return []
    if "external" in names:
        if not (options.judge_url and options.judge_model):
            raise BadInput("--judge external needs --judge_url and --judge_model")
        external.reach(judges.endpoint(config(options).score))
    return names


def tell_cost(
    suite: Any, judges: Sequence[str], models: int, seeds: int, think_tokens: int
) -> None:
    """Logs what will be asked and drawn, before anything is opened."""
    from srum_jax.evals import suite_cost

    for line in suite_cost.lines(suite, judges, models, seeds, think_tokens):
        logging.info("%s", line)


def replied(
    options: argparse.Namespace,
    suite: Any,
    folder: epath.Path,
    models: Mapping[str, tuple[str, Any]],
    judges: Sequence[str],
) -> tuple[dict[str, Any], list[Any]]:
    """({model: {seed: `ModelOutputs`}}, the judges); what is in `folder` is not asked again.

    One model is open at a time. The last one, the model before training where two are compared, is
    the judge "self" of both: a judge that changes between the two would compare nothing.
    """
    import jax

    from srum_jax.evals.suite import ModelOutputs
    from srum_jax.stages import replies

    said: dict[tuple[str, int], Any] = {}
    loaded = model = cfg = None
    for name, (path, _) in models.items():
        loaded = model = None  # its weights go before others come
        model = load(options, name, path)
        loaded, cfg = opened(model), config(options, model)
        asked = replies.model_under_test(loaded, cfg, model.mesh)
        for seed in seeds(options):
            requests, title = reseeded(suite.requests(name), seed, options), f"{suite.name}: {name}"
            here = dataclasses.replace(cfg, evaluate=dataclasses.replace(cfg.evaluate, seed=seed))
            with jax.set_mesh(model.mesh):
                found = replies.replies(
                    *(requests, folder / kept(options, name, seed), loaded, asked, here),
                    model.mesh,
                    title=title,
                )
            said[name, seed] = (requests, found)
    panel: dict[str, Any] = {}
    if judges:
        *_, (_, about) = models.values()
        panel = {
            one: replies.suite_judge(one, loaded, cfg, model.mesh, revision=about.digest)
            for one in judges
        }
        for (name, seed), (requests, found) in said.items():
            place = folder / kept(options, name, seed)
            with jax.set_mesh(model.mesh):
                title = f"{suite.name}: {name}"
                found = replies.judged(suite, requests, found, place, panel, title=title)
            said[name, seed] = (requests, found)
    outputs: dict[str, dict[int, ModelOutputs]] = {name: {} for name in models}
    for (name, seed), (requests, found) in said.items():
        outputs[name][seed] = ModelOutputs(requests, found, suite.verdicts(requests, found))
    return outputs, list(panel.values())


def kept(options: argparse.Namespace, name: str, seed: int) -> str:
    """The folder of what a model replied from a seed."""
    return name if options.seeds == 1 else f"{name}-seed-{seed}"


def reseeded(requests: Any, seed: int, options: argparse.Namespace) -> Any:
    """The requests with the noise of another seed than --seed; images have it by the config."""
    from srum_jax.evals.benchmark import LazySequence
    from srum_jax.generation.image_sampler import candidate_seed

    if seed == options.seed or not requests.edits:
        return requests
    lazy = isinstance(requests.edits, LazySequence)
    items = requests.edits.items if lazy else requests.edits
    places = {one.id: place for place, one in enumerate(items)}

    def make(item: Any) -> Any:
        request = requests.edits.make(item) if lazy else item
        return dataclasses.replace(request, seed=candidate_seed(seed, places[item.id], 0))

    edits = LazySequence(items, make)
    return dataclasses.replace(requests, edits=edits)


def load(options: argparse.Namespace, name: str, path: str) -> Any:
    """An `api.Model` of the command line's options."""
    from srum_jax import api

    told = {} if options.window is None else {"window": options.window}
    how = dict(precision=options.precision, base=options.base, mesh=options.mesh)
    return api.load(path, adapter=_adapter(options, name), **how, **told)


def opened(model: Any) -> Any:
    """An `api.Model` as stages have it."""
    from srum_jax.stages.loading import LoadedModel

    parts = model.cfg, model.params, model.vae_params, model.tokenizer
    how = dict(family=model.family, programs=model.programs, settings=model.generation_config)
    return LoadedModel(*parts, **how)


# ------------------------------------------------------------------------------------- in words


def _said(scores: Mapping[str, Any], folder: epath.Path) -> dict[str, Any]:
    from srum_jax.evals import suite_words

    return _result(scores, f"{suite_words.summary(scores)}\n{folder / 'scores.json'}")


def _result(fields: Mapping[str, Any], text: str) -> dict[str, Any]:
    return {**fields, "text": text, "finished": True, "thought": ""}
