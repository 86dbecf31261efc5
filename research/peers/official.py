"""The benchmarks' own programs, run on our results folders in checkouts that a user made.

Owns what each program is given, how it is called and which of its numbers stand beside ours. The
programs are run as they are, each in its own process; VQA's, written for Python 2, is put into
Python 3 first, its `print` alone changed. Where a program only adds up what another one parsed, it
is given what we parsed by the released rule.
"""

import ast
import dataclasses
import json
import pathlib
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lmms_tasks import called

from srum_jax.core import files
from srum_jax.core.errors import BadInput
from srum_jax.evals import suite_folder
from srum_jax.evals.scorers import ptb, wise
from srum_jax.evals.scorers.mme import CATEGORIES
from srum_jax.evals.suite import Record

Numbers = dict[str, float]  # by our names
IMPORTS = "import json, logging, re\nfrom typing import *\n\n"
EACH = """
import json, sys
import theirs
name, path = sys.argv[1:]
print(json.dumps([getattr(theirs, name)(reply) for reply in json.load(open(path))]))
"""


@dataclasses.dataclass(frozen=True)
class Setting:
    """What a program works with: the results folder, its records, the program's file and checkout,
    the interpreter, and a folder to write to."""

    out: pathlib.Path
    suite: str
    records: Sequence[Record]
    checkout: pathlib.Path
    file: pathlib.Path
    python: str
    work: pathlib.Path

    @property
    def official(self) -> pathlib.Path:
        """The folder that we wrote for official programs."""
        return self.out / suite_folder.OFFICIAL / self.suite

    def data(self, name: str) -> pathlib.Path:
        """A file of the data that were asked: of a sample in `official`. Raises BadInput."""
        there = pathlib.Path(files.read_object(self.out / "settings.json")["told"]["data"]["file"])
        for folder in (self.official, there, there.parent):
            if (folder / name).is_file():
                return folder / name
        raise BadInput(f"{self.out}: {name} is in neither {self.official} nor {there}")

    def call(self, *arguments: Any, **how: Any) -> str:
        """What the program says when it is called so."""
        return self.run(self.file, *arguments, **how)

    def run(self, *arguments: Any, **how: Any) -> str:
        """What another script says, of our own or of theirs."""
        return called(self.python, *arguments, work=self.work, **how)

    def code(self, text: str, *arguments: Any) -> Any:
        """The JSON that a few lines of Python print last."""
        path = self.work / "driver.py"
        path.write_text(text)
        return json.loads(self.run(path, *arguments).splitlines()[-1])

    def function(self, path: pathlib.Path, name: str, replies: Sequence[str]) -> list[Any]:
        """What a program's function gives for each reply, without the rest of its file, which
        imports what judges need."""
        text = path.read_text(encoding="utf-8")
        found = [node for node in ast.parse(text).body if getattr(node, "name", "") == name]
        if not found:
            raise BadInput(f"{path}: holds no function {name}")
        (self.work / "theirs.py").write_text(IMPORTS + ast.get_source_segment(text, found[0]))
        asked = self.work / "replies.json"
        asked.write_text(json.dumps(list(replies)))
        return self.code(EACH, name, asked)

    def lines(self, name: str, rows: Sequence[Mapping[str, Any]]) -> pathlib.Path:
        """A file of JSON lines to give to the program."""
        path = self.work / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path


@dataclasses.dataclass(frozen=True)
class Official:
    """A program of a benchmark.

    checkout: what its repository's folder is called · file: in it · score: runs it · needs: the
    packages that it imports · source: the repository · digits: to which its numbers are rounded,
    None: not.
    """

    suite: str
    checkout: str
    file: str
    score: Callable[[Setting], Numbers]
    needs: tuple[str, ...] = ()
    source: str = ""
    digits: int | None = None

    @property
    def name(self) -> str:
        """As results call it."""
        return f"{self.checkout}, {self.file}" if self.file else self.checkout

    def run(
        self,
        out: pathlib.Path,
        records: Sequence[Record],
        checkout: pathlib.Path,
        python: str,
        work: pathlib.Path,
    ) -> dict[str, Any]:
        """{"version", "numbers"}. Raises BadInput where it fails."""
        file = checkout / self.file
        how = Setting(out, self.suite, records, checkout, file, python, work)
        return {"version": self.version(checkout, python), "numbers": self.score(how)}

    def version(self, checkout: pathlib.Path, python: str) -> str:
        """The commit of a checkout, of another folder a hash of the file; a package's version."""
        if not self.file:
            code = "import importlib.metadata as m, sys; print(m.version(sys.argv[1]))"
            told = [python, "-c", code, self.checkout]
            done = subprocess.run(told, capture_output=True, text=True, check=True)
            return f"{self.name} {done.stdout.strip()}"
        told = ["git", "-C", str(checkout), "rev-parse", "--short", "HEAD"]
        done = subprocess.run(told, capture_output=True, text=True, check=False)
        at = done.stdout.strip() if (checkout / ".git").exists() else ""
        at = at or f"file {files.fingerprint([checkout / self.file])[:8]}"
        return f"{self.name} ({at})"


# ----------------------------------------------------------------------------- VQAv2 and OK-VQA

VQA = """
import json, sys
from vqa import VQA
from vqaEval import VQAEval
questions, annotations, results = sys.argv[1:]
asked = VQA(annotations, questions)
found = VQAEval(asked, asked.loadRes(results, questions), n=2)
found.evaluate()
print()
print(json.dumps(found.accuracy))
"""


def vqa(how: Setting) -> Numbers:
    """VQAEval's accuracies, in percent."""
    tools = how.checkout / "PythonHelperTools" / "vqaTools" / "vqa.py"
    for path in (tools, how.file):
        text = path.read_text(encoding="utf-8").expandtabs(8)
        text = re.sub(r"^(\s*)print (.+)$", r"\1print(\2)", text, flags=re.MULTILINE)
        (how.work / path.name).write_text(text, encoding="utf-8")
    (results,) = how.official.glob("*_results.json")
    start = "v2_" if how.suite == "vqav2" else ""
    kind = f"{start}OpenEnded_mscoco_val2014_questions.json"
    said = how.data(kind), how.data(f"{start}mscoco_val2014_annotations.json"), results
    found = how.code(VQA, *said)
    by_type = {f"accuracy {name}": value for name, value in found["perAnswerType"].items()}
    return {"accuracy": found["overall"], **by_type}


# ------------------------------------------------------------------------------------------ POPE


def pope(how: Setting) -> Numbers:
    """The means over the files of what `eval_pope.py` prints of each."""
    labels = how.work / "labels"
    labels.mkdir(exist_ok=True)
    answers = []
    for category in dict.fromkeys(r.category for r in how.records):
        some = [r for r in how.records if r.category == category]
        text = "".join(json.dumps({"label": r.truth}) + "\n" for r in some)
        (labels / f"coco_pope_{category}.json").write_text(text)
        said = how.official / f"coco_pope_{category}_answers.jsonl"
        rows = [json.loads(line) for line in said.read_text().splitlines()]
        answers += [row | {"question_id": f"{category}-{row['question_id']}"} for row in rows]
    questions = [{"question_id": r.id, "category": r.category} for r in how.records]
    said = how.call(
        *("--annotation-dir", labels, "--question-file", how.lines("questions.jsonl", questions)),
        *("--result-file", how.lines("answers.jsonl", answers)),
    )
    names = {"accuracy": "Accuracy", "precision": "Precision", "recall": "Recall", "f1": "F1 score"}
    names["yes_ratio"] = "Yes ratio"
    found = {ours: re.findall(rf"^{theirs}: (.+)$", said, re.M) for ours, theirs in names.items()}
    return {name: sum(map(float, several)) / len(several) for name, several in found.items()}


# ------------------------------------------------------------------------------------------- MME


def mme(how: Setting) -> Numbers:
    """The two sums that BAGEL's `calculation.py` prints."""
    if len(list(how.official.glob("*.txt"))) < len(CATEGORIES):
        raise BadInput(f"{how.out}: the program reads all {len(CATEGORIES)} categories or none")
    shutil.copytree(how.official, how.work / "results", dirs_exist_ok=True)
    said = how.call("--out-dir", how.work / "results")
    perception, cognition = map(float, re.findall(r"^total score: (\S+)", said, re.M))
    return {"perception[bagel]": perception, "cognition[bagel]": cognition}


# ------------------------------------------------------------------------------------------ MMMU


def mmmu(how: Setting) -> Numbers:
    """The accuracy over all questions, with the program's random letters."""
    results = how.work / "results"
    shutil.copytree(how.official, results, dirs_exist_ok=True)
    how.call("--path", results, "--subject", "ALL", cwd=how.file.parent)
    parts = [files.read_object(path) for path in sorted(results.glob("*/result.json"))]
    right = sum(part["acc"] * part["num_example"] for part in parts)
    n = sum(part["num_example"] for part in parts)
    return {"accuracy [random draws, seed 42]": right / n}


# -------------------------------------------------------------------------------------- captions

CAPTIONS = """
import json, sys
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
said, people = json.load(open(sys.argv[1]))
found = {"CIDEr": Cider().compute_score(people, said)[0]}
found["ROUGE_L"] = Rouge().compute_score(people, said)[0]
found.update({f"Bleu_{n}": x for n, x in enumerate(Bleu(4).compute_score(people, said)[0], 1)})
print()
print(json.dumps({name: float(value) for name, value in found.items()}))
"""


def captions(how: Setting) -> Numbers:
    """pycocoevalcap's scores of our tokens, so that it needs no Java."""
    said = {r.id: [ptb.tokenize(r.reply)] for r in how.records}
    people = {r.id: [ptb.tokenize(text) for text in r.truth["references"]] for r in how.records}
    path = how.work / "tokens.json"
    path.write_text(json.dumps([said, people]))
    return how.code(CAPTIONS, path)


# --------------------------------------------------------------------------------------- drawing


def geneval(how: Setting) -> Numbers:
    """What `summary_scores.py` prints of the results file that was imported."""
    which = files.read_object(how.out / "settings.json")["models"]["model"]
    path = pathlib.Path(which.get("results", ""))
    path = path / "results.jsonl" if path.is_dir() else path
    if "results" not in which or not path.is_file():
        raise BadInput(f"{how.out}: was not made by --import of a results.jsonl")
    said = how.call(path)
    overall = re.search(r"Overall score \(avg. over tasks\): (\S+)", said).group(1)
    shares = dict(re.findall(r"^% correct (images|prompts): (\S+)%$", said, re.M))
    return {"overall": float(overall)} | {
        f"correct_{name}": float(value) / 100 for name, value in shares.items()
    }


def wise_verified(how: Setting) -> Numbers:
    """What `calculate_verified.py` prints of the scores that the judge's program parses."""
    replies = [wise.without_thinking(r.reply) for r in how.records]
    found = how.function(how.file.with_name("vllm_eval.py"), "extract_scores", replies)
    rows = [
        {"prompt_id": r.truth["prompt_id"], **scores}
        for r, scores in zip(how.records, found, strict=True)
        if scores
    ]
    last = how.call(how.lines("scores.jsonl", rows)).strip().splitlines()[-1]
    names, numbers = (*wise.CATEGORIES, "overall"), re.findall(r"\d\.\d\d", last)
    if len(numbers) != len(names):
        raise BadInput(f"{how.out}: the program gives no overall number: {last}")
    return dict(zip(names, map(float, numbers), strict=True))


def srum_compbench(how: Setting) -> Numbers:
    """What `calculate_mean.py` prints of each category, of the scores that `qwen_eval.py` reads."""
    path = how.checkout / "CompBench_eval" / "qwen_eval.py"
    scores = how.function(path, "extract_score", [r.reply for r in how.records])
    found = {}
    for category in dict.fromkeys(r.category for r in how.records):
        pairs = zip(how.records, scores, strict=True)
        some = [str(score) for r, score in pairs if r.category == category]
        table = how.work / f"{category.replace(' ', '_')}.csv"
        table.write_text("\n".join(["score", *some]) + "\n")
        found[category] = float(how.call(table))
    return found


# --------------------------------------------------------------------------------------- editing


def imgedit(how: Setting) -> Numbers:
    """The means of the types, from the judge's words, by both of its scripts."""
    average, types = how.work / "average.json", how.work / "types.json"
    words = how.official / "result.json"
    how.call("--result_json", words, "--average_score_json", average)
    second = dataclasses.replace(how, file=how.file.with_name("step2_typescore.py"))
    edits = how.data("basic_edit.json")
    given = ("--average_score_json", average, "--basic_edit", edits, "--typescore_json", types)
    second.call(*given)
    return files.read_object(types)


PROGRAMS = (
    Official(
        "vqav2",
        "VQA",
        "PythonEvaluationTools/vqaEvaluation/vqaEval.py",
        vqa,
        source="GT-Vision-Lab/VQA",
    ),
    Official(
        "okvqa",
        "VQA",
        "PythonEvaluationTools/vqaEvaluation/vqaEval.py",
        vqa,
        source="GT-Vision-Lab/VQA",
    ),
    Official("pope", "LLaVA", "llava/eval/eval_pope.py", pope, source="haotian-liu/LLaVA"),
    Official(
        "mme",
        "SRUM",
        "eval/vlm/eval/mme/calculation.py",
        mme,
        ("sklearn",),
        "WayneJin0918/SRUM, the same as in Bagel",
    ),
    Official(
        "mmmu",
        "MMMU",
        "mmmu/main_parse_and_eval.py",
        mmmu,
        ("numpy",),
        "MMMU-Benchmark/MMMU",
    ),
    Official("coco_captions", "pycocoevalcap", "", captions, ("pycocoevalcap",), "PyPI"),
    Official(
        "geneval",
        "geneval",
        "evaluation/summary_scores.py",
        geneval,
        ("numpy", "pandas"),
        "djghosh13/geneval",
        digits=4,
    ),
    Official(
        "wise",
        "WISE",
        "calculate_verified.py",
        wise_verified,
        digits=2,
        source="PKU-YuanGroup/WISE",
    ),
    Official(
        "srum_compbench",
        "SRUM",
        "calculate_mean.py",
        srum_compbench,
        ("pandas",),
        "WayneJin0918/SRUM",
        digits=4,
    ),
    Official(
        "imgedit",
        "ImgEdit",
        "Benchmark/Basic/step1_get_avgscore.py",
        imgedit,
        digits=2,
        source="PKU-YuanGroup/ImgEdit",
    ),
)
