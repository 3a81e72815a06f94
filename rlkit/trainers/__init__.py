"""The loop of every run, and what one step is online and offline."""
