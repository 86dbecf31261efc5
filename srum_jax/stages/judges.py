"""Who scores, as a run's `score` section says: proposers, read-outs and judges put together.

Owns that wiring alone. A `JudgePanel` gives images their judgements; the stages `score` and
`evaluate` and the training monitor share it, so that all judge alike.
"""

import collections
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
from absl import logging
from etils import epath

from srum_jax.config import Config, ScoreConfig
from srum_jax.core import console, files, sharding
from srum_jax.core.distributed import barrier
from srum_jax.core.errors import BadInput
from srum_jax.core.files import write_json
from srum_jax.core.param_tree import Params
from srum_jax.rewards import decompose, external, question_templates, written
from srum_jax.rewards.boxes import proposers
from srum_jax.rewards.boxes.proposers import FileProposer, ModelProposer, SamProposer, read_boxes
from srum_jax.rewards.boxes.regions import (
    ComponentsProposer,
    GridProposer,
    Limits,
    PromptedImage,
    Proposals,
    Proposer,
)
from srum_jax.rewards.boxes.sam import weights as sam_weights
from srum_jax.rewards.boxes.sam.automatic import MaskGenerator, MaskSettings
from srum_jax.rewards.ensemble import EnsembleJudge
from srum_jax.rewards.external import ExternalText, FirstProcess
from srum_jax.rewards.judge import Judge, Judgement, JudgeSettings
from srum_jax.rewards.logits import LogitJudge
from srum_jax.rewards.question_templates import Decomposition
from srum_jax.rewards.written import ModelText, TextSource, WrittenJudge
from srum_jax.stages import loading
from srum_jax.stages.loading import LoadedModel
from srum_jax.stages.preflight import Checks

SCENES = "scenes.json"  # prompts decomposed, beside the scores
WINDOW = 8192  # tokens of a context that is written about
DECOMPOSED_TOKENS = 192  # of the answer that decomposes a prompt
AT_ONCE = 64  # prompts that are decomposed between two looks at the disk

Scenes = Mapping[str, Decomposition]


@dataclasses.dataclass(frozen=True)
class JudgePanel:
    """Everything that gives the images of a run their scores.

    main: whose scores count · proposers: the first one's regions make the image's score · other:
    name and judge that some candidates are compared by, or None · counts: of what was met on the
    way · reasons: why an external judge gave no answer, in its words, by status.
    """

    main: Judge
    proposers: tuple[Proposer, ...]
    other: tuple[str, Judge] | None = None
    counts: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    reasons: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @contextlib.contextmanager
    def answering(self, images: int) -> Iterator[None]:
        """Around judging so many images. Raises BadInput at the end where an external judge refused
        the key or the address, or left more than MOST_UNANSWERED questions an image without an
        answer: what was judged says little then, and it may answer when it is asked again."""
        denied = f"requests {external.DENIED}"
        before = self.counts[denied], self.counts[written.UNANSWERED]
        yield
        missing = self.counts[written.UNANSWERED] - before[1]
        refused = missing and self.counts[denied] > before[0]
        if refused or missing > written.MOST_UNANSWERED * images:
            reasons = "; ".join(self.reasons.values())
            raise BadInput(
                f"the external judge left {missing} questions about {images} images unanswered "
                f"({reasons}). What is judged is kept: put that right and give the same command"
            )

    def judge(
        self, images: Sequence[PromptedImage], *, params: Params | None = None
    ) -> list[Judgement]:
        """Judgements by the first proposer, with the regions of the others behind its own.

        images: uint8 [H,W,3] with prompts and ids · params: the model's, in place of those that
        the panel was opened with.
        """
        first, *others = self.proposers
        judged = self.main.judge(Proposals.of(first, images, params=params), params=params)
        more = [
            self.main.judge(Proposals.of(p, images, params=params), whole=False, params=params)
            for p in others
        ]
        return [
            dataclasses.replace(
                one, regions=(*one.regions, *(region for view in extra for region in view.regions))
            )
            for one, *extra in zip(judged, *more, strict=True)
        ]


def panel(
    loaded: LoadedModel,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    *,
    scenes: Scenes | None = None,
    seed: int = 0,
) -> JudgePanel:
    """The judges and proposers of a run, for the stage `score` and the training monitor alike.

    loaded: the model, without an autoencoder; without parameters every call of the panel brings
    them · mesh: where a batch lies; where it spans several processes all of them judge together, so
    that all get the same scores · scenes: prompts decomposed, see `decomposed` · seed: of the
    written answers after the first. Raises FileNotFoundError or ValueError for weights, boxes or an
    endpoint that cannot be used.
    """
    c, counts, reasons = cfg.score, collections.Counter(), {}
    settings = JudgeSettings.from_config(c, seed=seed)
    text = model_text(loaded, cfg, mesh, max_tokens=c.written.max_tokens, think=c.written.think)
    ways = sharding.row_ways(mesh)
    scorer = loaded.answer_scorer(cfg, mesh, batch=-(-c.batch // ways) * ways)
    logits = LogitJudge(scorer, loaded.tokenizer, settings, scenes)
    in_words = WrittenJudge(text, settings, counts)
    own, second = (logits, in_words) if c.readout == "logits" else (in_words, logits)
    main, other = own, None
    if c.judge != "self" or (c.compare and c.external.url):
        outside = WrittenJudge(external_text(c, mesh, counts, reasons), settings, counts)
    if c.judge == "external":
        main = outside
    elif c.judge == "ensemble":
        main = EnsembleJudge((own, outside), c.min_judges, ("self", "external"))
    if c.compare and c.external.url and c.judge == "self":
        other = (f"{c.external.model}, an external judge", outside)
    elif c.compare:
        name = "in words" if second is in_words else "soft answers"
        other = (f"its other read-out, {name}", second)
    found = tuple(proposer(name, c, text, scenes, mesh) for name in c.proposers)
    return JudgePanel(main, found, other, counts, reasons)


def check(cfg: Config, found: Checks) -> None:
    """What the judges and proposers of a run read, and whether an external judge answers."""
    c = cfg.score
    if "sam" in c.proposers:
        with found.noting():
            sam_weights.check(c.sam.weights)
    if "file" in c.proposers:
        with found.noting():
            read_boxes(c.boxes)
    if c.judge != "self" or (c.compare and c.external.url):
        with found.noting():
            external.reach(endpoint(c))
    count = cfg.generate.candidates
    if c.judge == "ensemble" and "generate" in cfg.stages and c.shard_size % count:
        found.problems.append(
            f"score.shard_size = {c.shard_size} must be a multiple of generate.candidates = "
            f"{count}: an ensemble ranks the candidates of a prompt, so a shard must hold them all"
        )
    if told := unread(cfg):
        logging.warning("%s", told)
        found.notes.append(told)


PROPOSERS: Mapping[str, type[Proposer]] = {
    "components": ComponentsProposer,
    "grid": GridProposer,
    "self": ModelProposer,
    "file": FileProposer,
    "sam": SamProposer,
}


def reads_regions(cfg: Config) -> bool:
    """Whether anything that is trained depends on the scores of regions: the tokens' weights do, or
    the image scores by which candidates are chosen or weighed."""
    c, t = cfg.score, cfg.train
    weighing = t.objective != "sft"
    tokens = weighing and t.rewards != "image" and t.lanes.regions > 0
    soft = c.judge != "external" and c.readout == "logits"
    assembled = soft and PROPOSERS[c.proposers[0]].separates
    by_image = t.select != "all" or t.min_gain > 0 or t.min_gain_quantile > 0
    return tokens or (assembled and (by_image or (weighing and t.rewards != "regions")))


def unread(cfg: Config) -> str:
    """What is said of a run that pays for regions without any use in its training; "": nothing."""
    if not {"score", "train"} <= set(cfg.stages) or reads_regions(cfg):
        return ""
    name, t = cfg.score.proposers[0], cfg.train
    told = (
        f'score.proposers: the regions of "{name}" are found, shown and scored, and change nothing '
        f'that is trained by train.objective = "{t.objective}", train.rewards = "{t.rewards}" and '
        f'train.select = "{t.select}": choose an objective that weighs tokens (srum_release, '
        'srum_positive, srum_advantage, nft, dpo) with train.rewards = "both"'
    )
    if name == "sam":
        told += ", or score.proposers = \"('grid',)\", which costs no Segment Anything"
    return told


def scores_alone(cfg: Config) -> Config:
    """`cfg` with nothing measured beside the scores that count: one proposer, no comparison."""
    score = dataclasses.replace(cfg.score, proposers=cfg.score.proposers[:1], compare=0)
    return dataclasses.replace(cfg, score=score)


def model_text(
    loaded: LoadedModel, cfg: Config, mesh: jax.sharding.Mesh, *, max_tokens: int, think: bool
) -> ModelText:
    """The model answering in words, `score.written.batch` answers at a time."""
    generator = loaded.text_generator(cfg, mesh, batch=cfg.score.written.batch, window=WINDOW)
    return ModelText(
        generator,
        loaded.cfg.layout,
        loaded.tokenizer,
        window=WINDOW,
        max_text=loaded.cfg.max_text,
        max_tokens=max_tokens,
        think=think,
    )


def external_text(
    c: ScoreConfig, mesh: jax.sharding.Mesh, counts: collections.Counter, reasons: dict[str, str]
) -> TextSource:
    """The external judge's answers; on a mesh of several processes the first one asks for all."""
    source = ExternalText.connect(endpoint(c), counts=counts, reasons=reasons)
    processes = {device.process_index for device in mesh.devices.flat}
    return FirstProcess(source) if len(processes) > 1 else source


def endpoint(c: ScoreConfig) -> external.Endpoint:
    """The external judge's."""
    e = c.external
    return external.Endpoint(
        base_url=e.url,
        model=e.model,
        key_env=e.key_env,
        timeout=e.timeout,
        attempts=e.attempts,
        concurrency=e.concurrency,
        max_tokens=c.written.max_tokens,
    )


def limits(c: ScoreConfig) -> Limits:
    """What is kept of every proposer's regions."""
    return Limits(c.min_area, c.max_area, c.overlap, c.regions)


def proposer(
    name: str,
    c: ScoreConfig,
    text: TextSource | None = None,
    scenes: Scenes | None = None,
    mesh: jax.sharding.Mesh | None = None,
) -> Proposer:
    """The named proposer of a run; "self" asks `text`, "sam" shares images among this host's
    devices of `mesh`.

    Raises FileNotFoundError or ValueError for weights or boxes that cannot be used.
    """
    kept = limits(c)
    match name:
        case "components":
            return ComponentsProposer(kept)
        case "grid":
            return GridProposer(c.grid, kept)
        case "self":
            return ModelProposer(text, scenes, kept)
        case "file":
            return FileProposer(read_boxes(c.boxes), kept)
        case "sam":
            at = None if mesh is None else sharding.row_mesh(mesh)
            generator = MaskGenerator.from_folder(c.sam.weights, mask_settings(c), at)
            return SamProposer(generator, kept)
    raise ValueError(f"score.proposers: {name!r} is no proposer")


def mask_settings(c: ScoreConfig) -> MaskSettings:
    """Which of Segment Anything's masks are kept."""
    return MaskSettings(
        points_per_side=c.sam.points,
        points_per_batch=c.sam.batch,
        pred_iou=c.sam.min_iou,
        stability=c.sam.min_stability,
    )


def fingerprints(cfg: Config) -> dict[str, str]:
    """Hashes of what judging depends on beside the candidates and the config: the wording of the
    read-outs in use, and the files of proposers."""
    c, found = cfg.score, {}
    logits = c.judge != "external" and c.readout == "logits"
    if logits or c.compare:
        found["protocol"] = question_templates.protocol_hash()
        found["decompose"] = decompose.decompose_hash()
    if not logits or c.compare or c.judge == "ensemble":
        found["written"] = written.protocol_hash()
    if "sam" in c.proposers:
        found["sam"] = loading.fingerprint(epath.Path(c.sam.weights))
    if "file" in c.proposers:
        found["boxes"] = proposers.digest(c.boxes)
    if "self" in c.proposers:
        found["grounding"] = proposers.grounding_hash()
    return found


# --------------------------------------------------------------------------- prompts decomposed


def decomposed(
    prompts: Sequence[str],
    loaded: LoadedModel,
    cfg: Config,
    mesh: jax.sharding.Mesh,
    path: epath.PathLike,
    *,
    params: Params | None = None,
) -> dict[str, Decomposition] | None:
    """{prompt: what it demands}, kept in the JSON file `path` and made once.

    None for a model of few words, whose prompts the grammar reads: nothing is asked. params: the
    model's, in place of those of `loaded`. Until all are there each AT_ONCE of them have a file of
    their own in a folder beside `path`; hosts that work apart from each other share them.
    """
    if loaded.tokenizer.word_level:
        return None
    path = epath.Path(path)
    found = kept_scenes(path)
    left = [prompt for prompt in dict.fromkeys(prompts) if prompt not in found]
    parts = _Parts(path.parent / f"{path.stem}-parts", left)
    text = model_text(loaded, cfg, mesh, max_tokens=DECOMPOSED_TOKENS, think=False)
    first, count = jax.process_index() == 0, jax.process_count()
    apart = count > 1 and {d.process_index for d in mesh.devices.flat} == {jax.process_index()}
    mine = range(jax.process_index(), len(parts), count) if apart else range(len(parts))
    with console.progress(total=len(left), desc="prompts", shown=first) as bar:
        for number in mine:
            if parts.read(number) is None:
                made = decompose.decompose_prompts(parts.prompts(number), text, params=params)
                if apart or first:
                    parts.write(number, made)
            bar.update(AT_ONCE * (count if apart else 1))
    barrier("prompts: decomposed")
    for number in range(len(parts)):
        found |= parts.read(number)
    barrier("prompts: read")
    if first and left:
        write_json(path, {p: dataclasses.asdict(s) for p, s in found.items()})
        parts.folder.rmtree()
    counts = collections.Counter(scene.source for scene in found.values())
    logging.info("prompts taken apart, by who did: %s", console.counted(counts))
    return found


@dataclasses.dataclass(frozen=True)
class _Parts:
    """Prompts decomposed, AT_ONCE of `left` a file in `folder`."""

    folder: epath.Path
    left: Sequence[str]

    def __len__(self) -> int:
        return -(-len(self.left) // AT_ONCE)

    def prompts(self, number: int) -> Sequence[str]:
        """Those of file `number`."""
        return self.left[number * AT_ONCE : (number + 1) * AT_ONCE]

    def read(self, number: int) -> dict[str, Decomposition] | None:
        """Those of a file; None where it is not there, or of other prompts."""
        found = kept_scenes(self._path(number))
        return found if list(found) == list(self.prompts(number)) else None

    def write(self, number: int, found: Mapping[str, Decomposition]) -> None:
        """Keeps what was found of the prompts of file `number`."""
        scenes = {prompt: dataclasses.asdict(found[prompt]) for prompt in self.prompts(number)}
        write_json(self._path(number), scenes)

    def _path(self, number: int) -> epath.Path:
        return self.folder / f"{number}.json"


def kept_scenes(path: epath.Path) -> dict[str, Decomposition]:
    """Prompts decomposed in a file; {} where it is not there or not whole."""
    try:
        return {prompt: _from_json(scene) for prompt, scene in (files.kept(path) or {}).items()}
    except (KeyError, TypeError) as e:
        logging.warning("%s: damaged (%r); made again", path, e)
        return {}


def _from_json(value: Mapping[str, Any]) -> Decomposition:
    relation = value["relation"]
    return Decomposition(
        caption=value["caption"],
        objects=tuple(question_templates.ObjectSpec(**one) for one in value["objects"]),
        relation=question_templates.Relation(**relation) if relation else None,
        open=value["open"],
        source=value["source"],
    )
