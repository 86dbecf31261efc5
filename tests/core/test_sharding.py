"""The mesh, the axis table, and equality of results on meshes of different shape."""

import dataclasses
import itertools
import math
import os
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from srum_jax.core import param_tree, sharding
from srum_jax.core.errors import BadInput


def mesh_of(data=1, fsdp=1, tensor=1, context=1, devices=None):
    sizes = types.SimpleNamespace(data=data, fsdp=fsdp, tensor=tensor, context=context)
    return sharding.make_mesh(sizes, devices)


def small_specs():
    return {
        "embed": param_tree.ParamSpec((16, 8), ("vocab", "embed"), scale=0.1),
        "time": param_tree.linear({"embed": 8}, {"embed": 8}, bias=True),
        "blocks": {
            "q": param_tree.linear({"embed": 8}, {"heads": 4, "head_dim": 2}, bias=True, stack=2),
            "o": param_tree.linear({"heads": 4, "head_dim": 2}, {"embed": 8}, bias=False, stack=2),
            "ln": param_tree.norm(8, None, bias=False, stack=2),
        },
    }


def test_mesh_keeps_all_axes_and_fills_the_rest():
    assert dict(mesh_of(fsdp=-1, tensor=2).shape) == dict(data=1, fsdp=4, tensor=2, context=1)
    assert dict(mesh_of(devices=jax.devices()[:1]).shape) == dict.fromkeys(sharding.MESH_AXES, 1)


@pytest.mark.parametrize("sizes", [dict(data=3), dict(data=3, fsdp=-1), dict(data=-1, fsdp=-1)])
def test_mesh_that_does_not_fit_is_refused(sizes):
    with pytest.raises(ValueError, match="mesh.data = "):
        mesh_of(**sizes)


@dataclasses.dataclass(frozen=True)
class Chip:
    """As jax describes a TPU's: its place among the links that chips are connected by."""

    id: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    core_on_chip: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v6 lite"
    process_index: int = 0


def chips(*sizes, slices=1):
    places = itertools.product(*(range(n) for n in sizes))
    return [Chip(i, place, i * slices // math.prod(sizes)) for i, place in enumerate(places)]


def test_rows_of_chips_are_split_over_axes_where_a_mesh_asks_for_it():
    mesh = mesh_of(fsdp=16, tensor=4, devices=chips(8, 8, 1))
    assert mesh.devices.shape == (1, 16, 4, 1)
    assert len({chip.id for chip in mesh.devices.flat}) == 64


def test_chips_that_cannot_form_a_mesh_are_bad_input(monkeypatch):
    with pytest.raises(BadInput, match="several TPU slices"):
        mesh_of(fsdp=-1, devices=chips(4, 4, 1, slices=2))
    with pytest.raises(BadInput, match="mesh.fsdp = 3.*links form no such mesh"):
        mesh_of(fsdp=3, devices=chips(2, 2, 1)[:3])

    def refuse(*_, **__):
        raise NotImplementedError("no assignment")

    monkeypatch.setattr(sharding.mesh_utils, "create_device_mesh", refuse)
    with pytest.raises(BadInput, match="mesh.fsdp = 4.*links form no such mesh: no assignment"):
        mesh_of(fsdp=4, devices=chips(2, 2, 1))


@pytest.mark.parametrize(
    "weights, cut",
    [(0, 1), (60, 1), (61, 2), (121, 4), (240, 4), (241, 8), (10**9, 8)],
)
def test_parameters_are_whole_where_they_fit_and_else_cut_over_the_fewest_devices(weights, cut):
    mesh = sharding.inference_mesh(jax.devices(), weights, each=100)
    assert dict(mesh.shape) == dict(data=8 // cut, fsdp=cut, tensor=1, context=1)
    assert sharding.row_ways(mesh) == 8  # every device has rows of its own, however they are cut


def test_who_says_over_how_many_devices_a_copy_is_cut_gets_that():
    mesh = sharding.inference_mesh(jax.devices()[:6], 10**9, each=1, cut=2)
    assert dict(mesh.shape) == dict(data=3, fsdp=2, tensor=1, context=1)
    with pytest.raises(BadInput, match="on 4 devices each: there are 6"):
        sharding.inference_mesh(jax.devices()[:6], 0, cut=4)


def test_devices_of_a_cpu_share_its_memory():
    of_all = sum(sharding.memory(device) for device in jax.devices())
    assert 0 < of_all <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def test_resolve_follows_the_table():
    mesh = mesh_of(data=2, fsdp=2, tensor=2)
    resolve = sharding.resolve
    assert resolve(("embed", "heads", "head_dim"), (8, 4, 2), mesh) == P("fsdp", "tensor", None)
    assert resolve(("layers", "mlp", "embed"), (3, 8, 8), mesh) == P(None, "tensor", "fsdp")
    assert resolve(("embed", "embed"), (8, 8), mesh) == P("fsdp", "tensor")
    assert resolve((None,), (7,), mesh) == P(None)


@pytest.mark.parametrize(
    "axes, shape, message",
    [
        (("embde",), (8,), "a/b: axis 'embde' is not in the table"),
        (("heads", "mlp"), (4, 4), "a/b: axis 'mlp' .* already use"),
        (("embed", "embed", "embed"), (8, 8, 8), "a/b: axis 'embed' .* already use"),
        (("heads",), (3,), "a/b: axis 'heads' has 3 entries.*mesh.tensor = 2"),
        (("heads",), (4, 4), "a/b: axes .* differ in length"),
    ],
)
def test_resolve_is_strict(axes, shape, message):
    with pytest.raises(ValueError, match=message):
        sharding.resolve(axes, shape, mesh_of(data=2, fsdp=2, tensor=2), where="a/b")


def test_collisions_are_found_on_one_device():
    with pytest.raises(ValueError, match="already use"):
        sharding.resolve(("heads", "mlp"), (4, 4), mesh_of(devices=jax.devices()[:1]))


def test_every_rule_names_mesh_axes():
    assert {a for axes in sharding.RULES.values() for a in axes} <= set(sharding.MESH_AXES)


@pytest.mark.parametrize("name", ["adamw", "muon"])
def test_moments_lie_where_their_parameters_lie(name):
    mesh, specs = mesh_of(data=1, fsdp=4, tensor=2), small_specs()
    where = sharding.shardings(specs, mesh)
    if name == "adamw":
        inner = optax.adamw(1e-3)
    else:
        dims = optax.contrib.MuonDimensionNumbers()
        inner = optax.contrib.muon(
            1e-3,
            muon_weight_dimension_numbers=lambda tree: jax.tree.map(
                lambda x: dims if x.shape == (16, 8) else None, tree
            ),
        )
    tx = optax.chain(optax.clip_by_global_norm(1.0), inner)
    abstract = param_tree.abstract(specs)
    placed = sharding.optimizer_shardings(tx, abstract, where, mesh)
    values = jax.jit(lambda: param_tree.init(specs, jax.random.key(0)), out_shardings=where)()
    state = jax.jit(tx.init, out_shardings=placed)(values)
    cut = [x for x in jax.tree.leaves(state) if x.ndim == 2 and x.shape == (16, 8)]
    assert cut and all(x.sharding.spec == P("tensor", "fsdp") for x in cut)
    assert all(len(x.sharding.device_set) == 8 for x in jax.tree.leaves(state))


@pytest.mark.slow  # training/test_step.py has a whole step on many devices
def test_loss_and_gradients_are_equal_on_every_mesh():
    specs = small_specs()
    values = param_tree.init(specs, jax.random.key(1))
    tokens = np.arange(8 * 3, dtype=np.int32).reshape(8, 3) % 16

    def loss(p, ids):
        x = sharding.constrain(p["embed"][ids], sharding.ROWS, None, None)
        for i in range(2):
            b = jax.tree.map(lambda w, i=i: w[i], p["blocks"])
            q = jnp.einsum("bsd,dhc->bshc", x * b["ln"]["scale"][None, None], b["q"]["w"])
            x = x + jnp.einsum("bshc,hcd->bsd", jnp.tanh(q), b["o"]["w"])
        x = x @ p["time"]["w"] + p["time"]["b"][None, None]
        return jnp.mean(jnp.square(x))

    want = jax.jit(jax.value_and_grad(loss))(values, tokens)
    for sizes in (dict(fsdp=4), dict(data=2, fsdp=2, tensor=2)):
        mesh = mesh_of(**sizes, devices=jax.devices()[: math.prod(sizes.values())])
        where = sharding.shardings(specs, mesh)
        batch = sharding.batch_sharding(mesh)
        with jax.set_mesh(mesh):
            step = jax.jit(jax.value_and_grad(loss), in_shardings=(where, batch))
            have = step(jax.device_put(values, where), jax.device_put(tokens, batch))
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), have, want
        )


def test_constrain_needs_no_mesh_and_obeys_one():
    x = jnp.ones((8, 4))
    assert sharding.constrain(x, "data", None) is x
    mesh = mesh_of(data=4, fsdp=2)
    with jax.set_mesh(mesh):
        y = jax.jit(lambda x: sharding.constrain(2 * x, "data", None))(x)
    assert y.sharding.is_equivalent_to(NamedSharding(mesh, P("data", None)), 2)
