"""The vector field on a plane, held to linear maps and to scikit-learn."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from support.maps import double_well, draws, rotation

import fmprobe
from fmprobe.dynamics.fields import Plane, cosine_of, field_at

vector_field: Any = fmprobe.vector_field  # what is None in one result is not in another
D = 7
MATRIX = 0.3 * draws(D, D, 1)


def affine(z):
    return z @ MATRIX.T + 0.5


@pytest.fixture
def plane():
    return Plane.spanned(draws(1, D, 2)[0], *draws(2, D, 3), extent=2.0)


def test_arrows_are_the_exact_projection_of_a_linear_field(plane):
    field = vector_field(affine, plane, resolution=5, basins=False)
    x, y = field.ticks[3], field.ticks[1]
    z = plane.origin + x * plane.directions[0] + y * plane.directions[1]
    exact = affine(z[None])[0] - z
    torch.testing.assert_close(field.arrows[1, 3], plane.directions @ exact)
    torch.testing.assert_close(field.norms[1, 3], exact.norm())
    normal = exact - plane.directions.T @ (plane.directions @ exact)
    torch.testing.assert_close(field.outside[1, 3], normal.norm() ** 2 / exact.norm() ** 2)
    assert field.basins is None
    assert field.attractors is None


def test_a_field_within_the_plane_and_one_across_it(plane):
    def within(z):
        return plane.at(0.5 * plane.coordinates(z))

    across = torch.linalg.svd(plane.directions)[2][-1]
    assert vector_field(within, plane, resolution=4, basins=False).outside.max() < 1e-10
    torch.testing.assert_close(
        vector_field(lambda z: z + across, plane, resolution=4, basins=False).outside, torch.ones(4, 4)
    )


def test_results_do_not_depend_on_the_batch(plane):
    def rowwise(z):  # a product of matrices may round by the number of its rows
        return (z[:, None] * MATRIX).sum(2) + 0.5

    one, other = (vector_field(rowwise, plane, resolution=3, batch_size=size) for size in (2, 64))
    torch.testing.assert_close(one.arrows, other.arrows)
    assert torch.equal(one.basins, other.basins)


def test_basins_of_the_double_well_are_its_quadrants():
    plane = replace(Plane.axes(torch.zeros(1, 2)), extent=2.5)
    field = vector_field(double_well, plane, resolution=8)
    assert len(field.attractors) == 4
    ends = field.attractors.latents[field.basins.flatten()].reshape(8, 8, 2)
    rows, columns = torch.meshgrid(field.ticks, field.ticks, indexing="ij")
    assert torch.equal(ends.sign(), torch.stack([columns, rows], -1).sign())


def test_orbits_that_never_settle_belong_to_no_basin():
    plane = Plane.axes(torch.zeros(1, 2))
    field = vector_field(rotation(0.3819), plane, resolution=3, max_steps=50)
    assert (field.basins.flatten()[[0, 1, 2, 3, 5, 6, 7, 8]] == -1).all()  # the centre itself stands still
    json.dumps(field.to_dict(), allow_nan=False)


@pytest.mark.parametrize("shape", [(D,), (2, 3, 4)])
def test_coordinates_and_latents_are_inverse_on_the_plane(shape):
    points = draws(3, int(np.prod(shape)), 5).reshape(3, *shape)
    plane = Plane.through(points)
    gram = plane.directions.flatten(1) @ plane.directions.flatten(1).T
    torch.testing.assert_close(gram, torch.eye(2), atol=1e-6, rtol=0)
    torch.testing.assert_close(plane.at(plane.coordinates(points)), points, atol=1e-5, rtol=1e-5)
    assert plane.coordinates(points).abs().max() <= plane.extent


def test_principal_components_are_scikit_learns():
    points = draws(40, D, 6) * torch.arange(1, D + 1) + 3
    plane = Plane.principal(points)
    theirs = PCA(2).fit_transform(points.numpy())
    np.testing.assert_allclose(np.abs(plane.coordinates(points).numpy()), np.abs(theirs), atol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Plane.spanned(torch.zeros(3), torch.ones(3), -2 * torch.ones(3)), "parallel"),
        (lambda: Plane.spanned(torch.zeros(3), torch.zeros(3), torch.ones(3)), "parallel or zero"),
        (lambda: Plane.through(draws(2, 3)), "three points"),
        (lambda: Plane.principal(torch.arange(4.0)[:, None] * torch.ones(3)), "one line"),
        (lambda: vector_field(affine), "pass a Plane"),
        (lambda: vector_field(affine, "components"), "needs points"),
        (lambda: vector_field(affine, "axes"), "unknown plane"),
        (lambda: vector_field(affine, resolution=1), "resolution"),
    ],
)
def test_what_is_no_plane_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def wells(d):
    """An Autoencoder whose latent map is the double well in every coordinate."""
    return fmprobe.from_functions(
        lambda x: double_well(x.flatten(1)), lambda z: z.reshape(-1, 1, 1, d), image_shape=(1, 1, d), latent_shape=(d,)
    )


def test_the_default_plane_of_a_model():
    flat = vector_field(wells(2), resolution=4, tol=1e-8)
    assert flat.plane.extent == 8
    assert flat.plane.label == "the latent space itself"
    assert (flat.basins[[0, 0, -1, -1], [0, -1, 0, -1]] == -1).all()  # at 8 the map jumps over the middle and away
    deep = vector_field(wells(3), resolution=4, basins=False)
    assert deep.plane.label == "through 3 attractors"
    torch.testing.assert_close(
        deep.plane.at(deep.plane.coordinates(deep.attractors.latents[:3])), deep.attractors.latents[:3]
    )


def test_starts_stand_in_for_attractors_that_are_missing():
    model = fmprobe.from_functions(
        lambda x: 0.5 * x.flatten(1), lambda z: z.reshape(-1, 1, 1, 4), image_shape=(1, 1, 4), latent_shape=(4,)
    )
    field = vector_field(model, resolution=3)
    assert field.plane.label == "through 1 attractor and 2 N(0, I) starts"
    assert (field.basins == 0).all()
    with pytest.raises(ValueError, match="there are 1"):
        vector_field(model, "attractors")


def test_the_cosine_of_two_fields():
    latents = draws(20, 2, 8)
    # Around the origin V of a rotation by t is z turned by (t + 180°)/2 exactly: two of them differ by half the angle.
    quarter, third = rotation(1 / 4), rotation(1 / 3)
    expected = torch.full((20,), float(np.cos(np.pi * (1 / 3 - 1 / 4))), dtype=torch.float64)
    torch.testing.assert_close(
        cosine_of(field_at(quarter, latents, 7), field_at(third, latents, 7)), expected, atol=1e-6, rtol=0
    )
    torch.testing.assert_close(
        cosine_of(field_at(quarter, latents), field_at(quarter, latents)), torch.ones(20, dtype=torch.float64)
    )
    assert cosine_of(torch.zeros(1, 3), torch.ones(1, 3)).isnan().all()
    torch.testing.assert_close(field_at(lambda z: 3 * z, latents, 3), 2 * latents)


def test_the_plot_draws_what_the_field_holds(tmp_path):
    from PIL import Image

    from fmprobe.probes.field import animate_fields

    field = vector_field(wells(2), resolution=4, max_steps=50)
    axes, bar = field.plot().axes
    stars: Any = axes.collections[-1]
    assert len(stars.get_offsets()) == len(field.attractors)
    assert "norm of the step" in bar.get_ylabel()
    animate_fields([field.to_dict()] * 3, ["one", "two", "three"], tmp_path / "field.gif")
    with Image.open(tmp_path / "field.gif") as gif:
        assert gif.format == "GIF"
        assert gif.n_frames >= 3  # type: ignore[attr-defined]
    assert [p.name for p in tmp_path.iterdir()] == ["field.gif"]


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_a_norm_is_infinite_where_f_is_not_finite(plane, value):
    field = vector_field(lambda z: torch.full_like(z, value), plane, resolution=3, basins=False)
    assert (field.norms == torch.inf).all()
