"""Official programs that ask a judge, run with one who says what our records say.

Owns GenEval2's `evaluation.py` and the VIEScore of GEdit-Bench with its statistics. Questions,
parsing, retries and means are theirs; the judge alone is a stand-in. It knows a reply by the exact
question, so that one asked in other words fails. Marks that VIEScore draws at random, and edits
that it asks about for ever, are left out, as our released numbers leave them out.
"""

import csv
import json
import re
from collections.abc import Sequence

from official import Numbers, Official, Setting

from srum_jax.core.errors import BadInput
from srum_jax.evals.scorers import gedit as marks
from srum_jax.evals.suite import Record

# ---------------------------------------------------------------------------------------- GenEval2

GENEVAL2 = """
import json, pathlib, sys, types
import scipy.stats  # before: it looks at what is there


class Absent(types.ModuleType):  # what loads the judge, and is not there
    def __getattr__(self, name):
        return Absent(name)

    def __call__(self, *arguments, **how):
        return Absent("called")


absent = ("torch", "transformers")
sys.modules.update({name: Absent(name) for name in absent})
file, replies, *arguments = sys.argv[1:]
said = json.load(open(replies))
program = types.ModuleType("evaluation")
exec(compile(pathlib.Path(file).read_text(), file, "exec"), vars(program))
for name in absent:
    del sys.modules[name]


def send(prompt, image, answer_list=None):
    one = said[image][prompt]
    return one["reply"], sum(one["p"].get(text, 0.0) for text in answer_list)


program.send_message_with_image = send
sys.argv = [file, *arguments]
program.main()
"""


def geneval2(how: Setting) -> Numbers:
    """What `evaluation.py` prints by each of its methods."""
    said: dict[str, dict[str, dict]] = {}
    for r in how.records:
        said.setdefault(str(r.truth["prompt"]), {})[r.asked] = {"reply": r.reply, "p": dict(r.p)}
    lines = how.data("geneval2_data.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines if line.strip()]
    asked = {str(place): row for place, row in enumerate(rows) if str(place) in said}
    data = how.lines("data.jsonl", list(asked.values()))
    images, replies = how.work / "images.json", how.work / "replies.json"
    images.write_text(json.dumps({row["prompt"]: place for place, row in asked.items()}))
    replies.write_text(json.dumps(said))
    driver = how.work / "driver.py"
    driver.write_text(GENEVAL2)
    found = {}
    for method in ("soft_tifa_gm", "soft_tifa_am", "tifa", "vqascore"):
        text = how.run(
            *(driver, how.file, replies, "--benchmark_data", data),
            *("--image_filepath_data", images, "--method", method),
            *("--output_file", how.work / f"{method}.json"),
        )
        found[method] = float(re.search(r"^Score: (\S+)", text, re.M).group(1))
    return found


# ------------------------------------------------------------------------------------------- GEdit

VIESCORE = """
import json, random, sys
sys.path[:0] = sys.argv[1], sys.argv[1] + "/viescore"
from viescore import VIEScore


class Judge:
    def prepare_prompt(self, images, text):
        return "SC" if isinstance(images, list) else "PQ"

    def get_parsed_output(self, aspect):
        self.asked += 1
        if self.asked > 8:
            raise TimeoutError
        return self.replies[aspect]


class Drawn(Exception):
    pass


def draw(lowest, highest):
    raise Drawn


random.randint = draw
score = VIEScore.__new__(VIEScore)
score.task, score.backbone_name, score.model = "tie", "records", Judge()
score.SC_prompt = score.PQ_prompt = ""
found = []
for replies in json.load(open(sys.argv[2])):
    score.model.replies, score.model.asked = replies, 0
    try:
        found.append(score.evaluate([0, 1], ""))
    except Drawn:
        found.append("random score")
    except TimeoutError:
        found.append("never returns")
    except Exception as e:
        found.append("raises " + type(e).__name__)
print()
print(json.dumps(found))
"""
COLUMNS = (
    *("source_image", "edited_image", "instruction", "sementics_score", "quality_score"),
    *("intersection_exist", "instruction_language"),
)
LANGUAGE = "en"  # the statistics' other one is called zh, and cn in the data: it finds none


def gedit(how: Setting) -> Numbers:
    """How many edits VIEScore marks, and what `calculate_statistics.py` prints of the marks."""
    edits: dict[str, dict[str, Record]] = {}
    for r in how.records:
        edits.setdefault(r.truth["edit"], {})[r.truth["aspect"]] = r
    about = [both for both in edits.values() if both["SC"].truth["language"] == LANGUAGE]
    asked = how.work / "replies.json"
    asked.write_text(json.dumps([{name: r.reply for name, r in two.items()} for two in about]))
    found = how.code(VIESCORE, how.checkout / "GEdit-Bench", asked)
    scored = [(two["SC"], x) for two, x in zip(about, found, strict=True) if isinstance(x, list)]
    if missing := set(marks.GROUPS) - {r.category for r, _ in scored}:
        raise BadInput(f"{how.out}: the program averages all groups; none scored of {missing}")
    folder = how.work / "ours" / "gpt4o" / "eval_results_new"
    folder.mkdir(parents=True, exist_ok=True)
    for group in marks.GROUPS:
        _write_marks(folder / f"ours_{group}_gpt_score.csv", group, scored)
    said = how.call("--model_name", "ours", "--save_path", how.work, "--language", LANGUAGE)
    numbers: Numbers = {f"scored_{LANGUAGE}": float(len(scored))}
    for line, suffix in (("Average", ""), ("Average Intersection", "_intersection")):
        means = re.search(rf"^{line}: (\S+), (\S+), (\S+)$", said, re.M).groups()
        names = (f"{name}_{LANGUAGE}{suffix}" for name in ("G_SC", "G_PQ", "G_O"))
        numbers |= dict(zip(names, map(float, means), strict=True))
    return numbers


def _write_marks(path, group: str, scored: Sequence[tuple[Record, list[float]]]) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        for r, (semantics, quality, _) in scored:
            if r.category == group:
                edit = ("before.png", "after.png", r.truth["edit"], semantics, quality)
                rows.writerow((*edit, r.truth["intersection"], LANGUAGE))


PROGRAMS = (
    Official(
        "geneval2",
        "GenEval2",
        "evaluation.py",
        geneval2,
        ("scipy", "tqdm", "PIL"),
        "facebookresearch/GenEval2",
    ),
    Official(
        "gedit",
        "Step1X-Edit",
        "GEdit-Bench/calculate_statistics.py",
        gedit,
        ("megfile", "pandas", "numpy", "regex"),
        "stepfun-ai/Step1X-Edit",
        digits=3,
    ),
)
