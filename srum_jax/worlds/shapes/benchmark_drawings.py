"""The shapes world's prompts and edits in the official files of benchmarks of drawing and editing.

Owns GenEval, GenEval2, T2I-CompBench, SRUM's CompBench, WISE, T2I-ReasonBench, DPG-Bench, GEdit and
ImgEdit. A benchmark's categories that the world has no words for stay empty: nothing is renamed
to fill them but where a docstring says so.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from srum_jax.worlds.shapes import language
from srum_jax.worlds.shapes import rendering as render
from srum_jax.worlds.shapes.benchmark_folder import OfficialFolder, sentence
from srum_jax.worlds.shapes.changes import edit_set
from srum_jax.worlds.shapes.language import NUMBERS, RELATION_WORDS, Content, name, plural
from srum_jax.worlds.shapes.questions import stream_rng
from srum_jax.worlds.shapes.rendering import Pair

ORDERED = 30  # a stream of random numbers
GENEVAL_COLORS = frozenset("red green blue yellow purple pink white".split())  # of its ten
COMPBENCH = ("color", "shape", "spatial", "numeracy", "complex")  # of T2I-CompBench's eight
WISE = (  # file, first and last id, Category, Subcategory
    ("cultural_common_sense", 1, 400, "Cultural knowledge", "Shapes"),
    ("spatio-temporal_reasoning", 401, 520, "Spatio-temporal reasoning", "Longitudinal time"),
    ("spatio-temporal_reasoning", 521, 640, "Spatio-temporal reasoning", "Relative position"),
    ("natural_science", 641, 760, "Natural Science", "Biology"),
    ("natural_science", 761, 880, "Natural Science", "Physics"),
    ("natural_science", 881, 1000, "Natural Science", "Chemistry"),
)
REASONBENCH = {  # prompts' file: that of the questions, and the parts of what is asked
    "idiom_interpretation": ("idiom", ("reason_evaluation", "quality_evaluation")),
    "textual_image_design": ("textual_image", ("reason_evaluation", "quality_evaluation")),
    "entity_reasoning": (
        "entity",
        ("entity_evaluation", "other_details_evaluation", "quality_evaluation"),
    ),
    "scientific_reasoning": (
        "scientific",
        ("scientific_evaluation", "other_details_evaluation", "quality_evaluation"),
    ),
}
GEDIT = {  # kind of edit: GEdit's task type
    "recolor": "color_alter",
    "add": "subject-add",
    "remove": "subject-remove",
    "move": "motion_change",
}
IMGEDIT = {"recolor": "adjust", "add": "add", "remove": "remove", "move": "action"}


def prompts_of(split: str, *categories: str) -> list[tuple[str, Content]]:
    """The split's prompts of some categories, in a drawn order, with what they demand."""
    found = [p.text for p in language.prompts(split) if p.category in categories]
    return [
        (text, language.parse(text)) for text in render.shuffled(stream_rng(0, 0, ORDERED), found)
    ]


def mixed_prompts(split: str, count: int) -> list[tuple[str, Content]]:
    """`count` prompts, all categories in turn."""
    prompts = language.balanced_prompts(split, count)
    return [(prompt.text, language.parse(prompt.text)) for prompt in prompts]


# ---------------------------------------------------------------------------------- GenEval


def geneval(out: OfficialFolder, split: str, count: int) -> None:
    """evaluation_metadata.jsonl. A class is a shape; since prompts name its colour whatever their
    tag, so do all clauses. Two objects of a prompt have two shapes, its colours are of those that
    GenEval tells apart."""
    tags = {
        "single_object": ("single", _each),
        "two_object": ("attr", _each),
        "counting": ("count", _counted),
        "colors": ("single", _each),
        "position": ("spatial", _placed),
        "color_attr": ("attr", _each),
    }
    rows = []
    for tag, (category, make) in tags.items():
        some = [(text, c) for text, c in prompts_of(split, category) if _of_geneval(c)]
        some = some[::-1] if tag.startswith("color") else some  # others than of the tags before
        for text, content in some[: max(count // len(tags), 1)]:
            include = make(text, content)
            row: dict[str, Any] = {"tag": tag, "include": include}
            if tag == "counting":
                shape, number = include[0]["class"], include[0]["count"]
                row["exclude"] = [{"class": shape, "count": number + 1}]
            rows.append(row | {"prompt": f"a photo of {text}"})
    out.lines("evaluation_metadata.jsonl", rows)


def _of_geneval(content: Content) -> bool:
    colors, shapes = zip(*content.pairs, strict=True)
    alike = content.category == "count" or len(set(shapes)) == len(shapes)
    return alike and GENEVAL_COLORS.issuperset(colors)


def _each(text: str, content: Content) -> list[dict[str, Any]]:
    return [_clause(pair, 1) for pair in content.pairs]


def _counted(text: str, content: Content) -> list[dict[str, Any]]:
    return [_clause(content.pairs[0], len(content.pairs))]


def _placed(text: str, content: Content) -> list[dict[str, Any]]:
    """The object that the prompt names last comes first: the other's place is told by it."""
    first, second = _each(text, content)
    if text == language.wording(content, 0):
        return [second, first | {"position": [RELATION_WORDS[content.relation], 0]}]
    opposite = RELATION_WORDS[language.OPPOSITE[content.relation]]
    return [first, second | {"position": [opposite, 0]}]


def _clause(pair: Pair, count: int) -> dict[str, Any]:
    return {"class": pair[1], "count": count, "color": pair[0]}


def geneval2(out: OfficialFolder, split: str, count: int) -> None:
    """geneval2_data.jsonl: of every object whether it is there, how many there are and its colour,
    and how two of them lie. A lone object is counted but, as there, no atom of its own."""
    rows = []
    usual = ("attr", "spatial", "count", "triple", "quad")
    each = zip(*(prompts_of(split, category) for category in usual), strict=False)
    for text, content in [one for several in each for one in several][:count]:
        asked = list(_atoms(content))
        rows.append(
            {
                "prompt": text,
                "atom_count": sum(answer != "one" for _, answer, _ in asked),
                "vqa_list": [[question, answer] for question, answer, _ in asked],
                "skills": [skill for *_, skill in asked],
            }
        )
    out.lines("geneval2_data.jsonl", rows)


def _atoms(content: Content) -> Iterator[tuple[str, str, str]]:
    """Question, answer and skill of each thing that a prompt demands."""
    for pair in dict.fromkeys(content.pairs):
        color, shape = pair
        number = content.pairs.count(pair)
        yield f"Are there any {color} {plural(shape)} in the image?", "Yes", "object"
        many = f"How many {color} {plural(shape)} are in the image?"
        yield many, NUMBERS[number], "count"
        yield f"Is the {shape} {color}?", "Yes", "attribute"
    if content.relation:
        yield _relation_question(content), "Yes", "position"


def _relation_question(content: Content) -> str:
    first, second = (" ".join(pair) for pair in content.pairs)
    return f"Is the {first} {RELATION_WORDS[content.relation]} the {second}?"


# -------------------------------------------------------------------- other drawing


def t2i_compbench(out: OfficialFolder, split: str, count: int) -> None:
    """<category>_val.txt of five categories, a prompt a line; of the complex ones, which have three
    or four objects, none is spatial or about an action."""
    for category in COMPBENCH:
        prompts = _of_compbench(split, category, count)
        out.text(f"{category}_val.txt", "\n".join(prompts) + "\n")
    for part in ("spatial", "action"):
        out.text(f"complex_val_{part}.txt", "")


def srum_compbench(out: OfficialFolder, split: str, count: int) -> None:
    """val_comp.json of the same five categories."""
    rows = [(text, c) for c in COMPBENCH for text in _of_compbench(split, c, count)]
    value = [
        {"Question": text, "Category": category, "Question_id": i}
        for i, (text, category) in enumerate(rows, 1)
    ]
    out.json("val_comp.json", value)


def _of_compbench(split: str, category: str, count: int) -> list[str]:
    """The share of one category; two objects differ in colour, or in their shape alone."""
    own = {"spatial": ("spatial",), "numeracy": ("count",), "complex": ("triple", "quad")}
    prompts = prompts_of(split, *own.get(category, ("attr",)))
    if category in ("color", "shape"):
        wanted = 2 if category == "color" else 1
        prompts = [(t, c) for t, c in prompts if len({color for color, _ in c.pairs}) == wanted]
    return [text for text, _ in prompts[: max(count // len(COMPBENCH), 1)]]


def wise(out: OfficialFolder, split: str, count: int) -> None:
    """data_verified/*_verified.json: `count` of the thousand ids, each range its share. The
    categories are names here: no prompt needs knowledge."""
    for file, rows in _wise_rows(split, count).items():
        out.json(f"data_verified/{file}_verified.json", rows)


def wise_legacy(out: OfficialFolder, split: str, count: int) -> None:
    """data/*.json, the same prompts under the same ids, of which legacy WISE makes other ranges."""
    for file, rows in _wise_rows(split, count).items():
        out.json(f"data/{file}.json", rows)


def _wise_rows(split: str, count: int) -> dict[str, list[dict[str, Any]]]:
    rows: dict[str, list[dict[str, Any]]] = {}
    prompts = iter(mixed_prompts(split, max(count, len(WISE))))
    for file, first, last, category, part in WISE:
        for id in range(first, first + max((last - first + 1) * count // 1000, 1)):
            text, _ = next(prompts)
            rows.setdefault(file, []).append(
                {
                    "Prompt": sentence(f"{text} ."),
                    "Explanation": f"The picture shows {text}, and nothing else.",
                    "Category": category,
                    "Subcategory": part,
                    "prompt_id": id,
                }
            )
    return rows


def t2i_reasonbench(out: OfficialFolder, split: str, count: int) -> None:
    """prompts/ and deepseek_evaluation_qs/, a file of each for the four dimensions, which are names
    here: no prompt needs reasoning."""
    each = max(count // len(REASONBENCH), 1)
    prompts = mixed_prompts(split, each * len(REASONBENCH))
    for k, (file, (asked, parts)) in enumerate(REASONBENCH.items()):
        some = list(enumerate(prompts[k :: len(REASONBENCH)], 1))
        out.json(f"prompts/{file}.json", [{"id": i, "prompt": text} for i, (text, _) in some])
        value = [
            {"id": i, "prompt": text} | {part: _criteria(part, text) for part in parts}
            for i, (text, _) in some
        ]
        out.json(f"deepseek_evaluation_qs/evaluation_{asked}.json", value)


def _criteria(part: str, text: str) -> dict[str, str]:
    if part == "quality_evaluation":
        question = "Is every object drawn whole, of one shape and of one color?"
    elif part == "other_details_evaluation":
        question = "Does the image show nothing else?"
    else:
        question = f"Does the image show {text}?"
    return {"q1": question, "c1": "1 if yes, 0.5 if partly, 0 if no"}


def dpg_bench(out: OfficialFolder, split: str, count: int) -> None:
    """dpg_bench.csv, a line a statement, and prompts/<item>.txt. Objects are wholes on which their
    colours depend, and relations depend on two objects."""
    rows = []
    for item, (text, content) in enumerate(mixed_prompts(split, count)):
        for number, (broad, detail, said, parents, question) in enumerate(_statements(content), 1):
            rows.append(
                {
                    "item_id": f"shapes{item}",
                    "text": sentence(f"{text} ."),
                    "keywords": "",
                    "proposition_id": number,
                    "dependency": parents,
                    "category_broad": broad,
                    "category_detailed": detail,
                    "tuple": f"{broad} - {detail} ({said})",
                    "question_natural_language": question,
                }
            )
        out.text(f"prompts/shapes{item}.txt", sentence(f"{text} ."))
    out.table("dpg_bench.csv", rows, ",")


def _statements(content: Content) -> Iterator[tuple[str, str, str, str, str]]:
    """Category, kind, words, the numbers of the parents and the question of each statement."""
    pairs = list(dict.fromkeys(content.pairs))
    for i, pair in enumerate(pairs):
        color, shape = pair
        there = f"Is there {name(pair)}?"
        yield "entity", "whole", shape, "0", there
        parent = str(2 * i + 1)
        if len(content.pairs) > len(pairs):
            counted = f"Does the image show {NUMBERS[len(content.pairs)]} {color} {plural(shape)}?"
            yield "other", "count", f"{shape}, =={len(content.pairs)}", parent, counted
        else:
            yield "attribute", "color", f"{shape}, {color}", parent, f"Is the {shape} {color}?"
    if content.relation:
        shapes = ", ".join(shape for _, shape in pairs)
        said = f"{shapes}, {RELATION_WORDS[content.relation]}"
        yield "relation", "spatial", said, "1,3", _relation_question(content)


# ------------------------------------------------------------------------------- editing


def gedit(out: OfficialFolder, split: str, count: int) -> None:
    """metadata.jsonl with the fields of the published set, and images/: four of its eleven task
    types, in English."""
    rows = []
    for i, edit in enumerate(edit_set(split, count)):
        key = f"{i:032x}"
        picture = f"images/{key}.png"
        rows.append(
            {
                "task_type": GEDIT[edit.kind],
                "key": key,
                "instruction": sentence(edit.instruction),
                "instruction_language": "en",
                "input_image": picture,
                "input_image_raw": picture,
                "Intersection_exist": i % 2 == 0,
            }
        )
        out.picture(picture, render.draw(edit.source))
    out.lines("metadata.jsonl", rows)


def imgedit(out: OfficialFolder, split: str, count: int) -> None:
    """basic_edit.json and the pictures it names: four of the nine types, a move under "action".
    Without prompts.json, whose words are the authors'."""
    rows = {}
    for i, edit in enumerate(edit_set(split, count)):
        id = f"shapes/{i:09d}.png"
        row = {"id": id, "prompt": sentence(edit.instruction), "edit_type": IMGEDIT[edit.kind]}
        rows[str(i)] = row
        out.picture(id, render.draw(edit.source))
    out.json("basic_edit.json", rows)
