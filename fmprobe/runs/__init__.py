"""Runs: the folder of a command, its parts, the processes that share it, and its end."""
