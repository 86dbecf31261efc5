"""What judges say of replies is kept in shards of their own, whatever the judge is called."""

import dataclasses

import numpy as np
import pytest

from srum_jax.evals.suite import EditRequest, JudgeReply, JudgeRequest, Replies, Requests, Suite
from srum_jax.stages import replies


class Edits(Suite):
    """A suite that asks one question about each edit."""

    name = "edits"

    def judge_requests(self, requests, replies):
        return [JudgeRequest(r.id, "c", (), f"right, {r.id}?") for r in requests.edits]


@dataclasses.dataclass
class Judge:
    """Counts what it is asked; what it has no words for it refuses."""

    name: str
    asked: int = 0

    def ask(self, requests):
        self.asked += len(requests)
        return [JudgeReply(r.text) if r.id != "b" else JudgeReply("", "refused") for r in requests]


@pytest.mark.parametrize("name", ["self-judge", "Qwen/Qwen2.5-VL-7B: v1", "--"])
def test_a_judge_is_asked_once(tmp_path, name):
    picture = np.zeros((4, 4, 3), np.uint8)
    requests = Requests(edits=[EditRequest(id, "c", picture, "do", 0) for id in ("a", "b")])
    judge, said = Judge(name), Replies(edits=[picture] * 2)
    folder = replies.epath.Path(tmp_path)
    for _ in range(2):
        found = replies.judged(Edits(), requests, said, folder, [judge], title="model")
        assert list(found.judged) == [name]
        assert list(found.judged[name]) == [JudgeReply("right, a?"), JudgeReply("", "refused")]
    assert judge.asked == 2
