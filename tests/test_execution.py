"""How f is evaluated: the same values by every way, fewer rows when memory runs out."""

from pathlib import Path

import pytest
import torch
from support.maps import draws

import fmprobe
from fmprobe.execution import Execution

DEMO = Path(fmprobe.__file__).parent / "demo" / "vit-mae-digits"
CPU = torch.device("cpu")


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory."), MemoryError()])
def test_rows_are_halved_until_memory_suffices_and_stay_so(error):
    sizes = []

    def f(z):
        sizes.append(len(z))
        if len(z) > 5:
            raise error
        return 2 * z

    evaluated = Execution().apply(f, CPU)
    z = draws(16, 3)
    assert torch.equal(evaluated(z), 2 * z)
    assert sizes == [16, 8, *[4] * 4]
    evaluated(z)
    assert max(sizes[6:]) == 4


def test_memory_that_does_not_suffice_for_one_row_is_an_error():
    def f(z):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with pytest.raises(torch.OutOfMemoryError):
        Execution().apply(f, CPU)(draws(3, 3))


def test_other_errors_pass():
    def f(z):
        raise RuntimeError("shapes do not fit")

    with pytest.raises(RuntimeError, match="do not fit"):
        Execution().apply(f, CPU)(draws(3, 3))


@pytest.fixture
def deterministic():
    yield fmprobe.load(DEMO, device="cpu", deterministic=True)
    torch.use_deterministic_algorithms(False)


def test_deterministic_attractors_are_the_same_bit_for_bit_in_batches_of_any_size(deterministic):
    settings = {"n": 16, "tol": 1e-5, "stability_cap": 4}
    found = [fmprobe.find_attractors(deterministic, batch_size=size, **settings) for size in (3, 8, 8)]
    for other in found[1:]:
        assert torch.equal(found[0].orbits.ends, other.orbits.ends)
        assert torch.equal(found[0].latents, other.latents)
        assert found[0].to_dict() == other.to_dict()
    assert deterministic.provenance["deterministic"] is True
    assert torch.are_deterministic_algorithms_enabled()


def test_autocast_leaves_latents_in_float32(tiny_mae):
    model, cast = (fmprobe.load(tiny_mae, device="cpu", autocast=name) for name in (None, "bfloat16"))
    z = model.sample_latents(3)
    with torch.no_grad():
        plain, lower = model.latent_map(z), cast.latent_map(z)
    assert lower.dtype == torch.float32
    assert 0 < (lower - plain).abs().max() < 0.1 * plain.abs().max()
    assert cast.provenance["autocast"] == "bfloat16"


def test_f_is_compiled_once_and_not_where_gradients_are_asked_for(monkeypatch):
    asked = []

    def compiler(f, **settings):
        asked.append(settings)
        return lambda z: f(z) + 1  # to be told from f

    monkeypatch.setattr(torch, "compile", compiler)
    evaluated = Execution(compile="inductor").apply(lambda z: 2 * z, CPU)
    z = draws(4, 2)
    assert torch.equal(evaluated(z), 2 * z)
    with torch.no_grad():
        assert torch.equal(evaluated(z), 2 * z + 1)
        evaluated(z)
    assert asked == [{"backend": "inductor", "dynamic": True}]


def test_an_unknown_backend_is_refused(tiny_mae):
    with pytest.raises(fmprobe.InputError, match="inductor"):
        fmprobe.load(tiny_mae, device="cpu", compile="fast")


def test_a_model_spread_over_devices_has_the_same_latent_map(tiny_mae):
    """The disk stands for a second device."""
    model = fmprobe.load(tiny_mae, device="cpu")
    places = {"vit.embeddings": "cpu", "vit.layers": "disk", "vit.layernorm": "cpu", "decoder": "disk"}
    spread = fmprobe.load(tiny_mae, device="cpu", device_map=places)
    z = model.sample_latents(3)
    with torch.no_grad():
        torch.testing.assert_close(spread.latent_map(z), model.latent_map(z))


def test_a_family_that_cannot_be_spread_says_so(tiny):
    with pytest.raises(fmprobe.InputError, match="device_map"):
        fmprobe.load(tiny("timm-vit"), device="cpu", device_map="auto")
