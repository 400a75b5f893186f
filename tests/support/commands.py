"""The commands of the typer app as click sees them, each run on a model that takes no time."""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args
from unittest import mock

import numpy as np
import torch
import typer
from typer.testing import CliRunner

import fmprobe
from fmprobe.cli import app
from fmprobe.digests import digest, file_digest
from support.maps import double_well

SHAPE = (1, 4, 4)
COMMANDS: dict[str, Any] = dict(getattr(typer.main.get_command(app), "commands"))  # noqa: B009
CALLBACKS = {
    command.name or typer.main.get_command_name(command.callback.__name__): command.callback
    for command in app.registered_commands
    if command.callback is not None
}
# These decide nothing that is computed: where it goes, what is shown, and whether what is there is taken.
OUTPUT = {"out", "config", "formats", "dpi", "as_json", "quiet", "verbose", "resume"}


class Reached(BaseException):
    """The computation was reached, and what it was given is known."""


def options_of(command: str) -> dict[str, Any]:
    """Click's parameter of every option, by name."""
    return {p.name: p for p in COMMANDS[command].params if p.param_type_name == "option" and p.name != "help"}


def spelled(parameter: Any) -> str:
    return max(parameter.opts, key=len)


def types_of(command: str, name: str) -> set[Any]:
    """The types that an option's annotation names."""
    annotation = get_args(inspect.signature(CALLBACKS[command]).parameters[name].annotation)[0]
    return {annotation, *get_args(annotation)}


def save_sources(folder: Path) -> dict[str, str]:
    """Two image sources, D and E."""
    pixels = (np.random.default_rng(0).random((2, 200, 4, 4)) * 255).astype(np.uint8)
    for name, values in zip("de", pixels, strict=True):
        np.savez(folder / f"{name}.npz", values)
    return {"D": f"{folder}/d.npz", "E": f"{folder}/e.npz"}


def stub(*_: Any, **__: Any) -> fmprobe.Autoencoder:
    """The double well, in images."""
    made = fmprobe.from_functions(
        lambda x: x, lambda z: double_well(z) * 0.5, image_shape=SHAPE, latent_shape=SHAPE, name="stub"
    )
    made.provenance |= {"fingerprint": "stub", "revision": None}
    return made


def plain(value: Any) -> Any:
    """What JSON holds of an argument: content of tensors, fields of settings, nothing of models and functions."""
    if isinstance(value, torch.Tensor):
        return digest(value)
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    if is_dataclass(value) and not isinstance(value, type):
        return {name: plain(item) for name, item in vars(value).items() if name != "orbits"}
    return value if isinstance(value, str | int | float | bool | None) else None


class Observed:
    """One call of the command line: what its computation was given, and what it left in `out`."""

    def __init__(self, arguments: Sequence[str], out: Path) -> None:
        self.calls: list[Any] = []
        with ExitStack() as stack:
            for name, double in self._doors().items():
                stack.enter_context(mock.patch(name, double))
            try:
                outcome = CliRunner().invoke(app, [*arguments, "--out", str(out)])
            except Reached:
                outcome = None
        error = outcome and outcome.exception
        self.refused = bool(outcome) and (isinstance(error, fmprobe.InputError) or outcome.exit_code == 2)
        if error is not None and not self.refused and not isinstance(error, SystemExit):
            raise error
        manifest = out / "manifest.json"
        self.manifest = json.loads(manifest.read_text()) if manifest.is_file() else {}
        self.manifest.pop("pinned", None)
        tables = [*out.glob("*.csv"), *out.glob("*.parquet")]
        self.given = [*self.calls, {path.name: file_digest(path) for path in sorted(tables)}]

    def _doors(self) -> dict[str, Any]:
        """The library's functions behind the commands: each call is kept, and the longer ones end there."""
        from fmprobe.probes.ood.detector import TrajectoryDetector as Detector
        from fmprobe.runs.search import iterated

        def record(name: str, then: Callable[..., Any]) -> Callable[..., Any]:
            def recorded(*given: Any, **named: Any) -> Any:
                self.calls.append((name, plain(given), plain(named)))
                return then(*given, **named)

            return recorded

        def stop(*_: Any, **__: Any) -> None:
            raise Reached

        def nothing(*_: Any, **__: Any) -> None:
            return None

        def without_pictures(found: Any, folder: Path) -> None:
            found.attractors.save(folder / "attractors")

        ends = (
            "surrogates.fit.fit_decoder",
            "probes.alignment.comparison.compare",
            "probes.field.vector_field",
            "probes.memorization.coefficient.probe_memorization",
            "probes.ood.probe.fit_detector",
            "probes.weights.curves.probe_weights",
        )
        kept = {
            "loading.load": stub,
            "runs.search.iterated": iterated,
            "probes.alignment.perturbation.perturbed_checkpoint": lambda *_, **__: Path("k"),
            "surrogates.pixel.PixelDecoder.load": nothing,
            "probes.ood.detector.TrajectoryDetector.threshold": Detector.threshold,
            "probes.ood.detector.TrajectoryDetector.examine": Detector.examine,
            **dict.fromkeys(ends, stop),
            **{f"probes.{name}.probe_{name}": stop for name in ("capacity", "convergence", "contraction", "residuals")},
        }
        unwatched = {
            "runs.plan._seconds_per_row": lambda *_: 1e-4,
            "runs.plan._peak_memory": lambda *_: 0,
            "probes.prototypes.found.Prototypes.save": without_pictures,
            "runs.run.write_report": nothing,
        }
        doors = {name: record(name, then) for name, then in kept.items()} | unwatched
        return {f"fmprobe.{name}": double for name, double in doors.items()}
