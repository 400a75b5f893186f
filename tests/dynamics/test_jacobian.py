"""Matrix-free Jacobian quantities against the full Jacobian."""

import pytest
import torch
from support.maps import draws
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


class NoForwardMode(torch.autograd.Function):
    """An identity whose derivative is known backward only, as through many operators."""

    @staticmethod
    def forward(ctx, z):
        return z.clone()

    @staticmethod
    def backward(ctx, *grads):
        return grads[0]


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
