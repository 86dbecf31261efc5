"""The tokenizer reader, and the shapes world's own file."""

import json
import pathlib

import pytest

import srum_jax
from srum_jax.data import shapes
from srum_jax.data.tokenizer import Tokenizer

SHIPPED = pathlib.Path(srum_jax.__file__).parent / "bases" / "shapes"


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_folder(SHIPPED)


def test_the_shipped_file_is_what_the_world_writes(tmp_path):
    written = shapes.write_tokenizer(tmp_path).read_bytes()
    assert written == (SHIPPED / "tokenizer.json").read_bytes()


def test_marks_come_first_and_words_fit_the_vocabulary(tokenizer):
    marks = (tokenizer.bos, tokenizer.eos, tokenizer.image_start, tokenizer.image_end)
    assert marks == (1, 2, 3, 4) and tokenizer.id("<pad>") == 0
    assert len(tokenizer) == len(shapes.vocabulary()) <= shapes.VOCAB_SIZE == 96


def test_every_prompt_question_and_answer_comes_back(tokenizer):
    texts = {p.text for split in shapes.SPLITS for p in shapes.prompts(split)[::3]}
    for i in range(600):
        _, asked = shapes.understanding_example(4, i)
        for q in asked:
            texts |= {q.text, q.answer}
    assert len(texts) > 1500
    for text in texts:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    used = {word for text in texts for word in text.split()}
    unused = set(shapes.vocabulary()) - used
    assert unused == {
        "<pad>",
        "<|im_start|>",
        "<|im_end|>",
        "<|vision_start|>",
        "<|vision_end|>",
        "four",
    }


def test_case_and_punctuation_do_not_matter(tokenizer):
    spaced = tokenizer.encode("what color is the square ?")
    assert tokenizer.encode("What COLOR is the square?") == spaced
    assert tokenizer.encode("a red circle, a blue square and a green cross") == tokenizer.encode(
        "a red circle , a blue square and a green cross"
    )
    assert tokenizer.encode("") == []


def test_an_unknown_word_is_named(tokenizer):
    with pytest.raises(ValueError, match="'pink'.*tokenizer.json"):
        tokenizer.encode("a pink circle")
    with pytest.raises(ValueError, match="'<box>'"):
        tokenizer.id("<box>")


def test_missing_and_broken_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="tokenizer.json"):
        Tokenizer.from_folder(tmp_path)
    path = shapes.write_tokenizer(tmp_path)
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
