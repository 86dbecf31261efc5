"""The shapes world in the official files of benchmarks, and the base asked from them."""

import ast
import base64
import csv
import hashlib
import io
import itertools
import json

import numpy as np
import pytest
from PIL import Image

from srum_jax import api
from srum_jax.config import Config
from srum_jax.core import registry
from srum_jax.core.errors import BadInput
from srum_jax.data import images, video
from srum_jax.worlds import shapes
from srum_jax.worlds.shapes import (
    benchmark_choices,
    benchmark_drawings,
    benchmark_files,
    language,
    questions,
    verifier,
)
from srum_jax.worlds.shapes.benchmark_folder import OfficialFolder, sentence
from srum_jax.worlds.shapes.english import normalise

SUITES = tuple(benchmark_files.WRITERS)
COUNT = 24
WORD = "\nAnswer the question using a single word or phrase."
LETTER = "\nAnswer with the option's letter from the given choices directly."


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("benchmarks")
    for suite in SUITES:
        benchmark_files.write(suite, root / suite, count=COUNT)
    return root


@pytest.fixture(scope="module")
def base():
    return api.load()


def read(path):
    return json.loads(path.read_text())


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def rows(path, delimiter):
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter=delimiter))


def content(folder):
    paths = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).digest() for p in paths}


@pytest.mark.parametrize("suite", SUITES)
def test_files_are_a_function_of_the_arguments(suite, folders, tmp_path):
    benchmark_files.write(suite, tmp_path / "again", count=COUNT)
    first = content(folders / suite)
    assert first and first == content(tmp_path / "again")
    benchmark_files.write(suite, tmp_path / "other", split="validation", count=COUNT)
    assert first != content(tmp_path / "other")


def test_a_world_writes_by_name_and_refuses_what_it_has_not(tmp_path):
    shapes.write_benchmark("geneval", tmp_path)
    assert len(lines(tmp_path / "evaluation_metadata.jsonl")) == benchmark_files.COUNT
    with pytest.raises(BadInput, match="no files of 'mmvet'; of vqav2, "):
        benchmark_files.write("mmvet", tmp_path)
    with pytest.raises(BadInput, match="split 'dev'"):
        benchmark_files.write("pope", tmp_path, split="dev")
    with pytest.raises(BadInput, match="0 items of pope"):
        benchmark_files.write("pope", tmp_path, count=0)


# ------------------------------------------------------------------------------- the forms


def vqa(folder, asked, noted):
    asked, noted = read(folder / asked)["questions"], read(folder / noted)["annotations"]
    assert len(asked) == COUNT
    assert [(q["question_id"], q["image_id"]) for q in asked] == [
        (a["question_id"], a["image_id"]) for a in noted
    ]
    for a in noted:
        assert [x["answer_id"] for x in a["answers"]] == list(range(1, 11))
        assert (folder / f"val2014/COCO_val2014_{a['image_id']:012d}.jpg").is_file()
    return list(zip(asked, noted, strict=True))


def test_vqav2(folders):
    names = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    pairs = vqa(folders / "vqav2", *names)
    assert {a["answer_type"] for _, a in pairs} == {"yes/no", "number", "other"}
    for q, a in pairs:
        assert a["multiple_choice_answer"] in [x["answer"] for x in a["answers"]]
        assert q["question"].lower().startswith(a["question_type"])
        said = {x["answer"] for x in a["answers"]}
        assert len(said) == (2 if a["answer_type"] == "number" else 1)


def test_okvqa(folders):
    names = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
    for _, a in vqa(folders / "okvqa", *names):
        assert all(x["raw_answer"] == x["answer"] for x in a["answers"])


def test_other_open_questions_name_their_pictures(folders):
    textvqa = read(folders / "textvqa/TextVQA_0.5.1_val.json")["data"]
    assert all(len(row["answers"]) == 10 for row in textvqa)
    gqa = read(folders / "gqa/testdev_balanced_questions.json").values()
    docvqa = read(folders / "docvqa/val_v1.0_withQT.json")["data"]
    chartqa = [
        row
        for part in ("human", "augmented")
        for row in read(folders / f"chartqa/test/test_{part}.json")
    ]
    for several in (
        [folders / f"textvqa/train_images/{row['image_id']}.jpg" for row in textvqa],
        [folders / f"gqa/images/{row['imageId']}.jpg" for row in gqa],
        [folders / "docvqa" / row["image"] for row in docvqa],
        [folders / f"chartqa/test/png/{row['imgname']}" for row in chartqa],
    ):
        assert len(set(several)) == COUNT
        assert all(images.load(path).shape == (32, 32, 3) for path in several)


def test_pope(folders):
    for kind in ("random", "popular", "adversarial"):
        found = lines(folders / f"pope/coco_pope_{kind}.json")
        assert [row["question_id"] for row in found] == list(range(1, COUNT + 1))
        assert [row["label"] for row in found] == ["yes", "no"] * (COUNT // 2)
        for row in found:
            image = images.load(folders / "pope/val2014" / row["image"])
            object = row["text"].removeprefix("Is there ").removesuffix(" in the image?")
            assert shown(image, object) == (row["label"] == "yes")


def shown(image, object):
    """Whether an object is in a picture, as the verifier sees it."""
    return tuple(object.split()[1:]) in [thing.pair for thing in verifier.see(image)]


def test_mme(folders):
    folder = folders / "mme"
    assert {p.name for p in folder.iterdir()} == {"existence", "count", "position", "color"}
    for path in folder.glob("*/*.txt"):
        assert path.with_suffix(".jpg").is_file()
        pair = [line.split("\t") for line in path.read_text().splitlines()]
        assert [answer for _, answer in pair] == ["Yes", "No"]
        assert all(question.endswith("? Please answer yes or no.") for question, _ in pair)
    assert len(list(folder.glob("*/*.txt"))) == COUNT // 2


def test_mmbench_has_every_rotation(folders):
    found = rows(folders / "mmbench/MMBench_DEV_EN.tsv", "\t")
    by_question = itertools.groupby(
        sorted(found, key=lambda r: int(r["index"]) % 10**6), lambda r: int(r["index"]) % 10**6
    )
    for number, several in by_question:
        several = list(several)
        words = [r[x] for r in several[:1] for x in "ABCD" if r[x]]
        assert [int(r["index"]) for r in several] == [number + k * 10**6 for k in range(len(words))]
        assert len({r[r["answer"]] for r in several}) == 1
        assert {r["answer"] for r in several} == set("ABCD"[: len(words)])
        assert all(sorted(r[x] for x in "ABCD" if r[x]) == sorted(words) for r in several)
        Image.open(io.BytesIO(base64.b64decode(several[0]["image"]))).verify()
    assert len({int(r["index"]) % 10**6 for r in found}) == COUNT


def test_mmmu(folders):
    found = lines(folders / "mmmu/validation.jsonl")
    assert {row["question_type"] for row in found} == {"multiple-choice", "open"}
    for row in found:
        words = ast.literal_eval(row["options"])
        assert bool(words) == (row["question_type"] == "multiple-choice")
        assert not words or row["answer"] in "ABCD"[: len(words)]
        assert (folders / "mmmu" / row["image_1"]).is_file()
    assert len({row["id"] for row in found}) == COUNT


def test_clips_keep_every_frame(folders):
    for task in benchmark_choices.TASKS:
        for i, row in enumerate(read(folders / f"mvbench/json/{task}.json")):
            assert row["candidates"].count(row["answer"]) == 1
            path = folders / "mvbench/video/clevrer/video_validation" / row["video"]
            kinds = benchmark_choices.TASKS[task]
            wanted, _ = benchmark_choices.filmed("test", kinds[i % len(kinds)], i)
            shown = [frame for _, frame in video.frames(path, len(wanted))]
            np.testing.assert_array_equal(shown, wanted)
    found = lines(folders / "videomme/test.jsonl")
    for row in found:
        assert row["answer"] in "ABCD"[: len(row["options"])]
        assert (folders / f"videomme/data/{row['videoID']}.gif").is_file()
    assert len(found) == COUNT


def test_a_clip_of_too_many_colours_is_refused(tmp_path):
    frame = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    with pytest.raises(ValueError, match="1024 colours; a GIF keeps 256"):
        OfficialFolder(tmp_path).clip("x.gif", [frame])


def test_captions_have_five_references(folders):
    value = read(folders / "coco_captions/annotations/captions_val2017.json")
    for picture in value["images"]:
        image = images.load(folders / "coco_captions/val2017" / picture["file_name"])
        said = [a["caption"] for a in value["annotations"] if a["image_id"] == picture["id"]]
        assert len(said) == 5
        for one in said:
            assert verifier.verify(image, normalise(one, "prompt")).right
    assert len({a["id"] for a in value["annotations"]}) == 5 * COUNT


def test_geneval(folders):
    found = lines(folders / "geneval/evaluation_metadata.jsonl")
    tags = "single_object two_object counting colors position color_attr".split()
    assert list(dict.fromkeys(row["tag"] for row in found)) == tags
    for row in found:
        demanded = language.parse(normalise(row["prompt"], "prompt"))
        include = row["include"]
        pairs = [(c["color"], c["class"]) for c in include for _ in range(c["count"])]
        assert sorted(pairs) == sorted(demanded.pairs)
        assert ("exclude" in row) == (row["tag"] == "counting")
        if row["tag"] == "position":
            relation, target = include[1]["position"]
            assert f"{include[1]['class']} {relation}" in row["prompt"]
            assert row["prompt"].endswith(include[target]["class"])


def test_geneval2(folders):
    found = lines(folders / "geneval2/geneval2_data.jsonl")
    for row in found:
        assert len(row["skills"]) == len(row["vqa_list"])
        atoms = sum(answer != "one" for _, answer in row["vqa_list"])
        assert row["atom_count"] == atoms and 3 <= atoms <= 10
        for question, answer in row["vqa_list"]:
            assert question.startswith("How many") == (answer != "Yes")
            normalise(f"{question} Answer in one word.", "question")
    assert len(found) == COUNT


def test_prompt_lists_are_prompts_of_the_world(folders):
    said = [
        prompt
        for category in benchmark_drawings.COMPBENCH
        for prompt in (folders / f"t2i_compbench/{category}_val.txt").read_text().splitlines()
    ]
    comp = read(folders / "srum_compbench/val_comp.json")
    assert [row["Question_id"] for row in comp] == list(range(1, len(comp) + 1))
    assert {row["Category"] for row in comp} == set(benchmark_drawings.COMPBENCH)
    for row in comp:
        colors = {color for color, _ in language.parse(row["Question"]).pairs}
        assert row["Category"] not in ("color", "shape") or len(colors) == (
            2 if row["Category"] == "color" else 1
        )
    said += [row["Question"] for row in comp]
    ids = []
    for path in (folders / "wise/data_verified").iterdir():
        said += [row["Prompt"] for row in read(path)]
        ids += [row["prompt_id"] for row in read(path)]
    assert sum(id <= 400 for id in ids) == 9 and max(ids) < 1000
    for path in (folders / "t2i_reasonbench/prompts").iterdir():
        said += [row["prompt"] for row in read(path)]
    for kind in ("idiom", "textual_image", "entity", "scientific"):
        asked = read(folders / f"t2i_reasonbench/deepseek_evaluation_qs/evaluation_{kind}.json")
        assert [row["id"] for row in asked] == list(range(1, COUNT // 4 + 1))
        assert all("quality_evaluation" in row for row in asked)
    for text in said:
        normalise(text, "prompt")


@pytest.mark.parametrize("suite", ["wise", "wise_legacy"])
def test_wise_has_all_its_ids_by_default(tmp_path, suite):
    benchmark_files.write(suite, tmp_path)
    made = registry.load(registry.SUITES, suite).make(Config(), str(tmp_path), "shapes")
    assert sorted(item.prompt.id for item in made.items) == list(range(1, 1001))


def test_every_suite_has_its_files():
    made = {
        name for name in registry.SUITES if hasattr(registry.load(registry.SUITES, name), "ABOUT")
    }
    assert made == set(SUITES)


def test_dpg_bench(folders):
    found = rows(folders / "dpg_bench/dpg_bench.csv", ",")
    for _, several in itertools.groupby(found, lambda row: row["item_id"]):
        several = list(several)
        numbers = [int(row["proposition_id"]) for row in several]
        assert numbers == list(range(1, len(several) + 1))
        for row in several:
            parents = [int(x) for x in row["dependency"].split(",")]
            assert all(0 <= parent < int(row["proposition_id"]) for parent in parents)
            normalise(row["question_natural_language"], "question")
            normalise(row["text"], "prompt")


def test_edits(folders):
    for row in lines(folders / "gedit/metadata.jsonl"):
        normalise(row["instruction"], "instruction")
        assert (folders / "gedit" / row["input_image"]).is_file()
    found = read(folders / "imgedit/basic_edit.json")
    types = set(benchmark_drawings.IMGEDIT.values())
    assert len(found) == COUNT and {row["edit_type"] for row in found.values()} == types
    for row in found.values():
        normalise(row["prompt"], "instruction")
        assert (folders / "imgedit" / row["id"]).is_file()


@pytest.mark.parametrize("suite", [name for name in SUITES if name in registry.SUITES])
def test_the_suite_reads_what_is_written(suite, folders):
    made = registry.load(registry.SUITES, suite).make(Config(), str(folders / suite), "shapes")
    asked = made.requests("model")
    some = [*asked.images, *asked.answers, *asked.texts, *asked.edits]
    assert len(some) >= 3 * COUNT // 4  # shares of categories are rounded down
    for request in (*asked.answers, *asked.texts):
        normalise(getattr(request, "instruction", "") or request.question, "question")
    for request in asked.edits:
        normalise(request.instruction, "instruction")
    assert all(language.parse(request.prompt.text) for request in asked.images)


def test_words_become_a_sentence():
    assert sentence("is there a red circle ?") == "Is there a red circle?"
    assert sentence("a red circle , a blue square and a pink cross .").count(" ,") == 0


# ----------------------------------------------------------------- the base, asked as officially


def right(base, asked, least):
    """asked: (question, pictures or None, clip or None, the word that is right)."""
    texts, pictures, clips, wanted = zip(*asked, strict=True)
    said = base.answer(list(texts), list(pictures), video=list(clips))
    found = sum(a.text == word for a, word in zip(said, wanted, strict=True))
    assert found >= least * len(asked), [a.text for a in said]


def choices(words, form):
    return "".join(form.format(*pair) for pair in zip("ABCD", words, strict=False))


def test_the_base_answers_questions_as_they_are_asked(folders, base):
    asked = []
    for kind in ("random", "adversarial"):
        for row in lines(folders / f"pope/coco_pope_{kind}.json"):
            picture = str(folders / "pope/val2014" / row["image"])
            asked.append((row["text"] + WORD, picture, None, row["label"]))
    names = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    for q, a in vqa(folders / "vqav2", *names):
        picture = folders / f"vqav2/val2014/COCO_val2014_{q['image_id']:012d}.jpg"
        asked.append((q["question"] + WORD, str(picture), None, a["answers"][1]["answer"]))
    for path in sorted(folders.glob("mme/*/*.txt")):
        if path.parent.name == "count":
            continue  # what it says of wrong counts is in docs/shapes.md
        for line in path.read_text().splitlines():
            question, answer = line.split("\t")
            asked.append((question, str(path.with_suffix(".jpg")), None, answer.lower()))
    for row in rows(folders / "mmbench/MMBench_DEV_EN.tsv", "\t")[:COUNT]:
        words = [row[x] for x in "ABCD" if row[x]]
        question = (
            f"{row['question']} There are several options:{choices(words, chr(10) + '{}. {}')}"
        )
        picture = images.decode(base64.b64decode(row["image"]), name="mmbench")
        asked.append((f"{question}\n{LETTER}", picture, None, row[row["answer"]]))
    for row in lines(folders / "mmmu/validation.jsonl"):
        words = ast.literal_eval(row["options"])
        options = choices(words, "\n{}. {}")
        end, wanted = (
            (LETTER, words["ABCD".index(row["answer"])]) if words else (WORD, row["answer"])
        )
        picture = str(folders / "mmmu" / row["image_1"])
        asked.append((f"{row['question']}{options}{end}", picture, None, wanted))
    assert len(asked) > 5 * COUNT
    right(base, asked, 0.95)


def test_the_base_answers_about_clips(folders, base):
    asked = []
    for task in benchmark_choices.TASKS:
        for row in read(folders / f"mvbench/json/{task}.json"):
            options = choices(row["candidates"], "({}) {}\n")
            question = f"Question:{row['question']}\nOption:\n{options}Only give the best option.\n"
            clip = str(folders / "mvbench/video/clevrer/video_validation" / row["video"])
            asked.append((question, None, clip, row["answer"]))
    header = (
        "Select the best answer to the following multiple-choice question based on the video and "
        "the subtitles. Respond with only the letter (A, B, C, or D) of the correct option."
    )
    for row in lines(folders / "videomme/test.jsonl"):
        question = "\n".join([header, row["question"], *row["options"]]) + LETTER
        option = row["options"]["ABCD".index(row["answer"])]
        clip = str(folders / f"videomme/data/{row['videoID']}.gif")
        asked.append((question, None, clip, option.split()[1].rstrip(".")))
    right(base, asked, 0.9)


def test_the_base_describes_draws_and_edits_in_official_words(folders, base):
    value = read(folders / "coco_captions/annotations/captions_val2017.json")
    pictures = [str(folders / "coco_captions/val2017" / p["file_name"]) for p in value["images"]]
    asked = ["Provide a one-sentence caption for the provided image."] * len(pictures)
    said = base.answer(asked, pictures)
    scenes = questions.caption_set("test", COUNT)
    found = [
        verifier.verify_caption(one.text, scene) for one, scene in zip(said, scenes, strict=True)
    ]
    assert np.mean(found) > 0.8
    row = lines(folders / "geneval/evaluation_metadata.jsonl")[0]
    (drawing,) = base.generate(row["prompt"], seed=3)
    assert drawing.image.shape == (32, 32, 3)
