"""How a checkpoint is best used: what `api` and `use` do when not told otherwise.

A folder may say so in `generation_config.json`, under the key "srum_jax" (the file's other keys are
those of the transformers library); without it the settings of BAGEL-7B-MoT's own demo hold.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, TypeVar

from absl import logging
from etils import epath

from srum_jax import config, config_history
from srum_jax.config import SampleConfig, ScoreConfig
from srum_jax.core import files, registry
from srum_jax.core.checked import plain, unknown_key
from srum_jax.core.errors import BadInput, quoted
from srum_jax.data import languages
from srum_jax.generation import families
from srum_jax.models.bagel import hf_folder

_GENERATE = SampleConfig(
    size=(1024, 1024),
    steps=50,
    shift=3.0,
    guidance=4.0,
    image_guidance=1.0,
    guidance_interval=(0.4, 1.0),
    renorm="global",
    renorm_min=0.0,
    batch=4,
)
# Regions of pictures of any kind; components are objects on the plain ground of a world's alone.
_SCORE = ScoreConfig(proposers=("grid",), verify=0.5, margin=16, crop=448, batch=8)
_SCORE_OF_A_WORLD = ScoreConfig(proposers=("components",))
Section = TypeVar("Section", SampleConfig, ScoreConfig)


@dataclasses.dataclass(frozen=True)
class GenerationConfig:
    """Defaults of one checkpoint.

    generate, edit, score: how images are drawn, edited and scored. max_tokens, think_tokens: of an
    answer and of a thought. batch: texts written in one call. window: tokens of a context with what
    is written after it. caption: the request for one. frame: what precedes a video's frame, with
    {seconds} and {number}; "" for nothing. language: the one that the model was trained on, where
    it is a world's (`data/languages.py`); its questions are then about pictures. parity: "official"
    for what the original does wherever that differs in a result (`docs/differences.md`), "" for
    what is done here.
    """

    generate: SampleConfig = _GENERATE
    edit: SampleConfig = dataclasses.replace(
        _GENERATE, image_guidance=2.0, guidance_interval=(0.0, 1.0), renorm="text_channel"
    )
    score: ScoreConfig = _SCORE
    max_tokens: int = 512
    think_tokens: int = 1000
    batch: int = 8
    window: int = 32768
    caption: str = "Describe this image in one sentence."
    frame: str = "Frame {number} at {seconds} s:"
    language: str = ""
    parity: str = ""

    @property
    def official(self) -> bool:
        """Whether the original is to be followed in everything."""
        return self.parity == "official"

    def __post_init__(self):
        for name in ("max_tokens", "think_tokens", "batch", "window"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.parity not in ("", "official"):
            raise BadInput(f'parity = {quoted(self.parity)} is not known: "official", or ""')
        if self.language and self.language not in registry.LANGUAGES:
            raise BadInput(
                f"language = {quoted(self.language)} is not known: "
                f"known: {', '.join(registry.LANGUAGES)}"
            )
        if set("{}") & set(self.label(1, 0.0)):
            frame = quoted(self.frame)
            raise BadInput(f"frame = {frame} may hold {{seconds}} and {{number}} alone")

    def label(self, number: int, seconds: float) -> str:
        """What precedes frame `number` (from 1) of a video, taken at `seconds`."""
        plain = self.frame.replace("{number}", str(number))
        return plain.replace("{seconds}", f"{seconds:.1f}")

    def prompt(self, text: str) -> str:
        """A prompt as the model reads it. Raises BadInput where it has no words for it."""
        return languages.normalise(self.language, text, "prompt")

    def instruction(self, text: str) -> str:
        """The same of an instruction to edit."""
        return languages.normalise(self.language, text, "instruction")

    def question(self, text: str, shown: bool) -> str:
        """The same of a question; shown: whether a picture or a video is asked about."""
        if self.language and not shown:
            raise BadInput(f"{quoted(text)}: this model answers about pictures; give it one")
        return languages.normalise(self.language, text, "question")


def from_folder(folder: epath.PathLike, base: epath.PathLike | None = None) -> GenerationConfig:
    """Reads the settings of a checkpoint folder, or of its base where it has none.

    Keys that are left out keep the defaults of the model's family; `edit` starts from `generate`,
    `score` from how a world's pictures are scored where the file names a language. Raises BadInput
    naming the file and the key.
    """
    places = (epath.Path(one) for one in (folder, base) if one)
    path, values = next(filter(None, map(hf_folder.generation_settings, places)), (None, {}))
    if not isinstance(values, dict):
        raise BadInput(f"{path}: must hold an object, got {quoted(values)}")
    start = families.find(folder, base).settings(folder, base)
    if "generate" in values:
        generate = changed(start.generate, values["generate"], where=f"{path}, generate")
        start = dataclasses.replace(start, generate=generate, edit=generate)
    if values.get("language"):
        start = dataclasses.replace(start, score=_SCORE_OF_A_WORLD)
    return updated(start, values, where=str(path))


def updated(
    settings: GenerationConfig, values: Mapping[str, Any], *, where: str
) -> GenerationConfig:
    """`settings` with some of its fields changed and checked; sections of a config key by key.

    `where` begins a problem's line. Raises BadInput.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(GenerationConfig)}
    found = {}
    for key, value in values.items():
        value = plain(value)
        if key in config_history.OF_PARITY:
            _passed_over(key, value, where)
            continue
        if key not in kinds:
            raise BadInput(f"{where}: {unknown_key('', key, kinds)}")
        if kinds[key] in (SampleConfig, ScoreConfig):
            value = changed(getattr(settings, key), value, where=f"{where}, {key}")
        elif type(value) is not kinds[key]:
            raise BadInput(f"{where}: {key} must be {kinds[key].__name__}, got {quoted(value)}")
        found[key] = value
    try:
        return dataclasses.replace(settings, **found)
    except BadInput as e:
        raise BadInput(f"{where}: {e}") from e


def _passed_over(key: str, value: Any, where: str) -> None:
    """A former key that says what holds anyhow. Raises BadInput where it says another thing."""
    if value:
        raise BadInput(f"{where}: {key} is gone: {config_history.PARITY} has it, with all else")
    logging.warning("%s: %s is gone and always false", where, key)


def guide(folder: epath.PathLike, guidance: float) -> bool:
    """Writes into a checkpoint folder that images are drawn with this scale of text guidance, and
    edited too where it edits as it draws; whether it said otherwise. All else stays.

    Raises BadInput as `from_folder`.
    """
    settings = from_folder(folder)
    if settings.generate.guidance == guidance:
        return False
    path = epath.Path(folder) / hf_folder.GENERATION_FILE
    values = files.read_object(path) if path.exists() else {}
    own = dict(values.get(hf_folder.GENERATION_KEY, {}))
    drawn = dataclasses.replace(settings.generate, guidance=guidance)
    edited = drawn if settings.edit == settings.generate else settings.edit
    # Whole: an edit starts from a `generate` that is there.
    own |= {"generate": dataclasses.asdict(drawn), "edit": dataclasses.asdict(edited)}
    files.write_json(path, values | {hf_folder.GENERATION_KEY: own})
    return True


def changed(section: Section, values: dict, *, where: str) -> Section:
    """`section` with some of its keys changed and checked; `where` begins a problem's line."""
    if not isinstance(values, dict):
        raise BadInput(f"{where}: must hold keys, got {quoted(values)}")
    name = "sample" if isinstance(section, SampleConfig) else "score"
    if problems := list(config_history.refused({name: values})):
        raise BadInput(f"{where}: {problems[0]}")
    values = config_history.current({name: values}).get(name, {})
    return config.section(type(section), {**dataclasses.asdict(section), **values}, where=where)
