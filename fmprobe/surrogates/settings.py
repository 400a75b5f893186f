"""The settings of a fit: those of every kind, those of training by steps, and how their values are checked.

A kind declares its own settings as a subclass in its own file. `number` and `word` declare a field together with the
values that it may have.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from functools import partial
from numbers import Real
from typing import Any

from fmprobe.errors import InputError
from fmprobe.procedural import MIXTURES
from fmprobe.surrogates.kinds import find_kind


def _checked_number(
    name: str, value: Any, *, positive: bool, below: float, whole: bool = False, optional: bool = False
) -> int | float | None:
    """The value as a plain number. Raises InputError for anything else, or a number outside the field's range."""
    if value is None:
        if optional:
            return None
    elif _is_finite(value) and (value > 0 if positive else value >= 0) and value < below and not (whole and value % 1):
        return int(value) if whole else float(value)
    rule = "be above 0 and finite" if positive else "not be negative, and must be finite"
    rule = f"be at least 0 and below {below}" if below < math.inf else rule
    raise InputError(f"{name} must {rule}{', and whole' if whole else ''}, got {value!r}")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _checked_word(_: str, value: Any, *, what: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        known = " or ".join(choices) if len(choices) == 2 else f"one of {', '.join(choices)}"
        raise InputError(f"unknown {what} {value!r}: expected {known}")
    return value


def number(default: float | None, *, positive: bool = False, below: float = math.inf, **more: bool) -> Any:
    """Declare a field that holds a finite number of at least 0.

    Args:
        default: Default of the field.
        positive: Whether 0 is excluded.
        below: Exclusive upper bound.
        more: `whole`, whether the number must be an integer; `optional`, whether the field may hold None.
    """
    check = partial(_checked_number, positive=positive, below=below, **more)
    return field(default=default, metadata={"check": check})


def word(default: str, what: str, choices: Iterable[str]) -> Any:
    """Declare a field that holds one of several words.

    Args:
        default: Default of the field.
        what: Name of the setting in error messages.
        choices: The words that the field may hold.
    """
    return field(default=default, metadata={"check": partial(_checked_word, what=what, choices=tuple(choices))})


def kind_of(default: str) -> Any:
    """Declare the field that holds the name of a kind, by default this one."""
    return field(default=default, metadata={"check": lambda _, value: find_kind(value).kind})


@dataclass(frozen=True)
class Settings:
    """What every kind of surrogate is fitted with.

    Attributes:
        kind: Name of the kind of surrogate.
        n_images: Number of procedural images. Of given images, at most this many are used, spread evenly (None: all).
        pixel_noise: The encoder sees each training image with coloured noise. The noise has a standard deviation drawn
            from U[0, pixel_noise]. A decoder learns to paint the image without the noise, so D(E(x)) becomes a
            denoiser, and f has the same non-zero eigenvalues.
        draws: Number of versions of each training image, which differ in their noise.
        mixture: Mixture of the procedural images.
        seed: Seed of everything that is drawn.

    Raises:
        InputError: If a field has a value that it cannot have, or one that the kind does not use. The default of a
            field and 0 are always accepted.
    """

    kind: str = kind_of("pixel")
    n_images: int | None = number(1500, positive=True, whole=True, optional=True)
    pixel_noise: float = number(0.2)
    draws: int = number(1, positive=True, whole=True)
    mixture: str = word("all", "mixture", MIXTURES)
    seed: int = number(0, whole=True)

    def __post_init__(self) -> None:
        for one in fields(self):  # numpy's numbers become plain ones, which go into a file
            object.__setattr__(self, one.name, one.metadata["check"](one.name, getattr(self, one.name)))
        expected = find_kind(self.kind).settings_type
        if not isinstance(self, expected):
            raise InputError(
                f"a {self.kind} surrogate has its own settings, {expected.__name__}: "
                f"make them with FitSettings.for_device(device, {self.kind!r})"
            )
        used = {one.name for one in fields(expected)}
        for one in fields(self):
            if one.name not in used and (value := getattr(self, one.name)) not in (0, one.default):
                raise InputError(f"{one.name}={value!r} is not a setting of a {self.kind} surrogate: leave it out")
        if self.draws > 1 and self.pixel_noise == 0:
            raise InputError(
                f"draws={self.draws} are versions with other noise, and pixel_noise is 0: give it, or leave draws out"
            )


@dataclass(frozen=True)
class TrainedSettings(Settings):
    """What kinds that are trained by steps have in addition.

    Attributes:
        steps: Number of training steps.
        batch_size: Number of images in a step, over all processes.
        learning_rate: Largest learning rate of AdamW.
        weight_decay: Weight decay of AdamW on matrices.
        ema: Decay of the averaged weights, which are the ones that are kept. 0 keeps the last weights.
        accumulate: Number of parts in which each process takes its share of a batch.
        precision: "no", or "bf16" for mixed precision.
    """

    steps: int = number(900, positive=True, whole=True)
    batch_size: int = number(16, positive=True, whole=True)
    learning_rate: float = number(2e-3, positive=True)
    weight_decay: float = number(0.05)
    ema: float = number(0.99, below=1)
    accumulate: int = number(1, positive=True, whole=True)
    precision: str = word("no", "precision", ("no", "bf16"))
