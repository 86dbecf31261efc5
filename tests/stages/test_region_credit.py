"""Who pays for regions trains on them: changed scores of regions must change the training."""

import dataclasses
import types

import numpy as np
import pytest
import tiny
from rewards.test_coverage import Forms, Said

from srum_jax import config
from srum_jax.configs import base
from srum_jax.data import packing, sources
from srum_jax.data.schema import Lanes
from srum_jax.objectives import srum
from srum_jax.rewards import question_templates
from srum_jax.rewards.boxes.regions import PromptedImage, Proposals, ProposedRegion
from srum_jax.rewards.judge import JudgeSettings
from srum_jax.rewards.logits import LogitJudge
from srum_jax.rewards.question_templates import Decomposition, ObjectSpec
from srum_jax.rewards.written import WrittenAnswer, WrittenJudge
from srum_jax.stages import judges, score, selection, training_set
from srum_jax.stages.preflight import Checks

SHIPPED = sorted(set(config.packaged()) - {"base"})
SCENE = Decomposition("two dogs", (ObjectSpec("", "dog", 2),), open=False, source="model")
REGIONS = (ProposedRegion((0.0, 0.0, 16.0, 16.0)), ProposedRegion((16.0, 16.0, 32.0, 32.0)))
PROMPTS, OF_ONE = 6, 2
NO_WORDS = sources.Prompts(None)


def shipped(name, **values):
    """A config of the package, with changed values."""
    module = __import__(f"srum_jax.configs.{name}", fromlist=["get_config"])
    made = module.get_config()
    for key, value in values.items():
        *path, last = key.split("__")
        part = made
        for step in path:
            part = part[step]
        part[last] = value
    return config.load(made)


def judge_of(cfg, first_right):
    """The run's judge; the first region of every image is right or wrong, and all else equal."""

    def right(whole, place):
        """Even candidates are better pictures; of their regions the second one is right."""
        return place % OF_ONE == 0 if whole else place % 2 == 1 or first_right(place // 2)

    settings = JudgeSettings.from_config(cfg.score)
    if cfg.score.readout == "written":

        def answer(requests, *, temperature, params):
            found = []
            for request in requests:
                place = int(request.image[0, 0, 0])
                if "Region 1" in request.text:
                    said = [f"Region {r + 1}\nScore: {0.9 if right(False, 2 * place + r) else -0.9}"
                            for r in range(2)]  # fmt: skip
                    found.append(WrittenAnswer("\n".join(said)))
                else:
                    found.append(WrittenAnswer(f"Score: {0.9 if right(True, place) else 0.1}"))
            return found

        return WrittenJudge(types.SimpleNamespace(answer=answer), settings)
    vocabulary = Forms()
    for word in (*question_templates.NUMBERS, "yes", "no"):
        vocabulary.answers(word)

    def say(n, text):
        if text.startswith("Is this"):
            return "yes" if right(False, n) else "no"
        if text.startswith("How many"):
            return "two" if right(True, n) else "one"
        return "yes"

    return LogitJudge(Said(vocabulary, say), vocabulary, settings, {SCENE.caption: SCENE})


def training(cfg, first_right):
    """(candidates chosen, how strongly each of their tokens is attracted to its image)."""
    name, count = cfg.score.proposers[0], PROMPTS * OF_ONE
    images = [PromptedImage(np.full((32, 32, 3), n, np.uint8), SCENE.caption, f"{n // 2}-{n % 2}")
              for n in range(count)]  # fmt: skip
    proposed = Proposals(images, [REGIONS] * count, name, judges.PROPOSERS[name].separates)
    judged = judge_of(cfg, first_right).judge(proposed)
    ids = [{"id": one.id, "prompt_id": n // 2, "k": n % 2} for n, one in enumerate(images)]
    scored = [score.score_record(pair) for pair in zip(ids, judged, strict=True)]
    drawn = [{**one, "prompt": SCENE.caption, "latent": tiny.GRID, "image": [32, 32, 3]}
             for one in ids]  # fmt: skip
    everything, _ = selection.candidates(drawn, scored, name)
    chosen, _ = selection.choose(everything, cfg.train)
    if cfg.train.objective in srum.BY_ADVANTAGE:
        chosen = selection.advantages(everything, chosen)
    latents = training_set.Latents(np.zeros(tiny.GRID, np.float32))
    sizes = dict(und=300, gen=400, images=20, vit=0, labels=0)
    lanes = Lanes(**sizes, regions=cfg.train.lanes.regions)
    row = [
        training_set.example(one, latents, i, prompts=NO_WORDS, regions=lanes.regions, dropped=True)
        for i, one in enumerate(chosen)
    ]
    by_advantage = cfg.train.objective in srum.BY_ADVANTAGE
    batch = packing.pack(
        [row], lanes, tiny.MODEL.layout, rewards=True, advantages=by_advantage, coverage=None,
        targets=False,
    )  # fmt: skip
    return [one.id for one in chosen], np.asarray(srum.attraction(cfg.train, batch))


def changes(cfg):
    """Whether the scores of regions change what is trained."""
    ids, alpha = training(cfg, lambda n: n % 4 != 0)
    others, beta = training(cfg, lambda n: n % 4 != 2)
    return ids != others or alpha.shape != beta.shape or bool((alpha != beta).any())


@pytest.mark.parametrize("name", SHIPPED)
def test_every_recipe_that_pays_for_regions_trains_on_them(name):
    cfg = shipped(name)
    if {"score", "train"} <= set(cfg.stages):
        assert judges.reads_regions(cfg) and changes(cfg) and not judges.unread(cfg)


@pytest.mark.parametrize(
    "values,read",
    [
        ({"train__objective": "sft"}, False),  # what the flagship was
        ({"train__rewards": "image"}, False),
        ({"train__rewards": "regions"}, True),
        ({"train__objective": "srum_advantage"}, True),
        ({"train__objective": "nft", "train__rewards": "image"}, False),
        ({"train__objective": "srum_paper"}, True),
        ({"train__objective": "sft", "score__proposers": ("components",)}, False),
    ],
)  # fmt: skip
def test_what_is_said_is_what_happens(values, read):
    cfg = shipped("bagel_7b_srum", **values)
    if cfg.score.proposers == ("components",):
        read = True  # boxes that separate objects are a part of the image's score
        cfg = dataclasses.replace(cfg, train=dataclasses.replace(cfg.train, min_score_quantile=0.5))
    assert judges.reads_regions(cfg) == changes(cfg) == read
    assert bool(judges.unread(cfg)) != read


def test_an_ensemble_needs_a_prompts_candidates_in_one_shard():
    values = dict(score__judge="ensemble", score__shard_size=4, generate__candidates=3)
    more = dict(score__external__url="http://localhost:1/v1", score__external__model="m")
    cfg, found = tiny.load_config("", **values, **more), Checks(("score",))
    judges.check(cfg, found)
    assert any("score.shard_size = 4 must be a multiple" in problem for problem in found.problems)


def test_a_run_that_pays_for_nothing_is_told_before_it_runs(tmp_path, caplog):
    values = {"train.objective": "sft", "score.proposers": ("sam",)}
    made = base.get_config()
    made.score.sam.weights = "weights/sam"
    made.update_from_flattened_dict(values)
    cfg, found = config.load(made), Checks(("score",))
    judges.check(cfg, found)
    (told,) = found.notes
    assert "change nothing that is trained" in told and "costs no Segment Anything" in told
    assert told in caplog.text
