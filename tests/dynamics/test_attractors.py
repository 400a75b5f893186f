"""Merging, basins and stability, held to maps whose attractors are known."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from support.maps import NoForwardMode, double_well, draws, half_precision, linear, logistic, rotation, uniform

from fmprobe import AttractorSet, Status, find_attractors
from fmprobe.dynamics.distances import Dissimilarity, euclidean
from fmprobe.dynamics.jacobian import Linearisation
from fmprobe.dynamics.merging import single_linkage


@pytest.mark.parametrize("merge", ["relative", "cosine"])
def test_the_double_well_has_a_basin_a_sign_pattern(merge):
    starts = draws(200, 2).clamp(-3, 3)  # beyond 3.3 the map jumps over the middle
    found = find_attractors(double_well, starts=starts, merge=merge)
    assert found.count == len(found) == 4
    assert torch.allclose(found.latents.abs(), torch.ones(4, 2), atol=0.02)
    assert torch.equal(found.latents[found.labels].sign(), starts.sign())
    assert found.sizes.tolist() == sorted(found.sizes.tolist(), reverse=True)
    assert torch.equal(found.sizes, torch.bincount(found.labels, minlength=4))
    assert torch.allclose(found.spectral_radius, torch.full((4,), 0.8), atol=0.02)
    assert (found.errors <= 0.005 * 2**0.5).all()


def test_an_orbit_that_passes_by_a_saddle_goes_on_to_its_attractor():
    found = find_attractors(double_well, starts=torch.tensor([[-0.8383, 0.0009]]), merge="cosine")
    assert found.count == 1
    assert torch.allclose(found.latents, torch.tensor([[-1.0, 1.0]]), atol=0.05)
    assert found.unstable == 0


def test_an_unstable_fixed_point_is_no_attractor():
    starts = torch.cat([torch.zeros(3, 2), draws(50, 2)])
    found = find_attractors(double_well, starts=starts)
    assert found.count == 4
    assert found.unstable == 1
    assert (found.labels[:3] == -1).all()
    assert (found.orbits.status[:3] == Status.CONVERGED).all()


@pytest.mark.parametrize("rate", [0.9, 0.99])
@pytest.mark.parametrize(("merge", "centre"), [("relative", 0.0), ("relative", 1.0), ("cosine", 1.0)])
def test_one_slow_linear_attractor_counts_once(rate, merge, centre):
    found = find_attractors(lambda z: rate * z + (1 - rate) * centre, starts=draws(300, 8), merge=merge)
    assert found.count == 1
    assert found.sizes.tolist() == [300]
    assert found.unresolved == 0
    assert torch.allclose(found.spectral_radius, torch.tensor([rate]), atol=1e-3)


def test_an_attractor_too_slow_for_the_budget_is_unresolved_not_counted_300_times():
    found = find_attractors(lambda z: 0.999 * z, starts=draws(300, 8))
    assert found.orbits.converged.all()
    assert len(found) == 0
    assert found.count is None
    assert found.unresolved == 300
    assert (found.labels == -1).all()


def test_a_slow_mode_hidden_under_a_fast_one_is_found_at_the_representative():
    hidden = linear(*[0.5] * 7, 0.9999)
    found = find_attractors(hidden, starts=draws(50, 8))
    assert found.orbits.converged.all()
    assert found.unresolved >= 49  # all but starts that have next to nothing of the slow mode
    assert len(found) <= 1
    resolved = find_attractors(linear(*[0.5] * 7, 0.99), starts=draws(50, 8))
    assert resolved.count == 1
    assert resolved.latents.norm() < 0.02


def test_errors_of_a_non_normal_map_are_those_of_its_fixed_point():
    f = linear(0.9, 0.9)
    sheared = lambda z: f(z) + torch.stack([50 * z[:, 1], torch.zeros(len(z))], dim=1)  # noqa: E731
    found = find_attractors(sheared, starts=draws(20, 2), max_steps=5000)
    assert found.count == 1
    assert torch.allclose(found.errors, found.latents.norm(dim=1), rtol=0.05, atol=1e-5)


@pytest.mark.parametrize(
    ("f", "starts"),
    [(logistic(3.9), uniform(20)), (rotation(1 / 5), draws(20, 2)), (lambda z: 2 * z, draws(20, 2))],
    ids=["chaos", "cycle", "expansion"],
)
def test_what_does_not_converge_is_no_attractor(f, starts):
    found = find_attractors(f, starts=starts)
    assert found.count == len(found) == 0
    assert (found.labels == -1).all()


def test_reduced_precision_gives_one_attractor_or_says_that_it_cannot():
    f, _ = half_precision(64, 0.5)
    found = find_attractors(f, starts=draws(32, 64), max_steps=300)
    assert len(found) <= 1
    assert len(found) == 1 or found.count is None


def test_order_and_batch_size_do_not_matter():
    starts, order = draws(90, 2), torch.randperm(90, generator=torch.Generator().manual_seed(3))
    one, other = (
        find_attractors(double_well, starts=starts),
        find_attractors(double_well, starts=starts[order], batch_size=7),
    )
    assert torch.equal(one.sizes, other.sizes)
    assert torch.allclose(one.latents[one.labels][order], other.latents[other.labels], atol=0.02)


CREEPING = {
    "slow": lambda z: 0.97 * z,
    "flat": lambda z: z - 0.01 * z**3,
    "of two rates": lambda z: torch.where(z > 0, 0.9 * z + 0.1, 0.99 * z - 0.01),
    "many wells": lambda z: 1.35 * z / (1 + z * z).sqrt() + 0.05 * z.roll(1, 1),
    "partly diverging": lambda z: torch.where(z.abs().amax(1, keepdim=True) > 2, torch.nan, 0.9 * z),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("f", CREEPING.values(), ids=CREEPING)
def test_what_becomes_of_a_start_does_not_depend_on_the_others_and_its_steps_are_bounded(f, seed):
    starts = draws(24, 6, seed)
    whole = find_attractors(f, starts=starts, max_steps=300).orbits
    assert whole.steps.max() <= 300
    for size, rows in ((5, slice(0, 24)), (256, slice(0, 8)), (7, slice(10, 24)), (1, slice(5, 8))):
        part = find_attractors(f, starts=starts[rows], max_steps=300, batch_size=size).orbits
        for name in ("status", "steps", "ends", "residuals"):
            assert torch.equal(getattr(whole, name)[rows], getattr(part, name)), (name, size)
        assert torch.allclose(whole.errors[rows], part.errors, rtol=1e-3, equal_nan=True)


def test_an_f_without_derivative_gives_nan_and_a_warning():
    with pytest.warns(UserWarning, match="stability of the attractors is not known"):
        found = find_attractors(lambda z: 0.5 * z.detach(), starts=draws(5, 3))
    assert found.count == 1
    assert found.spectral_radius.isnan().all()


def cut_shift(z):
    """A line of 200 coordinates, each the one before it halved: nilpotent, so that no Krylov space tells the radius."""
    return torch.nn.functional.pad(0.5 * z[:, :-1], (1, 0)) + 0.1


def test_a_fixed_point_of_unknown_stability_is_kept_counted_and_said(tmp_path):
    found = find_attractors(cut_shift, starts=draws(5, 200), polish="anderson")
    assert found.count == found.stability_unknown == found.examined == 1
    assert found.unresolved == found.unstable == 0
    assert found.spectral_radius.isnan().all()
    exact = (0.1 * (1 - 0.5 ** torch.arange(1, 201, dtype=torch.float64)) / 0.5)[None]
    off = (found.latents - exact).norm(dim=1)
    assert (off <= found.errors).all()
    assert (found.errors <= 1e-5).all()
    assert found.to_dict()["stability_unknown"] == 1
    assert "stability unknown" in found._repr_html_()
    found.save(tmp_path)
    assert AttractorSet.load(tmp_path).stability_unknown == 1
    content = json.loads((tmp_path / "attractors.json").read_text())
    del content["examined"]  # as an earlier version wrote it
    (tmp_path / "attractors.json").write_text(json.dumps(content))
    earlier = AttractorSet.load(tmp_path)
    assert (earlier.examined, earlier.stability_unknown) == (None, 0)


def test_what_is_beyond_the_cap_is_not_examined_rather_than_unknown():
    found = find_attractors(double_well, starts=draws(60, 2).clamp(-3, 3), stability_cap=1)
    assert (found.examined, found.stability_unknown) == (1, 0)
    assert found.spectral_radius.isnan().tolist() == [False, True, True, True]


@pytest.mark.parametrize("turn", [lambda z: z.roll(1, 1), lambda z: -z.flip(1)], ids=["shift", "reflection"])
def test_a_crowded_spectrum_beyond_the_circle_repels(turn):
    found = find_attractors(lambda z: 1 + 1.03 * turn(z - 1), starts=torch.ones(3, 500))
    assert (len(found), found.unstable) == (0, 1)


class Recorder:
    """f, and the largest batch that it was given, also under the transforms of a derivative."""

    def __init__(self, f):
        self.f, self.largest = f, 0

    def __call__(self, z):
        self.largest = max(self.largest, len(z))
        return self.f(z)


def coarse_well(z):
    """Its rounding floor is felt, so that it is measured."""
    return double_well(z).bfloat16().to(z.dtype)


WELLS = {
    "smooth": double_well,
    "backward only": lambda z: double_well(NoForwardMode.apply(z)),
    "bfloat16": coarse_well,
    "unknown radius": lambda z: torch.cat([double_well(z[:, :2]), cut_shift(z[:, 2:])], 1),
}


@pytest.mark.parametrize("size", [1, 3, 4])
@pytest.mark.parametrize("name", WELLS)
def test_the_batch_size_bounds_every_call(name, size):
    f = Recorder(WELLS[name])
    d = 90 if name == "unknown radius" else 4
    starts = torch.cat([draws(20, 4).clamp(-3, 3), draws(20, d)[:, 4:]], 1)
    found = find_attractors(f, starts=starts, batch_size=size, polish="anderson", max_steps=300, measure="relative")
    assert len(found) >= size or name == "bfloat16"
    assert f.largest == size


@pytest.fixture
def products(monkeypatch):
    """How many rows were multiplied with a Jacobian."""
    rows = []
    vjp, jvp = Linearisation.vjp, Linearisation.jvp
    counted = lambda product: lambda self, vectors: rows.append(len(vectors)) or product(self, vectors)  # noqa: E731
    monkeypatch.setattr(Linearisation, "vjp", counted(vjp))
    monkeypatch.setattr(Linearisation, "jvp", counted(jvp))
    return rows


def test_the_cap_bounds_the_jacobians_also_where_these_refute_the_estimates(products):
    hidden, starts = linear(*[0.5] * 7, 0.9999), draws(50, 8)
    assert find_attractors(hidden, starts=starts, stability_cap=0, polish="anderson").examined == 0
    assert not products
    found = find_attractors(hidden, starts=starts, stability_cap=2, polish="anderson")
    assert max(products) <= 2
    assert sum(products) <= 2 * 4 * 3 * 20  # attractors, rounds, quantities, products in 8 dimensions
    assert found.unresolved >= 49


def test_one_slow_attractor_does_not_refute_those_beyond_the_cap():
    slow_in_one_well = lambda z: torch.where(z[:, :3].sum(1, keepdim=True) > 2, 0.9999, 0.5)  # noqa: E731
    f = lambda z: torch.cat([double_well(z[:, :3]), z[:, 3:] * slow_in_one_well(z)], 1)  # noqa: E731
    starts = torch.cat([draws(400, 3).clamp(-3, 3), 0.2 * draws(400, 1, seed=1)], 1)
    found = find_attractors(f, starts=starts, stability_cap=4)
    assert len(found) >= 7


def test_a_bare_function_needs_starts():
    with pytest.raises(ValueError, match="pass starts"):
        find_attractors(lambda z: z)


@settings(max_examples=30, deadline=None)
@given(st.integers(2, 25), st.integers(0, 10**6), st.floats(0.01, 2.0))
def test_components_are_single_linkage_clusters(n, seed, threshold):
    points = draws(n, 3, seed)
    ours = single_linkage(Dissimilarity(points, "relative", 1.0))
    matrix = torch.stack([Dissimilarity(points, "relative", 1.0).from_row(i) for i in range(n)]).double()
    matrix = ((matrix + matrix.T) / 2).fill_diagonal_(0)
    theirs = torch.from_numpy(fcluster(linkage(squareform(matrix.numpy()), "single"), threshold, "distance"))
    labels = ours.components(threshold)
    assert ours.count(threshold) == int(theirs.max()) == int(labels.max()) + 1
    assert torch.equal(labels[:, None] == labels, theirs[:, None] == theirs)
    sizes = torch.bincount(labels)
    assert (sizes.diff() <= 0).all()


def test_distances_are_exact_where_points_nearly_coincide():
    point = draws(1, 196_608)
    direction = draws(1, 196_608, seed=1)
    near = point.double() + 1e-3 * direction.double() / direction.double().norm()
    assert euclidean(point, near.float()).item() == pytest.approx(1e-3, rel=0.05)
    assert abs(torch.cdist(point, near.float(), compute_mode="use_mm_for_euclid_dist").item() - 1e-3) > 1e-3


def test_where_there_is_no_attractor_nothing_is_polished():
    found = find_attractors(lambda z: z + 1, starts=torch.zeros(3, 2), max_steps=5, polish="anderson")
    assert (len(found), found.polished) == (0, 0)


@pytest.mark.parametrize("rate", [1e-5, 0.3, 0.9])
@pytest.mark.parametrize("d", [2, 16, 200])
def test_rounding_is_measured_at_the_attractor_alone_where_orbits_move_as_finely_as_their_latents(rate, d):
    # At rate 1e-5 an orbit has three steps, and its last leaves half the coordinates as they are.
    shift = draws(1, d, seed=1)
    found = find_attractors(lambda z: shift + rate * (z - shift), starts=draws(100, d), progress=False)
    assert len(found) == 1
    assert found.orbits.check_evaluations == 10 * math.ceil(128 / d)  # ten rows a line, and 128 roundings
    assert (found.latents - shift).norm() <= 1.01 * found.errors.max()


@pytest.mark.parametrize(
    "f",
    [lambda z: 0.99 * z, lambda z: z @ torch.tensor([[0.9, 0.0, 0.0], [5.0, 0.8, 0.0], [0.0, 5.0, 0.7]])],
    ids=["starts of other sizes", "norms that first grow"],
)
def test_no_start_is_given_up_while_steps_are_left(f):
    """What is allowed at an end shrinks with it on the way to the origin."""
    starts = 0.01 * draws(60, 3)
    starts[:5] *= 10
    found = find_attractors(f, starts=starts)
    assert found.orbits.counts()["converged"] == 60
    assert (found.unresolved, found.count) == (0, 1)
