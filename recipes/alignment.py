"""Do two seeds of one autoencoder have the same latent vector field (an open question of Fumero et al., sec. 6)?

    python recipes/alignment.py                                          # scikit-learn's digits, k = 2 and 8, 2 minutes
    python recipes/alignment.py --data ../shared/data --sets mnist --ks 2 8 32
    python recipes/alignment.py --data ../shared/data --sets mnist --weight-decay 1e-2
    python recipes/alignment.py --full                                   # MNIST of the hub, 500 epochs; an accelerator

The paper's convolutional autoencoder is trained twice, from two seeds, on the same images in two orders. Maps between
the two latent spaces are fitted on two thirds of the test images; on the others the fields are compared. The null is a
third seed that is not trained at all, the ceiling the first network with 1% of noise on its weights. Prints one table a
bottleneck and leaves it, with its figure, in `--out`, where what is there is not computed again; launched processes
share the bottlenecks and sets.
"""

import argparse
import math
from functools import cache, partial
from pathlib import Path
from typing import Any

from torch import Tensor

import fmprobe
from fmprobe.images import SMALL_SETS, load_small_set
from fmprobe.loading import pick_device
from fmprobe.probes.alignment.perturbation import perturbed
from fmprobe.report.summary import tables
from fmprobe.runs.sweeps import sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import together
from fmprobe.tables import as_text

loaded = cache(load_small_set)


def network(shape: tuple[int, ...], k: int, seed: int, arguments: argparse.Namespace) -> fmprobe.ConvAutoencoder:
    seed_torch(seed, "alignment recipe: weights")
    made = fmprobe.ConvAutoencoder(k, arguments.width, (shape[0], shape[1], shape[2]))
    return made.to(arguments.device)


def trained(
    images: Tensor, k: int, seed: int, arguments: argparse.Namespace, told: list[str]
) -> fmprobe.ConvAutoencoder:
    made = network(images.shape[1:], k, seed, arguments)
    epochs = arguments.epochs or max(1, arguments.steps // math.ceil(len(images) / arguments.batch_size))
    losses = fmprobe.train_autoencoder(
        made,
        images,
        epochs=epochs,
        batch_size=arguments.batch_size,
        learning_rate=arguments.learning_rate,
        weight_decay=arguments.weight_decay,
        seed=seed,
    )
    told.append(f"k = {k}, seed {seed}: {epochs} epochs, loss {losses[-1]:.4f}")
    return made.requires_grad_(False)


def compare(name: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    arguments = argparse.Namespace(**settings)
    train, test = loaded(arguments.set, arguments.data, arguments.images, arguments.test)
    k, told = arguments.k, []
    first, second = (trained(train, k, seed, arguments, told) for seed in (arguments.seed, arguments.seed + 1))
    untrained = network(train.shape[1:], k, arguments.seed + 2, arguments).eval().requires_grad_(False)
    found = fmprobe.compare(
        first.autoencoder("seed A"),
        second.autoencoder("seed B"),
        test,
        null=untrained.autoencoder("untrained"),
        ceiling=perturbed(first, seed=arguments.seed).autoencoder("seed A with weight noise"),
        max_steps=arguments.max_steps,
        seed=arguments.seed,
    )
    told.append(f"\n=== {arguments.set}, k = {k}: {len(train)} images to train, {len(test)} to compare")
    found.plot().savefig(out / f"{name}.png", dpi=120)
    return {"told": told, "alignment": found.to_dict()}


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with mnist.npz, fashion_mnist.npz and cifar10  [digits]")
    parser.add_argument("--sets", nargs="+", choices=("digits", *SMALL_SETS))
    parser.add_argument("--ks", type=int, nargs="+")
    parser.add_argument("--full", action="store_true", help="all images of the hub's MNIST, width 32, 500 epochs")
    parser.add_argument("--images", type=int, help="to train on  [all of digits, 4000 of others]")
    parser.add_argument("--test", type=int, default=300, help="images to compare on")
    parser.add_argument("--width", type=int)
    parser.add_argument("--steps", type=int, default=2000, help="of the training, at reduced size")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--weight-decay", type=float, default=1e-4)
    parser.add_argument("--max-steps", type=int)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/alignment"))
    arguments = parser.parse_args()
    arguments.device = str(pick_device(arguments.device))
    arguments.epochs = 500 if arguments.full else None
    arguments.width = arguments.width or (32 if arguments.full else 16)
    arguments.learning_rate = arguments.learning_rate or (5e-4 if arguments.full else 1e-3)
    arguments.max_steps = arguments.max_steps or (3000 if arguments.full else 1000)
    if arguments.full:
        arguments.batch_size = 128
    sets = arguments.sets or (["mnist"] if arguments.full or arguments.data else ["digits"])
    ks = arguments.ks or ([2, 8, 32, 128] if arguments.full else [2, 8])
    given = {name: value for name, value in vars(arguments).items() if name not in ("sets", "ks", "full", "out")}
    settings = {}
    for name in sets:
        n = arguments.images or (None if arguments.full or name == "digits" else 4000)
        settings |= {f"{name}-{k}": {**given, "set": name, "images": n, "k": k} for k in ks}
    for _, found in sweep(partial(compare, out=arguments.out), settings, arguments.out):
        print("\n".join(found["told"]))
        print(as_text(tables(found, "alignment")), end="\n\n", flush=True)


if __name__ == "__main__":
    main()
