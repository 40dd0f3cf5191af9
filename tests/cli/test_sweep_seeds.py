"""A sweep of seeds ends with arms over seeds, from the files of its jobs alone."""

import sys

import pytest

from worldmtp.analysis.summary import ArmSummary, RunSummary, write_summary
from worldmtp.cli import analyze
from worldmtp.cli.analyze import sweep_table
from worldmtp.statistics import wilson_interval


@pytest.fixture
def sweep(tmp_path):
    def make(*jobs):
        for place, (config, num_exact) in enumerate(jobs):
            job = tmp_path / f"job{place}"
            job.mkdir()
            lines = "".join(f"{key}: {value}\n" for key, value in config.items())
            (job / "config.yaml").write_text(lines, encoding="utf-8")
            if num_exact is not None:
                arms = tuple(ArmSummary(arm, wilson_interval(n, 10)) for arm, n in (("SFT", 5), ("PPO", num_exact)))
                write_summary(RunSummary(arms, 1.0, "here"), job)
        return sweep_table(tmp_path)

    return make


def test_arms_over_seeds(sweep):
    """Exact .1 to .6 against .3 to .8: the middle four are .2 .. .5 and .4 .. .7; 26 of 36 pairs are won, 4 tied."""
    jobs = [({"seed": seed, "rate": rate}, n + seed) for rate, n in (("low", 1), ("high", 3)) for seed in range(6)]
    table = sweep(*jobs)
    header, _, low, high = table.partition("\n\n")[2].splitlines()
    assert header.split("  ")[0] == "over seeds, greedy after"
    assert "better than rate=low [90 %]" in header
    assert low.startswith("rate=low")
    assert " 6 " in low
    assert " 0.350 [" in low
    assert low.endswith("-")
    assert " 0.550 [" in high
    assert " 0.778 [" in high  # (26 + 4 / 2) / 36


def test_few_seeds_say_so_and_single_ones_are_no_arm(sweep):
    table = sweep(({"seed": 0}, 2), ({"seed": 1}, 4), ({"seed": 2}, None))
    assert "all jobs" in table
    assert "0.300 (no interval below 5 seeds)" in table


def test_without_a_second_seed_there_is_nothing_over_seeds(sweep):
    assert "over seeds" not in sweep(({"seed": 0, "rate": 1}, 2), ({"seed": 0, "rate": 2}, 4))


def test_analyze_lays_two_sweeps_side_by_side(monkeypatch, capsys, tmp_path):
    for name, num_exact in (("one", 3), ("two", 7)):
        job = tmp_path / name / "job"
        job.mkdir(parents=True)
        (job / "config.yaml").write_text("seed: 0\n", encoding="utf-8")
        write_summary(RunSummary((ArmSummary("PPO", wilson_interval(num_exact, 10)),), 1.0, "here"), job)
    directories = [str(tmp_path / "one"), str(tmp_path / "two")]
    monkeypatch.setattr(sys, "argv", ["worldmtp analyze", *directories])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    analyze.main()
    out = capsys.readouterr().out
    assert "1 pair by env.id, seed" in out
    assert out.splitlines()[-1] == str(tmp_path / "two" / "comparison_with_one.html")
    # A run beside a sweep is a pair of neither kind.
    monkeypatch.setattr(sys, "argv", ["worldmtp analyze", directories[0], str(tmp_path / "two" / "job")])
    with pytest.raises(SystemExit):
        analyze.main()
    assert "is the directory of a sweep" in capsys.readouterr().err
