"""Run folders: what a command leaves on disk, written so that a reader never meets half of anything."""

import contextlib
import json
import math
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fmprobe.digests import file_digest
from fmprobe.errors import InputError, WriteError
from fmprobe.hub import PREFIXES

try:
    import fcntl
except ImportError:  # Windows has other locks
    fcntl = None

if TYPE_CHECKING:
    from torch import Tensor

    from fmprobe.dynamics.attractors import AttractorSet

SCHEMA = 1  # of results.json
WRITTEN_AT_ONCE = 2**24  # bytes
MANIFEST, RESULTS, EVENTS = "manifest.json", "results.json", "events.jsonl"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, flush it to disk and rename it into place.

    Raises WriteError where the disk is full or the folder takes nothing; then `path` is as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        os.close(handle)
        temporary = Path(name)
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.chmod(0o644)  # mkstemp makes it private
        temporary.replace(path)
        _sync_folder(path.parent)
    except OSError as error:
        raise error if isinstance(error, InputError) else WriteError(path, error) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _sync_folder(folder: Path) -> None:
    """Flush a rename to disk, where the system can."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def write_json(path: Path, content: Any, *, exact: bool = False) -> None:
    """JSON, UTF-8, indented; nan and infinity, which JSON lacks, become null.

    `exact`: they are kept as Python's own reader and writer spell them, in files that fmprobe alone reads.
    """
    content = content if exact else finite(content)[0]
    text = json.dumps(content, indent=2, allow_nan=exact, default=_plain) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def finite(content: Any) -> tuple[Any, int]:
    """Content as JSON holds it, None in place of numbers that are not finite, and how many of these there were."""
    count = 0

    def cleaned(value: Any) -> Any:
        nonlocal count
        if isinstance(value, Mapping):
            return {key: cleaned(item) for key, item in value.items()}
        if isinstance(value, list | tuple):
            return [cleaned(item) for item in value]
        if isinstance(value, float) and not math.isfinite(value):
            count += 1
            return None
        return value

    return cleaned(content), count


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


def canonical(name: str) -> str:
    """The name of a model, a decoder or an image source as manifests hold it, alike for all spellings of one place.

    What exists on this machine is named by its absolute path, links followed, and the split and column asked for; a hub
    id stays as it is.
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    whole = name.partition("#")[0]
    for path in (name, whole, whole.rpartition(":")[0]):
        if path and os.path.exists(path):
            return os.path.realpath(path) + name[len(path) :]
    return name


class RunFolder:
    """A folder with a manifest, which pins what the run is, and `results.json`, written last.

    `manifest.json` holds what was asked for and, under `pinned`, what was decided when the run began: a run that goes
    on takes it over. `events.jsonl` tells what happened, one JSON object a line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.heard: Callable[[str], object] | None = None  # who is told each event as well

    @classmethod
    def open(cls, path: Path, manifest: Mapping[str, Any], resume: bool = True) -> "RunFolder":
        """A new run folder, or one of the same manifest to go on with.

        With `resume` off, a run of another manifest is thrown away and started anew. Raises InputError where the folder
        holds something else, another run, or one that is going on, or cannot be written.
        """
        wanted = json.loads(json.dumps(manifest, allow_nan=False, default=_plain))
        folder = cls(path)
        try:
            if path.exists() and not path.is_dir():
                raise InputError(f"{path} is a file: name a folder for the results with --out")
            path.mkdir(parents=True, exist_ok=True)
            with folder.locked():
                _tidy(path.glob(f".{MANIFEST}.*.tmp"))
                if not (any(path.iterdir()) and folder._goes_on(wanted, resume)):
                    write_json(path / MANIFEST, wanted)
                _tidy(path.rglob(".*.tmp"))
        except InputError:
            raise
        except (OSError, ValueError) as error:  # ValueError: a name with a null character
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"cannot write to {str(path)!r}: {reason}; name another folder with --out") from error
        return folder

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """While work goes on in the folder. Raises InputError where another process is at work there."""
        if fcntl is None:
            yield
            return
        handle = os.open(self.path, os.O_RDONLY)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(
                    f"another run is at work in {self.path}: wait for its end, or name another --out"
                ) from error
            except OSError:  # a file system without locks
                pass
            yield
        finally:
            os.close(handle)

    def _goes_on(self, wanted: dict[str, Any], resume: bool) -> bool:
        """Whether the folder holds this run; one that is to be started anew is thrown away."""
        if not (self.path / MANIFEST).is_file():
            raise InputError(f"{self.path} is not empty and is no run folder: name another with --out")
        present = read_json(self.path / MANIFEST)
        present.pop("pinned", None)
        changes = differences(present, wanted)
        if resume and not changes:
            return True
        if resume:
            raise InputError(
                f"{self.path} holds another run ({changes}): name another --out, or --no-resume to start anew"
            )
        # The results first and the manifest last, so that a kill between leaves no run that looks finished.
        (self.path / RESULTS).unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.name != MANIFEST:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        return False

    def pin(self, name: str, make: Callable[[], Any]) -> Any:
        """What was decided under this name when the run began; decided now where nothing was."""
        manifest = read_json(self.path / MANIFEST)
        pinned = manifest.setdefault("pinned", {})
        if name not in pinned:
            pinned[name] = finite(json.loads(json.dumps(make(), default=_plain)))[0]
            write_json(self.path / MANIFEST, manifest)
        return pinned[name]

    def tell(self, event: str, **facts: Any) -> None:
        """Append an event to `events.jsonl`; several processes may. A log that cannot be written stops no run."""
        line = json.dumps({"time": round(time.time(), 3), "event": event, **facts}, default=_plain) + "\n"
        if self.heard is not None:
            self.heard(f"{event}: " + ", ".join(f"{name} {value}" for name, value in facts.items()))
        with contextlib.suppress(OSError):
            handle = os.open(self.path / EVENTS, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(handle).st_size
                if size and os.pread(handle, 1, size - 1) != b"\n":  # cut by a kill
                    line = "\n" + line
                os.write(handle, line.encode())  # one call, so that lines of processes do not mix
            finally:
                os.close(handle)

    @property
    def results(self) -> dict[str, Any] | None:
        """What a finished run found; None while there is nothing."""
        path = self.path / RESULTS
        return read_json(path) if path.is_file() else None

    def finish(self, results: Mapping[str, Any]) -> dict[str, Any]:
        """Write `results.json`: from now on the run counts as done. Returns what it holds.

        Numbers that are not finite become null; `not_finite` says how many, by the key that they lie under.
        """
        before, content, counts = self.results or {}, {"schema": SCHEMA}, {}
        earlier = before.get("not_finite") or {}
        for key, value in results.items():
            content[key], count = finite(value)
            # A part that an earlier command wrote, and this one hands on, holds null already.
            count = count or (earlier.get(key, 0) if content[key] == before.get(key) else 0)
            counts |= {key: count} if count else {}
        content.pop("not_finite", None)
        content |= {"not_finite": counts} if counts else {}
        write_json(self.path / RESULTS, content)
        self.tell("finished", **({"not_finite": counts} if counts else {}))
        return content


def _tidy(left: Iterable[Path]) -> None:
    """Remove what a run that was killed had begun to write."""
    for path in left:
        path.unlink(missing_ok=True)


def differences(present: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """In which keys two manifests differ, in one line; what is None counts as not there, and nothing else does."""
    keys = sorted(k for k in {*present, *wanted} if not _alike(present.get(k), wanted.get(k)))
    return ", ".join(f"{k}: {present.get(k)!r} there, {wanted.get(k)!r} now" for k in keys)


def _alike(a: Any, b: Any) -> bool:
    """Whether two JSON values are the same: None and absent are, 1 and 1.0 are, 0 and False are not."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return all(_alike(a.get(key), b.get(key)) for key in {*a, *b})
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_alike, a, b))
    if isinstance(a, bool) or isinstance(b, bool):
        return a is b
    return a == b


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The events of a run folder, in the order in which they were written; a line that a kill cut is left out."""
    path = folder / EVENTS
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []:
        with contextlib.suppress(ValueError):
            event = json.loads(line)
            events += [event] if isinstance(event, dict) else []
    return events


# What of an attractor set is a tensor, under the names on disk.
_TENSORS = ("latents", "labels", "sizes", "errors", "spectral_radius", "spectral_norm")
_ORBIT_TENSORS = ("ends", "steps", "residuals", "status", "errors", "periods")


def save_attractors(attractors: "AttractorSet", folder: Path) -> None:
    """`attractors.safetensors`, then `attractors.json`, which carries its hash and so completes it."""
    tensors = {name: getattr(attractors, name) for name in _TENSORS}
    tensors |= {f"orbits.{name}": getattr(attractors.orbits, name) for name in _ORBIT_TENSORS}
    path = folder / "attractors.safetensors"
    write_atomically(path, lambda temporary: _write_tensors(temporary, tensors))
    orbits = attractors.orbits
    counts = {name: getattr(orbits, name) for name in ("evaluations", "surplus", "check_evaluations")}
    content = {
        "schema": SCHEMA,
        "sha256": file_digest(path),
        "merge": attractors.merge,
        "unresolved": attractors.unresolved,
        "unstable": attractors.unstable,
        "polished": attractors.polished,
        "examined": attractors.examined,
        "warning": attractors.warning,
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
    if not path.is_file() or file_digest(path) != content.get("sha256"):
        raise InputError(f"{path} is missing or is not the file that attractors.json describes: find them again")
    try:
        tensors = load_file(path)
        orbits = Orbits(**{name: tensors[f"orbits.{name}"] for name in _ORBIT_TENSORS}, **content["orbits"])
        rest = {name: content[name] for name in ("merge", "unresolved", "unstable")}
        # Earlier sets tell none of these.
        rest |= {
            "polished": content.get("polished", 0),
            **{name: content.get(name) for name in ("examined", "warning")},
        }
        return AttractorSet(**{name: tensors[name] for name in _TENSORS}, orbits=orbits, **rest)
    except (SafetensorError, KeyError, TypeError) as error:
        raise InputError(f"{folder} does not hold a complete set of attractors ({error}): find them again") from error


def _write_tensors(path: Path, tensors: "Mapping[str, Tensor]") -> None:
    """A safetensors file, written in blocks of rows: the library's own writer holds all of it in memory twice."""
    import torch

    from fmprobe.dynamics.paging import forget

    names = {
        torch.float32: "F32",
        torch.float64: "F64",
        torch.float16: "F16",
        torch.bfloat16: "BF16",
        torch.int64: "I64",
    }
    header, end = {}, 0
    for name, tensor in tensors.items():
        begin, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = {"dtype": names[tensor.dtype], "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format aligns the numbers
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            rows = max(1, WRITTEN_AT_ONCE // max(1, tensor[:1].numel() * tensor.element_size()))
            for block in tensor.detach().split(rows) if tensor.numel() else ():
                file.write(block.cpu().contiguous().view(torch.uint8).numpy().data)
                forget(block)


def _plain(value: Any) -> Any:
    """What json does not know."""
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")
