"""The embedded model of `fmprobe demo`."""
