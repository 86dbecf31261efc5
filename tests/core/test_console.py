"""What is said while work runs; compiled programs are kept, by the command line and `api.load`."""

import re
import subprocess
import sys

import jax
import pytest

from srum_jax import api
from srum_jax.core import console


@pytest.fixture
def cache():
    """The folder that is set; put back after the test, with what is put there."""
    before = jax.config.jax_compilation_cache_dir
    least = jax.config.jax_persistent_cache_min_compile_time_secs
    yield before
    jax.config.update("jax_compilation_cache_dir", before)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", least)


def test_a_folder_that_a_program_has_set_stays(cache):
    console.cache_compiled_programs()
    assert jax.config.jax_compilation_cache_dir == cache


def test_loading_a_model_sets_one_in_the_users_cache(cache, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    jax.config.update("jax_compilation_cache_dir", None)
    with pytest.raises(ValueError, match="precision"):
        api.load(precision="float7")  # found wrong before anything is loaded
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "srum_jax" / "compiled")


SAYS = """
import sys
from absl import logging
from srum_jax.core import console
console.log_to_stderr(**{how})
make = logging.get_absl_logger().makeRecord
foreign = make("absl", 30, "/other/package.py", 1, "{foreign}", (), None)
logging.get_absl_handler().handle(foreign)
from srum_jax.core import preemption
record = make("absl", 20, preemption.__file__, 1, "ours", (), None)
if logging.get_absl_logger().isEnabledFor(20):
    logging.get_absl_handler().handle(record)
for _ in console.progress(range(3), desc="bar"):
    pass
"""


@pytest.mark.parametrize(
    "how, said",
    [({}, {"ours", "bar"}), ({"quiet": True}, set()), ({"debug": True}, {"ours", "bar", "theirs"})],
)
def test_progress_is_ours_and_can_be_left_out(how, said):
    code = SAYS.format(how=how, foreign="theirs")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert {word for word in ("ours", "bar", "theirs") if word in done.stderr} == said


BETWEEN = """
import sys
from absl import flags, logging
from srum_jax.core import console
flags.FLAGS.mark_as_parsed()
console.log_to_stderr()
record = logging.get_absl_logger().makeRecord("absl", 20, console.__file__, 1, "ours", (), None)
with console.progress(total=3, desc="bar", mininterval=0) as bar:
    bar.update()
    logging.get_absl_handler().handle(record)
"""


def test_a_line_of_the_log_is_no_part_of_a_bar():
    done = subprocess.run([sys.executable, "-c", BETWEEN], capture_output=True)
    assert done.returncode == 0, done.stderr
    (line,) = (line for line in re.split("[\r\n]", done.stderr.decode()) if "ours" in line)
    assert re.fullmatch(r"\d\d:\d\d:\d\d ours", line)
    assert b"Traceback" not in done.stderr  # of what is closed at the end


TWO_FAIL = """
import asyncio
from srum_jax.core import console
console.say_failures_once()

async def write(name):
    raise OSError(name)

async def both():
    first, _ = asyncio.create_task(write("first")), asyncio.create_task(write("second"))
    await first

try:
    asyncio.run(both())
except OSError as e:
    print(e)
"""


def test_of_writes_that_failed_together_one_is_told():
    done = subprocess.run([sys.executable, "-c", TWO_FAIL], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("first\n", "")


def test_counts_are_said_in_words():
    assert console.counted({"ok": 12, "unparsed": 3, "late": 0}) == "12 ok, 3 unparsed"
    assert console.counted({"ok": 0}) == console.counted({}) == "none"
