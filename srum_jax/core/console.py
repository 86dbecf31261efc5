"""What is set up around all work: logs and progress on stderr, compiled programs that are kept."""

import contextlib
import dataclasses
import logging as std_logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import logging
from tqdm import tqdm

from srum_jax.core import time_left

NO_PROGRESS = "TQDM_DISABLE"  # tqdm's own name; it looks at it only when it is imported
IN_A_FILE = 10.0  # seconds between two lines of a progress bar that no terminal shows


def log_to_stderr(*, quiet: bool = False, debug: bool = False) -> None:
    """Our own messages and everybody's errors; with `quiet` our warnings alone and no progress,
    with `debug` other packages' warnings too."""
    package = str(pathlib.Path(__file__).parents[1])
    least = std_logging.WARNING if debug else std_logging.ERROR
    if not debug:
        say_failures_once()
    handler = logging.get_absl_handler()
    handler.setFormatter(std_logging.Formatter("%(asctime)s %(message)s", datefmt="%H:%M:%S"))
    handler.addFilter(lambda r: r.levelno >= least or r.pathname.startswith(package))
    handler.python_handler.stream = _BesideBars()
    logging.use_absl_handler()
    logging.set_verbosity(logging.WARNING if quiet else logging.INFO)
    if quiet:
        os.environ[NO_PROGRESS] = "1"


def say_failures_once() -> None:
    """Leaves out what packages that read and write storage log at length, or print from threads of
    their own, of a failure that they then raise."""
    for name in ("gcsfs", "asyncio"):  # asyncio's: the second of several writes that failed
        std_logging.getLogger(name).setLevel(std_logging.CRITICAL)
    logging.get_absl_logger().addFilter(_no_traceback_of_orbax)
    if not isinstance(sys.unraisablehook, _ButClosedLoops):
        sys.unraisablehook = _ButClosedLoops(sys.unraisablehook)


def _no_traceback_of_orbax(record: std_logging.LogRecord) -> bool:
    return not (record.exc_info and "orbax" in pathlib.Path(record.pathname).parts)


@dataclasses.dataclass(frozen=True)
class _ButClosedLoops:
    """Says what nobody can catch, as `hook` does; but not what TensorStore's threads meet after a
    failed write: they call back into the event loop that the failure has ended."""

    hook: Callable[[Any], None]

    def __call__(self, told: Any) -> None:
        if told.object is not None or str(told.exc_value) != "Event loop is closed":
            self.hook(told)


class _BesideBars:
    """stderr for lines of the log: each begins on a line of its own, whatever bars are shown."""

    def write(self, text: str) -> None:
        with tqdm.external_write_mode(file=sys.stderr):
            sys.stderr.write(text)

    def flush(self) -> None:
        sys.stderr.flush()

    def close(self) -> None:  # asked for when the process ends
        self.flush()


def counted(counts: Mapping[str, int]) -> str:
    """Counts in words, as in "12 ok, 3 unparsed"; what there is none of is left out."""
    return ", ".join(f"{count} {name}" for name, count in counts.items() if count) or "none"


class ProgressBar(tqdm):
    """A progress bar with the time left, and behind it that of the run. The bar that bears the name
    of the stage is taken for the whole of it."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """tqdm's, which it writes the bar from."""
        shown, run = super().format_dict, time_left.of_run()
        if run and run.ahead:
            own = _seconds_left(shown) if self.desc == run.stage else None
            said = run.said(own, brief=True)
            shown["postfix"] = ", ".join(filter(None, (shown["postfix"], f"in all: {said}")))
        return shown


def _seconds_left(bar: dict[str, Any]) -> float | None:
    """Of a bar's `format_dict`; None where nothing was measured yet."""
    done = bar["n"] - bar["initial"]
    rate = bar["rate"] or (done / bar["elapsed"] if bar["elapsed"] else 0.0)
    return (bar["total"] - bar["n"]) / rate if bar["total"] and done and rate else None


def progress(things: Iterable | None = None, *, shown: bool = True, **how: Any) -> ProgressBar:
    """A progress bar on stderr; `how` is what tqdm takes.

    Not shown with `shown` False, or where TQDM_DISABLE is set.
    """
    between = 0.1 if sys.stderr.isatty() else IN_A_FILE
    hidden = not shown or bool(os.environ.get(NO_PROGRESS))
    return ProgressBar(
        things, **{"mininterval": between, "dynamic_ncols": True, "disable": hidden} | how
    )


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
