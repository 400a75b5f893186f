"""Measured steps against prop. A.9's estimate (Fumero et al., ICLR 2026, fig. 11), on the convolutional AE with k = 2.

    python recipes/convergence.py                                      # scikit-learn's digits, half a minute
    python recipes/convergence.py --data ../shared/data                # MNIST
    python recipes/convergence.py --full                               # 60,000 images and 500 epochs, from the hub

Starts are drawn from U[-8, 8], as for fig. 1, and are also the encoded training images. Prints both correlations for
rho = spectral norm (the paper's) and spectral radius of the Jacobian at the attractor; `--out` keeps points and plots.
"""

import argparse
import math
from pathlib import Path

import torch

import fmprobe
from fmprobe.files import write_json
from fmprobe.images import load_small_set
from fmprobe.probes.convergence import convergence_scatter
from fmprobe.seeding import seed_torch, torch_generator
from fmprobe.sharing import alone


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="folder with mnist.npz  [scikit-learn's digits]")
    parser.add_argument("--full", action="store_true", help="all of MNIST from the hub, 500 epochs, width 32")
    parser.add_argument("--k", type=int, default=2)
    parser.add_argument("--images", type=int, default=1000, help="to train on")
    parser.add_argument("--steps", type=int, default=1500, help="of training")
    parser.add_argument("--starts", type=int, default=200, help="of each kind")
    parser.add_argument("--eps", type=float, default=1e-2, help="Euclidean distance from the attractor")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/convergence"))
    arguments = parser.parse_args()
    name = "mnist" if arguments.full or arguments.data else "digits"
    images, _ = load_small_set(name, arguments.data, None if arguments.full else arguments.images, 1)
    steps, width, rate = (234_500, 32, 5e-4) if arguments.full else (arguments.steps, 16, 1e-3)

    seed_torch(arguments.seed, "convergence recipe: weights")
    network = fmprobe.ConvAutoencoder(arguments.k, width).to(arguments.device)
    epochs = round(steps / math.ceil(len(images) / 64))
    losses = fmprobe.train_autoencoder(
        network, images, epochs=epochs, batch_size=64, learning_rate=rate, seed=arguments.seed
    )
    model = network.requires_grad_(False).autoencoder()
    print(f"{name}: {len(images)} images, k = {arguments.k}, loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    draws = torch_generator(arguments.seed, "convergence recipe: uniform starts")
    starts = {
        "uniform": 16 * torch.rand(arguments.starts, arguments.k, generator=draws).to(model.device) - 8,
        "train": model.encode(images[: arguments.starts].to(model.device)),
    }
    print("| starts | attractors | rho | points | Pearson | Spearman | median measured / estimated | left out |")
    print("|" + "---|" * 8)
    for kind, latents in starts.items():
        entry = fmprobe.probe_convergence(model, starts=latents, eps=arguments.eps).to_dict()
        write_json(arguments.out / f"{kind}.json", entry)
        convergence_scatter(entry).savefig(arguments.out / f"{kind}.png", dpi=120)
        for rho, points in entry["estimates"].items():
            values = [points[key] for key in ("pearson", "spearman", "median_ratio")]
            cells = ["none" if value is None else f"{value:.3f}" for value in values]
            left = ", ".join(f"{count} {why}" for why, count in entry["left_out"][rho].items() if count) or "none"
            row = [kind, str(entry["attractors"]), rho.replace("_", " "), str(len(points["measured"])), *cells, left]
            print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    main()
