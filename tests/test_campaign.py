"""The fault campaign in small: two runs on a disk and two in a bucket, disturbed in every stage."""

import subprocess
import sys

import campaign
import hosts
import pytest


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--bucket"]], ids=["disk", "bucket"])
def test_the_end_is_that_of_an_undisturbed_run(tmp_path, more):
    command = [sys.executable, campaign.__file__, tmp_path, "--faults", "12", *more]
    done = subprocess.run(command, env=hosts.environment(1), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n| ") == 12
