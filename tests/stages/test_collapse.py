"""A run that stops drawing unlike pictures is named, and one that goes well is not."""

import json
import logging

import numpy as np
import pytest

from srum_jax.stages import collapse
from srum_jax.training import metrics


def rows(*entropies, **more):
    return [
        {"step": i + 1, "entropy": value, **{name: several[i] for name, several in more.items()}}
        for i, value in enumerate(entropies)
    ]


def gaps(*values):
    """Rows whose cross-entropies are apart by these; None: no prompt was without its words."""
    return [
        {"step": i + 1, "ce": 2.0, "ce_wordless": 0.0 if gap is None else 2.0 + gap}
        for i, gap in enumerate(values)
    ]


def test_entropy_far_below_that_of_the_start_is_named():
    found = collapse.signs(rows(1.1, 0.9, 0.5, 0.2), 0.3)
    assert found == {
        "entropy": "the entropy of drawn tokens fell from 1.1 to 0.2 nats: drawings grow alike, or "
        "are learned by heart"
    }
    assert collapse.signs(rows(1.1, 0.9, 0.2, 0.4), 0.3) == {}  # it came back
    assert collapse.signs(rows(1.1, 0.2), 0.1) == {}
    assert collapse.signs(rows(1.1, 0.0) + gaps(*8 * [1.0], *8 * [-1.0]), 0.0) == {}


@pytest.mark.parametrize("others", [[], [{"step": 9, "loss": 0.1}], rows("nan", "nan")])
def test_a_run_without_these_metrics_has_no_sign(others):
    assert collapse.signs(others, 0.3) == {}


def test_a_gap_that_vanishes_is_named_where_it_is_no_chance():
    wide, none = [0.5, 0.6, 0.4, 0.5], [0.0, 0.1, -0.1, 0.0]
    assert "from 0.5 to 0 nats" in collapse.signs(gaps(*wide, *none), 0.3)["gap"]
    spaced = [gap for one in (*wide, *none) for gap in (None, one)]
    assert "gap" in collapse.signs(gaps(*spaced), 0.3)  # steps without such prompts do not count
    assert collapse.signs(gaps(*wide, *wide), 0.3) == {}
    assert collapse.signs(gaps(*wide, *none[:3]), 0.3) == {}  # too few
    assert collapse.signs(gaps(2.0, -1.0, 1.0, -1.0, *none), 0.3) == {}  # was there a gap?
    assert collapse.signs(gaps(*wide, 2.0, -2.0, 1.5, -1.4), 0.3) == {}  # is there none?


def test_chance_alone_is_seldom_named():
    """Of 300 runs in which nothing happens, drawings as unlike as those of a small model."""
    rng = np.random.default_rng(0)
    runs = [gaps(*rng.normal(0.5, 0.4, 40)) for _ in range(300)]
    assert sum(bool(collapse.signs(run, 0.3)) for run in runs) <= 3


def test_it_is_said_once_and_not_again_by_a_run_that_goes_on(tmp_path, caplog):
    path = tmp_path / "metrics.jsonl"

    def written(values, start):
        watch = collapse.Watch(path, start, 0.3)
        sinks = [watch]
        log = metrics.Writer(path, steps=9, start=start, title="train", silent=False, sinks=sinks)
        for row in rows(*values)[start:]:
            log.write(row)
        log.close()
        return [r.message for r in caplog.records if r.levelno == logging.WARNING]

    (said,) = written([1.0, 0.8, 0.2, 0.1], 0)
    assert said.startswith("train: at step 3 the entropy of drawn tokens fell from 1 to 0.2 nats")
    assert len(written([1.0, 0.8, 0.2, 0.1, 0.1], 4)) == 1  # it was said
    # A run that goes on from before it says it again, by the first step of the first run.
    assert len(written([9.0, 9.0, 0.25], 2)) == 2
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
