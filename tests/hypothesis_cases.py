"""Properties tried on many cases: how many, the same ones every time, and what a reader may do.

    @hypothesis_cases.counts(quick=1000)
    def test_any_bytes_are_read_or_refused(cases):
        def check(data):
            hypothesis_cases.value_or_refusal(lambda: read(data), names="a.json")

        hypothesis_cases.run(check, cases, data=strategies.binary())

`make test` tries `quick` of them, `make test-all` LARGE of a reader of what comes from outside, and
MANY of a function of texts and numbers that are already read.
"""

import gc
import pathlib
import time
from collections.abc import Callable
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies

from srum_jax.core.errors import BadInput

LARGE, MANY = 100_000, 10_000
PART = 2000  # cases that hypothesis remembers together: 30 MB a thousand
REFUSALS = (ValueError, BadInput, FileNotFoundError)  # themselves: what inherits escaped a library
MAX_SECONDS = 1.0  # of processor time that one case may take, however loaded the machine is
MAX_MESSAGE = 2000  # characters of a refusal


def plain(*samples: Any) -> strategies.SearchStrategy:
    """JSON values without parts, and `samples`: those that a reader may stumble over."""
    return (
        strategies.none()
        | strategies.booleans()
        | strategies.integers()
        | strategies.floats()
        | strategies.text(max_size=8)
        | strategies.sampled_from(samples)
    )


def counts(quick: int, slow: int = LARGE) -> pytest.MarkDecorator:
    """Gives a test the argument `cases`: `quick`, and as a slow test `slow`."""
    return pytest.mark.parametrize("cases", [quick, pytest.param(slow, marks=pytest.mark.slow)])


def run(check: Callable[..., None], cases: int, **given: Any) -> None:
    """Calls `check` with `cases` draws of strategies; a failure shows the smallest found.

    In parts, each of a seed of its own: what hypothesis remembers of a part grows with its cases.
    """
    for part, first in enumerate(range(0, cases, PART)):
        settings = hypothesis.settings(
            max_examples=min(PART, cases - first),
            database=None,
            deadline=None,  # by the clock: a loaded machine would fail it
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        hypothesis.seed(part)(settings(hypothesis.given(**given)(check)))()
        gc.collect()


def write(path: pathlib.Path, data: bytes | str) -> None:
    """Writes a case's file anew: one that is cut to nothing and filled again is put on the disk at
    once by ext4, which takes 30 times as long."""
    path.unlink(missing_ok=True)
    path.write_bytes(data.encode() if isinstance(data, str) else data)


def value_or_refusal(read: Callable[[], Any], *, names: str = "") -> Any:
    """What `read` gives, or None where it refuses with a short message that has `names` in it.

    Any other exception goes through; a case that takes long fails.
    """
    gc.disable()  # going through all that hypothesis remembers may take a second, whoever reads
    start = time.process_time()
    try:
        return read()
    except Exception as e:
        if type(e) not in REFUSALS:
            raise
        assert names in str(e), f"{e} does not name {names}"
        assert len(str(e)) <= MAX_MESSAGE, f"{len(str(e))} characters: {str(e)[:200]} …"
        return None
    finally:
        seconds = time.process_time() - start
        gc.enable()
        assert seconds < MAX_SECONDS, "it takes longer than a second"
