"""The released data set and Parquet files: every fault named, boxes that follow their picture."""

import json
import math
import pathlib
import sys

import numpy as np
import pytest
import released_reader
from etils import epath
from PIL import Image

from srum_jax.core import files
from srum_jax.data import images, masks, parquet, records, srum_dataset

COMMON = pathlib.Path(__file__).parents[1] / "goldens/common/common.json"
RELEASED = json.loads(COMMON.read_text())
LINE = {
    "bad_image_file": "a.png",
    "good_image_file": "a.png",
    "prompt": "a red circle",
    "vlm_rewards": [
        {"object": "circle", "bbox": [1, 2, 9, 10], "score": 0.95},
        {"object": "floor", "bbox": [0, 0, 12, 10], "score": -0.5},
        {"object": "global_layout_reward", "score": 0.25},
    ],
}


def picture(seed, height=10, width=12):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pictures" / "deep").mkdir(parents=True)
    for i, name in enumerate(("a.png", "b.png", "deep/c.png")):
        (tmp_path / "pictures" / name).write_bytes(images.encode_png(picture(i)))
    (tmp_path / "pictures" / "same.png").write_bytes(images.encode_png(picture(0)))
    (tmp_path / "pictures" / "torn.png").write_bytes(images.encode_png(picture(0))[:-90])
    (tmp_path / "secret.png").write_bytes(images.encode_png(picture(9)))
    return tmp_path


def source(folder, *lines):
    text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
    (folder / "data.jsonl").write_text(text)
    return srum_dataset.SrumDataset(folder / "data.jsonl", folder / "pictures")


# -------------------------------------------------------------------------------------- reading


def test_a_line_and_its_pictures(folder):
    other = {**LINE, "good_image_file": "deep/c.png", "prompt": "two  dogs ", "vlm_rewards": []}
    copied = {**LINE, "good_image_file": "same.png", "more": 1}
    one, two, three = (s := source(folder, LINE, other, copied))[0], s[1], s[2]
    assert len(s) == 3
    np.testing.assert_array_equal(one.image, picture(0))
    assert (one.prompt, one.image_score, one.target) == ("a red circle", 0.25, None)
    assert one.regions == (
        srum_dataset.ScoredBox((1, 2, 9, 10), 0.95, "circle"),
        srum_dataset.ScoredBox((0, 0, 12, 10), -0.5, "floor"),
    )
    np.testing.assert_array_equal(two.target, picture(2))
    assert (two.prompt, two.regions, two.image_score) == ("two dogs", (), 0.0)
    assert three.target is None  # another name for the same pixels


def test_a_box_that_reaches_over_the_edge_is_cut(folder):
    (found,) = source(folder, entry(bbox=[-3, 2, 13, 11]))[0].regions
    assert found.bbox == (0, 2, 12, 10)


def entry(**values):
    return {**LINE, "vlm_rewards": [{"object": "x", "bbox": [1, 2, 9, 10], "score": 0.5} | values]}


@pytest.mark.parametrize(
    "line, message",
    [
        ("{", "not JSON"),
        ("[1]", "not an object"),
        ({**LINE, "prompt": " "}, 'no text in the field "prompt"'),
        ({**LINE, "prompt": 3}, 'no text in the field "prompt"'),
        ({**LINE, "prompt": "\ud800"}, 'half a character in the field "prompt"'),
        ({**LINE, "bad_image_file": None}, 'no file name in the field "bad_image_file"'),
        ({k: v for k, v in LINE.items() if k != "good_image_file"}, '"good_image_file"'),
        ({**LINE, "bad_image_file": "../secret.png"}, "leads out of the folder"),
        ({**LINE, "good_image_file": "deep/../../secret.png"}, "leads out of the folder"),
        ({**LINE, "bad_image_file": "/etc/passwd"}, "leads out of the folder"),
        ({**LINE, "bad_image_file": "gs://bucket/a.png"}, "leads out of the folder"),
        ({**LINE, "bad_image_file": "..\\secret.png"}, "leads out of the folder"),
        ({**LINE, "bad_image_file": "z.png"}, "z.png: no such picture file"),
        ({**LINE, "good_image_file": "torn.png"}, "torn.png: not a readable image"),
        ({**LINE, "bad_image_file": "deep"}, "deep is a folder"),
        ({**LINE, "vlm_rewards": None}, '"vlm_rewards" must be a list'),
        ({**LINE, "vlm_rewards": {}}, '"vlm_rewards" must be a list'),
        ({**LINE, "vlm_rewards": ["x"]}, r"vlm_rewards\[0\] must be an object"),
        (entry(score=None), r"vlm_rewards\[0\].score must be a number in \[-1, 1\], got None"),
        (entry(score="0.5"), r"vlm_rewards\[0\].score must be a number"),
        (entry(score=math.nan), r"vlm_rewards\[0\].score must be a number .*nan"),
        (entry(score=1.01), r"vlm_rewards\[0\].score must be a number .*1.01"),
        (entry(score=True), r"vlm_rewards\[0\].score must be a number"),
        (entry(object="global_layout_reward", score=math.inf), r"vlm_rewards\[0\].score"),
        (entry(object=3), r"vlm_rewards\[0\].object must be a text"),
        (entry(bbox=[1, 2, 3]), r"vlm_rewards\[0\].bbox must be four finite numbers"),
        (entry(bbox=[1, 2, math.nan, 4]), r"vlm_rewards\[0\].bbox must be four finite numbers"),
        (entry(bbox=[1, 2, 10**400, 4]), r"vlm_rewards\[0\].bbox must be four finite numbers"),
        (entry(bbox="1,2,3,4"), r"vlm_rewards\[0\].bbox must be four finite numbers"),
        (entry(bbox=[12, 2, 15, 4]), r"vlm_rewards\[0\].bbox = .* outside its picture of 12x10"),
        (entry(bbox=[1, -9, 3, 0]), r"vlm_rewards\[0\].bbox = .* outside its picture of 12x10"),
    ],
)
def test_every_fault_of_a_line_names_its_field(folder, line, message):
    s = source(folder, LINE, line)
    assert s[0].prompt
    with pytest.raises(ValueError, match=message) as error:
        s[1]
    rejected = s.reject(1, error.value)
    assert (rejected.file, rejected.line) == (str(folder / "data.jsonl"), 2)
    records.write_rejects(folder / "rejects.jsonl", [rejected])
    assert json.loads((folder / "rejects.jsonl").read_text())["line"] == 2


def test_missing_files_are_named(folder):
    with pytest.raises(FileNotFoundError, match="nowhere.jsonl: no such file"):
        srum_dataset.SrumDataset(folder / "nowhere.jsonl", folder)
    source(folder, LINE)
    with pytest.raises(FileNotFoundError, match="nothing: no such folder"):
        srum_dataset.SrumDataset(folder / "data.jsonl", folder / "nothing")


def test_the_digest_sees_lines_and_pictures(folder):
    kept = epath.Path(folder / ".source.json")
    first = source(folder, LINE).digest(kept)
    assert source(folder, LINE).digest(kept) == first
    assert source(folder, {**LINE, "prompt": "a red Circle"}).digest(kept) != first
    s = source(folder, LINE, "{", {**LINE, "bad_image_file": "gone.png"})
    assert s.digest(kept) == s.digest(kept) != first
    again = source(folder, LINE)
    assert again.digest(kept) == first
    (folder / "pictures" / "a.png").write_bytes(images.encode_png(picture(7)))
    assert again.digest(kept) != first


def test_pictures_are_read_for_the_digest_once(folder, monkeypatch):
    s, kept, read = source(folder, LINE), epath.Path(folder / ".source.json"), []
    fingerprint = files.fingerprint
    monkeypatch.setattr(files, "fingerprint", lambda *args: read.append(args) or fingerprint(*args))
    assert s.digest(kept) == s.digest(kept) and len(read) == 1
    kept.write_text("{")  # damaged: as if it were not there
    assert s.digest(kept) == s.digest(kept) and len(read) == 2


def test_rewards_are_what_the_released_reader_makes_of_them():
    rng = np.random.default_rng(0)
    for _ in range(50):
        entries = []
        for _ in range(rng.integers(0, 6)):
            made = {"object": "x", "bbox": rng.uniform(-5, 20, 4).tolist()}
            if rng.random() < 0.8:
                made["score"] = float(rng.uniform(-1, 1))
            if rng.random() < 0.2:
                made["bbox"] = None
            entries.append(made)
        if rng.random() < 0.7:
            whole = {"object": srum_dataset.GLOBAL_ENTRY, "score": float(rng.uniform(-1, 1))}
            entries.insert(0, whole)
        found, image_score = srum_dataset.rewards(entries)
        assert image_score == released_reader.image_score(entries)
        boxes, scores, valid = released_reader.regions(entries)
        assert [r.bbox is not None for r in found.values()] == valid.tolist()
        used = [r for r in found.values() if r.bbox]
        np.testing.assert_array_equal(np.array([r.bbox for r in used]).reshape(-1, 4), boxes[valid])
        assert [r.score for r in used] == scores[valid].tolist()


@pytest.mark.parametrize("case", RELEASED["reward_cases_raising"], ids=lambda c: c["name"])
def test_it_raises_where_the_released_reader_raises(case):
    entries = eval(case["vlm_rewards"], {"inf": float("inf")})  # noqa: S307 - our own golden
    if case["global_reward_factor"] is None:
        entries.append({"object": srum_dataset.GLOBAL_ENTRY, "score": None})
    with pytest.raises(ValueError, match="bbox|score"):
        srum_dataset.rewards(entries)


# ------------------------------------------------------------------------ boxes and their picture


LAW = {"long": 256, "short": 64, "stride": 16}


def painted(low, high, height, width):
    """A stripe of full height: alone, an edge is where bytes cross the middle."""
    out = np.zeros((height, width, 3), np.uint8)
    out[:, low:high] = 255
    return out


def moved(box, before, after):
    """One box as the stage `ingest` moves it with its picture."""
    (found,) = masks.resize_boxes(np.array([box]), before, after)
    return tuple(map(int, found))


def check_stripe(low, high, height, width, moved):
    """Columns of the resized stripe are those of `moved`, but for centres right on its edges."""
    shown = images.resize(painted(low, high, height, width), **LAW)
    new = shown.shape[1]
    centres = np.arange(new) + 0.5
    clear = np.min([np.abs(centres - x * new / width) for x in (low, high)], axis=0) > 0.02
    found = shown[..., 0] > 127
    expected = (moved[0] <= np.arange(new)) & (np.arange(new) < moved[1])
    assert clear.sum() >= new - 2
    np.testing.assert_array_equal(found[:, clear], np.broadcast_to(expected, found.shape)[:, clear])


@pytest.mark.parametrize("seed", range(60))
def test_a_box_lands_where_its_picture_shows_it(seed):
    """Paint a box, resize the picture by the model's own rule, and look where the paint is."""
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(20, 400, 2))
    new_w, new_h = images.resized(width, height, **LAW)
    # Wider than the resize's filter, so that its two edges do not meet.
    least_w, least_h = (math.ceil(5 * max(1, a / b)) for a, b in ((width, new_w), (height, new_h)))
    x0, y0 = (int(rng.integers(0, n - m + 1)) for n, m in ((width, least_w), (height, least_h)))
    x1, y1 = int(rng.integers(x0 + least_w, width + 1)), int(rng.integers(y0 + least_h, height + 1))
    there = moved((x0, y0, x1, y1), (height, width), (new_h, new_w))
    check_stripe(x0, x1, height, width, there[::2])
    # The other axis by the picture on its side, which the rule resizes alike.
    assert images.resized(height, width, **LAW) == (new_h, new_w)
    check_stripe(y0, y1, width, height, there[1::2])


def test_a_moved_box_is_never_empty_nor_outside():
    rng = np.random.default_rng(0)
    for _ in range(300):
        h, w, new_h, new_w = (int(v) for v in rng.integers(1, 60, 4))
        x0, y0 = rng.integers(0, w), rng.integers(0, h)
        x1, y1 = rng.integers(x0 + 1, w + 1), rng.integers(y0 + 1, h + 1)
        a, b, c, d = moved((x0, y0, x1, y1), (h, w), (new_h, new_w))
        assert 0 <= a < c <= new_w and 0 <= b < d <= new_h
    assert moved((1, 2, 9, 10), (10, 12), (10, 12)) == (1, 2, 9, 10)


# -------------------------------------------------------------------------------------- writing


def candidate(name, seed):
    return {"id": name, "prompt": f"prompt {name}", "image": picture(seed, 32, 24)}


def region(bbox, score, status="ok", proposer="grid", label="a circle"):
    return {
        "bbox": np.array(bbox, np.float32),
        "score": np.float32(score),
        "status": status,
        "label": label,
        "proposer": proposer,
    }


def test_what_is_written_reads_back(tmp_path):
    drawn = [candidate("0-0", 0), candidate("0-1", 1), candidate("1-0", 2)]
    found = [
        region([1, 2, 9, 10], 0.1, label="é"),
        region([-3, 4.7, 30, 40], -1),
        region([0, 0, 5, 5], np.nan, "unparsed"),
        region([24, 0, 30, 5], 0.5),
        region([0, 0, 5, 5], 0.5, proposer="components"),
    ]
    scored = [
        {"id": "1-0", "image_score": np.float32(1), "image_status": "ok", "regions": []},
        {"id": "0-1", "image_score": np.float32(np.nan), "image_status": "bad", "regions": []},
        {"id": "0-0", "image_score": np.float32(-0.3), "image_status": "ok", "regions": found},
    ]
    counts = srum_dataset.write(tmp_path / "out", drawn, scored, "grid")
    assert counts == {"written": 2, "images left out": 1, "regions left out": 2}
    read = srum_dataset.SrumDataset(
        tmp_path / "out" / srum_dataset.LINES, tmp_path / "out" / srum_dataset.PICTURES
    )
    one, two = read[0], read[1]
    np.testing.assert_array_equal(one.image, drawn[0]["image"])
    np.testing.assert_array_equal(two.image, drawn[2]["image"])
    assert [s.prompt for s in (one, two)] == ["prompt 0-0", "prompt 1-0"]
    assert [np.float32(s.image_score) for s in (one, two)] == [np.float32(-0.3), np.float32(1)]
    assert one.regions == (
        srum_dataset.ScoredBox((1, 2, 9, 10), float(np.float32(0.1)), "é"),
        srum_dataset.ScoredBox((0, 4, 24, 32), -1.0, "a circle"),
    )
    assert two.regions == () and one.target is None
    with pytest.raises(ValueError, match="candidate 1-0 has no score record"):
        srum_dataset.write(tmp_path / "out", drawn[2:], scored[1:], "grid")


# -------------------------------------------------------------------------------------- Parquet


def write_parquet(path, rows, group=2):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)


def test_rows_of_parquet_files(tmp_path):
    png = [images.encode_png(picture(i)) for i in range(5)]
    captions = [json.dumps({"a": "one", "b": "other"}), '["two"]', '"three"']
    plain = [{"image": p, "captions": c} for p, c in zip(png, captions, strict=False)]
    write_parquet(tmp_path / "in" / "0.parquet", plain)
    packed = [{"image": {"bytes": p, "path": "x.png"}, "prompt": " four  words "} for p in png[3:]]
    write_parquet(tmp_path / "in" / "1.parquet", packed)
    s = parquet.Parquet(str(tmp_path / "in" / "*.parquet"))
    assert len(s) == 5
    for i in (4, 0, 3, 1, 2):
        np.testing.assert_array_equal(s[i].image, picture(i))
        assert s[i].image_score is None and s[i].regions == ()
    assert [s[i].prompt for i in range(1, 5)] == ["two", "three", "four words", "four words"]
    drawn = {
        parquet.Parquet(str(tmp_path / "in" / "0.parquet"), seed)[0].prompt for seed in range(9)
    }
    assert drawn == {"one", "other"}
    kept = epath.Path(tmp_path / "source.json")
    assert s.digest(kept) == files.fingerprint(s.paths)


def test_rows_that_cannot_be_used_are_named(tmp_path):
    good = images.encode_png(picture(0))
    rows = [
        {"image": good, "captions": "{"},
        {"image": good, "captions": "[1, null]"},
        {"image": None, "captions": '"x"'},
        {"image": good[:60], "captions": '"x"'},
    ]
    write_parquet(tmp_path / "in" / "0.parquet", rows[:1])
    write_parquet(tmp_path / "in" / "1.parquet", rows[1:])
    s = parquet.Parquet(str(tmp_path / "in" / "*.parquet"))
    messages = ['"captions" is not JSON', 'no text in the column "captions"']
    messages += ['no bytes in the column "image"', "image: not a readable image"]
    for i, message in enumerate(messages):
        with pytest.raises(ValueError, match=message) as error:
            s[i]
        rejected = s.reject(i, error.value)
        assert rejected.file.endswith(f"{min(i, 1)}.parquet") and rejected.line == max(1, i)
        assert rows[i]["captions"] in json.loads(rejected.text).values()
    write_parquet(tmp_path / "bad" / "0.parquet", [{"picture": good, "caption": "x"}])
    with pytest.raises(ValueError, match="must have the columns image and one of captions"):
        parquet.Parquet(str(tmp_path / "bad" / "*.parquet"))
    (tmp_path / "bad" / "0.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="0.parquet: not a readable Parquet file"):
        parquet.Parquet(str(tmp_path / "bad" / "*.parquet"))
    with pytest.raises(FileNotFoundError, match="no file matches"):
        parquet.Parquet(str(tmp_path / "none" / "*.parquet"))


def test_without_pyarrow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    with pytest.raises(ValueError, match=r'pip install "srum_jax\[parquet\]"'):
        parquet.Parquet("x.parquet")


def test_pictures_of_the_released_reader(folder):
    """EXIF does not turn them: boxes were found on pixels that it had not turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = Image.fromarray(picture(3))
    turned.save(folder / "pictures" / "a.png", exif=exif)
    np.testing.assert_array_equal(source(folder, LINE)[0].image, picture(3))
