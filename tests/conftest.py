"""Fixtures that several rooms share."""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from unittest import mock

# One thread a process: the tests run in two processes, and threads of both would wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing asks a hub; its libraries read this once, when they are imported

import pytest
import torch
from support.checkpoints import TINY, save_dinov2
from support.once import Once
from support.quick import drawn, made_once, short_readings, sketched
from support.written import Written

# Files that take longest, and so begin: two processes end at about the same time if short files are the last.
LONGEST = ("recipes", "families", "notebooks", "artefacts_on_hub", "hub", "real_models", "browser", "html", "nodes")
ASSETS = Path(os.environ.get("FMPROBE_TEST_ASSETS", Path(__file__).parents[2] / "shared"))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {f"test_{name}": place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(places)))
    missing = {
        "assets": None if ASSETS.is_dir() else f"needs real images and weights, and {ASSETS} is not there",
        "gpu": None if torch.cuda.is_available() else "needs a CUDA device, and there is none",
    }
    for item in items:
        for marker, reason in missing.items():
            if reason and item.get_closest_marker(marker):
                item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(scope="session")
def assets() -> Path:
    return ASSETS


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Makes a folder of the session: `once(name, fill)` calls `fill` in the first process that asks, and waits."""
    base = tmp_path_factory.getbasetemp()
    return Once(base.parent if "PYTEST_XDIST_WORKER" in os.environ else base)  # xdist gives each process a folder in it


@pytest.fixture(scope="session")
def tiny(once: Once) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint by its name in `support.checkpoints.TINY`. Copy it before you change it."""
    return cache(lambda name: once(f"tiny/{name}", TINY[name]))


@pytest.fixture(scope="session")
def tiny_mae(tiny: Callable[[str], Path]) -> Path:
    return tiny("mae")


@pytest.fixture(scope="session")
def tiny_dinov2(once: Once) -> Path:
    return once("tiny/dinov2-28", save_dinov2)


@pytest.fixture(scope="session")
def written(once: Once) -> Written:
    """The folder of a run that commands wrote, by its name in `support.written.RUNS`. Copy it before you change it."""
    return Written(once)


@pytest.fixture(scope="session", autouse=True)
def private_cache(once: Once) -> Iterator[None]:
    """Decoders that a test fits go to a folder of this session."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(once.root / "cache"))
        yield


@pytest.fixture(scope="session", autouse=True)
def seldom_collected() -> None:
    """What imports have left is not looked through for garbage again and again: a tenth of the time of all tests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 20)


@pytest.fixture(scope="session", autouse=True)
def small_diagram() -> Iterator[None]:
    """The diagram that `probe` begins with on an encoder without a decoder is small, in the tests' own process."""
    from fmprobe.probes.prototypes import closed_form

    with mock.patch.multiple(closed_form, IMAGES=24, KS=(2, 6), STARTS=4, MAX_STEPS=10):
        yield


@pytest.fixture(scope="session", autouse=True)
def quick_runs() -> Iterator[None]:
    """A command takes few steps for an exponent and draws no figure; `support.quick` gives the usual ones."""
    with short_readings(), sketched(), made_once():
        yield


@pytest.fixture
def draws() -> Iterator[None]:
    """The figures of a test are drawn."""
    with drawn():
        yield


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
