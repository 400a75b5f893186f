"""The files of a model on this machine: found by name, downloaded if missing, refused if they are not safe."""

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fmprobe.errors import InputError

CONFIG = "config.json"
PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")  # timm writes names with these
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "diffusion_pytorch_model.bin", "tf_model.h5")
MOST_LAYERS, LARGEST = 1000, 2**24  # limits of the values of a config, above those of any published model


def canonical(name: str) -> str:
    """The name of a model, a decoder or an image source as manifests hold it, the same for all spellings of one place.

    What exists on this machine is named by its absolute path, with links followed, and by the split and column asked
    for. A hub id stays as it is.
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    whole = name.partition("#")[0]
    for path in (name, whole, whole.rpartition(":")[0]):
        if path and os.path.exists(path):
            return os.path.realpath(path) + name[len(path) :]
    return name


@dataclass(frozen=True)
class Checkpoint:
    """A model's folder on this machine, in Hugging Face layout, and where it came from."""

    name: str  # as the user wrote it, without a prefix
    folder: Path  # holds config.json
    config: Mapping[str, Any]
    repository: str | None = None  # the hub id, if the model is from the hub
    subfolder: str = ""  # folder in the repository, such as "vae" in that of a diffusion pipeline
    commit: str | None = None

    def check_revision(self, revision: str | None) -> None:
        """Raise InputError where a revision was asked for and the model is no repository of the hub."""
        if revision is not None and (self.commit is None or not revision):
            raise InputError(
                f"revision {revision!r} does not go with {self.name}: it names a branch, tag or commit of a hub id, "
                "ORG/NAME"
            )

    def fetch(self, filename: str) -> Path | None:
        """Fetch a file of the model; None if the model has no such file.

        Raises:
            InputError: the file cannot be fetched.
        """
        if self.repository is None:
            path = self.folder / filename
            return path if path.is_file() else None
        return _download(self.repository, f"{self.subfolder}/{filename}".lstrip("/"), self.commit)

    def fetch_weights(self, filename: str) -> list[Path]:
        """Fetch the safetensors files of the weights: one file, or those that an index lists.

        Raises:
            InputError: there are none, or one is missing. If the weights exist only as a pickle, the message names it.
        """
        if (whole := self.fetch(filename)) is not None:
            return [whole]
        if (index := self.fetch(f"{filename}.index.json")) is None:
            pickled = next((name for name in PICKLES if self._has(name)), None)
            raise InputError(_no_weights(self, filename, pickled))
        shards = sorted(set(_read_json(index, self.name).get("weight_map", {}).values()))
        paths = []
        for shard in shards:
            path = self.fetch(shard) if Path(shard).name == shard and shard.endswith(".safetensors") else None
            if path is None:
                raise InputError(f"{self.name} lacks the weights file {shard!r} that its index lists: fetch it again")
            paths.append(path)
        if not paths:
            raise InputError(f"the index of weights of {self.name} lists none: fetch the model again")
        return paths

    def _has(self, filename: str) -> bool:
        """Whether the model has a file, without fetching it."""
        if self.repository is None:
            return (self.folder / filename).is_file()
        from huggingface_hub import file_exists

        path = f"{self.subfolder}/{filename}".lstrip("/")
        return why_offline() is None and file_exists(self.repository, path, revision=self.commit)


def locate(name: str, revision: str | None = None) -> Checkpoint:
    """Find the checkpoint of a folder or a hub id; its config.json is fetched and checked.

    The folder of a diffusion pipeline stands for its autoencoder, in `vae/`.

    Raises:
        InputError: there is no such model.
    """
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    if name and Path(name).is_dir():
        found = next((f for f in (Path(name), Path(name) / "vae") if (f / CONFIG).is_file()), None)
        if found is None:
            raise InputError(f"{name} holds no {CONFIG}: expected a model folder in Hugging Face layout")
        return Checkpoint(name, found, _read_config(found / CONFIG, name))
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(
            f"{name!r} is neither a folder nor a hub id: expected a path that exists, or ORG/NAME such as "
            "facebook/vit-mae-base (`fmprobe models` lists an example of each family)"
        )
    for subfolder in ("", "vae"):
        path = _download(name, f"{subfolder}/{CONFIG}".lstrip("/"), revision)
        if path is not None:
            commit = path.parent.parent.name if subfolder else path.parent.name
            return Checkpoint(name, path.parent, _read_config(path, name), name, subfolder, commit)
    raise InputError(f"{name} holds no {CONFIG}: it is not a model in Hugging Face layout")


def fetch_folder(name: str, revision: str | None, patterns: Sequence[str], **how: Any) -> Path:
    """Find a folder, or fetch the files of a hub repository that match one of the patterns.

    Args:
        name: the folder, or a hub id.
        revision: branch, tag or commit of the repository.
        patterns: patterns of the files that are fetched; no other file is.
        how: `token`, `cache_dir`, `force_download` and `local_files_only`, as the hub's client takes them.

    Raises:
        InputError: there is no such folder or repository, or it cannot be fetched.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if Path(name).is_dir():
        if revision is not None:
            raise InputError(f"revision {revision!r} does not go with {name}: it is a folder, and no hub id ORG/NAME")
        return Path(name)
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise InputError(f"{name!r} is neither a folder nor a hub id: expected a path that exists, or ORG/NAME")
    offline = why_offline()
    how["local_files_only"] = bool(how.get("local_files_only")) or offline is not None
    with in_one_line(name, revision):
        try:
            return Path(
                snapshot_download(name, revision=revision, allow_patterns=list(patterns), etag_timeout=10, **how)
            )
        except LocalEntryNotFoundError as error:
            raise InputError(_not_cached(name, offline)) from error


def _download(repository: str, filename: str, revision: str | None) -> Path | None:
    """Fetch a file of a hub repository into the local cache; None if the repository has no such file."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    offline = why_offline()
    local = offline is not None
    with in_one_line(repository, revision, f"{filename} of {repository}"):
        try:
            return Path(
                hf_hub_download(repository, filename, revision=revision, local_files_only=local, etag_timeout=10)
            )
        except LocalEntryNotFoundError as error:
            if offline and _holds(repository, revision):
                return None
            raise InputError(_not_cached(repository, offline)) from error
        except EntryNotFoundError:
            return None


def _not_cached(repository: str, offline: str | None) -> str:
    return (
        f"{repository} is not in the local cache and {offline or 'the connection broke'}: connect once, or pass a "
        "local folder"
    )


@contextmanager
def in_one_line(repository: str, revision: str | None, what: str | None = None) -> Iterator[None]:
    """Turn errors of the hub's client in this part, which fetches `what`, into an InputError of one line."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        yield
    except InputError:
        raise
    except GatedRepoError as error:
        raise InputError(f"{repository} is gated: accept its terms on the hub and set HF_TOKEN") from error
    except RevisionNotFoundError as error:
        raise InputError(f"{repository} has no revision {revision!r}: name a branch, tag or commit of it") from error
    except RepositoryNotFoundError as error:
        raise InputError(
            f"the hub has no model {repository!r} (or it is private: set HF_TOKEN); check the spelling"
        ) from error
    except Exception as error:  # the client raises many kinds: for bad names, broken connections, a full disk
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(f"cannot fetch {what or repository} from the hub: {reason}") from error


def _holds(repository: str, revision: str | None) -> bool:
    """Whether the cache has the repository's config. Then a file that the cache lacks is one that was never needed."""
    from huggingface_hub import try_to_load_from_cache

    names = (CONFIG, f"vae/{CONFIG}")
    return any(isinstance(try_to_load_from_cache(repository, name, revision=revision), str) for name in names)


def why_offline() -> str | None:
    """Why the hub is not asked; None if it can be. The client itself would try for half a minute."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if _answers(constants.ENDPOINT):
        return None
    _answers.cache_clear()  # the hub may answer the next time
    return f"{constants.ENDPOINT} cannot be reached"


@cache
def _answers(endpoint: str) -> bool:
    """Whether a hub answers within five seconds."""
    from huggingface_hub.utils import get_session

    try:
        get_session().head(endpoint, timeout=5)
    except Exception:  # the kind depends on the library that the client is built on
        return False
    return True


def _read_config(path: Path, name: str) -> dict[str, Any]:
    config = _read_json(path, name)
    check_config(config, name)
    return config


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} of {name} cannot be read as JSON ({error}): fetch the model again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path.name} of {name} is not a JSON object: fetch the model again")
    return content


def check_config(config: Mapping[str, Any], name: str) -> None:
    """Check that the sizes and numbers of layers of a config are plausible, before anything is allocated.

    Raises:
        InputError: one is negative or absurdly large.
    """
    for key, value in _numbers(config):
        layers = key.endswith(("layers", "depth", "depths"))
        if not (layers or key.endswith(("size", "dim", "width", "channels", "heads", "tokens", "features"))):
            continue
        most = MOST_LAYERS if layers else LARGEST
        if not 0 <= value <= most:
            raise InputError(f"{CONFIG} of {name} says {key} = {value}: expected 0 to {most}, fetch the model again")


def _numbers(value: Any, key: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a nested config, each with its key."""
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _numbers(inner, str(name))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _numbers(inner, key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield key, value


def stored_shapes(weights: Sequence[Path], name: str) -> dict[str, tuple[int, ...]]:
    """Read the shapes of the tensors in safetensors files from their headers.

    Raises:
        InputError: a file is damaged.
    """
    from safetensors import safe_open

    shapes = {}
    for path in weights:
        try:
            with safe_open(path, "np") as file:
                shapes |= {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
        except Exception as error:  # SafetensorError or OSError
            raise InputError(f"cannot load the weights of {name}: {path.name} is damaged ({error})") from error
    return shapes


def check_count(
    name: str, model: Any, held: Mapping[str, tuple[int, ...]], in_files: Callable[[str], str] = str
) -> None:
    """Check that a config does not describe far more parameters than the weights hold; the rest would be made up.

    Args:
        name: what the model is called in the message.
        model: the torch module that the config describes.
        held: shapes of the stored tensors by name.
        in_files: maps the name of a parameter to its name in the files.

    Raises:
        InputError: it describes more than twice as many.
    """
    described = {key: parameter.numel() for key, parameter in model.named_parameters()}
    count, total = sum(described.values()), sum(map(math.prod, held.values()))
    if count <= 2 * total:
        return
    names = map(in_files, sorted(described))  # one after the other, since each name can take a tenth of a second
    missing = next((key for key in names if not any(f".{other}".endswith(f".{key}") for other in held)), None)
    without = f" (they lack some, such as {missing})" if missing else ""
    raise InputError(
        f"config.json of {name} describes {count:,} parameters and its weights hold {total:,}{without}: they do not "
        "belong together, fetch the model again"
    )


def _no_weights(checkpoint: Checkpoint, filename: str, pickled: str | None) -> str:
    """The message for a checkpoint without safetensors files."""
    if pickled is not None:
        return (
            f"{checkpoint.name} holds its weights only as {pickled}, and reading a pickle can execute code: convert it "
            "to safetensors; or, if you trust it, load it yourself with use_safetensors=False and pass the module to "
            "fmprobe.load(module, processor=…)"
        )
    offline = why_offline() if checkpoint.repository else None
    where = f" in the local cache, and {offline}" if offline else ""
    return f"{checkpoint.name} holds no weights{where}: expected {filename}"
