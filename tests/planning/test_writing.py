"""What a written token moves on chips that are not here, in the program that writes."""

import dataclasses
import importlib.util

import jax
import pytest

from srum_jax import config
from srum_jax.configs import bagel_7b_srum
from srum_jax.models.bagel import cost
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT
from srum_jax.planning import lowering, plan, topology, traffic, workload

MOST = 1.15  # times the weights and the cache that a token cannot do without
COMPILERS = {"h200": ("jax_plugins.xla_cuda12", "plan-gpu"), "v5e": ("libtpu", "plan-tpu")}


def installed(module):
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def target(name):
    """A machine, where its compiler is installed."""
    module, extra = COMPILERS[name.partition(":")[0]]
    reason = f'{module} is not installed: pip install -e ".[{extra}]"'
    return pytest.param(name, marks=pytest.mark.skipif(not installed(module), reason=reason))


def times_needed(name, sizes, kept="", **changes):
    """Bytes that a chip moves a token, over its share of weights and cache; matrices as `kept`."""
    values = bagel_7b_srum.get_config()
    values.update_from_flattened_dict(changes)
    cfg = config.load(values)
    machine = topology.describe(topology.parse(name))
    mesh = plan.host_mesh(cfg, machine)
    program = lowering.write(cfg, sizes, mesh, kept)
    with jax.set_mesh(mesh):
        lowered = program.lower()
    compiled = machine.compile(lowered)
    assert compiled.fits, compiled.why
    limit, rows = program.more["tokens"], program.more["answers"]
    _, one = workload.written_rows(sizes, cfg.sample.size, limit)
    number = 1 if kept == "int8" else 2  # bytes; of the cache always 2
    weights, cache = cost.matrices(sizes, one), rows * one.keys * cost.cached(sizes)
    needed = (number * weights + 2 * cache) / mesh.size
    moved = traffic.moved(compiled.text, "token_step")
    print(f"{name}: {moved / 1e9:.3f} GB a token, {needed / 1e9:.3f} needed")
    return moved / needed


@pytest.mark.slow
@pytest.mark.parametrize("machine", [target(name) for name in ("h200:1", "v5e:2x2")])
def test_a_token_moves_the_weights_and_the_cache_once(machine):
    """BAGEL-7B-MoT, as the stage `score` writes: 16 answers about pictures of 1024x1024.

    On v5e:2x2 libtpu takes some four minutes of processor time for these 28 layers.
    """
    assert 0.9 < times_needed(machine, BAGEL_7B_MOT) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("machine", [target("v5e:1x1")])
def test_where_layers_have_no_room_apart_a_token_moves_no_more(machine):
    """int8 on 16 GB, an answer a call: the call fits, its layers stacked. Two minutes."""
    batch = {"score.written.batch": 1, "sample.batch": 1, "score.batch": 1}
    assert 0.9 < times_needed(machine, BAGEL_7B_MOT, "int8", **batch) <= MOST


@pytest.mark.slow
@pytest.mark.parametrize("machine", [target(name) for name in ("h200:1", "v5e:2x2")])
def test_a_token_of_a_narrow_model_does_too(machine):
    """More layers than are few, of a quarter of the width, behind smaller pictures."""
    llm, vit = BAGEL_7B_MOT.llm, BAGEL_7B_MOT.vit
    sizes = dataclasses.replace(
        BAGEL_7B_MOT,
        llm=dataclasses.replace(llm, layers=9, hidden=1024, heads=8, ffn=4736),
        vit=dataclasses.replace(vit, layers=2),
    )
    changes = {"sample.size": (512, 512), "score.written.max_tokens": 128}
    assert 0.5 < times_needed(machine, sizes, **changes) <= MOST
