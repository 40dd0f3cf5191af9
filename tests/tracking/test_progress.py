"""Progress: fractions over weighted stages, time left by hand, a line here and a bar there."""

import io
import re

import pytest

from worldmtp.tracking import ProgressReporter, Stage
from worldmtp.tracking.progress import format_seconds


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


def make(stream, clock, **options):
    return ProgressReporter([Stage("sft", 1.0), Stage("ppo", 3.0)], stream, clock=clock, **options)


def test_lines_carry_fraction_time_and_note():
    clock, stream = Clock(), io.StringIO()
    with make(stream, clock) as progress:
        progress.update("sft", 0.0)
        clock.now = 10
        progress.update("sft", 1.0, note="loss 0.21")
        clock.now = 25
        progress.update("ppo", 0.5, note="return [0.4]")
    # sft is 1/4 of the run: 10 s for .25 leave 30 s. ppo at half: 1/4 + 3/8 = .625 in 25 s; .375 are left, 15 s.
    assert stream.getvalue().splitlines() == [
        "[  0%] sft  0s elapsed, unknown left",
        "[ 25%] sft  10s elapsed, 30s left  loss 0.21",
        "[ 62%] ppo  25s elapsed, 15s left  return [0.4]",
    ]


def test_lines_come_every_few_seconds_but_stage_changes_always():
    clock, stream = Clock(), io.StringIO()
    progress = make(stream, clock, interval_seconds=5.0)
    for second in range(12):
        clock.now = second
        progress.update("sft", second / 100)
    assert re.findall(r"sft  (\d+s) elapsed", stream.getvalue()) == ["0s", "5s", "10s"]
    progress.update("ppo", 0.0)
    assert len(stream.getvalue().splitlines()) == 4


def test_a_resumed_run_estimates_from_its_own_pace():
    clock, stream = Clock(), io.StringIO()
    progress = make(stream, clock)
    progress.update("ppo", 1 / 3)  # overall .5, done by an earlier process
    clock.now = 10
    # .25 of the run in 10 s; .25 is left.
    progress.update("ppo", 2 / 3)
    assert "10s elapsed, 10s left" in stream.getvalue()


def test_a_terminal_gets_a_bar():
    clock, stream = Clock(), Terminal()
    with make(stream, clock) as progress:
        progress.update("sft", 0.5)
        clock.now = 7
        progress.update("ppo", 1.0, note="[done]")
    assert "100%" in stream.getvalue()
    assert "[done]" in stream.getvalue()
    assert "7s elapsed, 0s left" in stream.getvalue()


def test_errors():
    progress = make(io.StringIO(), Clock())
    with pytest.raises(ValueError, match=r"Unknown stage 'eval'; this run's stages are \['sft', 'ppo'\]"):
        progress.update("eval", 0.5)
    with pytest.raises(ValueError, match=r"fraction=1.5 of stage 'sft'"):
        progress.update("sft", 1.5)
    with pytest.raises(ValueError, match=r"each name once"):
        ProgressReporter([Stage("a"), Stage("a")], io.StringIO())
    with pytest.raises(ValueError, match=r"weight=0.0"):
        Stage("a", 0.0)


def test_format_seconds():
    assert [format_seconds(seconds) for seconds in [0.4, 59.4, 185.0, 7620.0]] == ["0s", "59s", "3m05s", "2h07m"]
