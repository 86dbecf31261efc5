"""The shapes world's questions and captions in the official files of open-answer benchmarks.

Owns VQAv2, OK-VQA, TextVQA, GQA, DocVQA, ChartQA, POPE, MME and COCO captions. Questions are the
world's own in plain English, without what a benchmark's harness adds to them. COCO pictures are
JPEGs by their names; the others keep every pixel.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from itertools import cycle, islice

from srum_jax.worlds.shapes import language
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.benchmark_folder import OfficialFolder, sentence
from srum_jax.worlds.shapes.language import NUMBERS, RELATION_WORDS, RELATIONS, name, plural
from srum_jax.worlds.shapes.question_forms import SCENE_KINDS, ShapesQuestion
from srum_jax.worlds.shapes.questions import caption_set, scene_of, scene_questions, stream_rng
from srum_jax.worlds.shapes.rendering import COLORS, SIDE, Pair, Scene, Thing, pick

ASKED, PROBED, EXAMINED = 24, 25, 26  # streams of random numbers
POLAR = ("exists", "relation_yesno", "caption_right")
ANSWERS = 10  # that people gave to a question of VQAv2
REFERENCES = 5  # of a COCO picture
# What stands beside the lists of VQA's two files; the official program reads all of it.
_VQA_HEAD = {
    "info": {"description": "shapes"},
    "license": {},
    "data_type": "mscoco",
    "data_subtype": "val2014",
}
PROBES = 3  # of POPE: objects that are there, and as many that are not, a picture


def coco_name(number: int) -> str:
    """The file name of a picture of COCO's val2014."""
    return f"COCO_val2014_{number:012d}.jpg"


def vqav2(out: OfficialFolder, split: str, count: int) -> None:
    """The two files of the validation split, ten answers a question, and val2014/."""
    asked, noted = [], []
    for number, (scene, question) in enumerate(_asked(split, count), 1):
        ids = {"image_id": number, "question_id": 1000 * number}
        answers = _ten(question)
        noted.append(
            ids
            | {
                "question_type": " ".join(question.text.split()[:3]),
                "answer_type": _answer_type(question),
                "multiple_choice_answer": Counter(answers).most_common(1)[0][0],
                "answers": [
                    {"answer": one, "answer_confidence": "yes", "answer_id": i}
                    for i, one in enumerate(answers, 1)
                ],
            }
        )
        asked.append(ids | {"question": sentence(question.text)})
        out.picture(f"val2014/{coco_name(number)}", render.draw(scene))
    named = "v2_OpenEnded_mscoco_val2014_questions.json", "v2_mscoco_val2014_annotations.json"
    out.json(named[0], _VQA_HEAD | {"task_type": "Open-Ended", "questions": asked})
    out.json(named[1], _VQA_HEAD | {"annotations": noted})


def okvqa(out: OfficialFolder, split: str, count: int) -> None:
    """As VQAv2, with OK-VQA's names and the stemmed answers beside the raw ones."""
    asked, noted = [], []
    for number, (scene, question) in enumerate(_asked(split, count), 1):
        ids = {"image_id": number, "question_id": 10 * number + 5}
        answers = [
            {"answer_id": i, "raw_answer": one, "answer_confidence": "yes", "answer": one}
            for i, one in enumerate(_ten(question), 1)
        ]
        beside = {"answer_type": "other", "question_type": "one", "confidence": 3}
        noted.append(ids | beside | {"answers": answers})
        asked.append(ids | {"question": sentence(question.text)})
        out.picture(f"val2014/{coco_name(number)}", render.draw(scene))
    named = "OpenEnded_mscoco_val2014_questions.json", "mscoco_val2014_annotations.json"
    out.json(named[0], _VQA_HEAD | {"task_type": "Open-Ended", "questions": asked})
    out.json(named[1], _VQA_HEAD | {"annotations": noted})


def textvqa(out: OfficialFolder, split: str, count: int) -> None:
    """TextVQA_0.5.1_val.json and train_images/. The world has no letters: the form alone is its."""
    rows = []
    for number, (scene, question) in enumerate(_asked(split, count), 1):
        image_id, written = f"{number:016x}", sentence(question.text)
        rows.append(
            {
                "question": written,
                "image_id": image_id,
                "image_classes": [thing.shape for thing in scene.things],
                "image_width": SIDE,
                "image_height": SIDE,
                "answers": _ten(question),
                "question_tokens": written.lower().rstrip("?").split(),
                "question_id": 34601 + number,
                "set_name": "val",
            }
        )
        out.picture(f"train_images/{image_id}.jpg", render.draw(scene))
    head = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    out.json("TextVQA_0.5.1_val.json", head | {"data": rows})


def gqa(out: OfficialFolder, split: str, count: int) -> None:
    """testdev_balanced_questions.json and images/."""
    rows = {}
    for number, (scene, question) in enumerate(_asked(split, count), 1):
        verify = _answer_type(question) == "yes/no"
        relation = question.kind.startswith("relation")
        rows[f"20{number:06d}"] = {
            "imageId": f"n{number}",
            "question": sentence(question.text),
            "answer": question.answer,
            "fullAnswer": sentence(f"{question.answer} ."),
            "isBalanced": True,
            "groups": {"global": question.kind, "local": question.text},
            "types": {
                "structural": "verify" if verify else "query",
                "semantic": "rel" if relation else "attr",
                "detailed": question.kind,
            },
            "entailed": [],
            "equivalent": [f"20{number:06d}"],
        }
        out.picture(f"images/n{number}.jpg", render.draw(scene))
    out.json("testdev_balanced_questions.json", rows)


def docvqa(out: OfficialFolder, split: str, count: int) -> None:
    """val_v1.0_withQT.json and documents/."""
    rows = []
    for number, (scene, question) in enumerate(_asked(split, count), 1):
        image = f"documents/shapes{number:04d}_1.png"
        rows.append(
            {
                "questionId": number,
                "question": sentence(question.text),
                "question_types": ["figure/diagram"],
                "image": image,
                "docId": number,
                "ucsf_document_id": f"shapes{number:04d}",
                "ucsf_document_page_no": "1",
                "answers": [question.answer],
                "data_split": "val",
            }
        )
        out.picture(image, render.draw(scene))
    head = {"dataset_name": "SP-DocVQA", "dataset_version": "1.0", "dataset_split": "val"}
    out.json("val_v1.0_withQT.json", head | {"data": rows})


def chartqa(out: OfficialFolder, split: str, count: int) -> None:
    """test/test_human.json, test/test_augmented.json (counts) and test/png/. Counts are words, as
    the world says them."""
    rows: dict[str, list[dict[str, str]]] = {"human": [], "augmented": []}
    for number, (scene, question) in enumerate(_asked(split, count), 1):
        named = f"{number}.png"
        part = "augmented" if question.kind == "count" else "human"
        rows[part].append(
            {"imgname": named, "query": sentence(question.text), "label": question.answer}
        )
        out.picture(f"test/png/{named}", render.draw(scene))
    for part, some in rows.items():
        out.json(f"test/test_{part}.json", some)


def _asked(split: str, count: int) -> tuple[tuple[Scene, ShapesQuestion], ...]:
    return scene_questions(split, SCENE_KINDS, count, ASKED)


def _answer_type(question: ShapesQuestion) -> str:
    if question.kind in POLAR:
        return "yes/no"
    return "number" if question.kind == "count" else "other"


def _ten(question: ShapesQuestion) -> list[str]:
    """What ten people answer: a count in words or digits as it comes, all else alike."""
    if question.kind != "count":
        return [question.answer] * ANSWERS
    ways = str(NUMBERS.index(question.answer)), question.answer
    return list(islice(cycle((*ways, ways[0])), ANSWERS))


# ----------------------------------------------------------------------------- yes or no


def pope(out: OfficialFolder, split: str, count: int) -> None:
    """Three files of `count` lines, six about a picture: three objects that are there, and three
    that are not, drawn evenly, the most frequent ones, or those with the scene's own colours and
    shapes; pictures in val2014/."""
    number = -(-count // (2 * PROBES))
    rngs = [stream_rng(0, i, PROBED) for i in range(number)]
    scenes = [scene_of(rng, split, (("triple", 1.0), ("quad", 1.0))) for rng in rngs]
    shown = [[thing.pair for thing in scene.things] for scene in scenes]
    frequent = [pair for pair, _ in Counter(p for pairs in shown for p in pairs).most_common()]
    for i, scene in enumerate(scenes, 1):
        out.picture(f"val2014/{coco_name(i)}", render.draw(scene))
    for kind in ("random", "popular", "adversarial"):
        rows = []
        for i, pairs in enumerate(shown, 1):
            rng = stream_rng(1, i, PROBED)
            absent = _absent(rng, kind, pairs, frequent)
            for there, other in zip(pairs[:PROBES], absent[:PROBES], strict=True):
                rows += [(i, there, "yes"), (i, other, "no")]
        out.lines(
            f"coco_pope_{kind}.json",
            (
                {
                    "question_id": n,
                    "image": coco_name(i),
                    "text": f"Is there {name(pair)} in the image?",
                    "label": label,
                }
                for n, (i, pair, label) in enumerate(rows[:count], 1)
            ),
        )


def _absent(rng: random.Random, kind: str, shown: list[Pair], frequent: list[Pair]) -> list[Pair]:
    """Pairs that a picture of `shown` lacks, the likeliest to be taken for there first."""
    others = [pair for pair in render.shuffled(rng, language.PAIRS) if pair not in shown]
    if kind == "popular":
        return [pair for pair in frequent if pair not in shown] + others
    if kind == "adversarial":
        colors, shapes = zip(*shown, strict=True)
        others.sort(key=lambda pair: (pair[0] not in colors) + (pair[1] not in shapes))
    return others


def mme(out: OfficialFolder, split: str, count: int) -> None:
    """The folders of the four categories that the world can express, `count` questions over them:
    two a picture, yes and no, in a text file beside it."""
    for category, (wanted, ask) in _EXAMINED.items():
        rows, index = 0, 0
        while rows < max(count // (2 * len(_EXAMINED)), 1):
            rng = stream_rng(list(_EXAMINED).index(category), index, EXAMINED)
            index += 1
            scene = scene_of(rng, split, wanted)
            found = ask(rng, scene)
            if found is None:
                continue
            rows += 1
            lines = (
                f"{text} Please answer yes or no.\t{answer}\n"
                for text, answer in zip(found, ("Yes", "No"), strict=True)
            )
            out.text(f"{category}/{rows:012d}.txt", "".join(lines))
            out.picture(f"{category}/{rows:012d}.jpg", render.draw(scene))


def _existence(rng: random.Random, scene: Scene) -> tuple[str, str]:
    there = pick(rng, scene.things).pair
    others = _absent(rng, "adversarial", [t.pair for t in scene.things], [])
    return tuple(f"Is there {name(pair)} in this image?" for pair in (there, others[0]))


def _counts(rng: random.Random, scene: Scene) -> tuple[str, str]:
    number, (color, shape) = len(scene.things), scene.things[0].pair
    other = pick(rng, [n for n in (2, 3, 4) if n != number])
    return tuple(
        f"Does this image show {NUMBERS[n]} {color} {plural(shape)}?" for n in (number, other)
    )


def _positions(rng: random.Random, scene: Scene) -> tuple[str, str]:
    first, second = scene.things
    true = pick(rng, [r for r in RELATIONS if language.holds(first, r, second)])
    return tuple(
        f"Is the {' '.join(first.pair)} {RELATION_WORDS[r]} the {' '.join(second.pair)}?"
        for r in (true, language.OPPOSITE[true])
    )


def _colors(rng: random.Random, scene: Scene) -> tuple[str, str] | None:
    """None where no shape is alone."""
    shapes = Counter(t.shape for t in scene.things)
    alone: list[Thing] = [t for t in scene.things if shapes[t.shape] == 1]
    if not alone:
        return None
    thing = pick(rng, alone)
    other = pick(rng, [c for c in COLORS if c != thing.color])
    return tuple(f"Is the {thing.shape} {color} in this image?" for color in (thing.color, other))


_EXAMINED = {  # category of MME: categories of scenes, and its two questions, of yes and of no
    "existence": ((("attr", 1.0), ("triple", 1.0)), _existence),
    "count": ((("count", 1.0),), _counts),
    "position": ((("attr", 1.0),), _positions),
    "color": ((("attr", 1.0), ("triple", 1.0)), _colors),
}


# ------------------------------------------------------------------------------- captions


def coco_captions(out: OfficialFolder, split: str, count: int) -> None:
    """annotations/captions_val2017.json with five references a picture, and val2017/."""
    pictures, captions = [], []
    for number, scene in enumerate(caption_set(split, count), 1):
        file = f"{number:012d}.jpg"
        size = {"height": SIDE, "width": SIDE}
        pictures.append({"id": number, "file_name": file, **size})
        captions += [
            {"image_id": number, "id": REFERENCES * number + k, "caption": sentence(f"{text} .")}
            for k, text in enumerate(references(scene))
        ]
        out.picture(f"val2017/{file}", render.draw(scene))
    value = {"info": {"description": "shapes"}, "licenses": [], "images": pictures}
    out.json("annotations/captions_val2017.json", value | {"annotations": captions})


def references(scene: Scene) -> Iterator[str]:
    """Five captions that are right, one wording of each content in turn, again where few are."""
    ways = [language.wordings(content)[:REFERENCES] for content in language.scene_contents(scene)]
    longest = max(map(len, ways))
    several = (way[i] for i in range(longest) for way in ways if i < len(way))
    return islice(cycle(several), REFERENCES)
