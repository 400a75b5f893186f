"""Compare surrogates of one encoder: what each reconstructs, and whether orbits of its latent map settle.

    python recipes/surrogates.py                                     # the demo model's encoder, offline
    python recipes/surrogates.py --model facebook/dinov2-small --data photos/train --test photos/test
    python recipes/surrogates.py --model M --report                  # and five more surrogates, one of them the null

1. A pixel decoder is fitted on procedural images and evaluated on procedural images and those of --test.
2. A second pixel decoder is fitted on --data and evaluated on the same images.
3. Latent surrogates of all six kinds are fitted on the same cached features.
4. The latent map of each is iterated from N(0, I).

The recipe prints errors and counts. reconstructions.png in `--out` shows originals and reconstructions. Launched
processes share the training of every surrogate.
"""

import argparse
import time
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

import fmprobe
from fmprobe.autoencoder import Autoencoder
from fmprobe.images import spread
from fmprobe.sharing import is_main, together
from fmprobe.surrogates.data import HELD_OUT, HELD_OUT_FIRST, procedural
from fmprobe.surrogates.features import as_pixels
from fmprobe.surrogates.fit import validate
from fmprobe.surrogates.latent import VARIANTS

DEMO = files("fmprobe.demo") / "vit-mae-digits"


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder of an encoder. [default: the demo model's]")
    parser.add_argument("--data", help="Training images of a second decoder, SOURCE[:split][#column].")
    parser.add_argument("--test", help="Held-out images.")
    parser.add_argument("--image-size", type=int, help="Image side in pixels. [default: the processor's; on a CPU 112]")
    parser.add_argument("--images", type=int, help="Number of training images of every surrogate. [default: by device]")
    parser.add_argument("--steps", type=int, help="Number of training steps of every surrogate. [default: by device]")
    parser.add_argument("--starts", type=int, default=16, help="Number of noise starts.")
    parser.add_argument("--max-steps", type=int, default=200, help="Largest number of steps of an orbit.")
    parser.add_argument("--report", action="store_true", help="Also print surrogate_report, of five surrogates.")
    parser.add_argument("--out", type=Path, default=Path("runs/surrogates"), help="Folder for the picture.")
    arguments = parser.parse_args()

    model = encoder(arguments.model, arguments.image_size)
    training = {"n_images": arguments.images, "steps": arguments.steps}
    sets = {
        "mixture": as_pixels(procedural(model, HELD_OUT, HELD_OUT_FIRST, "all", 0)),
        "leaves": as_pixels(procedural(model, HELD_OUT, HELD_OUT_FIRST, "leaves", 0)),
    }
    if arguments.test:
        sets["test"] = model.load_images(arguments.test)
    painted = {}
    sources = {"procedural": None} | ({arguments.data: arguments.data} if arguments.data else {})
    for name, data in sources.items():
        began = time.perf_counter()
        decoder = fmprobe.fit_decoder(model, data, **training)
        print(f"\npixel decoder on {name}: {time.perf_counter() - began:.0f} s, {settled(model, decoder, arguments)}")
        for label, images in sets.items():
            row = validate(model, decoder, images)
            print(
                f"  {label:10} L1 {row['l1']:.4f}, {1 - row['l1'] / row['l1_median']:4.0%} below the median colour's "
                f"{row['l1_median']:.4f}; feature error {row['feature_error']:.3f}"
            )
        shown = some(sets)
        with torch.no_grad():
            whole = model.with_decoder(decoder)
            painted[name] = whole.decode(whole.encode(shown)).cpu()
    if is_main():
        save_sheet(arguments.out / "reconstructions.png", some(sets), painted)

    print()
    for variant in VARIANTS:
        began = time.perf_counter()
        surrogate = fmprobe.fit_decoder(model, kind="latent", variant=variant, **training)
        error = surrogate.info["validation"]["held_out"]["feature_error"]
        print(
            f"latent {variant:12} {time.perf_counter() - began:4.0f} s, feature error {error:.3f}, "
            f"{settled(model, surrogate, arguments)}"
        )
    if arguments.report:
        images = {"test": sets["test"]} if "test" in sets else None
        print(f"\n{fmprobe.surrogate_report(model, images=images, n=arguments.starts, max_steps=arguments.max_steps)}")


def encoder(name: str | None, image_size: int | None) -> Autoencoder:
    """The encoder of this name, or the demo model's without its own decoder."""
    if name is not None:
        return fmprobe.load(name, image_size=image_size or "fit")
    model = fmprobe.load(str(DEMO), image_size=image_size)
    return model.derived(encode=model.encode_unchecked, decoder=None)


def some(sets: dict[str, Tensor]) -> Tensor:
    """At most six images of each set, spread evenly over it."""
    return torch.cat([images[spread(len(images), min(6, len(images)))] for images in sets.values()])


def settled(model: Autoencoder, surrogate, arguments: argparse.Namespace) -> str:
    """The count of each status, and of attractors, from N(0, I) under the latent map with a surrogate."""
    whole = model.with_decoder(surrogate)
    found = fmprobe.find_attractors(
        whole, arguments.starts, tol=1e-5, max_steps=arguments.max_steps, batch_size=32, stability_cap=4, progress=False
    )
    counts = ", ".join(f"{count} {name}" for name, count in found.orbits.counts().items() if count)
    return f"{counts} of {arguments.starts}, {found.count} attractors"


def save_sheet(path: Path, originals: Tensor, painted: dict[str, Tensor]) -> None:
    """Save a picture with a row of originals and a row for each decoder."""
    from PIL import Image

    rows = [originals, *painted.values()]
    sheet = torch.cat([torch.cat(list(row.clamp(0, 1)), dim=2) for row in rows], dim=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray((sheet.permute(1, 2, 0) * 255).byte().numpy()).save(path)
    print(f"rows: original, {', '.join(painted)}: {path}")


if __name__ == "__main__":
    main()
