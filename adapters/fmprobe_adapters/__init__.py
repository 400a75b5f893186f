"""Adapters: one file a family of models, each registered as an entry point of the group `fmprobe.adapters`."""
