"""Files and directories that are whole or not there, whatever stops the writer."""

import os
import signal
import subprocess
import sys

import pytest

from worldmtp import atomic_files
from worldmtp.atomic_files import remove_partial, replacing, write_bytes, write_text


def names(directory):
    return sorted(path.name for path in directory.iterdir())


def test_a_text_and_bytes_replace_what_stood_there(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "é\r\n")
    assert path.read_bytes() == b"\xc3\xa9\r\n"
    write_bytes(path, b"\x00")
    assert path.read_bytes() == b"\x00"
    assert names(tmp_path) == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def full_disk(path):
    path.write_text("half")
    raise OSError("disk is full")


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_an_error_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(OSError, match="disk is full"), replacing(path) as partial:
        full_disk(partial)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_two_writers_do_not_mix(tmp_path):
    path = tmp_path / "a.txt"
    with replacing(path) as first, replacing(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"  # the outer block ends last
    assert names(tmp_path) == ["a.txt"]


def test_a_directory_is_replaced_with_everything_in_it(tmp_path):
    for content in ("old", "new"):
        with replacing(tmp_path / "model") as partial:
            (partial / "inner").mkdir(parents=True)
            (partial / "inner" / content).write_text(content)
    assert names(tmp_path) == ["model"]
    assert names(tmp_path / "model" / "inner") == ["new"]


def test_everything_is_flushed_before_it_gets_its_name_and_the_name_after(tmp_path, monkeypatch):
    events = []
    synced, replaced = os.fsync, os.replace

    def fsync(descriptor):
        events.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        synced(descriptor)

    def replace(source, target):
        events.append("rename")
        replaced(source, target)

    monkeypatch.setattr(atomic_files.os, "fsync", fsync)
    monkeypatch.setattr(atomic_files.os, "replace", replace)
    with replacing(tmp_path / "model") as partial:
        partial.mkdir()
        (partial / "weights").write_text("1")
    assert events == [f"{partial}/weights", str(partial), "rename", str(tmp_path), str(tmp_path)]
    events.clear()
    with replacing(tmp_path / "a.txt") as partial:
        partial.write_text("1")
    assert events == [str(partial), "rename", str(tmp_path)]


def test_an_error_at_the_second_rename_puts_the_old_directory_back(tmp_path, monkeypatch):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    replaced = os.replace

    def refuse(source, target):
        if str(source).endswith(".partial"):
            raise OSError("no")
        replaced(source, target)

    with monkeypatch.context() as patched:
        patched.setattr(atomic_files.os, "replace", refuse)
        with pytest.raises(OSError, match="no"), replacing(path) as partial:
            partial.mkdir()
    assert names(path) == ["old"]
    assert names(tmp_path) == ["model"]


# Stops itself for good at the n-th call of os.replace or os.fsync.
KILLED = """
import os, signal, sys
from pathlib import Path
from worldmtp.atomic_files import replacing, write_text

kind, call, directory = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
calls = 0

def deadly(function):
    def wrapped(*arguments):
        global calls
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments)
    return wrapped

os.fsync, os.replace = deadly(os.fsync), deadly(os.replace)
if kind == "file":
    write_text(directory / "thing", "new")
else:
    with replacing(directory / "thing") as partial:
        partial.mkdir()
        (partial / "content").write_text("new")
"""


@pytest.mark.parametrize(
    ("kind", "num_calls"),
    # A file: its fsync, the rename, that of the folder. A directory: two, then both renames, and two of the folder.
    [("file", 3), ("directory", 6)],
)
def test_a_kill_at_any_call_leaves_the_old_or_the_new_whole(tmp_path, kind, num_calls):
    killed = []
    for call in range(1, num_calls + 2):
        directory = tmp_path / str(call)
        directory.mkdir()
        thing = directory / "thing"
        if kind == "directory":
            thing.mkdir()
        (thing / "content" if kind == "directory" else thing).write_text("old")
        finished = subprocess.run([sys.executable, "-c", KILLED, kind, str(call), str(directory)], check=False)
        killed.append(finished.returncode == -signal.SIGKILL)
        # Between the two renames of a directory the old one stands beside its place.
        found = [path for path in (thing, directory / ".thing.old") if path.exists()]
        content = (found[0] / "content" if kind == "directory" else found[0]).read_text()
        assert content in ("old", "new")
        # The next writer goes on from whatever is there.
        remove_partial(directory)
        with replacing(thing) as partial:
            if kind == "directory":
                partial.mkdir()
                (partial / "content").write_text("next")
            else:
                partial.write_text("next")
        assert names(directory) == ["thing"]
    assert killed == [True] * num_calls + [False]


def test_only_the_named_leftovers_are_removed(tmp_path):
    for name in (".model.0.partial", ".a.txt.1.partial", "a.txt"):
        (tmp_path / name).touch()
    remove_partial(tmp_path, "a*")
    assert names(tmp_path) == [".model.0.partial", "a.txt"]
    remove_partial(tmp_path)
    assert names(tmp_path) == ["a.txt"]
