"""One writer a folder: a file there that says who works in it, and whose heartbeat says it lives.

Works in local folders and buckets. No two clocks are compared: a holder is alive if its process is
(where that can be seen), else if its heartbeat moves while one looks on for `STALE` seconds.
"""

import contextlib
import dataclasses
import fcntl
import json
import os
import pathlib
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from absl import logging
from etils import epath

from srum_jax.core import files
from srum_jax.core.errors import BadInput, Stopped, in_a_line

FILE = "run.lock"
BEAT = 10.0  # seconds between heartbeats
STALE = 60.0  # seconds: a heartbeat that stands still for so long is a dead holder's
SETTLE = 2.0  # seconds: in a bucket the last of several writers wins; they look again after this


@dataclasses.dataclass(frozen=True)
class Holder:
    """Who works in a folder, as the lock file says.

    machine: of its boot and process namespace ("" unknown) · started: when `process` began, in that
    boot's ticks ("" unknown) · token: of this holding alone · since, beat: seconds since 1970 by
    its own clock.
    """

    host: str
    machine: str
    process: int
    started: str
    token: str
    since: float
    beat: float

    @classmethod
    def here(cls) -> "Holder":
        """This process, beginning to hold."""
        pid, now = os.getpid(), time.time()
        return cls(socket.gethostname(), _machine(), pid, _started(pid), uuid.uuid4().hex, now, now)

    def alive(self) -> bool | None:
        """Whether its process runs; None where that cannot be seen from here."""
        if not self.machine or self.machine != _machine():
            return None
        return _started(self.process) == self.started


@contextlib.contextmanager
def held(folder: epath.PathLike) -> Iterator[None]:
    """The folder, made if it is not there, is this holder's alone until the end of the block.

    A dead holder's folder is taken over: at once where its process is seen to be gone, else after
    STALE seconds. Raises BadInput, naming the holder, where another one works there. Ends the
    process where another one took the folder over meanwhile: this one stood still for too long.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    path, holder, ended = folder / FILE, Holder.here(), threading.Event()
    with _one_at_a_time(folder):
        found = _read(path)
        if found is not None and _works(path, found):
            raise _refusal(folder, found)
        _write(path, holder)
    if files.is_remote(path):
        time.sleep(SETTLE)
        if (found := _read(path)) is not None and found.token != holder.token:
            raise _refusal(folder, found)
    beats = threading.Thread(target=_beat, args=(path, holder, ended), daemon=True)
    beats.start()
    try:
        yield
    finally:
        ended.set()
        beats.join()
        _release(path, holder)


def _refusal(folder: epath.Path, holder: Holder) -> BadInput:
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(holder.since))
    return BadInput(
        f"{folder} is in use by process {holder.process} on {holder.host} since {since}: wait for "
        "its end, stop it, or name another folder"
    )


def _works(path: epath.Path, holder: Holder) -> bool:
    """Whether the holder of the lock file is at work; waits where it must look on."""
    alive = holder.alive()
    if alive is None:
        who = f"process {holder.process} on {holder.host}"
        logging.info("%s: looking for up to %.0f s whether %s still works", path, STALE, who)
        limit = time.monotonic() + STALE
        while (found := _read(path)) == holder and time.monotonic() < limit:
            time.sleep(BEAT / 10)
        alive = found is not None and found != holder
    if not alive:
        logging.warning(
            "%s: taken over from process %d on %s, which is gone",
            *(path, holder.process, holder.host),
        )
    return alive


@contextlib.contextmanager
def _one_at_a_time(folder: epath.Path) -> Iterator[None]:
    """Of the processes of this host that look into a local folder, one does at a time."""
    if files.is_remote(folder):
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # not every shared file system can
            fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def _beat(path: epath.Path, holder: Holder, ended: threading.Event) -> None:
    """Moves the heartbeat until `ended`."""
    while not ended.wait(BEAT):
        try:
            found = _read(path)
            if found is None or found.token == holder.token:
                _write(path, dataclasses.replace(holder, beat=time.time()))
                continue
        except Exception as e:  # each storage has its own; the next beat may do better
            logging.warning("%s: no heartbeat (%s)", path, in_a_line(e))
            continue
        by = f"process {found.process} on {found.host}"
        print(f"error: {path.parent} was taken over by {by}; this run ends", file=sys.stderr)
        sys.stderr.flush()
        os._exit(Stopped.exit_code)  # whatever it would still write is the other one's


def _release(path: epath.Path, holder: Holder) -> None:
    """Removes the lock file. Where that fails, what the block did or raised counts all the same:
    the next run takes over what stays."""
    try:
        if (found := _read(path)) is not None and found.token == holder.token:
            path.unlink(missing_ok=True)
    except Exception as e:  # each storage has its own
        logging.warning("%s: not removed (%s)", path, in_a_line(e))


def _read(path: epath.Path) -> Holder | None:
    """What the lock file says; None where it is missing or says nothing."""
    try:
        return Holder(**json.loads(path.read_bytes()))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _write(path: epath.Path, holder: Holder) -> None:
    files.write_text(path, json.dumps(dataclasses.asdict(holder)) + "\n")


def _machine() -> str:
    """This boot of this machine and this process namespace; "" where the system does not say."""
    try:
        boot = pathlib.Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process of this machine began, in ticks since its boot; "" if it has ended."""
    try:
        stat = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return ""
    state, *fields = stat.rpartition(")")[2].split()  # from the third; the second may hold spaces
    return "" if state in "ZX" else fields[18]
