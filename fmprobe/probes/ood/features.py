"""Feature vectors of latents, which the baselines compare."""

import math

import numpy as np
from torch import Tensor

POOL_ABOVE = 512  # latents with more numbers than this are also pooled
LARGEST_BANK = 2**29  # numbers in a bank of features, 2 GiB; larger latents are only pooled


def feature_vectors(latents: Tensor, n_fit: int) -> dict[str, np.ndarray]:
    """Feature vectors of latents by kind: "z", the whole latent; "pooled", its mean over tokens or places; and
    "spread", its standard deviation over them, which tells textures apart.

    Args:
        latents: Latents `(B, *latent_shape)`: vectors `(d,)`, tokens `(N, D)` or maps `(C, h, w)`.
        n_fit: How many fit images the bank has. There is no "z" where a bank of it would exceed 2 GiB.

    Returns:
        Rows `(B, d)`, float32. Vectors and latents of at most 512 numbers have only "z".
    """
    size = math.prod(latents.shape[1:])
    pools = size > POOL_ABOVE and latents.ndim > 2
    vectors = {}
    if size * n_fit <= LARGEST_BANK or not pools:
        vectors["z"] = latents.flatten(1)
    if pools:
        places = latents if latents.ndim == 3 else latents.flatten(2).mT
        vectors |= {"pooled": places.mean(1), "spread": places.std(1, correction=0)}
    return {kind: rows.float().cpu().numpy() for kind, rows in vectors.items()}
