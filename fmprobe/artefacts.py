"""What fmprobe makes and others load: saved to a folder, pushed to the hub and loaded from there, by one mixin.

It is that of the hub's own client (`ModelHubMixin`). Files are JSON, safetensors, tables, pictures and pages. No other
file is pushed or fetched, so that nothing is unpickled and no code is run.
"""

import csv
import inspect
import io
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar, Self

from huggingface_hub import HfApi, ModelCard, ModelHubMixin

from fmprobe.cards import Base, Card, Licence, check_licence
from fmprobe.errors import InputError
from fmprobe.files import is_own, write_atomically, write_json
from fmprobe.hub import fetch_folder, why_offline
from fmprobe.places import places_in, without_places

SAFE = ("*.json", "*.jsonl", "*.safetensors", "*.csv", "*.png", "*.html", "*.md")
CARD = "README.md"


class _SignatureOfInit:
    """The signature of a class whose `__new__` takes anything, as that of the hub's mixin does."""

    def __get__(self, instance: Any, owner: type) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        whole = inspect.signature(owner.__init__)
        return whole.replace(parameters=list(whole.parameters.values())[1:])


class Artefact(ModelHubMixin):
    """`save_pretrained`, `from_pretrained` and `push_to_hub` for what is saved to a folder and loaded from it.

    What goes out names models and data of this machine by the last part of their paths, and has a card.
    """

    __signature__ = _SignatureOfInit()
    left_out: ClassVar[tuple[str, ...]] = ()  # patterns of files and folders that are not shared

    def __new__(cls, *_: Any, **__: Any) -> Self:
        return object.__new__(cls)  # the hub's would keep the arguments, and what is made of them is kept here

    @classmethod
    def card_of(cls, folder: Path) -> Card:
        """What the card says of a saved folder, by its files alone. Raises InputError where they are incomplete."""
        raise NotImplementedError

    @classmethod
    def _from_folder(cls, folder: Path, **more: Any) -> Self:
        """Load a folder; `more` is what `from_pretrained` was given beside."""
        return cls.load(folder, **more)  # type: ignore[attr-defined]

    @classmethod
    def _finish(cls, folder: Path) -> None:
        """Make what a cleaned folder holds of its other files once more."""

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | Path,
        *,
        license: str | None = None,
        repo_id: str | None = None,
        push_to_hub: bool = False,
        **how: Any,
    ) -> str | None:
        """Write a folder to share, with a card and without absolute paths. Other files in it stay.

        Args:
            save_directory: the folder.
            license: the licence by its name on the hub, such as "apache-2.0"; None states none.
            repo_id: where it is pushed to, by default the folder's name.
            push_to_hub: whether it is pushed too; `how` is as `push_to_hub` takes it.

        Returns:
            The address of the commit if it is pushed.

        Raises:
            InputError: the folder cannot be written, or the artefact is not complete.
        """
        check_licence(license)
        with _scratch() as (raw, ready):
            self._save_pretrained(raw)
            card, known = self._prepare(raw, ready)
            write_card(card.render(None, None, Licence(license), known), ready)
            try:
                shutil.copytree(ready, save_directory, dirs_exist_ok=True)
            except (OSError, ValueError) as error:  # ValueError: a name with a null character
                raise InputError(f"cannot write {str(save_directory)!r}: {_reason(error)}") from error
        return self.push_to_hub(repo_id or Path(save_directory).name, license=license, **how) if push_to_hub else None

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, license: str | None = None, private: bool | None = None, **how: Any
    ) -> str:
        """Push to a repository of the hub, in one commit; the repository is made where there is none.

        Args:
            repo_id: its name, ORG/NAME.
            license: the licence by its name on the hub; None takes over that of the base model, if the hub knows it.
            private: whether the repository is private; None leaves that to the hub.
            how: `branch`, `token`, `commit_message` and `create_pr`, as the hub's client takes them.

        Returns:
            The address of the commit.

        Raises:
            InputError: a name is malformed, there is no token, the hub cannot be reached, or the repository cannot be
                written.
        """
        with _scratch() as (raw, _):
            self._save_pretrained(raw)
            return self.push_folder(raw, repo_id, license=license, private=private, **how)

    @classmethod
    def push_folder(
        cls,
        folder: str | Path,
        repo_id: str,
        *,
        license: str | None = None,
        private: bool | None = None,
        branch: str | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        create_pr: bool | None = None,
    ) -> str:
        """Push a folder that was saved earlier, as `push_to_hub` does, without loading it."""
        check_licence(license)
        api = _api(repo_id, token)
        with _scratch() as (_, ready):
            card, known = cls._prepare(Path(folder), ready)
            with _explained(repo_id):
                stated = Licence(license) if license else _taken_over(card, api)
                write_card(card.render(repo_id, branch, stated, known), ready)
                api.create_repo(repo_id, private=private, exist_ok=True)
                if private and not api.repo_info(repo_id).private:
                    raise InputError(f"{repo_id} exists and is public: name another repository, or leave private out")
                return str(
                    api.upload_folder(
                        repo_id=repo_id,
                        folder_path=ready,
                        revision=branch,
                        create_pr=create_pr,
                        commit_message=commit_message or f"Push {card.title} with fmprobe",
                    )
                )

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        subfolder: str = "",
        token: str | bool | None = None,
        cache_dir: str | Path | None = None,
        force_download: bool = False,
        local_files_only: bool = False,
        **more: Any,
    ) -> Self:
        """Load a folder, or a repository of the hub.

        Args:
            pretrained_model_name_or_path: the folder, or the name ORG/NAME.
            revision: branch, tag or commit of the repository.
            subfolder: where it lies in the folder, such as "attractors" in that of a run.
            token: as the hub's client takes it.
            cache_dir: likewise.
            force_download: likewise.
            local_files_only: likewise.
            more: what loading takes beside the folder, such as `model`.

        Raises:
            InputError: there is no such folder or repository, or it is incomplete.
        """
        how = {"token": token, "cache_dir": cache_dir, "force_download": force_download}
        how["local_files_only"] = local_files_only
        folder = fetch_folder(str(pretrained_model_name_or_path), revision, SAFE, **how)
        return cls._from_folder(folder / subfolder, **more)

    def generate_model_card(self, *_: Any, license: str | None = None, **__: Any) -> ModelCard:
        """The card, as `save_pretrained` writes it."""
        with _scratch() as (raw, ready):
            self._save_pretrained(raw)
            card, known = self._prepare(raw, ready)
        return card.render(None, None, Licence(license), known)

    @classmethod
    def _prepare(cls, folder: Path, ready: Path) -> tuple[Card, set[str]]:
        """Copy what is shared of a saved folder, clean it of absolute paths, and say what its card says."""
        card = cls.card_of(folder)
        copy_shared(folder, ready, cls.left_out)
        known = clean(ready)
        cls._finish(ready)
        return card, known


def copy_shared(folder: Path, target: Path, left_out: tuple[str, ...] = ()) -> None:
    """Copy the files of a folder that are shared: those that are safe to load, not hidden, and its own."""
    for path in sorted(folder.rglob("*")):
        within = path.relative_to(folder)
        left = any(part.startswith(".") or _matches(part, left_out) for part in within.parts)
        if path.is_file() and is_own(path, folder) and not left and _matches(path.name, SAFE):
            (target / within).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target / within)  # a new file, which others may read


def write_card(card: ModelCard, folder: Path) -> None:
    """Write a card to its place in a folder."""
    write_atomically(folder / CARD, lambda path: path.write_text(str(card), encoding="utf-8"))


def clean(folder: Path) -> set[str]:
    """Put the last part of each absolute path in its place, in the JSON and the tables of a folder.

    Returns:
        The paths that were found.
    """
    contents = {path: _lines(path) for path in sorted(folder.rglob("*")) if path.suffix in (".json", ".jsonl")}
    known = {place for lines in contents.values() for line in lines for place in places_in(line)}
    for path, lines in contents.items():
        if (cleaned := without_places(lines, known)) == lines:
            continue
        if path.suffix == ".json":
            write_json(path, cleaned[0], exact=True)
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in cleaned), encoding="utf-8")
    for path in folder.rglob("*.csv"):
        rows = list(csv.reader(io.StringIO(path.read_text(encoding="utf-8"), newline="")))
        if (cleaned := without_places(rows, known)) != rows:
            with path.open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(cleaned)
    return known


def _lines(path: Path) -> list[Any]:
    """The content of a JSON file, or of each line of a file of JSON lines. Raises InputError where it is none."""
    try:
        text = path.read_text(encoding="utf-8")
        return [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path.name} cannot be read as JSON ({_reason(error)}): make it again") from error


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)


@contextmanager
def _scratch() -> Iterator[tuple[Path, Path]]:
    """Two empty folders that others may read, and that are gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="fmprobe-") as place:
        folders = Path(place) / "raw", Path(place) / "ready"
        for folder in folders:
            folder.mkdir()
        yield folders


def _api(repo_id: str, token: str | None) -> HfApi:
    """The hub's client for a repository. Raises InputError where it cannot be pushed to as far as is known here."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        well_formed = repo_id.count("/") == 1
    except HFValidationError:
        well_formed = False
    if not well_formed:
        raise InputError(
            f"{repo_id!r} is no name of a repository: expected ORG/NAME, of letters, digits, '-', '_', '.'"
        )
    if not (token or get_token()):
        raise InputError(f"there is no token to push to {repo_id} with: run `hf auth login`, or set HF_TOKEN")
    if offline := why_offline():
        raise InputError(f"cannot push to {repo_id}: {offline}")
    return HfApi(token=token, library_name="fmprobe")


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """Turn errors of the hub's client in this part, which pushes, into an InputError of one line."""
    from huggingface_hub.errors import HfHubHTTPError, RevisionNotFoundError

    try:
        yield
    except InputError:
        raise
    except RevisionNotFoundError as error:
        raise InputError(f"{repo_id} has no such branch: make it on the hub, or leave the branch out") from error
    except Exception as error:  # the client raises many kinds: for refusals, broken connections, bad metadata
        status = error.response.status_code if isinstance(error, HfHubHTTPError) and error.response is not None else 0
        if status == 401:
            raise InputError(
                f"the hub does not know your token, so {repo_id} cannot be pushed: log in again"
            ) from error
        if status in (403, 404):
            raise InputError(f"your token may not write to {repo_id}: name a repository of your own") from error
        raise InputError(f"cannot push to {repo_id}: {_reason(error)}") from error


def _taken_over(card: Card, api: HfApi) -> Licence:
    """The licence of the base models, where the hub knows it and they share it."""
    found = [_licence_of(base, api) for base in card.bases]
    return found[0] if len({licence[:3] for licence in found}) == 1 else Licence()


def _licence_of(base: Base, api: HfApi) -> Licence:
    if not base.on_hub:
        return Licence()
    try:
        data: Any = api.model_info(base.name, revision=base.revision).card_data or {}
        stated = [data.get(key) for key in ("license", "license_name", "license_link")]
    except Exception:  # a base model that is private or gone says nothing of its licence
        return Licence()
    return Licence(*stated, of=base.name) if isinstance(stated[0], str) else Licence()


def _reason(error: Exception) -> str:
    said = getattr(error, "server_message", None) or getattr(error, "strerror", None) or str(error)
    return (str(said).strip().splitlines() or [type(error).__name__])[0]
