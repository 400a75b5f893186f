"""Polishing, held to fixed points that are known."""

import pytest
import torch
from support.maps import double_well, draws, linear

from fmprobe import find_attractors
from fmprobe.dynamics.polish import anderson


def affine(rate, d, seed=0):
    """A contraction, its map in float64 arithmetic, and its fixed point."""
    generator = torch.Generator().manual_seed(seed)
    matrix = rate * torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
    shift = torch.randn(d, generator=generator, dtype=torch.float64)
    exact = torch.linalg.solve(torch.eye(d, dtype=torch.float64) - matrix, shift)
    return lambda z: z @ matrix.to(z).T + shift.to(z), exact


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_slow_fixed_point_is_found_to_rounding(dtype):
    d, rate = 4, 0.99
    f, exact = affine(rate, d)
    # A sum of d products and a shift is off by at most d + 1 roundings, and so is its fixed point 1 / (1 - rate) times.
    accuracy = (d + 1) * torch.finfo(dtype).eps / 2 / (1 - rate)
    starts = draws(20, d).to(dtype)
    rough, fine = (find_attractors(f, starts=starts, polish=polish) for polish in (None, "anderson"))
    assert len(rough) == len(fine) == 1
    assert fine.polished == 1
    off = [float((found.latents[0] - exact).norm() / exact.norm()) for found in (rough, fine)]
    assert off[0] > 1e-4
    assert off[1] < accuracy
    assert (fine.latents[0] - exact).norm() <= 3 * fine.errors[0]  # of rounding, it is a standard deviation
    assert torch.equal(fine.labels, rough.labels)
    assert torch.equal(fine.orbits.ends, rough.orbits.ends)


def test_each_well_keeps_its_attractor():
    starts = draws(200, 2).clamp(-3, 3)
    rough, fine = (find_attractors(double_well, starts=starts, polish=polish) for polish in (None, "anderson"))
    assert fine.polished == len(fine) == 4
    assert torch.equal(fine.latents.sign(), rough.latents.sign())
    assert (fine.latents.abs() - 1).abs().max() < 1e-6 < (rough.latents.abs() - 1).abs().max()


def test_a_polish_that_leads_elsewhere_is_dropped(monkeypatch):
    starts = draws(50, 2).clamp(-3, 3)
    rough = find_attractors(double_well, starts=starts)
    other = lambda f, latents: (-latents.sign(), torch.zeros(len(latents)))  # noqa: E731 a fixed point, of another basin
    monkeypatch.setattr("fmprobe.dynamics.attractors.anderson", other)
    found = find_attractors(double_well, starts=starts, polish="anderson")
    assert found.polished == 0
    assert torch.equal(found.latents, rough.latents)


def test_anderson_never_makes_a_row_worse_and_takes_no_rows():
    f = linear(0.5, -0.9, 0.999)
    latents = draws(30, 3)
    polished, residual = anderson(f, latents)
    assert (residual <= (f(latents) - latents).norm(dim=1)).all()
    assert len(anderson(f, polished[:0])[0]) == 0


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="anderson"):
        find_attractors(double_well, starts=draws(2, 2), polish="newton")
