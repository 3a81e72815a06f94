"""Rewards by hand.

python -m rlkit.rewarding try REWARD ... --rows FILE [--n 20]   what rewards say about rows of a JSONL file, in a table
python -m rlkit.rewarding replay FILE                           call a reward once more on the sample that stopped a run, in this process
"""

from __future__ import annotations

import argparse
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
from rlkit.rewarding.trial import read_rows, trial


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done; 1 where a replayed reward fails again; 2 for a mistake of the user's."""
    given = _parser().parse_args(arguments)
    try:
        return replay(given.file) if given.command == "replay" else attempt(given.rewards, given.rows, given.n)
    except UserError as error:
        print(error, file=sys.stderr)
        return EXIT_USER


def attempt(paths: list[str], file: Path, count: int) -> int:
    """Print the table of a trial."""
    names = [path.rpartition(":")[2].rpartition(".")[2] for path in paths]
    specs = [RewardSpec(name if names.count(name) == 1 else path, path) for name, path in zip(names, paths, strict=True)]
    print(trial(specs, RewardSettings(), read_rows(file, count)))
    return EXIT_DONE


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m rlkit.rewarding")
    commands = parser.add_subparsers(dest="command", required=True)
    trying = commands.add_parser("try", help="what rewards say about rows of a JSONL file")
    trying.add_argument("rewards", nargs="+", help="a shipped name, my_rewards.py:function, or package.module:function")
    trying.add_argument("--rows", type=Path, required=True, help="JSONL: data rows, or samples with a completion")
    trying.add_argument("--n", type=int, default=20, help="how many rows (20)")
    replaying = commands.add_parser("replay", help="call a reward again on the sample that stopped a run")
    replaying.add_argument("file", type=Path)
    return parser


if __name__ == "__main__":
    sys.exit(main())
