"""Checkpoints come back bit for bit, or not at all."""

import resource
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy

from srum_jax.config import MeshConfig
from srum_jax.core import digests, param_tree, sharding
from srum_jax.core.errors import BadInput
from srum_jax.training import checkpoint
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


def steps(folder):
    return sorted(p.name for p in folder.iterdir())


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


def test_every_flipped_bit_is_found(folder):
    path = largest(folder / "9" / "state")
    whole = path.read_bytes()
    assert len(whole) > 10_000  # the numbers, not what is said of them
    for i in range(12):
        flip(path, (i + 0.5) / 12)
        with pytest.raises(BadInput, match=f"run/9: damaged, .*: {path.relative_to(folder / '9')}"):
            restore(folder, state(0))
        path.write_bytes(whole)
    toy.assert_same(restore(folder, state(0)), state(9))


def harm(path, how):
    data = path.read_bytes()
    path.unlink()
    if how != "lost":
        path.write_bytes(data[: len(data) // 2] if how == "cut" else b"")


@pytest.mark.parametrize("how", ["cut", "emptied", "lost"])
def test_every_file_that_a_disk_lost_is_found(folder, how):
    for path in [p for p in (folder / "9").rglob("*") if p.is_file() and p.stat().st_size]:
        whole = path.read_bytes()
        harm(path, how)
        if path.name != digests.FILE:  # without it nothing is checked
            with pytest.raises(BadInput, match=f"run/9: damaged, .*{path.name}"):
                restore(folder, state(0))
        path.write_bytes(whole)
    toy.assert_same(restore(folder, state(0)), state(9))


@pytest.mark.parametrize("left", ["[]", '{"a": 3}', '{"a": [1]}', "null"])
def test_damaged_digests_are_found(folder, left):
    (folder / "9" / digests.FILE).write_text(left)
    with pytest.raises(BadInput, match="run/9: damaged, .*digests.json"):
        restore(folder, state(0))


@pytest.mark.parametrize("how", ["cut", "emptied", "lost"])
@pytest.mark.parametrize("known", [True, False], ids=["with digests", "without"])
def test_the_checkpoint_before_a_damaged_one_is_taken(folder, how, known, caplog):
    harm(folder / "9" / "state" / "manifest.ocdbt", how)
    if not known:
        (folder / "9" / digests.FILE).unlink()
    saved = Checkpoints(folder, keep=2)
    toy.assert_same(saved.newest(state(0), lambda: state(0), steps=20), state(3))
    saved.save(6, state(6), {})
    saved.close()
    assert f"{folder / '9'}: " in caplog.text
    assert steps(folder) == ["3", "6"]


@pytest.mark.parametrize("where", ["9: checked", "9/state: read"])
def test_what_another_process_alone_cannot_read_none_takes(folder, where, monkeypatch):
    """It has no digests, and this process could read it."""
    (folder / "9" / digests.FILE).unlink()
    monkeypatch.setattr(checkpoint, "any_process", lambda own, at: own or at.endswith(where))
    saved = Checkpoints(folder, keep=2)
    toy.assert_same(saved.newest(state(0), lambda: state(0), steps=20), state(3))
    saved.close()
    assert steps(folder) == ["3"]


@pytest.mark.parametrize("known", [True, False], ids=["with digests", "without"])
def test_where_no_checkpoint_is_whole_the_run_begins_again(folder, caplog, known):
    for step in ("3", "9"):
        if known:
            flip(largest(folder / step))
        else:  # as the power leaves them that goes before they have digests
            (folder / step / digests.FILE).unlink()
            harm(folder / step / "state" / "manifest.ocdbt", "cut")
    saved = Checkpoints(folder, keep=2)
    toy.assert_same(saved.newest(state(0), lambda: state(0), steps=20), state(0))
    saved.close()
    assert "no checkpoint is whole; the run begins again" in caplog.text and steps(folder) == []


def test_checkpoints_of_another_model_are_kept(folder):
    saved = Checkpoints(folder, keep=2)
    with pytest.raises(BadInput, match="run/9: the checkpoint can't be read"):
        saved.newest(state(tx=optax.sgd(1e-3)), lambda: None, steps=20)
    saved.close()
    assert steps(folder) == ["3", "9"]


def test_digests_are_made_while_steps_go_on(folder, monkeypatch):
    write, goes_on = digests.write, threading.Event()
    monkeypatch.setattr(digests, "write", lambda where: goes_on.wait(60) and write(where))
    saved = Checkpoints(folder, keep=2)
    saved.save(12, state(12), {})  # returns before they are there
    assert not digests.exist(folder / "12")
    goes_on.set()
    saved.close()
    assert digests.exist(folder / "12") and digests.damaged(folder / "12") == []


def test_one_of_another_model_is_kept_where_an_older_one_can_be_read(folder):
    saved = Checkpoints(folder, keep=2)
    saved.save(12, state(tx=optax.sgd(1e-3)), {})
    saved.close()
    saved = Checkpoints(folder, keep=2)
    with pytest.raises(BadInput, match="run/12: the checkpoint can't be read"):
        saved.newest(state(0), lambda: None, steps=20)
    saved.close()
    assert steps(folder) == ["12", "9"]


def test_a_folder_without_digests_is_not_held_against_them(folder):
    (folder / "9" / digests.FILE).unlink()
    assert digests.damaged(folder / "9") == []


def test_a_save_that_failed_in_the_background_is_told(folder):
    """A file may have a few kilobytes: the disk is full in the middle of the numbers."""
    saved, limit = Checkpoints(folder, keep=2), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limit[1]))
    try:
        with pytest.raises(BadInput, match="run: the checkpoint of step 12 could not be written"):
            saved.save(12, state(12), {})
            saved.finishing.join(60)
            saved.check()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    with pytest.raises(BadInput, match="run: the checkpoint of step 12 could not be written"):
        saved.close()
    toy.assert_same(restore(folder, state(0)), state(9))


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
    flip(largest(tmp_path / "params"))
    with pytest.raises(BadInput, match="params: damaged"):
        load_params(tmp_path / "params", like)
    (tmp_path / "params" / digests.FILE).unlink()  # of an older version
    save_params(tmp_path / "params", made)
    toy.assert_same(load_params(tmp_path / "params", like), made)
