"""Lay out a recorded device below a folder, and answer for its commands."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from samx.devices.adapter import CommandError, Tree

RECORDED = Path(__file__).parent / "recorded"
NAMES = sorted(path.stem for path in RECORDED.glob("*.json"))


class Recording:
    """A device that was written down: a root folder with its files, and `run` for its commands."""

    def __init__(self, name: str, root: Path) -> None:
        self.root, self.asked = root, list[str]()
        self._data: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text(encoding="utf-8"))
        for folder, files in self._data["folders"].items():
            for file, content in files.items():
                self.write(f"{folder}/{file}", content)

    def write(self, path: str, content: str) -> None:
        """Change a file."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content.encode())

    def remove(self, path: str) -> None:
        """Take a file away."""
        (self.root / path.lstrip("/")).unlink()

    def answer(self, command: str, text: str) -> None:
        """Change what a command prints."""
        self._data["commands"][command] = text

    def run(self, *words: str) -> str:
        """Stand in for samx.devices.adapter.run."""
        command = " ".join(words)
        self.asked.append(command)
        printed = self._data["commands"].get(command)
        if printed is None:
            raise CommandError(f"{words[0]} cannot be run: No such file or directory")
        if isinstance(printed, int):
            raise CommandError(f"{command} failed with exit code {printed}: {self._data['errors'][command]}")
        return str(printed)


def deny(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    """Let only root read the files whose names end so. (Tests may run as root, for whom no file mode is a bar.)"""
    read = Tree.text

    def text(self: Tree, path: str) -> str:
        if path.endswith(ending):
            raise PermissionError(13, "Permission denied")
        return read(self, path)

    monkeypatch.setattr(Tree, "text", text)
