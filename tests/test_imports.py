"""The house rules about imports, read from the source of every module of the package."""

import ast
import pathlib
import subprocess
import sys

import pytest

from srum_jax.core import registry

ROOT = pathlib.Path(__file__).parents[1]
PACKAGE = "srum_jax"
SOURCES = (PACKAGE, "tests", "benchmarks", "research")

# Layers from low to high. A module imports from its own area and from lower layers; areas of one
# layer do not know each other. The first pattern that fits decides.
LAYERS = [
    ["core", "configs", "config_history", "config_online", "config"],
    ["data.schema"],  # shapes of batches, sizes of layouts
    ["models.bagel.model_config"],
    ["data", "models"],
    ["flow"],
    ["generation"],
    ["rewards"],
    ["objectives", "training"],
    ["programs"],
    ["disk"],
    ["evals", "report"],
    ["stages", "planning"],
    ["worlds"],  # known to the floors below by `core.registry` alone, which imports nothing of them
    ["running", "scoring"],
    ["outputs", "devices"],
    ["inputs"],
    ["reading", "drawn_folder"],
    ["description"],
    ["use_options"],
    [
        "main",
        "use",
        "use_evaluate",
        "api",
        "serve",
        "serving",
        "cli",
        "doctor",
        "convert",
        "conversion",
        "export_dataset",
    ],
]
MAY_NOT = {  # beyond the layers
    "core": ["config", "configs", "config_history", "config_online"],
    "data": ["models"],
    "training": ["models", "rewards", "objectives"],
    "stages": ["planning"],
    "planning": ["stages"],
}
SIBLINGS = {
    ("config", "core"),
    ("config", "configs"),
    ("config", "config_history"),
    ("config", "config_online"),
    ("config_online", "configs"),
    ("configs", "core"),
    ("use", "api"),
    ("use", "use_evaluate"),
    ("use_evaluate", "api"),
    ("doctor", "api"),
    ("convert", "conversion"),
    ("serve", "serving"),
    ("serving", "api"),
    ("main", "api"),
    ("main", "use"),
}
JUDGE_SIDE = ["rewards", "training", "stages.score", "stages.train"]
EXAM_SIDE = ["evals", "worlds"]
ONLY_IN = {  # outside package -> the modules that may import it
    "orbax": ["training.checkpoint"],
    "grain": ["data"],
    "tensorflow_datasets": ["data", "worlds"],
    "array_record": ["data"],
    "ml_collections": ["config", "configs"],
    "huggingface_hub": ["core.hub"],
    "jinja2": ["report"],
    "av": ["data.video", "data.video_shown"],
    "pyarrow": ["data.parquet", "evals.official_tables"],
    "starlette": ["serving"],
    "uvicorn": ["serving"],
    "h11": ["serving"],
    "wandb": ["training.metrics"],
    "tensorboardX": ["training.metrics"],
    "tensorflow": [],
    "torch": [],
    "torchvision": [],
    "transformers": [],
    "clu": [],
}
LAZY = [
    *("grain", "tensorflow_datasets", "array_record", "ml_collections", "av", "pyarrow"),
    *("wandb", "tensorboardX", "huggingface_hub"),
]


def modules():
    """{name below the package: syntax tree} of every file."""
    out = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT / PACKAGE).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        out[name] = ast.parse(path.read_text(), filename=str(path))
    return out


MODULES = modules()


def imports(tree, known, *, top_only=False):
    """Absolute names imported; `from a import b` gives a.b where that is a module, else a."""
    inside = set()
    if top_only:
        for node in ast.walk(tree):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
                inside |= {id(n) for n in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in inside:
            continue
        if isinstance(node, ast.Import):
            yield from (a.name for a in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            for a in node.names:
                full = f"{node.module}.{a.name}"
                yield full if full.removeprefix(PACKAGE + ".") in known else node.module


def within(name, area):
    return name == area or name.startswith(area + ".")


def own(name, known=None):
    """The modules of the package that module `name` imports, by their name below the package."""
    known = MODULES if known is None else known
    names = set(imports(known[name], known))
    return {n.removeprefix(PACKAGE + ".") for n in names if n.startswith(PACKAGE + ".")}


def area_of(name):
    """(layer, area) by the longest area that holds `name`."""
    found = [(i, a) for i, areas in enumerate(LAYERS) for a in areas if within(name, a)]
    assert found, f"{name} belongs to no layer: add it to LAYERS and to the design"
    return max(found, key=lambda x: len(x[1]))


def violations(known):
    for name in known:
        if not name:
            continue
        layer, area = area_of(name)
        for other in own(name, known):
            other_layer, other_area = area_of(other)
            allowed = (
                other_area == area
                or other_layer < layer
                or (other_layer == layer and (area, other_area) in SIBLINGS)
            )
            forbidden = any(within(other, f) for f in MAY_NOT.get(area, []))
            if not allowed or forbidden:
                yield f"{name} imports {other}"


def test_imports_run_one_way():
    assert list(violations(MODULES)) == []


@pytest.mark.parametrize(
    "name, source",
    [
        ("core.x", "import srum_jax.config"),
        ("models.x", "from srum_jax.data import images"),
        ("training.x", "from srum_jax.objectives import srum"),
        ("training.x", "def f():\n    from srum_jax.models import bagel"),
        ("rewards.x", "import srum_jax.evals.sections"),
        ("stages.x", "from srum_jax.worlds.shapes import verifier"),
        ("evals.x", "def f():\n    import srum_jax.worlds.shapes.verifier"),
        ("flow", "from srum_jax.generation.image_sampler import sample"),
    ],
)
def test_the_rule_itself_catches(name, source):
    targets = """config data.images objectives.srum models.bagel.model evals.sections
        generation.image_sampler worlds.shapes.verifier"""
    known = {t: ast.parse("") for t in targets.split()} | {name: ast.parse(source)}
    assert len(list(violations(known))) == 1


def test_models_see_the_schema_alone():
    known = {"data.schema": ast.parse(""), "models.x": ast.parse("import srum_jax.data.schema")}
    assert list(violations(known)) == []


def reachable(start):
    """{every module that `start` imports, itself included: the module that it was found by}."""
    came_from, queue = {start: None}, [start]
    while queue:
        name = queue.pop()
        for other in own(name) & MODULES.keys():
            if other not in came_from:
                came_from[other] = name
                queue.append(other)
    return came_from


def judge_side():
    return [name for name in MODULES if any(within(name, area) for area in JUDGE_SIDE)]


def test_the_judge_never_peeks():
    """Not even through a chain of imports."""
    for start in judge_side():
        came_from = reachable(start)
        for name in came_from:
            chain = [name]
            while came_from[chain[-1]]:
                chain.append(came_from[chain[-1]])
            peeks = any(within(name, area) for area in EXAM_SIDE)
            assert not peeks, " <- ".join(chain)


def loaded_tables(tree):
    """The tables that a module passes to `registry.load`, as its source names them; "?" where the
    function is taken by itself."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module == f"{PACKAGE}.core.registry":
            found |= {"?" for a in node.names if a.name in ("load", "*")}
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("registry.load"):
            found.add(ast.unparse(node.args[0]) if node.args else "?")
    return found


def test_the_judge_loads_no_exam_by_name():
    """The registry would be a door in the wall: the judge's side does not import it, and what it
    imports opens tables of words alone."""
    for start in judge_side():
        assert "core.registry" not in own(start), start
        tables = set().union(*(loaded_tables(MODULES[name]) for name in reachable(start)))
        assert tables <= {"registry.LANGUAGES"}, (start, tables)


def test_loading_by_name_is_seen():
    def tables(source):
        return loaded_tables(ast.parse(source))

    assert tables("from srum_jax.core.registry import load") == {"?"}
    assert tables("def f():\n    registry.load(registry.SUITES, 'a')") == {"registry.SUITES"}
    assert tables("from srum_jax.core import registry\nregistry.WORLDS") == set()


def test_the_registry_names_what_is_there():
    for table in (registry.WORLDS, registry.PRESETS, registry.SUITES, registry.LANGUAGES):
        for name in table.values():
            assert name.removeprefix(f"{PACKAGE}.") in MODULES
    for name in registry.WORLDS:
        stages = registry.load(registry.WORLDS, name).STAGES.values()
        assert {stage.removeprefix(f"{PACKAGE}.") for stage in stages} <= MODULES.keys()
    for name in registry.PRESETS:
        assert name in registry.load(registry.PRESETS, name).PRESETS


KNOW_WORLDS = ["worlds", "core.registry", "configs"]  # themselves, the table, and defaults of runs


def worlds_named(tree):
    """What literals of a module name of worlds: one, its prompts or its modules; prose may."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            for world, module in registry.WORLDS.items():
                inside = module in node.value or module.removeprefix(f"{PACKAGE}.") in node.value
                if inside or node.value.partition(":")[0] == world:
                    yield f"{node.lineno}: {node.value!r}"


def test_worlds_are_known_to_the_table_alone():
    wrong = {
        name: found
        for name, tree in MODULES.items()
        if not any(within(name, place) for place in KNOW_WORLDS)
        if (found := list(worlds_named(tree)) + [n for n in own(name) if within(n, "worlds")])
    }
    assert wrong == {}


@pytest.mark.parametrize(
    "source", ["x = 'shapes'", "f('shapes:test')", "y = {'a': 'srum_jax.worlds.shapes.pretrain'}"]
)
def test_naming_a_world_is_seen(source):
    assert len(list(worlds_named(ast.parse(source)))) == 1
    assert list(worlds_named(ast.parse("'srum run --config shapes'\nshapes = a.shapes"))) == []


NAME_SIZES = {  # outside `models/`: who names BagelConfig, and why; the others need LayoutSizes
    "generation.bagel": "the family: reads the sizes of a folder",
    "generation.context": "runs the model: fills caches",
    "generation.denoising": "runs the model",
    "generation.image_codec": "runs the autoencoder",
    "generation.stochastic": "runs the model",
    "generation.image_sampler": "runs the model",
    "generation.text_generator": "runs the model",
    "generation.answer_scorer": "runs the model",
    "objectives.srum": "makes the loss of a model",
    "objectives.terms": "runs the model: the forward pass of every objective",
    "stages.loading": "loads a model and hands its sizes to its samplers",
    "planning.lowering": "compiles the programs of models that are not there",
    "planning.workload": "counts what a model's programs compute",
    "api": "loads and runs a model for people",
    "description": "says what a model's folder holds",
    "generation.text_rows": "runs the model",
    "generation.drawing_rows": "runs the model",
    "conversion": "reads a model in one layout and writes it in another",
    "worlds.shapes.autoencoder": "trains the autoencoder of a model",
}


def names(tree, what):
    """Whether a module's code names `what`; prose may."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and what in {a.name for a in node.names}:
            return True
        if what in (getattr(node, "id", None), getattr(node, "attr", None)):
            return True
    return False


def test_few_name_the_sizes_of_a_model():
    """The list neither grows unseen nor keeps who needs it no more."""
    found = {n for n, tree in MODULES.items() if names(tree, "BagelConfig")}
    assert {n for n in found if not within(n, "models")} == NAME_SIZES.keys()


@pytest.mark.parametrize(
    "source",
    [
        "from srum_jax.models.bagel.model_config import BagelConfig as Sizes",
        "def f(sizes: model_config.BagelConfig): ...",
    ],
)
def test_naming_the_sizes_is_seen(source):
    assert names(ast.parse(source), "BagelConfig")
    assert not names(ast.parse("'BagelConfig'\nmodel_config.from_folder(x)"), "BagelConfig")


JANUS_ITSELF = ["models.janus", "generation.janus", "planning.janus", "worlds.shapes.janus"]
NAME_JANUS = {  # outside its own modules: who names it, and why; nobody asks whether it is one
    "core.registry": "the tables of presets and worlds",
    "generation.families": "the table of families",
    "objectives.autoregressive": "its objectives",
    "models.decoder_layer": "the type of its sizes: a layer that both families have",
    "configs.janus_pro_1b": "its config",
    "configs.janus_pro_7b": "its config",
    "configs.shapes_janus": "its config",
    "configs.shapes_janus_pretrain": "its config",
    "convert": "the name of the original's layout, a choice of a flag",
    "worlds.shapes.setting": "the world's settings by name",
}


def names_janus(tree):
    """Whether a module's code imports one of Janus's modules or holds a text with its name."""
    prose = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    texts = (
        node.value.lower()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    )
    imported = (n.removeprefix(PACKAGE + ".") for n in imports(tree, MODULES))
    return any(within(n, area) for n in imported for area in JANUS_ITSELF) or any(
        name in text for text in texts for name in ("janus", "multi_modality")
    )


def test_few_know_that_there_is_a_janus():
    found = {n for n, tree in MODULES.items() if names_janus(tree)}
    outside = {n for n in found if not any(within(n, area) for area in JANUS_ITSELF)}
    assert outside == NAME_JANUS.keys()


@pytest.mark.parametrize(
    "source",
    [
        "from srum_jax.models.janus.model_config import JanusConfig",
        "from srum_jax.generation import janus",
        "x = family.__name__.endswith('janus')",
        "x = kind == 'multi_modality'",
    ],
)
def test_naming_janus_is_seen(source):
    assert names_janus(ast.parse(source))
    assert not names_janus(ast.parse("'as Janus does'\nfamilies.find(folder)"))


def test_outside_packages_stay_in_their_places():
    wrong = [
        f"{name} imports {package}"
        for name, tree in MODULES.items()
        for package in {n.split(".")[0] for n in imports(tree, MODULES)} & ONLY_IN.keys()
        if not any(within(name, place) for place in ONLY_IN[package])
    ]
    assert wrong == []


def test_packages_a_machine_may_lack_are_imported_lazily():
    wrong = [
        f"{name} imports {package} on import"
        for name, tree in MODULES.items()
        for package in {n.split(".")[0] for n in imports(tree, MODULES, top_only=True)}
        if package in LAZY
    ]
    assert wrong == []


@pytest.mark.slow
def test_everything_imports_without_them():
    names = sorted(f"{PACKAGE}.{name}".rstrip(".") for name in MODULES)
    missing = ["grain", "tensorflow_datasets", "array_record", "ml_collections", "pyarrow"]
    missing += ["tensorflow"]
    code = (
        f"import sys, importlib\nfor m in {missing + ['torch']!r}: sys.modules[m] = None\n"
        f"for m in {names!r}: importlib.import_module(m)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def test_one_place_makes_meshes():
    makers = ("make_mesh", "Mesh", "create_device_mesh")
    wrong = [
        f"{name}:{node.lineno}"
        for name, tree in MODULES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        and ast.unparse(node.func).split(".")[-1] in makers
        and not ast.unparse(node.func).startswith("sharding.")
        and name != "core.sharding"
    ]
    assert wrong == []


def test_files_are_short_and_named_for_what_they_hold():
    for path in (p for top in SOURCES for p in (ROOT / top).rglob("*.py")):
        assert path.read_text().count("\n") <= 500, f"{path} is over 500 lines"
        assert path.name not in ("utils.py", "helpers.py", "misc.py", "common.py")


def test_every_file_says_what_it_owns():
    for name, tree in MODULES.items():
        assert ast.get_docstring(tree) or not tree.body, f"{name} has no docstring"
