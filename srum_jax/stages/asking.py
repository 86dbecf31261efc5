"""Models put to suites by the stage `adjust`, each for what is to be known of it and no more.

Owns the folders of replies: of a model `<suite>/<model>/`, and in it one for each scale of guidance
for what guidance changes. What is found there is not asked for again.
"""

import dataclasses
import functools
from collections.abc import Collection, Sequence

import jax
from etils import epath

from srum_jax.config import Config
from srum_jax.core.errors import BadInput, quoted
from srum_jax.evals.suite import Metric, ModelOutputs, Requests, Suite
from srum_jax.evals.suite_judges import SuiteJudge
from srum_jax.stages import replies
from srum_jax.stages.loading import LoadedModel

MODEL = "trained"  # as which every model is asked here, so that all are asked the same
# Fields of `Requests` whose replies guidance changes, and the others.
_OF_GUIDANCE, _OF_WEIGHTS = ("images", "edits", "scored"), ("answers", "texts")
_EVERY = _OF_GUIDANCE + _OF_WEIGHTS


@dataclasses.dataclass(frozen=True)
class Asking:
    """Puts models to suites; what was replied before is kept in `folder`.

    cfg: its `evaluate` section says what is asked · base: the judge "self" of all models · panel:
    judges of the suites that ask any.
    """

    cfg: Config
    mesh: jax.sharding.Mesh
    folder: epath.Path
    base: LoadedModel

    @functools.cached_property
    def panel(self) -> dict[str, SuiteJudge]:
        """Judges by their names in `evaluate.judges`; made when a suite wants one."""
        names = self.cfg.evaluate.judges
        return {name: replies.suite_judge(name, self.base, self.cfg, self.mesh) for name in names}

    def outputs(
        self,
        suite: Suite,
        requests: Requests,
        place: str,
        loaded: LoadedModel,
        guidance: float,
        *,
        judged: bool = True,
    ) -> ModelOutputs:
        """Replies and verdicts of a model that draws with `guidance`; those that guidance changes
        lie in a folder of their own in `place`. judged: whether judges are asked if the suite has
        questions for them."""
        sample = dataclasses.replace(self.cfg.sample, guidance=guidance)
        cfg = dataclasses.replace(self.cfg, sample=sample)
        asked = replies.model_under_test(loaded, cfg, self.mesh)
        how = dict(title=f"adjust, {place}")
        drawn, said = (only(requests, kinds) for kinds in (_OF_GUIDANCE, _OF_WEIGHTS))
        folder = self.folder / place
        guided = folder / f"guidance-{guidance:g}"
        found = replies.replies(
            drawn, guided, loaded, asked, cfg, self.mesh, judge=self.base, **how
        )
        words = replies.replies(said, folder, loaded, asked, cfg, self.mesh, **how)
        thoughts = {**found.thoughts, **words.thoughts}
        found = dataclasses.replace(
            found, answers=words.answers, texts=words.texts, thoughts=thoughts
        )
        if judged and suite.judged:
            found = replies.judged(suite, requests, found, guided, self.panel, **how)
        return ModelOutputs(requests, found, suite.verdicts(requests, found))

    def evaluated(self, suite: Suite, folder: epath.Path) -> ModelOutputs:
        """What the stage `evaluate` has of the base and keeps in `folder`; what judges could not
        reply then stays as it is. Only what a disk lost since is asked for again."""
        requests = suite.requests("base")
        asked = replies.model_under_test(self.base, self.cfg, self.mesh)
        how = dict(title=f"evaluate, {suite.name}: base")
        found = replies.replies(requests, folder, self.base, asked, self.cfg, self.mesh, **how)
        if suite.judged:
            found = replies.judged(suite, requests, found, folder, self.panel, final=True, **how)
        return ModelOutputs(requests, found, suite.verdicts(requests, found))


@dataclasses.dataclass(frozen=True)
class Validation:
    """Models put to the validation suites, for some of their metrics alone."""

    asking: Asking
    suites: Sequence[Suite]

    def metrics(
        self, loaded: LoadedModel, name: str, guidance: float, names: Sequence[str]
    ) -> dict[str, Metric]:
        """The metrics `names` of the model `loaded`, whose replies lie under `name`; asked is what
        they are measured by, and nothing else. Raises BadInput where one of them asks nothing."""
        found: dict[str, Metric] = {}
        for suite in self.suites:
            wanted = [one for one in names if one in suite.measured_by]
            if wanted:
                found |= self._of_suite(suite, loaded, name, guidance, wanted)
        for lacking in set(names) - set(found):
            raise BadInput(f"adjust: {quoted(lacking)} was asked nothing: see the adjust section")
        return {one: found[one] for one in names}

    def _of_suite(
        self, suite: Suite, loaded: LoadedModel, name: str, guidance: float, names: Sequence[str]
    ) -> dict[str, Metric]:
        several = [suite.measured_by[one] for one in names]
        kinds = frozenset().union(*several) if all(several) else _EVERY
        asked, place = only(suite.requests(MODEL), kinds), f"{suite.name}/{name}"
        judged = not all(several)
        outputs = self.asking.outputs(suite, asked, place, loaded, guidance, judged=judged)
        found = suite.metrics(outputs)
        return {one: found[one] for one in names if one in found}


def only(requests: Requests, kinds: Collection[str]) -> Requests:
    """The requests of some kinds, fields of `Requests`."""
    none = dataclasses.asdict(Requests())
    return dataclasses.replace(requests, **{k: v for k, v in none.items() if k not in kinds})
