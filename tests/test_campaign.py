"""A few faults of the campaign, over all stages of a run on the disk and of one in a bucket; and a
kill in each stage of one in a bucket."""

import signal

import campaign
import pytest
import test_hosts

FAULTS = 6


@pytest.mark.slow
@pytest.mark.parametrize("kinds", [campaign.ON_DISK, campaign.IN_BUCKET], ids=["disk", "bucket"])
def test_a_disturbed_run_ends_as_an_undisturbed_one(kinds, tmp_path, request):
    command = test_hosts.command(tmp_path, **test_hosts.QUICK)
    how = dict(faults=FAULTS, seed=2, kinds=kinds)
    if kinds == campaign.IN_BUCKET:
        how |= {"place": request.getfixturevalue("bucket"), "told": request.getfixturevalue("told")}
    found = list(campaign.campaign(command, tmp_path, **how))
    assert len(found) == FAULTS and {outcome.fault for outcome in found} <= set(kinds)


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_in_every_stage_in_a_bucket(processes, bucket, tmp_path):
    """It ends as an undisturbed run of as many processes on the disk did, bit for bit."""
    command = test_hosts.command(tmp_path, **test_hosts.QUICK)
    whole = campaign.Run(command, tmp_path / "whole", processes=processes)
    takes = whole.finish()
    run = campaign.Run(command, bucket, processes=processes)
    for stage in campaign.STAGES:
        where, code, _ = run.disturb("SIGKILL", stage, takes[stage] / 4, 0.0)
        assert (where, code) == (stage, -signal.SIGKILL)
        assert not (bucket / "round0" / stage / "manifest.json").exists()
    run.finish()
    campaign.assert_same_ends(whole.workdir, bucket)
