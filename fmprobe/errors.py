"""What went wrong that the caller can mend."""


class InputError(ValueError):
    """Bad input: one line that names the thing, what was expected and what to do. The command line exits with 2."""
