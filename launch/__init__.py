"""Starting a run on several processes and machines: local.sh and launch.local on one, launch.ray, slurm.sbatch and kuberay.yaml on many."""

import sys

sys.modules.setdefault("launch", sys.modules[__name__])  # a wheel carries this package as rlkit.launch
