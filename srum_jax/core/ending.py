"""How an error ends a command: a line on stderr and an exit code, the same of every command."""

import sys

from absl import logging

from srum_jax.core import storage
from srum_jax.core.errors import Preempted, exit_code


def told(raised: Exception, *, debug: bool | None = None) -> tuple[Exception, int | None]:
    """Says on stderr what ended a command: the error that is told, and its exit code.

    None, and nothing is said, for a fault of the program: its traceback is to be seen. What a
    bucket's client raised is told as what it means (`core/storage.py`).

    debug: whether the command was given --debug, which logs the traceback; None where it has none.
    """
    if debug:
        logging.exception("traceback")
    error = storage.failure(raised) or raised
    code = exit_code(error)
    if isinstance(error, Preempted):
        print(f"{error}: the same command goes on from there", file=sys.stderr)
    elif code is not None:
        said = f"error: {error}"
        hint = ("\n" if "\n" in said else " ") + "(--debug shows where)"
        print(said + hint * (debug is False), file=sys.stderr)
    return error, code
