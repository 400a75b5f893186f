"""Controls of low complexity, which a score that only follows complexity gets wrong."""

import torch
from torch import Tensor

from fmprobe.seeding import generator


def control_images(images: Tensor, seed: int = 0) -> dict[str, Tensor]:
    """As many images of each control as in-distribution `images` `(n, C, H, W)` in [0, 1] are given.

    "constant": one colour an image, drawn uniformly; "noise": uniform and independent a pixel; "blurred": `images`
    under a Gaussian an eighth of the short side wide; "inverted": 1 - `images`. Image i depends on seed and i alone.
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
