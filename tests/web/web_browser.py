"""A headless Chromium, a file server, and a folder that stands for onnxruntime-web's where nobody runs it."""

from __future__ import annotations

import functools
import http.server
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from samx.web.onnxruntime_web import NAMES, VERSION

CHROMIUM, DRIVER = "chromium", "chromedriver"
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
    "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
BROUGHT = Path(__file__).parents[2] / ".toolchains/node_modules/onnxruntime-web/dist"


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Any file server, which says nothing; some hosts send what a site's file `_headers` asks for."""

    minds_headers = False

    extensions_map = {
        **http.server.SimpleHTTPRequestHandler.extensions_map, ".mjs": "text/javascript", ".wasm": "application/wasm",
    }  # fmt: skip

    def end_headers(self) -> None:
        """Send the headers of every path, which `_headers` names first."""
        if self.minds_headers:
            first, *lines = Path(self.directory, "_headers").read_text().splitlines()
            assert first == "/*"
            for line in lines:
                self.send_header(*line.strip().split(": "))
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


@contextmanager
def serving(server: http.server.HTTPServer) -> Iterator[str]:
    """Answer in a thread; yield the address."""
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Minding(Quiet):
    """A host that reads `_headers`."""

    minds_headers = True


def file_server(folder: Path, handler: type[Quiet] = Quiet) -> http.server.HTTPServer:
    """Serve a folder as any file server does."""
    return http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))


def started(profile: Path, *flags: str) -> Any:
    """Start Chromium with a profile of its own."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    binary, driver = shutil.which(CHROMIUM), shutil.which(DRIVER)
    if binary is None or driver is None:
        pytest.fail(
            "Chromium and its driver are not here. On Debian, as root: apt-get install chromium chromium-driver"
        )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for flag in (*FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    return webdriver.Chrome(options=options, service=Service(driver))


def until(browser: Any, condition: str, seconds: float = 60) -> Any:
    """Wait until an expression is true, and return it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := browser.execute_script(f"return {condition}"):
            return found
        time.sleep(0.05)
    pytest.fail(f"never: {condition}; the page says: {words(browser)}")


def words(browser: Any) -> str:
    """Return what the page says went wrong, and else what it is at."""
    said = "return ['alert', 'status'].map((id) => document.getElementById(id).textContent).join(' ').trim()"
    return str(browser.execute_script(said))


def phase(browser: Any, name: str) -> None:
    """Wait until the page is in a phase."""
    until(browser, f"document.body.dataset.phase === '{name}'")


def fake_runtime(folder: Path) -> Path:
    """Write files of the names that onnxruntime-web has, for what only copies them."""
    folder.mkdir(exist_ok=True)
    for name in NAMES:
        (folder / name).write_bytes(f"/*! ONNX Runtime Web v{VERSION} */".encode())
    return folder


def real_runtime() -> Path:
    """Return the folder that 'make toolchains' brings; without it, the test is skipped, and says so."""
    if not BROUGHT.exists():
        pytest.skip(f"{BROUGHT} is not there: make toolchains")
    return BROUGHT
