"""Two sweeps beside each other, from hand-written jobs: pairs, means and differences worked by hand."""

import numpy as np
import pytest
from scipy import stats

from worldmtp.analysis.artefacts import ArtefactError
from worldmtp.analysis.attention_files import AttentionMaps, AttentionRecord, save_attention
from worldmtp.analysis.attention_patterns import PATTERNS, PatternSums
from worldmtp.analysis.summary import ArmSummary, RunSummary, write_summary
from worldmtp.analysis.sweep_comparison import compare_sweeps
from worldmtp.statistics import wilson_interval


@pytest.fixture
def sweep(tmp_path):
    """Writes jobs: a config, exact answers of ten, the realized return; None is a job that is not done."""

    def make(name, *jobs):
        for place, (config, num_exact) in enumerate(jobs):
            job = tmp_path / name / f"job{place}"
            job.mkdir(parents=True)
            lines = "".join(f"{key}: {value}\n" for key, value in config.items())
            (job / "config.yaml").write_text(lines, encoding="utf-8")
            if num_exact is not None:
                exact = wilson_interval(num_exact, 10)
                last = ArmSummary("PPO", exact, acceptance=(1.0, num_exact / 20), realized_return=num_exact / 10)
                write_summary(RunSummary((ArmSummary("SFT", wilson_interval(0, 10)), last), 1.0, "here"), job)
        return tmp_path / name

    return make


def seeds(*numbers, first=0, **settings):
    return [({"seed": seed, **settings}, number) for seed, number in enumerate(numbers, start=first)]


def test_jobs_are_paired_by_seed(sweep):
    """.2 .4 .6 against .3 .4 .9: the differences .1, 0, .3 have mean .1333 and t = 2.920 at two degrees."""
    found = compare_sweeps(sweep("a", *seeds(2, 4, 6, use="gae")), sweep("b", *seeds(3, 4, 9, use="group")))
    assert found.settings == (("use", "gae", "group"),)
    assert found.keys == ("env.id", "seed")
    greedy = found.differences[0]
    assert greedy.quantity == "exact match, greedy"
    assert list(greedy.values.values()) == [(0.2, 0.3), (0.4, 0.4), (0.6, 0.9)]
    half = stats.t.ppf(0.95, 2) * np.std([0.1, 0.0, 0.3], ddof=1) / np.sqrt(3)
    assert (greedy.difference.estimate, greedy.difference.unit, greedy.difference.n) == (
        pytest.approx(0.4 / 3),
        "seed",
        3,
    )
    assert greedy.difference.high == pytest.approx(0.4 / 3 + half)
    assert greedy.verdict == "not told apart"
    # Of nine pairs 3 beats 2; 4 beats 2 and ties 4; 9 beats all three: 5 won and one tied.
    assert greedy.improvement.estimate == pytest.approx(5.5 / 9)
    assert (greedy.first.estimate, greedy.first.interval) == (pytest.approx(0.4), None)
    names = [one.quantity for one in found.differences]
    assert names == ["exact match, greedy", "realized return", "acceptance, depth 2"]
    text = str(found)
    assert "use: gae in a, group in b" in text
    assert "3 pairs by env.id, seed" in text
    page = found.page.read_text(encoding="utf-8")
    assert found.page.name == "comparison_with_a.html"
    assert "<td>0.900</td>" in page
    assert "3 pairs of jobs with the same env.id, seed" in page


def test_a_difference_that_all_seeds_show_is_told_apart(sweep):
    found = compare_sweeps(sweep("a", *seeds(1, 2, 3, 4, 5)), sweep("b", *seeds(4, 5, 6, 7, 9)))
    greedy = found.differences[0]
    assert greedy.verdict == "higher"
    assert greedy.first.interval is not None
    assert compare_sweeps(found.page.parent, found.page.parent.parent / "a").differences[0].verdict == "lower"


def test_what_both_vary_pairs_them_too_and_the_rest_is_told(sweep):
    first = sweep("a", *seeds(1, 2, rate="low"), *seeds(3, 4, rate="high"))
    second = sweep("b", *seeds(5, 6, rate="high"), *seeds(7, None, rate="low"), *seeds(9, first=8, rate="low"))
    found = compare_sweeps(first, second)
    assert found.keys == ("env.id", "seed", "rate")
    values = {point[1:]: pair for point, pair in found.differences[0].values.items()}
    assert values == {("0", "low"): (0.1, 0.7), ("0", "high"): (0.3, 0.5), ("1", "high"): (0.4, 0.6)}
    alone = {(path.parent.name, path.name) for path in found.unpaired}
    assert alone == {("a", "job1"), ("b", "job4")}
    assert "without a counterpart" in str(found)


def test_one_pair_has_no_interval(sweep):
    found = compare_sweeps(sweep("a", *seeds(1)), sweep("b", *seeds(4)))
    assert found.differences[0].verdict == "one pair"
    assert "1 pair of jobs" in found.page.read_text(encoding="utf-8")


def test_two_tasks_are_compared_within_each(sweep):
    """Between the tasks all is won or lost; within them the second wins one of one, and ties one of one."""
    pairs = [[(1, 2), (9, 9)][place] for place in (0, 1)]
    made = []
    for side, name in enumerate("ab"):
        jobs = [({"env": f"\n  id: {task}", "seed": 0}, pairs[place][side]) for place, task in enumerate("xy")]
        made.append(sweep(name, *jobs))
    found = compare_sweeps(*made).differences[0]
    assert found.improvement.estimate == pytest.approx((1 + 0.5) / 2)


def test_sweeps_of_other_tasks_are_not_told_to_sweep_other_seeds(sweep):
    made = [sweep(name, *seeds(1, env=f"\n  id: worldmtp/{name}-v0")) for name in ("One", "Two")]
    with pytest.raises(ValueError, match=r"their tasks are others, worldmtp/One-v0 and worldmtp/Two-v0: compare sweep"):
        compare_sweeps(*made)


@pytest.mark.parametrize(
    ("jobs", "words"),
    [
        (seeds(1, first=5), "have no finished jobs of the same env.id, seed; sweep the same seeds"),
        (seeds(None), "have no finished jobs"),
        ([*seeds(1, rate=1), *seeds(2, rate=2)], "several jobs of env.id=-, seed=0: it varies rate"),
    ],
)
def test_what_cannot_be_paired_is_refused(sweep, jobs, words):
    first = sweep("a", *seeds(1, 2))
    with pytest.raises(ValueError, match=words):
        compare_sweeps(first, sweep("b", *jobs))


def look(directory, previous, step=0):
    """Attention of a text with two queries, of two heads; all masses are .25 but one head's on the token before."""
    share = np.full((len(PATTERNS), 1, 1, 2), 0.25)
    share[PATTERNS.index("previous"), 0, 0, 1] = previous
    maps = AttentionMaps(
        maps=np.zeros((0, 1, 2, 2, 3), dtype=np.float16),
        tokens=np.zeros((0, 3), dtype=np.str_),
        queries=np.zeros((0, 2), dtype=np.int64),
        query_mask=np.zeros((0, 2), dtype=bool),
        lengths=np.zeros(0, dtype=np.int64),
        prompt_length=np.zeros(0, dtype=np.int64),
    )
    sums = PatternSums(total=2 * share, count=np.full((len(PATTERNS), 1), 2))
    save_attention(AttentionRecord(step, sums, np.full(len(PATTERNS), 0.25), maps), directory)


def test_what_the_trunks_look_at_is_paired_by_seed(sweep):
    """.3 .5 .4 against .6 .7 .7: the differences .3, .2, .3 have mean .8/3; over both heads half of it."""
    first, second = sweep("a", *seeds(2, 4, 6)), sweep("b", *seeds(3, 4, 9))
    for directory, masses in ((first, (0.3, 0.5, 0.4)), (second, (0.6, 0.7, 0.7))):
        for place, mass in enumerate(masses):
            look(directory / f"job{place}", mass)
    found = compare_sweeps(first, second)
    by_name = {one.quantity: one for one in found.attention}
    strongest = by_name["at the end: token before, strongest head"]
    half = stats.t.ppf(0.95, 2) * np.std([0.3, 0.2, 0.3], ddof=1) / np.sqrt(3)
    assert (strongest.difference.estimate, strongest.difference.unit) == (pytest.approx(0.8 / 3), "seed")
    assert strongest.difference.low == pytest.approx(0.8 / 3 - half)
    assert (strongest.verdict, strongest.first.estimate) == ("higher", pytest.approx(0.4))
    assert by_name["at the end: token before, all heads"].difference.estimate == pytest.approx(0.4 / 3)
    assert by_name["at the end: goal, strongest head"].verdict == "not told apart"
    assert "at the end: token before, strongest head" in str(found)
    assert "at the end: token before, all heads" not in str(found)  # half as large a difference
    assert f"each pattern's largest difference; the page has all {len(found.attention)}" in str(found)
    assert "at the end: entropy, lowest of all heads" in by_name
    page = found.page.read_text(encoding="utf-8")
    assert "<td>at the end: token before, strongest head</td>" in page
    assert not any(one.quantity in by_name for one in found.differences)


def test_attention_that_cannot_be_read_is_named(sweep):
    first, second = sweep("a", *seeds(2)), sweep("b", *seeds(3))
    for directory in (first, second):
        look(directory / "job0", 0.5)
    assert compare_sweeps(first, second).attention
    damaged = second / "job0" / "attention" / "step_000000000000.npz"
    damaged.write_bytes(damaged.read_bytes()[:99])
    with pytest.raises(ArtefactError, match=r"Attention cannot be read: .*step_000000000000.npz"):
        compare_sweeps(first, second)
