"""The embedded model of `fmprobe demo`, and the images that it was trained on."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SIDE = 16  # of its images, in pixels


def training_digits(per_class: int = 3) -> "tuple[Tensor, Tensor]":
    """The first digits of each class in scikit-learn's `load_digits`, framed and enlarged.

    Args:
        per_class: how many of each class; the embedded model was trained on 3.

    Returns:
        Images `(10 * per_class, 3, SIDE, SIDE)` in [0, 1], and their labels.
    """
    import torch
    import torch.nn.functional as F
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    labels = torch.as_tensor(digits.target)
    chosen = torch.cat([torch.nonzero(labels == c)[:per_class, 0] for c in range(10)])
    small = torch.as_tensor(digits.images, dtype=torch.float32)[chosen, None] / 16  # grey levels 0 … 16
    framed = F.pad(small, (1, 1, 1, 1))  # the digits touch the edges; a margin makes them easier to read
    large = F.interpolate(framed, size=SIDE, mode="bicubic", align_corners=False).clamp(0, 1)
    return large.expand(-1, 3, -1, -1).contiguous(), labels[chosen]
