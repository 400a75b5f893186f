"""Measure residuals and latent norms of trajectories step by step (Fumero et al., ICLR 2026, fig. 12, 16, 17).

    python recipes/residual_curves.py                                        # the demo model, offline, seconds
    python recipes/residual_curves.py --assets ../shared                     # and dinov2-small with a surrogate, taef2
    python recipes/residual_curves.py --model M --data photos:test           # any model, from encoded images
    python recipes/residual_curves.py --full --data ImageNet:validation      # the paper's models, 500 starts, 300 steps

1. Each model is loaded; one is in memory at a time. An encoder without a decoder gets a surrogate, fitted on procedural
   images, so its curves are those of both together.
2. Its starts are encoded images (`--data`; for the demo model scikit-learn's digits) and draws from N(0, I). A language
   model has no images: its f is the residual stream from the embedding to the last layer.
3. Every start takes all steps. The curves are residuals of the latents, residuals of the decoded images, and norms.

The recipe prints medians at a few steps. `--out` keeps one JSON file and one figure for each model and kind of start.

Rules by which `evidence.py` decides, written before the runs; `_rules.py` says when each agrees:

- "residual falls tenfold at norms that stay bounded" holds for more than 90% of the rows, for each of "curve" alone:
  binomial test.
"""

import argparse
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import _taef2
import torch
from _figures import add_figure_options, save
from torch import Tensor

import fmprobe
from fmprobe.probes.residuals import Residuals, plot_residuals
from fmprobe.report.summary import tables
from fmprobe.runs.models import with_decoder
from fmprobe.runs.sweeps import results_in, sweep
from fmprobe.sharing import together
from fmprobe.tables import as_text

DEMO = Path(__file__).resolve().parents[1] / "fmprobe" / "demo" / "vit-mae-digits"
# DINOv2 and SigLIP2 get decoders that are fitted here on procedural images. The paper uses published decoders.
FULL = (
    "facebook/vit-mae-base",
    "facebook/dinov2-base",
    "google/siglip2-base-patch16-224",
    "Qwen/Qwen3-0.6B",
    "HuggingFaceTB/SmolLM2-360M",
)


def digits(model: fmprobe.Autoencoder, n: int) -> Tensor:
    """The last of scikit-learn's digits, which the demo model was not trained on."""
    from sklearn.datasets import load_digits

    pixels = torch.from_numpy(load_digits(return_X_y=True)[0][-n:].reshape(-1, 1, 8, 8) / 16).float()
    pixels = torch.nn.functional.interpolate(pixels, size=model.image_shape[1:], mode="bilinear").clamp(0, 1)
    return pixels.expand(-1, model.image_shape[0], -1, -1)


def models(arguments: argparse.Namespace) -> dict[str, Callable[[], fmprobe.Autoencoder]]:
    """Functions that load the models, by name, so that one model is in memory at a time."""
    load, size = partial(fmprobe.load, device=arguments.device), arguments.image_size or "fit"
    if arguments.full or arguments.model:
        names = [arguments.model] if arguments.model else FULL
        return {Path(name).name: partial(load, name, image_size=size) for name in names}
    found: dict[str, Callable[[], fmprobe.Autoencoder]] = {"demo": partial(load, str(DEMO), image_size="fit")}
    if arguments.assets is not None:
        found["dinov2-small"] = partial(load, str(arguments.assets / "models" / "dinov2-small"), image_size=size)
        found["taef2"] = partial(_taef2.load, arguments.assets / "models" / "taef2", side=64)
    return found


def images_for(name: str, model: fmprobe.Autoencoder, arguments: argparse.Namespace) -> Tensor | None:
    if not model.image_shape:
        return None
    if name == "demo" and arguments.data is None:
        return digits(model, arguments.starts)
    source = arguments.data or (arguments.assets and f"{arguments.assets / 'data' / 'photos'}:test")
    return None if source is None else model.load_images(source, arguments.starts)


def starts_of(curves: Residuals) -> dict[str, list[float]]:
    """For each start the last residual over the first, and the largest norm of the second half over the first's."""
    half = curves.norm.shape[1] // 2
    fall = curves.latent[:, -1] / curves.latent[:, 0]
    growth = curves.norm[:, half:].amax(1) / curves.norm[:, :half].amax(1)
    return {"fall": fall.tolist(), "growth": growth.tolist()}


def evidence(folder: Path) -> list[dict[str, Any]]:
    """The figures of each start of a finished run, for `evidence.py`."""
    rows = []
    for content in results_in(folder):
        settings, found = content["settings"], content["result"]
        starts = found["starts"] if found else {"fall": [], "growth": []}  # there were no images
        for fall, growth in zip(starts["fall"], starts["growth"], strict=True):
            row = {"curve": f"{settings['name']}, {settings['kind']}", "seed": settings["seed"]}
            row |= {"fall": fall, "growth": growth}
            row["residual falls tenfold at norms that stay bounded"] = fall < 0.1 and growth < 1.1  # nan: no
            rows.append(row)
    return rows


@together()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="Hub id or folder of a model; language models too.")
    parser.add_argument("--assets", type=Path, help="Folder with models/dinov2-small, models/taef2 and data/photos.")
    parser.add_argument("--data", help="Images to start from, SOURCE[:split][#column].")
    parser.add_argument(
        "--full", action="store_true", help="Use the paper's models, by hub names; needs an accelerator."
    )
    parser.add_argument("--starts", type=int, help="Number of starts of each kind. [default: 32; 500 with --full]")
    parser.add_argument("--steps", type=int, help="Number of steps. [default: 100; 300 with --full]")
    parser.add_argument("--image-size", type=int, help="Image side in pixels, except for the demo model and taef2.")
    parser.add_argument("--batch-size", type=int, default=32, help="Number of latents iterated together.")
    parser.add_argument("--device", default="auto", help="Device to compute on.")
    parser.add_argument("--seed", type=int, default=0, help="Seed of the noise starts and of a surrogate.")
    parser.add_argument("--out", type=Path, default=Path("runs/residual_curves"), help="Folder for the results.")
    add_figure_options(parser)
    arguments = parser.parse_args()
    arguments.starts = arguments.starts or (500 if arguments.full else 32)
    arguments.steps = arguments.steps or (300 if arguments.full else 100)
    loads = models(arguments)
    given = {name: value for name, value in vars(arguments).items() if name != "out"}
    decoders, conditions = {}, {}
    for name, load in loads.items():
        model = with_decoder(load(), arguments.seed)  # processes fit it together, before they share the conditions
        decoders[name] = model.surrogate
        own = {**given, "name": name, "fingerprint": model.fingerprint}
        conditions |= {f"{name}-{kind}": {**own, "kind": kind} for kind in ("images", "noise")}
        del model

    @lru_cache(1)
    def model_of(name: str) -> fmprobe.Autoencoder:
        model = loads[name]()
        return model if decoders[name] is None else model.with_decoder(decoders[name])

    def measure(label: str, settings: dict[str, Any]) -> dict[str, Any] | None:
        name = settings["name"]
        model = model_of(name)
        images = images_for(name, model, arguments) if settings["kind"] == "images" else None
        if images is None and settings["kind"] == "images":
            return None
        options = {"steps": arguments.steps, "seed": arguments.seed, "batch_size": arguments.batch_size}
        n = arguments.starts if images is None else None
        curves = fmprobe.probe_residuals(model, images, n=n, **options)
        row = curves.to_dict()
        title = f"{name}: {row['n']} starts, {row['starts']}"
        save(plot_residuals(row, title), arguments.out, label, [name, f"{row['n']} starts, {row['starts']}"])
        return {"model": model.provenance, "residual_curves": row, "starts": starts_of(curves)}

    for name, found in sweep(measure, conditions, arguments.out):
        if found is not None:
            print(f"\n{name}: {as_text(tables(found, 'residual_curves'))}")


if __name__ == "__main__":
    main()
