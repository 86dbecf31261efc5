"""One process of two that train the toy problem on one mesh, for test_hosts.py.

`python tests/two_trainers.py ADDRESS NUMBER FOLDER`: trains in FOLDER/forth until the second
process, and it alone, is told to stop in the middle; reads, as far as the second process can; then
goes on in FOLDER/back to the end.
"""

import os
import pathlib
import signal
import sys
import types


def read_in_part(folder, mesh):
    """What FOLDER/forth and a training monitor left, which the second process cannot read: the
    newest step and the one that was taken, and whether the first check was."""
    import jax
    import orbax.checkpoint as ocp
    import toy

    from srum_jax.core import digests, distributed, files
    from srum_jax.stages import monitor
    from srum_jax.training.checkpoint import Checkpoints

    checkpoints = Checkpoints(folder / "forth" / "checkpoints", keep=2)
    newest, restore = checkpoints.latest(), ocp.StandardCheckpointHandler.restore

    def restores(handler, path, **how):
        if f"/{newest}/" in f"{path}/":
            raise ValueError("it is gone")
        return restore(handler, path, **how)

    def reads(path):
        raise ValueError(f"{path}: it is gone")

    if jax.process_index() == 0:
        (checkpoints.folder / str(newest) / digests.FILE).unlink()
        (folder / monitor.FOLDER).mkdir()
        files.write_json(folder / monitor.FOLDER / monitor.ANSWERS, [])
    else:
        ocp.StandardCheckpointHandler.restore, monitor.read_json = restores, reads
    distributed.barrier("written")
    state, _, _ = toy.start(toy.loop_config(), mesh)
    taken = int(checkpoints.newest(state, lambda: state, steps=8).step)
    checkpoints.close()
    ocp.StandardCheckpointHandler.restore = restore
    monitor.sampled_images = lambda *_: []
    return newest, taken, monitor.first_check(folder)


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
    (folder / f"read-{number}").write_text(repr(read_in_part(folder, mesh)))
    toy.run(folder / "back", preemption.stop, batches=batches, mesh=mesh)


if __name__ == "__main__":
    main(*sys.argv[1:])
