"""Peak memory: of a call in this process; of loading and saving a synthetic checkpoint on eight
devices, a program of its own.

`python tests/peak_memory.py FOLDER LAYERS HIDDEN SAVES` writes a sparse checkpoint into FOLDER,
loads it with fsdp = 8, saves it if SAVES is 1, and prints bytes as JSON. `measure` runs it.
"""

import json
import math
import os
import pathlib
import subprocess
import sys
import types

from srum_jax.core import memory

ROOT = pathlib.Path(__file__).parents[1]


def grown(work):
    """(what `work` gives, bytes by which this process grew meanwhile, at the most).

    Linux forgets earlier peaks where it is asked to (/proc/self/clear_refs, proc(5)); elsewhere
    what stays below them is not seen.
    """
    forget = pathlib.Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")
    before = memory.peak()
    return work(), memory.peak() - before


def measure(folder, *, layers, hidden, saves=False):
    """{"arrays", "shard", "load", "save"} in bytes; the last two are by how much the process grew
    meanwhile, at the most, "shard" is the largest shard of a leaf."""
    flags = "--xla_force_host_platform_device_count=8"
    env = os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, __file__, str(folder), str(layers), str(hidden), str(int(saves))]
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def main(folder, layers, hidden, saves):
    import dataclasses

    import jax
    import numpy as np

    from srum_jax.core import param_tree, registry, sharding
    from srum_jax.models import safetensors_io
    from srum_jax.models.bagel import hf, model_config, vae
    from srum_jax.models.bagel import model as bagel
    from srum_jax.models.bagel.model_config import LLMConfig

    llm = LLMConfig(hidden, layers, heads=16, kv_heads=8, ffn=4 * hidden, vocab=16 * hidden)
    cfg = dataclasses.replace(model_config.from_folder(registry.base_folder("shapes")), llm=llm)
    folder.mkdir()
    for name, content in model_config.to_json(cfg).items():
        (folder / name).write_text(json.dumps(content))
    marks = {}  # tensor -> its first number; everything else is a hole in the file
    for file, entries in hf.table(cfg).items():
        kind = "BF16" if file == hf.MODEL_FILE else "F32"
        size = safetensors_io.DTYPES[kind].itemsize
        header, end = {}, 0
        for entry in entries:
            start, end = end, end + math.prod(entry.shape) * size
            header[entry.name] = {
                "dtype": kind,
                "shape": entry.shape,
                "data_offsets": [start, end],
            }
        text = json.dumps(header).encode()
        with (folder / file).open("wb") as out:
            out.write(len(text).to_bytes(8, "little") + text)
            for i, entry in enumerate(entries):
                marks[entry.path, entry.layer] = i % 128
                out.seek(8 + len(text) + header[entry.name]["data_offsets"][0])
                out.write(np.array(i % 128, safetensors_io.DTYPES[kind]).tobytes())
            out.truncate(8 + len(text) + end)
    sizes = types.SimpleNamespace(data=1, fsdp=8, tensor=1, context=1)
    mesh = sharding.make_mesh(sizes)
    specs = (bagel.specs(cfg), vae.specs(cfg.vae))
    shardings = tuple(sharding.shardings(s, mesh) for s in specs)
    jax.block_until_ready(jax.device_put(np.ones(8), sharding.batch_sharding(mesh)))

    how = dict(dtype=jax.numpy.bfloat16, shardings=shardings)
    trees, size = grown(lambda: jax.block_until_ready(hf.load(folder, cfg, **how)))
    leaves = [s.data for x in jax.tree.leaves(trees) for s in x.addressable_shards]
    out = {
        "load": size,
        "arrays": sum(x.nbytes for x in leaves),
        "shard": max(x.nbytes for x in leaves),
    }
    for tree, file in zip(trees, hf.table(cfg).values(), strict=True):
        flat = param_tree.flatten(tree)
        for entry in file[:: max(len(file) // 40, 1)]:
            leaf = flat[entry.path] if entry.layer is None else flat[entry.path][entry.layer]
            first = float(leaf[(0,) * leaf.ndim])
            assert first == marks[entry.path, entry.layer], entry
    if saves:
        _, out["save"] = grown(lambda: hf.save(folder / "out", cfg, *trees))
    print(json.dumps(out))


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:5]))
