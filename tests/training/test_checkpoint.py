"""Checkpoints come back bit for bit, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from srum_jax.config import MeshConfig
from srum_jax.core import param_tree, sharding
from srum_jax.core.errors import BadInput
from srum_jax.training.checkpoint import Checkpoints, load_params, save_params
from srum_jax.training.state import create

SPECS = {
    "w": param_tree.ParamSpec((64, 64), ("embed", "mlp")),
    "b": param_tree.ParamSpec((5,), (None,)),
}
TX = optax.adam(1e-3)
# What Orbax leaves running when a read fails.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def state(seed=0, specs=SPECS, tx=TX):
    made = create(param_tree.init(specs, jax.random.key(seed)), tx)
    return made.replace(step=jnp.int32(17), ema=jax.tree.map(lambda x: 2 * x, made.params))


@pytest.fixture
def folder(tmp_path):
    """Steps 3 and 9 of a run."""
    saved = Checkpoints(tmp_path / "run", keep=2)
    for step in (1, 3, 9):
        saved.save(step, state(step), {"stage": "toy", "round": step})
    saved.close()
    return tmp_path / "run"


def restore(folder, like, step=9):
    saved = Checkpoints(folder, keep=2)
    try:
        return saved.restore(step, like)
    finally:
        saved.close()


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(path, at=0.5):
    data = bytearray(path.read_bytes())
    data[int(len(data) * at)] ^= 4
    path.write_bytes(bytes(data))


def test_round_trip_and_what_is_kept(folder):
    saved = Checkpoints(folder, keep=2)
    assert saved.latest() == 9
    assert saved.meta(3)["round"] == 3 and saved.meta(9)["stage"] == "toy"
    for step in (3, 9):
        back = saved.restore(step, state(0))
        toy.assert_same(back, state(step))
        assert back.opt_state[0].mu["w"].dtype == jnp.float32 and int(back.step) == 17
    saved.save(9, state(0), {})  # there already: the first one stays
    saved.close()
    toy.assert_same(restore(folder, state(0)), state(9))
    assert sorted(p.name for p in folder.iterdir()) == ["3", "9"]
    empty = Checkpoints(folder.parent / "empty", keep=1)
    assert empty.latest() is None
    empty.close()


def test_a_state_lies_where_it_is_wanted(folder):
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2, context=1), jax.devices())
    like = create(param_tree.init(SPECS, jax.random.key(1)), TX, SPECS, mesh)
    back = restore(folder, like)
    toy.assert_same(back, state(9))
    assert jax.tree.map(lambda x: x.sharding, back) == jax.tree.map(lambda x: x.sharding, like)
    assert len(back.opt_state[0].nu["w"].addressable_shards) == 8


@pytest.mark.parametrize(
    "like",
    [
        state(specs={**SPECS, "b": param_tree.ParamSpec((6,), (None,))}),
        state(specs={**SPECS, "c": param_tree.ParamSpec((6,), (None,))}),
        state(specs={"b": SPECS["b"]}),
        state(tx=optax.sgd(1e-3)),
    ],
    ids=["shape", "more", "less", "optimiser"],
)
def test_another_structure_is_refused(folder, like):
    with pytest.raises(BadInput, match="run/9: the checkpoint can't be read as this run's state"):
        restore(folder, like)


@pytest.mark.parametrize("at", [0.1, 0.5, 0.9])
def test_a_flipped_bit_is_found(folder, at):
    path = largest(folder / "9" / "state")
    assert path.stat().st_size > 10_000  # the numbers, not what is said of them
    flip(path, at)
    with pytest.raises(BadInput, match="run/9: (damaged|the checkpoint can't be read)"):
        restore(folder, state(0))
    toy.assert_same(restore(folder, state(0), step=3), state(3))


@pytest.mark.parametrize("name", ["manifest.ocdbt", "_METADATA"])
def test_damage_around_the_numbers_is_bad_input_too(folder, name):
    flip(folder / "9" / "state" / name)
    with pytest.raises(BadInput, match="run/9: the checkpoint can't be read"):
        restore(folder, state(0))


def test_damaged_meta_is_named(folder):
    path = folder / "9" / "meta" / "metadata"
    path.write_text("{" + path.read_text())
    with pytest.raises(BadInput, match="run/9: the checkpoint can't be read"):
        restore(folder, state(0))
    path.unlink()
    with pytest.raises(BadInput, match="run/9: the checkpoint can't be read"):
        restore(folder, state(0))


def test_parameters_alone(tmp_path):
    made = state(4).params
    save_params(tmp_path / "params", state(1).params)
    save_params(tmp_path / "params", made)  # an older one is replaced
    like = param_tree.abstract(SPECS)
    toy.assert_same(load_params(tmp_path / "params", like), made)
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8, tensor=1, context=1), jax.devices())
    where = sharding.shardings({"w": SPECS["w"]}, mesh)["w"]
    cut = {**like, "w": jax.ShapeDtypeStruct((64, 64), np.float32, sharding=where)}
    back = load_params(tmp_path / "params", cut)
    toy.assert_same(back, made)
    assert back["w"].sharding == where

    with pytest.raises(BadInput, match="nowhere is missing: run the train stage first"):
        load_params(tmp_path / "nowhere", like)
    with pytest.raises(BadInput, match="params: not the parameters of this model"):
        load_params(tmp_path / "params", {"w": like["w"]})
    digests = (tmp_path / "digests.json").read_text()
    (tmp_path / "digests.json").unlink()
    with pytest.raises(BadInput, match="params: not the parameters .*digests.json"):
        load_params(tmp_path / "params", like)
    (tmp_path / "digests.json").write_text(digests)
    flip(largest(tmp_path / "params"))
    with pytest.raises(BadInput, match="params: (damaged|not the parameters)"):
        load_params(tmp_path / "params", like)
