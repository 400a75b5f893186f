"""When do attractors found from noise meet those of the training images? A map of the conditions.

    python recipes/noise_meets_training.py                                  # scikit-learn's digits, k = 8
    python recipes/noise_meets_training.py --data ../shared/data --set mnist

An open question of Fumero et al., ICLR 2026 (sec. 6). From one condition in the middle, width, weight decay, noise
level (of a denoising autoencoder) and number of starts are changed one at a time. Prints, for each condition and at
each epoch measured, the share of training attractors with a noise attractor at cos > 0.99, and the reverse; `--out`
keeps the records and the curves.
"""

import argparse
import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fmprobe
from fmprobe.images import load_small_set
from fmprobe.report.training import matched_curves
from fmprobe.runs import write_json


@dataclass(frozen=True)
class Condition:
    """How a network is trained, and from how many starts of each kind its attractors are sought."""

    width: int = 8
    weight_decay: float = 1e-4
    noise: float = 0.0
    starts: int = 64


MIDDLE = Condition()
CHANGES: dict[str, list[Any]] = {
    "width": [4, 16],
    "weight_decay": [0.0, 1e-3],
    "noise": [0.1, 0.3],
    "starts": [16, 256],
}


def conditions(full: bool) -> dict[str, Condition]:
    """The middle, and one change at a time; all of them together with `full`."""
    found = {"middle": MIDDLE}
    for field, values in CHANGES.items():
        found |= {f"{field} {value:g}": replace(MIDDLE, **{field: value}) for value in values}
    if full:
        for name, condition in list(found.items()):
            found |= {
                f"{name}, {field} {value:g}": replace(condition, **{field: value})
                for field, values in CHANGES.items()
                if getattr(condition, field) == getattr(MIDDLE, field)
                for value in values
            }
    return found


def tracked(condition: Condition, train: Tensor, test: Tensor, arguments: argparse.Namespace) -> list[dict[str, Any]]:
    epochs = max(1, round(arguments.steps / math.ceil(len(train) / 64)))
    tracker = fmprobe.AttractorTracker(
        train,
        test,
        starts=condition.starts,
        epochs={0, epochs, *(round(epochs / 4**i) for i in range(1, 3))},
        seed=arguments.seed,
        max_steps=arguments.max_steps,
    )
    torch.manual_seed(arguments.seed)
    network = fmprobe.ConvAutoencoder(
        arguments.k,
        condition.width,
        (train.shape[1], train.shape[2], train.shape[3]),
        variant="denoising" if condition.noise else "plain",
        strength=condition.noise or None,
    )
    fmprobe.train_autoencoder(
        network.to(arguments.device),
        train,
        epochs=epochs,
        batch_size=64,
        learning_rate=1e-3,
        weight_decay=condition.weight_decay,
        seed=arguments.seed,
        callback=tracker,
    )
    return tracker.records


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with mnist.npz, fashion_mnist.npz and cifar10")
    parser.add_argument("--set", default="digits", help="digits, mnist, fashion_mnist or cifar10")
    parser.add_argument("--full", action="store_true", help="two changes at a time too")
    parser.add_argument("--k", type=int, default=8)
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--steps", type=int, default=1000, help="of training")
    parser.add_argument("--max-steps", type=int, default=500, help="of an orbit")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/noise_meets_training"))
    arguments = parser.parse_args()

    train, test = load_small_set(arguments.set, arguments.data, arguments.images, 200)
    print("| condition | epoch | train | noise | Chamfer | training attractors met | noise attractors met | test MSE |")
    print("|" + "---|" * 8)
    runs = {}
    for name, condition in conditions(arguments.full).items():
        runs[name] = tracked(condition, train, test, arguments)
        for record in runs[name]:
            counts = [f"{record[kind]['count']} ({record[kind]['converged']:.0%})" for kind in ("train", "noise")]
            matched = record["matched"] or {}
            shares = [record["chamfer"], matched.get("train"), matched.get("noise"), record["test_error"]]
            cells = [name, str(record["epoch"]), *counts]
            cells += ["none" if share is None else f"{share:.3f}" for share in shares]
            print("| " + " | ".join(cells) + " |", flush=True)
        write_json(arguments.out / "records.json", runs)
    for direction in ("train", "noise"):
        matched_curves(runs, direction).savefig(arguments.out / f"met-{direction}.png", dpi=120)


if __name__ == "__main__":
    main()
