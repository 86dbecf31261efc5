"""The world of stand-ins that every test of a launcher runs in."""

import pytest
import stand_ins


@pytest.fixture
def world(tmp_path):
    return stand_ins.World(tmp_path)
