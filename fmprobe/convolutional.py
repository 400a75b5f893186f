"""Small autoencoders to train: the paper's convolutional one, a fully connected one, their variants, and the training
loop.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fmprobe.autoencoder import Autoencoder, check_images, from_functions
from fmprobe.dynamics.checks import check_counts, check_seed
from fmprobe.errors import InputError
from fmprobe.progress import progress_of
from fmprobe.seeding import generator, seed_torch, torch_generator

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

        def normal(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator).to(like)

        if self.variant == "denoising":
            return F.mse_loss(self(images + self.strength * normal(images)), images)
        if self.variant == "masked":
            return F.mse_loss(self(images * self._kept(images, generator)), images)
        if self.variant == "variational":
            mean, log_variance = self.down(images).chunk(2, dim=1)
            code = mean + (0.5 * log_variance).exp() * normal(mean)
            divergence = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum(1).mean()
            return F.mse_loss(self.decode(code), images) + self.strength * divergence / images[0].numel()
        images = images.detach().requires_grad_(self.variant == "contractive")
        code = self.encode(images)
        error = F.mse_loss(self.decode(code), images.detach())
        if self.variant == "contractive":
            (pulled,) = torch.autograd.grad((code * normal(code)).sum(), images, create_graph=True)
            return error + self.strength * pulled.square().flatten(1).sum(1).mean() / self.k
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


def train_autoencoder(
    model: BottleneckAutoencoder,
    images: Tensor,
    *,
    epochs: int = 500,
    batch_size: int = 128,
    learning_rate: float = 5e-4,
    weight_decay: float = 1e-4,
    seed: int = 0,
    callback: Callable[[int, nn.Module], object] | None = None,
    progress: bool | None = None,
) -> list[float]:
    """Train a model on its own loss by the paper's recipe: Adam, with its rate divided by 10 at half and at three
    quarters.

    The order of the images and all noise depend on `seed` alone. The caller's random state is left as it was. The model
    is left in eval mode.

    Args:
        model: the model to train.
        images: images `(n, *image_shape)` in [0, 1], on any device.
        epochs: number of epochs.
        batch_size: number of images in a batch.
        learning_rate: learning rate at the beginning.
        weight_decay: weight decay of Adam.
        seed: seed of the order and of the noise.
        callback: called as `callback(epoch, model)`, before the training with 0 and after each epoch with 1, 2, …; for
            example an `AttractorTracker`.
        progress: whether a bar is shown; None shows one on a terminal, and lines elsewhere.

    Returns:
        The mean loss of each epoch.

    Raises:
        InputError: there are no images, or not such as the model takes, or a rate makes no sense.
        ValueError: a number makes no sense.
    """
    _check_training(model, images, epochs, batch_size, learning_rate, weight_decay, seed)
    call = callback or (lambda epoch, model: None)
    device = next(model.parameters()).device
    optimiser: Any = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    milestones = sorted({max(1, epochs // 2), max(1, 3 * epochs // 4)})
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones)
    noise = torch_generator(seed, "autoencoders: noise of the variant")
    losses = []
    forked = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with forked, progress_of("training", epochs, shown=progress, unit="epoch") as bar:
        seed_torch(seed, "autoencoders: layers")  # for layers that draw by themselves, such as dropout
        model.train()
        call(0, model)
        for epoch in range(1, epochs + 1):
            order = generator(seed, epoch, "autoencoders: order of the images").permutation(len(images))
            losses.append(_train_epoch(model, images, torch.from_numpy(order).split(batch_size), optimiser, noise))
            schedule.step()
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            bar.update()
            call(epoch, model)
    model.eval()
    return losses


def _check_training(
    model: BottleneckAutoencoder,
    images: Tensor,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
) -> None:
    """Check the arguments of `train_autoencoder`."""
    check_images(images, model.image_shape)
    if len(images) == 0:
        raise InputError("cannot train on no images: pass at least one")
    check_counts(0, epochs=epochs)
    check_counts(batch_size=batch_size)
    check_seed(seed)
    if not 0 < learning_rate < math.inf or not 0 <= weight_decay < math.inf:
        raise InputError(
            f"learning_rate must be positive and finite, weight_decay at least 0: got {learning_rate}, {weight_decay}"
        )


def _train_epoch(
    model: BottleneckAutoencoder,
    images: Tensor,
    batches: Sequence[Tensor],
    optimiser: torch.optim.Optimizer,
    noise: torch.Generator,
) -> float:
    """Train for one epoch on batches of rows of the images; return the mean loss."""
    device, total = next(model.parameters()).device, 0.0
    for rows in batches:
        loss = model.loss(images[rows.to(images.device)].to(device), noise)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        total += float(loss.detach()) * len(rows)
    return total / len(images)
