"""One process of two that train the toy problem on one mesh, for test_hosts.py.

`python tests/two_trainers.py ADDRESS NUMBER FOLDER`: trains in FOLDER/forth until the second
process, and it alone, is told to stop in the middle; then goes on in FOLDER/back to the end.
"""

import os
import pathlib
import signal
import sys
import types


def main(address, number, folder):
    from srum_jax.core import distributed, host_watch, preemption

    limits = types.SimpleNamespace(init_timeout=120, heartbeat_timeout=60, shutdown_timeout=60)
    distributed.join(limits, coordinator=address, processes=2, process=int(number))

    import jax
    import toy

    from srum_jax.config import MeshConfig
    from srum_jax.core import sharding
    from srum_jax.core.errors import Preempted
    from srum_jax.data import pipeline

    preemption.install()
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2, context=1))
    at = sharding.batch_sharding(mesh)

    def make(step):
        rows = [row % toy.ROWS for row in pipeline.local_rows(step, toy.ROWS, at)]
        return {name: values[rows] for name, values in toy.batch(step).items()}

    def batches(start, stop_at=None):
        for step, batch in enumerate(pipeline.batches(make, at, start=start, stop=8), start):
            if step == stop_at and jax.process_index() == 1:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    folder = pathlib.Path(folder)
    try:
        how = dict(batches=lambda start: batches(start, stop_at=3), mesh=mesh)
        toy.run(folder / "forth", preemption.stop, **how)
    except Preempted as e:
        (folder / f"stopped-{number}").write_text(str(e))
    host_watch.finished()  # what was told is not read again
    preemption.stop.clear()
    toy.run(folder / "back", preemption.stop, batches=batches, mesh=mesh)


if __name__ == "__main__":
    main(*sys.argv[1:])
