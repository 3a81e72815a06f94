#!/usr/bin/env bash
# Trains on this machine: bash launch/local.sh recipe=grpo_math [key=value ...]
# The first call creates the environment (launch/setup.sh). With several GPUs there is one process for each; RLKIT_RANKS sets the number.
set -euo pipefail
# shellcheck source=launch/setup.sh
. "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"
# shellcheck disable=SC2119 # its arguments are extras, not those of the recipe
prepare

if ((GPUS > 1)) && [[ -v CUDA_VISIBLE_DEVICES ]]; then
    visible=${CUDA_VISIBLE_DEVICES//[^,]/}
    GPUS=$((${#visible} + 1))
fi
kind=gpus
if ((GPUS == 0)); then kind=workers; fi
ranks=${RLKIT_RANKS:-$GPUS}
if ((ranks > 1)); then
    exec "$PYTHON" -m launch.local "${kind}_per_node=$ranks" "$@"
fi
exec "$PYTHON" -m rlkit.run "$@"
