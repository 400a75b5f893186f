"""Time the training of many networks of one shape at once against one after the other.

    python recipes/benchmark_training.py                                    # 8 networks of width 4, batches of 16
    python recipes/benchmark_training.py --width 16 --batch-size 64         # as other recipes train
    python recipes/benchmark_training.py --device cuda --width 32 --batch-size 128

Networks of the paper's architecture are trained on scikit-learn's digits, each from weights and in an order of its own:

1. one after the other, by `fmprobe.train_autoencoder`;
2. at once, by `fmprobe.train_autoencoders`, which stacks the weights and maps the loss over them (`torch.func.vmap`);
3. at once with the layers written as grouped convolutions and batched products, in the same loop.

All sides run in one process, in rounds that alternate between them. Median seconds are printed, with the range, and the
largest difference of a weight and of a loss from the first side.
"""

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fmprobe
from fmprobe.images import load_small_set
from fmprobe.seeding import seed_torch
from fmprobe.sharing import alone
from fmprobe.training import Recipe, descend

Losses = list[list[float]]
ALONE = "one after the other"


class Grouped(nn.Module):
    """The reconstruction of S convolutional autoencoders, of images `(S, B, C, H, W)`, by grouped convolutions."""

    def __init__(self, networks: list[fmprobe.ConvAutoencoder]) -> None:
        super().__init__()
        weights, _ = torch.func.stack_module_state(networks)  # type: ignore[arg-type]  # it takes any modules
        self.names, self.count = list(weights), len(networks)
        self.weights = nn.ParameterList(weights.values())
        self.layers = dict(networks[0].named_modules())

    def forward(self, images: Tensor) -> Tensor:
        weights = dict(zip(self.names, self.weights, strict=True))
        x = images.transpose(0, 1).flatten(1, 2)  # (B, S * channels, height, width)
        for name, layer in self.layers.items():
            if isinstance(layer, nn.Linear):  # on (S, B, features)
                x = torch.baddbmm(weights[f"{name}.bias"][:, None], x, weights[f"{name}.weight"].mT)
            elif isinstance(layer, nn.Flatten):
                x = x.unflatten(1, (self.count, -1)).flatten(2).transpose(0, 1)
            elif isinstance(layer, nn.Unflatten):
                x = x.unflatten(2, layer.unflattened_size).transpose(0, 1).flatten(1, 2)
            elif isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
                weight, bias = (weights[f"{name}.{kind}"].flatten(0, 1) for kind in ("weight", "bias"))
                if isinstance(layer, nn.Conv2d):
                    x = F.conv2d(x, weight, bias, stride=2, padding=1, groups=self.count)
                else:
                    x = F.conv_transpose2d(
                        x, weight, bias, 2, 1, output_padding=layer.output_padding, groups=self.count
                    )
            elif isinstance(layer, nn.ReLU):
                x = x.relu()
        return x.unflatten(1, (self.count, -1)).transpose(0, 1)


def one_after_the_other(networks: list[fmprobe.ConvAutoencoder], images: Tensor, recipe: Recipe) -> Losses:
    return [
        fmprobe.train_autoencoder(network, images, **vars(recipe), seed=seed, progress=False)
        for seed, network in enumerate(networks)
    ]


def at_once(networks: list[fmprobe.ConvAutoencoder], images: Tensor, recipe: Recipe) -> Losses:
    return fmprobe.train_autoencoders(networks, images, **vars(recipe), progress=False)


def grouped(networks: list[fmprobe.ConvAutoencoder], images: Tensor, recipe: Recipe) -> Losses:
    made = Grouped(networks)

    def losses_of(batches: Tensor) -> Tensor:
        return (made(batches) - batches).square().flatten(1).mean(1)

    parameters, seeds = list(made.parameters()), range(len(networks))
    losses = descend(networks, parameters, losses_of, images, seeds, recipe, None, False)
    for i, network in enumerate(networks):
        network.load_state_dict({name: weights[i] for name, weights in zip(made.names, parameters, strict=True)})
    return losses


SIDES: dict[str, Callable[[list[fmprobe.ConvAutoencoder], Tensor, Recipe], Losses]] = {
    ALONE: one_after_the_other,
    "at once, fmprobe (vmap)": at_once,
    "at once, grouped convolutions": grouped,
}


@dataclass(frozen=True)
class Training:
    """What one training took and came to: seconds, all weights, and the losses, networks by epochs."""

    seconds: float
    weights: Tensor
    losses: Tensor


def trained(side: str, networks: list[fmprobe.ConvAutoencoder], images: Tensor, recipe: Recipe) -> Training:
    """A training of copies of the networks."""
    copies = copy.deepcopy(networks)
    began = time.perf_counter()
    losses = SIDES[side](copies, images, recipe)  # read from the device, so that all work is done
    seconds = time.perf_counter() - began
    weights = torch.cat([p.detach().flatten() for network in copies for p in network.parameters()])
    return Training(seconds, weights, torch.tensor(losses))


def told(side: str, runs: list[dict[str, Training]]) -> str:
    """A side's seconds, and how far it ends from the networks that were trained one after the other."""
    seconds = [run[side].seconds for run in runs]
    speed = median(run[ALONE].seconds for run in runs) / median(seconds)
    weight = max(float((run[side].weights - run[ALONE].weights).abs().max()) for run in runs)
    loss = max(float((run[side].losses - run[ALONE].losses).abs().max()) for run in runs)
    return (
        f"{side:30}{median(seconds):7.2f} s ({min(seconds):.2f} to {max(seconds):.2f}), {speed:.2f} times as fast; "
        f"largest difference of a weight {weight:.1e}, of a loss {loss:.1e}"
    )


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", type=int, default=8, help="Number of networks.")
    parser.add_argument("--width", type=int, default=4, help="Number of channels of the first layer.")
    parser.add_argument("--k", type=int, default=2, help="Bottleneck.")
    parser.add_argument("--images", type=int, default=500, help="Number of training images.")
    parser.add_argument("--epochs", type=int, default=4, help="Number of epochs.")
    parser.add_argument("--batch-size", type=int, default=16, help="Number of images in a batch of one network.")
    parser.add_argument("--dtype", choices=("float32", "float64"), default="float32", help="Type of the weights.")
    parser.add_argument("--device", default="cpu", help="Device to train on. [default: %(default)s]")
    parser.add_argument("--rounds", type=int, default=3, help="Number of rounds.")
    options = parser.parse_args()

    kind = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    images = load_small_set("digits", n_train=options.images)[0].to(**kind)
    networks = []
    for seed in range(options.networks):
        seed_torch(seed, "benchmark_training recipe: weights")
        networks.append(fmprobe.ConvAutoencoder(options.k, options.width, (1, 28, 28)).to(**kind))
    recipe = Recipe(options.epochs, options.batch_size, learning_rate=1e-3)
    for side in SIDES:
        trained(side, networks, images[: options.batch_size], Recipe(1, options.batch_size))  # warms up
    runs = [{side: trained(side, networks, images, recipe) for side in SIDES} for _ in range(options.rounds)]
    print(
        f"{options.networks} networks of width {options.width}, {len(images)} images in batches of "
        f"{options.batch_size}, {options.epochs} epochs, {options.dtype} on {options.device}, "
        f"{torch.get_num_threads()} threads, {options.rounds} rounds"
    )
    print("\n".join(told(side, runs) for side in SIDES))


if __name__ == "__main__":
    main()
