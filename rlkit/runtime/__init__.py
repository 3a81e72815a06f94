"""The base of every process of a run: ranks, GPUs, signals, heartbeat, checkpoints, paths."""
