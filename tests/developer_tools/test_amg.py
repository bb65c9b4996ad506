"""The comparison with Meta's generators keeps every scene, goes on after a stop, and fails where a mask differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools import amg

ROOT = Path(__file__).parents[2]
SETTINGS = {"grid": 32, "threads": 2}


def a_row(scene: int = 0, **changes: Any) -> dict[str, Any]:
    return {
        "family": "sam1", "scene": scene, "size_px": (640, 480), "s": 1.0, "metas_s": 6.0, "ours": 5, "metas": 5,
        "same": 5, "near": [], "unexplained": [], "swapped": 0, "flipped_px": 2, "least_iou": 0.9999, **changes,
    }  # fmt: skip


def test_scenes_that_are_kept_are_there_again(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    amg.Kept(path, SETTINGS).add(a_row())
    amg.Kept(path, SETTINGS).add(a_row(1, family="sam2"))
    assert [row["scene"] for row in amg.Kept(path, SETTINGS).rows("sam1")] == [0]
    assert [file.name for file in tmp_path.iterdir()] == ["kept.json"]


def test_other_settings_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "kept.json"
    amg.Kept(path, SETTINGS).add(a_row())
    with pytest.raises(SystemExit, match=r"other settings: found \{'grid': 32\}"):
        amg.Kept(path, {**SETTINGS, "grid": 8})


@pytest.mark.parametrize(
    ("changes", "code"),
    [({}, 0), ({"near": ["one"]}, 0), ({"unexplained": ["one"]}, 1), ({"swapped": 1}, 1)],
    ids=["same", "near", "unexplained", "swapped"],
)
def test_a_mask_that_differs_fails(changes: dict[str, Any], code: int, capsys: pytest.CaptureFixture[str]) -> None:
    assert amg.report([a_row(), a_row(1, **changes), a_row(4, size_px=[2048, 1536])]) == code
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("sam1, 2 scenes of 640 x 480 px: 10 masks and Meta's 10, 10 the same (4 px differ")
    assert second.startswith("sam1, 1 scenes of 2048 x 1536 px")
    assert second.endswith("6.0 times as fast, least 6.0")


def test_what_was_kept_says_that_no_mask_differs() -> None:
    (file,) = (ROOT / "docs" / "results").glob("*-automatic.json")
    rows = json.loads(file.read_text())["scenes"]
    assert {(row["family"], tuple(row["size_px"])) for row in rows} == {
        (family, size_px) for family in ("sam1", "sam2") for size_px in amg.SIZES_PX
    }
    assert amg.report(rows) == 0
