"""The shapes world as TFDS data sets, made and read without TensorFlow."""

import subprocess
import sys
import textwrap

import pytest

from srum_jax.worlds.shapes import language, tfds_builder


def test_the_builder_makes_tfds_data_sets_without_tensorflow(tmp_path):
    """Every kind in a fresh process, as one that has TensorFlow loaded would prove nothing."""
    code = f"""
    import io
    import sys
    import numpy as np
    from PIL import Image
    from srum_jax.worlds.shapes import language, question_forms, rendering, tfds_builder
    from srum_jax.worlds.shapes.setting import SMALL
    assert "tensorflow_datasets" not in sys.modules
    sizes = dict(train=14, validation=4, test=5)
    built = {{k: tfds_builder.build({str(tmp_path)!r}, k, **sizes) for k in tfds_builder.STREAMS}}
    import tensorflow_datasets as tfds
    assert len({{b.data_dir for b in built.values()}}) == 4

    def rows(kind):
        assert isinstance(built[kind], tfds.core.GeneratorBasedBuilder)
        loaded = tfds.builder_from_directory(built[kind].data_dir)
        assert {{k: v.num_examples for k, v in loaded.info.splits.items()}} == sizes
        for split in language.SPLITS:
            for row in loaded.as_data_source(split):
                number = int(row["id"].decode().split("-")[1])
                made = tfds_builder.record(split, 0, number, kind)
                names = loaded.info.features["kind"].names if "kind" in row else None
                assert names is None or names[row["kind"]] == made["kind"]
                yield split, row, made

    def same(picture, png):
        assert picture.dtype == np.uint8 and picture.shape == (32, 32, 3)
        return np.array_equal(picture, np.array(Image.open(io.BytesIO(png))))

    for split, row, made in rows("scenes"):
        caption = row["caption"].decode()
        assert caption == made["caption"] and same(row["image"], made["image"])
        assert language.split_of(language.parse(caption)) == split
        kinds = [question_forms.SCENE_KINDS[k] for k in row["questions"]["kind"]]
        assert kinds == [q["kind"] for q in made["questions"]]
        things = row["objects"]
        boxes = np.rint(np.array(things["bbox"]) * 32).astype(int)
        for (y0, x0, y1, x1), color, size in zip(boxes, things["color"], things["size"]):
            middle = row["image"][(y0 + y1) // 2, (x0 + x1) // 2].astype(float)
            assert np.abs(middle - rendering.PALETTE[color]).max() <= 12
            assert y1 - y0 == x1 - x0 and y1 - y0 in (SMALL.small, SMALL.big)[size]
    for split, row, made in rows("edits"):
        assert row["instruction"].decode() == made["instruction"]
        assert same(row["source"], made["source"]) and same(row["target"], made["target"])
        assert row["held_out"] == made["held_out"]
        assert not np.array_equal(row["source"], row["target"])
    for split, row, made in rows("pairs"):
        assert same(row["first"], made["first"]) and same(row["second"], made["second"])
        assert row["question"].decode() == made["question"]
        assert row["answer"].decode() == made["answer"]
    for split, row, made in rows("clips"):
        assert len(row["frames"]) == len(made["frames"]) in (4, 5, 6, 8)
        assert all(same(a, b) for a, b in zip(row["frames"], made["frames"]))
        assert row["answer"].decode() == made["answer"]
    assert "tensorflow" not in sys.modules
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("kind", tfds_builder.STREAMS)
def test_records_are_functions_of_split_seed_and_index(kind):
    one = tfds_builder.record("test", 0, 3, kind)
    assert one == tfds_builder.record("test", 0, 3, kind) and one["id"] == "test-000003"
    others = [("train", 0, 3), ("test", 1, 3), ("test", 0, 4)]
    for other in (tfds_builder.record(*at, kind) for at in others):
        pictures = [{k: v for k, v in r.items() if k != "id"} for r in (one, other)]
        assert pictures[0] != pictures[1]


def test_held_out_pairs_are_marked():
    edits = [tfds_builder.record("test", 0, i, "edits") for i in range(40)]
    assert {edit["held_out"] for edit in edits} == {False, True}
    for edit in edits:
        named = any(" ".join(pair) in edit["instruction"] for pair in language.HELD_OUT)
        assert edit["held_out"] or not named


def test_what_makes_no_data_set_is_refused(tmp_path):
    with pytest.raises(ValueError, match="validation is 0"):
        tfds_builder.build(tmp_path, validation=0)
    with pytest.raises(ValueError, match="seed is -1"):
        tfds_builder.build(tmp_path, seed=-1)
    with pytest.raises(ValueError, match="'movies' is none of scenes, edits, pairs, clips"):
        tfds_builder.build(tmp_path, "movies")
