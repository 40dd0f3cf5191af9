"""Episodes turn by turn: whose words they are, what each turn was paid, and how they are told."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worldmtp.analysis.artefacts import imagined_strip, token_strip
from worldmtp.analysis.conversations import (
    Episode,
    Utterance,
    chosen_episodes,
    episode_of,
    episodes_markdown,
    is_conversation,
    lines_of,
    utterances,
)

TEXTS = ("<eos>", "5", "7", "up.", "Guess!", "won")


def said_of(ids, acted, rewards):
    return utterances(np.array(ids), np.array(acted, dtype=bool), np.array(rewards, dtype=np.float64), TEXTS)


def test_whose_words_they_are_and_what_they_were_paid():
    """The world opens, 5 is answered, 7 is cut off by the budget of a turn, and the world has the last word."""
    said = said_of([4, 1, 0, 3, 2, 5], [0, 1, 1, 0, 1, 0], [0, 0, 0.25, 0, 0.5, 0])
    assert said == (
        Utterance(False, "Guess!"),
        Utterance(True, "5<eos>", 0.25),
        Utterance(False, "up."),
        Utterance(True, "7", 0.5),
        Utterance(False, "won"),
    )
    assert [one.speaker for one in said] == ["world", "policy", "world", "policy", "world"]


def test_a_world_that_replies_with_nothing_leaves_two_turns():
    said = said_of([4, 1, 0, 2, 0], [0, 1, 1, 1, 1], [0, 0, -1.0, 0, 2.0])
    assert [(one.text, one.reward) for one in said] == [("Guess!", None), ("5<eos>", -1.0), ("7<eos>", 2.0)]


@settings(deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.floats(-1, 1, width=32)), max_size=12),
)
def test_nothing_is_lost_and_speakers_take_turns(rows):
    ids = [4, *(token for token, _, _ in rows)]
    acted = [False, *(is_action for _, is_action, _ in rows)]
    rewards = [0.0, *(reward if is_action else 0.0 for _, is_action, reward in rows)]
    said = said_of(ids, acted, rewards)
    assert "".join(one.text for one in said) == "".join(TEXTS[token] for token in ids)
    assert sum(one.reward or 0.0 for one in said) == pytest.approx(sum(rewards))
    for one, other in itertools.pairwise(said):
        assert one.is_policy != other.is_policy or (one.is_policy and one.text.endswith("<eos>"))
    assert all((one.reward is None) == (not one.is_policy) for one in said)


def test_an_episode_as_lines():
    """Rewards in a column of their own, behind the last line of a turn; a reply of several lines keeps them."""
    said = (
        Utterance(False, "Find G:\n..\n.G\n"),
        Utterance(True, "right<eos>", 0.0),
        Utterance(False, "ok\tthen"),
        Utterance(True, "down<eos>", 1.0),
    )
    assert lines_of(Episode(said, 1.0, True)) == [
        "world   Find G:",
        "        ..",
        "        .G",
        "policy  right<eos>  0",
        "world   ok⇥then",
        "policy  down<eos>   +1",
    ]
    assert Episode(said, 1.0, True).outcome == "return 1 in 2 turns, exact"
    assert Episode(said[:2], 0.0, False).outcome == "return 0 in 1 turn"


@pytest.mark.parametrize(("num_turns", "num_shown"), [(17, 17), (18, 16), (100, 16)])
def test_a_long_episode_is_told_without_its_middle(num_turns, num_shown):
    said = [one for n in range(num_turns) for one in (Utterance(False, f"w{n}"), Utterance(True, f"p{n}", 0.0))]
    lines = lines_of(Episode(tuple(said), 0.0, False))
    shown = [int(line.split()[1][1:]) for line in lines if line.startswith("policy")]
    assert len(shown) == num_shown
    assert shown[:12] == list(range(12))
    assert shown[-4:] == list(range(num_turns - 4, num_turns))
    assert lines.count("        ...") == (num_turns > 17)


def test_no_text_closes_the_block_it_stands_in():
    episodes = [Episode((Utterance(False, "```\n# big"), Utterance(True, "````", 0.0)), 0.0, False)] * 2
    told = episodes_markdown(episodes)
    assert told.splitlines()[:3] == ["**Episode 0**: return 0 in 1 turn", "", "`````"]
    assert told.splitlines().count("`````") == 4
    assert "**Episode 1**" in told


def conversation_artefact(make_artefact):
    """In all rows of the Markov world, token 2 is the world's reply; the last token is paid if it is 1."""
    artefact = make_artefact([None])
    acted = artefact.action_mask.copy()
    acted[:, 2] = False
    return make_artefact([None], action_mask=acted, tokens_text=("a", "b"))


def test_an_artefact_tells_its_episodes(make_artefact):
    assert not is_conversation(make_artefact([None]))
    artefact = conversation_artefact(make_artefact)
    assert is_conversation(artefact)
    assert artefact.reply_mask.tolist() == [[False, False, True, False]] * len(artefact)
    row = int(np.flatnonzero((artefact.input_ids == [0, 1, 0, 1]).all(axis=1))[0])
    episode = episode_of(artefact, row)
    assert [(one.speaker, one.text, one.reward) for one in episode.utterances] == [
        ("world", "a", None),
        ("policy", "b", 0.0),
        ("world", "a", None),
        ("policy", "b", 1.0),
    ]
    assert (episode.total, episode.exact) == (1.0, True)
    rows = chosen_episodes(artefact)
    assert [rank for _, rank in rows] == ["lowest return", "middle return", "highest return"]
    found = [artefact.returns[row] for row, _ in rows]
    assert found == sorted(found)
    assert (found[0], found[-1]) == (0.0, 1.0)


def test_the_strips_show_replies_as_the_worlds(make_artefact):
    artefact = conversation_artefact(make_artefact)
    assert token_strip(artefact, 0).replies == {2}
    assert imagined_strip(artefact, 0).replies == {2}
    assert token_strip(make_artefact([None]), 0).replies == set()
