"""Image tensors as pictures, and pictures on sheets and in files."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fmprobe.canvas import grid, title
from fmprobe.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image
    from torch import Tensor


ON_SHEET = 48  # largest number of pictures on one sheet
FRAME = 96  # longest side of a frame, in pixels


def to_picture(image: "Tensor") -> "Image":
    """Convert one image `(C, H, W)`, clamped to [0, 1], to 8-bit grey or RGB."""
    from PIL import Image

    pixels = (image.clamp(0, 1).nan_to_num() * 255).round().byte().permute(1, 2, 0).numpy()
    return Image.fromarray(pixels[..., :3] if pixels.shape[-1] >= 3 else pixels[..., 0])


def draw_sheet(pictures: "Sequence[Image]", sizes: list[int], n: int) -> "Figure":
    """Draw pictures in a grid, each under the size of its basin; a sentence if there are none."""
    shown = pictures[:ON_SHEET]
    columns = max(1, min(8, math.ceil(math.sqrt(len(shown) * 1.6))))
    rows = max(1, math.ceil(len(shown) / columns))
    figure, axes = grid(rows, columns, (1.5 * max(columns, 4), 1.7 * rows + 0.5))
    if not shown:
        axes[0].axis("off")
        axes[0].text(0.5, 0.5, f"No attractor: none of {n} orbits settled.", ha="center", va="center")
        return figure
    for i, ax in enumerate(axes):
        ax.axis("off")
        if i < len(shown):
            small = max(shown[i].size) < 64
            ax.imshow(shown[i], cmap="gray", vmin=0, vmax=255, interpolation="nearest" if small else "antialiased")
            ax.set_title(f"{sizes[i]} of {n}", fontsize=9)
    more = f" (the {len(shown)} largest of {len(pictures)})" if len(pictures) > len(shown) else ""
    title(figure, axes, f"Decoded attractors and the starts that end in each{more}")
    return figure


def save_figure(figure: "Figure", path: Path, dpi: int = 120) -> None:
    """Write a figure atomically, in the format that the end of the name says."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format=path.suffix[1:], dpi=dpi))


def save_frames(frames: "Tensor", path: Path) -> None:
    """Save images `(rows, columns, C, H, W)` edge to edge in one PNG, each small enough for a page."""
    from PIL import Image

    rows, columns = frames.shape[:2]
    height, width = frames.shape[-2:]
    scale = min(1.0, FRAME / max(height, width))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    sprite = Image.new("RGB", (columns * width, rows * height))
    for row in range(rows):
        for column in range(columns):
            picture = to_picture(frames[row, column]).resize((width, height), Image.Resampling.BOX)
            sprite.paste(picture, (column * width, row * height))
    write_atomically(path, lambda temporary: sprite.save(temporary, format="PNG", optimize=True))
