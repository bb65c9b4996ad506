"""The kit on this machine: what kit.json says, and every file by its hash."""

from __future__ import annotations

import hashlib
import importlib
import io
import json
import os
import re
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

Json = dict[str, Any]
Arrays = dict[str, Any]
USAGE, PARITY, PARTIAL, UNAVAILABLE, INPUT, WRITE = 2, 3, 4, 5, 6, 7  # exit codes, as samx gives them
STOPPED = "stopped by the user (Ctrl-C)"
MESSAGE_CHARACTERS = 300
RUNTIMES: dict[str, Any] = {}  # the classes that run a decoder, by name; a kit has those of its own target
now = time.perf_counter_ns


class KitError(Exception):
    """Say in one line why this cannot be done."""

    def __init__(self, exit_code: int, line: str) -> None:
        super().__init__(" ".join(line.split()))
        self.exit_code = exit_code


class Kit:
    """Hold what kit.json says, once the hash of every file was checked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        text = self._bytes("kit.json")
        if self._bytes("kit.json.sha256") != f"{sha256_of(text)}  kit.json\n".encode():
            raise KitError(INPUT, "kit.json is not what was bundled: its hash differs. Copy and unpack the kit again.")
        self.says: Json = json.loads(text)
        for name in self.says["files"]:
            self.read(name)

    def read(self, name: str) -> bytes:
        """Read a file; the hash is checked on the very bytes that are returned."""
        data = self._bytes(name)
        if sha256_of(data) != self.says["files"][name]:
            raise KitError(INPUT, f"{name} is not what was bundled: its hash differs. Copy and unpack the kit again.")
        return data

    def arrays(self, name: str) -> Arrays:
        """Read an .npz file, without pickles."""
        with np.load(io.BytesIO(self.read(name)), allow_pickle=False) as stored:
            return {key: stored[key] for key in stored.files}

    def _bytes(self, name: str) -> bytes:
        try:
            return (self.folder / name).read_bytes()
        except OSError as cause:
            raise KitError(INPUT, f"cannot read {name} of this kit: {cause.strerror}. Unpack the kit again.") from cause


def library(place: Json) -> Any:
    """Import the library that runs the decoder, of a version that can."""
    name, install = place["library"], f"Install it: {place['install']}"
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as cause:
        line = f"'{place['device']}' needs the library '{name}', which does not load: {cause}. {install}"
        raise KitError(UNAVAILABLE, line) from cause
    version = [int(number) for number in re.findall(r"\d+", module.__version__)]
    if version < place["minimum"] or (place["below"] is not None and version >= place["below"]):
        line = f"{name} {module.__version__} cannot run this kit, which needs {place['versions']}. {install}"
        raise KitError(UNAVAILABLE, line)
    return module


def write(path: Path, data: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def utc_now() -> str:
    """Give the time as ISO 8601 in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def message(error: BaseException) -> str:
    """Put an exception into one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:MESSAGE_CHARACTERS]


def sha256_of(data: bytes) -> str:
    """Give a hash in hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
