"""What every process of a run stands on: ranks, signals, heartbeat, checkpoints, paths."""
