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
from typing import Any

import numpy as np

from srum_jax.data import shapes
from srum_jax.data.images import encode_png
from srum_jax.data.shapes_questions import View, ask


def build(
    data_dir: str | Path, train: int = 2000, validation: int = 200, test: int = 600, seed: int = 0
) -> Any:
    """Makes the data set under `data_dir`, or finds it there, and gives its `ShapesWorld` builder.

    train, validation, test: records per split (1 or more).  `builder.data_dir` is the folder for
    `tfds.builder_from_directory`; other sizes or seeds go to other folders.
    """
    for field, value in (("train", train), ("validation", validation), ("test", test)):
        if value < 1:
            raise ValueError(f"shapes data set: {field} is {value}; give 1 record or more")
    if seed < 0:
        raise ValueError(f"shapes data set: seed is {seed}; give 0 or more")
    maker = builder_class()
    config = maker.builder_config_cls(train=train, validation=validation, test=test, seed=seed)
    builder = maker(data_dir=str(data_dir), config=config, file_format="array_record")
    builder.download_and_prepare()
    return builder


@functools.lru_cache(maxsize=1)
def builder_class() -> type:
    """`ShapesWorld`, a `tfds.core.GeneratorBasedBuilder`."""
    import tensorflow_datasets as tfds

    @dataclasses.dataclass(eq=False)
    class ShapesConfig(tfds.core.BuilderConfig):
        """How many records each split has and the seed they are drawn from; both in the name."""

        name: str = ""
        train: int = 2000
        validation: int = 200
        test: int = 600
        seed: int = 0

        def __post_init__(self):
            self.name = f"{self.train}_{self.validation}_{self.test}_seed_{self.seed}"
            self.description = "records in train_validation_test, and the seed"

    class ShapesWorld(tfds.core.GeneratorBasedBuilder):
        """32x32 pictures of one to three coloured shapes, captions, boxes, questions, answers.

        Splits are disjoint by content.  `held_out` marks captions with a colour-shape pair that
        the generation stream of pretraining leaves out.  Boxes are (ymin, xmin, ymax, xmax) in
        0..1; crops are cut from them.
        """

        VERSION = tfds.core.Version("1.0.0")
        builder_config_cls = ShapesConfig
        BUILDER_CONFIGS = [ShapesConfig()]

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self, description=type(self).__doc__, features=features(tfds)
            )

        def _split_generators(self, dl_manager):
            del dl_manager  # nothing is downloaded
            sizes = self.builder_config
            return {s: self._generate_examples(s, getattr(sizes, s)) for s in shapes.SPLITS}

        def _generate_examples(self, split, count):
            for index in range(count):
                example = record(split, self.builder_config.seed, index)
                boxes = [{**o, "bbox": tfds.features.BBox(*o["bbox"])} for o in example["objects"]]
                yield (
                    example["id"],
                    {**example, "objects": boxes, "image": io.BytesIO(example["image"])},
                )

    return ShapesWorld


def features(tfds) -> Any:
    """The data set's features; `tfds` is the imported library."""
    side = shapes.SIDE
    text, labels = tfds.features.Text, tfds.features.ClassLabel
    return tfds.features.FeaturesDict(
        {
            "id": text(),
            "image": tfds.features.Image(shape=(side, side, 3), encoding_format="png"),
            "caption": text(),
            "category": labels(names=list(shapes.CATEGORIES)),
            "held_out": np.bool_,
            "objects": tfds.features.Sequence(
                {
                    "color": labels(names=list(shapes.COLORS)),
                    "shape": labels(names=list(shapes.SHAPES)),
                    "bbox": tfds.features.BBoxFeature(),
                }
            ),
            "questions": tfds.features.Sequence(
                {
                    "question": text(),
                    "answer": text(),
                    "kind": labels(names=list(shapes.SCENE_KINDS)),
                }
            ),
        }
    )


def record(split: str, seed: int, index: int) -> dict[str, Any]:
    """Record `index` of a split; categories take turns.  A pure function of its arguments.

    id, image (PNG bytes), caption, category, held_out, objects [{color, shape, bbox (ymin, xmin,
    ymax, xmax in 0..1)}], questions [{question, answer, kind}], one of each kind that fits.
    """
    rng = shapes.stream_rng(seed, index, 4 + shapes.SPLITS.index(split))
    category = shapes.CATEGORIES[index % len(shapes.CATEGORIES)]
    content = shapes.pick(rng, shapes.contents(split, category))
    scene = shapes.scene_for(rng, content)
    return {
        "id": f"{split}-{index:06d}",
        "image": encode_png(shapes.draw(scene)),
        "caption": shapes.say(rng, content),
        "category": category,
        "held_out": content.held_out,
        "objects": [
            {"color": t.color, "shape": t.shape, "bbox": _bbox(t.box)} for t in scene.things
        ],
        "questions": _questions(rng, View(scene, split)),
    }


def _questions(rng: random.Random, view: View) -> list[dict[str, str]]:
    """One question of each kind that the scene allows."""
    found = (ask(rng, view, kind) for kind in shapes.SCENE_KINDS)
    return [{"question": q.text, "answer": q.answer, "kind": q.kind} for q in found if q]


def _bbox(box: shapes.Box) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = (v / shapes.SIDE for v in box)
    return y0, x0, y1, x1
