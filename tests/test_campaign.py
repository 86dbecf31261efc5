"""A few faults of the campaign, over all stages of a run on the disk and of one in a bucket."""

import buckets
import campaign
import pytest
import test_hosts

FAULTS = 6


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [campaign.ON_DISK, campaign.IN_BUCKET], ids=["disk", "bucket"])
def test_a_disturbed_run_ends_as_an_undisturbed_one(kinds, tmp_path):
    command = test_hosts.command(tmp_path, **test_hosts.QUICK)
    how = dict(faults=FAULTS, seed=2, kinds=kinds)
    if kinds == campaign.ON_DISK:
        found = list(campaign.campaign(command, tmp_path, **how))
    else:
        told = tmp_path / "fails.json"
        with buckets.emulator(told=told):
            place = "gs://runs/campaign"
            found = list(campaign.campaign(command, tmp_path, **how, place=place, told=told))
    assert len(found) == FAULTS and {outcome.fault for outcome in found} <= set(kinds)
