"""Lyapunov exponents against maps whose exponents are known."""

import math

import pytest
import torch
from support.maps import draws, linear, logistic, rotation, uniform

import fmprobe
from fmprobe import lyapunov_exponents

HENON = (0.41922, math.log(0.3) - 0.41922)  # Sprott 2003; the sum is the log of the constant Jacobian determinant


def henon(z):
    return torch.stack([1 - 1.4 * z[:, 0] ** 2 + z[:, 1], 0.3 * z[:, 0]], 1)


def doubling(z):
    return 2 * z % 1


def rotated(f, d, seed=0):
    """f on each coordinate, seen in another orthonormal basis."""
    basis = torch.linalg.qr(torch.randn(d, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64))[0]

    def g(z):
        q = basis.to(z)
        return f(z @ q) @ q.T

    return g, basis


def within(found, exact, least=1e-9, of=4):
    """Means over the starts lie within four standard errors of the exact values."""
    mean = found.values.mean(0)
    error = (found.standard_errors.square().mean(0) / len(found.values)).sqrt()
    return bool(((mean - torch.tensor(exact, dtype=torch.float64)).abs() <= of * error + least).all())


def test_the_logistic_map():
    found = lyapunov_exponents(logistic(4), uniform(64).double(), steps=400)
    assert found.method == "jvp"
    assert within(found, [math.log(2)])
    assert 0 < found.standard_errors.max() < 0.1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_doubling_map_stretches_every_step_alike(dtype):
    exact = lyapunov_exponents(doubling, uniform(8).to(dtype), steps=20, burn_in=0)
    assert torch.allclose(exact.values, torch.tensor(math.log(2), dtype=torch.float64), atol=1e-12)
    assert exact.standard_errors.max() < 1e-12


def test_both_exponents_of_the_henon_map_and_its_dimension():
    found = lyapunov_exponents(henon, 0.02 * draws(32, 2).double(), 2, steps=600)
    assert within(found, HENON, least=2e-3)
    assert torch.allclose(found.values.sum(1), torch.tensor(math.log(0.3), dtype=torch.float64), atol=1e-10)
    assert found.kaplan_yorke.mean() == pytest.approx(1 + HENON[0] / -HENON[1], abs=0.01)


def test_a_rotation_and_a_cycle_neither_part_nor_approach():
    turning = lyapunov_exponents(rotation(0.137), draws(5, 2).double(), 2)
    assert turning.values.abs().max() < 1e-12
    flat = lyapunov_exponents(lambda z: torch.roll(z, 1, 1), draws(5, 6), 3)
    assert flat.values.abs().max() < 1e-6


def test_a_linear_map_has_the_logarithms_of_its_eigenvalues():
    rates = (0.9, 0.5, -0.4, 0.1)
    f, _ = rotated(linear(*rates), 4)
    found = lyapunov_exponents(f, draws(6, 4).double(), 4, steps=100)
    exact = torch.tensor([abs(rate) for rate in rates], dtype=torch.float64).log()
    assert torch.allclose(found.values, exact.expand(6, -1), atol=1e-3)
    assert (found.kaplan_yorke == 0).all()


def test_a_defective_map_has_the_logarithm_of_its_spectral_radius():
    """A Jordan block grows like t^2 times rho^t, so that the mean approaches log(rho) like log(t) / t."""
    block = 0.8 * torch.eye(3, dtype=torch.float64) + torch.diag(torch.ones(2, dtype=torch.float64), 1)
    found = lyapunov_exponents(lambda z: z @ block.T, draws(4, 3).double(), steps=1000, burn_in=1000)
    assert (found.values - math.log(0.8)).abs().max() <= 2 * math.log(2) / 1000 * 1.1


def test_a_constant_map_takes_every_direction_to_zero():
    found = lyapunov_exponents(lambda z: 0 * z + 1, draws(3, 4))
    assert (found.values == -torch.inf).all()


@pytest.mark.parametrize("shape", [(4, 16), (64,)])
def test_many_coupled_chaotic_coordinates(shape):
    """Tent maps of several slopes, mixed by a rotation: the exponents are the logarithms of the slopes."""
    slopes = torch.tensor([1.3] * 61 + [1.9, 1.75, 1.6])
    f, basis = rotated(lambda x: slopes.to(x) * torch.minimum(x, 1 - x), 64)
    starts = (torch.rand(8, 64, generator=torch.Generator().manual_seed(1)).double() @ basis.T).float()
    found = lyapunov_exponents(lambda z: f(z.flatten(1)).reshape(z.shape), starts.reshape(8, *shape), 3, burn_in=100)
    assert found.values.shape == found.standard_errors.shape == (8, 3)
    assert torch.allclose(found.values, torch.tensor([1.9, 1.75, 1.6]).double().log().expand(8, -1), atol=1e-3)


def test_float32_agrees_with_float64():
    starts = uniform(64)
    one, other = (lyapunov_exponents(logistic(3.9), starts.to(t), steps=400) for t in (torch.float32, torch.float64))
    error = (one.standard_errors.square().mean() + other.standard_errors.square().mean()).sqrt() / 8
    assert abs(one.values.mean() - other.values.mean()) < 4 * error


def test_either_method_can_be_asked_for():
    starts = uniform(64).double()
    one, other = (lyapunov_exponents(logistic(4), starts, steps=400, method=m) for m in ("jvp", "twin orbits"))
    assert (one.method, other.method) == ("jvp", "twin orbits")
    assert within(one, [math.log(2)])
    assert within(other, [math.log(2)], least=1e-4)


class Cut(torch.autograd.Function):
    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


@pytest.mark.parametrize(
    "cut", [torch.Tensor.detach, Cut.apply, lambda z: z / 2 + z.detach() / 2], ids=["whole", "function", "half"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_twin_orbits_where_autograd_does_not_know_the_derivative(cut, dtype):
    found = lyapunov_exponents(lambda z: logistic(4)(cut(z)), uniform(64).to(dtype), steps=400)
    assert found.method == "twin orbits"
    assert within(found, [math.log(2)], least=0.01)


@pytest.mark.parametrize("method", [None, "twin orbits"])
@pytest.mark.parametrize(
    ("scale", "offset", "dtype"),
    [
        (1e-4, 0, torch.float32),
        (1e-2, 0, torch.float32),
        (1e10, 0, torch.float32),
        (1, 1000, torch.float32),
        (1e-20, 0, torch.float64),
        (1, 1e6, torch.float64),
    ],
)
def test_an_exponent_depends_on_neither_scale_nor_offset(scale, offset, dtype, method):
    def f(z):
        return offset + scale * logistic(3.9)((z - offset) / scale)

    starts = offset + scale * uniform(12).to(dtype)
    found = lyapunov_exponents(f, starts, steps=400, burn_in=0, method=method, progress=False)
    assert found.method == (method or "jvp")
    exact, z = [], starts  # the mean logarithm of the derivative along the same orbits, rounded as they are
    for _ in range(400):
        exact.append((3.9 * (1 - 2 * ((z - offset) / scale).double())).abs().log())
        z = f(z)
    # Twins on both sides of the maximum may meet in one number, which takes a single orbit to minus infinity.
    off = (found.values - torch.stack(exact).mean(0)).abs()
    assert float(off.max() if method is None else off.median()) < 0.02


def test_the_method_does_not_depend_on_the_batch():
    def f(z):  # two invariant regions, in one of which the latents are resolved a thousand times worse
        offset = torch.where(z > 500, 1000.0, 0.0)
        return offset + logistic(3.9)(z - offset)

    starts = torch.cat([uniform(4), 1000 + uniform(4)])
    for method in (None, "twin orbits"):
        one, *others = (
            lyapunov_exponents(f, starts, steps=50, batch_size=b, method=method, progress=False) for b in (256, 4, 1)
        )
        assert {other.method for other in others} == {one.method}
        for other in others:
            torch.testing.assert_close(one.values, other.values)


def test_a_start_is_its_own_whatever_diverges_beside_it_and_however_it_is_batched():
    def f(z):
        return torch.where(z[:, :1] > 5, z * 1e30, henon(z[:, :2]))

    starts = 0.02 * draws(7, 2).double()
    starts[3] = 10.0
    whole = lyapunov_exponents(f, starts, 2, steps=50, burn_in=10)
    assert whole.values[3].isnan().all()
    assert whole.standard_errors[3].isnan().all()
    assert whole.kaplan_yorke[3].isnan()
    assert whole.values[[0, 1, 2, 4, 5, 6]].isfinite().all()
    parts = lyapunov_exponents(f, starts, 2, steps=50, burn_in=10, batch_size=2)
    assert torch.equal(parts.values.nan_to_num(), whole.values.nan_to_num())


def test_a_model_is_a_map_and_a_fixed_point_gives_the_spectral_radius():
    model = fmprobe.from_functions(
        lambda x: x, lambda z: torch.tanh(z) * 0.7 + 0.1, image_shape=(1, 2, 2), latent_shape=(1, 2, 2)
    )
    found = lyapunov_exponents(model, model.sample_latents(4), steps=50)
    attractors = fmprobe.find_attractors(model, 8)
    assert found.values.flatten().tolist() == pytest.approx([math.log(attractors.spectral_radius[0])] * 4, abs=1e-3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n_exponents": 3}, "at most 2"),
        ({"n_exponents": 0}, "n_exponents"),
        ({"steps": 3}, "steps must be a whole number and at least 4"),
        ({"burn_in": -1}, "burn_in"),
        ({"batch_size": 0}, "batch_size"),
        ({"seed": -1}, "seed"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        lyapunov_exponents(henon, draws(2, 2), **wrong)


def test_no_starts_give_no_exponents():
    assert lyapunov_exponents(henon, draws(0, 2)).values.shape == (0, 1)
