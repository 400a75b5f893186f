"""What went wrong that the caller can mend."""


class InputError(ValueError):
    """Bad input: one line that names the thing, what was expected and what to do. The command line exits with 2."""


class WriteError(InputError, OSError):
    """A file that could not be written: a full disk, or no right to."""

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(
            f"cannot write {path} ({error.strerror or error}): make room, or name another folder with --out, and run "
            "the command again; it goes on from what is there"
        )
        self.strerror, self.errno = error.strerror or str(error), error.errno

    def __str__(self) -> str:  # not the numbered line of an OSError
        return str(self.args[0])
