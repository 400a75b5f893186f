"""Run folders: what a command leaves on disk, written so that a reader never meets half of anything."""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe.errors import InputError

if TYPE_CHECKING:
    from fmprobe.dynamics.attractors import AttractorSet

SCHEMA = 1  # of results.json
MANIFEST, RESULTS = "manifest.json", "results.json"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it into place."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: Path, content: Any) -> None:
    """JSON, UTF-8, indented; nan and infinity are refused, since JSON has none."""
    text = json.dumps(content, indent=2, allow_nan=False, default=_plain) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError where the file is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path} does not exist: expected a file that fmprobe wrote") from error
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): run the command again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a JSON object: run the command again")
    return content


class RunFolder:
    """A folder with a manifest, which pins what the run is, and `results.json`, written last."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def open(cls, path: Path, manifest: Mapping[str, Any], resume: bool = True) -> "RunFolder":
        """A new run folder, or one of the same manifest to go on with.

        With `resume` off, a run of another manifest is thrown away and started anew. Raises InputError where the folder
        holds something else, another run, or cannot be written.
        """
        wanted = json.loads(json.dumps(manifest, default=_plain))
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is a file: name a folder for the results with --out")
        try:
            path.mkdir(parents=True, exist_ok=True)
            if any(path.iterdir()):
                cls._check(path, wanted, resume)
            write_json(path / MANIFEST, wanted)
        except OSError as error:
            raise InputError(f"cannot write to {path}: {error.strerror or error}; name another folder") from error
        return cls(path)

    @staticmethod
    def _check(path: Path, wanted: dict[str, Any], resume: bool) -> None:
        if not (path / MANIFEST).is_file():
            raise InputError(f"{path} is not empty and is no run folder: name another with --out")
        present = read_json(path / MANIFEST)
        if present == wanted and resume:
            return
        if resume:
            keys = sorted(k for k in {*present, *wanted} if present.get(k) != wanted.get(k))
            changes = ", ".join(f"{k}: {present.get(k)!r} there, {wanted.get(k)!r} now" for k in keys)
            raise InputError(f"{path} holds another run ({changes}): name another --out, or --no-resume to start anew")
        for entry in path.iterdir():
            shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()

    @property
    def results(self) -> dict[str, Any] | None:
        """What a finished run found; None while there is nothing."""
        path = self.path / RESULTS
        return read_json(path) if path.is_file() else None

    def finish(self, results: Mapping[str, Any]) -> None:
        """Write `results.json`: from now on the run counts as done."""
        write_json(self.path / RESULTS, {"schema": SCHEMA, **results})


# What of an attractor set is a tensor, under the names on disk.
_TENSORS = ("latents", "labels", "sizes", "errors", "spectral_radius", "spectral_norm")
_ORBIT_TENSORS = ("ends", "steps", "residuals", "status", "errors", "periods")


def save_attractors(attractors: "AttractorSet", folder: Path) -> None:
    """`attractors.safetensors`, then `attractors.json`, which carries its hash and so completes it."""
    from safetensors.torch import save_file

    tensors = {name: getattr(attractors, name) for name in _TENSORS}
    tensors |= {f"orbits.{name}": getattr(attractors.orbits, name) for name in _ORBIT_TENSORS}
    # Cloned, since safetensors refuses tensors that share storage.
    packed = {name: tensor.detach().cpu().clone().contiguous() for name, tensor in tensors.items()}
    path = folder / "attractors.safetensors"
    write_atomically(path, lambda temporary: save_file(packed, temporary))
    orbits = attractors.orbits
    counts = {name: getattr(orbits, name) for name in ("evaluations", "surplus", "check_evaluations")}
    content = {
        "schema": SCHEMA,
        "sha256": _sha256(path),
        "merge": attractors.merge,
        "unresolved": attractors.unresolved,
        "unstable": attractors.unstable,
        "orbits": {**counts, "protocol": orbits.protocol},
    }
    write_json(folder / "attractors.json", content)


def load_attractors(folder: Path) -> "AttractorSet":
    """What `save_attractors` wrote. Raises InputError where it is missing, incomplete or damaged."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from fmprobe.dynamics.attractors import AttractorSet
    from fmprobe.dynamics.orbits import Orbits

    content, path = read_json(folder / "attractors.json"), folder / "attractors.safetensors"
    if not path.is_file() or _sha256(path) != content.get("sha256"):
        raise InputError(f"{path} is missing or is not the file that attractors.json describes: find them again")
    try:
        tensors = load_file(path)
        orbits = Orbits(**{name: tensors[f"orbits.{name}"] for name in _ORBIT_TENSORS}, **content["orbits"])
        rest = {name: content[name] for name in ("merge", "unresolved", "unstable")}
        return AttractorSet(**{name: tensors[name] for name in _TENSORS}, orbits=orbits, **rest)
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{folder} does not hold a complete set of attractors ({error}): find them again") from error


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _plain(value: Any) -> Any:
    """What json does not know."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
