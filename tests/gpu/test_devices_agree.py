"""Public entries on another device, held to the CPU. Where there is no CUDA device the other device is the CPU again.

Float32 sums are added in another order on a graphics card, and TF32 is off. So values may differ by `VALUES`. A latent
that orbits settled to lies within the tolerance of the run, so that `ENDS` is wider.
"""

from collections.abc import Callable
from importlib.resources import files
from itertools import pairwise
from typing import Any

import pytest
import torch
from support.surrogates import narrow, quick, tiny_encoder
from torch.utils._python_dispatch import TorchDispatchMode

import fmprobe
from fmprobe.demo import training_digits
from fmprobe.dynamics.working import WorkingBatch

VALUES: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-4}
ENDS: dict[str, Any] = {"rtol": 0, "atol": 0.02}
DEMO = str(files("fmprobe.demo") / "vit-mae-digits")
small = pytest.fixture(narrow, scope="module", autouse=True)
CARD = pytest.param("cuda", marks=pytest.mark.gpu)


@pytest.fixture(params=["cpu", CARD])
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


@pytest.fixture
def models(device: torch.device) -> tuple[fmprobe.Autoencoder, fmprobe.Autoencoder]:
    """The demo model on the CPU and on the other device."""
    return fmprobe.load(DEMO, device="cpu"), fmprobe.load(DEMO, device=str(device))


@pytest.fixture(scope="module")
def digits() -> torch.Tensor:
    return training_digits()[0]


def alike(found: Any, expected: Any, **tolerance: float) -> None:
    """Tensors, numbers, lists and dicts of them are equal within a tolerance; what else there is, is equal."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for name in expected.keys() - {"seconds", "evaluations", "surplus", "device"}:
            alike(found[name], expected[name], **tolerance)
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            alike(one, other, **tolerance)
    elif isinstance(expected, torch.Tensor):
        torch.testing.assert_close(found.cpu(), expected.cpu(), equal_nan=True, **tolerance)  # type: ignore[arg-type]
    elif isinstance(expected, float):
        torch.testing.assert_close(found, expected, equal_nan=True, **tolerance)  # type: ignore[arg-type]
    else:
        assert found == expected


ENTRIES: dict[str, Callable[[fmprobe.Autoencoder, torch.Tensor], Any]] = {
    "encode": lambda model, digits: model.encode(digits),
    "decode": lambda model, digits: model.decode(model.encode(digits)),
    "latent_map": lambda model, digits: model.latent_map(model.sample_latents(9, 0)),
    "lyapunov_exponents": lambda model, digits: (
        fmprobe.lyapunov_exponents(model, model.sample_latents(2, 0), 2, steps=4).values
    ),
    "spectral radius": lambda model, digits: fmprobe.find_attractors(model, 12, tol=1e-8).spectral_radius,
    "memorization": lambda model, digits: fmprobe.probe_memorization(model, digits[:24], n=12).levels,
    "weights": lambda model, digits: fmprobe.probe_weights(
        model, fmprobe.find_attractors(model, 12), digits[:8], [1, 4]
    ).to_dict()["own"],
    "contraction": lambda model, digits: fmprobe.probe_contraction(model, n=8, starts=2).to_dict(),
    "residuals": lambda model, digits: fmprobe.probe_residuals(model, digits[:4], steps=4).to_dict(),
    "field": lambda model, digits: fmprobe.vector_field(model, "attractors", resolution=3).norms,
    "matching pursuit": lambda model, digits: fmprobe.orthogonal_matching_pursuit(
        model.sample_latents(40, 1).flatten(1), model.sample_latents(5, 2).flatten(1), 6
    ).reconstruct(6),
    "scores": lambda model, digits: (
        fmprobe.TrajectoryDetector(model, max_steps=4).fit(digits[:24], progress=False).scores(digits[:24].flip(3))
    ),
}


@pytest.mark.parametrize("name", ENTRIES)
def test_an_entry_gives_what_it_gives_on_the_cpu(name, models, digits):
    expected, found = (ENTRIES[name](model, digits) for model in models)
    alike(found, expected, **(ENDS if name in ("weights", "memorization", "scores", "field") else VALUES))


def test_attractors_and_basins_are_those_of_the_cpu(models):
    expected, found = (fmprobe.find_attractors(model, 64) for model in models)
    assert found.latents.device.type == models[1].device.type
    assert (found.labels.cpu() == expected.labels).double().mean() > 0.95  # a start at the edge of a basin may differ
    assert abs(len(found) - len(expected)) <= 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_f_stays_near_to_itself(dtype, models):
    plain = models[1]
    if plain.device.type == "cpu" and dtype == torch.float16:
        pytest.skip("autocast to float16 is for graphics cards")
    name = str(dtype).removeprefix("torch.")
    lower = fmprobe.load(DEMO, device=str(plain.device), autocast=name)
    starts = plain.sample_latents(16, 0)
    off = (lower.latent_map(starts) - plain.latent_map(starts)).flatten(1).norm(dim=1)
    assert float((off / plain.latent_map(starts).flatten(1).norm(dim=1)).median()) < 0.05


def test_a_decoder_is_fitted_on_the_device(device):
    model = tiny_encoder().to(device)
    decoder = quick(model)
    assert model.with_decoder(decoder).latent_map(model.sample_latents(3, 0)).device.type == device.type


def test_a_network_is_trained_on_the_device(device):
    losses = []
    for place in ("cpu", device):
        torch.manual_seed(0)
        network = fmprobe.DenseAutoencoder(2, 8, (1, 4, 4)).to(place)
        images = torch.rand(16, 1, 4, 4, generator=torch.Generator().manual_seed(1)).to(place)
        losses.append(fmprobe.train_autoencoder(network, images, epochs=3, batch_size=8, progress=False))
    alike(losses[1], losses[0], **VALUES)


class Reads(TorchDispatchMode):
    """Counts the operations after which the host must wait for the device."""

    waits = ("_local_scalar_dense", "nonzero", "is_nonzero", "masked_select", "equal")
    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func.overloadpacket.__name__ in self.waits
        return func(*args, **(kwargs or {}))


def test_between_two_looks_the_host_never_waits(device, monkeypatch):
    """Every eighth step looks for orbits that have ended; in the steps between nothing is read from the device."""
    seen = []
    starts = torch.rand(16, 2, generator=torch.Generator().manual_seed(0)).to(device)
    if device.type == "cpu":  # where looking is free, the engine and, of float32, norms look more often
        monkeypatch.setattr(WorkingBatch, "_may_hold", lambda self, mask: True)
        starts = starts.double()

    def logistic(z: torch.Tensor) -> torch.Tensor:
        seen.append(reads.count)
        return 4 * z * (1 - z)

    with Reads() as reads:
        fmprobe.iterate(logistic, starts, tol=0.0, max_steps=64, check_every=8)
    between = [after - before for before, after in pairwise(seen)]
    assert len(seen) >= 64
    assert [count for step, count in enumerate(between, 1) if step % 8] == [0] * (len(between) - len(between) // 8)
