"""The command line as real processes on fake CPU devices, for tests of several hosts and of kills.

`python tests/hosts.py FOLDER AFTER ARGS…` is `srum_jax.main ARGS…` that stands still, to be killed,
when AFTER shards have their name and the next one lies whole under its temporary one in a folder
named FOLDER.
"""

import os
import pathlib
import socket
import subprocess
import sys
import time

import jax
import numpy as np

TESTS = pathlib.Path(__file__).parent
PATIENCE = 600  # seconds, on a busy machine
LEVEL = 1  # of 255: what rounding may change in a picture
HERE = "stands still"  # the file it leaves in the work folder


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def environment(devices):
    """Of a process with so many fake devices, which shares the tests' compiled programs."""
    return os.environ | {
        "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}",
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
    }


def write_config(path, weights, **values):
    """A config file: tiny's config on `weights` with `values`."""
    made = f"tiny.config_dict({str(weights)!r}, **{values})"
    path.write_text(f"import tiny\n\ndef get_config():\n    return {made}\n")
    return path


def start(program, *, processes=1, devices=1, port=None, folders=None):
    """Starts `program` (what follows `python`) once or on several hosts; their outputs in files.

    folders: in which the processes work, one each.
    """
    more = [[]]
    if processes > 1:
        address = f"127.0.0.1:{port or free_port()}"
        shared = ["--coordinator", address, "--processes", str(processes)]
        more = [[*shared, "--process", str(i)] for i in range(processes)]
    return [
        subprocess.Popen(
            [sys.executable, *map(str, program), *own],
            cwd=folder,
            env=environment(devices),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own, folder in zip(more, folders or [None] * len(more), strict=True)
    ]


def ended(started, code=0, timeout=PATIENCE):
    """Waits for processes that must all end with `code`; returns what they printed."""
    printed, limit = [], time.monotonic() + timeout
    try:
        for process in started:
            printed.append(process.communicate(timeout=max(1, limit - time.monotonic()))[0])
    finally:
        kill(started)
    codes = [process.returncode for process in started]
    assert codes == [code] * len(started), (codes, *printed)
    return printed


def kill(started):
    for process in started:
        if process.poll() is None:
            process.kill()
            process.wait()


def wait_for(path, started, timeout=PATIENCE):
    """Returns when `path` exists and is not empty; the processes must live until then."""
    limit = time.monotonic() + timeout
    while not (path.exists() and path.stat().st_size):
        for process in started:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < limit, f"{path} did not appear"
        time.sleep(0.02)


def assert_same_records(one, other, exactly=False):
    """Of stages `generate` and `score` in two work folders; `exactly`: bit for bit."""
    from srum_jax.data import shards

    latent = score = dict(rtol=0, atol=1e-5)
    for stage in ("generate", "score"):
        pair = [shards.read(folder / "round0" / stage) for folder in (one, other)]
        assert len(pair[0]) == len(pair[1]) > 4
        if exactly:
            assert_same(*map(list, pair), where=stage)
            continue
        for a, b in zip(*pair, strict=True):
            assert a["id"] == b["id"] and a["k"] == b["k"]
            if stage == "generate":
                assert a["prompt"] == b["prompt"] and a["seed"] == b["seed"]
                levels = np.abs(a["image"].astype(int) - b["image"].astype(int))
                assert levels.max() <= LEVEL
                np.testing.assert_allclose(a["latent"], b["latent"], **latent)
            else:
                assert a["image_status"] == b["image_status"]
                np.testing.assert_allclose(a["image_score"], b["image_score"], **score)
                assert len(a["regions"]) == len(b["regions"])
                for p, q in zip(a["regions"], b["regions"], strict=True):
                    np.testing.assert_array_equal(p["bbox"], q["bbox"])
                    np.testing.assert_allclose(p["score"], q["score"], **score)


def assert_same(one, other, where):
    """Records, or what lies in them, bit for bit: every field, NaN and the sign of 0 too."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f"{where}, {key}")
    elif isinstance(one, list):
        assert len(one) == len(other), where
        for number, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f"{where}, {number}")
    elif isinstance(one, np.ndarray | np.generic):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), where
        assert one.tobytes() == other.tobytes(), where
    elif isinstance(one, float):
        assert one.hex() == other.hex(), where
    else:
        assert one == other, where


def main(folder, after, *args):
    """See the module."""
    from etils import epath

    from srum_jax import main
    from srum_jax.data import shard_file, shards

    count, written = shard_file.count, 0

    def counting(path):
        nonlocal written
        found = count(path)
        final = pathlib.Path(path).parents[1]
        if final.name == folder and pathlib.Path(path).parent.name.startswith(shards.UNFINISHED):
            if written == int(after):
                workdir = epath.Path(args[args.index("--workdir") + 1])
                (workdir / HERE).write_text(folder)
                time.sleep(1000)
            written += 1
        return found

    shard_file.count = counting
    sys.exit(main.main(["main", *args]))


if __name__ == "__main__":
    main(*sys.argv[1:])
