"""How a command ends when its output, and not itself, has broken."""

import os
import sys

import pytest

from worldmtp.cli.errors import fail_cleanly


@pytest.fixture
def closed_output():
    """A standard output whose reader has left, as ``head`` does when it has its lines."""
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w", encoding="utf-8") as stream:
        yield stream


@pytest.mark.parametrize("length", [1, 10**6], ids=["found at the end", "found while writing"])
def test_an_output_that_nobody_reads_ends_in_silence(closed_output, capfd, monkeypatch, length):
    monkeypatch.setattr(sys, "stdout", closed_output)
    with pytest.raises(SystemExit) as ended:
        fail_cleanly(lambda: closed_output.write("x" * length))
    assert ended.value.code == 141  # 128 and SIGPIPE, as of any program behind which a pipe closes
    closed_output.flush()  # as at exit: nothing is left that could fail there
    assert capfd.readouterr().err == ""


def test_another_broken_pipe_is_an_error(capfd):
    def fails():
        raise BrokenPipeError(32, "Broken pipe of a worker")

    with pytest.raises(SystemExit) as ended:
        fail_cleanly(fails, with_traceback=False)
    assert ended.value.code == 1
    assert "error: [Errno 32] Broken pipe of a worker" in capfd.readouterr().err
