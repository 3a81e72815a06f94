"""`rlkit reward retry FILE`: call a reward again, in this process, with the sample that stopped a run."""

from __future__ import annotations

import faulthandler
import os
from pathlib import Path

from rlkit import run
from rlkit.errors import EXIT_DONE, EXIT_FAILED, UserError
from rlkit.rewarding import worker
from rlkit.rewarding.replay import read_replay
from rlkit.runtime.library_settings import configure_libraries

TIMEOUTS = 2  # after this many times the reward's timeout, print where the function is and end


def run_retry(file: Path) -> int:
    """Print the outcome now. Returns the exit code: 0 where the reward gives a score, 1 where it fails again, 2 for a user error."""
    configure_libraries(offline=False)
    return run.handle_errors(lambda: call_again(file), [])


def call_again(file: Path) -> int:
    """As run_retry. Raises UserError where the file is not one of a failed reward."""
    replay = read_replay(file)
    reward, items, folder = replay.reward, replay.items, replay.working_directory
    if not folder.is_dir():
        raise UserError(f"{file} was written in {folder}, which does not exist; create it, or change working_directory in the file")
    os.chdir(folder)
    for line in replay.inexact:
        print(f"not as in the run: {line}")
    print(f"rewards.{reward.name} ({reward.path}), sample {replay.sample}, {len(items)} completion(s); then: {replay.outcome}")
    faulthandler.dump_traceback_later(TIMEOUTS * reward.timeout * len(items), exit=True)
    outcomes = worker.run_without_worker(reward, items)
    faulthandler.cancel_dump_traceback_later()
    for outcome in outcomes:
        print(f"now: {outcome.kind.value} {'' if outcome.value is None else outcome.value} ({outcome.seconds:.3f} s)\n{outcome.detail}")
    return EXIT_FAILED if any(outcome.kind.failed for outcome in outcomes) else EXIT_DONE
