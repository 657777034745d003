"""A server with the few calls of the Hugging Face Hub that `huggingface_hub` makes here.

Files that end in .safetensors are uploaded as LFS objects, others with the commit.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writer"
GATED_MESSAGE = "Access to model is restricted. Visit the page to ask for access."


@dataclass
class Repository:
    """Commits by id (path -> contents), and the branches."""

    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    gated: bool = False
    private: bool = False

    def commit(self, files: dict[str, bytes], branch: str = "main") -> str:
        text = json.dumps([len(self.commits), sorted(files)])
        commit = hashlib.sha1(text.encode()).hexdigest()
        self.commits[commit] = files
        self.branches[branch] = commit
        return commit

    def files(self, revision: str = "main") -> dict[str, bytes]:
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Hub:
    """State of the server.

    Attributes:
      url: Address.
      repositories: By OWNER/NAME.
      objects: LFS objects by SHA-256.
      requests: (method, path, Range header) of every request.
      cut: Path of a file -> bytes after which its next download is cut off.
      refused: Paths of files whose download is refused.
    """

    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    cut: dict[str, int] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)

    def add(self, name: str, files: dict[str, bytes], **settings) -> Repository:
        repository = self.repositories[name] = Repository(**settings)
        repository.commit(files)
        return repository

    def downloads(self) -> list[str]:
        """Returns the paths of the files that were downloaded, and forgets all requests."""
        found = [
            path.split("/resolve/")[1].partition("/")[2]
            for method, path, _ in self.requests
            if method == "GET" and "/resolve/" in path
        ]
        self.requests.clear()
        return sorted(found)


@contextlib.contextmanager
def serve() -> Iterator[Hub]:
    """Serves an empty hub on a free port of this machine."""
    hub = Hub()

    class Handler(_Handler):
        state = hub

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Error(Exception):
    def __init__(self, status: int, code: str = "", message: str = ""):
        self.status, self.code, self.message = status, code, message


class _Handler(BaseHTTPRequestHandler):
    state: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_GET(self):
        self._answer(self._read_call)

    def do_HEAD(self):
        self._answer(self._read_call)

    def do_POST(self):
        self._answer(self._write_call)

    def do_PUT(self):
        self._answer(self._write_call)

    def _answer(self, call) -> None:
        path = unquote(urlsplit(self.path).path)
        self.state.requests.append((self.command, path, self.headers.get("Range")))
        content = self._read_body()
        try:
            call(path, content)
        except _Error as error:
            headers = {"X-Error-Code": error.code, "X-Error-Message": error.message}
            self._send(error.status, b"{}", {k: v for k, v in headers.items() if v})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def _send(self, status: int, content: bytes = b"", headers: dict[str, str] | None = None):
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, value) -> None:
        self._send(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    @property
    def _is_writer(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _repository(self, name: str) -> Repository:
        repository = self.state.repositories.get(name)
        if repository is None or (repository.private and not self._is_writer):
            raise _Error(401 if not self._is_writer else 404, "RepoNotFound", "Not found")
        return repository

    def _commit(self, repository: Repository, revision: str) -> str:
        commit = repository.branches.get(revision, revision)
        if commit not in repository.commits:
            raise _Error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return commit

    def _read_call(self, path: str, _: bytes) -> None:
        if match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/(.+))?", path):
            repository = self._repository(match[1])
            commit = self._commit(repository, match[2] or "main")
            names = [{"rfilename": name} for name in repository.commits[commit]]
            self._send_json({"id": match[1], "sha": commit, "siblings": names, "tags": []})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)/?", path):
            repository = self._repository(match[1])
            files = repository.commits[self._commit(repository, match[2])]
            self._send_json(
                [
                    {"type": "file", "path": name, "size": len(content), "oid": _etag(content)}
                    for name, content in files.items()
                ]
            )
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._send_file(*match.groups())
        else:
            raise _Error(404, "EntryNotFound", f"no call {path}")

    def _send_file(self, repository_name: str, revision: str, name: str) -> None:
        repository = self._repository(repository_name)
        commit = self._commit(repository, revision)
        if repository.gated and not self._is_writer:
            raise _Error(403, "GatedRepo", GATED_MESSAGE)
        content = repository.commits[commit].get(name)
        if content is None:
            raise _Error(404, "EntryNotFound", "Entry not found")
        if name in self.state.refused:
            raise _Error(403, message="Not today")
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"', "Accept-Ranges": "bytes"}
        status, start = 200, 0
        if found := re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or ""):
            status, start = 206, int(found[1])
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        if self.command == "GET" and name in self.state.cut:
            headers["Content-Length"] = str(len(content) - start)
            self._send(status, content[start : start + self.state.cut.pop(name)], headers)
            self.close_connection = True
        else:
            self._send(status, content[start:], headers)

    def _write_call(self, path: str, content: bytes) -> None:
        if path.startswith("/objects/"):
            assert hashlib.sha256(content).hexdigest() == path.rpartition("/")[2]
            self.state.objects[path.rpartition("/")[2]] = content
            self._send(200)
            return
        if not self._is_writer:
            raise _Error(401, message="Invalid username or password.")
        if path == "/api/validate-yaml":
            self._send_json({})
        elif path == "/api/repos/create":
            self._create(json.loads(content))
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/([^/]+)", path):
            self._preupload(self._repository(match[1]), match[2], json.loads(content)["files"])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._send_json(
                {
                    "objects": [
                        self._batch(o["oid"], o["size"]) for o in json.loads(content)["objects"]
                    ]
                }
            )
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/([^/]+)", path):
            self._write_commit(match[1], match[2], content)
        else:
            raise _Error(404, message=f"no call {path}")

    def _create(self, values: dict) -> None:
        owner = values.get("organization") or "me"
        if owner != "me":
            raise _Error(403, message=f"You don't have the rights to create a model under {owner}")
        name = f"{owner}/{values['name']}"
        if name in self.state.repositories:
            url = json.dumps({"url": f"{self.state.url}/{name}"}).encode()
            self._send(409, url, {"X-Error-Message": "You already created this model repo"})
            return
        files = {".gitattributes": b"*.safetensors filter=lfs\n"}
        self.state.add(
            name,
            files,
            private=bool(values.get("private") or values.get("visibility") == "private"),
        )
        self._send_json({"url": f"{self.state.url}/{name}"})

    def _preupload(self, repository: Repository, branch: str, files: list[dict]) -> None:
        self._commit(repository, branch)
        self._send_json(
            {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["path"].endswith(".safetensors") else "regular",
                        "shouldIgnore": False,
                    }
                    for file in files
                ]
            }
        )

    def _batch(self, oid: str, size: int) -> dict:
        answer = {"oid": oid, "size": size}
        if oid not in self.state.objects:
            answer["actions"] = {"upload": {"href": f"{self.state.url}/objects/{oid}"}}
        return answer

    def _write_commit(self, name: str, branch: str, content: bytes) -> None:
        repository = self._repository(name)
        files = dict(repository.commits[self._commit(repository, branch)])
        for line in content.splitlines():
            entry = json.loads(line)
            kind, value = entry["key"], entry["value"]
            if kind == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif kind == "lfsFile":
                files[value["path"]] = self.state.objects[value["oid"]]
            elif kind == "deletedFile":
                del files[value["path"]]
        commit = repository.commit(files, branch)
        url = f"{self.state.url}/{name}/commit/{commit}"
        self._send_json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
