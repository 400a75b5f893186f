"""The engine, held to maps whose orbits are known exactly."""

import math
import warnings

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.maps import (
    double_well,
    draws,
    half_precision,
    intermittent,
    linear,
    logistic,
    rotation,
    uniform,
)

from fmprobe import Status, iterate
from fmprobe.dynamics.working import WorkingBatch

GOLDEN = (math.sqrt(5) - 1) / 2


def everyday_loop(f, start, tol=1e-6, max_steps=3000):
    """One latent, step by step, until the squared step is below tol: the paper's rule."""
    z = start[None]
    steps, done = 0, False
    while steps < max_steps and not done:
        after = f(z)
        done = float((after - z).square().sum()) < tol
        z, steps = after, steps + 1
    return z[0], steps


@pytest.mark.parametrize("rate", [0.3, 0.5, 0.9, 0.99])
def test_linear_maps_stop_where_the_everyday_loop_stops(rate):
    f, starts = linear(*[rate] * 8), draws(12, 8)
    orbits = iterate(f, starts, batch_size=5)
    assert orbits.counts()["converged"] == 12
    for i in range(12):
        end, steps = everyday_loop(f, starts[i])
        assert int(orbits.steps[i]) == steps
        assert torch.allclose(orbits.ends[i], end, atol=1e-6)
    assert orbits.evaluations == int(orbits.steps.sum())
    assert orbits.surplus == 0


@pytest.mark.parametrize("rate", [0.5, 0.9, 0.99, 0.999])
def test_errors_say_how_far_the_fixed_point_is(rate):
    orbits = iterate(linear(*[rate] * 8), 3 * draws(8, 8))
    true = orbits.ends.norm(dim=1)
    assert torch.allclose(orbits.errors, true, rtol=0.02)


def test_a_small_step_of_a_slow_map_is_not_closeness():
    # The step is 0.001 |z|: it falls below sqrt(1e-6) when |z| is 1.
    orbits = iterate(lambda z: 0.999 * z, 5 * draws(6, 4))
    assert orbits.converged.all()
    assert torch.allclose(orbits.errors, torch.ones(6), rtol=0.02)


@pytest.mark.parametrize(
    ("f", "exact"),
    [(lambda z: z - z**3, 0.0), (lambda z: z / (1 + z), 0.0)],
    ids=["z-z^3", "z/(1+z)"],
)
@pytest.mark.parametrize("tol", [1e-6, 1e-9])
def test_algebraic_convergence_is_not_mistaken_for_geometric(f, exact, tol):
    orbits = iterate(f, 0.2 + 0.6 * uniform(16), tol=tol)
    true = (orbits.ends[:, 0] - exact).abs()
    slow = orbits.steps >= 20  # fewer steps do not show the law of the decay
    assert orbits.converged.all()
    assert slow.any()
    assert (orbits.errors[slow] > 0.7 * true[slow]).all()
    assert (orbits.errors[slow] < 3 * true[slow]).all()


def test_double_well_ends_in_the_well_of_its_sign():
    starts = draws(64, 3).clamp(-3, 3)
    orbits = iterate(double_well, starts, tol=1e-12)
    assert orbits.converged.all()
    assert torch.allclose(orbits.ends, starts.sign(), atol=1e-5)


@pytest.mark.parametrize("period", [2, 3, 5, 12, 100])
def test_a_rotation_by_a_rational_angle_is_a_cycle_of_that_period(period):
    orbits = iterate(rotation(1 / period), draws(8, 2))
    assert (orbits.status == Status.CYCLE).all()
    assert (orbits.periods == period).all()
    assert orbits.errors.isnan().all()


@pytest.mark.parametrize(("r", "period"), [(3.2, 2), (3.5, 4), (3.83, 3)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_logistic_cycles_have_their_least_period(r, period, dtype):
    orbits = iterate(logistic(r), (0.05 + 0.9 * uniform(32)).to(dtype))
    assert (orbits.status == Status.CYCLE).all()
    assert (orbits.periods == period).all()


@pytest.mark.parametrize("r", [3.7, 3.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tol", [1e-6, 1e-9])
def test_chaos_is_wandering_though_it_passes_by_fixed_points_and_cycles(r, dtype, tol):
    orbits = iterate(logistic(r), (0.05 + 0.9 * uniform(48, seed=1)).to(dtype), tol=tol, max_steps=1000)
    assert orbits.counts()["wandering"] == 48


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_quasi_periodic_orbit_is_wandering(dtype):
    orbits = iterate(rotation(GOLDEN), draws(32, 2).to(dtype), max_steps=1000)
    assert orbits.counts()["wandering"] == 32


@pytest.mark.parametrize("modulus", [-0.999, -0.9999])
def test_a_slow_flip_is_slow_not_a_cycle(modulus):
    orbits = iterate(linear(*[modulus] * 4), draws(16, 4), max_steps=2000)
    assert orbits.counts()["slow"] == 16


def test_a_slow_spiral_is_slow():
    assert iterate(rotation(0.05, 0.999), draws(16, 2), max_steps=1000).counts()["slow"] == 16


@pytest.mark.parametrize(("modulus", "max_steps"), [(0.7, 24), (0.85, 60), (0.93, 127)])
@pytest.mark.parametrize("angle", [0.31, 0.05, 0.21])
def test_a_spiral_that_falls_is_slow_in_few_steps_too(modulus, max_steps, angle):
    """Its steps swing, since the map is not normal, and so fall at no steady rate."""
    skew = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    spiral = rotation(angle, modulus)

    def f(z):
        return spiral(z @ skew.inverse().T) @ skew.T

    orbits = iterate(f, draws(20, 2), tol=1e-30, max_steps=max_steps)
    assert orbits.counts()["slow"] == 20


@pytest.mark.parametrize("max_steps", [24, 60, 127])
def test_what_does_not_fall_is_wandering_in_few_steps_too(max_steps):
    noise = torch.Generator().manual_seed(7)
    maps = (logistic(3.9), lambda z: torch.randn(z.shape, generator=noise))
    for f in maps:
        assert iterate(f, 0.05 + 0.9 * uniform(200), max_steps=max_steps).counts()["wandering"] >= 196
    assert iterate(rotation(GOLDEN), draws(32, 2), max_steps=max_steps).counts()["wandering"] == 32


@pytest.mark.parametrize("channel", [1e-3, 1e-4])
def test_an_intermittent_orbit_is_wandering(channel):
    orbits = iterate(intermittent(channel), uniform(32), tol=1e-12)
    assert orbits.counts()["wandering"] >= 31  # one may end in its very first laminar phase
    assert orbits.counts()["converged"] == 0


def test_stationary_noise_is_never_slow():
    noise = torch.Generator().manual_seed(7)
    orbits = iterate(lambda z: torch.randn(z.shape, generator=noise), draws(200, 4), max_steps=300)
    assert orbits.counts()["wandering"] >= 198


@pytest.mark.parametrize("factor", [1.02, 2.0, 1e30])
def test_expanding_maps_diverge_and_leave_finite_ends(factor):
    orbits = iterate(lambda z: factor * z, draws(8, 4))
    assert orbits.counts()["diverged"] == 8
    assert orbits.ends.isfinite().all()


def test_a_nan_touches_no_other_latent():
    starts = draws(40, 4)

    def f(z):
        return torch.where((z[:, :1] > 1) & (z[:, 1:2] > 0), torch.nan, 0.5 * z)

    orbits, alone = iterate(f, starts, batch_size=7), iterate(lambda z: 0.5 * z, starts)
    diverged = (starts[:, 0] > 1) & (starts[:, 1] > 0)
    assert 0 < int(diverged.sum()) < 40
    assert ((orbits.status == Status.DIVERGED) == diverged).all()
    assert torch.equal(orbits.ends[~diverged], alone.ends[~diverged])
    assert torch.equal(orbits.steps[~diverged], alone.steps[~diverged])
    assert (orbits.steps[diverged] == 1).all()


def test_a_start_that_is_not_finite_has_diverged():
    starts = draws(3, 2)
    starts[1, 0] = torch.nan
    assert iterate(lambda z: 0.5 * z, starts).status.tolist() == [Status.CONVERGED, Status.DIVERGED, Status.CONVERGED]


@pytest.mark.parametrize("measure", ["squared", "relative", "rms"])
def test_an_attractor_at_the_origin_is_reached_in_every_measure(measure):
    orbits = iterate(lambda z: 0.5 * z, draws(8, 16), measure=measure)
    assert orbits.converged.all()
    assert torch.allclose(orbits.errors, orbits.ends.norm(dim=1), rtol=0.02)


@pytest.mark.parametrize(
    ("measure", "of"),
    [
        ("squared", lambda step, norm, d: step**2),
        ("relative", lambda step, norm, d: step / norm),
        ("rms", lambda step, norm, d: step / math.sqrt(d)),
    ],
)
def test_residuals_are_the_last_step_in_the_measure(measure, of):
    orbits = iterate(linear(*[0.7] * 9), draws(5, 9).double(), measure=measure, max_steps=6, tol=1e-12)
    before = orbits.ends.norm(dim=1) / 0.7
    assert torch.allclose(orbits.residuals, of(0.3 * before, before, 9), rtol=1e-4)


@pytest.mark.parametrize("d", [2, 64])
@pytest.mark.parametrize("modulus", [0.5, 0.9])
def test_jitter_of_bfloat16_is_converged_to_the_floor_with_that_error(d, modulus):
    f, exact = half_precision(d, modulus)
    orbits = iterate(f, draws(12, d), max_steps=400)
    true = (orbits.ends.double() - exact).norm(dim=1)
    assert orbits.converged.all()
    assert (orbits.errors > 0.3 * true).all()
    assert (orbits.errors > 1e-3 * exact.norm()).all()  # of the size of bfloat16's rounding, not float32's


def test_a_rounding_that_stops_the_orbit_short_is_not_taken_for_closeness():
    # In bfloat16 0.999 z rounds back to z: every latent is a fixed point of the computed map, none of the true one.
    orbits = iterate(lambda z: (0.999 * z.bfloat16()).float(), draws(8, 8))
    assert orbits.converged.all()
    assert (orbits.errors > 0.5 * orbits.ends.norm(dim=1)).all()


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 40), st.integers(0, 10**6))
def test_results_do_not_depend_on_batch_size_or_order(batch_size, seed):
    def f(z):  # two wells, a cycle of period 4 in the plane, divergence from afar
        well = z[:, :1] + 0.3 * (z[:, :1] - z[:, :1] ** 3)
        return torch.cat([well, 0.5 * z[:, 1:]], dim=1)

    starts = 2 * draws(40, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    one, other = iterate(f, starts, batch_size=40), iterate(f, starts[order], batch_size=batch_size)
    assert torch.equal(one.status[order], other.status)
    assert torch.equal(one.steps[order], other.steps)
    assert torch.allclose(one.ends[order], other.ends, atol=1e-6)
    assert torch.allclose(one.errors[order], other.errors, rtol=1e-3, equal_nan=True)
    assert other.evaluations == int(other.steps.sum())


def test_looking_every_few_steps_changes_nothing_but_the_surplus():
    starts = draws(50, 2)
    exact, lazy = (iterate(double_well, starts, batch_size=16, check_every=k) for k in (1, 7))
    assert torch.equal(exact.steps, lazy.steps)
    assert torch.equal(exact.ends, lazy.ends)
    assert torch.equal(exact.residuals, lazy.residuals)
    assert exact.surplus == 0
    assert lazy.surplus == lazy.evaluations - int(lazy.steps.sum()) > 0


# Every status, rows that are not finite, and steps that are zero, alone and beside others.
EVERY_WAY = {
    "fixed points": (double_well, draws(12, 8)),
    "cycles": (logistic(3.5), uniform(12)),
    "chaos": (logistic(4.0), uniform(12)),
    "a rotation": (rotation(GOLDEN), draws(12, 2)),
    "growth": (linear(1.5, 0.5), draws(12, 2)),
    "slowness": (lambda z: z - 0.01 * z**3, draws(12, 2)),
    "steps to nowhere": (lambda z: torch.where(z.abs() > 2, torch.nan, 1.2 * z), draws(12, 1)),
    "rounding": (lambda z: (16 * 0.95 * z).round() / 16, draws(12, 6)),
    "half precision": (half_precision(8, 0.9)[0], draws(12, 8)),
}


@pytest.mark.parametrize("measure", ["squared", "relative"])
@pytest.mark.parametrize("name", EVERY_WAY)
def test_what_the_cpu_leaves_out_changes_no_orbit(name, measure, monkeypatch):
    f, starts = EVERY_WAY[name]
    quick, whole = [], []
    for found, looks in ((quick, True), (whole, False)):
        with monkeypatch.context() as patch:
            if not looks:  # as on an accelerator, where to look would mean to wait
                patch.setattr(WorkingBatch, "_may_hold", lambda self, mask: True)
            orbits = iterate(f, starts, measure=measure, max_steps=200, batch_size=5)
        found += [getattr(orbits, field) for field in ("ends", "steps", "residuals", "status", "errors", "periods")]
        found.append(torch.tensor([orbits.evaluations, orbits.surplus, orbits.check_evaluations]))
    assert all(torch.equal(a.nan_to_num(nan=-7), b.nan_to_num(nan=-7)) for a, b in zip(quick, whole, strict=True))


def test_the_observer_sees_every_step_once():
    seen = torch.zeros(30, dtype=torch.long)

    def observer(indices, before, after):
        assert torch.allclose(after, 0.5 * before)
        seen[indices] += 1

    for check_every in (1, 4):
        seen.zero_()
        orbits = iterate(lambda z: 0.5 * z, draws(30, 4), batch_size=8, observer=observer, check_every=check_every)
        assert torch.equal(seen, orbits.steps)


def test_trajectories_are_kept_when_asked_for():
    starts = draws(6, 2)
    orbits = iterate(double_well, starts, store_trajectories=True, batch_size=4)
    assert orbits.trajectories is not None
    for i, trajectory in enumerate(orbits.trajectories):
        assert len(trajectory) == int(orbits.steps[i]) + 1
        assert torch.equal(trajectory[0], starts[i])
        assert torch.equal(trajectory[-1], orbits.ends[i])
        assert torch.allclose(trajectory[1:], double_well(trajectory[:-1]))


def test_trajectories_that_would_not_fit_are_refused_before_the_run():
    with pytest.raises(MemoryError, match=r"take up to .* GiB .* observer"):
        iterate(lambda z: z, torch.zeros(1000, 10000), store_trajectories=True, max_steps=10**6)


def test_one_tolerance_a_start():
    orbits = iterate(lambda z: 0.5 * z, torch.ones(2, 1), tol=torch.tensor([1e-2, 1e-8]))
    assert orbits.residuals[0] < 1e-2
    assert orbits.residuals[1] < 1e-8
    assert orbits.steps[0] < orbits.steps[1]


def test_a_tolerance_under_the_resolution_is_warned_of():
    with pytest.warns(UserWarning, match="under the resolution of torch.float32"):
        orbits = iterate(lambda z: 0.5 * z + 5, draws(4, 100), tol=1e-16)
    assert orbits.converged.all()  # to the floor
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        iterate(lambda z: 0.5 * z + 5, draws(4, 100).double(), tol=1e-16)


@pytest.mark.parametrize(
    ("starts", "keywords", "message"),
    [
        (torch.zeros(3), {}, "shape"),
        (torch.zeros(3, 2, dtype=torch.long), {}, "floats"),
        (torch.zeros(3, 0), {}, "empty"),
        (torch.zeros(3, 2), {"measure": "absolute"}, "squared, relative, rms"),
        (torch.zeros(3, 2), {"max_steps": 0}, "max_steps"),
        (torch.zeros(3, 2), {"batch_size": -1}, "batch_size"),
        (torch.zeros(3, 2), {"tol": -1.0}, "tol"),
        (torch.zeros(3, 2), {"tol": math.nan}, "tol"),
    ],
)
def test_nonsense_is_refused(starts, keywords, message):
    with pytest.raises(ValueError, match=message):
        iterate(lambda z: z, starts, **keywords)


def test_an_f_that_changes_the_shape_is_refused():
    with pytest.raises(ValueError, match="keep the shape"):
        iterate(lambda z: z[:, :1], torch.zeros(3, 2))


def test_no_starts_give_empty_orbits():
    orbits = iterate(lambda z: z, torch.zeros(0, 2))
    assert len(orbits) == 0
    assert orbits.to_dict()["status"]["converged"] == 0
