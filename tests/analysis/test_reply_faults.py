"""Models of replies with a planted fault each, in a world whose law is known: which number moves, and which must not.

A counter modulo five goes on by what the policy says, and the world names it, rightly with .8. So the law of each reply
is known from the text, the replies of neighbouring turns are unlike, and there is chance to be too sure about.
"""

import dataclasses

import numpy as np
import pytest

from worldmtp.analysis.reply_faults import (
    ReplyFaults,
    fault_of,
    fault_rows,
    fault_scalars,
    loop_lines,
    nats,
    open_loop_costs,
    reply_faults,
)
from worldmtp.analysis.reply_turns import AnsweredTurns, ReplyProbes, ReplyTurns
from worldmtp.analysis.reply_verdicts import reply_alignment, reply_calibration
from worldmtp.analysis.verdict import MAX_ERROR
from worldmtp.statistics import Interval
from worldmtp.tracking.tags import TAGS

STATES, TURNS, TALKS, MEMBERS = 5, 6, 240, 3
NAN = np.nan


def world(seed):
    """Return laws of the replies and replies; one turn more than is looked at, on both sides."""
    draws = np.random.default_rng(seed)
    counter = np.cumsum(draws.integers(1, STATES, size=(TALKS, TURNS + 2)), axis=1) % STATES
    law = 0.05 + 0.75 * np.eye(STATES)[counter]
    wrong = (counter + draws.integers(1, STATES, size=counter.shape)) % STATES
    return law, np.where(draws.random(counter.shape) < 0.8, counter, wrong)


def sharpened(law):
    return law**3 / (law**3).sum(axis=-1, keepdims=True)


def stale(law):
    """Member 1 has learnt half of it; it is asked about every third conversation."""
    said = law[:, 1:-1].copy()
    said[1::MEMBERS] = 0.5 * said[1::MEMBERS] + 0.5 / STATES
    return said


MODELS = {
    "right": lambda law: law[:, 1:-1],
    "sharpened": lambda law: sharpened(law)[:, 1:-1],
    "a turn early": lambda law: law[:, 2:],
    "a turn late": lambda law: law[:, :-2],
    "shuffled between turns": lambda law: np.roll(law[:, 1:-1], 3, axis=1),
    "shuffled between conversations": lambda law: np.roll(law[:, 1:-1], 7, axis=0),
    "stale member": stale,
}
# All columns are asserted: a fault trips its own, and of the others these. Who is sure of the wrong thing is surprised,
# and who has learnt half of it is less sure than it is right.
SIGNS = {
    "right": {"misaligned": 0, "knows": True, "stale": None, "surprise": 0, "fault": ""},
    "sharpened": {"misaligned": 0, "knows": True, "stale": None, "surprise": 1, "fault": "surprise"},
    "a turn early": {"misaligned": 1, "knows": True, "stale": None, "surprise": 1, "fault": "misaligned"},
    "a turn late": {"misaligned": -1, "knows": True, "stale": None, "surprise": 1, "fault": "misaligned"},
    "shuffled between turns": {
        "misaligned": 0, "knows": False, "stale": None, "surprise": 1, "fault": "ignorant",
    },
    "shuffled between conversations": {
        "misaligned": 0, "knows": False, "stale": None, "surprise": 1, "fault": "ignorant",
    },
    "stale member": {"misaligned": 0, "knows": True, "stale": 1, "surprise": -1, "fault": "member"},
}  # fmt: skip


def of(said, replies):
    return np.log(np.take_along_axis(said, replies[..., None], axis=-1)[..., 0])


def answered(logprob):
    there = np.isfinite(logprob).astype(np.int64)
    return AnsweredTurns(np.arange(len(logprob)), logprob, there, there)


def observed(name) -> ReplyTurns:
    law, replies = world(0)
    said, own = MODELS[name](law), replies[:, 1:-1]
    draws = np.random.default_rng(1)
    # Another turn of the same conversation, two or three away, whose reply differs.
    away = (np.arange(TURNS) + draws.integers(2, TURNS - 2, size=own.shape)) % TURNS
    away = np.where(abs(away - np.arange(TURNS)) > 1, away, (away + 2) % TURNS)
    other = np.take_along_axis(own, away, axis=1)

    def where_unlike(them):
        return np.where(them != own, of(said, them), NAN)

    law, heldout = world(2)
    each = [MODELS[name](law)] * MEMBERS
    if name == "stale member":
        right = law[:, 1:-1]
        each = [right, 0.5 * right + 0.5 / STATES, right]
    members = np.stack([of(one, heldout[:, 1:-1]) for one in each], axis=-1)
    return ReplyTurns(
        newest=answered(of(said, own)),
        probes=ReplyProbes(
            own=of(said, own),
            before=where_unlike(replies[:, :-2]),
            after=where_unlike(replies[:, 2:]),
            other=where_unlike(other),
            open_loop=of(said, own),
        ),
        entropy=-(said * np.log(said)).sum(axis=-1),
        num_tokens=np.ones(own.shape, dtype=np.int64),
        heldout=answered(members.mean(axis=-1)),
        members=members,
        imaginable=np.ones(TALKS, dtype=bool),
        real_returns=np.zeros(TALKS),
        imagined_returns=np.zeros(TALKS),
    )


@pytest.mark.parametrize("name", MODELS)
def test_a_fault_trips_the_number_that_exists_for_it(name):
    faults = reply_faults(observed(name))
    assert faults.surprise is not None
    assert faults.knows is not None
    symptoms = {
        "misaligned": faults.misaligned,
        "knows": faults.knows.low > 0,
        "stale": faults.stale,
        "surprise": int(faults.surprise.low > MAX_ERROR) - int(faults.surprise.high < -MAX_ERROR),
        "fault": fault_of(faults),
    }
    assert symptoms == SIGNS[name]


@pytest.mark.parametrize(
    ("name", "alignment", "calibration"),
    [
        ("right", "pass", "undetermined"),
        ("sharpened", "pass", "fail"),
        ("a turn early", "fail", "fail"),
        ("shuffled between turns", "fail", "fail"),
        ("stale member", "fail", "fail"),
    ],
)
def test_verdicts(name, alignment, calibration):
    """240 conversations settle the surprise of a right model to about .05 nats, so that it cannot pass yet."""
    found = observed(name)
    told = reply_alignment(found), reply_calibration(found)
    assert told[0].outcome == alignment
    assert told[1].outcome in (calibration, "pass" if name == "right" else calibration)
    sentences = {"a turn early": "turn after is foretold better", "stale member": "Member 1 is behind"}
    assert sentences.get(name, "") in told[0].sentence
    way = {"sharpened": "surer than it may be", "stale member": "less sure than it may be"}
    assert way.get(name, "") in told[1].sentence


def test_numbers_by_hand():
    """Two conversations of two turns. Own replies at .5, the turn's before at .25, after at .5, another at .125.

    Before costs log 2 more, after as much, another 2 log 2 more. The first turn has none before it, the last no other.
    """
    half, none = np.log(np.full((2, 2), 0.5)), np.full((2, 1), NAN)
    probes = ReplyProbes(
        own=half,
        before=np.hstack([none, np.log(np.full((2, 1), 0.25))]),
        after=np.hstack([np.log(np.full((2, 1), 0.5)), none]),
        other=np.log(np.full((2, 2), 0.125)),
        open_loop=np.log([[0.5, 0.25], [0.5, 0.125]]),
    )
    found = dataclasses.replace(observed_like(answered(half)), probes=probes, entropy=np.full((2, 2), np.log(2) / 2))
    faults = reply_faults(found)
    assert faults.before is not None
    assert faults.after is not None
    assert faults.knows is not None
    assert faults.surprise is not None
    assert faults.before.estimate == pytest.approx(-np.log(2), abs=1e-3)
    assert faults.after.estimate == pytest.approx(0, abs=1e-3)
    assert faults.knows.estimate == pytest.approx(2 * np.log(2), abs=1e-3)
    assert faults.surprise.estimate == pytest.approx(np.log(2) / 2, abs=1e-3)
    # Members at .5 and .25 of every answer: the second costs log 2 more than the first.
    first, second = faults.members
    assert first is not None
    assert second is not None
    assert (first.estimate, second.estimate) == pytest.approx((-np.log(2), np.log(2)), abs=1e-3)
    # After imagined replies the second turn costs log 2 and 2 log 2 more; the first is the same.
    costs = open_loop_costs(found)
    assert costs is not None
    assert costs.estimate == pytest.approx(1.5 * np.log(2), abs=1e-3)
    lines = {name: [one.estimate for one in line if one] for name, line in loop_lines(found).items()}
    assert lines["after real replies"] == pytest.approx([np.log(2)] * 2, abs=1e-3)
    assert lines["after imagined ones"] == pytest.approx([np.log(2), 2.5 * np.log(2)], abs=2e-3)
    rows = {(name, depth): interval.estimate for name, depth, interval in fault_rows(found)}
    assert rows["reply/member_cost", 2] == pytest.approx(np.log(2), abs=1e-3)
    assert rows["reply/knows_turn", None] == pytest.approx(2 * np.log(2), abs=1e-3)
    for tag in fault_scalars(found):
        TAGS.check(tag, "scalar")


def observed_like(turns: AnsweredTurns) -> ReplyTurns:
    shape = turns.logprob.shape
    return ReplyTurns(
        newest=turns,
        probes=ReplyProbes(*[turns.logprob] * 5),
        entropy=np.zeros(shape),
        num_tokens=np.ones(shape, dtype=np.int64),
        heldout=turns,
        members=np.log(np.stack([np.full(shape, 0.5), np.full(shape, 0.25)], axis=-1)),
        imaginable=np.ones(shape[0], dtype=bool),
        real_returns=np.zeros(shape[0]),
        imagined_returns=np.zeros(shape[0]),
    )


def test_one_impossible_answer_costs_no_more_than_one_in_ten_thousand():
    assert nats(np.array([-1e4, 0.0])).tolist() == pytest.approx([-np.log(1e-4), 0.0], abs=1e-3)


def test_a_reply_that_no_path_held_possible_stands_in_the_line():
    """Four conversations: after imagined replies two second answers are impossible, 9.2 nats, and two cost log 2."""
    half = np.log(np.full((4, 2), 0.5))
    open_loop = half.copy()
    open_loop[:2, 1] = -np.inf
    found = observed_like(answered(half))
    found = dataclasses.replace(found, probes=dataclasses.replace(found.probes, open_loop=open_loop))
    first, second = loop_lines(found)["after imagined ones"]
    assert first is not None
    assert second is not None
    assert (first.n, second.n) == (4, 4)
    assert second.estimate == pytest.approx((np.log(2) - np.log(1e-4)) / 2, abs=1e-3)
    costs = open_loop_costs(found)
    assert costs is not None
    assert costs.estimate == pytest.approx(second.estimate - first.estimate)


def test_nothing_is_found_where_nothing_is_known():
    nothing = ReplyFaults(None, None, None, (None, None), None, 0)
    assert nothing.stale is None
    assert fault_of(nothing) == ""


def test_a_neighbour_that_is_only_less_wrong_is_no_shift():
    """The own reply at .01, the neighbours and any other at .25: better than the own, and no better than another."""
    own, quarter = np.log(np.full((20, 3), 0.01)), np.log(np.full((20, 3), 0.25))
    probes = ReplyProbes(own=own, before=quarter, after=quarter, other=quarter, open_loop=own)
    faults = reply_faults(dataclasses.replace(observed_like(answered(own)), probes=probes))
    assert faults.before is not None
    assert faults.before.low > 0
    assert faults.misaligned == 0
    assert fault_of(faults) == "ignorant"


def faults_with(knows, members=(None, None), surprise=None):
    ends = [
        None if found is None else Interval(sum(found) / 2, *found, 0.9, "c", "m", 9) for found in (knows, surprise)
    ]
    return ReplyFaults(None, None, ends[0], members, ends[1], 0)


@pytest.mark.parametrize(
    ("knows", "fault"),
    [
        ((-0.2, -0.1), "ignorant"),
        ((-0.01, MAX_ERROR), "ignorant"),
        ((-0.01, 0.051), "undetermined"),
        ((-0.5, 3.0), "undetermined"),
        ((0.001, 0.04), "surprise"),
        ((0.5, 3.0), "surprise"),
    ],
)
def test_who_is_not_shown_to_know_the_turn_is_not_called_ignorant(knows, fault):
    faults = faults_with(knows, surprise=(0.2, 0.4))
    assert fault_of(faults) == fault
    assert faults.ignorant is (fault == "ignorant")
    behind = Interval(0.3, 0.2, 0.4, 0.9, "c", "m", 9)  # is sure whatever is known of the turn
    assert fault_of(faults_with(knows, (None, behind), (0.2, 0.4))) == ("ignorant" if fault == "ignorant" else "member")


def test_few_conversations_settle_nothing_about_the_turn():
    """Three of the right model's conversations, where the own reply costs as much as another's in one of them."""
    own, other = np.log(np.full((3, 1), 0.5)), np.log([[0.5], [0.1], [0.02]])
    probes = ReplyProbes(own=own, before=own * NAN, after=own * NAN, other=other, open_loop=own)
    alike = np.log(np.full((3, 1, 2), 0.5))
    found = dataclasses.replace(observed_like(answered(own)), probes=probes, members=alike)
    assert fault_of(reply_faults(found)) == "undetermined"
    assert reply_alignment(found).outcome == "undetermined"


def test_the_verdict_says_that_the_turn_is_lost():
    """Twenty conversations in which another turn's reply costs as much, exactly: 0 is no knowledge, and not below 0."""
    same = np.log(np.full((20, 3), 0.5))
    probes = ReplyProbes(own=same, before=same * NAN, after=same * NAN, other=same, open_loop=same)
    found = dataclasses.replace(observed_like(answered(same)), probes=probes)
    assert fault_of(reply_faults(found)) == "ignorant"
    verdict = reply_alignment(found)
    assert verdict.outcome == "fail"
    assert "the turn is lost" in verdict.sentence
