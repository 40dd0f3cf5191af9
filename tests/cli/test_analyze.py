"""``worldmtp analyze`` as a user meets it: what is missing, a sweep in place of a run, two runs side by side."""

import json
import re
import sys

import pytest

from worldmtp.analysis.comparison import Comparison
from worldmtp.cli import analyze


def analyzed(monkeypatch, capsys, *directories):
    """(exit code, stderr) of ``worldmtp analyze`` in this process."""
    monkeypatch.setattr(sys, "argv", ["worldmtp analyze", *map(str, directories)])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    with pytest.raises(SystemExit) as stop:
        analyze.main()
    return stop.value.code, capsys.readouterr().err


def test_analyze_names_what_is_missing(monkeypatch, capsys, tmp_path):
    code, err = analyzed(monkeypatch, capsys, tmp_path / "nowhere")
    assert code == 1
    assert err.startswith("error: ")
    assert "nowhere" in err


def test_analyze_refuses_a_directory_without_a_run(monkeypatch, capsys, tmp_path):
    code, err = analyzed(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert "holds no run: it has none of config.yaml, metrics.jsonl, summary.json, artefacts." in err
    assert list(tmp_path.iterdir()) == []


def test_analyze_compares_no_run_with_itself(monkeypatch, capsys, tmp_path):
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    code, err = analyzed(monkeypatch, capsys, tmp_path, tmp_path / ".." / tmp_path.name)
    assert code == 1
    assert "are one directory, which differs from itself in nothing; name two." in err


def test_analyze_names_the_jobs_of_a_sweep(monkeypatch, capsys, tmp_path):
    """Two jobs by hand: one that found something, one that was killed before it did."""
    for name, rate in (("seed0_a", "0.0001"), ("seed0_b", "0.0003")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text(f"seed: 0\nagent:\n  ppo:\n    learning_rate: {rate}\n")
    exact = [{"estimate": x, "low": x - 0.125, "high": x + 0.125, "level": 0.9, "unit": "prompt"} for x in (0.25, 0.5)]
    arms = [{"arm": "x", "exact": one | {"method": "-", "n": 8}, "acceptance": []} for one in exact]
    (tmp_path / "seed0_b" / "summary.json").write_text(
        json.dumps({"arms": arms, "wall_clock_seconds": 1.0, "machine": "m", "notes": []})
    )
    code, err = analyzed(monkeypatch, capsys, tmp_path)
    assert code == 1
    assert "is the directory of a sweep, not of a run; analyze one of its jobs, or name another sweep" in err
    lines = err.splitlines()
    (header,) = (place for place, line in enumerate(lines) if line.startswith("agent.ppo.learning_rate"))
    rows = [re.split(r"  +", line) for line in lines[header:]]
    assert rows[0] == ["agent.ppo.learning_rate", "greedy before", "greedy after", "directory"]
    assert rows[2] == ["0.0001", "-", "-", str(tmp_path / "seed0_a")]
    assert rows[3] == ["0.0003", "0.250 [0.125, 0.375]", "0.500 [0.375, 0.625]", str(tmp_path / "seed0_b")]
    assert not (tmp_path / "report.html").exists()


def test_analyze_lays_two_runs_side_by_side(monkeypatch, capsys, tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("seed: 0\n")
    asked, found = [], Comparison(("one", "two"), (), 7, (), tmp_path / "page.html")
    monkeypatch.setattr("worldmtp.cli.analyze.compare_runs", lambda *directories: asked.append(directories) or found)
    monkeypatch.setattr(sys, "argv", ["worldmtp analyze", str(tmp_path / "one"), str(tmp_path / "two")])
    analyze.main()
    assert asked == [(tmp_path / "one", tmp_path / "two")]
    assert capsys.readouterr().out.splitlines()[-2:] == ["7 held-out prompts, paired", str(tmp_path / "page.html")]
    monkeypatch.setattr(sys, "argv", ["worldmtp analyze", str(tmp_path / "one"), str(tmp_path)])
    with pytest.raises(SystemExit):
        analyze.main()
    assert "analyze one of its jobs" in capsys.readouterr().err
