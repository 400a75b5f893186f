"""How long the steps of a fit take on this machine, measured before the fit."""

from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from fmprobe.autoencoder import Autoencoder
from fmprobe.errors import InputError
from fmprobe.inputs import ImagesLike
from fmprobe.surrogates.fit import fit_with
from fmprobe.surrogates.settings import TrainedSettings

STEPS = 6  # of each stage. One of them, as one in six of a whole fit, penalises the Jacobian
HOUR = 3600


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


def _mean(seconds: list[float]) -> float:
    """The mean of times without what an interruption added to one of them."""
    most = 10 * median(seconds)
    kept = [one for one in seconds if one <= most]
    return sum(kept) / len(kept)
