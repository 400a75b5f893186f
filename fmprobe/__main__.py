"""python -m fmprobe: the command line, for launchers that start a module."""

from fmprobe.cli import main

main()
