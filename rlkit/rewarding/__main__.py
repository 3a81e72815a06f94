"""python -m rlkit.rewarding replay FILE: call a reward once more on the sample that stopped a run, here, where everything can be seen."""

from __future__ import annotations

import base64
import faulthandler
import json
import os
import pickle
import sys
from pathlib import Path

from rlkit.errors import EXIT_DONE, EXIT_FAILED, EXIT_USER, UserError
from rlkit.rewarding import worker
from rlkit.rewarding.spec import RewardSettings, RewardSpec

USAGE = "usage: python -m rlkit.rewarding replay FILE"


def main(arguments: list[str]) -> int:
    """Exit code: 0 where the reward now gives a score, 1 where it fails again, 2 for a mistake on the command line."""
    if len(arguments) != 2 or arguments[0] != "replay":
        print(USAGE, file=sys.stderr)
        return EXIT_USER
    try:
        return replay(Path(arguments[1]))
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER


def replay(file: Path) -> int:
    """Ask the reward in this process. Past twice its deadline it is ended, and where it was is printed."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        spec, items = RewardSpec(**content["reward"]), pickle.loads(base64.b64decode(content["pickled"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} is no file that a run wrote to be replayed: {error}") from error
    os.chdir(content["working_directory"])
    print(f"rewards.{spec.name} ({spec.path}), sample {content['sample']}, {len(items)} completion(s); then: {content['outcome']['kind']}")
    faulthandler.dump_traceback_later(2 * content["deadline"] * len(items), exit=True)
    outcomes = worker.run_here(spec, RewardSettings(deadline=content["deadline"]), items)
    faulthandler.cancel_dump_traceback_later()
    for outcome in outcomes:
        print(f"now: {outcome.kind.value} {'' if outcome.value is None else outcome.value} ({outcome.seconds:.3f} s)\n{outcome.detail}")
    return EXIT_FAILED if any(outcome.kind.failed for outcome in outcomes) else EXIT_DONE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
