"""Janus-Pro's programs from shapes alone are those that run, and are counted."""

import dataclasses
import importlib
import math

import jax
import pytest
import tiny
import tiny_janus

from srum_jax import config as shipped
from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.generation import families, janus
from srum_jax.models.bagel.cost import RowTokens
from srum_jax.models.janus import cost, model_config
from srum_jax.planning import budget, lowering
from srum_jax.planning.workload import Workload


def config(**values):
    small = {
        "model": "janus_pro_1b",
        "sample__size": (8, 8),
        "sample__batch": 2,
        "score__batch": 2,
        "score__proposers": ("grid",),
        "train__objective": "srum_release",
        "train__trainable": "lora",
        "train__rows": 2,
        "train__lanes__und": 32,
        "train__lanes__gen": 16,
        "train__lanes__images": 1,
    }
    return tiny.load_config("nowhere", **(small | values))


def test_a_preset_is_a_model_of_its_family():
    for name, sizes in model_config.PRESETS.items():
        cfg = config(model=name)
        assert lowering.sizes_of(cfg) == sizes
        assert families.of(sizes) is janus and name in registry.PRESETS


def test_a_folder_goes_before_a_preset(tmp_path):
    folder = tiny_janus.save(tmp_path)
    assert (
        lowering.sizes_of(dataclasses.replace(config(), weights=str(folder))).llm
        == tiny_janus.CFG.llm
    )


def test_plans_in_words_are_refused_before_anything_is_counted():
    on = budget.Chips("v5e", 1), budget.Assumptions()
    for key, value in (("generate.think", True), ("evaluate.think_tokens", 100)):
        cfg = config(**{key.replace(".", "__"): value})
        with pytest.raises(BadInput, match=f"{key}: Janus-Pro draws from words alone"):
            lowering.sizes_of(cfg)
        with pytest.raises(BadInput, match=f"{key}: Janus-Pro draws from words alone"):
            budget.estimate(cfg, *on)


def test_what_answers_by_what_it_is_trained_by_is_asked_before_and_after():
    """Every config that trains a model whose one language model draws and answers asks questions
    when it evaluates, of the model before and after."""
    found = []
    for name in shipped.packaged():
        cfg = shipped.load(importlib.import_module(f"srum_jax.configs.{name}").get_config())
        if {"train", "evaluate"} <= {*cfg.stages} and not families.of(lowering.sizes_of(cfg)).APART:
            names = {entry.partition(":")[0] for entry in cfg.evaluate.suites}
            assert names & {"shapes", "pope"}, name
            found.append(name)
    assert {"janus_pro_1b", "janus_pro_7b", "shapes_janus"} <= {*found}


def test_the_copy_by_which_the_monitor_judges_is_counted_once():
    """Beside adapters there is none, and where the loss keeps one it serves both."""

    def kept(**values):
        full = {"train__trainable": "gen", "train__monitor__prompts": 4}
        cfg = config(**(full | values))
        program = lowering.train_step(cfg, tiny_janus.CFG, tiny.mesh(cfg))
        parts = {**program.parts, **program.resident}
        sizes = (jax.tree.leaves(parts.get(one)) for one in ("judge", "ref", "masters"))
        return [sum(math.prod(leaf.shape) for leaf in leaves) for leaves in sizes]

    judge, ref, masters = kept()
    assert judge == masters > 0 == ref
    judge, ref, masters = kept(train__objective="srum_advantage")
    assert ref == masters > 0 == judge
    for values in ({"train__monitor__prompts": 0}, {"train__trainable": "lora"}):
        assert kept(**values)[0] == 0


@pytest.mark.slow
@pytest.mark.parametrize("name", [one for one in lowering.PROGRAMS if one != "think"])
def test_programs_are_lowered_from_shapes(name):
    cfg = config()
    program = lowering.PROGRAMS[name].make(cfg, tiny_janus.CFG, tiny.mesh(cfg))
    assert program.lower() and program.flops > 0


def test_the_work_of_a_step_is_that_of_its_matrices():
    """Of the language model alone 6 operations a parameter and token, forward and backward."""
    sizes, row = model_config.JANUS_PRO_1B, RowTokens(und=0, gen=576)
    blocks = {"blocks": janus.specs(sizes)["blocks"]}
    _, needed = cost.step(sizes, row, trained=blocks, remat="none", compared=0)
    body = 6 * 576 * 1_233_125_376
    assert body < needed < 1.25 * body


def test_a_run_is_counted_stage_by_stage():
    sizes = model_config.JANUS_PRO_1B
    cfg = config(sample__size=(384, 384), train__lanes__gen=576)
    work = Workload(cfg, sizes, chips=1)
    drawn, decoded = work.of("generate")
    assert drawn.work.flops > 576 * 2 * 2 * 1_200_000_000  # a token, a row, a parameter
    more = dataclasses.replace(cfg.sample, guidance=1.0)
    alone = dataclasses.replace(work, cfg=dataclasses.replace(cfg, sample=more))
    assert alone.of("generate")[0].work.flops * 2 == drawn.work.flops
    assert decoded.work.flops > 10**11 and all(work.of(s) for s in ("score", "train"))
