"""Measure the peak memory of a run with many starts, whose ends are kept in shards on disk.

    python recipes/benchmark_memory.py                       # 100,000 starts, several minutes on one core
    python recipes/benchmark_memory.py -n 10000

The latent has 2,048 dimensions. The map is one step of a modern Hopfield network (Ramsauer et al. 2021, eq. 3) with
stored patterns, whose attractors are known. So the number found shows whether the merging, in blocks, is right. f
itself needs little memory, so the peak is that of the run.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import torch

import fmprobe
from fmprobe.runs.folder import RunFolder
from fmprobe.runs.plan import Plan
from fmprobe.runs.search import iterated
from fmprobe.seeding import torch_generator
from fmprobe.sharing import alone


def hopfield(patterns: int, dimension: int, seed: int) -> fmprobe.Autoencoder:
    """Decode to the weight of each pattern, encode to their weighted sum.

    beta = 4 / sqrt(d) makes every pattern an attractor.
    """
    stored = torch.randn(patterns, dimension, generator=torch_generator(seed, "benchmark_memory recipe: patterns"))
    beta = 4 / dimension**0.5
    shape = (1, 1, patterns)
    return fmprobe.from_functions(
        lambda weights: weights.flatten(1) @ stored,
        lambda z: torch.softmax(beta * z @ stored.T, dim=1).reshape(-1, *shape),
        image_shape=shape,
        latent_shape=(dimension,),
        name="hopfield",
    )


def peak() -> float:
    """Largest resident set of this process so far, in GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", "--starts", type=int, default=100_000, help="Number of starts.")
    parser.add_argument("--dimension", type=int, default=2048, help="Dimension of the latent.")
    parser.add_argument("--patterns", type=int, default=64, help="Number of stored patterns.")
    parser.add_argument("--batch-size", type=int, default=256, help="Number of latents iterated together.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the patterns and the starts.")
    options = parser.parse_args()

    model = hopfield(options.patterns, options.dimension, options.seed)
    plan = Plan(options.starts, batch_size=options.batch_size, seed=options.seed, stability_cap=8)
    before, began = peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = RunFolder.open(Path(scratch) / "run", {"benchmark": "memory"})
        found = iterated(model, plan, folder)
        assert found is not None
        attractors, _ = found
        held = peak()
        attractors.save(folder.path / "attractors")
        size = (folder.path / "attractors" / "attractors.safetensors").stat().st_size
    orbits = attractors.orbits
    print(f"{options.starts} starts of dimension {options.dimension}: {orbits.counts()['converged']} converged")
    print(f"{len(attractors)} attractors of {options.patterns} patterns; sweep {attractors.merge['sweep']}")
    print(f"ends {4e-9 * orbits.ends.numel():.2f} GB, saved {size / 1e9:.2f} GB, {time.perf_counter() - began:.0f} s")
    print(f"peak memory {before:.2f} GB before, {held:.2f} GB with the attractors, {peak():.2f} GB when saved")


if __name__ == "__main__":
    main()
