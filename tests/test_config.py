"""The config: defaults load, every wrong key or value dies with its name and what to do."""

import ast
import dataclasses
import importlib
import pathlib
import re
import sys
import typing

import pytest
from absl import flags

from srum_jax import config, flow, running
from srum_jax.configs import _making, base, shapes, shapes_pretrain
from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.models import layers, lora
from srum_jax.objectives import srum

ROOT = str(pathlib.Path(__file__).parents[1])


def test_every_shipped_config_loads():
    for name in config.packaged():
        module = importlib.import_module(f"srum_jax.configs.{name}")
        assert isinstance(config.load(module.get_config()), config.Config)


def sections(cls=config.Config):
    """The dataclass of every section, the whole first."""
    yield cls
    for kind in typing.get_type_hints(cls).values():
        if dataclasses.is_dataclass(kind):
            yield from sections(kind)


def test_a_key_has_its_type_range_default_and_meaning_in_one_place():
    """Every field is a line `name: type = default` of base.py or _making.py with a comment on it or
    above it; no number is without a range but those that may be any."""
    texts = [pathlib.Path(module.__file__).read_text() for module in (base, _making)]
    anything = {"timestep_mean"}
    fields = [
        (text.splitlines(), node.name, field)
        for text in texts
        for node in ast.parse(text).body
        if isinstance(node, ast.ClassDef)
        for field in node.body
        if isinstance(field, ast.AnnAssign)
    ]
    assert {f.name for cls in sections() for f in dataclasses.fields(cls)} == {
        field.target.id for *_, field in fields
    }
    for lines, where, field in fields:
        name = f"{where}.{field.target.id}"
        assert field.value is not None, f"{name} has no default"
        kind = ast.unparse(field.annotation)
        here, above = lines[field.lineno - 1], lines[field.lineno - 2]
        explained = "#" in here or above.lstrip().startswith("#") or kind.endswith("Config")
        assert explained, f"{name} has no meaning"
        assert kind not in ("int", "float") or field.target.id in anything, f"{name} has no range"


def test_the_default_config_is_the_default_of_every_key():
    assert config.load(base.get_config()) == config.Config()


def test_names_agree_with_the_tables_they_choose_from():
    assert config.STAGES == (*config.MAKING, *running.STAGES)
    renorms = typing.get_args(typing.get_type_hints(config.SampleConfig)["renorm"])
    assert renorms == flow.RENORMS
    remats = typing.get_args(typing.get_type_hints(config.ComputeConfig)["remat"])
    assert set(remats) == set(layers.REMAT)
    experts = typing.get_args(typing.get_type_hints(config.LoraConfig)["experts"])
    assert set(experts) == set(lora.EXPERTS)


@pytest.mark.parametrize(
    "path, value, message",
    [
        ("train.stepz", 3, 'unknown key "train.stepz": did you mean "steps"?'),
        ("train.optim.lr", 3, 'unknown key "train.optim.lr": known: optimizer, learning_rate'),
        ("train.steps", 2.5, "train.steps must be int, got 2.5"),
        ("train.steps", True, "train.steps must be int, got True"),
        ("train.steps", 0, "train.steps must be above 0"),
        ("train.optim", 3, "train.optim must be a section with keys"),
        ("train.optim.learning_rate", "fast", "train.optim.learning_rate must be float"),
        ("train.optim.learning_rate", float("nan"), "learning_rate must be a finite number"),
        ("train.optim.learning_rate", 10**400, "must be a finite number, got 1000"),
        ("train.steps", 10**1500, "train.steps must be below 2147483648, got 10000"),
        ("train.ema", 1.5, "train.ema must lie in [0, 1]"),
        ("train.objective", "srum_advantag", 'did you mean "srum_advantage"?'),
        ("train.micro_batches", 3, "must be a multiple of train.micro_batches = 3"),
        ("train.optim.b2", 1.0, "train.optim.b2 must be below 1, got 1.0"),
        ("train.keep", 0, "train.keep must be above 0"),
        ("autoencoder.rows", 2, 'unknown key "autoencoder.rows"'),
        (
            "autoencoder.ema",
            2.0,
            "ema = 2.0: autoencoder.ema is gone: it is always 0.999; srum_jax/",
        ),
        ("autoencoder.optim.b2", 0.5, "autoencoder.optim.b2 is gone: it is always 0.99"),
        ("train.lanes.gen", 0, "train.lanes.gen must be above 0"),
        ("train.text_dropout", -0.1, "train.text_dropout must lie in [0, 1]"),
        ("generate.candidates", 1, 'train.objective = "srum_advantage" compares the candidates'),
        ("train.candidates", 9, "train.candidates = 9 is more than generate.candidates = 8"),
        (
            "train.candidates",
            1,
            'train.candidates = 1: train.objective = "srum_advantage" compares',
        ),
        ("train.rewards", "global", "train.rewards = 'global' is not known: known: both, image"),
        ("train.min_gain", -0.1, "train.min_gain must not be negative"),
        ("train.min_gain", 2.0, "train.min_gain must be below 2"),
        ("train.min_score", 0.5, "train.min_score = 0.5 bars the best candidates"),
        ("train.min_score", -1.5, "train.min_score must lie in [-1, 1]"),
        ("train.nft_beta", 0.0, "train.nft_beta must be above 0"),
        ("train.repulsion_cap", -1.0, "train.repulsion_cap must not be negative"),
        ("train.max_drift", -1.0, "train.max_drift must not be negative"),
        ("train.monitor.prompts", -1, "train.monitor.prompts must not be negative"),
        ("train.monitor.candidates", 1, "train.monitor.candidates must be at least 2, got 1"),
        ("train.monitor.every", 0, "train.monitor.every must be above 0"),
        ("train.monitor.patience", 0, "train.monitor.patience must be above 0"),
        ("train.monitor.min_score", -0.1, "train.monitor.min_score must not be negative"),
        ("train.monitor.min_diversity", 1.1, "train.monitor.min_diversity must lie in [0, 1]"),
        ("train.monitor.min_agreement", 1.1, "train.monitor.min_agreement must lie in [0, 1]"),
        ("generate.guidance", (2.0, -1.0), "generate.guidance[1] must not be negative"),
        ("generate.guidance", 2.0, "generate.guidance must be a tuple of any number of values"),
        (
            "generate.shard_size",
            100,
            "generate.shard_size = 100 must be a multiple of sample.batch = 64",
        ),
        ("train.steps", 10**20, "train.steps must be below 2147483648"),
        ("seed", 2**32, "seed must lie in [0, 4294967295]"),
        ("seed", -1, "seed must lie in [0, 4294967295]"),
        ("evaluate.seed", 2**63, "evaluate.seed must lie in [0, 4294967295]"),
        ("weights", "hf://a/b", "weights must be a path: 'hf://a/b' is an address"),
        ("score.boxes", "https://a/b.jsonl", "score.boxes must be a path"),
        ("generate.prompts", "https://a/p.txt", "generate.prompts: 'https://a/p.txt' is an addr"),
        ("score.external.url", "localhost:8000", "score.external.url must be http://host"),
        ("generate.prompts", "shapes:tets", 'did you mean "shapes:test"?'),
        ("generate.prompts", "prompts.doc", "must be shapes:train | shapes:validation"),
        ("score.proposers", ("grid", "box"), "score.proposers[1] = 'box' is not known"),
        ("score.proposers", (), "score.proposers must be distinct and at least 1"),
        ("score.proposers", ("grid", "grid"), "score.proposers must be distinct"),
        ("score.proposers", "grid", "score.proposers must be a tuple of any number of values"),
        ("sample.size", (32,), "sample.size must be a tuple of 2 values"),
        ("sample.size", (32, 0), "sample.size[1] must be above 0"),
        ("sample.guidance_interval", (0.6, 0.4), "sample.guidance_interval must be low <= high"),
        ("sample.guidance_interval", (0, 1.5), "sample.guidance_interval[1] must lie in [0, 1]"),
        ("sample.image_guidance", -1.0, "sample.image_guidance must not be negative"),
        ("sample.renorm", "bach", "sample.renorm = 'bach' is not known: did you mean \"batch\"?"),
        ("stages", ("train", "score"), "stages must be in this order"),
        ("stages", ("train", "train"), "stages must be distinct"),
        ("stages", (), "stages must be distinct and at least 1"),
        ("stages", ("trian",), "stages[0] = 'trian' is not known: did you mean \"train\"?"),
        ("mesh.tensor", 0, "mesh.tensor must be a number of devices or -1"),
        ("mesh.data", -1, "mesh may leave one axis to the rest"),
        ("model", "bagel_7b_mot", "weights must name the folder"),
        ("model", "cats", "model = 'cats' is not known: known: shapes, shapes64, shapes_janus"),
        ("model", "bagel", "model = 'bagel' is not known: did you mean \"bagel_7b_mot\"?"),
        ("evaluate.best_of", 1, "evaluate.best_of must be at least 2"),
        ("compute.remat", True, "compute.remat = True is not known: known: none, dots, full"),
        ("train.trainable", "lora", 'train.optim.optimizer = "muon" is for whole matrices'),
        ("train.lora.rank", 0, "train.lora.rank must be above 0"),
        ("train.lora.experts", "und", "train.lora.experts = 'und' is not known"),
        ("log.writers", ("wandb", "wandb"), "log.writers must be distinct"),
        ("log.writers", ("tensorbord",), 'did you mean "tensorboard"?'),
        ("log.profile", (3, -1), "log.profile[1] must not be negative"),
        ("compute.cpu_devices", -1, "compute.cpu_devices must not be negative"),
        ("compute.attention", "pallas", "compute.attention = 'pallas' is not known"),
        ("pretrain.multi_image_lanes.und", -5, "pretrain.multi_image_lanes.und is gone"),
        ("train.lanes.regions", -1, "train.lanes.regions must not be negative"),
    ],
)
def test_wrong_values_are_named(path, value, message):
    values = base.get_config().to_dict()
    values["train"] |= {"objective": "srum_advantage", "select": "all", "min_score": -1.0}
    *parents, key = path.split(".")
    section = values
    for parent in parents:
        section = section[parent]
    section[key] = value
    with pytest.raises(BadInput) as e:
        config.load(values)
    assert message in str(e.value)


def test_a_number_of_thousands_of_digits_is_refused_without_them():
    values = base.get_config().to_dict()
    values["train"] |= {"steps": 10**5000, "anchor": -(10**5000)}
    with pytest.raises(BadInput) as e:
        config.load(values)
    for key in ("steps", "anchor"):
        assert re.search(f"train.{key} must .*, got a number of thousands of digits", str(e.value))


def test_what_is_wrong_with_a_list_is_told_in_few_words():
    values = base.get_config().to_dict()
    values["stages"] = ["x" * 5000] * 50
    values["evaluate"]["suites"] = ["y" * 5000]
    with pytest.raises(BadInput) as e:
        config.load(values)
    assert "stages[2] = 'xxx" in str(e.value) and "stages[3]" not in str(e.value)
    assert "stages: 47 more of its values are wrong" in str(e.value)
    del values["stages"]
    with pytest.raises(BadInput, match="evaluate.suites: 'yyy.* is not known") as e:
        config.load(values | {"stages": ("generate",)})
    assert len(str(e.value)) - len(", ".join(registry.SUITES)) < 150  # which are all named


def test_all_problems_are_told_at_once():
    values = base.get_config().to_dict()
    del values["train"]["steps"]
    values["sed"] = 1
    with pytest.raises(
        BadInput, match='(?s)unknown key "sed": did you mean "seed".*train.steps is'
    ):
        config.load(values)


def test_candidates_may_be_single_without_groups():
    c = base.get_config()
    c.generate.candidates = 1
    c.train.select, c.train.min_score = "all", -1.0
    for objective in srum.OBJECTIVES:
        c.train.objective = objective
        if objective in srum.BY_ADVANTAGE:
            with pytest.raises(BadInput, match=f'train.objective = "{objective}" compares'):
                config.load(c)
        else:
            assert config.load(c).generate.candidates == 1
    c.train.objective = "sft"
    c.train.min_gain = 0.1
    with pytest.raises(BadInput, match="train.min_gain = 0.1 compares"):
        config.load(c)
    c.train.select = "best_of_k"
    with pytest.raises(BadInput, match='train.select = "best_of_k" compares'):
        config.load(c)


def test_the_papers_form_needs_something_that_bounds_it():
    c = base.get_config()
    c.train.objective, c.train.lambda_constraint = "srum_paper", 0.0
    c.train.anchor = 0.5
    assert config.load(c).train.anchor > 0
    c.train.anchor = 0.0
    with pytest.raises(BadInput, match='nothing bounds the repulsion of "srum_paper"'):
        config.load(c)


def test_section_hash_depends_on_its_sections_alone():
    c = base.get_config()
    first = config.load(c)
    c.train.optim.learning_rate *= 2
    second = config.load(c)
    assert config.section_hash(first, ["generate", "seed"]) == config.section_hash(
        second, ["seed", "generate"]
    )
    assert config.section_hash(first, ["train"]) != config.section_hash(second, ["train"])
    assert config.section_hash(first, ["train.lanes"]) == config.section_hash(
        second, ["train.lanes"]
    )
    # What no other stage reads is nobody else's change.
    for stage in (["generate", "sample"], ["score"], ["evaluate"], ["export", "train.trainable"]):
        assert config.section_hash(first, stage) == config.section_hash(second, stage)
    # Recorded in manifests: a change here would make every finished stage look changed.
    assert config.section_hash(first, ["seed", "mesh"]) == "70b41acd35c01c8e"


def test_a_base_is_made_for_shapes_alone():
    c = shapes_pretrain.get_config()
    c.model, c.weights = "bagel_7b_mot", "somewhere"
    with pytest.raises(BadInput, match="stages .*autoencoder.*pretrain.* make the base"):
        config.load(c)


def test_mesh_must_divide_the_batches():
    c = base.get_config()
    c.train.rows = 4
    cfg = config.load(c)
    config.check_mesh(cfg, {"data": 2, "fsdp": 2, "tensor": 8, "context": 1})
    with pytest.raises(BadInput, match="do not divide: evaluate.batch = 100 by 8, train.rows = 4"):
        config.check_mesh(cfg, {"data": 1, "fsdp": 8, "tensor": 1, "context": 1})


def test_what_hosts_do_alone_divides_over_their_own_devices():
    c = base.get_config()
    c.train.rows, c.train.micro_batches = 64, 2
    c.sample.batch, c.score.batch, c.evaluate.batch = 4, 8, 12
    whole, host = ({"data": 1, "fsdp": ways, "tensor": 1, "context": 1} for ways in (32, 4))
    config.check_mesh(config.load(c), whole, host)
    c.evaluate.batch = 6
    with pytest.raises(BadInput, match="divide: evaluate.batch = 6 by 4$"):
        config.check_mesh(config.load(c), whole, host)
    c.train.micro_batches, c.stages = 4, ("generate", "score", "train")
    with pytest.raises(BadInput, match="divide: train.rows = 64 by 128$"):
        config.check_mesh(config.load(c), whole, host)
    c.stages = ("report",)
    config.check_mesh(config.load(c), whole)


def test_context_must_divide_the_lanes():
    c = base.get_config()
    c.train.lanes.und, c.train.lanes.gen = 64, 36
    cfg = config.load(c)
    shape = {"data": 1, "fsdp": 1, "tensor": 1, "context": 4}
    config.check_mesh(cfg, shape)
    with pytest.raises(BadInput, match="train.lanes.gen = 36 does not divide by mesh.context = 8"):
        config.check_mesh(cfg, shape | {"context": 8})


def test_a_section_alone_is_checked_as_in_a_whole():
    values = base.get_config().sample.to_dict()
    found = config.section(config.SampleConfig, values, where="here")
    assert found == config.load(base.get_config()).sample
    for change, message in (
        ({"stesp": 1, "batch": 1.5}, '(?s)here: unknown key "stesp".*here: batch must be int'),
        (
            {"steps": 0, "renorm_min": 2.0},
            "(?s)here: steps must be.*here: renorm_min must",
        ),
        ({"guidance_interval": (0.6, 0.4)}, "here: guidance_interval must be low <= high"),
    ):
        with pytest.raises(BadInput, match=message):
            config.section(config.SampleConfig, values | change, where="here")
    del values["shift"]
    with pytest.raises(BadInput, match="here: shift is missing"):
        config.section(config.SampleConfig, values, where="here")
    optim = base.get_config().train.optim.to_dict()
    assert config.section(config.OptimConfig, optim, where="here").warmup == optim["warmup"]


def parse(*args):
    return config.parse(["main", *args], flags.FlagValues())


def test_command_line_overrides_the_file():
    cfg = parse(
        "--config",
        shapes.__file__,
        "--config.train.steps=7",
        "--config.score.proposers=('grid',)",
        "--config.train.optim.learning_rate=1e-3",
    )
    assert (cfg.train.steps, cfg.score.proposers) == (7, ("grid",))
    assert cfg.train.optim.learning_rate == 1e-3


@pytest.mark.parametrize(
    "args, message",
    [
        ([], "no config: give --config"),
        (["--config"], "no config: give --config"),
        (["--config=nowhere.py"], "--config nowhere.py: no such file"),
        (["--config=shaeps"], "--config shaeps: no such file and none of the package's: did you"),
        (["--config=my/shapes.py"], "no such file; the one in the package: --config shapes"),
        (["--config", shapes.__file__, "--config.train.stesp=7"], 'did you mean "steps"'),
        (["--config", shapes.__file__, "--config.k=4"], 'unknown key "k": known: model, weights'),
        (["--config=shapes", "--config.sede=4"], 'unknown key "sede": did you mean "seed"?'),
        (
            ["--config=shapes", "--config.candidates=4"],
            "did you mean generate.candidates or",
        ),
        (["--config=shapes", "--config.candidate=4"], "did you mean generate.candidates or"),
        (["--config=shapes", "--config.seed.x=4"], 'unknown key "seed.x"'),
        (["--config", shapes.__file__, "--config.train.steps=many"], "many"),
        (["--config", shapes.__file__, "--wrkdir=x"], "Unknown command line flag 'wrkdir'"),
        (["--config", shapes.__file__, "extra"], "not understood on the command line: extra"),
        (["--config.train.steps=7", "--config", shapes.__file__], "before a value for --config"),
    ],
)
def test_wrong_command_lines_are_told(args, message):
    with pytest.raises(BadInput) as e:
        parse(*args)
    assert message in str(e.value)


@pytest.mark.parametrize(
    "text, message",
    [
        ("def get_config(:", "does not run: SyntaxError"),
        ("import nowhere_at_all", "does not run: ModuleNotFoundError"),
        ("x = 1", "get_config"),
        ("def get_config(): return 3", "ConfigDict"),
    ],
)
def test_broken_config_files_are_told(tmp_path, text, message):
    path = tmp_path / "broken.py"
    path.write_text(text)
    with pytest.raises(BadInput) as e:
        parse("--config", str(path))
    assert message in str(e.value) and str(path) in str(e.value)


def test_a_fault_in_a_config_file_is_told_in_one_line(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(
        "from srum_jax.configs import base\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.train.steps = 'many'\n    return c\n"
    )
    with pytest.raises(BadInput) as e:
        parse("--config", str(path))
    told = str(e.value)
    assert f"{path}: line 5: TypeError: " in told and "'steps'" in told and len(told) < 300


@pytest.mark.parametrize("package", ["configs", "srum_jax.configs"])
def test_packaged_configs_are_found_by_name_from_any_folder(tmp_path, monkeypatch, package):
    mine = tmp_path / "mine.py"
    mine.write_text(
        f"from {package} import base\n\ndef get_config(steps):\n    c = base.get_config()\n"
        "    c.train.steps = int(steps)\n    return c\n"
    )
    monkeypatch.chdir(tmp_path)
    named, filed = (parse("--config", given) for given in ("shapes", shapes.__file__))
    assert named == filed == config.load(shapes.get_config())
    assert parse("--config=shapes", "--config=mine.py:7").train.steps == 7
    assert config.config_path(["main", "--config=shapes", "--config", "mine.py:7"]) == "mine.py:7"


def test_a_folder_configs_of_ones_own_may_be_beside_it(tmp_path, monkeypatch):
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/mine.py").write_text("steps = 9\n")
    (tmp_path / "run.py").write_text(
        "from configs import base, mine\n\ndef get_config():\n    c = base.get_config()\n"
        "    c.train.steps = mine.steps\n    return c\n"
    )
    for name in [name for name in sys.modules if name.split(".")[0] == "configs"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(p for p in sys.path if p not in ("", ROOT))])
    assert parse("--config", str(tmp_path / "run.py")).train.steps == 9
