"""How attractors form during training (Fumero et al., ICLR 2026, fig. 3; fig. 13 over epochs).

    python recipes/training_dynamics.py                                # scikit-learn's digits, k = 32, a minute
    python recipes/training_dynamics.py --data ../shared/data          # MNIST, k = 128
    python recipes/training_dynamics.py --full                         # the paper's protocol, from the hub, on a GPU

Trains one convolutional autoencoder and, at growing distances, tracks the attractors that training images, test images
and N(0, I) lead to. Prints a line a record; `--out` keeps `records.jsonl`, written as the training goes, and curves.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import torch

import fmprobe
from fmprobe.images import load_small_set
from fmprobe.probes.training import training_curves
from fmprobe.seeding import seed_torch
from fmprobe.sharing import alone

FULL = {"k": 128, "images": None, "steps": 234_500, "batch_size": 128, "learning_rate": 5e-4, "width": 32}
FULL |= {"starts": 5000, "max_steps": 3000}
REDUCED = {"k": 128, "images": 2000, "steps": 2000, "batch_size": 64, "learning_rate": 1e-3, "width": 16}
REDUCED |= {"starts": 64, "max_steps": 500}
SMALLEST = REDUCED | {"k": 32, "images": 500, "steps": 800, "width": 8, "starts": 32}


def shown(value: float | None, places: int = 3) -> str:
    return "none" if value is None else f"{value:.{places}f}"


def line(record: dict[str, Any]) -> str:
    counts = [f"{record[kind]['count']} ({record[kind]['converged']:.0%})" for kind in ("train", "test", "noise")]
    matched, memory, radius = record["matched"] or {}, record["memorization"], record["spectral_radius"] or {}
    cells = [str(record["epoch"]), *counts, shown(record["chamfer"]), shown(matched.get("train"), 2)]
    cells += [shown(matched.get("noise"), 2), shown(record["fpr95"], 2)]
    cells += [shown((memory.get(kind) or {}).get("mean")) for kind in ("train", "noise")]
    cells += [shown(record["test_error"], 4), shown(radius.get("max"), 2), str(record["rank"].get("train"))]
    cells += [str(record["cost"]["evaluations"])]
    return "| " + " | ".join(cells) + " |"


HEADER = ("epoch", "train (settled)", "test", "noise", "Chamfer", "met: train", "noise", "FPR95", "mem. train", "noise")
HEADER += ("test MSE", "max radius", "rank", "rows of f")


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with mnist.npz, fashion_mnist.npz and cifar10  [digits]")
    parser.add_argument("--set", help="digits, mnist, fashion_mnist or cifar10")
    parser.add_argument("--full", action="store_true", help="all of MNIST from the hub, 500 epochs, 5000 starts")
    for name in ("k", "images", "steps", "batch_size", "width", "starts", "max_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/training_dynamics"))
    arguments = parser.parse_args()
    preset = FULL if arguments.full else SMALLEST if arguments.data is None else REDUCED
    for name, value in preset.items():
        setattr(arguments, name, getattr(arguments, name) or value)
    name = arguments.set or ("digits" if preset is SMALLEST else "mnist")

    train, test = load_small_set(name, arguments.data, arguments.images, None if arguments.full else 300)
    epochs = max(1, round(arguments.steps / math.ceil(len(train) / arguments.batch_size)))
    measured = {0, epochs, *(2**i for i in range(epochs.bit_length()) if 2**i < epochs)}
    path = arguments.out / "records.jsonl"
    path.unlink(missing_ok=True)
    tracker = fmprobe.AttractorTracker(
        train,
        test,
        starts=arguments.starts,
        epochs=measured,
        path=path,
        seed=arguments.seed,
        max_steps=arguments.max_steps,
    )

    def track(epoch: int, model: torch.nn.Module) -> None:
        if (record := tracker(epoch, model)) is not None:
            print(line(record), flush=True)

    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    seed_torch(arguments.seed, "training_dynamics recipe: weights")
    network = fmprobe.ConvAutoencoder(arguments.k, arguments.width, (train.shape[1], train.shape[2], train.shape[3]))
    fmprobe.train_autoencoder(
        network.to(arguments.device),
        train,
        epochs=epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
        callback=track,
    )
    training_curves(tracker.records).savefig(arguments.out / "curves.png", dpi=120)
    seconds = sum(record["cost"]["seconds"] for record in tracker.records)
    print(f"{name}: {len(tracker.records)} records of {arguments.starts} starts a kind, {seconds:.0f} s of tracking")


if __name__ == "__main__":
    main()
