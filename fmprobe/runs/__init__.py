"""Runs: the folder of a command, its parts, its processes and its end."""
