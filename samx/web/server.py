"""Serve the page on this machine alone: loopback, and only to pages that came from here."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import samx
from samx.errors import ArtifactError, SamxError, UnavailableError
from samx.files import MIB
from samx.web.answers import PICTURE_CAP_BYTES, Answers, Question, status_of

LOOPBACK, NAMES = "127.0.0.1", ("127.0.0.1", "localhost")
QUESTION_CAP_BYTES = MIB // 16  # a prompt of a thousand points has 30 KiB
SECONDS = 60  # that a browser may take to send what it began
TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8", ".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8",
    ".json": "application/json", ".svg": "image/svg+xml", ".png": "image/png",
}  # fmt: skip
HEADERS: Mapping[str, str] = {
    "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin", "Referrer-Policy": "no-referrer", "X-Frame-Options": "DENY",
}  # fmt: skip


class Server(ThreadingHTTPServer):
    """Listen on loopback; a port of 0 is any that is free."""

    daemon_threads = True

    def __init__(self, port: int, files: Mapping[str, bytes], answers: Answers) -> None:
        self.files, self.answers = files, answers
        try:
            super().__init__((LOOPBACK, port), Handler)
        except OSError as cause:
            fix = "Name another one: --port, 0 for any that is free."
            raise UnavailableError(f"port {port} cannot be listened on", found=cause.strerror, fix=fix) from cause

    @property
    def address(self) -> str:
        """Return where the page is."""
        return f"http://{LOOPBACK}:{self.server_port}/"


class Handler(BaseHTTPRequestHandler):
    """Answer one connection."""

    server: Server
    server_version, sys_version = f"samx/{samx.__version__}", ""
    protocol_version = "HTTP/1.1"
    timeout = SECONDS

    def do_GET(self) -> None:
        """Hand out a file of the page."""
        name = urlsplit(self.path).path.lstrip("/") or "index.html"
        if not self._is_ours():
            return
        if name not in self.server.files:
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing of this name here.")
            return
        self._answer(HTTPStatus.OK, self.server.files[name], TYPES[PurePosixPath(name).suffix])

    def do_POST(self) -> None:
        """Take a picture, or a question about one."""
        route = self._routes().get(urlsplit(self.path).path)
        if not self._is_ours(asks=True):
            return
        if route is None:
            self._refuse(HTTPStatus.NOT_FOUND, "There is nothing of this name here.")
            return
        cap, kind, answer = route
        data = self._body(cap)
        if data is None:
            return
        try:
            self._answer(HTTPStatus.OK, answer(data), kind)
        except ArtifactError as error:  # of JSON that no page of ours sends
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except SamxError as error:
            self._refuse(status_of(error), str(error))

    def _routes(self) -> Mapping[str, tuple[int, str, Callable[[bytes], bytes]]]:
        answers = self.server.answers
        return {
            "/picture": (PICTURE_CAP_BYTES, TYPES[".json"], lambda data: json.dumps(answers.take(data)).encode()),
            "/masks": (
                QUESTION_CAP_BYTES, "application/octet-stream",
                lambda data: answers.ask(Question.from_bytes(data, "the question")),
            ),
        }  # fmt: skip

    def _is_ours(self, asks: bool = False) -> bool:
        """Refuse what comes by another name (a site whose name leads here), and questions of other sites' pages."""
        port = self.server.server_port
        hosts = [f"{name}:{port}" for name in NAMES]
        host, origin = self.headers.get("Host"), self.headers.get("Origin")
        if host not in hosts:
            self._refuse(HTTPStatus.FORBIDDEN, f"Only http://{hosts[0]} is served.")
        elif (asks or origin is not None) and origin != f"http://{host}":
            self._refuse(HTTPStatus.FORBIDDEN, "Only the page that is served here may ask.")
        else:
            return True
        return False

    def _body(self, cap: int) -> bytes | None:
        """Read what was sent, of at most `cap` bytes and of a stated length; None where it was refused."""
        stated = self.headers.get("Content-Length", "")
        if not (stated.isascii() and stated.isdecimal()):
            self._refuse(HTTPStatus.LENGTH_REQUIRED, "The length of what is sent has to be stated.")
        elif int(stated) > cap:
            self._refuse(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"That is too large: {stated} bytes, at most {cap} are taken."
            )
        else:
            data = self.rfile.read(int(stated))
            if len(data) == int(stated):
                return data
            self._refuse(HTTPStatus.BAD_REQUEST, "What was sent is incomplete.")
        return None

    def _refuse(self, status: int, words: str) -> None:
        self.close_connection = True  # what else was sent is not read
        self._answer(status, words.encode(), "text/plain; charset=utf-8")

    def _answer(self, status: int, data: bytes, kind: str) -> None:
        self.send_response(status)
        for name, value in {**HEADERS, "Content-Type": kind, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: the page tells what happens."""
