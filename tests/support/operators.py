"""Linear maps whose spectral radius is known, by kind and seed: those that Krylov methods find easy and hard."""

import math

import torch
from torch import Tensor

from fmprobe.seeding import generator

Made = tuple[Tensor, float | None]  # a matrix, and its radius where it is known without computing eigenvalues


class Draw:
    """Random parts of matrices d x d, float64, from a stream of their kind."""

    def __init__(self, kind: str, seed: int, d: int) -> None:
        self.numbers, self.d = generator(seed, 0, f"tests: operator {kind}"), d
        self.eye = torch.eye(d, dtype=torch.float64)
        self.radius = self.between(0.3, 1.3)

    def between(self, low: float, high: float) -> float:
        return float(self.numbers.uniform(low, high))

    def normal(self, *shape: int) -> Tensor:
        return torch.from_numpy(self.numbers.standard_normal(shape))

    def orthogonal(self) -> Tensor:
        return torch.linalg.qr(self.normal(self.d, self.d))[0]

    def cycle(self) -> Tensor:
        return self.eye.roll(1, 0)

    def line(self) -> Tensor:
        """A cycle that is cut: nilpotent."""
        cut = self.cycle()
        cut[0] = 0
        return cut

    def powers(self) -> Tensor:
        return torch.diag(self.between(0.5, 0.97) ** torch.arange(self.d, dtype=torch.float64))

    def jordan(self, value: float, size: int) -> Tensor:
        return value * torch.eye(size, dtype=torch.float64) + torch.diag(torch.ones(size - 1, dtype=torch.float64), 1)


def orthogonal(draw: Draw) -> Made:
    return draw.radius * draw.orthogonal(), draw.radius


def permutation(draw: Draw) -> Made:
    return draw.radius * draw.eye[torch.from_numpy(draw.numbers.permutation(draw.d))], draw.radius


def cycle(draw: Draw) -> Made:
    return draw.radius * draw.cycle(), draw.radius


def smoothing(draw: Draw) -> Made:
    return draw.radius * (draw.eye / 2 + draw.cycle() / 4 + draw.cycle().T / 4), draw.radius


def shifted_smoothing(draw: Draw) -> Made:
    return smoothing(draw)[0] @ draw.eye.roll(3, 0), draw.radius


def decaying(draw: Draw) -> Made:
    turned = draw.orthogonal()
    return draw.radius * turned @ draw.powers() @ turned.T, draw.radius


def rotations(draw: Draw) -> Made:
    """Planes turned by random angles, three of them with the largest modulus."""
    blocks = []
    for i in range(draw.d // 2):
        angle, size = draw.between(0, math.pi), 1 if i < 3 else draw.between(0, 0.9)
        turn = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
        blocks.append(draw.radius * size * torch.tensor(turn, dtype=torch.float64))
    return torch.block_diag(*blocks), draw.radius


def gaussian(draw: Draw) -> Made:
    return draw.radius * draw.normal(draw.d, draw.d) / math.sqrt(draw.d), None


def low_rank(draw: Draw) -> Made:
    rank = int(draw.numbers.integers(1, 12))
    return draw.normal(draw.d, rank) @ draw.normal(rank, draw.d) / draw.d, None


def gated(draw: Draw) -> Made:
    """The Jacobian of a ReLU layer between two random ones."""
    gates = torch.diag((draw.normal(draw.d) > 0).double())
    return draw.radius * draw.normal(draw.d, draw.d) @ gates @ draw.normal(draw.d, draw.d) / draw.d, None


def eigenvalue_above_a_cycle(draw: Draw) -> Made:
    return draw.radius * torch.block_diag(draw.eye[:1, :1], 0.9 * draw.eye[1:, 1:].roll(1, 0)), draw.radius


def eigenvalue_above_a_defective_block(draw: Draw) -> Made:
    rest = torch.diag(torch.from_numpy(draw.numbers.uniform(0, 0.5, draw.d - 5)))
    return draw.radius * torch.block_diag(draw.eye[:1, :1], 0.3 * draw.jordan(1, 4), rest), draw.radius


def nothing(draw: Draw) -> Made:
    return 0 * draw.eye, 0.0


def decaying_not_normal(draw: Draw) -> Made:
    basis = draw.normal(draw.d, draw.d) / math.sqrt(draw.d) + draw.between(0, 2) * draw.eye
    return draw.radius * basis @ draw.powers() @ torch.linalg.inv(basis), draw.radius


def triangular(draw: Draw) -> Made:
    diagonal = torch.from_numpy(draw.numbers.uniform(0, draw.radius, draw.d))
    return torch.diag(diagonal) + draw.normal(draw.d, draw.d).triu(1) / math.sqrt(draw.d), float(diagonal.max())


def nilpotent(draw: Draw) -> Made:
    return draw.radius * draw.line(), 0.0


def bidiagonal(draw: Draw) -> Made:
    return draw.radius * (draw.eye + draw.line()) / 2, draw.radius / 2


def weighted_cycle(draw: Draw) -> Made:
    weights = torch.from_numpy(draw.numbers.uniform(0.5, 1.5, draw.d))
    return weights[:, None] * draw.cycle(), float(weights.log().mean().exp())


def slowly_weighted_cycle(draw: Draw) -> Made:
    """As near to normal as a map can be whose radius falls short of its norm."""
    short, turns = draw.between(0.002, 0.1), torch.arange(draw.d, dtype=torch.float64) / draw.d
    weights = 1 - short * (1 - torch.cos(2 * math.pi * turns))
    return weights[:, None] * draw.cycle(), float(weights.log().mean().exp())


def cycle_that_is_nearly_cut(draw: Draw) -> Made:
    weights = torch.full((draw.d,), draw.radius, dtype=torch.float64)
    weights[0] = 10 ** draw.between(-12, -1)
    return weights[:, None] * draw.cycle(), float(weights.log().mean().exp())


def defective(draw: Draw) -> Made:
    """Jordan blocks of one size all over."""
    size = int(draw.numbers.integers(2, 9))
    left = draw.d % size
    blocks = [draw.jordan(draw.radius, size)] * (draw.d // size)
    return torch.block_diag(*blocks, draw.radius * draw.eye[:left, :left]), draw.radius


def defective_on_top(draw: Draw) -> Made:
    rest = torch.diag(torch.from_numpy(draw.numbers.uniform(0, 0.8 * draw.radius, draw.d - 6)))
    return torch.block_diag(draw.jordan(draw.radius, 6), rest), draw.radius


def grcar(draw: Draw) -> Made:
    bands = [torch.diag(torch.ones(draw.d - k, dtype=torch.float64), k) for k in range(4)]
    return draw.radius * (sum(bands) - draw.line()) / 4, None


EASY = (
    orthogonal,
    permutation,
    cycle,
    smoothing,
    shifted_smoothing,
    decaying,
    rotations,
    gaussian,
    low_rank,
    gated,
    eigenvalue_above_a_cycle,
    eigenvalue_above_a_defective_block,
    nothing,
)
HARD = (
    decaying_not_normal,
    triangular,
    nilpotent,
    bidiagonal,
    weighted_cycle,
    slowly_weighted_cycle,
    cycle_that_is_nearly_cut,
    defective,
    defective_on_top,
    grcar,
)


def operator(kind, seed: int, d: int, dtype: torch.dtype) -> tuple[Tensor, float]:
    """A matrix whose entries `dtype` holds, float64, and its spectral radius."""
    matrix, radius = kind(Draw(kind.__name__, seed, d))
    matrix = matrix.to(dtype).double()
    return matrix, float(torch.linalg.eigvals(matrix).abs().max()) if radius is None else radius
