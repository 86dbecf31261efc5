"""One process of two that share a mesh: loads a folder's shards and saves them, for test_hf.py.

`python tests/two_processes.py ADDRESS NUMBER FOLDER TARGET` prints the bytes it read as the last
line.
"""

import os
import sys
import types


def main(address, number, folder, target):
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=4"
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(address, num_processes=2, process_id=int(number))
    import samples

    from srum_jax.core import sharding
    from srum_jax.models import safetensors_io
    from srum_jax.models.bagel import hf, vae
    from srum_jax.models.bagel import model as bagel

    seen, rows = [], safetensors_io.rows

    def spy(*args, **kwargs):
        for first, block in rows(*args, **kwargs):
            seen.append(block.nbytes)
            yield first, block

    safetensors_io.rows = spy
    mesh = sharding.make_mesh(types.SimpleNamespace(data=1, fsdp=2, tensor=4, context=1))
    specs = (bagel.specs(samples.CFG), vae.specs(samples.CFG.vae))
    sharding.RULES |= {"kv_heads": (), "heads": (), "vit_heads": ()}  # too few for four devices
    shardings = tuple(sharding.shardings(s, mesh) for s in specs)
    trees = hf.load(folder, samples.CFG, shardings=shardings)
    assert not trees[0]["embed"].is_fully_addressable
    hf.save(target, samples.CFG, *trees, "float32")
    print(sum(seen))


if __name__ == "__main__":
    main(*sys.argv[1:])
