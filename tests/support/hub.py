"""A small hub on the loopback address: the routes that the hub's client asks for, and a record of what it asked."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "1234567890abcdef1234567890abcdef12345678"
REVISIONS = ("main", "v1", COMMIT)


class Hub:
    """Serves `root/models/ORG/NAME` and `root/datasets/ORG/NAME`; repositories named in `gated` answer 403.

    Use it as a context manager; `url` goes into HF_ENDPOINT. Files named in `cut` break off half way.
    """

    def __init__(self, root: Path, gated: tuple[str, ...] = (), cut: tuple[str, ...] = ()) -> None:
        self.root, self.gated, self.cut = root, gated, cut
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "Hub":
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_POST(self) -> None:
        """paths-info: what the client knows of some files of a repository."""
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        found = self._locate(unquote(urlsplit(self.path).path))
        if found is None:
            return
        folder, _ = found
        self._json([self._entry(folder, folder / path) for path in form.get("paths", []) if (folder / path).exists()])

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
            self._json({"id": name, "sha": COMMIT, "siblings": files, "private": False, "gated": False, "tags": []})

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
        elif len(rest) > 1 and rest[0] in ("revision", "resolve", "tree", "paths-info") and rest[1] not in REVISIONS:
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
            "X-Repo-Commit": COMMIT,
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

    def _json(self, content: Any) -> None:
        self._send(200, json.dumps(content).encode(), {"Content-Type": "application/json"}, self.command != "HEAD")

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
