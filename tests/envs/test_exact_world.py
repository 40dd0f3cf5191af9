"""Worlds whose law is known as tasks: what is drawn follows the law, and what is paid is worked by hand."""

import numpy as np
import pytest
import torch

from worldmtp.envs import Example, make_task
from worldmtp.envs.catalogue import EXACT_WORLDS
from worldmtp.envs.tasks.exact_world import ExactWorld, KnownLaw
from worldmtp.exact import markov_chain

NO_IDS = np.zeros(0, dtype=np.int64)
DYCK = ExactWorld("dyck", {"num_kinds": 2, "max_depth": 2}, prefix_length=2, answer_length=4)


@pytest.mark.parametrize(
    ("text", "reason", "possible", "reached"),
    [
        ("])..", "ok", 1.0, 1.0),
        ("]).", "length", 1.0, 0.0),
        ("])...", "length", 1.0, 0.0),
        ("])()", "missed", 1.0, 0.0),
        ("](]).", "length", 0.0, 0.0),
        ("(]).", "impossible", 0.0, 1.0),  # deeper than two
        (")]..", "impossible", 0.0, 1.0),  # closes the wrong kind
        ("]).)", "impossible", 0.0, 0.0),  # something behind the end
        ("zz", "length", 0.0, 0.0),
        ("", "length", 1.0, 0.0),
    ],
)
def test_brackets_are_paid_by_hand(text, reason, possible, reached):
    score = DYCK.score(Example(prompt=".:(["), text, NO_IDS)
    assert (score.reason, score.components) == (reason, {"possible": possible, "reached": reached})
    assert (score.value, score.exact) == (float(reason == "ok"), reason == "ok")


@pytest.mark.parametrize("name", EXACT_WORLDS)
def test_a_drawn_answer_is_possible_and_ends_in_the_goal_it_was_asked_for(name, rng):
    task = make_task(name, EXACT_WORLDS[name][1]["task_kwargs"])
    assert isinstance(task, KnownLaw)
    for _ in range(50):
        example = task.sample(rng, "train")
        goal, prefix = task.parts(example.prompt)
        tokens = task.law.tokens_of([prefix + example.answer])
        assert tokens.shape == (1, task.law.prefix_length + task.law.answer_length)
        assert goal == example.answer[-1]
        task.law.source.beliefs(tokens)  # raises where the source would not say it
        assert task.score(example, example.answer, NO_IDS).exact
        swapped = task.law.symbols[task.law.symbols.index(goal) - 1]
        assert not task.score(example, example.answer[:-1] + swapped, NO_IDS).exact


def test_draws_have_the_frequencies_of_the_law():
    """Chi-squared of pairs of tokens of a chain, 3 degrees of freedom: above 25 by chance once in 60 000 draws."""
    task = ExactWorld("markov", {"num_symbols": 2, "forward": 0.5, "stay": 0.2}, 1, 1)
    # Forward .5 and stay .2 leave .3, so each of both tokens .15 more: A to B with .65, and so from B to A.
    chain = markov_chain(torch.tensor([[0.35, 0.65], [0.65, 0.35]], dtype=torch.float64))
    assert torch.allclose(task.law.source.transitions, chain.transitions)
    rng, count = np.random.default_rng(0), 4000
    drawn = [task.sample(rng, "train") for _ in range(count)]
    pairs = np.array([(one.prompt[2] == "B", one.answer == "B") for one in drawn])
    expected = count * np.array([[0.175, 0.325], [0.325, 0.175]])
    seen = np.array([[np.sum((pairs == (a, b)).all(axis=1)) for b in (False, True)] for a in (False, True)])
    assert ((seen - expected) ** 2 / expected).sum() < 25


def test_brackets_that_are_all_closed_in_the_prefix_are_drawn_again(rng):
    assert all("." not in DYCK.sample(rng, "train").prompt[2:] for _ in range(100))


@pytest.mark.parametrize("prompt", ["A:AB", "z:([", ".;([", ".:(", ".:([("])
def test_a_prompt_of_another_task_is_refused(prompt):
    with pytest.raises(ValueError, match="none of this source's"):
        DYCK.score(Example(prompt=prompt), "]).", NO_IDS)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"source": "mess4"}, "did you mean 'mess3'"),
        ({"source": "dyck", "source_kwargs": {"num_kinds": 5, "max_depth": 1}}, "num_kinds=5 exceeds the 4 kinds"),
        ({"source": "markov", "source_kwargs": {"num_symbols": 27}}, "27 tokens and there are 26 characters"),
        (
            {"source": "dyck", "source_kwargs": {"max_deph": 2}},
            "source_kwargs of dyck='max_deph' is unknown; did you mean 'max_depth'",
        ),
        ({"source": "dyck", "source_kwargs": {"max_depth": 0}}, "max_depth=0 must be at least 1"),
        ({"source": "dyck", "source_kwargs": {"num_kinds": 0}}, "num_kinds=0 must be at least 1"),
        ({"source": "block", "source_kwargs": {"block_length": 0}}, "block_length=0 must be at least 1"),
        ({"source": "markov", "source_kwargs": {"num_symbols": 0}}, "num_symbols=0 must be at least 1"),
        ({"source": "factorial", "source_kwargs": {"num_values": 0}}, "num_values=0 must be at least 1"),
        ({"source": "mess3", "answer_length": 0}, "must be at least 1"),
        ({"source": "mess3", "separator": "A"}, "none of the symbols 'ABC'"),
    ],
)
def test_what_cannot_be_made_is_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        ExactWorld(**arguments)


def test_a_prefix_that_no_text_outlasts_is_refused():
    task = ExactWorld("dyck", {"num_kinds": 1, "max_depth": 1, "end_prob": 1.0}, prefix_length=2)
    with pytest.raises(ValueError, match="none of 1000 texts goes on beyond prefix_length=2"):
        task.sample(np.random.default_rng(0), "train")
