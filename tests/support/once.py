"""What all processes of a test session share: folders that the first one that needs them fills."""

import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


class Once:
    """Folders below `root` by name, each filled once however many processes ask for it.

    Attributes:
        root: the folder of the session.
    """

    def __init__(self, root: Path) -> None:
        self.root = root

    def __call__(self, name: str, fill: Callable[[Path], object]) -> Path:
        """The folder of this name, an empty one that `fill` was called with; another process may have done it."""
        folder = self.root / "shared" / name
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_name(f"{folder.name}.lock")):
            done = folder.with_name(f"{folder.name}.done")
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # where an earlier attempt failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder
