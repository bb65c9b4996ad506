"""Run decoders by onnxruntime-web in headless Chromium: a page is served, and posts what it found."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

CHROMIUM, PAGE, SECONDS = "chromium", Path(__file__).with_name("browser.html"), 600
FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-dev-shm-usage")
RUNTIME = ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.mjs", "ort-wasm-simd-threaded.wasm")
TYPES = {".html": "text/html", ".mjs": "text/javascript", ".wasm": "application/wasm", ".json": "application/json"}


class Server(ThreadingHTTPServer):
    """Serve files from memory, and keep what is posted."""

    daemon_threads = True

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files, self.posted, self.done = files, b"", threading.Event()
        super().__init__(("127.0.0.1", 0), Handler)


class Handler(BaseHTTPRequestHandler):
    """Answer one connection."""

    server: Server

    def do_GET(self) -> None:
        """Hand a file out."""
        name = self.path.lstrip("/")
        self.send_response(200 if name in self.server.files else 404)
        self.send_header("Content-Type", TYPES.get(Path(name).suffix, "application/octet-stream"))
        self.end_headers()
        self.wfile.write(self.server.files.get(name, b""))

    def do_POST(self) -> None:
        """Keep what was found."""
        self.server.posted = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.done.set()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


class ProgramError(Exception):
    """Say that a program did not answer."""


def asked(
    given: Mapping[str, Any], graphs: Mapping[str, Sequence[Path]], runtime: Path, embedding: bytes
) -> dict[str, Any]:
    """Let a page answer prompts with decoders, each one ONNX file or two.

    Raises: ProgramError where there is no Chromium, or the page failed.
    """
    chromium = shutil.which(CHROMIUM)
    if chromium is None:
        raise ProgramError(f"there is no {CHROMIUM}")
    decoders = {name: [f"{name}-{path.name}" for path in paths] for name, paths in graphs.items()}
    files = {
        "index.html": PAGE.read_bytes(), "given.json": json.dumps({**given, "decoders": decoders}).encode(),
        "embedding.bin": embedding, **{name: (runtime / name).read_bytes() for name in RUNTIME},
        **{f"{name}-{path.name}": path.read_bytes() for name, paths in graphs.items() for path in paths},
    }  # fmt: skip
    server = Server(files)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:  # the browser still writes as it ends
        page = f"http://127.0.0.1:{server.server_port}/index.html"
        browser = subprocess.Popen(
            [chromium, *FLAGS, f"--user-data-dir={profile}", page], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        server.done.wait(SECONDS)
        browser.terminate()
        browser.wait(60)
    server.shutdown()
    found: dict[str, Any] = json.loads(server.posted or b'{"error": "the page did not answer"}')
    if "error" in found:
        raise ProgramError(f"the page failed: {found['error']}")
    return found
