"""Plain English on the shapes base: paraphrases mean what they say, the world's own words stay."""

import itertools
import random

import pytest

from srum_jax.core.errors import BadInput
from srum_jax.rewards import question_templates
from srum_jax.worlds.shapes import changes, english, language, questions
from srum_jax.worlds.shapes.english import normalise
from srum_jax.worlds.shapes.language import name, plural
from srum_jax.worlds.shapes.setting import SMALL

PAIRS = random.Random(0).sample(list(itertools.permutations(language.PAIRS, 2)), 12)


def prompts():
    """Every wording of some contents of every category and split."""
    rng = random.Random(1)
    for split, category in itertools.product(language.SPLITS, SMALL.prompts):
        every = language.contents(split, category)
        for content in rng.sample(every, min(60, len(every))):
            yield from language.wordings(content)


def asked():
    """Questions of every kind as pretraining, evaluation and the judge ask them."""
    for i in range(200):
        yield from questions.understanding_example(0, i)[1]
        yield from changes.several_example(0, i)[1]
    yield from (q for _, q in questions.qa_set("test", 120))
    yield from (q for _, q in changes.several_set("test", 60))


def test_the_worlds_own_sentences_stay_as_they_are():
    found, questioned = list(prompts()), list(asked())
    judged = {
        question.text
        for text in found[::7]
        for scene in [question_templates.decompose(text)]
        for question in (
            *question_templates.crop_questions(scene),
            *question_templates.image_questions(scene),
        )
    }
    texts = {
        "prompt": {*found, *(q.answer for q in questioned if q.kind == "caption")},
        "question": {*(q.text for q in questioned), *judged},
        "instruction": {changes.edit_example(0, i).instruction for i in range(2000)},
    }
    assert min(map(len, texts.values())) > 250
    for kind, some in texts.items():
        for text in some:
            assert normalise(text) == normalise(text, kind) == text
            assert english.kind_of(text) == kind


# {a}, {the}: "a red circle", "red circle"; {b}, {other}: another object; {c} {s} {d} {t}: colours
# and shapes alone; {many}: "red circles".
PROMPTS = {
    "{a}": "{the}|A {the}.|the {the}|Please draw {a}!|draw me {a}|Show {a}, please|An image of {a}"
    "|a picture of {a}.|Can you draw {a}?|could you please make a photo of {a}|I'd like {a}"
    "|I want to see a drawing with {a}|there is {a}|one {the}|a single {the}|a {c}-coloured {s}"
    "|a {c} colored {s}|generate an illustration showing {a}|  A  {c}\t{s} ",
    "{a} and {b}": "{a}, {b}|{a} and {b}.|{the} and {other}|Draw {a} with {b}|{a} as well as {b}"
    "|A picture with {a} and also {b}|{a} & {b}|There are {a} and {b}|one {the} and one {other}",
    "a big {the} and a small {other}": "a large {the} and a tiny {other}"
    "|Huge {the}, little {other}|a {c} big {s} and a {d} small {t}",
    "a big {the} and {b}": "A big {the}, and {b}.|a large {the} with {b}",
    "two {many}": "2 {many}|draw two {many}|a pair of {many}|Two {many}, please.|{a} and {a}"
    "|There are two {many}|exactly two {many}|a picture of two {many}|a couple of {many}",
    "three {many}": "3 {many}|two {many} and {a}|{a}, {a}, and {a}",
    "{a} left of {b}": "{a} to the left of {b}|{a} on the left of {b}|{a} is left of {b}"
    "|{a} on the left side of {b}|A {the} that is to the left of a {other}.",
    "{a} right of {b}": "{a} to the right of {b}|show me {a} at the right of {b}",
    "{a} above {b}": "{a} over {b}|{a} on top of {b}|{a} is above {b}|{the} above the {other}",
    "{a} below {b}": "{a} under {b}|{a} underneath {b}|{a} beneath {b}|a {the} which is below {b}",
}
QUESTIONS = {
    "describe the image .": "Describe the picture|What do you see?|what is in the image?"
    "|What's in this picture?|caption this image|describe this image, please."
    "|Provide a one-sentence caption for the provided image.|Describe the image briefly."
    "|Write a single-sentence caption for this picture",
    "what color is the {s} ?": "What colour is the {s}?|Which color is the {s}"
    "|What's the colour of the {s}?|what is the {s}'s color?|what color does the {s} have"
    "|What color is the {s} in the picture?|please, what color is the {s}?",
    "what shape is the {c} object ?": "What shape is the {c} thing?|which shape is the {c} object"
    "|what is the shape of the {c} object?|What is the {c} object?|what's the {c} thing",
    "is the {the} big or small ?": "Is the {the} large or small?|how big is the {the}?"
    "|is the {the} small or big|What size is the {the}?|what is the size of the {the}",
    "is there {a} ?": "is there {a}?|Is there a {the} in the image?|is there any {the}"
    "|Are there any {many}?|Do you see {a}?|can you see a {the}?|Does the image contain {a}?"
    "|does the picture have a {the}|Is the {s} {c}?|is there a {c} coloured {s}?",
    "how many {many} are there ?": "How many {many}?|how many {many} are in the picture?"
    "|How many {many} are there in the picture?|Count the {many}.|how many {many} do you see?"
    "|In the picture, how many {many} are there?|How many {many} can you see"
    "|what is the number of {many}|how many {many} are visible",
    "how many objects are there ?": "How many things are there?|how many shapes do you see?"
    "|Count all the objects|how many items are in the image?",
    "is the {the} left or right ?": "Is the {the} on the left or on the right?"
    "|is the {the} on the left or the right|is the {the} right or left?"
    "|Is the {the} on the left side or the right side?",
    "is the {the} above or below ?": "Is the {the} at the top or at the bottom?"
    "|is the {the} on the top or on the bottom|Is the {the} below or above?",
    "is the {the} left of the {other} ?": "Is the {the} to the left of the {other}?"
    "|is the {the} on the left side of the {other}|Is the {the} left of the {other} in the image?",
    "is the {the} below the {other} ?": "Is the {the} under the {other}?"
    "|is the {the} beneath the {other}",
    "is the {the} left or right of the {other} ?": "is the {the} to the left or right of the "
    "{other}?|Is the {the} to the left or to the right of the {other}?"
    "|is the {the} right or left of the {other}",
    "is the {the} above or below the {other} ?": "Is the {the} above or below the {other}?"
    "|Is the {the} over or under the {other}?",
    "does the image show {a} and {b} ?": "Does the picture show a {the} and a {other}?"
    "|does this image show {a}, {b}?|Is this a picture of {a} and {b}?",
    "is this {a} ?": "Is this a {the}?|is it {a}?",
    "what color is this ?": "What colour is this?|which color is it?",
    "what changed ?": "What changed?|what has changed between the two pictures?|what's different?"
    "|What is the difference between the images?",
    "which image has more {c} objects ?": "Which picture has more {c} things?"
    "|which of the two images has more {c} objects?|Which photo shows more {c} items",
    "how many objects moved ?": "How many things moved?|how many objects are moving|"
    "How many objects have moved?",
    "what color is the object that moved ?": "What colour is the thing that moved?"
    "|what's the color of the moving object?",
    "which way did the object move ?": "Which direction did the object move?"
    "|In which direction does the object move?|where did the thing move?",
}
INSTRUCTIONS = {
    "add {a} .": "Add {a}|add a {the} to the picture.|Please add one {the}!|insert {a}"
    "|put another {the} in the image|Can you add {a}?",
    "remove the {the} .": "Remove the {the}|delete the {the}, please|erase {the}"
    "|Get rid of the {the}.|take away the {the}|remove the {the} from the image",
    "make the {the} {d} .": "Make the {the} {d}|turn the {the} {d}|Change the {the} to {d}."
    "|change the colour of the {the} to {d}|paint the {the} {d}|recolour the {the} {d}"
    "|Could you make the {the} {d}?",
    "move the {the} up .": "Move the {the} up|move the {the} upwards|shift the {the} up.",
    "move the {the} left .": "Move the {the} to the left|push the {the} left, please",
}


def filled(template: str, first: language.Pair, second: language.Pair) -> str:
    (c, s), (d, t) = first, second
    return template.format(
        c=c,
        s=s,
        d=d,
        t=t,
        a=name(first),
        b=name(second),
        the=f"{c} {s}",
        other=f"{d} {t}",
        many=f"{c} {plural(s)}",
    )


@pytest.mark.parametrize(
    "kind, table",
    [("prompt", PROMPTS), ("question", QUESTIONS), ("instruction", INSTRUCTIONS)],
)
def test_a_paraphrase_becomes_the_worlds_sentence(kind, table):
    for (sentence, ways), pair in itertools.product(table.items(), PAIRS):
        wanted = filled(sentence, *pair)
        for way in (sentence, *ways.split("|")):
            said = filled(way, *pair)
            assert (said, normalise(said, kind)) == (said, wanted)
            assert (said, normalise(said)) == (said, wanted)
            assert (said, normalise(said.upper(), kind)) == (said, wanted)
        assert normalise(wanted) == wanted


# What official harnesses put around a question {q}, and options {o}, one a line with the marks {m}.
AROUND = (
    "{q}\nAnswer the question using a single word or phrase.",
    "{q} Please answer yes or no.",
    "{q} Please answer yes or no. Answer the question using a single word or phrase.",
    "{q} Answer in one word.",
    "{q} Answer the question with Yes or No.",
    "Yes or no: {q}",
    "{q} There are several options:\n{o}\n\n"
    "Answer with the option's letter from the given choices directly.",
    "{q}\n{o}\nAnswer with the option's letter from the given choices directly.",
    "Question: {q}\nOptions:\n{o}\nPlease select the correct answer from the options above. \n",
    "Question:{q}\nOption:\n{o}\nOnly give the best option.\n",
    "Select the best answer to the following multiple-choice question based on the video and the "
    "subtitles. Respond with only the letter (A, B, C, or D) of the correct option.\n{q}\n{o}\n"
    "Answer with the option's letter from the given choices directly.",
    "<image 1> {q}",
    "Please provide a short answer.\n{q}",
)
OPTIONS = (("A", "yes"), ("B", "a dog"), ("C", "4"), ("D", "no"))
MARKS = ("{}. {}", "({}) {}", "{}) {}", "{}: {}")


@pytest.mark.parametrize("around", AROUND)
def test_what_benchmarks_say_of_an_answers_form_is_dropped(around):
    table = {sentence: ways.split("|") for sentence, ways in QUESTIONS.items()}
    for (sentence, ways), pair in itertools.product(table.items(), PAIRS[:3]):
        wanted = filled(sentence, *pair)
        for i, way in enumerate((sentence, *ways)):
            marks, split = MARKS[i % 4], "\n" if i % 3 else " "
            options = split.join(marks.format(*o) for o in OPTIONS)
            said = around.format(q=filled(way, *pair).rstrip("?. ") + "?", o=options)
            assert (said, normalise(said, "question")) == (said, wanted)
            assert (said, normalise(said)) == (said, wanted)


def test_a_lone_object_with_a_question_mark_asks_whether_it_is_there():
    for color, shape in language.PAIRS:
        wanted = f"is there a {color} {shape} ?"
        for said in ("a {} {}?", "{} {} ?", "The {} {}?"):
            assert normalise(said.format(color, shape), "question") == wanted
    assert normalise("Two red circles?", "prompt") == "two red circles"


@pytest.mark.parametrize(
    "said, word",
    [
        ("What color is the circle? Answer in French.", "french"),
        ("What color is the star? Answer in one word.", "star"),
        ("Hint: it is warm.\nWhat color is the circle?", "hint"),
        ("the left?", "is no question"),
        ("two red circles?", "is no question"),
        ("Is there a red circle? Answer no.", "is no question"),
        ("Answer in one word.", "is no question"),
        ("A. red\nB. blue", "is no question"),
    ],
)
def test_beside_the_form_nothing_is_dropped(said, word):
    with pytest.raises(BadInput, match=word):
        normalise(said, "question")


REFUSED = {
    "": "says nothing",
    " ?! ": "says nothing",
    "a red star": "the word 'star' has no meaning.*near are circle, square, triangle, cross",
    "an orange circle": "the word 'orange'.*near are red, green, blue",
    "a red circel": "the word 'circel'.*near are circle",
    "a yelow square and a red circle": "the word 'yelow'.*near are yellow",
    "a red circle next to a blue square": "the word 'next'",
    "ein roter Kreis": "the word 'ein'",
    "a red circle \U0001f642": "the word '\U0001f642'",
    "no red circle": "'no red circle' cannot be said",
    "a red circle without a blue square": "'without a blue square' cannot be said",
    "a picture that isn't a red circle": "not a red circle",
    "five red circles": "'five red circles' cannot be said; the counts are one, two, three, four",
    "12 red circles": "'12 red circles'",
    "zero red circles": "'zero red circles'",
    "many red circles": "'many red circles'",
    "three red circles and two red circles": "5 objects; the shapes world has 4 at most",
    "two red circles and a blue square": "'two red circles' beside other objects",
    "a red circle, a red circle and a blue square": "'a red circle' beside other objects",
    "two big red circles": "the size of 'two big red circles'",
    "a big red circle, a blue square and a green cross": "the size of 'a big red circle'",
    "a red circle above a blue square and a green cross": "'above' beside other objects",
    "a big red circle above a blue square": "'a big red circle' has a size beside a relation",
    "two red circles above a blue square": "'two red circles' has a count beside a relation",
    "a red circle above a red circle": "must differ",
    "red circles": "'red circles' cannot be said; say how many",
    "a circle": "'a circle' cannot be said; an object has one colour",
    "a red object": "'a red object' cannot be said",
    "a red": "'a red' cannot be said; an object has one shape",
    "a big small red circle": "'a big small red circle'",
    "a red circle and": "'a red circle and' cannot be said",
    "where is the red circle?": "no sentence.*'is there a red circle \\?'",
    "is the red circle big?": "no sentence.*'is the red circle big or small \\?'",
    "what is this?": "no sentence",
    "add two red circles": "no sentence.*'add a red circle .'",
    "move the red circle": "no sentence.*'move the red circle left .'",
    "remove the circle": "no sentence.*'remove the red circle .'",
    "what is the weather like?": "the word 'weather'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_the_world_cannot_say_is_refused_with_what_is_near(text):
    with pytest.raises(BadInput, match=REFUSED[text]):
        normalise(text)


@pytest.mark.parametrize(
    "text, kind, message",
    [
        ("what color is the circle?", "prompt", "no prompt.*'a red circle"),
        ("remove the red circle", "prompt", "no prompt"),
        ("a red circle", "question", "no question.*'is this a red circle \\?'"),
        ("a red circle", "instruction", "no instruction.*'add a red circle .'"),
        (
            "make the red circle bigger",
            "instruction",
            "no instruction.*'make the red circle blue .'",
        ),
        ("is there a red star?", "question", "the word 'star'"),
        ("", "question", "for example 'does the image show"),
    ],
)
def test_another_kind_of_sentence_is_refused(text, kind, message):
    with pytest.raises(BadInput, match=message):
        normalise(text, kind)


def test_every_example_is_a_sentence_of_the_world():
    for example in english.EXAMPLES:
        assert normalise(example) == example
