"""Python in a sandbox, whose names are kept over an episode."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rlkit.errors import UserError
from rlkit.rewarding import code_session
from rlkit.rewarding.code_packages import find_packages
from rlkit.rewarding.sandbox import Packages, SandboxLimits, SandboxSession, SandboxUnavailable, SessionEnded, choose_sandbox

ANSWER_BYTES = 64 << 10
ANEW = "Python starts anew with the next call, without the names that it had"


class Python:
    """A tool that runs code; whatever the code does is at worst an answer: its overtime, its memory, its end, what it raises.

    The sandbox starts with the first call of an episode. seconds: of one call. cpu_seconds: of all calls of an episode. packages: installed
    ones that the code may import.
    """

    max_sessions = 32  # each is a Python process, kept until its episode ends

    def __init__(self, seconds: float = 5.0, memory_mib: int = 512, cpu_seconds: float = 60.0, packages: Sequence[str] = ()) -> None:
        self._limits = SandboxLimits(seconds=seconds, memory_mib=memory_mib, output_mib=1)
        self._cpu_seconds, self._packages = cpu_seconds, _find_packages(tuple(packages))
        self._session: SandboxSession | None = None
        try:
            choose_sandbox()
        except SandboxUnavailable as error:
            raise UserError(f"the tool python: {error}") from None

    def python(self, code: str) -> str:
        """Run Python code and read what it prints, and the value of its last line. Variables are kept for the next call.

        Args:
            code: Python source.
        """
        try:
            if self._session is None:
                source = f"{Path(code_session.__file__).read_text()}\n\nserve_requests({ANSWER_BYTES})\n"
                self._session = SandboxSession(source, self._limits, self._packages, self._cpu_seconds)
            return self._session.ask(code).rstrip() or "(nothing was printed)"
        except SessionEnded as error:
            self._session = None
            return f"Error: {error}; {ANEW}"
        except SandboxUnavailable as error:
            raise UserError(f"the tool python: {error}") from None

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


@functools.cache
def _find_packages(names: tuple[Any, ...]) -> Packages:
    return find_packages(names)
