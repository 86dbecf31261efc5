"""The model in use from the shell: files and lines as promised, resuming, bad input."""

import json
import os
import resource
import shutil
import subprocess
import sys

import pytest
import test_api
from PIL import Image
from safetensors import numpy

from srum_jax import api, use, use_options
from srum_jax.core import console, lock
from srum_jax.data import images
from srum_jax.worlds.shapes import examples

PROMPT = "a red circle"
QUESTION = "is there a red square ?"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    return test_api.write_model(folder, examples.write_tokenizer(folder / "words"))


@pytest.fixture(scope="module")
def opened():
    """Models by how they were opened: each is compiled once."""
    return {}


@pytest.fixture
def run(folder, opened, monkeypatch, capsys, tmp_path):
    """run(command, *arguments) -> (exit code, lines on stdout, stderr), with the tiny model."""
    load = api.load

    def load_once(model, **how):
        key = (model, *sorted(how.items()))
        if key not in opened:
            opened[key] = load(model, **how)
        return opened[key]

    def run(command, *arguments):
        try:
            code = use.main(["use", command, "--model", str(folder), *map(str, arguments)])
        except SystemExit as e:  # argparse
            code = e.code
        out, err = capsys.readouterr()
        return code, out.splitlines(), err

    monkeypatch.setattr(api, "load", load_once)
    monkeypatch.setattr(console, "cache_compiled_programs", lambda: None)
    monkeypatch.chdir(tmp_path)
    return run


@pytest.fixture
def picture(tmp_path):
    (tmp_path / "a.png").write_bytes(images.encode_png(test_api.image(1)))
    return "a.png"


@pytest.fixture
def clip(tmp_path):
    first, *rest = (Image.fromarray(test_api.image(i)) for i in range(4))
    first.save(tmp_path / "clip.gif", save_all=True, append_images=rest, duration=100)
    return "clip.gif"


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_generate_writes_images_and_records(run, tmp_path):
    (tmp_path / "p.jsonl").write_text(
        '{"prompt": "a red circle", "id": 7}\n{"prompt": "two blue squares", "id": 12}\n'
    )
    arguments = ["--prompts", "p.jsonl", "-o", "out", "--n", 2, "--seed", 4, "--guidance", 3]
    code, out, err = run("generate", *arguments, "--json")
    names = ["7-0.png", "7-1.png", "12-0.png", "12-1.png"]
    assert code == 0
    assert {p.name for p in (tmp_path / "out").iterdir()} == {*names, "records.jsonl"}
    shown, records = [json.loads(line) for line in out], lines(tmp_path / "out" / "records.jsonl")
    assert [r["file"] for r in records] == names
    assert [r["file"] for r in shown] == [f"out/{name}" for name in names]
    assert [(r["id"], r["k"]) for r in records] == [(7, 0), (7, 1), (12, 0), (12, 1)]
    assert records[2]["prompt"] == "two blue squares" and records[2]["size"] == [32, 32]
    assert records[0]["settings"]["guidance"] == 3 and records[0]["precision"] == "float32"
    assert "compiling" not in "".join(out)
    (again,) = api.load(records[3]["model"], precision=None, base=None, mesh=None).generate(
        records[3]["prompt"], seeds=[records[3]["seed"]], guidance=3.0
    )
    assert test_api.near(again.image, images.load(tmp_path / "out" / "12-1.png"))
    plain = run("generate", *arguments)
    assert plain[:2] == (0, [f"{r['file']}: {r['prompt']}" for r in shown])
    assert "4 images are there already" in plain[2]


def test_a_single_prompt_is_number_0(run, tmp_path):
    assert run("generate", "--prompt", PROMPT, "-o", "out", "--size", "32x64")[0] == 0
    assert images.load(tmp_path / "out" / "0-0.png").shape == (32, 64, 3)


def test_a_killed_run_goes_on(run, tmp_path, monkeypatch):
    arguments = ["--prompt", PROMPT, "--n", 4]
    assert run("generate", *arguments, "-o", "whole")[0] == 0
    saved = []

    def save(drawing, path):
        if len(saved) == 3:
            raise KeyboardInterrupt
        saved.append(path.name)
        path.write_bytes(images.encode_png(drawing.image))

    with monkeypatch.context() as patch:
        patch.setattr(api.Drawing, "save", save)
        code, out, err = run("generate", *arguments, "-o", "cut")
    assert code == 130 and len(out) == 3 and "what was drawn is kept" in err
    records = tmp_path / "cut" / "records.jsonl"
    with records.open("a") as file:
        file.write('{"id": 0, "k": 3, "prom')
    text = records.read_bytes()
    records.write_bytes(text.replace(b'"k": 0', b"\0\0\0\0\0\0"))  # as a disk may leave them
    (tmp_path / "cut" / "0-1.png").write_bytes(b"")
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "cut").glob("*.png")}
    # Another batch size is no other work: a smaller one may be why it is run again.
    code, out, err = run("generate", *arguments, "-o", "cut", "--batch", 1, "--json")
    assert code == 0 and "1 images are there already" in err
    assert "records.jsonl, line 1: damaged; that image is drawn again" in err
    assert sorted(json.loads(line)["k"] for line in out) == list(range(4))
    assert [p.name for p, time in before.items() if p.stat().st_mtime_ns == time] == ["0-2.png"]
    for k in range(4):
        want, found = (images.load(tmp_path / run / f"0-{k}.png") for run in ("whole", "cut"))
        assert test_api.near(want, found)
    assert sorted({r["k"] for r in lines(records)}) == list(range(4))
    code, out, err = run("generate", "--prompt", PROMPT, "--n", 5, "-o", "cut")
    assert code == 0 and "4 images are there already" in err  # more of the same


@pytest.mark.parametrize(
    "change, message",
    [
        (["--prompt", "two blue squares"], "prompt = 'a red circle', not 'two blue squares'"),
        (["--seed", 1], "seed ="),
        (["--steps", 5], "settings ="),
        (["--precision", "bfloat16"], "precision = 'float32', not 'bfloat16'"),
    ],
)
def test_other_work_in_the_folder_is_left_alone(run, tmp_path, change, message):
    arguments = ["--prompt", PROMPT, "-o", "out"]
    assert run("generate", *arguments)[0] == 0
    before = {p: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    code, out, err = run("generate", *arguments, *change)
    assert (code, out) == (2, []) and f"line 1: image 0-0 was drawn with {message}" in err
    assert "name another folder with -o" in err
    assert {p: p.read_bytes() for p in (tmp_path / "out").iterdir()} == before


@pytest.mark.parametrize("line", ["no record", "5", '{"id": [1], "k": 0}', '{"id": 1}'])
def test_a_foreign_records_file_is_left_alone(run, tmp_path, line):
    records = tmp_path / "out" / "records.jsonl"
    records.parent.mkdir()
    records.write_text(f"{line}\nmore")
    code, _, err = run("generate", "--prompt", PROMPT, "-o", "out")
    assert code == 2 and "records.jsonl, line 1: not a record of an image" in err
    assert records.read_text() == f"{line}\nmore"


def test_answers(run, picture, clip):
    ask = ["--question", QUESTION]
    code, out, err = run("answer", "--image", picture, *ask, "--json")
    (one,) = map(json.loads, out)
    assert code == 0 and set(one) == {"question", "images", "text", "thought", "finished"}
    assert one["question"] == QUESTION and one["images"] == [picture] and one["thought"] == ""
    shown = one["text"] + ("" if one["finished"] else " …")
    assert run("answer", "--image", picture, *ask)[:2] == (0, [shown])
    code, out, _ = run("answer", "--image", picture, "--image", picture, *ask, "--json")
    assert code == 0 and json.loads(out[0])["text"] != one["text"]
    code, out, _ = run("answer", "--video", clip, "--frames", 2, *ask, "--json")
    assert code == 0 and json.loads(out[0])["video"] == clip
    assert run("answer", *ask)[0] == 0
    assert run("answer", *ask, "--max_tokens", 1)[1][0].endswith(" …")


def test_captions(run, picture):
    code, out, _ = run("caption", picture, picture, "--json")
    first, second = map(json.loads, out)
    assert code == 0 and first == second and first["image"] == picture
    code, out, _ = run("caption", picture, picture)
    assert code == 0 and out[0].startswith(f"a.png: {first['text']}")


def test_edits(run, tmp_path, picture):
    arguments = ["--image", picture, "--instruction", PROMPT, "-o", "out", "--n", 2]
    code, out, _ = run("edit", *arguments, "--json")
    assert code == 0 and [json.loads(line)["file"] for line in out] == [
        "out/0-0.png",
        "out/0-1.png",
    ]
    records = lines(tmp_path / "out" / "records.jsonl")
    assert records[0]["images"] == [picture] and "size" not in records[0]["settings"]
    drawn = images.load(tmp_path / "out" / "0-1.png")
    assert drawn.shape == (32, 32, 3) and not test_api.near(drawn, test_api.image(1))
    code, _, err = run("edit", "--image", "out/0-1.png", *arguments[2:])
    assert code == 2 and "out/0-1.png would be drawn over" in err


DRAW = ["generate", "-o", "out"]
ASK = ["answer", "--question", QUESTION]
EDIT = ["edit", "-o", "out", "--instruction", PROMPT]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["generate", "-o", "out"], "one of the arguments --prompt --prompts is required"),
        (["generate", "--prompt", PROMPT], "required: -o/--out"),
        ([*DRAW, "--prompt", " "], "--prompt: it is empty"),
        (
            [*DRAW, "--prompt", "a brown square"],
            "--prompt: text 'a brown square': the word 'brown'",
        ),
        ([*DRAW, "--prompt", PROMPT, "--model", "nowhere"], "nowhere: no such folder"),
        ([*DRAW, "--prompt", PROMPT, "--model", "."], "ema.safetensors"),
        ([*DRAW, "--prompt", PROMPT, "--base", "nowhere"], "nowhere: no such folder"),
        ([*DRAW, "--prompt", PROMPT, "--precision", "int4"], "invalid choice: 'int4'"),
        ([*DRAW, "--prompt", PROMPT, "--size", "32"], "'32' is no HxW, for example 768x1024"),
        ([*DRAW, "--prompt", PROMPT, "--size", "-8x32"], "expected one argument"),
        ([*DRAW, "--prompt", PROMPT, "--size", "0x32"], "generate: size[0] must be above 0"),
        ([*DRAW, "--prompt", PROMPT, "--size", "36x32"], "36x32: sides must be multiples of 8"),
        ([*DRAW, "--prompt", PROMPT, "--size", "32x999992"], "positions for 8 a side"),
        ([*DRAW, "--prompt", PROMPT, "--n", "0"], "--n: '0' is no whole number from 1"),
        ([*DRAW, "--prompt", PROMPT, "--steps", "x"], "--steps: 'x' is no whole number from 1"),
        (
            [*DRAW, "--prompt", PROMPT, "--guidance", "nan"],
            "generate: guidance must be a finite number",
        ),
        ([*DRAW, "--prompt", PROMPT, "--stpes", "3"], '--stpes 3: did you mean "--steps"?'),
        ([*DRAW, "--prompt", PROMPT, "--start", "1"], "start = 1 begins midway"),
        ([*DRAW, "--prompt", PROMPT, "--from_image", "cut.png"], "cut.png: not a readable image"),
        ([*DRAW, "--prompt", PROMPT, "--negative", " "], "--negative: it is empty"),
        (
            [*DRAW, "--prompt", PROMPT, "--negative", PROMPT, "--guidance", "1"],
            "negative: guidance = 1.0 compares with nothing",
        ),
        ([*ASK, "--stream", "--json"], "--stream writes text as it comes: leave out --json"),
        (["answer", "--messages", "p.jsonl"], "p.jsonl"),
        (["answer", "--messages", "empty.json"], "empty.json: must hold a list of messages"),
        (["answer", "--messages", "role.json"], "role = 'usr' is not known"),
        (["answer"], "one of the arguments --question --messages is required"),
        (
            [*DRAW, "--prompt", PROMPT, "--renorm", "most"],
            "renorm = 'most' is not known: known: none",
        ),
        ([*DRAW, "--prompt", PROMPT, "--window", "4"], "the context window is 4"),
        ([*DRAW, "--prompt", PROMPT, "--think"], "this model cannot think"),
        ([*DRAW, "--prompt", PROMPT, "--image", "a.png"], "unrecognized arguments: --image"),
        (["generate", "-o", "a.png", "--prompt", PROMPT], "-o a.png is a file; name a folder"),
        ([*DRAW, "--prompts", "nowhere.txt"], "nowhere.txt: no such prompts file"),
        ([*DRAW, "--prompts", "."], "Is a directory"),
        ([*DRAW, "--prompts", "p.jsonl"], "p.jsonl, line 2: not JSON"),
        ([*DRAW, "--prompts", "brown.txt"], "brown.txt, line 2: text 'a brown square': the word"),
        ([*DRAW, "--prompts", "long.txt"], "long.txt, line 2: text"),
        ([*DRAW, "--prompts", "https://a/p.txt"], "'https://a/p.txt' is an address, no path"),
        ([*DRAW, "--prompt", PROMPT, "--model", "hf://a/b"], "is an address, no path; fetch it"),
        (["generate", "-o", "", "--prompt", PROMPT], "-o: an empty path"),
        (["generate", "-o", "gone", "--prompt", PROMPT], "-o gone is a link to /nowhere/scratch"),
        (["generate", "-o", "gs://a/b", "--prompt", PROMPT], "name a folder on this machine"),
        (["generate", "-o", "a" * 300, "--prompt", PROMPT], "File name too long"),
        (["generate", "-o", "a.png/x", "--prompt", PROMPT], "Not a directory: 'a.png/x'"),
        (["generate", "-o", "/proc/x", "--prompt", PROMPT], "No such file or directory"),
        ([*ASK, "--image", "https://example.org/a.png"], "is an address, no path; fetch it"),
        ([*ASK, "--video", "https://example.org/a.mp4"], "is an address, no path; fetch it"),
        ([*ASK, "--video", "gs://a/b.mp4"], "gs://a/b.mp4 is in a bucket; fetch it first"),
        (["caption", "gs://a/b.png"], "gs://a/b.png is in a bucket; fetch it first"),
        (["caption", "https://example.org/a.png"], "is an address, no path; fetch it"),
        ([*EDIT, "--image", "a.png", "-o", ""], "-o: an empty path"),
        ([*ASK, "--image", "nowhere.png"], "nowhere.png: no such picture file"),
        ([*ASK, "--image", "cut.png"], "cut.png: not a readable image"),
        ([*ASK, "--image", "."], ". is a folder: name one picture in it"),
        ([*ASK, *["--image", "a.png"] * 20], "the context window is 256; use fewer or smaller"),
        ([*ASK, "--video", "nowhere.gif"], "nowhere.gif: no such clip"),
        ([*ASK, "--video", "cut.png"], "cut.png: not a readable clip"),
        ([*ASK, "--frames", "0"], "--frames: '0' is no whole number from 1"),
        ([*ASK, "--temperature", "-1"], "temperature must be a number from 0"),
        ([*ASK, "--window", "9", "--image", "a.png"], "the context window is 9"),
        ([*ASK, "--think"], "this model cannot think: it lacks words"),
        (["answer", "--question", "is it pink ?"], "the word 'it'"),
        (["caption"], "required: IMAGE"),
        (["caption", "a.png", "nowhere.png"], "nowhere.png: no such picture file"),
        (["caption", "cut.png"], "cut.png: not a readable image"),
        (EDIT, "required: --image"),
        ([*EDIT, "--image", "cut.png"], "cut.png: not a readable image"),
        ([*EDIT, "--image", "a.png", "--image", "nowhere.png"], "nowhere.png"),
        (["paint"], "invalid choice: 'paint'"),
    ],
)
def test_bad_input(run, tmp_path, picture, arguments, message):
    data = (tmp_path / picture).read_bytes()
    (tmp_path / "cut.png").write_bytes(data[: len(data) // 2])
    (tmp_path / "p.jsonl").write_text('{"prompt": "a red circle"}\nno json\n')
    (tmp_path / "brown.txt").write_text("a red circle\na brown square\n")
    (tmp_path / "long.txt").write_text("a red circle\n" + "a red circle and " * 80 + "a\n")
    (tmp_path / "gone").symlink_to("/nowhere/scratch")
    (tmp_path / "empty.json").write_text("[]")
    (tmp_path / "role.json").write_text('[{"role": "usr", "content": "a"}]')
    code, out, err = run(*arguments)
    assert (code, out) == (2, []), err
    assert message in err and "Traceback" not in err and err.count("error: ") < 2
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([*DRAW, "--prompts", "long.txt"], "long.txt, line 2: 'a red circle , a red circle"),
        ([*DRAW, "--prompt", "a red star"], "the word 'star' has no meaning"),
        ([*DRAW, "--prompts", "prompts.txt"], "prompts.txt, line 2: 'five red circles'"),
        (["answer", "--question", "Is there a red circle?"], "this model answers about pictures"),
        (
            ["edit", "-o", "out", "--image", "a.png", "--instruction", "a red circle"],
            "is no instru",
        ),
    ],
)
def test_what_a_model_has_no_words_for_is_refused_before_it_is_loaded(
    run, arguments, message, tmp_path, monkeypatch
):
    monkeypatch.delattr(api, "load")
    long = "a red circle , " * 500 + "a red circle"
    (tmp_path / "long.txt").write_text(f"a red circle\n{long}\n")
    (tmp_path / "prompts.txt").write_text("Draw two red circles\nfive red circles\n")
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    code, out, err = run(*arguments, "--model", "shapes")
    assert (code, out) == (2, []) and message in err


def test_what_one_picture_lacks_the_others_do_not(run, picture, tmp_path, monkeypatch):
    whole = (tmp_path / picture).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[:40])
    (tmp_path / "b.png").write_bytes(whole)
    code, out, err = run("caption", picture, "cut.png", "b.png", "--json")
    assert code == 2 and [json.loads(line)["image"] for line in out] == ["a.png", "b.png"]
    assert err.count("error: ") == 1 and "error: cut.png: not a readable image" in err
    assert run("caption", picture, "b.png", "--json")[:2] == (0, out)
    monkeypatch.delattr(api, "load")  # nothing is left to look at
    assert run("caption", "cut.png")[0] == 2


def test_drawings_belong_to_the_picture_and_the_weights_not_to_their_path(
    run, folder, tmp_path, picture
):
    edit = ["--instruction", PROMPT, "-o", "out"]
    code, out, _ = run("edit", "--image", picture, *edit)
    assert code == 0
    assert run("edit", "--image", f"./{picture}", *edit)[:2] == (0, out)
    (tmp_path / picture).write_bytes(images.encode_png(test_api.image(2)))
    code, _, err = run("edit", "--image", picture, *edit)
    assert code == 2 and "was drawn with pixels = " in err and "name another folder" in err
    shutil.copytree(folder, tmp_path / "mine")
    draw = ["--prompt", PROMPT, "-o", "drawn", "--model"]
    code, out, _ = run("generate", *draw, "mine")
    assert code == 0 and run("generate", *draw, "./mine")[:2] == (0, out)
    weights = numpy.load_file(tmp_path / "mine/ema.safetensors")
    numpy.save_file({k: v / 2 for k, v in weights.items()}, tmp_path / "mine/ema.safetensors")
    code, _, err = run("generate", *draw, "mine")
    assert code == 2 and "was drawn with weights = " in err


def test_one_command_a_folder(run, tmp_path, monkeypatch):
    monkeypatch.delattr(api, "load")
    with lock.held(tmp_path / "out"):
        code, out, err = run(*DRAW, "--prompt", PROMPT)
    assert (code, out) == (2, []) and "out is in use by process" in err


def test_a_full_disk_leaves_what_is_whole(run, tmp_path):
    """The system's own limit of a file's size stands for the disk; Python ignores its signal."""
    draw = [*DRAW, "--prompt", PROMPT, "--n", 40, "--batch", 4]
    assert run(*draw[:-4], "--n", 1)[0] == 0
    size = (tmp_path / "out" / "records.jsonl").stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6 * size + size // 2, before[1]))
        code, out, err = run(*draw)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert code == 2 and len(out) == 6, err
    assert err.count("error: ") == 1 and "out/records.jsonl" in err and "Traceback" not in err
    assert len(lines(tmp_path / "out" / "records.jsonl")) == 6
    assert run(*draw[:-4], "--n", 8, "--batch", 4)[0] == 0


@pytest.mark.parametrize("stdout, code", [("ascii", 0), ("full", 2), ("closed", 141)])
def test_what_stdout_cannot_say(tmp_path, stdout, code):
    """In a process of its own: stdout is the system's."""
    program = (
        "import sys; from srum_jax import use\n"
        "use._COMMANDS['caption'] = lambda _: (x for x in [{'image': 'ä.png', 'text': 'ein Hügel',"
        " 'thought': '', 'finished': True}] * 3)\n"
        "sys.exit(use.main(['use', 'caption', 'ä.png']))"
    )
    reads, writes = os.pipe()
    if stdout == "closed":
        os.close(reads)
    if stdout == "full":
        writes = os.open("/dev/full", os.O_WRONLY)
    env = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=env, stdout=writes, stderr=subprocess.PIPE, text=True
    )
    os.close(writes)
    assert done.returncode == code and "Traceback" not in done.stderr, done.stderr
    if stdout == "ascii":
        assert os.read(reads, 999) == b"\\xe4.png: ein H\\xfcgel\n" * 3 and not done.stderr
    else:
        assert done.stderr.count("\n") == (stdout == "full")


def test_debug_shows_where(run):
    code, out, err = run(*ASK, "--image", "nowhere.png", "--debug")
    assert (code, out) == (2, []) and "Traceback" in err and "error: nowhere.png" in err


def test_a_full_device_and_faults_of_the_program(run, monkeypatch):
    def fails(error):
        def load(*_, **__):
            raise error

        monkeypatch.setattr(api, "load", load)
        return run(*ASK)

    code, _, err = fails(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes"))
    assert code == 3 and "a smaller --batch" in err
    with pytest.raises(TypeError):
        fails(TypeError("a bug"))


def test_help_needs_no_jax():
    code = (
        "import sys; sys.modules['jax'] = None\n"
        "from srum_jax import use\n"
        "use.main(['use', *sys.argv[1:]])"
    )
    for command in ([], ["generate"], ["answer"], ["caption"], ["edit"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *command, "--help"], capture_output=True, text=True
        )
        assert done.returncode == 0 and "usage: python -m srum_jax.use" in done.stdout, done.stderr
    wrong = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert wrong.returncode == 2 and wrong.stdout == ""


@pytest.mark.slow
def test_as_a_program(folder, tmp_path):
    """Logs stay off stdout; without --model it is the base that ships with the package."""
    command = ["generate", "--prompt", PROMPT, "-o", str(tmp_path / "out"), "--json"]
    assert use_options.parse(command, "use").model == "shapes"
    done = subprocess.run(
        [sys.executable, "-m", "srum_jax.use", *command, "--model", str(folder)],
        env=os.environ | {"XDG_CACHE_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (record,) = map(json.loads, done.stdout.splitlines())
    assert images.load(record["file"]).shape == (32, 32, 3)
