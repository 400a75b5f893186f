"""A whole run of `fmprobe probe` on a map whose speed is known, in processes that can be killed."""

import multiprocessing
import os
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest import mock

import torch

import fmprobe
from fmprobe.cli import main
from fmprobe.files import read_json
from fmprobe.sharing import team
from support.maps import double_well

STARTS = 48


def slow_model(seconds: float) -> fmprobe.Autoencoder:
    """The double well in four dimensions, `seconds` a call."""

    def step(z: torch.Tensor) -> torch.Tensor:
        time.sleep(seconds)
        return double_well(z)

    shape = (1, 2, 2)
    model = fmprobe.from_functions(step, lambda z: z, image_shape=shape, latent_shape=shape, name="slow")
    model.provenance |= {"fingerprint": "slow", "revision": None}
    return model


def command(*arguments: object) -> int:
    """The command line in this process; returns its exit code."""
    with mock.patch.object(sys, "argv", ["fmprobe", *map(str, arguments)]):
        try:
            main()
        except SystemExit as end:
            return int(end.code or 0)
    return 0


def finished(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command line in this process: its exit code, and what it printed, warnings included."""

    def warn(*warning: Any, **_: Any) -> None:
        sys.stderr.write(warnings.formatwarning(*warning[:4]))

    streams = redirect_stdout(StringIO()), redirect_stderr(StringIO())
    with streams[0] as out, streams[1] as err, mock.patch("warnings.showwarning", warn):
        code = command(*arguments)
    return subprocess.CompletedProcess([*map(str, arguments)], code, out.getvalue(), err.getvalue())


def probe(out: Path, *options: object, seconds: float = 0.0, n: int = STARTS) -> int:
    """`fmprobe probe` with these options on the slow model."""
    with mock.patch("fmprobe.runs.models.load_model", return_value=slow_model(seconds)):
        return command("probe", "slow", "-o", out, "-n", n, "--max-steps", 200, "--batch-size", 8, *options)


def results_of(out: Path) -> dict[str, Any]:
    """What results.json says, times left out."""
    results = read_json(out / "results.json")
    for name in ("seconds", "total_seconds", "date", "command"):
        results.pop(name)
    results["protocol"].pop("seconds_per_row")
    return results


def shards_of(out: Path) -> set[Path]:
    return set((out / "shards").glob("*.safetensors"))


def spawn(target: Callable[..., int], *arguments: Any, log: Path | None = None, **named: Any) -> BaseProcess:
    """A process that exits with what `target` returns, forked so that nothing is imported again."""

    def child() -> None:
        sys.stdout = sys.stderr = open(log or os.devnull, "a", buffering=1)  # noqa: SIM115
        team.cache_clear()
        raise SystemExit(target(*arguments, **named))

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    return process


def launch(processes: int, target: Callable[..., int], *arguments: Any, **named: Any) -> list[BaseProcess]:
    """Forked processes that find one another as a launcher's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started = []
    for rank in range(processes):
        place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        with mock.patch.dict(os.environ, address | place):
            started.append(spawn(target, *arguments, **named))
    return started


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.002)
