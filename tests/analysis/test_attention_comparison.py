"""Attention of two runs: what is planted is found, what is alike is not told apart, and prompts are paired."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from worldmtp.analysis import save_artefact
from worldmtp.analysis.attention_comparison import (
    attention_differences,
    attention_scores,
    heads_told_apart,
    largest_of_each_pattern,
    paired_sums,
)
from worldmtp.analysis.attention_figures import curve_comparison, head_comparison
from worldmtp.analysis.attention_files import AttentionHistory, AttentionMaps, AttentionRecord, save_attention
from worldmtp.analysis.attention_patterns import (
    PATTERNS,
    AttendedTexts,
    pattern_sums,
    uniform_attention,
    uniform_scores,
)
from worldmtp.analysis.comparison import compare_runs
from worldmtp.analysis.differences import Difference
from worldmtp.analysis.run_files import RunSteps
from worldmtp.model.attention_probe import attention_maps
from worldmtp.statistics import Interval

UNIFORM_PREVIOUS = (1 / 2 + 1 / 3) / 2
"""A uniform head's mass on the token before: of two keys, then of three; the first query has no token before it."""
PLANTED = "at the end: token before, strongest head"


@pytest.fixture
def answers(make_artefact, transition):
    """128 answers of three tokens to the prompts a and b, which take turns."""
    whole = make_artefact([transition, None])
    return whole.select(np.arange(128).reshape(2, 64).T.ravel())


def texts_of(artefact):
    batch = len(artefact)
    return AttendedTexts(
        input_ids=artefact.input_ids,
        attention_mask=artefact.attention_mask,
        prompt_length=artefact.prompt_length,
        reply_mask=np.zeros(artefact.input_ids.shape, dtype=bool),
        queries=np.tile([0, 1, 2], (batch, 1)),
        query_mask=np.ones((batch, 3), dtype=bool),
    )


def record_of(artefact, attention, step=0):
    texts = texts_of(artefact)
    maps = AttentionMaps.of(attention, texts, artefact.tokens_text, 1)
    return AttentionRecord(step, pattern_sums(attention, texts), uniform_scores(texts), maps)


def uniform(artefact, num_layers=2):
    """Two heads a layer that look at all keys alike."""
    return np.tile(uniform_attention(texts_of(artefact)), (1, num_layers, 2, 1, 1))


def with_previous(artefact, mass=1.0):
    """The same, but head 2.1 has ``mass`` more of its weight on the token before than it has without."""
    attention = uniform(artefact)
    rest = 1 - np.broadcast_to(np.asarray(mass, dtype=np.float64), (len(artefact),))
    attention[:, 1, 0, 1:] *= rest[:, None, None]
    for query in (1, 2):
        attention[:, 1, 0, query, query - 1] += 1 - rest
    return attention


def found_of(first, second, evaluations):
    histories = [AttentionHistory(run=tuple(records)) for records in (first, second)]
    return {one.quantity: one for one in attention_differences(histories, evaluations)}


def test_a_planted_head_is_found_and_nothing_else(answers):
    records = record_of(answers, uniform(answers)), record_of(answers, with_previous(answers))
    found = found_of(records[:1], records[1:], [[answers]] * 2)
    strongest, mean = found[PLANTED], found["at the end: token before, all heads"]
    assert (strongest.first, strongest.second) == (pytest.approx(UNIFORM_PREVIOUS), pytest.approx(1.0))
    assert strongest.difference.estimate == pytest.approx(7 / 12)
    assert mean.difference.estimate == pytest.approx(7 / 12 / 4)  # one head of four
    assert (strongest.verdict, strongest.difference.unit, strongest.difference.n) == ("higher", "prompt", 128)
    assert not any(name.startswith(("before RL", "change")) for name in found)
    assert not any("replies" in name for name in found)  # no world has said anything
    apart = heads_told_apart(*(record.sums for record in records), "previous")
    assert apart.tolist() == [[False, False], [True, False]]
    same = found_of(records[:1], records[:1], [[answers]] * 2)
    assert {one.verdict for one in same.values()} == {"not told apart"}


def test_of_two_draws_of_one_law_few_are_told_apart(answers):
    """40 pairs of runs alike, with intervals of a nominal 90 %: P(Binomial(40, .1) > 10) = .0015."""
    few, told = answers.select(np.arange(32)), 0
    for seed in range(40):
        pair = np.random.default_rng(seed).uniform(0.2, 0.8, size=(2, 32))
        records = [record_of(few, with_previous(few, mass)) for mass in pair]
        told += found_of(records[:1], records[1:], [[few]] * 2)[PLANTED].verdict != "not told apart"
    assert told <= 10


def test_prompts_are_paired_and_those_of_one_run_alone_are_left_out(answers):
    """Mass depends on the prompt alone, and the second run has read fewer texts, in another order."""

    def read(artefact):
        return record_of(artefact, with_previous(artefact, np.where(artefact.input_ids[:, 0] == 0, 0.25, 0.75)))

    other = answers.select(np.arange(40)[::-1])  # b a b a ..
    one = found_of([read(answers)], [read(other)], [[answers], [other]])[PLANTED]
    assert one.difference.n == 40
    assert (one.difference.low, one.difference.high) == (pytest.approx(0, abs=1e-12), pytest.approx(0, abs=1e-12))
    # The mean mass of 1/2 takes half of the rest, 7/12, away.
    assert one.first == pytest.approx(UNIFORM_PREVIOUS + 7 / 12 / 2)
    first, second = paired_sums([read(answers).sums, read(other).sums], [answers, other])
    previous = PATTERNS.index("previous")
    np.testing.assert_allclose(first.total[previous], second.total[previous])


def test_what_reinforcement_changes_is_compared_too(answers):
    plain, planted = uniform(answers), with_previous(answers)
    runs = [
        [record_of(answers, maps, step) for step, maps in enumerate(pair)]
        for pair in ((plain, plain), (plain, planted))
    ]
    found = found_of(*runs, [[answers, answers]] * 2)
    assert found["before RL: token before, strongest head"].verdict == "not told apart"
    change = found["change in RL: token before, strongest head"]
    assert (change.first, change.second) == (pytest.approx(0), pytest.approx(7 / 12))
    assert change.difference.low == pytest.approx(7 / 12)
    turned = found_of(*(run[::-1] for run in runs), [[answers, answers]] * 2)
    assert turned["change in RL: token before, strongest head"].verdict == "lower"
    scores = attention_scores(AttentionHistory(run=tuple(runs[1])))
    assert scores["change in RL: token before, strongest head"] == pytest.approx(7 / 12)
    assert scores["change in RL: entropy, lowest of all heads"] < 0  # who chooses has less entropy
    assert attention_scores(AttentionHistory(warm_start=tuple(runs[1]))) == {}


def test_attention_of_another_run_is_refused(answers):
    record = record_of(answers, uniform(answers))
    with pytest.raises(ValueError, match=r"attention was read of 128 texts, but the evaluation beside it has 40"):
        paired_sums([record.sums] * 2, [answers, answers.select(np.arange(40))])


def test_each_head_stands_beside_the_head_of_its_number(answers):
    plain = record_of(answers, uniform(answers)).sums
    figure = head_comparison(plain, record_of(answers, with_previous(answers)).sums, same_heads=True)
    panels = np.array(figure.axes).reshape(3, -1)
    (previous,) = (column for column in panels.T if column[0].get_title(loc="left") == "token before")
    assert [text.get_text() for text in previous[2].texts] == [".00", ".00", ".58", ".00"]
    assert [len(ax.patches) for ax in previous] == [0, 0, 1]
    assert previous[2].patches[0].get_xy() == (pytest.approx(-0.44), pytest.approx(0.58))  # head 1 of layer 2
    deeper = record_of(answers, uniform(answers, num_layers=3)).sums
    assert len(head_comparison(plain, deeper, same_heads=True).axes) == 2 * panels.shape[1]
    assert heads_told_apart(plain, deeper, "previous") is None
    # Where a number is not the same head in both runs, nothing is set against its number and nothing framed.
    others = head_comparison(plain, record_of(answers, with_previous(answers)).sums, same_heads=False)
    assert len(others.axes) == 2 * panels.shape[1]
    assert not any(ax.patches for ax in others.axes)


def test_curves_have_a_colour_a_run(answers):
    plain, planted = (
        [record_of(answers, maps, step) for step in (0, 9)] for maps in (uniform(answers), with_previous(answers))
    )
    histories = [AttentionHistory(run=tuple(run)) for run in (plain, planted)]
    (previous,) = (
        ax
        for ax in curve_comparison(histories, ("a", "b"), [RunSteps()] * 2).axes
        if ax.get_title(loc="left") == "token before"
    )
    ends = [line.get_ydata()[-1] for line in previous.lines[:4]]
    assert ends == pytest.approx([UNIFORM_PREVIOUS, UNIFORM_PREVIOUS, UNIFORM_PREVIOUS + 7 / 48, 1.0])
    assert (
        curve_comparison([histories[0], AttentionHistory(run=tuple(plain[:1]))], ("a", "b"), [RunSteps()] * 2) is None
    )


def test_curves_of_tokens_and_of_optimiser_steps_share_no_axis(answers):
    """300 tokens and 9 steps: on one axis the second run would seem to have stopped at a thirtieth of the first."""
    runs = [[record_of(answers, uniform(answers), step) for step in (0, end)] for end in (300, 9)]
    histories = [AttentionHistory(run=tuple(run)) for run in runs]

    def ends(*steps):
        ax = curve_comparison(histories, ("a", "b"), steps).axes[0]
        return [line.get_xdata()[-1] for line in ax.lines[:4]], [label.get_text() for label in ax.get_xticklabels()]

    assert ends(RunSteps(), RunSteps()) == (pytest.approx([1, 1, 0.03, 0.03]), ["RL\n300 tokens"])
    assert ends(RunSteps(), RunSteps("GRPO", "steps")) == (pytest.approx([1, 1, 1, 1]), ["each run to\nits own end"])


def test_the_largest_difference_is_taken_of_each_pattern_whichever_way_it_went():
    sizes = {
        "at the end: goal, all heads": 0.1,
        "at the end: entropy, all heads": 2.0,
        "at the end: entropy, lowest of all heads": -3.0,
        "before RL: goal, strongest head": -0.2,
        "change in RL: goal, strongest head": 0.15,
    }
    rows = [Difference(name, 0.0, size, Interval(size, size, size, 0.9, "", "", 2)) for name, size in sizes.items()]
    found = largest_of_each_pattern(rows, lambda one: abs(one.difference.estimate))
    assert [one.quantity for one in found] == [
        "before RL: goal, strongest head",
        "at the end: entropy, lowest of all heads",
    ]


def looking(is_planted):
    """A GPT-2 whose places are one-hot; planted, head 1.1 asks at place i for the key of place i - 1."""
    sizes = {"vocab_size": 2, "n_positions": 8, "n_embd": 16, "n_head": 2, "n_layer": 1}
    dropout = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}
    trunk = GPT2LMHeadModel(GPT2Config(**sizes, **dropout, bos_token_id=0, eos_token_id=1)).eval()
    with torch.no_grad():
        for weight in trunk.parameters():
            if weight.ndim == 2:
                weight.zero_()
        trunk.transformer.wpe.weight[:, :8] = 20 * torch.eye(8)
        if is_planted:
            projection = trunk.transformer.h[0].attn.c_attn.weight  # from the place to queries 0-15, keys 16-31
            projection[range(8), range(8)] = 3.0
            projection[range(7), range(17, 24)] = 3.0
    return trunk


def test_a_page_shows_the_head_that_one_of_two_models_has(answers, tmp_path):
    for name in ("without", "planted"):
        queries = torch.tensor([[0, 1, 2]]).expand(128, -1)
        maps = attention_maps(looking(name == "planted"), torch.from_numpy(answers.input_ids), queries)
        save_artefact(answers, tmp_path / name / "artefacts", "final")
        save_attention(record_of(answers, maps.numpy()), tmp_path / name)
    found = compare_runs(tmp_path / "without", tmp_path / "planted")
    (planted,) = (one for one in found.attention if one.quantity == PLANTED)
    assert (planted.first, planted.second) == (pytest.approx(UNIFORM_PREVIOUS, abs=1e-6), pytest.approx(1.0, abs=1e-4))
    assert planted.verdict == "higher"
    # Ten rows, two readings of five patterns: the prompt is its first token alone, and no world replies.
    assert len(found.attention) == 10
    told = str(found).splitlines()
    assert [line.startswith(PLANTED) for line in told].count(True) == 1
    assert sum(line.startswith("at the end: ") for line in told) == 5
    assert "at the end: token before, all heads" not in str(found)
    assert "of attention each pattern's largest difference; the page has all 10" in told
    page = found.page.read_text(encoding="utf-8")
    assert "What attention looks at" in page
    assert f"<td>{PLANTED}</td><td>0.417</td><td>1.000</td>" in page


def test_a_run_without_attention_is_compared_without_it(answers, tmp_path):
    for name in ("one", "other"):
        save_artefact(answers, tmp_path / name / "artefacts", "final")
    save_attention(record_of(answers, uniform(answers)), tmp_path / "one")
    found = compare_runs(tmp_path / "one", tmp_path / "other")
    assert found.attention == ()
    assert "What attention looks at" not in found.page.read_text(encoding="utf-8")


def test_a_run_that_was_stopped_is_compared_at_its_start(answers, tmp_path):
    """One evaluation is kept, the first; attention has been read once more since."""
    for name in ("one", "other"):
        save_artefact(answers, tmp_path / name / "artefacts", "warm_start")
        save_attention(record_of(answers, uniform(answers)), tmp_path / name)
        save_attention(replace(record_of(answers, with_previous(answers)), step=9), tmp_path / name)
    found = compare_runs(tmp_path / "one", tmp_path / "other")
    assert {one.quantity.partition(":")[0] for one in found.attention} == {"at the end"}
    (previous,) = (one for one in found.attention if one.quantity == PLANTED)
    assert previous.second == pytest.approx(UNIFORM_PREVIOUS)


def test_the_strongest_head_is_that_of_all_texts_and_not_of_one(answers):
    """Head 2.1 is stronger by far in the first text alone, head 1.2 by a tenth of the rest, 7/12, in all of them."""
    attention = with_previous(answers, np.where(np.arange(128) == 0, 0.9, 0.0))
    attention[:, 0, 1] = with_previous(answers, 0.1)[:, 1, 0]
    record = record_of(answers, attention)
    scores = attention_scores(AttentionHistory(run=(record,)))
    assert scores[PLANTED] == pytest.approx(UNIFORM_PREVIOUS + 0.1 * 7 / 12)
