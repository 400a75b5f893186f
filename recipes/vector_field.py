"""Draw the latent vector field of an autoencoder over its training (Fumero et al., ICLR 2026, fig. 1, 3a).

    python recipes/vector_field.py                                     # scikit-learn's digits, 3 seeds, 1 minute
    python recipes/vector_field.py --data ../shared/data --set mnist
    python recipes/vector_field.py --data ../shared/data --set mnist --k 16      # a plane through 16 dimensions
    python recipes/vector_field.py --full                              # MNIST of the hub, 500 epochs; an accelerator

1. The paper's convolutional autoencoder is trained for every seed, with snapshots of its weights on the way.
2. Its field is drawn on [-8, 8] x [-8, 8]: arrows coloured by their norm, attractors as stars, basins shaded. For k
   above 2 the plane goes through the three largest attractors of the trained network.
3. `epochs-SEED.gif` shows the field from the first epoch to the last.

The recipe prints a line for each picture. `--out` keeps the pictures.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "number unlike that of the first seed" holds for more than half of the seeds: binomial test.
"""

import argparse
import math
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _figures import save
from _shared import epochs_of, fill, loaded, parser_of, told, train, untrained
from torch import Tensor, nn

import fmprobe
from fmprobe.images import SMALL_SETS
from fmprobe.loading import pick_device
from fmprobe.probes.field import VectorField, animate_fields, plot_field
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.seeding import seed_torch
from fmprobe.sharing import together


class Snapshots:
    """A callback of the training loop that keeps the weights at epochs spread evenly over the logarithm."""

    def __init__(self, epochs: int, frames: int) -> None:
        spread = torch.logspace(0, math.log10(epochs), frames - 1).round().int().tolist()
        self.epochs = sorted({0, *spread, epochs})
        self.weights: dict[int, dict[str, Tensor]] = {}

    def __call__(self, epoch: int, model: nn.Module) -> None:
        if epoch in self.epochs:
            self.weights[epoch] = {name: value.detach().clone() for name, value in model.state_dict().items()}


def field_of(network: fmprobe.ConvAutoencoder, arguments: argparse.Namespace, plane: Any = None) -> VectorField:
    settings: dict[str, Any] = {"resolution": arguments.resolution, "max_steps": arguments.max_steps}
    return fmprobe.vector_field(network.autoencoder(), plane, **settings)


def draw(name: str, settings: dict[str, Any], out: Path) -> dict[str, Any]:
    """One seed's pictures; returns its field and the lines to print."""
    arguments = argparse.Namespace(**settings)
    images, _ = loaded(arguments.set, arguments.data, arguments.images, 1)
    seed = arguments.seed
    seed_torch(seed, "vector_field recipe: weights")
    network = untrained(images, arguments)
    epochs = arguments.epochs or epochs_of(arguments.steps, images, arguments.batch_size, math.floor)
    kept = Snapshots(epochs, arguments.frames)
    losses = train(network, images, arguments, epochs=epochs, seed=seed, callback=kept)
    last = field_of(network.requires_grad_(False), arguments)
    entry = last.to_dict()
    lines = [line(f"seed {seed}, {epochs} epochs, loss {losses[-1]:.4f}", last)]
    save(plot_field(entry, f"seed {seed}: {len(entry['attractors'])} attractors"), out, name, told(arguments, images))
    frames, titles = [], []
    for epoch, weights in kept.weights.items():
        network.load_state_dict(weights)
        found = field_of(network, arguments, last.plane)
        lines.append(line(f"  epoch {epoch}", found))
        frames.append(found.to_dict())
        titles.append(f"seed {seed}, epoch {epoch}: {len(frames[-1]['attractors'])} attractors")
    animate_fields(frames, titles, out / f"epochs-{seed}.gif")
    return {"told": lines, "field": entry}


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The number of attractors of each seed of a finished run beside that of the least seed, for `evidence.py`."""
    counts = {c["settings"]["seed"]: len(c["result"]["field"]["attractors"]) for c in results_in(folder)}
    first = min(counts, default=0)
    differs = {seed: None if seed == first else count != counts[first] for seed, count in counts.items()}
    name = "number unlike that of the first seed"
    return [{"seed": seed, "attractors": counts[seed], name: differs[seed]} for seed in sorted(counts)]


def line(label: str, field: VectorField) -> str:
    assert field.attractors is not None
    orbits = field.attractors.orbits.to_dict()
    settled = orbits["status"]["converged"] / orbits["starts"]
    count = field.attractors.count
    inner = field.norms.isfinite()
    known = field.outside[~field.outside.isnan()]
    radii = field.attractors.spectral_radius
    return (
        f"{label}: {'unresolved' if count is None else count} attractors from {orbits['starts']} grid points, "
        f"{settled:.0%} settled, median step norm {float(field.norms[inner].median()):.3g}, "
        f"outside the plane {float(known.median()) if len(known) else 0:.0%}"
        + (f", spectral radius {float(radii.min()):.3f} to {float(radii.max()):.3f}" if len(radii) else "")
    )


@together()
def main() -> None:
    parser = parser_of("vector_field", __doc__, "Use all images of the hub's MNIST, width 32 and 500 epochs.", "auto")
    parser.add_argument("--set", choices=("digits", *SMALL_SETS), help="Data set.")
    parser.add_argument("--k", type=int, default=2, help="Bottleneck.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds, one network each.")
    parser.add_argument("--images", type=int, help="Number of training images. [default: all digits, or 4000]")
    parser.add_argument("--steps", type=int, default=1500, help="Number of training steps, without --full.")
    parser.add_argument("--frames", type=int, default=10, help="Number of frames of the animation.")
    parser.add_argument("--resolution", type=int, default=25, help="Number of grid points a side.")
    arguments = parser.parse_args()
    arguments.device = str(pick_device(arguments.device))
    preset = {"epochs": None, "batch_size": 64, "learning_rate": 1e-3, "width": 16, "max_steps": 500}
    if arguments.full:
        preset = {"epochs": 500, "batch_size": 128, "learning_rate": 5e-4, "width": 32, "max_steps": 3000}
    fill(arguments, preset)
    arguments.set = arguments.set or ("mnist" if arguments.full or arguments.data else "digits")
    arguments.images = arguments.images or (None if arguments.full or arguments.set == "digits" else 4000)
    given = {name: value for name, value in vars(arguments).items() if name not in ("seeds", "full", "out")}
    conditions = {f"field-{seed}": {**given, "seed": seed} for seed in arguments.seeds}
    work = partial(draw, out=arguments.out)
    for _, found in sweep(work, conditions, arguments.out):
        print("\n".join(found["told"]), flush=True)
    print(f"pictures and animations: {arguments.out}")


if __name__ == "__main__":
    main()
