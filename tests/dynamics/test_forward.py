"""Products J v: those of the short rules are those of the whole Jacobian, by reverse mode."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fmprobe.dynamics.forward import RULES, forward_product


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, W1, W2, T2 = drawn(6, 6), drawn(6, 3, 3), drawn(6, 3, 3, 3), drawn(6, 2, 3, 3)
SCALE, BIAS = drawn(6, seed=1), drawn(6, seed=2)

# f on latents of a shape, by what it is made of. Every value varies with every input, or nearly so.
CASES = {
    "linear": ((5, 6), lambda z: F.linear(z, W, BIAS).sin()),
    "linear without a bias": ((5, 6), lambda z: F.linear(z, W).sin()),
    "linear by name": ((5, 6), lambda z: F.linear(z.cos(), weight=W, bias=BIAS)),
    "all by name": ((5, 6), lambda z: F.linear(input=z.cos(), weight=W, bias=BIAS)),
    "a weight of the latents": ((6,), lambda z: F.linear(z, torch.outer(z.sum(0), BIAS), z.mean(0))),
    "a bias of the latents": ((6,), lambda z: F.linear(z, W, bias=z.mean(0))),
    "latents as a weight alone": ((6, 6), lambda z: torch.stack([F.linear(W, one) for one in z])),
    "convolution": ((6, 7, 7), lambda z: F.conv2d(z.sin(), W2, BIAS, 1, 1, 1, 2)),
    "strided, by name": ((6, 6, 6), lambda z: F.interpolate(F.conv2d(z, W2, stride=2, padding=1, groups=2), 6)),
    "padded with zeros of the same size": ((6, 5, 5), lambda z: F.conv2d(z, W2, BIAS, padding="same", groups=2)),
    "in one dimension": ((6, 9), lambda z: F.conv1d(z, W1, BIAS, padding=1, groups=2).sin()),
    "transposed": ((6, 4, 4), lambda z: F.conv_transpose2d(z, T2, None, 1, 1, 0, 3)),
    "layer norm": ((5, 6), lambda z: F.layer_norm(z.exp(), (6,), SCALE, BIAS, 1e-3)),
    "layer norm by name": ((5, 6), lambda z: F.layer_norm(z, (5, 6), eps=0.1)),
    "layer norm, one scale": ((5, 6), lambda z: F.layer_norm(z, [6], weight=SCALE)),
    "group norm": ((6, 3, 3), lambda z: F.group_norm(z.exp(), 3, SCALE, BIAS, 1e-3)),
    "group norm by name": ((6, 8), lambda z: F.group_norm(z, num_groups=2)),
    "modules": (
        (5, 6),
        nn.Sequential(nn.Linear(6, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 6)).double().requires_grad_(False),
    ),
    "nothing": ((6,), lambda z: F.linear(torch.ones_like(z), W, BIAS)),
}


@pytest.mark.parametrize("name", CASES)
def test_products_are_those_of_the_whole_jacobian(name):
    shape, f = CASES[name]
    z, v = drawn(2, *shape, seed=3), drawn(2, *shape, seed=4)
    value, product = forward_product(f, z, v)
    whole = torch.autograd.functional.jacobian(f, z).reshape(z.numel(), z.numel())
    torch.testing.assert_close(value, f(z), rtol=0, atol=0)
    torch.testing.assert_close(product.flatten(), whole @ v.flatten(), rtol=1e-9, atol=1e-9)


def test_every_rule_is_tried_and_taken(monkeypatch):
    taken = set()

    def watched(key, rule):
        return lambda *arguments: taken.add(key) or rule(*arguments)

    for key, rule in RULES.items():
        monkeypatch.setitem(RULES, key, watched(key, rule))
    for shape, f in CASES.values():
        forward_product(f, drawn(2, *shape), drawn(2, *shape, seed=1))
    assert taken == RULES.keys()


def test_half_precision_inside_f_gives_products_as_torch_does():
    network = nn.Sequential(nn.Linear(6, 64), nn.LayerNorm(64), nn.Tanh(), nn.Linear(64, 6)).requires_grad_(False)

    def f(z):
        with torch.autocast("cpu", torch.bfloat16):
            return network(z).float()

    z, v = drawn(4, 6).float(), drawn(4, 6, seed=1).float()
    mine, torchs = forward_product(f, z, v), torch.func.jvp(f, (z,), (v,))
    torch.testing.assert_close(mine[0], torchs[0], rtol=0, atol=0)
    torch.testing.assert_close(mine[1], torchs[1], rtol=0.05, atol=0.02)


def test_f_may_differentiate_itself():
    def f(z):
        return torch.func.grad(lambda x: F.linear(x, W).pow(2).sum())(z) / 10

    z, v = drawn(3, 6), drawn(3, 6, seed=1)
    torch.testing.assert_close(forward_product(f, z, v)[1], v @ (W.T @ W) / 5)
