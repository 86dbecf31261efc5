"""What is set up around all work: logs on stderr, compiled programs that are kept."""

import contextlib
import logging as std_logging
import os
import pathlib
import sys

from absl import logging


def log_to_stderr() -> None:
    """Our own progress and everybody's warnings; other packages' chatter is left out."""
    package = str(pathlib.Path(__file__).parents[1])
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda r: r.levelno > std_logging.INFO or r.pathname.startswith(package))
    handler.python_handler.stream = sys.stderr
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)


def cache_compiled_programs() -> None:
    """Compiled programs are kept between runs, so that a restart does not compile again.

    In `JAX_COMPILATION_CACHE_DIR` (a folder or bucket), else in srum_jax/compiled of the user's
    cache folder. What a program has set itself stays.
    """
    import jax  # what a command line says of itself needs no jax

    if jax.config.jax_compilation_cache_dir:
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    jax.config.update("jax_compilation_cache_dir", os.path.join(base, "srum_jax", "compiled"))
    if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def say_everything() -> None:
    """What the terminal has no letters for is printed by its numbers, instead of an error."""
    if hasattr(sys.stdout, "reconfigure"):  # the tests' is none of the system's
        sys.stdout.reconfigure(errors="backslashreplace")


def close_stdout() -> None:
    """Nobody takes what is printed: what is left of it goes nowhere, at the end too."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
