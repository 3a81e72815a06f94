"""`rlkit reward retry FILE`: call a reward again, in this process, with the sample that stopped a run."""

from __future__ import annotations

import base64
import faulthandler
import json
import os
import pickle
from pathlib import Path

from rlkit import run
from rlkit.errors import EXIT_DONE, EXIT_FAILED, UserError
from rlkit.rewarding import worker
from rlkit.rewarding.job import WorkerReward
from rlkit.runtime.library_settings import configure_libraries

TIMEOUTS = 2  # after this many times the reward's timeout, print where it is and end


def run_retry(file: Path) -> int:
    """Print the outcome now. Returns the exit code: 0 where the reward gives a score, 1 where it fails again, 2 for a user error."""
    configure_libraries(offline=False)
    return run.handle_errors(lambda: call_again(file), [])


def call_again(file: Path) -> int:
    """As run_retry. Raises UserError where the file is not one of a failed reward."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        reward, items = WorkerReward(**content["reward"]), pickle.loads(base64.b64decode(content["pickled"]))
        folder = Path(content["working_directory"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is not a file that a run wrote for a failed reward: {error}") from error
    if not folder.is_dir():
        raise UserError(f"{file} was written in {folder}, which does not exist; create it, or change working_directory in the file")
    os.chdir(folder)
    before = content["outcome"]["kind"]
    print(f"rewards.{reward.name} ({reward.path}), sample {content['sample']}, {len(items)} completion(s); then: {before}")
    faulthandler.dump_traceback_later(TIMEOUTS * reward.timeout * len(items), exit=True)
    outcomes = worker.run_without_worker(reward, items)
    faulthandler.cancel_dump_traceback_later()
    for outcome in outcomes:
        print(f"now: {outcome.kind.value} {'' if outcome.value is None else outcome.value} ({outcome.seconds:.3f} s)\n{outcome.detail}")
    return EXIT_FAILED if any(outcome.kind.failed for outcome in outcomes) else EXIT_DONE
