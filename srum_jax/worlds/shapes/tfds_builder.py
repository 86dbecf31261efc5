"""The shapes world as a TFDS data set: the builder `ShapesWorld`, its records, and `build`.

Owns the features and how a record is made.  The builder class is made inside `builder_class`, so
that this module imports without tensorflow_datasets.  TensorFlow is never needed: files are
ArrayRecord and pictures are handed over as PNG bytes.  Read the result with
`tfds.builder_from_directory(builder.data_dir).as_data_source("train")`.
"""

from __future__ import annotations

import dataclasses
import functools
import io
import random
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from srum_jax.data.images import encode_png
from srum_jax.worlds.shapes import changes, examples, language, question_forms, questions, rendering
from srum_jax.worlds.shapes.question_forms import View, ask
from srum_jax.worlds.shapes.setting import SMALL

# What a data set holds, and the stream of its first split's random numbers.
STREAMS = {"scenes": 4, "edits": 15, "pairs": 18, "clips": 21}


def build(
    data_dir: str | Path,
    kind: str = "scenes",
    *,
    train: int = 2000,
    validation: int = 200,
    test: int = 600,
    seed: int = 0,
) -> Any:
    """Makes the data set under `data_dir`, or finds it there, and gives its `ShapesWorld` builder.

    kind: "scenes" (pictures, captions, objects, questions), "edits" (before, instruction, after),
    "pairs" (two pictures and a question) or "clips" (frames and a question); train, validation,
    test: records per split (1 or more).  `builder.data_dir` is the folder for
    `tfds.builder_from_directory`; other kinds, sizes or seeds go to other folders.  ValueError for
    values that make no data set.
    """
    if kind not in STREAMS:
        raise ValueError(f"shapes data set: kind {kind!r} is none of {', '.join(STREAMS)}")
    for field, value in (("train", train), ("validation", validation), ("test", test)):
        if value < 1:
            raise ValueError(f"shapes data set: {field} is {value}; give 1 record or more")
    if seed < 0:
        raise ValueError(f"shapes data set: seed is {seed}; give 0 or more")
    maker = builder_class()
    sizes = dict(train=train, validation=validation, test=test, seed=seed)
    config = maker.builder_config_cls(kind=kind, **sizes)
    builder = maker(data_dir=str(data_dir), config=config, file_format="array_record")
    builder.download_and_prepare()
    return builder


@functools.lru_cache(maxsize=1)
def builder_class() -> type:
    """`ShapesWorld`, a `tfds.core.GeneratorBasedBuilder`."""
    import tensorflow_datasets as tfds

    @dataclasses.dataclass(eq=False)
    class ShapesConfig(tfds.core.BuilderConfig):
        """What the records are, how many each split has and the seed they are drawn from; all of
        it is in the name."""

        name: str = ""
        kind: str = "scenes"
        train: int = 2000
        validation: int = 200
        test: int = 600
        seed: int = 0

        def __post_init__(self):
            counts = f"{self.train}_{self.validation}_{self.test}"
            self.name = f"{self.kind}_{counts}_seed_{self.seed}"
            self.description = "kind, records in train_validation_test, and the seed"

    class ShapesWorld(tfds.core.GeneratorBasedBuilder):
        """32x32 pictures of one to four coloured shapes, big and small, and what is said of them.

        scenes: captions, boxes, questions, answers.  edits: a picture, an instruction, the picture
        after it.  pairs: two pictures, a question which compares them.  clips: 4 to 8 frames, a
        question about what moved.  Splits are disjoint by content.  `held_out` marks a
        colour-shape pair that the generation stream of pretraining leaves out.  Boxes are (ymin,
        xmin, ymax, xmax) in 0..1; crops are cut from them.
        """

        VERSION = tfds.core.Version("2.0.0")
        builder_config_cls = ShapesConfig
        BUILDER_CONFIGS = [ShapesConfig(kind=kind) for kind in STREAMS]

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=type(self).__doc__,
                features=features(tfds, self.builder_config.kind),
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing is downloaded
            sizes = self.builder_config
            return {s: self._generate_examples(s, getattr(sizes, s)) for s in language.SPLITS}

        def _generate_examples(self, split, count):
            config = self.builder_config
            for index in range(count):
                example = record(split, config.seed, index, config.kind)
                yield example["id"], _handed_over(tfds, example)

    return ShapesWorld


def _handed_over(tfds, example: dict[str, Any]) -> dict[str, Any]:
    """A record as TFDS takes it: pictures as files, boxes as its own."""

    def files(value):
        if isinstance(value, bytes):
            return io.BytesIO(value)
        if isinstance(value, list):
            return [files(one) for one in value]
        if isinstance(value, dict):
            return {
                k: tfds.features.BBox(*v) if k == "bbox" else files(v) for k, v in value.items()
            }
        return value

    return files(example)


def features(tfds: ModuleType, kind: str = "scenes") -> Any:
    """The features of a kind of records; `tfds` is the imported library."""
    text, labels, several = tfds.features.Text, tfds.features.ClassLabel, tfds.features.Sequence
    image = tfds.features.Image(shape=(rendering.SIDE, rendering.SIDE, 3), encoding_format="png")
    question = {"question": text(), "answer": text()}
    thing = {
        "color": labels(names=list(rendering.COLORS)),
        "shape": labels(names=list(rendering.SHAPES)),
        "size": labels(names=list(rendering.SIZES)),
        "bbox": tfds.features.BBoxFeature(),
    }
    fields = {
        "scenes": {
            "image": image,
            "caption": text(),
            "category": labels(names=list(SMALL.prompts)),
            "held_out": np.bool_,
            "objects": several(thing),
            "questions": several(
                {**question, "kind": labels(names=list(question_forms.SCENE_KINDS))}
            ),
        },
        "edits": {
            "source": image,
            "instruction": text(),
            "target": image,
            "held_out": np.bool_,
            "kind": labels(names=list(changes.EDITS)),
        },
        "pairs": {
            "first": image,
            "second": image,
            **question,
            "kind": labels(names=list(changes.PAIR_KINDS)),
        },
        "clips": {
            "frames": several(image),
            **question,
            "kind": labels(names=list(changes.CLIP_KINDS)),
        },
    }
    return tfds.features.FeaturesDict({"id": text(), **fields[kind]})


def record(split: str, seed: int, index: int, kind: str = "scenes") -> dict[str, Any]:
    """Record `index` of a split: the fields of `features`, pictures as PNG bytes, boxes as tuples.

    Categories of scenes, kinds of edits and of questions take turns; a scene has one question of
    each kind that fits.  A pure function of its arguments.
    """
    rng = questions.stream_rng(seed, index, STREAMS[kind] + language.SPLITS.index(split))
    return {"id": f"{split}-{index:06d}", **_RECORDS[kind](rng, split, index)}


def _scene(rng: random.Random, split: str, index: int) -> dict[str, Any]:
    category = SMALL.prompts[index % len(SMALL.prompts)]
    content = rendering.pick(rng, language.contents(split, category))
    scene = examples.scene_for(rng, content)
    return {
        "image": encode_png(rendering.draw(scene)),
        "caption": language.say(rng, content),
        "category": category,
        "held_out": content.held_out,
        "objects": [
            {"color": t.color, "shape": t.shape, "size": t.scale, "bbox": _bbox(t.box)}
            for t in scene.things
        ],
        "questions": _questions(rng, View(scene, split)),
    }


def _edit(rng: random.Random, split: str, index: int) -> dict[str, Any]:
    edit = changes.edit_of(rng, split, changes.EDITS[index % len(changes.EDITS)])
    scenes = (edit.source, edit.target)
    return {
        "source": encode_png(rendering.draw(edit.source)),
        "instruction": edit.instruction,
        "target": encode_png(rendering.draw(edit.target)),
        "held_out": any(t.pair in language.HELD_OUT for scene in scenes for t in scene.things),
        "kind": edit.kind,
    }


def _pair(rng: random.Random, split: str, index: int) -> dict[str, Any]:
    kind = changes.PAIR_KINDS[index % len(changes.PAIR_KINDS)]
    (first, second), question = changes.several_question(rng, split, kind)
    return {"first": encode_png(first), "second": encode_png(second), **_asked(question)}


def _clip(rng: random.Random, split: str, index: int) -> dict[str, Any]:
    kind = changes.CLIP_KINDS[index % len(changes.CLIP_KINDS)]
    frames, question = changes.several_question(rng, split, kind)
    return {"frames": [encode_png(frame) for frame in frames], **_asked(question)}


_RECORDS = {"scenes": _scene, "edits": _edit, "pairs": _pair, "clips": _clip}


def _questions(rng: random.Random, view: View) -> list[dict[str, str]]:
    """One question of each kind that the scene allows."""
    found = (ask(rng, view, kind) for kind in question_forms.SCENE_KINDS)
    return [_asked(q) for q in found if q]


def _asked(q: question_forms.ShapesQuestion) -> dict[str, str]:
    return {"question": q.text, "answer": q.answer, "kind": q.kind}


def _bbox(box: rendering.Box) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (v / rendering.SIDE for v in box)
    return y0, x0, y1, x1
