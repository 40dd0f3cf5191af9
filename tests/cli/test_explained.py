"""A hand-made decoding as it is shown: each fate in its place, with its mark and its colour, on any output."""

import io
import re
import sys
from dataclasses import replace

import pytest
import torch
from rich.console import Console

from worldmtp.cli import generate as script
from worldmtp.cli.explained import show_explanation, show_side_by_side
from worldmtp.cli.writing import Marks
from worldmtp.decoding.explain import DraftedPlace, DraftedToken, ExplainedRound, Explanation, Fate, Guess
from worldmtp.envs import CharTokenizer
from worldmtp.model import MTPModel
from worldmtp.model.config import MTPConfig
from worldmtp.training.saved_model import save_model, transformers_tokenizer

ALPHABET = "abcdefgh\n="
A, B, C, D, E, F, G, H, NEWLINE, EQUALS = range(2, 12)
EOS = 1


def place(token, fate, drafter, trunk, probability=None):
    return DraftedPlace((DraftedToken(token, fate, probability),), drafter, trunk)


# "ab=" goes on with "f" from the prompt's forward. Drafted behind it: c, accepted; d, where the trunk wants a line end;
# e, which nobody asked about.
FIRST = ExplainedRound((A, B, EQUALS), (), Guess(F, 0.9), (Guess(F, 0.9 + 1e-8), Guess(G, 0.1)))  # as rounding goes
SECOND = ExplainedRound(
    (A, B, EQUALS, F),
    (
        place(C, Fate.ACCEPTED, (Guess(C, 0.8), Guess(G, 0.15), Guess(H, 0.004)), (Guess(C, 0.71),), 0.71),
        place(D, Fate.REFUSED, (Guess(D, 0.6),), (Guess(NEWLINE, 0.52),), 0.2),
        place(E, Fate.UNREACHED, (Guess(E, 0.5),), ()),
    ),
    Guess(NEWLINE, 0.52),
    (Guess(NEWLINE, 0.52),),
)
THIRD = ExplainedRound((A, B, EQUALS, F, C, NEWLINE), (), Guess(EOS, 1.0), (Guess(EOS, 1.0),))
DRAFTED = Explanation((A, B, EQUALS), (FIRST, SECOND, THIRD))
STEP_BY_STEP = Explanation(
    (A, B, EQUALS),
    (
        FIRST,
        replace(FIRST, text=SECOND.text, own=Guess(C, 0.7)),
        replace(FIRST, text=(*SECOND.text, C), own=Guess(NEWLINE, 0.52)),
        THIRD,
    ),
)


def shown(show, *arguments, color=None, marks=None, width=80):
    stream = io.StringIO()
    console = Console(file=stream, width=width, color_system=color, force_terminal=color is not None, highlight=False)
    show(*arguments, marks or Marks(), console)
    return stream.getvalue()


@pytest.fixture(scope="module")
def tokenizer():
    return CharTokenizer(ALPHABET).to_transformers()


def lines_of(text):
    return [re.sub(r"  +", " | ", line.strip()) for line in text.splitlines()]


def test_rounds_as_plain_text(tokenizer):
    lines = lines_of(shown(show_explanation, DRAFTED, tokenizer, "mtp", False))
    start = lines.index("forward 1 | reads the prompt ab=")
    assert [line for line in lines[start:] if line] == [
        "forward 1 | reads the prompt ab=",
        "trunk | f 90% | → f",
        "text now | ab=f",
        "forward 2 | reads f and the drafts c d e",
        "depth 2 | c 80% | g 15% | h <1% | c 71% | ✓ c",
        r"depth 3 | d 60% | \n 52% | ✗ d",
        "depth 4 | e 50% | – e",
        r"trunk | \n 52% | → \n",
        r"text now | ab=fc\n",
        r"forward 3 | reads \n, no draft",
        "trunk | <eos> 100% | → <eos>",
        r"text now | ab=fc\n<eos>",
    ]


def test_rounds_in_colour(tokenizer):
    text = shown(show_explanation, DRAFTED, tokenizer, "mtp", False, color="standard")
    green, red_struck, cyan, grey = "\x1b[32m", "\x1b[9;31m", "\x1b[1;36m", "\x1b[90m"
    (accepted,) = [line for line in text.splitlines() if "depth 2" in line]
    assert f"{green}c" in accepted
    (refused,) = [line for line in text.splitlines() if "depth 3" in line]
    assert f"{red_struck}d" in refused
    (unreached,) = [line for line in text.splitlines() if "depth 4" in line]
    assert f"{grey}e" in unreached
    second = [line for line in text.splitlines() if "text now" in line][1]
    assert f"ab=f{green}c\x1b[0m{cyan}\\n" in second


def test_a_drawn_draft_shows_what_the_trunk_made_of_it(tokenizer):
    lines = lines_of(shown(show_explanation, DRAFTED, tokenizer, "mtp", True))
    assert r"depth 3 | d 60% | \n 52% | d 20% | ✗ d" in lines
    assert any("Drafts are accepted by draws that keep the trunk's law." in line for line in lines)


def test_a_drawn_token_of_the_trunk_stands_beside_its_likeliest(tokenizer):
    drawn = replace(FIRST, own=Guess(G, 0.1))
    lines = lines_of(shown(show_explanation, Explanation((A, B, EQUALS), (drawn,)), tokenizer, "mtp", True))
    assert "trunk | f 90% | g 10% | → g" in lines


def test_candidates_of_a_tree_and_what_was_found_in_the_text(tokenizer):
    tokens = (DraftedToken(D, Fate.REFUSED, 0.1), DraftedToken(C, Fate.ACCEPTED, 0.7))
    tree = replace(SECOND, places=(DraftedPlace(tokens, (Guess(D, 0.5), Guess(C, 0.4)), (Guess(C, 0.7),)),))
    lines = lines_of(shown(show_explanation, Explanation((A, B, EQUALS), (FIRST, tree)), tokenizer, "tree", False))
    assert "depth 2 | d 50% | c 40% | c 70% | ✗ d | ✓ c" in lines
    found = replace(SECOND, places=(replace(SECOND.places[0], drafter_view=()),))
    lines = lines_of(shown(show_explanation, Explanation((A, B, EQUALS), (FIRST, found)), tokenizer, "lookup", False))
    assert "draft 1 | found in the text | c 71% | ✓ c" in lines


def test_pairs_that_do_not_fit_go_on_below(tokenizer):
    view = (Guess(C, 0.8), Guess(A, 0.1), Guess(B, 0.05), Guess(G, 0.03), Guess(H, 0.02))
    crowded = replace(SECOND, places=(replace(SECOND.places[0], drafter_view=view),))
    explanation = Explanation((A, B, EQUALS), (FIRST, crowded))
    # 66 characters, less 10, 9 and 7 of the other columns and 12 around them, leave 28: four pairs of 26, one below.
    lines = lines_of(shown(show_explanation, explanation, tokenizer, "mtp", False, width=66))
    assert "depth 2 | c 80% | a 10% | b 5% | g 3% | c 71% | ✓ c" in lines
    assert "h 2%" in lines


def test_an_encoding_without_the_marks(tokenizer):
    assert Marks.for_encoding("utf-8") == Marks()
    marks = Marks.for_encoding("ascii")
    text = shown(show_explanation, DRAFTED, tokenizer, "mtp", False, marks=marks)
    assert text.isascii()
    assert "x d" in text
    assert "+ c" in text


def test_side_by_side(tokenizer):
    lines = lines_of(shown(show_side_by_side, STEP_BY_STEP, DRAFTED, tokenizer, "mtp", False, "batch size 1"))
    assert [line for line in lines if line] == [
        "forward | step by step (draft none) | in parallel (draft mtp)",
        "─" * len(lines[2]),
        "1 | ab=f | ab=f",
        r"2 | ab=fc | ab=fc\n",
        r"3 | ab=fc\n | ab=fc\n<eos>",
        r"4 | ab=fc\n<eos>",
        "✓ identical texts: 4 forwards of the trunk step by step, 3 in parallel.",
        "batch size 1",
    ]


@pytest.mark.parametrize(
    ("is_sampled", "said"),
    [
        (False, "✗ the texts differ, which greedy decoding does only where two tokens tie"),
        (True, "Other draws of the same law: 3 forwards of the trunk step by step"),
    ],
)
def test_texts_that_differ(tokenizer, is_sampled, said):
    other = Explanation((A, B, EQUALS), STEP_BY_STEP.rounds[:3])
    assert said in shown(show_side_by_side, other, DRAFTED, tokenizer, "mtp", is_sampled, "")


def test_long_texts_show_their_end(tokenizer):
    one = replace(FIRST, text=(A,) * 100)
    text = shown(show_side_by_side, Explanation((A,) * 100, (one,)), DRAFTED, tokenizer, "mtp", False, "")
    assert " …" + "a" * 29 + "f " in text  # (80 - 18) / 2 characters


def test_the_command_shows_a_model_explaining_itself(tiny_trunk, monkeypatch, tmp_path, capsys):
    trunk = tiny_trunk("llama", vocab_size=12, dtype=torch.float64)
    model = MTPModel.from_trunk(trunk, MTPConfig(depth=3, initializer_range=0.3), torch.Generator().manual_seed(0))
    save_model(model, tmp_path / "model", transformers_tokenizer(CharTokenizer(ALPHABET)))
    words = ["--model", str(tmp_path / "model"), "--explain", "--max-new-tokens", "6", "ab="]
    monkeypatch.setattr(sys, "argv", ["worldmtp generate", *words])
    script.main()
    captured = capsys.readouterr()
    ids = torch.tensor([[A, B, EQUALS]])
    new = model.eval().trunk.generate(ids, max_new_tokens=6, do_sample=False, eos_token_id=EOS, pad_token_id=0)[0, 3:]
    table, _, comparison = captured.out.partition("step by step (draft none)")
    accepted = sum(len(re.findall("✓ ", line)) for line in table.splitlines() if "  depth " in line)
    own = len(re.findall(r"  trunk .*→ ", table))
    assert accepted + own == len(new)  # every token is a draft that was accepted, or the trunk's own
    assert "✓ identical texts" in comparison
    num_forwards = int(re.search(r"step by step, (\d+) in parallel", comparison)[1])
    assert len(re.findall(r"^ forward \d", table, re.MULTILINE)) == num_forwards
    assert re.search(
        rf"^{len(new)} tokens in {num_forwards} trunk forwards .*K=3, num_draft=2", captured.err, re.MULTILINE
    )
    assert "\x1b" not in captured.out
