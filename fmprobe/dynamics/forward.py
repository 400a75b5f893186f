"""Products J v in forward mode: `torch.func.jvp`, with shorter rules for the layers that take most of the time.

The general rules of torch multiply every weight by a tangent of zeros. That costs no arithmetic, but for each layer a
third of a millisecond of bookkeeping, which takes longer than the layer where it is small.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

from fmprobe.dynamics.calls import Function

Rule = Callable[[Tensor, Tensor, tuple[Any, ...], dict[str, Any]], Tensor]


def forward_product(f: Function, latents: Tensor, tangents: Tensor) -> tuple[Tensor, Tensor]:
    """Values of f and the products J_f v, row by row, each of the shape of the latents.

    Args:
        f: the map on a batch of latents.
        latents: the latents `(m, *latent_shape)`.
        tangents: the vectors v `(m, *latent_shape)`.

    Raises:
        RuntimeError: an operator of f has no forward mode.
        NotImplementedError: likewise.
    """

    def within(point: Tensor) -> Tensor:
        with _ShortRules():
            return f(point)

    with torch.no_grad():  # no graph is kept, also where weights ask for gradients
        value, product = torch.func.jvp(within, (latents,), (tangents,))[:2]
    return value, product


class _ShortRules(TorchFunctionMode):
    """Takes layers whose weights have no tangent by the rules below, and leaves everything else to torch."""

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if (rule := RULES.get(func)) is None or not args:
            return func(*args, **given)
        first, *others = args
        point, tangent = forward_ad.unpack_dual(first)
        if tangent is None or any(map(_has_tangent, [*others, *given.values()])):
            return func(*args, **given)
        value = func(point, *others, **given)
        product = rule(point, tangent, tuple(others), given)
        return forward_ad.make_dual(value, product.to(value.dtype).reshape(value.shape))


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def _linear(layer: Callable[..., Tensor]) -> Rule:
    """The rule of a layer that is linear in its input, but for a bias: the second of the other arguments."""

    def rule(_: Tensor, tangent: Tensor, others: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
        unbiased = (*others[:1], None, *others[2:]) if len(others) > 1 else others
        return layer(tangent, *unbiased, **{key: given[key] for key in given.keys() - {"bias"}})

    return rule


def _layer_norm(point: Tensor, tangent: Tensor, others: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    shape, weight, _, eps = _named(others, given, normalized_shape=(), weight=None, bias=None, eps=1e-5)
    product = _standardised(point, tangent, tuple(range(-len(shape), 0)), eps)
    return product if weight is None else product * weight


def _group_norm(point: Tensor, tangent: Tensor, others: tuple[Any, ...], given: dict[str, Any]) -> Tensor:
    groups, weight, _, eps = _named(others, given, num_groups=1, weight=None, bias=None, eps=1e-5)
    grouped = (len(point), groups, -1)
    product = _standardised(point.reshape(grouped), tangent.reshape(grouped), (2,), eps).reshape(point.shape)
    return product if weight is None else product * weight.reshape(-1, *[1] * (point.ndim - 2))


def _standardised(point: Tensor, tangent: Tensor, dims: tuple[int, ...], eps: float) -> Tensor:
    """The derivative of (x - mean) / sqrt(variance + eps) along a tangent."""
    variance, mean = torch.var_mean(point, dims, correction=0, keepdim=True)
    scale = (variance + eps).rsqrt()
    unit = (point - mean) * scale
    return (tangent - tangent.mean(dims, keepdim=True) - unit * (unit * tangent).mean(dims, keepdim=True)) * scale


def _named(others: tuple[Any, ...], given: Mapping[str, Any], **defaults: Any) -> list[Any]:
    """The arguments of a layer after its input, in order, whether given by place or by name."""
    values = dict(zip(defaults, others, strict=False))
    return [values.get(name, given.get(name, default)) for name, default in defaults.items()]


RULES: dict[Any, Rule] = {
    F.linear: _linear(F.linear),
    F.conv1d: _linear(F.conv1d),
    F.conv2d: _linear(F.conv2d),
    F.conv_transpose2d: _linear(F.conv_transpose2d),
    F.layer_norm: _layer_norm,
    F.group_norm: _group_norm,
}
