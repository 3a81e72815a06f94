#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [--all] [arguments of pytest]. Those marked slow only with --all.
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
exec "$PYTHON" -m pytest "${marks[@]}" "${arguments[@]}"
