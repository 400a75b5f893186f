"""How long a fit takes on this machine, measured before the fit."""

import time
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.inputs import ImagesLike
from fmprobe.progress import duration
from fmprobe.surrogates.data import HELD_OUT
from fmprobe.surrogates.fit import fit_with
from fmprobe.surrogates.settings import Settings, TrainedSettings

STEPS = 6  # of each stage. One of them, as one in six of a whole fit, penalises the Jacobian
HOUR = 3600
ROWS = 4  # number of images that the cost of the encoder is measured with


@dataclass(frozen=True)
class Pace:
    """The time of a stage of a fit.

    Attributes:
        stage: The stage in words.
        seconds: Seconds a step.
        steps: Number of steps that the settings ask for.
    """

    stage: str
    seconds: float
    steps: int

    def __str__(self) -> str:
        hour = float(f"{HOUR / self.seconds:.2g}")
        return (
            f"{self.stage}: {self.seconds:.2g} s a step, about {hour:,.0f} steps an hour here; "
            f"{self.steps:,} steps take about {self.seconds * self.steps / 60:.2g} min"
        )


def pace_of(model: Autoencoder, settings: TrainedSettings, images: ImagesLike | None = None) -> list[Pace]:
    """Take a few steps of each stage of a fit, on as many images as a batch has, and keep nothing.

    Args:
        model: The encoder.
        settings: The settings of the fit.
        images: The images of the fit, as `fit_decoder` takes them.

    Raises:
        InputError: The kind is not trained by steps, or it cannot be fitted to the model.
    """
    if not isinstance(settings, TrainedSettings):
        raise InputError(f"a {settings.kind} surrogate is not trained by steps, so there is no time to plan")
    second = getattr(settings, "consistency_steps", 0)
    few: dict[str, Any] = {"steps": STEPS, "n_images": 2 * max(settings.batch_size, 16), "draws": 1}
    if second:
        few["consistency_steps"] = STEPS
    log = fit_with(model, replace(settings, **few), images, progress=False).info["log"]
    stages = {"first stage": (None, settings.steps)} | ({"second stage": ("consistency", second)} if second else {})
    # The first step warms up.
    seconds = {
        key: [row["seconds_per_step"] for row in log if row.get("stage") == key][1:] for key, _ in stages.values()
    }
    return [Pace(stage, _mean(seconds[key]), steps) for stage, (key, steps) in stages.items()]


def estimate(model: Autoencoder, settings: Settings) -> str:
    """What a fit on procedural images will do, and how long the encoder takes for it, measured on a few images."""
    images = torch.zeros(ROWS, *model.image_shape, device=model.device)
    times = []
    for _ in range(2):  # the first call warms up
        began = time.perf_counter()
        with torch.no_grad():
            model.encode_unchecked(images).sum().item()  # a number waits for an accelerator
        times.append(time.perf_counter() - began)
    count = (settings.n_images or 0) * settings.draws + 2 * HELD_OUT
    then = f", then come {settings.steps:,} training steps" if isinstance(settings, TrainedSettings) else ""
    return f"{count:,} images to encode take about {duration(count * min(times) / ROWS)}{then}"


def _mean(seconds: list[float]) -> float:
    """The mean of times without what an interruption added to one of them."""
    most = 10 * median(seconds)
    kept = [one for one in seconds if one <= most]
    return sum(kept) / len(kept)
