#!/usr/bin/env bash
# Runs the tests: bash tests/run.sh [--all | --nightly PART] [arguments of pytest]. Several at once, each on one thread.
#   (nothing)        the quick ones, in a few minutes
#   --all            those marked slow too: what .ci/run runs
#   --nightly PART   those marked nightly(part="PART"), and no others
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/../launch/setup.sh"
prepare test

marks="not slow and not nightly"
arguments=()
while (($#)); do
    case $1 in
    --all) marks="not nightly" ;;
    --nightly)
        [[ -n ${2:-} ]] || refuse "--nightly needs the name of a part"
        marks="nightly(part='$2')"
        shift
        ;;
    *) arguments+=("$1") ;;
    esac
    shift
done
cd -- "$ROOT"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
workers=$(($(getconf _NPROCESSORS_ONLN) + 1)) # one more than cores: tests of limits and launchers mostly wait
exec "$PYTHON" -m pytest --numprocesses="$workers" --maxprocesses=4 --no-loadscope-reorder -m "$marks" "${arguments[@]}"
