"""A small hub on the loopback address: the routes that the hub's client asks for, and a record of what it asked."""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import huggingface_hub
import pytest
import yaml

COMMIT = "1234567890abcdef1234567890abcdef12345678"
REVISIONS = ("main", "v1", COMMIT)
TOKEN = "hf_of_acme"  # may write to the repositories of acme
LARGE = (".safetensors", ".png")  # files that go by LFS


class Hub:
    """Serves `root/models/ORG/NAME` and `root/datasets/ORG/NAME`; repositories named in `gated` answer 403.

    Use it as a context manager; `url` goes into HF_ENDPOINT. Files named in `cut` break off half way. What is pushed
    with `TOKEN` to a repository of acme is served from then on, under a commit of its own; `commits` has them in order.
    """

    def __init__(self, root: Path, gated: tuple[str, ...] = (), cut: tuple[str, ...] = ()) -> None:
        self.root, self.gated, self.cut = root, gated, cut
        self.asked: list[str] = []
        self.commits: list[tuple[str, str]] = []  # repository and commit
        self.private: set[str] = set()
        self.stored: dict[str, bytes] = {}  # of LFS, by digest
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@contextmanager
def asked_here(hub: Hub, cache: Path) -> Iterator[None]:
    """This process asks a hub, with a token that may write to acme, and keeps what it fetches in a folder."""
    constants: Any = huggingface_hub.constants
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", False)
        patch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # large files go by LFS
        patch.setattr(constants, "ENDPOINT", hub.url)
        patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
        patch.setattr(constants, "HF_HUB_CACHE", str(cache))
        patch.setenv("HF_TOKEN", TOKEN)
        yield


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_PUT(self) -> None:
        """The content of a large file."""
        content = self._body()
        self.hub.stored[hashlib.sha256(content).hexdigest()] = content
        self._json({})

    def do_POST(self) -> None:
        path, body = unquote(urlsplit(self.path).path), self._body()
        self.hub.asked.append(f"POST {path}")
        if path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/repos/create":
            self._create(json.loads(body))
        elif path.endswith("/info/lfs/objects/batch"):
            self._json({"transfer": "basic", "objects": [self._place(one) for one in json.loads(body)["objects"]]})
        elif "/preupload/" in path:
            if self._may_write("/".join(path.split("/")[3:5])):
                self._json({"files": [self._mode(one["path"]) for one in json.loads(body)["files"]]})
        elif "/commit/" in path:
            self._commit("/".join(path.split("/")[3:5]), [json.loads(line) for line in body.splitlines()])
        elif (found := self._locate(path)) is not None:  # paths-info: what the client knows of some files
            folder, paths = found[0], parse_qs(body.decode()).get("paths", [])
            self._json([self._entry(folder, folder / path) for path in paths if (folder / path).exists()])

    def _body(self) -> bytes:
        if "Content-Length" in self.headers:
            return self.rfile.read(int(self.headers["Content-Length"]))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _may_write(self, name: str) -> bool:
        """Whether the token may write to a repository; an error was sent if not."""
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._error(401, "", "Invalid username or password.")
        elif not name.startswith("acme/"):
            self._error(403, "", "You don't have the rights to write to this namespace")
        else:
            return True
        return False

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked.get('organization')}/{asked['name']}"
        folder = self.hub.root / "models" / name
        if not self._may_write(name):
            return
        if folder.is_dir():
            self._json({"url": f"{self.hub.url}/{name}", "error": "You already created this model repo"}, 409)
            return
        folder.mkdir(parents=True)
        self.hub.private |= {name} if asked.get("visibility") == "private" else set()
        self._json({"url": f"{self.hub.url}/{name}", "name": name, "id": name})

    def _place(self, one: dict[str, Any]) -> dict[str, Any]:
        return {**one, "actions": {"upload": {"href": f"{self.hub.url}/lfs/{one['oid']}", "header": {}}}}

    def _mode(self, path: str) -> dict[str, Any]:
        return {"path": path, "uploadMode": "lfs" if path.endswith(LARGE) else "regular", "shouldIgnore": False}

    def _commit(self, name: str, lines: list[dict[str, Any]]) -> None:
        if not self._may_write(name):
            return
        for line in lines:
            key, value = line["key"], line["value"]
            if key in ("file", "lfsFile"):
                path = self.hub.root / "models" / name / value["path"]
                path.parent.mkdir(parents=True, exist_ok=True)
                large = key == "lfsFile"
                path.write_bytes(self.hub.stored[value["oid"]] if large else base64.b64decode(value["content"]))
        commit = hashlib.sha1(f"{name}{len(self.hub.commits)}".encode()).hexdigest()
        self.hub.commits.append((name, commit))
        self._json({"success": True, "commitUrl": f"{self.hub.url}/{name}/commit/{commit}", "commitOid": commit})

    def _at(self, folder: Path) -> str:
        """The commit of a repository."""
        return dict(self.hub.commits).get("/".join(folder.parts[-2:]), COMMIT)

    def _card(self, folder: Path) -> dict[str, Any]:
        """The metadata of a repository's card."""
        text = card.read_text() if (card := folder / "README.md").is_file() else ""
        return yaml.safe_load(text.split("---")[1]) if text.startswith("---") else {}

    def _answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        if path == "/":
            self._send(200, b"a hub", {}, body)
            return
        if (found := self._locate(path)) is None:
            return
        folder, rest = found
        if not path.startswith("/api/"):
            self._file(folder, rest, body)
        elif rest.startswith("tree/"):
            below = folder / rest.partition("/")[2].partition("/")[2]
            if not below.is_dir():
                self._error(404, "EntryNotFound", "no such folder")
                return
            recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
            self._json([self._entry(folder, p) for p in sorted(below.rglob("*") if recursive else below.iterdir())])
        else:
            files = [{"rfilename": str(p.relative_to(folder))} for p in sorted(folder.rglob("*")) if p.is_file()]
            name = "/".join(folder.parts[-2:])
            private = name in self.hub.private
            about = {"id": name, "sha": self._at(folder), "siblings": files, "private": private, "gated": False}
            self._json({**about, "tags": [], "cardData": self._card(folder)})

    def _locate(self, path: str) -> tuple[Path, str] | None:
        """The folder of the repository that a path is in, and the rest of the path; None once an error was sent."""
        parts = path.strip("/").removeprefix("api/").split("/")
        kind = parts.pop(0) if parts[0] in ("models", "datasets") else "models"
        name, rest = "/".join(parts[:2]), parts[2:]
        folder = self.hub.root / kind / name
        if name in self.hub.gated:
            self._error(403, "GatedRepo", "access is restricted")
        elif not folder.is_dir():
            self._error(404 if self.headers.get("Authorization") else 401, "RepoNotFound", "no such repository")
        elif (
            len(rest) > 1
            and rest[0] in ("revision", "resolve", "tree", "paths-info")
            and rest[1] not in (*REVISIONS, self._at(folder))
        ):
            self._error(404, "RevisionNotFound", "no such revision")
        else:
            return folder, "/".join(rest)
        return None

    def _file(self, folder: Path, rest: str, body: bool) -> None:
        target = folder / rest.split("/", 2)[2]
        if not target.is_file():
            self._error(404, "EntryNotFound", "no such file")
            return
        content = target.read_bytes()
        headers = {
            "ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            "X-Repo-Commit": self._at(folder),
            "Accept-Ranges": "bytes",
        }
        status, whole = 200, len(content)
        if wanted := self.headers.get("Range"):
            first, _, last = wanted.removeprefix("bytes=").partition("-")
            start, end = int(first), min(int(last or whole - 1), whole - 1)
            content, status = content[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{whole}"
        self._send(status, content, headers, body, cut=target.name in self.hub.cut)

    def _entry(self, folder: Path, path: Path) -> dict[str, Any]:
        if path.is_dir():
            return {"type": "directory", "path": str(path.relative_to(folder)), "oid": "0" * 40, "size": 0}
        oid = hashlib.sha1(path.read_bytes()).hexdigest()
        return {"type": "file", "path": str(path.relative_to(folder)), "oid": oid, "size": path.stat().st_size}

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"}, self.command != "HEAD")

    def _error(self, status: int, code: str, message: str) -> None:
        self._send(status, message.encode(), {"X-Error-Code": code, "X-Error-Message": message}, self.command != "HEAD")

    def _send(self, status: int, content: bytes, headers: dict[str, str], body: bool, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if body:
            self.wfile.write(content[: len(content) // 2] if cut else content)
        if cut:
            self.close_connection = True
