"""Control images of low complexity, which show whether a score only measures the complexity of an image."""

import torch
from torch import Tensor

from fmprobe.seeding import generator


def control_images(images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """Make sets of control images, each as large as the given set.

    Args:
        images: In-distribution images `(n, C, H, W)` in [0, 1].
        seed: Random seed; image i of a set depends on the seed, i and its own original alone.

    Returns:
        Images `(n, C, H, W)` by name. "constant": each has one colour, drawn uniformly. "noise": each value is drawn
        uniformly and independently. "blurred": `images` under a Gaussian whose standard deviation is an eighth of the
        shorter side. "inverted": 1 - `images`.
    """
    from torchvision.transforms.functional import gaussian_blur

    channels, height, width = images.shape[1:]
    draws = [generator(seed, i, "ood: controls") for i in range(len(images))]
    colours = torch.stack([torch.from_numpy(rng.random(channels, dtype="float32")) for rng in draws])
    noise = torch.stack([torch.from_numpy(rng.random((channels, height, width), dtype="float32")) for rng in draws])
    sigma = min(height, width) / 8
    reach = min(int(2 * sigma), (min(height, width) - 1) // 2)
    return {
        "constant": colours[:, :, None, None].expand(-1, -1, height, width).contiguous(),
        "noise": noise,
        "blurred": gaussian_blur(images, [2 * reach + 1, 2 * reach + 1], [sigma, sigma]).clamp(0, 1),
        "inverted": 1 - images,
    }
