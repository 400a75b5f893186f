"""Random streams that depend on a seed and an index alone: item i is the same in any batch, order or process."""

import numpy as np


def generator(seed: int, index: int) -> np.random.Generator:
    """The random stream of item `index` under `seed`: Philox, a counter-based generator (Salmon et al. 2011)."""
    return np.random.Generator(np.random.Philox(key=seed % 2**64, counter=[0, 0, 0, index]))


def normal_rows(n: int, size: int, seed: int = 0, first: int = 0) -> np.ndarray:
    """Standard normal rows `first … first + n - 1`, float32 `(n, size)`; row i depends on `seed` and i alone."""
    rows = np.empty((n, size), dtype=np.float32)
    for i in range(n):
        generator(seed, first + i).standard_normal(dtype=np.float32, out=rows[i])
    return rows
