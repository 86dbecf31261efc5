"""The ways a run ends that are not success, each with its exit code; `main.py` alone exits.

Code below raises ValueError or FileNotFoundError for bad input where no more needs to be said: both
end with code 2 and their message.
"""


class Stopped(Exception):
    """A run that ends before its work is done. The message is for the person who started it."""

    exit_code = 1


class BadInput(Stopped, ValueError):
    """A file, field or flag is missing or wrong; nothing was overwritten."""

    exit_code = 2


class DoesNotFit(Stopped):
    """The plan needs more memory or devices than there are."""

    exit_code = 3


class Diverged(Stopped):
    """Training met non-finite or exploding numbers more often than the config allows."""

    exit_code = 4


class Preempted(Stopped):
    """Told to stop, and stopped after a clean save: the same command goes on from there."""

    exit_code = 75
