"""The command `rlkit`: one file per command, registered in main.py."""
