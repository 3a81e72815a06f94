"""rlkit.run on a kernel that allows no sandbox."""

from __future__ import annotations

import sys

from rlkit import run
from rlkit.assembly import plan
from rlkit.rewarding.sandbox import SandboxUnavailable


def refuse() -> None:
    raise SandboxUnavailable("this kernel does not allow the sandbox (unshare: no; Landlock: no); allow unprivileged user namespaces")


plan.choose_sandbox = refuse  # type: ignore[assignment]
sys.exit(run.main(sys.argv[1:]))
