"""A folder is written whole or not at all, and in the place of an earlier one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from samx.artifacts.folder import write_folder
from samx.errors import WriteError

Files = list[tuple[str, bytes]]
OLD: Files = [("a.txt", b"old"), ("deep/b.txt", b"old")]


def nothing() -> None:
    """Refuse nothing."""


def held(folder: Path) -> Files:
    return sorted(
        (path.relative_to(folder).as_posix(), path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    )


@pytest.fixture
def target(tmp_path: Path) -> Path:
    write_folder(tmp_path / "out", OLD, nothing)
    return tmp_path / "out"


def test_a_folder_takes_the_place_of_another(target: Path) -> None:
    assert held(target) == OLD
    write_folder(target, [("c.txt", b"new")], nothing)
    assert held(target) == [("c.txt", b"new")]
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError("no data"), KeyboardInterrupt()])
def test_what_fails_on_the_way_leaves_what_was_there(target: Path, error: BaseException) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        yield "c.txt", b"new"
        raise error

    with pytest.raises(type(error)):
        write_folder(target, files(), nothing)
    assert held(target) == OLD
    assert list(target.parent.iterdir()) == [target]


def test_what_may_not_be_replaced_is_asked_about_last(target: Path) -> None:
    def check() -> None:
        raise WriteError("somebody wrote there meanwhile")

    with pytest.raises(WriteError, match="meanwhile"):
        write_folder(target, [("c.txt", b"new")], check)
    assert held(target) == OLD


def test_a_place_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(WriteError, match="cannot write") as caught:
        write_folder(tmp_path / "file" / "out", OLD, nothing)
    assert "\n" not in str(caught.value)
