"""What a run needs of memory and time: estimated before it starts, measured while it goes on."""
