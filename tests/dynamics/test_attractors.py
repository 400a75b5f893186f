"""Merging, basins and stability, held to maps whose attractors are known."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from support.maps import double_well, draws, half_precision, linear, logistic, rotation, uniform

from fmprobe import Status, find_attractors
from fmprobe.dynamics.distances import Dissimilarity, euclidean
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
    found = find_attractors(hidden, starts=draws(100, 8))
    assert found.orbits.converged.all()
    assert found.unresolved >= 98  # all but starts that have next to nothing of the slow mode
    assert len(found) <= 1
    resolved = find_attractors(linear(*[0.5] * 7, 0.99), starts=draws(100, 8))
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


def test_an_f_without_derivative_gives_nan_and_a_warning():
    with pytest.warns(UserWarning, match="stability of the attractors is not known"):
        found = find_attractors(lambda z: 0.5 * z.detach(), starts=draws(5, 3))
    assert found.count == 1
    assert found.spectral_radius.isnan().all()


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
