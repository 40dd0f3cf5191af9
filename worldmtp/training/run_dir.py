"""The directory of one run: who writes there, its config, its log, the mark that it is done, and what it found.

A process that writes in a directory holds a lock on it, so that no second run mixes its files with those of the first.
The lock is the kernel's: it ends with its process, however that ends, and never has to be removed by hand.

``train.log`` says what was started, what it noted, how far it came, and why it failed. Hydra writes there what
libraries log; a run's own lines go there by ``RUN_LOG``, also when it is resumed without Hydra. On the terminal they
stand already, as progress and messages, so they are written to the file alone.
"""

import errno
import fcntl
import json
import logging
import os
import shlex
import socket
import sys
import warnings
import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import yaml

from worldmtp.analysis.summary import RunSummary
from worldmtp.atomic_files import write_text
from worldmtp.training.config import TrainConfig, complete_earlier, config_from_dict

CONFIG_FILE = "config.yaml"
DONE_FILE = "DONE"
MODEL_FOLDER = "model"
"""Where a run leaves its model."""
LOCK_FILE = ".lock"
"""Held by the process that writes in the directory, whose id and host it names. It stays: only the lock counts."""

LOG_FILE = "train.log"
RUN_LOG = logging.getLogger("worldmtp.run")
RUN_LOG.setLevel(logging.INFO)
RUN_LOG.propagate = False
RUN_LOG.addHandler(logging.NullHandler())  # else lines of a run that is not logged would go to stderr

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_OPEN: "weakref.WeakSet[Claim]" = weakref.WeakSet()


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        directory: where its model, logs and report are.
        headline: the held-out exact match of greedy answers, or a study's headline; NaN where the run stopped early.
        closing: the closing table and what to do next, as text.
        summary: the rows of the closing table; None where the run stopped early, and of a study.
    """

    directory: Path
    headline: float
    closing: str
    summary: RunSummary | None = None


class RunDirError(ValueError):
    """A run cannot write in its directory: others do, it holds another run, or it is not writable."""


class Claim:
    """The right to write in a run directory, until ``release`` or the end of the process; a context manager."""

    def __init__(self, run_dir: Path) -> None:
        """Take the directory, which exists. Nothing in it changes before ``sign``.

        Raises:
            RunDirError: another process has it; the message names that process.
            OSError: the file of the lock cannot be written.
        """
        self._path = run_dir / CONFIG_FILE
        self._text: str | None = None
        self._is_new = False
        self._file: IO[str] | None = open(run_dir / LOCK_FILE, "a+", encoding="utf-8")  # noqa: SIM115 (held)
        try:
            self._lock(run_dir)
        except BaseException:
            self.forget()
            raise
        _OPEN.add(self)

    def _lock(self, run_dir: Path) -> None:
        assert self._file is not None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunDirError(
                f"{run_dir} is being written by {_owner(self._file)}; wait until that ends or stop it, or choose "
                "another directory."
            ) from None
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise
            warnings.warn(
                f"{run_dir} is on a file system without locks ({error}): see to it that no second run writes there.",
                stacklevel=4,
            )

    def sign(self, text: str) -> None:
        """Name this process as the owner, and put the config there where there is none; else it waits for ``keep``.

        Raises:
            OSError: a file cannot be written.
        """
        assert self._file is not None
        self._file.truncate(0)
        json.dump({"pid": os.getpid(), "host": socket.gethostname()}, self._file)
        self._file.flush()
        self._text = text
        if not self._path.exists():
            self.keep()
            self._is_new = True

    def keep(self) -> None:
        """Put the config in the place of the one that is there, whole or not at all; harmless to repeat.

        For when the run starts: a resumption that is refused leaves the run with the config it had.

        Raises:
            OSError: the file cannot be written.
        """
        self._is_new = False
        if self._text is not None:
            write_text(self._path, self._text)
            self._text = None

    def withdraw(self) -> None:
        """Take the config of a start that failed out of the directory again, where ``sign`` had put it there."""
        if self._is_new:
            self._path.unlink(missing_ok=True)

    def release(self) -> None:
        """Let others write; harmless to repeat."""
        if self._file is not None:
            self._file.truncate(0)
            self.forget()

    def forget(self) -> None:
        """Close the file, whose lock ends when nobody has it open."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def _owner(file: IO[str]) -> str:
    """Return the process that a lock file names. Between taking the lock and writing the name, it names nobody."""
    file.seek(0)
    try:
        owner = json.load(file)
        return f"process {owner['pid']} on {owner['host']}"
    except (ValueError, KeyError, TypeError):
        return "another process"


def _forget_in_child() -> None:
    """Close a parent's locks: a child that kept the files open would keep a dead parent's run."""
    for inherited in list(_OPEN):
        inherited.forget()


os.register_at_fork(after_in_child=_forget_in_child)


def claim(run_dir: Path, config: Mapping[str, Any], resumes: bool) -> Claim:
    """Make the directory, keep others out, and put the config there if there is none.

    A directory that holds a run of just this config is taken up again, as a sweep started once more wants it. The
    config of a resumption replaces the one that is there by ``Claim.keep``, once the run starts.

    Raises:
        RunDirError: it cannot be written, another process writes there, or it holds another run and ``resumes`` is
            False.
        ValueError: the config has a value that its file cannot hold.
    """
    text = _config_text(config)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        claimed = Claim(run_dir)
    except OSError as error:
        raise _unwritable(run_dir, error) from error
    try:
        if not resumes:
            _check_config(run_dir, text)
        claimed.sign(text)
    except BaseException as error:
        discard_failed_start(run_dir)
        claimed.forget()
        if isinstance(error, OSError):
            raise _unwritable(run_dir, error) from error
        raise
    return claimed


def _config_text(config: Mapping[str, Any]) -> str:
    try:
        return str(yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True))
    except yaml.representer.RepresenterError as error:
        value = error.args[-1]
        raise ValueError(
            f"{_key_of(value, config) or 'a key'}={value!r} is a {type(value).__name__}, which {CONFIG_FILE} cannot "
            "hold; give plain values: numbers, texts, True, False, None, or lists and mappings of these."
        ) from error


def _key_of(value: Any, node: Any, key: str = "") -> str:
    """Return the dotted key of this very value in a config; empty where it is no value there."""
    if node is value:
        return key
    inner = node.items() if isinstance(node, Mapping) else enumerate(node) if isinstance(node, list) else ()
    return next(filter(None, (_key_of(value, one, f"{key}.{name}".lstrip(".")) for name, one in inner)), "")


def _check_config(run_dir: Path, text: str) -> None:
    """Raise if the directory holds another config; the order of keys is the command line's and says nothing."""
    path = run_dir / CONFIG_FILE
    if path.exists() and read_saved(path) != yaml.safe_load(text):
        raise RunDirError(
            f"{run_dir} already holds a run with another config. Go on with that one by resume={run_dir}, or "
            "choose another directory."
        )


def _unwritable(run_dir: Path, error: OSError) -> RunDirError:
    return RunDirError(f"the run directory {run_dir} cannot be written ({error}); choose another.")


def read_config(run_dir: Path) -> TrainConfig:
    """Return the config of the run in ``run_dir``.

    Raises:
        ValueError: there is none, it cannot be read, or it is not that of a run.
    """
    path = run_dir / CONFIG_FILE
    if not path.is_file():
        raise ValueError(f"{run_dir} is no run: no {CONFIG_FILE} there; give the directory of a run.")
    return config_from_dict(TrainConfig, read_saved(path))


def read_saved(path: Path) -> dict[str, Any]:
    """Return the plain values in a run's config file.

    Raises:
        ValueError: it is damaged, or holds no mapping.
    """
    try:
        saved = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is damaged: {error}; put back the file that the run wrote.") from error
    if not isinstance(saved, dict):
        raise ValueError(f"{path} holds no mapping; give the directory of a run.")
    return complete_earlier(saved)


def is_done(run_dir: Path) -> bool:
    """Return whether the run in it reached its end."""
    return (run_dir / DONE_FILE).exists()


def final_model(run_dir: Path) -> Path | None:
    """Return where the run's model is, None before its first end.

    Of a run that goes on beyond an earlier end it is the model of that one, and a note says so.
    """
    model = run_dir / MODEL_FOLDER
    if not model.is_dir():
        return None
    if (run_dir / CONFIG_FILE).is_file() and not is_done(run_dir):
        tell([f"{run_dir} has gone on and is not done; {model} is what it was when last it came to an end."])
    return model


def discard_failed_start(run_dir: Path) -> None:
    """Remove what a start that failed has left: its lock and its log, then the directory and its parents, if empty.

    A directory that holds anything else, such as a run, stays as it is.
    """
    own = {LOCK_FILE, LOG_FILE}
    if not run_dir.is_dir() or not {path.name for path in run_dir.iterdir()} <= own:
        return
    for name in own:
        (run_dir / name).unlink(missing_ok=True)
    here = Path.cwd()
    for directory in (run_dir, *run_dir.parents):
        if here.is_relative_to(directory.resolve()) or any(directory.iterdir()):
            return
        directory.rmdir()


def tell(notes: Iterable[str]) -> None:
    """Show notes on a run to its user: on the terminal and in the log."""
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
        RUN_LOG.info("note: %s", note)


@contextmanager
def run_log(run_dir: Path) -> Iterator[None]:
    """Append lines of ``RUN_LOG`` to the run's ``train.log``; an exception that ends the run is one of them."""
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handler = logging.FileHandler(run_dir / LOG_FILE, encoding="utf-8")
    except OSError:  # the claim of the directory fails for the same reason, and says what to do
        yield
        return
    handler.setFormatter(logging.Formatter("[%(asctime)s][%(levelname)s] %(message)s"))
    RUN_LOG.addHandler(handler)
    try:
        command = " ".join([Path(sys.argv[0]).name, *map(shlex.quote, sys.argv[1:])])
        RUN_LOG.info(
            "%s, worldmtp %s, process %d on %s", command, version("worldmtp"), os.getpid(), socket.gethostname()
        )
        yield
        RUN_LOG.info("ended")
    except BaseException as error:
        RUN_LOG.error("failed: %s", str(error) or type(error).__name__, exc_info=error)
        raise
    finally:
        RUN_LOG.removeHandler(handler)
        handler.close()
