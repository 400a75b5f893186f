"""Procedural images: they are structured like photographs, but made from random numbers alone."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fmprobe.errors import InputError
from fmprobe.seeding import generator

Rng = np.random.Generator
Array = NDArray[np.float32]

FRACTAL_OVERSAMPLING = 4  # points drawn for each pixel: enough for a smooth density


def procedural_images(n: int, size: int, seed: int = 0, mixture: str = "all", first: int = 0) -> Tensor:
    """Draw images `first … first + n - 1` of a procedural stream.

    Image i depends only on `seed`, i, `size` and `mixture`, so a large set can be drawn in blocks. Source: Baradad,
    Wulff, Wang, Isola, Torralba, "Learning to See by Looking at Noise", NeurIPS 2021.

    Args:
        n: number of images.
        size: side of an image, in pixels.
        seed: seed of the stream.
        mixture: "leaves" (dead leaves: occluding shapes of power-law size), "noise" (coloured 1/f^a noise), "fractals"
            (iterated function systems), "gradients" (gradients and stripes) or "all" (each image draws its own kind).
        first: index of the first image.

    Returns:
        Images `(n, 3, size, size)`, float32 in `[0, 1]`.

    Raises:
        InputError: n or first is below 0, size is below 1, or the mixture is unknown.
    """
    if n < 0 or first < 0:
        raise InputError(f"procedural images: n and first must not be negative, got n={n}, first={first}")
    if size < 1:
        raise InputError(f"procedural images: size must be at least 1 pixel a side, got {size}")
    if mixture != "all" and mixture not in _KINDS:
        raise InputError(f"unknown mixture {mixture!r} of procedural images: expected one of {', '.join(MIXTURES)}")
    images = np.empty((n, 3, size, size), dtype=np.float32)
    for i in range(n):
        images[i] = _painted(seed, first + i, size, mixture)
    return torch.from_numpy(images)


def _painted(seed: int, index: int, size: int, mixture: str) -> Array:
    """One image of the stream."""
    rng = generator(seed, index, "procedural images")
    kind = rng.choice(list(_WEIGHTS), p=list(_WEIGHTS.values())) if mixture == "all" else mixture
    return _KINDS[kind](rng, size)


def _leaves(rng: Rng, size: int) -> Array:
    """Dead leaves (Lee, Mumford, Huang 2001): shapes with radius density ~ r^-a, painted over one another."""
    palette = _Palette(rng)
    image = np.empty((3, size, size), dtype=np.float32)
    image[:] = palette.draw(1).reshape(3, 1, 1)
    grain = power_noise(rng, 1, size, rng.uniform(0.5, 1.5))[0]
    count = int(rng.integers(25, 80))
    radii = _power_law(rng, count, rng.uniform(1.5, 2.5), 0.1, rng.uniform(0.3, 0.6)) * size
    centres = rng.uniform(-0.05, 1.05, (count, 2)) * size
    colours = palette.draw(2 * count).reshape(count, 2, 3, 1).astype(np.float32)
    kinds, styles = rng.integers(0, 3, count), rng.random(count)
    angles, aspects = rng.uniform(0, 2 * np.pi, count), rng.uniform(0.4, 1.0, count)
    for i in range(count):
        x0, x1 = _span(centres[i, 0], radii[i], size)
        y0, y1 = _span(centres[i, 1], radii[i], size)
        if x0 >= x1 or y0 >= y1:
            continue
        dx = (np.arange(x0, x1, dtype=np.float32) + 0.5 - centres[i, 0]) / radii[i]
        dy = (np.arange(y0, y1, dtype=np.float32)[:, None] + 0.5 - centres[i, 1]) / radii[i]
        inside = _inside(int(kinds[i]), dx, dy, float(angles[i]), float(aspects[i]))
        window = image[:, y0:y1, x0:x1]
        if styles[i] < 0.7:  # plain
            window[:, inside] = colours[i, 0]
            continue
        if styles[i] < 0.85:  # grainy
            weight = 0.5 + 0.25 * grain[y0:y1, x0:x1][inside]
        else:  # striped or shaded, by the number of periods
            periods = (styles[i] - 0.85) * 20
            along = np.cos(angles[i]) * dx + np.sin(angles[i]) * dy
            weight = 0.5 + 0.5 * np.sin(np.pi * periods * along[inside])
        window[:, inside] = colours[i, 0] + (colours[i, 1] - colours[i, 0]) * weight
    return np.clip(image, 0, 1, out=image)


def _inside(kind: int, dx: Array, dy: Array, angle: float, aspect: float) -> NDArray[np.bool_]:
    """Which points lie in an ellipse, a rectangle or a triangle; coordinates are in units of the radius from the
    centre.
    """
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    u, v = cos * dx + sin * dy, (cos * dy - sin * dx) / np.float32(aspect)
    if kind == 0:
        return u * u + v * v < 1
    if kind == 1:
        return np.maximum(np.abs(u), np.abs(v)) < np.float32(np.sqrt(0.5))
    return np.maximum(-u, 0.5 * u + np.float32(np.sqrt(0.75)) * np.abs(v)) < 0.5


def _span(centre: float, radius: float, size: int) -> tuple[int, int]:
    """The pixels of a row that a shape can cover, from first to behind the last."""
    return max(int(centre - radius), 0), min(int(centre + radius) + 1, size)


def _noise(rng: Rng, size: int) -> Array:
    """Noise of amplitude 1/f^a, with a in [0.5, 2]; three fields are mixed to colours at random."""
    fields = power_noise(rng, 3, size, rng.uniform(0.5, 2.0)).reshape(3, -1)
    mixing = rng.normal(size=(3, 3)) * rng.uniform(0.2, 1.0) + rng.normal(size=(1, 3))  # a shared row makes it greyer
    mixing /= np.linalg.norm(mixing, axis=1, keepdims=True)
    contrast, mean = rng.uniform(0.08, 0.3), _Palette(rng).draw(1).reshape(3, 1) * 0.6 + 0.2
    image = (mean + contrast * (mixing @ fields)).astype(np.float32).reshape(3, size, size)
    return np.clip(image, 0, 1, out=image)


def power_noise(rng: Rng, fields: int, size: int, exponent: float) -> Array:
    """Gaussian fields `(fields, size, size)` with amplitude spectrum 1/f^exponent, zero mean and unit variance."""
    fy, fx = np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :]
    frequency = np.hypot(fy, fx)
    frequency[0, 0] = np.inf  # no constant part
    shape = (fields, *frequency.shape)
    spectrum = (rng.standard_normal(shape) + 1j * rng.standard_normal(shape)) * frequency**-exponent
    noise = np.fft.irfft2(spectrum, s=(size, size))
    deviation = noise.std(axis=(1, 2), keepdims=True)
    return (noise / np.maximum(deviation, np.finfo(np.float32).tiny)).astype(np.float32)


def _fractals(rng: Rng, size: int) -> Array:
    """The attractor of a random iterated function system; each point is coloured by the maps that led to it."""
    maps = int(rng.integers(2, 5))
    turns = rng.uniform(0, 2 * np.pi, (2, maps))
    scales = rng.uniform(0.35, 0.9, (2, maps)) * rng.choice([-1, 1], (2, maps))
    left, right = (np.stack([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]]).transpose(2, 0, 1) for t in turns)
    linear = (left * scales.T[:, None, :]) @ right  # rotation, scaling, rotation: singular values < 0.9, so contracting
    shift = rng.uniform(-1, 1, (maps, 2, 1))
    palette = _Palette(rng)
    background, tints = palette.draw(1).reshape(3, 1), palette.draw(maps).T.reshape(maps, 3, 1)

    # Every map is applied to every point, so the number of points grows by the factor `maps` at each level.
    points, colours = rng.uniform(-1, 1, (2, 16)), np.full((3, 16), 0.5)
    levels = int(np.ceil(np.log(max(FRACTAL_OVERSAMPLING * size**2 / 16, 2)) / np.log(maps)))
    for _ in range(levels):
        points = (linear @ points + shift).transpose(1, 0, 2).reshape(2, -1)
        colours = (0.5 * colours + 0.5 * tints).transpose(1, 0, 2).reshape(3, -1)
    low, high = np.quantile(points[:, :: max(points.shape[1] // 2048, 1)], [0.01, 0.99], axis=1, keepdims=True)
    cells = ((points - low) / np.maximum(high - low, 1e-6) * 0.9 + 0.05) * size
    seen = np.all((cells >= 0) & (cells < size), axis=0)
    column, row = cells[:, seen].astype(np.int64)
    index = row * size + column
    density = np.bincount(index, minlength=size**2)
    colour = np.stack([np.bincount(index, c[seen], size**2) for c in colours]) / np.maximum(density, 1)
    cover = np.minimum(np.log1p(density) / np.log1p(2 * FRACTAL_OVERSAMPLING), 1.0)
    image = background + (colour - background) * cover
    return np.clip(image, 0, 1).astype(np.float32).reshape(3, size, size)


def _gradients(rng: Rng, size: int) -> Array:
    """Two layers of linear or radial ramps, waves or hard stripes, each between two colours."""
    x = (np.arange(size, dtype=np.float32) + np.float32(0.5)) / np.float32(size)
    colours = _Palette(rng).draw(4).astype(np.float32).reshape(3, 2, 2)
    image = np.zeros((3, size, size), dtype=np.float32)
    for layer in range(2):
        profile = _profile(rng, x)
        start, end = colours[:, layer, 0, None, None], colours[:, layer, 1, None, None]
        weight = np.float32(1.0 if layer == 0 else rng.choice([0.0, 0.5]) * rng.random())
        image += weight * (start + (end - start) * profile - image)
    return np.clip(image, 0, 1, out=image)


def _profile(rng: Rng, x: Array) -> Array:
    """A pattern in `[0, 1]` over the unit square: a ramp, a wave or hard stripes along a line or a radius."""
    angle, centre = rng.uniform(0, 2 * np.pi), rng.uniform(0, 1, 2).astype(np.float32)
    u, v = x[None, :] - centre[0], x[:, None] - centre[1]
    along = np.hypot(u, v) if rng.random() < 0.35 else np.float32(np.cos(angle)) * u + np.float32(np.sin(angle)) * v
    form = rng.integers(0, 3)
    if form == 0:
        low, high = along.min(), along.max()
        return (along - low) / max(float(high - low), 1e-6)
    wave = np.sin(2 * np.pi * np.float32(np.exp(rng.uniform(0, np.log(12)))) * along)
    return 0.5 + 0.5 * wave if form == 1 else (wave > rng.uniform(-0.7, 0.7)).astype(np.float32)


class _Palette:
    """The colours of one image, with a brightness range and a saturation of its own, as photographs have."""

    def __init__(self, rng: Rng) -> None:
        self._rng = rng
        self._low, self._high = rng.uniform(0, 0.25), rng.uniform(0.75, 1)
        self._saturation = rng.uniform(0.1, 1.0)

    def draw(self, n: int) -> NDArray[np.float64]:
        """Draw `(3, n)` colours in `[0, 1]`."""
        grey = self._rng.uniform(self._low, self._high, (1, n))
        full = self._rng.uniform(0, 1, (3, n))
        s = self._saturation
        mixed = (grey - 0.5) * (1 - s) + (full - 0.5) * s
        return np.clip(0.5 + mixed / np.hypot(1 - s, s), 0, 1)  # this restores the contrast that mixing takes away


def _power_law(rng: Rng, n: int, exponent: float, low: float, high: float) -> NDArray[np.float64]:
    """Draw from a density ~ r^-exponent on `[low, high]` by inversion; the exponent is above 1."""
    a = 1 - exponent
    return (low**a + rng.random(n) * (high**a - low**a)) ** (1 / a)


_KINDS: dict[str, Callable[[Rng, int], Array]] = {
    "leaves": _leaves,
    "noise": _noise,
    "fractals": _fractals,
    "gradients": _gradients,
}
_WEIGHTS = {"leaves": 0.55, "noise": 0.15, "fractals": 0.15, "gradients": 0.15}
MIXTURES = ("all", *_KINDS)
