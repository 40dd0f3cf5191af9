"""How a command fails: an error that is written for the user ends it with its message and code 1, without a traceback.

Errors of Hydra's composition are made clear: what was typed, why it does not fit, and the nearest thing that exists.
Hydra is imported when something has failed, so that commands that do not need it start at once.
"""

import os
import re
import select
import sys
from collections.abc import Callable, Iterable, Sequence

from worldmtp.choices import nearest

TRACEBACK_VARIABLE = "HYDRA_FULL_ERROR"
_CODE_OF_A_BROKEN_PIPE = 128 + 13
"""As shells say of a program that SIGPIPE, number 13, has ended."""


def shows_traceback() -> bool:
    """Return whether $HYDRA_FULL_ERROR asks for the traceback of every error."""
    return bool(os.environ.get(TRACEBACK_VARIABLE))


def fail_cleanly(
    action: Callable[[], object], with_traceback: bool | None = None, also: tuple[type[Exception], ...] = ()
) -> None:
    """Run ``action``; an error whose message is written for the user ends with that message and code 1.

    Where nobody reads the output any more, as behind ``| head``, the end is silent, with the code of other programs.
    Those are the package's own errors and those of ``also``. Anything else is a defect and keeps its traceback;
    $HYDRA_FULL_ERROR, the default of ``with_traceback``, keeps all of them.
    """
    try:
        action()
        sys.stdout.flush()
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _nobody_reads():
            sys.exit(_CODE_OF_A_BROKEN_PIPE)
        keeps = shows_traceback() if with_traceback is None else with_traceback
        if keeps or not isinstance(error, (*_expected_errors(), *also)):
            raise
        print(f"error: {_describe(error)}\n({TRACEBACK_VARIABLE}=1 shows the traceback.)", file=sys.stderr)
        sys.exit(1)


def _nobody_reads() -> bool:
    """Return whether it is the standard output that broke; what is left of it then goes nowhere."""
    output, poll = sys.stdout.fileno(), select.poll()
    poll.register(output, 0)  # errors alone
    if not poll.poll(0):
        return False
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), output)
    return True


def message_of(error: Exception) -> str:
    """Return the error's message and its notes, a line each."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])


def _expected_errors() -> tuple[type[Exception], ...]:
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from worldmtp.analysis import ArtefactError
    from worldmtp.checkpoint import CheckpointError
    from worldmtp.studies.runner import StudyError

    checks = (ValueError, TypeError, OSError, MemoryError, FloatingPointError)
    return (*checks, CheckpointError, ArtefactError, StudyError, HydraException, OmegaConfBaseException)


def _describe(error: Exception) -> str:
    from hydra.errors import HydraException

    if isinstance(error, HydraException):
        from worldmtp.cli.schema import known_keys

        return explain(error, sys.argv[1:], known_keys(sys.argv[1:]))
    return message_of(error)


_MISSING_OPTION = re.compile(r"Could not find '([^']*)'")
_LISTED_OPTIONS = re.compile(r"Available options in '[^']*':\n((?:\t[^\n]*\n?)*)")
_MERGED = re.compile(r"(?:Error merging override|by) \+*([\w.]+)=(.*?)\.?$", re.MULTILINE)
_KEY_IN_FILE = re.compile(r"full_key: (\S+)")


def explain(error: Exception, overrides: Sequence[str], known_keys: Iterable[str]) -> str:
    """Return the message of an error of composition, its cause if that is a wrong type, and what was probably meant.

    That comes second, behind the line that says what is wrong: lists of options and of files may follow.
    """
    from omegaconf.errors import ValidationError

    what, *rest = str(error).split("\n")
    hint = nearest_hint(str(error), overrides, known_keys)
    lines = [what, *([] if hint is None else [hint]), *rest]
    if isinstance(error.__cause__, ValidationError):
        lines.append(str(error.__cause__).splitlines()[0])
        typed = _MERGED.search(str(error))
        if typed and "is not a ListConfig" in lines[-1]:
            lines.append(f"A list is written in brackets: {typed[1]}=[{typed[2]}]")
    return "\n".join(lines)


def nearest_hint(message: str, overrides: Sequence[str], known_keys: Iterable[str]) -> str | None:
    """Return a sentence that names what was probably meant; None if nothing is near.

    Three kinds of typo: an option that a group does not have (``env=chain_sm``), whose candidates Hydra lists in its
    message; a key that the schema does not have, on the command line (``agent.ppo.lerning_rate=...``) or in a file.
    """
    listed, missing = _LISTED_OPTIONS.search(message), _MISSING_OPTION.search(message)
    if listed and missing:
        options = [line.strip() for line in listed.group(1).splitlines()]
        group, _, name = missing.group(1).partition("/")
        near = _nearest(name.rpartition("/")[2], options)
        if group == "env" and re.search("[/:]", name):
            return " ".join([*([near] if near else []), f"An id is chosen by env=custom env.id={name}"])
        return near
    keys = sorted(known_keys)
    typed = [override.partition("=")[0].lstrip("+~") for override in overrides]
    for key in [*_KEY_IN_FILE.findall(message), *(key for key in typed if key and f"'{key}'" in message)]:
        node, _, name = key.rpartition(".")
        if node in _OPEN_NODES and f"{node}.task_kwargs.{name}" in keys:
            value = next((one.partition("=")[2] for one in overrides if one.startswith(f"{key}=")), "...")
            return f"Did you mean '{node}.task_kwargs.{name}={value}'?"
        if key not in keys and node not in _OPEN_NODES:
            return _nearest(key, keys)
    return None


_OPEN_NODES = ("env.kwargs", "model.config")
"""Any key goes here, so none is a typo of another; Hydra's own message says how one is added."""


def _nearest(name: str, candidates: Sequence[str]) -> str | None:
    found = nearest(name, candidates, cutoff=0.5)
    return f"Did you mean {found!r}?" if found else None
