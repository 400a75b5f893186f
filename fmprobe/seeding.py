"""Random streams: each thing that is drawn has its own stream, and item i of it depends on the seed and i alone.

A stream has a name. Streams with two different names never share numbers under any seeds. So a random baseline is
independent of what it is compared with.
"""

import hashlib
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

STARTS = "starts"  # the stream of the starts of orbits, from N(0, I)


def generator(seed: int, index: int, stream: str) -> np.random.Generator:
    """The random stream of item `index` under `seed`: Philox, a counter-based generator (Salmon et al. 2011).

    Its key of 128 bits holds the seed and the stream, so different streams never overlap.
    """
    key = np.array([int(seed) % 2**64, _number(stream)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=[0, 0, 0, index]))


def normal_rows(n: int, size: int, seed: int, stream: str, first: int = 0) -> np.ndarray:
    """Draw standard normal rows `first … first + n - 1`, float32 `(n, size)`; row i depends on seed, stream and i
    alone.
    """
    rows = np.empty((n, size), dtype=np.float32)
    for i in range(n):
        generator(seed, first + i, stream).standard_normal(dtype=np.float32, out=rows[i])
    return rows


def torch_seed(seed: int, stream: str, index: int = 0) -> int:
    """The first number of a stream, from 0 to 2**63, which seeds torch's own generators."""
    return int(generator(seed, index, stream).integers(2**63, dtype=np.int64))


def torch_generator(seed: int, stream: str, index: int = 0) -> "torch.Generator":
    """torch's own CPU generator seeded by a stream, for what only torch can draw."""
    import torch

    return torch.Generator().manual_seed(torch_seed(seed, stream, index))


def seed_torch(seed: int, stream: str, index: int = 0) -> None:
    """Seed torch's global generators by a stream, for modules, which draw their weights only from these."""
    import torch

    torch.manual_seed(torch_seed(seed, stream, index))


def index_of(name: str) -> int:
    """The index of a thing that has a name and no number."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")


def _number(stream: str) -> int:
    """The half of the key that a stream's name gives. For the starts it is 0, as it was before there were streams."""
    return 0 if stream == STARTS else index_of(stream)
