"""The paper's convolutional autoencoder and its training loop."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fmprobe.autoencoder import Autoencoder, from_functions
from fmprobe.errors import InputError


class ConvAutoencoder(nn.Module):
    """Four 3x3 stride-2 convolutions C -> w -> 2w -> 4w -> 8w, a linear bottleneck of k, and the mirror image.

    Fumero et al., ICLR 2026, appendix (experimental details). Images `(B, *image_shape)`, latents `(B, k)`. The output
    is linear: nothing bounds it but the training. Raises InputError for sizes below 1 or images under 16 pixels.
    """

    def __init__(self, k: int, width: int = 32, image_shape: tuple[int, int, int] = (1, 28, 28)) -> None:
        super().__init__()
        channels, height, breadth = image_shape
        if min(k, width, channels) < 1 or min(height, breadth) < 16:
            raise InputError(
                f"ConvAutoencoder(k={k}, width={width}, image_shape={image_shape}): expected positive sizes and images "
                "of at least 16 pixels a side"
            )
        self.image_shape, self.k = image_shape, k
        widths = [channels, width, 2 * width, 4 * width, 8 * width]
        sizes = [(height, breadth)]
        for _ in range(4):
            sizes.append((math.ceil(sizes[-1][0] / 2), math.ceil(sizes[-1][1] / 2)))
        self.inner = (widths[-1], *sizes[-1])

        down: list[nn.Module] = []
        for i in range(4):
            down += [nn.Conv2d(widths[i], widths[i + 1], 3, stride=2, padding=1), nn.ReLU()]
        self.down = nn.Sequential(*down, nn.Flatten(), nn.Linear(math.prod(self.inner), k))

        up: list[nn.Module] = [nn.Linear(k, math.prod(self.inner)), nn.Unflatten(1, self.inner)]
        for i in range(4, 0, -1):
            # A stride of 2 halves odd and even sizes alike; the padding of the output says which it was.
            padding = (1 - sizes[i - 1][0] % 2, 1 - sizes[i - 1][1] % 2)
            layer = nn.ConvTranspose2d(widths[i], widths[i - 1], 3, stride=2, padding=1, output_padding=padding)
            up += [nn.ReLU(), layer]
        self.up = nn.Sequential(*up)

    def encode(self, images: Tensor) -> Tensor:
        return self.down(images)

    def decode(self, latents: Tensor) -> Tensor:
        return self.up(latents)

    def forward(self, images: Tensor) -> Tensor:
        return self.decode(self.encode(images))

    def autoencoder(self, name: str = "ConvAutoencoder") -> Autoencoder:
        """This network as what the probes take."""
        device = next(self.parameters()).device
        return from_functions(
            self.encode,
            self.decode,
            image_shape=self.image_shape,
            latent_shape=(self.k,),
            name=name,
            device=device,
        )


def train_autoencoder(
    model: ConvAutoencoder,
    images: Tensor,
    *,
    epochs: int = 500,
    batch_size: int = 128,
    learning_rate: float = 5e-4,
    weight_decay: float = 1e-4,
    seed: int = 0,
    progress: bool | None = None,
) -> list[float]:
    """Train on the squared error by the paper's recipe: Adam, its rate divided by 10 at half and three quarters.

    `images` `(n, *image_shape)` in [0, 1], on any device. Returns the mean loss of each epoch. The order of the images
    depends on `seed` alone, and the caller's random state is left as it was. Raises InputError for no images.
    """
    from tqdm.auto import tqdm

    if len(images) == 0:
        raise InputError("cannot train on no images: pass at least one")
    device = next(model.parameters()).device
    optimiser: Any = torch.optim.Adam(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    milestones = sorted({max(1, epochs // 2), max(1, 3 * epochs // 4)})
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, milestones)
    order = torch.Generator().manual_seed(seed)
    losses = []
    model.train()
    silent = None if progress is None else not progress
    with tqdm(total=epochs, desc="training", unit="epoch", delay=2, disable=silent) as bar:
        for _ in range(epochs):
            total = 0.0
            for rows in torch.randperm(len(images), generator=order).split(batch_size):
                batch = images[rows.to(images.device)].to(device)
                loss = nn.functional.mse_loss(model(batch), batch)
                optimiser.zero_grad(set_to_none=True)
                loss.backward()
                optimiser.step()
                total += float(loss.detach()) * len(rows)
            schedule.step()
            losses.append(total / len(images))
            bar.set_postfix(loss=f"{losses[-1]:.4f}")
            bar.update()
    model.eval()
    return losses
