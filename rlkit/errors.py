"""The errors that rlkit raises on purpose, and the exit code each one becomes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

EXIT_DONE = 0
EXIT_FAILED = 1
EXIT_USER = 2
EXIT_STOPPED = 75  # EX_TEMPFAIL of sysexits.h: stopped on request, ready to resume


class UserError(Exception):
    """A mistake in the recipe, the data or a reward: what is wrong, where, what is valid, what to do. Exit code 2, no traceback."""


class RunFailed(Exception):
    """The run cannot continue, and not by the user's mistake: the message describes what was seen and where to look. Exit code 1."""


class Stopped(Exception):
    """Somebody asked the run to stop (SIGTERM, SIGUSR1 or Ctrl-C); it is saved and can be resumed. Exit code 75."""


@contextmanager
def contain_exit() -> Iterator[None]:
    """Inside it code of somebody else that ends the process raises an ordinary error."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(f"it calls sys.exit({'' if error.code is None else repr(error.code)})") from error


def list_some(names: Sequence[str], most: int = 3) -> str:
    """The first names of a list, as a message shows them."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
