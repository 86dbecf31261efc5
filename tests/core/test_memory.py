"""The peak of a process is its own: neither what started it nor what is given back hides it."""

import os
import pathlib
import subprocess
import sys

import numpy as np
import peak_memory
import pytest

ROOT = pathlib.Path(__file__).parents[2]
MIB = 2**20
PROGRAM = f"""
import numpy as np
from srum_jax.core import memory

before = memory.peak()
np.ones(100 * {MIB}, np.uint8)
print(before, memory.peak())
"""
linux = pytest.mark.skipif(not os.path.exists("/proc/self/clear_refs"), reason="only Linux says so")


@linux
def test_a_process_begins_with_nothing():
    """However much the one that starts it holds."""
    held = np.ones(400 * MIB, np.uint8)
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", PROGRAM]
    said = subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout
    before, after = map(int, said.split())
    assert before < held.nbytes // 2 and 90 * MIB < after - before < 110 * MIB


@linux
def test_a_call_is_measured_after_a_larger_one():
    np.ones(400 * MIB, np.uint8)
    made, size = peak_memory.grown(lambda: np.ones(100 * MIB, np.uint8)[:1].copy())
    assert made == 1 and 90 * MIB < size < 110 * MIB
