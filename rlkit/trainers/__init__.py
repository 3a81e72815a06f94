"""The stories of a run: the loop, and what a step is online and offline."""
