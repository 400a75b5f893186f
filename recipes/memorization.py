"""Memorization against generalization (Fumero et al., ICLR 2026, fig. 2, 13, 14): are attractors training images?

    python recipes/memorization.py                                     # scikit-learn's digits, 3 bottlenecks, 1 minute
    python recipes/memorization.py --data ../shared/data               # 6 bottlenecks on 3 data sets
    python recipes/memorization.py --data ../shared/data --vary-images # fig. 14: k = 128, more and more images
    python recipes/memorization.py --full                              # the paper's protocol, from the hub, on a GPU

For every data set and bottleneck k one convolutional autoencoder is trained; its attractors are sought from encoded
training images and from N(0, I), and held against the training images. Prints the table and leaves it, with curves and
one JSON a network, in `--out`. What is there under the same settings is not computed again; launched processes share
the networks.
"""

import argparse
import math
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from torch import Tensor

import fmprobe
from fmprobe.images import load_small_set
from fmprobe.probes.memorization.page import memorization_sweep
from fmprobe.runs.sweeps import sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import is_main, together

SETS = ("mnist", "fashion_mnist", "cifar10")
FULL = {"ks": [2**i for i in range(1, 10)], "images": None, "steps": 234_500, "batch_size": 128, "learning_rate": 5e-4}
FULL |= {"width": 32, "starts": 5000, "max_steps": 3000}
REDUCED = {"ks": [2, 8, 16, 32, 128, 512], "images": 2000, "steps": 2000, "batch_size": 64, "learning_rate": 1e-3}
REDUCED |= {"width": 16, "starts": 128, "max_steps": 1000}
SMALLEST = REDUCED | {"ks": [2, 8, 32], "images": 500, "steps": 800, "width": 8, "starts": 100}
VARIED = [50, 100, 200, 500, 1000, 2000]  # training images of fig. 14
loaded = cache(load_small_set)
HEADER = ("set", "k", "images", "test MSE", "starts", "settled", "count", "cosine", "test img", "D(noise)", "rank")


def trained(train: Tensor, k: int, arguments: argparse.Namespace) -> fmprobe.Autoencoder:
    """The same number of steps whatever the number of images, so that these are all that differs."""
    seed_torch(arguments.seed, "memorization recipe: weights")
    network = fmprobe.ConvAutoencoder(k, arguments.width, (train.shape[1], train.shape[2], train.shape[3]))
    fmprobe.train_autoencoder(
        network.to(arguments.device),
        train,
        epochs=max(1, round(arguments.steps / math.ceil(len(train) / arguments.batch_size))),
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        seed=arguments.seed,
    )
    return network.requires_grad_(False).autoencoder()


def measured(_: str, settings: dict[str, Any]) -> dict[str, Any]:
    """One network's memorization by where its attractors were sought from."""
    arguments = argparse.Namespace(**settings)
    train, test = loaded(arguments.set, arguments.data, arguments.images, arguments.test)
    train = train[: arguments.n]
    model = trained(train, arguments.k, arguments)
    starts = {
        "train": model.encode(train[: arguments.starts]),
        "noise": model.sample_latents(arguments.starts, arguments.seed),
    }
    found = {}
    for name, latents in starts.items():
        attractors = fmprobe.find_attractors(
            model, starts=latents, max_steps=arguments.max_steps, merge="cosine", stability_cap=16
        )
        found[name] = fmprobe.probe_memorization(model, train, test, attractors=attractors).to_dict()
    return found


def line(name: str, k: int, n: int, start: str, entry: dict[str, Any]) -> str:
    def level(row: str) -> str:
        value = entry["levels"]["cosine"][row]
        return f"{value['mean']:.3f} ± {value['std']:.3f}" if value else "none"

    orbits = entry["orbits"]
    settled = f"{orbits['status']['converged'] / orbits['starts']:.0%}"
    cells = [name, str(k), str(n), f"{entry['errors']['test']:.4f}", start, settled, str(entry["count"])]
    cells += [level("attractors"), level("test images"), level("decoded starts"), str(entry["rank"]["attractors"])]
    return "| " + " | ".join(cells) + " |" + (" *" if entry["warning"] else "")


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with mnist.npz, fashion_mnist.npz and cifar10  [digits]")
    parser.add_argument("--sets", nargs="+", choices=("digits", *SETS))
    parser.add_argument("--full", action="store_true", help="all images of the hub's sets, 500 epochs, 5000 starts")
    parser.add_argument("--vary-images", action="store_true", help="k = 128, the number of training images varied")
    parser.add_argument("--ks", type=int, nargs="+")
    for name in ("images", "steps", "batch_size", "width", "starts", "max_steps"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/memorization"))
    arguments = parser.parse_args()
    preset = FULL if arguments.full else SMALLEST if arguments.data is None else REDUCED
    for name, value in preset.items():
        setattr(arguments, name, getattr(arguments, name) or value)
    sets = arguments.sets or (["digits"] if preset is SMALLEST else SETS)

    given = {name: getattr(arguments, name) for name in (*preset, "data", "device", "seed") if name != "ks"}
    given["test"] = None if arguments.full else 300
    conditions: dict[str, dict[str, Any]] = {}
    for name in sets:
        train, _ = loaded(name, arguments.data, arguments.images, given["test"])
        counts = [n for n in VARIED if n <= len(train)] if arguments.vary_images else [len(train)]
        for n, k in product(counts, [128] if arguments.vary_images else arguments.ks):
            conditions[f"{name}-k{k}-{n}"] = {**given, "set": name, "n": n, "k": k}

    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in sets}
    for name, found in sweep(measured, conditions, arguments.out):
        k, n, own = (conditions[name][key] for key in ("k", "n", "set"))
        for start, entry in found.items():
            print(line(own, k, n, start, entry), flush=True)
        rows[own].append({"k": k, "images": n, **found})
    along = "images" if arguments.vary_images else "k"
    for name in sets if is_main() else ():
        memorization_sweep(rows[name], along).savefig(arguments.out / f"{name}-by-{along}.png", dpi=120)
    print("* f may be near constant, or nothing settled: see `warning` in the network's JSON")


if __name__ == "__main__":
    main()
