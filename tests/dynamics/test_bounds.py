"""`batch_size` bounds every call of f, `max_steps` every orbit, and each start's result depends on itself."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.maps import double_well, draws, intermittent, linear, logistic, rotation, uniform

import fmprobe
from fmprobe.dynamics.fields import Plane, cosine_of, field_at
from fmprobe.dynamics.floor import rounding_floor
from fmprobe.dynamics.iterate import stream_orbits
from fmprobe.dynamics.lipschitz import local_lipschitz
from fmprobe.dynamics.polish import anderson
from fmprobe.dynamics.settling import iterate_on
from fmprobe.probes.field import vector_field

SMALL = {"tol": 1e-6, "measure": "squared", "max_steps": 100}


class Recorded:
    """f, and the most rows that it was called on."""

    def __init__(self, f):
        self.f, self.most, self.calls = f, 0, 0

    def __call__(self, z):
        self.most, self.calls = max(self.most, len(z)), self.calls + 1
        return self.f(z)


def streamed(f, starts, batch_size):
    left, ended = [torch.arange(len(starts))], []

    def take(count):
        index, left[0] = left[0][:count], left[0][count:]
        return index, starts[index]

    stream_orbits(f, take, ended.append, **SMALL, batch_size=batch_size)
    assert sum(len(part.index) for part in ended) == len(starts)


def settled(f, starts, batch_size):
    orbits = fmprobe.iterate(f, starts, **SMALL, batch_size=batch_size)
    iterate_on(f, orbits, torch.full((len(starts),), 1e-5), starts.device)


PLANE = Plane(torch.zeros(6), torch.eye(6)[:2], 2.0, "a plane")
BOUNDED = {
    "iterate": lambda f, z, b: fmprobe.iterate(f, z, **SMALL, batch_size=b),
    "looking seldom": lambda f, z, b: fmprobe.iterate(f, z, **SMALL, batch_size=b, check_every=7),
    "stream": streamed,
    "settling": settled,
    "polish": anderson,
    "floor": rounding_floor,
    "field": field_at,
    "cosine": lambda f, z, b: cosine_of(field_at(f, z, b), field_at(f, z, b)),
    "plane": lambda f, z, b: vector_field(f, PLANE, resolution=4, basins=False, batch_size=b),
    "lipschitz": lambda f, z, b: local_lipschitz(f, z, batch_size=b),
}
# What each looks at more closely: rounding floors at rest, cycles, orbits out of steps, orbits far from their rest.
MAPS = {
    "contraction": linear(0.5, 0.3, -0.6, 0.1, 0.0, 0.2),
    "coarse": lambda z: (0.5 * z + 1).bfloat16().float(),
    "cycle": lambda z: -z + 1e-3 * (z - z**3),
    "slow": linear(0.95, 0.5, 0.97, 0.99, 0.3, 0.2),
    "wandering": lambda z: 3.9 * z.abs().clamp(max=1) * (1 - z.abs().clamp(max=1)),
}


@pytest.mark.parametrize("batch_size", [1, 3, 4])
@pytest.mark.parametrize("f", MAPS.values(), ids=list(MAPS))
@pytest.mark.parametrize("call", BOUNDED.values(), ids=list(BOUNDED))
def test_no_call_of_f_has_more_rows_than_batch_size(call, f, batch_size):
    recorded = Recorded(f)
    call(recorded, draws(6, 6), batch_size)
    assert recorded.calls
    assert recorded.most <= batch_size


@pytest.mark.parametrize("f", MAPS.values(), ids=list(MAPS))
def test_the_cases_above_are_looked_at_more_closely(f):
    orbits = fmprobe.iterate(f, draws(9, 6), **SMALL)
    further = int(iterate_on(f, orbits, torch.full((9,), 1e-5), torch.device("cpu")).steps.sum() - orbits.steps.sum())
    assert orbits.check_evaluations or further or orbits.status.unique().tolist() != [0]


SETTLE = {
    "one rest": linear(0.5, 0.9, 0.95, 0.97),
    "slow": linear(0.99, 0.999, 0.9, 0.5),
    "wells": double_well,
    "curved": lambda z: z - 0.1 * z**3,
    "mixed": lambda z: torch.where(z.sum(1, keepdim=True) > 0, 0.97 * z, -0.9 * z + 1),
    "running off": lambda z: torch.where(z[:, :1] > 1, 2 * z, 0.96 * z),
}


@settings(max_examples=10, deadline=None)
@given(st.sampled_from(list(SETTLE)), st.integers(0, 10**6), st.integers(5, 400), st.data())
def test_what_becomes_of_a_start_depends_on_itself_and_takes_no_more_steps_than_allowed(name, seed, most, data):
    starts = draws(12, 4, seed) * torch.logspace(-2, 2, 12)[:, None]
    target = 1e-3 * starts.norm(dim=1)
    size, chosen = data.draw(st.integers(1, 13)), sorted(data.draw(st.sets(st.integers(0, 11), min_size=1)))

    def follow(rows, batch_size):
        orbits = fmprobe.iterate(SETTLE[name], starts[rows], max_steps=most, batch_size=batch_size)
        return iterate_on(SETTLE[name], orbits, target[rows], starts.device)

    whole, some = follow(list(range(12)), 12), follow(chosen, size)
    for field in ("ends", "steps", "status", "residuals", "errors", "periods"):
        assert torch.equal(getattr(some, field), getattr(whole, field)[chosen]) or torch.allclose(
            getattr(some, field), getattr(whole, field)[chosen], rtol=0, atol=0, equal_nan=True
        )
    assert whole.steps.max() <= most


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(["one rest", "wells", "curved", "mixed", "slow"]), st.integers(0, 10**6), st.integers(5, 400))
def test_no_orbit_of_a_search_takes_more_steps_than_allowed(name, seed, most):
    starts = draws(12, 4, seed) * torch.logspace(-2, 1, 12)[:, None]
    found = fmprobe.find_attractors(SETTLE[name], starts=starts, max_steps=most, progress=False)
    assert found.orbits.steps.max() <= most


SCALED = {
    "contraction": lambda scale: linear(0.5, 0.8, -0.9),
    "rotation": lambda scale: rotation(0.2, 0.9),
    "cycle": lambda scale: lambda z: -z,
    "growth": lambda scale: lambda z: 3 * z,
    "wells": lambda scale: lambda z: scale * double_well(z / scale),
    "wandering": lambda scale: lambda z: scale * logistic(3.9)(z / scale),
}


@pytest.mark.parametrize("measure", ["squared", "relative", "rms"])
@pytest.mark.parametrize("name", SCALED)
def test_orbits_are_free_of_scale(name, measure):
    def at(scale):
        starts = draws(8, {"rotation": 2}.get(name, 3)).clamp(-2, 2)
        starts = (starts.abs() % 1 if name == "wandering" else starts) * scale
        tol = {"squared": 1e-6 * scale**2, "relative": 1e-4, "rms": 1e-4 * scale}[measure]
        return fmprobe.iterate(SCALED[name](scale), starts, tol=tol, measure=measure, max_steps=300)

    one = at(1.0)
    # An orbit that grows has diverged against sqrt(d) or its start's norm, whichever is more: near the origin later.
    for k in range(10 if name == "growth" else -30, 31, 20):
        other = at(2.0 ** round(k * math.log2(10)))  # a power of two, which rounds nothing
        assert torch.equal(one.status, other.status), k
        assert name == "growth" or torch.equal(one.steps, other.steps), k


@pytest.mark.parametrize("k", [-10, 0, 10])
@pytest.mark.parametrize("merge", ["relative", "cosine"])
def test_attractors_are_free_of_scale(merge, k):
    scale = 10.0**k
    centre = draws(1, 4)[0]

    def f(z):
        return scale * (0.5 * (z / scale - centre) + centre)

    found = fmprobe.find_attractors(
        f, starts=draws(6, 4, 1) * scale, tol=1e-5, measure="relative", merge=merge, progress=False
    )
    assert found.count == 1
    assert torch.allclose(found.latents[0] / scale, centre, atol=1e-3)


def test_polish_is_free_of_scale():
    matrix = 0.9 * torch.linalg.qr(draws(6, 6).double())[0]
    rest = torch.linalg.solve(torch.eye(6).double() - matrix, draws(1, 6, 1)[0].double())
    for k in (-30, -15, 0, 15, 30):
        scale = 10.0**k
        starts = ((rest + 0.01 * draws(4, 6, 2)) * scale).float()

        def f(z, scale=scale):
            return ((z.double() / scale - rest) @ matrix.T + rest).mul(scale).to(z)

        found = anderson(f, starts)[0].double() / scale
        assert (found - rest).norm(dim=1).max() < 1e-5 * rest.norm(), k


def test_a_row_that_is_not_finite_changes_no_other_on_any_way():
    def f(z):
        return torch.where(z[:, :1] > 0, torch.nan, 0.5 * z - 0.1)

    starts = draws(12, 3)
    starts[:, 0] = -starts[:, 0].abs() - 0.1
    starts[::3, 0] = 1.0
    starts[4, 1] = torch.inf
    sound = torch.tensor([i for i in range(12) if i % 3 and i != 4])
    assert torch.equal(anderson(f, starts)[0][sound], anderson(f, starts[sound])[0])
    both = [fmprobe.iterate(f, rows) for rows in (starts, starts[sound])]
    assert torch.equal(both[0].ends[sound], both[1].ends)
    assert torch.equal(both[0].status[sound], both[1].status)
    assert torch.equal(both[0].errors[sound], both[1].errors)
    assert (both[0].status[[0, 3, 4, 6, 9]] == fmprobe.Status.DIVERGED).all()
    assert torch.equal(field_at(f, starts)[sound], field_at(f, starts[sound]))
    assert torch.equal(rounding_floor(f, starts)[0][sound], rounding_floor(f, starts[sound])[0])


def test_an_observer_may_write_into_what_it_sees():
    def spoil(indices, before, after):
        before.zero_()
        after.fill_(7)
        indices.zero_()

    starts = draws(9, 4)
    kept = starts.clone()
    plain = fmprobe.iterate(double_well, starts, batch_size=4, store_trajectories=True)
    spoiled = fmprobe.iterate(double_well, starts, batch_size=4, store_trajectories=True, observer=spoil)
    assert torch.equal(starts, kept)
    for field in ("ends", "steps", "status", "errors"):
        assert torch.equal(getattr(plain, field), getattr(spoiled, field))
    assert all(map(torch.equal, plain.trajectories or [], spoiled.trajectories or []))


def into_its_argument(z):
    return double_well(z) if torch.is_grad_enabled() else z.copy_(double_well(z))


STARTS = {
    "require grad": lambda z: z.clone().requires_grad_(),
    "expanded": lambda z: z[:1].expand(9, 4),
    "transposed": lambda z: z.T.contiguous().T,
    "strided": lambda z: torch.stack([z, z], 2)[:, :, 0],
    "part of more": lambda z: torch.cat([z, z])[::2],
    "of a graph": lambda z: z.clone().requires_grad_() * 2,
    "inference": lambda z: torch.inference_mode()(torch.clone)(z),
}


@pytest.mark.parametrize("make", STARTS.values(), ids=list(STARTS))
@pytest.mark.parametrize("f", [double_well, into_its_argument], ids=["plain", "in place"])
def test_starts_of_any_kind_are_read_and_left_alone(make, f):
    starts = make(draws(9, 4))
    plain = starts.detach().clone(memory_format=torch.contiguous_format)
    for read in (
        lambda z: fmprobe.iterate(f, z, batch_size=4).ends,
        lambda z: fmprobe.find_attractors(f, starts=z, progress=False).orbits.ends,
        lambda z: field_at(f, z, 4),
        lambda z: anderson(f, z, 4)[0],
    ):
        found = read(starts)
        assert not found.requires_grad
        assert torch.equal(found, read(plain))
    assert torch.equal(starts.detach(), plain)


def test_intermittent_orbits_in_batches_of_any_size_are_the_same():
    starts = uniform(6)
    whole = fmprobe.iterate(intermittent(1e-3), starts, max_steps=300)
    for size in (1, 5):
        part = fmprobe.iterate(intermittent(1e-3), starts, max_steps=300, batch_size=size)
        assert torch.equal(whole.status, part.status)
        assert torch.equal(whole.steps, part.steps)


@pytest.mark.parametrize("value", [True, "3", 2.5, math.nan, math.inf, 0, [3]])
@pytest.mark.parametrize("name", ["batch_size", "check_every", "max_steps"])
def test_what_is_no_count_is_named(name, value):
    with pytest.raises(ValueError, match=name):
        fmprobe.iterate(double_well, draws(3, 2), **{name: value})


def test_counts_may_be_written_as_floats():
    whole = fmprobe.iterate(double_well, draws(3, 2), max_steps=50, batch_size=2)
    floats: Any = {"max_steps": 50.0, "batch_size": 2.0}
    written = fmprobe.iterate(double_well, draws(3, 2), **floats)
    assert torch.equal(whole.ends, written.ends)
