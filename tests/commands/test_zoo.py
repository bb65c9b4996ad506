"""A folder of checkpoints becomes a table: every export once, whatever became of it, and none that is not there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from checkpoint_files import meta_sam1
from safetensors.torch import save_file

from samx.artifacts.strict_json import parse
from samx.commands import zoo as command
from samx.commands.zoo import BROKE_OFF, checkpoints, require_passed, zoo
from samx.commands.zoo_table import Row, ZooTable
from samx.errors import ArtifactError, CheckpointError, ParityError, UnavailableError, UsageError, WriteError
from samx.registry import BACKENDS

Calls = list[tuple[str, str, str]]
PAIRS = [(one.target, name) for one in BACKENDS for name in one.precisions]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """Keep a checkpoint, a model's folder, a file that is none, and one that has nothing to do with it."""
    folder = tmp_path / "weights"
    (folder / "deep" / "model").mkdir(parents=True)
    state = meta_sam1()
    torch.save(state, folder / "vit.pth")
    save_file({name: tensor.clone() for name, tensor in state.items()}, folder / "deep" / "model" / "model.safetensors")
    (folder / "deep" / "model" / "config.json").write_text("{}")
    (folder / "broken.pt").write_bytes(b"no checkpoint")
    (folder / "README.md").touch()
    return folder


@pytest.fixture
def exports(monkeypatch: pytest.MonkeyPatch) -> Calls:
    """Export nothing; remember what was asked."""
    return exporting(monkeypatch, lambda request: None)


def exporting(monkeypatch: pytest.MonkeyPatch, act: Callable[[Any], None]) -> Calls:
    calls: Calls = []

    def export(request: Any) -> Any:
        calls.append((request.checkpoint.name, request.target, request.precision))
        request.out.mkdir()
        (request.out / "large.bin").write_bytes(b"x")
        act(request)
        part = SimpleNamespace(worst=lambda: {"mask_iou_mean": (0.9995, "all"), "logit_error": (float("inf"), "x")})
        manifest = SimpleNamespace(
            evidence=[SimpleNamespace(level="graph")] * 2, encoder=SimpleNamespace(architecture="vit"),
            files={"a": SimpleNamespace(bytes=1 << 20)}, tools={"onnx": "1"},
        )  # fmt: skip
        return SimpleNamespace(manifest=manifest, report=SimpleNamespace(parts=lambda: {"": part, "encoder, ": part}))

    monkeypatch.setattr(command, "export", export)
    return calls


def rows(table: ZooTable) -> dict[tuple[str, str | None, str | None], Row]:
    return {(row.file, row.target, row.precision): row for row in table.rows}


def test_every_file_is_exported_for_every_target_and_precision(weights: Path, exports: Calls, tmp_path: Path) -> None:
    table = zoo(weights, tmp_path / "zoo")
    assert exports == [(name, *pair) for name in ("model", "vit.pth") for pair in PAIRS]
    assert len(table.rows) == 2 * len(PAIRS) + 1
    one = rows(table)["vit.pth", "onnx", "fp32"]
    assert (one.outcome, one.levels, one.encoder, one.bytes) == ("passed", ("graph",), "vit", 1 << 20)
    assert one.metrics == {"mask_iou_mean": 0.9995, "encoder, mask_iou_mean": 0.9995}
    assert one.taken_for == "Meta SAM checkpoint (1024 px, float32)"
    refused = rows(table)["broken.pt", None, None]
    assert (refused.outcome, refused.sha256) == ("refused", None)
    assert "broken.pt" in str(refused.reason)
    assert sorted(path.name for path in (tmp_path / "zoo").iterdir()) == ["zoo.json", "zoo.md"]
    page = (tmp_path / "zoo" / "zoo.md").read_text()
    assert f"{2 * len(PAIRS)} passed, 1 refused" in page
    assert "| onnx | fp32 | passed (graph) | 0.9995 |  | 0.9995 | 1.0 | 0 |" in page
    require_passed(table)


def test_only_what_was_named_is_exported(weights: Path, exports: Calls, tmp_path: Path) -> None:
    zoo(weights, tmp_path / "zoo", ["trt-rtx", "onnx"], ["fp16", "fp32"])
    assert [call[1:] for call in exports[:3]] == [("trt-rtx", "fp32"), ("trt-rtx", "fp16"), ("onnx", "fp32")]
    with pytest.raises(UsageError, match="no target has this precision: found fp17"):
        zoo(weights, tmp_path / "zoo", [], ["fp17"])
    with pytest.raises(UsageError, match="unknown export target"):
        zoo(weights, tmp_path / "zoo", ["tpu"])


def test_what_was_done_is_not_done_again(weights: Path, exports: Calls, tmp_path: Path) -> None:
    first = zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    (weights / "vit.pth").rename(weights / "renamed.pth")
    count = len(exports)
    second = zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    assert len(exports) == count
    assert {row.key for row in first.rows} <= {row.key for row in second.rows}
    zoo(weights, tmp_path / "zoo", ["aoti"], ["fp32"])
    table = zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"], again=True)
    assert len(exports) == 3 * count
    assert {row.target for row in table.rows} == {"onnx", "aoti", None}


FAILURES: dict[str, tuple[Exception, str]] = {
    "another result": (ParityError("mask_iou_min is 0.5"), "failed"),
    "no library": (UnavailableError("tensorrt is not installed"), "not here"),
    "no encoder": (CheckpointError("half of an encoder"), "refused"),
    "a bug": (ZeroDivisionError("division by zero"), "broke"),
    "no memory": (MemoryError(), "broke"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_what_goes_wrong_is_a_row_and_the_rest_goes_on(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    error, outcome = FAILURES[name]

    def act(request: Any) -> None:
        if request.checkpoint.name == "model":
            raise error

    exporting(monkeypatch, act)
    table = zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    found = rows(table)
    assert found["deep/model", "onnx", "fp32"].outcome == outcome
    assert str(error) in str(found["deep/model", "onnx", "fp32"].reason)
    assert found["vit.pth", "onnx", "fp32"].outcome == "passed"
    if outcome == "failed":
        with pytest.raises(ParityError, match="deep/model for onnx, fp32"):
            require_passed(table)
    else:
        require_passed(table)


def test_what_was_missing_here_is_tried_again(weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(request: Any) -> None:
        raise UnavailableError("no such library")

    exporting(monkeypatch, missing)
    zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    calls = exporting(monkeypatch, lambda request: None)
    table = zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    assert len(calls) == 2
    assert table.count()["passed"] == 2


def test_an_interrupted_export_leaves_no_row_and_the_next_run_does_it(
    weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(request: Any) -> None:
        raise KeyboardInterrupt

    exporting(monkeypatch, stopped)
    with pytest.raises(KeyboardInterrupt):
        zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    assert not (tmp_path / "zoo" / ".work").exists()
    exporting(monkeypatch, lambda request: None)
    assert zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"]).count()["passed"] == 2


def test_an_export_that_killed_the_process_is_told_and_not_tried_again(
    weights: Path, tmp_path: Path, exports: Calls
) -> None:
    table = zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    gone = rows(table)["deep/model", "onnx", "fp32"]
    left = ZooTable(tuple(row for row in table.rows if row != gone)).begin(gone)
    (tmp_path / "zoo" / "zoo.json").write_bytes(left.to_bytes())
    count = len(exports)
    found = rows(zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"]))["deep/model", "onnx", "fp32"]
    assert (found.outcome, found.reason) == ("broke", BROKE_OFF)
    assert len(exports) == count


def test_a_table_of_something_else_is_refused_and_stays(weights: Path, tmp_path: Path, exports: Calls) -> None:
    (tmp_path / "zoo").mkdir()
    (tmp_path / "zoo" / "zoo.json").write_text('{"format": "samx-zoo", "schema_version": 9}')
    with pytest.raises(ArtifactError, match="has another format"):
        zoo(weights, tmp_path / "zoo")
    assert json.loads((tmp_path / "zoo" / "zoo.json").read_text())["schema_version"] == 9
    assert exports == []


def test_the_table_is_read_back_as_it_was(weights: Path, tmp_path: Path, exports: Calls) -> None:
    table = zoo(weights, tmp_path / "zoo", ["onnx"], ["fp32"])
    data = (tmp_path / "zoo" / "zoo.json").read_bytes()
    assert ZooTable.from_json(parse(data, "zoo"), "zoo") == table


def test_folders_without_checkpoints_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such folder"):
        checkpoints(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no checkpoint in"):
        zoo(tmp_path / "empty", tmp_path / "zoo")
    assert not (tmp_path / "zoo").exists()


def test_a_folder_of_other_files_is_left_alone(weights: Path, tmp_path: Path, exports: Calls) -> None:
    (tmp_path / "mine" / ".work").mkdir(parents=True)
    (tmp_path / "mine" / "zoo.md").write_text("mine")
    with pytest.raises(WriteError, match=r"holds other files: expected a new folder, or one with zoo\.json"):
        zoo(weights, tmp_path / "mine")
    assert (tmp_path / "mine" / ".work").is_dir()
    assert (tmp_path / "mine" / "zoo.md").read_text() == "mine"
    assert exports == []
