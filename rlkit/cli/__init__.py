"""The commands of rlkit, one file a command."""
