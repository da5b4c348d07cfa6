# SPDX-License-Identifier: Apache-2.0
"""A small hub of models on this machine: as much of the Hugging Face Hub's HTTP as huggingface_hub needs."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit

__all__ = ["TOKEN", "Hub", "running_hub"]

TOKEN = "hf_of_the_stub"

Files = dict[str, bytes]


class Hub:
    """Repositories with their commits and branches, and what was asked of the server."""

    def __init__(self) -> None:
        self.address = ""
        self.commits: dict[str, Files] = {}
        self.branches: dict[str, dict[str, str]] = {}  # of each repository, to commits
        self.private: set[str] = set()
        self.gated: set[str] = set()  # shown to all, given to nobody
        self.lfs: Files = {}  # by SHA-256
        self.requests: list[str] = []
        self.down = False

    def put(self, repo: str, files: Files, branch: str = "main", *, private: bool = False) -> str:
        """A commit with exactly these files; its hash is returned."""
        content = json.dumps([repo, branch, len(self.commits), sorted(files)])
        sha = hashlib.sha1(content.encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches.setdefault(repo, {})[branch] = sha
        if private:
            self.private.add(repo)
        return sha

    def files(self, repo: str, branch: str = "main") -> Files:
        return self.commits[self.branches[repo][branch]]

    def commit_of(self, repo: str, revision: str) -> str | None:
        return self.branches[repo].get(revision, revision if revision in self.commits else None)


class _RefusedError(Exception):
    def __init__(self, status: int, code: str) -> None:
        self.status, self.code = status, code


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_: object) -> None: ...

    def _answer(self) -> None:
        # The body is read in any case, else it would stand before the next request of the connection.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{self.command} {path}")
        try:
            if self.hub.down:
                raise _RefusedError(500, "Down")
            for pattern, answer in _ROUTES:
                if found := re.fullmatch(pattern, f"{self.command} {path}"):
                    answer(self, **found.groupdict())
                    return
            raise _RefusedError(404, "EntryNotFound")
        except _RefusedError as refused:
            self._send(b"", refused.status, {"X-Error-Code": refused.code})

    do_GET = do_HEAD = do_POST = do_PUT = _answer  # noqa: N815

    def _send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _send_json(self, content: Any, status: int = 200) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"})

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _require_token(self) -> None:
        if not self._known:
            raise _RefusedError(401, "Unauthorized")

    def _files(self, repo: str, revision: str) -> tuple[str, Files]:
        if repo not in self.hub.branches or (repo in self.hub.private and not self._known):
            raise _RefusedError(404, "RepoNotFound")
        sha = self.hub.commit_of(repo, revision)
        if sha is None:
            raise _RefusedError(404, "RevisionNotFound")
        return sha, self.hub.commits[sha]

    def info(self, repo: str, revision: str | None) -> None:
        sha, files = self._files(repo, revision or "main")
        siblings = [{"rfilename": name} for name in files]
        self._send_json({"_id": "0", "id": repo, "sha": sha, "siblings": siblings, "tags": [], "downloads": 0})

    def tree(self, repo: str, revision: str) -> None:
        entries = []
        for name, content in self._files(repo, revision)[1].items():
            entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _oid(content)}
            if name.endswith(".safetensors"):
                entry["lfs"] = {"oid": _oid(content, large=True), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        self._send_json(entries)

    def resolve(self, repo: str, revision: str, name: str) -> None:
        sha, files = self._files(repo, revision)
        if repo in self.hub.gated:
            raise _RefusedError(403, "GatedRepo")
        if name not in files:
            raise _RefusedError(404, "EntryNotFound")
        tag = _oid(files[name], large=name.endswith(".safetensors"))
        self._send(files[name], headers={"ETag": f'"{tag}"', "X-Repo-Commit": sha})

    def create(self) -> None:
        self._require_token()
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        there = repo in self.hub.branches
        if not there:
            self.hub.put(
                repo, {".gitattributes": b""}, private=asked.get("visibility") == "private" or asked.get("private")
            )
        self._send_json({"url": f"{self.hub.address}/{repo}"}, 409 if there else 200)

    def validate_yaml(self) -> None:
        self._send_json({"warnings": [], "errors": []})

    def branch(self, repo: str, name: str) -> None:
        self._require_token()
        if name in self.hub.branches[repo]:
            raise _RefusedError(409, "Conflict")
        self.hub.branches[repo][name] = self.hub.branches[repo]["main"]
        self._send_json({})

    def preupload(self, repo: str, revision: str) -> None:
        self._require_token()
        self._files(repo, revision)
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
        self._send_json(
            {"files": [{"path": p, "uploadMode": mode, "shouldIgnore": False} for p, mode in modes.items()]}
        )

    def lfs_batch(self, repo: str) -> None:
        self._require_token()
        assert repo in self.hub.branches
        objects = [
            {**asked, "actions": {"upload": {"href": f"{self.hub.address}/lfs/{asked['oid']}"}}}
            for asked in json.loads(self.body)["objects"]
        ]
        self._send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid: str) -> None:
        assert _oid(self.body, large=True) == oid
        self.hub.lfs[oid] = self.body
        self._send(b"")

    def commit(self, repo: str, revision: str) -> None:
        self._require_token()
        files = dict(self._files(repo, revision)[1])
        for line in self.body.splitlines():
            key, value = (item := json.loads(line))["key"], item["value"]
            if key == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                files[value["path"]] = self.hub.lfs[value["oid"]]
            elif key == "deletedFile":
                del files[value["path"]]
        sha = self.hub.put(repo, files, revision)
        self._send_json({"commitUrl": f"{self.hub.address}/{repo}/commit/{sha}", "commitOid": sha, "success": True})


def _oid(content: bytes, *, large: bool = False) -> str:
    """As git names a file, or as its extension for large files does."""
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


_REPO = r"(?P<repo>[\w.-]+/[\w.-]+?)"
_ROUTES = [
    (rf"GET /api/models/{_REPO}(?:/revision/(?P<revision>.+))?", _Handler.info),
    (rf"GET /api/models/{_REPO}/tree/(?P<revision>.+)", _Handler.tree),
    (rf"(?:GET|HEAD) /{_REPO}/resolve/(?P<revision>[^/]+)/(?P<name>.+)", _Handler.resolve),
    (r"POST /api/repos/create", _Handler.create),
    (r"POST /api/validate-yaml", _Handler.validate_yaml),
    (rf"POST /api/models/{_REPO}/branch/(?P<name>.+)", _Handler.branch),
    (rf"POST /api/models/{_REPO}/preupload/(?P<revision>.+)", _Handler.preupload),
    (rf"POST /{_REPO}\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (r"PUT /lfs/(?P<oid>.+)", _Handler.lfs_put),
    (rf"POST /api/models/{_REPO}/commit/(?P<revision>.+)", _Handler.commit),
]


@contextmanager
def running_hub() -> Iterator[Hub]:
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        hub.address = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
