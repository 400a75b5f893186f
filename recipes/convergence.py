"""Compare the measured steps of orbits with the estimate of proposition A.9 (Fumero et al., ICLR 2026, fig. 11).

    python recipes/convergence.py                                      # scikit-learn's digits, half a minute
    python recipes/convergence.py --data ../shared/data                # MNIST
    python recipes/convergence.py --full                               # 60,000 images and 500 epochs, from the hub

The recipe trains the paper's convolutional autoencoder with k = 2 for each data set, width and seed. Its starts are
drawn from U[-8, 8], as for figure 1, and are also the encoded training images. It prints both correlations for two
choices of rho at the attractor: the spectral norm of the Jacobian, which is the paper's, and its spectral radius.
`--out` keeps the points and plots.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- The mean of "correlation by the spectral norm" lies from 0.5 to 1, for each of "starts" alone: bootstrap interval.
- The mean of "correlation by the spectral radius" lies from 0.5 to 1, for each of "starts" alone: bootstrap interval.
- The mean of "slope by the spectral norm" lies from 0.5 to 1.5, for each of "starts" alone: bootstrap interval.
- The mean of "slope by the spectral radius" lies from 0.5 to 1.5, for each of "starts" alone: bootstrap interval.
"""

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _figures import save
from _shared import add_seeds, epochs_of, fill, loaded, parser_of, told, train, untrained
from scipy.stats import theilslopes

import fmprobe
from fmprobe.images import SMALL_SETS
from fmprobe.probes.convergence import convergence_scatter
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.seeding import seed_torch, torch_generator
from fmprobe.sharing import together

HEADER = ("set", "width", "seed", "starts", "attractors", "rho", "points", "Pearson", "Spearman")
HEADER += ("median measured / estimated", "left out")


def compared(name: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """The measured and estimated steps of one network by the kind of start, and its loss."""
    arguments = argparse.Namespace(**settings)
    images, _ = loaded(arguments.set, arguments.data, arguments.images, 1)
    seed_torch(arguments.seed, "convergence recipe: weights")
    network = untrained(images, arguments)
    epochs = epochs_of(arguments.steps, images, arguments.batch_size)
    losses = train(network, images, arguments, epochs=epochs, seed=arguments.seed)
    model = network.requires_grad_(False).autoencoder()
    draws = torch_generator(arguments.seed, "convergence recipe: uniform starts")
    starts = {
        "uniform": 16 * torch.rand(arguments.starts, arguments.k, generator=draws).to(model.device) - 8,
        "train": model.encode(images[: arguments.starts]),
    }
    found = {}
    for kind, latents in starts.items():
        found[kind] = fmprobe.probe_convergence(model, starts=latents, eps=arguments.eps).to_dict()
        about = [*told(arguments, images), f"{len(latents)} starts, {kind}"]
        save(convergence_scatter(found[kind]), out, f"{name}-{kind}", about)
    return {"loss": losses[-1], "starts": found}


def rows_of(settings: dict[str, Any], kind: str, entry: dict[str, Any]) -> list[str]:
    """The lines of the table for one network and kind of start."""
    lines = []
    for rho, points in entry["estimates"].items():
        values = [points[key] for key in ("pearson", "spearman", "median_ratio")]
        cells = ["none" if value is None else f"{value:.3f}" for value in values]
        left = ", ".join(f"{count} {why}" for why, count in entry["left_out"][rho].items() if count) or "none"
        row = [*(str(settings[key]) for key in ("set", "width", "seed")), kind, str(entry["attractors"])]
        lines.append(
            "| " + " | ".join([*row, rho.replace("_", " "), str(len(points["measured"])), *cells, left]) + " |"
        )
    return lines


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each network and kind of start of a finished run, for `evidence.py`."""
    rows = []
    for content in results_in(folder):
        settings = content["settings"]
        for kind, entry in content["result"]["starts"].items():
            row = {key: settings[key] for key in ("set", "width", "seed")} | {"starts": kind}
            row["attractors"] = entry["attractors"]
            for rho, points in entry["estimates"].items():
                measured, estimated = (np.log(points[key]) for key in ("measured", "estimated"))
                spread = len(estimated) > 1 and np.ptp(estimated) > 0
                name = rho.replace("_", " ")
                row |= {f"points by the {name}": len(measured), f"correlation by the {name}": points["spearman"]}
                fit: Any = theilslopes(measured, estimated) if spread else None
                row[f"slope by the {name}"] = float(fit.slope) if fit else None
            rows.append(row)
    return rows


@together()
def main() -> None:
    parser = parser_of("convergence", __doc__, "Use all of MNIST from the hub, 500 epochs and width 32.")
    parser.add_argument("--sets", nargs="+", choices=("digits", *SMALL_SETS), help="Data sets.")
    parser.add_argument("--k", type=int, default=2, help="Bottleneck.")
    parser.add_argument("--images", type=int, default=1000, help="Number of training images.")
    parser.add_argument("--steps", type=int, default=1500, help="Number of training steps.")
    parser.add_argument("--widths", type=int, nargs="+", help="Numbers of channels of the first layer. [default: 16]")
    parser.add_argument("--starts", type=int, default=200, help="Number of starts of each kind.")
    parser.add_argument("--eps", type=float, default=1e-2, help="Euclidean distance from the attractor to reach.")
    add_seeds(parser)
    arguments = parser.parse_args()
    steps, width, rate = (234_500, 32, 5e-4) if arguments.full else (arguments.steps, 16, 1e-3)
    fill(arguments, {"widths": [width], "sets": ["mnist" if arguments.full or arguments.data else "digits"]})
    given = {name: getattr(arguments, name) for name in ("data", "device", "k", "starts", "eps")}
    given |= {"images": None if arguments.full else arguments.images, "steps": steps}
    given |= {"batch_size": 64, "learning_rate": rate}
    conditions = {
        f"{name}-width{width}-seed{seed}": {**given, "set": name, "width": width, "seed": seed}
        for name, width, seed in product(arguments.sets, arguments.widths, arguments.seeds)
    }
    print("| " + " | ".join(HEADER) + " |")
    print("|" + "---|" * len(HEADER))
    for name, found in sweep(partial(compared, out=arguments.out), conditions, arguments.out):
        for kind, entry in found["starts"].items():
            print("\n".join(rows_of(conditions[name], kind, entry)), flush=True)


if __name__ == "__main__":
    main()
