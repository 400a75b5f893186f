"""Run folders that the commands themselves wrote, on small models and a few images."""

import json
import shlex
import shutil
import sys
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.files import RESULTS, read_json
from fmprobe.pictures import to_picture
from fmprobe.report.page import write_report
from fmprobe.surrogates.latent import LatentSurrogate
from support.checkpoints import TINY, save_dinov2
from support.once import Once
from support.quick import drawn, whole_readings

SEARCH = "-n 12 --max-steps 40"
# The commands that write each folder. A word in capitals is a path.
RUNS = {
    "prototypes": (f"prototypes MODEL {SEARCH}",),
    "run": (
        f"weights MODEL {SEARCH} --data IMAGES:known --images 4 --atoms 2,4",
        f"memorization MODEL {SEARCH} --data IMAGES:known --test IMAGES:other --images 12",
        f"field MODEL {SEARCH} --resolution 5",
    ),
    "capacity": ("capacity ENCODER --k 2 --k 6 --images 20 -n 4 --max-steps 20 --image-size 28",),
    "convergence": ("convergence MODEL -n 12",),
    "contraction": ("contraction MODEL -n 12",),
    "residuals": ("residuals MODEL -n 12",),
    "comparison": ("compare MODEL MODEL --data IMAGES:known --images 12 --max-steps 20",),
    "ood": ("ood MODEL --data IMAGES:known --images 64 --ood '<u>far=IMAGES:other' --ood-images 16 --max-steps 20",),
    "scores": ("score DETECTOR --data IMAGES:other",),
    "decoder": ("fit-decoder ENCODER --size tiny --images 16 --steps 2 --batch-size 8",),
    "surrogate": ("prototypes ENCODER --decoder DECODER -n 4 --measure rms --tol 0.01",),
    "codes-decoder": (
        "fit-decoder ENCODER --kind latent --variant topk --bottleneck 8 --images 32 --steps 40 --batch-size 8",
    ),
    "codes": ("prototypes ENCODER --decoder CODES -n 4 --measure rms --tol 0.01 --max-steps 100",),
    "language": ("prototypes LANGUAGE -n 4 --max-steps 10",),
    "wide": ("probe WIDE -n 120",),
    "chaotic": ("probe CHAOTIC -n 8 --max-steps 60",),
}
GOES_ON = {"run": "prototypes"}  # the first folder begins as a copy of the second
# What the names of models and of images hold is text on a page, and no markup.
MODEL, IMAGES = "<b>digits", "<script>alert(1)"


def wide_model() -> fmprobe.Autoencoder:
    """128 fixed points, one for each choice of seven signs, decoded to noise: the pictures that compress worst."""
    shape, wells = (3, 112, 112), 7
    noise = torch.rand(3 * 112 * 112, generator=torch.Generator().manual_seed(0))

    def decode(latents: torch.Tensor) -> torch.Tensor:
        shifted = (noise[wells:] + latents.sum(1, keepdim=True)) % 1
        return torch.cat([latents, shifted], 1).reshape(-1, *shape)

    def encode(images: torch.Tensor) -> torch.Tensor:
        return torch.tanh(3 * images.flatten(1)[:, :wells])

    made = fmprobe.from_functions(encode, decode, image_shape=shape, latent_shape=(wells,), name="wide")
    made.provenance |= {"fingerprint": "wide", "revision": None}
    return made


def chaotic_model() -> fmprobe.Autoencoder:
    """The logistic map at 4 on each of four coordinates, shown as the quarters of an image: its exponent is log 2."""
    shape = (1, 8, 8)

    def decode(latents: torch.Tensor) -> torch.Tensor:
        return (latents % 1).reshape(-1, 1, 2, 2).repeat_interleave(4, 2).repeat_interleave(4, 3)

    def encode(images: torch.Tensor) -> torch.Tensor:
        quarters = images[:, :, ::4, ::4].flatten(1)
        return 4 * quarters * (1 - quarters)

    made = fmprobe.from_functions(encode, decode, image_shape=shape, latent_shape=(4,), name="chaotic")
    made.provenance |= {"fingerprint": "chaotic", "revision": None}
    return made


def let_settle(decoder: Path) -> None:
    """Give a latent surrogate the same features for every code, so that its map is constant and every orbit settles."""
    surrogate = LatentSurrogate.from_pretrained(decoder)
    (last,) = [layer for layer in surrogate.to_features if isinstance(layer, torch.nn.Linear)][-1:]
    torch.nn.init.zeros_(last.weight)
    surrogate.save(decoder)


MADE = {"WIDE": wide_model, "CHAOTIC": chaotic_model}


class Written:
    """Folders of finished runs by their names in `RUNS`, each written once a session. Copy one before you change it."""

    def __init__(self, once: Once) -> None:
        self._once = once

    def __call__(self, name: str) -> Path:
        return self._once(f"written/{name}", lambda folder: self._write(name, folder)) / name

    def printed(self, name: str) -> str:
        """What the last command of a folder printed."""
        return (self(name).parent / "printed.txt").read_text()

    def gathered(self, folder: Path, search: str) -> Path:
        """A new folder that holds what every section shows, the attractors those of the run `search`."""
        results: dict[str, Any] = {}
        for name in (*(name for name in self.pages() if name != search), search):
            shutil.copytree(self(name), folder, dirs_exist_ok=True)
            results |= read_json(self(name) / RESULTS)
        results["orbits"]["noise"]["set"] = read_json(self("chaotic") / RESULTS)["orbits"]["noise"]["set"]
        surrogate = read_json(self("surrogate") / RESULTS)
        results |= {key: surrogate[key] for key in ("decoder", "reconstructions")}
        (folder / RESULTS).write_text(json.dumps(results))
        return folder

    def page(self, name: str) -> str:
        """The page that a command wrote, or that `fmprobe report` makes of a folder without one."""
        folder = self(name)
        path = folder / "report.html"
        return (path if path.exists() else write_report(folder, folder.parent / "page.html")).read_text()

    def pages(self) -> list[str]:
        """The names of the folders that hold something for a page."""
        return [name for name in RUNS if not name.endswith("decoder")]

    def _write(self, name: str, folder: Path) -> None:
        if name in GOES_ON:
            shutil.copytree(self(GOES_ON[name]), folder / name)
        for line in RUNS[name]:
            (folder / "printed.txt").write_text(self._run(line, folder / name))
        if name == "codes-decoder":
            let_settle(folder / name)

    def _run(self, line: str, out: Path) -> str:
        """Run a command in this process; returns what it printed."""
        words = [self._placed(word) for word in shlex.split(line)] + ["--out", str(out)]
        load = fmprobe.load

        def loaded(name: str, **arguments: object) -> fmprobe.Autoencoder:
            return MADE[name]() if name in MADE else load(name, **arguments)  # type: ignore[arg-type]

        argv = mock.patch.object(sys, "argv", ["fmprobe", *words])
        with mock.patch("fmprobe.loading.load", loaded), argv, drawn(), whole_readings():
            done = CliRunner().invoke(app, words, catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.stdout

    def _placed(self, word: str) -> str:
        """A word of a command, with the path that it stands for made."""
        paths = {
            "MODEL": lambda: self._once("written/models", _save_model) / MODEL,
            "ENCODER": lambda: self._once("tiny/dinov2-28", save_dinov2),
            "LANGUAGE": lambda: self._once("tiny/llama", TINY["llama"]),
            "DETECTOR": lambda: self("ood") / "detector",
            "DECODER": lambda: self("decoder"),
            "CODES": lambda: self("codes-decoder"),
            "IMAGES": lambda: self._once("written/images", _save_images) / f"{IMAGES}.npz",
        }
        for name, path in paths.items():
            if name in word:
                word = word.replace(name, str(path()))
        return word


def _save_model(folder: Path) -> None:
    with as_file(files("fmprobe.demo") / "vit-mae-digits") as demo:
        shutil.copytree(demo, folder / MODEL)


def _save_images(folder: Path) -> None:
    known, other = (
        fmprobe.procedural_images(n, 16, seed=seed, mixture=mixture)
        for seed, (n, mixture) in enumerate(((96, "all"), (40, "leaves")))
    )
    np.savez(folder / f"{IMAGES}.npz", known=_pixels(known), other=_pixels(other))


def _pixels(images: torch.Tensor) -> np.ndarray:
    return np.stack([np.asarray(to_picture(image)) for image in images])
