#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [--all] [arguments of pytest]. Those marked slow only with --all. Several at once, each on one thread.
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../launch/setup.sh"
prepare test

marks=(-m "not slow")
arguments=()
for argument in "$@"; do
    if [[ $argument == --all ]]; then marks=(); else arguments+=("$argument"); fi
done
cd -- "$ROOT"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$PYTHON" -m pytest --numprocesses=logical --maxprocesses=4 --no-loadscope-reorder "${marks[@]}" "${arguments[@]}"
