"""What a run has trained is served as it lies there: exported, finished, or a checkpoint."""

import asyncio
import concurrent.futures
import gc
import re
import shutil
import threading
import types
import weakref

import jax
import numpy as np
import pytest
import tiny
from serving_host import serving
from stages import test_export, test_train

from srum_jax import api, serve
from srum_jax.core import param_tree
from srum_jax.core.errors import BadInput, DoesNotFit
from srum_jax.serving import lanes, opening, running, watching
from srum_jax.serving.opening import Found
from srum_jax.serving.work import Running
from srum_jax.stages.manifest import Workdir

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny.write_model(tmp_path_factory.mktemp("weights") / "model")


@pytest.fixture(scope="module", params=["gen", "lora"])
def run(request, weights, tmp_path_factory):
    """(the folder of a run that ended, {path: leaf} of what it trained)."""
    folder = tmp_path_factory.mktemp("run")
    cfg = test_train.config(weights, train__trainable=request.param, train__lora__rank=2)
    work = test_train.write(Workdir(folder), cfg)
    test_train.run(cfg, work)
    return folder, test_train.trained(cfg, work)[1]


def leaves(model):
    return param_tree.flatten(jax.device_get(model.params))


def same(found, want):
    assert found.keys() == want.keys()
    for path, leaf in found.items():
        assert leaf == pytest.approx(np.asarray(want[path]), abs=1e-6), path


@pytest.mark.slow
def test_a_finished_round_is_served(run):
    folder, want = run
    model, found = opening.opened(str(folder))
    assert (found.kind, found.round, found.step) == ("params", 0, None)
    same(leaves(model), want)


@pytest.mark.slow
def test_the_newest_checkpoint_is_served(run, tmp_path):
    folder, want = run
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "round0" / "train" / "manifest.json").unlink()
    model, found = opening.opened(str(copy))
    assert (found.kind, found.step) == ("step", 3)
    same(leaves(model), want)
    shutil.rmtree(copy / "round0" / "train" / "checkpoints" / "3")
    _, found = opening.opened(str(copy))
    assert found.step == 2


@pytest.mark.slow
def test_a_named_checkpoint_is_served(run):
    folder, want = run
    model, found = opening.opened(str(folder), 2)
    assert (found.kind, found.step) == ("step", 2)
    other = leaves(model)
    assert any(np.abs(other[path] - np.asarray(want[path])).max() > 1e-6 for path in want)
    with pytest.raises(BadInput, match=r"--step 7: .* has no such checkpoint \(round 0: 2, 3\)"):
        opening.opened(str(folder), 7)


@pytest.fixture
def gate(monkeypatch):
    """Drawings take no step while this event is not set."""
    made, step = threading.Event(), lanes.Images.step

    def waits(self, group):
        assert made.wait(120)
        step(self, group)

    monkeypatch.setattr(lanes.Images, "step", waits)
    made.set()
    return made


@pytest.mark.slow
def test_newer_checkpoints_are_taken_and_what_runs_ends(run, tmp_path, gate):
    folder, _ = run
    copy = shutil.copytree(folder, tmp_path / "run")
    (copy / "round0" / "train" / "manifest.json").unlink()
    last = copy / "round0" / "train" / "checkpoints" / "3"
    aside = last.rename(tmp_path / "3")
    model, found = opening.opened(str(copy))
    with serving(model) as host, host.http() as http:
        body = {"prompt": PROMPT, "seed": 1, "size": "32x32", "num_inference_steps": 3}

        def drawn():
            return http.post("/v1/images/generations", json=body).json()["data"]

        async def follow():
            how = dict(every=0.05)
            task = asyncio.ensure_future(watching.watch(host.service, copy, found, **how))
            await asyncio.sleep(0.2)
            shutil.copytree(aside, last)
            while host.service.running.step != 3:
                assert not task.done()
                await asyncio.sleep(0.05)
            task.cancel()

        before = drawn()
        gate.clear()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            under_way = pool.submit(drawn)
            while not host.service.engine.lanes["image"].works:
                assert not under_way.done()
            asyncio.run(asyncio.wait_for(follow(), 120))
            gate.set()
            assert under_way.result(60) == before  # by the model that it began with
        assert http.get("/health").json()["step"] == 3
        assert drawn() != before


def test_what_cannot_be_taken_is_told_and_looked_for_again(tmp_path, monkeypatch, caplog):
    errors = [OSError("gone"), RuntimeError("RESOURCE_EXHAUSTED"), DoesNotFit("no room for two")]
    taken = []

    def trained(*_):
        if errors:
            raise errors.pop(0)
        return "a model"

    monkeypatch.setattr(opening, "newest", lambda run: Found(run / "3", 0, "step", 3))
    monkeypatch.setattr(opening, "trained", trained)
    monkeypatch.setattr(Running, "of", lambda *model: model)
    service = types.SimpleNamespace(replace=taken.append)

    async def follow():
        have = Found(tmp_path / "2", 0, "step", 2)
        task = asyncio.ensure_future(watching.watch(service, tmp_path, have, 0.01))
        while not taken:
            assert not task.done()
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)  # it is taken once
        task.cancel()

    with caplog.at_level("WARNING"):
        asyncio.run(asyncio.wait_for(follow(), 60))
    assert taken == [("a model", 3)]
    said = [record.getMessage() for record in caplog.records if "not taken" in record.getMessage()]
    assert ["gone" in said[0], "EXHAUSTED" in said[1], "no room" in said[2]] == [True] * 3


def test_a_model_that_was_replaced_is_let_go_of(weights, monkeypatch):
    held, services, application = [], [], running.application

    def seen(service, **how):
        services.append(service)
        return application(service, **how)

    async def serves(self, sockets):
        (service,) = services
        first = weakref.ref(service.running.model)
        service.replace(Running.of(api.load(weights)))
        gc.collect()
        held.append(first())

    monkeypatch.setattr(running, "application", seen)
    monkeypatch.setattr(running.Server, "serve", serves)
    options = serve.parser().parse_args(["--model", str(weights), "--port", "0"])
    assert asyncio.run(running.serve(options, "")) == 0
    assert held == [None]


def test_a_run_without_a_model_is_refused(tmp_path):
    (tmp_path / "round0" / "train").mkdir(parents=True)
    with pytest.raises(BadInput, match=re.escape(f"{tmp_path}: this run has no checkpoint yet")):
        opening.opened(str(tmp_path))
    with pytest.raises(BadInput, match="is no run's folder"):
        opening.opened("shapes", 3)


@pytest.mark.slow
def test_the_export_of_a_round_is_served(weights, tmp_path):
    cfg = test_train.config(weights, train__trainable="gen", export__dtype="float32")
    work = test_train.write(Workdir(tmp_path), cfg)
    test_train.run(cfg, work)
    test_export.run(cfg, work)
    model, found = opening.opened(str(tmp_path))
    assert (found.kind, found.round, found.step) == ("model", 0, None)
    same(leaves(model), test_train.trained(cfg, work)[1])
