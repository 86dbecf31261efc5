"""The ways a run ends that are not success, each with its exit code (`core/ending.py`).

Code below raises ValueError or FileNotFoundError for bad input where no more needs to be said: both
end with code 2 and their message, and so does an OSError of a place that cannot be written.
"""

import errno
import os
import reprlib
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")


def listed(problems: Sequence[str], most: int = 100) -> str:
    """Each problem on an indented line of its own; what is beyond `most` is counted."""
    more = len(problems) - most
    lines = [*problems[:most], *([f"... and {more} more"] if more > 0 else [])]
    return "".join(f"\n  {line}" for line in lines)


def quoted(value: Any, most: int = 80) -> str:
    """A text in quotes, or another value as Python writes it, as messages show it: in one line, its
    middle left out where it is long."""
    try:
        return clipped(repr(value) if isinstance(value, str) else reprlib.repr(value), most)
    except ValueError:  # Python's limit of digits
        return "a number of thousands of digits"


def clipped(text: str, most: int = 80) -> str:
    """`text`, its middle left out where it is long."""
    return text if len(text) <= most else f"{text[: most - 20]} … {text[-10:]}"


def in_a_line(error: BaseException, most: int = 200) -> str:
    """What an error says, in one line, its middle left out where it is long: those of other
    packages hold pages and tracebacks. Its type where it says nothing."""
    return clipped(" ".join(str(error).split()) or type(error).__name__, most)


class Stopped(Exception):
    """A run that ends before its work is done. The message is for the person who started it."""

    exit_code = 1


class BadInput(Stopped, ValueError):
    """A file, field or flag is missing or wrong; nothing was overwritten."""

    exit_code = 2


class StorageRefuses(BadInput):
    """The storage of a bucket wants a permission or credentials that this user lacks."""


class Damaged(BadInput):
    """Files that a run wrote are not as they were; without `path` it makes them again."""

    def __init__(self, path: os.PathLike, what: str):
        super().__init__(f"{os.fspath(path)}: damaged, {what}")
        self.path = path


class DoesNotFit(Stopped):
    """The plan needs more memory or devices than there are."""

    exit_code = 3


class Diverged(Stopped):
    """Training met non-finite or exploding numbers more often than the config allows."""

    exit_code = 4


class HostLost(Stopped):
    """Another process of the run is gone: the same command goes on from the last save."""

    exit_code = 69


class StorageLost(Stopped):
    """The storage of a bucket gives no answer: the same command goes on from the last save."""

    exit_code = 69


class FileLost(Stopped):
    """A file of the run was damaged and is removed: the same command makes it again.

    Launchers give that a bounded number of times, as a disk may damage it anew each time.
    """

    exit_code = 69


class Interrupted(Stopped):
    """Whoever watched the work told it to stop; nothing of what was under way is kept."""

    exit_code = 130


class Preempted(Stopped):
    """Told to stop, and stopped after a clean save: the same command goes on from there."""

    exit_code = 75


# What a person has to mend where something is read or written: no restart does.
OF_PLACES = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.ENAMETOOLONG, errno.ELOOP),
    *(errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM),
)
_OF_NAMES = (
    *(FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError),
)


def exit_code(error: BaseException) -> int | None:
    """The code a run ends with; None for a fault of the program, whose traceback is to be seen."""
    if isinstance(error, Stopped):
        return error.exit_code
    bad = isinstance(error, (ValueError, *_OF_NAMES))
    bad = bad or isinstance(error, OSError) and error.errno in OF_PLACES
    return BadInput.exit_code if bad else None


def tried(problems: list[str], read: Callable[..., T], *args: Any) -> T | None:
    """What `read(*args)` gives; where its input is bad None, and its lines go to `problems`."""
    try:
        return read(*args)
    except (OSError, ValueError) as e:
        if exit_code(e) != BadInput.exit_code:  # a bucket that is gone
            raise
        problems.extend(str(e).splitlines())
        return None
