"""Files in memory -> a local server with the Hub's protocol, plain URLs and faults, and a folder to download into."""

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from steps import params
from tests.project import ROOT

LARGE = (".safetensors", ".parquet")
RESOLVE = re.compile(r"/(?P<dataset>datasets/)?(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
PATHS_INFO = re.compile(r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)/paths-info/(?P<revision>[^/]+)")

REVISION = re.compile(r"/api/(?P<kind>model|dataset)s/(?P<repo>[^/]+/[^/]+)/revision/(?P<revision>[^/]+)")


def git_blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def etag(file: str, content: bytes) -> str:
    """The Hub's: the sha256 of a large file, git's name of a small one."""
    return hashlib.sha256(content).hexdigest() if file.endswith(LARGE) else git_blob(content)


class HubServer(ThreadingHTTPServer):
    """Serves `repositories[kind, repo][commit][file]` as the Hub does and `plain[file]` at /plain/file.

    `faults[method, file]` lists what befalls the next requests for it: a status, "cut" (half the body, then the
    connection ends) or "hang" (half the body, then nothing more). `instead[file]` is sent in place of the content,
    under the content's hash. `requests` lists (method, file, Range).
    """

    daemon_threads = True
    block_on_close = False

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[tuple[str, str], dict[str, dict[str, bytes]]] = {}
        self.branches: dict[str, dict[str, str]] = {}       # repo -> branch or tag -> commit
        self.plain: dict[str, bytes] = {}
        self.faults: dict[tuple[str, str], list] = {}
        self.instead: dict[str, bytes] = {}
        self.requests: list[tuple[str, str, str | None]] = []
        self.ended = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self, method: str, file: str) -> list[str | None]:
        """The Range of each request for that file."""
        return [span for m, f, span in self.requests if (m, f) == (method, file)]

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.ended.set()
        self.shutdown()
        self.server_close()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *arguments):
        pass

    def do_HEAD(self):
        self.do_GET()

    def do_GET(self):
        path = urllib.parse.unquote(self.path)
        if path.startswith("/plain/"):
            file = path.removeprefix("/plain/")
            if file in self.server.plain:
                self.send(file, self.server.plain[file], {})
            else:
                self.refuse(file, 404)
        elif path.startswith("/storage/"):
            kind, owner, name, commit, file = path.removeprefix("/storage/").split("/", 4)
            self.send(file, self.server.repositories[kind, f"{owner}/{name}"][commit][file], {})
        elif asked := RESOLVE.fullmatch(path):
            kind = "dataset" if asked["dataset"] else "model"
            if (content := self.find(kind, asked["repo"], asked["revision"], asked["file"])) is not None:
                self.resolve(kind, asked["repo"], asked["revision"], asked["file"], content)
        elif asked := REVISION.fullmatch(path):
            branches = self.server.branches.get(asked["repo"], {})
            if (commit := branches.get(asked["revision"])) is None:
                self.refuse(path, 404, "RevisionNotFound" if branches else "RepoNotFound")
            else:
                body = json.dumps({"id": asked["repo"], "sha": commit, "siblings": []}).encode()
                self.answer(200, {"Content-Type": "application/json"}, body)
        else:
            self.refuse(path, 404)

    def resolve(self, kind: str, repo: str, commit: str, file: str, content: bytes):
        tag = etag(file, content)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{tag}"'}
        if not file.endswith(LARGE):
            self.send(file, content, headers)
        elif not self.hurt(file, content):
            # the Hub keeps large files elsewhere: another host, to the client, by its name
            self.answer(302, headers | {
                "X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content)),
                "Location": f"http://localhost:{self.server.server_port}/storage/{kind}/{repo}/{commit}/{file}"})

    def do_POST(self):
        form = urllib.parse.parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        asked = PATHS_INFO.fullmatch(urllib.parse.unquote(self.path))
        found = []
        for file in form["paths"]:
            content = self.find(asked["kind"], asked["repo"], asked["revision"], file)
            if content is None or self.hurt(file, content):
                return
            large = {"oid": etag(file, content), "size": len(content), "pointerSize": 134}
            found.append({"type": "file", "path": file, "size": len(content), "oid": git_blob(content)}
                         | ({"lfs": large} if file.endswith(LARGE) else {}))
        self.answer(200, {"Content-Type": "application/json"}, json.dumps(found).encode())

    def find(self, kind: str, repo: str, revision: str, file: str) -> bytes | None:
        commits = self.server.repositories.get((kind, repo))
        if commits is None:
            self.refuse(file, 401, "RepoNotFound")
        elif revision not in commits:
            self.refuse(file, 404, "RevisionNotFound")
        elif file not in commits[revision]:
            self.refuse(file, 404, "EntryNotFound")
        else:
            return commits[revision][file]

    def refuse(self, file: str, status: int, code: str = "NotFound"):
        self.server.requests.append((self.command, file, self.headers["Range"]))
        self.answer(status, {"X-Error-Code": code})

    def send(self, file: str, content: bytes, headers: dict[str, str]):
        if self.hurt(file, content):
            return
        content = self.server.instead.get(file, content)
        start = self.start()
        if start and start >= len(content):
            self.answer(416, {"Content-Range": f"bytes */{len(content)}"})
        elif start:
            span = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, headers | {"Content-Range": span}, content[start:])
        else:
            self.answer(200, headers | {"Accept-Ranges": "bytes"}, content)

    def hurt(self, file: str, content: bytes) -> bool:
        """Notes the request and, where a fault is due, answers with it."""
        self.server.requests.append((self.command, file, self.headers["Range"]))
        waiting = self.server.faults.get((self.command, file), [])
        if not waiting:
            return False
        fault = waiting.pop(0)
        if isinstance(fault, int):
            self.answer(fault, {})
            return True
        rest = content[self.start():]
        self.begin(206 if self.start() else 200, {"Content-Length": str(len(rest))})
        self.wfile.write(rest[:len(rest) // 2])
        if fault == "hang":
            self.server.ended.wait(60)
        self.close_connection = True
        return True

    def start(self) -> int:
        return int((self.headers["Range"] or "bytes=0-").removeprefix("bytes=").split("-")[0])

    def begin(self, status: int, headers: dict[str, str]):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()

    def answer(self, status: int, headers: dict[str, str], body: bytes = b""):
        self.begin(status, headers | {"Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def files_of(folder: Path) -> dict[str, bytes]:
    """What was asked for: all but source.json."""
    return {file: content for file, content in contents(folder).items() if file != "source.json"}


class Place:
    """A folder with a params.yaml in which `python -m steps.download` runs, a thousand times less patiently."""

    def __init__(self, folder: Path, environment: dict[str, str], hub: str):
        self.folder, self.out, self.cache = folder, folder / "out/it", folder / "hf"
        (folder / "hurry").mkdir(parents=True)
        (folder / "hurry/sitecustomize.py").write_text(
            "import time\nsleep = time.sleep\ntime.sleep = lambda seconds: sleep(seconds / 1000)\n", encoding="utf-8")
        path = os.pathsep.join([str(folder / "hurry"), str(ROOT)])
        self.environment = environment | {"HF_ENDPOINT": hub, "HF_HOME": str(self.cache), "PYTHONPATH": path,
                                          "NO_PROXY": "*", "no_proxy": "*"}

    def declare(self, group: str, where: str, entry: dict) -> None:
        """Makes `entry` the one called `it`."""
        shipped = params.read(ROOT / "params.yaml")
        recipe = shipped["recipes"]["sts"]
        named = {"path": "other", "licence": "none"}
        values = {"seed": 1, "threads": 1, "checkpoint_seconds": 60.0, "work_pool": "cpu", "drift": shipped["drift"],
                  "datasets": {"local": {"other": named | {"splits": {"train": "train.csv"}}}},
                  "base_models": {"local": {"other": named}},
                  "recipes": {"sts": recipe | {"dataset": "data/raw/other", "suite": "data/raw/other",
                                            "base_model": "models/base/other"}}}
        values[group].setdefault(where, {})["it"] = entry
        (self.folder / "params.yaml").write_text(json.dumps(values), encoding="utf-8")    # JSON is YAML

    def command(self, what: str) -> list[str]:
        return [sys.executable, "-m", "steps.download", what, "it", "out/it"]

    def get(self, what: str = "model") -> subprocess.CompletedProcess:
        return subprocess.run(self.command(what), cwd=self.folder, env=self.environment, capture_output=True,
                              text=True, timeout=120, check=False)

    def gets(self, what: str = "model") -> dict[str, bytes]:
        done = self.get(what)
        assert done.returncode == 0, done.stdout + done.stderr
        return files_of(self.out)

    def refuses(self, what: str = "model") -> str:
        """What it says; nothing is left where the files were to be, and there is no traceback."""
        done = self.get(what)
        assert done.returncode == 2, done.stdout + done.stderr
        assert "Traceback" not in done.stderr
        assert list(self.folder.glob("out/*")) == []
        return done.stderr
