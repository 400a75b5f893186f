"""Surrogates that are fitted in a moment."""

from typing import Any

from fmprobe.surrogates.fit import FitSettings, fit_decoder

QUICK = FitSettings(size="tiny", n_images=32, steps=5, batch_size=8, contraction=0.0)


def quick(model: Any, images: Any = None, kind: str = "pixel", **changes: Any) -> Any:
    settings = {
        "size": "tiny",
        "n_images": 32,
        "steps": 5,
        "batch_size": 8,
        "contraction": 0.0,
        "progress": False,
        **changes,
    }
    if images is not None and "n_images" not in changes:
        del settings["n_images"]
    return fit_decoder(model, images, kind, **settings)
