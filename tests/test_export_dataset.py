"""The command that writes a run's scored candidates as the released data set."""

import errno
import json

import numpy as np
import pytest

from srum_jax import export_dataset
from srum_jax.data import shards, srum_dataset
from srum_jax.data.images import encode_png


@pytest.fixture
def round_folder(tmp_path):
    """A round with two candidates, the second without a score."""
    folder = tmp_path / "round0"
    image = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    drawn, scored = [], []
    for k, status in enumerate(("ok", "unparsed")):
        ids = {"id": f"0-{k}", "prompt_id": 0, "k": k}
        more = {"prompt": "a dog", "category": "x", "seed": 0, "image": encode_png(image)}
        drawn.append({**ids, **more, "latent": np.zeros((2, 2, 8), np.float32)})
        region = {"bbox": np.array([1, 2, 9, 9], np.float32), "score": np.float32(0.5)}
        region |= {"status": "ok", "label": "dog", "proposer": "grid"}
        whole = {"image_score": np.float32(0.25 if not k else np.nan), "image_status": status}
        scored.append({**ids, "regions": [region], **whole})
    for name, kind, features, records in (
        ("generate", "candidates", shards.candidate_features((2, 2, 8)), drawn),
        ("score", "scores", shards.score_features(), scored),
    ):
        shards.write_shard(folder / name, kind, features, records, 0, 1)
        shards.finish(folder / name, kind, features, [2])
    manifest = {
        "stage": "score",
        "config_hash": "",
        "sections": {"score": {"proposers": ["grid"]}},
        **{name: {} for name in ("inputs", "outputs", "versions", "counts", "timing")},
        "allowed_changes": [],
    }
    (folder / "score" / "manifest.json").write_text(json.dumps(manifest))
    return folder


def test_what_is_written_is_read_again(round_folder, tmp_path, capsys):
    assert export_dataset.main([str(round_folder), str(tmp_path / "out")]) == 0
    assert "1 written, 1 images left out" in capsys.readouterr().out
    (one,) = srum_dataset.SrumDataset(tmp_path / "out/data.jsonl", tmp_path / "out/images")
    assert one.prompt == "a dog" and one.image_score == 0.25
    assert one.regions == (srum_dataset.ScoredBox((1, 2, 9, 9), 0.5, "dog"),)


def test_bad_input_is_named(round_folder, tmp_path, capsys):
    assert export_dataset.main([str(round_folder), str(round_folder)]) == 2
    assert export_dataset.main([str(round_folder), str(tmp_path / "b"), "--proposer", "sam"]) == 2
    assert export_dataset.main([str(tmp_path), str(tmp_path / "b")]) == 2
    said = capsys.readouterr().err
    assert "not an empty folder" in said and "regions of grid" in said and "missing" in said


@pytest.mark.parametrize("address", ["hf://datasets/one", "https://a.com/b", "file:///tmp", " "])
def test_an_address_is_no_folder(round_folder, tmp_path, capsys, address):
    assert export_dataset.main([address, str(tmp_path / "out")]) == 2
    assert export_dataset.main([str(round_folder), address]) == 2
    said = capsys.readouterr().err
    assert "error: ROUND: " in said and "error: TARGET: " in said


@pytest.mark.parametrize("there", [True, False])
def test_what_fails_leaves_nothing_in_the_way_of_the_next_try(
    round_folder, tmp_path, monkeypatch, there
):
    out = tmp_path / "out"
    if there:
        out.mkdir()

    def full(path, chunks):
        list(chunks)  # the pictures are written by now
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(srum_dataset.files, "write_bytes", full)
        assert export_dataset.main([str(round_folder), str(out)]) == 2
    assert out.exists() == there and (not there or not list(out.iterdir()))
    assert export_dataset.main([str(round_folder), str(out)]) == 0
