"""What all tests share: eight fake CPU devices, quick compilation and a cache of it, strict
broadcasting."""

import contextlib
import gc
import os
import pathlib
import sys
import tempfile
import types
import uuid
from importlib import metadata

os.environ["JAX_PLATFORMS"] = "cpu"
# Most of the time goes into compiling programs that run a few times; 0: as users compile them.
quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1") == "1"
older = metadata.version("jaxlib").startswith("0.10.")
os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        # One thread compiles a program: the other core has a test of its own.
        "--xla_cpu_parallel_codegen_split_count=1",
        # Of loops that XLA's emitters of fusions write LLVM makes twice as much work. Later
        # versions have nothing else, and end at a flag that they don't know.
        *(["--xla_cpu_use_fusion_emitters=false"] if quick and older else []),
    ]
)
# Tracing makes millions of objects that live on; looking through them for garbage finds none.
gc.set_threshold(200_000, 20, 20)

import jax  # noqa: E402  (after the flags above: they are read when jax starts)
import pytest  # noqa: E402
from etils import epath  # noqa: E402

if sys.prefix != sys.base_prefix:
    cache = pathlib.Path(sys.prefix) / "jax_cache"
else:
    cache = pathlib.Path(tempfile.gettempdir()) / "srum_jax_test_cache"
jax.config.update("jax_compilation_cache_dir", str(cache))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
jax.config.update("jax_numpy_rank_promotion", "raise")
assert jax.device_count() == 8  # starts the devices: configs that ask for fewer change nothing here


MAPPED = 25_000  # of the 65,530 regions of memory that Linux lets a process map by default


@pytest.fixture(scope="module", autouse=True)
def few_programs():
    """Forgets compiled programs where there are many: each holds regions of memory, and XLA ends
    the process where Linux grants no more."""
    yield
    maps = pathlib.Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > MAPPED:
        jax.clear_caches()
        gc.collect()


def pytest_report_header():
    """Which golden cases there are, and which folders beside them are none."""
    import golden_cases

    cases, others = golden_cases.found()
    return [
        f"golden cases: {', '.join(c.name for c in cases)}",
        f"not a case: {', '.join(others) or 'none'}",
    ]


@pytest.fixture(scope="session")
def told(tmp_path_factory):
    """The file that tells the emulator to fail; see `buckets.fail`."""
    return tmp_path_factory.mktemp("storage") / "fails.json"


@pytest.fixture(scope="session")
def storage(told):
    """The address of a Google Cloud Storage emulator; one for all, as gcsfs keeps the first."""
    import buckets

    with buckets.emulator(told=told) as address:
        yield address


@pytest.fixture
def bucket(storage):
    """A folder of a test's own in a bucket, "gs://…"."""
    return epath.Path(f"gs://runs/{uuid.uuid4().hex}")


@pytest.fixture
def gone(told, bucket, monkeypatch):
    """The block in which the storage answers every request, or those alone with a part in their
    address, with an error of this number."""
    import buckets
    from gcsfs import retry

    # What it waits between two tries, at most: none is to be waited for.
    monkeypatch.setattr(retry, "random", types.SimpleNamespace(random=lambda: -64.0))

    @contextlib.contextmanager
    def answers(number, only=""):
        buckets.fail(told, str(number), 600.0, only)
        try:
            yield
        finally:
            told.unlink()

    return answers
