"""Errors that the caller can fix."""


class InputError(ValueError):
    """Bad input: one line that names the thing, what was expected and what to do. The command line exits with 2."""


class SourceError(InputError):
    """A whole source of images gives no more, as when the connection broke: no single image is to blame."""


class WriteError(InputError, OSError):
    """A file could not be written, because the disk is full or permission is missing."""

    def __init__(self, path: object, error: OSError) -> None:
        super().__init__(
            f"cannot write {path} ({error.strerror or error}): make room, or name another folder with --out, and run "
            "the command again; it continues from what is there"
        )
        self.strerror, self.errno = error.strerror or str(error), error.errno

    def __str__(self) -> str:  # that of OSError would begin with the error number
        return str(self.args[0])
