"""Replies as foretold and as they came: numbers by depth worked by hand, the files, the page."""

import dataclasses
import json

import numpy as np
import pytest

from worldmtp.analysis.artefacts import ArtefactError
from worldmtp.analysis.conversations import Episode, Utterance, pairs_markdown
from worldmtp.analysis.replies import END_MARK, EpisodePair, ReplyArtefact, load_replies, reply_strip, save_replies
from worldmtp.analysis.reply_calibration import calibration_intervals
from worldmtp.analysis.reply_metrics import (
    end_reliability,
    reply_acceptance,
    reply_agreement,
    reply_cross_entropy,
    reply_scalars,
    reply_survival,
    reply_totals,
    token_reliability,
)
from worldmtp.analysis.report import write_report

HOSTILE = "<script>alert('1')</script>"
END, PAD, NAN = 3, -1, np.nan


def make_replies(**changes) -> ReplyArtefact:
    """Two conversations over the tokens a, b, c.

    The first: "a" opens, "b" is said, "c" is replied; "b" is said, nothing is replied. The second: "a", "b", "c b".
    """
    reply = {"depth": (1, 2), "one": (1,), "two": (1, 2, 3)}
    rows = [
        ([0, 1, 2, END, 1, END], [0, 0, *reply["depth"], 0, *reply["one"]]),
        ([0, 1, 2, 1, END, PAD], [0, 0, *reply["two"], 0]),
    ]
    tokens, depth = (np.array([row[column] for row in rows]) for column in (0, 1))
    said = np.array([[False, True, False, False, True, False], [False, True, False, False, False, False]])
    probs = np.array([[NAN, NAN, 0.5, 1.0, NAN, 0.25], [NAN, NAN, 0.5, 0.5, 0.25, NAN]])
    top1 = np.array([[0, 0, 2, END, 0, 0], [0, 0, 2, 1, 0, 0]])
    top1_prob = np.array([[NAN, NAN, 0.5, 1.0, NAN, 0.75], [NAN, NAN, 0.5, 0.5, 0.75, NAN]])
    episode = Episode((Utterance(False, HOSTILE), Utterance(True, "b", 1.0)), 1.0, True)
    other = Episode((Utterance(False, "other"), Utterance(True, "b", 0.0)), 0.0, False)
    fields = {
        "tokens": tokens,
        "depth": depth,
        "is_policy": said,
        "logprob": np.log(probs),
        "top1": top1,
        "top1_prob": top1_prob,
        "turn_mask": np.array([[True, True], [True, False]]),
        "rewards": np.array([[0.0, 1.0], [0.0, 0.0]]),
        "foretold_rewards": np.array([[0.0, 0.5], [0.5, 0.0]]),
        "ended": np.array([[False, True], [False, False]]),
        "end_prob": np.array([[0.0, 0.75], [0.25, 0.0]]),
        "real_scores": np.array([[1.0, 2.0, 1.0], [0.0, 1.0, 0.0]]),
        "imagined_scores": np.array([[1.0, 4.0, 1.0], [1.0, 2.0, 1.0]]),
        "tokens_text": ("a", "b", "c"),
        "pairs": (EpisodePair("lowest real return", episode, other),),
    }
    return ReplyArtefact(**{**fields, **changes})


def test_numbers_by_depth():
    """Depth 1: c, END, c at .5, .25, .5, the END wrong. Depth 2: END, b at 1, .5. Depth 3: END at .25, wrong."""
    found = make_replies()
    assert found.max_depth == 3
    assert reply_agreement(found).mean().tolist() == pytest.approx([2 / 3, 1.0, 0.0])
    assert reply_acceptance(found).mean().tolist() == pytest.approx([1.25 / 3, 0.75, 0.25])
    # Replies up to depth: .5, .25, .5 at depth 1; .5 * 1 and .5 * .5 at depth 2; .5 * .5 * .25 at depth 3.
    assert reply_survival(found).mean().tolist() == pytest.approx([1.25 / 3, (0.5 + 0.25) / 2, 0.0625])
    nats = np.log(2)
    assert reply_cross_entropy(found).mean().tolist() == pytest.approx([4 * nats / 3, nats / 2, 2 * nats])
    assert reply_agreement(found).count.tolist() == [[2, 1, 0], [1, 1, 1]]


def test_calibration_of_tokens_and_of_the_end():
    """Six tokens: .5 .5 .5 right and 1 right; .75 .75 wrong. Bins: |1 - .5| * 3, 0 * 1, |0 - .75| * 2, over six.

    The end: stated 0 (no), .75 (yes), .25 (no): 0, .25 and .25 off, over three turns.
    """
    found = make_replies()
    assert token_reliability(found).expected_calibration_error == pytest.approx((1.5 + 1.5) / 6)
    assert token_reliability(found, 2).expected_calibration_error == pytest.approx(0.25)
    assert end_reliability(found).expected_calibration_error == pytest.approx(0.5 / 3)


def test_calibration_with_intervals():
    """Tokens: stated .5 .5 .5 1 and .75 .75, the first four right: 4.0 less 4 over six. Ends: 0 .5 .5, one came true.

    Rewards: foretold 0, .5 and .75, paid 0, 1 and 0: errors 0, -.5 and .75.
    """
    changes = {"foretold_rewards": [[0.0, 0.5], [0.75, 0.0]], "end_prob": [[0.0, 0.5], [0.5, 0.0]]}
    found = make_replies(**{name: np.array(values) for name, values in changes.items()})
    numbers = calibration_intervals(found, np.arange(2))
    assert {name: interval.estimate for name, interval in numbers.items()} == pytest.approx(
        {
            "token_overconfidence": 0.0,
            "token_ece": 0.5,
            "end_overconfidence": 0.0,
            "end_ece": 0.0,
            "reward_bias": 0.25 / 3,
            "reward_error": ((0.25 + 0.5625) / 3) ** 0.5,
        }
    )
    assert {(interval.n, interval.unit) for interval in numbers.values()} == {(2, "episode")}
    sure = np.where(np.isnan(found.top1_prob), NAN, 0.9)
    sharpened = calibration_intervals(dataclasses.replace(found, top1_prob=sure), np.arange(2))
    assert sharpened["token_overconfidence"].estimate == pytest.approx(0.9 - 4 / 6)
    assert sharpened["token_ece"].estimate == pytest.approx(0.9 - 4 / 6)
    assert sharpened["end_overconfidence"] == numbers["end_overconfidence"]
    assert calibration_intervals(found, np.zeros(2, dtype=np.int64)) == {}
    with pytest.raises(ValueError, match="3 groups for 2 conversations"):
        calibration_intervals(found, np.arange(3))


def test_totals_count_whole_replies():
    """Of three replies the first alone is right to its end; rewards are off by 0, .5 and .5."""
    totals = reply_totals(make_replies())
    assert (totals.num_conversations, totals.num_turns) == (2, 3)
    assert totals.whole == pytest.approx(1 / 3)
    assert totals.top1 == pytest.approx(4 / 6)
    assert totals.accept == pytest.approx(3.0 / 6)
    assert totals.reward_error == pytest.approx((0.5 / 3) ** 0.5)


def test_scalars_have_documented_tags_and_the_held_out_means():
    from worldmtp.tracking.tags import TAGS

    scalars = reply_scalars(make_replies())
    for tag in scalars:
        TAGS.check(tag, "scalar")
    assert scalars["world_model/reply_depth_3/top1"] == 0.0
    assert scalars["imagination/heldout_return_real"] == 0.5
    assert scalars["imagination/heldout_turns_imagined"] == 3.0
    assert scalars["imagination/heldout_ended_real"] == 0.5


def test_a_strip_shows_what_was_foretold_under_the_replies_alone():
    strip = reply_strip(make_replies(), 0)
    assert strip.tokens == ("a", "b", "c", END_MARK, "b", END_MARK)
    assert strip.rows[0].tokens == (None, None, "c", END_MARK, None, "a")
    assert strip.rows[0].probabilities == (0.0, 0.0, 0.5, 1.0, 0.0, 0.75)
    assert (strip.prompt_length, strip.replies) == (1, frozenset({2, 3, 5}))


def test_files_hold_all_of_it(tmp_path):
    saved = make_replies()
    save_replies(saved, tmp_path)
    found = load_replies(tmp_path)
    assert found is not None
    for field in dataclasses.fields(ReplyArtefact):
        value, expected = getattr(found, field.name), getattr(saved, field.name)
        if isinstance(expected, np.ndarray):
            np.testing.assert_array_equal(value, expected)
        else:
            assert value == expected
    assert load_replies(tmp_path / "elsewhere") is None


@pytest.mark.parametrize("kind", ["npz", "version", "pair", "half"])
def test_damage_is_named(kind, tmp_path):
    path = save_replies(make_replies(), tmp_path)
    header = json.loads(path.read_text())
    if kind == "npz":
        path.with_suffix(".npz").write_bytes(b"damaged")
    elif kind == "half":
        path.with_suffix(".npz").unlink()
    else:
        header = header | ({"format_version": 0} if kind == "version" else {"pairs": [{"rank": "x"}]})
        path.write_text(json.dumps(header))
    message = {"npz": "checksum", "version": "format_version 0", "pair": "'real'", "half": "No .*npz"}[kind]
    with pytest.raises(ArtefactError, match=message):
        load_replies(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens": np.full((2, 6), 9)}, "has the id 9"),
        ({"depth": np.zeros((2, 6), dtype=np.int64)}, "no reply to show"),
        ({"is_policy": np.ones((2, 6), dtype=bool)}, "outside the replies"),
        ({"logprob": np.full((2, 6), np.nan)}, "known at the tokens of replies"),
    ],
)
def test_what_does_not_fit_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        make_replies(**changes)


@pytest.mark.usefixtures("quick_report")
def test_the_page_shows_replies_and_episodes_beside_each_other(tmp_path, make_artefact):
    """Beside a policy of three depths; markup in an episode is escaped."""
    from worldmtp.analysis import save_artefact

    save_artefact(make_artefact([None, None, None]), tmp_path / "artefacts", "final")
    save_replies(make_replies(), tmp_path)
    content = write_report(tmp_path).read_text(encoding="utf-8")
    assert HOSTILE not in content
    assert "Whole episodes, imagined beside real" in content
    assert "Lowest real return" in content
    assert content.count('<div class="pair">') == 1
    assert content.count("real: return 1 in 1 turn, exact") == content.count("imagined: return 0 in 1 turn") == 1
    # The mean of 2 and 1 turns, and of 4 and 2; two conversations: Student's t on the jackknife.
    assert "1.500 [" in content
    assert "3.000 [" in content
    assert content.count(END_MARK) >= 5
    assert "This run imagined whole episodes by its model of replies, which asks no head" in content


@pytest.mark.usefixtures("quick_report")
def test_a_comparison_with_a_run_of_imagined_episodes_does_not_say_that_nothing_was_imagined(tmp_path, make_artefact):
    from worldmtp.analysis import save_artefact
    from worldmtp.analysis.comparison import compare_runs

    plain = make_artefact([None, None]).select(np.arange(20))
    probs = plain.imagined_token_prob.copy()
    probs[:19, 1, 0] = 0.5  # of the last answer nothing
    heads = dataclasses.replace(plain, imagined_token_prob=probs)
    for name, artefact in {"episodes": plain, "off": plain, "heads": heads}.items():
        save_artefact(artefact, tmp_path / name / "artefacts", "final")
    save_replies(make_replies(), tmp_path / "episodes")

    def page(one, other):
        return compare_runs(tmp_path / one, tmp_path / other).page.read_text(encoding="utf-8")

    sentence = "<p>episodes imagined whole episodes by its model of replies; its own report shows them.</p>"
    without = page("off", "episodes")
    assert sentence in without
    assert "<p>The heads of off imagined none of these answers.</p>" in without
    assert "nothing imagined" not in without
    assert without.count('<div class="pair">') == 8  # as predicted alone
    beside = page("heads", "episodes")
    assert sentence in beside
    assert "The heads of heads" not in beside
    assert beside.count('<div class="pair">') == 16
    assert beside.count("episodes, nothing imagined after this prompt.") == 8


def test_a_page_without_imagined_episodes_says_nothing_of_them_and_damage_is_named(tmp_path, make_artefact):
    assert "Whole episodes" not in write_report(tmp_path).read_text(encoding="utf-8")
    path = save_replies(make_replies(), tmp_path)
    path.write_text("{", encoding="utf-8")
    content = write_report(tmp_path).read_text(encoding="utf-8")
    assert "Imagined episodes cannot be read" in content
    assert "Whole episodes" not in content


def test_two_episodes_stand_side_by_side():
    """The shorter one is filled up; a line wider than its column goes on in the next."""
    real = Episode((Utterance(False, "x" * 60), Utterance(True, "l", 1.0)), 1.0, False)
    imagined = Episode((Utterance(False, "s"),), 0.0, False)
    lines = pairs_markdown([("lowest", real, imagined)]).splitlines()
    assert lines[:3] == ["**lowest**", "", "```"]
    assert lines[3] == "real: return 1 in 1 turn".ljust(56) + "  |  imagined: return 0 in 0 turns"
    assert lines[5] == ("world   " + "x" * 48) + "  |  world   s"
    assert lines[6] == ("x" * 12).ljust(56) + "  |"
    assert lines[7].startswith("policy  l")
    assert lines[-1] == "```"
