"""What a model replies to the requests of a suite, kept in a folder and not asked for twice.

Owns that folder: `images/`, `answers/`, `texts/` and `edits/` as shards, `scores/` of the images
that the model's own judge scores, and `judged_<judge>/`, what judges say of the replies. Whoever
was killed goes on with what is missing, and hosts share the work.
"""

import bisect
import dataclasses
import functools
import itertools
import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath

from srum_jax.config import Config
from srum_jax.core import distributed
from srum_jax.core.errors import BadInput
from srum_jax.data import shards
from srum_jax.data.prompts import Prompt
from srum_jax.evals.benchmark import LazySequence
from srum_jax.evals.model_under_test import ModelUnderTest
from srum_jax.evals.suite import (
    DrawRequest,
    EditRequest,
    JudgeReply,
    JudgeRequest,
    Replies,
    Requests,
    Suite,
)
from srum_jax.evals.suite_judges import ExternalJudge, SelfJudge, SuiteJudge
from srum_jax.generation import system_prompts
from srum_jax.rewards import external
from srum_jax.stages import (
    draw_and_judge,
    generate,
    judges,
    loading,
    score,
    shard_worker,
    thinking,
)
from srum_jax.stages.loading import LoadedModel

# Statuses of replies that a judge may give when it is asked again.
LOST = (external.TIMEOUT, external.RATE_LIMITED, external.SERVER_ERROR, external.UNREACHABLE)
JUDGED_AT_ONCE = 64  # questions to a judge a shard: what is lost at most when a run is killed


def model_under_test(loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh) -> ModelUnderTest:
    """A loaded model ready to be asked, as the config's `sample` and `evaluate` sections say."""
    batch, told = cfg.evaluate.batch, loaded.generation_config
    return ModelUnderTest(
        layout=loaded.cfg.layout,
        tokenizer=loaded.tokenizer,
        batch=batch,
        sampler=loaded.image_sampler(cfg, mesh),
        scorer=loaded.answer_scorer(cfg, mesh, batch=batch),
        # All calls are full ones: empty rows cost less than a program for fewer.
        generator=loaded.text_generator(
            cfg, mesh, batch=batch, window=judges.WINDOW, min_rows=batch
        ),
        encoder=loaded.encoder(),
        language=told.language,
        editing=None if (own := loading.editing(told, cfg)) == cfg.sample else own,
        think_tokens=cfg.evaluate.think_tokens,
    )


def replies(
    requests: Requests,
    folder: epath.Path,
    loaded: LoadedModel,
    asked: ModelUnderTest,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    *,
    title: str,
    judge: LoadedModel | None = None,
) -> Replies:
    """All replies of a model; what is found in `folder` is kept.

    asked: the model `loaded` in use, as `model_under_test` makes it · title: of the progress bars ·
    judge: who gives the images that are to be scored their scores, None: the model itself.
    """
    if asked.think_tokens:
        check_thinking(requests)
    images, scores, thoughts = (), (), {}
    if requests.images:
        images, thoughts = drawn(requests.images, folder, loaded, asked, cfg, title)
    if requests.scored:
        scores = own_scores(
            judge or loaded, images[: requests.scored], folder / "scores", cfg, mesh
        )
    step, features = 4 * asked.batch, shards.reply_features("text")
    edits, plans = edited(requests.edits, folder, asked, title)
    answers = _replied(requests.answers, folder / "answers", asked.answers, features, step, title)
    texts = _replied(requests.texts, folder / "texts", asked.texts, features, step, title)
    if asked.think_tokens and texts:
        thoughts |= {"texts": LazySequence(texts, _thought)}
        texts = LazySequence(texts, _answer)
    return Replies(images, answers, texts, edits, scores, thoughts=thoughts | plans)


def check_thinking(requests: Requests) -> None:
    """Raises BadInput for requests that leave a model no room to think."""
    if requests.answers:
        raise BadInput(
            "evaluate.think_tokens: some suite takes a question's answer from its first token, "
            "before which nothing can be thought; leave it out, or set them to 0"
        )


def drawn(
    requests: Sequence[DrawRequest],
    folder: epath.Path,
    loaded: LoadedModel,
    asked: ModelUnderTest,
    cfg: Config,
    title: str,
) -> tuple[Sequence[dict[str, Any]], dict[str, Sequence[str]]]:
    """(Candidate records of the images, `Replies.thoughts`): a plan is written once a prompt."""
    jobs = [(as_read(one.prompt, asked), one.k) for one in requests]
    sampler, thoughts = asked.sampler, {}
    if asked.think_tokens:
        first = {prompt.text: one for (prompt, _), one in zip(jobs, requests, strict=True)}
        plans = dict(zip(first, planned([*first.values()], folder, asked, title), strict=True))
        thoughts["images"] = [plans[prompt.text] for prompt, _ in jobs]
        sampler = thinking.PlannedSampler(sampler, asked.tokenizer, plans)
    generate.draw(
        jobs,
        folder / "images",
        sampler,
        features=generate.features(loaded.cfg.layout, cfg.sample.size),
        shard_size=cfg.generate.shard_size,
        seed=cfg.evaluate.seed,
        title=f"{title} draws",
    )
    return shards.read(folder / "images"), thoughts


def edited(
    requests: Sequence[EditRequest], folder: epath.Path, asked: ModelUnderTest, title: str
) -> tuple[Sequence[np.ndarray], dict[str, Sequence[str]]]:
    """(The changed images, `Replies.thoughts`)."""
    ask, thoughts = asked.edits, {}
    if asked.think_tokens and requests:
        thoughts["edits"] = planned(requests, folder, asked, title, of="edit_plans")
        ids = (one.id for one in requests)
        ask = functools.partial(ask, plans=dict(zip(ids, thoughts["edits"], strict=True)))
    features = shards.reply_features("image")
    return _replied(requests, folder / "edits", ask, features, 4 * asked.batch, title), thoughts


def planned(
    requests: Sequence[DrawRequest | EditRequest],
    folder: epath.Path,
    asked: ModelUnderTest,
    title: str,
    *,
    of: str = "plans",
) -> list[str]:
    """What the model means to draw for each, kept in the folder `of`."""
    features = shards.reply_features("text")
    return list(_replied(requests, folder / of, asked.plans, features, 4 * asked.batch, title))


def _thought(written: str) -> str | None:
    parts = system_prompts.thought_and_answer(written)
    return parts and parts[0]


def _answer(written: str) -> str:
    parts = system_prompts.thought_and_answer(written)
    return parts[1] if parts else ""


def as_read(prompt: Prompt, asked: ModelUnderTest) -> Prompt:
    """A prompt in the words of the model."""
    return dataclasses.replace(prompt, text=asked.read(prompt.text, "prompt"))


def judged(
    suite: Suite,
    requests: Requests,
    said: Replies,
    folder: epath.Path,
    panel: Mapping[str, SuiteJudge],
    *,
    title: str,
    final: bool = False,
) -> Replies:
    """`said` with what each judge replies to the suite's questions about it; what is found in
    `folder` is kept, except replies that were lost on the way (`LOST`): those are asked for again.

    panel: judges by their names in `evaluate.judges`; those that the suite has a use for are asked
    · final: those are kept too, as somebody has already counted by them.
    """
    asked = suite.judge_requests(requests, said)
    if not asked:
        return said
    found = {}
    for judge in (one for name, one in panel.items() if suite.asks(name)):
        place = folder / f"judged_{file_name(judge.name)}"
        told = f"{title}, {judge.name}:"
        ask = _Asking(judge, {} if final else forget_lost(place, told))
        written = _replied(asked, place, ask, shards.reply_features("text"), JUDGED_AT_ONCE, told)
        found[judge.name] = LazySequence(written, _judge_reply)
    return dataclasses.replace(said, judged=found)


def suite_judge(
    name: str, loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh, *, revision: str = ""
) -> SuiteJudge:
    """Whom suites ask: "self", the loaded model, or "external", the server of `score.external`.

    revision: of the loaded model, where its folder does not say. Raises BadInput for an endpoint
    that cannot be used.
    """
    if name == "external":
        return ExternalJudge(judges.endpoint(cfg.score))
    batch = cfg.evaluate.batch
    how = dict(
        batch=batch, window=min(judges.WINDOW, loaded.generation_config.window), min_rows=batch
    )
    return SelfJudge(
        loaded.text_generator(cfg, mesh, **how),
        loaded.answer_scorer(cfg, mesh, batch=batch),
        loaded.tokenizer,
        loaded.cfg.layout,
        loaded.generation_config.language,
        revision=revision or ("" if loaded.source is None else loaded.hash),
    )


@dataclasses.dataclass(frozen=True)
class _Asking:
    """Asks a judge for what it has not replied yet; answered: {id of a request: reply as JSON}."""

    judge: SuiteJudge
    answered: Mapping[str, str]

    def __call__(self, part: Sequence[JudgeRequest]) -> list[str]:
        missing = [one for one in part if one.id not in self.answered]
        said = zip(missing, self.judge.ask(missing), strict=True)
        new = {one.id: json.dumps(dataclasses.asdict(reply)) for one, reply in said}
        return [self.answered.get(one.id) or new[one.id] for one in part]


def forget_lost(folder: epath.Path, title: str) -> dict[str, str]:
    """Removes the shards of judges' replies in which some were lost (`LOST`), so that they are made
    again, and returns {id: text} of the other replies in them, for which nobody need be asked.

    Of a folder that is not whole, all that is there is kept. All processes must call it.
    """
    again, answered = set(), {}
    if (folder / "dataset_info.json").exists() and shards.is_whole(folder):
        found = shards.read(folder)
        ends = list(itertools.accumulate(found.counts))
        rows = [(bisect.bisect_right(ends, i), row) for i, row in enumerate(found.summaries())]
        lost = [_judge_reply(row["text"]).status in LOST for _, row in rows]
        again = {number for (number, _), gone in zip(rows, lost, strict=True) if gone}
        answered = {
            row["id"]: row["text"]
            for (number, row), gone in zip(rows, lost, strict=True)
            if number in again and not gone
        }
    distributed.barrier(f"{title} looked at")  # before what the others read is removed
    if again and jax.process_index() == 0:
        logging.info("%s: %d replies were lost; they are asked for again", folder, sum(lost))
        for number in again:
            shards.shard_path(folder, folder.name, number, len(ends)).unlink()
    return answered


def _judge_reply(text: str) -> JudgeReply:
    return JudgeReply(**json.loads(text))


def file_name(name: str) -> str:
    """`name` as part of the name of shards, which a dash would divide: what is no letter or digit
    becomes one underscore."""
    return re.sub(r"[^A-Za-z0-9]+", "_", name).strip("_") or "judge"


def _replied(
    requests: Sequence[Any],
    folder: epath.Path,
    ask: Callable[[Sequence[Any]], Sequence[Any]],
    features: Any,
    step: int,
    title: str,
) -> Sequence[Any]:
    """What `ask` replies to each request, read when it is looked at; `step` of them a shard.

    features: of a record, its id and what was replied.
    """
    if not requests:
        return ()
    (field,) = set(features) - {"id"}

    def make(first: int, count: int) -> list[dict[str, Any]]:
        part = requests[first : first + count]
        return [{"id": one.id, field: said} for one, said in zip(part, ask(part), strict=True)]

    sizes, title = shards.shard_sizes(len(requests), step), f"{title} {folder.name}"
    encode = draw_and_judge.encoded if field == "image" else dict
    work = shard_worker.one_by_one(make)
    shard_worker.make_all(folder, folder.name, features, sizes, work, title=title, encode=encode)
    return shards.read(folder).column(field)


def own_scores(
    loaded: LoadedModel,
    records: Sequence[dict[str, Any]],
    folder: epath.Path,
    cfg: Config,
    mesh: jax.sharding.Mesh,
) -> Sequence[dict[str, Any]]:
    """The model's own scores of candidates it drew, as the stage `score` gives them.

    The model judges, whatever `score.judge` says. Decomposed prompts lie beside `folder`.
    """
    # Where that stage has run, the other proposers are measured on its records.
    proposers = cfg.score.proposers[: 1 if "score" in cfg.stages else None]
    how = dataclasses.replace(cfg.score, proposers=proposers, judge="self", compare=0)
    own = dataclasses.replace(cfg, score=how)
    prompts = [record["prompt"] for record in records]
    scenes = judges.decomposed(prompts, loaded, own, mesh, folder.parent / judges.SCENES)
    panel = judges.panel(loaded, own, mesh, scenes=scenes)
    score.score(records, folder, how, panel)
    return shards.read(folder)
