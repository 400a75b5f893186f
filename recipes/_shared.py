"""What the recipes share that train the paper's convolutional autoencoder: options, presets and the training itself."""

import argparse
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
from _figures import add_figure_options
from torch import Tensor, nn
from torch.nn import functional as F

import fmprobe
from fmprobe.convolutional import BottleneckAutoencoder
from fmprobe.images import load_small_set

loaded = cache(load_small_set)  # conditions of one sweep use the same images

# The published protocol, one that two CPU cores manage in minutes, and one for scikit-learn's digits.
FULL: dict[str, Any] = {"images": None, "steps": 234_500, "batch_size": 128, "learning_rate": 5e-4, "width": 32}
FULL |= {"starts": 5000, "max_steps": 3000}
REDUCED: dict[str, Any] = {"images": 2000, "steps": 2000, "batch_size": 64, "learning_rate": 1e-3, "width": 16}
SMALLEST = REDUCED | {"images": 500, "steps": 800, "width": 8}


def parser_of(recipe: str, description: str | None, full: str, device: str = "cpu") -> argparse.ArgumentParser:
    """A parser with the options --data, --full, --device, --out, --format and --dpi of the recipe of this name."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = "Folder with mnist.npz, fashion_mnist.npz and cifar10/. [default: no folder, scikit-learn's digits]"
    parser.add_argument("--data", type=Path, help=folder)
    parser.add_argument("--full", action="store_true", help=full)
    parser.add_argument("--device", default=device, help="Device to compute on. [default: %(default)s]")
    parser.add_argument("--out", type=Path, default=Path("runs", recipe), help="Folder for the results.")
    add_figure_options(parser)
    return parser


def add_protocol(parser: argparse.ArgumentParser) -> None:
    """Add the options that a preset fills."""
    parser.add_argument("--images", type=int, help="Number of training images.")
    parser.add_argument("--steps", type=int, help="Number of training steps.")
    parser.add_argument("--batch-size", type=int, help="Number of images in a training step.")
    parser.add_argument("--learning-rate", type=float, help="Learning rate at the start of the training.")
    parser.add_argument("--width", type=int, help="Number of channels of the first layer.")
    parser.add_argument("--starts", type=int, help="Number of starts of each kind.")
    parser.add_argument("--max-steps", type=int, help="Largest number of steps of an orbit.")
    add_seeds(parser)


def add_seeds(parser: argparse.ArgumentParser) -> None:
    """Add the seeds of the networks. `--seed 1` means the same as `--seeds 1`."""
    words = "Seeds of the weights, the training and the starts; one network each."
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help=words)


def fill(arguments: argparse.Namespace, preset: Mapping[str, Any]) -> None:
    """Take from the preset what no option gave."""
    for name, value in preset.items():
        setattr(arguments, name, getattr(arguments, name, None) or value)


def told(arguments: argparse.Namespace, images: Tensor, name: str | None = None) -> list[str]:
    """The network, the data and the number of images, as they stand below a figure."""
    seed = f", seed {arguments.seed}" if hasattr(arguments, "seed") else ""
    network = f"convolutional autoencoder, k = {arguments.k}, width {arguments.width}{seed}"
    return [network, f"{name or arguments.set}, {len(images)} training images"]


def epochs_of(steps: int, images: Tensor, batch_size: int, rounding: Callable[[float], int] = round) -> int:
    """The number of epochs that makes this many training steps; at least one."""
    return max(1, rounding(steps / math.ceil(len(images) / batch_size)))


def untrained(images: Tensor, arguments: argparse.Namespace, **variant: Any) -> fmprobe.ConvAutoencoder:
    """The paper's network for images of this shape. Its weights come from torch's own generator: seed it first."""
    _, channels, height, width = images.shape
    network = fmprobe.ConvAutoencoder(arguments.k, arguments.width, (channels, height, width), **variant)
    return network.to(arguments.device)


def train(
    network: BottleneckAutoencoder,
    images: Tensor,
    arguments: argparse.Namespace,
    *,
    epochs: int,
    seed: int,
    callback: Callable[[int, nn.Module], object] | None = None,
) -> list[float]:
    """The mean loss of each epoch of a training by the options of a recipe."""
    return fmprobe.train_autoencoder(
        network,
        images,
        epochs=epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=getattr(arguments, "weight_decay", 1e-4),
        seed=seed,
        callback=callback,
    )


class _Enough(Exception):
    """The validation error has stopped falling."""


def train_until(
    network: fmprobe.ConvAutoencoder,
    images: Tensor,
    validation: Tensor,
    arguments: argparse.Namespace,
    *,
    epochs: int,
    seed: int,
) -> dict[str, int]:
    """Train until the validation error has not fallen for `arguments.patience` epochs, and put the best weights back.

    Without a patience all epochs are run, and the last is the best.

    Returns:
        The number of epochs that were `run`, at most `epochs`, and the `best` of them, by the error on `validation`.
    """
    if arguments.patience is None:
        train(network, images, arguments, epochs=epochs, seed=seed)
        return {"best": epochs, "run": epochs}
    best, least, run, weights = 0, math.inf, 0, {}

    def watch(epoch: int, model: nn.Module) -> None:
        nonlocal best, least, run, weights
        with torch.no_grad():
            error = float(F.mse_loss(model(validation), validation))
        run = epoch
        if error < least:
            best, least, weights = epoch, error, deepcopy(model.state_dict())
        if epoch - best >= arguments.patience:
            raise _Enough

    with suppress(_Enough):
        train(network, images, arguments, epochs=epochs, seed=seed, callback=watch)
    if weights:  # none where the error was never finite
        network.load_state_dict(weights)
    network.eval()
    return {"best": best, "run": run}
