"""Ended orbits on disk while a run goes on: shards, each written whole, which any number of processes leave in a
folder.

A shard holds orbits in the order in which they ended, and the starts that they belong to. So its name, the lowest of
these starts, is unique. To resume is to compute what no shard holds.
"""

import math
import mmap
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fmprobe.dynamics.engine import Ended
from fmprobe.dynamics.orbits import Orbits
from fmprobe.dynamics.paging import forget, lies_in
from fmprobe.errors import InputError, WriteError
from fmprobe.files import write_atomically

SHARDS = 32  # approximate number of shards of a run
BYTES = 2**25  # largest size of the ends in one shard, in bytes
ROWS = ("steps", "residuals", "status", "errors", "periods")  # the tensors of `Orbits` after the ends, in its order


def rows_of_a_shard(n: int, size: int) -> int:
    """Number of orbits in one shard of a run of `n`, for ends of `size` values."""
    return max(1, min(-(-n // SHARDS), BYTES // (4 * size)))


class Shards:
    """The shards of a run.

    Args:
        folder: folder that holds them.
        n: number of starts of the run.
        latent_shape: shape of a latent.
        rows: number of orbits in a shard.
    """

    def __init__(self, folder: Path, n: int, latent_shape: tuple[int, ...], rows: int) -> None:
        self.folder, self.n, self.latent_shape, self.rows = folder, n, latent_shape, rows
        self._waiting: list[dict[str, Tensor]] = []
        self._checks = 0

    def missing(self) -> Tensor:
        """The starts that no shard holds, in order. A shard that cannot be read is deleted."""
        left = torch.ones(self.n, dtype=torch.bool)
        for path in self._paths():
            try:
                with safe_open(path, "pt") as file:
                    left[file.get_tensor("index")] = False
            except (SafetensorError, OSError, IndexError):
                path.unlink(missing_ok=True)
        return left.nonzero()[:, 0]

    def keep(self, ended: Ended, **more: Tensor) -> int:
        """Take in orbits, and further rows `more` of them. A shard is written when it is full.

        Returns:
            How many orbits were written.
        """
        rows = {name: getattr(ended, name).cpu() for name in ("index", "ends", "evaluations", *ROWS)}
        self._waiting.append({**rows, **more})
        self._checks += ended.check_evaluations
        return self.flush() if sum(len(part["index"]) for part in self._waiting) >= self.rows else 0

    def flush(self) -> int:
        """Write what has been taken in since the last shard.

        Returns:
            How many orbits were written.
        """
        if not self._waiting:
            return 0
        rows = {name: torch.cat([part[name] for part in self._waiting]) for name in self._waiting[0]}
        content = save({name: values.contiguous() for name, values in rows.items()}, {"checks": str(self._checks)})
        path = self.folder / f"{int(rows['index'].min()):09d}.safetensors"
        write_atomically(path, lambda temporary: temporary.write_bytes(content))
        self._waiting, self._checks = [], 0
        return len(rows["index"])

    def gather(self, protocol: dict[str, Any]) -> tuple[Orbits, dict[str, Tensor]]:
        """All orbits in the order of their starts, and the further rows. The ends lie in a file without a name."""
        ends = scratch((self.n, *self.latent_shape), self.folder)
        rows: dict[str, Tensor] = {}
        checks, there = 0, torch.zeros(self.n, dtype=torch.bool)
        for part, part_checks in self._read():
            index = part.pop("index")
            there[index] = True
            ends[index] = part.pop("ends")
            forget(ends)
            for name, values in part.items():
                whole = rows.setdefault(name, values.new_zeros(self.n, *values.shape[1:]))
                whole[index] = values
            checks += part_checks
        if lost := int((~there).sum()):
            raise InputError(f"{lost} of {self.n} starts are missing from {self.folder}: run the same command again")
        evaluations, steps = int(rows["evaluations"].sum()), int(rows["steps"].sum())
        orbits = Orbits(
            ends,
            *(rows.pop(name) for name in ROWS),
            evaluations=evaluations,
            surplus=evaluations - steps,
            check_evaluations=checks,
            protocol=protocol,
        )
        return orbits, rows

    def _paths(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors"))

    def _read(self) -> Iterator[tuple[dict[str, Tensor], int]]:
        for path in self._paths():
            with safe_open(path, "pt") as file:
                yield {name: file.get_tensor(name) for name in file.keys()}, int(file.metadata()["checks"])  # noqa: SIM118


def scratch(shape: tuple[int, ...], folder: Path) -> Tensor:
    """A float32 tensor on disk instead of in memory. Its file has no name, so that nothing is left of it.

    Raises:
        WriteError: the disk has no room for it.
    """
    size = 4 * math.prod(shape)
    if size == 0:
        return torch.zeros(shape)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder) as file:
        try:
            # If a file with holes ran out of room, a signal would end the process.
            os.posix_fallocate(file.fileno(), 0, size) if hasattr(os, "posix_fallocate") else file.truncate(size)
        except OSError as error:
            raise WriteError(folder, error) from error
        mapped = mmap.mmap(file.fileno(), size)
    return lies_in(torch.frombuffer(mapped, dtype=torch.float32).reshape(shape), mapped)
