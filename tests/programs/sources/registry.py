"""A registry of npm packages: `registry.py ADDRESS PORT`, HTTP, two packages, made as asked."""

import base64
import hashlib
import io
import json
import sys
import tarfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PACKAGES = {
    "greeting": ("1.2.3", {"subject": "^2.0.0"}, "module.exports = 'hello ' + require('subject')"),
    "subject": ("2.1.0", {}, "module.exports = 'world ' + '.'.repeat(3)"),
}


def manifest(name: str) -> dict:
    version, needs, _ = PACKAGES[name]
    return {"name": name, "version": version, "main": "index.js", "dependencies": needs}


def tarball(name: str) -> bytes:
    files = {"package.json": json.dumps(manifest(name)), "index.js": PACKAGES[name][2]}
    files["filler.txt"] = "".join(f"{n * n}\n" for n in range(200_000))
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz", compresslevel=1) as tar:
        for path, text in files.items():
            entry = tarfile.TarInfo(f"package/{path}")
            entry.size = len(text)
            tar.addfile(entry, io.BytesIO(text.encode()))
    return out.getvalue()


TARBALLS = {name: tarball(name) for name in PACKAGES}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        name = self.path.strip("/").split("/")[0]
        if name not in PACKAGES:
            self.answer(404, b"{}")
        elif self.path.endswith(".tgz"):
            self.answer(200, TARBALLS[name], "application/octet-stream")
        else:
            version = PACKAGES[name][0]
            url = f"http://{self.headers['Host']}/{name}/-/{name}-{version}.tgz"
            digest = base64.b64encode(hashlib.sha512(TARBALLS[name]).digest()).decode()
            dist = {"tarball": url, "integrity": f"sha512-{digest}"}
            about = {"name": name, "dist-tags": {"latest": version}}
            about["versions"] = {version: {**manifest(name), "dist": dist}}
            self.answer(200, json.dumps(about).encode())

    def answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


ThreadingHTTPServer.request_queue_size = 64
ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
