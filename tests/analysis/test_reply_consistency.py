"""Consistency of replies and the certificate of imagined conversations, on worlds that are worked by hand.

Exact worlds stand in for samples: where each conversation is as probable as any other, the list of all is the law.
"""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch

from worldmtp.analysis import save_artefact
from worldmtp.analysis.artefacts import ArtefactError
from worldmtp.analysis.replies import ReplyArtefact, save_replies
from worldmtp.analysis.reply_consistency import (
    by_entropy,
    consistency_scalars,
    has_chance,
    kept,
    kept_conversations,
    reply_certificate,
    reply_intervals,
    reply_rows,
    survival,
    survival_by_turn,
)
from worldmtp.analysis.reply_turns import AnsweredTurns, ReplyProbes, ReplyTurns, load_turns, save_turns
from worldmtp.analysis.reply_verdicts import reply_certificate_verdict, reply_coherence
from worldmtp.analysis.report import write_report
from worldmtp.analysis.run_files import read_run
from worldmtp.dynamics.reply_answers import times_asked
from worldmtp.dynamics.turns import Turns
from worldmtp.tracking.tags import TAGS

NAN = np.nan


def answered(probs, asked=None, alike=None, group=None) -> AnsweredTurns:
    """Probabilities of answers; NaN where there is no turn. Nothing was asked twice, if nothing else is said."""
    probs = np.array(probs, dtype=np.float64)
    there = np.isfinite(probs).astype(np.int64)
    return AnsweredTurns(
        group=np.arange(len(probs)) if group is None else np.array(group),
        logprob=np.log(probs),
        asked=there if asked is None else np.array(asked),
        alike=there if alike is None else np.array(alike),
    )


def make_turns(newest: AnsweredTurns, heldout: AnsweredTurns | None = None, **changes) -> ReplyTurns:
    heldout = newest if heldout is None else heldout
    pairs = len(heldout.group)
    fields = {
        "newest": newest,
        "probes": ReplyProbes(*[newest.logprob] * 5),
        "members": np.stack([heldout.logprob] * 2, axis=-1),
        "entropy": np.where(newest.there, -newest.logprob, NAN),
        "num_tokens": 2 * newest.there,
        "heldout": heldout,
        "imaginable": np.ones(pairs, dtype=bool),
        "real_returns": np.zeros(pairs),
        "imagined_returns": np.zeros(pairs),
    }
    return ReplyTurns(**{**fields, **changes})


def test_a_sure_world_by_hand():
    """Two conversations: answers of .5 and .5, and of .8 alone.

    Kept as they are. Of a single answer 1 - (.5 + .5 + .8) / 3 is lost. Whole ones: .25 and .8. Answers kept: .5 + .25
    and .8, two tokens each. Nats: -(2 log .5 + log .8) / 3.
    """
    turns = answered([[0.5, 0.5], [0.8, NAN]])
    assert survival(turns).tolist() == [[0.5, 0.25], [pytest.approx(0.8)] * 2]
    assert kept_conversations(turns).tolist() == pytest.approx([0.25, 0.8])
    found = reply_intervals(make_turns(turns))
    estimates = {name: interval.estimate for name, interval in found.items()}
    assert estimates == pytest.approx(
        {
            "tv": 0.4,
            "kl": -(2 * math.log(0.5) + math.log(0.8)) / 3,
            "survival": 0.525,
            "wci": 0.525,
            "h_eff": 0.775,
            "h_eff_tokens": 1.55,
            "entropy": -(2 * math.log(0.5) + math.log(0.8)) / 3,
            "turns": 1.5,
        }
    )
    assert {(interval.n, interval.unit) for interval in found.values()} == {(2, "episode")}
    first, second = survival_by_turn(turns)
    assert first is not None
    assert first.estimate == pytest.approx(0.65)
    assert second is None, "one conversation alone gets so far"


def test_a_world_of_chance_by_hand():
    """A coin asked four times, three heads; the model gives .5 to each side.

    Shares .75 and .25: min(.75, .5) + min(.25, .5) = .75. Log ratios: log(2/3) three times and log 2.
    """
    coin = answered([[0.5]] * 4, asked=[[4]] * 4, alike=[[3], [3], [3], [1]])
    assert kept(coin).mean() == pytest.approx(0.75)
    assert kept_conversations(coin).mean() == pytest.approx(0.75)
    kl = reply_intervals(make_turns(coin))["kl"].estimate
    assert kl == pytest.approx(0.75 * math.log(1.5) + 0.25 * math.log(0.5))
    assert has_chance(coin) is True


def test_one_answer_too_much_makes_up_for_another_in_whole_conversations():
    """Twice as probable, then half as: the path is as probable as in the world, though half of it does not survive."""
    turns = answered([[1.0, 0.25]] * 4, asked=[[4, 2]] * 4, alike=[[2, 1]] * 4)
    assert survival(turns)[:, -1].tolist() == pytest.approx([0.5] * 4)
    assert kept_conversations(turns).tolist() == pytest.approx([1.0] * 4)


def test_copies_of_one_conversation_do_not_show_that_a_world_is_sure():
    alone = answered([[0.5], [0.5]])
    copies = answered([[0.5], [0.5]], asked=[[2], [2]], alike=[[2], [2]], group=[7, 7])
    met = answered([[0.5], [0.5]], asked=[[2], [2]], alike=[[2], [2]])
    assert [has_chance(turns) for turns in (alone, copies, met)] == [None, None, False]
    assert has_chance(dataclasses.replace(copies, alike=np.array([[1], [1]]))) is True


def test_copies_are_resampled_together():
    turns = answered([[0.5], [0.7], [0.9], [0.9]], group=[3, 3, 5, 5])
    found = reply_intervals(make_turns(turns))["tv"]
    assert (found.n, found.unit) == (2, "group of episodes")
    assert found.estimate == pytest.approx(0.25)


LAWS = {"world": (0.7, 0.2), "model": (0.4, 0.6)}
"""Probability of the answer 1 to the words 0 and 1, whatever was said before."""


def texts():
    """Every conversation of two turns, words by a fair coin, with its probability in the world and in the model."""
    for said, replies in itertools.product(itertools.product((0, 1), repeat=2), repeat=2):
        chances = {
            name: math.prod(law[s] if r else 1 - law[s] for s, r in zip(said, replies, strict=True))
            for name, law in LAWS.items()
        }
        yield said, replies, chances["world"] / 4, chances["model"] / 4


@pytest.mark.parametrize("num_conversations", [1, 2])
def test_consistency_is_never_overstated_in_expectation(num_conversations):
    """Over every sample of one or two conversations: with one it is the probability itself, with two it is nearer."""
    every = list(texts())
    exact = sum(min(world, model) for _, _, world, model in every)
    expected = expected_kept = 0.0
    for sample in itertools.product(every, repeat=num_conversations):
        turns = Turns(
            opening=torch.zeros((len(sample), 1), dtype=torch.int64),
            said=torch.tensor([said for said, *_ in sample])[..., None],
            replies=torch.tensor([replies for _, replies, *_ in sample])[..., None],
            rewards=torch.zeros(len(sample), 2),
            ended=torch.zeros((len(sample), 2), dtype=torch.bool),
            mask=torch.ones((len(sample), 2), dtype=torch.bool),
        )
        asked, alike = times_asked(turns, torch.zeros(len(sample), dtype=torch.int64))
        law = LAWS["model"]
        probs = [
            [law[s] if r else 1 - law[s] for s, r in zip(said, replies, strict=True)] for said, replies, *_ in sample
        ]
        found = answered(probs, asked.numpy(), alike.numpy())
        weight = math.prod(world for _, _, world, _ in sample)
        expected += weight * kept_conversations(found).mean()
        expected_kept += weight * kept(found).mean()
    assert expected <= exact
    # One answer: the words are a fair coin, and min over both answers of world and model: .4 + .3 and .2 + .4.
    assert expected_kept <= (0.7 + 0.6) / 2
    if num_conversations == 1:
        assert expected == pytest.approx(sum(world * 4 * model for _, _, world, model in every))
    else:
        assert expected > sum(world * 4 * model for _, _, world, model in every) + 0.01


# A sure world: "x" follows "a" and "y" follows "b", two turns, and each x pays 1. The policy says either by a coin, so
# that the four texts are equally probable and the mean real return is 1. A wrong model says x to "a" with 3/4 and to
# "b" with 1/2, and nothing but x and y: its mean return is 2 (1/2 3/4 + 1/2 1/2) = 5/4.
REAL = list(itertools.product("ab", repeat=2))
WRONG = {"a": 0.75, "b": 0.5}


def exact_world(probs: dict[str, float], imagined_return: float, copies: int = 30) -> ReplyTurns:
    newest = answered([[probs[word] for word in text] for text in REAL] * copies)
    returns = np.array([float(text.count("a")) for text in REAL] * copies)
    return make_turns(newest, real_returns=returns, imagined_returns=np.full(len(returns), imagined_return))


def test_a_wrong_model_of_replies_keeps_to_the_certificate():
    """By enumeration of both laws over the 16 texts of words and answers, in exact arithmetic."""
    found = exact_world(WRONG, 1.25)
    variation, imagined = 0.0, 0.0
    for text, replies in itertools.product(REAL, itertools.product("xy", repeat=2)):
        says_x = [0.75 if word == "a" else 0.5 for word in text]
        model = math.prod(x if reply == "x" else 1 - x for x, reply in zip(says_x, replies, strict=True))
        world = float(replies == tuple("x" if word == "a" else "y" for word in text))
        variation += abs(model - world) / 4 / 2
        imagined += model * replies.count("x") / 4
    assert imagined == 1.25
    certificate = reply_certificate(found)
    assert certificate is not None
    assert 1 - kept_conversations(found.heldout).mean() == pytest.approx(variation, abs=1e-15)
    assert certificate.bound.estimate == pytest.approx(2 * variation, abs=1e-15)
    assert certificate.difference.estimate == pytest.approx(0.25, abs=1e-15)
    assert abs(certificate.difference.estimate) <= certificate.bound.estimate
    assert certificate.verdict == "holds"
    assert certificate.slack.unit == "episode"
    assert reply_certificate_verdict(found).outcome == "pass"


def test_rewards_that_are_imagined_wrong_violate_it():
    """Every answer is right, and y is paid a half: two turns of 3/4 on average, where the world pays 1/2."""
    found = exact_world({"a": 1.0, "b": 1.0}, 1.5)
    assert reply_certificate_verdict(found).outcome == "fail"
    right = reply_certificate_verdict(exact_world({"a": 1.0, "b": 1.0}, 1.0))
    assert right.outcome != "fail"


def test_the_certificate_is_of_the_bound_and_not_of_the_size():
    """A model that is wrong about words may pay as much too much as they explain.

    39 / 64 of the conversations are, and real returns are 0 to 2, 1 on average: an imagined return R above 2 is too
    much where R - 1 > 39 / 64 R, from 2.56 on.
    """
    assert reply_certificate_verdict(exact_world(WRONG, 1 + 39 / 32 - 0.5)).outcome == "pass"
    assert reply_certificate_verdict(exact_world(WRONG, 64 / 25 - 0.5)).outcome == "pass"
    assert reply_certificate_verdict(exact_world(WRONG, 64 / 25 + 0.5)).outcome == "fail"


def test_a_wrong_reply_that_leads_where_no_episode_has_been_is_no_wrong_reward():
    """All real episodes are paid -13, and one imagined in twenty falls off the cliff by a wrong reply: -113.

    Of each conversation .95 is kept, so that 5 % of the range, 100, are explained: all of the difference.
    """
    real, imagined = np.full(100, -13.0), np.where(np.arange(100) % 20, -13.0, -113.0)
    found = make_turns(answered([[0.95]] * 100), real_returns=real, imagined_returns=imagined)
    certificate = reply_certificate(found)
    assert certificate is not None
    assert certificate.difference.estimate == pytest.approx(-5)
    assert certificate.bound.estimate == pytest.approx(5)
    assert reply_certificate_verdict(found).outcome != "fail"


def test_what_could_not_be_imagined_keeps_nothing():
    found = exact_world({"a": 1.0, "b": 1.0}, 1.0)
    half = np.arange(len(found.imaginable)) % 2 == 0
    certificate = reply_certificate(dataclasses.replace(found, imaginable=half))
    assert certificate is not None
    assert certificate.bound.estimate == pytest.approx(2 * 0.5)


def test_the_verdict_on_a_model_that_is_wrong_depends_on_whether_the_world_has_chance():
    """A sure world was asked the same; of one that was not asked twice nobody knows."""
    many = 40
    right, wrong = (answered([[prob]] * many) for prob in (1.0, 0.5))
    sure = answered([[0.5]] * many, asked=[[many]] * many, alike=[[many]] * many)
    # A coin, which the model gives a tenth to the one side that it shows nine times in ten: .1 + .1 is kept.
    heads = [36] * 36 + [4] * 4
    coin = answered([[0.1]] * 36 + [[0.9]] * 4, asked=[[many]] * many, alike=[[count] for count in heads])
    outcomes = [reply_coherence(make_turns(turns)).outcome for turns in (right, wrong, sure, coin)]
    assert outcomes == ["pass", "undetermined", "fail", "undetermined"]
    assert "cannot fail" in reply_coherence(make_turns(wrong)).sentence
    assert "exact" in reply_coherence(make_turns(sure)).sentence
    assert reply_coherence(make_turns(answered([[0.5]]))).sentence == "Not measured in this run."


def test_strata_are_those_of_what_the_model_said_before():
    """Sure of two and unsure of two: of the sure ones nothing is lost."""
    turns = answered([[1.0], [1.0], [0.5], [0.25]])
    found = make_turns(turns, entropy=np.array([[0.0], [0.1], [1.0], [1.2]]))
    edges, strata = by_entropy(found, 1 - kept(turns), num_bins=2)
    assert edges.tolist() == pytest.approx([0.0, 0.55, 1.2])
    assert [one.estimate for one in strata if one is not None] == pytest.approx([0.0, 0.625])


def test_every_number_has_its_tag_and_its_row():
    found = exact_world(WRONG, 1.25)
    for tag in consistency_scalars(found):
        TAGS.check(tag, "scalar")
    rows = {(name, depth): interval for name, depth, interval in reply_rows(found)}
    assert rows["reply/wci", None].estimate == pytest.approx(25 / 64)
    assert rows["reply/survival_of_turn", 1].estimate == pytest.approx(5 / 8)
    assert rows["reply/return_bound", None].estimate == pytest.approx(39 / 32)


def test_files_hold_all_of_it_and_damage_is_named(tmp_path):
    saved = exact_world(WRONG, 1.25)
    assert load_turns(tmp_path) is None
    save_turns(saved, tmp_path)
    found = load_turns(tmp_path)
    assert found is not None
    for part, expected in ((found, saved), (found.newest, saved.newest), (found.heldout, saved.heldout)):
        for name, value in vars(expected).items():
            if isinstance(value, np.ndarray):
                np.testing.assert_array_equal(getattr(part, name), value)
    (tmp_path / "replies" / "turns.npz").write_bytes(b"damaged")
    with pytest.raises(ArtefactError, match=r"turns\.npz cannot be read"):
        load_turns(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"asked": np.zeros((2, 1), dtype=np.int64)}, "count each turn"),
        ({"alike": np.full((2, 1), 2)}, "count each turn"),
        ({"logprob": np.full((2, 1), 0.5)}, "expected logarithms"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(answered([[0.5], [0.5]]), **changes)
    with pytest.raises(ValueError, match="expected one of each"):
        dataclasses.replace(make_turns(answered([[0.5], [0.5]])), heldout=answered([[0.5]] * 3))


def test_the_page_has_verdicts_beside_those_of_the_policy(tmp_path, make_artefact):
    save_artefact(make_artefact([None, None, None]), tmp_path / "artefacts", "final")
    save_turns(exact_world(WRONG, 1.25), tmp_path)
    content = write_report(tmp_path).read_text(encoding="utf-8")
    topics = [
        content.index(f"<td>{name}<br>") for name in ("coherence", "coherence of replies", "certificate of replies")
    ]
    assert topics == sorted(topics)
    assert "Is the model of replies the world?" in content
    assert "0.391 [" in content
    assert "reply/wci" in (tmp_path / "metrics.csv").read_text(encoding="utf-8")


def two_conversations() -> ReplyArtefact:
    """Each of a turn that was answered with one token, foretold for sure."""
    zeros, ones = np.zeros((2, 1)), np.ones((2, 1))
    return ReplyArtefact(
        tokens=zeros.astype(int),
        depth=ones.astype(int),
        is_policy=zeros.astype(bool),
        logprob=zeros,
        top1=zeros.astype(int),
        top1_prob=ones,
        turn_mask=ones.astype(bool),
        rewards=zeros,
        foretold_rewards=zeros,
        ended=zeros.astype(bool),
        end_prob=zeros,
        real_scores=np.zeros((2, 3)),
        imagined_scores=np.zeros((2, 3)),
        tokens_text=("a",),
        pairs=(),
    )


def test_answers_and_replies_of_two_evaluations_are_not_set_beside_each_other(tmp_path):
    """As where a run was stopped between writing the two."""
    save_replies(two_conversations(), tmp_path)
    for number, problems in ((2, []), (3, ["of 3 conversations, and the replies beside them of 2, as where a run"])):
        save_turns(make_turns(answered([[0.5]] * number)), tmp_path)
        run = read_run(tmp_path)
        assert (run.replies is not None, run.reply_turns is not None) == (True, not problems)
        told = [problem for problem in run.problems if problem.startswith("Answers of worlds")]
        assert [words in problem for words, problem in zip(problems, told, strict=True)] == [True] * len(problems)
