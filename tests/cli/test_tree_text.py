"""Trees as text and as a page, line by line, of a conversation that is written down here."""

import re

import pytest

from worldmtp.cli.tree_page import tree_page
from worldmtp.cli.tree_text import tree_lines
from worldmtp.cli.writing import Marks, Writing
from worldmtp.envs import CharTokenizer
from worldmtp.search.explain import DrawnReply, Planned, Spoken, TreeNode

TOKENIZER = CharTokenizer("ab0123 ")


def ids(text):
    return tuple(TOKENIZER.encode(text))


def token(text, *numbers, chosen=False, end=False, **behind):
    return TreeNode(*ids(text), *numbers, end, chosen, behind.get("children", ()), behind.get("replies", ()))


@pytest.fixture
def planned():
    """Behind opening 0 and a first turn ``a``, answered with 12, the letters are planned."""
    low = DrawnReply(ids("3"), 4, False, True, (token("b", 3, 0.25, 1.0, chosen=True, end=True),))
    none = DrawnReply((), 1, True, False, ())
    a = token("a", 5, 0.75, 0.5, chosen=True, replies=(low, none))
    b = token("b", 1, 0.25, -0.125, replies=(DrawnReply(ids("0 1"), 1, True, False, ()),))
    heard = (True, False, True, True)
    return Planned(Spoken(ids("0a12"), heard), (a, b), ids("a"), 0.375)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_line_for_each_token_and_each_reply(planned, encoding):
    writing = Writing(TOKENIZER.to_transformers(), Marks.for_encoding(encoding))
    expected = """\
plan 3 after «0»a«12», worth 0.375
    visits  prior       Q  imagined
  →      5  75.0%   0.500  a
  →      4  drawn            a«3»
  →      3  25.0%   1.000      a«3»b end
         1  drawn            a end
         1  25.0%  -0.125  b
         1  drawn            b«0␣1» end"""
    if encoding == "ascii":
        for mark, plain in (("«", "<<"), ("»", ">>"), ("→", ">"), ("␣", "_")):
            expected = expected.replace(mark, plain)
    assert "\n".join(line.plain for line in tree_lines(3, planned, writing)) == expected


def test_the_page_folds_replies_under_what_they_answer(planned):
    new = Spoken(ids("a12a3"), (False, True, True, False, True))
    page = tree_page(["0"], [new], [[planned]], TOKENIZER.to_transformers(), "puct, a world")
    assert "<h2>Prompt <code>0</code>, written <code>a«12»a«3»</code></h2>" in page
    assert "<h2>Plan 1, worth 0.375, after <code>«0»a«12»</code></h2>" in page
    assert "goes on behind the most drawn one. puct, a world</p>" in page
    rows = re.findall(r"<(details|div) class='([a-z ]+)'( open)?>.*?width:([\d.]+)%.*?<code>(.*?)</code>", page)
    assert rows == [
        ("details", "token chosen", " open", "83.3", "a"),
        ("details", "reply chosen", " open", "66.7", "a«3»"),
        ("div", "leaf token chosen", "", "50.0", "a«3»b (end)"),
        ("div", "leaf reply", "", "16.7", "a (end)"),
        ("details", "token", "", "16.7", "b"),
        ("div", "leaf reply", "", "16.7", "b«0␣1» (end)"),
    ]
    assert "<span>5</span><span>75.0%</span><span>0.500</span>" in page
    assert "<span>4</span><span>drawn</span><span></span>" in page
    assert page.count("<details") == page.count("</details>") == 3


def test_a_page_without_replies_says_nothing_of_them(planned):
    alone = Planned(Spoken.of_one(ids("0")), (token("a", 2, 1.0, 0.5, chosen=True),), ids("a"), 0.5)
    page = tree_page(["0"], [Spoken.of_one(ids("a"))], [[alone]], TOKENIZER.to_transformers(), "puct")
    assert "drawn" not in page
    assert "after <code>0</code></h2>" in page


def test_a_plain_terminal_is_given_what_it_can_show():
    tokenizer = CharTokenizer("aé→")
    spoken = Spoken(tuple(tokenizer.encode("aé→")), (False, True, False))
    told = {}
    for encoding in ("utf-8", "ascii"):
        writing = Writing(tokenizer.to_transformers(), Marks.for_encoding(encoding))
        told[encoding] = writing.path(spoken), writing.spoken(spoken).plain
    assert told == {"utf-8": ("a«é»→",) * 2, "ascii": (r"a<<\xe9>>\u2192",) * 2}
