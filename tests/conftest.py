"""Fixtures that several rooms share."""

import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

# One thread a process: the tests run in two processes, and threads of both would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing asks a hub; its libraries read this once, when they are imported

import pytest
import torch
from support.checkpoints import TINY, save_dinov2, save_mae

ASSETS = Path(os.environ.get("FMPROBE_TEST_ASSETS", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if ASSETS.is_dir():
        return
    missing = pytest.mark.skip(reason=f"needs real images and weights, and {ASSETS} is not there")
    for item in items:
        if "assets" in item.keywords:
            item.add_marker(missing)


@pytest.fixture(scope="session")
def assets() -> Path:
    return ASSETS


@pytest.fixture(scope="session")
def tiny_mae(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mae(tmp_path_factory.mktemp("mae"))


@pytest.fixture(scope="session")
def tiny_dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_dinov2(tmp_path_factory.mktemp("dinov2"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its name in `support.checkpoints.TINY`, made once a session."""
    return cache(lambda name: TINY[name](tmp_path_factory.mktemp(name)))


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Decoders that a test fits go to a folder of this session."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True)
def untouched_random_state() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def untouched_signals() -> Iterator[None]:
    """A command or a recipe that runs in the tests' process leaves its own handlers."""
    kept = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in kept.items():
        signal.signal(number, handler)
