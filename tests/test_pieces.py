"""A file in pieces comes back whole or not at all, whatever happened to the pieces."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tools.pieces import main

DATA = bytes(range(256)) * 10  # 2560 bytes: two pieces of 1000, and one of 560


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "big.whl"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def pieces(tmp_path: Path, file: Path) -> Path:
    assert main(["cut", str(file), "--output", str(tmp_path / "pieces"), "--megabytes", "0.001"]) == 0
    return tmp_path / "pieces"


def test_pieces_are_no_larger_than_asked_for_and_join_to_the_same_file(pieces: Path, tmp_path: Path) -> None:
    index = json.loads((pieces / "index.json").read_text())
    assert (index["name"], index["bytes"], index["sha256"]) == ("big.whl", 2560, hashlib.sha256(DATA).hexdigest())
    assert [piece["bytes"] for piece in index["pieces"]] == [1000, 1000, 560]
    for piece in index["pieces"]:
        data = (pieces / piece["name"]).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (piece["bytes"], piece["sha256"])
    assert main(["join", str(pieces), "--output", str(tmp_path / "again.whl")]) == 0
    assert (tmp_path / "again.whl").read_bytes() == DATA


def test_without_a_name_the_old_one_is_taken(pieces: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert main(["join", str(pieces)]) == 0
    assert Path("big.whl").read_bytes() == DATA


def test_an_empty_file_has_no_pieces(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert main(["cut", str(tmp_path / "empty"), "--output", str(tmp_path / "pieces")]) == 0
    assert [path.name for path in (tmp_path / "pieces").iterdir()] == ["index.json"]
    assert main(["join", str(tmp_path / "pieces"), "--output", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == b""


def change(key: str, value: object) -> Callable[[Path], None]:
    """Plant another value in the index, in its first piece where the key is 'pieces.KEY'."""

    def plant(pieces: Path) -> None:
        index: dict[str, Any] = json.loads((pieces / "index.json").read_text())
        (index["pieces"][0] if "." in key else index)[key.split(".")[-1]] = value
        (pieces / "index.json").write_text(json.dumps(index))

    return plant


FAULTS: dict[str, tuple[Callable[[Path], object], int, str]] = {
    "truncated": (lambda p: (p / "001.piece").write_bytes(DATA[:999]), 6, "has 999 bytes: expected 1000"),
    "altered": (lambda p: (p / "001.piece").write_bytes(DATA[1:1001]), 6, "has another SHA-256"),
    "missing": (lambda p: (p / "002.piece").unlink(), 6, "is missing"),
    "no index": (lambda p: (p / "index.json").unlink(), 2, "cannot be read"),
    "no JSON": (lambda p: (p / "index.json").write_text("{"), 6, "is not valid JSON"),
    "a list": (lambda p: (p / "index.json").write_text("[]"), 6, "has the wrong type"),
    "another format": (change("format", "x"), 6, "has another format"),
    "leads elsewhere": (change("pieces.name", "../001.piece"), 6, "leads elsewhere: found '../001.piece'"),
    "is written elsewhere": (change("name", "/away/x"), 6, "leads elsewhere: found '/away/x'"),
    "other whole": (change("sha256", "0" * 64), 6, "do not make 'big.whl'"),
    "a size in words": (change("pieces.bytes", "1000"), 6, "bytes has the wrong type"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_damaged_pieces_leave_nothing_behind(
    fault: str, pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plant, code, words = FAULTS[fault]
    plant(pieces)
    (tmp_path / "out").mkdir()
    assert main(["join", str(pieces), "--output", str(tmp_path / "out" / "again.whl")]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert words in error
    assert error.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("command", ["cut", "join"])
def test_nothing_is_overwritten(
    command: str, file: Path, pieces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "there"
    target.write_bytes(b"kept")
    assert main([command, str(file if command == "cut" else pieces), "--output", str(target)]) == 7
    assert "exists already" in capsys.readouterr().err
    assert target.read_bytes() == b"kept"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["big.whl", "pieces", "there"]


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["nothing", "--output", "pieces"], 2, "is no file"),
        (["big.whl", "--output", "pieces", "--megabytes", "0"], 2, "no size of a piece"),
        (["big.whl", "--output", "missing/pieces"], 7, "cannot write"),
    ],
)
def test_what_cannot_be_cut_is_one_line(
    arguments: list[str], code: int, words: str, file: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(file.parent)
    assert main(["cut", *arguments]) == code
    assert words in capsys.readouterr().err
    assert [path.name for path in file.parent.iterdir()] == ["big.whl"]
