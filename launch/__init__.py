"""Starting a run on many processes and machines: local.sh and launch.local here, launch.ray on a cluster, slurm.sbatch, kuberay.yaml."""

import sys

sys.modules.setdefault("launch", sys.modules[__name__])  # a wheel carries this package as rlkit.launch
