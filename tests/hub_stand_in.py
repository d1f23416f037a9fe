"""A Hub on loopback: takes what is pushed, of any size, and gives it out again."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(BaseHTTPRequestHandler):
    """Repositories by kind and name; each commit has a number as its id and a copy of all files."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self):
        path = unquote(urlsplit(self.path).path)
        repos, blobs = self.server.repos, self.server.blobs
        if found := re.fullmatch(r"/blobs/(\w+)", path):
            return self.reply(blobs[found[1]])
        if found := re.fullmatch(r"/api/(models|spaces)/([\w.-]+/[\w.-]+)(?:/revision/([\w.-]+))?", path):
            commits = repos.get((found[1], found[2]))
            commit = self.commit(commits, found[3])
            if commit is None:
                return self.reply({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
            number, files = commit
            siblings = [{"rfilename": name} for name in sorted(files)]
            return self.reply({"id": found[2], "modelId": found[2], "sha": number, "siblings": siblings, "tags": []})
        if found := re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/([\w.-]+)/(.+)", path):
            commit = self.commit(repos.get(("models", found[1])), found[2])
            if commit is None or found[3] not in commit[1]:
                code = "RepoNotFound" if commit is None else "EntryNotFound"
                return self.reply({"error": "not found"}, 404, X_Error_Code=code)
            self.server.read.append((found[1], found[2], found[3]))
            content = commit[1][found[3]]
            etag = hashlib.sha256(content).hexdigest()
            return self.reply(content, X_Repo_Commit=commit[0], ETag=f'"{etag}"')
        return self.reply({"error": path}, 404, X_Error_Code="EntryNotFound")

    do_HEAD = do_GET

    @staticmethod
    def commit(commits, revision):
        if not commits:
            return None
        if revision in (None, "main"):
            return commits[-1]
        return next((commit for commit in commits if commit[0] == revision), None)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        repos, here = self.server.repos, f"http://{self.headers['Host']}"
        if self.path.endswith("/api/repos/create"):
            asked = json.loads(body)
            kind = f"{asked.get('type') or 'model'}s"
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else f"me/{asked['name']}"
            self.server.created.append(asked)
            repos.setdefault((kind, name), [])
            return self.reply({"url": f"{here}/{name}", "name": name})
        if self.path.endswith("/api/validate-yaml"):
            return self.reply({"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            plan = [{"path": one["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for one in json.loads(body)["files"]]  # fmt: skip
            return self.reply({"files": plan})
        if found := re.search(r"/api/(models|spaces)/([\w.-]+/[\w.-]+)/commit/", self.path):
            commits = repos[(found[1], found[2])]
            files = dict(commits[-1][1]) if commits else {}
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            number = hashlib.sha1(f"{found[1]}{len(commits)}".encode()).hexdigest()
            commits.append((number, files))
            url = f"{here}/{found[2]}/commit/{number}"
            return self.reply({"success": True, "commitOid": number, "commitUrl": url})
        return self.reply({"error": self.path}, 404)


@contextmanager
def hub() -> Iterator[ThreadingHTTPServer]:
    """Runs the stand-in; its attributes are `address`, `repos`, `created` and `read`."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos, server.blobs, server.created, server.read = {}, {}, [], []
    server.address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
