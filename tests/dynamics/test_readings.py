"""Readings of orbits against maps whose exponents and limit sets are known."""

import math

import pytest
import torch
from support.maps import Map, draws, linear, logistic, rotation, uniform

import fmprobe
from fmprobe.dynamics.dimension import effective_dimensions
from fmprobe.dynamics.orbits import Status
from fmprobe.dynamics.readings import Readings, Regime

N = 40
MEET = "neighbouring orbits approach each other"


def henon(z):
    return torch.stack([1 - 1.4 * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], 1)


def circle(z):
    """A circle map below the critical coupling: a rotation in other coordinates, so that its exponent is 0."""
    return (z + (5**0.5 - 1) / 2 + 0.8 / (2 * math.pi) * torch.sin(2 * math.pi * z)) % 1


def twist(z):
    """Circles that turn at different rates: neighbours part in proportion to time, and the exponent is 0."""
    return torch.stack([(z[:, 0] + z[:, 1]) % 1, z[:, 1]], 1)


def delayed(z):
    """The delayed logistic map past its Neimark-Sacker bifurcation: an invariant circle that attracts."""
    return torch.stack([2.1 * z[:, 0] * (1 - z[:, 1]), z[:, 0]], 1)


def read(f: Map, starts: torch.Tensor, steps: int = 100) -> Readings:
    found = fmprobe.find_attractors(f, starts=starts, max_steps=60, progress=False)
    return fmprobe.read_orbits(f, found, cap=N, steps=steps)


STARTS = {
    "rotation": (rotation(0.137), draws(N, 2)),
    "circle map": (circle, uniform(N)),
    "twist": (twist, torch.rand(N, 2, generator=torch.Generator().manual_seed(1))),
    "delayed logistic": (delayed, 0.5 + 0.05 * draws(N, 2)),
    "logistic at 4": (logistic(4), uniform(N)),
    "henon": (henon, 0.02 * draws(N, 2)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("name", list(STARTS)[:4])
def test_no_chaos_is_found_on_a_torus(name, steps, dtype):
    """At a coverage of 95.45%, at most one in twenty is called anything else."""
    f, starts = STARTS[name]
    found = read(f, starts.to(dtype), steps=steps)
    assert found.counts()["quasi-periodic"] >= 0.95 * N, found.counts()
    assert found.regime is Regime.QUASI_PERIODIC
    assert "neither part nor meet" in found.words


@pytest.mark.parametrize("steps", [20, 100])
@pytest.mark.parametrize("name", list(STARTS)[:4])
def test_few_orbits_on_a_torus_are_not_chaotic_together(name, steps):
    f, starts = STARTS[name]
    parts = [read(f, part.double(), steps=steps) for part in starts.split(4)]
    assert sum(part.regime is Regime.QUASI_PERIODIC for part in parts) >= len(parts) - 1
    assert all(part.together is not Regime.CHAOTIC for part in parts)


def test_short_orbits_that_are_chaotic_together_say_so():
    """At 3.58 the exponent of the logistic map is 0.11, which 40 steps of one orbit rarely tell from 0."""
    found = read(logistic(3.58), uniform(N).double(), steps=40)
    assert found.counts()["quasi-periodic"] > N / 2
    assert found.together is found.regime is Regime.CHAOTIC
    assert found.words.startswith(f"{N} of the {N} starts are chaotic by their exponents together, though not each ")
    assert found.to_dict()["regime"] == "chaotic"


def test_a_few_chaotic_orbits_do_not_make_the_others_chaotic():
    def f(z):
        kind, x = z[:, :1], z[:, 1:]
        return torch.cat([kind, torch.where(kind < 1, circle(x), 4 * x * (1 - x))], 1)

    starts = torch.cat([torch.tensor([0.0, 0.0, 0.0, 1.0]).repeat(5)[:, None], uniform(20)], 1).double()
    found = read(f, starts)
    assert found.counts() | {"quasi-periodic": 15, "chaotic": 5} == found.counts()
    assert (found.together, found.regime) == (None, Regime.QUASI_PERIODIC)


@pytest.mark.parametrize(("name", "exact"), [("logistic at 4", math.log(2)), ("henon", 0.41922)])
def test_chaos_is_found_and_its_exponent_lies_in_the_interval(name, exact):
    f, starts = STARTS[name]
    found = read(f, starts.double())
    assert found.counts()["chaotic"] == N
    assert found.interval[0] - 0.01 <= exact <= found.interval[1] + 0.01
    assert found.median == pytest.approx(exact, abs=0.05)
    assert 0 < found.standard_error < 0.1
    assert found.words.startswith(f"{N} of the {N} starts are chaotic: neighbouring orbits part by a factor of ")


@pytest.mark.parametrize("rate", [0.9, 0.99])
def test_a_contraction_that_ran_out_of_steps_is_still_settling(rate):
    found = read(linear(rate, 0.5), 1e4 * (1 + draws(N, 2).abs()).double())
    assert found.counts()["still settling"] == N
    assert torch.allclose(found.exponents, torch.tensor(math.log(rate)).double(), atol=1e-6)
    assert f"{MEET} by a factor of" in found.words


@pytest.mark.parametrize("steps", [21, 100])
def test_a_cycle_has_the_exponent_of_its_multiplier(steps):
    """Of the logistic map at r, the points of the 2-cycle have the multiplier 4 + 2r - r^2, here -0.16 (May 1976)."""
    found = read(logistic(3.2), uniform(N).double(), steps=steps)
    assert found.counts()["cycle"] == N
    assert torch.allclose(found.exponents, torch.tensor(math.log(0.16) / 2).double(), atol=1e-6)
    assert found.standard_errors.max() < 1e-6


def test_what_settled_has_the_logarithm_of_the_spectral_radius_and_is_not_followed():
    attractors = fmprobe.find_attractors(linear(0.6, 0.3), starts=draws(5, 2), progress=False)
    found = fmprobe.read_orbits(pytest.fail, attractors)
    assert found.counts()["settled"] == 5
    assert found.exponents.tolist() == pytest.approx([math.log(0.6)] * 5, abs=1e-3)
    assert found.standard_errors.isnan().all()
    assert (len(found.followed), found.method) == (0, None)
    told = found.to_dict()
    assert (told["regime"], told["standard_error"], told["measured"], told["read"]) == ("settled", None, 0, 5)
    assert told["interval"] == pytest.approx([math.log(0.6)] * 2, abs=1e-3)
    assert told["words"] == f"5 of the 5 starts settled: {MEET} by a factor of 0.6 a step."


def test_a_radius_that_is_not_known_gives_no_exponent_and_a_radius_of_zero_gives_minus_infinity():
    starts = draws(8, 2)
    unknown = fmprobe.find_attractors(linear(0.6, 0.3), starts=starts, stability_cap=0, progress=False)
    found = fmprobe.read_orbits(linear(0.6, 0.3), unknown)
    assert found.exponents.isnan().all()
    assert (found.to_dict()["median"], found.to_dict()["interval"]) == (None, [None, None])
    assert found.words == "8 of the 8 starts settled."
    constant = read(lambda z: 0 * z + 1, starts)
    assert (constant.exponents == -math.inf).all()
    assert (constant.median, constant.interval) == (-math.inf, (-math.inf, -math.inf))
    assert constant.to_dict()["median"] is None


def mixed(z):
    """By the first coordinate, which stays: a contraction, the logistic map at 4, a map that grows without bound."""
    kind, x = z[:, :1], z[:, 1:]
    moved = torch.where(kind < 1, x / 2, torch.where(kind < 2, 4 * x * (1 - x), 1e3 * x + 1))
    return torch.cat([kind, moved], 1)


def test_the_summary_is_over_the_starts_before_the_first_that_was_not_measured():
    """Three of four starts are chaotic. Settled ones need no measuring, and must not count for more because of that."""
    kind = torch.tensor([0.0, 1.0, 1.0, 1.0]).repeat(6)[:, None]
    starts = torch.cat([kind, 0.1 + 0.8 * uniform(24)], 1).double()
    attractors = fmprobe.find_attractors(mixed, starts=starts, max_steps=60, progress=False)
    found = fmprobe.read_orbits(mixed, attractors, cap=5)
    assert found.followed.tolist() == [1, 2, 3, 5, 6]
    assert found.read == 7
    assert found.counts() | {"settled": 6, "chaotic": 5, "not measured": 13} == found.counts()
    assert found.regime is Regime.CHAOTIC
    assert found.words.startswith("5 of the first 7 starts are chaotic")
    none = fmprobe.read_orbits(mixed, attractors, cap=0)
    assert (none.read, none.regime) == (1, Regime.SETTLED)


def test_no_reading_at_all_says_so():
    found = fmprobe.read_orbits(
        logistic(4), fmprobe.find_attractors(logistic(4), starts=uniform(3), max_steps=60, progress=False), cap=0
    )
    assert (found.read, found.regime, found.words) == (0, None, "No start has a reading.")
    assert found.to_dict()["regime"] is None


def test_orbits_that_leave_every_bound_are_diverged_and_spoil_no_other():
    starts = torch.cat([torch.tensor([1.0, 3.0, 1.0])[:, None], uniform(3)], 1).double()
    found = read(mixed, starts)
    assert found.regimes.tolist() == [Regime.CHAOTIC, Regime.DIVERGED, Regime.CHAOTIC]
    assert found.exponents.isnan().tolist() == [False, True, False]


def test_an_orbit_that_diverges_while_it_is_followed_is_diverged():
    def f(z):
        step = z[:, 1:] + 1
        return torch.cat([torch.where(step > 80, torch.inf, (z[:, :1] + 0.381966) % 1), step], 1)

    attractors = fmprobe.find_attractors(f, starts=torch.tensor([[0.3, 0.0]]), max_steps=60, progress=False)
    assert attractors.orbits.status.tolist() == [Status.WANDERING]
    assert fmprobe.read_orbits(f, attractors).regimes.tolist() == [Regime.DIVERGED]


def test_a_reading_depends_on_the_seed_and_the_number_of_a_start_alone():
    attractors = fmprobe.find_attractors(henon, starts=0.02 * draws(9, 2).double(), max_steps=60, progress=False)
    whole, parts = (fmprobe.read_orbits(henon, attractors, batch_size=size) for size in (256, 2))
    assert torch.equal(whole.exponents, parts.exponents)
    assert (whole.interval, whole.words) == (parts.interval, parts.words)
    fewer = fmprobe.read_orbits(henon, attractors, cap=4)
    assert torch.equal(fewer.exponents[:4], whole.exponents[:4])
    assert fewer.exponents[4:].isnan().all()


def test_few_exponents_give_their_range():
    found = read(logistic(4), uniform(5).double())
    assert found.interval == (found.exponents.min().item(), found.exponents.max().item())


def test_no_starts_have_no_readings():
    found = read(henon, draws(0, 2))
    assert (len(found), found.read, found.words) == (0, 0, "No start has a reading.")


def test_the_effective_dimension_counts_the_directions_of_a_cloud():
    turn = torch.linspace(0, 2 * math.pi, 41)[:40]
    ring = torch.stack([turn.cos(), turn.sin(), 0 * turn], 1)
    line = torch.linspace(0, 1, 40)[:, None] * torch.tensor([1.0, 2.0, 3.0])
    within, pooled = effective_dimensions([ring, line + 5])
    assert within == pytest.approx([2, 1], abs=1e-5)
    values = torch.linalg.eigvalsh(torch.cov(torch.cat([ring, line + 5]).T))
    assert pooled == pytest.approx(float(values.sum() ** 2 / values.square().sum()), rel=1e-5)


def test_the_effective_dimension_in_many_dimensions_and_at_a_point():
    cloud = draws(20, 3000).reshape(20, 3, 1000)
    values = torch.linalg.svdvals((cloud.flatten(1) - cloud.flatten(1).mean(0)).double()).square()
    within, pooled = effective_dimensions([cloud])
    assert within == pytest.approx([float(values.sum() ** 2 / values.square().sum())])
    assert within == [pooled]
    assert pooled < 19
    assert math.isnan(effective_dimensions([torch.ones(5, 2) / 3])[1])
    assert math.isnan(effective_dimensions([])[1])


@pytest.mark.parametrize("period", [40, 100, 150])
def test_a_cycle_has_the_exponent_of_whole_periods_or_none(period):
    """Half of the period contracts by 1/8, half by 7/8: a part of it has any mean between the two."""

    def f(z):
        place = z[:, 0].round().detach()
        factor = torch.where(place < period // 2, 0.125, 0.875).to(z)
        return torch.stack([(place + 1) % period, 1 + factor * (z[:, 1] - 1)], 1)

    starts = torch.tensor([[0, 1], [period // 3, 16], [2 * period // 3, 31]], dtype=torch.float64)
    found = fmprobe.find_attractors(f, starts=starts, tol=1e-8, max_steps=3000, progress=False)
    readings = fmprobe.read_orbits(f, found, steps=100, method="jvp", progress=False)
    assert (readings.regimes == Regime.CYCLE).all()
    if period > 100:
        assert readings.exponents.isnan().all()
        assert math.isnan(readings.median)
    else:
        exact = (math.log(0.125) + math.log(0.875)) / 2
        assert readings.exponents.tolist() == pytest.approx([exact] * 3, abs=1e-9)
