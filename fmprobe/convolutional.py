"""Small autoencoders to train: the paper's convolutional one, a fully connected one, and their variants."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder, from_functions
from fmprobe.errors import InputError

# The default strength of each variant. `BottleneckAutoencoder` says what it means.
STRENGTHS = {"plain": 0.0, "denoising": 0.3, "contractive": 0.1, "variational": 0.1, "sparse": 0.01, "masked": 0.5}
VARIANTS = tuple(STRENGTHS)
PATCH = 4  # side in pixels of the patches that are masked


class BottleneckAutoencoder(nn.Module):
    """What the small autoencoders share: an encoder `down` to k numbers, a decoder `up`, and a loss by `variant`.

    Images are `(B, *image_shape)` and latents `(B, k)`. Both are taken as they are. The output is linear, so that only
    the training bounds it.

    The variants, and the meaning of `strength` in each:

    - plain: none.
    - denoising: standard deviation of the Gaussian noise on the images (Vincent et al. 2008).
    - contractive: weight of the squared Jacobian norm of the encoder over k, a Hutchinson estimate (Rifai et al. 2011).
    - variational: weight of the divergence against the squared error summed over pixels (Kingma and Welling 2014). The
      mean is the code.
    - sparse: weight of the mean absolute code.
    - masked: share of 4x4 patches that are set to zero (He et al. 2022).

    Args:
        k: number of values of a latent.
        width: width of the network.
        image_shape: `(C, H, W)`.
        variant: one of the variants above.
        strength: strength of the variant; by default that of `STRENGTHS`.

    Raises:
        InputError: the variant is unknown, the strength is outside its range, or a size is below 1.
    """

    down: nn.Module
    up: nn.Module

    def __init__(
        self,
        k: int,
        width: int,
        image_shape: tuple[int, int, int],
        variant: str = "plain",
        strength: float | None = None,
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise InputError(f"unknown variant {variant!r}: expected one of {', '.join(VARIANTS)}")
        if len(image_shape) != 3 or min(k, width, *image_shape) < 1 or k % 1 or width % 1:
            raise InputError(
                f"{type(self).__name__}(k={k}, width={width}, image_shape={image_shape}): expected sizes from 1 up, "
                "and images (C, H, W)"
            )
        strength = STRENGTHS[variant] if strength is None else strength
        most = {"plain": 0.0, "masked": 1.0}.get(variant, math.inf)
        if not 0 <= strength <= most or strength == math.inf:
            raise InputError(
                f"strength {strength} of the variant {variant}: expected a finite number from 0 to {most:g}"
            )
        self.image_shape, self.k, self.variant, self.strength = image_shape, k, variant, strength
        self.codes = 2 * k if variant == "variational" else k  # number of values that `down` gives

    def encode(self, images: Tensor) -> Tensor:
        """Encode images `(B, *image_shape)` to latents `(B, k)`."""
        return self.down(images)[:, : self.k]

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents `(B, k)` to images `(B, *image_shape)`."""
        return self.up(latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def loss(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """Mean squared error of `images` `(B, *image_shape)`, and what the variant adds to it, with noise from
        `generator`.
        """
        return self.loss_under(self.noise(images, generator), images)

    def noise(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """What the variant draws for `images` `(B, *image_shape)`, one row per image; rows are empty if it draws
        nothing.
        """
        if self.variant == "masked":
            return self._kept(images, generator)
        values = {"denoising": self.image_shape, "variational": (self.k,), "contractive": (self.k,)}
        shape = (len(images), *values.get(self.variant, (0,)))
        return torch.randn(shape, generator=generator).to(images)

    def loss_under(self, noise: Tensor, images: Tensor) -> Tensor:
        """The loss of `images` `(B, *image_shape)` where their noise is given. It draws nothing, so that `torch.func`
        can transform it.
        """
        if self.variant == "denoising":
            return F.mse_loss(self(images + self.strength * noise), images)
        if self.variant == "masked":
            return F.mse_loss(self(images * noise), images)
        if self.variant == "variational":
            mean, log_variance = self.down(images).chunk(2, dim=1)
            code = mean + (0.5 * log_variance).exp() * noise
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
            return F.mse_loss(self.decode(code), images) + self.strength * divergence / images[0].numel()
        if self.variant == "contractive":
            code, pull, *_ = torch.func.vjp(self.encode, images)
            (pulled,) = pull(noise)
            penalty = pulled.square().flatten(1).sum(1).mean() / self.k
            return F.mse_loss(self.decode(code), images) + self.strength * penalty
        code = self.encode(images)
        error = F.mse_loss(self.decode(code), images)
        return error + self.strength * code.abs().mean() if self.variant == "sparse" else error

    def _kept(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """A mask `(B, 1, H, W)`: 1 for the pixels of patches that are kept, 0 for the others."""
        height, width = self.image_shape[1:]
        grid = (len(images), 1, math.ceil(height / PATCH), math.ceil(width / PATCH))
        kept = (torch.rand(grid, generator=generator) >= self.strength).to(images)
        return kept.repeat_interleave(PATCH, 2).repeat_interleave(PATCH, 3)[:, :, :height, :width]

    def autoencoder(self, name: str | None = None) -> Autoencoder:
        """This network as the `Autoencoder` that the probes take."""
        made = from_functions(
            self.encode,
            self.decode,
            image_shape=self.image_shape,
            latent_shape=(self.k,),
            name=name or type(self).__name__,
            device=next(self.parameters()).device,
        )
        made.any_range = False  # it is trained on images in [0, 1]
        made.provenance |= {"variant": self.variant, "strength": self.strength}
        return made


class ConvAutoencoder(BottleneckAutoencoder):
    """The paper's convolutional autoencoder (Fumero et al., ICLR 2026, appendix, experimental details).

    It has four 3x3 stride-2 convolutions C -> w -> 2w -> 4w -> 8w, a linear bottleneck of k values, and the mirror
    image of both.

    Args:
        k: number of values of a latent.
        width: w, the number of channels after the first convolution.
        image_shape: `(C, H, W)`, at least 16 pixels a side.
        variant: as in `BottleneckAutoencoder`.
        strength: as in `BottleneckAutoencoder`.

    Raises:
        InputError: as in `BottleneckAutoencoder`, or the images are below 16 pixels.
    """

    def __init__(
        self,
        k: int,
        width: int = 32,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        variant: str = "plain",
        strength: float | None = None,
    ) -> None:
        super().__init__(k, width, image_shape, variant, strength)
        channels, height, breadth = image_shape
        if min(height, breadth) < 16:
            raise InputError(
                f"ConvAutoencoder takes images of at least 16 pixels a side, got image_shape={image_shape}"
            )
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        sizes = [(height, breadth)]
        for _ in range(4):
            sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
        self.inner = (widths[-1], *sizes[-1])

        down: list[nn.Module] = []
        for i in range(4):
            down += [nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1), nn.ReLU()]
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(self.inner), self.codes))

        up: list[nn.Module] = [nn.Linear(k, math.prod(self.inner)), nn.Unflatten(1, self.inner)]
        for i in range(4, 0, -1):
            # A stride of 2 maps an odd and an even size to the same half. The output padding restores the right one.
            padding = (1 - sizes[i - 1][0] % 2, 1 - sizes[i - 1][1] % 2)
            layer = nn.ConvTranspose2d(widths[i], widths[i - 1], 3, stride=2, padding=1, output_padding=padding)
            up += [nn.ReLU(), layer]
        self.up = nn.Sequential(*up)


class DenseAutoencoder(BottleneckAutoencoder):
    """A fully connected autoencoder: pixels -> w -> w -> k with ReLU between, and the mirror image.

    Args:
        k: number of values of a latent.
        width: w, the number of hidden units.
        image_shape: `(C, H, W)`.
        variant: as in `BottleneckAutoencoder`.
        strength: as in `BottleneckAutoencoder`.

    Raises:
        InputError: as in `BottleneckAutoencoder`.
    """

    def __init__(
        self,
        k: int,
        width: int = 512,
        image_shape: tuple[int, int, int] = (1, 28, 28),
        variant: str = "plain",
        strength: float | None = None,
    ) -> None:
        super().__init__(k, width, image_shape, variant, strength)
        pixels = math.prod(image_shape)
        self.down = nn.Sequential(nn.Flatten(), *_layers(pixels, width, width, self.codes))
        self.up = nn.Sequential(*_layers(k, width, width, pixels), nn.Unflatten(1, image_shape))


def _layers(*widths: int) -> list[nn.Module]:
    """Linear layers of these widths with ReLU between."""
    layers: list[nn.Module] = []
    for i in range(len(widths) - 1):
        layers += [nn.Linear(widths[i], widths[i + 1]), nn.ReLU()]
    return layers[:-1]
