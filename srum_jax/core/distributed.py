"""Several processes as one run: how they find each other, wait for each other and agree.

A TPU pod, SLURM, Open MPI and a Kubernetes job or JobSet are found by JAX itself; anything else
says where its processes are. With one process everything here answers at once.
"""

import contextlib
import os
import sys
import threading
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec

from srum_jax.core import host_watch, preemption
from srum_jax.core.errors import BadInput, HostLost, Stopped

WAYS = """\
Ways to start several processes:
  a TPU pod: the same command with --distributed on every host
  SLURM: srun python -m srum_jax.main --distributed … (one task a GPU)
  Open MPI: mpirun python -m srum_jax.main --distributed …
  Kubernetes, a job or JobSet with a headless service: --distributed, and pip install "jax[k8s]"
  anywhere: --coordinator HOST:PORT --processes N --process I, with I from 0 to N-1; process 0
  listens on that port"""
TASKS = ("SLURM_STEP_NUM_TASKS", "OMPI_COMM_WORLD_SIZE")  # how many processes a launcher started


def join(
    limits: Any,
    *,
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins the other processes; call it before anything uses a device.

    coordinator: "HOST:PORT" of process 0 · processes: how many · process: this one's number, from
    0. All three, or none where the environment says it. `limits` has init_timeout,
    heartbeat_timeout and shutdown_timeout, in seconds. Raises BadInput for flags that do not fit
    together, and where nothing says where the others are. Where they do not come in time the
    process ends, with that exit code.
    """
    explicit = _checked(coordinator, processes, process)
    said = f"process {process} of {processes} at {coordinator}" if explicit else "as found"
    late = threading.Timer(limits.init_timeout, _give_up, [said, limits.init_timeout])
    late.daemon = True
    late.start()
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            # Who says it all gets what was said, also inside a job of a launcher.
            cluster_detection_method="deactivate" if explicit else None,
            initialization_timeout=limits.init_timeout + 60,  # `late` comes first
            heartbeat_timeout_seconds=limits.heartbeat_timeout,
            shutdown_timeout_seconds=limits.shutdown_timeout,
        )
    except Exception as e:  # every launcher's detection has its own
        reason = " ".join(str(e).split())
        raise BadInput(f"no other processes to join ({said}): {reason}\n{WAYS}") from e
    finally:
        late.cancel()
    host_watch.start(limits.heartbeat_timeout + 15)
    logging.info(
        "process %d of %d, with %d of %d devices",
        *(jax.process_index(), jax.process_count()),
        *(jax.local_device_count(), jax.device_count()),
    )


def warn_of_tasks() -> None:
    """Says so where a launcher started several processes, of which each would run for itself."""
    for name in TASKS:
        if (count := os.environ.get(name, "")).isdigit() and int(count) > 1:
            logging.warning(
                "%s=%s, and this process runs alone: --distributed makes one run of them all",
                *(name, count),
            )


def _give_up(said: str, seconds: int) -> None:
    """Ends the process with a message: the runtime, waiting in vain, would abort it without one."""
    print(
        f"error: not all processes came within distributed.init_timeout = {seconds} s ({said}). "
        f"Are all of them started, with one address, and can they reach process 0?\n{WAYS}",
        file=sys.stderr,
        flush=True,
    )
    os._exit(BadInput.exit_code)


def _checked(coordinator: str | None, processes: int | None, process: int | None) -> bool:
    """Whether the processes were named; raises BadInput where that is half done or wrong."""
    given = {"--coordinator": coordinator, "--processes": processes, "--process": process}
    missing = [flag for flag, value in given.items() if value is None]
    if len(missing) == len(given):
        return False
    if missing:
        raise BadInput(f"{' and '.join(missing)} missing: {', '.join(given)} go together")
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdigit() or "/" in host:
        raise BadInput(f"--coordinator {coordinator} must be HOST:PORT of process 0")
    if not 0 <= process < processes:
        raise BadInput(f"--process {process} must be one of 0 … --processes - 1 = {processes - 1}")
    return True


def barrier(label: str) -> None:
    """Returns when every process has come here; `label` tells places apart.

    Raises HostLost where another one is gone, Stopped where it has come to another place.
    """
    if len(set(all_gather(zlib.crc32(label.encode()), label))) > 1:
        raise Stopped(f"{label}: another process of this run is elsewhere; do all see one workdir?")


def all_gather(number: int, label: str) -> list[int]:
    """What each process gives for `number`, an unsigned 32-bit one, in the order of processes.

    All must call it. Raises HostLost where another one is gone.
    """
    if jax.process_count() == 1:
        return [number]
    try:
        found = multihost_utils.process_allgather(np.uint32(number))
    except (RuntimeError, ValueError) as e:  # the second: of Gloo, between CPUs
        raise HostLost(f"{label}: another process of this run is gone; its log says why") from e
    return found.tolist()


def from_first(text: str, label: str) -> str:
    """What the first process gives for `text`, in every process; all must call it.

    Raises HostLost where another one is gone.
    """
    if jax.process_count() == 1:
        return text
    own = np.frombuffer(text.encode(), np.uint8)
    length = all_gather(len(own), label)[0]
    given = np.zeros(length, np.uint8)
    if jax.process_index() == 0:
        given = own
    try:
        found = multihost_utils.broadcast_one_to_all(given)
    except (RuntimeError, ValueError) as e:  # the second: of Gloo, between CPUs
        raise HostLost(f"{label}: another process of this run is gone; its log says why") from e
    return np.asarray(found, np.uint8).tobytes().decode()


def any_process(flag: bool, label: str) -> bool:
    """Whether any process says so; all must call it, and get the same answer."""
    return any(all_gather(int(flag), label))


def agreeing() -> contextlib.AbstractContextManager[None]:
    """Inside, a wish to stop is seen by all processes at the same call of `preemption.check`: for
    work that they do together, and check equally often."""
    if jax.process_count() == 1:
        return contextlib.nullcontext()
    return preemption.agreeing(lambda: any_process(preemption.stop.is_set(), "stop?"))


def check_same(text: str, what: str) -> None:
    """Raises BadInput, in every process, where they do not all have the same `text`."""
    if len(set(all_gather(zlib.crc32(text.encode()), what))) > 1:
        raise BadInput(f"the processes of this run have different {what}: start all of them alike")


class StopAgreement:
    """An event that may be set in any process, as all of them see it: alike at the same call.

    One process sees it at once; several see it one call late, so that none of them waits for the
    step that is running: what is asked before a step is read before the next.
    """

    def __init__(self, event: threading.Event, at: jax.sharding.Sharding):
        self.event, self.at = event, at  # at: a sharding over all devices
        self.asked: jax.Array | None = None

    def __call__(self) -> bool:
        """Whether it was set; every process must ask equally often."""
        if jax.process_count() == 1:
            return self.event.is_set()
        before, self.asked = self.asked, self._ask()
        return before is not None and bool(before)

    def _ask(self) -> jax.Array:
        mesh = self.at.mesh
        flags = jax.make_array_from_callback(
            (mesh.size,),
            NamedSharding(mesh, PartitionSpec(mesh.axis_names)),
            lambda index: np.full(1, self.event.is_set()),
        )
        return _any(flags)


@jax.jit
def _any(flags: jax.Array) -> jax.Array:
    return jnp.any(flags)
