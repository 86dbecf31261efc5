"""Captions end to end on files of COCO's and Karpathy's format."""

import dataclasses
import json

import pytest
from drawn_replies import config
from edit_suites import picture, save

from srum_jax.core.errors import BadInput
from srum_jax.evals import benchmark
from srum_jax.evals.suite import ModelOutputs, Replies
from srum_jax.evals.suites import coco_captions

SAID = ["A dog runs.", "The cat's asleep!", "Two horses (brown) eat."]


def coco(folder, **changes):
    """COCO's format: three pictures, two captions each."""
    value = {
        "images": [{"id": 7 + i, "file_name": f"{i:012d}.jpg"} for i in range(3)],
        "annotations": [
            {"id": k * 10 + i, "image_id": 7 + i, "caption": said + k * " It is day."}
            for k in range(2)
            for i, said in enumerate(SAID)
        ],
    } | changes
    path = folder / "annotations" / "captions_val2017.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))
    for i in range(3):
        save(folder / "val2017" / f"{i:012d}.jpg", picture(i))
    return path


def karpathy(folder):
    rows = [
        {
            "filepath": "val2014" if i % 2 else "train2014",
            "filename": f"COCO_{i}.jpg",
            "imgid": i,
            "cocoid": 100 + i,
            "split": "test" if i < 3 else "restval",
            "sentences": [{"raw": said, "tokens": []}],
        }
        for i, said in enumerate([*SAID, "A boat."])
    ]
    (folder / "dataset_coco.json").write_text(json.dumps({"images": rows, "dataset": "coco"}))
    for row in rows:
        save(folder / row["filepath"] / row["filename"], picture(row["imgid"]))


def suite(folder, **values):
    return coco_captions.make(config(**values), str(folder), "")


def records(made, said):
    requests = made.requests("base")
    return made.verdicts(requests, Replies(texts=said))


def test_cocos_format_is_read(tmp_path):
    path = coco(tmp_path)
    made = suite(tmp_path)
    assert (made.data.n, made.data.total, made.data.variant) == (3, 3, "captions_val2017.json")
    asked = made.requests("base").texts
    assert [r.truth["image_id"] for r in asked] == [7, 8, 9]
    assert asked[0].truth["references"] == ["A dog runs.", "A dog runs. It is day."]
    assert asked[2].images[0][0, 0, 0] == 2
    assert suite(path).pictures == made.pictures
    assert len(suite(tmp_path, limit=2).pictures) == 2


def test_karpathys_test_split_is_read(tmp_path):
    karpathy(tmp_path)
    made = suite(tmp_path)
    assert [one.number for one in made.pictures] == [100, 101, 102]
    assert made.data.variant == "Karpathy test split"
    assert [one.picture.parent.name for one in made.pictures] == [
        "train2014",
        "val2014",
        "train2014",
    ]
    coco(tmp_path)  # Karpathy's comes first
    assert suite(tmp_path).pictures == made.pictures


def test_domains_are_categories(tmp_path):
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "domain": f"{i}-domain"} for i in range(3)]
    notes = [{"image_id": i, "caption": said} for i, said in enumerate(SAID)]
    coco(tmp_path, images=images, annotations=notes)
    assert [one.category for one in suite(tmp_path).pictures] == [
        "0-domain",
        "1-domain",
        "2-domain",
    ]


def test_scores_are_of_tokens(tmp_path):
    coco(tmp_path)
    made = suite(tmp_path)
    scored = made.score(records(made, ["a dog runs", "the cat 's asleep", ""]))
    assert (scored.n, scored.failed, scored.units) == (3, 1, ("7", "8", "9"))
    assert list(scored.strict)[0] == "CIDEr"
    assert set(scored.as_released) == {"CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"}
    values = [item["value"] for item in scored.items]
    assert values[0] > 1 and values[1] > 1 and values[2] == 0
    assert scored.as_released["CIDEr"] == pytest.approx(sum(values) / 3)
    assert scored.as_released["CIDEr"] == scored.strict["CIDEr"].number
    assert scored.as_released["ROUGE_L"] == pytest.approx(2 / 3)
    assert scored.by_category["all"] == {"n": 3, "CIDEr": pytest.approx(sum(values) / 3)}
    assert "people said: A dog runs." in scored.items[0]["reason"]


def test_better_captions_win_with_an_interval(tmp_path):
    coco(tmp_path)
    made = suite(tmp_path)
    outputs = {
        name: ModelOutputs(requests := made.requests(name), Replies(texts=said), None)
        for name, said in {"base": ["a dog", "", "horses"], "trained": SAID}.items()
    }
    assert requests
    outputs = {
        name: dataclasses.replace(one, verdicts=made.verdicts(one.requests, one.replies))
        for name, one in outputs.items()
    }
    found = made.findings(outputs)
    section = found.section
    assert section["metric"] == "CIDEr" and section["paired"]["diff"] > 0
    low, high = section["models"]["trained"]["ci95"]["Bleu_4"]
    assert 0 <= low <= section["models"]["trained"]["strict"]["Bleu_4"] <= high
    assert found.examples["examples-coco_captions"][0]["image"].shape == (8, 12, 3)


def test_the_official_results_file(tmp_path):
    coco(tmp_path)
    made = suite(tmp_path)
    folder = benchmark.epath.Path(tmp_path / "out")
    folder.mkdir()
    made.official(folder, made.requests("base"), Replies(texts=["a", "ü", ""]))
    rows = json.loads((folder / "captions_results.json").read_text())
    assert rows == [
        {"image_id": 7, "caption": "a"},
        {"image_id": 8, "caption": "ü"},
        {"image_id": 9, "caption": ""},
    ]


@pytest.mark.parametrize(
    "changes,message",
    [
        ({"images": 5}, "must be a list"),
        ({"images": []}, "holds nothing to ask"),
        ({"images": [{"file_name": "a.jpg"}]}, "item 1: .id. is missing"),
        ({"annotations": [{"image_id": 1, "caption": "x"}]}, "no picture .* has the id 1"),
        ({"annotations": [{"image_id": 7, "caption": 5}]}, "caption. is 5"),
        ({"annotations": [{"image_id": 7, "caption": "x"}]}, "item 2: nobody's caption"),
        (
            {
                "images": [{"id": 7, "file_name": "gone.jpg"}],
                "annotations": [{"image_id": 7, "caption": "x"}],
            },
            "gone.jpg.* is not there",
        ),
        (
            {"images": [{"id": 7, "file_name": "a"}] * 2},
            "item 2: id 7 stands at .*item 1 too",
        ),
    ],
)
def test_bad_files_are_named(tmp_path, changes, message):
    coco(tmp_path, **changes)
    with pytest.raises(BadInput, match=message):
        suite(tmp_path)


def test_a_folder_without_captions_is_refused(tmp_path):
    with pytest.raises(BadInput, match="holds no dataset_coco.json or"):
        suite(tmp_path)
    (tmp_path / "dataset_coco.json").write_text('{"images": [{"split": "train"}]}')
    with pytest.raises(BadInput, match='whose "split" is "test"'):
        suite(tmp_path)


def test_records_without_references_are_refused():
    with pytest.raises(BadInput, match="caption of 1 has no references"):
        coco_captions.score([coco_captions.Record("1", "all", "", "a", truth={"references": []})])
