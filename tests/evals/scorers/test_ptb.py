"""Tokens of captions: what CoreNLP 3.4.1 and pycocoevalcap's list leave of odd texts."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from srum_jax.evals.scorers import ptb

# Answers of the Java program to texts of our own.
ANSWERS = """
A man's dog isn't (quite) at home. => a man 's dog is n't -lrb- quite -rrb- at home
They cannot stop, they're gonna go! => they can not stop they 're gon na go
it’s here and they don’t move => it 's here and they do n't move
plan B. The dog => plan b the dog
Kenneth J. Miller of the U.S.A. => kenneth j. miller of the u.s.a.
St. Louis, Mr. Lee, no. 5 and no. => st. louis mr. lee no. 5 and no
hr. hr., hr. => hr hr. hr
rock 'n' roll of the '90s, the '90 's => rock 'n' roll of the '90s the '90 's
O'Brien y'all o'clock ma'am d'art => o'brien y' all o'clock ma'am d'art
'tis 'twas Tis => 't is 't was tis
a well-known 20-foot x- --x word--word => a well-known 20-foot x x word word
1/2 ½ 10/12 12/25/2010 1,000 .5 3.5 5.x => 1/2 1/2 10/12 12/25/2010 1,000 .5 3.5 5.x
10:30pm 5pm 1,000th 20% #1 => 10:30 pm 5pm 1,000 th 20 % # 1
$20 US$5 £20 €20 10¢ => $ 20 us$ 5 # 20 $ 20 10 cents
hello.world yes!no word...word => hello.world yes!no word word
what?! no!! => what ?! no !!
[cropped] {x} <b>bold</b> a > b => -lsb- cropped -rsb- -lcb- x -rcb- <b> bold </b> a > b
AT&T B&B a&b C++ c# foo_bar _foo_ => at&t b&b a & b c++ c# foo_bar _ foo _
a/b/c black/white-striped w/ w/o left/right => a/b/c black/white-striped w / w/o left/right
www.foo.com http://foo.com/x?y=1 => www.foo.com http://foo.com/x?y=1
foo@bar.com, @user #hash => foo@bar.com, @user #hash
:) ;-) :D ^_^ => :-rrb- ;--rrb- :d ^_^
30°C cm² 8×10 ★ 😀 日本 naïve café => 30 ° c cm ² 8 × 10 ★ 日本 naïve café
&lt; &amp; x &quot;y&quot; => < & x y
"""


@pytest.mark.parametrize("line", [line for line in ANSWERS.splitlines() if "=>" in line])
def test_java_says_so(line):
    text, want = line.split(" => ")
    assert ptb.tokenize(text) == want


@pytest.mark.parametrize("text", ["", " ", ".", "...", "“", "--", "' '", "\n\t"])
def test_nothing_is_left(text):
    assert ptb.tokenize(text) == ""


@given(st.lists(st.text("abcdefghij", min_size=2, max_size=9), max_size=12))
def test_plain_words_stay(words):
    assert ptb.tokenize(" ".join(words)) == " ".join(words)


@given(st.text(max_size=80))
def test_any_text_has_tokens(text):
    tokens = ptb.tokenize(text).split(" ")
    assert not ptb.DROPPED & set(tokens)
    assert all(token == token.lower() and not any(map(str.isspace, token)) for token in tokens)


@given(st.text("aB .,'’-/&1()?!", max_size=60))
def test_space_around_does_not_matter(text):
    assert ptb.tokenize(f"  {text}\n") == ptb.tokenize(text)


@pytest.mark.parametrize("piece", ["a", "a.", "a-", "1,", "'", "<a ", "a@", "(", "ab/"])
def test_long_words_take_no_more_than_quadratic_time(piece):
    start = time.perf_counter()
    ptb.tokenize(piece * 2000)
    assert time.perf_counter() - start < 5
