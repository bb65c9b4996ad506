"""Which files a folder of this machine has: links are followed, and no folder is listed twice."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import dataset_toys
import pytest
from dataset_fixtures import empty_memory, the_pictures, the_pretended, the_request_of  # noqa: F401

from samx.commands.dataset import DatasetRequest, segment_dataset
from samx.datasets.stores import Store
from samx.errors import InputError


def listed(folder: Path) -> list[str]:
    return Store.of(str(folder)).files()


def file(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x")
    return path


def test_linked_folders_are_followed_at_any_depth(tmp_path: Path) -> None:
    file(tmp_path / "in" / "own" / "1.png")
    file(tmp_path / "far" / "2.png")
    file(tmp_path / "farther" / "deep" / "3.png")
    (tmp_path / "in" / "own" / "far").symlink_to(tmp_path / "far")
    (tmp_path / "far" / "farther").symlink_to(Path("..", "farther"))
    (tmp_path / "in" / "4.png").symlink_to(tmp_path / "far" / "2.png")
    (tmp_path / "in" / "5.png").symlink_to("nowhere")
    assert listed(tmp_path / "in") == ["4.png", "5.png", "own/1.png", "own/far/2.png", "own/far/farther/deep/3.png"]
    (tmp_path / "link").symlink_to(tmp_path / "in")
    assert listed(tmp_path / "link") == listed(tmp_path / "in")


def test_a_folder_is_listed_once_whatever_links_lead_to_it(tmp_path: Path) -> None:
    file(tmp_path / "in" / "z" / "1.png")
    file(tmp_path / "far" / "deep" / "2.png")
    file(tmp_path / "beside.png")
    links: list[tuple[str, Path | str]] = [
        ("a", "z"), ("z/round", "."), ("z/up", ".."), ("above", tmp_path), ("top", "/"),
        ("b", tmp_path / "far" / "deep"), ("c", tmp_path / "far"), ("d", tmp_path / "far"),
    ]  # fmt: skip
    for name, target in links:
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "far" / "back").symlink_to(tmp_path / "in")
    file(tmp_path / "far" / "3.png")
    assert listed(tmp_path / "in") == ["b/2.png", "c/3.png", "z/1.png"]


def test_a_folder_that_cannot_be_read_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file(tmp_path / "1.png")
    file(tmp_path / "locked" / "2.png")
    scan = os.scandir

    def locked(path: str) -> object:
        if path.endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", locked)
    with pytest.raises(InputError, match=r"folder '.*locked' cannot be read: found Permission denied. Let it be read"):
        listed(tmp_path)


@pytest.mark.usefixtures("pretended")
def test_pictures_of_linked_folders_have_rows(request_of: Callable[..., DatasetRequest], tmp_path: Path) -> None:
    dataset_toys.blanks(tmp_path / "far", ["1.png", "2.JPG"])
    dataset_toys.blanks(tmp_path / "in", ["3.png"])
    (tmp_path / "in" / "far").symlink_to(tmp_path / "far")
    segment_dataset(request_of(tmp_path / "out", source=str(tmp_path / "in"), per_file=2))
    found = [(row["picture"], row["width"], row["error"]) for row in dataset_toys.rows(tmp_path / "out")]
    assert found == [("3.png", 1, None), ("far/1.png", 1, None), ("far/2.JPG", 2, None)]


@pytest.mark.usefixtures("pretended")
def test_a_name_may_have_the_sign_of_a_chain(
    request_of: Callable[..., DatasetRequest], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset_toys.blanks(tmp_path / "a::b", ["1::2.png", "3.png"])
    monkeypatch.chdir(tmp_path)
    for number, source in enumerate(["a::b", str(tmp_path / "a::b"), (tmp_path / "a::b").as_uri().replace("%3A", ":")]):
        out = tmp_path / f"out::{number}"
        segment_dataset(request_of(out, source=source))
        found = [(row["picture"], row["width"], row["error"]) for row in dataset_toys.rows(out)]
        assert found == [("1::2.png", 1, None), ("3.png", 2, None)]
        assert dataset_toys.rows(out)[0]["uri"] == f"file://{tmp_path}/a::b/1::2.png"
