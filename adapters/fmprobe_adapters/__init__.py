"""Adapters: one file for each family of models, registered as an entry point of the group `fmprobe.adapters`."""
