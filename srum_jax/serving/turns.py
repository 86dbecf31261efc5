"""Which kind of work has the device next.

Kinds take turns by the seconds that they have had, so that a short answer does not wait for an
image, nor images for many answers. One that comes back after a pause has no claim on the past, but
a few steps before the others.
"""

from collections.abc import Mapping

from srum_jax.serving.lanes import Lane
from srum_jax.serving.work import Work


class Turns:
    """lanes: of each kind of work, by its name."""

    def __init__(self, lanes: Mapping[str, Lane]):
        self.lanes = lanes

    def busy(self) -> list[Lane]:
        """Those that have anything to do."""
        return [lane for lane in self.lanes.values() if lane.busy]

    def take(self, work: Work) -> None:
        """Work that came in: it waits in its lane."""
        lane = self.lanes[work.lane]
        others = [one for one in self.busy() if one is not lane]
        if not lane.busy and others:
            # So much before the others: a short answer is written in one go.
            ahead = 2 * max(one.last for one in others)
            lane.spent = max(lane.spent, min(one.spent for one in others) - ahead)
        lane.waiting.append(work)

    def next(self) -> Lane | None:
        """Whose turn it is; None: there is nothing to do."""
        return min(self.busy(), key=lambda lane: lane.spent, default=None)
