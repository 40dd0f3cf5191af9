"""Two runs on the same prompts: what is paired, how it differs, and what is marked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from worldmtp.analysis import save_artefact
from worldmtp.analysis.artefacts import token_strip
from worldmtp.analysis.comparison import (
    Comparison,
    compare_runs,
    differences,
    differing_settings,
    marked,
    paired_rows,
)
from worldmtp.analysis.summary import ArmSummary, RunSummary, write_summary
from worldmtp.statistics import wilson_interval
from worldmtp.tracking.strips import StripRow, TokenStrip, strip_blocks

TRUNK = np.array([[0.75, 0.25], [0.5, 0.5]])
UNIFORM = np.full((2, 2), 0.5)


@pytest.fixture
def knows_all(make_artefact):
    return make_artefact([TRUNK, None])


def save(artefact, directory, imagined_return=0.0):
    save_artefact(artefact, directory / "artefacts", "final")
    arm = ArmSummary("PPO", wilson_interval(1, 2), imagined_return=imagined_return, artefact="final")
    write_summary(RunSummary((arm,), 1.0, "2 cores"), directory)
    return directory


def test_rows_pair_by_prompt_and_repeated_prompts_in_order(knows_all):
    # Of 128 rows the first 64 have the prompt "a", the others "b".
    turned = np.arange(128)[::-1]
    arrays = {name: value[turned] for name, value in vars(knows_all).items() if isinstance(value, np.ndarray)}
    other = replace(knows_all, **arrays)
    pairs = paired_rows(knows_all, other)
    assert pairs[:2].tolist() == [[0, 64], [1, 65]]
    assert pairs[64].tolist() == [64, 0]
    assert len(pairs) == 128
    assert paired_rows(knows_all, replace(other, tokens_text=("x", "y"))).shape == (0, 2)


def test_differences_by_hand(knows_all, make_artefact):
    found = {one.quantity: one for one in differences(knows_all, make_artefact([TRUNK, UNIFORM]), with_imagined=False)}
    accept = found["acceptance, depth 2"]
    # Depth 2 of the second is kept with 3/4 behind a 0 and 1 behind a 1: x1, x2 are 1 with 3/8 and 11/32.
    assert (accept.first, accept.second) == (1.0, pytest.approx(0.83984375))
    assert accept.difference.estimate == pytest.approx(0.83984375 - 1)
    assert (accept.verdict, accept.difference.unit, accept.difference.n) == ("lower", "prompt", 128)
    same = found["return"]
    assert (same.difference.low, same.difference.high, same.verdict) == (0.0, 0.0, "not told apart")
    assert "imagined less realized return" not in found


def test_what_prompts_have_in_common_cancels(knows_all):
    # Every return is one higher in the second run: no prompt differs from another in that, so there is no spread.
    last = np.arange(4) == 3
    more = replace(knows_all, returns=knows_all.returns + 1, rewards=knows_all.rewards + last)
    (found,) = (one for one in differences(knows_all, more, with_imagined=False) if one.quantity == "return")
    assert (found.difference.low, found.difference.high) == (pytest.approx(1.0), pytest.approx(1.0))
    assert found.verdict == "higher"


@pytest.mark.parametrize("num_prompts", [2, 5, 20])  # the jackknife's, and the bootstrap's
def test_a_depth_that_one_answer_alone_reaches_is_left_out(make_artefact, num_prompts):
    whole = make_artefact([TRUNK, None, None])
    few = replace(
        whole, **{name: value[:num_prompts] for name, value in vars(whole).items() if isinstance(value, np.ndarray)}
    )
    chosen = few.action_mask.copy()
    chosen[1:, 3:] = False  # two tokens in all answers but the first
    rewards = np.where(chosen, few.rewards, 0.0)
    short = replace(few, action_mask=chosen, rewards=rewards, returns=rewards.sum(axis=1))
    for pair in ((few, short), (short, few)):
        depths = {one.quantity[-1] for one in differences(*pair, with_imagined=False) if "depth" in one.quantity}
        assert depths == {"2"}


def test_what_is_not_the_same_in_the_other_strip_is_marked():
    def strip(answer, said):
        return TokenStrip(("p", *answer), 1, (StripRow("depth 1", (None, *said), (0.0,) + (0.5,) * len(said)),))

    own, other = strip(("x", "y", "z"), ("x", None, "z")), strip(("x", "w"), ("x", "w"))
    # A width of 14 breaks the strip into blocks: places count on from one to the next.
    blocks = marked(own, other, strip_blocks(own, 14))
    assert len(blocks) > 1
    rows = {label: [cell for block in blocks for cell in dict(block.lines)[label]] for label in ("realized", "depth 1")}
    assert [cell.is_changed for cell in rows["realized"]] == [False, False, True, True]
    assert [cell.is_changed for cell in rows["depth 1"]] == [False, False, False, True]


def test_a_page_with_both_runs(knows_all, make_artefact, tmp_path):
    first = save(knows_all, tmp_path / "one" / "seed0")
    second = save(make_artefact([TRUNK, UNIFORM], tokens_text=("a", "b")), tmp_path / "two" / "seed0")
    (first / "config.yaml").write_text("seed: 0\nimagination: {use: 'off', horizon: 3}\nenv: {kwargs: {}}\n")
    (second / "config.yaml").write_text(
        "seed: 0\nimagination: {use: latent, horizon: 3}\nenv: {kwargs: {max_new: 9}}\n"
    )
    found = compare_runs(first, second)
    assert found.names == ("one/seed0", "two/seed0")
    assert found.page == second / "comparison_with_seed0.html"
    assert found.settings == (
        ("imagination.use", "off", "latent"),
        ("env.kwargs", "{}", "-"),
        ("env.kwargs.max_new", "-", "9"),
    )
    assert str(found).startswith("imagination.use: off in one/seed0, latent in two/seed0\nenv.kwargs: {} in one/seed0")
    assert "128 held-out prompts, paired" in str(found)
    page = found.page.read_text(encoding="utf-8")
    assert "Answers side by side" in page
    assert "imagination.use" in page
    assert "128 of 128 sampled answers are the same" in page
    assert "0.840" in page
    assert "<script" not in page
    strip = token_strip(knows_all, 0)
    assert strip.rows[1].label in page


def test_untaught_heads_promise_nothing_that_could_be_compared(knows_all, tmp_path):
    returns = np.where(np.arange(4) == 0, 0.5, np.nan) * np.ones((128, 1))
    artefact = replace(knows_all, imagined_return=returns, realized_return=returns)
    taught, untaught = save(artefact, tmp_path / "a"), save(artefact, tmp_path / "b", imagined_return=None)
    quantity = "imagined less realized return"
    assert quantity in [one.quantity for one in compare_runs(taught, taught).differences]
    assert quantity not in [one.quantity for one in compare_runs(taught, untaught).differences]


def test_runs_without_a_prompt_in_common_are_refused(knows_all, tmp_path):
    first = save(knows_all, tmp_path / "a")
    second = save(replace(knows_all, tokens_text=("x", "y")), tmp_path / "b")
    with pytest.raises(ValueError, match=r"have 0 held-out prompts in common; compare runs of one task"):
        compare_runs(first, second)
    (tmp_path / "c").mkdir()
    with pytest.raises(ValueError, match=r"c has no evaluation under artefacts/"):
        compare_runs(first, tmp_path / "c")


def test_settings_that_many_keys_tell_apart_are_cut_short_and_a_damaged_config_has_none():
    first = "".join(f"key{number}: 0\n" for number in range(10))
    settings = differing_settings(first, first.replace(": 0", ": 1"))
    assert settings == tuple((f"key{number}", "0", "1") for number in range(10))
    shown = str(Comparison(("a", "b"), settings, 2, (), Path("page.html"))).splitlines()
    assert shown[:2] == ["key0: 0 in a, 1 in b", "key1: 0 in a, 1 in b"]
    assert shown[8] == "and 2 more settings differ, which the page has"
    assert str(Comparison(("a", "b"), (), 2, (), Path("page.html"))).startswith("no setting is known to differ\n")
    assert differing_settings("a: [", None) == ()
    assert differing_settings("a: 1", "a: [") == (("a", "1", "-"),)
    assert differing_settings("a: 1", "cut sho") == (("a", "1", "-"),)
