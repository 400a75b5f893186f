"""Time a detector's rules against the least that each can cost: an encoding, and the steps of a trajectory.

    python recipes/benchmark_detector.py                                # the demo model
    python recipes/benchmark_detector.py --model ../shared/models/dinov2-small

1. A detector is fitted on procedural images. An encoder without a decoder gets one in closed form.
2. Every rule decides on the same images. The limit of a rule that follows no trajectory is one encoding. The limit of
   one that does is an encoding and `--steps` evaluations of f. Limit and rule alternate on one thread, and the medians
   over `--repeats` are printed.
3. Loading the model and loading the detector are timed, in a process each.
4. The second of these scores `--images` images, and then four times as many; what each adds to the peak of its memory
   is printed.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

import fmprobe
from fmprobe.sharing import alone

DEMO = files("fmprobe.demo") / "vit-mae-digits"
RULES = ("latent norm", "knn-10 pooled", "mahalanobis pooled", "first", "features", "trajectory", "joined")
HELD_OUT = 32
LOAD = "began = time.perf_counter(); loaded = {}; print(time.perf_counter() - began)"
SCORE = (
    "\nfor n in ({n}, 4 * {n}):"
    "\n images = loaded.model.load_images('procedural', n=n); before = peak()"
    "\n loaded.predict(images, rule='trajectory'); print(peak() - before)"
)
FIRST = (
    "import resource, time, torch, warnings; warnings.simplefilter('ignore'); torch.set_num_threads(1); "
    "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024; import fmprobe; "
)


@alone()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(DEMO), help="Hub id or folder. [default: the demo model]")
    parser.add_argument("--fit", type=int, default=64, help="Number of fit images.")
    parser.add_argument("--images", type=int, default=32, help="Number of images that are scored.")
    parser.add_argument("--batch-size", type=int, default=8, help="Number of latents that are iterated together.")
    parser.add_argument("--steps", type=int, default=8, help="Number of steps of a trajectory.")
    parser.add_argument("--decoder-images", type=int, default=256, help="Number of images that a decoder is fitted on.")
    parser.add_argument("--repeats", type=int, default=5, help="Number of repetitions.")
    options = parser.parse_args()

    torch.set_num_threads(1)
    model = fmprobe.load(options.model, image_size="fit", device="cpu")
    if not model.has_latent_map:
        decoder = fmprobe.fit_decoder(model, kind="closed-form", n_images=options.decoder_images, progress=False)
        model = model.with_decoder(decoder)
    images = model.load_images("procedural", n=options.fit + HELD_OUT + options.images)
    fit, held_out, new = images.split([options.fit, HELD_OUT, options.images])
    settings = {"steps": options.steps, "max_steps": options.steps, "batch_size": options.batch_size}
    detector = fmprobe.TrajectoryDetector(model, **settings).fit(fit, held_out, progress=False)
    print(f"{model.name} at {model.image_shape[-1]} px: {options.steps} steps, {options.fit} fit images, one thread")
    time_rules(detector, new, options.repeats)
    with tempfile.TemporaryDirectory() as folder:
        detector.save(folder)
        kept = Path(folder) / "decoder"
        given = f", decoder={str(kept)!r}" if kept.exists() else ""
        (bare,) = of_process(LOAD.format(f"fmprobe.load({options.model!r}, image_size='fit', device='cpu'{given})"))
        load = LOAD.format(f"fmprobe.TrajectoryDetector.load({folder!r}, device='cpu')")
        whole, few, many = of_process(load + SCORE.format(n=options.images))
        print(f"scoring {options.images} images takes {few:.0f} MB beyond the images")
        print(f"scoring {4 * options.images} images after that takes {many:.0f} MB more beyond the images")
        print(f"loading the model takes {bare:.2f} s, and loading the detector with it {whole:.2f} s")


def time_rules(detector: fmprobe.TrajectoryDetector, images: Tensor, repeats: int) -> None:
    """Print the cost of every rule beside its limit."""
    model, size, steps = detector.model, detector.settings.batch_size, detector.settings.horizon

    @torch.no_grad()
    def encode() -> Tensor:
        return torch.cat([model.encode(block) for block in images.split(size)])

    @torch.no_grad()
    def iterate() -> None:
        for z in encode().split(size):
            for _ in range(steps):
                z = model.latent_map(z)

    print(f"\n| rule | ms an image | limit | ratio |\n|{'---|' * 4}")
    for rule in (name for name in RULES if name in detector.offered):
        limit = iterate if detector.follows_orbits(rule) else encode
        bare, decided = alternate(limit, lambda rule=rule: detector.predict(images, rule=rule), repeats)
        each = 1000 / len(images)
        print(f"| {rule} | {each * decided:.1f} | {each * bare:.1f} | {decided / bare:.2f} |", flush=True)
    print()


def alternate(one: Callable[[], object], other: Callable[[], object], repeats: int) -> tuple[float, float]:
    """Median seconds of two functions that are called in turn."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for call in (one, other):
        call()
    for _ in range(repeats):
        for call, times in zip((one, other), seconds, strict=True):
            began = time.perf_counter()
            call()
            times.append(time.perf_counter() - began)
    return median(seconds[0]), median(seconds[1])


def of_process(code: str) -> list[float]:
    """The numbers that some code prints in a new process."""
    done = subprocess.run([sys.executable, "-c", FIRST + code], capture_output=True, text=True, check=True)
    return [float(line) for line in done.stdout.splitlines()]


if __name__ == "__main__":
    main()
