"""The command line: one file a subcommand."""


def main() -> None:
    raise SystemExit("not yet")
