"""Stage output beyond the 1000 MiB a split at which TFDS's own writer asks for TensorFlow."""

import os
import pathlib
import shutil
import subprocess
import sys
import textwrap

import pytest

ROOT = pathlib.Path(__file__).parents[2]
RECORDS, UNIT = 1300, 100  # of 1 MiB each
MIN_BYTES = 1.1 * 2**30


@pytest.mark.slow
def test_more_than_a_gibibyte_is_written_and_read_without_tensorflow(tmp_path):
    """In a fresh process, where there is no TensorFlow."""
    if shutil.disk_usage(tmp_path).free < 2 * MIN_BYTES:
        pytest.skip("needs 2.2 GiB of free disk")
    code = f"""
    import sys

    class Absent:  # as on a machine without it; None in sys.modules would count as loaded
        def __init__(self, finder):
            self.finder = finder

        def __getattr__(self, name):
            return getattr(self.finder, name)

        def find_spec(self, name, *rest):
            if name.split(".")[0] == "tensorflow":
                return None
            return self.finder.find_spec(name, *rest)

    sys.meta_path[:] = map(Absent, sys.meta_path)
    import numpy as np
    from srum_jax.data import images, shards

    folder, sizes = sys.argv[1], shards.shard_sizes({RECORDS}, {UNIT})
    features = shards.candidate_features((64, 64, 64))
    noise = np.random.default_rng(0).standard_normal(64**3, np.float32)  # does not compress
    picture = np.arange(8 * 8 * 3, dtype=np.uint8).reshape(8, 8, 3)

    def record(i):
        return {{
            "id": f"{{i}}-0",
            "prompt_id": i,
            "prompt": f"prompt {{i}}",
            "category": "",
            "k": 0,
            "seed": i,
            "image": images.encode_png(picture + np.uint8(i % 50)),
            "latent": np.roll(noise, i).reshape(64, 64, 64),
        }}

    for u, size in enumerate(sizes):
        rows = [record(i) for i in range(u * {UNIT}, u * {UNIT} + size)]
        assert shards.write_shard(folder, "candidates", features, rows, u, len(sizes)) == size
    shards.finish(folder, "candidates", features, sizes)
    found = shards.read(folder)
    assert len(found) == {RECORDS} and found.counts == tuple(sizes)
    for i, row in enumerate(found):
        assert (row["id"], row["prompt_id"]) == (f"{{i}}-0", i)
        np.testing.assert_array_equal(row["latent"].ravel(), np.roll(noise, i))
        np.testing.assert_array_equal(row["image"], picture + np.uint8(i % 50))
    assert "tensorflow" not in sys.modules
    try:
        import tensorflow
    except ImportError:
        sys.exit(0)
    sys.exit("TensorFlow was there")
    """
    try:
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code), str(tmp_path / "shards")],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        files = [p for p in (tmp_path / "shards").iterdir() if ".array_record-" in p.name]
        assert len(files) == RECORDS // UNIT
        assert sum(os.path.getsize(p) for p in files) > MIN_BYTES
    finally:
        shutil.rmtree(tmp_path / "shards", ignore_errors=True)
