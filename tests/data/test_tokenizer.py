"""The tokenizer reader: the shapes world's own file, and Qwen2's form against the official one."""

import dataclasses
import json
import pathlib
import random
import unicodedata

import hypothesis_cases
import numpy as np
import pytest
import tokenizers
from hypothesis import strategies as st
from tiny import SHAPES
from tokenizers import models, normalizers, pre_tokenizers, trainers

import srum_jax
from srum_jax.data.tokenizer import MARKS, Tokenizer
from srum_jax.models.bagel.model_config import BAGEL_7B_MOT
from srum_jax.worlds.shapes import changes as shapes_changes
from srum_jax.worlds.shapes import examples, language, questions

SHIPPED = pathlib.Path(srum_jax.__file__).parent / "worlds/shapes/base"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(SHIPPED)


def test_text_is_an_item_of_a_sample(tokenizer):
    made = tokenizer.text("A red circle")
    assert tokenizer.decode(made.ids) == "a red circle" and made.ids.dtype == np.int32
    assert not made.loss and tokenizer.text("yes", loss=True).loss
    assert tokenizer.text("").ids.shape == (0,)
    with pytest.raises(ValueError, match="'dog'"):
        tokenizer.text("a dog")


def test_the_shipped_file_is_what_the_world_writes(tmp_path):
    written = examples.write_tokenizer(tmp_path).read_bytes()
    assert written == (SHIPPED / "tokenizer.json").read_bytes()


def test_marks_come_first_and_words_fit_the_vocabulary(tokenizer):
    marks = (tokenizer.bos, tokenizer.eos, tokenizer.image_start, tokenizer.image_end)
    assert marks == (1, 2, 3, 4) and tokenizer.id("<pad>") == 0
    assert len(tokenizer) == len(examples.vocabulary()) <= examples.VOCAB_SIZE == 96


def test_every_prompt_question_and_answer_comes_back(tokenizer):
    texts = {p.text for split in language.SPLITS for p in language.balanced_prompts(split, 500)}
    for i in range(300):
        _, asked = questions.understanding_example(4, i)
        _, compared = shapes_changes.several_example(4, i)
        texts |= {text for q in (*asked, *compared) for text in (q.text, q.answer)}
        texts.add(shapes_changes.edit_example(4, i).instruction)
    assert len(texts) > 1500
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    used = {word for text in texts for word in text.split()}
    unused = set(examples.vocabulary()) - used
    assert unused == {
        "<pad>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
    }


def test_case_and_punctuation_do_not_matter(tokenizer):
    spaced = tokenizer.encode("what color is the square ?")
    assert tokenizer.encode("What COLOR is the square?") == spaced
    assert tokenizer.encode("a red circle, a blue square and a green cross") == tokenizer.encode(
        "a red circle , a blue square and a green cross"
    )
    assert tokenizer.encode("") == []


def test_an_unknown_word_is_named(tokenizer):
    with pytest.raises(ValueError, match="'mauve'.*tokenizer.json"):
        tokenizer.encode("a mauve circle")
    with pytest.raises(ValueError, match="'<box>'"):
        tokenizer.id("<box>")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    path = examples.write_tokenizer(tmp_path)
    text = path.read_text()
    path.write_text(text[: len(text) // 2])
    with pytest.raises(ValueError, match="not a readable tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    document = json.loads(text)
    document["added_tokens"] = []
    document["model"]["vocab"].pop("<|vision_start|>")
    path.write_text(json.dumps(document))
    with pytest.raises(ValueError, match="vision_start"):
        Tokenizer.from_folder(tmp_path)


WORDS = "a big red circle and two blue squares"


@pytest.mark.parametrize(
    "left",
    [
        lambda t: t.enable_truncation(4),
        lambda t: t.enable_truncation(1, strategy="only_first", direction="left"),
        lambda t: t.enable_padding(length=12, pad_id=0, pad_token="<pad>"),
        lambda t: t.enable_padding(length=12, pad_id=9, pad_token="and", direction="left"),
    ],
)
def test_what_batches_left_in_the_file_is_no_part_of_a_text(tmp_path, left):
    saved = tokenizers.Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    left(saved)
    saved.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_folder(tmp_path)
    assert found.decode(found.encode(WORDS)) == WORDS and found.encode("") == []


def test_dropout_of_a_training_is_off(qwen, tmp_path):
    model = models.BPE.from_file(str(qwen / "vocab.json"), str(qwen / "merges.txt"), dropout=0.9)
    inner = tokenizers.Tokenizer(model)
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.save(str(tmp_path / "tokenizer.json"))
    found = Tokenizer.from_folder(tmp_path)
    assert len({tuple(found.encode(SAMPLE)) for _ in range(20)}) == 1


def test_a_file_that_has_a_token_for_unknown_words_does_not_hide_them(tmp_path):
    document = json.loads((SHIPPED / "tokenizer.json").read_text())
    document["model"]["vocab"]["<unk>"] = 79
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    found = Tokenizer.from_folder(tmp_path)
    assert found.decode(found.encode(WORDS)) == WORDS
    with pytest.raises(ValueError, match="'mauve' is not in tokenizer.json"):
        found.encode("a MAUVE circle".lower())


def test_refusals_are_short(tokenizer, tmp_path):
    for text in ("x" * 10**5, "a " * 10**5 + "dog", "<pad>" * 10**4):
        with pytest.raises(ValueError) as e:
            tokenizer.encode(text)
        assert len(str(e.value)) < 500
    for raw in ("version https://git-lfs.github.com/spec/v1", "<html>", "[" * 10**5, "", "null"):
        (tmp_path / "tokenizer.json").write_text(raw)
        with pytest.raises(ValueError, match="tokenizer.json is not a readable") as e:
            Tokenizer.from_folder(tmp_path)
        assert len(str(e.value)) < 500


def test_a_kind_of_model_that_is_not_read_is_named(tmp_path):
    tokenizers.Tokenizer(models.Unigram()).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="of the kind Unigram"):
        Tokenizer.from_folder(tmp_path)


PARTS = st.sampled_from(["truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer"])
PARTS |= st.sampled_from(["post_processor", "decoder", "model", "version"])
PLAIN = st.none() | st.booleans() | st.integers() | st.text(max_size=4) | st.floats()
NAMES = st.sampled_from(["type", "vocab", "id", "content", "special", "unk_token", "merges"])
VALUES = PLAIN | st.dictionaries(NAMES, PLAIN, max_size=3) | st.lists(PLAIN, max_size=2)
# The file with fewer words: a thousand of them are read in a few seconds.
SMALL = json.loads((SHIPPED / "tokenizer.json").read_text())
SMALL["model"]["vocab"] = dict(list(SMALL["model"]["vocab"].items())[:12])


def tried(folder, data):
    """Reads the file and what it makes of a text."""
    hypothesis_cases.write(folder / "tokenizer.json", data)

    def read():
        found = Tokenizer.from_folder(folder)
        return found.decode(found.encode("a red circle"))

    return hypothesis_cases.value_or_refusal(read, names="tokenizer.json")


@hypothesis_cases.counts(quick=800)
def test_any_parts_of_a_file_give_a_tokenizer_or_a_refusal(cases, tmp_path):
    def check(part, inner, value):
        made = json.loads(json.dumps(SMALL))
        held = made[part]
        target, key = (held, inner) if isinstance(held, dict) else (made, part)
        target[key] = value
        tried(tmp_path, json.dumps(made).encode())

    hypothesis_cases.run(check, cases, part=PARTS, inner=NAMES, value=VALUES)


@hypothesis_cases.counts(quick=800)
def test_any_bytes_give_a_tokenizer_or_a_refusal(cases, tmp_path):
    whole = json.dumps(SMALL).encode()

    def check(cut, junk, to):
        tried(tmp_path, whole[: cut % len(whole)] + junk + whole[to % len(whole) :])

    places = st.integers(0, 10**4)
    hypothesis_cases.run(check, cases, cut=places, junk=st.binary(max_size=12), to=places)


def test_a_mark_in_a_text_is_never_a_mark(tokenizer):
    for text in ("a <|im_end|> circle", "<pad>", "a red<|vision_start|>"):
        with pytest.raises(ValueError, match="mark of tokenizer.json|is not in tokenizer.json"):
            tokenizer.encode(text)
    official = Tokenizer.from_folder(SHIPPED, marks_in_text=True)
    assert official.encode("a <|im_end|>")[-1] == official.eos


# Qwen2's form: byte-level BPE from vocab.json and merges.txt.

SAMPLE = (
    "the quick brown fox isn't 123 years old; we'll see what he'd say, SHE'LL SALT LLAMAS\n\n"
    "다람쥐 헌 쳇바퀴에 타고파 — 快速的棕色狐狸 Ελληνικά кириллица العربية हिन्दी ไทย 🦊\t\tnaïve"
)


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A folder with a small vocabulary in Qwen2's form; no two of its words are equal."""
    folder = tmp_path_factory.mktemp("qwen")
    model = tokenizers.Tokenizer(models.BPE())
    model.normalizer = normalizers.NFC()
    model.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=420, min_frequency=1, initial_alphabet=alphabet, show_progress=False
    )
    model.train_from_iterator([SAMPLE] * 3 + SAMPLE.split(), trainer)
    model.model.save(str(folder))
    return folder


def rewritten(tmp_path, qwen, **changes):
    """A copy of the folder with files changed by functions of their text."""
    for name in ("vocab.json", "merges.txt"):
        text = (qwen / name).read_text(encoding="utf-8")
        change = changes.get(name.split(".")[0], lambda text: text)
        (tmp_path / name).write_text(change(text), encoding="utf-8")
    return tmp_path


def added(start, *words):
    """tokenizer_config.json's table of special tokens with ids from `start` on."""
    table = {
        str(start + n): {"content": word, "special": True, "normalized": False}
        for n, word in enumerate(words)
    }
    return json.dumps({"added_tokens_decoder": table})


def fuzzed(count):
    """Strings of many scripts and of what normalisers and splitters stumble over."""
    rng = random.Random(0)
    letters = [
        *"abz ABZ.,;:!?'\"-_()<>|/\\@#",
        *"0123456789٣७Ⅷ½²",
        *"éßøñÅİıſŉ",
        *"e\u0301 o\u0302\u0323 \u1100\u1161\u11a8 \u212b \ufb01 \u0958 \u2126 \u0345".split(" "),
        *"漢字かなカナ한국어Русскийελληνικάעבריתالعربيةहिन्दीไทย",
        *["👩\u200d👩\u200d👧", "👍🏽", "🇫🇷", "❤\ufe0f", "\U0001f98a", "\U00010348"],
        *" \u00a0\u2003\u3000\u200b\u2028\u2029\u0085\u1680\ufeff\t\n\r\v\f",
        *"\x00\x01\x1b\x7f\x9f\ufffd\uffff\ue000",
        *[
            "'s",
            "'S",
            "'LL",
            "'ll",
            "'Re",
            "\u2019s",
            "'t",
            "'ſ",
            "\r\n",
            "\n\n ",
            "   ",
            " \u00a0 ",
        ],
        *SAMPLE.split(),
    ]
    for _ in range(count):
        if rng.random() < 0.1:  # any characters at all, but halves of surrogate pairs
            points = (rng.randrange(0x110000) for _ in range(rng.randrange(12)))
            yield "".join(chr(p) for p in points if not 0xD800 <= p < 0xE000)
        else:
            yield "".join(rng.choices(letters, k=rng.randrange(24)))


def test_equal_to_the_official_tokenizer(qwen, tmp_path):
    """On 20 000 strings: built from vocab.json and merges.txt, and from tokenizer.json."""
    from transformers import Qwen2Tokenizer

    first = len(json.loads((qwen / "vocab.json").read_text(encoding="utf-8")))
    folder = rewritten(tmp_path, qwen)
    words = ("<|endoftext|>", "<|box_start|>", *reversed(MARKS))
    (folder / "tokenizer_config.json").write_text(added(first, *words))
    ours = Tokenizer.from_folder(folder)
    official = Qwen2Tokenizer.from_pretrained(str(folder), local_files_only=True)
    assert (ours.eos, ours.image_start) == (first + 4, first + 3) and len(ours) == first + 6
    assert [official.convert_tokens_to_ids(w) for w in words] == [ours.id(w) for w in words]
    again = tmp_path / "again"
    official.save_pretrained(str(again))
    assert not (again / "vocab.json").exists() and (again / "tokenizer.json").exists()
    read = Tokenizer.from_folder(again)

    texts = list(fuzzed(20_000))
    wanted = official(texts)["input_ids"]
    strings = official.batch_decode(wanted, clean_up_tokenization_spaces=False)
    for text, ids, string in zip(texts, wanted, strings, strict=True):
        assert ours.encode(text) == ids, ascii(text)
        assert ours.decode(ids) == string == unicodedata.normalize("NFC", text), ascii(text)
    assert [read.encode(text) for text in texts[::8]] == wanted[::8]
    used = {i for ids in wanted for i in ids}
    assert len(used) > 240 and sum(i >= 256 for i in used) > 90  # bytes, and what merges make
    assert sum(unicodedata.normalize("NFC", t) != t for t in texts) > 1000

    # Ids that stand for no whole character, and marks, as a model may write them.
    rng = random.Random(1)
    for ids in ([rng.randrange(len(ours)) for _ in range(8)] for _ in range(500)):
        assert ours.decode(ids) == official.decode(ids, skip_special_tokens=True)
    marked = "draw<|im_end|> a<|vision_start|><|endoftext|>fox<|im_start|>"
    literal = official(marked, split_special_tokens=True)["input_ids"]
    assert ours.encode(marked) == literal and ours.decode(literal) == marked
    with_marks = Tokenizer.from_folder(folder, marks_in_text=True)
    assert with_marks.encode(marked) == official(marked)["input_ids"] != literal
    assert with_marks.decode(with_marks.encode(marked)) == "draw afox"


def test_without_a_list_the_tokens_of_qwen_follow_the_vocabulary(qwen, tmp_path):
    """The distances of Qwen2.5's ids: 151643 words, then 151644, 151645, 151652, 151653."""
    start = Tokenizer.from_folder(qwen).id("<|endoftext|>")
    found = Tokenizer.from_folder(qwen)
    assert found.bos - start == 1 and found.eos - start == 2
    assert found.image_start - start == 9 and found.image_end - start == 10
    preset = BAGEL_7B_MOT
    marks = (preset.bos, preset.eos, preset.start_of_image, preset.end_of_image)
    assert [m - 151643 for m in marks] == [1, 2, 9, 10]
    # A list that lacks marks: they follow it, special although their words are given as plain.
    folder = rewritten(tmp_path, qwen)
    plain = added(start, "<|endoftext|>", "<|im_end|>").replace('"special": true', '"special": 0')
    (folder / "tokenizer_config.json").write_text(plain.replace(": 0", ": false"))
    found = Tokenizer.from_folder(folder)
    assert (found.eos, found.bos, found.image_start) == (start + 1, start + 2, start + 3)
    assert found.eos not in found.encode("a<|im_end|>b") and found.decode([found.eos]) == ""


def test_ids_are_compared_with_the_models(tokenizer, qwen):
    tokenizer.check(SHAPES.layout, "bagel_config.json")
    moved = dataclasses.replace(SHAPES, eos=7, start_of_image=8)
    with pytest.raises(ValueError) as caught:
        tokenizer.check(moved.layout, "folder/bagel_config.json")
    for part in ("tokenizer.json", "folder/bagel_config.json", "eos is 7 there and 2", "is 8"):
        assert part in str(caught.value)
    assert "bos" not in str(caught.value)
    narrow = dataclasses.replace(SHAPES, llm=dataclasses.replace(SHAPES.llm, vocab=40))
    with pytest.raises(ValueError, match=f"has 40 ids and id {len(tokenizer) - 1} is in use"):
        tokenizer.check(narrow.layout, "x")
    with pytest.raises(ValueError, match="vocab.json does not fit x: bos is 151644 there"):
        Tokenizer.from_folder(qwen).check(BAGEL_7B_MOT.layout, "x")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"vocab": lambda t: t[: len(t) // 2]}, "vocab.json: not valid JSON"),
        ({"vocab": lambda t: "[1]"}, "vocab.json: must hold a JSON object"),
        ({"vocab": lambda t: t.replace('"!":0', '"!":"0"')}, "id of '!' must be an integer"),
        ({"vocab": lambda t: t.replace('"!":0', '"!":1')}, "'!' and '\"' share the id 1"),
        ({"vocab": lambda t: t.replace('"!":0', '"!":9999')}, "none has the id 0"),
        ({"vocab": lambda t: t.replace('"!":0', '"!":0,"!":0')}, "'!' stands there twice"),
        ({"vocab": lambda t: t.replace('"!":0', '"absent":0')}, "1 of the 256 byte tokens.*'!'"),
        ({"merges": lambda t: t.replace("\n", "\nabc\n", 1)}, "merges.txt line 2: 'abc' is not"),
        ({"merges": lambda t: t + "a  b\n"}, r"merges.txt line \d+: 'a  b' is not two"),
        ({"merges": lambda t: "漢 字\n" + t}, "merges.txt line 1: '漢' is not in vocab.json"),
        ({"merges": lambda t: t + "Z Z"}, r"merges.txt line \d+: 'ZZ' is not in"),
    ],
)
def test_files_in_qwens_form_are_checked(qwen, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_folder(rewritten(tmp_path, qwen, **changes))


def test_the_list_of_added_tokens_is_checked(qwen, tmp_path):
    folder = rewritten(tmp_path, qwen)
    config = folder / "tokenizer_config.json"
    config.write_text(added(900, *MARKS))
    with pytest.raises(ValueError, match="tokenizer_config.json: '<.im_start.>' has id 900, but"):
        Tokenizer.from_folder(folder)
    for text in ('{"added_tokens_decoder": {"7": {}}}', '{"added_tokens_decoder": [1]}', "[1]"):
        config.write_text(text)
        with pytest.raises(ValueError, match="tokenizer_config.json: added_tokens_decoder must"):
            Tokenizer.from_folder(folder)
    (folder / "merges.txt").unlink()
    with pytest.raises(FileNotFoundError, match="vocab.json and merges.txt"):
        Tokenizer.from_folder(folder)


def test_half_a_character_is_refused(qwen, tokenizer):
    for words in (tokenizer, Tokenizer.from_folder(qwen)):
        with pytest.raises(ValueError, match="the character at 2 is no Unicode text"):
            words.encode("a \ud83d")
