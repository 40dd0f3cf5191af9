"""Errors that are written for the user end a console script with their message and code 1, without a traceback."""

import os
import sys
from collections.abc import Callable

TRACEBACK_VARIABLE = "HYDRA_FULL_ERROR"


def shows_traceback() -> bool:
    """Whether $HYDRA_FULL_ERROR asks for the traceback of every error."""
    return bool(os.environ.get(TRACEBACK_VARIABLE))


def exit_cleanly(
    action: Callable[[], object],
    expected: Callable[[], tuple[type[Exception], ...]],
    describe: Callable[[Exception], str],
    with_traceback: bool,
) -> None:
    """Run ``action``; an error of the ``expected`` types ends the process with what ``describe`` says of it.

    Anything else is a defect and keeps its traceback. The types are asked for when something has failed, so that they
    may take an import.
    """
    try:
        action()
    except Exception as error:
        if with_traceback or not isinstance(error, expected()):
            raise
        print(f"error: {describe(error)}\n({TRACEBACK_VARIABLE}=1 shows the traceback.)", file=sys.stderr)
        sys.exit(1)


def message_of(error: Exception) -> str:
    """The error's message and its notes, a line each."""
    return "\n".join([str(error), *getattr(error, "__notes__", [])])
