"""Attractors as users hold them: found from a model, saved, loaded and drawn."""

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fmprobe.artefacts import Artefact
from fmprobe.canvas import Drawn, drawing
from fmprobe.cards import Base, Card, Metric
from fmprobe.digests import file_digest
from fmprobe.dynamics.attractors import Attractors, attractors_of, check_settings
from fmprobe.dynamics.calls import Function
from fmprobe.dynamics.checks import check_counts
from fmprobe.dynamics.distances import typical_size
from fmprobe.dynamics.iterate import Observer, Progress, iterate
from fmprobe.dynamics.orbits import Orbits
from fmprobe.dynamics.paging import forget
from fmprobe.dynamics.protocols import protocol_for
from fmprobe.errors import InputError
from fmprobe.files import SCHEMA, read_json, write_atomically, write_json
from fmprobe.hub import canonical

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fmprobe.autoencoder import Autoencoder
    from fmprobe.canvas import Given
    from fmprobe.inputs import ImagesLike

SHOWN = 6  # basins in a repr
AT_ONCE = 8  # latents that are decoded at a time for a plot
WRITTEN_AT_ONCE = 2**24  # bytes
# The tensors and the numbers of a saved set, and those of its orbits.
TENSORS = ("latents", "labels", "sizes", "errors", "spectral_radius", "spectral_norm")
FACTS = ("merge", "unresolved", "unstable", "polished", "examined", "warning", "model")
ORBIT_TENSORS = ("ends", "steps", "residuals", "status", "errors", "periods")
ORBIT_FACTS = ("evaluations", "surplus", "check_evaluations", "protocol")
FORMATS = {
    torch.float32: "F32",
    torch.float64: "F64",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
}


@dataclass(frozen=True)
class AttractorSet(Attractors, Artefact, Drawn):
    """The attractors of a model, which can be saved, shared, loaded and drawn.

    Attributes:
        warning: what speaks against the model's surrogate decoder, where f is made with one.
        model: what is known of the model: its name, revision, fingerprint, tokens, and the source of images whose
            latents were the starts. None where f is a function, and for sets of earlier versions.
        painter: the model that they were found with, which decodes them for a plot; it is not saved with them.
    """

    warning: str | None = None
    model: Mapping[str, Any] | None = None
    painter: "Autoencoder | None" = field(default=None, repr=False, compare=False)

    @classmethod
    def of(cls, found: Attractors, model: Any = None, source: str | None = None) -> "AttractorSet":
        """The attractors that `dynamics` found, with what is to be said of the model and of the source of starts."""
        kept = {one.name: getattr(found, one.name) for one in fields(Attractors)}
        warning = getattr(model, "surrogate_warning", None)
        return cls(**kept, warning=warning, model=_about(model, source), painter=_painter(model))

    def __repr__(self) -> str:
        starts, settled = len(self.orbits), int(self.orbits.converged.sum())
        number = "an unknown number of" if self.count is None else self.count
        lines = [
            f"AttractorSet: {number} attractors, from {settled} of {starts} starts that settled",
            f"  merged by {self.merge['measure']} distance {self.merge['threshold']:g}",
        ]
        if len(self):
            known = self.spectral_radius[self.spectral_radius.isfinite()]
            radius = f"{known.min():.3f} to {known.max():.3f}" if len(known) else "not known"
            more = ", …" if len(self) > SHOWN else ""
            lines.append(f"  basins {', '.join(map(str, self.sizes[:SHOWN].tolist()))}{more}; spectral radius {radius}")
        return "\n".join([*lines, *([f"  warning: {self.warning}"] if self.warning else [])])

    def save(self, folder: str | Path) -> None:
        """Write `attractors.safetensors`, then `attractors.json`, which carries its hash and so completes it."""
        folder = Path(folder)
        tensors = {name: getattr(self, name) for name in TENSORS}
        tensors |= {f"orbits.{name}": getattr(self.orbits, name) for name in ORBIT_TENSORS}
        path = folder / "attractors.safetensors"
        write_atomically(path, lambda temporary: _write_tensors(temporary, tensors))
        content = {
            "schema": SCHEMA,
            "sha256": file_digest(path),
            **{name: getattr(self, name) for name in FACTS},
            "orbits": {name: getattr(self.orbits, name) for name in ORBIT_FACTS},
        }
        write_json(folder / "attractors.json", content)

    @classmethod
    def load(cls, folder: str | Path) -> "AttractorSet":
        """Read what `save` wrote.

        Raises:
            InputError: a file is missing, incomplete, damaged or of another version.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        folder = Path(folder)
        content, path = read_json(folder / "attractors.json"), folder / "attractors.safetensors"
        if content.get("schema") != SCHEMA:
            raise InputError(
                f"{folder / 'attractors.json'} is of schema {content.get('schema')!r}, and this version reads "
                f"{SCHEMA}: find them again, or load them with the version that saved them"
            )
        if not path.is_file() or file_digest(path) != content.get("sha256"):
            raise InputError(f"{path} is missing or is not the file that attractors.json describes: find them again")
        # Of sets that were saved before these were known.
        earlier = {"polished": 0, "examined": None, "warning": None, "model": None}
        try:
            tensors = load_file(path)
            orbits = Orbits(**{name: tensors[f"orbits.{name}"] for name in ORBIT_TENSORS}, **content["orbits"])
            facts = {name: {**earlier, **content}[name] for name in FACTS}
            return cls(**{name: tensors[name] for name in TENSORS}, orbits=orbits, **facts)
        except (SafetensorError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder} does not hold a complete set of attractors ({error}): find them again"
            ) from error

    def _save_pretrained(self, save_directory: Path) -> None:
        self.save(save_directory)

    @classmethod
    def card_of(cls, folder: Path) -> Card:
        """What the card says of a saved set."""
        found = cls.load(folder)
        known = found.model or {}
        bases = [Base(str(known["model"]), known.get("revision"))] if known.get("model") else []
        text = f"```text\n{found!r}\n```\n\nThe protocol is *{found.orbits.protocol['name']}*."
        if bases:
            text += f" The model is `{bases[0].shown}`, fingerprint `{known.get('fingerprint')}`."
        return Card(
            title=f"Attractors of {bases[0].shown if bases else 'a latent map'}",
            text=text,
            load="import fmprobe\n\nattractors = fmprobe.AttractorSet.from_pretrained({source})\n",
            tags=("attractors",),
            bases=bases,
            sources=[known.get("source")],
            metrics=[
                Metric("attractors", found.count, "the starts"),
                Metric("settled", float(found.orbits.converged.float().mean()), "the starts"),
            ],
        )

    def check_space(self, model: "Autoencoder", what: str = "the attractors") -> None:
        """Raise InputError where the attractors, called `what`, are no latents of the model."""
        if (shape := tuple(self.orbits.ends.shape[1:])) != model.latent_shape:
            raise InputError(
                f"{what} are latents of shape {shape}, and {model.name} has {model.latent_shape}: find its own"
            )

    def draw(self, kind: str | None = None, model: "Autoencoder | None" = None) -> "Figure":
        """The gallery or the summary, as `plot` shows them."""
        painter = _painter(model) or self.painter
        if kind not in (None, "gallery", "summary"):
            raise InputError(f"kind is {kind!r}: expected gallery or summary")
        if kind == "gallery" and painter is None:
            raise InputError("a gallery decodes the attractors: pass model=…, which makes images of latents")
        if kind == "summary" or painter is None:
            from fmprobe.report.plots import basins_and_sweep

            return basins_and_sweep(self.to_dict())
        from fmprobe.pictures import ON_SHEET, draw_sheet, to_picture

        self.check_space(painter)
        with torch.no_grad():
            images = painter.decode(self.latents[:ON_SHEET], AT_ONCE).cpu()
        return draw_sheet([to_picture(image) for image in images], self.sizes.tolist(), len(self.labels))

    def plot(
        self,
        ax: "Given" = None,
        *,
        kind: str | None = None,
        model: "Autoencoder | None" = None,
        figsize: tuple[float, float] | None = None,
    ) -> "Figure":
        """Draw them, for a notebook that shows the result of a cell, or for `plt.show()` of matplotlib.

        Args:
            ax: axes to draw in: one for the gallery, two for the summary; by default a figure is made.
            kind: "gallery", the largest decoded under the sizes of their basins; or "summary", the sizes of the
                basins and the count against the merge threshold. By default the gallery, where there are images.
            model: the model that decodes them; by default the one that they were found with.
            figsize: width and height of the figure in inches.

        Raises:
            InputError: the kind is unknown, nothing decodes the attractors, they are latents of another shape, or the
                axes do not fit.
        """
        with drawing(ax, figsize):
            return self.draw(kind, model)

    def _repr_html_(self) -> str:
        from fmprobe.report.show import html_of

        found = {"orbits": {"noise": self.orbits.to_dict()}, "attractors": self.to_dict()}
        return html_of(found, self.draw(), [self.warning] if self.warning else ())


def _painter(model: Any) -> "Autoencoder | None":
    """The model, where it makes pictures of latents."""
    shape = getattr(model, "image_shape", ())
    return model if getattr(model, "has_decoder", False) and len(shape) == 3 and shape[0] in (1, 3) else None


def find_attractors(
    model: Any,
    n: int | None = None,
    *,
    seed: int = 0,
    starts: Tensor | None = None,
    images: "ImagesLike | None" = None,
    tol: float | None = None,
    measure: str | None = None,
    max_steps: int | None = None,
    batch_size: int = 256,
    merge: str = "relative",
    merge_threshold: float | None = None,
    threshold: float | None = None,
    stability_cap: int = 64,
    polish: str | None = None,
    observer: Observer | None = None,
    progress: bool | Progress | None = None,
) -> AttractorSet:
    """Find the attractors that iterating the latent map leads to (Fumero et al., ICLR 2026, def. 2), and their basins.

    Only ends of orbits that converged count. Two ends are one attractor if a chain of ends connects them in which
    neighbours lie within `merge_threshold`. An end whose error exceeds half of that is iterated on, within `max_steps`.
    One that still does not come near enough is unresolved and belongs to no basin.

    The error of an end is first estimated from the rate of its steps. At one member of each of the `stability_cap`
    largest attractors it is computed from the Jacobian. Beyond these the estimates stand, which overlook slow modes
    hidden under fast ones; where a computed error refutes a basin, they are raised to the median of those computed.

    A fixed point with an eigenvalue beyond the unit circle is left out: orbits may land on it, but it attracts nothing.
    One whose eigenvalues are not known is kept.

    Args:
        model: an Autoencoder, or any f on a batch of latents.
        n: number of starts drawn from N(0, I); by default 64 on a CPU and 512 on an accelerator.
        seed: seed of these starts.
        starts: starts `(n, *latent_shape)` in place of drawn ones.
        images: images whose latents are the starts, as `Autoencoder.take_images` takes them.
        tol: tolerance at which an orbit has converged, as in `iterate`; by default that of the paper's protocol for
            this kind of model (`fmprobe.dynamics.protocols`). `orbits.protocol["name"]` says which was followed.
        measure: measure of a step, with the same default.
        max_steps: limit of the steps, with the same default.
        batch_size: largest number of latents in one call of f.
        merge: "relative" (distance over the norm) or "cosine" (1 - cos).
        merge_threshold: distance within which two ends are one attractor; by default 0.01, the paper's.
        threshold: the former name of `merge_threshold`, which will go.
        stability_cap: largest number of Jacobians examined at a time: in each of at most four rounds of merging, and
            for the polish.
        polish: "anderson" takes the attractors that were examined, not the ends, to the rounding floor of f. One that
            would come to lie farther off than its error says, or would err as much, stays as it is.
        observer: called with every step, as in `iterate`.
        progress: as in `iterate`.

    Raises:
        ValueError: a setting makes no sense.
    """
    f: Function = getattr(model, "latent_map", model)
    drawn = {}
    if images is not None:
        starts = _encoded(model, images, starts, batch_size)
    if n is not None and starts is not None and n != len(starts):
        raise ValueError(f"n is the number of starts that are drawn, and {len(starts)} are given: leave n out")
    if starts is None:
        starts, drawn = noise_starts(model, n, seed), {"seed": int(seed)}
    if threshold is not None:
        if merge_threshold is not None:
            raise ValueError("threshold and merge_threshold are two names of one setting: give merge_threshold alone")
        warnings.warn("threshold is now called merge_threshold", DeprecationWarning, stacklevel=2)
    threshold = threshold if merge_threshold is None else merge_threshold
    merging: dict[str, Any] = {
        "merge": merge,
        "threshold": threshold,
        "stability_cap": stability_cap,
        "polish": polish,
    }
    check_settings(**merging)
    protocol = protocol_for(model)
    rule = protocol.chosen(tol, measure, max_steps)
    orbits = iterate(f, starts, **rule, batch_size=batch_size, observer=observer, progress=progress)
    orbits = replace(orbits, protocol={"name": protocol.named(**rule), **orbits.protocol, **drawn})
    scale = typical_size(float(starts.double().square().mean())) if len(starts) else 1.0
    found = attractors_of(f, orbits, scale, **merging)
    return AttractorSet.of(found, model, str(images) if isinstance(images, str | Path) else None)


def _about(model: Any, source: str | None) -> dict[str, Any] | None:
    """What is known of a model that attractors are of; None for a function."""
    if not hasattr(model, "provenance"):
        return None
    # The fingerprint as it is known: to take that of a model in memory again would read all its weights.
    kept = {key: model.provenance.get(key) for key in ("model", "revision", "tokens", "fingerprint")}
    return {**kept, "source": None if source is None else canonical(source)}


def _encoded(model: Any, images: "ImagesLike", starts: Tensor | None, batch_size: int) -> Tensor:
    """The latents of images. Raises ValueError beside other starts, and for a bare f."""
    if starts is not None:
        raise ValueError("images and starts are both starts: give one of them")
    if not hasattr(model, "encode"):
        raise ValueError("a bare f encodes no images: pass starts=…, of shape (n, *latent_shape)")
    check_counts(batch_size=batch_size)
    with torch.no_grad():
        return model.encode(images, batch_size)


def noise_starts(model: Any, n: int | None, seed: int) -> Tensor:
    """`n` draws from N(0, I) by `seed`, by default as many as `find_attractors` takes.

    Raises:
        ValueError: the model is a bare f, which does not say what its latents are.
    """
    if not hasattr(model, "sample_latents"):
        raise ValueError("a bare f does not say what its latents are: pass starts=…, of shape (n, *latent_shape)")
    if n is None:
        n = 64 if model.device.type == "cpu" else 512
    check_counts(n=n)
    return model.sample_latents(n, seed=seed)


def _write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file, written in blocks of rows: the library's own writer holds all of it in memory twice."""
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": FORMATS[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the numbers
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            rows = max(1, WRITTEN_AT_ONCE // max(1, tensor[:1].numel() * tensor.element_size()))
            for block in tensor.detach().split(rows) if tensor.numel() else ():
                file.write(block.cpu().contiguous().view(torch.uint8).numpy().data)
                forget(block)
