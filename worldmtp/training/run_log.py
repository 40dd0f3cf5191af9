"""``train.log`` of a run directory: what was started, what it noted, how far it came, and why it failed.

Hydra writes there what libraries log; a run's own lines go there by ``RUN_LOG``, also when it is resumed without Hydra.
On the terminal they stand already, as progress and messages, so they are written to the file alone.
"""

import logging
import os
import shlex
import socket
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

LOG_FILE = "train.log"
RUN_LOG = logging.getLogger("worldmtp.run")
RUN_LOG.setLevel(logging.INFO)
RUN_LOG.propagate = False
RUN_LOG.addHandler(logging.NullHandler())  # else lines of a run that is not logged would go to stderr


def tell(notes: Iterable[str]) -> None:
    """Notes on a run for its user: on the terminal and in the log."""
    for note in notes:
        sys.stderr.write(f"note: {note}\n")
        RUN_LOG.info("note: %s", note)


@contextmanager
def run_log(run_dir: Path) -> Iterator[None]:
    """Lines of ``RUN_LOG`` are appended to the run's ``train.log``; an exception that ends the run is one of them."""
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
