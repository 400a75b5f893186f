"""Detect out-of-distribution images by their latent trajectories, beside every baseline (fig. 5, 10, tab. 1).

    python recipes/ood_detection.py                                        # the demo model, offline
    python recipes/ood_detection.py --model M --data ID --ood A --ood B    # anything else
    python recipes/ood_detection.py --train-mae ../shared/data             # a small ViT-MAE, trained first
    python recipes/ood_detection.py --dinov2 ../shared                     # an encoder with a surrogate decoder
    python recipes/ood_detection.py --full                                 # the published protocol; an accelerator

1. The in-distribution images are split by content into fit, held-out and test images. Out-of-distribution sets and
   controls stand beside them.
2. A detector finds the attractors of the fit images. Its published score is the mean distance of a trajectory to the
   nearest of them.
3. A table gives AUROC and FPR95 of that score, of each part alone, of every baseline on the same features, and of
   two-sided and one-class scores that are fitted on the held-out images. No out-of-distribution set decides anything.

`--out` is a run folder with results.json, report.html and the detector, ready for `fmprobe score`.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.datasets import load_digits, load_sample_images

from fmprobe.probes.ood import run_ood
from fmprobe.seeding import generator
from fmprobe.sharing import is_main, team, together

PATCHES, SIDE = 120, 64  # patches of scikit-learn's two photographs, and their side in pixels

# The published protocol fits on 2000 images. A run takes 4000: half to fit, a quarter held out, a quarter to test.
FULL: dict[str, Any] = {
    "model": "facebook/vit-mae-base",
    "data": "ILSVRC/imagenet-1k:train",
    "ood": [
        "SUN397=tanganke/sun397:test",
        "Places365=torch-uncertainty/Places365",
        "Texture=torch-uncertainty/Texture",
        "iNaturalist=torch-uncertainty/iNaturalist",
    ],
    "images": 4000,
    "max_steps": 500,
}


def demo(folder: Path, seed: int) -> dict[str, Any]:
    """The embedded model, with scikit-learn's digits against random patches of its two photographs."""
    import fmprobe.demo

    digits: Any = load_digits()
    photographs: Any = load_sample_images()
    rng = generator(seed, 0, "ood: patches of photographs")
    patches = []
    for i in range(PATCHES):
        photograph = photographs.images[i % 2]
        y, x = (rng.integers(size - SIDE) for size in photograph.shape[:2])
        patches.append(photograph[y : y + SIDE, x : x + SIDE])
    if is_main():
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / "digits.npz", images=np.round(digits.images / 16 * 255).astype(np.uint8))
        np.savez(folder / "patches.npz", images=np.stack(patches))
    return {
        "model": str(Path(fmprobe.demo.__path__[0]) / "vit-mae-digits"),
        "data": str(folder / "digits.npz"),
        "ood": [f"patches={folder / 'patches.npz'}"],
        "images": 480,
    }


def small_mae(folder: Path, data: Path, minutes: float, seed: int) -> dict[str, Any]:
    """A small ViT-MAE, trained on CIFAR-10 unless the folder holds it, against digits, garments and textures."""
    import train_small_mae as small

    import fmprobe

    if not (folder / "config.json").is_file():
        images = fmprobe.load_images(str(data / "cifar10/train.parquet"), image_shape=(3, small.SIDE, small.SIDE))
        model = small.build(width=96, layers=4, seed=seed)
        small.train(model, images, minutes, seed=seed)
        small.save(model, folder)
    return {
        "model": str(folder),
        "data": f"{data / 'cifar10'}:test",  # held out from the training
        "ood": [
            f"mnist={data / 'mnist.npz'}:x_test",
            f"fashion={data / 'fashion_mnist.npz'}:x_test",
            f"textures={data / 'textures'}",
        ],
        "images": 480,
        "steps": 30,
    }


def dinov2(shared: Path) -> dict[str, Any]:
    """A DINOv2 backbone at 112 px with a surrogate of procedural images, with photos against three sets."""
    data = shared / "data"
    return {
        "model": str(shared / "models/dinov2-small"),
        "data": f"{data / 'photos'}:train",
        "ood": [f"textures={data / 'textures'}", f"scenes={data / 'scenes'}", f"cifar10={data / 'cifar10'}:test"],
        "images": 200,
        "steps": 20,
    }


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--model", help="Hub id or folder of a model; with --data and --ood.")
    which.add_argument(
        "--train-mae", type=Path, metavar="DATA", help="Folder with cifar10/, mnist.npz, …: train a ViT-MAE."
    )
    which.add_argument("--dinov2", type=Path, metavar="SHARED", help="Folder with models/dinov2-small and data/.")
    which.add_argument("--full", action="store_true", help="Use the published protocol, by hub names.")
    parser.add_argument("--data", help="In-distribution images, SOURCE[:split][#column].")
    parser.add_argument("--ood", action="append", default=[], help="Out-of-distribution images, NAME=SOURCE or SOURCE.")
    parser.add_argument("--images", type=int, help="Number of in-distribution images; half of them to fit.")
    parser.add_argument("--steps", type=int, help="Number of steps of a scored orbit. [default: to its end]")
    parser.add_argument("--minutes", type=float, default=9.0, help="Minutes of training, with --train-mae.")
    parser.add_argument("--decoder", help="Folder of a decoder that fit-decoder wrote.")
    parser.add_argument("--device", default="auto", help="Device to compute on.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the splits, the controls and a training.")
    parser.add_argument("--out", type=Path, default=Path("runs/ood"), help="Run folder.")
    args = parser.parse_args()
    if args.model and not args.data:
        parser.error("--model needs --data, and --ood for each out-of-distribution set")

    with team().main_first():  # it prepares data and models on disk, which the others then read
        if args.train_mae:
            run = small_mae(args.out.with_name(args.out.name + "-model"), args.train_mae, args.minutes, args.seed)
        elif args.dinov2:
            run = dinov2(args.dinov2)
        elif args.full:
            run = dict(FULL)
        elif args.model:
            run = {"model": args.model, "data": args.data, "ood": []}
        else:
            run = demo(args.out.with_name(args.out.name + "-data"), args.seed)
    run |= {key: value for key in ("data", "ood", "images", "steps") if (value := getattr(args, key))}
    load = {"revision": None, "decoder": args.decoder, "image_size": None, "device": args.device, "dtype": None}
    run_ood(
        run["model"],
        run["data"],
        run["ood"],
        args.out,
        load=load,
        settings={"steps": run.get("steps"), "max_steps": run.get("max_steps")},
        images=run.get("images"),
        seed=args.seed,
    )


if __name__ == "__main__":
    main()
