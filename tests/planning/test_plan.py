"""Plans: targets, what is tried and in which order, the JSON, exit codes; a small one compiled."""

import dataclasses
import importlib.util
import json
import math
import types

import jax
import jsonschema
import pytest
import tiny
from compilers import SCHEMA, Compilers

from srum_jax import config, main
from srum_jax.configs import bagel_7b_srum, shapes
from srum_jax.core import registry, sharding
from srum_jax.core.errors import BadInput
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT
from srum_jax.planning import lowering, plan, topology
from srum_jax.planning.topology import Target


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path_factory):
    folder = tiny.sizes_folder(tmp_path_factory.mktemp("sizes"))
    monkeypatch.setattr(registry, "base_folder", {"shapes": folder}.__getitem__)


def planned(peaks, target="v5e:2x4", only=("train_step",), **values):
    compilers = Compilers(peaks)
    cfg = tiny.load_config("", **values)
    made = plan.plan(cfg, topology.parse(target), describe=compilers.describe, only=only)
    jsonschema.validate(made, SCHEMA)
    return made, compilers


# ----------------------------------------------------------------------------- what a plan says


def test_a_plan_that_fits():
    made, compilers = planned(lambda *_: 3.0, only=None)  # what the config's stages run
    assert made["fits"] and made["tried"] == [] and compilers.count == 4
    assert made["chips"] == 8 and made["mesh"] == dict(data=1, fsdp=8, tensor=1, context=1)
    step, sample = made["programs"]["train_step"], made["programs"]["sample"]
    assert step["peak_gib"] == 3.0 and step["how"] == "compiled" and step["chips"] == 8
    assert sample["chips"] == 4  # every host draws by itself
    sent = 2 * 1024 * 7 / 2**30
    assert step["collective_gib"]["all-gather"] == pytest.approx(sent, abs=1e-3)
    said = "\n".join(plan.lines(made))
    assert "train_step: fits, 3.00 GiB a chip (compiled for 8 chips)" in said


def test_parts_are_what_lies_on_a_chip():
    machine = Compilers(lambda *_: 1.0).describe(Target("v5e", "2x4"))
    cfg = tiny.load_config("", train__trainable="all", train__anchor=0.1)
    mesh = plan.mesh_of(cfg, machine)
    program = lowering.train_step(cfg, tiny.MODEL, mesh)
    on_chip = {name: sharding.bytes_per_device(tree) for name, tree in program.parts.items()}
    shapes = jax.tree.leaves(program.parts["masters"])
    whole = sum(4 * math.prod(x.shape) for x in shapes)
    cut = sum(4 * math.prod(x.sharding.shard_shape(x.shape)) for x in shapes)
    assert whole / 8 <= cut < whole and on_chip["masters"] == cut == on_chip["ema"]
    assert on_chip["moments"] == pytest.approx(2 * cut, rel=0.001)  # and counters
    assert on_chip["params"] == 0 and on_chip["ref"] == cut  # float32 is this config's type
    gen = lowering.train_step(tiny.load_config("", train__objective="sft"), tiny.MODEL, mesh)
    assert sharding.bytes_per_device(gen.parts["params"]) > 0
    assert sharding.bytes_per_device(gen.parts["ref"]) == 0  # nothing to compare with


def test_rows_and_batches_are_raised_to_what_the_chips_share(unlowered):
    made, _ = planned(lambda *_: 1.0, train__rows=12, train__micro_batches=2)
    assert made["rows"] == 16 and made["set"]["train.rows"] == 16
    assert not {"sample.batch", "score.batch", "generate.shard_size"} & set(
        made["set"]
    )  # a host's own
    assert "--config.train.rows=16" in "\n".join(plan.lines(made))


def test_a_plan_of_nothing_is_refused():
    with pytest.raises(BadInput, match="run no program"):
        planned(lambda *_: 1.0, only=None, stages=("report",))


def test_what_hosts_do_alone_is_cut_over_their_own_chips(unlowered):
    """Of eight chips four are a host's: for its drawing a batch of four is enough."""
    made, _ = planned(lambda *_: 1.0, only=("sample",))
    assert "sample.batch" not in made["set"] and made["programs"]["sample"]["images"] == 4
    made, _ = planned(lambda *_: 1.0, only=("sample",), sample__batch=2, generate__shard_size=2)
    assert made["set"]["sample.batch"] == made["set"]["generate.shard_size"] == 4


@pytest.mark.parametrize("kind, stacked", [("v5e", True), ("v6e", False), (None, False)])
def test_layers_stay_stacked_where_a_chip_has_no_room_for_them_apart(kind, stacked, monkeypatch):
    """The 7B in int8 on one chip of 16 GB, of 32 GB, and where nothing is known of it."""
    cfg = config.load(bagel_7b_srum.get_config())
    monkeypatch.setattr(topology, "kind_of", lambda device: kind)
    mesh = sharding.inference_mesh(jax.devices()[:1], 0)
    program = lowering.write(cfg, BAGEL_7B_MOT, mesh, "int8")
    assert program.static["stacked"] == stacked


def test_int8_weights_take_less(unlowered):
    """On one chip, as `api.load(precision="int8")` keeps them."""
    machine = Compilers(lambda *_: 1.0).describe(Target("v5e", "2x4"))
    cfg = tiny.load_config("")
    mesh = plan.host_mesh(cfg, machine)
    full, int8 = (lowering.read(cfg, tiny.MODEL, mesh, kept) for kept in ("", "int8"))
    wide, narrow = (sharding.bytes_per_device(x.parts["params"]) for x in (full, int8))
    cut = [x.dtype for x in jax.tree.leaves(int8.parts)]
    assert 0.25 * wide < narrow < wide and cut.count("int8") > 20
    names = tuple(name for name in lowering.PROGRAMS if name.endswith("_int8"))
    made, compilers = planned(lambda *_: 1.0, only=names)
    assert len(names) == 4 == compilers.count and set(made["programs"]) == set(names)
    assert made["programs"]["write_int8"]["answers"] >= 1


def test_a_mesh_of_fixed_sizes_grows_with_the_machine(unlowered):
    values = {"mesh__data": 2, "mesh__fsdp": 4, "train__rows": 8, "train__lora__rank": 64}
    made, _ = planned(lambda t, n: 99.0 if t.shape == "2x4" else 9.0, **values)
    assert made["mesh"] == dict(data=2, fsdp=4, tensor=1, context=1)
    change = "mesh.fsdp = -1 and v5e:4x4, 16 chips"
    assert [(one["change"], one["fits"]) for one in made["tried"]] == [(change, True)]


def test_a_mesh_that_the_chips_cannot_form_is_bad_input(unlowered, monkeypatch):
    with pytest.raises(BadInput, match="v5e:2x4: mesh.data = 3.* do not fit 8 devices"):
        planned(lambda *_: 1.0, mesh__data=3)
    make = sharding.make_mesh

    def limited(sizes, devices):
        if sizes.data > 1:
            raise BadInput("the chips' links form no such mesh")
        return make(sizes, devices)

    monkeypatch.setattr(sharding, "make_mesh", limited)
    with pytest.raises(BadInput, match="v5e:2x4: the chips' links"):
        planned(lambda *_: 1.0, mesh__data=2)


def test_larger_machines_that_cannot_run_it_are_passed_over(unlowered, monkeypatch):
    compilers = Compilers(lambda *_: 99.0)

    def describe(target):
        if target.chips == 16:
            raise BadInput("--plan v5e:4x4: INVALID_ARGUMENT")
        return compilers.describe(target)

    cfg = tiny.load_config("", train__rows=8, train__lora__rank=64)
    made = plan.plan(cfg, topology.parse("v5e:2x4"), describe=describe, only=("train_step",))
    tried = [f"v5e:{s}, {n} chips" for s, n in [("4x8", 32), ("8x8", 64), ("8x16", 128)]]
    assert [one["change"] for one in made["tried"]] == [*tried, "v5e:16x16, 256 chips"]


def test_the_hash_is_of_the_config_as_given(unlowered):
    one, _ = planned(lambda *_: 1.0, train__rows=12)
    two, _ = planned(lambda *_: 1.0, train__rows=16)
    assert one["config_hash"] != two["config_hash"]
    assert one["config_hash"] == plan.key(tiny.load_config("", train__rows=12))


def test_what_lies_beside_a_program_counts(unlowered):
    """The autoencoder stays while the sampler runs, the model while the decoder does."""
    made, _ = planned(lambda *_: 15.75, only=("decode",))
    assert not made["fits"] and made["programs"]["decode"]["peak_gib"] >= 15.75
    assert made["programs"]["decode"]["parts_gib"]["temporaries"] > 15
    assert made["tried"] == []  # hosts draw by themselves: more of them help none


# ------------------------------------------------------------------------- what is tried, in order


FULL = {
    "train__trainable": "all",
    "train__rows": 32,
    "compute__remat": "none",
    "train__lora__rank": 2,
}


@pytest.fixture
def unlowered(monkeypatch):
    """Programs that are not lowered, for the fakes that do not read them."""
    stand_in = types.SimpleNamespace(out_info=(), as_text=lambda: "")
    monkeypatch.setattr(lowering.Program, "lower", lambda program: stand_in)


def test_settings_come_in_order_and_free_ones_stay(unlowered):
    made, compilers = planned(lambda *_: 99.0, **FULL)
    assert [one["change"] for one in made["tried"]] == [
        'compute.remat = "full"',
        'compute.remat = "full" and train.micro_batches = 4',
        'compute.remat = "full" and train.micro_batches = 4 and train.trainable = "gen"',
        'compute.remat = "full" and train.micro_batches = 4 and train.trainable = "lora"',
        *(
            f'compute.remat = "full" and train.micro_batches = 4 and v5e:{shape}, {n} chips'
            for shape, n in [("4x4", 16), ("4x8", 32), ("8x8", 64), ("8x16", 128), ("16x16", 256)]
        ),
    ]
    assert not any(one["fits"] for one in made["tried"]) and not made["fits"]
    assert {one["peak_gib"] for one in made["tried"]} == {99.0}
    assert compilers.seen[-1] == "v5e:16x16"
    assert plan.advice(made).endswith("fits with nothing that was tried")


def test_it_ends_with_what_fits(unlowered):
    made, compilers = planned(lambda _, n: 99.0 if n < 4 else 9.0, **FULL)
    assert [one["fits"] for one in made["tried"]] == [False, False, True]
    assert compilers.count == 4 and not made["fits"]
    assert plan.advice(made).endswith('train.trainable = "gen"')


def test_settings_that_are_so_already_are_not_tried(unlowered):
    values = {"train__rows": 8, "train__lora__rank": 2}
    made, _ = planned(lambda t, n: 99.0 if t.shape == "2x4" else 9.0, **values)
    tried = ['train.trainable = "lora"', "v5e:4x4, 16 chips"]
    assert [one["change"] for one in made["tried"]] == tried
    # Of what this model cannot have nothing is said.
    values["train__lora__rank"] = 64
    made, _ = planned(lambda t, n: 99.0 if t.shape == "2x4" else 9.0, **values)
    assert [one["change"] for one in made["tried"]] == tried[1:]


def test_only_what_does_not_fit_is_compiled_again(unlowered):
    peaks = {1: 1.0, 2: 99.0}
    batches = {"sample__batch": 16, "generate__shard_size": 16}
    names = ("train_step", "sample")
    made, compilers = planned(lambda _, n: peaks.get(n, 2.0), only=names, **batches)
    tried = {"program": "sample", "change": "sample.batch = 8", "fits": True, "peak_gib": 2.001}
    assert made["tried"] == [tried | {"peak_gib": made["tried"][0]["peak_gib"]}]
    assert compilers.count == 3


def test_a_refusal_without_a_number_has_no_peak(unlowered):
    made, _ = planned(lambda _, n: None if n == 1 else 1.0)
    assert "peak_gib" not in made["programs"]["train_step"]
    assert "train_step needs more than 15.75 GiB a chip, and fits with" in plan.advice(made)
    assert "DOES NOT FIT, more a chip" in "\n".join(plan.lines(made))


def test_gpus_are_estimated_and_said_to_be(unlowered):
    made, _ = planned(lambda *_: 3.0, target="h200:8")
    assert made["programs"]["train_step"]["how"] == "estimated"
    assert "raised by 10%, not held against" in "\n".join(plan.lines(made))


def test_a_gpu_has_what_jax_leaves_and_the_setting_that_raises_it_is_the_first_thing_to_do(
    unlowered, monkeypatch, capsys
):
    made, compilers = planned(lambda *_: 120.0, target="h200:8")
    assert made["hbm_gib"] == 104.85 and not made["fits"] and compilers.count == 1
    change = "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95"
    tried = {"program": "train_step", "change": change, "fits": True, "peak_gib": 120.0}
    assert made["tried"] == [tried]
    assert plan.advice(made).endswith(f"and fits with {change}")
    assert f"with {change} in the environment it takes 132.81" in "\n".join(plan.lines(made))
    made, _ = planned(lambda _, n: 133.0 if n == 1 else 9.0, target="h200:8")
    assert change not in [one["change"] for one in made["tried"]] and made["tried"]
    assert topology.KINDS["v5e"].raised_gib == topology.KINDS["v5e"].hbm_gib == 15.75


@pytest.mark.parametrize("kind, fits", [("a100", True), ("t4", False)])
def test_what_nothing_compiles_for_is_summed_and_said_to_be(kind, fits):
    """BAGEL-7B's step on eight cards: parameters, float32 masters, two moments, average."""
    cfg = config.load(bagel_7b_srum.get_config())
    made = plan.plan(cfg, topology.parse(f"{kind}:8"), only=("train_step",))
    jsonschema.validate(made, SCHEMA)
    step = made["programs"]["train_step"]
    assert step["how"] == "estimated" and "peak_gib" not in step
    masters = made["parameters"]["trained"] * 4 / 8 / topology.GIB
    assert step["parts_gib"]["masters"] == pytest.approx(masters, rel=0.01)
    assert step["kept_gib"] == pytest.approx(sum(step["parts_gib"].values()), abs=0.003)
    assert 4 * masters < step["kept_gib"] < 4 * masters + 3
    assert made["fits"] == fits == (step["kept_gib"] < made["hbm_gib"])
    said = "\n".join(plan.lines(made))
    verdict = "may fit" if fits else "DOES NOT FIT"
    assert f"train_step: {verdict}, " in said and "nothing here compiles for this kind" in said
    assert "raised by" not in said
    if not fits:
        assert made["tried"][-1]["change"] == 'train.trainable = "lora"'


# ----------------------------------------------------------------------------- the command line


def go(monkeypatch, peak, *more, target="v5e:2x4"):
    monkeypatch.setattr(topology, "describe", Compilers(lambda *_: peak).describe)
    sizes = [f"--config.{key}=8" for key in ("train.rows", "sample.batch", "score.batch")]
    more = ("--config.evaluate.batch=8", "--config.train.lora.rank=2", *more)
    return main.main(["main", "--config", shapes.__file__, *sizes, "--plan", target, *more])


def test_exit_codes_and_files(unlowered, monkeypatch, tmp_path, capsys):
    out = tmp_path / "plan.json"
    assert go(monkeypatch, 3.0, "--plan_out", str(out)) == 0
    made = json.loads(out.read_text())
    jsonschema.validate(made, SCHEMA)
    assert made["budget"]["utilisation"] == 0.4 and "money" not in made["budget"]
    assert "v5e:2x4: 8 chips of 15.75 GiB" in capsys.readouterr().out
    assert go(monkeypatch, 3.0, "--plan_out", str(out), "--price=3", "--utilisation=0.2") == 0
    dearer = json.loads(out.read_text())["budget"]
    assert dearer["price"] == 3 and {"money"} <= dearer["stages"]["generate"].keys()
    capsys.readouterr()
    assert go(monkeypatch, 99.0) == 3
    shown = capsys.readouterr()
    assert "DOES NOT FIT" in shown.out and "error: v5e:2x4: train_step needs more" in shown.err
    assert go(monkeypatch, 3.0, target="v5e:9") == 2
    assert "a shape of v5e is one of 1x1, 2x2, " in capsys.readouterr().err


def test_it_makes_no_work_folder(unlowered, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert go(monkeypatch, 3.0) == 0
    assert list(tmp_path.iterdir()) == []


# --------------------------------------------------------------------------- a compiler for real


@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason='libtpu is not installed: pip install -e ".[plan-tpu]"',
)
@pytest.mark.slow
def test_a_small_step_compiles_for_a_tpu():
    machine = topology.describe(topology.parse("v5e:2x2"))
    assert len(machine.devices) == 4 and machine.hbm_gib == 15.75
    cfg = tiny.load_config("", compute__dtype="bfloat16", train__rows=4)
    entry = plan.measured(cfg, machine, "train_step")
    assert entry["fits"] and 0 < entry["peak_gib"] < 1 and entry["how"] == "compiled"
    big = jax.ShapeDtypeStruct(
        (4 * 2**20, 2**12),
        "float32",
        sharding=sharding.batch_sharding(plan.mesh_of(cfg, machine)),
    )
    refused = machine.compile(jax.jit(lambda x: x + 1).lower(big))
    assert not refused.fits and refused.peak > 30 * topology.GIB
    with pytest.raises(BadInput, match="3x3"):
        topology.describe(dataclasses.replace(machine.target, shape="3x3"))
