"""How much memory this process has held."""

import pathlib
import re
import resource
import sys

_STATUS = pathlib.Path("/proc/self/status")


def peak() -> int:
    """The most bytes of memory that this process has held at once.

    Linux's own count of the process (VmHWM, proc(5)) where there is one: `getrusage` begins with
    what the process that started this one held.
    """
    if _STATUS.exists() and (found := re.search(r"VmHWM:\s+(\d+) kB", _STATUS.read_text())):
        return int(found[1]) * 2**10
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # KiB, on macOS bytes
    return held * (1 if sys.platform == "darwin" else 2**10)
