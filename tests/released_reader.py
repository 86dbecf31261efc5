"""What the released reader makes of `vlm_rewards`, for its goldens (`regional_reward_dataset.py`).

It takes more than the package's reader does: numeric strings, boxes of other kinds, which it skips,
and scores beyond [-1, 1].
"""

import numpy as np

from srum_jax.data.srum_dataset import GLOBAL_ENTRY


def _box(raw):
    """Whole pixels, or None where the box is skipped."""
    if not isinstance(raw, list | tuple) or len(raw) != 4:
        return None
    try:
        x0, y0, x1, y1 = (max(-(2**24), min(2**24, int(value))) for value in raw)
    except (TypeError, ValueError):
        return None
    return [x0, y0, x1, y1] if x0 < x1 and y0 < y1 else None


def regions(entries):
    """(boxes float32 [R,4], scores float64 [R], valid bool [R]) of an image's entries."""
    entries = [one for one in entries or () if one["object"] != GLOBAL_ENTRY]
    boxes = [_box(one.get("bbox")) for one in entries]
    return (
        np.array([box or [0] * 4 for box in boxes], np.float32).reshape(-1, 4),
        np.array([one.get("score", 0.0) for one in entries], np.float64),
        np.array([box is not None for box in boxes], bool),
    )


def image_score(entries):
    """That of the whole image, 0 if there is none."""
    found = [one.get("score", 0.0) for one in entries if one["object"] == GLOBAL_ENTRY]
    return found[-1] if found else 0.0
