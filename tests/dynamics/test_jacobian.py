"""Matrix-free Jacobian quantities against the full Jacobian."""

import math

import pytest
import torch
from support.maps import NoForwardMode, draws
from support.operators import EASY, HARD, operator
from torch.nn import functional as F

from fmprobe.dynamics.floor import rounding_floor
from fmprobe.dynamics.jacobian import (
    Linearisation,
    NotDifferentiableError,
    distance_to_fixed_point,
    spectral_norm,
    spectral_radius,
)

D = 12
MATRIX = draws(D, D, seed=5) * 0.35


def network(z):
    return torch.tanh(z @ MATRIX.T) + 0.1 * z.roll(1, dims=1)


def through_attention(z):
    tokens = network(z).reshape(-1, 1, 3, 4)
    return F.scaled_dot_product_attention(tokens, tokens, tokens).reshape(-1, D)


MAPS = {"tanh": network, "backward only": lambda z: network(NoForwardMode.apply(z)), "attention": through_attention}


@pytest.fixture(params=MAPS)
def f(request):
    return MAPS[request.param]


@pytest.fixture
def latents():
    return draws(6, D, seed=2)


@pytest.fixture
def jacobians(f, latents):
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return torch.stack([torch.autograd.functional.jacobian(lambda x: f(x[None])[0], z) for z in latents])


def test_products_are_those_of_the_full_jacobian(f, latents, jacobians):
    vectors, line = draws(6, D, seed=3), Linearisation(f, latents)
    assert torch.allclose(line.jvp(vectors), torch.einsum("mij,mj->mi", jacobians, vectors), atol=1e-5)
    assert torch.allclose(line.vjp(vectors), torch.einsum("mij,mi->mj", jacobians, vectors), atol=1e-5)


def test_radius_norm_and_correction(f, latents, jacobians):
    radius = torch.linalg.eigvals(jacobians).abs().amax(1)
    assert torch.allclose(spectral_radius(f, latents), radius, rtol=5e-3)
    assert torch.allclose(spectral_norm(f, latents), torch.linalg.matrix_norm(jacobians, 2), rtol=5e-3)
    residual = (f(latents) - latents)[..., None]
    correction = torch.linalg.solve(torch.eye(D) - jacobians, residual)[..., 0].norm(dim=1)
    assert torch.allclose(distance_to_fixed_point(f, latents, radius), correction, rtol=1e-3)


def at_zero(matrix, dtype=torch.float64):
    """A linear map as f, and its latent 0."""
    matrix = matrix.to(dtype)
    return lambda z: z @ matrix.T, torch.zeros(1, len(matrix), dtype=dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [*EASY, *HARD], ids=lambda kind: kind.__name__)
def test_a_number_is_the_value_to_a_thousandth(kind, dtype):
    for seed, d in ((0, 130), (2, 40)):
        matrix, radius = operator(kind, seed, d, dtype)
        f, latents = at_zero(matrix, dtype)
        found, norm = float(spectral_radius(f, latents)), float(spectral_norm(f, latents))
        assert math.isnan(found) or found == pytest.approx(radius, rel=1e-3, abs=0), (seed, d)
        assert norm == pytest.approx(float(torch.linalg.matrix_norm(matrix, 2)), rel=1e-3, abs=0)
        assert kind in HARD or not math.isnan(found), (seed, d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [2, 3, 4, 8])
def test_a_defective_block_alone_is_read_where_rounding_leaves_it(size, dtype):
    """Rounding of eps moves an eigenvalue of `size` in one block by the root of that order of eps."""
    f, latents = at_zero(0.5 * torch.eye(size) + torch.diag(torch.ones(size - 1), 1), dtype)
    found = spectral_radius(f, latents).item()
    known = torch.finfo(dtype).eps ** (1 / size) < 5e-4
    assert math.isnan(found) != known
    assert math.isnan(found) or found == pytest.approx(0.5, rel=1e-3)


LARGE = {
    "smoothing": (lambda z: 0.98 * (z.roll(1, 1) + 2 * z + z.roll(-1, 1)) / 4, 0.98),
    "shifted smoothing": (lambda z: 0.98 * (2 * z.roll(1, 1) + z + z.roll(2, 1)) / 4, 0.98),
    "upwind": (lambda z: 0.98 * (z.roll(1, 1) + z) / 2, 0.98),
    "repelling shift": (lambda z: 1.03 * z.roll(1, 1), 1.03),
    "reflection": (lambda z: 1.03 * z.flip(1), 1.03),
}


@pytest.mark.parametrize(("f", "radius"), LARGE.values(), ids=LARGE)
def test_crowded_spectra_of_normal_maps_in_many_dimensions(f, radius):
    latents = draws(1, 5000)
    assert spectral_radius(f, latents).item() == pytest.approx(radius, rel=1e-3)
    assert spectral_norm(f, latents).item() == pytest.approx(radius, rel=1e-3)


def test_rows_of_several_kinds_do_not_disturb_each_other():
    kinds = [operator(kind, 3, 40, torch.float64)[0] for kind in (*EASY[:4], *HARD[:4])]
    matrices = torch.stack(kinds)
    f = lambda z: torch.einsum("mij,mj->mi", matrices[z[:, 0].long()], z - z.detach())  # noqa: E731 the row's own map
    latents = torch.zeros(len(kinds), 40, dtype=torch.float64)
    latents[:, 0] = torch.arange(len(kinds))
    for read in (spectral_radius, spectral_norm):
        alone = torch.cat([read(f, latents[i : i + 1]) for i in range(len(kinds))])
        assert torch.allclose(read(f, latents), alone, rtol=1e-3, equal_nan=True)
        assert torch.allclose(read(f, latents, batch_size=3), alone, rtol=1e-3, equal_nan=True)


@pytest.mark.parametrize("kind", [*EASY, *HARD], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("known", [True, False])
def test_a_distance_is_that_to_the_fixed_point_or_unknown(kind, known):
    matrix, radius = operator(kind, 4, 120, torch.float64)
    contraction = matrix * (0.95 / max(radius, float(torch.linalg.matrix_norm(matrix, 2)), 1))
    f, _ = at_zero(contraction)
    latents = draws(2, 120).double()
    radii = torch.full((2,), float(torch.linalg.eigvals(contraction).abs().max()) if known else math.nan)
    found, exact = distance_to_fixed_point(f, latents, radii.double()), latents.norm(dim=1)  # the fixed point is 0
    assert (found >= 0.99 * exact).all()
    assert (found <= 1.2 * exact).all()


def test_a_distance_that_gmres_does_not_reach_is_unknown():
    f = lambda z: z.roll(1, 1)  # noqa: E731 the eigenvalues of I - J fill a circle through 0
    latents = draws(2, 3000)
    for radius in (1.0, math.nan):
        assert distance_to_fixed_point(f, latents, torch.full((2,), radius)).isnan().all()


def at_scale(scale):
    return lambda z: scale * network(z / scale)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_scale_changes_only_the_scale(scale):
    latents = draws(4, D, seed=2)
    radius, f = spectral_radius(network, latents), at_scale(scale)
    assert torch.allclose(spectral_radius(f, scale * latents), radius, rtol=1e-3)
    assert torch.allclose(spectral_norm(f, scale * latents), spectral_norm(network, latents), rtol=1e-3)
    for radii in (radius, radius * math.nan):
        expected = distance_to_fixed_point(network, latents, radii)
        assert torch.allclose(distance_to_fixed_point(f, scale * latents, radii) / scale, expected, rtol=1e-3)
    floors = rounding_floor(f, scale * latents)[0] / scale / rounding_floor(network, latents)[0]
    assert ((floors > 0.5) & (floors < 2)).all()


@pytest.mark.parametrize("scale", [1e30, 1e-30])
@pytest.mark.parametrize("read", [spectral_radius, spectral_norm])
def test_a_slope_of_any_size_is_read(read, scale):
    latents = draws(3, D, seed=2)
    assert torch.allclose(read(lambda z: scale * network(z), latents) / scale, read(network, latents), rtol=1e-3)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_row_that_is_not_finite_is_unknown_alone(bad):
    latents = draws(5, D, seed=2)
    latents[1, 0] = 1e6
    f = lambda z: network(z) * torch.where(z[:, :1] > 1e5, bad, 1.0)  # noqa: E731
    radius = spectral_radius(network, latents)
    rest = torch.arange(5) != 1
    for mine, theirs in (
        (spectral_radius(f, latents), radius),
        (spectral_norm(f, latents), spectral_norm(network, latents)),
        (distance_to_fixed_point(f, latents, radius), distance_to_fixed_point(network, latents, radius)),
    ):
        assert mine[1].isnan()
        assert torch.allclose(mine[rest], theirs[rest])
    floor = rounding_floor(f, latents)[0]
    assert floor[1].isinf()
    assert floor[rest].isfinite().all()


def test_a_cut_gradient_is_an_error_not_a_zero():
    with pytest.raises(NotDifferentiableError, match="cuts the gradient"):
        spectral_radius(lambda z: 0.5 * z.detach(), draws(2, 3))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_floor_is_that_of_the_arithmetic(dtype):
    # Rounding to nearest of a value x is uniform on half a unit in the last place: deviation eps |x| / sqrt(12), times
    # 1/2 to 1 by the place of x in its binade.
    latents = draws(20, 400)
    floor, evaluations = rounding_floor(lambda z: (0.7 * z).to(dtype).float(), latents)
    typical = torch.finfo(dtype).eps / 12**0.5 * 0.7 * latents.norm(dim=1)
    assert (floor < 1.5 * typical).all()
    assert (floor > 0.3 * typical).all()
    assert evaluations == 200


def test_a_kink_is_not_rounding():
    floor, _ = rounding_floor(lambda z: torch.relu(z - 0.01) + 0.2 * z.abs(), draws(20, 400))
    assert (floor < 1e-4 * 20).all()
